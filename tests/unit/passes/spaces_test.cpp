/// Probability spaces, powers of the width, and what the theory does not cover.

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/passes/programs.hpp"
#include "tplimit/passes/direct_uses.hpp"
#include "tplimit/passes/faults.hpp"
#include "tplimit/passes/powers.hpp"
#include "tplimit/passes/regime.hpp"
#include "tplimit/passes/theory_checks.hpp"

namespace tplimit {
namespace {

using namespace ir;
using test::cleaned;

/// The first node of an operation.
NodeId find(const Program& program, const std::string& operation) {
  for (std::uint32_t k = 0; k < program.size(); ++k)
    if (op_name(program.nodes[k].op) == operation) return {k};
  ADD_FAILURE() << "no " << operation;
  return {0};
}

TEST(ProbabilitySpaces, AMatrixSeparatesItsSides) {
  const Program program = cleaned(R"(width n
random W : [n, n] ~ normal(0, 1 / n)
random x : [3, n] ~ normal(0, 1)
random y : [n] ~ normal(0, 1)
report E(tanh(W @ x)^2), E(y^2)
)");
  const ProbabilitySpaces spaces = probability_spaces(program);
  EXPECT_EQ(spaces.count, 3u);  // x, W x, y
  NodeId x{}, y{};
  for (std::uint32_t k = 0; k < program.size(); ++k)
    if (const auto* s = std::get_if<StandardNormal>(&program.nodes[k].op))
      (program.sources[s->source.value].name == "x" ? x : y) = {k};
  const NodeId wx = find(program, "matmul"), mean = find(program, "average");
  EXPECT_EQ(spaces.of_node[mean.value], ProbabilitySpaces::kNone);
  EXPECT_NE(spaces.of_node[x.value], spaces.of_node[wx.value]);
  EXPECT_NE(spaces.of_node[x.value], spaces.of_node[y.value]);
  EXPECT_EQ(spaces.of_node[wx.value], spaces.of_node[find(program, "tanh").value]);
  const SourceId W = source_of(program, find(program, "gaussian_matrix"));
  EXPECT_EQ(spaces.input_of_source[W.value], spaces.of_node[x.value]);
  EXPECT_EQ(spaces.output_of_source[W.value], spaces.of_node[wx.value]);
  // Three normals for x, three for W x, one for y.
  EXPECT_EQ(spaces.dimensions[spaces.of_node[x.value]], 3u);
  EXPECT_EQ(spaces.dimensions[spaces.of_node[wx.value]], 3u);
  EXPECT_EQ(spaces.dimensions[spaces.of_node[y.value]], 1u);
  EXPECT_EQ(spaces.directions[W.value][0], 3);
  EXPECT_EQ(spaces.directions[W.value][1], 0);
}

/// Of W in a program with h = W @ x and what follows.
struct UsesOfW {
  std::array<bool, 2> products, operands;
};
UsesOfW uses_of_w(const std::string& rest) {
  const Program program = cleaned(R"(width n
random W : [n, n] ~ normal(0, 1 / n)
random V : [n, n] ~ normal(0, 1 / n)
random x : [2, n] ~ normal(0, 1)
random z : [2, n] ~ normal(0, 1)
h = W @ x
)" + rest + "\n");
  const DirectUses uses = direct_uses(program);
  for (std::size_t s = 0; s < program.sources.size(); ++s)
    if (program.sources[s].name == "W") return {uses.products[s], uses.operands[s]};
  ADD_FAILURE() << "no W in " << rest;
  return {};
}

TEST(DirectUses, OfProducts) {
  using Sides = std::array<bool, 2>;
  for (const char* apart :
       {"report E(tanh(h))", "report E(z * relu(h + z))", "report gram(sin(2 * h), z)",
        "report E((V @ gelu(h / sqrt(E(z[0]^2))))^2)", "report E(exp(mean(h, axis = 0)))"})
    EXPECT_EQ(uses_of_w(apart).products, (Sides{false, false})) << apart;
  for (const char* direct :
       {"report E(h[0] * z[0])", "report gram(h)", "report E(h^2)", "report E(max(h, 2 * z))",
        "report E((V @ h)^2)", "report E((z + h / 2) * tanh(z))", "report E(h * sigmoid(h))",
        "report E(tanh(h)), gram(sum(h, axis = 0), z[0])", "report E(where(z > 0, h, z)^2)"})
    EXPECT_EQ(uses_of_w(direct).products, (Sides{true, false})) << direct;
  EXPECT_EQ(uses_of_w("report gram(W' @ tanh(h), x)").products, (Sides{false, true}));
}

TEST(DirectUses, OfOperands) {
  using Sides = std::array<bool, 2>;
  EXPECT_EQ(uses_of_w("report E(tanh(h))").operands, (Sides{true, false}));
  EXPECT_EQ(uses_of_w("report E(tanh(h) * (V' @ tanh(W' @ tanh(z))))").operands,
            (Sides{true, false}));
  EXPECT_EQ(uses_of_w("report E(tanh(h) * tanh(W' @ (z + tanh(z))))").operands,
            (Sides{true, true}));
  // A derivative times what it multiplies.
  EXPECT_EQ(uses_of_w("report E(tanh(h) * tanh(W' @ (tanh(z) * h)))").operands,
            (Sides{true, false}));
}

TEST(ProbabilitySpaces, ATransposedProductComesBack) {
  const Program program = cleaned(R"(width n
random W : [n, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
report E((W' @ tanh(W @ x))^2)
)");
  const ProbabilitySpaces spaces = probability_spaces(program);
  EXPECT_EQ(spaces.count, 2u);
  EXPECT_EQ(spaces.of_node[find(program, "standard_normal").value],
            spaces.of_node[find(program, "matmul_transposed").value]);
}

TEST(ProbabilitySpaces, AVectorThatWasAppliedBeforeNeedsNoNewNormals) {
  Program program;
  program.sources = {{"x", false, {2}, {}}, {"W", true, {}, {}}};
  Builder b(program);
  const NodeId x = b.add(StandardNormal{{0}}, {}), W = b.add(GaussianMatrix{{1}}, {}),
               y = b.matmul(W, x, false), twice = b.add(ScaleMatrix{}, {W, b.constant(2)}),
               z = b.matmul(twice, x, false);
  test::add_report(program, "r", b.contract(y, z, 0, 1, true));
  const ProbabilitySpaces spaces = probability_spaces(program);
  EXPECT_EQ(spaces.columns[y.value][0].count, 2u);
  EXPECT_EQ(spaces.columns[z.value][0].count, 0u);
  EXPECT_EQ(spaces.directions[1][0], 2);
  // x and W x meet nowhere.
  EXPECT_EQ(spaces.count, 2u);
}

// ---- powers of the width

TEST(Powers, NoneIsSmallerThanAny) {
  EXPECT_EQ(larger({}, {}), std::nullopt);
  EXPECT_EQ(larger({}, Exponent(-3)), Exponent(-3));
  EXPECT_EQ(larger(Exponent(1, 2), {}), Exponent(1, 2));
  EXPECT_EQ(larger(Exponent(1, 2), Exponent(1, 3)), Exponent(1, 2));
}

TEST(Powers, SpikesHaveALargerRootMeanSquareThanMean) {
  // E|rest|^2 = n^(dropped + spike).
  EXPECT_EQ(rms_of_spikes(Exponent(-1), Exponent(0)), Exponent(-1, 2));
  EXPECT_EQ(rms_of_spikes(Exponent(-1), Exponent(-1)), Exponent(-1));
  EXPECT_EQ(rms_of_spikes(Exponent(-2), Exponent(1)), Exponent(-1, 2));
}

constexpr Parity kOddInFirst{1, 0};

TEST(PartSums, EqualSumsHaveOneId) {
  PartSums sums;
  const auto a = sums.one(kOddInFirst), b = sums.one({}, Exponent(-1, 2));
  EXPECT_EQ(sums.plus(a, b), sums.plus(b, a));
  EXPECT_EQ(sums.plus(a, a), a);
  EXPECT_EQ(sums.plus(a, 0), a);
  EXPECT_EQ(sums.times(a, 0), 0u);
  EXPECT_EQ(sums.size(0), std::nullopt);
}

TEST(PartSums, OrdersAddInProducts) {
  PartSums sums;
  const auto a = sums.one({}, Exponent(1, 2)), b = sums.one({}, Exponent(-2));
  EXPECT_EQ(sums.size(sums.times(a, b)), Exponent(-3, 2));
  EXPECT_EQ(sums.size(sums.plus(a, b)), Exponent(1, 2));
  EXPECT_EQ(sums.size(sums.shifted(a, Exponent(-1))), Exponent(-1, 2));
  EXPECT_EQ(sums.size(sums.inverse(a)), Exponent(-1, 2));
}

TEST(PartSums, AnOddVectorAveragesToARandomNumber) {
  PartSums sums;
  const auto odd = sums.one(kOddInFirst), even = sums.times(odd, odd);
  EXPECT_EQ(sums.size(sums.average(odd)), Exponent(-1, 2));
  EXPECT_EQ(sums.size(sums.average(even)), Exponent(0));
  // The random number has lost its vector: another average sees size only.
  const auto number = sums.average(odd);
  EXPECT_EQ(sums.average(number), number);
  EXPECT_EQ(sums.size(sums.average(sums.times(number, even))), Exponent(-1, 2));
  // What is neither odd nor even averages to its size.
  EXPECT_EQ(sums.size(sums.average(sums.plus(odd, even))), Exponent(0));
}

TEST(PartSums, MapsKeepOrLoseSymmetry) {
  PartSums sums;
  const auto x = sums.one(kOddInFirst);
  EXPECT_EQ(sums.size(sums.average(sums.map({Fn::kTanh, 0}, x))), Exponent(-1, 2));
  EXPECT_EQ(sums.size(sums.average(sums.map({Fn::kRelu, 0}, x))), Exponent(0));
  EXPECT_EQ(sums.size(sums.average(sums.map({Fn::kCos, 0}, x))), Exponent(0));
  // tanh of what vanishes vanishes alike; cos tends to 1.
  const auto small = sums.shifted(x, Exponent(-1));
  EXPECT_EQ(sums.size(sums.map({Fn::kTanh, 0}, small)), Exponent(-1));
  EXPECT_EQ(sums.size(sums.map({Fn::kCos, 0}, small)), Exponent(0));
}

TEST(PartSums, CausesTellChangesFromInitialValues) {
  PartSums sums;
  const auto start = sums.one(kOddInFirst),
             update = sums.caused_by(sums.one({}, Exponent(-1, 2)), 4);
  const auto both = sums.plus(start, update);
  EXPECT_EQ(sums.initial(both), start);
  EXPECT_EQ(sums.changed(both), update);
  EXPECT_EQ(sums.size_caused_by(both, 4, true), Exponent(-1, 2));
  EXPECT_EQ(sums.size_caused_by(both, 2, false), std::nullopt);
  EXPECT_EQ(sums.size_caused_by(sums.times(both, both), 4, false), Exponent(-1, 2));
}

// ---- counting, and what is said

/// One step of a linear network of two layers, for variances and rates.
RegimeReport two_layers(const std::string& v, const std::string& rate, const std::string& factor) {
  return count_powers(test::lowered(
      "width n\nparam u : [n] ~ normal(0, 1), lr = " + rate + "\nparam v : [n] ~ normal(0, " + v +
      "), lr = " + rate + "\nfor t in 0..2 {\n  z = tanh(u)\n  out = v @ z * " + factor +
      "\n  report out\n  step sgd(mse([out], [1]), lr = 1)\n}\nout = v @ tanh(u) * " + factor +
      "\nreport last = out\n"));
}

TEST(CountPowers, TheRegimesOfOneHiddenLayer) {
  const RegimeReport features = two_layers("1", "n", "1 / n");
  EXPECT_EQ(features.regime, Regime::kFeatures);
  EXPECT_TRUE(features.maximal);
  EXPECT_EQ(features.steps, 2);
  EXPECT_EQ(two_layers("1", "1", "1 / sqrt(n)").regime, Regime::kKernel);
  EXPECT_EQ(two_layers("1", "1", "1 / n").regime, Regime::kTrivial);
  EXPECT_EQ(two_layers("1", "n^2", "1 / n").regime, Regime::kUnstable);
}

TEST(CountPowers, AProgramWithoutStepsIsUntrained) {
  const RegimeReport report =
      count_powers(test::lowered("width n\nrandom x : [n] ~ normal(0, 1)\nreport E(x^2), E(x)\n"));
  EXPECT_EQ(report.regime, Regime::kUntrained);
  ASSERT_EQ(report.reports.size(), 2u);
  EXPECT_EQ(report.reports[0], Exponent(0));
  EXPECT_EQ(report.reports[1], Exponent(-1, 2));
}

TEST(CountPowers, FixesMakeItMaximal) {
  // The kernel regime of u, v with rates 1 and 1 / sqrt(n): mean-field scaling is one change away.
  const RegimeReport kernel = two_layers("1", "1", "1 / sqrt(n)");
  ASSERT_FALSE(kernel.maximal);
  ASSERT_FALSE(kernel.fixes.empty());
  // v @ z / sqrt(n) needs v of size n^(-1/2), and rates so that both layers move by order 1:
  // du = rate * v z' / sqrt(n) ~ rate / n, dv = rate * z / sqrt(n) ~ n^(-1/2).
  for (const Fix& fix : kernel.fixes) {
    const Exponent found = fix.variable == 0 ? fix.rate : fix.initial;
    EXPECT_EQ(found, fix.variable == 0 ? Exponent(1) : Exponent(-1, 2)) << fix.variable;
  }
}

std::vector<std::string> codes(const Diagnostics& diagnostics) {
  std::vector<std::string> out;
  for (const Diagnostic& d : diagnostics) out.push_back(d.code);
  return out;
}

TEST(TheoryChecks, KinksWhereACorrectionTermDifferentiatesThem) {
  const std::string start =
      "width n\nrandom W : [n, n] ~ normal(0, 1 / n)\n"
      "random x : [n] ~ normal(0, 1)\n";
  using Codes = std::vector<std::string>;
  EXPECT_EQ(codes(theory_checks(cleaned(start + "report E(x * (W' @ step(W @ x)))\n"))),
            Codes{"W5311"});
  // No transposed product, no correction; no product after it, no derivative.
  EXPECT_EQ(codes(theory_checks(cleaned(start + "report E((W @ step(W @ x))^2)\n"))), Codes{});
  EXPECT_EQ(codes(theory_checks(cleaned(start + "report E(step(W @ x) * (W' @ x))\n"))), Codes{});
  EXPECT_EQ(codes(theory_checks(cleaned(start + "report E(x * (W' @ tanh(W @ x)))\n"))), Codes{});
}

TEST(TheoryChecks, GrowthBeyondPolynomialsOncePerPlace) {
  const std::string start = "width n\nrandom x : [2, n] ~ normal(0, 1)\n";
  const Diagnostics found =
      theory_checks(cleaned(start + "for i in 0..2 { report E(exp(x[i])) }\nreport E(x[0]^4)\n"));
  EXPECT_EQ(codes(found), std::vector<std::string>{"W5312"});
  EXPECT_EQ(found[0].severity, Severity::kWarning);
  for (const char* bounded : {"exp(-x[0]^2 / 2)", "exp(-0.5 * x[0]^4)"})
    EXPECT_TRUE(theory_checks(cleaned(start + "report E(" + bounded + ")\n")).empty()) << bounded;
  for (const char* growing : {"exp(x[0]^2 / 9)", "exp(-x[0]^3)"})
    EXPECT_EQ(theory_checks(cleaned(start + "report E(" + growing + ")\n")).size(), 1) << growing;
}

TEST(Faults, HaveTheirCodesAndPlaces) {
  const Diagnostic explodes = faults::explodes("report 'r'", {3, 9}, "of size n");
  EXPECT_EQ(explodes.code, "E3101");
  EXPECT_EQ(explodes.message, "report 'r' explodes");
  EXPECT_EQ(explodes.span, (Span{3, 9}));
  EXPECT_EQ(explodes.label, "of size n");
  EXPECT_EQ(faults::depends_on_dropped("report 'r'", {3, 9}, "1", "", "").code, "E3102");
  const Diagnostic given = faults::cannot_be_given("no 'f' is there");
  EXPECT_EQ(given.code, "E3107");
  EXPECT_FALSE(given.located);
  const Diagnostic vanishes = faults::vanishes({"r", {}, {}, {4, 5}, false}, "n^-1");
  EXPECT_EQ(vanishes.code, "W5301");
  EXPECT_EQ(vanishes.severity, Severity::kWarning);
  EXPECT_EQ(vanishes.message, "report 'r' vanishes like n^-1: its limit is 0");
}

}  // namespace
}  // namespace tplimit
