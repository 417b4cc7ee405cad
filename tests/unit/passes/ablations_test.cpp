/// What is changed in a program to show what its terms do.

#include <string>

#include <gtest/gtest.h>

#include "tests/unit/passes/programs.hpp"
#include "tplimit/passes/ablations.hpp"

namespace tplimit {
namespace {

using namespace ir;
using test::cleaned;
using test::lowered;

const char* const kBoth = R"(width n
random W : [n, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
report E(x * (W' @ tanh(W @ x)))
)";

TEST(Decoupled, TransposedProductsTakeAnIndependentCopy) {
  const Program before = cleaned(kBoth);
  EXPECT_EQ(to_text(before),
            "%0 matrix = gaussian_matrix W\n"
            "%1 [n] = standard_normal x\n"
            "%2 [n] = matmul %0 %1\n"
            "%3 [n] = tanh %2\n"
            "%4 [n] = matmul_transposed %0 %3\n"
            "%5 [n] = mul %1 %4\n"
            "%6 [] = average %5\n"
            "report E(x * (W' @ tanh(W @ x))) = %6\n");
  const auto after = decoupled(before, {{"W"}, false, false});
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(to_text(*after),
            "%0 matrix = gaussian_matrix W~\n"
            "%1 matrix = gaussian_matrix W\n"
            "%2 [n] = standard_normal x\n"
            "%3 [n] = matmul %1 %2\n"
            "%4 [n] = tanh %3\n"
            "%5 [n] = matmul_transposed %0 %4\n"
            "%6 [n] = mul %2 %5\n"
            "%7 [] = average %6\n"
            "report E(x * (W' @ tanh(W @ x))) = %7\n");
  // E x Z^{W' tanh(W x)} = E tanh'(G) E x^2; without the correction x meets an independent vector.
  EXPECT_GT(test::limits_of(before)[0][0], 0.5);
  EXPECT_EQ(test::limits_of(*after)[0][0], 0);
}

TEST(Decoupled, CopiesGetTheSameScalesAndUpdates) {
  const Program before = lowered(R"(width n
param W : [n, n] ~ normal(0, 2 / n)
random x : [n] ~ normal(0, 1)
W += outer(x, x) / n
report E(x * (W' @ x)), E(x * (W @ x))
)");
  const auto after = decoupled(before, {{}, true, false});
  ASSERT_TRUE(after.ok());
  EXPECT_NO_THROW(verify(*after));
  ASSERT_EQ(after->sources.size(), before.sources.size() + 1);
  EXPECT_EQ(after->sources.back().name, "W~");
  // x' W x / n -> 0, and the update adds (E x^2)^2 = 1 on both sides.
  const auto limits = test::limits_of(erase_identities(*after));
  EXPECT_NEAR(limits[0][0], 1, 1e-12);
  EXPECT_NEAR(limits[1][0], 1, 1e-12);
}

TEST(Decoupled, OneMatrixOfAnArrayOrAll) {
  const Program before = cleaned(R"(width n
random W : [2, n, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
report E(x * (W[0]' @ tanh(W[0] @ x))), E(x * (W[1]' @ tanh(W[1] @ x)))
)");
  const auto zeros = [&](const std::string& name) {
    const auto after = decoupled(before, {{name}, false, false});
    EXPECT_TRUE(after.ok());
    std::vector<bool> out;
    for (const auto& limit : test::limits_of(*after)) out.push_back(limit[0] == 0);
    return out;
  };
  EXPECT_EQ(zeros("W[0]"), (std::vector<bool>{true, false}));
  EXPECT_EQ(zeros("W[1]"), (std::vector<bool>{false, true}));
  EXPECT_EQ(zeros("W"), (std::vector<bool>{true, true}));
}

TEST(Decoupled, LeavesProgramsWithOneSideAlone) {
  const Program before = cleaned(R"(width n
random W : [n, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
report E(tanh(W @ x)^2)
)");
  const auto after = decoupled(before, {{"W"}, false, false});
  ASSERT_TRUE(after.ok());
  test::expect_same_networks(before, *after);
}

TEST(Decoupled, NeedsAMatrixOfThatName) {
  const auto refused = decoupled(cleaned(kBoth), {{"V"}, false, false});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.errors()[0].code, "E2148");
}

TEST(AblationNames, AreThoseOfHeadings) {
  EXPECT_FALSE(Ablations{}.any());
  EXPECT_EQ(to_string({{"W", "V"}, false, false}), "W, V decoupled");
  EXPECT_EQ(to_string({{"W"}, true, true}), "no correction terms, lazy training");
  EXPECT_EQ(to_string({{}, false, true}), "lazy training");
}

/// Training of a readout v only: the output is linear in what is trained.
const char* const kReadout = R"(width n
random U : [n, 2] ~ normal(0, 1 / 2)
param v : [n] ~ normal(0, 1), lr = n
for t in 0..3 {
  out = v @ tanh(U @ [[1, 0.5], [-0.3, 1]]) / n
  report out
  step sgd(mse(out, [1, -1]), lr = 0.4)
}
)";

TEST(Linearised, ALinearModelIsItsOwnLinearisation) {
  const Program before = lowered(kReadout);
  const auto after = linearised(before);
  ASSERT_TRUE(after.ok());
  EXPECT_NO_THROW(verify(*after));
  test::expect_same_networks(before, *after);
}

TEST(Linearised, FollowsTheTangentAtTheStart) {
  // f = u^3 / 3 of a number u that starts at 2, moved by d to u - r: lazily 8/3 - 4 r.
  const Program before = lowered(R"(width n
param u : [] ~ normal(2, 0)
f = u^3 / 3
report f
step sgd(mse([f], [0]), lr = 0.01)
f = u^3 / 3
report g = f
)");
  const auto after = linearised(before);
  ASSERT_TRUE(after.ok());
  // d loss / d u = f u^2 = 8/3 * 4, r = 0.01 * 32/3.
  const double r = 0.32 / 3;
  const auto exact = test::Network(before, 1).reports(), lazy = test::Network(*after, 1).reports();
  EXPECT_NEAR(exact[1][0], std::pow(2 - r, 3) / 3, 1e-14);
  EXPECT_NEAR(lazy[0][0], 8.0 / 3, 1e-14);
  EXPECT_NEAR(lazy[1][0], 8.0 / 3 - 4 * r, 1e-14);
}

TEST(Linearised, IsLinearInTheRate) {
  // One step of a nonlinear network: outputs of the linearisation move in proportion to the rate.
  const auto moved = [](const std::string& rate) {
    const auto after = linearised(lowered(R"(width n
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) { return v @ tanh(W @ tanh(U @ x)) / n }
out = f([1, 0.5])
report out
step sgd(mse([out], [1]), lr = )" + rate + R"()
report f([1, 0.5])
)"));
    EXPECT_TRUE(after.ok());
    const auto reports = test::Network(*after, 8).reports();
    return reports[1][0] - reports[0][0];
  };
  const double small = moved("0.5");
  EXPECT_NE(small, 0);
  EXPECT_NEAR(moved("1"), 2 * small, 1e-12 * std::abs(small));
  EXPECT_NEAR(moved("8"), 16 * small, 1e-11 * std::abs(small));
}

TEST(Linearised, NeedsAnOutput) {
  const auto refused = linearised(cleaned(kBoth));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.errors()[0].code, "E2149");
}

}  // namespace
}  // namespace tplimit
