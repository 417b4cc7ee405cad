/// The particle engine against numbers derived elsewhere, against dense networks, and against
/// itself.

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "tests/support/run.hpp"
#include "tplimit/math/normals.hpp"

namespace tplimit::test {
namespace {

std::string mlp(int layers, const std::string& map, double eta, int steps) {
  return fmt::format(R"(width n
data X = [[-0.9891213503478509, -0.3677866514678832, 1.2879252612892487],
          [0.1939744191326132, 0.9202308996398569, 0.5771037912572513],
          [-0.6364636463709805, 0.5419522204102933, -0.3165954511658161],
          [-0.32238911615896015, 0.09716731867045719, -1.5259304065189514]]
data y = [1, -1, 0.5, -0.5]
fn phi(z) = {}
param U : [n, 3] ~ normal(0, 1 / 3), lr = n
param W : [2, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {{
  z = phi(U @ x)
  for l in 0..{} {{ z = phi(W[l] @ z) }}
  return v @ z / n, z
}}
for t in 0..{} {{
  out, z = f(X)
  step sgd(mse(out, y), lr = {})
}}
out, z = f(X)
report out, gram(z)
)",
                     map, layers - 1, steps, eta);
}

TEST(WorkedExample, LinearNetworkIsExactForAnyNumberOfParticles) {
  const double expected[] = {1.22433, -0.67730, 0.04784, -0.09600};
  const auto reference = limit_of(mlp(2, "z", 0.4, 9), particles(4096, 2)).reports[0].value;
  for (std::size_t p = 0; p < 4; ++p) EXPECT_NEAR(reference[p], expected[p], 0.6e-5);
  for (const std::int64_t m : {200, 256, 999, 1025}) {
    const auto r = limit_of(mlp(2, "z", 0.4, 9), particles(m, 2)).reports[0];
    for (std::size_t p = 0; p < 4; ++p)
      EXPECT_NEAR(r.value[p], reference[p], 1e-10) << m << " particles";
  }
}

TEST(WorkedExample, TanhNetworksAgreeWithTheReference) {
  const double two[] = {0.904039, -0.663586, 0.272464, -0.355106},
               two_error[] = {36e-6, 28e-6, 16e-6, 20e-6};
  const double three[] = {0.872754, -0.716184, 0.383056, -0.425464},
               three_error[] = {46e-6, 48e-6, 35e-6, 31e-6};
  for (const int layers : {2, 3}) {
    const auto r = limit_of(mlp(layers, "tanh(z)", 0.6, 9), particles(16384)).reports[0];
    for (std::size_t p = 0; p < 4; ++p)
      EXPECT_NEAR(r.value[p], (layers == 2 ? two : three)[p],
                  4 * std::hypot(r.error[p], (layers == 2 ? two_error : three_error)[p]))
          << layers << " layers";
  }
}

// The same-step coefficient of the backward correction decides f_2: without it f_2 = 0.8169,
// decoupled 0.7208.
TEST(CorrectionTerms, OneSampleAStep) {
  const auto r = limit_of(one_sample_a_step("tanh(z)", "1", 4), particles(65536)).reports[0];
  const double expected[] = {0, -0.561671, 0.812311, -0.927628};
  EXPECT_EQ(r.value[0], 0);
  for (std::size_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(r.value[t], expected[t], 4 * std::hypot(r.error[t], 5e-6));
    EXPECT_LE(r.error[t], 2e-5);
  }
}

TEST(CorrectionTerms, LinearNetworkGivesTheExactRationals) {
  const auto r = limit_of(one_sample_a_step("z", "1 / 2", 6), particles(512, 4)).reports[0];
  const double expected[] = {0, -1.5, 103.0 / 256, -8197425647993.0 / 8796093022208.0};
  for (std::size_t t = 0; t < 4; ++t) EXPECT_NEAR(r.value[t], expected[t], 1e-12);
  EXPECT_NEAR(r.value[4], 0.1456009885, 1e-10);
  EXPECT_NEAR(r.value[5], -0.5341454106, 1e-10);
}

// ---- lazily revealed networks have the law of dense ones
// --------------------------------------------

/// Means and variances of every entry over many networks, dense against lazy, in units of their own
/// errors.
void expect_same_law(const std::string& text, const std::string& what) {
  constexpr int kRuns = 2000;
  const Module module = parsed(text);
  const auto dense = networks_of(module, 64, kRuns, Matrices::kDense, 1),
             lazy = networks_of(module, 64, kRuns, Matrices::kLazy, 2);
  ASSERT_TRUE(dense.dense);
  ASSERT_FALSE(lazy.dense);
  struct Moments {
    double mean, mean_error, variance, variance_error;
  };
  const auto moments = [](const std::vector<std::vector<double>>& runs, std::size_t j) {
    double mean = 0, second = 0, fourth = 0;
    const double n = static_cast<double>(runs.size());
    for (const auto& r : runs) mean += r[j] / n;
    for (const auto& r : runs) {
      const double d = (r[j] - mean) * (r[j] - mean);
      second += d / n;
      fourth += d * d / n;
    }
    return Moments{mean, std::sqrt(second / n), second, std::sqrt((fourth - second * second) / n)};
  };
  for (std::size_t k = 0; k < dense.reports.size(); ++k)
    for (std::size_t j = 0; j < dense.reports[k].value.size(); ++j) {
      const Moments a = moments(dense.runs[k], j), b = moments(lazy.runs[k], j);
      EXPECT_LE(std::abs(a.mean - b.mean), 4 * std::hypot(a.mean_error, b.mean_error))
          << what << ": mean of " << dense.reports[k].name << " " << j;
      EXPECT_LE(std::abs(a.variance - b.variance),
                4 * std::hypot(a.variance_error, b.variance_error))
          << what << ": variance of " << dense.reports[k].name << " " << j;
    }
}

TEST(LazyNetworks, HaveTheLawOfDenseOnesForAnMlp) {
  expect_same_law(mlp(3, "tanh(z)", 0.6, 5), "mlp");
}

TEST(LazyNetworks, HaveTheLawOfDenseOnesForATiedRnn) {
  expect_same_law(R"(width n
data X = [[1, 0.5, -1], [-0.3, 1, 0.4]]
data y = [0.7, -0.4]
param U : [n] ~ normal(0, 1), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model rnn(x) {
  h = tanh(einsum("p,n->pn", x[.., 0], U))
  for s in 1..3 { h = tanh(W @ h + einsum("p,n->pn", x[.., s], U)) }
  return v @ h / n, h
}
for t in 0..4 {
  out, h = rnn(X)
  step sgd(mse(out, y), lr = 0.5)
}
out, h = rnn(X)
report out, gram(h)
)",
                  "rnn");
}

// ---- standard errors
// --------------------------------------------------------------------------------

/// Deviations from an accurate run in units of the reported errors, over 50 seeds, for each chosen
/// number.
void expect_honest_errors(const std::string& text, std::int64_t m, double rank_tol,
                          std::int64_t reference_particles) {
  const Module module = parsed(text);
  EvaluateOptions accurate = particles(reference_particles, 16, 4711);
  accurate.rank_tol = rank_tol;
  const auto reference = limit_of(module, accurate);
  constexpr int kSeeds = 50;
  std::vector<std::vector<double>> z(reference.reports.size());
  std::vector<double> reported(reference.reports.size());
  for (int seed = 0; seed < kSeeds; ++seed) {
    EvaluateOptions options = particles(m, 32, static_cast<std::uint64_t>(seed));
    options.rank_tol = rank_tol;
    const auto r = limit_of(module, options);
    for (std::size_t k = 0; k < z.size(); ++k) {
      z[k].push_back((r.reports[k].value[0] - reference.reports[k].value[0]) /
                     r.reports[k].error[0]);
      reported[k] = r.reports[k].error[0];
    }
  }
  for (std::size_t k = 0; k < z.size(); ++k) {
    const double mean = std::accumulate(z[k].begin(), z[k].end(), 0.0) / kSeeds;
    double variance = 0;
    for (const double x : z[k]) variance += (x - mean) * (x - mean) / (kSeeds - 1);
    const double sd = std::sqrt(variance);
    const std::string& name = reference.reports[k].name;
    EXPECT_GT(sd, 0.7) << name;
    EXPECT_LT(sd, 1.35) << name;
    // The reference's own error moves all deviations together.
    EXPECT_LE(std::abs(mean),
              3 * std::hypot(sd / std::sqrt(kSeeds), reference.reports[k].error[0] / reported[k]))
        << name;
  }
}

TEST(StandardErrors, AreHonestForAShortRun) {
  std::string text = mlp(2, "tanh(z)", 0.6, 6);
  text.erase(text.find("report"));
  expect_honest_errors(
      text + "report first = out[0], third = out[2], loss = mse(out, y), feature = gram(z)[0, 1]\n",
      1024, 1e-6, 65536);
}

// New samples in every step: the rank is an eighth of the particles, and without extrapolation the
// bias is above one standard error.
TEST(StandardErrors, AreHonestForALongRun) {
  std::vector<double> numbers(64 * 9);
  plain_normals(1, 0, numbers);
  std::string x, y;
  for (std::size_t p = 0; p < 64; ++p) {
    x += fmt::format("{}[{:.3f}]", p ? ", " : "",
                     fmt::join(numbers.begin() + static_cast<std::ptrdiff_t>(8 * p),
                               numbers.begin() + static_cast<std::ptrdiff_t>(8 * p + 8), ", "));
    y += fmt::format("{}{:.3f}", p ? ", " : "", numbers[512 + p]);
  }
  expect_honest_errors(fmt::format(R"(width n
data X = [{}]
data y = [{}]
param U : [n, 8] ~ normal(0, 1 / 8), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {{
  z = tanh(W @ tanh(U @ x))
  return v @ z / n, z
}}
for t in 0..8 {{
  out, z = f(X[8 * t..8 * t + 8])
  step sgd(mse(out, y[8 * t..8 * t + 8]), lr = 0.5)
}}
out, z = f(X[0..4])
report out[0], out[1], out[2], out[3], E(z[0]^2), E(z[0] * z[1]), E(z[2] * z[3])
)",
                                   x, y),
                       512, 1e-6, 65536);
}

