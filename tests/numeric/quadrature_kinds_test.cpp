#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numbers>
#include <random>

#include <gtest/gtest.h>
#include <Eigen/Dense>

#include "tests/support/run.hpp"

// Gaussian means that a rule with nodes at fixed places gets wrong: oscillations, narrow bells,
// steep steps, kinks, singular points, heavy tails; each against an independent value.
namespace tplimit {
namespace {

Result<LimitResult> run(const std::string& declarations, const std::string& reports) {
  EvaluateOptions options;
  options.particles = 4096;
  options.randomisations = 4;
  return evaluate(test::parsed("width n\n" + declarations + "report " + reports + "\n"), options);
}
constexpr const char* kOne = "random h : [n] ~ normal(0, 1)\n";

struct Number {
  double value, error;
};
Number mean(const std::string& text, const std::string& declarations = kOne) {
  const auto r = run(declarations, "E(" + text + ")");
  EXPECT_TRUE(r) << text;
  if (!r) return {NAN, 0};
  return {r->reports[0].value[0], r->reports[0].error.empty() ? 0 : r->reports[0].error[0]};
}
void expect_mean(const std::string& text, double value, double tolerance = 1e-12,
                 const std::string& declarations = kOne) {
  const Number m = mean(text, declarations);
  EXPECT_NEAR(m.value, value, 6 * m.error + 1e-13) << text;
  EXPECT_LE(m.error, tolerance) << text;
}
bool infinite(const std::string& text, const std::string& declarations = kOne) {
  const auto r = run(declarations, "E(" + text + ")");
  return !r && r.errors()[0].code == "E4102";
}

/// Composite Gauss-Legendre rule of 4 points, uniform panels.
double reference(const std::function<double(double)>& f, int panels = 200'000) {
  constexpr std::array<double, 4> x{-0.8611363115940526, -0.3399810435848563, 0.3399810435848563,
                                    0.8611363115940526};
  constexpr std::array<double, 4> w{0.3478548451374538, 0.6521451548625461, 0.6521451548625461,
                                    0.3478548451374538};
  const double half = 12.0 / panels;
  long double sum = 0;
  for (int k = 0; k < panels; ++k)
    for (std::size_t i = 0; i < 4; ++i) {
      const double z = -12 + half * (2 * k + 1) + half * x[i];
      sum += static_cast<long double>(half * w[i] * f(z) * std::exp(-0.5 * z * z) /
                                      std::sqrt(2 * std::numbers::pi));
    }
  return static_cast<double>(sum);
}

TEST(QuadratureKinds, OscillationsAreNotSampledInPhase) {
  for (int k = 20; k <= 160; k += 3) {
    const double w = 0.5 * k;
    expect_mean(fmt::format("sin({} * h)^2", w), 0.5 * (1 - std::exp(-2 * w * w)));
    expect_mean(fmt::format("cos({} * h) * sigmoid(h)", w), 0.5 * std::exp(-0.5 * w * w));
  }
  for (const double w : {12.5, 25.0, 25.13274122871834, 50.26548245743669, 77.0})
    expect_mean(fmt::format("sigmoid(cos({} * h))", w),
                reference([w](double z) { return 1 / (1 + std::exp(-std::cos(w * z))); }));
}

TEST(QuadratureKinds, NarrowFeaturesAreFoundFromTheExpression) {
  const double a = 1e8, b = 1.234;
  expect_mean("exp(-1e8 * (h - 1.234)^2)",
              std::exp(-a * b * b / (1 + 2 * a)) / std::sqrt(1 + 2 * a));
  expect_mean("tanh(1000 * (h - 0.3))",
              reference([](double z) { return std::tanh(1000 * (z - 0.3)); }));
  expect_mean("abs(sin(20 * h))", 2 / std::numbers::pi);  // but for exp(-800)
  // E e^h 1[h > c] = sqrt(e) P(h > c - 1); conditions that are 0 on a part of a panel.
  const double above = std::exp(0.5) * 0.5 * std::erfc((0.3 - 1) / std::numbers::sqrt2);
  expect_mean("where(h > 0.3, exp(h), 0)", above);
  expect_mean("exp(h) * step(relu(h - 0.3))", above);
  expect_mean("where(relu(h - 0.3), exp(h), 0)", above);
  expect_mean("exp(h) * sign(max(h, 0.3) - 0.3)", above);
  expect_mean("where(abs(h - 0.3) == h - 0.3, exp(h), 0)", above);
}

// cov(h0, h1) = 1/2: E f(h0) g(h1) of oscillations is known.
TEST(QuadratureKinds, WhatOnePointDoesIsNotWhatItsNeighboursDo) {
  // sign(h^2) is 0 at 0 and 1 elsewhere; min(h, 1) stays on a jump of floor.
  for (const char* one : {"floor(sign(h^2))", "floor(step(h^2))", "mod(sign(h^2) + 0.5, 1) + 0.5",
                          "floor(sign(h^4)) ^ 2", "(h^2 > 0)"})
    expect_mean(one, 1);
  expect_mean("floor(min(h, 1))",
              reference([](double z) { return std::floor(std::min(z, 1.0)); }, 240'000), 1e-10);
  expect_mean("floor(2 * clip(h, -1, 0.5))",
              reference([](double z) { return std::floor(2 * std::clamp(z, -1.0, 0.5)); }, 240'000),
              1e-10);
}

TEST(QuadratureKinds, OscillationsOfTwoGaussians) {
  const std::string two = "random h : [2, n] ~ normal(0, [[1, 0.5], [0.5, 1]])\n";
  for (const double w : {12.5, 25.0, 30.0, 47.0}) {
    // cos(w u) sin^2(w v / 2) = cos(w u) (1 - cos(w v)) / 2
    const double cc = 0.5 * (std::exp(-w * w * 0.5) + std::exp(-w * w * 1.5)),
                 c = std::exp(-0.5 * w * w);
    expect_mean(fmt::format("cos({} * h[0]) * sin({} * h[1])^2", w, 0.5 * w), 0.5 * (c - cc), 1e-11,
                two);
    expect_mean(
        fmt::format("sin({} * h[0])^2 * sin({} * h[1])^2", w, w),
        0.25 * (1 - 2 * std::exp(-2 * w * w) + 0.5 * (std::exp(-2 * w * w) + std::exp(-6 * w * w))),
        1e-11, two);
  }
}

// The power of an oscillating layer, measured and by gram.
TEST(QuadratureKinds, SineNetwork) {
  for (const double w : {10.0, 20.0, 30.0, 45.0}) {
    const auto r =
        run("data X = [[0.4, 0.3], [1, -0.2]]\nrandom U : [n, 2] ~ normal(0, 1)\nz = sin(" +
                fmt::format("{}", w) + " * (U @ X))\n",
            "E(z[0]^2), gram(z)[0, 0]");
    ASSERT_TRUE(r);
    EXPECT_NEAR(r->reports[0].value[0], 0.5 * (1 - std::exp(-2 * w * w * 0.25)), 1e-12);
    EXPECT_NEAR(r->reports[0].value[0], r->reports[1].value[0], 1e-12);
  }
}

TEST(QuadratureKinds, InfiniteMeansAreRefusedAndFiniteOnesAreRight) {
  for (const char* f : {"exp(h^2 / 2)", "exp(0.6 * h^2)", "1 / abs(h)", "h^-2", "1 / abs(h - 0.25)",
                        "abs(h)^-1.2", "1 / h", "1 / (h^2 - 1)", "exp(abs(h)^3)", "1 / tanh(h)",
                        "1 / abs(tanh(h))", "tanh(h)^-2", "1 / tanh(h - 0.3)^2",
                        "1 / abs(tanh(tanh(h)))", "1 / (2 * sigmoid(h) - 1)^2", "exp(exp(h))"})
    EXPECT_TRUE(infinite(f)) << f;
  expect_mean("exp(0.4 * h^2)", 1 / std::sqrt(0.2));
  expect_mean("exp(0.45 * h^2)", 1 / std::sqrt(0.1), 1e-9);
  // E |h|^p = 2^(p/2) Gamma((p + 1) / 2) / sqrt(pi)
  for (const double p : {-0.25, -0.5, -0.75, 0.3})
    expect_mean(fmt::format("abs(h)^{}", p),
                std::pow(2, p / 2) * std::tgamma((p + 1) / 2) / std::sqrt(std::numbers::pi), 1e-9);
  expect_mean("log(abs(h))", -0.5 * (std::numbers::ln2 + std::numbers::egamma), 1e-9);
  // Of |h - c|: by z = c +- t^2, t^2 the distance.
  const double c = 0.7;
  double sum = 0;
  for (int k = 0; k < 400'000; ++k) {
    const double dt = 4.0 / 400'000, t = (k + 0.5) * dt;
    for (const double side : {-1.0, 1.0})
      sum += 2 * dt * std::exp(-0.5 * (c + side * t * t) * (c + side * t * t)) /
             std::sqrt(2 * std::numbers::pi);
  }
  const Number m = mean("abs(h - 0.7)^-0.5");
  EXPECT_NEAR(m.value, sum, 6 * m.error + 1e-9);
  EXPECT_LE(m.error, 1e-6);
}

// Where rounding or overflow ends the numbers before the density does.
TEST(QuadratureKinds, MeansOfWhatIsInfiniteFarOut) {
  const std::string uniform = "random r : [n] ~ uniform(0, 1)\n";
  expect_mean("log(r)", -1, 1e-11, uniform);
  expect_mean("log(1 - r)", -1, 1e-11, uniform);
  expect_mean("log(r)^2", 2, 1e-9, uniform);
  expect_mean("log(1 - r) * r", -0.75, 1e-11, uniform);
  expect_mean("-log(-log(r))", std::numbers::egamma, 1e-10, uniform);
  expect_mean("1 / sqrt(r)", 2, 1e-5, uniform);
  for (const char* f : {"1 / r", "1 / (1 - r)", "r^-1.5"}) EXPECT_TRUE(infinite(f, uniform)) << f;
  for (const double a : {19.0, -30.0})  // exp(a h) overflows
    expect_mean(fmt::format("log(1 + exp({} * h))", a), reference([a](double h) {
                  return std::max(a * h, 0.0) + std::log1p(std::exp(-std::abs(a * h)));
                }),
                1e-11);
}

// E exp(-|u|^2) = det(I + 2 Cov u)^(-1/2), u of more dimensions than any quadrature has.
TEST(QuadratureKinds, ExponentialsOfFormsOfManyGaussians) {
  constexpr int kSize = 5;
  Eigen::MatrixXd K(kSize, kSize);
  for (int i = 0; i < kSize; ++i)
    for (int j = 0; j < kSize; ++j) K(i, j) = 1 / (1.0 + std::abs(i - j));
  std::string rows;
  for (int i = 0; i < kSize; ++i) {
    rows += i > 0 ? ", [" : "[";
    for (int j = 0; j < kSize; ++j) rows += fmt::format("{}{}", j > 0 ? ", " : "", K(i, j));
    rows += "]";
  }
  const Eigen::MatrixXd M = Eigen::MatrixXd::Identity(kSize, kSize) + 2 * K;
  expect_mean("exp(-sum(h^2, axis = 0))", 1 / std::sqrt(M.determinant()), 1e-12,
              fmt::format("random h : [{}, n] ~ normal(0, [{}])\n", kSize, rows));
}

// Quotients by quadratic forms: |u| and u / |u| are independent.
TEST(QuadratureKinds, InversePowersOfQuadraticForms) {
  const std::string three = "random h : [3, n] ~ normal(0, 1)\n";
  const double pi = std::numbers::pi;
  const std::string square = "(h[0]^2 + h[1]^2 + h[2]^2)", plane = "(h[0]^2 + h[1]^2)";
  expect_mean("1 / " + square, 1, 1e-12, three);
  expect_mean("1 / sqrt" + square, std::sqrt(2 / pi), 1e-12, three);
  expect_mean(plane + "^-0.5", std::sqrt(pi / 2), 1e-12, three);
  expect_mean(plane + "^-0.25", std::tgamma(0.75) * std::pow(2, -0.25), 1e-12, three);
  expect_mean("h[0]^4 * " + square + "^-2", 1.0 / 5, 1e-12, three);
  expect_mean("abs(h[0] / sqrt" + plane + ")", 2 / pi, 1e-12, three);
  expect_mean("max(h[0] / sqrt" + plane + ", h[1] / sqrt" + plane + ")", std::sqrt(2) / pi, 1e-12,
              three);
  expect_mean("step(h[0] / sqrt" + square + ")", 0.5, 1e-12, three);
  expect_mean("relu(h[2])^2 * h[0]^2 / " + plane, 0.25, 1e-12, three);
  expect_mean("leaky_relu(h[0] / sqrt" + square + ", 0.2)", 0.8 * 0.25, 1e-12, three);
  expect_mean("where(h[0] / sqrt" + square + " > 0, h[0] / sqrt" + square + ", 0)", 0.25, 1e-12,
              three);
  // E 1 / (u^2 + c): c = 1: of chi^2 with two degrees, -Ei(-1/2) exp(1/2) / 2.
  expect_mean("1 / (1 + " + plane + ")", 0.5 * std::exp(0.5) * -std::expint(-0.5), 1e-12, three);
  // Far apart: E u^2 / (u^2 + a^2 v^2) = 1 / (1 + a).
  for (const double a : {1e-7, 1e-3, 30.0})
    expect_mean(fmt::format("h[0]^2 / (h[0]^2 + {} * h[1]^2)", a * a), 1 / (1 + a), 1e-12, three);
  EXPECT_TRUE(infinite("1 / " + plane, three));
  EXPECT_TRUE(infinite("h[2]^2 * " + plane + "^-1.5", three));
  EXPECT_FALSE(infinite("h[1]^2 * " + plane + "^-1.5", three));
  EXPECT_FALSE(infinite(plane + "^-0.9", three));
}

// Kinks in two dimensions, correlations up to 1: E relu(u - 0) clip(v) by a fine rule over u, the
// inner mean in closed form.
double inner_clip(double mean, double sd) {  // E clip(mean + sd z, -1, 1)
  const auto part = [&](double edge) {       // E max(x - edge, 0)
    const double t = (mean - edge) / sd;
    return (mean - edge) * 0.5 * std::erfc(-t / std::numbers::sqrt2) +
           sd * std::exp(-0.5 * t * t) / std::sqrt(2 * std::numbers::pi);
  };
  return -1 + part(-1) - part(1);
}
TEST(QuadratureKinds, KinkedPairsAtAllCorrelations) {
  for (const double rho : {-0.999, -0.3, 0.0, 0.4, 0.9, 0.97, 0.99, 0.999, 0.99999}) {
    const std::string two =
        fmt::format("random h : [2, n] ~ normal(0, [[1, {}], [{}, 1]])\n", rho, rho);
    const double s = std::sqrt((1 - rho) * (1 + rho));
    expect_mean("elu(h[0]) * clip(h[1], -1, 1)", reference([&](double z) {
                  return (z > 0 ? z : std::expm1(z)) * inner_clip(rho * z, s);
                }),
                1e-9, two);
    expect_mean("tanh(h[0]) * clip(h[1], -1, 1)",
                reference([&](double z) { return std::tanh(z) * inner_clip(rho * z, s); }), 1e-9,
                two);
  }
}

// Random functions of random frequencies, widths and places.
TEST(QuadratureKinds, RandomFunctions) {
  std::mt19937_64 random(20261128);
  const auto uniform = [&](double a, double b) {
    return a + (b - a) * std::uniform_real_distribution<>(0, 1)(random);
  };
  struct Atom {
    std::string text;
    std::function<double(double)> f;
  };
  const auto atom = [&]() -> Atom {
    const double w = std::exp(uniform(-1, 4.4)), c = std::round(1000 * uniform(-2, 2)) / 1000;
    const double k = std::round(1000 * w) / 1000;
    const auto inner = [k, c](double z) { return k * (z - c); };
    const std::string g = fmt::format("({} * (h - {}))", k, c);
    switch (static_cast<int>(uniform(0, 9))) {
      case 0: return {"sin" + g, [=](double z) { return std::sin(inner(z)); }};
      case 1: return {"cos" + g, [=](double z) { return std::cos(inner(z)); }};
      case 2:
        return {"exp(-" + g + "^2)", [=](double z) { return std::exp(-inner(z) * inner(z)); }};
      case 3: return {"tanh" + g, [=](double z) { return std::tanh(inner(z)); }};
      case 4: return {"relu" + g, [=](double z) { return std::max(0.0, inner(z)); }};
      case 5:
        return {"clip(" + g + ", -1, 1)",
                [=](double z) { return std::clamp(inner(z), -1.0, 1.0); }};
      case 6:
        return {"elu" + g,
                [=](double z) { return inner(z) > 0 ? inner(z) : std::expm1(inner(z)); }};
      case 7:
        return {"sigmoid(cos" + g + ")",
                [=](double z) { return 1 / (1 + std::exp(-std::cos(inner(z)))); }};
      default:
        return {"1 / (1 + " + g + "^2)", [=](double z) { return 1 / (1 + inner(z) * inner(z)); }};
    }
  };
  int known = 0;
  constexpr int kCases = 120;
  for (int n = 0; n < kCases; ++n) {
    const Atom a = atom(), b = atom();
    const bool product = n % 3 != 0;
    const std::string text =
        product ? a.text + " * " + b.text : "tanh(" + a.text + " + " + b.text + ")";
    const double value =
        reference([&](double z) { return product ? a.f(z) * b.f(z) : std::tanh(a.f(z) + b.f(z)); });
    const auto r = run(kOne, "E(" + text + ")");
    if (!r) continue;
    const Number m{r->reports[0].value[0],
                   r->reports[0].error.empty() ? 0 : r->reports[0].error[0]};
    // The reference has uniform panels: at kinks it is good to the square of their width.
    EXPECT_NEAR(
        m.value, value,
        6 * m.error + 1e-12 +
            2e-8 * (text.find("clip") != std::string::npos || text.find("lu") != std::string::npos))
        << text;
    known += m.error < 1e-9;
  }
  EXPECT_GT(known, kCases * 9 / 10);
}

constexpr const char* kTwo = "random h : [2, n] ~ normal(0, [[1, 0.5], [0.5, 1]])\n";

TEST(QuadratureKinds, ExponentialsOfQuadraticForms) {
  expect_mean("exp(h[0] * h[1] / 2)", 1 / std::sqrt(0.3125), 1e-12,
              kTwo);  // |I - S/2 [[0, 1], [1, 0]]| = (1 - 3/4) (1 + 1/4)
  expect_mean("1 / exp(h[0] * h[1] / 2)", 1 / std::sqrt(1.3125), 1e-12, kTwo);
  expect_mean("exp(h[0] * h[1] / 4)^2", 1 / std::sqrt(0.3125), 1e-12, kTwo);
  expect_mean("exp(0.499 * h^2)", 1 / std::sqrt(0.002), 1e-9);
  expect_mean("h^4 * exp(0.49 * h^2)", 3 / std::pow(0.02, 2.5), 1e-6);
  expect_mean("abs(h) * exp(0.4 * h^2)", std::sqrt(2 / std::numbers::pi) / 0.2, 1e-11);
  expect_mean("exp(0.3 * h^2) * cos(5 * h)", std::exp(-12.5 / 0.4) / std::sqrt(0.4), 1e-12);
  // E e^(30 h) sigmoid(h) = e^450 (1 - e^-30 e^(1/2) + ..)
  const Number m = mean("exp(30 * h) * sigmoid(h)");
  EXPECT_NEAR(m.value / std::exp(450), 1 - std::exp(-29.5), 1e-12);
  EXPECT_LE(m.error / m.value, 1e-10);
  // A matrix between: E W'tanh(.).. needs derivatives of such exponentials.
  const auto r = run(
      "random h : [n] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, 1/n)\ny = W @ exp(h^2 / 5)\n",
      "E(y^2)");
  ASSERT_TRUE(r);
  EXPECT_NEAR(r->reports[0].value[0], 1 / std::sqrt(0.2), 1e-11);
}

TEST(QuadratureKinds, InfiniteMeansOfSumsAndOddFunctions) {
  for (const char* f : {"h * exp(h^2)", "1 / h", "h^-3", "tanh(h) * exp(h^2)", "h * exp(h^4)",
                        "exp(h^2 / 2) + tanh(h)", "exp(h^2 / 2) - exp(h)", "1 / abs(h) + h^2"})
    EXPECT_TRUE(infinite(f)) << f;
  for (const char* f : {"exp(h[0] * h[1] / 1.5)", "exp(h[0] * h[1])", "h[0] * exp(h[1]^2)",
                        "exp(h[0] * h[1]) * tanh(h[0])", "exp(h[0] * h[1]) * sigmoid(h[1])",
                        "exp(h[0] * h[1]) + h[0]", "exp((h[0] - h[1])^2)"})
    EXPECT_TRUE(infinite(f, kTwo)) << f;
  EXPECT_TRUE(infinite("(W @ exp(0.3 * h^2))^2",
                       "random h : [n] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, 1/n)\n"));
  // Symmetry proves what it proved before.
  for (const char* f : {"h * exp(-h^2)", "h / (1 + h^2)", "tanh(h) * exp(0.3 * h^2)"})
    expect_mean(f, 0);
  // A factor that vanishes where the exponential grows: E (u^+ v^-) exp(u v) is finite.
  EXPECT_FALSE(infinite("exp(h[0] * h[1]) * relu(h[0]) * relu(-h[1])", kTwo));
}

// Sampling shows nothing of a mean behind a product with a matrix.
TEST(QuadratureKinds, ParticlesRefuseInfiniteMeans) {
  for (const char* f : {"exp(h^2 / 2)", "1 / abs(h)", "1 / h^2", "tanh(W @ exp(0.3 * h^2))",
                        "tanh(W @ (1 / abs(h)))", "h * exp(h^2)"})
    for (const std::uint64_t seed : {1u, 2u, 3u}) {
      EvaluateOptions options;
      options.engine = Engine::kParticles;
      options.particles = 1024;
      options.randomisations = 2;
      options.seed = seed;
      const auto r =
          evaluate(test::parsed(fmt::format(
                       "width n\n{}random W : [n, n] ~ normal(0, 1/n)\nreport E({})\n", kOne, f)),
                   options);
      ASSERT_FALSE(r) << f;
      EXPECT_EQ(r.errors()[0].code, "E4102") << f;
    }
}

// exp of random forms of 2 or 3 Gaussians, times polynomials and bounded functions.
TEST(QuadratureKinds, RandomExponentialsOfQuadraticForms) {
  std::mt19937_64 random(20261129);
  const auto uniform = [&](double a, double b) {
    return std::round(1000 * (a + (b - a) * std::uniform_real_distribution<>(0, 1)(random))) / 1000;
  };
  for (int n = 0; n < 120; ++n) {
    const Eigen::Index dim = 2 + n % 2;
    Eigen::MatrixXd root(dim, dim), form(dim, dim);
    Eigen::VectorXd slope(dim);
    for (Eigen::Index i = 0; i < dim; ++i) {
      slope(i) = n % 3 == 0 ? uniform(-0.5, 0.5) : 0;
      for (Eigen::Index j = 0; j < dim; ++j) root(i, j) = uniform(-1, 1);
    }
    for (Eigen::Index i = 0; i < dim; ++i)
      for (Eigen::Index j = 0; j <= i; ++j) form(i, j) = form(j, i) = uniform(-1, 1);
    const Eigen::MatrixXd covariance =
        root * root.transpose() + 0.05 * Eigen::MatrixXd::Identity(dim, dim);
    const Eigen::MatrixXd lower = covariance.llt().matrixL();
    const double most =
        Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(2 * lower.transpose() * form * lower)
            .eigenvalues()
            .maxCoeff();
    const bool diverges = n % 4 == 3;
    if (diverges && most <= 0.1) continue;
    form *=
        (diverges ? uniform(1.01, 2) : uniform(0.1, 0.8)) / (diverges ? most : std::max(most, 0.5));
    std::string rows, exponent;
    for (Eigen::Index i = 0; i < dim; ++i) {
      rows += i > 0 ? ", [" : "[";
      for (Eigen::Index j = 0; j < dim; ++j) {
        rows += fmt::format("{}{:.17g}", j > 0 ? ", " : "", covariance(i, j));
        exponent += fmt::format("{}{:.17g} * h[{}] * h[{}]", exponent.empty() ? "" : " + ",
                                form(i, j), i, j);
      }
      rows += "]";
      exponent += fmt::format(" + {:.17g} * h[{}]", slope(i), i);
    }
    const std::string declarations =
        fmt::format("random h : [{}, n] ~ normal(0, [{}])\n", dim, rows);
    const std::string whole = "exp(" + exponent + ")";
    SCOPED_TRACE(declarations + whole);
    if (diverges) {
      for (const char* other : {"", " * h[1]", " * sigmoid(h[0])", " + tanh(h[1])"})
        EXPECT_TRUE(infinite(whole + other, declarations)) << other;
      continue;
    }
    // By completing the square.
    const Eigen::MatrixXd moved = (covariance.inverse() - 2 * form).inverse();
    const Eigen::VectorXd mean = moved * slope;
    const double factor =
        std::sqrt(moved.determinant() / covariance.determinant()) * std::exp(0.5 * slope.dot(mean));
    const auto near = [&](const std::string& text, double value, double size) {
      const auto r = run(declarations, "E(" + text + ")");
      ASSERT_TRUE(r) << text;
      const double error = r->reports[0].error.empty() ? 0 : r->reports[0].error[0];
      EXPECT_NEAR(r->reports[0].value[0], value, 6 * error + 1e-11 * size) << text;
      EXPECT_LE(error, 1e-9 * size) << text;
    };
    near(whole, factor, factor);
    near(whole + " * h[0] * h[1]", factor * (moved(0, 1) + mean(0) * mean(1)),
         factor * (1 + moved.diagonal().sum()));
    near(whole + " * (h[0] - h[1])^2",
         factor * (moved(0, 0) - 2 * moved(0, 1) + moved(1, 1) +
                   (mean(0) - mean(1)) * (mean(0) - mean(1))),
         factor * (1 + moved.diagonal().sum()));
    near(whole + " * cos(2 * h[0] + h[1])",
         factor * std::exp(-0.5 * (4 * moved(0, 0) + 4 * moved(0, 1) + moved(1, 1))) *
             std::cos(2 * mean(0) + mean(1)),
         factor);
    const double sd = std::sqrt(moved(0, 0)), z = mean(0) / sd;
    near(whole + " * relu(h[0])",
         factor * (mean(0) * 0.5 * std::erfc(-z / std::numbers::sqrt2) +
                   sd * std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi)),
         factor * (1 + sd));
    near(whole + " * tanh(h[1])",
         factor *
             reference([&](double x) { return std::tanh(mean(1) + std::sqrt(moved(1, 1)) * x); },
                       4000),
         factor);
  }
}

}  // namespace
}  // namespace tplimit
