#pragma once

#include <deque>
#include <vector>

#include "engines/tall.hpp"

namespace tplimit::engines {

/// What fresh normals are like.
enum class NormalLaw {
  kMatched,  ///< limit engine: scrambled Sobol points, moments matched in the sample
  kExact,    ///< finite networks: independent normals, so that products have exactly their conditional law
};

/// An orthonormal family Q that new normals of a space are made orthogonal to, with its products with what the space
/// already holds (kept up to date by NormalSpace).
struct Opposite {
  const Block* q = nullptr;
  std::vector<Matrix> k;  ///< per member of the space: <member, Q>
  Matrix schur;           ///< <Q, Q> minus its part in the span of the members
};

/// One probability space: draws standard normal columns over the particles (or coordinates).
///
/// Matched columns have mean 0, identity covariance and no correlation with any earlier column of the space or with the
/// opposite basis, all exactly in the sample (docs/theory.md, "Moment matching").  Exact columns are only projected off
/// the opposite basis, which leaves the conditional law of a Gaussian matrix.
class NormalSpace {
 public:
  /// `keys`: one for each equal part of the rows, so that a space of 2 M rows can join the points of two spaces of M rows.
  NormalSpace(const Executor& executor, std::int64_t rows, NormalLaw law, std::vector<std::uint64_t> keys);

  /// Appends one column per entry of `dimensions` to `into`; columns are keyed by their dimension.  `into` must keep its
  /// address, and all of its columns come from this space.
  void draw(Block& into, const std::vector<std::uint64_t>& dimensions, Opposite* opposite);

  [[nodiscard]] bool matching_stopped() const { return law_ == NormalLaw::kMatched && !matching_; }
  [[nodiscard]] std::int64_t kept_columns() const;

 private:
  struct Member { const Block* block; std::int64_t columns; };

  [[nodiscard]] std::int64_t part_rows() const { return rows_ / static_cast<std::int64_t>(keys_.size()); }
  void fill(Block& into, std::int64_t first, const std::vector<std::uint64_t>& dimensions) const;
  double project(Block& into, std::int64_t first, Opposite* opposite) const;  ///< returns the largest sum of squares of a column's coefficients
  void whiten(Block& into, std::int64_t first) const;
  void update(Opposite& opposite) const;

  const Executor& executor_;
  std::int64_t rows_;
  NormalLaw law_;
  std::vector<std::uint64_t> keys_;
  bool matching_;
  Block ones_;
  std::vector<Member> members_;  ///< orthonormal columns, all together
};

/// g := g R for columns [first, end) of a block, R square.
void multiply_columns(const Executor& executor, Block& g, std::int64_t first, const Matrix& right);

}  // namespace tplimit::engines
