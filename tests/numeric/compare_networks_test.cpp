#include <cmath>

#include <gtest/gtest.h>

#include "tplimit/driver/driver.hpp"
#include "tplimit/report/comparison.hpp"

// What the networks of a comparison compute.
namespace tplimit {
namespace {

Module module_of(const std::string& text) {
  Result<Module> module = parse(Source("net.tp", text));
  if (!module) throw std::runtime_error(module.errors()[0].message);
  return std::move(*module);
}
SimulationResult networks(const Module& module, int seeds, std::int64_t width = 64) {
  SimulateOptions options;
  options.width = width;
  options.seeds = seeds;
  Result<SimulationResult> out = simulate(module, options);
  if (!out) throw std::runtime_error(out.errors()[0].message);
  return std::move(*out);
}

const std::string kNetwork =
    "width n\nparam U : [n, 2] ~ normal(0, 1)\nparam v : [n] ~ normal(0, 1)\ndata X = [[1, 0.5], "
    "[-0.3, 1]]\nmodel f(x) { return v @ tanh(U @ x) / sqrt(n) }\n";

TEST(Compared, KernelsAreProductsOfOutputs) {
  const Module module =
      comparable(module_of(kNetwork + "report nngp(f, X), nngp(f, X)[0, 1] / 2 + E(v), exp(nngp(f, "
                                      "X)[0, 0]), E(v)\nreport f(X)[0] * f(X)[1]\n"));
  // What tends to no number is left as it is.
  const auto runs = networks(module, 3).runs;
  for (int seed = 0; seed < 3; ++seed) {
    const auto& k = runs[0][static_cast<std::size_t>(seed)];
    EXPECT_NEAR(k[0] * k[3], k[1] * k[1], 1e-12) << "of rank 1";
    EXPECT_NEAR(runs[1][static_cast<std::size_t>(seed)][0],
                k[1] / 2 + runs[3][static_cast<std::size_t>(seed)][0], 1e-12);
    EXPECT_NEAR(runs[4][static_cast<std::size_t>(seed)][0], k[1], 1e-12);
    EXPECT_GT(std::abs(std::log(runs[2][static_cast<std::size_t>(seed)][0]) - k[0]), 1e-6)
        << "not linear: the formula";
  }
}

// An output beside its kernel: both are products of outputs then.
TEST(Compared, OutputsBesideTheirKernels) {
  const Module module = comparable(module_of(kNetwork + "report f(X), nngp(f, X), E(v^2)\n"));
  ASSERT_EQ(module.program.reports.size(), 3u);
  EXPECT_EQ(module.program.reports[0].name, "cov(f(X))");
  const auto runs = networks(module, 2).runs;
  for (std::size_t seed = 0; seed < 2; ++seed)
    for (std::size_t k = 0; k < 4; ++k) EXPECT_NEAR(runs[0][seed][k], runs[1][seed][k], 1e-12);
}

TEST(Compared, TangentKernelsAreThoseOfTheNetwork) {
  const auto runs =
      networks(
          comparable(module_of(kNetwork + "z = tanh(U @ [1, 0.5])\nreport ntk(f, X)[0, 0]\nreport "
                                          "E(z^2) + 1.25 * E(v^2 * (1 - z^2)^2)\n")),
          4)
          .runs;
  for (int seed = 0; seed < 4; ++seed)
    EXPECT_NEAR(runs[0][static_cast<std::size_t>(seed)][0],
                runs[1][static_cast<std::size_t>(seed)][0], 1e-12);
}

// The readout's part of a tangent kernel is the average that the kernel of outputs is, and stays
// one; inner products of width matrices are taken apart in between.
TEST(Compared, TangentKernelsBesideKernelsOfOutputs) {
  const auto alone = networks(comparable(module_of(kNetwork + "report ntk(f, X)\n")), 2).runs;
  for (const char* beside :
       {"report ntk(f, X), nngp(f, X)\n", "report ntk(f, X), trace(nngp(f, X))\n",
        "K = nngp(f, X)\nreport ntk(f, X), K - K'\n"}) {
    const auto runs = networks(comparable(module_of(kNetwork + beside)), 2).runs;
    for (std::size_t seed = 0; seed < 2; ++seed)
      for (std::size_t k = 0; k < alone[0][seed].size(); ++k)
        EXPECT_NEAR(runs[0][seed][k], alone[0][seed][k], 1e-12) << beside;
  }
  const std::string sums =
      "random A : [n, n] ~ normal(0, 1 / n)\nA0 = A\nA += outer(U[.., 0], U[.., 1]) / n\nreport "
      "sum((A - A0)^2)\n";
  const auto runs =
      networks(comparable(module_of(kNetwork + sums + "report f(X), nngp(f, X)\n")), 2).runs;
  for (std::size_t seed = 0; seed < 2; ++seed)
    for (std::size_t k = 0; k < 4; ++k) EXPECT_NEAR(runs[1][seed][k], runs[2][seed][k], 1e-12);
}

TEST(Compared, GivenOutputsAreExactAndTheRestHasItsLaw) {
  // f and g = v y / sqrt(n) with |x|^2, |y|^2, x y known: g | f = a is N(a <x, y>/|x|^2, |y|^2 -
  // <x, y>^2/|x|^2).
  const Module module = module_of(
      "width n\nrandom x : [n] ~ normal(0, 1)\nrandom z : [n] ~ normal(0, 1)\nparam v : [n] ~ "
      "normal(0, 1)\nout = v @ x / sqrt(n)\nreport out\nreport g = v @ (x + z) / sqrt(n)\nreport "
      "E(x^2), E(x * (x + z)), E((x + z)^2)\n");
  const Result<Module> given = conditioned(module, {"out", {2}});
  ASSERT_TRUE(given);
  const int seeds = 2000;
  const auto runs = networks(*given, seeds).runs;
  double mean = 0, square = 0;
  for (std::size_t k = 0; k < seeds; ++k) {
    EXPECT_NEAR(runs[0][k][0], 2, 1e-12);
    const double xx = runs[2][k][0], xy = runs[3][k][0], yy = runs[4][k][0];
    const double standard = (runs[1][k][0] - 2 * xy / xx) / std::sqrt(yy - xy * xy / xx);
    mean += standard / seeds;
    square += standard * standard / seeds;
  }
  EXPECT_NEAR(mean, 0, 4 / std::sqrt(seeds));
  EXPECT_NEAR(square, 1, 4 * std::sqrt(2.0 / seeds));
}

TEST(Compared, RefusesWhatIsNotLinearInAnInitialVector) {
  const Module module =
      module_of("width n\nrandom x : [n] ~ normal(0, 1)\nout = E(x^2)\nreport out\n");
  for (const char* name : {"out", "none"}) {
    const Result<Module> given = conditioned(module, {name, {2}});
    ASSERT_FALSE(given);
    EXPECT_EQ(given.errors()[0].code, "E3107");
  }
}

}  // namespace
}  // namespace tplimit
