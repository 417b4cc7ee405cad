/// Several widths of fixed ratio.

#include <string>

#include <gtest/gtest.h>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

// W [m, n] with entries N(0, 1/n): E x'W'Wx / n = c, E |W'Wx|^2 / n = c^2 + c, E x'(W'W)^3 x / n =
// c^3 + 3 c^2 + c, c = m/n (Marchenko-Pastur).
TEST(Widths, MomentsOfRectangularMatrices) {
  for (const auto& [ratio, c] :
       {std::pair{"2 n", 2.0}, std::pair{"n / 2", 0.5}, std::pair{"3 / 2 * n", 1.5},
        std::pair{"n", 1.0}, std::pair{"5 n", 5.0}}) {
    SCOPED_TRACE(ratio);
    const std::string text = fmt::format(R"(width n, m = {}
random W : [m, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
y = W @ x
u = W' @ y
report E(u * x), E(u^2), E(y^2), y @ y / m, E((W @ u)^2) * m / n, gram(y, 2 * y)
)",
                                         ratio);
    for (const EvaluateOptions& options : {EvaluateOptions{}, particles(512, 2)}) {
      const LimitResult limit = limit_of(text, options);
      const std::vector<double> expected{c, c * c + c, 1, 1, c * c * c + 3 * c * c + c, 2};
      for (std::size_t k = 0; k < expected.size(); ++k)
        EXPECT_NEAR(limit.reports[k].value[0], expected[k], 1e-9 * expected[k]) << k;
    }
    const SimulationResult networks = networks_of(parsed(text), 960, 64, Matrices::kDense);
    EXPECT_NEAR(networks.reports[1].value[0], c * c + c, 5 * networks.reports[1].error[0]);
  }
}

// A layer of width 2 n is two layers of width n side by side.
TEST(Widths, TrainingIsThatOfThePartsWrittenByHand) {
  const std::string whole = R"(width n, m = 2 n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 0.5), lr = n
param W : [m, n] ~ normal(0, 1 / n)
param V : [2, m, m] ~ normal(0, 1 / m)
param v : [m] ~ normal(0, 1), lr = n
for t in 0..3 {
  z = W @ (U @ X)
  for l in 0..2 { z = V[l] @ z }
  out = v @ z / m
  loss = mse(out, y)
  report out, gram(z), loss
  step sgd(loss, lr = 0.3, scale = {v: 2 * n})
}
W *= 0.5
v = v - 0.1 * grad(out @ out, v) * n
V0 = U
W += 1 / n * outer(tanh(W @ (U @ X)), U @ X)
report E((W @ (U @ X))^2), E(v^2), E(zeros(2, m) + v), E(max(v, 0) * where(v > 0, 1, 2))
)";
  const std::string parts = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 0.5), lr = n
param W1 : [n, n] ~ normal(0, 1 / n)
param W2 : [n, n] ~ normal(0, 1 / n)
param V11 : [2, n, n] ~ normal(0, 1 / (2 * n))
param V12 : [2, n, n] ~ normal(0, 1 / (2 * n))
param V21 : [2, n, n] ~ normal(0, 1 / (2 * n))
param V22 : [2, n, n] ~ normal(0, 1 / (2 * n))
param v1 : [n] ~ normal(0, 1), lr = n
param v2 : [n] ~ normal(0, 1), lr = n
for t in 0..3 {
  z1 = W1 @ (U @ X)
  z2 = W2 @ (U @ X)
  for l in 0..2 {
    a = V11[l] @ z1 + V12[l] @ z2
    z2 = V21[l] @ z1 + V22[l] @ z2
    z1 = a
  }
  out = (v1 @ z1 + v2 @ z2) / (2 * n)
  loss = mse(out, y)
  report out, (gram(z1) + gram(z2)) / 2, loss
  step sgd(loss, lr = 0.3, scale = {v1: 2 * n, v2: 2 * n})
}
W1 *= 0.5
W2 *= 0.5
d1 = grad(out @ out, v1)
d2 = grad(out @ out, v2)
v1 = v1 - 0.1 * d1 * n
v2 = v2 - 0.1 * d2 * n
h1 = tanh(W1 @ (U @ X))
h2 = tanh(W2 @ (U @ X))
W1 += 1 / n * outer(h1, U @ X)
W2 += 1 / n * outer(h2, U @ X)
report (E((W1 @ (U @ X))^2) + E((W2 @ (U @ X))^2)) / 2, (E(v1^2) + E(v2^2)) / 2, (E(zeros(2, n) + v1) + E(zeros(2, n) + v2)) / 2, (E(max(v1, 0) * where(v1 > 0, 1, 2)) + E(max(v2, 0) * where(v2 > 0, 1, 2))) / 2
)";
  const LimitResult a = limit_of(whole, particles(4096, 8)),
                    b = limit_of(parts, particles(4096, 8));
  ASSERT_EQ(a.reports.size(), b.reports.size());
  for (std::size_t k = 0; k < a.reports.size(); ++k) {
    ASSERT_EQ(a.reports[k].value.size(), b.reports[k].value.size()) << a.reports[k].name;
    for (std::size_t j = 0; j < a.reports[k].value.size(); ++j)
      EXPECT_NEAR(a.reports[k].value[j], b.reports[k].value[j],
                  1e-9 + 6 * std::hypot(a.reports[k].error[j], b.reports[k].error[j]))
          << a.reports[k].name << ' ' << j;
  }
}

TEST(Widths, NetworksHaveTheDeclaredWidths) {
  const std::string text =
      "width n, m = n / 3\nrandom x : [n] ~ normal(0, 1)\nrandom y : [m] ~ normal(0, 1)\nreport 1 "
      "/ n, 1 / m, samples(y, 3), hist(y), x @ x / n\n";
  const SimulationResult networks = networks_of(parsed(text), 300, 8, Matrices::kAuto);
  EXPECT_DOUBLE_EQ(networks.reports[0].value[0], 1.0 / 300);
  EXPECT_DOUBLE_EQ(networks.reports[1].value[0], 1.0 / 100);
  EXPECT_EQ(networks.reports[2].value.size(), 3u);
  EXPECT_NEAR(networks.reports[4].value[0], 1, 0.2);
  SimulateOptions odd;
  odd.width = 100;
  const auto refused = simulate(parsed(text), odd);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.errors()[0].code, "E2701");
}

}  // namespace
}  // namespace tplimit::test
