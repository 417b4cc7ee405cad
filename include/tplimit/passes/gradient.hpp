#pragma once

#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// coefficient * sum_p d[p] x[p]', over all finite indices p (no 1/n): how gradients of width matrices are kept.
struct OuterTerm {
  ir::NodeId coefficient;  ///< finite scalar
  ir::NodeId d, x;         ///< blocks of equal type
};

/// Derivative with respect to one target: a tensor of the target's type, or a sum of outer products if it is a matrix.
struct Derivative {
  ir::NodeId tensor;
  std::vector<OuterTerm> outer;
};

/// d loss / d target for every target: reverse-mode differentiation that appends nodes to the builder's program.
/// Shapes: loss a finite scalar; targets any nodes, matrices in any version.  A coordinate's derivative is meant, so
/// E(f(x)) = (1/n) sum f(x_a) gives f'(x)/n.  Almost-everywhere derivatives at kinks (relu'(0) = 0); Stop, comparisons,
/// sign, step give 0; Eigvals, Samples and Histogram are not differentiable: E2501 at the node.
/// The result may be differentiated again.  Cost: O(nodes between the first target and the loss).
/// `fixed`: nodes that are variables of their own, whatever they were computed from: no derivative passes behind them (targets among them).
/// `cotangents`: if given, receives d loss / d x for every tensor x with a width axis that was passed on the way.
Result<std::vector<Derivative>> gradient(ir::Builder& builder, ir::NodeId loss, const std::vector<ir::NodeId>& targets,
                                         const std::vector<ir::NodeId>& fixed = {}, std::vector<std::pair<ir::NodeId, ir::NodeId>>* cotangents = nullptr);

/// phi'(x) as nodes, given x and y = phi(x).
ir::NodeId derivative_of(ir::Builder& builder, const ir::Map& map, ir::NodeId x, ir::NodeId y);

}  // namespace tplimit
