/// Losses and functions of classification: values against closed forms, gradients against
/// differences, training against networks and against the tangent kernel.

#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

using ::testing::HasSubstr;

/// All reports of a program without randomness.
std::vector<double> values(const std::string& text) {
  return all_values(limit_of("width n\n" + text, {}));
}
double value(const std::string& expression, const std::string& before = "") {
  return values(before + "\nreport r = " + expression + "\n").at(0);
}
std::string error_of(const std::string& text) {
  const Source source("test.tp", "width n\n" + text);
  const auto module = parse(source, {});
  return module ? "none" : render(module.errors(), source);
}

const std::string kLogits = "data F = [[1, -2, 0.5], [3, 3, -1]]\n";
const std::vector<std::vector<double>> kF{{1, -2, 0.5}, {3, 3, -1}};

double lse(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += std::exp(v);
  return std::log(sum);
}

TEST(Softmax, HasItsClosedForm) {
  const auto got = values(kLogits + "report logsumexp(F), softmax(F), log_softmax(F)\n");
  ASSERT_EQ(got.size(), 2u + 6 + 6);
  for (std::size_t p = 0; p < 2; ++p) {
    EXPECT_NEAR(got[p], lse(kF[p]), 1e-15);
    for (std::size_t k = 0; k < 3; ++k) {
      EXPECT_NEAR(got[2 + 3 * p + k], std::exp(kF[p][k] - lse(kF[p])), 1e-15);
      EXPECT_NEAR(got[8 + 3 * p + k], kF[p][k] - lse(kF[p]), 1e-15);
    }
  }
  const auto columns =
      values(kLogits + "report softmax(F, axis = 0), logsumexp(F, axis = 0, keepdims = true)\n");
  for (std::size_t k = 0; k < 3; ++k) {
    EXPECT_NEAR(columns[k], 1 / (1 + std::exp(kF[1][k] - kF[0][k])), 1e-15);
    EXPECT_NEAR(columns[6 + k], lse({kF[0][k], kF[1][k]}), 1e-15);
  }
}

TEST(Softmax, DoesNotOverflow) {
  const std::vector<double> far = values(
                                "report softmax([1000, 1000, -1000]), log_softmax([0, -2000])\n"),
                            expected{0.5, 0.5, 0, 0, -2000};
  for (std::size_t k = 0; k < 5; ++k)  // logarithms of 1000 are rounded to 1e-13
    EXPECT_NEAR(far[k], expected[k], 1e-12);
  EXPECT_NEAR(value("cross_entropy([[900, 0]], [1])"), 900, 1e-12);
}

TEST(Softmax, OfCoordinatesIsTakenAlongFiniteAxes) {
  // softmax of (z, 0) is sigmoid(z): E sigmoid = 1/2, E sigmoid(z)^2 by quadrature elsewhere.
  const std::string z = "width n\nrandom x : [n] ~ normal(0, 1)\nz = stack(x, 0 * x)\n";
  const auto r =
      limit_of(z + "s = softmax(z, axis = 0)\nreport E(s), a = E(s[0]^2), b = E(sigmoid(x)^2), "
                   "c = E(logsumexp(z, axis = 0)), d = E(softplus(x))\n",
               particles(1 << 14));
  EXPECT_NEAR(report(r, "E(s)").value[0], 0.5, 5 * report(r, "E(s)").error[0] + 1e-12);
  EXPECT_NEAR(report(r, "a").value[0], report(r, "b").value[0], 1e-12);
  EXPECT_NEAR(report(r, "c").value[0], report(r, "d").value[0], 1e-12);
}

