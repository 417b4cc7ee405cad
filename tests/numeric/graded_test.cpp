#include <gtest/gtest.h>

#include "tests/support/draws.hpp"
#include "tplimit/driver/driver.hpp"

// Limits that need more than leading orders: networks in the kernel regime, from random outputs at
// the start.
namespace tplimit {
namespace {

LimitResult limit_of(const std::string& program, const EvaluateOptions& options = {}) {
  auto module = parse(Source("test.tp", program));
  EXPECT_TRUE(module) << render(module.errors(), Source("test.tp", program));
  auto result = evaluate(*module, options);
  EXPECT_TRUE(result) << render(result.errors(), module->source);
  return std::move(*result);
}

/// Trained outputs, and what the tangent kernel makes of the same outputs at the start.
std::string kernel_regime(const std::string& parametrization, const std::string& phi, int hidden,
                          int steps) {
  std::string out =
      "width n\ndata X = [[1, 0.5], [-0.3, 1], [0.2, -0.7]]\ndata y = [1, -1, "
      "0.5]\nparametrization " +
      parametrization + "\nparam U : input [n, 2] ~ normal(0, 1)\n";
  std::string z = phi + "(U @ x)";
  for (int l = 2; l <= hidden; ++l) {
    out += fmt::format("param W{} : hidden [n, n] ~ normal(0, 1.5)\n", l);
    z = fmt::format("{}(W{} @ {})", phi, l, z);
  }
  out += "param v : output [n] ~ normal(0, 1)\nmodel f(x) { return v @ " + z +
         " }\nK = ntk(f, X)\npredicted = f(X)\n";
  return out + fmt::format(
                   "for t in 0..{} {{\n  out = f(X)\n  report out, predicted, loss = mse(out, y)\n "
                   " step sgd(mse(out, y), lr = 0.3)\n  predicted = predicted - 0.1 * K @ "
                   "(predicted - y)\n}}\n",
                   steps);
}

TEST(Graded, TrainingInTheKernelRegimeFollowsTheTangentKernel) {
  for (const auto& [parametrization, phi, hidden] :
       std::vector<std::tuple<std::string, std::string, int>>{{"ntk", "tanh", 2},
                                                              {"ntk", "relu", 2},
                                                              {"ntk", "erf", 3},
                                                              {"standard", "tanh", 2},
                                                              {"standard", "tanh", 1}}) {
    const auto result = limit_of(kernel_regime(parametrization, phi, hidden, 4));
    EXPECT_TRUE(result.random_outputs);
    const auto &out = result.reports[0], &predicted = result.reports[1];
    for (std::size_t k = 0; k < out.value.size(); ++k)
      EXPECT_NEAR(out.value[k], predicted.value[k], 1e-9)
          << parametrization << " " << phi << " " << hidden << " " << k;
    EXPECT_GT(std::abs(out.value[9] - out.value[0]), 1e-3);
  }
}

// A value that was drawn and the same value given: one training.
TEST(Graded, GivenOutputsTrainAsDrawnOnes) {
  for (const auto& [parametrization, phi, hidden] :
       std::vector<std::tuple<std::string, std::string, int>>{{"ntk", "tanh", 2},
                                                              {"standard", "relu", 2}}) {
    const std::string program = kernel_regime(parametrization, phi, hidden, 4);
    const auto drawn = limit_of(program).reports[0];
    EvaluateOptions options;
    options.given = GradedOptions::Given{"out", {drawn.value.begin(), drawn.value.begin() + 3}};
    const auto result = limit_of(program, options);
    EXPECT_FALSE(result.random_outputs) << "nothing is left to draw";
    for (std::size_t k = 0; k < drawn.value.size(); ++k)
      EXPECT_NEAR(result.reports[0].value[k], drawn.value[k], 1e-9);
  }
}

// Outputs at other points are Gaussian given those at the first: mean K21 K11^-1 f, covariance K22
// - K21 K11^-1 K12.
TEST(Graded, OtherOutputsAreConditionalOnGivenOnes) {
  const std::string network = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data T = [[0.4, -0.2], [1, 0.5]]
parametrization ntk
param U : input [n, 2] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
param c : bias [] ~ normal(0.25, 0)
model f(x) { return v @ erf(U @ x) + c }
test = f(T)
out = f(X)
report out^2, test
)";
  const auto kernels = limit_of(network +
                                "report predicted = predict_gd(nngp(f, X), nngp(f, T, X), [0.75, "
                                "-1.25]), nngp(f, T), across = nngp(f, T, X), among = nngp(f, X)\n")
                           .reports;
  const double mean = 0.25 + kernels[2].value[0];
  const auto &k = kernels[3].value, &a = kernels[4].value, &g = kernels[5].value;
  const double variance =
      k[0] - (a[0] * a[0] * g[3] - 2 * a[0] * a[1] * g[1] + a[1] * a[1] * g[0]) /
                 (g[0] * g[3] - g[1] * g[2]);
  const int draws = 300;
  double sum = 0, squares = 0, repeated = 0;
  for (int draw = 0; draw < draws; ++draw) {
    EvaluateOptions options;
    options.given = GradedOptions::Given{"out", {1, -1}};
    options.draw = static_cast<std::uint64_t>(draw);
    const auto r = limit_of(network, options).reports;
    EXPECT_NEAR(r[0].value[0], 1, 1e-9);
    sum += r[1].value[0] / draws;
    squares += r[1].value[0] * r[1].value[0] / draws;
    repeated = std::max(repeated,
                        std::abs(r[1].value[1] - 1));  // the second test point is the first sample
  }
  EXPECT_NEAR(sum, mean, 5 * std::sqrt(variance / draws));
  EXPECT_NEAR((squares - sum * sum) / variance, 1, 5 * std::sqrt(2.0 / draws));
  EXPECT_LT(repeated, 1e-6);
}

TEST(Graded, ParticlesAgreeWithQuadrature) {
  EvaluateOptions particles;
  particles.engine = Engine::kParticles;
  const std::string program = kernel_regime("ntk", "tanh", 2, 3);
  const auto exact = limit_of(program).reports[0],
             sampled = limit_of(program, particles).reports[0];
  EXPECT_EQ(sampled.method, Method::kParticles);
  for (std::size_t k = 0; k < exact.value.size(); ++k)
    EXPECT_NEAR(sampled.value[k], exact.value[k], 5 * sampled.error[k] + 1e-12);
}

// Several outputs, skip connections, W' in the forward pass, layer normalisation, minibatches,
// weight decay: the mean over draws is that of networks.
TEST(Graded, ArchitecturesAgreeWithNetworks) {
  const std::string several = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [[1, 0], [-1, 1]]
parametrization ntk
param U : input [n, 2] ~ normal(0, 1)
param V : output [2, n] ~ normal(0, 1)
for t in 0..4 {
  out = V @ gelu(U @ X)
  report out, out * out
  step sgd(mse(out, y), lr = 0.3)
}
)";
  const std::string residual = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, 0.9], [1, 1]]
