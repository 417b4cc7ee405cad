#include "tplimit/report/json.hpp"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "report/words.hpp"

namespace tplimit {
namespace {

using Json = nlohmann::ordered_json;
using words::word;

// ---- numbers and arrays ----------------------------------------------------------------------------

Json number(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

/// `element(j)` for all j, nested as `shape` says; a scalar stands bare.
template <class Element>
Json nested(const std::vector<std::int64_t>& shape, Element element) {
  std::size_t next = 0;
  const auto fill = [&](const auto& self, std::size_t axis) -> Json {
    if (axis == shape.size()) return element(next++);
    Json out = Json::array();
    for (std::int64_t k = 0; k < shape[axis]; ++k) out.push_back(self(self, axis + 1));
    return out;
  };
  return fill(fill, 0);
}
Json nested(const std::vector<std::int64_t>& shape, const std::vector<double>& values) {
  return nested(shape, [&](std::size_t j) { return number(values[j]); });
}

std::string on_one_line(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

/// Arrays of plain values stand on one line, so do short objects of them; everything else is broken into lines.
void print(const Json& json, std::size_t indent, std::string& out) {
  constexpr std::size_t kShort = 80;
  if (std::all_of(json.begin(), json.end(), [](const Json& item) { return item.is_primitive(); })) {
    const std::string line = on_one_line(json);
    if (!json.is_object() || line.size() <= kShort) {
      out += line;
      return;
    }
  }
  const std::string line = '\n' + std::string(indent + 2, ' ');
  out += json.is_array() ? '[' : '{';
  bool first = true;
  for (const auto& [key, item] : json.items()) {
    out += (first ? "" : ",") + line;
    first = false;
    if (json.is_object()) out += on_one_line(key) + ": ";
    print(item, indent + 2, out);
  }
  out += '\n' + std::string(indent, ' ') + (json.is_array() ? ']' : '}');
}

std::string to_string(const Json& json) {
  std::string out;
  print(json, 0, out);
  return out + '\n';
}

// ---- parts -----------------------------------------------------------------------------------------

Json head(const ProgramInfo& program) {
  Json set = Json::object();
  for (const auto& [name, value] : program.constants) set[name] = value;
  Json own{{"file", program.source.name()}, {"sha256", program.sha256}, {"set", set}, {"random_scalars", program.random_scalars}};
  if (!program.ablations.empty()) own["ablations"] = program.ablations;
  return {{"tplimit", version()}, {"program", std::move(own)}};
}

const char* error_kind(const ReportResult& r) {
  if (!r.spread.empty()) return "standard_error";
  if (r.method == Method::kExact) return "exact";
  if (r.method == Method::kSamples) return "samples";
  if (r.error.empty()) return "none";
  if (r.method == Method::kClosedForm) return "rounding_bound";
  if (r.method == Method::kQuadrature) return "quadrature_estimate";
  return "standard_error";
}

Json report_json(const ReportResult& r) {
  Json out = {{"name", r.name},
              {"index", r.index_names},
              {"index_values", r.index_values},
              {"shape", r.shape},
              {"value", nested(r.shape, r.value)},
              {"stderr", r.error.empty() ? Json(nullptr) : nested(r.shape, r.error)},
              {"method", to_string(r.method)},
              {"error", error_kind(r)}};
  const auto flag = [&](std::size_t j) { return Json(static_cast<bool>(r.unresolved[j])); };
  out["unresolved"] = r.unresolved.empty() ? Json(nullptr) : nested(r.shape, flag);
  if (!r.undetermined.empty()) out["undetermined"] = r.undetermined;
  if (r.order) out["order"] = number(*r.order);
  if (!r.spread.empty()) out["spread"] = nested(r.shape, r.spread);
  return out;
}

Json expectations_json(const std::vector<ExpectResult>& expectations, const Source& source) {
  Json out = Json::array();
  for (const ExpectResult& e : expectations)
    out.push_back({{"line", source.line_of(e.span.begin)},
                   {"text", words::one_line(source.text(e.span))},
                   {"iteration", e.iteration},
                   {"status", word(e.status)},
                   {"left", number(e.left)},
                   {"right", number(e.right)},
                   {"error", number(e.error)},
                   {"tolerance", number(e.tolerance)}});
  return out;
}

Json warnings_json(const Diagnostics& warnings, const Source& source) {
  Json out = Json::array();
  for (const Diagnostic& w : warnings)
    out.push_back({{"code", w.code},
                   {"message", w.message},
                   {"line", w.located ? Json(source.line_of(w.span.begin)) : Json(nullptr)},
                   {"help", w.help}});
  return out;
}

Json limit_json(const LimitResult& limit, const ProgramInfo& program) {
  const EngineInfo& engine = limit.engine;
  Json out = head(program);
  out["engine"] = {{"name", engine.name},
                   {"particles", engine.particles},
                   {"randomisations", engine.randomisations},
                   {"seed", engine.seed},
                   {"threads", engine.threads},
                   {"rank_tol", engine.rank_tol},
                   {"largest_rank", engine.largest_rank},
                   {"merge_rows", engine.merge_rows},
                   {"rows_merged", engine.rows_merged},
                   {"clamped", engine.clamped},
                   {"ranks", engine.ranks},
                   {"sums", engine.sums},
                   {"sum_bytes", engine.sum_bytes},
                   {"extrapolated", engine.extrapolated},
                   {"random_outputs", limit.random_outputs},
                   {"draws", limit.draws},
                   {"tolerance", engine.tolerance ? number(*engine.tolerance) : Json(nullptr)},
                   {"tolerance_missed", limit.tolerance_missed},
                   {"largest_error", number(limit.largest_error)},
                   {"sampling_error", number(engine.sampling_error)},
                   {"truncation_error", number(engine.truncation_error)},
                   {"precision", engine.single_precision ? "single" : "double"},
                   {"memory_estimate_bytes", engine.memory_estimate},
                   {"product_flops", engine.product_flops}};
  out["reports"] = Json::array();
  for (const ReportResult& r : limit.reports) out["reports"].push_back(report_json(r));
  out["expectations"] = expectations_json(limit.expectations, program.source);
  return out;
}

void finish(Json& out, const Diagnostics& warnings, const Source& source, double time_s, double bytes) {
  out["warnings"] = warnings_json(warnings, source);
  out["time_s"] = number(time_s);
  out["peak_memory_bytes"] = static_cast<std::uint64_t>(bytes);
}

Json slope_json(const std::optional<SlopeFit>& fit) {
  if (!fit) return nullptr;
  return {{"slope", number(fit->slope)}, {"error", number(fit->error)}};
}

Json convergence_json(const ReportResult& r, const Convergence& c, const Comparison& all) {
  const auto per_entry = [&](auto member) {
    return nested(r.shape, [&](std::size_t j) { return number(member(c.entries[j])); });
  };
  Json out = {{"name", r.name},
              {"verdict", word(c.verdict)},
              {"reason", c.reason},
              {"p_value", number(c.p_value)},
              {"sd_slope", slope_json(c.sd_slope)},
              {"bias_slope", slope_json(c.bias_slope)},
              {"rms_slope", slope_json(c.rms_slope)},
              {"resolution", per_entry([](const EntryConvergence& e) { return e.resolution; })},
              {"widths", Json::array()}};
  for (std::size_t k = 0; k < all.networks.size(); ++k) {
    const auto at = [&](Eigen::VectorXd EntryConvergence::*member) {
      return per_entry([&](const EntryConvergence& e) { return (e.*member)[static_cast<Eigen::Index>(k)]; });
    };
    out["widths"].push_back({{"width", all.networks[k].width},
                             {"mean", at(&EntryConvergence::mean)},
                             {"sem", at(&EntryConvergence::mean_error)},
                             {"sd", at(&EntryConvergence::sd)},
                             {"rms", at(&EntryConvergence::rms)}});
  }
  if (all.show_corrections)
    for (const auto& [name, member] : {std::pair{"limit", &Corrections::limit}, {"slope", &Corrections::slope}, {"variance", &Corrections::variance}})
      out["corrections"][name] = {{"value", per_entry([&](const EntryConvergence& e) { return (e.corrections.value().*member).value; })},
                                  {"stderr", per_entry([&](const EntryConvergence& e) { return (e.corrections.value().*member).error; })}};
  return out;
}

}  // namespace

const char* version() { return TPLIMIT_VERSION; }

std::string to_json(const LimitResult& limit, const ProgramInfo& program) {
  Json out = limit_json(limit, program);
  finish(out, limit.warnings, program.source, limit.time_s, limit.peak_memory_bytes);
  return to_string(out);
}

std::string to_json(const SimulationResult& networks, const ProgramInfo& program) {
  const EngineInfo& engine = networks.engine;
  Json out = head(program);
  out["engine"] = {{"name", engine.name},
                   {"width", networks.width},
                   {"seeds", networks.seeds},
                   {"matrices", words::matrices(networks)},
                   {"precision", words::precision(networks)},
                   {"seed", engine.seed},
                   {"threads", engine.threads},
                   {"largest_rank", engine.largest_rank}};
  out["reports"] = Json::array();
  for (std::size_t k = 0; k < networks.reports.size(); ++k) {
    const ReportResult& r = networks.reports[k];
    Json report = report_json(r);
    report["runs"] = Json::array();
    for (const auto& run : networks.runs[k]) report["runs"].push_back(nested(r.shape, run));
    out["reports"].push_back(std::move(report));
  }
  out["expectations"] = Json::array();  // they are statements about the limit
  finish(out, networks.warnings, program.source, networks.time_s, networks.peak_memory_bytes);
  return to_string(out);
}

std::string to_json(const Comparison& all, const ProgramInfo& program) {
  Json out = limit_json(all.limit, program);
  Json networks = Json::array(), reports = Json::array();
  double time_s = all.limit.time_s, bytes = all.limit.peak_memory_bytes;
  for (const SimulationResult& width : all.networks) {
    time_s += width.time_s;
    bytes = std::max(bytes, width.peak_memory_bytes);
    networks.push_back({{"width", width.width}, {"seeds", width.seeds}, {"matrices", words::matrices(width)}, {"precision", words::precision(width)}, {"time_s", width.time_s}});
  }
  for (std::size_t k = 0; k < all.reports.size(); ++k)
    if (all.reports[k]) reports.push_back(convergence_json(all.limit.reports[k], *all.reports[k], all));
  out["compare"] = {{"verdict", word(all.verdict)}, {"networks", networks}, {"reports", reports}};
  finish(out, all.limit.warnings, program.source, time_s, bytes);
  return to_string(out);
}

}  // namespace tplimit
