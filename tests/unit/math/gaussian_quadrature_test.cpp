#include "tplimit/math/gaussian_quadrature.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <boost/math/quadrature/gauss.hpp>

#include "tplimit/math/dual_kernels.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit {
namespace {

using Index = std::int64_t;
using Vector = std::vector<double>;
using Real = long double;
constexpr Real kPi = 3.14159265358979323846264338327950288L;
constexpr double kAccuracy =
    1e-12;  // what the module promises, relative to sqrt(E f^2 E g^2) or E|f|
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Real normal_density(Real x) { return std::exp(-x * x / 2) / std::sqrt(2 * kPi); }
Real normal_distribution(Real x) { return std::erfc(-x * std::sqrt(0.5L)) / 2; }

// ---- References: composite Gauss-Legendre rules (the library uses trapezoid rules and Hermite
// series for smooth functions) ----

struct Node {
  Real x, weight;
};

/// 20 points on each of 48 panels of [-12, 12], with the normal density.  For tanh(5 x), whose
/// poles are 0.31 from the real line, the error of each panel is below 1e-17.
const std::vector<Node>& normal_nodes() {
  static const std::vector<Node> nodes = [] {
    using Rule = boost::math::quadrature::gauss<Real, 20>;
    std::vector<Node> list;
    for (int panel = 0; panel < 48; ++panel)
      for (std::size_t k = 0; k < Rule::abscissa().size(); ++k)
        for (const int sign : {-1, 1}) {
          const Real x = -12 + 0.5L * panel + 0.25L * (1 + sign * Rule::abscissa()[k]);
          list.push_back({x, 0.25L * Rule::weights()[k] * normal_density(x)});
        }
    return list;
  }();
  return nodes;
}

template <class F, class G>
double reference(const F& f, const G& g, double a, double b, Real c) {
  const Real root = std::sqrt(static_cast<Real>(a)), slope = root > 0 ? c / root : 0;
  const Real rest = std::sqrt(std::max(0.0L, b - slope * slope));
  Real total = 0;
  for (const Node& u : normal_nodes()) {
    Real inner = 0;
    if (rest == 0)
      inner = g(slope * u.x);
    else
      for (const Node& v : normal_nodes()) inner += v.weight * g(slope * u.x + rest * v.x);
    total += u.weight * f(root * u.x) * inner;
  }
  return static_cast<double>(total);
}

// ---- Functions without closed form ----

template <class T>
T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}
template <class T>
T softplus(T x) {
  return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}
template <class T>
T gelu_tanh(T x) {
  return x / 2 *
         (1 + std::tanh(std::sqrt(T(2) / std::acos(T(-1))) * (x + T(0.044715) * x * x * x)));
}

template <class T>
std::array<T, 6> all_functions(T x) {
  const T t = std::tanh(x);
  const T s = sigmoid(x);
  return {t, 1 - t * t, s, x * s, softplus(x), gelu_tanh(x)};
}
constexpr int kFunctions = 6;

const UnaryFunctions kAll = [](Index n, const double* x, double* values) {
  for (Index i = 0; i < n; ++i) {
    const auto v = all_functions(x[i]);
    for (int o = 0; o < kFunctions; ++o) values[i + o * n] = v[static_cast<std::size_t>(o)];
  }
};

const UnaryFunctions kTanh = [](Index n, const double* x, double* values) {
  for (Index i = 0; i < n; ++i) values[i] = std::tanh(x[i]);
};

