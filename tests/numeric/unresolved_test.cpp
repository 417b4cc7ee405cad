#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include <gtest/gtest.h>

#include "tests/support/run.hpp"

// What the spread over randomisations cannot show: rare events, heavy tails, rounding, dropped
// directions.
namespace tplimit {
namespace {

namespace fs = std::filesystem;
using test::limit_of;
using test::parsed;
using test::particles;

const std::string kOne = "width n\nrandom x : [n] ~ normal(0, 1)\nrandom y : [n] ~ normal(0, 1)\n";

double tail(double a) { return std::erfc(a / std::sqrt(2.0)) / 2; }  // P(x > a)
double density(double a) { return std::exp(-a * a / 2) / std::sqrt(2 * M_PI); }
double tail2(double a) { return a * density(a) + tail(a); }                        // E x^2 1(x > a)
double tail4(double a) { return (a * a * a + 3 * a) * density(a) + 3 * tail(a); }  // E x^4 1(x > a)

struct Case {
  std::string formula;
  double value;
};

// Jumps where hardly any particle comes, small and large, alone and beside what is smooth; counts;
// functions that agree with a matched polynomial wherever particles are.
TEST(Unresolved, RareEventsAreInTheError) {
  std::vector<Case> cases;
  for (const double a : {3.7, 4.2, 4.6, 5.0, 5.6}) {
    const std::string at = fmt::format("{}", a);
    cases.push_back({"E(x > " + at + ")", tail(a)});
    cases.push_back({"E(1000 * (x > " + at + "))", 1000 * tail(a)});
    cases.push_back({"E(where(x > " + at + ", x^4, x^2))", 1 + tail4(a) - tail2(a)});
    cases.push_back({"E(x^2 * (x < " + at + "))", 1 - tail2(a)});
    cases.push_back({"E(tanh(x)^2 + 1000 * step(x - " + at + ")) - E(tanh(x)^2)", 1000 * tail(a)});
    cases.push_back({"E(sign(x - " + at + "))", 2 * tail(a) - 1});
    cases.push_back(
        {"exp(E(where(abs(x) > " + at + ", 7 * x^2, x^2)))", std::exp(1 + 12 * tail2(a))});
    const double beyond = density(a) - a * tail(a);  // E relu(x - a)
    cases.push_back({"E(relu(x - " + at + "))", beyond});
    cases.push_back({"E(max(x, " + at + "))", a + beyond});
    cases.push_back({"E(tanh(x)^2 - 1000 * min(" + at + " - x, 0)) - E(tanh(x)^2)", 1000 * beyond});
  }
  cases.push_back({"E(x^2 * (floor(x) < 4.5))", 1 - tail2(5)});
  // Both factors are seen, but not together.
  cases.push_back({"E((x > 2.8) * (y > 2.8))", tail(2.8) * tail(2.8)});
  cases.push_back({"1e6 * E((x > 2.5) * (y > 2.9))", 1e6 * tail(2.5) * tail(2.9)});
  cases.push_back(
      {"E(relu(x - 2.5) * relu(y - 2.5))", std::pow(density(2.5) - 2.5 * tail(2.5), 2)});
  int far = 0, all = 0;
  for (const Case& c : cases)
    for (const std::int64_t m : {512, 4096})
      for (std::uint64_t seed = 0; seed < 4; ++seed) {
        const LimitResult limit =
            limit_of(kOne + "report " + c.formula + "\n", particles(m, 8, seed));
        const ReportResult& r = limit.reports[0];
        ASSERT_EQ(r.error.size(), 1u) << c.formula;
        EXPECT_GT(r.error[0], 0) << c.formula << ", " << m << " particles, seed " << seed;
        const double off = std::abs(r.value[0] - c.value) / r.error[0];
        EXPECT_LT(off, 8) << c.formula << " = " << c.value << ", not " << r.value[0] << " +- "
                          << r.error[0] << ", " << m << " particles, seed " << seed;
        far += off > 3;
        ++all;
      }
  EXPECT_LT(far, all / 50 + 1);
}

TEST(Unresolved, CountsThatAgreeHaveTheErrorOfOneParticle) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    const LimitResult limit = limit_of(kOne + "report h = hist(x, low = -3, high = 3, bins = 24)\n",
                                       particles(1024, 8, seed));
    const ReportResult& r = limit.reports[0];
    for (std::size_t j = 0; j < r.value.size(); ++j) {
      const double low = j == 0 ? 1 : tail(-3 + 0.25 * static_cast<double>(j)),
                   high = j == 23 ? 0 : tail(-2.75 + 0.25 * static_cast<double>(j));
      EXPECT_GE(r.error[j], 1.0 / 8192 * 0.999) << j;
      EXPECT_LT(std::abs(r.value[j] - (low - high)), 6 * r.error[j]) << j;
    }
  }
}

