#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numbers>
#include <random>

#include <gtest/gtest.h>

#include "tests/support/run.hpp"

// Gaussian means that a rule with nodes at fixed places gets wrong: oscillations, narrow bells, steep steps, kinks, singular points,
// heavy tails; each against an independent value.
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
void expect_mean(const std::string& text, double value, double tolerance = 1e-12, const std::string& declarations = kOne) {
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
  constexpr std::array<double, 4> x{-0.8611363115940526, -0.3399810435848563, 0.3399810435848563, 0.8611363115940526};
  constexpr std::array<double, 4> w{0.3478548451374538, 0.6521451548625461, 0.6521451548625461, 0.3478548451374538};
  const double half = 12.0 / panels;
  long double sum = 0;
  for (int k = 0; k < panels; ++k)
    for (std::size_t i = 0; i < 4; ++i) {
      const double z = -12 + half * (2 * k + 1) + half * x[i];
      sum += static_cast<long double>(half * w[i] * f(z) * std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi));
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
    expect_mean(fmt::format("sigmoid(cos({} * h))", w), reference([w](double z) { return 1 / (1 + std::exp(-std::cos(w * z))); }));
}

TEST(QuadratureKinds, NarrowFeaturesAreFoundFromTheExpression) {
  const double a = 1e8, b = 1.234;
  expect_mean("exp(-1e8 * (h - 1.234)^2)", std::exp(-a * b * b / (1 + 2 * a)) / std::sqrt(1 + 2 * a));
  expect_mean("tanh(1000 * (h - 0.3))", reference([](double z) { return std::tanh(1000 * (z - 0.3)); }));
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
  for (const char* one : {"floor(sign(h^2))", "floor(step(h^2))", "mod(sign(h^2) + 0.5, 1) + 0.5", "floor(sign(h^4)) ^ 2", "(h^2 > 0)"}) expect_mean(one, 1);
  expect_mean("floor(min(h, 1))", reference([](double z) { return std::floor(std::min(z, 1.0)); }, 240'000), 1e-10);
  expect_mean("floor(2 * clip(h, -1, 0.5))", reference([](double z) { return std::floor(2 * std::clamp(z, -1.0, 0.5)); }, 240'000), 1e-10);
}

TEST(QuadratureKinds, OscillationsOfTwoGaussians) {
  const std::string two = "random h : [2, n] ~ normal(0, [[1, 0.5], [0.5, 1]])\n";
  for (const double w : {12.5, 25.0, 30.0, 47.0}) {
    // cos(w u) sin^2(w v / 2) = cos(w u) (1 - cos(w v)) / 2
    const double cc = 0.5 * (std::exp(-w * w * 0.5) + std::exp(-w * w * 1.5)), c = std::exp(-0.5 * w * w);
    expect_mean(fmt::format("cos({} * h[0]) * sin({} * h[1])^2", w, 0.5 * w), 0.5 * (c - cc), 1e-11, two);
    expect_mean(fmt::format("sin({} * h[0])^2 * sin({} * h[1])^2", w, w), 0.25 * (1 - 2 * std::exp(-2 * w * w) + 0.5 * (std::exp(-2 * w * w) + std::exp(-6 * w * w))), 1e-11, two);
  }
}

// The power of an oscillating layer, measured and by gram.
TEST(QuadratureKinds, SineNetwork) {
  for (const double w : {10.0, 20.0, 30.0, 45.0}) {
    const auto r = run("data X = [[0.4, 0.3], [1, -0.2]]\nrandom U : [n, 2] ~ normal(0, 1)\nz = sin(" + fmt::format("{}", w) + " * (U @ X))\n", "E(z[0]^2), gram(z)[0, 0]");
    ASSERT_TRUE(r);
    EXPECT_NEAR(r->reports[0].value[0], 0.5 * (1 - std::exp(-2 * w * w * 0.25)), 1e-12);
    EXPECT_NEAR(r->reports[0].value[0], r->reports[1].value[0], 1e-12);
  }
}

TEST(QuadratureKinds, InfiniteMeansAreRefusedAndFiniteOnesAreRight) {
  for (const char* f : {"exp(h^2 / 2)", "exp(0.6 * h^2)", "1 / abs(h)", "h^-2", "1 / abs(h - 0.25)", "abs(h)^-1.2", "1 / h", "1 / (h^2 - 1)", "exp(abs(h)^3)"}) EXPECT_TRUE(infinite(f)) << f;
  expect_mean("exp(0.4 * h^2)", 1 / std::sqrt(0.2));
  expect_mean("exp(0.45 * h^2)", 1 / std::sqrt(0.1), 1e-9);
  // E |h|^p = 2^(p/2) Gamma((p + 1) / 2) / sqrt(pi)
  for (const double p : {-0.25, -0.5, -0.75, 0.3})
    expect_mean(fmt::format("abs(h)^{}", p), std::pow(2, p / 2) * std::tgamma((p + 1) / 2) / std::sqrt(std::numbers::pi), 1e-9);
  expect_mean("log(abs(h))", -0.5 * (std::numbers::ln2 + std::numbers::egamma), 1e-9);
  // Of |h - c|: by z = c +- t^2, t^2 the distance.
  const double c = 0.7;
  double sum = 0;
  for (int k = 0; k < 400'000; ++k) {
    const double dt = 4.0 / 400'000, t = (k + 0.5) * dt;
    for (const double side : {-1.0, 1.0}) sum += 2 * dt * std::exp(-0.5 * (c + side * t * t) * (c + side * t * t)) / std::sqrt(2 * std::numbers::pi);
  }
  const Number m = mean("abs(h - 0.7)^-0.5");
  EXPECT_NEAR(m.value, sum, 6 * m.error + 1e-9);
  EXPECT_LE(m.error, 1e-6);
}

// Kinks in two dimensions, correlations up to 1: E relu(u - 0) clip(v) by a fine rule over u, the inner mean in closed form.
double inner_clip(double mean, double sd) {  // E clip(mean + sd z, -1, 1)
  const auto part = [&](double edge) {     // E max(x - edge, 0)
    const double t = (mean - edge) / sd;
    return (mean - edge) * 0.5 * std::erfc(-t / std::numbers::sqrt2) + sd * std::exp(-0.5 * t * t) / std::sqrt(2 * std::numbers::pi);
  };
  return -1 + part(-1) - part(1);
}
TEST(QuadratureKinds, KinkedPairsAtAllCorrelations) {
  for (const double rho : {-0.999, -0.3, 0.0, 0.4, 0.9, 0.97, 0.99, 0.999, 0.99999}) {
    const std::string two = fmt::format("random h : [2, n] ~ normal(0, [[1, {}], [{}, 1]])\n", rho, rho);
    const double s = std::sqrt((1 - rho) * (1 + rho));
    expect_mean("elu(h[0]) * clip(h[1], -1, 1)", reference([&](double z) { return (z > 0 ? z : std::expm1(z)) * inner_clip(rho * z, s); }), 1e-9, two);
    expect_mean("tanh(h[0]) * clip(h[1], -1, 1)", reference([&](double z) { return std::tanh(z) * inner_clip(rho * z, s); }), 1e-9, two);
  }
}

// Random functions of random frequencies, widths and places.
TEST(QuadratureKinds, RandomFunctions) {
  std::mt19937_64 random(20261128);
  const auto uniform = [&](double a, double b) { return a + (b - a) * std::uniform_real_distribution<>(0, 1)(random); };
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
      case 2: return {"exp(-" + g + "^2)", [=](double z) { return std::exp(-inner(z) * inner(z)); }};
      case 3: return {"tanh" + g, [=](double z) { return std::tanh(inner(z)); }};
      case 4: return {"relu" + g, [=](double z) { return std::max(0.0, inner(z)); }};
      case 5: return {"clip(" + g + ", -1, 1)", [=](double z) { return std::clamp(inner(z), -1.0, 1.0); }};
      case 6: return {"elu" + g, [=](double z) { return inner(z) > 0 ? inner(z) : std::expm1(inner(z)); }};
      case 7: return {"sigmoid(cos" + g + ")", [=](double z) { return 1 / (1 + std::exp(-std::cos(inner(z)))); }};
      default: return {"1 / (1 + " + g + "^2)", [=](double z) { return 1 / (1 + inner(z) * inner(z)); }};
    }
  };
  int known = 0;
  constexpr int kCases = 120;
  for (int n = 0; n < kCases; ++n) {
    const Atom a = atom(), b = atom();
    const bool product = n % 3 != 0;
    const std::string text = product ? a.text + " * " + b.text : "tanh(" + a.text + " + " + b.text + ")";
    const double value = reference([&](double z) { return product ? a.f(z) * b.f(z) : std::tanh(a.f(z) + b.f(z)); });
    const auto r = run(kOne, "E(" + text + ")");
    if (!r) continue;
    const Number m{r->reports[0].value[0], r->reports[0].error.empty() ? 0 : r->reports[0].error[0]};
    // The reference has uniform panels: at kinks it is good to the square of their width.
    EXPECT_NEAR(m.value, value, 6 * m.error + 1e-12 + 2e-8 * (text.find("clip") != std::string::npos || text.find("lu") != std::string::npos)) << text;
    known += m.error < 1e-9;
  }
  EXPECT_GT(known, kCases * 9 / 10);
}

}  // namespace
}  // namespace tplimit
