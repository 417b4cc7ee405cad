#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <Eigen/Core>

namespace tplimit::engines {

/// Cholesky factor of a Gram matrix in column order, dropping columns whose residual is below tol
/// times their own norm, and those beyond `most`.
struct OrderedFactor {
  std::vector<Eigen::Index> kept;
  Eigen::MatrixXd
      rows;  ///< all columns x kept: column j = sum_l rows(j, l) (direction l) + dropped residual

  /// Of the kept columns alone.
  [[nodiscard]] Eigen::MatrixXd lower() const {
    Eigen::MatrixXd out = Eigen::MatrixXd::Zero(rows.cols(), rows.cols());
    for (std::size_t l = 0; l < kept.size(); ++l) {
      const auto k = static_cast<Eigen::Index>(l);
      out.row(k).head(k + 1) = rows.row(kept[l]).head(k + 1);
    }
    return out;
  }
};

inline OrderedFactor factor_in_order(const Eigen::MatrixXd& gram,
                                     const Eigen::VectorXd& squared_norms, double tol,
                                     std::int64_t most) {
  const Eigen::Index n = gram.rows();
  OrderedFactor out{{}, Eigen::MatrixXd::Zero(n, n)};
  for (Eigen::Index j = 0; j < n; ++j) {
    double residual = gram(j, j);
    for (std::size_t l = 0; l < out.kept.size(); ++l) {
      const auto k = static_cast<Eigen::Index>(l);
      const Eigen::Index p = out.kept[l];
      const double coefficient =
          (gram(j, p) - out.rows.row(j).head(k).dot(out.rows.row(p).head(k))) / out.rows(p, k);
      out.rows(j, k) = coefficient;
      residual -= coefficient * coefficient;
    }
    // 1e-13: 450 eps; what is left of gram(j, j) after cancellation beyond that is noise (equal
    // columns leave +-eps of it).
    if (std::ssize(out.kept) < most &&
        residual > std::max(tol * tol * squared_norms(j), 1e-13 * gram(j, j))) {
      out.rows(j, static_cast<Eigen::Index>(out.kept.size())) = std::sqrt(residual);
      out.kept.push_back(j);
    }
  }
  out.rows.conservativeResize(n, static_cast<Eigen::Index>(out.kept.size()));
  return out;
}

}  // namespace tplimit::engines
