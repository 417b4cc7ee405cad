#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <Eigen/Core>

namespace tplimit::engines {

/// Cholesky factor of a Gram matrix in column order, dropping columns whose residual is below tol
/// times their own norm, and those beyond `most`.
///
/// The residual of a column is that of a combination of kept columns, column j - sum_k c_k column
/// k, of which rounding hides what is below kNoise times the largest |c_k column k|^2.  The c_k
/// grow beyond bounds where columns nearly depend on each other, such as features of neighbouring
/// points, in order.
struct OrderedFactor {
  static constexpr double kNoise = 1e-13;  ///< 450 eps (equal columns leave +-eps)

  std::vector<Eigen::Index> kept;
  Eigen::MatrixXd
      rows;  ///< all columns x kept: column j = sum_l rows(j, l) (direction l) + dropped residual
  Eigen::MatrixXd lower;   ///< the same of the kept columns alone
  double magnified = 0;    ///< largest |c_k column k| / residual of a kept column, as lengths
  bool undecided = false;  ///< for some column, more than tol times its norm is hidden
};

inline OrderedFactor factor_in_order(const Eigen::MatrixXd& gram,
                                     const Eigen::VectorXd& squared_norms, double tol,
                                     std::int64_t most) {
  const Eigen::Index n = gram.rows();
  OrderedFactor out{{}, Eigen::MatrixXd::Zero(n, n), Eigen::MatrixXd::Zero(n, n)};
  Eigen::VectorXd kept_squares(n);
  for (Eigen::Index j = 0; j < n; ++j) {
    double residual = gram(j, j);
    const auto known = static_cast<Eigen::Index>(out.kept.size());
    for (Eigen::Index k = 0; k < known; ++k) {
      const Eigen::Index p = out.kept[static_cast<std::size_t>(k)];
      const double coefficient =
          (gram(j, p) - out.rows.row(j).head(k).dot(out.rows.row(p).head(k))) / out.rows(p, k);
      out.rows(j, k) = coefficient;
      residual -= coefficient * coefficient;
    }
    const Eigen::VectorXd c = out.lower.topLeftCorner(known, known)
                                  .transpose()
                                  .triangularView<Eigen::Upper>()
                                  .solve(out.rows.row(j).head(known).transpose());
    double largest = gram(j, j);
    if (known > 0)
      largest =
          std::max(largest, (c.array().square() * kept_squares.head(known).array()).maxCoeff());
    const double hidden = OrderedFactor::kNoise * largest, dropped = tol * tol * squared_norms(j);
    if (known < most && residual > std::max(dropped, hidden)) {
      out.rows(j, known) = std::sqrt(residual);
      out.lower.row(known).head(known + 1) = out.rows.row(j).head(known + 1);
      kept_squares(known) = gram(j, j);
      out.magnified = std::max(out.magnified, std::sqrt(largest / residual));
      out.kept.push_back(j);
    } else {
      out.undecided = out.undecided || hidden > dropped;
    }
  }
  const auto kept = static_cast<Eigen::Index>(out.kept.size());
  out.rows.conservativeResize(n, kept);
  out.lower.conservativeResize(kept, kept);
  return out;
}

}  // namespace tplimit::engines
