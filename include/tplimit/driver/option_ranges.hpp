#pragma once

#include <array>
#include <limits>
#include <string_view>

namespace tplimit {

/// What a numerical option of an evaluation may be: least <= x <= most.  Command line and Python
/// module take these, so that neither passes on what the other refuses.
struct OptionRange {
  std::string_view name;  ///< as in Python; with dashes that of the command line
  bool whole;
  double least, most;
};

namespace option_ranges {
inline constexpr double kMost = 1e6, kAbove0 = std::numeric_limits<double>::min(),
                        kBelow1 = 1 - std::numeric_limits<double>::epsilon(),
                        kLargest = std::numeric_limits<double>::max();
}  // namespace option_ranges

inline constexpr std::array kOptionRanges{
    OptionRange{"particles", true, 8, 2147483648.0},
    OptionRange{"randomisations", true, 1, option_ranges::kMost},
    OptionRange{"tol", false, option_ranges::kAbove0, option_ranges::kLargest},
    OptionRange{"rank_tol", false, 0, option_ranges::kBelow1},
    OptionRange{"merge_rows", false, 0, option_ranges::kBelow1},
    OptionRange{"draws", true, 1, option_ranges::kMost},
    OptionRange{"seeds", true, 1, option_ranges::kMost},
    OptionRange{"width", true, 1, 1099511627776.0},
    OptionRange{"order", true, 1, option_ranges::kMost},
    OptionRange{"steps", true, 0, option_ranges::kMost},
    OptionRange{"threads", true, 0, option_ranges::kMost},
    OptionRange{"memory", false, 0, option_ranges::kLargest},
    OptionRange{"checkpoint_interval", false, 0, option_ranges::kLargest},
};

/// Of an option of this name, which there is.
constexpr OptionRange range_of(std::string_view name) {
  for (const OptionRange& range : kOptionRanges)
    if (range.name == name) return range;
  throw "no such option";  // in a constant expression: does not compile
}

}  // namespace tplimit
