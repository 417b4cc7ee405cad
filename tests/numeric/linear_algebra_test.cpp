#include <cmath>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/run.hpp"

// solve, inverse, logdet of kernels, their derivatives by what kernels depend on, noise in
// predictions, kernels of several outputs.
namespace tplimit::test {
namespace {

using Numbers = std::vector<double>;

Numbers values(const std::string& program, const EvaluateOptions& options = {}) {
  return all_values(limit_of(program, options));
}

const std::string kGram = "width n\nrandom x : [2, n] ~ normal(0, [[2, 1], [1, 3]])\nK = gram(x)\n";

TEST(LinearAlgebra, OfGramMatrices) {
  const std::string program =
      kGram +
      "report solve(K, [1, 2]), solve(K, [[1, 0, 5], [2, 1, 5]]), inverse(K), logdet(K)\n"
      "report solve(stack(K, 2 * K), stack([1, 2], [1, 2])), logdet(stack(K, 2 * K))\n"
      "report E(solve(K, x)[0] * x[0]), align(K, [[2, 0], [0, 3]])\n";
  const double log5 = std::log(5.0);
  const Numbers expected{0.2,
                         0.6,
                         0.2,
                         -0.2,
                         2,
                         0.6,
                         0.4,
                         1,
                         0.6,
                         -0.2,
                         -0.2,
                         0.4,
                         log5,
                         0.2,
                         0.6,
                         0.1,
                         0.3,
                         log5,
                         log5 + 2 * std::log(2.0),
                         1,
                         std::sqrt(13.0 / 15)};
  expect_near(values(program), expected, 1e-13);
  expect_near(values(program, particles(1 << 14)), expected, 2e-3);
}

/// The leading order is that of the powers: A of size n^a, B of size n^b.
TEST(LinearAlgebra, CountsPowersOfTheWidth) {
  expect_near(values(kGram + "report solve(K / n, [1, 2]) / n, solve(n * K, [1, 2]) * n\n"),
              {0.2, 0.6, 0.2, 0.6}, 1e-13);
  EXPECT_EQ(code_of(kGram + "report solve(K, [1, 2]) * n\n"), "E3101");
  EXPECT_EQ(code_of(kGram + "report logdet(K / n)\n"), "E3105");
  EXPECT_EQ(code_of(kGram + "random y : [2, n] ~ normal(0, 1)\nreport inverse(gram(x, y))\n"),
            "E3104");
}

/// n (f(A + K / n) - f(A)): the first order in what is added.
TEST(LinearAlgebra, IsExpandedToFirstOrder) {
  const std::string head = kGram + "data A = [[1, 0], [0, 2]]\n";
  // -A^-1 K A^-1 y and tr(A^-1 K).
  expect_near(
      values(head + "report sqrt(n) * (solve(A + K / sqrt(n), [1, 2]) - solve(A, [1, 2]))\n"),
      {-3, -2}, 1e-12);
  expect_near(values(head + "report sqrt(n) * (logdet(A + K / sqrt(n)) - logdet(A))\n"), {3.5},
              1e-12);
  // A readout of size n^(-1/2) beside a number of size 1.
  const std::string readout = kGram + "random r : [n] ~ normal(0, 1)\nf = r @ tanh(x)[0] / n\n";
  EXPECT_EQ(code_of(readout + "report n * (solve(eye(2) + f, [1, 2]) - [1, 2])\n").substr(0, 2),
            "E3");
}

TEST(LinearAlgebra, SingularMatricesAreNamed) {
  const std::string program = kGram + "report solve(K - K, [1, 2])\n";
  EXPECT_EQ(code_of(program), "E3104");
  EXPECT_EQ(code_of("width n\nrandom x : [n] ~ normal(0, 1)\nK = gram(stack(x, 2 * x))\n"
                    "report solve(K, [1, 2])\n"),
            "E4101");
  EXPECT_EQ(code_of("report logdet([[1, 2], [2, 1]])\n"), "E4101");
}

// ---- marginal likelihood
// -----------------------------------------------------------------------------------

std::string likelihood(const std::string& noise, const std::string& scale, const std::string& end) {
  return fmt::format(R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.7, -0.2]]
data y = [1, -1, 0.5]
param U : [n, 2] ~ normal(0, 1 / 2)
param v : [n] ~ normal(0, 1)
param s : [] ~ normal({}, 0)
param a : [] ~ normal({}, 0)
model f(x) {{ return v @ tanh(a * (U @ x)) / sqrt(n) }}
fn negative_log_likelihood(s) {{
  C = nngp(f, X) + s * eye(3)
  return 0.5 * y @ solve(C, y) + 0.5 * logdet(C)
}}
{})",
                     noise, scale, end);
}

TEST(MarginalLikelihood, HasTheDerivativeOfFiniteDifferences) {
  const std::string loss = "L = negative_log_likelihood(s)\n";
  const Numbers slopes = values(likelihood("0.3", "1.2", loss + "report grad(L, s), grad(L, a)\n"));
  const auto at = [&](double s, double a) {
    return values(likelihood(fmt::format("{}", s), fmt::format("{}", a), loss + "report L\n"))[0];
  };
  constexpr double kStep = 1e-4;  // third derivatives of order 100, rounding 1e-12
  expect_near(slopes,
              {(at(0.3 + kStep, 1.2) - at(0.3 - kStep, 1.2)) / (2 * kStep),
               (at(0.3, 1.2 + kStep) - at(0.3, 1.2 - kStep)) / (2 * kStep)},
              1e-6);
}

/// The step of the noise's variance is that of its derivative, and training ends where it is 0.
TEST(MarginalLikelihood, IsTunedBySteps) {
  const std::string steps = R"(for t in 0..{} {{
  L = negative_log_likelihood(s)
  report L, s
  step sgd(L, lr = 0.2, only = (s))
}}
g = grad(negative_log_likelihood(s), s)
report g
)";
  const Numbers one = values(likelihood("1", "1", fmt::format(fmt::runtime(steps), 2)));
  const Numbers slope =
      values(likelihood("1", "1", "report grad(negative_log_likelihood(s), s)\n"));
  ASSERT_EQ(one.size(), 5u);
  EXPECT_NEAR(one[3], 1 - 0.2 * slope[0], 1e-10);
  const Numbers many = values(likelihood("1", "1", fmt::format(fmt::runtime(steps), 40)));
  ASSERT_EQ(many.size(), 81u);
  EXPECT_LT(many[39], many[0]);
  EXPECT_NEAR(many[80], 0, 1e-3);
}

}  // namespace
}  // namespace tplimit::test
