#include "tplimit/math/symmetric_eigen.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include <Eigen/Eigenvalues>

namespace tplimit {

SymmetricEigen::SymmetricEigen(const Eigen::MatrixXd& symmetric) {
  if (symmetric.size() == 0) return;
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(symmetric);
  values = solver.eigenvalues();
  vectors = solver.eigenvectors();
}

Eigen::VectorXd symmetric_eigenvalues(const Eigen::MatrixXd& symmetric) {
  if (symmetric.size() == 0) return {};
  return Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(symmetric, Eigen::EigenvaluesOnly)
      .eigenvalues();
}

Eigen::MatrixXd covariance_root(const Eigen::MatrixXd& covariance) {
  const Eigen::Index k = covariance.rows();
  Eigen::MatrixXd root = Eigen::MatrixXd::Zero(k, k);
  std::vector<bool> done(static_cast<std::size_t>(k), false);
  for (Eigen::Index first = 0; first < k; ++first) {
    if (done[static_cast<std::size_t>(first)]) continue;
    std::vector<Eigen::Index> block{first};  // grows to all that are connected by covariances
    done[static_cast<std::size_t>(first)] = true;
    for (std::size_t a = 0; a < block.size(); ++a)
      for (Eigen::Index j = 0; j < k; ++j)
        if (!done[static_cast<std::size_t>(j)] && covariance(block[a], j) != 0) {
          block.push_back(j);
          done[static_cast<std::size_t>(j)] = true;
        }
    std::sort(block.begin(), block.end());
    const Eigen::VectorXd deviations = covariance.diagonal()(block).cwiseMax(0).cwiseSqrt(),
                          inverse = (deviations.array() > 0).select(deviations.cwiseInverse(), 0.0);
    const SymmetricEigen eigen(inverse.asDiagonal() * covariance(block, block) *
                               inverse.asDiagonal());
    const double rounding =
        16 * static_cast<double>(block.size()) * std::numeric_limits<double>::epsilon();
    const Eigen::VectorXd roots =
        (eigen.values.array() > rounding).select(eigen.values.cwiseMax(0).cwiseSqrt(), 0.0);
    const Eigen::MatrixXd part = eigen.vectors * roots.asDiagonal() * eigen.vectors.transpose();
    root(block, block) =
        deviations.asDiagonal() * (part.array().abs() > rounding).select(part, 0.0);
  }
  for (Eigen::Index i = 0; i < k; ++i)
    for (Eigen::Index j = 0; j < i; ++j)
      for (const double sign : {1.0, -1.0})
        if (covariance.row(i) == sign * covariance.row(j) &&
            covariance(i, i) == sign * covariance(i, j))
          root.row(i) = sign * root.row(j);
  return root;
}
}  // namespace tplimit
