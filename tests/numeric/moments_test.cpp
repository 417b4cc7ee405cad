/// The moment engine against recursions written here, against particles, and against rationals.

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

EvaluateOptions engine(Engine name) {
  EvaluateOptions options;
  options.engine = name;
  return options;
}

// ---- training ---------------------------------------------------------------------------------------

TEST(ExactTraining, LinearNetworkGivesTheKnownRationals) {
  // docs/sources.md, S9.
  const double expected[] = {0, -1.5, 103.0 / 256, -8197425647993.0 / 8796093022208.0, 0.1456009885, -0.5341454106};
  const auto result = limit_of(one_sample_a_step("z", "1/2", 6), engine(Engine::kExact));
  EXPECT_EQ(result.reports[0].method, Method::kExact);
  for (std::size_t t = 0; t < 4; ++t) EXPECT_NEAR(result.reports[0].value[t], expected[t], 1e-12) << t;
  for (std::size_t t = 4; t < 6; ++t) EXPECT_NEAR(result.reports[0].value[t], expected[t], 0.6e-10) << t;  // ten digits are known
}

std::string deep(int layers, const std::string& map, int steps) {
  return fmt::format(R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, -0.4]]
data y = [1, -0.5, 0.3]
fn phi(z) = {}
param U : [n, 2] ~ normal(0, 1/2), lr = n
param W : [{}, n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {{
  z = phi(U @ x)
  for l in 0..{} {{ z = phi(W[l] @ z) }}
  return v @ z / n, z
}}
for t in 0..{} {{
  out, z = f(X)
  step sgd(mse(out, y), lr = 0.3)
}}
out, z = f(X)
report out, gram(z)
)", map, std::max(1, layers - 1), layers - 1, steps);
}

// Particles are exact for linear networks, by another road: inner products in a sample with matched moments.
TEST(ExactTraining, DeepLinearNetworksAgreeWithParticles) {
  for (int layers = 1; layers <= 5; ++layers) {
    const Module module = parsed(deep(layers, "z", 5));
    const auto exact = limit_of(module, engine(Engine::kExact)), sampled = limit_of(module, particles(1024, 2));
    for (std::size_t k = 0; k < exact.reports.size(); ++k)
      for (std::size_t j = 0; j < exact.reports[k].value.size(); ++j)
        EXPECT_NEAR(exact.reports[k].value[j], sampled.reports[k].value[j], 1e-11 * std::max(1.0, std::abs(exact.reports[k].value[j]))) << layers << " layers, " << exact.reports[k].name;
  }
}

constexpr const char* kQuadratic = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -0.5]
param U : [n, 2] ~ normal(0, 1/2), lr = n
param v : [n] ~ normal(0, 1), lr = n
model f(x) { return v @ (U @ x)^2 / n }
for t in 0..4 {
  out = f(X)
  report out
  step sgd(mse(out, y), lr = 0.1)
}
report last = f(X)
)";

TEST(ExactTraining, QuadraticNetworkAgreesWithParticlesAndNetworks) {
  const Module module = parsed(kQuadratic);
  const auto exact = limit_of(module, engine(Engine::kExact)), sampled = limit_of(module, particles(65536, 16));
  const auto narrow = networks_of(module, 1000, 200, Matrices::kAuto), wide = networks_of(module, 4000, 200, Matrices::kAuto);
  for (std::size_t k = 0; k < exact.reports.size(); ++k)
    for (std::size_t j = 0; j < exact.reports[k].value.size(); ++j) {
      const double value = exact.reports[k].value[j];
      EXPECT_NEAR(value, sampled.reports[k].value[j], 5 * sampled.reports[k].error[j] + 1e-12);
      // Mean(n) = limit + b / n: two widths take b out.
      const double mean = (4 * wide.reports[k].value[j] - narrow.reports[k].value[j]) / 3;
      EXPECT_NEAR(value, mean, 4 * std::hypot(4 * wide.reports[k].error[j], narrow.reports[k].error[j]) / 3);
    }
}

// ---- kernels ----------------------------------------------------------------------------------------

using Real = std::function<double(double)>;
struct Activation {
  const char* text;
  Real f, slope;
  std::vector<double> kinks;  ///< 0 or nothing
  Method method;
};

