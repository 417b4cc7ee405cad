#pragma once

#include <cstddef>
#include <string>
#include <variant>
#include <vector>

/// What is drawn of results, whoever draws it: pages as SVG (report/html.hpp), Vega-Lite
/// (report/vega.hpp).
namespace tplimit::chart {

struct Axis {
  std::string title;
  bool log = false;
};

/// A point that is not finite interrupts the line.
struct Line {
  enum class Role {
    kSeries,    ///< one of several, told apart by colour and marker
    kMember,    ///< one of too many for a legend: coloured by its place among them
    kLimit,     ///< dashed
    kExpected,  ///< dotted: no data
  };
  std::string name;
  std::vector<double> x, y;
  std::vector<double> error{};  ///< drawn as a band; empty: none
  Role role = Role::kSeries;
  std::size_t place = 0;  ///< among the series: its colour and marker
};

/// Bars beside each other from low to high.
struct Bars {
  std::string name;
  double low = 0, high = 1;
  std::vector<double> heights;
  std::size_t place = 0;
};

struct Plane {
  Axis x, y;
  std::vector<Bars> bars{};
  std::vector<Line> lines{};
};

/// Matrices of one shape, shown one at a time.
struct HeatMap {
  std::size_t rows = 0, columns = 0;        ///< of cells
  std::size_t entries = 1;                  ///< a cell is the mean of entries x entries of them
  bool symmetric = false;                   ///< colours are symmetric around 0
  std::string frame_title;                  ///< what distinguishes frames: "t"
  std::vector<std::string> frames;          ///< the value of each
  std::vector<std::vector<double>> values;  ///< per frame, row-major
};

struct Chart {
  std::string title;
  std::string note{};  ///< what the drawing leaves out; empty: nothing
  std::variant<Plane, HeatMap> drawing;
};

}  // namespace tplimit::chart
