/// Budgets of the moment engine, in counts that are the same on all machines.

#include <limits>

#include <gtest/gtest.h>

#include "moments/engine.hpp"
#include "tests/support/run.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit::test {
namespace {

constexpr const char* kResidual = R"(width n
const L = 6
data X = [[0.5, -1], [1, 0.3]]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [L, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  z = U @ x
  for l in 0..L { z = z + elu(W[l] @ z) / sqrt(L) }
  return v @ z / n, gram(z)
}
for t in 0..2 {
  out, g = f(X)
  report out, g
  step sgd(mse(out, [1, -1]), lr = 0.1)
}
)";

TEST(Budget, RoughQuadraturesDecideTheSameAndCostLess) {
  const auto limit = check(parsed(kResidual));
  ASSERT_TRUE(limit);
  const auto outputs = ir::outputs_of(limit->program);
  const Executor one(1), four(4);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  moments::MomentEngine full(limit->program, outputs, one, 1e-12),
      survey(limit->program, outputs, one, 1e-12), threads(limit->program, outputs, four, 1e-12),
      run(limit->program, outputs, one, 1e-12);
  full.run();
  survey.set_budget({1000, kInfinity});
  threads.set_budget({1000, kInfinity});
  run.set_budget({1000, kInfinity});
  survey.survey();
  threads.survey();
  run.run();
  int known = 0;
  for (const ir::NodeId id : outputs) {
    EXPECT_EQ(survey[id].known(), full[id].known()) << survey[id].why << full[id].why;
    ASSERT_EQ(run[id].known(), full[id].known());
    if (!full[id].known()) continue;
    ++known;
    EXPECT_EQ(survey[id].method, full[id].method);
    EXPECT_EQ(run[id].value, full[id].value);
  }
  EXPECT_GT(known, 0);
  EXPECT_LT(10 * survey.spent().evaluations, full.spent().evaluations);
  EXPECT_EQ(survey.spent().evaluations, threads.spent().evaluations);
  EXPECT_EQ(survey.spent().operations, threads.spent().operations);
}

}  // namespace
}  // namespace tplimit::test
