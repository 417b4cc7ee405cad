#include "report/svg.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include <fmt/format.h>

#include "report/mathml.hpp"

namespace tplimit::svg {
namespace {

using chart::Axis;
using chart::Bars;
using chart::HeatMap;
using chart::Line;
using chart::Plane;

constexpr double kWidth = 640, kHeight = 340;
constexpr double kLeft = 70, kRight = 16, kTop = 12, kBottom = 46;
constexpr std::size_t kColours = 6;
constexpr std::size_t kMostMarkers = 24;  // of one line

std::string shown(double x) { return fmt::format("{:.4g}", x == 0 ? 0.0 : x); }
std::string px(double x) { return fmt::format("{:.2f}", x); }

// ---- axes
// ------------------------------------------------------------------------------------------

double on(const Axis& axis, double x) { return axis.log ? std::log10(x) : x; }

struct Range {
  double low = INFINITY, high = -INFINITY;
  void take(double x) {
    if (!std::isfinite(x)) return;
    low = std::min(low, x);
    high = std::max(high, x);
  }
  /// Not empty, with a margin.
  [[nodiscard]] Range widened(double margin) const {
    if (!(low <= high)) return {0, 1};
    const double size = high - low > 1e-12 * std::max(std::abs(low), std::abs(high))
                            ? high - low
                            : std::max(std::abs(high), 1.0);
    if (high - low < size) return {low - size / 2, high + size / 2};
    return {low - margin * size, high + margin * size};
  }
};

/// 1, 2 or 5 times a power of ten, so that about `count` of them fit.
std::vector<double> linear_ticks(double low, double high, int count) {
  const double raw = (high - low) / count, power = std::pow(10, std::floor(std::log10(raw)));
  double step = power;
  for (const double factor : {1.0, 2.0, 5.0, 10.0})
    if (raw <= factor * power) {
      step = factor * power;
      break;
    }
  std::vector<double> out;
  for (double k = std::ceil(low / step); k * step <= high + 1e-9 * step; ++k)
    out.push_back(k * step);
  return out;
}

/// Of a log axis, given as logarithms.
std::vector<double> log_ticks(double low, double high) {
  std::vector<double> out;
  const double decades = high - low;
  const double every = std::max(1.0, std::ceil(decades / 8));
  for (double k = std::floor(low); k <= high; k += every)
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double at = k + std::log10(factor);
      if (at < low - 1e-9 || at > high + 1e-9 || (factor != 1 && decades > 2)) continue;
      out.push_back(at);
    }
  return out;
}

/// Few numbers of a log axis, such as widths, are its ticks.
std::vector<double> ticks(const Axis& axis, const std::vector<double>& values, double low,
                          double high, int count) {
  if (!axis.log) return linear_ticks(low, high, count);
  if (!values.empty() && values.size() <= kColours) {
    std::vector<double> out;
    for (const double x : values) out.push_back(std::log10(x));
    return out;
  }
  return log_ticks(low, high);
}

/// What stands at ticks: numbers, or by how much they exceed `base` where six digits are too few
/// to tell them apart.
struct TickLabels {
  std::vector<std::string> texts;
  double base = 0;
  [[nodiscard]] std::string title(const Axis& axis) const {
    if (base == 0) return axis.title;
    return fmt::format("{} {} {:.12g}", axis.title, base > 0 ? "-" : "+", std::abs(base));
  }
};
TickLabels labels(const Axis& axis, std::vector<double> ticks) {
  if (axis.log)
    for (double& t : ticks) t = std::pow(10, t);
  TickLabels out;
  const std::size_t different = std::set(ticks.begin(), ticks.end()).size();
  for (const int digits : {4, 6}) {
    out.texts.clear();
    for (const double t : ticks)
      out.texts.push_back(fmt::format("{:.{}g}", t == 0 ? 0.0 : t, digits));
    if (axis.log || std::set(out.texts.begin(), out.texts.end()).size() == different) return out;
  }
  // 12 digits of it are what the title says.
  out.base = std::strtod(fmt::format("{:.12g}", ticks[ticks.size() / 2]).c_str(), nullptr);
  out.texts.clear();
  for (const double t : ticks) out.texts.push_back(shown(t - out.base));
  return out;
}

/// The x values, if all lines of data share them.
std::vector<double> common_x(const Plane& plane) {
  std::vector<double> out;
  for (const Line& line : plane.lines) {
    if (line.role == Line::Role::kExpected) continue;
    if (!out.empty() && out != line.x) return {};
    out = line.x;
  }
  return out;
}

class Place {
 public:
  explicit Place(const Plane& plane) : plane_(plane), frame_(frame_of(plane)) {}
  [[nodiscard]] double x(double value) const { return x_on_axis(on(plane_.x, value)); }
  [[nodiscard]] double y(double value) const { return y_on_axis(on(plane_.y, value)); }
  [[nodiscard]] double x_on_axis(double value) const {
    const auto& [left, top, right, bottom] = frame_.pixels;
    return left + (value - frame_.range[0]) / (frame_.range[1] - frame_.range[0]) * (right - left);
  }
  [[nodiscard]] double y_on_axis(double value) const {
    const auto& [left, top, right, bottom] = frame_.pixels;
    const double inside =
        std::clamp((value - frame_.range[2]) / (frame_.range[3] - frame_.range[2]), 0.0, 1.0);
    return bottom - inside * (bottom - top);
  }
  [[nodiscard]] const Frame& frame() const { return frame_; }

