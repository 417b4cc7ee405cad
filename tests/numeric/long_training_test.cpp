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
)", steps);
}

LimitResult limit_with(const Module& module, std::optional<std::int64_t> particles, std::optional<double> rank_tol, std::optional<double> tolerance = {}) {
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
  for (std::size_t k = 0; k < a.reports[0].value.size(); ++k) out = std::max(out, std::abs(a.reports[0].value[k] - b.reports[0].value[k]) / unit(k));
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
  EXPECT_GT(last_change, 10 * all.engine.sampling_error) << "with a third of each vector dropped the change is seen";
}

TEST(Tolerance, CoversSamplingAndDroppedDirections) {
  const Module module = test::parsed(training(50));
  const LimitResult reference = limit_with(module, 16384, 1e-5);
  for (const double tolerance : {1e-2, 4e-3}) {
    const LimitResult result = limit_with(module, {}, {}, tolerance);
    EXPECT_FALSE(result.tolerance_missed);
    EXPECT_LE(result.largest_error, tolerance);
    EXPECT_LE(result.engine.sampling_error, tolerance);
    EXPECT_GT(result.engine.truncation_error, 0) << "300 directions: some of the tolerance is spent on dropping them";
    EXPECT_GT(result.engine.rank_tol, 1e-4);
    // 5 errors of the one and the other.
    EXPECT_LT(largest_difference(result, reference, [&](std::size_t k) { return std::hypot(result.reports[0].error[k], reference.reports[0].error[k]) + 1e-12; }), 5) << tolerance;
  }
}

TEST(Rank, StopsGrowingAlongSmoothTraining) {
  const auto rank_after = [](int steps) { return limit_with(test::parsed(training(steps)), 2048, 0.03).engine.largest_rank; };
  const auto early = rank_after(20), late = rank_after(200);
  EXPECT_GT(early, 12);
  EXPECT_LT(late, 2 * early);
}

}  // namespace
}  // namespace tplimit