// ---- reproducibility
// --------------------------------------------------------------------------------

TEST(Determinism, ThreadsDoNotChangeABit) {
  const Module module = parsed(mlp(3, "tanh(z)", 0.6, 4));
  for (const std::int64_t m : {1000, 1025, 5000}) {
    EvaluateOptions options = particles(m, 3);
    options.threads = 1;
    const auto one = limit_of(module, options);
    for (const int threads : {2, 3, 5}) {
      options.threads = threads;
      const auto many = limit_of(module, options);
      for (std::size_t k = 0; k < one.reports.size(); ++k)
        EXPECT_EQ(one.reports[k].value, many.reports[k].value)
            << m << " particles, " << threads << " threads";
    }
    options.seed = 1;
    EXPECT_NE(one.reports[0].value, limit_of(module, options).reports[0].value);
  }
}

TEST(Determinism, OneRandomisationHasNoError) {
  EXPECT_TRUE(limit_of(mlp(2, "tanh(z)", 0.6, 1), particles(512, 1)).reports[0].error.empty());
}

// ---- what is refused
// --------------------------------------------------------------------------------

std::string first_code(const std::string& text) {
  const auto result = evaluate(parsed(text), particles(64, 2));
  return result.ok() ? "" : result.errors()[0].code;
}

TEST(Refusals, NtkAndRandomOutputs) {
  const std::string ntk = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1)
