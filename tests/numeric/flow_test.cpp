/// Gradient flow, `step flow`: against closed forms, against itself with other steps, against
/// finite networks; and what else belongs to long training: alternating steps, schedules.

#include <cmath>
#include <string>
#include <vector>

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

/// One hidden layer, linear, orthogonal inputs X X' = 2: docs/theory.md, "Gradient flow".
std::string two_layer_linear(double gamma, int steps, int substeps) {
  return fmt::format(R"(width n
data X = [[1, 1], [1, -1]]
data y = [1, -0.5]
param U : [n, 2] ~ normal(0, 1), lr = {0}^2 * n
param v : [n] ~ normal(0, 1), lr = {0}^2 * n
model f(x) {{ return v @ (U @ x) / ({0} * n) }}
for t in 0..{1} {{
  loss = mse(f(X), y)
  report loss
  step flow(loss, dt = 2 / {1}, steps = {2})
}}
report out = f(X)
)",
                     gamma, steps, substeps);
}

std::vector<double> exact_two_layer_linear(double gamma, double time) {
  const std::vector<double> y{1, -0.5};
  const double size = std::sqrt(1.25), Y = gamma * size / std::sqrt(2.0), R = std::sqrt(1 + Y * Y);
  const double rho = (Y + R - 1) / (1 - Y + R) * std::exp(-2 * R * time),
               w = (Y + R + (Y - R) * rho) / (1 + rho);
  const double A = (w - 1 / w) / 2;
  return {A / Y * y[0], A / Y * y[1]};
}

double error_of(const LimitResult& r, const std::vector<double>& exact) {
  double out = 0;
  for (std::size_t p = 0; p < exact.size(); ++p)
    out = std::max(out, std::abs(report(r, "out").value[p] - exact[p]));
  return out;
}

TEST(GradientFlow, TwoLayerLinearNetworkFollowsTheClosedForm) {
  for (const double gamma : {0.1, 1.0, 3.0})
    EXPECT_LE(
        error_of(limit_of(two_layer_linear(gamma, 200, 1), {}), exact_two_layer_linear(gamma, 2)),
        1e-7)
        << "gamma = " << gamma;
}

// Local errors h^5 add up to h^4; the next term changes the ratio by about h: 16 within a quarter
// at h <= 1/20.
TEST(GradientFlow, IsOfOrderFour) {
  const auto exact = exact_two_layer_linear(2, 2);
  double before = error_of(limit_of(two_layer_linear(2, 40, 1), {}), exact);
  for (const int substeps : {2, 4}) {
    const double now = error_of(limit_of(two_layer_linear(2, 40, substeps), {}), exact);
    EXPECT_NEAR(before / now, 16, 4) << substeps << " substeps";
    before = now;
  }
}

TEST(GradientFlow, SubstepsAreSmallerSteps) {
  const auto one = limit_of(two_layer_linear(2, 40, 1), {}),
             many = limit_of(two_layer_linear(2, 10, 4), {});
  for (std::size_t p = 0; p < 2; ++p)
    EXPECT_NEAR(report(one, "out").value[p], report(many, "out").value[p], 1e-14);
}

// The estimate is of the companion of order 3: h^4 for one step, and never below the error made.
TEST(GradientFlow, ReportsAnErrorThatCoversTheLoss) {
  const auto loss = [](const LimitResult& r) { return report(r, "loss").value[1]; };
  const auto estimate = [](const LimitResult& r) {
    return report(r, "flow error of loss").value[0];
  };
  std::vector<double> estimates;
  for (const int steps : {8, 16, 32}) {
    const auto out = exact_two_layer_linear(1, 2.0 / steps);
    const double exact = ((out[0] - 1) * (out[0] - 1) + (out[1] + 0.5) * (out[1] + 0.5)) / 4;
    const auto r = limit_of(two_layer_linear(1, steps, 1), {});
    EXPECT_LT(std::abs(loss(r) - exact), estimate(r)) << steps << " steps";
    EXPECT_LT(estimate(r), 0.01 * exact) << steps << " steps";
    estimates.push_back(estimate(r));
  }
  EXPECT_NEAR(estimates[1] / estimates[2], 16, 4);
}

