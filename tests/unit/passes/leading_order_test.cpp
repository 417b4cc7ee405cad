/// Limits of programs: leading orders, graded values, Gaussian outputs, and what is refused.

#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/passes/programs.hpp"
#include "tplimit/passes/gaussian_outputs.hpp"
#include "tplimit/passes/graded.hpp"

namespace tplimit {
namespace {

using namespace ir;
using test::cleaned;
using test::limits_of;

/// "width n", vectors x, y, z and a matrix W, then the lines of a test.
Program with_vectors(const std::string& lines) {
  return cleaned(
      "width n\nrandom x : [n] ~ normal(0, 1)\nrandom y : [n] ~ normal(0, 1)\n"
      "random z : [n] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, 1 / n)\n" +
      lines + "\n");
}
std::string code_of(const Result<LeadingOrder>& limit) {
  return limit.ok() ? "" : limit.errors()[0].code;
}

TEST(LeadingOrder, SumsKeepTheirLargestTerms) {
  const Program before = with_vectors("report E((x + y / n)^2)");
  EXPECT_EQ(to_text(before),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = standard_normal y\n"
            "%2 [n] = scale 1 n^-1 %1\n"
            "%3 [n] = add %0 %2\n"
            "%4 [n] = power 2 %3\n"
            "%5 [] = average %4\n"
            "report E((x + y / n)^2) = %5\n");
  const auto limit = leading_order(before);
  ASSERT_TRUE(limit.ok());
  EXPECT_EQ(to_text(limit->program),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = power 2 %0\n"
            "%2 [] = average %1\n"
            "report E((x + y / n)^2) = %2\n");
  EXPECT_NEAR(limits_of(*limit)[0][0], 1, 1e-12);
  const auto again = leading_order(limit->program);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(to_text(again->program), to_text(limit->program));
}

TEST(LeadingOrder, LeavesNoPowerOfTheWidth) {
  const auto limit = leading_order(cleaned(R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
for t in 0..2 {
  out = v @ tanh(W @ tanh(U @ X)) / n
  report out
  step sgd(mse(out, [1, -1]), lr = 0.4)
}
)"));
  ASSERT_TRUE(limit.ok());
  EXPECT_NO_THROW(verify(limit->program));
  for (const Node& node : limit->program.nodes)
    if (const auto* s = std::get_if<Scale>(&node.op)) {
      EXPECT_EQ(s->power, Exponent(0));
    }
  const auto again = leading_order(limit->program);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(to_text(again->program), to_text(limit->program));
}

TEST(LeadingOrder, AnAverageOfAnOddValueIsProvedZero) {
  const auto limit = leading_order(with_vectors("report E(sin(x) * y^2)"));
  ASSERT_TRUE(limit.ok());
  EXPECT_TRUE(limit->reports[0].proved_zero);
  EXPECT_EQ(to_text(limit->program),
            "%0 [] = constant {0}\n"
            "report E(sin(x) * y^2) = %0\n");
  const auto even = leading_order(with_vectors("report E(sin(x)^2)"));
  ASSERT_TRUE(even.ok());
  EXPECT_FALSE(even->reports[0].proved_zero);
}

TEST(LeadingOrder, MapsOfVanishingArgumentsAreTheirTangents) {
  // E(n tanh(x / n) x) -> E x^2, E n^2 (cosh(x / n) - 1) needs the second order and is refused.
  const auto first = leading_order(with_vectors("report E(n * tanh(x / n) * x)"));
  ASSERT_TRUE(first.ok());
  EXPECT_NEAR(limits_of(*first)[0][0], 1, 1e-12);
  const auto second = leading_order(with_vectors("report E(n^2 * (1 - cos(x / n)))"));
  EXPECT_EQ(code_of(second), "E3102");
}

TEST(LeadingOrder, SaysHowReportsVanish) {
  const auto limit = leading_order(with_vectors("report r = E(x^2) / sqrt(n)"));
  ASSERT_TRUE(limit.ok());
  EXPECT_EQ(limit->reports[0].order, Exponent(-1, 2));
  EXPECT_FALSE(limit->reports[0].proved_zero);
  ASSERT_EQ(limit->vanishing.size(), 1u);
  EXPECT_EQ(limit->vanishing[0].code, "W5301");
}

TEST(LeadingOrder, RefusesWhatHasNoLimit) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"E3101", "report E(x^2) * n"},         {"E3101", "report E((sqrt(n) * (W @ x))^2)"},
      {"E3102", "report sqrt(n) * E(x * y)"}, {"E3102", "report n * E(W @ x)^2"},
      {"E3103", "report E(tanh(n * x)^2)"},   {"E3104", "report E(x^2) / E(x)"},
      {"E3105", "report log(E(x^2) / n)"},    {"E3108", "report E(step(relu(x) + y / sqrt(n)))"},
  };
  for (const auto& [code, line] : cases) {
    const auto limit = leading_order(with_vectors(line));
    EXPECT_EQ(code_of(limit), code) << line;
    if (limit.ok()) continue;
    EXPECT_TRUE(limit.errors()[0].located) << line;
    EXPECT_LT(limit.errors()[0].span.begin, limit.errors()[0].span.end) << line;
  }
}