param v : [n] ~ normal(0, 1)
for t in 0..2 {
  f = v @ tanh(W @ tanh(U @ X) / sqrt(n)) / sqrt(n)
  report f
  step sgd(mse(f, y), lr = 1)
}
)";
  EXPECT_EQ(first_code(ntk), "");  // graded values carry it (graded_test)
  const std::string head =
      "width n\nrandom v : [n] ~ normal(0, 1)\nrandom x : [n] ~ normal(0, 1)\n";
  EXPECT_EQ(first_code(head + "report (v @ tanh(x))^2 / n\n"), "");  // a chi-square variable: drawn
  EXPECT_EQ(first_code(head + "report sqrt(n) * E(cos(x) * sin(v))\n"),
            "E3102");  // Gaussian, but not linear in one
  EXPECT_EQ(first_code(head + "report x @ x\n"), "E3101");
  EXPECT_EQ(first_code(head + "report E(tanh(n * x))\n"), "E3103");
  EXPECT_EQ(first_code(head + "report E(x^2) / E(x)\n"), "E3104");
}

/// A deep tanh network with ntk scaling, three inputs, `outputs` outputs.
std::string random_output(const std::string& readout, const std::string& f,
                          const std::string& report) {
  return R"(width n
data X = [[1, 0.5], [-0.3, 1], [1, 0.5]]
random U : [n, 2] ~ normal(0, 1)
random W : [n, n] ~ normal(0, 1)
)" + readout +
         "model g(x) {\n  z = tanh(W @ tanh(U @ x) / sqrt(n))\n  return " + f + "\n}\n" + report;
}

