/// Kernels of architectures at initialisation against published formulas in 40 digits
/// (references/kernels.py).

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numbers>
#include <set>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

const std::string kFolder = std::string(TPLIMIT_SOURCE_DIR) + "/tests/numeric/references/";

/// Each number and stated error of the limit beside what the formulas say.
template <class Check>
void for_each_number(const std::string& name, const EvaluateOptions& options, const Check& check) {
  std::ifstream in(kFolder + "kernels.json");
  const nlohmann::json reference = nlohmann::json::parse(in).at(name);
  const auto module = parse_file(kFolder + name + ".tp");
  ASSERT_TRUE(module.ok());
  const LimitResult limit = limit_of(*module, options);
  ASSERT_EQ(limit.reports.size(), reference.size());
  for (const auto& [report_name, stored] : reference.items()) {
    SCOPED_TRACE(report_name);
    const ReportResult& found = report(limit, report_name);
    ASSERT_EQ(found.value.size(), stored.size());
    for (std::size_t e = 0; e < found.value.size(); ++e) {
      SCOPED_TRACE(fmt::format("entry {}", e));
      const double expected = stored[e];
      check(report_name, found.value[e], found.error[e], expected);
    }
  }
}

void expect_closed_forms(const std::string& name) {
  double worst = 0;
  for_each_number(name, {}, [&](const std::string&, double found, double error, double expected) {
    const double difference = std::abs(found - expected);
    EXPECT_LE(difference, 1e-10 * std::abs(expected)) << found << " against " << expected;
    EXPECT_LE(difference, error + 1e-15) << found << " against " << expected;
    if (difference > 0) worst = std::max(worst, difference / std::abs(expected));
  });
  fmt::print("{}: off by {:.1e} at most, relative\n", name, worst);
}

TEST(ReferenceKernels, RecurrentNetwork) { expect_closed_forms("rnn"); }
TEST(ReferenceKernels, Transformer) { expect_closed_forms("transformer"); }
TEST(ReferenceKernels, ConvolutionalNetworkWithPooling) { expect_closed_forms("cnn"); }
TEST(ReferenceKernels, BatchNormalisation) { expect_closed_forms("batchnorm"); }

TEST(ReferenceKernels, BatchNormalisationByParticles) {
  // Without eps, for eight samples and in second layers particles have larger errors; which points
  // of the sequence a vector gets depends on the whole program.
  const std::set<std::string> sharp{"linear2",     "relu2",   "linear3", "relu3", "linear3_small",
                                    "relu3_small", "linear4", "relu4",   "deep3"};
  double worst = 0;
  for_each_number("batchnorm", particles(16384, 64),
                  [&](const std::string& name, double found, double error, double expected) {
                    const double difference = std::abs(found - expected);
                    EXPECT_LE(error, sharp.contains(name) ? 4e-5 : 2e-3) << "the test can fail";
                    EXPECT_LE(difference, 4 * error + 1e-13) << found << " against " << expected;
                    if (error > 1e-13) worst = std::max(worst, difference / error);
                  });
  fmt::print("batchnorm: off by {:.1f} stated errors at most\n", worst);
}

const std::string kBatchNorm = R"(width n
fn batchnorm(x, eps = 0) {
  c = x - mean(x, axis = 0, keepdims = true)
  return c / sqrt(mean(c^2, axis = 0, keepdims = true) + eps)
}
)";

/// Inputs [count, size] without structure.
std::string inputs(int count, int size) {
  std::string rows;
  for (int i = 0; i < count; ++i) {
    rows += i > 0 ? ", [" : "[";
    for (int j = 0; j < size; ++j)
      rows += fmt::format("{}{:.3f}", j > 0 ? ", " : "", std::sin(1.0 + 17 * i * i + 5 * j * j));
    rows += "]";
  }
  return fmt::format("data X = [{}]\nparam U : [n, {}] ~ normal(0, 1 / {})\n", rows, size, size);
}