// Linear algebra: moments of degree 2 of matched particles, through matrices and training.
TEST(Unresolved, WhatLinearAlgebraProvesIsExact) {
  const std::string linear =
      "width n\nrandom x : [3, n] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, 2/n)\nh = W @ "
      "x\nreport E(x[0]^2), E(h[0]^2), E(h[0] * h[1]), gram(h), E((h[0] + x[1])^2)\n";
  const LimitResult limit = limit_of(linear, particles(512));
  for (const ReportResult& r : limit.reports)
    for (const double e : r.error) EXPECT_LT(e, 1e-13) << r.name;
  EXPECT_NEAR(limit.reports[1].value[0], 2, 1e-12);
}

std::string residual(const std::string& branch, int steps, int blocks = 8) {
  return fmt::format(R"(width n
data X = [[0.5, -1], [1, 0.3]]
param U : [n, 2] ~ normal(0, 1/2), lr = n
param W : [{1}, n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 1), lr = n
fn phi(z) = {0}
model f(x) {{
  z = U @ x
  for l in 0..{1} {{ z = z + phi(W[l] @ z) / sqrt({1}) }}
  return v @ z / n, z
}}
for t in 0..{2} {{
  out, z = f(X)
  step sgd(mse(out, [1, -1]), lr = 0.2)
}}
out, z = f(X)
report out, gram(z)
)",
                     branch, blocks, steps);
}

// One space for all layers.
TEST(Unresolved, LinearResidualNetsAreExact) {
  EvaluateOptions exact;
  exact.engine = Engine::kExact;
  const LimitResult known = limit_of(residual("z", 3), exact),
                    found = limit_of(residual("z", 3), particles(1024, 2));
  for (std::size_t k = 0; k < known.reports.size(); ++k)
    for (std::size_t j = 0; j < known.reports[k].value.size(); ++j) {
      EXPECT_NEAR(found.reports[k].value[j], known.reports[k].value[j], 1e-11);
      EXPECT_LT(found.reports[k].error[j], 1e-10);
    }
}

// Branches with nonlinear maps inside have normals apart from the others: what is used as it is
// stays exact beside them.
TEST(Unresolved, ScoresBesideNonlinearBranchesAreExact) {
  const LimitResult found = limit_of(R"(width n
random z : [3, n] ~ normal(0, 1)
random W : [5, n, n] ~ normal(0, 1/n)
random Q : [5, n, n] ~ normal(0, 1/n)
random K : [5, n, n] ~ normal(0, 1/n)
for l in 0..5 {
  report gram(z + tanh(W[l] @ z)), scores = gram(Q[l] @ z, K[l] @ z), stream = gram(z + Q[l] @ z, z + K[l] @ z)
}
)",
                                     particles(512, 2));
  ASSERT_EQ(found.reports.size(), 3u);
  for (std::size_t k = 0; k < 3; ++k) ASSERT_EQ(found.reports[k].value.size(), 45u);
  for (std::size_t j = 0; j < 45; ++j) {
    EXPECT_NEAR(found.reports[1].value[j], 0, 1e-12);
    EXPECT_NEAR(found.reports[2].value[j], j % 9 % 4 == 0 ? 1 : 0, 1e-12);
    if (j % 9 % 4 == 0) {
      EXPECT_GT(found.reports[0].error[j], 1e-6);
    }
  }
}

// .. and errors are what values are off by where it proves nothing.
// Those of 16 blocks have normals apart.
TEST(Unresolved, ResidualNetsAreOffByTheirErrors) {
  EvaluateOptions quadrature;
  quadrature.engine = Engine::kMoments;
  for (const int blocks : {8, 16}) {
    const LimitResult known = limit_of(residual("erf(z)", 0, blocks), quadrature);
    double squares = 0, count = 0;
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      const LimitResult found = limit_of(residual("erf(z)", 0, blocks), particles(1024, 8, seed));
      for (std::size_t j = 0; j < known.reports[1].value.size(); ++j) {
        const double error = found.reports[1].error[j],
                     off = (found.reports[1].value[j] - known.reports[1].value[j]) / error;
        EXPECT_LT(error, 0.01 * std::abs(known.reports[1].value[0]));
        EXPECT_LT(std::abs(off), 8) << blocks << " blocks, seed " << seed;
        squares += off * off;
        ++count;
      }
    }
    EXPECT_LT(squares / count, 4) << blocks << " blocks";
  }
}

