#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engines/plan.hpp"
#include "engines/realisation.hpp"

namespace tplimit::engines {

/// Bytes that a realisation keeps beside the blocks of vectors.
struct Upkeep {
  double always = 0;           ///< bases, normals, what is packed for products
  std::vector<double> during;  ///< per step of the plan: arrays of matrices, copies of operands
};

/// Of the realisation that the settings name, before it is made.  `rows`: of this process, in whole
/// chunks.  `ranks` of an earlier run; null: the largest possible.
[[nodiscard]] Upkeep upkeep_of(const Schedule& schedule, const RunSettings& settings, double rows,
                               const std::vector<std::array<std::int64_t, 2>>* ranks);

}  // namespace tplimit::engines