/// All of E f_o(u) f_o(v) at once.
std::array<double, kFunctions> references(double a, double b, Real c) {
  const Real root = std::sqrt(static_cast<Real>(a)), slope = c / root,
             rest = std::sqrt(std::max(0.0L, b - slope * slope));
  std::array<Real, kFunctions> total{};
  for (const Node& u : normal_nodes()) {
    if (u.weight < 1e-26L) continue;
    std::array<Real, kFunctions> inner{};
    if (rest == 0) inner = all_functions(slope * u.x);
    for (const Node& v : normal_nodes()) {
      if (rest == 0 || u.weight * v.weight < 1e-26L) continue;
      const auto values = all_functions(slope * u.x + rest * v.x);
      for (std::size_t o = 0; o < kFunctions; ++o) inner[o] += v.weight * values[o];
    }
    const auto values = all_functions(root * u.x);
    for (std::size_t o = 0; o < kFunctions; ++o) total[o] += u.weight * values[o] * inner[o];
  }
  std::array<double, kFunctions> out{};
  std::copy(total.begin(), total.end(), out.begin());
  return out;
}

// ---- Smooth integrands ----

TEST(SmoothExpectation, AgreesWithGaussLegendreForActivations) {
  const Integrand pair = [](Index n, const double* x, double* values) {
    for (Index i = 0; i < n; ++i) {
      const auto u = all_functions(x[i]), v = all_functions(x[i + n]);
      for (int o = 0; o < kFunctions; ++o)
        values[i + o * n] = u[static_cast<std::size_t>(o)] * v[static_cast<std::size_t>(o)];
    }
  };
  struct Case {
    double a, b, rho;
  };
  for (const Case& t : {Case{0.01, 0.04, 0.5},
                        {1, 2, -0.75},
                        {25, 25, 0.6},
                        {25, 0.01, 0.9},
                        {4, 4, 1},
                        {4, 4, -1}}) {
    const double c = t.rho * std::sqrt(t.a * t.b);
    const QuadratureResult r = smooth_expectation(Vector{t.a, c, c, t.b}, pair, kFunctions);
    ASSERT_TRUE(r.converged());
    EXPECT_EQ(r.rank, std::abs(t.rho) == 1 ? 1 : 2);
    const auto exact = references(t.a, t.b, c), aa = references(t.a, t.a, t.a),
               bb = references(t.b, t.b, t.b);
    for (std::size_t o = 0; o < kFunctions; ++o)
      EXPECT_NEAR(r.values[o], exact[o], kAccuracy * std::sqrt(aa[o] * bb[o]))
          << o << ": " << t.a << " " << t.b << " " << t.rho;
  }
}

TEST(SmoothExpectation, PolynomialAndExponentialMomentsInThreeDimensions) {
  const Vector Sigma = {2, 0.5, 0.25, 0.5, 1, -0.3, 0.25, -0.3, 1.5};
  const QuadratureResult r = smooth_expectation(
      Sigma,
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i) {
          const double p = x[i], q = x[i + n], s = x[i + 2 * n];
          v[i] = 1;
          v[i + n] = p * p * q * s;
          v[i + 2 * n] = std::exp(p + q + s);
          v[i + 3 * n] = std::cos(p - s);
        }
      },
      4);
  ASSERT_TRUE(r.converged());
  EXPECT_EQ(r.rank, 3);
  EXPECT_NEAR(r.values[0], 1, kAccuracy);
  EXPECT_NEAR(r.values[1], 2 * -0.3 + 2 * 0.5 * 0.25, 4 * kAccuracy);  // Isserlis; E|..| is below 4
  EXPECT_NEAR(r.values[2] / std::exp(0.5 * (4.5 + 2 * 0.45)), 1, kAccuracy);  // variance of the sum
  EXPECT_NEAR(r.values[3], std::exp(-0.5 * (3.5 - 2 * 0.25)), kAccuracy);
  for (std::size_t o = 0; o < 4; ++o)
    EXPECT_LE(r.errors[o], 40 * kAccuracy);  // relative to E|f| < 40
}

TEST(SmoothExpectation, FastGrowingIntegrandsWidenTheBall) {
  // exp(8 x): the integrand's peak stands at 8, beyond 18 lies 1e-23 of it.
  const QuadratureResult r = smooth_expectation(
      Vector{1},
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i) v[i] = std::exp(8 * x[i]);
      },
      1);
  ASSERT_TRUE(r.converged());
  EXPECT_NEAR(r.values[0] / std::exp(32.0), 1, 1e-12);
}