/// E f(u) g(v) by the trapezoid rule in polar angle and radius: rays through the origin never cross a kink at 0 but at the
/// angles where u or v vanish, at which the sum over angles is cut.
double expectation(const Real& f, const Real& g, double a, double b, double c) {
  const double r = std::sqrt(std::max(0.0, a * b - c * c) / (a * b));
  const double rho = c / std::sqrt(a * b), sa = std::sqrt(a), sb = std::sqrt(b);
  // u = sa x, v = sb (rho x + r y), x = R cos t, y = R sin t: u = 0 at t = +-pi/2, v = 0 at tan t = -rho / r.
  std::vector<double> cuts{-std::numbers::pi / 2, std::numbers::pi / 2, 3 * std::numbers::pi / 2};
  for (int k = -1; k <= 2; ++k)
    if (const double t = std::atan2(-rho, r) + k * std::numbers::pi; t > -std::numbers::pi / 2 && t < 3 * std::numbers::pi / 2) cuts.push_back(t);
  std::sort(cuts.begin(), cuts.end());
  double sum = 0;
  static const double nodes[] = {0.0, 0.20119409399743451, 0.39415134707756336, 0.57097217260853885, 0.72441773136017005, 0.84820658341042722, 0.93727339240070590, 0.98799251802048543};
  static const double weights[] = {0.20257824192556127, 0.19843148532711158, 0.18616100001556221, 0.16626920581699393, 0.13957067792615431, 0.10715922046717194, 0.07036604748810812, 0.03075324199611727};
  constexpr int kPanels = 6, kRadii = 400;
  for (std::size_t s = 0; s + 1 < cuts.size(); ++s)
    for (int p = 0; p < kPanels; ++p) {
      const double width = (cuts[s + 1] - cuts[s]) / kPanels, middle = cuts[s] + (p + 0.5) * width;
      for (int q = -7; q <= 7; ++q) {
        const double t = middle + 0.5 * width * (q < 0 ? -nodes[-q] : nodes[q]), w = 0.5 * width * weights[std::abs(q)];
        // Radius: R = exp(2.2 sinh ..) is not needed; Gauss-Legendre panels on 0..9.5.
        for (int i = 0; i < kRadii / 15; ++i) {
          const double h = 9.5 / (kRadii / 15);
          for (int j = -7; j <= 7; ++j) {
            const double radius = (i + 0.5) * h + 0.5 * h * (j < 0 ? -nodes[-j] : nodes[j]);
            const double x = radius * std::cos(t), y = radius * std::sin(t);
            sum += w * 0.5 * h * weights[std::abs(j)] * radius * std::exp(-radius * radius / 2) / (2 * std::numbers::pi) * f(sa * x) * g(sb * (rho * x + r * y));
          }
        }
      }
    }
  return sum;
}

std::vector<Activation> activations() {
  const auto phi = [](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); };
  const auto cdf = [](double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); };
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  return {
      {"relu(z)", [](double x) { return std::max(x, 0.0); }, [](double x) { return x > 0 ? 1.0 : 0.0; }, {0}, Method::kClosedForm},
      {"abs(z)", [](double x) { return std::abs(x); }, [](double x) { return x > 0 ? 1.0 : -1.0; }, {0}, Method::kClosedForm},
      {"erf(z)", [](double x) { return std::erf(x); }, [](double x) { return 2 / std::sqrt(std::numbers::pi) * std::exp(-x * x); }, {}, Method::kClosedForm},
      {"gelu(z)", [=](double x) { return x * cdf(x); }, [=](double x) { return cdf(x) + x * phi(x); }, {}, Method::kClosedForm},
      {"z * (1 + erf(z / sqrt(2))) / 2", [=](double x) { return x * cdf(x); }, [=](double x) { return cdf(x) + x * phi(x); }, {}, Method::kClosedForm},
      {"where(z > 0, z, 0.2 * z)", [](double x) { return x > 0 ? x : 0.2 * x; }, [](double x) { return x > 0 ? 1.0 : 0.2; }, {0}, Method::kClosedForm},
      {"max(z, 0)^2", [](double x) { return x > 0 ? x * x : 0.0; }, [](double x) { return x > 0 ? 2 * x : 0.0; }, {0}, Method::kClosedForm},
      {"sin(z)", [](double x) { return std::sin(x); }, [](double x) { return std::cos(x); }, {}, Method::kClosedForm},
      {"tanh(z)", [](double x) { return std::tanh(x); }, [](double x) { return 1 / (std::cosh(x) * std::cosh(x)); }, {}, Method::kQuadrature},
      {"sigmoid(z)", sigmoid, [=](double x) { return sigmoid(x) * (1 - sigmoid(x)); }, {}, Method::kQuadrature},
      {"silu(z)", [=](double x) { return x * sigmoid(x); }, [=](double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }, {}, Method::kQuadrature},
  };
}

