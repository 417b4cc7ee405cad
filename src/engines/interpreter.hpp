#pragma once

#include <array>
#include <map>
#include <optional>
#include <vector>

#include "engines/plan.hpp"
#include "engines/realisation.hpp"
#include "engines/rounding.hpp"
#include "engines/run_state.hpp"
#include "engines/term_summary.hpp"
#include "tplimit/ir/program.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit::engines {

struct RunResult {
  std::vector<std::vector<double>> values;  ///< one per wanted node, row-major
  bool matching_stopped = false;
  std::vector<std::array<std::int64_t, 2>> ranks;  ///< per source: directions of W and W'
  std::vector<TermSummary> terms;  ///< one per wanted node, of the limit; empty if it is no average
  std::map<std::uint32_t, TermSummary>
      inner;  ///< of the limit: averages that are not wanted, and squared norms that products take,
              ///< of what may have heavy tails
  std::map<std::uint32_t, std::vector<double>>
      by_rounding;  ///< per jump of the limit whose side rounding decides: 1 for such entries
  double largest_dropped = 0;  ///< largest |rest| / |x| of a direction that was dropped
  std::int64_t stored = 0;     ///< matrices of the limit that got too many directions to stay lazy
  [[nodiscard]] std::int64_t largest_rank() const;
};

struct RunFailure {
  EvaluationStop stop;
  ir::NodeId node;
};

/// Evaluates a program once.  The same code runs networks and limits; they differ in Realisation.
/// Particles are spread over the ranks of the executor; results are the
/// same on all of them.  (Networks are run by one rank each.) With a `state`, goes on from it if it
/// holds one, and saves there what is asked for; the result has the same bits.  E5206 if asked to
/// stop, by the state or by the executor.
std::variant<RunResult, RunFailure> run_program(const Schedule& schedule,
                                                const RunSettings& settings,
                                                const Executor& executor,
                                                RunState* state = nullptr);

}  // namespace tplimit::engines
