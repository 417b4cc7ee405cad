#pragma once

#include <Eigen/Core>

namespace tplimit {

/// S = V diag(values) V', values ascending, V orthonormal; of `symmetric` the lower triangle is
/// read.  Cost: 9 n^3; the values alone 4 n^3 / 3.  One function for all modules, because Eigen's
/// solver takes longer to compile than most of our files.
struct SymmetricEigen {
  explicit SymmetricEigen(const Eigen::MatrixXd& symmetric);
  Eigen::VectorXd values;
  Eigen::MatrixXd vectors;
};
Eigen::VectorXd symmetric_eigenvalues(const Eigen::MatrixXd& symmetric);

/// R with R R' = covariance: deviations times the symmetric root of the correlations, so that
/// permuting the variables permutes the rows.  Variables that are uncorrelated get no common
/// direction, and equal or opposite ones get equal or opposite rows, not only up to rounding: their
/// differences are constants.
Eigen::MatrixXd covariance_root(const Eigen::MatrixXd& covariance);
}  // namespace tplimit
