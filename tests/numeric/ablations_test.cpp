#include <gtest/gtest.h>

#include "tplimit/driver/driver.hpp"

// What correction terms and feature learning do, shown by leaving them out.
namespace tplimit {
namespace {

/// Two hidden layers, one sample a step.
std::string two_layers(const std::string& phi, double eta) {
  return fmt::format(R"(width n
data xi = [1, -1, 1, -1, 1, -1]
data y = [1, -1, 1, 1, 1, 1]
param U : [n] ~ normal(0, 1), lr = n
param W : [n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 1), lr = n
fn phi(z) = {}
for t in 0..6 {{
  out = v @ phi(W @ phi(U * xi[t])) / n
  report out
  step sgd((out - y[t])^2 / 2, lr = {})
}}
)",
                     phi, eta);
}

LimitResult limit_of(const std::string& program, const Ablations& ablations,
                     const EvaluateOptions& options = {}) {
  auto module = parse(Source("test.tp", program), {}, ablations);
  EXPECT_TRUE(module) << render(module.errors(), Source("test.tp", program));
  auto result = evaluate(*module, options);
  EXPECT_TRUE(result) << render(result.errors(), module->source);
  return std::move(*result);
}

// Sums of versions have copies as other versions have: momentum is what it is by hand.
TEST(Decoupling, OfMomentum) {
  const auto text = [](const char* step) {
    return fmt::format(R"(width n
param U : [n, 2] ~ normal(0, 1/2), lr = n
param W : [n, n] ~ normal(0, 1/n)
param m : [n, n] ~ normal(0, 0)
param v : [n] ~ normal(0, 1), lr = n
data X = [[1, 0.5], [-0.3, 1]]
for t in 0..3 {{
  f = v @ tanh(W @ tanh(U @ X)) / n
  report f
  loss = mse(f, [1, -1])
  {}
}}
)",
                       step);
  };
  EvaluateOptions options;
  options.particles = 2048;
  const Ablations without{{}, true, false};
  const auto a = limit_of(text("step sgd(loss, lr = 0.3, momentum = 0.5, only = (W))"), without,
                          options)
                     .reports[0],
             b = limit_of(text("g = grad(loss, W)\n  m = 0.5 * m + g\n  W = W - 0.3 * m"), without,
                          options)
                     .reports[0];
  for (std::size_t k = 0; k < a.value.size(); ++k)
    EXPECT_NEAR(a.value[k], b.value[k], 1e-9 + 6 * std::hypot(a.error[k], b.error[k])) << k;
}

// One name for all units of a matrix.
TEST(Decoupling, OfSeveralUnits) {
  const std::string text =
      "width n, m = 2 n\nrandom W : [m, n] ~ normal(0, 1/n)\nrandom x : [n] ~ normal(0, 1)\n"
      "report E((W' @ (W @ x)) * x)\n";
  EXPECT_NEAR(limit_of(text, {}).reports[0].value[0], 2, 1e-9);
  EXPECT_NEAR(limit_of(text, {{"W"}, false, false}).reports[0].value[0], 0, 1e-9);
}

// Under lazy training theta_t is theta_0 and its change, also in norms.
TEST(Lazy, NormsAreThoseOfTheChangedMatrix) {
  const auto limit = limit_of(R"(width n
param U : [n, 2] ~ normal(0, 1/2), lr = n
param W : [n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 1), lr = n
data X = [[1, 0.5], [-0.3, 1]]
W0 = W
model f(x) = v @ tanh(W @ tanh(U @ x)) / n
for t in 0..2 { step sgd(mse(f(X), [1, -1]), lr = 0.3) }
report f(X), a = norm(W - W0)^2, b = sum((W - W0)^2), c = sum(W^2) - sum(W0^2) - 2 * sum(W0 * (W - W0))
)",
                              {{}, false, true});
  const double a = limit.reports[1].value[0];
  EXPECT_GT(a, 1e-3);
  for (const std::size_t k : {2u, 3u})
    EXPECT_NEAR(limit.reports[k].value[0], a,
                1e-9 + 6 * std::hypot(limit.reports[1].error[0], limit.reports[k].error[0]));
}

