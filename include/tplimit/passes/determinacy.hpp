#pragma once

#include <functional>
#include <map>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// A function of numbers without a width axis that jumps (step, sign, comparisons, mod, the
/// condition of `where`) or follows one of its operands (max, relu, ..), where the operands of
/// networks fluctuate around their limits.
struct Decision {
  ir::NodeId node;                   ///< in the program whose limit is taken
  std::vector<ir::NodeId> operands;  ///< in the limit program: leading coefficients of what decides
  ir::NodeId margin;  ///< in the limit program: what is set against 0; invalid: whether operands[0]
                      ///< / operands[1] is whole
  bool jump = true;   ///< else it follows an operand, or multiplies an indicator by the margin
};

struct Numbers {
  const std::vector<double>* value;
  const std::vector<double>*
      error;             ///< standard errors or bounds; null or empty: there is no estimate
  bool sampled = false;  ///< by particles, and not proved exact: 0 within its error is not 0
};

/// Entries of values that something reaches.
struct Marks {
  std::vector<std::vector<char>> at;  ///< per node and entry; empty: none
  std::vector<ir::NodeId> root;       ///< per node: the jump behind it
  [[nodiscard]] bool holds(ir::NodeId id, std::size_t entry) const {
    return !at.empty() && !at[id.value].empty() && at[id.value][entry] != 0;
  }
  [[nodiscard]] bool any(ir::NodeId id) const { return !at.empty() && !at[id.value].empty(); }
};

/// Which entries of which values stay random as the width grows, because a jump lies at a limit.
struct Undetermined : Marks {
  Marks open;  ///< determined, but sampling leaves open on which side of a jump
};

/// step, sign, comparisons, mod and `where`.
[[nodiscard]] bool is_jump(const ir::Node& node);

/// A number that is 0 or 1, or another of few: comparisons, signs, and what products, sums and
/// copies make of them and of constants.
[[nodiscard]] bool is_indicator(const ir::Program& program, ir::NodeId id);

/// A jump is undetermined where what decides lies on it, up to rounding and bounds of errors, and
/// fluctuates; sides that are the same linear form in averages are equal in networks too.  So is
/// all that is computed from it, except by branches not taken, and times what is 0 in the limit, as
/// the derivative of a function without jumps.  Where only sampling does not resolve the jump,
/// within 5 errors, it is open, and so is what is computed from it without a width axis.  With
/// `judged`, by runs that each decide for themselves, their spread is the error of all that comes
/// after; else it is undetermined. Cost: O(nodes), and O(entries) of what is computed from an
/// undetermined jump.
[[nodiscard]] Undetermined undetermined(const ir::Program& program,
                                        const std::vector<Decision>& decisions,
                                        const std::function<Numbers(ir::NodeId)>& limit,
                                        bool judged);

/// What is computed from these entries of these nodes, except by branches not taken.
[[nodiscard]] Marks reached_from(const ir::Program& program,
                                 const std::map<std::uint32_t, std::vector<double>>& entries);

}  // namespace tplimit
