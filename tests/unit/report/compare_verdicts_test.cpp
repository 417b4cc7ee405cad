#include <cmath>
#include <functional>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "tplimit/report/convergence.hpp"

// Shares of verdicts over many simulated comparisons; docs/compare.md states them.
namespace tplimit {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;
using Random = std::mt19937_64;

double normal(Random& random) { return std::normal_distribution<double>()(random); }
double coin(Random& random) { return random() & 1 ? 1 : 0; }

/// Value of one network of width n.
using Network = std::function<double(Random&, double n)>;

struct Shares {
  double agrees = 0, inconclusive = 0, disagrees = 0;
};
using Assess = std::function<Convergence(const std::vector<WidthSamples>&)>;
Shares shares(Index seeds, Index entries, const Network& network, const Assess& assess,
              int rounds = 1000) {
  Random random(static_cast<std::uint64_t>(97 * seeds + entries));
  Shares out;
  for (int round = 0; round < rounds; ++round) {
    std::vector<WidthSamples> samples;
    for (const double n : {64.0, 256.0, 1024.0})
      samples.push_back(
          {n, MatrixXd::NullaryExpr(seeds, entries, [&] { return network(random, n); })});
    const Verdict verdict = assess(samples).verdict;
    (verdict == Verdict::kAgrees      ? out.agrees
     : verdict == Verdict::kDisagrees ? out.disagrees
                                      : out.inconclusive) += 1.0 / rounds;
  }
  return out;
}
Assess against(Index entries, double limit, double spread = -0.5) {
  return [=](const std::vector<WidthSamples>& samples) {
    return assess_convergence(VectorXd::Constant(entries, limit), VectorXd::Zero(entries), samples,
                              std::numeric_limits<double>::infinity(), spread);
  };
}

class Verdicts : public testing::TestWithParam<Index> {};
INSTANTIATE_TEST_SUITE_P(Seeds, Verdicts, testing::Values(4, 8, 16, 32));

void show(const char* what, Index seeds, Index entries, const Shares& s) {
  std::printf("%s, %d seeds, %d entries: agrees %.2f %%, inconclusive %.1f %%, disagrees %.2f %%\n",
              what, static_cast<int>(seeds), static_cast<int>(entries), 100 * s.agrees,
              100 * s.inconclusive, 100 * s.disagrees);
}

TEST_P(Verdicts, OfTwoValuedNetworksAreHardlyEverAgrees) {
  for (const Index entries : {1, 10})
    for (const double limit : {1.0, 2.0, 3.0}) {
      const Shares s = shares(
          GetParam(), entries, [](Random& r, double) { return 1 + 2 * coin(r); },
          against(entries, limit));
      show(("two values, limit " + std::to_string(limit)).c_str(), GetParam(), entries, s);
      EXPECT_LE(s.agrees, 0.03);
    }
}

TEST_P(Verdicts, OfNetworksThatStayRandomAreHardlyEverAgrees) {
  for (const Index entries : {1, 10}) {
    const Shares s = shares(
        GetParam(), entries, [](Random& r, double) { return 1 + normal(r); }, against(entries, 1));
    show("random", GetParam(), entries, s);
    EXPECT_LE(s.agrees, 0.03);
    EXPECT_GE(s.disagrees, GetParam() >= 16 ? 0.7 : 0.0);
  }
}

TEST_P(Verdicts, OfRightLimitsAreHardlyEverDisagrees) {
  const Network gaussian = [](Random& r, double n) { return 1 + 2 / n + normal(r) / std::sqrt(n); };
  const Network exponential = [](Random& r, double n) {
    return 1 + 2 / n + (std::exponential_distribution<double>()(r) - 1) / std::sqrt(n);
  };
  for (const Index entries : {1, 10})
    for (const Network& network : {gaussian, exponential}) {
      const Shares s = shares(GetParam(), entries, network, against(entries, 1));
      show("right", GetParam(), entries, s);
      EXPECT_LE(s.disagrees, 0.005);
      EXPECT_GE(s.agrees, entries > 1 ? 0.95 : GetParam() == 32 ? 0.8 : 0.1);
    }
}

TEST_P(Verdicts, OfCovariancesOfRandomOutputs) {
  for (const Index entries : {1, 10}) {
    const Network square = [](Random& r, double n) { return (1 + 2 / n) * std::pow(normal(r), 2); };
    const Shares right = shares(GetParam(), entries, square, against(entries, 1, 0)),
                 wrong = shares(GetParam(), entries, square, against(entries, 3, 0));
    show("covariance", GetParam(), entries, right);
    show("covariance, wrong", GetParam(), entries, wrong);
    EXPECT_LE(right.disagrees, 0.01);
    EXPECT_LE(wrong.agrees, GetParam() == 4 ? 0.2 : 0.1);
  }
}

TEST_P(Verdicts, OfReportsThatVanishFollowTheCountedPower) {
  const auto vanishing = [](double order) {
    return [=](const std::vector<WidthSamples>& s) { return assess_vanishing(s, order); };
  };
  for (const Index entries : {1, 10})
    for (const double order : {-0.25, -0.5, -1.0}) {
      const Network random = [=](Random& r, double n) { return std::pow(n, order) * normal(r); };
      const Network steady = [=](Random& r, double n) {
        return std::pow(n, order) * (1 + 0.5 * std::pow(n, -0.25) + normal(r) / std::sqrt(n));
      };
      const Network constant = [](Random& r, double n) { return 0.1 + normal(r) / std::sqrt(n); };
      for (const Network& network : {random, steady}) {
        const Shares s = shares(GetParam(), entries, network, vanishing(order), 250);
        show(("vanishing " + std::to_string(order)).c_str(), GetParam(), entries, s);
        EXPECT_LE(s.disagrees, 0.02);
      }
      const Shares stays = shares(
          GetParam(), entries, [](Random& r, double) { return normal(r); }, vanishing(order), 250);
      show("does not vanish", GetParam(), entries, stays);
      EXPECT_LE(stays.agrees, 0.05);
      const Shares nonzero = shares(GetParam(), entries, constant, vanishing(order), 250);
      EXPECT_LE(nonzero.agrees,
                order == -0.25 ? 1 : 0.15);  // 0.1 is hidden by n^-1/2 up to n = 100
    }
}

TEST(Vanishing, KnowsExactPowers) {
  const auto samples = [](double power, double constant) {
    std::vector<WidthSamples> out;
    for (const double n : {64.0, 256.0, 1024.0})
      out.push_back({n, MatrixXd::Constant(4, 2, std::pow(n, power) + constant)});
    return out;
  };
  EXPECT_EQ(assess_vanishing(samples(-0.25, 0), -0.25).verdict, Verdict::kAgrees);
  EXPECT_EQ(assess_vanishing(samples(-0.25, 0.2), -0.25).verdict, Verdict::kDisagrees);
  EXPECT_EQ(assess_vanishing(samples(-0.25, 0), -1).verdict, Verdict::kDisagrees);
  EXPECT_EQ(assess_vanishing(samples(-1, 0), -0.25).verdict, Verdict::kAgrees);
  EXPECT_EQ(assess_vanishing(samples(0, -1), -0.25).verdict, Verdict::kAgrees) << "equal to 0";
  EXPECT_NE(
      assess_vanishing(samples(-0.25, 0), -0.25).reason.find("counted n^-0.25, rms slope -0.25"),
      std::string::npos);
}

}  // namespace
}  // namespace tplimit
