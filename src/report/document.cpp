#include "tplimit/report/document.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "report/charts.hpp"
#include "report/words.hpp"
#include "tplimit/report/numbers.hpp"

namespace tplimit {

using words::axes_of;
using words::bracketed;
using words::describe;
using words::entry_label;
using words::fixed;
using words::format_sample;
using words::loops_of;
using words::one_line;
using words::plural;
using words::product;
using words::Shape;
using words::two_digits;
using words::unravel;
using words::value_text;
using words::without_error;
using words::word;

namespace document {
namespace {

bool has_loops(const ReportResult& r) { return !r.index_names.empty(); }

Shape row_shape(const ReportResult& r) {
  if (has_loops(r)) return loops_of(r);
  const Shape axes = axes_of(r);
  return {axes.begin(), axes.end() - 1};
}
Shape column_shape(const ReportResult& r) {
  return has_loops(r) ? axes_of(r) : Shape{axes_of(r).back()};
}

}  // namespace

std::size_t Series::rows() const { return product(row_shape(*report)); }
std::size_t Series::columns() const { return product(column_shape(*report)); }

std::vector<std::string> Series::label_names() const {
  if (has_loops(*report)) return report->index_names;
  return std::vector<std::string>(row_shape(*report).empty() ? 0 : 1);
}

std::vector<std::string> Series::labels(std::size_t row) const {
  const Shape index = unravel(row, row_shape(*report));
  if (!has_loops(*report))
    return index.empty() ? std::vector<std::string>{} : std::vector{bracketed(index)};
  std::vector<std::string> out;
  for (std::size_t k = 0; k < index.size(); ++k)
    out.push_back(fmt::format("{}", report->index_values[k][static_cast<std::size_t>(index[k])]));
  return out;
}

std::string Series::heading(std::size_t column) const {
  return bracketed(unravel(column, column_shape(*report)));
}

std::string Series::cell(std::size_t row, std::size_t column) const {
  const std::size_t flat = row * columns() + column;
  return spread ? words::spread_text(*report, flat) : value_text(*report, flat);
}

std::string leading_term(const std::string& term) {
  return (term[0] == '+' ? "" : "-") + term.substr(2);
}

std::string sum_of(const std::vector<std::string>& terms) {
  std::string out;
  for (const std::string& t : terms) out += out.empty() ? leading_term(t) : " " + t;
  return out;
}

}  // namespace document

namespace {

using namespace document;

constexpr const char* kUnresolvedNote = "?  not resolved: within 3 errors of 0 or of a neighbour";

// ---- reports
// ---------------------------------------------------------------------------------------

bool has_unresolved(const ReportResult& r) {
  return std::find(r.unresolved.begin(), r.unresolved.end(), true) != r.unresolved.end();
}

/// Nothing where it is as usual.
std::vector<std::string> method_note(const ReportResult& r) {
  if (!r.spread.empty()) return {};  // most of the error is that of the draws
  switch (r.method) {
    case Method::kExact: return {"exact"};
    case Method::kClosedForm: return {"closed form"};
    case Method::kQuadrature: return {"quadrature"};
    case Method::kSamples: return {"draws of coordinates"};
    case Method::kParticles:
      if (r.error.empty()) return {"no error estimate: one randomisation"};
      return {};
    case Method::kNetworks: return {};
  }
  return {};
}

Heading heading_of(const ReportResult& r) {
  Heading out{2, r.name, method_note(r)};
  if (!r.shape.empty()) out.remarks.insert(out.remarks.begin(), describe(r));
  return out;
}

ReportForm form_of(const ProgramInfo& program, std::size_t report) {
  return report < program.forms.size() ? program.forms[report] : ReportForm{};
}

/// A section for each array and for scalars that stand together.
void add_reports(Document& out, const std::vector<ReportResult>& reports,
                 const ProgramInfo& program) {
  std::size_t name_width = 0;
  for (const ReportResult& r : reports)
    if (r.shape.empty()) name_width = std::max(name_width, count_columns(r.name));
  bool in_scalars = false;
  for (const ReportResult& r : reports) {
    const bool scalar = r.shape.empty();
    if (scalar) {
      if (!in_scalars) out.add({Scalars{{}, name_width}});
      Scalars::Scalar own{r.name, value_text(r, 0), method_note(r)};
      if (!r.spread.empty())
        own.remarks.insert(own.remarks.begin(), "spread " + words::spread_text(r, 0));
      std::get<Scalars>(out.sections.back().blocks[0]).scalars.push_back(std::move(own));
    } else {
      const auto report = static_cast<std::size_t>(&r - reports.data());
      Section& section = out.add({heading_of(r), Series{&r, false}});
      if (!r.spread.empty())
        section.blocks.push_back(Series{&r, true, fmt::format("spread of {} over draws", r.name)});
      section.blocks.push_back(
          Drawing{[&r, form = form_of(program, report)] { return chart::charts_of(r, form); }});
    }
    in_scalars = scalar;
  }
  if (std::any_of(reports.begin(), reports.end(), has_unresolved))
    out.add({Paragraph{{kUnresolvedNote}}});
  out.add({OmissionNote{"left out: --full prints everything, --out FILE.json writes it"}});
}

// ---- expectations
// ----------------------------------------------------------------------------------

int badness(ExpectStatus status) {
  return status == ExpectStatus::kFailed ? 2 : status == ExpectStatus::kUndecided ? 1 : 0;
}

/// For each `expect` of the program its worst iteration.
void add_checks(Document& out, const LimitResult& limit, const Source& source) {
  std::vector<const ExpectResult*> worst;
  std::vector<std::pair<std::size_t, std::size_t>>
      counts;  // iterations, of them as bad as the worst
  for (const ExpectResult& e : limit.expectations) {
    const auto same =
        std::find_if(worst.begin(), worst.end(), [&](const auto* w) { return w->span == e.span; });
    const auto k = static_cast<std::size_t>(same - worst.begin());
    if (same == worst.end()) {
      worst.push_back(&e);
      counts.emplace_back(1, 1);
      continue;
    }
    ++counts[k].first;
    const int change = badness(e.status) - badness(worst[k]->status);
    if (change >= 0) counts[k].second = change > 0 ? 1 : counts[k].second + 1;
    const auto gap = [](const ExpectResult& x) { return std::abs(x.left - x.right) - x.tolerance; };
    if (change > 0 || (change == 0 && gap(e) > gap(*worst[k]))) worst[k] = &e;
  }
  if (!worst.empty()) out.add({});
  for (std::size_t k = 0; k < worst.size(); ++k) {
    const ExpectResult& e = *worst[k];
    const bool failed = e.status == ExpectStatus::kFailed, known = std::isfinite(e.error);
    const auto show = [&](double x) {
      return std::isnan(x) ? "undetermined" : known ? format_number(x, e.error) : format_sample(x);
    };
    const auto side = [&](double x) { return x == 0 ? std::string("0") : without_error(show(x)); };
    Check check{
        e.status,
        fmt::format("{}:{}", source.part_at(e.span.begin).name, source.line_of(e.span.begin)),
        one_line(source.text(e.span)),
        fmt::format("left {}, right {}, difference {}{}", side(e.left), side(e.right),
                    show(e.left - e.right),
                    known || std::isnan(e.left) ? "" : ", no error estimate: one randomisation")};
    if (!e.iteration.empty()) check.finding += fmt::format(", worst at {}", e.iteration);
    if (e.status != ExpectStatus::kPassed && counts[k].first > 1)
      check.finding += fmt::format("; {} of {} iterations {}", counts[k].second, counts[k].first,
                                   failed ? "fail" : "are undecided");
    out.sections.back().blocks.emplace_back(std::move(check));
  }
}

// ---- first and last lines
// --------------------------------------------------------------------------

/// What the numbers are of; `lines` say how they were found.
Document titled(const ProgramInfo& program, std::string_view what, std::vector<std::string> lines,
                const std::string& condition) {
  if (!condition.empty()) lines.push_back(condition);
  Document out;
  out.add({Heading{1, fmt::format("{}: {}", program.source.name(), what)},
           Paragraph{words::changes(program)}, Paragraph{std::move(lines)}});
  return out;
}

/// "" where the limit is one number for each report.
std::string condition(bool random_scalars, bool random_outputs, std::uint64_t seed, int draws) {
  if (!random_scalars && !random_outputs) return "";
  const char* what = !random_outputs  ? "random scalars"
                     : random_scalars ? "random scalars and outputs"
                                      : "random outputs";
  if (draws > 1)
    return fmt::format(
        "mean over {} draws of the {} from --seed {}, its standard error in parentheses; spread: "
        "their standard deviation",
        draws, what, seed);
  return fmt::format("conditional on the {} drawn from --seed {}", what, seed);
}

/// Draws are of random outputs, which each network has of its own; random scalars are those of
/// --seed.
std::string condition_of_comparison(bool random_scalars, const LimitResult& limit) {
  const std::uint64_t seed = limit.engine.seed;
  if (limit.draws == 1) return condition(random_scalars, limit.random_outputs, seed, 1);
  const std::string fixed = condition(random_scalars, false, seed, 1);
  return (fixed.empty() ? "" : fixed + "\n") + condition(false, true, seed, limit.draws);
}

std::string memory_text(double bytes) {
  return bytes >= 1e9 ? fmt::format("{:.1f} GB", bytes / 1e9)
                      : fmt::format("{:.0f} MB", bytes / 1e6);
}

std::string time_text(double seconds) {
  return fmt::format("{:.{}f} s", seconds, seconds < 10 ? 2 : seconds < 100 ? 1 : 0);
}

std::string resources(double time_s, double bytes, std::int64_t rank) {
  return fmt::format("time {}, memory {}, largest rank {}", time_text(time_s), memory_text(bytes),
                     rank);
}

// ---- comparison
// ------------------------------------------------------------------------------------

/// All entries if they are at most `most` or `full`; else the first, middle and last one, of a
/// series the first value of the first, middle and last iteration.
std::vector<std::size_t> representatives(const ReportResult& r, std::size_t most, bool full) {
  const std::size_t size = r.value.size(), iterations = product(loops_of(r));
  std::vector<std::size_t> out;
  if (full || size <= most) {
    for (std::size_t j = 0; j < size; ++j) out.push_back(j);
    return out;
  }
  const bool series = iterations >= most;
  const std::size_t count = series ? iterations : size, step = series ? size / iterations : 1;
  for (std::size_t k = 0; k < most; ++k) out.push_back(k * (count - 1) / (most - 1) * step);
  return out;
}

/// Widths downwards, the limit below them; `shown` entries sideways, each with mean and sd; at the
/// end all entries.
Table width_table(const ReportResult& r, const Convergence& c,
                  const std::vector<std::size_t>& shown,
                  const std::vector<SimulationResult>& networks, bool with_rms) {
  using Align = Column::Align;
  Table out{{}, 4, 3};
  const auto add = [&](std::string over, std::string own, std::vector<std::string> cells,
                       Align align) {
    std::vector<std::string> headings{std::move(own)};
    if (c.entries.size() > 1) headings.insert(headings.begin(), std::move(over));
    out.columns.push_back({std::move(headings), std::move(cells), align});
  };
  std::vector<std::string> labels;
  for (const SimulationResult& width : networks) labels.push_back(fmt::format("{}", width.width));
  labels.emplace_back("limit");
  add("", "width", std::move(labels), Align::kRight);
  const auto rows = static_cast<Eigen::Index>(networks.size());
  // Digits of rounding mean nothing, and differ by machine.
  const auto scatter = [](double spread, double mean) {
    return two_digits(spread <= kRounding * std::abs(mean) ? 0 : spread);
  };
  for (const std::size_t j : shown) {
    const EntryConvergence& entry = c.entries[j];
    std::vector<std::string> mean, sd;
    for (Eigen::Index k = 0; k < rows; ++k) {
      mean.push_back(format_number(entry.mean[k], entry.mean_error[k]));
      sd.push_back(scatter(entry.sd[k], entry.mean[k]));
    }
    mean.push_back(value_text(r, j));
    sd.emplace_back();
    add(entry_label(r, j), "mean", std::move(mean), Align::kPoint);
    add("", "sd", std::move(sd), Align::kPoint);
  }
  if (with_rms) {
    std::vector<std::string> rms;
    for (Eigen::Index k = 0; k < rows; ++k) {
      double squares = 0, mean_squares = 0, count = 0;
      for (std::size_t j = 0; j < c.entries.size(); ++j) {
        if (std::isnan(r.value[j])) continue;
        squares += c.entries[j].rms[k] * c.entries[j].rms[k];
        mean_squares += c.entries[j].mean[k] * c.entries[j].mean[k];
        ++count;
      }
      rms.push_back(count > 0 ? scatter(std::sqrt(squares / count), std::sqrt(mean_squares / count))
                              : "");
    }
    rms.emplace_back();
    add(fmt::format("all {}", c.entries.size()), "rms deviation", std::move(rms), Align::kPoint);
  }
  return out;
}

Paragraph corrections_note() {
  return {
      {"corrections: mean = limit + b/n + O(1/n^2), variance of one network = v/n + O(1/n^2), "
       "from the widths; off: the limit",
       "that they extrapolate to against the limit above, in standard errors"}};
}

/// The corrections of order 1/n of the `shown` entries, one row each.
Table corrections_table(const ReportResult& r, const Convergence& c,
                        const std::vector<std::size_t>& shown) {
  std::vector<std::string> labels, limit, off, slope, variance;
  for (const std::size_t j : shown) {
    const EntryConvergence& entry = c.entries[j];
    const Corrections& own = entry.corrections.value();
    const auto show = [](const Estimate& estimate) {
      return format_number(estimate.value, estimate.error);
    };
    const double error = std::hypot(own.limit.error, entry.limit_error);
    labels.push_back(entry_label(r, j));
    limit.push_back(show(own.limit));
    off.push_back(fixed(error > 0 ? (own.limit.value - entry.limit) / error : 0, 1));
    slope.push_back(show(own.slope));
    variance.push_back(show(own.variance));
  }
  constexpr Column::Align kPoint = Column::Align::kPoint;
  return {{{{"corrections"}, labels, Column::Align::kRight},
           {{"limit"}, limit, kPoint},
           {{"off"}, off, kPoint},
           {{"b"}, slope, kPoint},
           {{r.random ? "v n" : "v"}, variance, kPoint}},
          4,
          3};
}

/// "disagrees: loss (1 of 6 reports); agrees: 5": how many have the verdict; which do not agree.
std::string overall_text(const Comparison& all) {
  std::map<Verdict, std::vector<std::string>> names;
  std::size_t compared = 0;
  for (std::size_t k = 0; k < all.reports.size(); ++k) {
    if (!all.reports[k]) continue;
    names[all.reports[k]->verdict].push_back(all.limit.reports[k].name);
    ++compared;
  }
  const auto listed = [&](Verdict v) {
    return v == Verdict::kAgrees || compared == 1 ? ""
                                                  : fmt::format(": {}", fmt::join(names[v], ", "));
  };
  std::string out = fmt::format("{}{} ({} of {})", word(all.verdict), listed(all.verdict),
                                names[all.verdict].size(), plural(compared, "report"));
  for (const Verdict v : {Verdict::kAgrees, Verdict::kInconclusive})
    if (v != all.verdict && !names[v].empty())
      out += fmt::format("; {}{}", word(v),
                         v == Verdict::kAgrees ? fmt::format(": {}", names[v].size()) : listed(v));
  return out;
}

Tone tone_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAgrees: return Tone::kGood;
    case Verdict::kInconclusive: return Tone::kOpen;
    case Verdict::kDisagrees: return Tone::kBad;
  }
  return Tone::kNone;
}

