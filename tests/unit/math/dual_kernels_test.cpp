#include "tplimit/math/dual_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <boost/math/constants/constants.hpp>
#include <boost/math/quadrature/gauss.hpp>
#include <boost/multiprecision/cpp_bin_float.hpp>

#include "tplimit/support/check.hpp"

namespace tplimit {
namespace {

using Real = long double;
using Wide = boost::multiprecision::cpp_bin_float_50;

constexpr Real kPi = 3.14159265358979323846264338327950288L;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Real normal_density(Real x) { return std::exp(-x * x / 2) / std::sqrt(2 * kPi); }
Real normal_distribution(Real x) { return std::erfc(-x * std::sqrt(0.5L)) / 2; }

struct Family {
  std::string name;
  DualFunction function;
  Real (*f)(Real);
  Real (*derivative)(Real);
};

const std::vector<Family>& smooth_families() {
  static const std::vector<Family> all = {
      {"erf", ScaledErf{1.5, 0.7, 0.25},
       [](Real x) { return 1.5L * std::erf(static_cast<Real>(0.7) * x) + 0.25L; },
       [](Real x) {
         const Real B = 0.7;
         return 3 * B / std::sqrt(kPi) * std::exp(-B * B * x * x);
       }},
      {"gauss", GaussBell{2, 0.3},
       [](Real x) { return 2 * std::exp(-static_cast<Real>(0.3) * x * x); },
       [](Real x) {
         const Real B = 0.3;
         return -4 * B * x * std::exp(-B * x * x);
       }},
      {"gelu", Gelu{1.25}, [](Real x) { return 1.25L * x * normal_distribution(x); },
       [](Real x) { return 1.25L * (normal_distribution(x) + x * normal_density(x)); }},
      {"gelu derivative", GeluDerivative{0.5},
       [](Real x) { return 0.5L * (normal_distribution(x) + x * normal_density(x)); },
       [](Real x) { return 0.5L * normal_density(x) * (2 - x * x); }},
      {"sine", Sine{1.5, 1.25, 0.5}, [](Real x) { return 1.5L * std::sin(1.25L * x + 0.5L); },
       [](Real x) { return 1.5L * 1.25L * std::cos(1.25L * x + 0.5L); }},
      {"exp", ScaledExp{0.5, 0.75}, [](Real x) { return 0.5L * std::exp(0.75L * x); },
       [](Real x) { return 0.375L * std::exp(0.75L * x); }},
      {"polynomial", Polynomial{{0.5, -1, 2, 0.25, -0.125}},
       [](Real x) { return 0.5L + x * (-1 + x * (2 + x * (0.25L - 0.125L * x))); },
       [](Real x) { return -1 + x * (4 + x * (0.75L - 0.5L * x)); }},
  };
  return all;
}

/// E f(u) f(v) by the trapezoid rule in independent normals.  The spectra of these entire
/// integrands are Gaussians of width at most 4 or so, and the first alias is at 2 pi 16 = 100: the
/// rule's error is far below the rounding errors of long double.
Real trapezoid(Real (*f)(Real), Real a, Real b, Real c) {
  const Real h = 1 / 16.0L, root = std::sqrt(a), slope = root > 0 ? c / root : 0;
  const Real rest = std::sqrt(std::max(0.0L, b - slope * slope));
  Real total = 0;
  for (int k = -208; k <= 208; ++k) {
    Real inner = 0;
    for (int m = -208; m <= 208; ++m)
      inner += normal_density(h * m) * f(slope * h * k + rest * h * m);
    total += normal_density(h * k) * f(root * h * k) * inner;
  }
  return total * h * h;
}

Real trapezoid_mean(Real (*f)(Real), Real a) {
  Real total = 0;
  for (int k = -416; k <= 416; ++k)
    total += normal_density(k / 32.0L) * f(std::sqrt(a) * k / 32.0L);
  return total / 32;
}

struct Values {
  double K, K_prime;
  MomentStatus status;
};

Values both(const DualFunction& f, double a, double b, double c) {
  Values v{};
  v.status = dual_kernel(f, {&a, 1}, {&b, 1}, {&c, 1}, {&v.K, 1}, {&v.K_prime, 1});
  return v;
}

struct Covariance {
  double a, b, c;
};

const std::vector<Covariance>& covariances() {
  static const std::vector<Covariance> all = {{1, 1, 0},
                                              {1, 1, 0.5},
                                              {1, 1, -0.5},
                                              {2, 0.5, 0.75},
                                              {2, 0.5, -0.75},
                                              {1, 1, 1},
                                              {1, 1, -1},
                                              {1.5, 1.5, 1.5 * (1 - 1e-12)},
                                              {0.25, 1, -0.499999999999},
                                              {1e-8, 1e-8, 5e-9},
                                              {1e-8, 2, 1e-4},
                                              {1e-8, 1, -1e-4},
                                              {0, 1, 0},
                                              {0, 0, 0}};
  return all;
}

/// The promise of the header.
double tolerance(double of_a, double of_b) { return 1e-14 * std::sqrt(of_a * of_b); }

TEST(DualKernel, SmoothFamiliesAgreeWithTheTrapezoidRule) {
  for (const Family& family : smooth_families())
    for (const auto& [a, b, c] : covariances()) {
      SCOPED_TRACE(family.name + ": a " + std::to_string(a) + ", b " + std::to_string(b) + ", c " +
                   std::to_string(c));
      const Values v = both(family.function, a, b, c), aa = both(family.function, a, a, a),
                   bb = both(family.function, b, b, b);
      EXPECT_TRUE(v.status.ok());
      EXPECT_NEAR(v.K, static_cast<double>(trapezoid(family.f, a, b, c)), tolerance(aa.K, bb.K));
      EXPECT_NEAR(v.K_prime, static_cast<double>(trapezoid(family.derivative, a, b, c)),
                  tolerance(aa.K_prime, bb.K_prime));
    }
}

TEST(GaussianMean, AgreesWithTheTrapezoidRule) {
  for (const Family& family : smooth_families())
    for (const double a : {0.0, 1e-8, 0.5, 1.0, 2.0}) {
      SCOPED_TRACE(family.name + ": " + std::to_string(a));
      double mean = 0, slope = 0;
      EXPECT_TRUE(gaussian_mean(family.function, {&a, 1}, {&mean, 1}).ok());
      EXPECT_TRUE(gaussian_mean_derivative(family.function, {&a, 1}, {&slope, 1}).ok());
      const Values v = both(family.function, a, a, a);
      EXPECT_NEAR(mean, static_cast<double>(trapezoid_mean(family.f, a)), 1e-14 * std::sqrt(v.K));
      EXPECT_NEAR(slope, static_cast<double>(trapezoid_mean(family.derivative, a)),
                  1e-14 * std::sqrt(v.K_prime));
    }
}

TEST(GaussianMean, OfPiecewisePowersIsAHalfMoment) {
  const double a = 2.25;
  const auto mean = [&](const DualFunction& f) {
    double m = 0;
    EXPECT_TRUE(gaussian_mean(f, {&a, 1}, {&m, 1}).ok());
    return m;
  };
  const double half =
      1.5 / std::sqrt(2 * static_cast<double>(kPi));  // E max(u, 0), standard deviation 1.5
  EXPECT_NEAR(mean(TwoSlope{0, 1}), half, 1e-15);
  EXPECT_NEAR(mean(TwoSlope{-1, 1}), 2 * half, 1e-15);
  EXPECT_EQ(mean(TwoSlope{3, 3}), 0);
  EXPECT_EQ(mean(TwoStep{-1, 2}), 0.5);
  EXPECT_EQ(mean(ReluPower{0}), 0.5);
  EXPECT_NEAR(mean(ReluPower{1}), half, 1e-15);
  EXPECT_NEAR(mean(ReluPower{2}), 1.125, 1e-15);
  EXPECT_NEAR(mean(ReluPower{3}), 2 * 2.25 * half, 1e-14);
}

/// E max(u, 0)^n max(v, 0)^n for n = 0 .. 3 by the formulas with theta, in 50 digits: no
/// cancellation reaches the first 20.
Wide relu_power(int n, double a, double b, double c) {
  const Wide A = a, B = b, C = c, D = A * B - C * C;
  const Wide pi = boost::math::constants::pi<Wide>(), theta = atan2(sqrt(D < 0 ? Wide(0) : D), C),
             s = sin(theta), x = cos(theta);
  Wide J;
  switch (n) {
    case 0: J = pi - theta; break;
    case 1: J = s + (pi - theta) * x; break;
    case 2: J = 3 * s * x + (pi - theta) * (1 + 2 * x * x); break;
    default: J = 15 * s - 11 * s * s * s + (pi - theta) * (9 * x + 6 * x * x * x);
  }
  return pow(sqrt(A * B), n) * J / (2 * pi);
}

const std::vector<Covariance>& correlations_of_all_sizes() {
  static const std::vector<Covariance> all = [] {
    std::vector<Covariance> list;
    for (const double rho : {0.0, 0.3, 0.9, 1 - 1e-6, 1 - 1e-12, 0.8775, 0.8776, 0.5})
      for (const double sign : {-1.0, 1.0})
        for (const auto& [p, q] : {std::pair{1.0, 1.0},
                                   {0.3, 7.0},
                                   {1e-8, 1e8},
                                   {1e8, 1e8},
                                   {1e-8, 3e-8},
                                   {1e-200, 1e-200}})
          list.push_back({p, q, sign * rho * std::sqrt(p) * std::sqrt(q)});
    return list;
  }();
  return all;
}

TEST(DualKernel, PowersOfReluKeepTheirRelativeAccuracyAtAnyCorrelation) {
  // 1e-12 of the value, as promised; both sides see the same a, b, c.
  for (const auto& [a, b, c] : correlations_of_all_sizes())
    for (int n = 0; n <= 3; ++n) {
      SCOPED_TRACE("n " + std::to_string(n) + ", a " + std::to_string(a) + ", b " +
                   std::to_string(b) + ", c " + std::to_string(c));
      const Values v = both(ReluPower{n}, a, b, c);
      const auto exact = static_cast<double>(relu_power(n, a, b, c));
      if (exact < std::numeric_limits<double>::min())
        continue;  // a subnormal number has no relative accuracy
      EXPECT_TRUE(v.status.ok());
      EXPECT_NEAR(v.K / exact, 1, 1e-12);
      if (n > 0) {
        const auto exact_prime = static_cast<double>(n * n * relu_power(n - 1, a, b, c));
        if (exact_prime > std::numeric_limits<double>::min()) {
          EXPECT_NEAR(v.K_prime / exact_prime, 1, 1e-12);
        }
      }
    }
}

TEST(DualKernel, ReluNearCorrelationMinusOneDoesNotCancel) {
  // At rho = -(1 - e), K = (2 e)^(3/2)/(6 pi) (1 + O(e)); the usual formula gives 240 times that.
  const Values v = both(TwoSlope{0, 1}, 1, 1, -(1 - 0x1p-40));
  const double expected = std::pow(0x1p-39, 1.5) / (6 * static_cast<double>(kPi));
  EXPECT_NEAR(v.K / expected, 1, 1e-11);  // O(e) is 9e-13 / 10
}

TEST(DualKernel, HighPowersOfReluAgreeWithWholeMoments) {
  // E relu(u)^n relu(v)^n + E relu(u)^n relu(-v)^n for even n is E u^n v^n/2, exactly known from
  // the polynomial family.
  for (const int n : {4, 6, 10})
    for (const double c : {0.0, 0.3, 0.77, 0.999}) {
      std::vector<double> power(static_cast<std::size_t>(n) + 1, 0.0);
      power.back() = 1;
      const double whole = both(Polynomial{power}, 1, 1.5, c).K;
      const double sum = both(ReluPower{n}, 1, 1.5, c).K + both(ReluPower{n}, 1, 1.5, -c).K;
      EXPECT_NEAR(2 * sum / whole, 1, 2e-14) << n << " " << c;  // n roundings each
    }
}

TEST(DualKernel, TwoSlopesAndStepsAgreeWithTheirReluParts) {
  // below min(x, 0) + above max(x, 0) = above relu(x) - below relu(-x), term by term.
  for (const auto& [a, b, c] : correlations_of_all_sizes())
    for (const auto& [below, above] : {std::pair{-1.0, 1.0}, {0.1, 1.0}, {1.0, 1.0}, {2.0, 0.0}}) {
      const Wide R = relu_power(1, a, b, c), mixed = relu_power(1, a, b, -c),
                 S = relu_power(0, a, b, c), T = relu_power(0, a, b, -c);
      const auto K =
          static_cast<double>((above * above + below * below) * R - 2 * above * below * mixed);
      const auto K_prime =
          static_cast<double>((above * above + below * below) * S + 2 * above * below * T);
      const Values v = both(TwoSlope{below, above}, a, b, c),
                   step = both(TwoStep{below, above}, a, b, c);
      const double size = above * above + below * below;
      EXPECT_NEAR(v.K, K, 1e-14 * size / 2 * std::sqrt(a) * std::sqrt(b));
      EXPECT_NEAR(v.K_prime, K_prime, 1e-14 * size / 2);
      EXPECT_EQ(step.K, v.K_prime);
      EXPECT_EQ(step.K_prime, 0);
    }
}

TEST(DualKernel, ExactAtPerfectCorrelation) {
  EXPECT_EQ(both(TwoSlope{0, 1}, 3, 3, 3).K, 1.5);
  EXPECT_EQ(both(TwoSlope{0, 1}, 3, 3, 3).K_prime, 0.5);
  EXPECT_EQ(both(TwoSlope{0, 1}, 3, 3, -3).K, 0);
  EXPECT_EQ(both(TwoSlope{0, 1}, 3, 3, -3).K_prime, 0);
  EXPECT_EQ(both(TwoSlope{-1, 1}, 3, 3, -3).K, 3);
  EXPECT_EQ(both(TwoSlope{-1, 1}, 3, 3, -3).K_prime, -1);
  EXPECT_EQ(both(TwoStep{-1, 1}, 2, 2, 2).K, 1);
  EXPECT_NEAR(both(ReluPower{3}, 1, 1, 1).K, 7.5, 1e-14);  // 15/2
  EXPECT_EQ(both(ReluPower{3}, 1, 1, -1).K, 0);
  EXPECT_EQ(both(ReluPower{2}, 1, 1, -1).K_prime, 0);
}

TEST(DualKernel, ZeroVarianceUsesTheValueAtZero) {
  EXPECT_EQ(both(TwoStep{0, 1, 0.25}, 0, 1, 0).K, 0.125);
  EXPECT_EQ(both(TwoStep{0, 1, 0.25}, 2, 0, 0).K, 0.125);
  EXPECT_EQ(both(TwoStep{0, 1, 0.25}, 0, 0, 0).K, 0.0625);
  EXPECT_EQ(both(TwoSlope{0.5, 1, 0.5}, 0, 1, 0).K, 0);
  EXPECT_EQ(both(TwoSlope{0.5, 1, 0.5}, 0, 1, 0).K_prime, 0.375);
  EXPECT_EQ(both(ReluPower{3}, 0, 1, 0).K, 0);
  EXPECT_EQ(both(ReluPower{0}, 0, 0, 0).K, 0);
  const double zero = 0;
  double mean = 1;
  EXPECT_TRUE(gaussian_mean(TwoStep{0, 1, 0.25}, {&zero, 1}, {&mean, 1}).ok());
  EXPECT_EQ(mean, 0.25);
}

TEST(DualKernel, SecondIsTheDerivativeOfTheFirst) {
  // Price: K' = dK/dc.  Fourth-order central difference with h = 2^-10: h^4/30 |K^(5)| < 1e-12 *
  // 100 and 1e-16/h for rounding.
  std::vector<Family> families = smooth_families();
  families.push_back({"leaky", TwoSlope{0.2, 1}, nullptr, nullptr});
  families.push_back({"relu cubed", ReluPower{3}, nullptr, nullptr});
  const double h = 0x1p-10;
  for (const Family& family : families)
    for (const double c : {-0.5, 0.0, 0.25, 0.5}) {
      const auto K = [&](double shift) { return both(family.function, 0.8, 1.2, c + shift).K; };
      const double difference = (8 * (K(h) - K(-h)) - (K(2 * h) - K(-2 * h))) / (12 * h);
      EXPECT_NEAR(difference, both(family.function, 0.8, 1.2, c).K_prime, 1e-10)
          << family.name << " " << c;
    }
}

TEST(DualKernel, PolynomialsHaveRationalMoments) {
  EXPECT_EQ(both(Polynomial{{0, 0, 1}}, 2, 3, 1).K, 2 * 3 + 2.0);             // ab + 2c^2
  EXPECT_EQ(both(Polynomial{{0, 0, 0, 1}}, 2, 3, 1).K, 9 * 2 * 3 * 1 + 6.0);  // 9abc + 6c^3
  EXPECT_EQ(both(Polynomial{{0, 0, 0, 1}}, 2, 3, 1).K_prime, 9 * (6 + 2.0));
  EXPECT_EQ(both(Polynomial{{7}}, 2, 3, 1).K, 49);
  EXPECT_EQ(both(Polynomial{{}}, 2, 3, 1).K, 0);
  // Hermite polynomials of degree 30 at variance 1: 30! rho^30.  Their coefficients cancel to 1e-4
  // of their size.
  std::vector<Real> before = {1}, now = {0, 1};
  for (int n = 1; n < 30; ++n) {
    std::vector<Real> next(static_cast<std::size_t>(n) + 2, 0.0L);
    for (std::size_t j = 0; j < now.size(); ++j) next[j + 1] += now[j];
    for (std::size_t j = 0; j < before.size(); ++j) next[j] -= static_cast<Real>(n) * before[j];
    before = std::exchange(now, next);
  }
  const std::vector<double> hermite(now.begin(), now.end());
  const double norm = std::tgamma(31.0);
  // Coefficients are rounded to doubles: 30 of them, each an error of eps/2 times up to 1e4 norm.
  for (const double rho : {1.0, -0.9, 0.5, 0.0})
    EXPECT_NEAR(both(Polynomial{hermite}, 1, 1, rho).K / norm, std::pow(rho, 30), 3e-13) << rho;
}

TEST(DualKernel, LargeVariancesKeepTheLimits) {
  // gelu -> relu, erf -> sign: closed forms of theirs agree up to relative 1/variance.
  for (const double rho : {-0.9, 0.0, 0.5, 1.0}) {
    const double a = 1e8;
    EXPECT_NEAR(both(Gelu{}, a, a, rho * a).K / a, both(TwoSlope{}, 1, 1, rho).K, 2e-8);
    EXPECT_NEAR(both(ScaledErf{}, a, a, rho * a).K, both(TwoStep{-1, 1}, 1, 1, rho).K,
                rho == 1 ? 2e-4 : 2e-8);
  }
}

TEST(DualKernel, ExponentialKeepsItsAccuracyUpToOverflow) {
  const Values v = both(ScaledExp{1, 3}, 38.5, 39.25, 38.0625);
  const auto exact =
      static_cast<double>(exp(Wide(9) * (Wide(38.5) + Wide(39.25) + 2 * Wide(38.0625)) / 2));
  EXPECT_NEAR(v.K / exact, 1, 1e-15);  // the exponent is 692: its rounding alone would be 5e-14
  EXPECT_TRUE(v.status.ok());
  const Values over = both(ScaledExp{1, 3}, 50, 50, 50);
  EXPECT_TRUE(over.status.overflow);
  EXPECT_EQ(over.K, kInfinity);
  EXPECT_EQ(over.status.bad_index, kNoIndex);
}

TEST(DualKernel, DivergentBellIsReported) {
  EXPECT_TRUE(both(GaussBell{1, -0.2}, 1, 1, 0.5).status.ok());
  EXPECT_TRUE(both(GaussBell{1, -0.6}, 1, 1, 0.5).status.overflow);
  EXPECT_TRUE(both(GaussBell{1, -0.4}, 1, 1, 0.5)
                  .status.overflow);  // each moment exists, E f(u) f(v) does not
}

TEST(DualKernel, RoundingExcessIsClampedAndReported) {
  const Values v = both(TwoSlope{0, 1}, 1, 1, 1 + 1e-11);
  EXPECT_EQ(v.K, 0.5);
  EXPECT_NEAR(v.status.largest_excess, 2e-11, 1e-15);
  EXPECT_TRUE(v.status.ok());
  EXPECT_EQ(both(TwoSlope{0, 1}, 1, 1, -1 - 1e-11).K, 0);
  EXPECT_EQ(both(Sine{1, 1, 0}, 1, 1, 1 + 1e-11).K, both(Sine{1, 1, 0}, 1, 1, 1).K);
  EXPECT_EQ(both(TwoSlope{0, 1}, 1, 1, 1).status.largest_excess, 0);
}

TEST(DualKernel, NoCovarianceIsReportedWithItsIndex) {
  for (const Covariance bad : {Covariance{1, 1, 1 + 1e-9},
                               {-1, 1, 0},
                               {1, -1e-300, 0},
                               {kNan, 1, 0},
                               {1, 1, kNan},
                               {kInfinity, 1, 0},
                               {0, 1, 0.1},
                               {1, 1, kInfinity}}) {
    std::vector<double> a(700, 2.0), b(700, 2.0), c(700, 1.0), K(700), K_prime(700);
    for (const std::size_t i : {555u, 613u}) a[i] = bad.a, b[i] = bad.b, c[i] = bad.c;
    const MomentStatus status = dual_kernel(TwoSlope{}, a, b, c, K, K_prime);
    EXPECT_EQ(status.bad_index, 555u);
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(status.overflow);
    EXPECT_TRUE(std::isnan(K[555]) && std::isnan(K_prime[613]));
    EXPECT_EQ(K[554], K[0]);
    EXPECT_NEAR(K[554], both(TwoSlope{}, 2, 2, 1).K, 0);
  }
  const std::vector<double> variances = {1, -1};
  std::vector<double> mean(2);
  EXPECT_EQ(gaussian_mean(Gelu{}, variances, mean).bad_index, 1u);
}

TEST(DualKernel, ArraysBroadcastsAndSingleEntriesAgreeToTheBit) {
  const std::size_t n = 1003;  // not a whole number of packs or blocks
  std::vector<double> a(n), b(n, 1.75), c(n), K(n), K_prime(n), K2(n), K_prime2(n);
  for (std::size_t i = 0; i < n; ++i) {
    a[i] = 0.5 + 0.001 * static_cast<double>(i);
    c[i] = std::cos(static_cast<double>(i)) * std::sqrt(a[i] * b[i]);
  }
  std::vector<Family> families = smooth_families();
  families.push_back({"leaky", TwoSlope{0.2, 1}, nullptr, nullptr});
  families.push_back({"relu cubed", ReluPower{3}, nullptr, nullptr});
  for (const Family& family : families) {
    EXPECT_TRUE(dual_kernel(family.function, a, b, c, K, K_prime).ok());
    EXPECT_TRUE(dual_kernel(family.function, a, std::span(b).first(1), c, K2, {}).ok());
    K_prime2 = c;  // in place
    EXPECT_TRUE(dual_kernel(family.function, a, b, K_prime2, {}, K_prime2).ok());
    EXPECT_EQ(K, K2) << family.name;
    EXPECT_EQ(K_prime, K_prime2) << family.name;
    for (const std::size_t i : {0u, 255u, 256u, 1002u})
      EXPECT_EQ(both(family.function, a[i], b[i], c[i]).K, K[i]) << family.name;
  }
}

TEST(DualKernel, WrongSizesAreABug) {
  std::vector<double> two(2, 1.0), three(3, 0.0), out(3);
  EXPECT_THROW(static_cast<void>(dual_kernel(TwoSlope{}, two, three, three, out)), InternalError);
  EXPECT_THROW(static_cast<void>(dual_kernel(TwoSlope{}, three, three, three, two)), InternalError);
  EXPECT_THROW(static_cast<void>(dual_kernel(ReluPower{-1}, three, three, three, out)),
               InternalError);
}

/// E x+^m y+^k of standard normals with correlation rho, in polar coordinates: the radius by its
/// Gamma function, the angle by Gauss.
Real power_moment(int m, int k, Real rho) {
  const Real theta = 2 * std::atan2(std::sqrt(1 - rho), std::sqrt(1 + rho)), low = theta - kPi / 2,
             high = kPi / 2;
  const auto angle = [&](Real t) {
    return std::pow(std::max<Real>(0, std::cos(t)), m) *
           std::pow(std::max<Real>(0, std::cos(t - theta)), k);
  };
  const Real integral =
      high > low ? boost::math::quadrature::gauss<Real, 30>::integrate(angle, low, high) : 0;
  return std::pow(2.0L, 0.5L * (m + k)) * std::tgamma(0.5L * (m + k) + 1) / (2 * kPi) * integral;
}

TEST(PiecewiseKernel, AgreesWithPolarQuadrature) {
  const double rhos[] = {-1, -1 + 1e-12, -0.999, -0.5, 0, 0.3, 0.9, 1 - 1e-12, 1};
  const double roots[] = {0x1p-13, 1, 0x1p13};  // exact products
  const auto power = [](int m, bool above) {
    PiecewisePolynomial p{std::vector<double>(static_cast<std::size_t>(m + 1), 0.0), {0.0}, 0};
    p.below.back() = 1;
    if (above) std::swap(p.below, p.above);
    return p;
  };
  for (const double rho : rhos)
    for (const double root_a : roots)
      for (const double root_b : roots)
        for (int m = 0; m < 5; ++m)
          for (int k = 0; k < 5; ++k)
            for (const int side : {0, 1}) {
              const double a = root_a * root_a, b = root_b * root_b, c = rho * root_a * root_b;
              double K = kNan;
              ASSERT_TRUE(piecewise_kernel(power(m, true), power(k, side == 0), {&a, 1}, {&b, 1},
                                           {&c, 1}, {&K, 1})
                              .ok());
              const Real unit =
                  side == 0 ? power_moment(m, k, rho)
                            : (k % 2 == 0 ? 1 : -1) * power_moment(m, k, -static_cast<Real>(rho));
              const Real scale =
                  std::pow(static_cast<Real>(root_a), m) * std::pow(static_cast<Real>(root_b), k);
              const Real size =
                  scale * std::sqrt(power_moment(2 * m, 0, 1) * power_moment(2 * k, 0, 1));
              EXPECT_NEAR(static_cast<double>(K / size), static_cast<double>(scale * unit / size),
                          1e-14)
                  << rho << ' ' << m << ' ' << k << ' ' << side;
            }
}

TEST(PiecewiseKernel, ConstantsAndBadEntries) {
  const PiecewisePolynomial step{{0}, {1}, 0.25}, relu{{0}, {0, 1}, 0};
  const double a[] = {0, 1, 1, kNan}, b[] = {4, 0, 1, 1}, c[] = {0, 0, 2, 0};
  double K[4];
  const MomentStatus status = piecewise_kernel(step, relu, a, b, c, K);
  EXPECT_NEAR(K[0], 0.25 * 2 / std::sqrt(2 * static_cast<double>(kPi)), 1e-16);
  EXPECT_EQ(K[1], 0);
  EXPECT_TRUE(std::isnan(K[2]));
  EXPECT_TRUE(std::isnan(K[3]));
  EXPECT_EQ(status.bad_index, 2U);
  EXPECT_EQ(status.bad_entry, (std::array<double, 3>{1, 1, 2}));
  double mean = kNan;
  EXPECT_TRUE(piecewise_mean({{0, -1}, {1, 0, 1}, 7}, {a + 1, 1}, {&mean, 1}).ok());  // -x, 1 + x^2
  EXPECT_NEAR(mean, 1 / std::sqrt(2 * static_cast<double>(kPi)) + 1, 1e-15);
}

}  // namespace
}  // namespace tplimit