TEST(CrossEntropy, OfIndicesIsThatOfTheirRows) {
  const double expected = 0.5 * (lse(kF[0]) - kF[0][2] + lse(kF[1]) - kF[1][0]);
  for (const char* labels : {"[2, 0]", "one_hot([2, 0], 3)", "[[0, 0, 1], [1, 0, 0]]"})
    EXPECT_NEAR(value(fmt::format("cross_entropy(F, {})", labels), kLogits), expected, 1e-15);
  EXPECT_NEAR(value("cross_entropy(F, [[0.2, 0.3, 0.5], [1, 0, 0]])", kLogits),
              0.5 * (lse(kF[0]) - 0.2 * 1 + 0.3 * 2 - 0.25 + lse(kF[1]) - 3), 1e-15);
  // One sample; and axes of samples.
  EXPECT_NEAR(value("cross_entropy(F[0], 2)", kLogits), lse(kF[0]) - kF[0][2], 1e-15);
  EXPECT_NEAR(value("cross_entropy(stack(F, F), [[2, 0], [2, 0]])", kLogits), expected, 1e-15);
}

TEST(Losses, OfMarginsHaveTheirClosedForms) {
  const std::string f = "data f = [2, -0.5, 0.25]\ndata y = [1, 1, -1]\n";
  const auto soft = [](double m) { return std::log1p(std::exp(-m)); };
  EXPECT_NEAR(value("logistic(f, y)", f), (soft(2) + soft(-0.5) + soft(-0.25)) / 3, 1e-15);
  EXPECT_NEAR(value("hinge(f, y)", f), (0 + 1.5 + 1.25) / 3, 1e-15);
  EXPECT_NEAR(value("huber(f, y)", f), (0.5 + (1.5 - 0.5) + (1.25 - 0.5)) / 3, 1e-15);
  EXPECT_NEAR(value("huber(f, y, delta = 2)", f), (0.5 + 1.125 + 0.78125) / 3, 1e-15);
  EXPECT_EQ(value("accuracy(f, y)", f), 1.0 / 3);
  // As mse, errors add over outputs.
  EXPECT_NEAR(value("huber(F, 0 * F, delta = 100) - mse(F, 0 * F)", kLogits), 0, 1e-14);
}

TEST(Accuracy, CountsTheFirstLargestEntry) {
  EXPECT_EQ(values(kLogits + "report argmax(F), argmax(F, axis = 0), accuracy(F, [0, 0]), "
                             "accuracy(F, [0, 1]), accuracy(F, one_hot([1, 0], 3))\n"),
            (std::vector<double>{0, 0, 1, 1, 0, 1, 0.5, 0.5}));
  EXPECT_EQ(values("report argmax([-1, -3, -0.5]), argmax([5, 5, 5])\n"),
            (std::vector<double>{2, 0}));
}

TEST(Losses, HaveTheGradientsOfDifferences) {
  constexpr double kStep = 1e-5;
  for (const char* loss :
       {"cross_entropy(f, [2, 0])", "cross_entropy(f, [[0.2, 0.3, 0.5], [1, 0, 0]])",
        "logistic(f, [[1, -1, 1], [1, 1, -1]])", "hinge(f + 0.05, [[1, -1, 1], [1, 1, -1]])",
        "huber(f, ones_like(f), delta = 0.7)", "sum(cumsum(f^2, axis = 0) * f)",
        "sum(softmax(f, axis = 0)^2)", "sum(logsumexp(f, keepdims = true) * f)"}) {
    // F(t) = F + t D: the slope at 0.
    const auto at = [&](double t) {
      return value(std::string("L(") + std::to_string(t) + " * D + F)",
                   kLogits + "data D = [[0.3, -1, 0.7], [1.1, 0.4, -0.2]]\nmodel L(f) { return " +
                       loss + " }");
    };
    const double slope = (at(kStep) - at(-kStep)) / (2 * kStep);
    const double found =
        values(kLogits +
               "data D = [[0.3, -1, 0.7], [1.1, 0.4, -0.2]]\nf = F + 0\nreport sum(D * grad(" +
               loss + ", f))\n")
            .at(0);
    EXPECT_NEAR(found, slope, 1e-7 * (1 + std::abs(slope))) << loss;
  }
}