/// How many networks of other code, of which widths.
std::string measured_text(const std::vector<SimulationResult>& networks) {
  std::string out;
  for (const SimulationResult& width : networks)
    out +=
        fmt::format("{}{} of width {}", out.empty() ? "networks, measured by other code: " : ", ",
                    plural(width.seeds, "seed"), width.width);
  return out;
}

Section section_of(const ReportResult& r, const std::optional<Convergence>& c,
                   const Comparison& all, const ProgramInfo& program, ShownEntries which) {
  Section out{{heading_of(r)}};
  const auto report = static_cast<std::size_t>(&r - all.limit.reports.data());
  const Drawing drawing{[&all, report, form = form_of(program, report)] {
    return chart::charts_of(all, report, form);
  }};
  if (!c) {
    const bool draws = r.method == Method::kSamples;
    out.blocks.emplace_back(
        Note{draws ? "not compared: draws of coordinates differ from network to network"
                   : "not measured"});
    out.blocks.emplace_back(drawing);
    return out;
  }
  const std::vector<std::size_t> shown = representatives(r, which.beside, which.all);
  for (std::size_t begin = 0; begin < shown.size(); begin += which.beside) {
    const std::size_t end = std::min(begin + which.beside, shown.size());
    const auto at = [&](std::size_t k) { return shown.begin() + static_cast<std::ptrdiff_t>(k); };
    out.blocks.emplace_back(
        width_table(r, *c, {at(begin), at(end)}, all.networks, end == shown.size()));
  }
  if (all.show_corrections) out.blocks.emplace_back(corrections_table(r, *c, shown));
  Note verdict{fmt::format("{}: {}", word(c->verdict), c->reason), 4, tone_of(c->verdict)};
  if (c->bias_slope)
    verdict.text +=
        fmt::format("; bias slope {:.2f} +- {:.2f}", c->bias_slope->slope, c->bias_slope->error);
  out.blocks.emplace_back(std::move(verdict));
  out.blocks.emplace_back(drawing);
  return out;
}

}  // namespace

