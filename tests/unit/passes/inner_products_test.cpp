/// Inner products of versions of matrices: by products with vectors, against all entries.

#include <algorithm>
#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "tests/unit/passes/programs.hpp"
#include "tplimit/passes/inner_products.hpp"

namespace tplimit {
namespace {

using namespace ir;
using test::cleaned;
using test::lowered;

std::size_t inner_products_of(const Program& program) {
  return static_cast<std::size_t>(std::count_if(
      program.nodes.begin(), program.nodes.end(),
      [](const Node& node) { return std::holds_alternative<InnerProduct>(node.op); }));
}

const char* const kVersions = R"(width n
param u : [2, n] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 2 / n)
param V : [n, n] ~ normal(0, 1 / n)
x = tanh(u)
W0 = W
for t in 0..4 {
  W = 0.9 * W + 0.3 / n * outer(x, W @ x) - 0.2 * W0
  V = (1 - 1 / n) * V + 1 / n * outer(V @ x, V' @ x)
  report sum(W^2) / n, sum(W * W0) / n, sum(W * V) / n, norm(W - 0.5 * W0), mean(W^2 + 2 * V^2)
}
)";

TEST(InnerProducts, AreThoseOfAllEntries) {
  const Program before = lowered(kVersions), after = expand_inner_products(before);
  test::expect_same_networks(erase_identities(before), erase_identities(after));
  // W with itself, V with itself, W with V.
  EXPECT_EQ(inner_products_of(erase_identities(after)), 3u);
  EXPECT_EQ(to_text(expand_inner_products(after)), to_text(after));
}

// What is trained, stopped and remembered stays: `check` counts what updates do.
TEST(InnerProducts, KeepIdentities) {
  const Program before = lowered(R"(width n
param W : [n, n] ~ normal(0, 1 / n)
x = stop(W @ ones(n))
step sgd(E(tanh(W @ x)) + 0.1 * sum(W^2), lr = 1)
report E(tanh(W @ x)), norm(stop(W)) / sqrt(n)
)"),
                after = expand_inner_products(before);
  const auto count = [](const Program& program, auto op) {
    return std::count_if(program.nodes.begin(), program.nodes.end(), [](const Node& node) {
      return std::holds_alternative<decltype(op)>(node.op);
    });
  };
  EXPECT_EQ(count(before, Parameter{}), count(after, Parameter{}));
  EXPECT_EQ(count(before, Stop{}), count(after, Stop{}));
  EXPECT_EQ(before.names.size(), after.names.size());
  ASSERT_EQ(after.steps.size(), 1u);
  EXPECT_EQ(before.steps[0].losses.size(), after.steps[0].losses.size());
  test::expect_same_networks(before, after);
}

TEST(InnerProducts, LeaveOtherProgramsAsTheyAre) {
  const Program program =
      lowered("width n\nparam W : [n, n] ~ normal(0, 1 / n)\nreport norm(W @ ones(n)) / sqrt(n)\n");
  EXPECT_EQ(to_text(expand_inner_products(program)), to_text(program));
}

// |s W + c d x'|^2 = s^2 |W|^2 + 2 s c d'Wx + c^2 |d|^2 |x|^2, whose derivatives are known.
TEST(InnerProducts, HaveTheDerivativesOfTheirFormula) {
  const Program program = lowered(R"(width n
param W : [n, n] ~ normal(0, 1 / n)
param d : [n] ~ normal(0, 1)
param x : [n] ~ normal(0, 1)
param s : [] ~ normal(1.3, 0)
param c : [] ~ normal(0.7, 0)
A = s * W + c / n * outer(d, x)
f = sum(A^2) / n
B = W + c / n * outer(d, x)
g = sum(B * (W - 0.5 * B)) / n
w = W @ x
report grad(f, s) - 2 * s * sum(W^2) / n - 2 * c * E(d * w) / n
report grad(f, c) - 2 * s * E(d * w) / n - 2 * c * E(d^2) * E(x^2) / n
report E((grad(f, d) - 2 * c / n^2 * (s * w + c * d * E(x^2)))^2)
report E((grad(f, x) - 2 * c / n^2 * (s * (W' @ d) + c * x * E(d^2)))^2)
report E(((grad(f, W) - 2 * s / n * A) @ d)^2)
report grad(g, c) - E(d * w) / n + E(d * (B @ x)) / n
report E((grad(g, W) @ x - W @ x / n)^2)
)");
  for (const std::int64_t n : {1, 7, 32})
    for (const auto& report : test::Network(erase_identities(program), n).reports())
      for (const double x : report) EXPECT_NEAR(x, 0, 1e-12) << "width " << n;
}

}  // namespace
}  // namespace tplimit