TEST(SmoothExpectation, DivergentIntegralsAreRefused) {
  const QuadratureResult r = smooth_expectation(
      Vector{1},
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i) v[i] = std::exp(0.55 * x[i] * x[i]);
      },
      1);
  EXPECT_EQ(r.status, QuadratureStatus::kNotFinite);
}

TEST(SmoothExpectation, DegenerateCovariancesAreReducedToTheirRank) {
  // Five variables of rank 2, one of them zero.
  const double L[5][2] = {{1, 0}, {0.5, 2}, {0, 0}, {1e4, -3e4}, {-1e-4, 2e-4}};
  Vector Sigma(25);
  for (std::size_t i = 0; i < 5; ++i)
    for (std::size_t j = 0; j < 5; ++j) Sigma[i + 5 * j] = L[i][0] * L[j][0] + L[i][1] * L[j][1];
  const QuadratureResult r = smooth_expectation(
      Sigma,
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i)
          v[i] = x[i] * x[i + 3 * n] + x[i + 2 * n] + x[i + n] * x[i + 4 * n];
      },
      1);
  ASSERT_TRUE(r.converged());
  EXPECT_EQ(r.rank, 2);
  EXPECT_NEAR(r.values[0], Sigma[15] + Sigma[21], 1e-12 * 3e4);
  const QuadratureResult zero = smooth_expectation(
      Vector{0},
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i) v[i] = 3 + x[i];
      },
      1);
  EXPECT_EQ(zero.rank, 0);
  EXPECT_EQ(zero.values[0], 3);
}

TEST(SmoothExpectation, RefusesWhatItCannotDo) {
  const Integrand one = [](Index n, const double*, double* v) { std::fill_n(v, n, 1.0); };
  Vector identity(16, 0.0);
  for (std::size_t i = 0; i < 4; ++i) identity[5 * i] = 1;
  EXPECT_EQ(smooth_expectation(identity, one, 1).status, QuadratureStatus::kRankTooLarge);
  EXPECT_EQ(smooth_expectation(Vector{1, 2, 2, 1}, one, 1).status,
            QuadratureStatus::kNotACovariance);
  EXPECT_EQ(smooth_expectation(Vector{1, 0.5, 0.4, 1}, one, 1).status,
            QuadratureStatus::kNotACovariance);
  EXPECT_EQ(smooth_expectation(Vector{-1}, one, 1).status, QuadratureStatus::kNotACovariance);
  EXPECT_EQ(smooth_expectation(Vector{kNan}, one, 1).status, QuadratureStatus::kNotACovariance);
  // Every pair is a covariance, all three are not.
  EXPECT_EQ(smooth_expectation(Vector{1, 0.9, -0.9, 0.9, 1, 0.9, -0.9, 0.9, 1}, one, 1).status,
            QuadratureStatus::kNotACovariance);
  EXPECT_EQ(smooth_expectation(
                Vector{1}, [](Index n, const double*, double* v) { std::fill_n(v, n, kNan); }, 1)
                .status,
            QuadratureStatus::kNotFinite);
  EXPECT_THROW(static_cast<void>(smooth_expectation(Vector{1, 0}, one, 1)), InternalError);
}

TEST(SmoothExpectation, SaysWhenTheLimitWasMet) {
  const Integrand kink = [](Index n, const double* x, double* v) {
    for (Index i = 0; i < n; ++i) v[i] = std::abs(x[i] - 0.3);
  };
  const QuadratureResult r = smooth_expectation(Vector{1}, kink, 1, {1e-12, 10000});
  EXPECT_EQ(r.status, QuadratureStatus::kNotConverged);
  EXPECT_LE(r.evaluations, 10000);
  EXPECT_GT(r.errors[0], 1e-12);
}

// ---- Kinks ----

Hyperplane axis(std::size_t dim, std::size_t i, double offset = 0) {
  Hyperplane p{Vector(dim, 0.0), offset};
  p.normal[i] = 1;
  return p;
}

