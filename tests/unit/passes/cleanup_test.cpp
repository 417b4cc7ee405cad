/// Clean-up: identities, dead code, powers of the width, cancelled terms.

#include <string>

#include <gtest/gtest.h>

#include "tests/unit/passes/programs.hpp"

namespace tplimit {
namespace {

using namespace ir;
using test::add_report;
using test::cleaned;
using test::lowered;

/// E(stop(p) tanh(p)) for a parameter p that starts at x, and a sine that nothing needs.
struct WithIdentities {
  Program program;
  NodeId x, p;
  WithIdentities() {
    program.sources = {{"x", false, {}, {}}};
    Builder b(program);
    x = b.add(StandardNormal{{0}}, {});
    p = b.add(Parameter{0}, {x});
    (void)b.map(Fn::kSin, {p});
    const NodeId stopped = b.add(Stop{}, {p}), z = b.map(Fn::kTanh, {p});
    add_report(program, "r", b.average(b.times(stopped, z)));
  }
};

TEST(EraseIdentities, DropsThemAndWhatNothingNeeds) {
  const WithIdentities sample;
  EXPECT_EQ(to_text(sample.program),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = parameter 0 %0\n"
            "%2 [n] = sin %1\n"
            "%3 [n] = stop %1\n"
            "%4 [n] = tanh %1\n"
            "%5 [n] = mul %3 %4\n"
            "%6 [] = average %5\n"
            "report r = %6\n");
  const Program erased = erase_identities(sample.program);
  EXPECT_EQ(to_text(erased),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = tanh %0\n"
            "%2 [n] = mul %0 %1\n"
            "%3 [] = average %2\n"
            "report r = %3\n");
  EXPECT_EQ(to_text(erase_identities(erased)), to_text(erased));
  test::expect_same_networks(sample.program, erased);
}

TEST(EraseIdentities, KeepsNamedValuesOnlyWhereItIsAsked) {
  WithIdentities sample;
  const NodeId sine{2};
  sample.program.names = {{"s", sine, 0, {}}, {"p", sample.p, 0, {}}};
  const Program without = erase_identities(sample.program);
  ASSERT_EQ(without.names.size(), 1u);  // x is needed anyway
  EXPECT_EQ(without.names[0].name, "p");
  const Program with = erase_identities(sample.program, true);
  ASSERT_EQ(with.names.size(), 2u);
  EXPECT_STREQ(op_name(with[with.names[0].value].op), "sin");
  EXPECT_STREQ(op_name(with[with.names[1].value].op), "standard_normal");
  EXPECT_EQ(to_text(erase_identities(with, true)), to_text(with));
}

TEST(EraseIdentities, ParametersThatStartAlikeBecomeOneValue) {
  Program program;
  Builder b(program);
  const NodeId half = b.constant(0.5), first = b.add(Parameter{0}, {half}),
               second = b.add(Parameter{1}, {half});
  ASSERT_NE(first, second);
  add_report(program, "sum", b.plus(first, second));
  const Program erased = erase_identities(program);
  const auto* sum = std::get_if<Constant>(&erased[erased.reports[0].entries[0].value].op);
  ASSERT_NE(sum, nullptr);  // constants are folded once they may be
  EXPECT_EQ((*sum->values)[0], 1);
}

TEST(EraseIdentities, KeepsATrainedNetwork) {
  const std::string text = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
for t in 0..3 {
  h = tanh(U @ X)
  out = v @ (W @ h) / n + E(stop(h)^2)
  report out
  step sgd(mse(out, [1, -1]), lr = 0.4)
}
)";
  const Program before = lowered(text), after = erase_identities(before);
  for (const Node& node : after.nodes)
    EXPECT_FALSE(std::holds_alternative<Stop>(node.op) ||
                 std::holds_alternative<Parameter>(node.op) ||
                 std::holds_alternative<Change>(node.op));
  EXPECT_NO_THROW(verify(after));
  EXPECT_EQ(to_text(erase_identities(after)), to_text(after));
  test::expect_same_networks(before, after);
}

TEST(Rebuilt, MakesSomeNodesAnew) {
  const WithIdentities sample;
  const Program sines = rebuilt(
      sample.program, Keep::kOutputs,
      [](Builder& b, const Node& node, const std::vector<NodeId>& in) -> std::optional<NodeId> {
        const auto* m = std::get_if<Map>(&node.op);
        if (!m || m->fn != Fn::kTanh) return std::nullopt;
        return b.map(Fn::kSin, in);
      });
  EXPECT_EQ(to_text(sines),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = sin %0\n"
            "%2 [n] = mul %0 %1\n"
            "%3 [] = average %2\n"
            "report r = %3\n");
}

TEST(AtWidth, MakesPowersOfTheWidthNumbers) {
  Program program;
  program.sources = {{"x", false, {}, {}}};
  Builder b(program);
  const NodeId x = b.add(StandardNormal{{0}}, {});
  add_report(program, "r", b.scale(3, {-1, 2}, b.average(x)));
  EXPECT_EQ(to_text(program),
            "%0 [n] = standard_normal x\n"
            "%1 [] = average %0\n"
            "%2 [] = scale 3 n^(-1/2) %1\n"
            "report r = %2\n");
  const Program at = at_width(program, 36);
  EXPECT_EQ(to_text(at),
            "%0 [n] = standard_normal x\n"
            "%1 [] = average %0\n"
            "%2 [] = scale 0.5 1 %1\n"
            "report r = %2\n");
  EXPECT_EQ(to_text(at_width(at, 100)), to_text(at));  // no power is left
}

TEST(LastUses, AreThoseOfTheLastReader) {
  const WithIdentities sample;
  EXPECT_EQ(last_uses(sample.program), (std::vector<std::uint32_t>{1, 4, 2, 5, 5, 6, 6}));
}

TEST(SourceOf, LooksThroughVersionsOfAMatrix) {
  Program program;
  program.sources = {{"V", true, {}, {}}, {"W", true, {}, {}}, {"x", false, {}, {}}};
  Builder b(program);
  const NodeId x = b.add(StandardNormal{{2}}, {}), w = b.add(GaussianMatrix{{1}}, {}),
               scaled = b.add(ScaleMatrix{}, {w, b.constant(2)}),
               updated = b.add(UpdateMatrix{}, {scaled, b.constant(3), x, x});
  EXPECT_EQ(source_of(program, updated), SourceId{1});
}

TEST(CancelTerms, LeavesOfAComparisonWhatDiffers) {
  // n y is on both sides: what is left decides at size 1.
  const Program before = cleaned(R"(width n
random x : [n] ~ normal(0, 1)
random y : [n] ~ normal(0, 1)
report r = E(step(x + n * y - n * y))
)");
  const Program after = cancel_terms(before);
  EXPECT_EQ(to_text(after),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = step %0\n"
            "%2 [] = average %1\n"
            "report r = %2\n");
  EXPECT_EQ(to_text(cancel_terms(after)), to_text(after));
  test::expect_same_networks(before, after);
}

TEST(CancelTerms, KeepsNetworksAndIsIdempotent) {
  for (const std::string report : {
           "E((x + y <= y + 1) * x)",
           "E(max(x + 2 * y, 2 * y - 1) * sign(x))",
           "E(min(W @ (x + y), W @ y) * sign(x))",
           "E(mod(x + 3, 1))",
           "E(sign(3 * x - y - x - 2 * x))",
           "E(abs(x - y + y)) / E((x + y - x)^2)",
           "E(step((x + n^0.5 * y) / 2 - n^0.5 * y / 2 - x / 4))",
       }) {
    SCOPED_TRACE(report);
    const Program before = cleaned(
        "width n\nrandom x : [n] ~ normal(0, 1)\nrandom y : [n] ~ normal(0, 1)\n"
        "random W : [n, n] ~ normal(0, 1 / n)\nreport " +
        report + "\n");
    const Program after = cancel_terms(before);
    EXPECT_NE(to_text(after), to_text(before));
    EXPECT_EQ(to_text(cancel_terms(after)), to_text(after));
    EXPECT_NO_THROW(verify(after));
    test::expect_same_networks(before, after);
  }
}

TEST(CancelTerms, LeavesAloneWhatDoesNotCancel) {
  const Program before = cleaned(R"(width n
random x : [n] ~ normal(0, 1)
random y : [n] ~ normal(0, 1)
report E(step(x + n * y - y))
)");
  EXPECT_EQ(to_text(cancel_terms(before)), to_text(before));
}

}  // namespace
}  // namespace tplimit
