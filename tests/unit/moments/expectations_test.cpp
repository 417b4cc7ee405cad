#include "moments/expectations.hpp"

#include <cmath>
#include <numbers>

#include <gtest/gtest.h>

#include "tests/unit/moments/setting.hpp"

namespace tplimit::moments::test {
namespace {

using std::numbers::pi;

TEST(Expectations, PolynomialsAreExact) {
  Setting s;
  const Field x = s.normals(1), fourth = s.map({ir::Fn::kPower, 4}, {x});
  const Moment m = s.expectations.mean_of(fourth);
  EXPECT_EQ(m.value(0, 0), 3);
  EXPECT_EQ(m.error, 0);
  EXPECT_EQ(m.method, MomentMethod::kExact);
}

TEST(Expectations, IndependentFactorsSeparate) {
  Setting s;
  const Field x = s.map(ir::Fn::kRelu, s.normals(1)), y = s.map(ir::Fn::kRelu, s.normals(1));
  const Moment m = s.expectations.mean_of(s.algebra.times(x, y));  // (1 / sqrt(2 pi))^2
  EXPECT_NEAR(m.value(0, 0), 1 / (2 * pi), 1e-15);
}

TEST(Expectations, ReluHasTheArcCosineKernel) {
  Setting s;
  Matrix weights(2, 2);
  weights << 1, 0, 0.6, 0.8;
  const Field f = s.map(ir::Fn::kRelu, s.algebra.combine(weights, s.normals(2)));
  const Moment m = s.expectations.cross(f, f);
  const double angle = std::acos(0.6);
  EXPECT_EQ(m.method, MomentMethod::kClosedForm);
  EXPECT_NEAR(m.value(0, 0), 0.5, 1e-15);
  EXPECT_NEAR(m.value(0, 1), (0.8 + (pi - angle) * 0.6) / (2 * pi), 1e-15);
  EXPECT_EQ(m.value(0, 1), m.value(1, 0));
}

TEST(Expectations, OddFunctionsHaveMeanZero) {
  Setting s;
  const Moment m = s.expectations.mean_of(s.map(ir::Fn::kTanh, s.normals(1)));
  EXPECT_EQ(m.value(0, 0), 0);
  EXPECT_EQ(m.method, MomentMethod::kExact);
}

TEST(Expectations, DerivativesOfJumpsAreDensities) {
  Setting s;
  const Field x = s.normals(1), step = s.map(ir::Fn::kStep, x);
  EXPECT_NEAR(s.expectations.cross(step, x).value(0, 0), 1 / std::sqrt(2 * pi), 1e-15);
  const auto slopes =
      s.expectations.slopes(step.terms[0], 1, [](const Factor&, bool) { return true; });
  ASSERT_EQ(slopes.size(), 1u);
  EXPECT_NEAR(slopes[0].m.value(0, 0), 1 / std::sqrt(2 * pi), 1e-15);
}

TEST(Expectations, ExponentialsOfQuadraticFormsChangeTheMeasure) {
  Setting s;
  const Field x = s.normals(1), y = s.normals(1);
  const Field form = s.algebra.times(s.algebra.times(x, y), s.algebra.constant({0.5}));
  const Moment m = s.expectations.mean_of(s.map(ir::Fn::kExp, form));  // (1 - 1/4)^(-1/2)
  EXPECT_NEAR(m.value(0, 0), 1 / std::sqrt(0.75), 1e-14);
}

TEST(Expectations, AnInfiniteMeanIsSaidToBeInfinite) {
  Setting s;
  const Field x = s.normals(1), square = s.map({ir::Fn::kPower, 2}, {x});
  try {
    (void)s.expectations.mean_of(s.map(ir::Fn::kExp, square));
    FAIL() << "E exp(x^2) is infinite";
  } catch (const Unknown& unknown) {
    EXPECT_TRUE(unknown.infinite);
  }
}

TEST(RunContext, BeyondTheBudgetEverythingIsUnknown) {
  Setting s;
  s.context.budget.operations = 10;
  s.context.charge(10);
  EXPECT_THROW(s.context.charge(1), Unknown);
}

TEST(RunContext, DisturbedValuesMoveByTheirError) {
  Setting s;
  Matrix x = Matrix::Zero(4, 4);
  s.context.disturb(x, 0.5);
  EXPECT_EQ(x, Matrix::Zero(4, 4));
  EXPECT_EQ(s.context.carried(0.5), 0.5);
  s.context.disturbance = 1;
  s.context.disturb(x, 0.5);
  EXPECT_EQ(x.cwiseAbs(), Matrix::Constant(4, 4, 0.5));
  EXPECT_EQ(s.context.carried(0.5), 0);
}

}  // namespace
}  // namespace tplimit::moments::test
