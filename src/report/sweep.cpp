#include "tplimit/report/sweep.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "report/words.hpp"
#include "tplimit/report/numbers.hpp"

namespace tplimit {

using words::plural;
using words::product;

const LimitResult* SweepRow::limit() const {
  if (const auto* compared = comparison()) return &compared->limit;
  return std::get_if<LimitResult>(&outcome);
}

std::vector<std::vector<std::string>> combinations(const std::vector<SweepAxis>& axes) {
  std::vector<std::vector<std::string>> out{{}};
  for (const SweepAxis& axis : axes) {
    std::vector<std::vector<std::string>> longer;
    for (const auto& row : out)
      for (const std::string& value : axis.values) {
        longer.push_back(row);
        longer.back().push_back(value);
      }
    out = std::move(longer);
  }
  return out;
}

std::optional<Summary> summary_of(const ReportResult& r) {
  if (r.value.empty() || r.method == Method::kSamples) return std::nullopt;
  const std::size_t size = product(words::axes_of(r)), begin = r.value.size() - size;
  Summary out{r.name, r.value[begin], {}};
  if (size > 1) {
    out.label = fmt::format("|{}|", r.name);
    out.value = 0;
    for (std::size_t j = begin; j < r.value.size(); ++j)
      out.value = std::hypot(out.value, r.value[j]);
  }
  if (!r.index_names.empty()) out.label += ", last";
  if (r.error.empty()) return out;
  if (size == 1) {
    out.error = r.error[begin];
    return out;
  }
  // To first order the norm moves by sum_j x_j / |x| dx_j; at 0 by |dx|.
  double sum = 0, squares = 0;
  for (std::size_t j = begin; j < r.value.size(); ++j) {
    sum += std::abs(r.value[j]) * r.error[j];
    squares += r.error[j] * r.error[j];
  }
  out.error = out.value > 0 ? sum / out.value : std::sqrt(squares);
  return out;
}

namespace {

using namespace document;

std::optional<Summary> summary_in(const SweepRow& row, const std::string& report) {
  const LimitResult* limit = row.limit();
  const ReportResult* r = limit ? find_report(limit->reports, report) : nullptr;
  return r ? summary_of(*r) : std::nullopt;
}

std::string summary_text(const Summary& s) {
  if (std::isnan(s.value)) return "undetermined";
  return s.error ? format_number(s.value, *s.error) : words::format_sample(s.value);
}

/// Names of all reports that are numbers, in the order in which rows first have them; with their
/// labels.
std::vector<std::pair<std::string, std::string>> reports_of(const Sweep& sweep) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const SweepRow& row : sweep.rows) {
    if (!row.limit()) continue;
    for (const ReportResult& r : row.limit()->reports)
      if (const auto s = summary_of(r);
          s &&
          std::none_of(out.begin(), out.end(), [&](const auto& o) { return o.first == r.name; }))
        out.emplace_back(r.name, s->label);
  }
  return out;
}

std::string combination_text(const Sweep& sweep, std::size_t row) {
  std::string out;
  for (std::size_t k = 0; k < sweep.axes.size(); ++k)
    out +=
        fmt::format("{}{} = {}", k > 0 ? ", " : "", sweep.axes[k].name, sweep.rows[row].values[k]);
  return out;
}

bool is_numeric(const SweepAxis& axis) {
  return std::all_of(axis.values.begin(), axis.values.end(),
                     [](const std::string& v) { return words::constant_value(v).has_value(); });
}

std::vector<Column> axis_columns(const Sweep& sweep) {
  std::vector<Column> out;
  for (std::size_t k = 0; k < sweep.axes.size(); ++k) {
    const SweepAxis& axis = sweep.axes[k];
    Column own{{axis.name}, {}, is_numeric(axis) ? Column::Align::kPoint : Column::Align::kLeft};
    for (const SweepRow& row : sweep.rows) own.cells.push_back(row.values[k]);
    out.push_back(std::move(own));
  }
  return out;
}

/// One cell of each row; of a refused row the code of its error.
template <class Cell>
Column column(const Sweep& sweep, std::string heading, Column::Align align, Cell cell) {
  Column out{{std::move(heading)}, {}, align};
  for (const SweepRow& row : sweep.rows)
    out.cells.push_back(row.limit() ? cell(row) : std::string());
  return out;
}

void show_codes(const Sweep& sweep, Column& column) {
  for (std::size_t k = 0; k < sweep.rows.size(); ++k)
    if (const Diagnostics* why = sweep.rows[k].refusal())
      column.cells[k] = why->empty() ? "refused" : why->front().code;
}

Column values_column(const Sweep& sweep, const std::string& report, std::string heading) {
  return column(sweep, std::move(heading), Column::Align::kPoint, [&](const SweepRow& row) {
    const auto s = summary_in(row, report);
    return s ? summary_text(*s) : std::string();
  });
}

