#include <ctime>

#include <gtest/gtest.h>

#include "tplimit/driver/driver.hpp"

// Counting of deep networks and many steps: its cost, its verdicts, and what the last step does.
namespace tplimit {
namespace {

Module parsed(const std::string& program) {
  auto module = parse(Source("test.tp", program));
  if (!module) throw std::runtime_error(render(module.errors(), Source("test.tp", program)));
  return std::move(*module);
}

std::string residual(const std::string& parametrization, int layers, int steps) {
  const std::string role = parametrization.empty() ? "" : " : hidden",
                    rate = parametrization.empty() ? ", lr = n" : "";
  const auto typed = [&](const char* name) {
    return parametrization.empty() ? std::string() : std::string(name) + " ";
  };
  return fmt::format(
      "width n\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\n{0}param U : {1}[n, 2] ~ "
      "normal(0, 1){2}\nparam W : {3}[{4}, n, n] ~ normal(0, {5})\n"
      "param v : {6}[n] ~ normal(0, 1){2}\nfor t in 0..{7} {{\n  x = U @ X\n  for l in 0..{4} {{ x "
      "= x + tanh(W[l] @ x) / sqrt({4}) }}\n  f = v @ x{8}\n"
      "  loss = mse(f, y)\n  report loss\n  step sgd(loss, lr = 0.1)\n}}\n",
      parametrization.empty() ? "" : "parametrization " + parametrization + "\n", typed("input"),
      rate, typed("hidden"), layers, parametrization.empty() ? "1/n" : "1", typed("output"), steps,
      parametrization.empty() ? " / n" : "");
}

std::string attention(int blocks, int steps) {
  std::string out =
      "width n\ndata X = [[1, 0.5], [-0.3, 1], [0.7, -0.2]]\ndata y = [1, -1, 0.5]\nparam U : [n, "
      "2] ~ normal(0, 1), lr = n\n";
  for (const char* name : {"Q", "K", "V", "O", "A", "B"})
    out += fmt::format("param {} : [{}, n, n] ~ normal(0, 1/n)\n", name, blocks);
  return out +
         fmt::format(
             "param v : [n] ~ normal(0, 1), lr = n\nfor t in 0..{} {{\n  x = U @ X\n  for l in "
             "0..{} {{\n    a = exp(gram(Q[l] @ x, K[l] @ x))\n"
             "    x = x + O[l] @ einsum(\"ts,sn->tn\", a / (a @ ones(3, 3)), V[l] @ x)\n    x = x "
             "+ B[l] @ relu(A[l] @ x)\n  }}\n"
             "  f = v @ x / n\n  loss = mse(f, y)\n  report loss\n  step sgd(loss, lr = 0.1)\n}}\n",
             steps, blocks);
}

double seconds_of(const Module& module, RegimeReport& report) {
  const std::clock_t start = std::clock();
  report = regime(module, false);
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

TEST(Counting, DeepNetworksAndManyStepsInPolynomialTime) {
  RegimeReport report;
  EXPECT_LT(seconds_of(parsed(residual("", 64, 10)), report), 2);
  EXPECT_EQ(report.regime, Regime::kFeatures);
  EXPECT_TRUE(report.maximal);
  EXPECT_LT(seconds_of(parsed(attention(12, 3)), report), 2);
  EXPECT_EQ(report.regime, Regime::kFeatures);
  EXPECT_TRUE(report.maximal);
}

// The verdict of a residual network does not depend on its depth, nor on there being more Gaussians
// than flips.
TEST(Counting, VerdictsOfResidualNetworksOfAnyDepth) {
  for (const auto& [name, expected] :
       {std::pair("mup", "feature learning"), std::pair("ntk", "kernel regime"),
        std::pair("standard", "kernel regime")})
    for (const int layers : {1, 2, 5, 12, 40, 80}) {
      const RegimeReport report = regime(parsed(residual(name, layers, 2)), false);
      EXPECT_EQ(to_string(report.regime), std::string(expected)) << name << ", " << layers;
      EXPECT_EQ(report.gaussian_start, std::string(name) != "mup") << name << ", " << layers;
    }
}

std::string update_of(const RegimeReport& report, const Module& module, const std::string& name) {
  for (const VariableEffect& e : report.effects)
    if (module.program.variables[e.variable].name == name)
      return e.update ? power_of_width(*e.update, "n") : "none";
  return "not there";
}

// A penalty of a matrix is no reason for other verdicts.
TEST(Counting, NormsOfMatrices) {
  const auto text = [](const char* penalty) {
    return fmt::format(R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
for t in 0..3 {{
  out = v @ tanh(W @ tanh(U @ X)) / n
  report out
  step sgd(mse(out, [1, -1]){}, lr = 0.3)
}}
)",
                       penalty);
  };
  for (const char* penalty : {"", " + 0.1 * norm(W)^2 / n", " + 0.1 * sum(W^2)",
                              " + 0.1 * mean(W^2)", " + 0.1 * norm(W) / sqrt(n)"}) {
    SCOPED_TRACE(penalty);
    const Module module = parsed(text(penalty));
    const RegimeReport report = regime(module, false);
    EXPECT_EQ(report.regime, Regime::kFeatures);
    EXPECT_TRUE(report.maximal);
    for (const char* name : {"U", "W", "v"}) EXPECT_EQ(update_of(report, module, name), "1");
  }
}

// Powers that were moved past a product with constants belong to the readout.
TEST(Counting, SelectedOutputs) {
  for (const char* selected : {"f[.., 0]", "sum(f * one_hot([0, 1], 2), axis = -1)",
                               "sum([[1, 0], [0, 1]] * f, axis = 1)"}) {
    SCOPED_TRACE(selected);
    const Module module = parsed(fmt::format(R"(width n
parametrization mup
data X = [[1, 0.5], [-0.3, 1]]
param U : input [n, 2] ~ normal(0, 1 / 2)
param V : output [2, n] ~ normal(0, 1)
for t in 0..3 {{
  f = V @ tanh(U @ X)
  out = {}
  report out
  step sgd(mse(out, [1, -1]), lr = 0.3)
}}
)",
                                             selected));
    const RegimeReport report = regime(module, false);
    EXPECT_TRUE(report.maximal);
    EXPECT_EQ(update_of(report, module, "V"), "1");
  }
}

// What an embedding changes behind a matrix is its own, not what the matrix changes.
TEST(Counting, EmbeddingsBehindAMatrix) {
  for (const auto& [rate, expected] : {std::pair("1", "n^-1"), std::pair("n", "1")}) {
    const Module module = parsed(fmt::format(R"(width n
param Em : [5, n] ~ normal(0, 1), lr = {}
param W : [n, n] ~ normal(0, 1 / n)
param v : [3, n] ~ normal(0, 1 / n^2), lr = 1 / n
for t in 0..3 {{
  z = tanh(W @ Em[[[0, 1], [2, 3], [4, 0]]])
  f = mean(z, axis = 1) @ v'
  report f
  step sgd(cross_entropy(f, [0, 1, 2]), lr = 0.5)
}}
)",
                                             rate));
    const RegimeReport report = regime(module, false);
    EXPECT_EQ(update_of(report, module, "Em"), expected);
    EXPECT_EQ(update_of(report, module, "W"), "1");
    EXPECT_EQ(report.maximal, std::string(expected) == "1");
  }
}