// Without eps the squares of a batch have the mean 1, on every coordinate.
TEST(BatchNormalisation, NormalisesTheBatch) {
  const LimitResult limit = limit_of(kBatchNorm + inputs(5, 3) + R"(
z = batchnorm(U @ X)
c = U @ X - mean(U @ X, axis = 0)
report mean(E(z^2)), mean(gram(z^2)), sum(abs(sum(gram(z), axis = 0)))
report sum(abs(gram(abs(z), relu(z)) - gram(relu(z)) - gram(relu(-z), max(z, 0))))
report sum(abs(gram(step(z)) - gram(step(c)))), sum(abs(gram(sign(z), z) - gram(sign(-z), -z)))
)",
                                     {});
  ASSERT_EQ(limit.reports.size(), 6u);
  for (std::size_t k = 0; k < 6; ++k)
    EXPECT_NEAR(limit.reports[k].value[0], k < 2 ? 1 : 0, 1e-12) << k;
}

// Beside Gaussians that the batch's variance does not contain, of a first and of a hidden layer;
// matrices used both ways, and training, where derivatives by what stands in a quotient enter.
TEST(BatchNormalisation, AgreesWithParticles) {
  const std::string program = kBatchNorm + inputs(4, 6) + R"(
data y = [1, -1, 0.5, 0]
param W : [n, n] ~ normal(0, 1 / n), lr = 1
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  h = U @ x
  z = h + relu(batchnorm(h, 0.1))
  g = W @ z
  return g + leaky_relu(batchnorm(g, 0.1), 0.3), z
}
r, z = f(X)
report gram(z), gram(r), E(abs(r)), gram(r, U @ X)
report gram(W' @ relu(batchnorm(W @ z, 0.1)), z)
step sgd(mse(v @ r / n, y), lr = 0.3, only = (W, v))
r, z = f(X)
report gram(r)
)";
  const LimitResult found = limit_of(program, {}),
                    sampled = limit_of(program, particles(16384, 16));
  for (std::size_t k = 0; k < found.reports.size(); ++k) {
    SCOPED_TRACE(found.reports[k].name);
    const bool exact = k == 0 || k == 1 || k == 3;
    EXPECT_EQ(found.reports[k].method != Method::kParticles, exact);
    for (std::size_t e = 0; e < found.reports[k].value.size(); ++e)
      EXPECT_NEAR(found.reports[k].value[e], sampled.reports[k].value[e],
                  5 * sampled.reports[k].error[e] + 1e-12);
  }
}

// All samples of a batch at once.
TEST(BatchNormalisation, LargeBatches) {
  const std::string program = kBatchNorm + inputs(64, 16) + R"(
param W : [n, n] ~ normal(0, 2 / n)
z = relu(batchnorm(W @ relu(batchnorm(U @ X, 1e-5)), 1e-5))
report gram(z)
)";
  const LimitResult exact = limit_of(program, {}), sampled = limit_of(program, particles(2048, 8));
  for (std::size_t e = 0; e < exact.reports[0].value.size(); ++e) {
    EXPECT_LE(exact.reports[0].error[0], 1e-11);
    EXPECT_NEAR(exact.reports[0].value[e], sampled.reports[0].value[e],
                6 * sampled.reports[0].error[e] + 1e-12);
  }
}

// relu(x) and relu(x + y): what only one of them depends on belongs to its variance.
TEST(ReferenceKernels, OfVectorsThatShareOnlyAPart) {
  const LimitResult limit = limit_of(R"(width n
random x : [n] ~ normal(0, 1)
random y : [n] ~ normal(0, 1)
report gram(relu(x)[None], relu(x + y)[None]), gram(erf(x)[None], erf(x + y)[None])
)",
                                     {});
  const double pi = std::acos(-1.0);
  EXPECT_NEAR(limit.reports[0].value[0], (1 + 0.75 * pi) / (2 * pi), 1e-14);
  EXPECT_NEAR(limit.reports[1].value[0], 2 / pi * std::asin(2 / std::sqrt(15.0)), 1e-14);
}

/// E f(u) g(v) by the trapezoid rule, of functions that vanish beyond 40: a reference for large
/// variances, where what is needed of the law is its determinant; a, b, c are whole numbers.
double trapezoid(const std::function<double(double)>& f, double a, double b, double c) {
  constexpr double kStep = 0.02, kEnd = 40;
  const long double det = static_cast<long double>(a) * b - static_cast<long double>(c) * c;
  const double rest = static_cast<double>(det / a), slope = c / a;
  double sum = 0;
  for (double u = -kEnd; u <= kEnd; u += kStep) {
    const double outer = f(u) * std::exp(-u * u / (2 * a));
    const double middle = slope * u, width = std::min(kEnd, 12 * std::sqrt(rest));
    double inner = 0;
    const double from = std::ceil(std::max(-kEnd, middle - width) / kStep) * kStep;
    for (double v = from; v <= std::min(kEnd, middle + width); v += kStep)
      inner += f(v) * std::exp(-(v - middle) * (v - middle) / (2 * rest));
    sum += outer * inner;
  }
  return sum * kStep * kStep / (2 * std::numbers::pi * std::sqrt(static_cast<double>(det)));
}