TEST(Kernels, FullyConnectedNetworksFollowTheRecursion) {
  // The second input is the first times 1.2: correlation 1 and different variances.
  const double x[3][2] = {{1, 0.5}, {1.2, 0.6}, {-0.8, 0.4}};
  for (const Activation& a : activations())
    for (const auto& [layers, s2, b2] : {std::tuple{1, 1.0, 0.0}, std::tuple{3, 2.0, 0.1}}) {
      const std::string text = fmt::format(R"(width n
fn phi(z) = {}
data X = [[1, 0.5], [1.2, 0.6], [-0.8, 0.4]]
param U : [n, 2] ~ normal(0, 1)
param W : [{}, n, n] ~ normal(0, 1)
param b : [{}, n] ~ normal(0, 1)
param v : [n] ~ normal(0, 1)
param c : [] ~ normal(0, 1)
model f(x) {{
  z = phi(sqrt({s}/2) * (U @ x) + sqrt({t}) * b[0])
  for l in 1..{} {{ z = phi(sqrt({s}) * (W[l - 1] @ z) / sqrt(n) + sqrt({t}) * b[l]) }}
  return sqrt({s}) * (v @ z) / sqrt(n) + sqrt({t}) * c
}}
report nngp(f, X), ntk(f, X), part = ntk(f, X, X[1..2])
)", a.text, std::max(1, layers - 1), layers, layers, fmt::arg("s", s2), fmt::arg("t", b2));
      SCOPED_TRACE(text);
      double k[3][3], theta[3][3];
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) theta[i][j] = k[i][j] = s2 * (x[i][0] * x[j][0] + x[i][1] * x[j][1]) / 2 + b2;
      for (int l = 0; l < layers; ++l) {
        double next[3][3];
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j) {
            next[i][j] = s2 * expectation(a.f, a.f, k[i][i], k[j][j], k[i][j]) + b2;
            theta[i][j] = next[i][j] + s2 * expectation(a.slope, a.slope, k[i][i], k[j][j], k[i][j]) * theta[i][j];
          }
        std::copy(&next[0][0], &next[0][0] + 9, &k[0][0]);
      }
      const auto result = limit_of(text, engine(Engine::kMoments));
      EXPECT_EQ(result.reports[0].method, a.method);
      for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t j = 0; j < 3; ++j) {
          // 1e-11: correlations recomputed from rounded sqrt(ab - c^2) near 1 limit this test's own recursion.
          const double tolerance = 1e-11;
          EXPECT_NEAR(result.reports[0].value[3 * i + j], k[i][j], tolerance * std::sqrt(k[i][i] * k[j][j])) << i << j;
          // Slopes that jump depend on the angle, which is the square root of rounding near correlation 1.
          const double slope_tolerance = a.kinks.empty() ? tolerance : 3e-7;
          EXPECT_NEAR(result.reports[1].value[3 * i + j], theta[i][j], slope_tolerance * std::sqrt(theta[i][i] * theta[j][j])) << i << j;
        }
      for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(result.reports[2].value[i], result.reports[1].value[3 * i + 1]);
    }
}

// Tied weights, a skip connection and an average inside the model: no recursion is needed, particles know the answer.
TEST(Kernels, UnusualModelsAgreeWithParticles) {
  const Module module = parsed(R"(width n
data X = [[1, 0.5], [0.2, -0.7], [-0.8, 0.4]]
param U : [n, 2] ~ normal(0, 1), lr = 2
param W : [n, n] ~ normal(0, 1.5/n), lr = 1/n
param b : [n] ~ normal(0, 0.3)
param v : [n] ~ normal(0, 1)
model f(x) {
  h = U @ x + b
  z = tanh(h)
  for l in 0..2 { h = 0.5 * h + W @ z + b
    z = tanh(h) }
  return v @ z / sqrt(n)
}
report nngp(f, X), ntk(f, X)
)");
  const auto moments = limit_of(module, engine(Engine::kMoments)), sampled = limit_of(module, particles(65536, 16));
  for (std::size_t k = 0; k < 2; ++k)
    for (std::size_t j = 0; j < 9; ++j) EXPECT_NEAR(moments.reports[k].value[j], sampled.reports[k].value[j], 5 * sampled.reports[k].error[j]) << moments.reports[k].name;
}

