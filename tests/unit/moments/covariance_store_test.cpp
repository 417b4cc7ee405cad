#include "moments/covariance_store.hpp"

#include <cmath>

#include <gtest/gtest.h>

#include "tests/unit/moments/setting.hpp"

namespace tplimit::moments::test {
namespace {

TEST(CovarianceStore, NormalsAreIndependentAndHaveVarianceOne) {
  Setting s;
  const int g = s.algebra.block_of(s.normals(2)), h = s.algebra.block_of(s.normals(2));
  EXPECT_EQ(*s.store.covariance(g, g).value, Matrix::Identity(2, 2));
  EXPECT_EQ(s.store.covariance(g, h).value, nullptr);
  EXPECT_FALSE(s.store.related(g, h));
}

TEST(CovarianceStore, CovariancesOfCombinationsAreThoseOfTheirParts) {
  Setting s;
  const Field g = s.normals(2);
  Matrix weights(2, 2);
  weights << 2, 1, 1, -2;  // orthogonal rows
  const int p = s.algebra.block_of(g), q = s.algebra.block_of(s.algebra.combine(weights, g));
  EXPECT_EQ(*s.store.covariance(q, p).value, weights);
  EXPECT_EQ(*s.store.covariance(q, q).value, 5 * Matrix::Identity(2, 2));
  EXPECT_EQ(s.store.variances(q).value, Eigen::VectorXd::Constant(2, 5.0));
}

TEST(CovarianceStore, ProductsWithAMatrixHaveTheMomentsOfWhatItActsOn) {
  Setting s;
  const Field x = s.normals(2);
  Matrix weights(2, 2);
  weights << 3, 4, 0, 1;
  const Field y = s.algebra.combine(weights, x);
  const int wy = s.algebra.block_of(s.product(0, false, y)),
            wx = s.algebra.block_of(s.product(0, false, x)),
            back = s.algebra.block_of(s.product(0, true, y)),
            other = s.algebra.block_of(s.product(1, false, y));
  EXPECT_EQ(*s.store.covariance(wy, wy).value, weights * weights.transpose());
  EXPECT_EQ(*s.store.covariance(wy, wx).value, weights);
  EXPECT_FALSE(s.store.related(wy, back));  // W and W'
  EXPECT_FALSE(s.store.related(wy, other));
}

TEST(CovarianceStore, ADifferenceOfEqualsIsConstant) {
  Setting s;
  const Field x = s.normals(2);
  Matrix weights(2, 2);
  weights << 1, -1, 0, 0;
  const int block = s.algebra.block_of(s.algebra.combine(weights, x));
  EXPECT_FALSE(s.store.is_constant({1, block, nullptr}, 0));
  EXPECT_TRUE(s.store.is_constant({1, block, nullptr}, 1));
  EXPECT_FALSE(s.store.is_constant({FunctionTable::kIdentity, block, nullptr}, 1));
}

TEST(CovarianceStore, KeepsBlocksOfLiveFieldsAndFamilies) {
  Setting s;
  const Field x = s.normals(1), y = s.normals(1), dead = s.normals(1);
  (void)s.product(0, false, y);
  s.store.collect({&x, nullptr});
  EXPECT_TRUE(s.store.contains(x.terms[0].factors[0].block));
  EXPECT_TRUE(s.store.contains(y.terms[0].factors[0].block));
  EXPECT_FALSE(s.store.contains(dead.terms[0].factors[0].block));
}

}  // namespace
}  // namespace tplimit::moments::test
