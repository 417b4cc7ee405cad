#pragma once

#include <array>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// How vectors enter what is computed from them: as they are (in sums, products, averages, and as
/// vectors that matrices multiply), or only through functions like tanh.  Averages of what is used
/// as it is are moments of Gaussians, which matching makes exact; a function of a Gaussian has no
/// such moments.
struct DirectUses {
  /// Per matrix source, for W x and W' d: some product is used as it is.
  std::vector<std::array<bool, 2>> products;
  /// Per matrix source, for W x and W' d: some vector x (d) has a Gaussian as a term.
  std::vector<std::array<bool, 2>> operands;
};
/// Cost: O(nodes).
DirectUses direct_uses(const ir::Program& program);

}  // namespace tplimit