 private:
  const Plane& plane_;
  Frame frame_;
};

std::string axes(const Plane& plane, const Place& at) {
  const auto& [left, top, right, bottom] = at.frame().pixels;
  const auto& range = at.frame().range;
  std::string out = "<g class=\"axes\">";
  const std::vector<double> y_ticks = ticks(plane.y, {}, range[2], range[3], 5);
  const TickLabels y_labels = labels(plane.y, y_ticks);
  for (std::size_t k = 0; k < y_ticks.size(); ++k) {
    const double y = at.y_on_axis(y_ticks[k]);
    out += fmt::format("<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>", px(left),
                       px(right), px(y), px(y));
    out += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", px(left - 7),
                       px(y + 4), y_labels.texts[k]);
  }
  const std::vector<double> x_ticks = ticks(plane.x, common_x(plane), range[0], range[1], 8);
  const TickLabels x_labels = labels(plane.x, x_ticks);
  for (std::size_t k = 0; k < x_ticks.size(); ++k) {
    const double x = at.x_on_axis(x_ticks[k]);
    out += fmt::format("<line class=\"tick\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>", px(x),
                       px(x), px(bottom), px(bottom + 5));
    out += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>", px(x),
                       px(bottom + 18), x_labels.texts[k]);
  }
  out += fmt::format("<path class=\"frame\" d=\"M{} {}V{}H{}\"/>", px(left), px(top), px(bottom),
                     px(right));
  out +=
      fmt::format("<text class=\"title\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                  px((left + right) / 2), px(bottom + 38), html_escaped(x_labels.title(plane.x)));
  out += fmt::format(
      "<text class=\"title\" transform=\"translate(14 {}) rotate(-90)\" "
      "text-anchor=\"middle\">{}</text>",
      px((top + bottom) / 2), html_escaped(y_labels.title(plane.y)));
  return out + "</g>";
}

// ---- lines
// -----------------------------------------------------------------------------------------

std::array<double, 3> between(const std::vector<std::array<double, 3>>& stops, double at) {
  const double place = std::clamp(at, 0.0, 1.0) * static_cast<double>(stops.size() - 1);
  const auto k = std::min(static_cast<std::size_t>(place), stops.size() - 2);
  const double part = place - static_cast<double>(k);
  std::array<double, 3> out{};
  for (std::size_t c = 0; c < 3; ++c) out[c] = stops[k][c] + part * (stops[k + 1][c] - stops[k][c]);
  return out;
}

std::string hex(const std::array<double, 3>& rgb) {
  return fmt::format("#{:02x}{:02x}{:02x}", std::lround(rgb[0]), std::lround(rgb[1]),
                     std::lround(rgb[2]));
}