TEST(Unresolved, RoundingIsAnError) {
  const LimitResult limit =
      limit_of(kOne + "report E(sign(x)^2), E(where(x > 0, x^2, x * x))\n", particles(512));
  EXPECT_GT(limit.reports[0].error[0], 0);
  EXPECT_LT(limit.reports[0].error[0], 1e-15);
  EXPECT_GT(limit.reports[1].error[0], 0);
}

// ---- heavy tails

bool has(const LimitResult& limit, const std::string& code) {
  return std::any_of(limit.warnings.begin(), limit.warnings.end(),
                     [&](const Diagnostic& d) { return d.code == code; });
}

// A matrix takes the mean square of its vector: where no particle shows it, nothing that follows is
// known; where rare events add to something, that is in the errors.
TEST(Unresolved, RareEventsInVectorsThatMatricesMultiply) {
  const std::string head = kOne + "random W : [n, n] ~ normal(0, 1/n)\n";
  const auto evaluated = [&](const std::string& program, std::uint64_t seed) {
    return evaluate(parsed(head + program), particles(1024, 8, seed));
  };
  for (const double a : {4.2, 5.0, 6.0})
    for (const std::string vector :
         {"step(x - A)", "(x > A) * y", "relu(x - A)", "(x > 2.9) * (y > 3)"}) {
      std::string own = vector;
      if (const auto at = own.find('A'); at != std::string::npos)
        own.replace(at, 1, fmt::format("{}", a));
      const auto limit = evaluated("z = W @ (" + own + ")\nreport E(z^2), E(step(z - 1e-4))\n", 1);
      if (limit) {  // a particle came there
        EXPECT_GT(limit->reports[0].value[0], 0) << own;
        EXPECT_GT(limit->reports[0].error[0], 0.1 * limit->reports[0].value[0]) << own;
      } else {
        EXPECT_EQ(limit.errors()[0].code, "E4102") << own;
      }
    }
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    // E z^2 = 1 + 64 P(x > 4.5)
    const auto limit = evaluated("z = W @ (y + 8 * step(x - 4.5))\nreport E(z^2)\n", seed);
    ASSERT_TRUE(limit);
    EXPECT_LT(std::abs(limit->reports[0].value[0] - 1 - 64 * tail(4.5)),
              5 * limit->reports[0].error[0])
        << seed;
    // Rows that are 0 for all coordinates are no rare event.
    const auto zero = evaluated(
        "z = W @ relu(0 * x)\nh = relu(stack(x - x, y))\nu = W @ h\nreport E(z^2), E(u^2), "
        "E(step(u))\n",
        seed);
    ASSERT_TRUE(zero);
    EXPECT_EQ(zero->reports[0].value[0], 0);
    EXPECT_EQ(zero->reports[0].error[0], 0);
  }
}