TEST(Decoupling, LinearNetworkGivesTheKnownRationals) {
  const std::vector<double> coupled{0, -1.5, 103.0 / 256, -8197425647993.0 / 8796093022208.0},
      decoupled{0, -1, 1, -1, 1.0 / 16, -0.5436114073};
  const auto with = limit_of(two_layers("z", 0.5), {}).reports[0],
             without = limit_of(two_layers("z", 0.5), {{"W"}, false, false}).reports[0];
  EXPECT_EQ(without.method, Method::kExact);
  for (std::size_t t = 0; t < 4; ++t) EXPECT_NEAR(with.value[t], coupled[t], 1e-12);
  for (std::size_t t = 0; t < 6; ++t)
    EXPECT_NEAR(without.value[t], decoupled[t], t < 5 ? 1e-12 : 5e-11);
}

// docs/theory.md: known to +- 5e-6.
TEST(Decoupling, TanhNetworkGivesTheKnownValues) {
  EvaluateOptions options;
  options.particles = 65536;
  const std::vector<double> coupled{0, -0.561671, 0.812311, -0.927628},
      decoupled{0, -0.416103, 0.720770, -0.886860};
  const auto with = limit_of(two_layers("tanh(z)", 1), {}, options).reports[0],
             without = limit_of(two_layers("tanh(z)", 1), {{}, true, false}, options).reports[0];
  for (std::size_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(with.value[t], coupled[t], 5e-6 + 4 * with.error[t]);
    EXPECT_NEAR(without.value[t], decoupled[t], 5e-6 + 4 * without.error[t]);
  }
}

TEST(Decoupling, NetworksTendToTheDecoupledLimit) {
  const std::string program = two_layers("tanh(z)", 1);
  const auto limit = limit_of(program, {{"W"}, false, false}).reports[0];
  auto module = parse(Source("test.tp", program), {}, {{"W"}, false, false});
  ASSERT_TRUE(module);
  SimulateOptions options;
  options.width = 512;
  options.seeds = 64;
  const auto networks = simulate(*module, options);
  ASSERT_TRUE(networks);
  for (std::size_t t = 0; t < 6; ++t)
    EXPECT_NEAR(networks->reports[0].value[t], limit.value[t],
                4 * networks->reports[0].error[t] + 4.0 / 512);
}

// Without an output at the start, lazy training is descent under the tangent kernel.
TEST(LazyTraining, FollowsTheTangentKernel) {
  const std::string program = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, -0.7]]
data y = [1, -1, 0.5]
data X2 = [[0.3, 0.3]]
parametrization mup
param U : input [n, 2] ~ normal(0, 1)
param W : hidden [n, n] ~ normal(0, 1)
param b : bias [n] ~ normal(0, 0.1)
param v : output [n] ~ normal(0, 1)
param c : bias [] ~ normal(0, 0)
model f(x) { return v @ tanh(W @ tanh(U @ x) + b) + c }
report predict_gd(ntk(f, X), ntk(f, X), y, lr = 0.4, steps = 5), predict_gd(ntk(f, X), ntk(f, X2, X), y, lr = 0.4, steps = 5)
for t in 0..5 { step sgd(mse(f(X), y), lr = 0.4) }
report f(X), f(X2)
)";
  const auto lazy = limit_of(program, {{}, false, true}), full = limit_of(program, {});
  double moved = 0;
  for (const std::size_t k : {0u, 1u})
    for (std::size_t j = 0; j < lazy.reports[k].value.size(); ++j) {
      EXPECT_NEAR(lazy.reports[k + 2].value[j], lazy.reports[k].value[j], 1e-9);
      moved = std::max(moved, std::abs(full.reports[k + 2].value[j] - full.reports[k].value[j]));
    }
  EXPECT_GT(moved, 1e-2);  // with features that move it is something else
}

}  // namespace
}  // namespace tplimit