bool has_expectations(const Sweep& sweep) {
  return std::any_of(sweep.rows.begin(), sweep.rows.end(), [](const SweepRow& row) {
    return row.limit() && !row.limit()->expectations.empty();
  });
}

std::string expectations_text(const LimitResult& limit) {
  std::size_t failed = 0, undecided = 0;
  for (const ExpectResult& e : limit.expectations) {
    failed += e.status == ExpectStatus::kFailed ? 1 : 0;
    undecided += e.status == ExpectStatus::kUndecided ? 1 : 0;
  }
  if (failed > 0) return "FAIL";
  return undecided > 0 ? "undecided" : "pass";
}

Column marks(const Sweep& sweep, const BestRows& best) {
  Column out{{""}, std::vector<std::string>(sweep.rows.size())};
  out.cells[best.best] = "best";
  for (const std::size_t row : best.ties) out.cells[row] = "tie";
  return out;
}

/// Reports beside each other, as many as fit, in tables below each other.
void add_limits(Document& out, const Sweep& sweep, const std::optional<BestRows>& best) {
  constexpr std::size_t kBeside = 5;
  const auto reports = reports_of(sweep);
  Section& section = out.add({});
  for (std::size_t begin = 0; begin == 0 || begin < reports.size(); begin += kBeside) {
    Table table{axis_columns(sweep), 2, 3};
    const std::size_t first = table.columns.size();
    for (std::size_t k = begin; k < std::min(reports.size(), begin + kBeside); ++k)
      table.columns.push_back(values_column(sweep, reports[k].first, reports[k].second));
    if (begin + kBeside >= reports.size() && has_expectations(sweep))
      table.columns.push_back(
          column(sweep, "expect", Column::Align::kLeft,
                 [](const SweepRow& row) { return expectations_text(*row.limit()); }));
    if (table.columns.size() == first)  // every combination was refused
      table.columns.push_back(
          column(sweep, "", Column::Align::kLeft, [](const SweepRow&) { return std::string(); }));
    show_codes(sweep, table.columns[first]);
    if (best) table.columns.push_back(marks(sweep, *best));
    section.blocks.emplace_back(std::move(table));
  }
}

/// A table for each report: the limit, the mean at each width, the verdict.
void add_comparisons(Document& out, const Sweep& sweep, const std::optional<BestRows>& best) {
  std::vector<std::int64_t> widths;
  for (const SweepRow& row : sweep.rows)
    if (const Comparison* c = row.comparison(); c && widths.empty())
      for (const SimulationResult& own : c->networks) widths.push_back(own.width);
  for (const auto& [name, label] : reports_of(sweep)) {
    const std::string& report = name;
    Table table{axis_columns(sweep), 4, 3};
    table.columns.push_back(values_column(sweep, report, "limit"));
    show_codes(sweep, table.columns.back());
    for (std::size_t w = 0; w < widths.size(); ++w)
      table.columns.push_back(column(sweep, fmt::format("width {}", widths[w]),
                                     Column::Align::kPoint, [&](const SweepRow& row) {
                                       const ReportResult* r = find_report(
                                           row.comparison()->networks.at(w).reports, report);
                                       const auto s = r ? summary_of(*r) : std::nullopt;
                                       return s ? summary_text(*s) : std::string();
                                     }));
    table.columns.push_back(
        column(sweep, "verdict", Column::Align::kLeft, [&](const SweepRow& row) {
          const Comparison& c = *row.comparison();
          for (std::size_t k = 0; k < c.reports.size(); ++k)
            if (c.limit.reports[k].name == report && c.reports[k])
              return std::string(words::word(c.reports[k]->verdict));
          return std::string();
        }));
    if (best && sweep.goal->report == report) table.columns.push_back(marks(sweep, *best));
    out.add({Heading{2, label}, std::move(table)});
  }
  Table all{axis_columns(sweep), 4, 3};
  all.columns.push_back(column(sweep, "verdict", Column::Align::kLeft, [](const SweepRow& row) {
    return std::string(words::word(row.comparison()->verdict));
  }));
  show_codes(sweep, all.columns.back());
  if (has_expectations(sweep))
    all.columns.push_back(column(sweep, "expect", Column::Align::kLeft, [](const SweepRow& row) {
      return expectations_text(*row.limit());
    }));
  out.add({Heading{2, "over all reports"}, std::move(all)});
}

