#include "lower/lowerer.hpp"
#include "tplimit/passes/matrix_algebra.hpp"

// solve, inverse, logdet of finite matrices.
namespace tplimit::lowering {

/// b [.., k] or [.., k, m]; of [k, n], n the width, each coordinate by itself.
Value Lowerer::builtin_solve(Arguments& a) {
  const Tensor matrix = square_matrix(a);
  Tensor b = tensor(a.positional[1], a.spans[1]);
  const std::size_t rank = matrix.axes.size();
  const bool vectors = b.axes.size() + 1 == rank;
  const bool fits = (vectors || b.axes.size() == rank) &&
                    std::equal(matrix.axes.begin(), matrix.axes.end() - 1, b.axes.begin()) &&
                    (!has_width(b.axes) || rank == 2);
  if (!fits)
    fail("E2202", "shapes do not fit together in solve", a.span,
         fmt::format("{} and {}", text(matrix.axes), text(b.axes)),
         "solve(A, b) takes A [.., k, k] and b [.., k] or [.., k, m], all axes before k equal");
  ir::Builder& builder = build(a.span);
  if (has_width(b.axes)) return {contract_axis(matrix_inverse(builder, matrix.node), b, 0)};
  Dims dims = finite_dims(b.axes);
  if (vectors) dims.push_back(1);
  b.node = builder.add(ir::Solve{}, {matrix.node, builder.reshape(b.node, dims)});
  b.node = builder.reshape(b.node, finite_dims(b.axes));
  return {b};
}

Value Lowerer::builtin_inverse(Arguments& a) {
  Tensor x = square_matrix(a);
  x.node = matrix_inverse(build(a.span), x.node);
  return {x};
}

Value Lowerer::builtin_logdet(Arguments& a) {
  Tensor x = square_matrix(a);
  x.node = build(a.span).add(ir::LogDet{}, {x.node});
  x.axes.resize(x.axes.size() - 2);
  return {x};
}

}  // namespace tplimit::lowering
