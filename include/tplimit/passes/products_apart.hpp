#pragma once

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// Averages of products of sums, E (a + b) (c + d) = E a c + E a d + .., where the summands are
/// products with matrices: each for itself is linear in matrices of its own, as a network of
/// several widths has them, and sqrt(n) E a c is a random number of size 1 where the whole is none
/// that leading orders know.  Keeps values up to rounding.  Cost: O(nodes).
[[nodiscard]] ir::Program products_apart(const ir::Program& program);

}  // namespace tplimit
