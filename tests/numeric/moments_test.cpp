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
#include <Eigen/Dense>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

EvaluateOptions engine(Engine name) {
  EvaluateOptions options;
  options.engine = name;
  return options;
}

// ---- training
// ---------------------------------------------------------------------------------------

TEST(ExactTraining, LinearNetworkGivesTheKnownRationals) {
  // docs/sources.md, S9.
  const double expected[] = {
      0, -1.5, 103.0 / 256, -8197425647993.0 / 8796093022208.0, 0.1456009885, -0.5341454106};
  const auto result = limit_of(one_sample_a_step("z", "1/2", 6), engine(Engine::kExact));
  EXPECT_EQ(result.reports[0].method, Method::kExact);
  for (std::size_t t = 0; t < 4; ++t)
    EXPECT_NEAR(result.reports[0].value[t], expected[t], 1e-12) << t;
  for (std::size_t t = 4; t < 6; ++t)
    EXPECT_NEAR(result.reports[0].value[t], expected[t], 0.6e-10) << t;  // ten digits are known
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
)",
                     map, std::max(1, layers - 1), layers - 1, steps);
}

// Particles are exact for linear networks, by another road: inner products in a sample with matched
// moments.
TEST(ExactTraining, DeepLinearNetworksAgreeWithParticles) {
  for (int layers = 1; layers <= 5; ++layers) {
    const Module module = parsed(deep(layers, "z", 5));
    const auto exact = limit_of(module, engine(Engine::kExact)),
               sampled = limit_of(module, particles(1024, 2));
    for (std::size_t k = 0; k < exact.reports.size(); ++k)
      for (std::size_t j = 0; j < exact.reports[k].value.size(); ++j)
        EXPECT_NEAR(exact.reports[k].value[j], sampled.reports[k].value[j],
                    1e-11 * std::max(1.0, std::abs(exact.reports[k].value[j])))
            << layers << " layers, " << exact.reports[k].name;
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
  const auto exact = limit_of(module, engine(Engine::kExact)),
             sampled = limit_of(module, particles(65536, 16));
  const auto narrow = networks_of(module, 1000, 200, Matrices::kAuto),
             wide = networks_of(module, 4000, 200, Matrices::kAuto);
  for (std::size_t k = 0; k < exact.reports.size(); ++k)
    for (std::size_t j = 0; j < exact.reports[k].value.size(); ++j) {
      const double value = exact.reports[k].value[j];
      EXPECT_NEAR(value, sampled.reports[k].value[j], 5 * sampled.reports[k].error[j] + 1e-12);
      // Mean(n) = limit + b / n: two widths take b out.
      const double mean = (4 * wide.reports[k].value[j] - narrow.reports[k].value[j]) / 3;
      EXPECT_NEAR(value, mean,
                  4 * std::hypot(4 * wide.reports[k].error[j], narrow.reports[k].error[j]) / 3);
    }
}

// ---- kernels
// ----------------------------------------------------------------------------------------

using Real = std::function<double(double)>;
struct Activation {
  const char* text;
  Real f, slope;
  std::vector<double> kinks;  ///< 0 or nothing
  Method method;
};

/// E f(u) g(v) by the trapezoid rule in polar angle and radius: rays through the origin never cross
/// a kink at 0 but at the angles where u or v vanish, at which the sum over angles is cut.
double expectation(const Real& f, const Real& g, double a, double b, double c) {
  const double r = std::sqrt(std::max(0.0, a * b - c * c) / (a * b));
  const double rho = c / std::sqrt(a * b), sa = std::sqrt(a), sb = std::sqrt(b);
  // u = sa x, v = sb (rho x + r y), x = R cos t, y = R sin t: u = 0 at t = +-pi/2, v = 0 at tan t =
  // -rho / r.
  std::vector<double> cuts{-std::numbers::pi / 2, std::numbers::pi / 2, 3 * std::numbers::pi / 2};
  for (int k = -1; k <= 2; ++k)
    if (const double t = std::atan2(-rho, r) + k * std::numbers::pi;
        t > -std::numbers::pi / 2 && t < 3 * std::numbers::pi / 2)
      cuts.push_back(t);
  std::sort(cuts.begin(), cuts.end());
  double sum = 0;
  static const double nodes[] = {0.0,
                                 0.20119409399743451,
                                 0.39415134707756336,
                                 0.57097217260853885,
                                 0.72441773136017005,
                                 0.84820658341042722,
                                 0.93727339240070590,
                                 0.98799251802048543};
  static const double weights[] = {0.20257824192556127, 0.19843148532711158, 0.18616100001556221,
                                   0.16626920581699393, 0.13957067792615431, 0.10715922046717194,
                                   0.07036604748810812, 0.03075324199611727};
  constexpr int kPanels = 6, kRadii = 400;
  for (std::size_t s = 0; s + 1 < cuts.size(); ++s)
    for (int p = 0; p < kPanels; ++p) {
      const double width = (cuts[s + 1] - cuts[s]) / kPanels, middle = cuts[s] + (p + 0.5) * width;
      for (int q = -7; q <= 7; ++q) {
        const double t = middle + 0.5 * width * (q < 0 ? -nodes[-q] : nodes[q]),
                     w = 0.5 * width * weights[std::abs(q)];
        // Radius: R = exp(2.2 sinh ..) is not needed; Gauss-Legendre panels on 0..9.5.
        for (int i = 0; i < kRadii / 15; ++i) {
          const double h = 9.5 / (kRadii / 15);
          for (int j = -7; j <= 7; ++j) {
            const double radius = (i + 0.5) * h + 0.5 * h * (j < 0 ? -nodes[-j] : nodes[j]);
            const double x = radius * std::cos(t), y = radius * std::sin(t);
            sum += w * 0.5 * h * weights[std::abs(j)] * radius * std::exp(-radius * radius / 2) /
                   (2 * std::numbers::pi) * f(sa * x) * g(sb * (rho * x + r * y));
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
      {"relu(z)",
       [](double x) { return std::max(x, 0.0); },
       [](double x) { return x > 0 ? 1.0 : 0.0; },
       {0},
       Method::kClosedForm},
      {"abs(z)",
       [](double x) { return std::abs(x); },
       [](double x) { return x > 0 ? 1.0 : -1.0; },
       {0},
       Method::kClosedForm},
      {"erf(z)",
       [](double x) { return std::erf(x); },
       [](double x) { return 2 / std::sqrt(std::numbers::pi) * std::exp(-x * x); },
       {},
       Method::kClosedForm},
      {"gelu(z)",
       [=](double x) { return x * cdf(x); },
       [=](double x) { return cdf(x) + x * phi(x); },
       {},
       Method::kClosedForm},
      {"z * (1 + erf(z / sqrt(2))) / 2",
       [=](double x) { return x * cdf(x); },
       [=](double x) { return cdf(x) + x * phi(x); },
       {},
       Method::kClosedForm},
      {"where(z > 0, z, 0.2 * z)",
       [](double x) { return x > 0 ? x : 0.2 * x; },
       [](double x) { return x > 0 ? 1.0 : 0.2; },
       {0},
       Method::kClosedForm},
      {"max(z, 0)^2",
       [](double x) { return x > 0 ? x * x : 0.0; },
       [](double x) { return x > 0 ? 2 * x : 0.0; },
       {0},
       Method::kClosedForm},
      {"sin(z)",
       [](double x) { return std::sin(x); },
       [](double x) { return std::cos(x); },
       {},
       Method::kClosedForm},
      {"tanh(z)",
       [](double x) { return std::tanh(x); },
       [](double x) { return 1 / (std::cosh(x) * std::cosh(x)); },
       {},
       Method::kQuadrature},
      {"sigmoid(z)",
       sigmoid,
       [=](double x) { return sigmoid(x) * (1 - sigmoid(x)); },
       {},
       Method::kQuadrature},
      {"silu(z)",
       [=](double x) { return x * sigmoid(x); },
       [=](double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); },
       {},
       Method::kQuadrature},
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
)",
                                           a.text, std::max(1, layers - 1), layers, layers,
                                           fmt::arg("s", s2), fmt::arg("t", b2));
      SCOPED_TRACE(text);
      double k[3][3], theta[3][3];
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j)
          theta[i][j] = k[i][j] = s2 * (x[i][0] * x[j][0] + x[i][1] * x[j][1]) / 2 + b2;
      for (int l = 0; l < layers; ++l) {
        double next[3][3];
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j) {
            next[i][j] = s2 * expectation(a.f, a.f, k[i][i], k[j][j], k[i][j]) + b2;
            theta[i][j] =
                next[i][j] +
                s2 * expectation(a.slope, a.slope, k[i][i], k[j][j], k[i][j]) * theta[i][j];
          }
        std::copy(&next[0][0], &next[0][0] + 9, &k[0][0]);
      }
      const auto result = limit_of(text, engine(Engine::kMoments));
      EXPECT_EQ(result.reports[0].method, a.method);
      for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t j = 0; j < 3; ++j) {
          // 1e-11: correlations recomputed from rounded sqrt(ab - c^2) near 1 limit this test's own
          // recursion.
          const double tolerance = 1e-11;
          EXPECT_NEAR(result.reports[0].value[3 * i + j], k[i][j],
                      tolerance * std::sqrt(k[i][i] * k[j][j]))
              << i << j;
          // Slopes that jump depend on the angle, which is the square root of rounding near
          // correlation 1.
          const double slope_tolerance = a.kinks.empty() ? tolerance : 3e-7;
          EXPECT_NEAR(result.reports[1].value[3 * i + j], theta[i][j],
                      slope_tolerance * std::sqrt(theta[i][i] * theta[j][j]))
              << i << j;
        }
      for (std::size_t i = 0; i < 3; ++i)
        EXPECT_EQ(result.reports[2].value[i], result.reports[1].value[3 * i + 1]);
    }
}

