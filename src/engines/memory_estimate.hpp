#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engines/plan.hpp"
#include "engines/realisation.hpp"

namespace tplimit::engines {

/// Columns of blocks of all rows that are alive during each step of the plan: its results are there
/// before it frees anything.
[[nodiscard]] std::vector<std::int64_t> live_columns(const Plan& plan, const ir::Program& program);

/// Estimated largest memory of one run in bytes, on one of so many processes: blocks that live at
/// once, scratch memory of one thread, and what the realisation keeps.  `ranks` of an earlier run;
/// null: the largest possible.
double estimate_memory(const Schedule& schedule, const RunSettings& settings, int processes = 1,
                       const std::vector<std::array<std::int64_t, 2>>* ranks = nullptr);

}  // namespace tplimit::engines