// Cividis and a blue-white-vermillion scale: both are read alike by all kinds of colour vision.
std::array<double, 3> sequential(double at) {
  static const std::vector<std::array<double, 3>> kStops{{0, 34, 78},     {53, 69, 108},
                                                         {102, 105, 112}, {148, 142, 119},
                                                         {200, 184, 102}, {254, 232, 56}};
  return between(kStops, at);
}
std::array<double, 3> diverging(double at) {
  static const std::vector<std::array<double, 3>> kStops{
      {0, 68, 120}, {86, 160, 210}, {246, 246, 246}, {240, 150, 90}, {150, 58, 0}};
  return between(kStops, at);
}

std::string stroke(const Line& line, std::size_t lines) {
  switch (line.role) {
    case Line::Role::kSeries: return fmt::format("class=\"line s{}\"", line.place % kColours);
    case Line::Role::kLimit: return "class=\"line limit\"";
    case Line::Role::kExpected:
      return fmt::format("class=\"line expected s{}\"", line.place % kColours);
    case Line::Role::kMember:  // the ends of the scale are too near to white and black pages
      return fmt::format(
          "class=\"line member\" stroke=\"{}\"",
          hex(sequential(0.25 + 0.6 * static_cast<double>(line.place) /
                                    static_cast<double>(std::max<std::size_t>(lines, 2) - 1))));
  }
  return "";
}

std::string marker(std::size_t place, double x, double y) {
  const std::string colour = fmt::format("class=\"mark s{}\"", place % kColours);
  const auto path = [&](const char* d) {
    return fmt::format("<path {} transform=\"translate({} {})\" d=\"{}\"/>", colour, px(x), px(y),
                       d);
  };
  switch (place % kColours) {
    case 0: return fmt::format("<circle {} cx=\"{}\" cy=\"{}\" r=\"3.5\"/>", colour, px(x), px(y));
    case 1: return path("M-3.2-3.2H3.2V3.2H-3.2Z");
    case 2: return path("M0-4.4L4.2 3.2H-4.2Z");
    case 3: return path("M0-4.6L4.6 0L0 4.6L-4.6 0Z");
    case 4: return path("M0 4.4L4.2-3.2H-4.2Z");
    default: return path("M-4-1.3H-1.3V-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4Z");
  }
}

bool drawable(const Plane& plane, const Line& line, std::size_t k) {
  return std::isfinite(on(plane.x, line.x[k])) && std::isfinite(on(plane.y, line.y[k]));
}

std::string band(const Plane& plane, const Line& line, const Place& at) {
  if (line.error.empty() || line.role == Line::Role::kMember) return "";
  std::string above, below;
  for (std::size_t k = 0; k < line.x.size(); ++k) {
    if (!drawable(plane, line, k) || !std::isfinite(line.error[k])) continue;
    const double low = line.y[k] - line.error[k];
    const double bottom = plane.y.log && low <= 0 ? at.frame().pixels[3] : at.y(low);
    above += fmt::format("{}{} {}", above.empty() ? "M" : "L", px(at.x(line.x[k])),
                         px(at.y(line.y[k] + line.error[k])));
    below.insert(0, fmt::format("L{} {}", px(at.x(line.x[k])), px(bottom)));
  }
  if (above.empty()) return "";
  return fmt::format("<path class=\"band {}\" d=\"{}{}Z\"/>",
                     line.role == Line::Role::kLimit ? std::string("limit")
                                                     : fmt::format("s{}", line.place % kColours),
                     above, below);
}

std::string drawing(const Plane& plane, const Line& line, const Place& at) {
  std::string path, marks;
  bool pen = false;
  const std::size_t every = (line.x.size() + kMostMarkers - 1) / kMostMarkers;
  for (std::size_t k = 0; k < line.x.size(); ++k) {
    if (!drawable(plane, line, k)) {
      pen = false;
      continue;
    }
    path += fmt::format("{}{} {}", pen ? "L" : "M", px(at.x(line.x[k])), px(at.y(line.y[k])));
    pen = true;
    if (line.role == Line::Role::kSeries && k % every == 0)
      marks += marker(line.place, at.x(line.x[k]), at.y(line.y[k]));
  }
  if (path.empty()) return "";
  return fmt::format("<path {} d=\"{}\"><title>{}</title></path>{}",
                     stroke(line, plane.lines.size()), path, html_escaped(line.name), marks);
}

