#include "tplimit/math/symmetric_eigen.hpp"

#include <random>

#include <gtest/gtest.h>

namespace tplimit {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

MatrixXd random(Eigen::Index rows, Eigen::Index columns, std::mt19937& generator) {
  std::normal_distribution<double> normal;
  return MatrixXd::NullaryExpr(rows, columns, [&] { return normal(generator); });
}

TEST(SymmetricEigen, Diagonalises) {
  std::mt19937 generator(1);
  for (const Eigen::Index n : {1, 2, 3, 7, 40}) {
    const MatrixXd a = random(n, n, generator), symmetric = a + a.transpose();
    const SymmetricEigen eigen(symmetric);
    EXPECT_LT((eigen.vectors * eigen.values.asDiagonal() * eigen.vectors.transpose() - symmetric)
                  .cwiseAbs()
                  .maxCoeff(),
              1e-13 * symmetric.norm());
    EXPECT_LT((eigen.vectors.transpose() * eigen.vectors - MatrixXd::Identity(n, n)).norm(),
              1e-13 * static_cast<double>(n));
    EXPECT_LT((symmetric_eigenvalues(symmetric) - eigen.values).cwiseAbs().maxCoeff(),
              1e-13 * symmetric.norm());
  }
}

TEST(SymmetricEigen, OfNothingIsNothing) {
  EXPECT_EQ(SymmetricEigen(MatrixXd()).values.size(), 0);
  EXPECT_EQ(symmetric_eigenvalues(MatrixXd()).size(), 0);
}

TEST(CovarianceRoot, GivesTheCovariance) {
  std::mt19937 generator(2);
  for (const Eigen::Index rank : {0, 1, 3, 5}) {
    const MatrixXd factor = random(5, rank, generator), covariance = factor * factor.transpose();
    const MatrixXd root = covariance_root(covariance);
    EXPECT_LT((root * root.transpose() - covariance).cwiseAbs().maxCoeff(),
              1e-13 * (1 + covariance.norm()));
  }
}

TEST(CovarianceRoot, PermutedVariablesPermuteTheRows) {
  std::mt19937 generator(3);
  const MatrixXd factor = random(4, 4, generator), covariance = factor * factor.transpose();
  Eigen::PermutationMatrix<Eigen::Dynamic> order(4);
  order.indices() << 2, 0, 3, 1;
  const MatrixXd permuted = covariance_root(order * covariance * order.transpose());
  EXPECT_LT((permuted - order * covariance_root(covariance) * order.transpose()).norm(), 1e-12);
}

TEST(CovarianceRoot, EqualOppositeAndUncorrelatedVariablesAreExact) {
  MatrixXd covariance(4, 4);
  covariance << 0.3, 0.3, -0.3, 0,  //
      0.3, 0.3, -0.3, 0,            //
      -0.3, -0.3, 0.3, 0,           //
      0, 0, 0, 0.7;
  const MatrixXd root = covariance_root(covariance);
  EXPECT_EQ(root.row(0), root.row(1));
  EXPECT_EQ(root.row(0), -root.row(2));
  EXPECT_EQ(root(0, 3), 0);
  EXPECT_EQ(VectorXd(root.row(3).head(3)), VectorXd::Zero(3));
}
}  // namespace
}  // namespace tplimit