Document document_of(const LimitResult& limit, const ProgramInfo& program) {
  const EngineInfo& engine = limit.engine;
  Document out =
      titled(program, "limit of infinite width, " + words::particles(engine), {},
             condition(program.random_scalars, limit.random_outputs, engine.seed, limit.draws));
  add_reports(out, limit.reports, program);
  add_checks(out, limit, program.source);
  std::string end = resources(limit.time_s, limit.peak_memory_bytes, engine.largest_rank);
  if (engine.stored_matrices > 0)
    end += fmt::format(", {} {} stored", engine.stored_matrices,
                       engine.stored_matrices == 1 ? "matrix" : "matrices");
  if (engine.extrapolated) end += " (bias extrapolated)";
  if (engine.rows_merged > 0) end += fmt::format(", {} merged", plural(engine.rows_merged, "row"));
  if (engine.clamped > 0)
    end += fmt::format(", correlations clamped to 1 (c^2/(ab) - 1 up to {})",
                       two_digits(engine.clamped));
  end += fmt::format(", largest error {}", two_digits(limit.largest_error));
  if (engine.truncation_error > 0)
    end += fmt::format(" (sampling {}, dropped directions {})", two_digits(engine.sampling_error),
                       two_digits(engine.truncation_error));
  out.add({Paragraph{{std::move(end)}}});
  return out;
}

