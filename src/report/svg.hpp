#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "tplimit/report/chart.hpp"

/// Charts as SVG.  Colours of series are classes s0..s5 of the page's style; shapes and dashes tell
/// them apart without colour.
namespace tplimit::svg {

/// Where numbers stand in a drawing: pixels of the corners, numbers there (logarithms on log axes).
struct Frame {
  std::array<double, 4> pixels;  ///< left, top, right, bottom
  std::array<double, 4> range;   ///< x at left and right, y at bottom and top
};
Frame frame_of(const chart::Plane& plane);

/// Pixels of a drawing.
std::array<double, 2> size_of(const chart::Plane& plane);
std::array<double, 2> size_of(const chart::HeatMap& map);

/// `id` begins the ids of what it refers to.
std::string drawing(const chart::Plane& plane, const std::string& label);
std::string drawing(const chart::HeatMap& map, std::size_t frame, const std::string& label,
                    const std::string& id);

/// A line with a marker, or a bar, of 34 x 12 pixels.
struct Sample {
  std::string drawing, name;
};
/// Nothing where there is but one line.  Of many members the first and the last.
std::vector<Sample> legend(const chart::Plane& plane);

/// Colours of a heat map, lowest first.
std::vector<std::string> palette(bool symmetric);
/// The numbers of the first and last colour.
std::array<double, 2> range_of(const chart::HeatMap& map);

}  // namespace tplimit::svg