std::string network(const std::string& parametrization) {
  return R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, -0.7]]
data y = [0, 2, 1]
parametrization )" +
         parametrization + R"(
param U : input [n, 2] ~ normal(0, 1)
param W : hidden [n, n] ~ normal(0, 1)
param V : output [3, n] ~ normal(0, 1)
model f(x) { return V @ tanh(W @ tanh(U @ x)) }
)";
}

TEST(CrossEntropy, TrainsNetworksInMup) {
  const std::string text = network("mup") + R"(
for t in 0..4 {
  loss = cross_entropy(f(X), y)
  report loss
  step sgd(loss, lr = 1)
}
report trained = f(X), p = softmax(f(X)), accuracy(f(X), y)
)";
  const LimitResult limit = limit_of(text, particles(4096));
  EXPECT_NEAR(report(limit, "loss").value[0], std::log(3.0), 1e-12);
  EXPECT_LT(report(limit, "loss").value[3], 1.0);
  EXPECT_EQ(report(limit, "accuracy(f(X), y)").value[0], 1);
  const SimulationResult networks = networks_of(text, 1024, 16, Matrices::kDense);
  for (const char* name : {"loss", "trained", "p"})
    for (std::size_t k = 0; k < report(limit, name).value.size(); ++k)
      EXPECT_NEAR(report(networks, name).value[k], report(limit, name).value[k],
                  4 * std::hypot(report(networks, name).error[k], report(limit, name).error[k]) +
                      5.0 / 1024)
          << name << k;
}

// Random outputs, drawn: the outputs of training follow the tangent kernel.
TEST(CrossEntropy, TrainsInTheKernelRegimeByTheTangentKernel) {
  const std::string text = network("ntk") + R"(
model first(x) { return f(x)[.., 0] }
K = ntk(first, X)
predicted = f(X)
for t in 0..4 {
  out = f(X)
  loss = cross_entropy(out, y)
  report out, predicted, difference = loss - cross_entropy(predicted, y)
  step sgd(loss, lr = 0.3)
  predicted = predicted - 0.1 * einsum("pq,qk->pk", K, softmax(predicted) - one_hot(y, 3))
}
)";
  const LimitResult r = limit_of(text, {});
  EXPECT_TRUE(r.random_outputs);
  const auto &out = report(r, "out").value, &predicted = report(r, "predicted").value;
  ASSERT_EQ(out.size(), 36u);
  for (std::size_t k = 0; k < out.size(); ++k) EXPECT_NEAR(out[k], predicted[k], 1e-8) << k;
  for (const double d : report(r, "difference").value) EXPECT_NEAR(d, 0, 1e-8);
  EXPECT_GT(std::abs(out[27] - out[0]), 1e-3);
}

TEST(CrossEntropy, TrainsFromGivenOutputs) {
  const std::string given = R"(width n
parametrization ntk
param U : input [n, 1] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
model f(z) { return v @ tanh(U @ z) }
out = f([[1]])
report out
K = ntk(f, [[1]])
step sgd(logistic(out, [-1]), lr = 0.5)
report after = f([[1]]), K
)";
  EvaluateOptions options;
  options.given = GradedOptions::Given{"out", {0.7}};
  const LimitResult r = limit_of(given, options);
  const double K = report(r, "K").value[0];
  EXPECT_NEAR(report(r, "out").value[0], 0.7, 1e-12);
  EXPECT_NEAR(report(r, "after").value[0], 0.7 - 0.5 * K / (1 + std::exp(-0.7)), 1e-8);
}