TEST(FluctuatingReports, AreThoseWithGaussianLimits) {
  EXPECT_EQ(fluctuating_reports(with_vectors("report E(x^2), sqrt(n) * E(x * y), n * E(x * y)^2, "
                                             "E(x * y)")),
            (std::vector<bool>{false, true, true, false}));
}

// ---- Gaussian outputs

TEST(LinearPart, IsSlopeAndValueAtZero) {
  Program program;
  program.sources = {{"r", false, {}, {}}, {"z", false, {}, {}}};
  Builder b(program);
  const NodeId r = b.add(StandardNormal{{0}}, {}), z = b.add(StandardNormal{{1}}, {});
  const NodeId f = b.plus(b.average(b.times(r, z)), b.average(b.map(Fn::kTanh, {z})));
  const auto part = linear_part(b, f, r);
  ASSERT_TRUE(part);
  EXPECT_EQ(part->slope.tensor, b.scale(1, -1, z));  // per coordinate: <z / n, r>
  const test::Network network(program, 6);
  EXPECT_NEAR(network[part->at_zero][0], network[b.average(b.map(Fn::kTanh, {z}))][0], 1e-15);

  EXPECT_TRUE(linear_in(b, f, {r}));
  EXPECT_FALSE(linear_in(b, f, {z}));
  EXPECT_FALSE(linear_in(b, f, {r, z}));  // bilinear
  EXPECT_FALSE(linear_in(b, b.average(z), {r}));
  for (const NodeId other : {b.average(b.map(Fn::kSign, {r})), b.average(b.times(r, r)),
                             b.average(b.add(Stop{}, {r})), b.average(z)})
    EXPECT_FALSE(linear_part(b, other, r)) << other.value;
}

TEST(Readouts, SplitALinearOutputExactly) {
  Program program;
  program.sources = {{"r", false, {}, {}}, {"s", false, {}, {}}, {"z", false, {2}, {}}};
  Builder b(program);
  const NodeId r = b.add(StandardNormal{{0}}, {}), s = b.add(StandardNormal{{1}}, {}),
               z = b.add(StandardNormal{{2}}, {}), tz = b.map(Fn::kTanh, {z});
  const NodeId rest = b.average(b.times(tz, z));
  const NodeId f =
      b.plus(b.plus(b.contract(z, r, 0, 0, true), b.contract(tz, s, 0, 0, true)), rest);
  test::add_report(program, "f", f);
  const std::vector<NodeId> candidates = readout_candidates(program);
  ASSERT_EQ(candidates.size(), 3u);
  const auto parts = readouts_of(b, f, candidates);
  ASSERT_TRUE(parts);
  ASSERT_EQ(parts->slopes.size(), 2u);
  const std::int64_t n = 5;
  const test::Network network(program, n);
  for (std::size_t i = 0; i < 2; ++i) {
    double sum = network[parts->rest][i];
    for (const SourceSlope& slope : parts->slopes)
      for (std::size_t a = 0; a < 5; ++a)
        sum += network[slope.terms[0].d][i * 5 + a] * network[slope.source][a];
    EXPECT_NEAR(sum, network[f][i], 1e-14);
    EXPECT_NEAR(network[parts->rest][i], network[rest][i], 1e-14);
  }
}

TEST(GaussianOutputs, ReportTheCovariance) {
  const Program before = with_vectors("report f = y @ relu(x) / sqrt(n)");
  const GaussianOutputs found = gaussian_outputs(before, {true});
  ASSERT_EQ(found.notes.size(), 1u);
  EXPECT_EQ(found.notes[0].code, "W5302");
  ASSERT_EQ(found.limit.reports.size(), 1u);  // no mean: it is 0
  EXPECT_EQ(found.limit.reports[0].name, "cov(f)");
  EXPECT_EQ(found.networks.reports[0].name, "cov(f)");
  EXPECT_TRUE(found.networks.reports[0].random);
  // E relu(x)^2 = 1/2.
  const auto limit = leading_order(found.limit);
  ASSERT_TRUE(limit.ok());
  EXPECT_NEAR(limits_of(*limit)[0][0], 0.5, 1e-12);
  // A network reports f^2.
  const double f = test::Network(before, 16).reports()[0][0];
  EXPECT_NEAR(test::Network(found.networks, 16).reports()[0][0], f * f, 1e-13);
}

TEST(GaussianOutputs, HaveAMeanWhereTheRestIsNotZero) {
  const Program before = with_vectors("report f = y @ x / sqrt(n) + E(x^2) + 1");
  const GaussianOutputs found = gaussian_outputs(before, {true});
  ASSERT_EQ(found.limit.reports.size(), 2u);
  EXPECT_EQ(found.limit.reports[1].name, "mean(f)");
  const auto limit = leading_order(found.limit);
  ASSERT_TRUE(limit.ok());
  const auto values = limits_of(*limit);
  EXPECT_NEAR(values[0][0], 1, 1e-12);
  EXPECT_NEAR(values[1][0], 2, 1e-12);
}

