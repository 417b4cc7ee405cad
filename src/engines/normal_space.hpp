#pragma once

#include <vector>

#include "engines/tall.hpp"

namespace tplimit::engines {

/// What fresh normals are like.
enum class NormalLaw {
  kMatched,  ///< limit engine: scrambled Sobol points, moments matched in the sample
  kExact,    ///< finite networks: independent normals, so that products have exactly their
             ///< conditional law
};

/// One probability space: draws standard normal columns over the particles (or coordinates).
///
/// Matched columns have mean 0, identity covariance, and no correlation with any earlier column of
/// the space nor with any vector of the space that a matrix was applied to, all exactly in the
/// sample (docs/theory.md, "Moment matching").  Exact columns are only projected off the opposite
/// basis, which leaves the conditional law of a Gaussian matrix.
class NormalSpace {
 public:
  /// `rows`: of all ranks.  `keys`: one for each equal part of the rows, so that a space of 2 M
  /// rows can join the points of two spaces of M rows.
  NormalSpace(const Executor& executor, std::int64_t rows, NormalLaw law,
              std::vector<std::uint64_t> keys);

  /// Appends one column per entry of `dimensions` to `into` and returns them; columns are keyed by
  /// their dimension.  `into` must keep its address, and all of its columns come from this space.
  /// `opposite`: an orthonormal family that the columns become orthogonal to.
  Block draw(Panel& into, const std::vector<std::uint64_t>& dimensions, const Panel* opposite);
  /// From now on matched columns become orthogonal to the columns of `q` as well; these are
  /// orthonormal and grow.
  void watch(const Panel& q);

  /// Panels are named by their places in `panels`: those that this space draws into or watches, and
  /// its own, `ones()`.
  void save(Writer& out, const std::vector<const Panel*>& panels) const;
  void load(Reader& in, const std::vector<const Panel*>& panels);
  [[nodiscard]] const Panel& ones() const { return ones_; }

  [[nodiscard]] bool matching_stopped() const { return law_ == NormalLaw::kMatched && !matching_; }

 private:
  /// A panel whose columns new normals are made orthogonal to.
  struct Member {
    const Panel* panel;
    std::int64_t known;    ///< of directions: how many the factor below has seen
    Matrix k;              ///< of normals: its rows of K
    std::int64_t kept{0};  ///< of directions: how many it has kept
    /// The first column that products are needed with.  Matrices that act on the same vectors
    /// (queries, keys and values; gates) have the same bases: only the first one's is kept.
    [[nodiscard]] std::int64_t first() const { return kept > 0 ? 0 : known; }
  };

  /// A column of Q.
  struct Direction {
    std::size_t member;
    std::int64_t column;
  };

  [[nodiscard]] std::int64_t part_rows() const {
    return rows_ / static_cast<std::int64_t>(keys_.size());
  }
  [[nodiscard]] std::int64_t family_columns() const;
  Block fill(const std::vector<std::uint64_t>& dimensions) const;
  bool project(Block& g);
  void extend(const Matrix& normals_q, const Matrix& directions_q,
              const std::vector<Direction>& fresh, const std::vector<std::int64_t>& row);
  void project_off(Block& g, const Panel& q) const;

  const Executor& executor_;
  std::int64_t rows_;
  NormalLaw law_;
  std::vector<std::uint64_t> keys_;
  bool matching_, single_ = false;
  Panel ones_;
  std::vector<Member> normals_;     ///< orthonormal columns N, all together
  std::vector<Member> directions_;  ///< bases Q, each orthonormal
  // Q = N K + R L', with R orthonormal and orthogonal to N, for those columns of Q that are not in
  // the span of the others.  Columns of N drawn after a column of Q are orthogonal to it: K is 0
  // there.  R itself is never formed.
  std::vector<Direction> kept_;
  Matrix lower_;
};

/// g := g R, chunk by chunk, R square.
void multiply_columns(const Executor& executor, Block& g, const Matrix& right);

}  // namespace tplimit::engines