TEST(Kernels, AfterTrainingTheyAreAveragesOverParticles) {
  const Module module = parsed(deep(2, "tanh(z)", 2) + "model g(x) { a, b = f(x)\n return a * sqrt(n) }\nreport K = ntk(g, X) / n\n");
  const auto result = limit_of(module, particles(16384, 8));
  const auto networks = networks_of(module, 2000, 8, Matrices::kAuto);
  for (std::size_t j = 0; j < 9; ++j)
    EXPECT_NEAR(result.reports[2].value[j], networks.reports[2].value[j], 0.02 * std::abs(result.reports[2].value[j]) + 4 * networks.reports[2].error[j]);
}

// ---- choice of methods ------------------------------------------------------------------------------

// A jump in a function is a delta in its derivative: E step'(h) = density of h at 0.
TEST(Corrections, OfFunctionsWithJumpsContainTheirDeltas) {
  const char* program = R"(width n
random x : [2, n] ~ normal(0, [[1, 0.6], [0.6, 2]])
param W : [n, n] ~ normal(0, 1 / n)
h = W @ x
u = W' @ step(h[0])
w = W' @ (step(h[0]) * relu(h[1]))
s = W' @ (where(h[0] > 0.5, 2, -1) * sin(h[1]))
report E(u * x[0]), E(u * x[1]), E(w * x[0]), E(w * x[1]), E(s * x[0]), E(s * x[1])
)";
  const auto exact = limit_of(program, engine(Engine::kMoments));
  const double density = 1 / std::sqrt(2 * std::numbers::pi);
  EXPECT_NEAR(exact.reports[0].value[0], density, 1e-14);
  EXPECT_NEAR(exact.reports[1].value[0], 0.6 * density, 1e-14);
  const auto sampled = limit_of(program, particles(65536, 8));
  for (std::size_t k = 0; k < exact.reports.size(); ++k)
    EXPECT_NEAR(exact.reports[k].value[0], sampled.reports[k].value[0], 6 * sampled.reports[k].error[0] + 1e-9) << k;
}

TEST(Methods, AreTheStrongestThatApply) {
  const Module module = parsed(R"(width n
random x : [4, n] ~ normal(0, 1)
report exact = E(x[0]^2 * x[1]^4), closed = E(relu(x[0]) * relu(x[0] + x[1])), quadrature = E(tanh(x[0]) * relu(x[0] + x[1]))
report three = E(tanh(x[0]) * tanh(x[0] + x[1]) * cos(x[1] + 0.5 * x[2])), particles = E(tanh(x[0] * x[1]))
)");
  const auto found = methods(module);
  ASSERT_TRUE(found);
  const Method expected[] = {Method::kExact, Method::kClosedForm, Method::kQuadrature, Method::kQuadrature, Method::kParticles};
  for (std::size_t k = 0; k < 5; ++k) EXPECT_EQ((*found)[k].method, expected[k]) << (*found)[k].why;
  EXPECT_NE((*found)[4].why.find("more than one Gaussian"), std::string::npos);
  const auto result = limit_of(module, {}), sampled = limit_of(module, particles(262144, 16));
  EXPECT_EQ(result.reports[0].value[0], 3);
  EXPECT_EQ(result.reports[0].error[0], 0);
  for (std::size_t k = 1; k < 4; ++k) EXPECT_NEAR(result.reports[k].value[0], sampled.reports[k].value[0], 5 * sampled.reports[k].error[0]) << result.reports[k].name;
}

TEST(Methods, SingularCovariancesAreNoProblem) {
  // x, x + 0 and -x: correlations 1 and -1 exactly.
  const auto result = limit_of(R"(width n
random x : [n] ~ normal(0, 2)
random W : [n, n] ~ normal(0, 1/n)
z = stack(tanh(W @ x), tanh(W @ (2 * x)), tanh(W @ (-x)))
r = stack(relu(W @ x), relu(W @ (2 * x)), relu(W @ (-x)))
report gram(z), gram(r)
)", engine(Engine::kMoments));
  const auto& z = result.reports[0].value;
  EXPECT_NEAR(z[2], -z[0], 1e-14);
  EXPECT_NEAR(z[5], -z[1], 1e-14);
  const double r[] = {1, 2, 0, 2, 4, 0, 0, 0, 1};
  for (std::size_t j = 0; j < 9; ++j) EXPECT_NEAR(result.reports[1].value[j], r[j], 4e-14);
}

}  // namespace
}  // namespace tplimit::test
