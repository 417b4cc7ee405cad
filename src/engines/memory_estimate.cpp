#include "engines/memory_estimate.hpp"

#include <algorithm>

#include "engines/upkeep.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::engines {

using namespace ir;
using Where = Plan::Place::Where;

std::vector<std::int64_t> live_columns(const Plan& plan, const Program& program) {
  std::vector<std::int64_t> out;
  std::int64_t live = 0;
  const auto columns = [&](NodeId id) {
    return program[id].type.width ? size_of(program[id].type.dims) : 0;
  };
  for (const Plan::Step& step : plan.steps) {
    live += std::visit(overloaded{[](const Plan::Sweep& sweep) {
                                    std::int64_t made = 0;
                                    for (const auto& operation : sweep.operations)
                                      if (operation.out.where == Where::kBlock)
                                        made += operation.out.columns;
                                    return made;
                                  },
                                  [](const Plan::EntrySweep&) { return std::int64_t{0}; },
                                  [&](const auto& single) { return columns(single.node); }},
                       step.action);
    out.push_back(live);
    for (const NodeId id : step.frees) live -= columns(id);
  }
  return out;
}

double estimate_memory(const Schedule& schedule, const RunSettings& settings, int processes,
                       const std::vector<std::array<std::int64_t, 2>>* ranks) {
  // Blocks reserve whole chunks.
  const std::int64_t chunks = (settings.rows + kChunkRows - 1) / kChunkRows;
  const double rows = static_cast<double>(
      chunks == 1 ? settings.rows : (chunks + processes - 1) / processes * kChunkRows);
  const std::vector<std::int64_t> live = live_columns(schedule.plan, *schedule.program);
  const Upkeep upkeep = upkeep_of(schedule, settings, rows, ranks);
  double peak = 0, scratch = 0;
  for (std::size_t k = 0; k < live.size(); ++k) {
    peak = std::max(peak, static_cast<double>(live[k]) * rows * 8 + upkeep.during[k]);
    if (const auto* sweep = std::get_if<Plan::Sweep>(&schedule.plan.steps[k].action))
      scratch = std::max(scratch, static_cast<double>(sweep->scratch_columns));
  }
  return upkeep.always + peak + scratch * std::min(rows, static_cast<double>(kChunkRows)) * 8;
}

}  // namespace tplimit::engines