// What is 0 in exact arithmetic, but not in ours, is on no side of a jump; a difference of equals
// is exactly 0.
TEST(Unresolved, JumpsThatRoundingDecidesAreUndetermined) {
  const std::string before = kOne +
                             "random W : [n, n] ~ normal(0, 1/n)\nrandom z : [3, n] ~ normal(0, "
                             "[[1, 0.3, 1.3], [0.3, 1, 1.3], [1.3, 1.3, 2.6]])\n"
                             "d = W @ relu(x) - W @ relu(-x) - W @ x\n";
  for (const std::string formula :
       {"E(sign(d)^2)", "E(step(d) * x)", "E(d != 0)", "E(where(d > 0, x, 2 * x)^2)", "E(floor(d))",
        "tanh(E((y + d > y) * y^2))", "E(sign(W @ (tanh(x)^2 + d))) + E(step(W @ d))",
        "E(sign(z[2] - z[0] - z[1])^2)", "E(z[2] == z[0] + z[1])",
        "E(sign(sin(x)^2 + cos(x)^2 - 1)^2)", "E(sigmoid(x) + sigmoid(-x) == 1)",
        "E(exp(x) * exp(-x) > 1)", "E(abs(sign((x + y)^2 - (x - y)^2 - 4 * x * y)))",
        "E(max(sign(log(exp(x)) - x), 0))", "E(floor(sin(x)^2 + cos(x)^2))"}) {
    const LimitResult limit =
        limit_of(before + "report " + formula + "\nreport E(x^2)\n", particles(512, 2, 1));
    EXPECT_TRUE(std::isnan(limit.reports[0].value[0]))
        << formula << " " << limit.reports[0].value[0];
    EXPECT_NE(limit.reports[0].undetermined.find("rounding"), std::string::npos) << formula;
    EXPECT_NEAR(limit.reports[1].value[0], 1, 1e-9) << formula;
  }
  for (const std::string formula :
       {"E(step(x - y))", "E(x == 1 * x)", "E(sign(relu(x) - relu(y))^2)", "E(floor(3 * x))",
        "E(where(x > 0.5, x, y)^2)", "E(tanh(x)^2 == tanh(-x)^2)",
        "E(step(W @ relu(W @ x) - W' @ y))", "E(sign(x - tanh(x)))", "E(step(W @ x + W @ y))",
        "E(sign(relu(x) * relu(-x)))", "E(abs(d) + step(x) * d)"}) {
    const LimitResult limit = limit_of(before + "report " + formula + "\n", particles(512, 2, 1));
    EXPECT_TRUE(std::isfinite(limit.reports[0].value[0]))
        << formula << " " << limit.reports[0].undetermined;
  }
}

// Units of a relu network that training keeps at their kink: rounding decides on which side they
// are, and nothing depends on it, 1,000 steps long.
TEST(Unresolved, JumpsThatRoundingDecidesOfNothingAreNumbers) {
  for (const char* samples :
       {"data X = [[1, 0.5], [-0.3, 1], [0.7, -0.6]]\ndata y = [1, -1, 0.5]\n",
        "data X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, 0.3]\n"}) {
    const auto text = [&](int steps) {
      return fmt::format(R"(width n
{}param U : [n, 2] ~ normal(0, 1), lr = n
param v : [n] ~ normal(0, 1), lr = n
for t in 0..{} {{
  step sgd(mse(v @ relu(U @ X) / n, y), lr = 0.5)
}}
report E(v^2), mse(v @ relu(U @ X) / n, y)
)",
                         samples, steps);
    };
    const LimitResult end = limit_of(text(1000), particles(1024, 4)),
                      before = limit_of(text(200), particles(1024, 4));
    EXPECT_NEAR(end.reports[0].value[0], before.reports[0].value[0], 1e-3);
    EXPECT_LT(end.reports[1].value[0], 1e-12);
  }
}

TEST(HeavyTails, InfiniteMeansAreRefused) {
  for (const std::string formula :
       {"E(exp(x^2 / 2))", "E(1 / abs(x))", "E(exp(x^2))", "E(exp(x^2 / 2) * abs(y))",
        "E(abs(y) / x^2)", "E(exp(x * y))", "sqrt(E(exp(0.7 * x^2)))"})
    for (std::uint64_t seed = 0; seed < 5; ++seed)
      for (const std::int64_t m : {2048, 16384}) {
        const auto result =
            evaluate(parsed(kOne + "report " + formula + "\n"), particles(m, 8, seed));
        if (!result) {
          EXPECT_EQ(result.errors()[0].code, "E4102") << formula;
          continue;
        }
        // By chance the index comes out a little above 1: then at least it is said.
        EXPECT_TRUE(has(*result, "W5403"))
            << formula << " = " << result->reports[0].value[0] << ", seed " << seed << ", " << m;
      }
}

TEST(HeavyTails, HeavyTailsHaveLargeErrors) {
  // x and z with correlation 1/2: E exp(x z / 2) = ((1 - c/2)^2 - 1/4)^(-1/2) with c = 1/2.
  const std::string formula = "E(exp(x * (0.5 * x + sqrt(0.75) * y) / 2))";
  int far = 0, refused = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const auto result =
        evaluate(parsed(kOne + "report " + formula + "\n"), particles(4096, 8, seed));
    if (!result) {
      EXPECT_EQ(result.errors()[0].code, "E4102");
      ++refused;
      continue;
    }
    EXPECT_TRUE(has(*result, "W5403")) << seed;
    far += std::abs(result->reports[0].value[0] - 1.788854) > 3 * result->reports[0].error[0];
  }
  EXPECT_LE(far, 1);
  EXPECT_LE(refused, 8);
}

