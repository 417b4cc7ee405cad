#include "report/charts.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "report/words.hpp"

namespace tplimit::chart {
namespace {

using words::axes_of;
using words::bracketed;
using words::loops_of;
using words::product;
using words::Shape;
using words::unravel;

constexpr std::size_t kFew = 6;               // lines that a legend can tell apart
constexpr std::size_t kMostLines = 64;        // of one chart
constexpr std::size_t kMostCells = 40;        // of a side of a heat map
constexpr std::size_t kMostValues = 1 << 18;  // of all frames of a heat map
constexpr double kLogRange = 100;  // positive values that differ by more are drawn on a log axis

/// `most` of 0..count-1, evenly, first and last among them.
std::vector<std::size_t> chosen(std::size_t count, std::size_t most) {
  std::vector<std::size_t> out;
  if (count <= most) {
    out.resize(count);
    std::iota(out.begin(), out.end(), std::size_t{0});
    return out;
  }
  for (std::size_t k = 0; k < most; ++k) out.push_back(k * (count - 1) / (most - 1));
  return out;
}

void set_log_axes(Plane& plane) {
  double least = INFINITY, most = 0;
  if (!plane.bars.empty()) return;
  for (const Line& line : plane.lines)
    for (const double y : line.y) {
      if (!std::isfinite(y)) continue;
      if (y <= 0) return;
      least = std::min(least, y);
      most = std::max(most, y);
    }
  plane.y.log = most > kLogRange * least;
}

// ---- iterations
// ------------------------------------------------------------------------------------

/// What the x axis of a report over iterations shows: the loop variable, or with several loops the
/// running number.
struct Iterations {
  std::string title;
  std::vector<double> x;
};
Iterations iterations_of(const ReportResult& r) {
  Iterations out;
  const std::size_t count = product(loops_of(r));
  for (std::size_t k = 0; k < count; ++k)
    out.x.push_back(r.index_names.size() == 1 ? static_cast<double>(r.index_values[0][k])
                                              : static_cast<double>(k));
  out.title = r.index_names.size() == 1
                  ? r.index_names[0]
                  : fmt::format("iteration ({})", fmt::join(r.index_names, ", "));
  return out;
}

std::string iteration_label(const ReportResult& r, std::size_t iteration) {
  const Shape index = unravel(iteration, loops_of(r));
  std::vector<std::string> out;
  for (std::size_t k = 0; k < index.size(); ++k)
    out.push_back(fmt::format("{}", r.index_values[k][static_cast<std::size_t>(index[k])]));
  return fmt::format("{}", fmt::join(out, ", "));
}

std::string entry_name(const ReportResult& r, std::size_t entry) {
  const std::string own = bracketed(unravel(entry, axes_of(r)));
  return own.empty() ? r.name : own;
}

/// "64 of 100 entries are drawn."
std::string part_note(std::size_t drawn, std::size_t all, const char* nouns) {
  return drawn == all ? "" : fmt::format("{} of {} {} are drawn.", drawn, all, nouns);
}

/// One entry of every iteration.
Line over_iterations(const ReportResult& r, std::size_t entry, const Iterations& at) {
  const std::size_t size = product(axes_of(r));
  Line out{entry_name(r, entry), at.x, {}};
  for (std::size_t k = 0; k < at.x.size(); ++k) {
    out.y.push_back(r.value[k * size + entry]);
    if (!r.error.empty()) out.error.push_back(r.error[k * size + entry]);
  }
  return out;
}

Chart curves(const ReportResult& r) {
  const Iterations at = iterations_of(r);
  const std::size_t size = product(axes_of(r));
  const std::vector<std::size_t> entries = chosen(size, kMostLines);
  Plane plane{{at.title}, {r.name}};
  for (std::size_t k = 0; k < entries.size(); ++k) {
    Line line = over_iterations(r, entries[k], at);
    line.place = k;
    if (entries.size() > kFew) line.role = Line::Role::kMember;
    plane.lines.push_back(std::move(line));
  }
  set_log_axes(plane);
  return {r.name, part_note(entries.size(), size, "entries"), std::move(plane)};
}

// ---- arrays of one axis
// ----------------------------------------------------------------------------

/// Values against their index, a line for some iterations.
Chart profile(const ReportResult& r, bool eigenvalues) {
  const std::size_t size = product(axes_of(r)), iterations = product(loops_of(r));
  const bool loops = !r.index_names.empty();
  const std::vector<std::size_t> shown = chosen(iterations, kFew - 1);
  Plane plane{{"index"}, {r.name}};
  for (std::size_t k = 0; k < shown.size(); ++k) {
    Line line{
        loops ? fmt::format("{} = {}", fmt::join(r.index_names, ", "), iteration_label(r, shown[k]))
              : r.name,
        {},
        {}};
    line.place = k;
    for (std::size_t j = 0; j < size; ++j) {
      line.x.push_back(static_cast<double>(j));
      line.y.push_back(r.value[shown[k] * size + j]);
      if (!r.error.empty()) line.error.push_back(r.error[shown[k] * size + j]);
    }
    plane.lines.push_back(std::move(line));
  }
  set_log_axes(plane);
  return {fmt::format("{}{}", r.name, eigenvalues ? ": spectrum" : ""),
          part_note(shown.size(), iterations, "iterations"), std::move(plane)};
}

/// Densities of fractions per bin.
std::vector<double> densities(const double* fractions, std::size_t bins, double low, double high) {
  std::vector<double> out(fractions, fractions + bins);
  for (double& x : out) x *= static_cast<double>(bins) / (high - low);
  return out;
}

/// A curve through the middles of bins.
Line polygon(std::string name, const std::vector<double>& heights, double low, double high) {
  Line out{std::move(name), {}, heights};
  const double width = (high - low) / static_cast<double>(heights.size());
  for (std::size_t k = 0; k < heights.size(); ++k)
    out.x.push_back(low + (static_cast<double>(k) + 0.5) * width);
  return out;
}

/// The last iteration's row of a report with bins or draws.
std::size_t last_row(const ReportResult& r) {
  return r.value.size() - static_cast<std::size_t>(r.shape.back());
}

struct Draws {
  double low, high;
  std::vector<double> fractions;
};
/// Of draws, in bins that cover them.
Draws binned(const std::vector<double>& draws, double low, double high, std::size_t bins) {
  Draws out{low, high, std::vector<double>(bins)};
  for (const double x : draws) {
    if (!std::isfinite(x)) continue;
    const double at = (x - low) / (high - low) * static_cast<double>(bins);
    const auto k = static_cast<std::size_t>(std::clamp(at, 0.0, static_cast<double>(bins) - 1));
    out.fractions[k] += 1 / static_cast<double>(draws.size());
  }
  return out;
}
std::pair<double, double> range_of(const std::vector<double>& draws) {
  double low = INFINITY, high = -INFINITY;
  for (const double x : draws)
    if (std::isfinite(x)) {
      low = std::min(low, x);
      high = std::max(high, x);
    }
  if (!(low < high)) return {low - 0.5, low + 0.5};
  return {low, high};
}
std::size_t bins_for(std::size_t draws) {
  return std::clamp<std::size_t>(static_cast<std::size_t>(std::sqrt(static_cast<double>(draws))), 5,
                                 48);
}

std::string at_last(const ReportResult& r) {
  return r.index_names.empty() ? ""
                               : fmt::format(", {} = {}", fmt::join(r.index_names, ", "),
                                             iteration_label(r, product(loops_of(r)) - 1));
}

Plane density_plane(const ReportResult& r) { return {{"value of " + r.name}, {"density"}}; }

Chart histogram(const ReportResult& r, const std::optional<Bins>& bins) {
  Plane plane = density_plane(r);
  const auto size = static_cast<std::size_t>(r.shape.back());
  const double* row = r.value.data() + last_row(r);
  if (bins) {
    plane.bars.push_back(
        {r.name, bins->low, bins->high, densities(row, size, bins->low, bins->high)});
  } else {
    const std::vector<double> draws(row, row + size);
    const auto [low, high] = range_of(draws);
    const Draws own = binned(draws, low, high, bins_for(size));
    plane.bars.push_back(
        {r.name, low, high, densities(own.fractions.data(), own.fractions.size(), low, high)});
  }
  return {fmt::format("{}: histogram{}", r.name, at_last(r)),
          bins ? "The outer bins are open." : "", std::move(plane)};
}

// ---- matrices
// --------------------------------------------------------------------------------------

/// `value(flat)` of the last two axes; frames are iterations and the other axes.
template <class Value>
Chart heat_map(const ReportResult& r, const std::string& title, bool symmetric, Value value) {
  const Shape axes = axes_of(r);
  const auto rows = static_cast<std::size_t>(axes[axes.size() - 2]),
             columns = static_cast<std::size_t>(axes.back());
  const Shape others(r.shape.begin(), r.shape.end() - 2);
  const std::size_t loops = r.index_names.size(), all = product(others);
  HeatMap map;
  map.symmetric = symmetric;
  map.entries = (std::max(rows, columns) + kMostCells - 1) / kMostCells;
  map.rows = (rows + map.entries - 1) / map.entries;
  map.columns = (columns + map.entries - 1) / map.entries;
  map.frame_title = fmt::format("{}", fmt::join(r.index_names, ", "));
  const std::vector<std::size_t> shown =
      chosen(all, std::max<std::size_t>(2, kMostValues / (map.rows * map.columns)));
  for (const std::size_t frame : shown) {
    const Shape index = unravel(frame, others);
    std::vector<std::string> label;
    for (std::size_t k = 0; k < loops; ++k)
      label.push_back(fmt::format("{}", r.index_values[k][static_cast<std::size_t>(index[k])]));
    std::string rest = bracketed({index.begin() + static_cast<std::ptrdiff_t>(loops), index.end()});
    if (!rest.empty()) label.push_back(std::move(rest));
    map.frames.push_back(fmt::format("{}", fmt::join(label, ", ")));
    std::vector<double> sum(map.rows * map.columns), count(sum.size());
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < columns; ++j) {
        const std::size_t cell = i / map.entries * map.columns + j / map.entries;
        sum[cell] += value((frame * rows + i) * columns + j);
        ++count[cell];
      }
    for (std::size_t cell = 0; cell < sum.size(); ++cell) sum[cell] /= count[cell];
    map.values.push_back(std::move(sum));
  }
  std::string note = part_note(shown.size(), all, "matrices");
  if (map.entries > 1)
    note += fmt::format("{}Each cell is the mean of {} x {} entries of {} x {}.",
                        note.empty() ? "" : " ", map.entries, map.entries, rows, columns);
  return {title, std::move(note), std::move(map)};
}

bool is_matrix(const ReportResult& r) {
  const Shape axes = axes_of(r);
  return axes.size() >= 2 && product(axes) > kFew;
}

// ---- comparisons
// -----------------------------------------------------------------------------------

/// The first, middle and last.
std::vector<std::size_t> few_entries(std::size_t size) { return chosen(size, 3); }

Chart curves(const Comparison& all, const ReportResult& r, const Convergence& c,
             std::size_t entry) {
  const Iterations at = iterations_of(r);
  const std::size_t size = product(axes_of(r));
  Plane plane{{at.title}, {r.name + bracketed(unravel(entry, axes_of(r)))}};
  for (std::size_t w = 0; w < all.networks.size(); ++w) {
    Line line{fmt::format("width {}", all.networks[w].width), at.x, {}};
    line.place = w;
    for (std::size_t k = 0; k < at.x.size(); ++k) {
      const EntryConvergence& own = c.entries[k * size + entry];
      line.y.push_back(own.mean[static_cast<Eigen::Index>(w)]);
      line.error.push_back(own.mean_error[static_cast<Eigen::Index>(w)]);
    }
    plane.lines.push_back(std::move(line));
  }
  Line limit = over_iterations(r, entry, at);
  limit.name = "limit";
  limit.role = Line::Role::kLimit;
  plane.lines.push_back(std::move(limit));
  set_log_axes(plane);
  return {plane.y.title, "Bands: one standard error of the mean over networks.", std::move(plane)};
}

/// y = the fit of this slope through the middle of the points, at the outer widths.
Line fitted(const Line& points, double slope, std::string name, Line::Role role) {
  Line out{std::move(name), {points.x.front(), points.x.back()}, {}};
  double log_x = 0, log_y = 0, count = 0;
  for (std::size_t k = 0; k < points.x.size(); ++k)
    if (points.y[k] > 0) {
      log_x += std::log(points.x[k]);
      log_y += std::log(points.y[k]);
      ++count;
    }
  for (const double x : out.x)
    out.y.push_back(std::exp(log_y / count + slope * (std::log(x) - log_x / count)));
  out.role = role;
  out.place = points.place;
  return out;
}

/// Root mean squares over entries: of the deviation of single networks, of their spread, of the
/// deviation of their mean.
Chart deviations(const Comparison& all, const ReportResult& r, const Convergence& c) {
  Plane plane{{"width", true}, {"root mean square over entries", true}};
  const auto line = [&](std::string name, std::size_t place, auto of) {
    Line out{std::move(name), {}, {}};
    out.place = place;
    for (std::size_t w = 0; w < all.networks.size(); ++w) {
      double squares = 0, count = 0;
      for (const EntryConvergence& e : c.entries) {
        const double x = of(e, static_cast<Eigen::Index>(w));
        if (!std::isfinite(x)) continue;
        squares += x * x;
        ++count;
      }
      out.x.push_back(static_cast<double>(all.networks[w].width));
      out.y.push_back(count > 0 && squares > 0 ? std::sqrt(squares / count) : NAN);
    }
    return out;
  };
  const auto add = [&](Line points, const std::optional<SlopeFit>& fit, double expected) {
    if (std::none_of(points.y.begin(), points.y.end(), [](double y) { return y > 0; })) return;
    std::vector<Line> lines;
    if (fit) {
      points.name += fmt::format(", slope {:.2f} +- {:.2f}", fit->slope, fit->error);
      lines.push_back(fitted(points, expected, fmt::format("slope {:g} expected", expected),
                             Line::Role::kExpected));
    }
    plane.lines.push_back(std::move(points));
    for (Line& own : lines) plane.lines.push_back(std::move(own));
  };
  if (c.rms_slope) {
    add(line("value", 0, [](const auto& e, Eigen::Index w) { return e.rms[w]; }), c.rms_slope,
        r.order.value_or(0));
  } else {
    add(line("spread of networks (sd)", 0, [](const auto& e, Eigen::Index w) { return e.sd[w]; }),
        c.sd_slope, r.random ? 0 : -0.5);
    add(line("bias |mean - limit|", 1,
             [](const auto& e, Eigen::Index w) { return e.mean[w] - e.limit; }),
        c.bias_slope, -1);
  }
  return {r.name + ": deviation against width", "", std::move(plane)};
}

/// The widest networks' bars, the limit's curve.
Chart histogram(const Comparison& all, std::size_t k, const std::optional<Bins>& own_bins) {
  const ReportResult& limit = all.limit.reports[k];
  const SimulationResult& widest = all.networks.back();
  const ReportResult& own = widest.reports[k];
  Plane plane = density_plane(limit);
  const std::string name = fmt::format("width {}", widest.width);
  const auto size = static_cast<std::size_t>(own.shape.back());
  double low = 0, high = 0;
  std::vector<double> bars, curve;
  if (own_bins) {
    low = own_bins->low;
    high = own_bins->high;
    bars = densities(own.value.data() + last_row(own), size, low, high);
    curve = densities(limit.value.data() + last_row(limit), size, low, high);
  } else {
    std::vector<double> networks;
    for (const std::vector<double>& run : widest.runs[k])
      networks.insert(networks.end(), run.end() - static_cast<std::ptrdiff_t>(size), run.end());
    const std::vector<double> draws(
        limit.value.begin() + static_cast<std::ptrdiff_t>(last_row(limit)), limit.value.end());
    std::vector<double> both = networks;
    both.insert(both.end(), draws.begin(), draws.end());
    std::tie(low, high) = range_of(both);
    const std::size_t bins = bins_for(draws.size());
    const Draws b = binned(networks, low, high, bins), c = binned(draws, low, high, bins);
    bars = densities(b.fractions.data(), bins, low, high);
    curve = densities(c.fractions.data(), bins, low, high);
  }
  plane.bars.push_back({name, low, high, std::move(bars)});
  Line line = polygon("limit", curve, low, high);
  line.role = Line::Role::kLimit;
  plane.lines.push_back(std::move(line));
  return {fmt::format("{}: histogram{}", limit.name, at_last(limit)),
          own_bins ? "The outer bins are open." : "", std::move(plane)};
}

}  // namespace

