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
  bool finite_everywhere = true;   ///< defined and continuous on the whole line (not log, negative powers)
  bool positive = false;           ///< phi > 0 almost everywhere
};
[[nodiscard]] FunctionTraits traits_of(const Map& map);

}  // namespace tplimit::ir
