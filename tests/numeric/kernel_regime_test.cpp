#include <array>
#include <cmath>
#include <numbers>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/draws.hpp"
#include "tplimit/driver/driver.hpp"

// Graded limits of functions with kinks and jumps, readouts declared anywhere, and training of many
// steps under a fixed kernel.
namespace tplimit {
namespace {

using testing::StartsWith;

Result<LimitResult> try_limit(const std::string& program, const EvaluateOptions& options = {}) {
  auto module = parse(Source("test.tp", program));
  EXPECT_TRUE(module) << render(module.errors(), Source("test.tp", program)) << program;
  return evaluate(*module, options);
}
LimitResult limit_of(const std::string& program, const EvaluateOptions& options = {}) {
  auto result = try_limit(program, options);
  EXPECT_TRUE(result) << render(result.errors(), Source("test.tp", program)) << program;
  return result ? std::move(*result) : LimitResult{};
}
double number(const std::string& program) {
  const auto result = limit_of(program);
  return result.reports.empty() ? std::nan("") : result.reports[0].value[0];
}
std::string code_of(const std::string& program, const EvaluateOptions& options = {}) {
  const auto result = try_limit(program, options);
  return result ? "a number" : result.errors()[0].code;
}

const std::string kTwo = "width n\nrandom h : [n] ~ normal(0, 1)\nrandom r : [n] ~ normal(0, 1)\n";
std::string change(const std::string& phi) {
  return kTwo + "fn phi(z) = " + phi +
         "\nreport sqrt(n) * E(r * (phi(h + r / sqrt(n)) - phi(h)))\n";
}

// Where phi jumps the change has the term E r^2 delta: no engine evaluates it, so it is no number.
TEST(KernelRegime, ChangesOfFunctionsThatJumpAreRefused) {
  for (const char* phi : {"step(z)", "sign(z)", "floor(z)", "mod(z, 0.7)", "where(z > 0.3, 1, z)",
                          "where(z <= 0.3, tanh(z), 0)", "z + step(z)", "max(step(z), 0.5)",
                          "tanh(z) * (z > 1)", "step(z - 0.3 * r)"})
    EXPECT_EQ(code_of(change(phi)), "E3102") << phi;
  EvaluateOptions given;
  given.given = GradedOptions::Given{"out", {1}};
  for (const char* phi : {"z + step(z)", "z + sign(z)", "z + floor(z)", "where(z > 0.2, z, 2 * z)",
                          "z + (z > 0.5)"}) {
    const std::string network =
        std::string(
            "width n\nparam U : [n] ~ normal(0, 1)\nrandom v : [n] ~ normal(0, 1)\nfn phi(z) = ") +
        phi +
        "\nfor t in 0..2 {\n  out = v @ phi(U) / sqrt(n)\n  report out\n  step sgd(0.5 * out^2, lr "
        "= 0.5)\n}\n";
    EXPECT_EQ(code_of(network, given), "E3102") << phi;
  }
}

// phi(h + r / sqrt(n)) - phi(h) of a function that jumps is of size 1 on a share n^(-1/2) of all
// coordinates: all its moments are of this size, and W makes n^(-1/4) of it.
TEST(KernelRegime, RestsOfJumpsAreLargeOnFewCoordinates) {
  const std::string head =
      kTwo + "random W : [n, n] ~ normal(0, 1/n)\nrandom y : [n] ~ normal(0, 1)\n";
  for (const std::string phi :
       {"step(z)", "sign(z)", "floor(z)", "mod(z, 1)", "(z > 0.2)", "where(z > 0.5, 3, z)"}) {
    const std::string d = head + "fn phi(z) = " + phi + "\nd = phi(h + r / sqrt(n)) - phi(h)\n";
    for (const std::string& at :
         {std::string("sqrt(n) * E(d^2)"), std::string("sqrt(n) * E(d^4)"),
          std::string("sqrt(n) * E(d^2 * y^2)"),
          std::string("sqrt(n) * E(d * (phi(h + y / sqrt(n)) - phi(h)))"),
          std::string("sqrt(n) * E((W @ d)^2)"), std::string("E((n^0.25 * d)^2)"),
          std::string("E(tanh(W @ (h + n^0.25 * d * r))^2)"),
          std::string("E(exp(W @ (n^0.25 * d)))"), std::string("sqrt(n) * (E(exp(d^2)) - 1)"),
          std::string("n * E((phi(h + r / n) - phi(h))^2)")})
      EXPECT_THAT(code_of(d + "report " + at + "\n"),
                  phi == "floor(z)" ? StartsWith("E310") : StartsWith("E3102"))
          << phi << ", " << at;
    if (phi == "floor(z)") continue;  // h - mod(h, 1): its parts are counted one by one
    // Smaller powers of n leave 0, and what is continuous is no such rest.
    for (const std::string& at : {std::string("n^0.25 * E(d^2)"), std::string("E(d^2)"),
                                  std::string("E((n^0.125 * d)^2)"), std::string("E((W @ d)^2)")})
      EXPECT_EQ(number(d + "report " + at + "\n"), 0) << phi << ", " << at;
  }
  for (const std::string phi : {"relu(z)", "abs(z)", "tanh(z)", "clip(z, -1, 1)"})
    EXPECT_EQ(number(head + "fn phi(z) = " + phi +
                     "\nd = phi(h + r / sqrt(n)) - phi(h)\nreport sqrt(n) * E(d^2)\n"),
              0)
        << phi;
}

// E phi'(h) r^2, whatever phi is written with.
TEST(KernelRegime, ChangesOfContinuousFunctions) {
  const auto below = [](double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); };
  for (const auto& [phi, slope] : std::vector<std::pair<std::string, double>>{
           {"relu(z)", 0.5},
           {"max(z, 0)", 0.5},
           {"max(z, 0.5)", 1 - below(0.5)},
           {"min(z, 0.5)", below(0.5)},
           {"clip(z, -1, 1)", 2 * below(1) - 1},
           {"where(z > 0, z, 0.1 * z)", 0.55},
           {"where(z <= 1, z, 1)", below(1)},
           {"where(2 * z - 1 > 0, 3 * z - 1.5, 0)", 3 * (1 - below(0.5))},
           {"abs(z)", 0},
           {"max(-z, z)", 0}})
    EXPECT_NEAR(number(change(phi)), slope, 1e-9) << phi;
}

TEST(KernelRegime, SmallArgumentsOfMaxAndMin) {
  EXPECT_NEAR(number(kTwo + "report n * E(clip(r / sqrt(n), -1, 1)^2)\n"), 1, 1e-9);
  EXPECT_NEAR(number(kTwo + "report sqrt(n) * E(max(r / sqrt(n), 0))\n"),
              1 / std::sqrt(2 * std::numbers::pi), 1e-9);
  EXPECT_NEAR(number(kTwo + "report sqrt(n) * E(r * (max(h, r / sqrt(n)) - max(h, 0)))\n"), 0.5,
              1e-9);
}

// nngp and covariances of f = v phi(U x) / sqrt(n) are E phi phi', whichever is declared first.
TEST(KernelRegime, ReadoutsMayBeDeclaredFirst) {
  const std::string data = "width n\ndata X = [[1, 0.5], [-0.3, 1]]\n";
  const std::string u = "random U : [n, 2] ~ normal(0, 1)\n", v = "random v : [n] ~ normal(0, 1)\n";
  for (const char* phi : {"sign(z)", "step(z)", "floor(z)", "(z > 0.5)", "where(z > 0, 1, z)",
                          "tanh(z)", "z", "mod(z, 2)"}) {
    const std::string body = std::string("fn phi(z) = ") + phi +
                             "\nmodel f(x) { return v @ phi(U @ x) / sqrt(n) }\nk = nngp(f, X)\nz "
                             "= phi(U @ X)\ng = gram(z)\nreport k, g, f(X)\n";
    const auto after = limit_of(data + u + v + body).reports,
               before = limit_of(data + v + u + body).reports;
    for (std::size_t i = 0; i < 4; ++i)
      for (const auto& reports : {after, before})
        for (const std::size_t r : {0u, 2u})
          EXPECT_NEAR(reports[r].value[i], reports[1].value[i],
                      1e-9 + 5 * (reports[1].error.empty() ? 0 : reports[1].error[i]))
              << phi << " " << r << " " << i;
    EXPECT_GT(before[0].value[0], 0.1);
  }
}

// A mask or gate declared after the readout, in networks and in the limit.
TEST(KernelRegime, GatesDeclaredAfterTheReadout) {
  const std::string program =
      "width n\nrandom v : [n] ~ normal(0, 1)\nrandom h : [n] ~ normal(0, 1)\nrandom m : [n] ~ "
      "normal(0, 1)\nf = v @ (h * (m > 0.4)) / sqrt(n)\nreport f\n";
  const double limit = number(program);
  EXPECT_NEAR(limit, 0.5 * std::erfc(0.4 / std::numbers::sqrt2), 1e-9);
  auto module = parse(Source("test.tp", program + "report f^2\n"));
  ASSERT_TRUE(module);
  SimulateOptions networks;
  networks.width = 4096;
  networks.seeds = 300;
  const auto found = simulate(*module, networks);
  ASSERT_TRUE(found);
  EXPECT_NEAR(found->reports[1].value[0], limit, 4.5 * found->reports[1].error[0]);
}

// Outputs of one readout have one joint law, also where one of them is linear in what another is
// not.
TEST(KernelRegime, OutputsAreJointlyDrawn) {
  const std::string program =
      "width n\nrandom v : [n] ~ normal(0, 1)\nrandom h : [n] ~ normal(0, 1)\nf = v @ h / "
      "sqrt(n)\ng = v @ sign(h) / sqrt(n)\nreport f * g, f^2, g^2\n";
  auto module = parse(Source("test.tp", program));
  ASSERT_TRUE(module);
  constexpr int kDraws = 600;
  std::array<double, 3> mean{};
  EvaluateOptions options;
  for (int d = 0; d < kDraws; ++d) {
    options.draw = static_cast<std::uint64_t>(d);
    const auto result = evaluate(*module, options);
    ASSERT_TRUE(result) << render(result.errors(), module->source);
    for (std::size_t k = 0; k < 3; ++k) mean[k] += result->reports[k].value[0] / kDraws;
  }
  const double c = std::sqrt(2 / std::numbers::pi);  // E |h|
  EXPECT_NEAR(mean[0], c, 5 * std::sqrt((1 + c * c) / kDraws));
  for (const std::size_t k : {1u, 2u}) EXPECT_NEAR(mean[k], 1, 5 * std::sqrt(2.0 / kDraws));
}

TEST(KernelRegime, ReadoutsMayBeRowsOfAnArray) {
  const std::string head =
      "width n\ndata X = [[1, 0.5], [-0.3, 1]]\nparam U : [n, 2] ~ normal(0, 1)\nparam v : [2, n] "
      "~ normal(0, 1)\nparam w : [n] ~ normal(0, 1)\n";
  const auto rows = limit_of(head +
                             "model f(x) { return v[0] @ tanh(U @ x) / sqrt(n) }\nmodel g(x) { "
                             "return w @ tanh(U @ x) / sqrt(n) }\nreport nngp(f, X), nngp(g, X)\n")
                        .reports;
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(rows[0].value[i], rows[1].value[i], 1e-10);
}

// Functions that are not affine in the readout: else the law of reports is a Gaussian, and its
// covariance is reported.
std::string training(const std::string& parametrization, const std::string& phi, int samples,
                     int steps, const std::string& variance = "1.5") {
  std::string x, y;
  for (int k = 0; k < samples; ++k) {
    x += fmt::format("{}[{:.3f}, {:.3f}]", k ? ", " : "", std::cos(2.3 * k) + 0.2,
                     std::sin(1.7 * k + 1));
    y += fmt::format("{}{:.3f}", k ? ", " : "", std::sin(5.0 * k));
  }
  return fmt::format(R"(width n
data X = [{}]
data y = [{}]
parametrization {}
param U : input [n, 2] ~ normal(0, 1)
param W : hidden [n, n] ~ normal(0, {})
param v : output [n] ~ normal(0, 1)
fn phi(z) = {}
model f(x) {{ h = phi(U @ x)
  return v @ (phi(W @ h) + 0.3 * h) }}
K = ntk(f, X)
predicted = f(X)
for t in 0..{} {{
  out = f(X)
  report exp(out), exp(predicted)
  step sgd(mse(out, y), lr = 0.2)
  predicted = predicted - {:.17g} * K @ (predicted - y)
}}
)",
                     x, y, parametrization, variance, phi, steps, 0.2 / samples);
}