std::vector<Chart> charts_of(const ReportResult& r, const ReportForm& form) {
  if (r.shape.empty() || r.value.empty()) return {};
  if (form.bins || r.method == Method::kSamples) return {histogram(r, form.bins)};
  const Shape axes = axes_of(r);
  const bool iterated = product(loops_of(r)) > 1;
  std::vector<Chart> out;
  if (is_matrix(r)) {
    const bool negative =
        std::any_of(r.value.begin(), r.value.end(), [](double x) { return x < 0; });
    out.push_back(heat_map(r, r.name, negative, [&](std::size_t flat) { return r.value[flat]; }));
  } else if (iterated) {
    out.push_back(curves(r));
  }
  if (axes.size() == 1 && axes[0] > 2 && (form.eigenvalues || !iterated))
    out.push_back(profile(r, form.eigenvalues));
  return out;
}

std::vector<Chart> charts_of(const Comparison& all, std::size_t report, const ReportForm& form) {
  const ReportResult& r = all.limit.reports[report];
  if (all.networks.empty() || r.value.empty()) return {};
  if (all.networks.back().runs[report].empty()) return charts_of(r, form);  // not measured
  if (!r.shape.empty() && (form.bins || r.method == Method::kSamples))
    return {histogram(all, report, form.bins)};
  std::vector<Chart> out;
  const std::optional<Convergence>& c = all.reports[report];
  if (c && product(loops_of(r)) > 1)
    for (const std::size_t entry : few_entries(product(axes_of(r))))
      out.push_back(curves(all, r, *c, entry));
  if (c && all.networks.size() > 1)
    if (Chart own = deviations(all, r, *c); !std::get<Plane>(own.drawing).lines.empty())
      out.push_back(std::move(own));
  if (!is_matrix(r)) return out;
  std::vector<Chart> maps = charts_of(r, form);
  for (Chart& map : maps) {
    map.title += ": limit";
    out.push_back(std::move(map));
  }
  const SimulationResult& widest = all.networks.back();
  const ReportResult& own = widest.reports[report];
  if (own.value.size() == r.value.size())
    out.push_back(heat_map(r,
                           fmt::format("{}: mean at width {} less the limit", r.name, widest.width),
                           true, [&](std::size_t k) { return own.value[k] - r.value[k]; }));
  return out;
}

}  // namespace tplimit::chart