TEST(KinkedExpectation, ReluPairAgreesWithTheClosedForm) {
  const Integrand pair = [](Index n, const double* x, double* v) {
    for (Index i = 0; i < n; ++i) {
      v[i] = std::max(x[i], 0.0) * std::max(x[i + n], 0.0);
      v[i + n] = x[i] > 0 && x[i + n] > 0 ? 1 : 0;
    }
  };
  const std::vector<Hyperplane> kinks = {axis(2, 0), axis(2, 1)};
  for (const double rho : {0.0, 0.5, -0.9, 0.999, -0.999, 1 - 1e-6, 1.0, -1.0}) {
    const double a = 2, b = 0.5, c = rho;
    double K = 0, K_prime = 0;
    ASSERT_TRUE(dual_kernel(TwoSlope{}, {&a, 1}, {&b, 1}, {&c, 1}, {&K, 1}, {&K_prime, 1}).ok());
    const QuadratureResult r = kinked_expectation(Vector{a, c, c, b}, pair, 2, kinks);
    ASSERT_TRUE(r.converged()) << rho << " " << r.errors[0] << " " << r.errors[1] << " "
                               << r.evaluations;
    EXPECT_NEAR(r.values[0], K, kAccuracy * 0.5) << rho;  // sqrt(K(a,a) K(b,b)) = 1/2
    EXPECT_NEAR(r.values[1], K_prime, kAccuracy * 0.5) << rho;
  }
}

TEST(KinkedExpectation, AbsoluteValueInOneDimension) {
  // E|x - t| = 2 phi(t) + t (2 Phi(t) - 1)
  const double t = 0.3;
  const QuadratureResult r = kinked_expectation(
      Vector{1},
      [&](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i) v[i] = std::abs(x[i] - t);
      },
      1, std::vector{axis(1, 0, t)});
  ASSERT_TRUE(r.converged());
  EXPECT_NEAR(r.values[0],
              static_cast<double>(2 * normal_density(t) + t * (2 * normal_distribution(t) - 1)),
              1e-15);
  EXPECT_LT(r.evaluations, 1000);
}

/// E clip(u) clip(v), |clip| <= 1, unit variances: the inner expectation in closed form; panels of
/// the outer rule end at the kinks.
double clip_pair(double rho) {
  const Real r = rho, s = std::sqrt(1 - r * r);
  const auto ramp = [&](Real m) {
    return s * normal_density(m / s) + m * normal_distribution(m / s);
  };  // E max(m + s z, 0)
  const auto inner = [&](Real x) { return ramp(r * x + 1) - ramp(r * x - 1) - 1; };
  Real total = 0;
  for (const Node& u : normal_nodes())
    total += u.weight * std::clamp(u.x, -1.0L, 1.0L) * inner(u.x);
  return static_cast<double>(total);
}

TEST(KinkedExpectation, ClipHasTwoKinksPerVariable) {
  const std::vector<Hyperplane> kinks = {axis(2, 0, -1), axis(2, 0, 1), axis(2, 1, -1),
                                         axis(2, 1, 1)};
  for (const double rho : {0.1, 0.7, -0.99}) {
    const QuadratureResult r = kinked_expectation(
        Vector{1, rho, rho, 1},
        [](Index n, const double* x, double* v) {
          for (Index i = 0; i < n; ++i)
            v[i] = std::clamp(x[i], -1.0, 1.0) * std::clamp(x[i + n], -1.0, 1.0);
        },
        1, kinks);
    ASSERT_TRUE(r.converged()) << rho;
    EXPECT_NEAR(r.values[0], clip_pair(rho), kAccuracy) << rho;
  }
}