// Equal limits: networks fluctuate, and none of the entries is the largest of all of them.
TEST(Argmax, OfTiesInTheLimitIsUndetermined) {
  const std::string tie = R"(width n
random x : [n] ~ normal(0, 1)
random z : [n] ~ normal(0, 1)
f = stack(E(x^2), E(z^2), 0.5)
report best = argmax(f), right = accuracy(f[None], [0]), large = argmax(f - [0, 0.5, 0])
)";
  const LimitResult r = limit_of(tie, {});
  EXPECT_EQ(report(r, "large").value[0], 0);
  const auto undetermined = [&](const char* name) {
    const auto& one = report(r, name);
    return one.value.empty() || std::isnan(one.value[0]) || !one.undetermined.empty();
  };
  EXPECT_TRUE(undetermined("best"));
  EXPECT_TRUE(undetermined("right"));
}

TEST(Argmax, OfLogitsThatGrowOrVanish) {
  // A softmax of what vanishes is uniform; of what grows with the width there is no limit.
  const std::string x = "random x : [n] ~ normal(0, 1)\n";
  const auto small = values(x +
                            "f = stack(E(x^2), 2 * E(x^2)) / sqrt(n)\nreport softmax(f), sqrt(n) * "
                            "(logsumexp(f) - log(2))\n");
  EXPECT_NEAR(small[0], 0.5, 1e-12);
  EXPECT_NEAR(small[2], 1.5, 1e-9);
  const Module module = parsed("width n\n" + x + "report softmax(sqrt(n) * stack(E(x^2), 2))\n");
  const auto r = evaluate(module, {});
  ASSERT_FALSE(r);
  EXPECT_EQ(r.errors()[0].code, "E3103");
}

TEST(Labels, AreChecked) {
  EXPECT_THAT(error_of("report cross_entropy([0.5, -1], [1, -1])\n"), HasSubstr("E2218"));
  EXPECT_THAT(error_of("report logistic([0.5, -1], [1, 0])\n"), HasSubstr("E2218"));
  EXPECT_THAT(error_of("report cross_entropy([[0.5, -1]], [2])\n"), HasSubstr("E2208"));
  EXPECT_THAT(error_of("report cross_entropy([[0.5, -1]], [1, 0])\n"), HasSubstr("E2202"));
  EXPECT_THAT(error_of("report huber([1], [2], delta = 0)\n"), HasSubstr("E2215"));
  EXPECT_THAT(error_of("random x : [3, n] ~ normal(0, 1)\nreport E(softmax(x))\n"),
              HasSubstr("E2213"));
}

// A program may have functions and values of these names.
TEST(NewFunctions, GiveWayToDefinitionsOfTheProgram) {
  EXPECT_EQ(value("softmax(2)", "fn softmax(z) = z + 1"), 3);
  EXPECT_EQ(value("accuracy", "accuracy = accuracy([1, 2], [1, -1])"), 0.5);
}

// ---- shapes
// ---------------------------------------------------------------------------------------------

// Row by row: what the library writes for one sequence holds for a batch of them.
TEST(Attention, TakesBatches) {
  const std::string start = R"(width n
data X = [[[1, 0.5], [-0.3, 1], [0.2, -0.8]], [[0.1, 0.2], [0.3, -0.4], [1, -1]]]
param U : [n, 2] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1 / n)
)";
  const auto batch = limit_of(start + R"(h = U @ X
report gram(attention(W @ h, h, h, causal_mask(3)))
)",
                              particles(64));
  for (const int p : {0, 1}) {
    const auto one = limit_of(start + fmt::format(R"(h = U @ X[{}]
report gram(attention(W @ h, h, h, causal_mask(3)))
)",
                                                  p),
                              particles(64));
    for (std::size_t j = 0; j < 9; ++j)
      EXPECT_NEAR(batch.reports[0].value[static_cast<std::size_t>(9 * p) + j],
                  one.reports[0].value[j], 1e-6);
  }
}

