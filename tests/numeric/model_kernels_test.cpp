#include <cmath>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/run.hpp"

// Noise in predictions under a fixed kernel, kernels of models with several outputs, derivatives of
// kernels by inputs.
namespace tplimit::test {
namespace {

using Numbers = std::vector<double>;

Numbers values(const std::string& program, const EvaluateOptions& options = {}) {
  return all_values(limit_of(program, options));
}

// ---- predictions with noise
// --------------------------------------------------------------------------------

const std::string kKernels = R"(data K = [[2, 1, 0.5], [1, 3, 0.2], [0.5, 0.2, 1]]
data K_x = [[1, 0.5, 0.3], [0.2, 0.1, 0.9]]
data K_xx = [[1.5, 0.4], [0.4, 2]]
data T = [[4, 1, 1], [1, 5, 0.5], [1, 0.5, 3]]
data T_x = [[2, 0.5, 1], [0.5, 1, 1.5]]
data y = [1, -1, 0.5]
)";

/// Of K (K + v)^-1 and series in exact fractions.
TEST(PredictionsWithNoise, AreThePosterior) {
  expect_near(values(kKernels + R"(report predict_gd(K, K_x, y, noise = 0.3)
report predict_gd_covariance(K, K_x, K, K_x, K_xx, noise = 0.3)
report predict_gd(T, T_x, y, lr = 0.5, time = 7, noise = 0.3)
report predict_gd_covariance(T, T_x, K, K_x, K_xx, lr = 0.5, time = 7, noise = 0.3)
report predict_gd(T, T_x, y, lr = 0.5, steps = 4, noise = 0.3)
)"),
              {0.4212101910828026, 0.2773885350318471,                                        //
               1.057949044585987, 0.2530573248407643, 0.2530573248407643, 1.36656050955414,   //
               0.5091001774043349, 0.0487084924178579,                                        //
               1.074472316548504, 0.2089048067960474, 0.2089048067960474, 1.537859787935745,  //
               0.5067021604938272, 0.05168364197530864},
              1e-13);
  // Of the same size as a relative one; a number of the run; none.
  expect_near(values(kKernels + R"(param s : [] ~ normal(0.2, 0)
report predict_gd(K, K_x, y, noise = 0.2) - predict_gd(K, K_x, y, reg = 0.1)
report predict_gd(K, K_x, y, noise = 0.2) - predict_gd(K, K_x, y, noise = s)
report predict_gd(K, K_x, y, noise = 0) - predict_gd(K, K_x, y)
)"),
              Numbers(6, 0.0), 1e-14);
}

// Targets of 0, test inputs of another direction than all training inputs, and no training at all
// leave errors as they are, so that what is certain is determined.
TEST(PredictionsWithNoise, HaveErrorsWhereSomethingIsZero) {
  const LimitResult limit = limit_of(R"(width n
data X = [[1, 0], [2, 0]]
data y = [[0, 1], [1, 0]]
param U : [n, 2] ~ normal(0, 1)
param v : [n] ~ normal(0, 1)
model f(x) = v @ erf(U @ x) / sqrt(n)
K = nngp(f, X)
p = predict_gd(K, nngp(f, [[3, 0]], X), y)
report p, accuracy(p, [0]), argmax(p)
report predict_gd_covariance(K, nngp(f, [[0, 1]], X), K, nngp(f, [[0, 1]], X), nngp(f, [[0, 1]]))
report predict_gd_covariance(K, nngp(f, [[3, 0]], X), K, nngp(f, [[3, 0]], X), nngp(f, [[3, 0]]), lr = 1, steps = 0)
expect predict_gd(K, nngp(f, [[0, 1]], X), y) == 0 within 1e-9
)",
                                     {});
  for (const ReportResult& report : limit.reports) {
    EXPECT_TRUE(report.undetermined.empty()) << report.name;
    for (const double e : report.error) EXPECT_TRUE(e >= 0 && e < 1e-9) << report.name;
  }
  EXPECT_EQ(limit.reports[1].value[0], 1);
  EXPECT_EQ(limit.reports[2].value[0], 0);
  EXPECT_EQ(limit.expectations[0].status, ExpectStatus::kPassed);
}

// ---- several outputs
// ---------------------------------------------------------------------------------------

TEST(KernelsOfSeveralOutputs, AreThoseOfEachPair) {
  const std::string head = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.7, -0.2]]
data X2 = [[0.2, 0.4], [1, 1]]
data C = [[1, 0], [1, 2], [-1, 0.5]]
param U : [n, 2] ~ normal(0, 1 / 2)
param W : [n, n] ~ normal(0, 1 / n), lr = 1 / n
param v : [2, n] ~ normal(0, 1)
model f(x) { return einsum("ck,pk->pc", C, v @ relu(W @ tanh(U @ x)) / sqrt(n)) }
model g(x) { return (v @ relu(W @ tanh(U @ x)) / sqrt(n))[.., 1] }
)";
  for (const std::string kernel : {"ntk", "nngp"})
    for (const std::string samples : {"X", "X, X2"}) {
      const Numbers differences = values(
          head + fmt::format("K = {0}(f, {1})\nreport K - einsum(\"pq,ck,dk->pqcd\", {0}(g, {1}), "
                             "C, C)\n",
                             kernel, samples));
      expect_near(differences, Numbers(samples == "X" ? 81 : 54, 0.0), 1e-12);
    }
}