// Tied weights, a skip connection and an average inside the model: no recursion is needed,
// particles know the answer.
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
  const auto moments = limit_of(module, engine(Engine::kMoments)),
             sampled = limit_of(module, particles(65536, 16));
  for (std::size_t k = 0; k < 2; ++k)
    for (std::size_t j = 0; j < 9; ++j)
      EXPECT_NEAR(moments.reports[k].value[j], sampled.reports[k].value[j],
                  5 * sampled.reports[k].error[j])
          << moments.reports[k].name;
}

TEST(Kernels, AfterTrainingTheyAreAveragesOverParticles) {
  const Module module =
      parsed(deep(2, "tanh(z)", 2) +
             "model g(x) { a, b = f(x)\n return a * sqrt(n) }\nreport K = ntk(g, X) / n\n");
  const auto result = limit_of(module, particles(16384, 8));
  const auto networks = networks_of(module, 2000, 8, Matrices::kAuto);
  for (std::size_t j = 0; j < 9; ++j)
    EXPECT_NEAR(result.reports[2].value[j], networks.reports[2].value[j],
                0.02 * std::abs(result.reports[2].value[j]) + 4 * networks.reports[2].error[j]);
}

// ---- choice of methods
// ------------------------------------------------------------------------------

// ---- training under a fixed kernel
// ------------------------------------------------------------------