/// Rounding of covariances is part of all errors: kernels of large variances bend within it.
TEST(ReferenceKernels, LargeInputsHaveErrorsThatHoldTheirRounding) {
  const std::map<std::string, std::function<double(double)>> slopes{
      {"tanh", [](double x) { return 1 / (std::cosh(x) * std::cosh(x)); }},
      {"sigmoid", [](double x) { return 0.25 / (std::cosh(x / 2) * std::cosh(x / 2)); }}};
  for (const double s : {1e2, 1e3, 1e4, 1e5, 1e6}) {
    SCOPED_TRACE(s);
    const double a = 1.25 * s * s, b = (s + 1) * (s + 1) + 0.25 * s * s,
                 c = s * (s + 1) + 0.25 * s * s;
    std::string text = fmt::format(
        "width n\ndata X = [[{0}, {1}], [{2}, {1}]]\nparam U : [n, 2] ~ normal(0, 1)\n"
        "report waves = gram(sin(U @ X))\n",
        s, s / 2, s + 1);
    for (const auto& [name, slope] : slopes)
      text += fmt::format(
          "param v{0} : [n] ~ normal(0, 1), lr = 0\n"
          "model {0}_net(x) = v{0} @ {0}(U @ x) / sqrt(n)\n"
          "report {0}_kernel = ntk({0}_net, X)\n",
          name);
    const LimitResult limit = limit_of(text, {});
    for (const auto& [name, slope] : slopes) {
      SCOPED_TRACE(name);
      const ReportResult& kernel = report(limit, name + "_kernel");  // of U alone: c E f'(u) f'(v)
      const double expected = c * trapezoid(slope, a, b, c);
      EXPECT_LE(std::abs(kernel.value[1] - expected), kernel.error[1] + 1e-12 * expected);
      if (s <= 1e4) {
        EXPECT_LE(kernel.error[1], 1e-5 * kernel.value[1]) << "the test can fail";
      }
    }
    // E sin u sin v = (exp(-Var(u - v) / 2) - exp(-Var(u + v) / 2)) / 2, u - v the first weight.
    const ReportResult& waves = report(limit, "waves");
    EXPECT_LE(std::abs(waves.value[1] - 0.5 * std::exp(-0.5)), waves.error[1]);
  }
}

/// Differences of nearly equal functions show what rounding of covariances does.
TEST(ReferenceKernels, DifferencesOfLargeInputsHoldTheirRounding) {
  for (const double s : {1e2, 1e3, 1e4, 1e5}) {
    SCOPED_TRACE(s);
    const LimitResult limit = limit_of(
        fmt::format("width n\ndata X = [[{0}, {1}], [{2}, {1}]]\nparam U : [n, 2] ~ normal(0, 1)\n"
                    "report gap = E((erf(U @ X[0]) - erf(U @ X[1]))^2)\n",
                    s, s / 2, s + 1),
        {});
    // E erf(u) erf(v) = 2/pi arcsin(2 c / ((1 + 2 a)(1 + 2 b))^(1/2)), in arcs' complements.
    const long double a = 1.25L * s * s, b = (s + 1.0L) * (s + 1) + 0.25L * s * s,
                      c = s * (s + 1.0L) + 0.25L * s * s;
    const auto rest = [](long double p, long double q, long double r) {  // pi / 2 - arcsin
      return std::atan2(std::sqrt((1 + 2 * p) * (1 + 2 * q) - 4 * r * r), 2 * r);
    };
    const long double expected =
        2 / std::numbers::pi_v<long double> * (2 * rest(a, b, c) - rest(a, a, a) - rest(b, b, b));
    const ReportResult& gap = report(limit, "gap");
    EXPECT_LE(std::abs(gap.value[0] - static_cast<double>(expected)), gap.error[0]);
  }
}

}  // namespace
}  // namespace tplimit::test