TEST(RandomOutputs, TheReportIsTheCovariance) {
  const std::string v = "random v : [n] ~ normal(0, 2)\n", f = "v @ z / sqrt(n)";
  const auto result =
      limit_of(random_output(v, f, "report f = g(X), K = nngp(g, X)\n"), EvaluateOptions{});
  ASSERT_EQ(result.reports.size(), 2u);
  const auto &covariance = result.reports[0], &kernel = result.reports[1];
  EXPECT_EQ(covariance.name, "cov(f)");
  EXPECT_EQ(covariance.shape, (std::vector<std::int64_t>{3, 3}));
  EXPECT_EQ(covariance.method, Method::kQuadrature);
  for (std::size_t k = 0; k < 9; ++k) EXPECT_NEAR(covariance.value[k], kernel.value[k], 1e-13);
  ASSERT_EQ(result.warnings.size(), 1u);
  EXPECT_EQ(result.warnings[0].code, "W5302");
}

// Entries of size n^(-1/2) in the readout itself; several outputs are independent; a loop keeps its
// index.
TEST(RandomOutputs, SeveralOutputsAndLoops) {
  const auto one = limit_of(random_output("random v : [n] ~ normal(0, 1)\n", "v @ z / sqrt(n)",
                                          "report f = g(X)\n"),
                            EvaluateOptions{})
                       .reports[0];
  const auto two =
      limit_of(random_output("random V : [2, n] ~ normal(0, 1/n)\n", "V @ z",
                             "for t in 0..2 { report f = g(X)[0..(t + 1) * 0 + 2] }\n"),
               EvaluateOptions{})
          .reports[0];
  ASSERT_EQ(two.shape, (std::vector<std::int64_t>{2, 2, 2, 2, 2}));
  for (std::size_t t = 0; t < 2; ++t)
    for (std::size_t i = 0; i < 2; ++i)
      for (std::size_t a = 0; a < 2; ++a)
        for (std::size_t j = 0; j < 2; ++j)
          for (std::size_t b = 0; b < 2; ++b)
            EXPECT_NEAR(two.value[(((t * 2 + i) * 2 + a) * 2 + j) * 2 + b],
                        a == b ? one.value[i * 3 + j] : 0, 1e-13);
}