data y = [1, -1, 0, 1]
parametrization ntk
param U : input [n, 2] ~ normal(0, 1)
param W : hidden [n, n] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
param c : bias [] ~ normal(0, 0)
model f(x) {
  h = U @ x
  h = h + tanh(W @ h) + W' @ h
  h = h / sqrt(E(h^2) + 0.1)
  return v @ h + c
}
for t in 0..2 {
  b = permutation(4, t)[0..2]
  report f(X), f(X)^2
  step sgd(mse(f(X[b]), y[b]), lr = 0.3)
  W *= 0.99
}
)";
  EvaluateOptions options;
  options.particles = 2048;
  options.engine = Engine::kParticles;
  options.randomisations = 2;
  for (const auto& [program, draws] : {std::pair{several, 100}, std::pair{residual, 12}})
    test::expect_draws_agree_with_networks(program, options, draws, 512, 200);
}

// Draws of the output have the covariance of the readout; the loss of a random output is random as
// well.
TEST(Graded, DrawsHaveTheCovarianceOfTheLimit) {
  const std::string head =
      "width n\ndata X = [[1, 0.5], [-0.3, 1]]\nrandom U : [n, 2] ~ normal(0, 1)\nrandom v : [n] ~ "
      "normal(0, 1)\nmodel f(x) { return v @ tanh(U @ x) / sqrt(n) }\n";
  const auto kernel = limit_of(head + "report nngp(f, X)\n").reports[0];
  auto module = parse(Source("test.tp", head + "report f = f(X), loss = mse(f(X), [0, 0])\n"));
  ASSERT_TRUE(module);
  constexpr int kDraws = 500;
  std::vector<double> covariance(4, 0.0);
  EvaluateOptions options;
  for (int d = 0; d < kDraws; ++d) {
    options.draw = static_cast<std::uint64_t>(d);
    const auto result = evaluate(*module, options);
    ASSERT_TRUE(result);
    const auto& f = result->reports[0].value;
    for (std::size_t i = 0; i < 4; ++i) covariance[i] += f[i / 2] * f[i % 2] / kDraws;
    EXPECT_NEAR(result->reports[1].value[0], (f[0] * f[0] + f[1] * f[1]) / 4, 1e-12);
  }
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(
        covariance[i], kernel.value[i],
        4 * std::sqrt((kernel.value[0] * kernel.value[3] + kernel.value[i] * kernel.value[i]) /
                      kDraws));
}

// The same sample twice has the same output.
TEST(Graded, RepeatedInputsShareTheirDraw) {
  const auto f =
      limit_of(
          "width n\ndata X = [[1, 0.5], [-0.3, 1], [1, 0.5]]\nrandom U : [n, 2] ~ normal(0, "
          "1)\nrandom v : [n] ~ normal(0, 1)\nf = v @ tanh(U @ X) / sqrt(n)\nreport f^2, f + 0\n")
          .reports[1];
  EXPECT_NEAR(f.value[0], f.value[2], 1e-9);
  EXPECT_GT(std::abs(f.value[0] - f.value[1]), 1e-3);
}

}  // namespace
}  // namespace tplimit