/// E x+ y+ z+ by Gaussian integration by parts down to angles: E x g = sum_j Cov(x, x_j) E d_j g,
/// and E delta(x) h is the density of x at 0 times E[h | x = 0].
Real relu_triple(const Real S[3][3]) {
  const auto given = [&](int x, int p, int q) {
    return S[p][q] - S[p][x] * S[q][x] / S[x][x];
  };  // covariance given x = 0
  const auto peak = [&](int x) { return 1 / std::sqrt(2 * kPi * S[x][x]); };
  const auto angle = [](Real a, Real b, Real c) {
    return kPi - std::atan2(std::sqrt(a * b - c * c), c);
  };
  const auto steps = [&](int x, int p, int q) {  // E delta(x) 1[p > 0] 1[q > 0]
    return peak(x) * angle(given(x, p, p), given(x, q, q), given(x, p, q)) / (2 * kPi);
  };
  const auto relus = [&](int x, int p, int q) {  // E delta(x) p+ q+
    const Real a = given(x, p, p), b = given(x, q, q), c = given(x, p, q);
    return peak(x) * (std::sqrt(a * b - c * c) + c * angle(a, b, c)) / (2 * kPi);
  };
  const auto one_relu = [&](int z, int x, int y) {  // E 1[x > 0] 1[y > 0] z+
    return S[z][x] * steps(x, y, z) + S[z][y] * steps(y, x, z) + S[z][z] * steps(z, x, y);
  };
  return S[0][0] * relus(0, 1, 2) + S[0][1] * one_relu(2, 0, 1) + S[0][2] * one_relu(1, 0, 2);
}

TEST(KinkedExpectation, ThreeRelusAgreeWithIntegrationByParts) {
  const std::vector<Hyperplane> kinks = {axis(3, 0), axis(3, 1), axis(3, 2)};
  for (const auto& [r, s, t] : {std::array{0.0, 0.0, 0.0}, {0.5, 0.3, -0.4}, {0.9, 0.9, 0.95}}) {
    const Real S[3][3] = {{1, r, s}, {r, 1, t}, {s, t, 1}};
    const QuadratureResult result = kinked_expectation(
        Vector{1, r, s, r, 1, t, s, t, 1},
        [](Index n, const double* x, double* v) {
          for (Index i = 0; i < n; ++i) {
            v[i] = std::max(x[i], 0.0) * std::max(x[i + n], 0.0) * std::max(x[i + 2 * n], 0.0);
            v[i + n] = x[i] > 0 && x[i + n] > 0 && x[i + 2 * n] > 0 ? 1 : 0;
          }
        },
        2, kinks);
    ASSERT_TRUE(result.converged())
        << result.errors[0] << " " << result.errors[1] << " " << result.evaluations;
    EXPECT_NEAR(result.values[0], static_cast<double>(relu_triple(S)), kAccuracy);
    const double pi = static_cast<double>(kPi);
    EXPECT_NEAR(result.values[1], 0.125 + (std::asin(r) + std::asin(s) + std::asin(t)) / (4 * pi),
                kAccuracy);  // Sheppard's orthant
  }
  const Real independent[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
  EXPECT_NEAR(static_cast<double>(relu_triple(independent)),
              std::pow(2 * static_cast<double>(kPi), -1.5), 1e-16);
}

TEST(KinkedExpectation, CoincidingNearlyParallelAndIdleHyperplanes) {
  // z = x + y has rank 2; its kink passes through the meeting point of the others, some are given
  // twice or miss the support.
  const Vector Sigma = {1, 0, 1, 0, 1, 1, 1, 1, 2};
  const std::vector<Hyperplane> kinks = {axis(3, 0),        axis(3, 1),        axis(3, 2),
                                         {{-2, 0, 0}, 0},   {{1, 1, 0}, 0},    {{1, 1, -1}, 0},
                                         {{1, 1e-9, 0}, 0}, {{1, 0, 0}, 1e-9}, {{1, 0, 0}, 1e6}};
  const QuadratureResult r = kinked_expectation(
      Sigma,
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i) {
          v[i] = std::abs(x[i]) * std::abs(x[i + 2 * n]);
          v[i + n] = x[i] + 1e-9 * x[i + n] > 0 ? 1 : 0;
        }
      },
      2, kinks);
  ASSERT_TRUE(r.converged()) << r.errors[0] << " " << r.errors[1];
  EXPECT_EQ(r.rank, 2);
  const double a = 1, b = 2, c = 1;
  double K = 0;
  ASSERT_TRUE(dual_kernel(TwoSlope{-1, 1}, {&a, 1}, {&b, 1}, {&c, 1}, {&K, 1}).ok());
  EXPECT_NEAR(r.values[0], K, kAccuracy * K);
  EXPECT_NEAR(r.values[1], 0.5, kAccuracy);
}