std::string drawing(const Bars& bars, const Place& at) {
  std::string out = fmt::format("<g class=\"bars s{}\">", bars.place % kColours);
  const double width = (bars.high - bars.low) / static_cast<double>(bars.heights.size());
  for (std::size_t k = 0; k < bars.heights.size(); ++k) {
    const double left = at.x(bars.low + width * static_cast<double>(k)),
                 right = at.x(bars.low + width * static_cast<double>(k + 1)),
                 top = at.y(bars.heights[k]), bottom = at.y(0);
    out += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>", px(left), px(top),
                       px(right - left), px(bottom - top));
  }
  return out + "</g>";
}

std::string sample(const Line& line, std::size_t lines) {
  std::string out =
      "<svg class=\"sample\" width=\"34\" height=\"12\" viewBox=\"0 0 34 12\" "
      "aria-hidden=\"true\"><path " +
      stroke(line, lines) + " d=\"M1 6H33\"/>";
  if (line.role == Line::Role::kSeries) out += marker(line.place, 17, 6);
  return out + "</svg>";
}

std::string sample(const Bars& bars) {
  return fmt::format(
      "<svg class=\"sample\" width=\"34\" height=\"12\" viewBox=\"0 0 34 12\" "
      "aria-hidden=\"true\"><g class=\"bars "
      "s{}\"><rect "
      "x=\"8\" y=\"1\" width=\"18\" height=\"10\"/></g></svg>",
      bars.place % kColours);
}

constexpr double kMapMargin = 44;  // of a heat map

double cell_of(const HeatMap& map) {
  constexpr double kSide = 380, kMostCell = 40;
  return std::min(kMostCell,
                  std::floor(kSide / static_cast<double>(std::max(map.rows, map.columns))));
}
/// Height of the scale of colours.
double scale_of(const HeatMap& map) {
  return std::max(cell_of(map) * static_cast<double>(map.rows), 120.0);
}

std::string opening(const std::array<double, 2>& size, const std::string& label) {
  return fmt::format(
      "<svg width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} {1:g}\" role=\"img\" "
      "aria-label=\"{2}\">",
      size[0], size[1], html_escaped(label));
}

}  // namespace

std::array<double, 2> size_of(const Plane&) { return {kWidth, kHeight}; }
std::array<double, 2> size_of(const HeatMap& map) {
  return {kMapMargin + cell_of(map) * static_cast<double>(map.columns) + 130,
          26 + scale_of(map) + 10};
}

Frame frame_of(const Plane& plane) {
  Range x, y;
  for (const Line& line : plane.lines)
    for (std::size_t k = 0; k < line.x.size(); ++k) {
      if (!drawable(plane, line, k)) continue;
      x.take(on(plane.x, line.x[k]));
      y.take(on(plane.y, line.y[k]));
      // What an error takes below 0 is no part of a log axis; huge errors do not hide the values.
      if (line.error.empty() || line.role == Line::Role::kMember) continue;
      y.take(on(plane.y, line.y[k] + line.error[k]));
      if (!plane.y.log) y.take(line.y[k] - line.error[k]);
    }
  for (const Bars& bars : plane.bars) {
    x.take(bars.low);
    x.take(bars.high);
    y.take(0);
    for (const double height : bars.heights) y.take(height);
  }
  const Range wide_x = x.widened(plane.x.log ? 0.05 : 0.02);
  Range wide_y = y.widened(0.05);
  if (!plane.bars.empty()) wide_y.low = std::min(y.low, 0.0);
  return {{kLeft, kTop, kWidth - kRight, kHeight - kBottom},
          {wide_x.low, wide_x.high, wide_y.low, wide_y.high}};
}

std::string drawing(const Plane& plane, const std::string& label) {
  const Place at(plane);
  std::string out = opening(size_of(plane), label) + axes(plane, at);
  for (const Bars& bars : plane.bars) out += drawing(bars, at);
  for (const Line& line : plane.lines) out += band(plane, line, at);
  for (const Line& line : plane.lines) out += drawing(plane, line, at);
  return out + "<line class=\"cursor\" x1=\"0\" x2=\"0\" y1=\"0\" y2=\"0\"/></svg>";
}

