#pragma once

#include <bit>

#include <variant>

#include <Eigen/Core>

#include "engines/block.hpp"
#include "engines/panel.hpp"
#include "parallel/executor.hpp"
#include "tplimit/math/tall_products.hpp"

/// Products of tall blocks: averages over rows <a, b> = (1/rows) sum, and updates by small
/// matrices.  All go chunk by chunk; the sums of chunks are added as a binary tree over their
/// indices, so results do not depend on the number of threads.
namespace tplimit::engines {

using Matrix = Eigen::MatrixXd;
using ChunkMap = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

/// Columns [first, first + count) of a chunk.
[[nodiscard]] inline ChunkMap columns_of(const Block& b, std::int64_t c, std::int64_t first,
                                         std::int64_t count) {
  return {b.chunk(c) + first * b.ld(), b.chunk_rows(c), count, Eigen::OuterStride<>(b.ld())};
}
[[nodiscard]] inline ChunkMap all_columns(const Block& b, std::int64_t c) {
  return columns_of(b, c, 0, b.columns());
}

/// part += a' b.  (The maps' outer strides are their leading dimensions.)
inline void add_inner(Eigen::Ref<Matrix> part, const ChunkMap& a, const ChunkMap& b) {
  add_inner_products(a.rows(), a.data(), a.outerStride(), a.cols(), b.data(), b.outerStride(),
                     b.cols(), part.data(), part.outerStride());
}
/// part += a' b for chunk c of the panel's first part.rows() columns.
inline void add_inner(Eigen::Ref<Matrix> part, const Panel& a, std::int64_t c, const ChunkMap& b) {
  if (a.single())
    add_inner_products(b.rows(), a.floats_at(c, 0), a.ld(), part.rows(), b.data(), b.outerStride(),
                       b.cols(), part.data(), part.outerStride());
  else
    add_inner_products(b.rows(), a.doubles_at(c, 0), a.ld(), part.rows(), b.data(), b.outerStride(),
                       b.cols(), part.data(), part.outerStride());
}
/// What a panel's first w.rows() columns are multiplied by, the same for all chunks.
class PanelWeights {
 public:
  PanelWeights(const Panel& a, const Eigen::Ref<const Matrix>& w, double sign = 1)
      : panel_(&a),
        weights_(a.single() ? Weights(PackedWeights<float>(w.data(), w.outerStride(), w.rows(),
                                                           w.cols(), sign))
                            : Weights(PackedWeights<double>(w.data(), w.outerStride(), w.rows(),
                                                            w.cols(), sign))) {}
  /// y += sign a w for chunk c.
  void add_product_to(ChunkMap y, std::int64_t c) const {
    if (panel_->single())
      add_product(y.rows(), panel_->floats_at(c, 0), panel_->ld(),
                  std::get<PackedWeights<float>>(weights_), y.data(), y.outerStride());
    else
      add_product(y.rows(), panel_->doubles_at(c, 0), panel_->ld(),
                  std::get<PackedWeights<double>>(weights_), y.data(), y.outerStride());
  }

 private:
  using Weights = std::variant<PackedWeights<double>, PackedWeights<float>>;
  const Panel* panel_;
  Weights weights_;
};

/// The rows [first, first + count) of all rows of a run that a rank holds, in whole chunks (but for
/// the last one of all).
struct Share {
  std::int64_t first, count;
};
[[nodiscard]] inline Share share_of(const Communicator& ranks, std::int64_t rows) {
  const std::int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  const auto begin = [&](std::int64_t rank) {
    return std::min(rows, chunks * rank / ranks.size() * kChunkRows);
  };
  return {begin(ranks.rank()), begin(ranks.rank() + 1) - begin(ranks.rank())};
}

/// The rows of all ranks, on each of them; made in `storage` if there are several.
inline const Block& all_rows(const Executor& executor, const Block& own, std::int64_t rows,
                             Block& storage) {
  if (executor.ranks().size() == 1) return own;
  storage = Block(rows, own.columns());
  const std::int64_t first = share_of(executor.ranks(), rows).first / kChunkRows;
  for (std::int64_t c = 0; c < storage.chunks(); ++c) {
    auto to = all_columns(storage, c);
    if (c >= first && c < first + own.chunks())
      to = all_columns(own, c - first);
    else
      to.setConstant(-0.0);  // what changes nothing in a sum
    for (std::int64_t j = 0; j < storage.columns(); ++j)
      executor.ranks().sum({to.col(j).data(), static_cast<std::size_t>(to.rows())});
  }
  return storage;
}

/// Sums in the order of a binary tree over the indices of what is added: ((0 + 1) + (2 + 3)) + ((4
/// + 5) + 6).  Aligned parts of a power of two may be summed first, by other threads or ranks: the
/// order, and with it the bits, is the same.
class TreeSum {
 public:
  void add(Matrix x) {
    parts_.push_back(std::move(x));
    for (std::int64_t k = ++count_; k % 2 == 0; k /= 2) fold();
  }
  Matrix total() {
    while (parts_.size() > 1) fold();
    return std::move(parts_.back());
  }

 private:
  void fold() {
    parts_[parts_.size() - 2] += parts_.back();
    parts_.pop_back();
  }
  std::vector<Matrix> parts_;
  std::int64_t count_ = 0;
};

/// Sums partial(c) over the chunks of all ranks.  partial(c, out) adds chunk c's part to a zeroed
/// rows x cols matrix.
template <class F>
Matrix sum_over_chunks(const Executor& executor, std::int64_t chunks, Eigen::Index rows,
                       Eigen::Index cols, F&& partial) {
  if (rows == 0 || cols == 0) return Matrix::Zero(rows, cols);
  // Chunks are summed in groups, so that the memory for partial sums stays small: up to 64, of
  // large matrices fewer (2^20: 8 MB in all).
  const std::int64_t most =
      std::clamp<std::int64_t>((std::int64_t{1} << 20) / (rows * cols), 16, 64);
  // A leaf of the tree is one chunk; of large matrices, which cost more to add than to keep in the
  // cache, four, however few chunks there are: ranks have fewer and must add in the same order.
  const std::int64_t leaf = rows * cols > 16384 ? 4 : 1;
  const auto group = static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(std::max(leaf, (chunks + most - 1) / most))));
  std::vector<Matrix> parts(static_cast<std::size_t>((chunks + group - 1) / group));
  executor.parallel(static_cast<std::int64_t>(parts.size()), [&](std::int64_t g) {
    TreeSum sum;
    const std::int64_t end = std::min(chunks, (g + 1) * group);
    for (std::int64_t c = g * group; c < end; c += leaf) {
      executor.poll();
      Matrix part = Matrix::Zero(rows, cols);
      for (std::int64_t own = c; own < std::min(end, c + leaf); ++own) partial(own, part);
      sum.add(std::move(part));
    }
    parts[static_cast<std::size_t>(g)] = sum.total();
  });
  TreeSum sum;
  for (Matrix& part : parts) sum.add(std::move(part));
  Matrix total = parts.empty() ? Matrix(Matrix::Zero(rows, cols)) : sum.total();
  executor.ranks().sum({total.data(), static_cast<std::size_t>(total.size())});
  return total;
}

}  // namespace tplimit::engines