TEST(Shapes, OfFiniteValues) {
  EXPECT_EQ(values("x = [[1, 2, 3], [4, 5, 6]]\nreport reshape(x, 3, -1), transpose(x), "
                   "cumsum(x), cumsum(x, axis = 0), sum(x, axis = 1, keepdims = true) * x\n"),
            (std::vector<double>{1, 2, 3,  4, 5, 6, 1, 4, 2, 5, 3,  6,  1,  3,  6,
                                 4, 9, 15, 1, 2, 3, 5, 7, 9, 6, 12, 18, 60, 75, 90}));
  EXPECT_EQ(
      values("report eye(2), zeros_like([1, 2]), ones_like([[1, 2]]), one_hot([[0], [1]], 2)\n"),
      (std::vector<double>{1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1}));
  EXPECT_EQ(values("x = [[1, 2, 3], [4, 5, 6]]\nreport x[[[1, 0], [0, 0]]][.., 0, 2], "
                   "x[.., None][1, 0], transpose(stack(x, 2 * x), 1, 2, 0)[0, 1]\n"),
            (std::vector<double>{6, 3, 4, 5, 6, 2, 4}));
}

TEST(Shapes, KeepTheWidthAxis) {
  const std::string x = "random x : [2, 3, n] ~ normal(0, 1)\n";
  const auto got = values(x + R"(
y = reshape(x, 6, n)
report a = E((y[4] - x[1, 1])^2), b = E((transpose(x, 1, 0, 2)[2, 0] - x[0, 2])^2)
report c = E((cumsum(x, axis = 1)[1, 2] - sum(x, axis = 1)[1])^2), d = E(ones_like(x)[0, 0] * x[0, 0]^2)
report e = E((x[.., None][1, 0, 1] - x[1, 1])^2), m = E((x - mean(x, axis = 1, keepdims = true))[0, 0]^2)
)");
  const std::vector<double> expected{0, 0, 0, 1, 0, 2.0 / 3};
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t k = 0; k < got.size(); ++k) EXPECT_NEAR(got[k], expected[k], 1e-12) << k;
  EXPECT_THAT(error_of(x + "report E(reshape(x, n, 6))\n"), HasSubstr("E2202"));
  EXPECT_THAT(error_of(x + "report E(reshape(x, 4, n))\n"), HasSubstr("E2202"));
  EXPECT_THAT(error_of(x + "report E(transpose(x, 0, 1))\n"), HasSubstr("E2212"));
  EXPECT_THAT(error_of(x + "report E(transpose(x, 0, 0, 1))\n"), HasSubstr("E2212"));
}

TEST(Products, OfFiniteMatricesActBesideTheWidth) {
  const auto got = values(R"(random x : [2, 3, n] ~ normal(0, 1)
A = [[1, 2, 0], [0, 1, -1]]
y = A @ x
e = einsum("st,ptn->psn", A, x)
B = stack(A, 2 * A)
report E((y - e)^2), E((B @ x)[1, 0]^2), E(([1, 1, 0] @ x)[1]^2)
)");
  const std::vector<double> expected{0, 0, 0, 0, 20, 2};
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t k = 0; k < got.size(); ++k) EXPECT_NEAR(got[k], expected[k], 1e-12) << k;
  EXPECT_THAT(error_of("random x : [2, 3, n] ~ normal(0, 1)\nreport E(eye(2) @ x)\n"),
              HasSubstr("transpose(x, ..)"));
}

TEST(Products, OfRowsWithAWidthMatrixAreThoseOfItsTranspose) {
  const auto got = values(R"(random x : [2, n] ~ normal(0, 1)
random W : [n, n] ~ normal(0, 2 / n)
report E((x @ W - W' @ x)^2), E((x @ W)[0]^2)
)");
  EXPECT_NEAR(got[0], 0, 1e-12);
  EXPECT_NEAR(got[1], 0, 1e-12);
  EXPECT_NEAR(got[2], 2, 1e-12);
  const LimitResult wide = limit_of(R"(width n, m = 2 n
random W : [m, n] ~ normal(0, 1 / n)
random z : [m] ~ normal(0, 1)
report E((z @ W - W' @ z)^2)
)",
                                    {});
  EXPECT_NEAR(wide.reports[0].value[0], 0, 1e-12);
}

}  // namespace
}  // namespace tplimit::test
