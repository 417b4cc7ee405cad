#include "tplimit/report/extrapolation.hpp"

#include <cmath>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace tplimit {
namespace {

std::vector<double> inverse(const std::vector<double>& x) {
  std::vector<double> out;
  for (const double c : x) out.push_back(1 / c);
  return out;
}

double uniform(double low, double high) {
  return low + (high - low) * *rc::gen::inRange(0, 1 << 20) / (1 << 20);
}

RC_GTEST_PROP(Extrapolation, OfAPolynomialIsItsConstant, ()) {
  const auto count = *rc::gen::inRange<std::size_t>(2, 6);
  const int order = *rc::gen::inRange(1, 4);
  std::vector<double> steps{uniform(0.05, 0.5)}, values;
  while (steps.size() < count) steps.push_back(steps.back() * uniform(0.3, 0.7));
  const double limit = uniform(-2, 2);
  std::vector<double> coefficients;
  for (std::size_t k = 0; k + 1 < count; ++k) coefficients.push_back(uniform(-1, 1));
  for (const double h : steps) {
    values.push_back(limit);
    for (std::size_t k = 0; k + 1 < count; ++k)
      values.back() += coefficients[k] * std::pow(h, order + static_cast<int>(k));
  }
  RC_ASSERT(std::abs(extrapolate(steps, values, {}, order).value - limit) < 1e-10);
}

TEST(Extrapolation, ErrorsArePropagatedThroughTheWeights) {
  // 2 v(1/2) - v(1): weights -1 and 2.
  const Extrapolation x = extrapolate({1, 0.5}, {3, 2}, {0.3, 0.2}, 1);
  EXPECT_DOUBLE_EQ(x.value, 1);
  EXPECT_DOUBLE_EQ(*x.sampling_error, std::hypot(0.3, 0.4));
  EXPECT_DOUBLE_EQ(x.extrapolation_error, 1);  // against the last value
  EXPECT_FALSE(extrapolate({1, 0.5}, {3, 2}, {}, 1).sampling_error);
}

TEST(Extrapolation, StatedErrorBoundsTheTruth) {
  // (1 + 1/L)^L tends to e with all powers of 1/L.
  std::vector<double> values;
  const std::vector<double> sizes{4, 8, 16, 32};
  for (const double L : sizes) values.push_back(std::pow(1 + 1 / L, L));
  const Extrapolation x = extrapolate(inverse(sizes), values, {}, 1);
  EXPECT_LT(std::abs(x.value - std::exp(1)), x.extrapolation_error);
  EXPECT_GT(x.extrapolation_error, 0);
  EXPECT_TRUE(x.order_agrees);
}

TEST(Extrapolation, AnotherOrderIsSeen) {
  std::vector<double> steps{0.4, 0.2, 0.1, 0.05}, values, noisy;
  for (const double h : steps) values.push_back(1 + 3 * h * h);
  const Extrapolation wrong = extrapolate(steps, values, {}, 1);
  ASSERT_TRUE(wrong.order);
  EXPECT_NEAR(wrong.order->value, 2, 1e-9);
  EXPECT_FALSE(wrong.order_agrees);
  EXPECT_TRUE(extrapolate(steps, values, {}, 2).order_agrees);
  // Noise as large as the differences: nothing can be said.
  EXPECT_TRUE(extrapolate(steps, values, {0.1, 0.1, 0.1, 0.1}, 1).order_agrees);
}

TEST(Extrapolation, DifferencesThatGrowDoNotSettle) {
  const Extrapolation x = extrapolate({0.4, 0.2, 0.1}, {1, 2, 4}, {}, 1);
  EXPECT_FALSE(x.settles);
  EXPECT_FALSE(x.order_agrees);
  EXPECT_FALSE(x.order);
}

TEST(PowerFit, FindsThePowerAndScalesItsError) {
  const std::vector<double> x{8, 16, 32, 64};
  std::vector<double> values, errors;
  for (const double c : x) {
    values.push_back(2 * std::pow(c, -1.5));
    errors.push_back(0.01 * values.back());
  }
  const auto exact = fit_power(x, values, errors);
  ASSERT_TRUE(exact);
  EXPECT_NEAR(exact->slope.value, -1.5, 1e-12);
  EXPECT_LT(*exact->chi2_per_dof, 1e-12);
  values[1] *= 1.1;  // ten errors off
  const auto off = fit_power(x, values, errors);
  EXPECT_GT(*off->chi2_per_dof, 10);
  EXPECT_NEAR(off->slope.error, exact->slope.error * std::sqrt(*off->chi2_per_dof),
              0.15 * off->slope.error);
  values[0] = -1;
  EXPECT_FALSE(fit_power(x, values, errors));
}

TEST(Extrapolation, ValuesMustBePositiveAndInOrder) {
  EXPECT_EQ(extrapolation_fault("L", {"8", "16"}), "");
  EXPECT_EQ(extrapolation_fault("dt", {"1/8", "0.1", "5e-2"}), "");
  EXPECT_NE(extrapolation_fault("L", {"8"}), "");
  EXPECT_NE(extrapolation_fault("L", {"8", "16", "12"}), "");
  EXPECT_NE(extrapolation_fault("L", {"8", "8"}), "");
  EXPECT_NE(extrapolation_fault("L", {"0", "8"}), "");
  EXPECT_NE(extrapolation_fault("L", {"mup", "ntk"}), "");
}

ReportResult report_of(const std::vector<std::int64_t>& steps, double scale) {
  ReportResult r;
  r.name = "loss";
  r.index_names = {"t"};
  r.index_values = {steps};
  r.shape = {static_cast<std::int64_t>(steps.size())};
  for (const std::int64_t t : steps) r.value.push_back(scale * static_cast<double>(t + 1));
  r.error.assign(r.value.size(), 0.0);
  return r;
}

TEST(Extrapolation, IterationsThatAllHaveAndTheLastGoTogether) {
  std::vector<LimitResult> limits(2);
  limits[0].reports = {report_of({0, 1}, 1)};
  limits[1].reports = {report_of({1, 2, 3}, 1)};
  const ExtrapolationResult out = extrapolate("L", {"2", "4"}, limits, 1);
  ASSERT_EQ(out.reports.size(), 1U);
  ASSERT_EQ(out.reports[0].entries.size(), 2U);
  EXPECT_EQ(out.reports[0].entries[0].label, "t = 1");
  EXPECT_EQ(out.reports[0].entries[0].values, (std::vector<double>{2, 2}));
  EXPECT_EQ(out.reports[0].entries[1].label, "last");
  EXPECT_EQ(out.reports[0].entries[1].values, (std::vector<double>{2, 4}));
  EXPECT_EQ(out.left_out.size(), 1U);
}

TEST(Extrapolation, OtherShapesAreLeftOut) {
  std::vector<LimitResult> limits(2);
  limits[0].reports = limits[1].reports = {report_of({0, 1}, 1)};
  limits[1].reports[0].index_names = {"s"};
  const ExtrapolationResult out = extrapolate("L", {"2", "4"}, limits, 1);
  EXPECT_TRUE(out.reports.empty());
  ASSERT_EQ(out.left_out.size(), 1U);
}

// ---- powers

const std::vector<double> kDepths{8, 16, 32, 64};

std::vector<double> of_depth(double (*f)(double)) {
  std::vector<double> out;
  for (const double L : kDepths) out.push_back(f(L));
  return out;
}

RC_GTEST_PROP(LimitingPower, IsFoundThroughCorrectionsOfAnyOrder, ()) {
  const double power = uniform(-2, 2), order = uniform(0.5, 2), size = uniform(-0.5, 0.5);
  std::vector<double> values;
  for (const double L : kDepths)
    values.push_back(std::pow(L, power) * (1 + size * std::pow(L, -order)));
  const auto found = limiting_power(kDepths, values, {});
  RC_ASSERT(found && !found->faster);
  RC_ASSERT(std::abs(found->value - power) < 2 * found->error() + 0.02);
}

TEST(LimitingPower, OfExponentialsThereIsNone) {
  for (const double sign : {1.0, -1.0}) {
    std::vector<double> values;
    for (const double L : kDepths) values.push_back(std::exp(sign * std::sqrt(L)));
    const auto found = limiting_power(kDepths, values, {});
    ASSERT_TRUE(found);
    EXPECT_TRUE(found->faster);
    EXPECT_GT(sign * found->last, 0);
  }
  EXPECT_FALSE(limiting_power(kDepths, of_depth([](double L) { return 1 + 1 / L; }), {})->faster);
}

TEST(LimitingPower, ErrorsOfNeighbouringSlopesGoTogether) {
  // Of three values the power is 2 log2(v3 / v2) - log2(v2 / v1): weights 1, -3 and 2.
  const auto found = limiting_power({1, 2, 4}, {1, 1, 1}, {0.01, 0.02, 0.03});
  ASSERT_TRUE(found);
  EXPECT_NEAR(found->value, 0, 1e-12);
  EXPECT_NEAR(found->sampling_error, std::hypot(0.01, 0.06, 0.06) / std::log(2), 1e-9);
}

TEST(LimitingPower, NeedsThreePositiveValues) {
  EXPECT_FALSE(limiting_power({1, 2}, {1, 2}, {}));
  EXPECT_FALSE(limiting_power({1, 2, 4}, {1, 0, 2}, {}));
}

}  // namespace
}  // namespace tplimit
