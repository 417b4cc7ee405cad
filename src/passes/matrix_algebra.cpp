#include "tplimit/passes/matrix_algebra.hpp"

#include <numeric>
#include <utility>
#include <vector>

namespace tplimit {

using namespace ir;

NodeId identity_matrix(Builder& b, std::int64_t k) {
  std::vector<double> out(static_cast<std::size_t>(k * k), 0.0);
  for (std::int64_t i = 0; i < k; ++i) out[static_cast<std::size_t>(i * k + i)] = 1;
  return b.constant(std::move(out), {k, k});
}
NodeId transposed(Builder& b, NodeId x) {
  std::vector<std::int32_t> axes(b.type(x).dims.size());
  std::iota(axes.begin(), axes.end(), 0);
  std::swap(axes.back(), axes[axes.size() - 2]);
  return b.permute(x, std::move(axes));
}
NodeId matrix_product(Builder& b, NodeId x, NodeId y) {
  return b.contract(x, transposed(b, y), static_cast<int>(b.type(x).dims.size()) - 2, 1, false);
}
NodeId matrix_inverse(Builder& b, NodeId a) {
  const Dims dims = b.type(a).dims;
  return b.add(Solve{}, {a, b.expand(identity_matrix(b, dims.back()), false, dims)});
}
NodeId log_determinant_move(Builder& b, NodeId inverse, NodeId move) {
  const NodeId product = b.times(transposed(b, inverse), move);
  const int last = static_cast<int>(b.type(product).dims.size()) - 1;
  return b.sum(b.sum(product, last), last - 1);
}

}  // namespace tplimit