// (a) Features fixed: the flow of the tangent kernel.
TEST(GradientFlow, LazyTrainingFollowsTheTangentKernel) {
  const std::string program = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
data X2 = [[0.3, 0.3]]
parametrization mup
param U : input [n, 2] ~ normal(0, 1)
param W : hidden [n, n] ~ normal(0, 1)
param b : bias [n] ~ normal(0, 0.1)
param v : output [n] ~ normal(0, 1)
param c : bias [] ~ normal(0, 0)
model f(x) { return v @ tanh(W @ tanh(U @ x) + b) + c }
report kernel = predict_gd(ntk(f, X), ntk(f, X), y, lr = 1, time = 0.5), kernel2 = predict_gd(ntk(f, X), ntk(f, X2, X), y, lr = 1, time = 0.5)
for t in 0..4 { step flow(mse(f(X), y), dt = 0.125) }
report out = f(X), out2 = f(X2)
)";
  const auto limit = [&](bool lazy, const EvaluateOptions& options) {
    auto module = parse(Source("test.tp", program), {}, {{}, false, lazy});
    if (!module) throw std::runtime_error(render(module.errors(), Source("test.tp", program)));
    return limit_of(*module, options);
  };
  const auto lazy = limit(true, {}), full = limit(false, particles(512, 2));
  double moved = 0;
  for (const std::string suffix : {"", "2"}) {
    const auto &kernel = report(lazy, "kernel" + suffix), &out = report(lazy, "out" + suffix);
    for (std::size_t j = 0; j < out.value.size(); ++j) {
      EXPECT_NEAR(out.value[j], kernel.value[j], 1e-6);
      moved = std::max(moved, std::abs(report(full, "out" + suffix).value[j] - kernel.value[j]));
    }
  }
  EXPECT_GT(moved, 1e-3);  // features that move make a difference far above that
}

// In the kernel regime a step multiplies the residual by 1 - z + z^2/2 - z^3/6 + z^4/24, z = dt
// Theta / P: to rounding, from a random output.
TEST(GradientFlow, KernelRegimeIsThePolynomialOfTheMethod) {
  const auto r = limit_of(R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, -0.7]]
data y = [1, -1, 0.5]
parametrization ntk
param U : input [n, 2] ~ normal(0, 1)
param W : hidden [n, n] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
model f(x) { return v @ tanh(W @ tanh(U @ x)) }
Z = 0.4 / 3 * ntk(f, X)
by_kernel = f(X)
for t in 0..3 {
  report f(X) - by_kernel
  step flow(mse(f(X), y), dt = 0.4)
  e = by_kernel - y
  by_kernel = y + e - Z @ e + Z @ (Z @ e) / 2 - Z @ (Z @ (Z @ e)) / 6 + Z @ (Z @ (Z @ (Z @ e))) / 24
}
)",
                          {});
  for (const double x : r.reports[0].value) EXPECT_NEAR(x, 0, 1e-9);
}