// The third sample repeats the first: the kernel is singular, and their targets disagree.
TEST(PredictGd, FollowsDescentFlowAndPosteriorOfASingularKernel) {
  const auto result = limit_of(R"(width n
data X = [[1, 0.5], [-0.3, 1], [1, 0.5], [0.2, -0.8]]
data Z = [[0.4, 0.4], [1, 0.5]]
data y = [1, -1, 0.6, 0.3]
param U : [n, 2] ~ normal(0, 1)
param v : [n] ~ normal(0, 1)
model net(x) { return v @ relu(U @ x) / sqrt(n) }
Theta = ntk(net, X)
across = ntk(net, Z, X)
K = nngp(net, X)
K_across = nngp(net, Z, X)
# S = f(X) - f_0(X) as a matrix that acts on y - f_0(X); A the same for Z.
S = zeros(4, 4)
A = zeros(2, 4)
I = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
for t in 0..7 {
  R = 0.3 / 4 * (I - S)
  A = A + (across @ R')'
  S = S + (Theta @ R')'
}
report A @ y, predict_gd(Theta, across, y, lr = 0.3, steps = 7)
report nngp(net, Z) + A @ (A @ K)' - A @ K_across - (A @ K_across)', predict_gd_covariance(Theta, across, K, K_across, nngp(net, Z), lr = 0.3, steps = 7)
report predict_gd(Theta, across, y, lr = 1e-4, steps = 20000), predict_gd(Theta, across, y, lr = 1, time = 2)
report predict_gd(K, K_across, y), predict_gd(K, K_across, y, lr = 0.5, time = 1e6)
report predict_gd(K, K, y)[0], largest_rate(Theta), 8 / max(eigvals(Theta))
)",
                               engine(Engine::kMoments));
  const auto equal = [&](std::size_t a, std::size_t b, double tolerance) {
    const auto &x = result.reports[a], &y = result.reports[b];
    ASSERT_EQ(x.value.size(), y.value.size());
    for (std::size_t k = 0; k < x.value.size(); ++k)
      EXPECT_NEAR(x.value[k], y.value[k], tolerance) << a << ' ' << k;
  };
  equal(0, 1, 1e-12);
  equal(2, 3, 1e-12);
  equal(4, 5, 1e-4);
  equal(6, 7, 1e-8);
  EXPECT_NEAR(result.reports[8].value[0], 0.8,
              1e-9);  // least squares between contradicting targets
  equal(9, 10, 1e-12);
}

// ---- the pi-limit
// -----------------------------------------------------------------------------------

using Rows = Eigen::MatrixXd;

std::string literal(const Rows& m) {
  std::string out = "[";
  for (Eigen::Index i = 0; i < m.rows(); ++i) {
    out += i == 0 ? "[" : ", [";
    for (Eigen::Index j = 0; j < m.cols(); ++j)
      out += fmt::format("{}{:.17g}", j == 0 ? "" : ", ", m(i, j));
    out += "]";
  }
  return out + "]";
}

struct PiNetwork {
  static constexpr double lr = 0.05, decay = 0.02, f1 = 0.5, fL = 0.3, fb = 0.7, fa = 1.5, la = 0.8,
                          beta = 0.4;
  Rows X, Y, A1;
  std::vector<Rows> A, B, bias;  // of layers 1 .. H; biases of layers 1 .. H + 1
};

/// Outputs before each step by the recursion for g in R^r (docs/sources.md, S10).
std::vector<Rows> pi_recursion(PiNetwork s, int batch, int steps) {
  using N = PiNetwork;
  const std::size_t H = s.A.size();
  std::vector<Rows> out, m(H);
  for (std::size_t k = 0; k < H; ++k)
    m[k] = s.B[k].rowwise().norm(), s.B[k] = m[k].asDiagonal().inverse() * s.B[k];
  for (int t = 0; t < steps; ++t) {
    const Rows x = s.X.middleRows(t * batch, batch), y = s.Y.middleRows(t * batch, batch);
    std::vector<Rows> g{N::fa * x * s.A1 + N::beta * s.bias[0].replicate(batch, 1)}, norms, unit, q;
    for (std::size_t k = 0; k < H; ++k) {
      norms.push_back(g[k].rowwise().norm());
      unit.push_back(norms[k].asDiagonal().inverse() * g[k]);
      q.push_back((unit[k] * s.B[k].transpose()).cwiseMax(-1).cwiseMin(1));
      Rows j00 = q[k].unaryExpr([](double c) {
        return (std::sqrt(1 - c * c) + c * std::acos(-c)) / (2 * std::numbers::pi);
      });
      j00 = norms[k].col(0).asDiagonal() * j00 * m[k].col(0).asDiagonal();
      g.push_back(j00 * s.A[k] + N::beta * s.bias[k + 1].replicate(batch, 1));
    }
    out.push_back(N::la * g[H]);
    std::vector<Rows> d(H + 1);
    d[H] = N::la * (out.back() - y) / batch;
    for (std::size_t k = H; k-- > 0;) {
      const Rows dg = d[k + 1] * s.A[k].transpose() * m[k].col(0).asDiagonal();
      const Rows j11 =
          q[k].unaryExpr([](double c) { return std::acos(-c) / (2 * std::numbers::pi); });
      const Rows j02 = norms[k].col(0).asDiagonal().inverse() * q[k].unaryExpr([](double c) {
        return std::sqrt(1 - c * c) / (2 * std::numbers::pi);
      });
      const Rows along = dg.cwiseProduct(j02).rowwise().sum();
      d[k] = dg.cwiseProduct(j11) * s.B[k] + along.col(0).asDiagonal() * g[k];
    }
    s.A1 = (1 - N::lr * N::decay * N::f1) * s.A1 - N::lr * N::f1 * N::fa * x.transpose() * d[0];
    for (std::size_t k = 0; k <= H; ++k)
      s.bias[k] = ((1 - N::lr * N::decay * N::fb) * s.bias[k] -
                   N::lr * N::fb * N::beta * d[k].colwise().sum())
                      .eval();
    for (std::size_t k = 0; k < H; ++k) {
      const double c = k + 1 == H ? N::fL : 1;
      const Rows a = s.A[k], b = s.B[k], old = m[k],
                 added = norms[k].col(0).asDiagonal() * d[k + 1];
      s.A[k].resize(a.rows() + batch, a.cols());
      s.B[k].resize(b.rows() + batch, b.cols());
      m[k].resize(a.rows() + batch, 1);
      s.A[k] << a, added;
      s.B[k] << b, unit[k];
      m[k] << (1 - N::lr * N::decay * c) * old, Rows::Constant(batch, 1, -N::lr * c);
    }
  }
  return out;
}

std::string pi_program(const PiNetwork& s, int batch, int steps) {
  using N = PiNetwork;
  const std::size_t H = s.A.size();
  std::string out = fmt::format(
      "width n\nconst lr = {}\nconst wd = {}\nfn project(O, d) = O @ gram(d, O')\ndata X = "
      "{}\ndata Y = {}\ndata A0 = {}\n",
      N::lr, N::decay, literal(s.X), literal(s.Y), literal(s.A1));
  for (std::size_t k = 1; k <= H; ++k)
    out += fmt::format("data A{0} = {1}\ndata B{0} = {2}\nrandom O{0} : [n, {3}] ~ normal(0, 1)\n",
                       k, literal(s.A[k - 1]), literal(s.B[k - 1]), s.B[0].cols());
  for (std::size_t k = 1; k <= H + 1; ++k)
    out += fmt::format("data c{} = {}\n", k, literal(s.bias[k - 1]));
  for (std::size_t k = 1; k <= H; ++k) out += fmt::format("b{0} = O{0} @ c{0}[0]\n", k);
  out += fmt::format(
      "b{0} = c{0}[0]\nU = (O1 @ A0)'\nv = einsum(\"mk,mn->kn\", A{1}, relu(O{1} @ B{1}))\n", H + 1,
      H);
  for (std::size_t k = 2; k <= H; ++k)
    out += fmt::format(
        "param W{0} : [n, n] ~ normal(0, 0)\nW{0} += outer(O{0} @ A{1}, relu(O{1} @ B{1})) / n\n",
        k, k - 1);
  out += fmt::format(
      "for t in 0..{0} {{\nx = X[t*{1}..(t+1)*{1}]\ny = Y[t*{1}..(t+1)*{1}]\nh1 = {2} * (U @ x) + "
      "{3} * b1\nz1 = relu(h1)\n",
      steps, batch, N::fa, N::beta);
  for (std::size_t k = 2; k <= H; ++k)
    out += fmt::format("h{0} = W{0} @ z{1} + {2} * b{0}\nz{0} = relu(h{0})\n", k, k - 1, N::beta);
  out += fmt::format("f = {} * (v @ z{} / n + {} * b{})\nreport f\ne = grad(mse(f, y), f)\n", N::la,
                     H, N::beta, H + 1);
  for (std::size_t k = 1; k <= H; ++k)
    out += fmt::format("d{0} = project(O{0}, n * grad(mse(f, y), h{0}))\n", k);
  out +=
      fmt::format("U = (1 - lr * wd * {0}) * U - lr * {0} * {1} * einsum(\"pn,pd->dn\", d1, x)'\n",
                  N::f1, N::fa);
  for (std::size_t k = 2; k <= H; ++k)
    out += fmt::format("W{0} *= 1 - lr * wd\nW{0} -= lr * outer(d{0}, z{1}) / n\n", k, k - 1);
  out +=
      fmt::format("v = (1 - lr * wd * {0}) * v - lr * {0} * {1} * einsum(\"pk,pn->kn\", e, z{2})\n",
                  N::fL, N::la, H);
  for (std::size_t k = 1; k <= H; ++k)
    out += fmt::format("b{0} = (1 - lr * wd * {1}) * b{0} - lr * {1} * {2} * sum(d{0}, axis = 0)\n",
                       k, N::fb, N::beta);
  return out +
         fmt::format("b{0} = (1 - lr * wd * {1}) * b{0} - lr * {1} * {2} * sum(e, axis = 0)\n}}\n",
                     H + 1, N::fb, N::beta * N::la);
}

TEST(PiLimit, FollowsItsRecursion) {
  const int d = 5, r = 6, rows = 4, outputs = 2;
  unsigned state = 1;
  const auto random = [&](int a, int b) {
    return Rows(Rows::NullaryExpr(a, b, [&] {
      return static_cast<double>((state = state * 1664525U + 1013904223U) >> 8) / (1U << 23) - 1;
    }));
  };
  // Short runs add rows one by one, long ones join them; repeated inputs make rows that are nearly
  // parallel.
  for (const auto& [layers, batch, steps, repeated] : {std::array{1, 3, 10, 0},
                                                       {2, 3, 10, 0},
                                                       {3, 3, 10, 0},
                                                       {1, 6, 40, 0},
                                                       {2, 6, 40, 1},
                                                       {3, 6, 24, 0}}) {
    PiNetwork s{random(batch * steps, d), random(batch * steps, outputs), random(d, r), {}, {}, {}};
    for (int k = 1; k <= layers; ++k) {
      s.A.push_back(random(rows, k == layers ? outputs : r));
      s.B.push_back(random(rows, r));
      s.bias.push_back(random(1, r));
    }
    s.bias.push_back(random(1, outputs));
    if (repeated != 0)
      for (int t = 2; t < steps; ++t)
        s.X.middleRows(t * batch, batch) = s.X.middleRows((t - 2) * batch, batch);
    const auto expected = pi_recursion(s, batch, steps);
    const auto result = limit_of(pi_program(s, batch, steps), engine(Engine::kMoments));
    ASSERT_EQ(result.reports[0].method, Method::kClosedForm);
    for (int t = 0; t < steps; ++t)
      for (int p = 0; p < batch; ++p)
        for (int k = 0; k < outputs; ++k) {
          const auto slot = static_cast<std::size_t>((t * batch + p) * outputs + k);
          const double truth = expected[static_cast<std::size_t>(t)](p, k);
          EXPECT_NEAR(result.reports[0].value[slot], truth, 1e-12 * (1 + std::abs(truth)))
              << layers << ' ' << t;
          EXPECT_LT(result.reports[0].error[slot], 1e-8) << layers << ' ' << t;
          EXPECT_GE(result.reports[0].error[slot],
                    0.1 * std::abs(result.reports[0].value[slot] - truth))
              << layers << ' ' << t;
        }
  }
}

// Factors before preactivations leave everything in closed form: x and the rate carry them instead.
TEST(PiLimit, ScaledPreactivations) {
  const auto program = [](const std::string& before, const std::string& rate,
                          const std::string& x) {
    return fmt::format(R"(width n
data X = [[0.3, -1, 0.5], [1.2, 0.4, -0.1], [-0.7, 0.2, 0.9], [0.1, 0.8, -1.1]]
data Y = [1, -0.5, 0.25, 2]
random O1 : [n, 4] ~ normal(0, 1)
random O2 : [n, 4] ~ normal(0, 1)
random C : [3, 4] ~ normal(0, 1)
random A : [5, 4] ~ normal(0, 1)
random D : [5, 4] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 0)
fn project(O, d) = O @ gram(d, O')
U = (O1 @ C)'
W += outer(O2 @ A, relu(O1 @ D)) / n
v = O2 @ [1, 0.5, -1, 2]
for epoch in 0..4 {{ for t in 0..2 {{
  x = {2}X[2 * t..2 * t + 2]
  h1 = {0}(U @ x)
  z1 = relu(h1)
  h2 = 0.5 * (W @ z1)
  z2 = relu(h2)
  f = z2 @ v / n
  report f, cross = gram(step(h2), z2)
  e = f - Y[2 * t..2 * t + 2]
  d2 = project(O2, einsum("p,n->pn", e, v) * step(h2))
  d1 = project(O1, 0.5 * (W' @ d2) * step(h1))
  U = U - {1} * einsum("pn,pd->dn", d1, x)'
  W -= 0.05 * outer(d2, z1) / n
  v = v - 0.1 * einsum("p,pn->n", e, z2)
}} }}
)",
                       before, rate, x);
  };
  const auto scaled = limit_of(program("0.7 * ", "0.7 * 0.1", ""), engine(Engine::kMoments)),
             plain = limit_of(program("", "0.1", "0.7 * "), engine(Engine::kMoments));
  for (std::size_t k = 0; k < 2; ++k) {
    EXPECT_EQ(scaled.reports[k].method, Method::kClosedForm);
    for (std::size_t j = 0; j < plain.reports[k].value.size(); ++j)
      EXPECT_NEAR(scaled.reports[k].value[j], plain.reports[k].value[j],
                  1e-12 * (1 + std::abs(plain.reports[k].value[j])))
          << j;
  }
}

// Rows merged within an angle change the result by less than the error that is stated, and less
// rows cost more error.
TEST(PiLimit, MergedRowsAreWithinTheStatedError) {
  const int d = 5, r = 6, rows = 4, batch = 4, steps = 24;
  unsigned state = 7;
  const auto random = [&](int a, int b) {
    return Rows(Rows::NullaryExpr(a, b, [&] {
      return static_cast<double>((state = state * 1664525U + 1013904223U) >> 8) / (1U << 23) - 1;
    }));
  };
  PiNetwork s{random(batch * steps, d), random(batch * steps, 1), random(d, r),
              {random(rows, 1)},        {random(rows, r)},        {random(1, r), random(1, 1)}};
  for (int t = 2; t < steps; ++t)
    s.X.middleRows(t * batch, batch) =
        s.X.middleRows((t - 2) * batch, batch) + 1e-4 * random(batch, d);
  const std::string program = pi_program(s, batch, steps);
  const auto exact = limit_of(program, engine(Engine::kMoments));
  EvaluateOptions options = engine(Engine::kMoments);
  options.merge_rows = 0.02;
  const auto merged = limit_of(program, options);
  EXPECT_GT(merged.engine.rows_merged, 0);
  EXPECT_EQ(exact.engine.rows_merged, 0);
  const auto& value = exact.reports[0].value;
  double change = 0;
  for (std::size_t j = 0; j < value.size(); ++j) {
    change = std::max(change, std::abs(merged.reports[0].value[j] - value[j]));
    EXPECT_LE(std::abs(merged.reports[0].value[j] - value[j]),
              merged.reports[0].error[j] + exact.reports[0].error[j])
        << j;
  }
  EXPECT_GT(change, 0);
  EXPECT_LT(merged.reports[0].error.back(), 1);
}

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
    EXPECT_NEAR(exact.reports[k].value[0], sampled.reports[k].value[0],
                6 * sampled.reports[k].error[0] + 1e-9)
        << k;
}

TEST(Responses, AreMeansOfDerivativesByTheSameCoordinate) {
  const auto r = limit_of(R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1/2), lr = n
param W : [n, n] ~ normal(0, 1/n)
random field : [2, n] ~ normal(0, 0)
random probe : [2, n] ~ normal(0, 1)
h = U @ X
report response(erf(h + field), field, probe)
stein = E(erf(h) * h) / E(h^2)
report stein
report response(W @ (h + field), field, probe), response(W' @ (W @ (h + field)), field, probe)
step sgd(sum(E(field * h)), lr = 0.5)
report response(U @ X, field, probe)
)",
                          engine(Engine::kMoments));
  const auto& stein = r.reports[1].value;
  EXPECT_NEAR(r.reports[0].value[0], stein[0], 1e-12);
  EXPECT_NEAR(r.reports[0].value[3], stein[1], 1e-12);
  EXPECT_EQ(r.reports[0].value[1], 0);
  EXPECT_EQ(r.reports[2].value, (std::vector<double>{0, 0, 0, 0}));  // the trace of W over n
  EXPECT_EQ(r.reports[3].value, (std::vector<double>{1, 0, 0, 1}));  // that of W' W
  // U' = U - 0.5 sum_q field_q x_q: -0.5 X X'.
  const double expected[] = {-0.625, -0.1, -0.1, -0.545};
  for (std::size_t k = 0; k < 4; ++k) EXPECT_NEAR(r.reports[4].value[k], expected[k], 1e-14) << k;
}