// A bias that cancels in the loss does not move.
TEST(Counting, WhatCancelsDoesNotMove) {
  const Module module = parsed(R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param v : [n] ~ normal(0, 1), lr = n
param b : [] ~ normal(0, 1)
model f(x) = v @ tanh(U @ x) / n + b
for t in 0..3 {
  report out = f(X)
  step sgd(mean((f(X) - f(-X))^2), lr = 1)
}
)");
  EXPECT_EQ(update_of(regime(module, false), module, "b"), "not there");
}

TEST(Counting, TheLastStepIsCounted) {
  const std::string text =
      "width n\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\nparam U : [n, 2] ~ normal(0, "
      "1)RATE\nparam W : [n, n] ~ normal(0, 1/n)\nparam v : [n] ~ normal(0, 1)RATE\n"
      "h = W @ tanh(U @ X)\nf = v @ tanh(h) / n\nloss = LOSS\nreport loss\nstep sgd(loss, lr = "
      "0.1)\nAFTER";
  const auto with = [&](const std::string& rate, const std::string& loss,
                        const std::string& after) {
    std::string out = text;
    for (const auto& [from, to] :
         {std::pair("RATE", rate), std::pair("LOSS", loss), std::pair("AFTER", after)})
      for (std::size_t k; (k = out.find(from)) != std::string::npos;)
        out.replace(k, std::string(from).size(), to);
    return regime(parsed(out));
  };
  for (const std::string loss : {"mse(f, y)", "mean((f - y)^2)"})
    for (const std::string after : {"", "report v @ tanh(W @ tanh(U @ X)) / n\n", "report f\n",
                                    "g = v @ tanh(W @ tanh(U @ X)) / n\nreport mse(g, y)\n"}) {
      const RegimeReport report = with(", lr = n", loss, after);
      EXPECT_EQ(report.regime, Regime::kFeatures) << loss << after;
      EXPECT_TRUE(report.maximal) << loss << after;
      // Without rates that grow with n, W alone moves its layer by order 1.
      const RegimeReport slow = with("", loss, after);
      EXPECT_EQ(slow.regime, Regime::kFeatures) << loss << after;
      EXPECT_FALSE(slow.maximal) << loss << after;
    }
}

}  // namespace
}  // namespace tplimit