TEST(KinkedExpectation, SaysWhenTheLimitWasMet) {
  const QuadratureResult r = kinked_expectation(
      Vector{1, 0, 0, 1},
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i)
          v[i] = x[i] * x[i] + x[i + n] * x[i + n] > 1 ? 1 : 0;  // a circle is no hyperplane
      },
      1, {}, {1e-12, 1'000'000});
  EXPECT_EQ(r.status, QuadratureStatus::kNotConverged);
  EXPECT_NEAR(r.values[0], std::exp(-0.5), r.errors[0]);
  EXPECT_GT(r.errors[0], 1e-12);
}

// ---- Arrays ----

/// Vectors with given variances in 3 dimensions, some parallel and some opposite.
struct Gram {
  Index n;
  Vector C, variances;
  explicit Gram(std::vector<double> v) : n(static_cast<Index>(v.size())), variances(std::move(v)) {
    const auto size = static_cast<std::size_t>(n);
    C.resize(size * size);
    for (std::size_t i = 0; i < size; ++i)
      for (std::size_t j = 0; j < size; ++j) {
        double rho = std::cos(0.7 * (static_cast<double>(i) - static_cast<double>(j)));
        if (i % 5 == j % 5) rho = 1;
        if (i % 5 != j % 5 && (i + j) % 7 == 0) rho = (i + j) % 2 == 0 ? -1 : 1 - 1e-12;
        C[i + j * size] = i == j ? variances[i] : rho * std::sqrt(variances[i] * variances[j]);
      }
  }
  GramInput input(bool symmetric = true) const {
    return {n, n, C.data(), n, variances, variances, symmetric};
  }
};

TEST(GramQuadrature, AgreesWithGaussLegendreAtAllCorrelations) {
  const Gram gram({0.01, 25, 1, 4, 0.25, 25, 0.01, 9, 16, 2, 0.5, 25});
  Vector values(static_cast<std::size_t>(gram.n * gram.n * kFunctions));
  const GramResult r = gram_quadrature(gram.input(), kAll, {}, kFunctions, values);
  ASSERT_TRUE(r.converged);
  EXPECT_TRUE(r.status.ok());
  EXPECT_LE(r.largest_error, 1e-13);
  EXPECT_EQ(r.single_entries, 0);
  for (const auto& [i, j] : {std::pair<Index, Index>{1, 1},
                             {1, 5},
                             {0, 0},
                             {1, 6},
                             {2, 5},
                             {7, 0},
                             {8, 6},
                             {11, 1},
                             {3, 9},
                             {1, 3},
                             {11, 10},
                             {9, 5}}) {
    const double a = gram.variances[static_cast<std::size_t>(i)],
                 b = gram.variances[static_cast<std::size_t>(j)];
    const auto exact = references(a, b, gram.C[static_cast<std::size_t>(i + j * gram.n)]);
    for (int o = 0; o < kFunctions; ++o) {
      const auto at = [&](Index p, Index q) {
        return values[static_cast<std::size_t>(p + q * gram.n + o * gram.n * gram.n)];
      };
      const double scale = std::sqrt(at(i, i) * at(j, j));
      EXPECT_NEAR(at(i, j), exact[static_cast<std::size_t>(o)], kAccuracy * scale)
          << i << " " << j << " " << o;
      EXPECT_EQ(at(i, j), at(j, i));
    }
  }
}

