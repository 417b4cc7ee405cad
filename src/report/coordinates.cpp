#include "tplimit/report/coordinates.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "report/words.hpp"
#include "tplimit/report/numbers.hpp"

namespace tplimit {

using namespace document;

Growth growth(const CoordinateSize& value, std::size_t step) {
  constexpr double kErrors = 3, kCorrections = 0.1;
  const auto& fit = value.slopes[step];
  if (!fit || !value.is_counted[step] || !value.counted[step]) return Growth::kUnknown;
  const double apart = fit->slope - to_double(*value.counted[step]),
               allowed = kErrors * fit->error + kCorrections;
  return apart > allowed    ? Growth::kFaster
         : apart < -allowed ? Growth::kSlower
                            : Growth::kAsCounted;
}

const char* to_string(Growth growth) {
  switch (growth) {
    case Growth::kUnknown: return "";
    case Growth::kAsCounted: return "as counted";
    case Growth::kFaster: return "faster than counted";
    case Growth::kSlower: return "slower than counted";
  }
  return "";
}

namespace {

std::string counted(const CoordinateSize& v, std::size_t step) {
  if (!v.is_counted[step]) return "";
  return v.counted[step] ? power_of_width(*v.counted[step]) : "0";
}

std::string slope(const CoordinateSize& v, std::size_t step) {
  const auto& fit = v.slopes[step];
  return fit ? fmt::format("{:.2f} +- {:.2f}", fit->slope, fit->error) : "";
}

/// A line for each step against the width, the limit of the last one, and the counted slope.
chart::Chart drawing(const CoordinateSize& v, const CoordinateCheck& check) {
  chart::Plane plane{{"width", true}, {"root mean square", true}};
  std::vector<double> widths(check.widths.begin(), check.widths.end());
  for (std::size_t k = 0; k < v.steps.size(); ++k) {
    chart::Line line{fmt::format("step {}", v.steps[k]), widths, {}};
    for (const Estimate& e : v.sizes[k]) {
      line.y.push_back(e.value > 0 ? e.value : NAN);
      line.error.push_back(e.error);
    }
    if (std::none_of(line.y.begin(), line.y.end(), [](double y) { return std::isfinite(y); }))
      continue;
    line.place = k;
    if (v.steps.size() > 6) line.role = chart::Line::Role::kMember;
    plane.lines.push_back(std::move(line));
  }
  if (plane.lines.empty()) return {v.name, "It is 0.", std::move(plane)};
  const std::size_t last = v.steps.size() - 1;
  if (const auto& limit = v.limit[last]; limit && limit->value > 0)
    plane.lines.push_back({fmt::format("limit, step {}", v.steps[last]),
                           widths,
                           std::vector<double>(widths.size(), limit->value),
                           {},
                           chart::Line::Role::kLimit});
  if (v.is_counted[last] && v.counted[last] && v.sizes[last].back().value > 0) {
    chart::Line line{counted(v, last) + ", counted", {widths.front(), widths.back()}, {}};
    for (const double w : line.x)
      line.y.push_back(v.sizes[last].back().value *
                       std::pow(w / widths.back(), to_double(*v.counted[last])));
    line.role = chart::Line::Role::kExpected;
    plane.lines.push_back(std::move(line));
  }
  return {v.name, "", std::move(plane)};
}

}  // namespace

Document document_of(const CoordinateCheck& check, const ProgramInfo& program) {
  Document out;
  out.add({Heading{1, fmt::format("{}: coordinate check, steps: {}, networks per width: {}",
                                  program.source.name(), check.steps, check.seeds)},
           Paragraph{words::changes(program)}});
  using Align = Column::Align;
  Column names{{"value"}, {}}, steps{{"step"}, {}, Align::kRight}, orders{{"counted"}, {}},
      slopes{{"slope"}, {}}, limits{{"limit"}, {}, Align::kPoint}, said{{""}, {}};
  std::vector<Column> sizes;
  for (const std::int64_t width : check.widths)
    sizes.push_back({{fmt::format("{}", width)}, {}, Align::kPoint});
  bool any_limit = false;
  for (const CoordinateSize& v : check.values) {
    std::vector<std::size_t> shown{0, v.steps.size() - 1};
    if (v.steps.size() > 2) shown.insert(shown.begin() + 1, 1);
    if (v.steps.size() == 1) shown.pop_back();
    for (const std::size_t k : shown) {
      names.cells.push_back(k == 0 ? v.name : "");
      steps.cells.push_back(fmt::format("{}", v.steps[k]));
      orders.cells.push_back(counted(v, k));
      for (std::size_t w = 0; w < sizes.size(); ++w)
        sizes[w].cells.push_back(format_number(v.sizes[k][w].value, v.sizes[k][w].error));
      slopes.cells.push_back(slope(v, k));
      limits.cells.push_back(v.limit[k] ? format_number(v.limit[k]->value, v.limit[k]->error) : "");
      any_limit = any_limit || v.limit[k];
      said.cells.emplace_back(to_string(growth(v, k)));
    }
  }
  Table table{{std::move(names), std::move(steps), std::move(orders), std::move(slopes)}};
  for (Column& column : sizes) table.columns.push_back(std::move(column));
  if (any_limit) table.columns.push_back(std::move(limits));
  table.columns.push_back(std::move(said));
  const auto charts = [&check] {
    std::vector<chart::Chart> own;
    for (const CoordinateSize& v : check.values) own.push_back(drawing(v, check));
    return own;
  };
  out.add({std::move(table), Drawing{charts}});
  std::vector<std::string> remarks;
  for (const std::string* text : {&check.left_out, &check.no_limit})
    if (!text->empty()) remarks.push_back(*text);
  if (!remarks.empty()) out.add({Paragraph{std::move(remarks)}});
  std::vector<std::string> off;
  for (const CoordinateSize& v : check.values)
    for (std::size_t k = v.steps.size(); k-- > 0;)
      if (growth(v, k) == Growth::kFaster) {
        off.push_back(fmt::format("{} at step {}", v.name, v.steps[k]));
        break;
      }
  if (check.widths.size() > 1)
    out.add({Paragraph{{off.empty() ? "Nothing grows faster than it is counted."
                                    : fmt::format("Faster than counted: {}", fmt::join(off, "; "))},
                       off.empty() ? Tone::kGood : Tone::kBad}});
  return out;
}

std::string to_text(const CoordinateCheck& check, const ProgramInfo& program,
                    const TextOptions& options) {
  return to_text(document_of(check, program), options);
}

}  // namespace tplimit