TEST(RandomOutputs, AMeanThatIsNotZeroIsReportedBeside) {
  const auto result = limit_of(random_output("random v : [n] ~ normal(0, 1)\n",
                                             "v @ z / sqrt(n) + E(z^2)", "report f = g(X)\n"),
                               EvaluateOptions{});
  ASSERT_EQ(result.reports.size(), 2u);
  EXPECT_EQ(result.reports[1].name, "mean(f)");
  for (std::size_t k = 0; k < 3; ++k)
    EXPECT_NEAR(result.reports[1].value[k], result.reports[0].value[4 * k],
                1e-13);  // E z^2 is also the variance
}

// A tied readout: v is in the hidden layer as well, so the output is not linear in it.
TEST(RandomOutputs, ATiedReadoutIsRefused) {
  EXPECT_EQ(first_code(random_output("random v : [n] ~ normal(0, 1)\n",
                                     "v @ (z * cos(v)) / sqrt(n)", "report g(X)\n")),
            "E3102");
}

TEST(RandomOutputs, NetworksTendToTheCovariance) {
  const Module module = parsed(random_output("random v : [n] ~ normal(0, 1)\n",
                                             "v @ z / sqrt(n) + E(z^2)", "report f = g(X)\n"));
  const auto limit = evaluate(module);
  ASSERT_TRUE(limit);
  SimulateOptions options;
  options.width = 512;
  options.seeds = 400;
  const auto networks = simulate(comparable(module), options);
  ASSERT_TRUE(networks);
  for (std::size_t r = 0; r < 2; ++r) {
    ASSERT_EQ(networks->reports[r].name, limit->reports[r].name);
    for (std::size_t k = 0; k < limit->reports[r].value.size(); ++k)
      EXPECT_NEAR(networks->reports[r].value[k], limit->reports[r].value[k],
                  4 * networks->reports[r].error[k] + 4.0 / 512);
  }
}

TEST(Refusals, TooManyDirectionsAndNonFiniteNumbers) {
  EvaluateOptions lazily = particles(64, 2);
  lazily.matrices = Matrices::kLazy;
  EXPECT_EQ(evaluate(parsed(mlp(3, "tanh(z)", 0.6, 20)), lazily).errors()[0].code, "E4201");
  EXPECT_EQ(first_code(mlp(3, "tanh(z)", 0.6, 20)), "");  // stored instead
  EXPECT_EQ(first_code("width n\nrandom x : [n] ~ normal(0, 1)\nreport E(log(x))\n"), "E4101");
}

TEST(ProvedZeros, AreExactAndVanishingReportsAreNamed) {
  const auto r = limit_of(mlp(2, "tanh(z)", 0.6, 0), particles(64, 2)).reports[0];
  EXPECT_EQ(r.method, Method::kExact);
  for (const double x : r.value) EXPECT_EQ(x, 0);
  const auto vanishing = limit_of(
      "width n\nrandom x : [n] ~ normal(0, 1)\nreport E(x^2) / sqrt(n)\n", particles(64, 2));
  EXPECT_EQ(vanishing.reports[0].value[0], 0);
  ASSERT_EQ(vanishing.warnings.size(), 1u);
  EXPECT_EQ(vanishing.warnings[0].code, "W5301");
}

