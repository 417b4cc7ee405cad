/// Long training: what dropping directions costs is measured, and --tol covers it.

#include <algorithm>
#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "tests/support/run.hpp"

namespace tplimit {
namespace {

/// Two hidden tanh layers, 6 samples: up to 6 directions a step for each side of W.
std::string training(int steps) {
  return fmt::format(R"(width n
data X = [[0.3, -1.1, 0.5, 0.9], [1.2, 0.4, -0.6, -1.3], [-0.5, 0.7, 1.6, 0.3], [0.8, -0.3, -1.2, 0.7], [-1.4, 0.2, 0.3, -0.8], [0.1, 1.5, -0.7, 0.4]]
data y = [1, -1, 0.5, -0.5, 1, -1]
param U : [n, 4] ~ normal(0, 1/4), lr = n
param W : [n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {{ return v @ tanh(W @ tanh(U @ x)) / n }}
for t in 0..{} {{
  out = f(X)
  report out
  step sgd(mse(out, y), lr = 0.5)
}}
)",
                     steps);
}

LimitResult limit_with(const Module& module, std::optional<std::int64_t> particles,
                       std::optional<double> rank_tol, std::optional<double> tolerance = {}) {
  EvaluateOptions options;
  options.engine = Engine::kParticles;
  options.particles = particles;
  options.rank_tol = rank_tol;
  options.tolerance = tolerance;
  Result<LimitResult> result = evaluate(module, options);
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.errors()[0].message);
  return std::move(*result);
}

/// The largest |a - b| over all numbers, in units of `unit(k)` if given.
template <class Unit>
double largest_difference(const LimitResult& a, const LimitResult& b, Unit unit) {
  double out = 0;
  for (std::size_t k = 0; k < a.reports[0].value.size(); ++k)
    out = std::max(out, std::abs(a.reports[0].value[k] - b.reports[0].value[k]) / unit(k));
  return out;
}

TEST(DroppedDirections, CostNoMoreThanTheErrorSays) {
  const Module module = test::parsed(training(40));
  const LimitResult all = limit_with(module, 4096, 1e-6);
  EXPECT_EQ(all.engine.truncation_error, 0);
  double last_change = 0;
  for (const double rank_tol : {0.03, 0.1, 0.3}) {
    const LimitResult some = limit_with(module, 4096, rank_tol);
    EXPECT_LT(some.engine.largest_rank, all.engine.largest_rank / 2) << rank_tol;
    // The same randomisations: errors of sampling nearly cancel in the change.
    const double change = largest_difference(some, all, [](std::size_t) { return 1.0; });
    EXPECT_LT(change, 2 * (some.engine.truncation_error + all.engine.sampling_error)) << rank_tol;
    EXPECT_LT(some.engine.truncation_error, 10 * (change + all.engine.sampling_error)) << rank_tol;
    EXPECT_GT(change, last_change) << rank_tol;
    last_change = change;
  }
  EXPECT_GT(last_change, 10 * all.engine.sampling_error)
      << "with a third of each vector dropped the change is seen";
}

TEST(Tolerance, CoversSamplingAndDroppedDirections) {
  const Module module = test::parsed(training(50));
  const LimitResult reference = limit_with(module, 16384, 1e-5);
  for (const double tolerance : {1e-2, 4e-3}) {
    const LimitResult result = limit_with(module, {}, {}, tolerance);
    EXPECT_FALSE(result.tolerance_missed);
    EXPECT_LE(result.largest_error, tolerance);
    EXPECT_LE(result.engine.sampling_error, tolerance);
    EXPECT_GT(result.engine.truncation_error, 0)
        << "300 directions: some of the tolerance is spent on dropping them";
    EXPECT_GT(result.engine.rank_tol, 1e-4);
    // 5 errors of the one and the other.
    EXPECT_LT(largest_difference(result, reference,
                                 [&](std::size_t k) {
                                   return std::hypot(result.reports[0].error[k],
                                                     reference.reports[0].error[k]) +
                                          1e-12;
                                 }),
              5)
        << tolerance;
  }
}

/// Three hidden tanh layers on 8 digits: past the edge of stability from t = 10 on, where the loss
/// oscillates along the sharpest direction, and what is new in every step excites it.
std::string edge_of_stability() {
  return R"(width n
data X, y = csv("data/digits8x8.csv", rows = 0..8, target = "target", standardize = true, standardize_target = true)
param U : [n, 64] ~ normal(0, 1 / 64), lr = n
param W : [2, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
for t in 0..50 {
  z1 = tanh(U @ X)
  z2 = tanh(W[0] @ z1)
  h3 = W[1] @ z2
  loss = mse(v @ tanh(h3) / n, y)
  report linearity = E((W[1] @ (z2[0] - z2[1]) - h3[0] + h3[1])^2)
  report loss
  step sgd(loss, lr = 0.3)
}
)";
}

TEST(EdgeOfStability, IsTheSameForLazyAndDenseNetworksAndForTheLimit) {
  LowerOptions where;
  where.base_directory = TPLIMIT_SOURCE_DIR "/programs";
  const Module module = test::parsed(edge_of_stability(), where);
  constexpr int kSeeds = 30;
  const auto at_the_end = [](const SimulationResult& r, const char* report) {
    std::vector<double> out;
    for (const auto& network : r.runs[test::report_index(r.reports, report)])
      out.push_back(network.back());
    return out;
  };
  // Other seeds for lazy networks: their initial vectors would be the same.
  const SimulationResult lazy_networks =
      test::networks_of(module, 512, kSeeds, Matrices::kLazy, 1000);
  for (const double lost : at_the_end(lazy_networks, "linearity")) EXPECT_LT(lost, 1e-24);

  // Kolmogorov and Smirnov's distance of the two laws, which have long tails: above 2.3 once in
  // 50,000.
  const std::vector<double> dense =
      at_the_end(test::networks_of(module, 512, kSeeds, Matrices::kDense), "loss");
  const std::vector<double> lazy = at_the_end(lazy_networks, "loss");
  double distance = 0;
  for (const double x : dense) {
    const auto below = [x](const std::vector<double>& v) {
      return std::count_if(v.begin(), v.end(), [x](double y) { return y <= x; });
    };
    distance =
        std::max(distance, std::abs(static_cast<double>(below(dense) - below(lazy))) / kSeeds);
  }
  EXPECT_LT(distance * std::sqrt(kSeeds / 2.0), 2.3);

  // The mean of networks less its term of order 1/n.
  const auto wide = test::moments(at_the_end(
                 test::networks_of(module, 1024, kSeeds, Matrices::kLazy, 2000), "loss")),
             narrow = test::moments(lazy);
  const double mean = 2 * wide.mean - narrow.mean,
               error = std::hypot(2 * wide.error_of_mean(), narrow.error_of_mean());
  for (const double rank_tol : {1e-6, 1e-3}) {
    EvaluateOptions options = test::particles(2048, 4);
    options.rank_tol = rank_tol;
    const LimitResult limit = test::limit_of(module, options);
    const ReportResult& loss = test::report(limit, "loss");
    EXPECT_LT(std::abs(test::deviation(loss.value.back(), loss.error.back(), mean, error)), 5)
        << loss.value.back() << " " << mean << " +- " << error;
    EXPECT_LT(loss.error.back(), 5e-4) << rank_tol;
  }
}

TEST(Rank, StopsGrowingAlongSmoothTraining) {
  const auto rank_after = [](int steps) {
    return limit_with(test::parsed(training(steps)), 2048, 0.03).engine.largest_rank;
  };
  const auto early = rank_after(20), late = rank_after(200);
  EXPECT_GT(early, 12);
  EXPECT_LT(late, 2 * early);
}

}  // namespace
}  // namespace tplimit