// Arrays of matrices, two widths, W and W' in one network, finite parameters: polynomial, so that
// all is exact for any number of particles; against Richardson's extrapolation of descent with 10,
// 20 and 40 small steps, whose error is of order three in the step.
TEST(GradientFlow, IsWhereSmallStepsOfDescentTendTo) {
  const auto program = [](const std::string& training) {
    return R"(width n, m = 2 n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [m, 2] ~ normal(0, 1 / 2), lr = n
param W : [2, m, m] ~ normal(0, 1 / m)
param V : [n, m] ~ normal(0, 1 / m)
param v : [n] ~ normal(0, 1), lr = n
param a : [2] ~ normal(1, 0)
param c : [] ~ normal(0, 0)
model f(x) {
  h = U @ x
  for l in 0..2 { h = h + W[l] @ h / 2 }
  return (a[0] * (v @ (V @ h)) + a[1] * (v @ (V @ (W[0]' @ h)))) / n + c
}
)" + training +
           "report out = f(X), a, c\n";
  };
  const auto value = [&](const std::string& training) {
    const auto r = limit_of(program(training), particles(1024, 2));
    std::vector<double> out;
    for (const char* name : {"out", "a", "c"})
      for (const double x : report(r, name).value) out.push_back(x);
    return out;
  };
  const auto descent = [&](int steps) {
    return value(
        fmt::format("for t in 0..{} {{ step sgd(mse(f(X), y), lr = 0.08 / {}) }}\n", steps, steps));
  };
  const auto flow = value("for t in 0..2 { step flow(mse(f(X), y), dt = 0.04, steps = 2) }\n");
  const auto d1 = descent(10), d2 = descent(20), d4 = descent(40);
  for (std::size_t k = 0; k < flow.size(); ++k) {
    const double extrapolated = (8 * d4[k] - 6 * d2[k] + d1[k]) / 3;
    EXPECT_LT(std::abs(flow[k] - extrapolated), 0.02 * std::abs(flow[k] - d4[k]))
        << k << ": " << flow[k] << " " << extrapolated << " " << d4[k];
    EXPECT_GT(std::abs(flow[k] - d4[k]), 1e-6) << k;  // the steps matter
  }
}

TEST(GradientFlow, NetworksTendToTheLimit) {
  const std::string program = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, -0.7]]
data y = [1, -1, 0.5]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [2, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  z = tanh(U @ x)
  for l in 0..2 { z = tanh(W[l] @ z) + W[l]' @ z / 2 }
  return v @ z / n
}
for t in 0..3 { step flow(mse(f(X), y), dt = 0.5) }
report out = f(X)
)";
  const auto limit = limit_of(program, particles(8192));
  const auto dense = networks_of(program, 256, 64, Matrices::kDense),
             lazy = networks_of(program, 1024, 16, Matrices::kLazy);
  for (std::size_t p = 0; p < 3; ++p)
    for (const auto& [r, width] : {std::pair{&dense, 256.0}, std::pair{&lazy, 1024.0}})
      EXPECT_NEAR(
          report(*r, "out").value[p], report(limit, "out").value[p],
          4 * std::hypot(report(*r, "out").error[p], report(limit, "out").error[p]) + 2 / width)
          << width;
}

// c' = -c^3 from 1: c = 1/sqrt(1 + 2 t).  A parameter with gradient 0 stays, one that starts to
// move only inside the step moves.
TEST(GradientFlow, FiniteParameters) {
  const auto r = limit_of(R"(width n
param c : [] ~ normal(1, 0)
param d : [2] ~ normal(0, 0)
param e : [] ~ normal(0, 0)
for t in 0..10 { step flow(c^4 / 4 + sum(d * e)^2, dt = 0.1, steps = 2) }
report c, d, e
param p : [] ~ normal(0, 0)
param q : [] ~ normal(1, 0)
step flow((p - q)^2 / 2 + (q - 1)^4, dt = 0.1, steps = 20, scale = {p: 1, q: 0})
report p, q
)",
                          {});
  EXPECT_NEAR(report(r, "c").value[0], 1 / std::sqrt(3.0), 1e-7);
  for (const char* zero : {"d", "e"})
    for (const double x : report(r, zero).value) EXPECT_EQ(x, 0);
  EXPECT_NEAR(report(r, "p").value[0], 1 - std::exp(-0.1), 1e-12);
  EXPECT_EQ(report(r, "q").value[0], 1);
}

