#include "tplimit/report/vega.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include "report/json_value.hpp"
#include "report/svg.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {
namespace {

using chart::Chart;
using chart::HeatMap;
using chart::Line;
using chart::Plane;

// Okabe and Ito.
const Json kPalette{"#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"};

Json axis(const chart::Axis& own, const char* field) {
  Json scale{{"zero", false}};
  if (own.log) scale = {{"type", "log"}};
  return {{"field", field}, {"type", "quantitative"}, {"title", own.title}, {"scale", scale}};
}

/// A point of a log axis must be positive.
Json on_axis(const chart::Axis& own, double x) {
  return own.log && !(x > 0) ? Json(nullptr) : number(x);
}

Json points_of(const Plane& plane, const Line& line) {
  Json out = Json::array();
  for (std::size_t k = 0; k < line.x.size(); ++k) {
    Json point{{"series", line.name},
               {"x", on_axis(plane.x, line.x[k])},
               {"y", on_axis(plane.y, line.y[k])}};
    if (!line.error.empty()) {
      point["error"] = number(line.error[k]);
      point["low"] = on_axis(plane.y, line.y[k] - line.error[k]);
      point["high"] = on_axis(plane.y, line.y[k] + line.error[k]);
    }
    out.push_back(std::move(point));
  }
  return out;
}

Json specification(const Chart& chart, const Plane& plane, std::size_t) {
  const Json x = axis(plane.x, "x"), y = axis(plane.y, "y");
  Json layers = Json::array();
  for (const chart::Bars& bars : plane.bars) {
    Json values = Json::array();
    const double width = (bars.high - bars.low) / static_cast<double>(bars.heights.size());
    for (std::size_t k = 0; k < bars.heights.size(); ++k)
      values.push_back({{"series", bars.name},
                        {"x", bars.low + width * static_cast<double>(k)},
                        {"end", bars.low + width * static_cast<double>(k + 1)},
                        {"y", number(bars.heights[k])}});
    layers.push_back({{"data", {{"values", values}}},
                      {"mark", {{"type", "bar"}, {"opacity", 0.6}}},
                      {"encoding",
                       {{"x", x},
                        {"x2", {{"field", "end"}}},
                        {"y", {{"field", "y"}, {"type", "quantitative"}, {"title", plane.y.title}}},
                        {"color", {{"field", "series"}, {"type", "nominal"}}}}}});
  }
  for (const Line& line : plane.lines) {
    const bool data = line.role == Line::Role::kSeries || line.role == Line::Role::kMember;
    Json colour{{"field", "series"},
                {"type", "nominal"},
                {"scale", {{"range", kPalette}}},
                {"legend", {{"labelLimit", 0}}}};  // names are shown whole
    if (line.role == Line::Role::kMember) colour["legend"] = nullptr;
    Json mark{{"type", "line"}, {"tooltip", true}};
    if (line.role == Line::Role::kSeries) mark["point"] = true;
    if (line.role == Line::Role::kLimit) mark["strokeDash"] = {7, 4};
    if (line.role == Line::Role::kExpected) mark["strokeDash"] = {2, 4};
    if (!data) {
      mark["color"] = line.role == Line::Role::kLimit ? "black" : "gray";
      colour = {{"datum", line.name}};
    }
    Json marks = Json::array();
    if (!line.error.empty() && line.role != Line::Role::kMember)
      marks.push_back({{"mark", {{"type", "area"}, {"opacity", 0.2}}},
                       {"encoding",
                        {{"x", x},
                         {"y", {{"field", "low"}, {"type", "quantitative"}, {"scale", y["scale"]}}},
                         {"y2", {{"field", "high"}}},
                         {"color", colour}}}});
    marks.push_back({{"mark", mark}, {"encoding", {{"x", x}, {"y", y}, {"color", colour}}}});
    layers.push_back({{"data", {{"values", points_of(plane, line)}}}, {"layer", marks}});
  }
  return {{"title", chart.title}, {"width", 480}, {"height", 260}, {"layer", layers}};
}

Json specification(const Chart& chart, const HeatMap& map, std::size_t place) {
  Json values = Json::array();
  for (std::size_t f = 0; f < map.frames.size(); ++f)
    for (std::size_t k = 0; k < map.values[f].size(); ++k)
      values.push_back({{"frame", f},
                        {"at", map.frames[f]},
                        {"row", k / map.columns * map.entries},
                        {"column", k % map.columns * map.entries},
                        {"value", number(map.values[f][k])}});
  const auto [low, high] = svg::range_of(map);
  const std::string frame = fmt::format("frame{}", place);
  return {{"title", chart.title},
          {"width", 300},
          {"height", 300},
          {"data", {{"values", values}}},
          {"transform", {{{"filter", fmt::format("datum.frame == {}", frame)}}}},
          {"mark", {{"type", "rect"}, {"tooltip", true}}},
          {"encoding",
           {{"x", {{"field", "column"}, {"type", "ordinal"}}},
            {"y", {{"field", "row"}, {"type", "ordinal"}}},
            {"color",
             {{"field", "value"},
              {"type", "quantitative"},
              {"scale", {{"domain", {low, high}}, {"range", svg::palette(map.symmetric)}}}}}}}};
}

}  // namespace

std::string to_vega_lite(const document::Document& document) {
  Json charts = Json::array(), sliders = Json::array();
  for (const document::Section& section : document.sections)
    for (const document::Block& block : section.blocks) {
      const auto* drawing = std::get_if<document::Drawing>(&block);
      if (!drawing) continue;
      for (const Chart& chart : drawing->charts()) {
        const std::size_t place = charts.size();
        charts.push_back(std::visit(
            [&](const auto& own) { return specification(chart, own, place); }, chart.drawing));
        const auto* map = std::get_if<HeatMap>(&chart.drawing);
        if (!map) continue;
        const std::size_t last = map->frames.size() - 1;
        Json slider{{"name", fmt::format("frame{}", place)}, {"value", last}};
        if (last > 0)
          slider["bind"] = {{"input", "range"},
                            {"min", 0},
                            {"max", last},
                            {"step", 1},
                            {"name", fmt::format("{}: {} ", chart.title, map->frame_title)}};
        sliders.push_back(std::move(slider));
      }
    }
  Json out{{"$schema", "https://vega.github.io/schema/vega-lite/v5.json"}};
  if (!sliders.empty()) out["params"] = std::move(sliders);
  out["vconcat"] = std::move(charts);
  out["resolve"] = {{"scale", {{"color", "independent"}}}};
  return out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace tplimit