TEST(GramQuadrature, DifferentFunctionsOnBothSides) {
  // E tanh(u) v = c E tanh'(u) (Stein), E tanh(u) v^2 = 0, on a rectangle larger than a tile.
  const Index P = 21, Q = 18;
  Vector a(21), b(18), C(21 * 18), values(21 * 18 * 2);
  for (Index i = 0; i < P; ++i) a[static_cast<std::size_t>(i)] = 0.2 + 0.3 * static_cast<double>(i);
  for (Index j = 0; j < Q; ++j) b[static_cast<std::size_t>(j)] = 3.0 - 0.1 * static_cast<double>(j);
  for (Index i = 0; i < P; ++i)
    for (Index j = 0; j < Q; ++j)
      C[static_cast<std::size_t>(i + j * P)] =
          std::sin(static_cast<double>(i + 3 * j)) *
          std::sqrt(a[static_cast<std::size_t>(i)] * b[static_cast<std::size_t>(j)]);
  const UnaryFunctions f = [](Index n, const double* x, double* v) {
    for (Index i = 0; i < n; ++i) v[i] = v[i + n] = std::tanh(x[i]);
  };
  const UnaryFunctions g = [](Index n, const double* x, double* v) {
    for (Index i = 0; i < n; ++i) v[i] = x[i], v[i + n] = x[i] * x[i];
  };
  const GramResult r = gram_quadrature({P, Q, C.data(), P, a, b, false}, f, g, 2, values);
  ASSERT_TRUE(r.converged);
  for (Index i = 0; i < P; ++i) {
    const auto slope = [](Real x) { return 1 - std::tanh(x) * std::tanh(x); };
    const double variance = a[static_cast<std::size_t>(i)],
                 mean_slope = reference(
                     slope, [](Real) { return 1.0L; }, variance, 0, 0);
    for (Index j = 0; j < Q; ++j) {
      EXPECT_NEAR(values[static_cast<std::size_t>(i + j * P)],
                  C[static_cast<std::size_t>(i + j * P)] * mean_slope,
                  2 * kAccuracy);  // sd of v < 2
      EXPECT_NEAR(values[static_cast<std::size_t>(i + j * P + P * Q)], 0,
                  6 * kAccuracy);  // sd of v^2 < 6
    }
  }
}

TEST(GramQuadrature, GrowingFunctionsWidenTheGrid) {
  const Gram gram({4, 1, 2});
  Vector values(9);
  const GramResult r = gram_quadrature(
      gram.input(),
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i) v[i] = std::exp(x[i]);
      },
      {}, 1, values);
  ASSERT_TRUE(r.converged);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j) {
      const double product =
          std::exp(gram.variances[i] + gram.variances[j]);  // sqrt(E e^2u E e^2v)
      EXPECT_NEAR(values[i + 3 * j],
                  std::exp(0.5 * (gram.variances[i] + gram.variances[j]) + gram.C[i + 3 * j]),
                  kAccuracy * product);
    }
}

TEST(GramQuadrature, SteepFunctionsNearPerfectCorrelationGoOneByOne) {
  // tanh at standard deviation 40: its Hermite series is too long where rho is near 1.
  Gram gram({1600, 1600, 1600});
  gram.C[1] = gram.C[3] = 1600 * (1 - 1e-5);
  gram.C[2] = gram.C[6] = 1600 * 0.5;
  gram.C[5] = gram.C[7] = 1600 * -0.9;
  Vector values(9);
  const GramResult r = gram_quadrature(gram.input(), kTanh, {}, 1, values);
  ASSERT_TRUE(r.converged);
  EXPECT_EQ(r.single_entries, 4);  // the diagonal and the first pair
  for (const std::size_t slot : {0u, 1u, 2u, 5u}) {
    const double c = gram.C[slot];
    const QuadratureResult check = kinked_expectation(
        Vector{1600, c, c, 1600},
        [](Index n, const double* x, double* v) {
          for (Index i = 0; i < n; ++i) v[i] = std::tanh(x[i]) * std::tanh(x[i + n]);
        },
        1, std::vector{axis(2, 0), axis(2, 1)});
    ASSERT_TRUE(check.converged());
    EXPECT_NEAR(values[slot], check.values[0], kAccuracy) << slot;
  }
}

