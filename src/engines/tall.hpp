#pragma once

#include <Eigen/Core>

#include "engines/block.hpp"
#include "engines/executor.hpp"
#include "engines/panel.hpp"
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
/// part += a' b for chunk c of the panel's first part.rows() columns.
inline void add_inner(Eigen::Ref<Matrix> part, const Panel& a, std::int64_t c, const ChunkMap& b) {
  if (a.single()) add_inner_products(b.rows(), a.floats_at(c, 0), a.ld(), part.rows(), b.data(), b.outerStride(), b.cols(), part.data(), part.outerStride());
  else add_inner_products(b.rows(), a.doubles_at(c, 0), a.ld(), part.rows(), b.data(), b.outerStride(), b.cols(), part.data(), part.outerStride());
}
/// y += sign a w.
inline void add_times(ChunkMap y, const ChunkMap& a, const Eigen::Ref<const Matrix>& w, double sign = 1) {
  add_product(a.rows(), a.data(), a.outerStride(), a.cols(), w.data(), w.outerStride(), w.cols(), y.data(), y.outerStride(), sign);
}
/// y += sign a w for chunk c of the panel's first w.rows() columns.
inline void add_times(ChunkMap y, const Panel& a, std::int64_t c, const Eigen::Ref<const Matrix>& w, double sign = 1) {
  if (a.single()) add_product(y.rows(), a.floats_at(c, 0), a.ld(), w.rows(), w.data(), w.outerStride(), w.cols(), y.data(), y.outerStride(), sign);
  else add_product(y.rows(), a.doubles_at(c, 0), a.ld(), w.rows(), w.data(), w.outerStride(), w.cols(), y.data(), y.outerStride(), sign);
}

/// Sums partial(c) over chunks, in order.  partial(c, out) adds chunk c's part to a zeroed rows x cols matrix.
template <class F>
Matrix sum_over_chunks(const Executor& executor, std::int64_t chunks, Eigen::Index rows, Eigen::Index cols, F&& partial) {
  Matrix total = Matrix::Zero(rows, cols);
  if (rows == 0 || cols == 0) return total;
  // Chunks are summed in fixed groups, so that the memory for partial sums stays small: 64, of large matrices fewer (2^20: 8 MB in all).
  const std::int64_t most = std::clamp<std::int64_t>((std::int64_t{1} << 20) / (rows * cols), 16, 64);
  const std::int64_t group = std::max<std::int64_t>(1, (chunks + most - 1) / most);
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

}  // namespace tplimit::engines