// W takes the mean square of its vector, which particles may not show; so do averages that other
// averages need.
TEST(HeavyTails, InsideAProgramAreInTheErrors) {
  int far = 0, all = 0, refused = 0;
  for (const double s : {0.5, 0.8, 1.0, 1.2, 1.6, 2.0}) {
    const std::string scale = fmt::format("{}", s), variance = fmt::format("exp({})", 2 * s * s);
    for (const std::string& formula :
         {"E((W @ exp(" + scale + " * x))^2) / " + variance,
          "E(tanh(W @ exp(" + scale + " * x) / sqrt(" + variance + "))^2) / 0.394294490398",
          "E((y * E(exp(" + fmt::format("{}", 2 * s) + " * x)))^2) / " + variance + "^2",
          "E((W @ (W @ exp(" + scale + " * x)))^2) / " + variance,
          "E(exp(" + fmt::format("{}", 2 * s) + " * x)) / " + variance})
      for (std::uint64_t seed = 0; seed < 6; ++seed) {
        const auto limit =
            evaluate(parsed(kOne + "random W : [n, n] ~ normal(0, 1/n)\nreport " + formula + "\n"),
                     particles(4096, 8, seed));
        ++all;
        if (!limit) {
          EXPECT_EQ(limit.errors()[0].code, "E4102") << formula;
          ++refused;
          continue;
        }
        const double off = std::abs(limit->reports[0].value[0] - 1) / limit->reports[0].error[0];
        EXPECT_LT(off, 6) << formula << ", seed " << seed << ": " << limit->reports[0].value[0]
                          << " +- " << limit->reports[0].error[0];
        far += off > 3;
      }
  }
  EXPECT_LT(far, all / 20) << "of " << all;
  EXPECT_LT(refused, all / 3) << "of " << all;
}

TEST(HeavyTails, OrdinaryMeansHaveNone) {
  for (const std::string formula :
       {"E(x^2)", "E(x^4)", "E(x^2 * y^2)", "E(tanh(x) * y)", "E(exp(x / 2))", "E(relu(x)^2)",
        "E(exp(x) / (1 + exp(x)))", "E(x > 4)", "E((x > 3) * x^2)",
        "E(where(x > 3.7, 1000, tanh(y)))"})
    for (const std::int64_t m : {256, 512, 2048, 16384})
      EXPECT_FALSE(has(limit_of(kOne + "report " + formula + "\n", particles(m)), "W5403"))
          << formula << ", " << m;
}

TEST(HeavyTails, ProgramsOfTheRepositoryHaveNone) {
  for (const auto& entry : fs::directory_iterator(fs::path(TPLIMIT_SOURCE_DIR) / "programs")) {
    if (entry.path().extension() != ".tp") continue;
    const auto module = parse_file(entry.path());
    ASSERT_TRUE(module) << entry.path();
    EvaluateOptions options = particles(2048, 2);
    const auto result = evaluate(*module, options);
    if (result)
      EXPECT_FALSE(has(*result, "W5403")) << entry.path();
    else
      EXPECT_NE(result.errors()[0].code, "E4102") << entry.path();
  }
}

// ---- samples

TEST(Samples, AreDrawsFromTheLaw) {
  for (const std::int64_t k : {100, 1000, 1024, 3000, 4096})
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      const LimitResult limit =
          limit_of(kOne + fmt::format("report samples(x, {}), samples(x^2, {})\n", k, k),
                   particles(1024, 4, seed));
      const std::vector<double>& v = limit.reports[0].value;
      ASSERT_EQ(v.size(), static_cast<std::size_t>(k));
      const double n = static_cast<double>(k), mean = std::accumulate(v.begin(), v.end(), 0.0) / n;
      double squares = 0, lag = 0;
      for (std::size_t i = 0; i < v.size(); ++i) {
        squares += (v[i] - mean) * (v[i] - mean) / n;
        lag += (v[i] - mean) * (v[(i + 1) % v.size()] - mean) / n;
        EXPECT_NEAR(limit.reports[1].value[i], v[i] * v[i], 1e-12);  // of the same particles
      }
      EXPECT_LT(std::abs(mean), 5 / std::sqrt(n)) << k;
      EXPECT_NEAR(squares, 1, 5 * std::sqrt(2 / n)) << k;
      EXPECT_LT(std::abs(lag), 5 / std::sqrt(n)) << k;
      std::vector<double> sorted = v;
      std::sort(sorted.begin(), sorted.end());
      EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end()) << "repeats among " << k;
    }
  const auto result = evaluate(parsed(kOne + "report samples(x, 5000)\n"), particles(1024, 4));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.errors()[0].code, "E4203");
}