/// Where a model mixes samples too.
TEST(KernelsOfSeveralOutputs, OfBatchNormalisation) {
  const std::string head = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.7, -0.2]]
param U : [n, 2] ~ normal(0, 1 / 2)
param v : [2, n] ~ normal(0, 1)
fn normalised(h) = (h - mean(h, axis = 0)) / sqrt(mean((h - mean(h, axis = 0))^2, axis = 0) + 1)
model f(x) { return v @ tanh(normalised(U @ x)) / sqrt(n) }
model g(x) { return v[0] @ tanh(normalised(U @ x)) / sqrt(n) }
)";
  expect_near(values(head + "report nngp(f, X) - einsum(\"pq,cd->pqcd\", nngp(g, X), eye(2))\n"),
              Numbers(36, 0.0), 1e-9);
}

TEST(KernelsOfSeveralOutputs, OfReadoutsOfAllPositions) {
  const std::string head = R"(width n
data X = [[[1, 0.5], [-0.3, 1]], [[0.7, -0.2], [0.1, 0.4]]]
param U : [n, 2] ~ normal(0, 1 / 2)
param v : [2, n] ~ normal(0, 1)
fn z(x) = tanh(U @ x)
model f(x) { return (v[0] @ z(x)[.., 0] + v[1] @ z(x)[.., 1]) / sqrt(2 * n) }
model g(x) {
  out = 0
  for s in 0..2 { out = out + v[s] @ z(x)[.., s] / sqrt(2 * n) }
  return out
}
model h(x) { return n * E(sum(v * z(x), axis = 1)) / sqrt(2 * n) }
)";
  const Numbers expected =
      values(head + "report 0.5 * gram(z(X)[.., 0]) + 0.5 * gram(z(X)[.., 1])\n");
  for (const std::string model : {"f", "g", "h"})
    expect_near(values(head + fmt::format("report nngp({}, X)\n", model)), expected, 1e-12);
}

// ---- derivatives by inputs
// ---------------------------------------------------------------------------------

TEST(DerivativesOfKernels, AreThoseOfFiniteDifferences) {
  const auto program = [](const std::string& phi, double moved, const std::string& report) {
    return fmt::format(R"(width n
data X = [[1, {}], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2)
param W : [n, n] ~ normal(0, 1 / n), lr = 1 / n
param v : [n] ~ normal(0, 1)
model f(x) {{ return v @ {}(W @ {}(U @ x)) / sqrt(n) }}
x = 1 * X
report {}
)",
                       moved, phi, phi, report);
  };
  constexpr double kStep = 1e-4;
  for (const auto& [phi, kernel] : std::vector<std::pair<std::string, std::string>>{
           {"tanh", "nngp"}, {"erf", "nngp"}, {"relu", "nngp"}, {"erf", "ntk"}})
    for (const std::string entry : {"[0, 1]", "[0, 0]"}) {
      SCOPED_TRACE(kernel + " of " + phi + entry);
      const std::string value = kernel + "(f, x)" + entry;
      const double slope = values(program(phi, 0.5, "grad(" + value + ", x)[0, 1]"))[0];
      const double difference = (values(program(phi, 0.5 + kStep, value))[0] -
                                 values(program(phi, 0.5 - kStep, value))[0]) /
                                (2 * kStep);
      EXPECT_NEAR(slope, difference, 1e-6);
    }
  // The derivative almost everywhere lacks what the limit's derivative has at jumps.
  EXPECT_EQ(code_of(program("relu", 0.5, "grad(ntk(f, x)[0, 1], x)")), "E2501");
  EXPECT_EQ(code_of(program("sign", 0.5, "grad(nngp(f, x)[0, 1], x)")), "E2501");
  EXPECT_EQ(code_of(program("relu", 0.5, "grad(grad(nngp(f, x)[0, 1], x)[0, 1], x)")), "E2501");
  EXPECT_EQ(code_of(program("relu", 0.5, "grad(stop(ntk(f, x))[0, 1], x)")), "");
}

// Zero readouts leave 0 / sqrt(E(h^2) + eps), which is 0, though no value before the run says so.
TEST(ModelKernels, OfNormalisedFeatures) {
  const auto r = test::limit_of(
      test::parsed("width n\ndata X = [[1, 0.5], [0.3, 1]]\nparam U : [n, 2] ~ normal(0, 1)\n"
                   "param v : [n] ~ normal(0, 1)\n"
                   "model f(x) = v @ layernorm(U @ x, 0) / sqrt(n)\n"
                   "model g(x) = v @ (rmsnorm(U @ x, 0) + 1) / sqrt(n)\n"
                   "report a = nngp(f, X), b = nngp(g, X), c = ntk(f, X)\n"),
      {});
  const double correlation = 0.8 / std::sqrt(1.25 * 1.09);
  EXPECT_NEAR(report(r, "a").value[1], correlation, 1e-12);
  EXPECT_NEAR(report(r, "a").value[0], 1, 1e-12);
  EXPECT_NEAR(report(r, "b").value[1], 1 + correlation, 1e-12);
}

}  // namespace
}  // namespace tplimit::test