Document document_of(const SimulationResult& networks, const ProgramInfo& program) {
  std::vector<std::string> lines;
  if (networks.seeds > 1)
    lines.emplace_back("mean over networks, its standard error in parentheses");
  Document out = titled(
      program,
      fmt::format("{} of width {}, {} matrices{}, seed {}", plural(networks.seeds, "network"),
                  networks.width, words::matrices(networks),
                  networks.engine.single_precision ? " in single precision" : "",
                  networks.engine.seed),
      std::move(lines), condition(program.random_scalars, false, networks.engine.seed, 1));
  add_reports(out, networks.reports, program);
  out.add({Paragraph{
      {resources(networks.time_s, networks.peak_memory_bytes, networks.engine.largest_rank)}}});
  return out;
}

Document document_of(const Comparison& all, const ProgramInfo& program, ShownEntries shown) {
  double time_s = all.limit.time_s, bytes = all.limit.peak_memory_bytes;
  std::string widths;
  for (const SimulationResult& width : all.networks) {
    time_s += width.time_s;
    bytes = std::max(bytes, width.peak_memory_bytes);
    widths +=
        fmt::format("{}{} {}{}", widths.empty() ? "" : ", ", width.width, words::matrices(width),
                    width.engine.single_precision ? " in single precision" : "");
  }
  std::vector<std::string> lines{fmt::format("limit: {}", words::particles(all.limit.engine))};
  if (!all.networks.empty() && words::measured(all.networks[0]))
    lines.push_back(measured_text(all.networks));
  else if (!all.networks.empty())
    lines.push_back(fmt::format("networks: {} at each width ({})",
                                plural(all.networks[0].seeds, "seed"), widths));
  Document out =
      titled(program, "limit of infinite width against finite networks", std::move(lines),
             condition_of_comparison(program.random_scalars, all.limit));
  for (std::size_t k = 0; k < all.reports.size(); ++k)
    out.sections.push_back(section_of(all.limit.reports[k], all.reports[k], all, program, shown));
  if (std::any_of(all.limit.reports.begin(), all.limit.reports.end(), has_unresolved))
    out.add({Paragraph{{kUnresolvedNote}}});
  if (all.show_corrections) out.add({corrections_note()});
  add_checks(out, all.limit, program.source);
  const bool vanishes = std::any_of(all.reports.begin(), all.reports.end(),
                                    [](const auto& c) { return c && c->rms_slope; });
  const bool random = std::any_of(all.limit.reports.begin(), all.limit.reports.end(),
                                  [](const ReportResult& r) { return r.random; });
  out.add(
      {Paragraph{{fmt::format("overall: {}; expected slopes: sd -0.5{}, bias |mean - limit| -1{}",
                              overall_text(all), random ? " (0 where the limit is random)" : "",
                              vanishes ? ", rms of what vanishes as counted" : ""),
                  fmt::format("time {}, memory {}", time_text(time_s), memory_text(bytes))},
                 tone_of(all.verdict)}});
  return out;
}

Document provenance(const ProgramInfo& program,
                    const std::vector<std::pair<std::string, std::string>>& settings,
                    const std::string& warnings) {
  Document out;
  if (!warnings.empty()) out.add({Heading{2, "Warnings"}, Listing{warnings}});
  Column names{{"setting"}, {}}, values{{"value"}, {}};
  for (const auto& [name, value] : settings) {
    names.cells.push_back(name);
    values.cells.push_back(value);
  }
  out.add({Heading{2, "Settings"}, Table{{std::move(names), std::move(values)}}});
  for (const Source::Part& part : program.source.parts())
    out.add({Heading{2, "Program", {part.name}},
             Listing{std::string(program.source.text(part)), true}});
  return out;
}

}  // namespace tplimit
