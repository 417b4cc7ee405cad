#pragma once

#include <optional>

#include "tplimit/ir/program.hpp"

namespace tplimit::ir {

/// What the scaling analysis needs to know about a function of one variable.
struct FunctionTraits {
  enum class Parity { kNone, kOdd, kEven };
  Parity parity = Parity::kNone;
  std::optional<Exponent> degree;  ///< phi(c x) = c^degree phi(x) for c > 0
  double at_zero = 0;              ///< phi(0); unused where a negative degree makes it infinite
  double slope_at_zero = 0;        ///< phi'(0), where phi is smooth at 0
  bool finite_everywhere =
      true;               ///< defined and continuous on the whole line (not log, negative powers)
  bool positive = false;  ///< phi > 0 almost everywhere
};
[[nodiscard]] FunctionTraits traits_of(const Map& map);

/// The first derivative of a function that contains deltas where its argument (of two arguments:
/// their difference) passes 0: 1 where the function jumps, 2 at kinks; none if it is smooth.
/// `where` jumps with its condition, which is a comparison.
[[nodiscard]] std::optional<int> first_delta(const Map& map);

/// step, sign and comparisons: constant but where they jump.
[[nodiscard]] bool is_piecewise_constant(const Op& op);

/// exp, x^y, negative powers and quotients of vectors: of Gaussians they can have tails so heavy
/// that means are infinite, or no sample shows them.
[[nodiscard]] bool may_have_heavy_tails(const Program& program, const Node& node);
/// Whatever the argument is.
[[nodiscard]] bool is_bounded(const Op& op);

}  // namespace tplimit::ir