// Two ways to write muP: the powers of n in the rates, or in multipliers and variances.
TEST(Powers, EquivalentParametrisationsHaveOneLimit) {
  const auto with = [](const std::string& params, const std::string& f) {
    return "width n\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\n" + params +
           "for t in 0..3 {\n  f = " + f + "\n  report f\n  step sgd(mse(f, y), lr = 0.5)\n}\n";
  };
  const auto a = limit_of(with("param U : [n, 2] ~ normal(0, 1), lr = n\nparam W : [n, n] ~ "
                               "normal(0, 1/n)\nparam v : [n] ~ normal(0, 1), lr = n\n",
                               "v @ tanh(W @ tanh(U @ X)) / n"),
                          particles(512, 2));
  const auto b = limit_of(with("param U : [n, 2] ~ normal(0, 1/n)\nparam W : [n, n] ~ normal(0, "
                               "1/n)\nparam v : [n] ~ normal(0, n^-1)\n",
                               "v @ tanh(W @ tanh(U @ X * sqrt(n))) * n^(-1/2)"),
                          particles(512, 2));
  const auto c = limit_of(with("param U : [n, 2] ~ normal(0, 1), lr = n\nparam W : [n, n] ~ "
                               "normal(0, 1), lr = n\nparam v : [n] ~ normal(0, 1), lr = n\n",
                               "v @ tanh(W @ tanh(U @ X) / n^0.5) / n"),
                          particles(512, 2));
  for (std::size_t j = 0; j < a.reports[0].value.size(); ++j) {
    EXPECT_NEAR(a.reports[0].value[j], b.reports[0].value[j], 1e-9);
    EXPECT_NEAR(a.reports[0].value[j], c.reports[0].value[j], 1e-9);
  }
}

// Moments of laws that are functions of a normal; the mean of the squared output over a readout.
TEST(Laws, HaveTheirMoments) {
  const auto r = limit_of(R"(width n
random u : [n] ~ uniform(-1, 3)
random s : [n] ~ sign()
random t : [2, n] ~ uniform(0, 1)
param v : [n] ~ normal(0, 1 / n)
model f(x) = v @ (u * s * x)
report E(u), E(u^2), E(u^3), E(s), E(s^2), E(s * u), E(t), nngp(f, [[1], [2]])
)",
                          {})
                     .reports;
  const std::vector<std::vector<double>> expected{
      {1}, {7.0 / 3}, {5}, {0}, {1}, {0}, {0.5, 0.5}, {7.0 / 3, 14.0 / 3, 14.0 / 3, 28.0 / 3}};
  ASSERT_EQ(r.size(), expected.size());
  for (std::size_t k = 0; k < r.size(); ++k)
    for (std::size_t j = 0; j < r[k].value.size(); ++j)
      EXPECT_NEAR(r[k].value[j], expected[k][j], 1e-12) << r[k].name;
}

TEST(Norms, OfSeveralWidthsAreOverAllCoordinates) {
  const auto r = limit_of(R"(width n, m = 2 n
random y : [3, m] ~ normal(0, 1)
report norm(y) / sqrt(n)
)",
                          particles(64, 2));
  EXPECT_NEAR(r.reports[0].value[0], std::sqrt(6.0), 1e-12);
}

// One step: the change of W is the rate times its gradient; c W - c W0 is a change, too.
TEST(Norms, OfMatricesAreThoseOfTheirOuterProducts) {
  const std::string text = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 1), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
W0 = W
loss = mse(v @ tanh(W @ tanh(U @ X)) / n, y)
g = norm(grad(loss, W))
u = norm(grad(loss, U)) * sqrt(n)
step sgd(loss, lr = 0.3)
report norm(W - W0) / 0.3, g, norm(0.5 * W - 0.5 * W0) / 0.15, u
step sgd(mse(v @ tanh(W @ tanh(U @ X)) / n, y), lr = 0.3)
report norm(W - W0)
)";
  const auto limit = limit_of(text, particles(1024));
  const auto networks = networks_of(text, 1024, 16, Matrices::kDense, 0);
  for (const std::size_t k : {0u, 2u})
    EXPECT_NEAR(limit.reports[k].value[0], limit.reports[1].value[0], 1e-10);
  for (std::size_t k = 0; k < limit.reports.size(); ++k)
    EXPECT_NEAR(
        limit.reports[k].value[0], networks.reports[k].value[0],
        4 * std::hypot(limit.reports[k].error[0], networks.reports[k].error[0]) + 2.0 / 1024)
        << limit.reports[k].name;
}

}  // namespace
}  // namespace tplimit::test
