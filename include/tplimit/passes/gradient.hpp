#pragma once

#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// coefficient * sum_p d[p] x[p]', over all finite indices p (no 1/n): how gradients of width
/// matrices are kept.
struct OuterTerm {
  ir::NodeId coefficient;  ///< finite scalar
  ir::NodeId d, x;         ///< blocks of equal type
};

/// coefficient * W, of a norm or inner product of matrices.
struct VersionTerm {
  ir::NodeId coefficient;  ///< finite scalar
  ir::NodeId w;
};

/// Derivative with respect to one target: a tensor of the target's type, or a sum of outer products
/// and versions if it is a matrix.
struct Derivative {
  ir::NodeId tensor;
  std::vector<OuterTerm> outer;
  std::vector<VersionTerm> versions{};
};

/// d loss / d target for every target: reverse-mode differentiation that appends nodes to the
/// builder's program. Shapes: loss a finite scalar; targets any nodes, matrices in any version.  A
/// coordinate's derivative is meant, so E(f(x)) = (1/n) sum f(x_a) gives f'(x)/n. Almost-everywhere
/// derivatives at kinks (relu'(0) = 0), equal shares among the largest entries of a maximum; Stop,
/// comparisons, sign, step give 0; Eigvals, Samples and Histogram are not differentiable: E2501 at
/// the node. The result may be differentiated again.  Cost: O(nodes between the first target and
/// the loss). `fixed`: nodes that are variables of their own, whatever they were computed from: no
/// derivative passes behind them (targets among them). `cotangents`: if given, receives d loss / d
/// x for every tensor x with a width axis that was passed on the way.
Result<std::vector<Derivative>> gradient(
    ir::Builder& builder, ir::NodeId loss, const std::vector<ir::NodeId>& targets,
    const std::vector<ir::NodeId>& fixed = {},
    std::vector<std::pair<ir::NodeId, ir::NodeId>>* cotangents = nullptr);

/// Forward mode, by the same rules: sum over operands k of d node / d in[k] applied to moves[k],
/// for `node` computed as y from `in`. An invalid move is 0, and so may be the result.  No matrix
/// nodes.  Errors: E2501 as above.
Result<ir::NodeId> tangent(ir::Builder& builder, const ir::Node& node,
                           const std::vector<ir::NodeId>& in, ir::NodeId y,
                           const std::vector<ir::NodeId>& moves);

/// exp(x - y), the derivative of y = LogSumExp of x along the axis: at most 1, whatever x is.
ir::NodeId shares_of_exponentials(ir::Builder& builder, ir::NodeId x, ir::NodeId y, int axis);

}  // namespace tplimit