TEST(Responses, AreCoefficientsOfCorrectionTerms) {
  // W z = G[W z] + A d0 with A = E dz/dG[W' d0], and d0 depends on G[W z0] only:
  // E[(W z) d0] = E[z z0] E[dd0/dG[W z0]] + A E[d0^2].
  const Module module = parsed(R"(width n
param U : [n] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1/n)
random g : [n] ~ normal(0, 1)
random field : [1, n] ~ normal(0, 0)
random probe : [1, n] ~ normal(0, 1)
z0 = tanh(U)
d0 = g + 0.5 * tanh(W @ z0)
z = tanh(U - 0.3 * stack(W' @ d0) - 0.3 * field)
slope = 0.5 * E(1 - tanh(W @ z0)^2)
report E((W @ z) * d0) - E(z * z0) * slope, E(d0^2) * response(z, field, probe)
)");
  const auto limit = limit_of(module, particles(1 << 14));
  const ReportResult &left = limit.reports[0], &right = limit.reports[1];
  EXPECT_LT(right.value[0], -0.1);
  EXPECT_LE(std::abs(deviation(left.value[0], left.error[0], right.value[0], right.error[0])), 5);
  const auto networks = networks_of(module, 4096, 32, Matrices::kAuto);
  for (const ReportResult& own : networks.reports)
    EXPECT_LE(std::abs(deviation(own.value[0], own.error[0], right.value[0], right.error[0])), 5);
}

TEST(Methods, AreTheStrongestThatApply) {
  const Module module = parsed(R"(width n
random x : [4, n] ~ normal(0, 1)
report exact = E(x[0]^2 * x[1]^4), closed = E(relu(x[0]) * relu(x[0] + x[1])), quadrature = E(tanh(x[0]) * relu(x[0] + x[1]))
report three = E(tanh(x[0]) * tanh(x[0] + x[1]) * cos(x[1] + 0.5 * x[2])), particles = E(tanh(x[0] * x[1]))
)");
  const auto found = methods(module);
  ASSERT_TRUE(found);
  const Method expected[] = {Method::kExact, Method::kClosedForm, Method::kQuadrature,
                             Method::kQuadrature, Method::kParticles};
  for (std::size_t k = 0; k < 5; ++k) EXPECT_EQ((*found)[k].method, expected[k]) << (*found)[k].why;
  EXPECT_NE((*found)[4].why.find("more than one Gaussian"), std::string::npos);
  const auto result = limit_of(module, {}), sampled = limit_of(module, particles(262144, 16));
  EXPECT_EQ(result.reports[0].value[0], 3);
  EXPECT_EQ(result.reports[0].error[0], 0);
  for (std::size_t k = 1; k < 4; ++k)
    EXPECT_NEAR(result.reports[k].value[0], sampled.reports[k].value[0],
                5 * sampled.reports[k].error[0])
        << result.reports[k].name;
}

TEST(Methods, ClosedFormsOfDifferentFunctions) {
  const Module module = parsed(R"(width n
random x : [2, n] ~ normal(0, [[1, 0.6], [0.6, 2]])
report a = E(step(x[0]) * relu(x[1])), b = E(abs(x[0]) * relu(x[1])), c = E(relu(x[0])^2 * step(-x[1])), d = E(relu(3 * x[0]) * abs(-2 * x[1]))
report e = E(erf(2 * x[0]) * erf(0.5 * x[1])), f = E(relu(x[0])^3 * leaky_relu(x[1], 0.1)), g = E(sin(2 * x[0]) * sin(x[1])), h = E(exp(-x[0]^2) * exp(-3 * x[1]^2))
)");
  const auto exact = limit_of(module, engine(Engine::kMoments)),
             sampled = limit_of(module, particles(262144, 16));
  EXPECT_NEAR(exact.reports[0].value[0],
              (0.6 + std::sqrt(2.0)) / (2 * std::sqrt(2 * std::numbers::pi)), 1e-15);
  for (std::size_t k = 0; k < exact.reports.size(); ++k) {
    EXPECT_EQ(exact.reports[k].method, Method::kClosedForm) << k;
    EXPECT_NEAR(exact.reports[k].value[0], sampled.reports[k].value[0],
                6 * sampled.reports[k].error[0] + 1e-12)
        << k;
  }
}

TEST(Methods, SingularCovariancesAreNoProblem) {
  // x, x + 0 and -x: correlations 1 and -1 exactly.
  const auto result = limit_of(R"(width n
random x : [n] ~ normal(0, 2)
random W : [n, n] ~ normal(0, 1/n)
z = stack(tanh(W @ x), tanh(W @ (2 * x)), tanh(W @ (-x)))
r = stack(relu(W @ x), relu(W @ (2 * x)), relu(W @ (-x)))
report gram(z), gram(r)
)",
                               engine(Engine::kMoments));
  const auto& z = result.reports[0].value;
  EXPECT_NEAR(z[2], -z[0], 1e-14);
  EXPECT_NEAR(z[5], -z[1], 1e-14);
  const double r[] = {1, 2, 0, 2, 4, 0, 0, 0, 1};
  for (std::size_t j = 0; j < 9; ++j) EXPECT_NEAR(result.reports[1].value[j], r[j], 4e-14);
}