/// Why combinations were refused, each reason once.
void add_refusals(Document& out, const Sweep& sweep) {
  std::vector<std::pair<std::string, std::size_t>> reasons;
  for (const SweepRow& row : sweep.rows) {
    const Diagnostics* why = row.refusal();
    if (!why || why->empty()) continue;
    const Diagnostic& d = why->front();
    const std::string place =
        d.located ? fmt::format("line {}: ", row.program.source.line_of(d.span.begin)) : "";
    const std::string text = fmt::format("{}: {}{}", d.code, place, d.message);
    const auto same = std::find_if(reasons.begin(), reasons.end(),
                                   [&](const auto& reason) { return reason.first == text; });
    if (same == reasons.end())
      reasons.emplace_back(text, 1);
    else
      ++same->second;
  }
  if (reasons.empty()) return;
  Paragraph refused;
  for (const auto& [text, count] : reasons)
    refused.lines.push_back(fmt::format("refused, {}: {}", plural(count, "combination"), text));
  out.add({std::move(refused)});
}

void add_best(Document& out, const Sweep& sweep, const std::optional<BestRows>& best) {
  const SweepGoal& goal = *sweep.goal;
  const char* which = goal.highest ? "highest" : "lowest";
  if (!best) {
    out.add({Paragraph{{fmt::format("best: no combination has a number for '{}'", goal.report)}}});
    return;
  }
  const Summary value = *summary_in(sweep.rows[best->best], goal.report);
  Paragraph text{{fmt::format("best, with the {} {}: {}: {}", which, value.label,
                              combination_text(sweep, best->best), summary_text(value))}};
  if (!best->errors_known)
    text.lines.emplace_back(
        "without errors of all combinations (one randomisation) ties cannot be told");
  if (!best->ties.empty()) {
    std::vector<std::string> ties;
    for (const std::size_t row : best->ties) ties.push_back(combination_text(sweep, row));
    text.lines.push_back(fmt::format(
        "not told apart from it, within two errors of the difference (taken as independent): {}",
        fmt::join(ties, "; ")));
  }
  out.add({std::move(text)});
}

/// Reports against the numeric axis with the most values, a line for each combination of the
/// others.
/// Each report of the networks against their width, a line for each combination, its limit dashed.
std::vector<chart::Chart> charts_of_widths(const Sweep& sweep) {
  std::vector<chart::Chart> out;
  for (const auto& [report, label] : reports_of(sweep)) {
    chart::Plane plane{{"width", true}, {label}};
    for (std::size_t k = 0; k < sweep.rows.size(); ++k) {
      const Comparison* c = sweep.rows[k].comparison();
      if (!c) continue;
      chart::Line line{combination_text(sweep, k), {}, {}};
      line.place = k;
      for (const SimulationResult& networks : c->networks) {
        const ReportResult* r = find_report(networks.reports, report);
        const auto s = r ? summary_of(*r) : std::nullopt;
        if (!s) continue;
        line.x.push_back(static_cast<double>(networks.width));
        line.y.push_back(s->value);
        line.error.push_back(s->error.value_or(0));
      }
      if (line.x.empty()) continue;
      const auto s = summary_in(sweep.rows[k], report);
      if (s && std::isfinite(s->value)) {
        chart::Line limit{"limit, " + line.name, line.x,
                          std::vector<double>(line.x.size(), s->value)};
        limit.role = chart::Line::Role::kLimit;
        limit.place = k;
        plane.lines.push_back(std::move(limit));
      }
      plane.lines.push_back(std::move(line));
    }
    if (!plane.lines.empty())
      out.push_back({label + " against the width",
                     "Bands: one standard error of the mean over networks.", std::move(plane)});
  }
  return out;
}

std::vector<chart::Chart> charts_of(const Sweep& sweep) {
  std::optional<std::size_t> along;
  for (std::size_t k = 0; k < sweep.axes.size(); ++k)
    if (is_numeric(sweep.axes[k]) && sweep.axes[k].values.size() > 1 &&
        (!along || sweep.axes[k].values.size() > sweep.axes[*along].values.size()))
      along = k;
  std::vector<chart::Chart> out = charts_of_widths(sweep);
  if (!along) return out;
  constexpr double kLogRange = 30;
  const auto is_log = [](const std::vector<double>& x) {
    const auto [least, most] = std::minmax_element(x.begin(), x.end());
    return !x.empty() && *least > 0 && *most > kLogRange * *least;
  };
  for (const auto& [report, label] : reports_of(sweep)) {
    std::map<std::vector<std::string>, std::size_t> place;
    chart::Plane plane{{sweep.axes[*along].name}, {label}};
    std::vector<double> all_x, all_y;
    // Lines go from small to large.
    std::vector<std::pair<double, const SweepRow*>> rows;
    for (const SweepRow& row : sweep.rows)
      rows.emplace_back(*words::constant_value(row.values[*along]), &row);
    std::stable_sort(rows.begin(), rows.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [x, row] : rows) {
      std::vector<std::string> others;
      for (std::size_t k = 0; k < sweep.axes.size(); ++k)
        if (k != *along)
          others.push_back(fmt::format("{} = {}", sweep.axes[k].name, row->values[k]));
      const auto [it, added] = place.try_emplace(others, place.size());
      if (added) {
        chart::Line line{
            others.empty() ? label : fmt::format("{}", fmt::join(others, ", ")), {}, {}};
        line.place = it->second;
        plane.lines.push_back(std::move(line));
      }
      chart::Line& line = plane.lines[it->second];
      const auto s = summary_in(*row, report);
      line.x.push_back(x);
      line.y.push_back(s ? s->value : NAN);
      line.error.push_back(s && s->error ? *s->error : 0);
      all_x.push_back(x);
      if (s && std::isfinite(s->value)) all_y.push_back(s->value);
    }
    plane.x.log = is_log(all_x);
    plane.y.log = is_log(all_y);
    if (!all_y.empty())
      out.push_back(
          {fmt::format("{} against {}", label, sweep.axes[*along].name), "", std::move(plane)});
  }
  return out;
}

}  // namespace

