#pragma once

#include <Eigen/Core>

#include "engines/block.hpp"
#include "engines/executor.hpp"
#include "tplimit/math/tall_products.hpp"

/// Products of tall blocks: averages over rows <a, b> = (1/rows) sum, and updates by small matrices.  All go chunk by
/// chunk; partial sums are added in chunk order, so results do not depend on the number of threads.
namespace tplimit::engines {

using Matrix = Eigen::MatrixXd;
using ChunkMap = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

/// Columns [first, first + count) of a chunk.
[[nodiscard]] inline ChunkMap columns_of(const Block& b, std::int64_t c, std::int64_t first, std::int64_t count) {
  return {b.chunk(c) + first * b.ld(), b.chunk_rows(c), count, Eigen::OuterStride<>(b.ld())};
}
[[nodiscard]] inline ChunkMap all_columns(const Block& b, std::int64_t c) { return columns_of(b, c, 0, b.columns()); }

/// part += a' b.  (The maps' outer strides are their leading dimensions.)
inline void add_inner(Eigen::Ref<Matrix> part, const ChunkMap& a, const ChunkMap& b) {
  add_inner_products(a.rows(), a.data(), a.outerStride(), a.cols(), b.data(), b.outerStride(), b.cols(), part.data(), part.outerStride());
}
/// y += sign a w.
inline void add_times(ChunkMap y, const ChunkMap& a, const Eigen::Ref<const Matrix>& w, double sign = 1) {
  add_product(a.rows(), a.data(), a.outerStride(), a.cols(), w.data(), w.outerStride(), w.cols(), y.data(), y.outerStride(), sign);
}

/// Sums partial(c) over chunks, in order.  partial(c, out) adds chunk c's part to a zeroed rows x cols matrix.
template <class F>
Matrix sum_over_chunks(const Executor& executor, std::int64_t chunks, Eigen::Index rows, Eigen::Index cols, F&& partial) {
  Matrix total = Matrix::Zero(rows, cols);
  if (rows == 0 || cols == 0) return total;
  // Chunks are summed in fixed groups, so that the memory for partial sums stays small.
  const std::int64_t group = std::max<std::int64_t>(1, (chunks + 63) / 64);
  const std::int64_t groups = (chunks + group - 1) / group;
  std::vector<Matrix> parts(static_cast<std::size_t>(groups));
  executor.parallel(groups, [&](std::int64_t g) {
    Matrix& part = parts[static_cast<std::size_t>(g)];
    part = Matrix::Zero(rows, cols);
    for (std::int64_t c = g * group; c < std::min(chunks, (g + 1) * group); ++c) partial(c, part);
  });
  for (const Matrix& part : parts) total += part;
  return total;
}

/// <a[:, first..], b> = a' b / rows.
inline Matrix inner(const Executor& executor, const Block& a, std::int64_t a_first, const Block& b, std::int64_t b_first = 0) {
  Matrix out = sum_over_chunks(executor, a.chunks(), a.columns() - a_first, b.columns() - b_first, [&](std::int64_t c, Matrix& part) {
    add_inner(part, columns_of(a, c, a_first, a.columns() - a_first), columns_of(b, c, b_first, b.columns() - b_first));
  });
  return out / static_cast<double>(a.rows());
}

}  // namespace tplimit::engines
