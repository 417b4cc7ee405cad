#include <cmath>

#include <gtest/gtest.h>

#include "tests/support/draws.hpp"
#include "tplimit/report/comparison.hpp"

// Attention scores sqrt(n) E((Q x_i) (K x_j)): Gaussian in the limit, linear in one matrix at a
// time.
namespace tplimit {
namespace {

using namespace test;

const std::string kInputs =
    "width n\ndata X = [[1, 0.5], [-0.3, 1]]\nrandom U : [n, 2] ~ normal(0, 1)\nrandom Q : [n, n] "
    "~ normal(0, 1 / n)\nrandom K : [n, n] ~ normal(0, 2 / n)\nrandom V : [n, n] ~ normal(0, 1 / "
    "n)\nrandom v : [n] ~ normal(0, 1)\nx = U @ X\nfn score(q, k) = sqrt(n) * gram(q, k)\nfn "
    "attend(s, z) = einsum(\"ij,jn->in\", exp(s) / einsum(\"i,j->ij\", sum(exp(s), axis = 1), "
    "ones(2)), z)\n";

TEST(Scores, HaveTheCovarianceOfTheirInputs) {
  const LimitResult found =
      limit_of(kInputs + "report s = score(Q @ x, K @ x)\nreport G = gram(x)\n", {});
  ASSERT_EQ(found.reports[0].name, "cov(s)");
  EXPECT_EQ(found.reports.size(), 2u) << "its mean is 0";
  const double g[2][2] = {{1.25, 0.2}, {0.2, 1.09}};
  for (std::size_t i = 0; i < 2; ++i)
    for (std::size_t j = 0; j < 2; ++j)
      for (std::size_t k = 0; k < 2; ++k)
        for (std::size_t l = 0; l < 2; ++l)
          EXPECT_NEAR(found.reports[0].value[((i * 2 + j) * 2 + k) * 2 + l], 2 * g[i][k] * g[j][l],
                      1e-13)
              << i << j << k << l;
}

// Matrices from n to m = n / 2: sums of products of several widths, n / m times the variance.  The
// networks of a comparison report the same.
TEST(Scores, OfSeveralWidthsHaveTheirCovariance) {
  const Module module = parsed(
      "width n, m = n / 2\ndata X = [[1, 0.5], [-0.3, 1]]\nrandom U : [n, 2] ~ normal(0, 1)\n"
      "random Q : [m, n] ~ normal(0, 1 / n)\nrandom K : [m, n] ~ normal(0, 1 / n)\nx = U @ X\n"
      "report s = sqrt(n) * gram(Q @ x, K @ x)\n");
  const LimitResult found = limit_of(module, {});
  ASSERT_EQ(found.reports.size(), 1u);
  const double g[2][2] = {{1.25, 0.2}, {0.2, 1.09}};
  for (std::size_t k = 0; k < 16; ++k)
    EXPECT_NEAR(found.reports[0].value[k], 2 * g[k / 8][k / 2 % 2] * g[k / 4 % 2][k % 2], 1e-12);
  const SimulationResult networks = networks_of(comparable(module), 128, 400, Matrices::kAuto);
  ASSERT_EQ(networks.reports.size(), 1u);
  for (std::size_t k = 0; k < 16; ++k)
    EXPECT_NEAR(networks.reports[0].value[k], found.reports[0].value[k],
                5 * networks.reports[0].error[k]);
}

// Heads that are stacked keep their own matrices, and their scores are random numbers of their own.
TEST(Scores, OfStackedHeadsAreThoseOfEach) {
  const auto scores = [](const std::string& q, const std::string& k) {
    return limit_of(kInputs + "report s = score(" + q + ", " + k + ")\n", {}).reports[0];
  };
  const ReportResult all = scores("stack(Q @ x, V @ x)", "stack(K @ x, Q @ x)"),
                     one = scores("Q @ x", "K @ x"), two = scores("V @ x", "Q @ x");
  ASSERT_EQ(all.value.size(), 64u);  // [2, 2, 2] twice
  for (std::size_t k = 0; k < 4; ++k)
    for (std::size_t l = 0; l < 4; ++l) {
      EXPECT_NEAR(all.value[k * 8 + l], one.value[k * 4 + l], 1e-13);
      EXPECT_NEAR(all.value[(4 + k) * 8 + 4 + l], two.value[k * 4 + l], 1e-13);
      EXPECT_NEAR(all.value[k * 8 + 4 + l], 0, 1e-13) << "Q K' and V Q' are uncorrelated";
    }
}

TEST(Scores, AreDrawnWithTheirJointLaw) {
  // Of the same matrices on two inputs; of other matrices, of one matrix in common, and a readout.
  const Module module = parsed(
      kInputs +
      "y = tanh(x)\ns = score(Q @ x, K @ x)\nt = score(Q @ y, K @ y)\nu = score(Q @ x, V @ x)\nf = "
      "v @ x / sqrt(n)\nreport s * s, s * t, s * u, s * einsum(\"i,j->ij\", f, ones(2))\nreport C "
      "= gram(x, y)\n");
  constexpr int kDraws = 4000;
  std::vector<double> mean(16, 0.0), square(16, 0.0), cross;
  for (int d = 0; d < kDraws; ++d) {
    EvaluateOptions options;
    options.draw = static_cast<std::uint64_t>(d);
    const LimitResult found = limit_of(module, options);
    ASSERT_TRUE(found.random_outputs);
    for (std::size_t k = 0; k < 16; ++k) {
      mean[k] += found.reports[k / 4].value[k % 4] / kDraws;
      square[k] += std::pow(found.reports[k / 4].value[k % 4], 2) / kDraws;
    }
    cross = found.reports[4].value;
  }
  const double g[2] = {1.25, 1.09};
  for (std::size_t k = 0; k < 16; ++k) {
    const std::size_t i = k % 4 / 2, j = k % 2;
    const double expected = k < 4   ? 2 * g[i] * g[j]
                            : k < 8 ? 2 * cross[i * 2 + i] * cross[j * 2 + j]
                                    : 0;
    EXPECT_NEAR(mean[k], expected, 5 * std::sqrt((square[k] - mean[k] * mean[k]) / kDraws)) << k;
  }
}

// Averages over scores are averages over networks.
TEST(Scores, OfTransformersAgreeWithNetworks) {
  const std::string layers =
      "random A : [2, n, n] ~ normal(0, 1 / n)\nx2 = x + attend(score(Q @ x, K @ x), V @ x)\nz = "
      "tanh(x2)\n";
  for (const std::string& program :
       {kInputs + layers + "report gram(z), E(z[0] * (V @ x)[1])\n",
        // a second layer with its own matrices, the same matrices, or one of both kinds
        kInputs + layers + "x3 = z + attend(score(A[0] @ z, A[1] @ z), z)\nreport gram(x3)\n",
        kInputs + layers + "x3 = z + attend(score(Q @ z, K @ z), z)\nreport gram(x3)\n",
        kInputs + layers + "x3 = z + attend(score(Q @ z, A[0] @ z), z)\nreport gram(x3)\n",
        // two heads
        kInputs + layers +
            "x3 = attend(score(Q @ x, K @ x), V @ x) + attend(score(A[0] @ x, A[1] @ x), V @ "
            "x)\nreport gram(x3)\n",
        // gates of order 1
        kInputs + "p = sigmoid(v @ tanh(x) / sqrt(n))\nz = einsum(\"i,in->in\", p, tanh(Q @ x)) + "
                  "einsum(\"i,in->in\", 1 - p, tanh(K @ x))\nreport gram(z)\n"})
    expect_draws_agree_with_networks(program, {}, 400, 256, 400);
}

TEST(Scores, AreRefusedWhereNoMatrixIsLinear) {
  const auto code = [](const std::string& text) {
    const Module module = parsed(kInputs + text);
    const auto found = evaluate(module, {});
    return found ? std::string() : found.errors()[0].code;
  };
  EXPECT_EQ(code("s = score(Q @ x, Q @ x)\nreport tanh(s)\n"), "E3103") << "of size sqrt(n)";
  EXPECT_EQ(code("s = score(Q @ x, Q @ x)\nreport s\n"), "E3101");
  EXPECT_EQ(code("s = score(tanh(Q @ x), tanh(K @ x))\nreport tanh(s)\n"), "E3102");
  // r1 tanh(r2) and tanh(r1) r2 are correlated: neither may be drawn by itself.
  EXPECT_EQ(code("random w : [n] ~ normal(0, 1)\na = sqrt(n) * E(v * tanh(w))\nb = sqrt(n) * "
                 "E(w * tanh(v))\nreport tanh(a), a * b\n"),
            "E3102");
  EXPECT_EQ(code("y = tanh(Q @ x)\na = score(Q @ x, K @ x)\nb = score(V @ y, K @ x)\nreport a * "
                 "b\n"),
            "");
}

TEST(Scores, MayBeGiven) {
  const std::string text = kInputs +
                           "s = score(Q @ x, K @ x)\nt = score(Q @ tanh(x), K @ tanh(x))\nreport "
                           "s, tanh(t), gram(tanh(attend(s, V @ x)))\n";
  const Module module = parsed(text);
  EvaluateOptions options;
  options.given = GradedOptions::Given{"s", {1, -1, 0.5, 2}};
  const LimitResult drawn = limit_of(module, options);
  EXPECT_EQ(drawn.reports[0].value, options.given->values);
  const Result<Module> conditional = conditioned(module, *options.given);
  ASSERT_TRUE(conditional);
  constexpr int kSeeds = 400;
  const SimulationResult found = networks_of(*conditional, 256, kSeeds, Matrices::kAuto);
  std::vector<LimitResult> all;
  for (int d = 0; d < kSeeds; ++d) {
    options.draw = static_cast<std::uint64_t>(d);
    all.push_back(limit_of(module, options));
  }
  const LimitResult mean = average_draws(std::move(all));
  for (std::size_t r = 0; r < 3; ++r)
    for (std::size_t k = 0; k < 4; ++k) {
      if (r == 0) {
        EXPECT_NEAR(found.reports[r].value[k], options.given->values[k], 1e-10);
      }
      EXPECT_NEAR(mean.reports[r].value[k], found.reports[r].value[k],
                  4.5 * std::hypot(mean.reports[r].error[k], found.reports[r].error[k]) + 0.02)
          << r << " " << k;
    }
}

}  // namespace
}  // namespace tplimit