std::optional<BestRows> best_of(const Sweep& sweep) {
  std::vector<std::pair<std::size_t, Summary>> values;
  for (std::size_t k = 0; k < sweep.rows.size(); ++k)
    if (auto s = summary_in(sweep.rows[k], sweep.goal.value().report); s && std::isfinite(s->value))
      values.emplace_back(k, std::move(*s));
  if (values.empty()) return std::nullopt;
  const double sign = sweep.goal->highest ? -1 : 1;
  const auto& [best, own] = *std::min_element(
      values.begin(), values.end(),
      [&](const auto& a, const auto& b) { return sign * a.second.value < sign * b.second.value; });
  BestRows out{best, {}};
  for (const auto& [row, s] : values) {
    out.errors_known = out.errors_known && s.error;
    const double error = std::hypot(s.error.value_or(0), own.error.value_or(0));
    // Numbers without an error, and exact ones, are equal up to rounding or not.
    const double rounding = 1e-12 * std::abs(own.value);
    if (row != best && std::abs(s.value - own.value) <= std::max(2 * error, rounding))
      out.ties.push_back(row);
  }
  return out;
}

Document document_of(const Sweep& sweep, const ProgramInfo& program) {
  Document out;
  std::string axes;
  for (const SweepAxis& axis : sweep.axes)
    axes += fmt::format("{}{} ({})", axes.empty() ? "" : ", ", axis.name,
                        plural(axis.values.size(), "value"));
  Paragraph lines;
  bool norms = false, compared = false;
  const LimitResult* random = nullptr;
  for (const SweepRow& row : sweep.rows) {
    if (!row.limit()) continue;
    const EngineInfo& engine = row.limit()->engine;
    if (lines.lines.empty()) {
      lines.lines.push_back("limit: " + words::particles(engine));
      if (const Comparison* c = row.comparison(); c && !c->networks.empty())
        lines.lines.push_back(
            fmt::format("networks: {} at each width", plural(c->networks[0].seeds, "seed")));
    }
    compared = compared || row.comparison();
    if (row.limit()->random_outputs || row.limit()->draws > 1 || row.program.random_scalars)
      random = row.limit();
    for (const ReportResult& r : row.limit()->reports)
      norms = norms || (product(words::axes_of(r)) > 1 && summary_of(r));
  }
  if (random)
    lines.lines.push_back(
        random->draws > 1
            ? fmt::format("where scalars or outputs are random: means over {} draws from --seed {}",
                          random->draws, random->engine.seed)
            : fmt::format("where scalars or outputs are random: conditional on those drawn from "
                          "--seed {}",
                          random->engine.seed));
  if (norms)
    lines.lines.emplace_back(
        "|x|: the root of the sum of squares of all entries; its error is at most that shown");
  out.add({Heading{1, fmt::format("{}: sweep over {}, {}", program.source.name(), axes,
                                  plural(sweep.rows.size(), "combination"))},
           Paragraph{words::changes(program)}, std::move(lines)});
  const auto best = sweep.goal ? best_of(sweep) : std::nullopt;
  if (compared)
    add_comparisons(out, sweep, best);
  else
    add_limits(out, sweep, best);
  add_refusals(out, sweep);
  if (sweep.goal) add_best(out, sweep, best);
  out.add({Drawing{[&sweep] { return charts_of(sweep); }}});
  out.add({Paragraph{{fmt::format("time {:.2f} s", sweep.time_s)}}});
  return out;
}

std::string to_text(const Sweep& sweep, const ProgramInfo& program, const TextOptions& options) {
  return to_text(document_of(sweep, program), options);
}

}  // namespace tplimit