TEST(KernelRegime, PiecewiseFunctionsTrainUnderTheTangentKernel) {
  for (const char* parametrization : {"ntk", "standard"})
    for (const char* phi :
         {"max(z, 0)", "min(z, 0.1 * z)", "clip(z, -1, 1)", "where(z > 0, z, 0.1 * z)", "floor(z)",
          "(z > 0.5)", "where(z > 0, 1, -1)"}) {
      const auto reports = limit_of(training(parametrization, phi, 2, 3)).reports;
      for (std::size_t k = 0; k < 6; ++k)
        EXPECT_NEAR(reports[0].value[k], reports[1].value[k],
                    1e-9 + 6 * (reports[0].error.empty() ? 0 : reports[0].error[k]))
            << parametrization << " " << phi << " " << k;
      EXPECT_GT(std::abs(reports[0].value[4] - reports[0].value[0]), 1e-3) << phi;
    }
}

TEST(KernelRegime, MatricesOfVarianceZero) {
  const auto reports = limit_of(training("ntk", "tanh(z)", 2, 3, "0")).reports;
  for (std::size_t k = 0; k < 6; ++k) EXPECT_NEAR(reports[0].value[k], reports[1].value[k], 1e-9);
  EXPECT_GT(std::abs(reports[0].value[4] - reports[0].value[0]), 1e-3);
}

// The kernel does not change: moments are evaluated once, however many steps follow.
TEST(KernelRegime, ManySteps) {
  for (const auto& [phi, samples, steps] :
       {std::tuple{"tanh(z)", 12, 20}, std::tuple{"relu(z)", 24, 60}}) {
    const auto reports = limit_of(training("ntk", phi, samples, steps)).reports;
    for (std::size_t k = 0; k < reports[0].value.size(); ++k)
      EXPECT_NEAR(reports[0].value[k], reports[1].value[k], 1e-8) << phi << " " << k;
  }
}

// Networks of a gated unit, trained: second moments of outputs are those of the draws.
TEST(KernelRegime, GatedTrainingAgreesWithNetworks) {
  const std::string program = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
parametrization ntk
param v : output [n] ~ normal(0, 1)
param U : input [n, 2] ~ normal(0, 1)
random m : [n] ~ normal(0, 1)
for t in 0..3 {
  z = U @ X
  out = v @ (where(z > 0, z, 0.2 * z) * (m > -0.5))
  report out, out^2
  step sgd(mse(out, y), lr = 0.5)
}
)";
  test::expect_draws_agree_with_networks(program, {}, 300, 4096, 300);
}

}  // namespace
}  // namespace tplimit
