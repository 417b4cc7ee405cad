#pragma once

#include <functional>
#include <vector>

#include "engines/tall.hpp"

namespace tplimit::engines {

/// An orthonormal family Q, <q_i, q_j> = (1/rows) sum over rows, that grows by what it does not
/// span yet of each vector: Gram-Schmidt in blocks, in column order (never an eigenbasis, which
/// rounding rotates).
///
/// A new direction inherits the defect Q'Q - 1, magnified by |x| / |rest|; over many steps of
/// training this compounds.  So the defect is measured, not assumed: a direction is projected until
/// |<Q, q>| is below kDefect (docs/decisions/0015).
class OrthonormalBasis {
 public:
  /// Largest |<Q, q>| of a new direction q.  2e-14: 90 eps.  In single precision storing q rounds
  /// it to 6e-8 of each entry, 1e-9 in inner products over thousands of rows.
  static constexpr double kDefect = 2e-14, kDefectSingle = 1e-8;

  OrthonormalBasis() = default;
  /// rows: of all ranks.  tol: of a vector x, what is left below tol |x| is dropped.
  OrthonormalBasis(std::int64_t rows, std::int64_t own_rows, std::int64_t capacity, double tol,
                   bool single)
      : q_(own_rows, capacity, single), rows_(rows), tol_(tol) {}

  [[nodiscard]] const Panel& directions() const { return q_; }

  struct Extension {
    Matrix coefficients;              ///< <Q, x>, with the new directions
    std::vector<Eigen::Index> fresh;  ///< the column of x that each new direction came from
    double dropped = 0;               ///< largest |rest| / |x| of what was dropped
  };
  /// Extends Q by what it lacks of x.  known: <Q, x>.  admit(k) is called before k directions are
  /// added, and may throw.
  /// Cost: two products with Q; a third where a first projection leaves more of Q than kDefect.
  Extension extend(const Executor& executor, const Block& x, Matrix known,
                   const Eigen::VectorXd& squared_norms,
                   const std::function<void(std::int64_t)>& admit);

  void save(Writer& out) const { q_.save(out); }
  void load(Reader& in) { q_ = Panel::load(in); }

 private:
  Panel q_;
  std::int64_t rows_ = 0;
  double tol_ = 0;
};

}  // namespace tplimit::engines
