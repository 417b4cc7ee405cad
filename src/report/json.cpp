#include "tplimit/report/json.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include "report/json_value.hpp"
#include "report/words.hpp"
#include "tplimit/report/extrapolation.hpp"
#include "tplimit/report/sweep.hpp"

namespace tplimit {
namespace {

using words::word;

// ---- numbers and arrays
// ----------------------------------------------------------------------------

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

std::string on_one_line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Arrays of plain values stand on one line, so do short objects of them; everything else is broken
/// into lines.
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

// ---- parts
// -----------------------------------------------------------------------------------------

Json head(const ProgramInfo& program) {
  Json set = Json::object();
  for (const auto& [name, value] : program.constants) set[name] = value;
  Json own{{"file", program.source.name()},
           {"sha256", program.sha256},
           {"set", set},
           {"random_scalars", program.random_scalars}};
  if (!program.ablations.empty()) own["ablations"] = program.ablations;
  if (!program.fingerprint.empty()) own["fingerprint"] = program.fingerprint;
  Json out{{"tplimit", version()}};
  if (!program.command.empty()) {
    out["command"] = program.command;
    out["options"] = Json::object();
    for (const auto& [name, texts] : program.options) out["options"][name] = texts;
  }
  out["program"] = std::move(own);
  return out;
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

/// Without `arrays`: they stand elsewhere.
Json report_json(const ReportResult& r, bool arrays = true) {
  const auto array = [&](const std::vector<double>& values) {
    return arrays && !values.empty() ? nested(r.shape, values) : Json(nullptr);
  };
  Json out = {{"name", r.name},
              {"index", r.index_names},
              {"index_values", r.index_values},
              {"shape", r.shape},
              {"value", arrays ? nested(r.shape, r.value) : Json(nullptr)},
              {"stderr", array(r.error)},
              {"method", to_string(r.method)},
              {"error", error_kind(r)}};
  const auto flag = [&](std::size_t j) { return Json(static_cast<bool>(r.unresolved[j])); };
  out["unresolved"] = r.unresolved.empty() || !arrays ? Json(nullptr) : nested(r.shape, flag);
  if (!r.undetermined.empty()) out["undetermined"] = r.undetermined;
  if (r.random) out["random"] = true;
  if (r.order) out["order"] = number(*r.order);
  if (!r.spread.empty()) out["spread"] = array(r.spread);
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

Json limit_json(const LimitResult& limit, const ProgramInfo& program, bool arrays = true) {
  const EngineInfo& engine = limit.engine;
  Json out = head(program);
  out["engine"] = {{"name", engine.name},
                   {"particles", engine.particles},
                   {"randomisations", engine.randomisations},
                   {"seed", engine.seed},
                   {"threads", engine.threads},
                   {"rank_tol", engine.rank_tol},
                   {"largest_rank", engine.largest_rank},
                   {"stored_matrices", engine.stored_matrices},
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
  for (const ReportResult& r : limit.reports) out["reports"].push_back(report_json(r, arrays));
  out["expectations"] = expectations_json(limit.expectations, program.source);
  return out;
}

void finish(Json& out, const Diagnostics& warnings, const Source& source, double time_s,
            double bytes) {
  out["warnings"] = warnings_json(warnings, source);
  out["time_s"] = number(time_s);
  out["peak_memory_bytes"] = static_cast<std::uint64_t>(bytes);
}

Json complete_json(const LimitResult& limit, const ProgramInfo& program, bool arrays = true) {
  Json out = limit_json(limit, program, arrays);
  finish(out, limit.warnings, program.source, limit.time_s, limit.peak_memory_bytes);
  return out;
}

Json slope_json(const std::optional<SlopeFit>& fit) {
  if (!fit) return nullptr;
  return {{"slope", number(fit->slope)}, {"error", number(fit->error)}};
}

Json convergence_json(const ReportResult& r, const Convergence& c, const Comparison& all,
                      bool arrays) {
  const auto per_entry = [&](auto member) {
    if (!arrays) return Json(nullptr);
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
      return per_entry(
          [&](const EntryConvergence& e) { return (e.*member)[static_cast<Eigen::Index>(k)]; });
    };
    out["widths"].push_back({{"width", all.networks[k].width},
                             {"mean", at(&EntryConvergence::mean)},
                             {"sem", at(&EntryConvergence::mean_error)},
                             {"sd", at(&EntryConvergence::sd)},
                             {"rms", at(&EntryConvergence::rms)}});
  }
  if (all.show_corrections)
    for (const auto& [name, member] : {std::pair{"limit", &Corrections::limit},
                                       {"slope", &Corrections::slope},
                                       {"variance", &Corrections::variance}})
      out["corrections"][name] = {
          {"value", per_entry([&, which = member](const EntryConvergence& e) {
             return (e.corrections.value().*which).value;
           })},
          {"stderr", per_entry([&, which = member](const EntryConvergence& e) {
             return (e.corrections.value().*which).error;
           })}};
  return out;
}

}  // namespace

const char* version() { return TPLIMIT_VERSION; }

std::string with_header(const ProgramInfo& program, const std::string& object) {
  const std::string header = to_string(head(program));
  return header.substr(0, header.size() - std::string_view("\n}\n").size()) + "," +
         object.substr(1);
}

std::string to_json(const LimitResult& limit, const ProgramInfo& program, bool arrays) {
  return to_string(complete_json(limit, program, arrays));
}

namespace {

void flatten(const Json& json, std::vector<double>& out) {
  if (json.is_array())
    for (const Json& item : json) flatten(item, out);
  else
    out.push_back(json.is_null()      ? std::numeric_limits<double>::quiet_NaN()
                  : json.is_boolean() ? (json.get<bool>() ? 1.0 : 0.0)
                                      : json.get<double>());
}
std::vector<double> flat(const Json& json) {
  std::vector<double> out;
  flatten(json, out);
  return out;
}

std::string settings(const Json& set) {
  std::string out;
  for (const auto& [name, value] : set.items())
    out += fmt::format("{}{} = {}", out.empty() ? "" : ", ", name, value.get<std::string>());
  return out.empty() ? "nothing" : out;
}

/// "" or what differs.
std::string difference(const Json& theirs, const Json& ours) {
  if (theirs.at("sha256") != ours.at("sha256"))
    return fmt::format("the text of the program differs: it is of '{}', sha256 {}.., here {}..",
                       theirs.at("file").get<std::string>(),
                       theirs.at("sha256").get<std::string>().substr(0, 8),
                       ours.at("sha256").get<std::string>().substr(0, 8));
  if (settings(theirs.at("set")) != settings(ours.at("set")))
    return fmt::format("what is set differs: there {}, here {}", settings(theirs.at("set")),
                       settings(ours.at("set")));
  const auto ablations = [](const Json& j) { return j.value("ablations", std::string("none")); };
  if (ablations(theirs) != ablations(ours))
    return fmt::format("ablations differ: there {}, here {}", ablations(theirs), ablations(ours));
  if (!theirs.contains("fingerprint"))
    return "it is of an older version, and does not say of which data";
  if (theirs.at("fingerprint") != ours.at("fingerprint"))
    return "data differ: those of files, or those drawn from --seed";
  return "";
}

ReportResult report_from(const Json& j) {
  ReportResult r;
  r.name = j.at("name");
  r.index_names = j.at("index").get<std::vector<std::string>>();
  r.index_values = j.at("index_values").get<std::vector<std::vector<std::int64_t>>>();
  r.shape = j.at("shape").get<std::vector<std::int64_t>>();
  r.value = flat(j.at("value"));
  if (j.at("error") != "none" && j.at("error") != "samples") r.error = flat(j.at("stderr"));
  for (const Method m : {Method::kExact, Method::kClosedForm, Method::kQuadrature,
                         Method::kParticles, Method::kNetworks, Method::kSamples})
    if (j.at("method") == to_string(m)) r.method = m;
  if (!j.at("unresolved").is_null())
    for (const double x : flat(j.at("unresolved"))) r.unresolved.push_back(x != 0);
  r.undetermined = j.value("undetermined", std::string());
  r.random = j.value("random", false);
  if (j.contains("order")) r.order = j.at("order").get<double>();
  if (j.contains("spread")) r.spread = flat(j.at("spread"));
  return r;
}

/// "" or how the report differs from that of the program.
std::string difference(const ReportResult& theirs, const ir::Report& ours,
                       const ir::Program& program) {
  std::vector<std::int64_t> shape;
  std::int64_t size = 0;
  for (const auto& entry : ours.entries) size += ir::size_of(program[entry.value].type.dims);
  if (!ours.entries.empty()) shape = program[ours.entries[0].value].type.dims;
  const std::size_t loops = ours.index_names.size();
  if (theirs.name != ours.name)
    return fmt::format("report '{}' is '{}' there", ours.name, theirs.name);
  const bool same = theirs.index_names == ours.index_names &&
                    theirs.shape.size() == loops + shape.size() &&
                    std::equal(shape.begin(), shape.end(),
                               theirs.shape.begin() + static_cast<std::ptrdiff_t>(loops));
  if (!same || static_cast<std::int64_t>(theirs.value.size()) != size)
    return fmt::format("report '{}' has another shape there", ours.name);
  if (theirs.method != Method::kSamples && theirs.error.size() != theirs.value.size())
    return fmt::format("report '{}' has no errors there: run with two randomisations or more",
                       ours.name);
  return "";
}

LimitResult limit_from(const Json& json, const ProgramInfo& program, const ir::Program& networks) {
  LimitResult out;
  const Json& engine = json.at("engine");
  out.engine.name = engine.at("name");
  out.engine.particles = engine.at("particles");
  out.engine.randomisations = engine.at("randomisations");
  out.engine.seed = engine.at("seed");
  out.engine.threads = engine.at("threads");
  out.engine.rank_tol = engine.at("rank_tol");
  out.engine.largest_rank = engine.at("largest_rank");
  out.engine.stored_matrices = engine.value("stored_matrices", 0);
  if (engine.at("tolerance").is_number())
    out.engine.tolerance = engine.at("tolerance").get<double>();
  out.engine.single_precision = engine.at("precision") == "single";
  out.engine.extrapolated = engine.at("extrapolated");
  out.random_outputs = engine.at("random_outputs");
  out.draws = engine.at("draws");
  out.tolerance_missed = engine.at("tolerance_missed");
  const auto real = [](const Json& j) {
    return j.is_null() ? std::numeric_limits<double>::quiet_NaN() : j.get<double>();
  };
  out.largest_error = real(engine.at("largest_error"));
  for (const Json& report : json.at("reports")) out.reports.push_back(report_from(report));
  for (std::size_t k = 0; k < out.reports.size() && k < networks.reports.size(); ++k)
    out.reports[k].span = networks.reports[k].span;
  for (const Json& e : json.at("expectations")) {
    ExpectResult own;
    for (const ir::Expectation& x : networks.expectations)
      if (program.source.line_of(x.span.begin) == e.at("line").get<std::size_t>() &&
          words::one_line(program.source.text(x.span)) == e.at("text").get<std::string>())
        own.span = x.span;
    own.iteration = e.at("iteration");
    for (const ExpectStatus status :
         {ExpectStatus::kPassed, ExpectStatus::kFailed, ExpectStatus::kUndecided})
      if (e.at("status") == word(status)) own.status = status;
    own.left = real(e.at("left"));
    own.right = real(e.at("right"));
    own.error = e.at("error").is_null() ? std::numeric_limits<double>::infinity()
                                        : e.at("error").get<double>();
    own.tolerance = real(e.at("tolerance"));
    out.expectations.push_back(std::move(own));
  }
  return out;
}

}  // namespace

std::variant<LimitResult, std::string> limit_from_json(const std::string& text,
                                                       const ProgramInfo& program,
                                                       const ir::Program& networks) {
  try {
    const Json json = Json::parse(text);
    if (json.at("engine").at("name") == "networks")
      return std::string("it is a result of simulate, not of run");
    if (std::string what = difference(json.at("program"), head(program).at("program"));
        !what.empty())
      return what;
    LimitResult out = limit_from(json, program, networks);
    if (out.reports.size() != networks.reports.size())
      return fmt::format("it has {} reports, the program {}", out.reports.size(),
                         networks.reports.size());
    for (std::size_t k = 0; k < out.reports.size(); ++k)
      if (std::string what = difference(out.reports[k], networks.reports[k], networks);
          !what.empty())
        return what;
    return out;
  } catch (const nlohmann::json::exception&) {
    return std::string("it is no result of run --out");
  }
}

std::string to_json(const SimulationResult& networks, const ProgramInfo& program, bool arrays) {
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
    Json report = report_json(r, arrays);
    report["runs"] = arrays ? Json::array() : Json(nullptr);
    for (std::size_t i = 0; arrays && i < networks.runs[k].size(); ++i)
      report["runs"].push_back(nested(r.shape, networks.runs[k][i]));
    out["reports"].push_back(std::move(report));
  }
  out["expectations"] = Json::array();  // they are statements about the limit
  finish(out, networks.warnings, program.source, networks.time_s, networks.peak_memory_bytes);
  return to_string(out);
}

namespace {

Json comparison_json(const Comparison& all, const ProgramInfo& program, bool arrays = true) {
  Json out = limit_json(all.limit, program, arrays);
  Json networks = Json::array(), reports = Json::array();
  double time_s = all.limit.time_s, bytes = all.limit.peak_memory_bytes;
  for (const SimulationResult& width : all.networks) {
    time_s += width.time_s;
    bytes = std::max(bytes, width.peak_memory_bytes);
    networks.push_back({{"width", width.width},
                        {"seeds", width.seeds},
                        {"matrices", words::matrices(width)},
                        {"precision", words::precision(width)},
                        {"time_s", width.time_s}});
  }
  for (std::size_t k = 0; k < all.reports.size(); ++k)
    if (all.reports[k])
      reports.push_back(convergence_json(all.limit.reports[k], *all.reports[k], all, arrays));
  out["compare"] = {{"verdict", word(all.verdict)}, {"networks", networks}, {"reports", reports}};
  finish(out, all.limit.warnings, program.source, time_s, bytes);
  return out;
}

/// What `run` or `compare` writes for one combination, or why it was refused.
Json row_json(const SweepRow& row, const std::vector<SweepAxis>& axes) {
  Json set = Json::object();
  for (std::size_t k = 0; k < axes.size(); ++k) set[axes[k].name] = row.values[k];
  Json out{{"set", std::move(set)}, {"errors", nullptr}, {"result", nullptr}};
  if (const Diagnostics* errors = row.refusal())
    out["errors"] = warnings_json(*errors, row.program.source);
  else if (const Comparison* compared = row.comparison())
    out["result"] = comparison_json(*compared, row.program);
  else
    out["result"] = complete_json(*row.limit(), row.program);
  return out;
}

}  // namespace

std::string to_json(const Comparison& all, const ProgramInfo& program, bool arrays) {
  return to_string(comparison_json(all, program, arrays));
}

std::string to_json(const Sweep& sweep, const ProgramInfo& program) {
  Json out = head(program), own = Json::object();
  own["over"] = Json::array();
  for (const SweepAxis& axis : sweep.axes)
    own["over"].push_back({{"name", axis.name}, {"values", axis.values}});
  own["best"] = nullptr;
  if (sweep.goal)
    if (const auto best = best_of(sweep))
      own["best"] = {{"report", sweep.goal->report},
                     {"highest", sweep.goal->highest},
                     {"row", best->best},
                     {"ties", best->ties},
                     {"errors_known", best->errors_known}};
  own["rows"] = Json::array();
  for (const SweepRow& row : sweep.rows) own["rows"].push_back(row_json(row, sweep.axes));
  out["sweep"] = std::move(own);
  out["time_s"] = number(sweep.time_s);
  return to_string(out);
}

namespace {

Json estimate_json(const std::optional<Estimate>& x) {
  if (!x) return nullptr;
  return {{"value", number(x->value)}, {"stderr", number(x->error)}};
}

Json entry_json(const ExtrapolatedEntry& entry) {
  const auto list = [](const std::vector<double>& values) {
    Json out = Json::array();
    for (const double x : values) out.push_back(number(x));
    return out;
  };
  const Extrapolation& x = entry.limit;
  Json out{{"label", entry.label},
           {"values", list(entry.values)},
           {"stderr", entry.errors.empty() ? Json(nullptr) : list(entry.errors)},
           {"value", number(x.value)},
           {"sampling_error", x.sampling_error ? number(*x.sampling_error) : Json(nullptr)},
           {"extrapolation_error", number(x.extrapolation_error)},
           {"order_seen", estimate_json(x.order)},
           {"order_agrees", x.order_agrees},
           {"slope", nullptr}};
  if (entry.power) {
    out["slope"] = estimate_json(entry.power->slope);
    out["slope"]["chi2_per_dof"] =
        entry.power->chi2_per_dof ? number(*entry.power->chi2_per_dof) : Json(nullptr);
  }
  return out;
}

}  // namespace

std::string to_json(const ExtrapolationResult& result, const ProgramInfo& program) {
  Json out = head(program), reports = Json::array();
  for (const ExtrapolatedReport& report : result.reports) {
    Json entries = Json::array();
    for (const ExtrapolatedEntry& entry : report.entries) entries.push_back(entry_json(entry));
    reports.push_back({{"name", report.name}, {"entries", std::move(entries)}});
  }
  out["extrapolate"] = {{"constant", result.constant},
                        {"values", result.texts},
                        {"step", (result.growing ? "1/" : "") + result.constant},
                        {"order", result.order},
                        {"reports", std::move(reports)},
                        {"left_out", result.left_out}};
  out["time_s"] = number(result.time_s);
  return to_string(out);
}

std::string to_json(const CoordinateCheck& check, const ProgramInfo& program) {
  const auto estimate = [](const Estimate& e) {
    return Json{{"value", number(e.value)}, {"stderr", number(e.error)}};
  };
  Json values = Json::array();
  for (const CoordinateSize& v : check.values) {
    Json steps = Json::array();
    for (std::size_t k = 0; k < v.steps.size(); ++k) {
      Json sizes = Json::array();
      for (const Estimate& e : v.sizes[k]) sizes.push_back(estimate(e));
      const auto& fit = v.slopes[k];
      steps.push_back(
          {{"step", v.steps[k]},
           {"counted",
            v.is_counted[k] && v.counted[k] ? Json(to_double(*v.counted[k])) : Json(nullptr)},
           {"sizes", std::move(sizes)},
           {"slope", fit ? Json{{"value", fit->slope}, {"stderr", fit->error}} : Json(nullptr)},
           {"limit", v.limit[k] ? estimate(*v.limit[k]) : Json(nullptr)},
           {"growth", to_string(growth(v, k))}});
    }
    values.push_back({{"name", v.name},
                      {"line", program.source.line_of(v.span.begin)},
                      {"steps", std::move(steps)}});
  }
  Json out = head(program);
  out["coordcheck"] = {{"widths", check.widths},
                       {"seeds", check.seeds},
                       {"steps", check.steps},
                       {"values", std::move(values)}};
  return to_string(out);
}

}  // namespace tplimit