TEST(GramQuadrature, KinksAreNotTakenForConverged) {
  const Gram gram({1, 2, 3});
  Vector values(9);
  GramOptions options;
  options.max_evaluations = 4'000'000;
  const GramResult r = gram_quadrature(
      gram.input(),
      [](Index n, const double* x, double* v) {
        for (Index i = 0; i < n; ++i) v[i] = std::max(x[i] - 0.3, 0.0);
      },
      {}, 1, values, serial_for, options);
  EXPECT_FALSE(r.converged);
  EXPECT_GT(r.largest_error, 1e-13);
}

TEST(GramQuadrature, BadEntriesAreReportedAndTheOthersKept) {
  Gram gram({1, 2, 0, 4});
  for (std::size_t i = 0; i < 4; ++i) gram.C[i + 8] = gram.C[2 + 4 * i] = 0;
  gram.C[1] = gram.C[4] = 1.5;         // above sqrt 2
  gram.C[3] = gram.C[12] = 2 + 1e-11;  // rounding
  Vector values(16);
  const GramResult r = gram_quadrature(gram.input(), kTanh, {}, 1, values);
  EXPECT_EQ(r.status.bad_index, 1u);
  EXPECT_NEAR(r.status.largest_excess, 1e-11, 1e-15);
  EXPECT_TRUE(std::isnan(values[1]) && std::isnan(values[4]));
  EXPECT_EQ(values[2], 0);  // E tanh(u) tanh(0)
  EXPECT_EQ(values[10], 0);
  const auto f = [](Real x) { return std::tanh(x); };
  EXPECT_NEAR(values[3], reference(f, f, 1, 4, 2), kAccuracy);
  gram.variances[3] = kNan;
  EXPECT_EQ(gram_quadrature(gram.input(), kTanh, {}, 1, values).status.bad_index, 1u);
  EXPECT_TRUE(std::isnan(values[15]) && std::isnan(values[3]) && !std::isnan(values[0]));
}

TEST(GramQuadrature, ThreadsAndSymmetryDoNotMatter) {
  Vector variances(37);
  for (std::size_t i = 0; i < variances.size(); ++i)
    variances[i] = 0.1 + 0.2 * static_cast<double>(i);
  const Gram gram(variances);
  const ParallelFor backwards = [](Index count, const std::function<void(Index)>& body) {
    std::thread odd([&] {
      for (Index i = 1; i < count; i += 2) body(i);
    });
    for (Index i = count - 1; i >= 0; --i)
      if (i % 2 == 0) body(i);
    odd.join();
  };
  const auto size = static_cast<std::size_t>(gram.n * gram.n);
  Vector first(size), second(size), third(size);
  EXPECT_TRUE(gram_quadrature(gram.input(), kTanh, {}, 1, first).converged);
  EXPECT_TRUE(gram_quadrature(gram.input(), kTanh, {}, 1, second, backwards).converged);
  EXPECT_TRUE(gram_quadrature(gram.input(false), kTanh, {}, 1, third).converged);
  EXPECT_EQ(first, second);
  for (std::size_t i = 0; i < size; ++i)
    EXPECT_NEAR(first[i], third[i], 1e-14);  // tiles above the diagonal may need other lengths
}

TEST(GramQuadrature, WrongSizesAreABug) {
  const Gram gram({1, 2});
  Vector values(3);
  EXPECT_THROW(static_cast<void>(gram_quadrature(gram.input(), kTanh, {}, 1, values)),
               InternalError);
  values.resize(4);
  EXPECT_THROW(static_cast<void>(gram_quadrature(gram.input(), kTanh, kTanh, 1, values)),
               InternalError);
}

}  // namespace
}  // namespace tplimit