// Two players: x' = -y, y' = x from (1, 0) is a rotation; one flow of a sum is two flows of its
// parts.
TEST(GradientFlow, SimultaneousLosses) {
  const auto r = limit_of(R"(width n
param x : [] ~ normal(1, 0)
param y : [] ~ normal(0, 0)
for t in 0..8 { step flow(x * y, dt = 0.125, only = x, steps = 2), flow(-x * y, dt = 0.125, only = y, steps = 2) }
report x, y
param U : [n] ~ normal(0, 1), lr = n
param v : [n] ~ normal(0, 1), lr = n
param U2 : [n] ~ normal(0, 1), lr = n
param v2 : [n] ~ normal(0, 1), lr = n
step flow((v @ U / n - 1)^2, dt = 0.3), flow(2 * E(U^2), dt = 0.3)
step flow((v2 @ U2 / n - 1)^2 + 2 * E(U2^2), dt = 0.3)
report E(v^2), E(v * U), E(v2^2), E(v2 * U2)
)",
                          {});
  EXPECT_NEAR(report(r, "x").value[0], std::cos(1.0), 1e-6);
  EXPECT_NEAR(report(r, "y").value[0], std::sin(1.0), 1e-6);
  EXPECT_NEAR(report(r, "E(v^2)").value[0], report(r, "E(v2^2)").value[0], 1e-14);
  EXPECT_NEAR(report(r, "E(v * U)").value[0], report(r, "E(v2 * U2)").value[0], 1e-14);
  EXPECT_GT(std::abs(report(r, "E(v * U)").value[0]), 1e-2);
}

// What stop(..) holds keeps its value during a step: x' = -(x - stop(x) + 1) from x = 2 is x = 1 +
// e^-t, and not 2 - t.
TEST(GradientFlow, StopHoldsItsValueDuringAStep) {
  const auto r = limit_of(R"(width n
param x : [] ~ normal(2, 0)
step flow((x - stop(x) + 1)^2 / 2, dt = 1, steps = 50)
report x
)",
                          {});
  EXPECT_NEAR(report(r, "x").value[0], 1 + std::exp(-1.0), 1e-8);
}

// A step moves parameters as they stand: what an earlier step of others computed from them does not
// matter.
TEST(Steps, DoNotLookBehindVersions) {
  const auto r = limit_of(R"(width n
param a : [] ~ normal(2, 0)
param b : [] ~ normal(3, 0)
step sgd(a * b, lr = 0.1, only = a)
step sgd(a * b, lr = 0.1, only = b)
report a, b
)",
                          {});
  EXPECT_NEAR(report(r, "a").value[0], 1.7, 1e-15);
  EXPECT_NEAR(report(r, "b").value[0], 3 - 0.1 * 1.7, 1e-15);
}

TEST(Schedules, AreExpressionsOfLoopVariables) {
  const auto rate = [](const std::string& expression, int t) {
    const auto r = limit_of(fmt::format(R"(width n
const T = 12
data table = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2]
param w : [] ~ normal(0, 0)
for t in 0..T {{
  before = w
  step sgd(w, lr = {})
  report before - w
}}
)",
                                        expression),
                            {});
    return r.reports[0].value[static_cast<std::size_t>(t)];
  };
  for (const int t : {0, 1, 3, 4, 11}) {
    const double x = t;
    EXPECT_NEAR(rate("(1 + cos(pi * t / T)) / 2", t), (1 + std::cos(M_PI * x / 12)) / 2, 1e-14);
    EXPECT_NEAR(rate("min(t / 4, 1)", t), std::min(x / 4, 1.0), 1e-14);
    EXPECT_NEAR(rate("0.5 * 0.1^floor(t / 4)", t), 0.5 * std::pow(0.1, t / 4), 1e-14);
    EXPECT_NEAR(rate("where(t < 4, t / 4, sqrt(4 / t))", t), t < 4 ? x / 4 : std::sqrt(4 / x),
                1e-14);
    EXPECT_NEAR(rate("where(t > 0, 1 / t, 0.3)", t), t > 0 ? 1 / x : 0.3, 1e-14);
    EXPECT_NEAR(rate("table[t]", t), 0.1 * (x + 1), 1e-14);
    EXPECT_NEAR(rate("(t >= 3) * (t < 11) * 0.2", t), t >= 3 && t < 11 ? 0.2 : 0.0, 1e-14);
  }
}

}  // namespace
}  // namespace tplimit::test
