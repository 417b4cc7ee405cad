#include "tplimit/report/figure.hpp"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "report/mathml.hpp"
#include "report/page.hpp"
#include "report/svg.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {
namespace {

constexpr double kPadding = 16, kLine = 20, kGap = 28, kSampleWidth = 34;

/// The value of "--name" where page.css first gives it: on white paper.
std::string_view colour(std::string_view name) {
  const std::string_view style = page::style();
  const std::size_t begin = style.find(fmt::format("{}:", name)) + name.size() + 1;
  const std::string_view value = style.substr(begin, style.find(';', begin) - begin);
  return value.substr(value.find_first_not_of(' '));
}

/// Styles of charts with colours in place of variables, which drawing programs do not know.
std::string style() {
  constexpr std::string_view kVariable = "var(";
  std::string out;
  std::string_view rest = page::chart_style();
  for (std::size_t at = 0; (at = rest.find(kVariable)) != std::string_view::npos;) {
    out += rest.substr(0, at);
    rest.remove_prefix(at + kVariable.size());
    const std::size_t end = rest.find(')');
    out += colour(rest.substr(0, end));
    rest.remove_prefix(end + 1);
  }
  return out.append(rest);
}

class Figure {
 public:
  void add(const chart::Chart& chart) {
    if (!body_.empty()) height_ += kGap;
    text(0, chart.title, "style=\"font-weight: 600\"");
    std::visit(overloaded{[&](const chart::Plane& plane) { add(plane); },
                          [&](const chart::HeatMap& map) { add(map); }},
               chart.drawing);
    if (!chart.note.empty()) text(0, chart.note);
  }

  [[nodiscard]] std::string written() const {
    const double width = width_ + 2 * kPadding, height = height_ + 2 * kPadding;
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 "
        "{0:g} {1:g}\">\n<style>\n{2}</style>\n<rect width=\"100%\" height=\"100%\" "
        "fill=\"{3}\"/>\n<g transform=\"translate({4:g} {4:g})\">\n{5}</g>\n</svg>\n",
        width, height, style(), colour("--paper"), kPadding, body_);
  }

 private:
  void put(double x, double y, const std::string& drawing) {
    body_ += fmt::format("<g transform=\"translate({:g} {:g})\">{}</g>\n", x, y, drawing);
  }
  void text(double x, const std::string& line, const char* attributes = "") {
    height_ += kLine;
    body_ += fmt::format("<text x=\"{:g}\" y=\"{:g}\" {}>{}</text>\n", x, height_ - 5, attributes,
                         html_escaped(line));
  }
  void draw(const std::array<double, 2>& size, const std::string& drawing) {
    put(0, height_, drawing);
    width_ = std::max(width_, size[0]);
    height_ += size[1];
  }
  void add(const chart::Plane& plane) {
    for (const auto& [sample, name] : svg::legend(plane)) {
      put(0, height_ + 4, sample);
      text(kSampleWidth + 8, name);
    }
    draw(svg::size_of(plane), svg::drawing(plane, ""));
  }
  void add(const chart::HeatMap& map) {
    const std::size_t last = map.frames.size() - 1;
    if (last > 0)
      text(0, map.frame_title.empty() ? map.frames[last]
                                      : fmt::format("{} = {}", map.frame_title, map.frames[last]));
    draw(svg::size_of(map), svg::drawing(map, last, "", fmt::format("scale{}", maps_++)));
  }

  std::string body_;
  double width_ = 0, height_ = 0;
  int maps_ = 0;
};

}  // namespace

std::string to_svg(const document::Document& document) {
  Figure figure;
  for (const document::Section& section : document.sections)
    for (const document::Block& block : section.blocks)
      if (const auto* drawing = std::get_if<document::Drawing>(&block))
        for (const chart::Chart& chart : drawing->charts()) figure.add(chart);
  return figure.written();
}

}  // namespace tplimit
