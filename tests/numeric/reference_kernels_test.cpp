/// Kernels of architectures at initialisation against published formulas in 40 digits
/// (references/kernels.py).

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
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
      check(found.value[e], found.error[e], expected);
    }
  }
}

void expect_closed_forms(const std::string& name) {
  double worst = 0;
  for_each_number(name, {}, [&](double found, double, double expected) {
    const double difference = std::abs(found - expected);
    EXPECT_LE(difference, 1e-10 * std::abs(expected)) << found << " against " << expected;
    if (difference > 0) worst = std::max(worst, difference / std::abs(expected));
  });
  fmt::print("{}: off by {:.1e} at most, relative\n", name, worst);
}

TEST(ReferenceKernels, RecurrentNetwork) { expect_closed_forms("rnn"); }
TEST(ReferenceKernels, Transformer) { expect_closed_forms("transformer"); }
TEST(ReferenceKernels, ConvolutionalNetworkWithPooling) { expect_closed_forms("cnn"); }

/// Roots and quotients of a batch are sampled: 1e-10 is out of reach.
TEST(ReferenceKernels, BatchNormalisation) {
  double worst = 0;
  for_each_number("batchnorm", particles(16384, 64),
                  [&](double found, double error, double expected) {
                    const double difference = std::abs(found - expected);
                    EXPECT_LE(error, 2e-5) << "the test can fail";
                    EXPECT_LE(difference, 4 * error + 1e-13) << found << " against " << expected;
                    if (error > 1e-13) worst = std::max(worst, difference / error);
                  });
  fmt::print("batchnorm: off by {:.1f} stated errors at most\n", worst);
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

}  // namespace
}  // namespace tplimit::test