/// A function that only its record knows: by name as written out, in moments and in training.
/// square: E phi(z)^2 of N(0, 1).
void expect_the_same(const std::string& name, const std::string& written_out, double square,
                     double tolerance) {
  const auto expectations = [](const std::string& phi) {
    return parsed(fmt::format(R"(width n
random x : [2, n] ~ normal(0, [[1, 0.6], [0.6, 2]])
fn phi(z) = {}
report E(phi(x[0])^2), E(phi(x[0]) * phi(x[1])), E(phi(x[0] - 1) * x[1])
)",
                              phi));
  };
  const auto named = limit_of(expectations(name), engine(Engine::kMoments)),
             written = limit_of(expectations(written_out), engine(Engine::kMoments));
  for (std::size_t k = 0; k < named.reports.size(); ++k) {
    EXPECT_EQ(named.reports[k].method, Method::kQuadrature) << k;
    EXPECT_NEAR(named.reports[k].value[0], written.reports[k].value[0], 1e-13) << k;
  }
  EXPECT_NEAR(named.reports[0].value[0], square, tolerance);
  const auto trained = limit_of(one_sample_a_step(name, "1/2", 4), particles(1024, 2)),
             same = limit_of(one_sample_a_step(written_out, "1/2", 4), particles(1024, 2));
  for (std::size_t t = 0; t < 4; ++t)
    EXPECT_NEAR(trained.reports[0].value[t], same.reports[0].value[t], 1e-10) << t;
}

/// E phi(z)^2 of N(0, 1) by the trapezoidal rule of step h.
template <class F>
double mean_square(F phi, double h) {
  double sum = 0;
  for (double z = -12 + h / 2; z < 12; z += h)
    sum += h * std::pow(phi(z), 2) * std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi);
  return sum;
}

TEST(Softsign, IsTheQuotientItStandsFor) {
  expect_the_same("softsign(z)", "z / (1 + abs(z))",
                  mean_square([](double z) { return z / (1 + std::abs(z)); }, 1e-4), 1e-9);
}

TEST(Mish, IsTheProductItStandsFor) {
  const auto mish = [](double z) {  // tanh(log u) = (u^2 - 1) / (u^2 + 1)
    const double square = std::pow(1 + std::exp(z), 2);
    return z * (square - 1) / (square + 1);
  };
  expect_the_same("mish(z)", "z * tanh(softplus(z))", mean_square(mish, 1e-3), 1e-12);
}

}  // namespace
}  // namespace tplimit::test