// ---- dropped directions

TEST(DroppedDirections, AreInTheErrorOfLinearPrograms) {
  for (const double rank_tol : {1e-6, 1e-4, 1e-3}) {
    std::string program =
        "width n\nrandom x : [n] ~ normal(0, 1)\nrandom y : [n] ~ normal(0, 1)\nrandom W : [n, n] "
        "~ normal(0, 1/n)\n";
    const double c = 0.7 * rank_tol;
    program += fmt::format(
        "a = W @ x\nb = W @ (x + {} * y)\nreport E(b^2), E((b - a)^2) / {}, E(a * b)\n", c, c * c);
    EvaluateOptions options = particles(1024);
    options.rank_tol = rank_tol;
    const LimitResult limit = limit_of(program, options);
    const double right[] = {1 + c * c, 1, 1};
    for (std::size_t k = 0; k < 3; ++k)
      EXPECT_LE(std::abs(limit.reports[k].value[0] - right[k]),
                3 * limit.reports[k].error[0] + 4e-16)
          << limit.reports[k].name << " " << limit.reports[k].value[0] << " +- "
          << limit.reports[k].error[0] << ", " << rank_tol;
  }
}

// ---- extrapolated means of squares

TEST(Extrapolation, MeansOfSquaresStayAboveZero) {
  // r is 0 up to rounding, in a program whose bias is extrapolated.
  const std::string program =
      "width n\nrandom X : [96, n] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, 1/n)\nz = "
      "tanh(X)\nh = W @ z\n"
      "r = W @ (z[0] + 0.3 * z[1]) - h[0] - 0.3 * h[1]\nreport sqrt(E(r^2)), E(h[0] * "
      "tanh(h[1]))\n";
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    const LimitResult limit = limit_of(program, particles(512, 2, seed));
    EXPECT_TRUE(limit.engine.extrapolated);
    EXPECT_LT(std::abs(limit.reports[0].value[0]), 1e-6);
  }
}

// ---- --tol-on

TEST(Tolerance, CoversTheNamedReports) {
  const std::string program = kOne +
                              "report rough = 100 * E(exp(x * y / 4) * abs(x + y)), fine = "
                              "E(tanh(x + tanh(y)) ^ 2 * cos(x * y))\n";
  EvaluateOptions options = particles(64, 4);
  options.particles.reset();
  options.tolerance = 1e-3;
  options.tolerance_on = {"fine"};
  const LimitResult limit = limit_of(program, options);
  EXPECT_LE(limit.reports[1].error[0], 1e-3);
  EXPECT_GT(limit.reports[0].error[0], 1e-3);
  EXPECT_FALSE(limit.tolerance_missed);
  options.tolerance_on = {"fine", "fien"};
  const auto unknown = evaluate(parsed(program), options);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.errors()[0].code, "E2701");
  EXPECT_NE(unknown.errors()[0].message.find("fien"), std::string::npos);
}

TEST(TooFewParticles, TheAdviceWorks) {
  std::string program =
      "width n\nrandom X : [20, n] ~ normal(0, 1)\nparam W : [n, n] ~ normal(0, 1/n)\nz = "
      "tanh(X)\nfor t in 0..4 {\n  z = tanh(W @ z)\n}\nreport gram(z)[0, 0]\n";
  const auto lazily = [](std::int64_t count) {
    EvaluateOptions options = particles(count, 2);
    options.matrices = Matrices::kLazy;
    return options;
  };
  const auto refused = evaluate(parsed(program), lazily(64));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.errors()[0].code, "E4201");
  const std::string& help = refused.errors()[0].help;
  const std::int64_t advised = std::stoll(help.substr(help.find(" to ") + 4));
  EXPECT_TRUE(evaluate(parsed(program), lazily(advised))) << help;
  EXPECT_FALSE(evaluate(parsed(program), lazily(advised / 2))) << help;
}

}  // namespace
}  // namespace tplimit