TEST(GaussianOutputs, LeaveWhatIsNotAskedForOrNotLinear) {
  const Program before =
      with_vectors("report E(x^2), f = y @ x / sqrt(n), g = (y @ x)^2 / n, E(y^2)");
  const GaussianOutputs none = gaussian_outputs(before, {false, false, false, false});
  EXPECT_TRUE(none.notes.empty());
  EXPECT_EQ(to_text(none.limit), to_text(before));
  const GaussianOutputs some = gaussian_outputs(before, {true, true, true, false});
  EXPECT_EQ(some.notes.size(), 1u);  // x^2 and (y x)^2 are linear in no readout
  EXPECT_EQ(some.limit.reports[0].name, before.reports[0].name);
  EXPECT_EQ(some.limit.reports[1].name, "cov(f)");
  EXPECT_EQ(some.limit.reports[2].name, "g");
}

// ---- graded values

TEST(Graded, LimitsAreConditionalOnTheGivenOutput) {
  GradedOptions options;
  options.given = {"f", {0.7}};
  const auto limit =
      graded_limit(with_vectors("f = y @ tanh(x) / sqrt(n)\nreport f, f^2"), options);
  ASSERT_TRUE(limit.ok());
  EXPECT_FALSE(limit->random_outputs);  // nothing is left to draw
  const auto values = limits_of(*limit);
  EXPECT_NEAR(values[0][0], 0.7, 1e-14);
  EXPECT_NEAR(values[1][0], 0.49, 1e-14);
}

TEST(Graded, LaterOutputsFollowFromTheGivenOne) {
  // g = 2 f + 0 is the same readout: K21 / K11 = 2, no randomness is left.
  GradedOptions options;
  options.given = {"f", {0.7}};
  const auto limit = graded_limit(
      with_vectors("f = y @ tanh(x) / sqrt(n)\ng = y @ (2 * tanh(x)) / sqrt(n)\nreport f, g"),
      options);
  ASSERT_TRUE(limit.ok());
  EXPECT_NEAR(limits_of(*limit)[1][0], 1.4, 1e-12);
}

TEST(Graded, DrawsAreReproducibleAndHaveTheCovariance) {
  const Program program = with_vectors("f = y @ relu(x) / sqrt(n)\nreport f");
  std::vector<double> values;
  for (std::uint64_t draw = 0; draw < 200; ++draw) {
    GradedOptions options;
    options.draw = draw;
    const auto limit = graded_limit(program, options);
    ASSERT_TRUE(limit.ok());
    EXPECT_TRUE(limit->random_outputs);
    values.push_back(limits_of(*limit)[0][0]);
    if (draw > 3) continue;
    const auto again = graded_limit(program, options);
    EXPECT_EQ(limits_of(*again)[0][0], values.back());
  }
  // N(0, 1/2): the variance of 200 draws within 4 of its standard errors sqrt(2 / 200) / 2.
  const test::Moments m = test::moments(values);
  EXPECT_NEAR(m.mean, 0, 4 * m.error_of_mean());
  EXPECT_NEAR(m.variance, 0.5, 4 * 0.05);
}

TEST(Graded, IsTheLeadingOrderWhereNothingFluctuates) {
  const Program program = with_vectors("report E(tanh(W @ x)^2), E(relu(x) * x)");
  const auto graded = graded_limit(program, {});
  const auto leading = leading_order(program);
  ASSERT_TRUE(graded.ok());
  ASSERT_TRUE(leading.ok());
  EXPECT_FALSE(graded->random_outputs);
  const auto a = limits_of(*graded), b = limits_of(*leading);
  EXPECT_NEAR(a[0][0], b[0][0], 1e-12);
  EXPECT_NEAR(a[1][0], 0.5, 1e-12);  // E relu(x) x
}

TEST(Graded, RefusesWhatCannotBeGiven) {
  const std::vector<std::string> programs{
      "f = y @ x / n\nreport f",                                  // tends to 0
      "f = y @ x / sqrt(n) + z @ tanh(x) / sqrt(n)\nreport f^2",  // of two readouts
      "f = E(x^2)\nreport f",                                     // no random output
  };
  for (const std::string& text : programs) {
    GradedOptions options;
    options.given = {"f", {1}};
    EXPECT_EQ(code_of(graded_limit(with_vectors(text), options)), "E3107") << text;
  }
  GradedOptions options;
  options.given = {"missing", {1}};
  EXPECT_EQ(code_of(graded_limit(with_vectors("f = y @ x / sqrt(n)\nreport f^2"), options)),
            "E3107");
}

}  // namespace
}  // namespace tplimit