std::vector<Sample> legend(const Plane& plane) {
  std::vector<Sample> out;
  if (plane.bars.size() + plane.lines.size() < 2) return out;
  for (const Bars& bars : plane.bars) out.push_back({sample(bars), bars.name});
  const bool members = std::any_of(plane.lines.begin(), plane.lines.end(), [](const Line& line) {
    return line.role == Line::Role::kMember;
  });
  for (std::size_t k = 0; k < plane.lines.size(); ++k)
    if (!members || k == 0 || k + 1 == plane.lines.size())
      out.push_back({sample(plane.lines[k], plane.lines.size()),
                     plane.lines[k].name + (members && k == 0 ? " to" : "")});
  return out;
}

std::vector<std::string> palette(bool symmetric) {
  constexpr int kSteps = 64;
  std::vector<std::string> out;
  for (int k = 0; k < kSteps; ++k) {
    const double at = k / (kSteps - 1.0);
    out.push_back(hex(symmetric ? diverging(at) : sequential(at)));
  }
  return out;
}

std::array<double, 2> range_of(const HeatMap& map) {
  Range range;
  for (const std::vector<double>& frame : map.values)
    for (const double x : frame) range.take(x);
  if (!(range.low <= range.high)) return {0, 1};
  if (map.symmetric) {
    const double most = std::max(std::abs(range.low), std::abs(range.high));
    return {-most, most};
  }
  return {range.low, range.high};
}

std::string drawing(const HeatMap& map, std::size_t frame, const std::string& label,
                    const std::string& id) {
  const double cell = cell_of(map), width = cell * static_cast<double>(map.columns),
               height = cell * static_cast<double>(map.rows), legend = scale_of(map);
  const std::vector<std::string> colours = palette(map.symmetric);
  const auto [low, high] = range_of(map);
  std::string out = opening(size_of(map), label);
  out += fmt::format("<g class=\"cells\" transform=\"translate({:g} 26)\">", kMapMargin);
  for (std::size_t i = 0; i < map.rows; ++i)
    for (std::size_t j = 0; j < map.columns; ++j) {
      const double value = map.values[frame][i * map.columns + j];
      const double at = high > low ? (value - low) / (high - low) : 0.5;
      const std::string colour =
          std::isfinite(value) ? colours[static_cast<std::size_t>(
                                     std::lround(at * static_cast<double>(colours.size() - 1)))]
                               : "none";
      out += fmt::format("<rect x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\" fill=\"{}\"/>",
                         static_cast<double>(j) * cell, static_cast<double>(i) * cell, cell, cell,
                         colour);
    }
  out += "</g><g class=\"axes\">";
  // Indices of the first and last row and column of the matrix.
  const auto text = [&](double x, double y, const char* anchor, const std::string& what) {
    out += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"{}\">{}</text>", px(x), px(y), anchor,
                       what);
  };
  const auto index = [&](std::size_t k) { return fmt::format("{}", k * map.entries); };
  text(kMapMargin + cell / 2, 20, "middle", "0");
  if (map.columns > 1) text(kMapMargin + width - cell / 2, 20, "middle", index(map.columns - 1));
  text(kMapMargin - 6, 26 + cell / 2 + 4, "end", "0");
  if (map.rows > 1) text(kMapMargin - 6, 26 + height - cell / 2 + 4, "end", index(map.rows - 1));
  out += "</g>";
  out += fmt::format("<defs><linearGradient id=\"{}\" x1=\"0\" y1=\"1\" x2=\"0\" y2=\"0\">", id);
  constexpr std::size_t kStops = 9;
  for (std::size_t k = 0; k < kStops; ++k)
    out += fmt::format("<stop offset=\"{:g}\" stop-color=\"{}\"/>",
                       static_cast<double>(k) / (kStops - 1),
                       colours[k * (colours.size() - 1) / (kStops - 1)]);
  out += fmt::format(
      "</linearGradient></defs><rect x=\"{:g}\" y=\"26\" width=\"14\" height=\"{:g}\" "
      "fill=\"url(#{})\"/><g class=\"axes\">",
      kMapMargin + width + 20, legend, id);
  text(kMapMargin + width + 40, 26 + 10, "start", shown(high));
  text(kMapMargin + width + 40, 26 + legend / 2 + 4, "start", shown((low + high) / 2));
  text(kMapMargin + width + 40, 26 + legend, "start", shown(low));
  return out + "</g></svg>";
}

}  // namespace tplimit::svg
