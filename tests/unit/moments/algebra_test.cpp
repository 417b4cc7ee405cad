#include "moments/algebra.hpp"

#include <gtest/gtest.h>

#include "tests/unit/moments/setting.hpp"

namespace tplimit::moments::test {
namespace {

TEST(FieldAlgebra, WhatCancelsIsZero) {
  Setting s;
  const Field x = s.map(ir::Fn::kTanh, s.normals(2));
  EXPECT_TRUE(s.algebra.add(x, x, -1).terms.empty());
}

TEST(FieldAlgebra, LinearFieldsAreOneBlock) {
  Setting s;
  const Field sum =
      s.algebra.add(s.algebra.add(s.normals(2), s.normals(2), 1), s.algebra.constant({3, 3}), 1);
  ASSERT_EQ(sum.terms.size(), 1u);
  EXPECT_TRUE(s.algebra.linear(sum));
  EXPECT_EQ(s.store.block(s.algebra.block_of(sum)).mean, Eigen::VectorXd::Constant(2, 3.0));
}

TEST(FieldAlgebra, FunctionsOfOneGaussianCompose) {
  Setting s;
  const Field x = s.normals(2), t = s.map(ir::Fn::kTanh, x);
  const Field product = s.map({ir::Fn::kMul, 0}, {t, x});
  ASSERT_EQ(product.terms.size(), 1u);
  EXPECT_EQ(product.terms[0].factors.size(), 1u);
}

TEST(FieldAlgebra, RemapCopiesColumnsAndLeavesZeros) {
  Setting s;
  const Field x = s.normals(2), y = FieldAlgebra::remap(x, {1, -1, 1});
  ASSERT_EQ(y.columns, 3);
  EXPECT_EQ(y.terms[0].factors[0].column(0), 1);
  EXPECT_EQ(y.terms[0].coefficient, (std::vector<double>{1, 0, 1}));
  EXPECT_EQ(s.algebra.distinct_columns(y), (std::vector<int>{0, 1, 0}));
}

TEST(FieldAlgebra, CombineIsAMatrixProduct) {
  Setting s;
  Matrix weights(1, 2);
  weights << 2, -1;
  const Field x = s.normals(2), sum = s.algebra.combine(weights, x);
  EXPECT_EQ(s.expectations.cross(sum, x).value, weights);
}

TEST(FieldAlgebra, UpdatesOfAMatrixAreJoined) {
  Setting s;
  MatrixVersion w;
  constexpr int kUpdates = 20;
  const Field d = s.normals(1), x = s.normals(1);
  for (int k = 0; k < kUpdates; ++k) s.algebra.append(w, 0.5, d, s.map(ir::Fn::kRelu, x));
  EXPECT_LT(w.updates.size(), 10u);
  EXPECT_GT(s.algebra.rows_merged(), 0);
  double sum = 0;  // sum_k c_k E D_k d, each with the same x
  for (const auto& u : w.updates) sum += u.c * s.expectations.cross(*u.d, d).value.sum();
  EXPECT_NEAR(sum, 0.5 * kUpdates, 1e-14);
}

}  // namespace
}  // namespace tplimit::moments::test
