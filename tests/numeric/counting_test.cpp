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
