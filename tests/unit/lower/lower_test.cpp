/// From text to IR, and what is said where there is none.

#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tplimit/lower/lower.hpp"
#include "tplimit/lower/parametrization.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit {
namespace {

Result<Lowered> lowered(const std::string& text, const LowerOptions& options = {}) {
  const Source source("test.tp", text);
  const auto ast = parse_syntax(source);
  if (!ast) return ast.errors();
  return lower(*ast, source, options);
}

/// What outputs need of it, identities in place or not.
std::string ir_of(const std::string& text, bool identities = false) {
  const auto found = lowered(text);
  if (!found) return render(found.errors(), Source("test.tp", text));
  verify(found->program);
  return to_text(identities ? found->program : erase_identities(found->program));
}

TEST(Lower, VectorsAndMeans) {
  EXPECT_EQ(ir_of("width n\n"
                  "random x : [n] ~ normal(0, 4)\n"
                  "report r = E(tanh(x)^2)\n"),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = scale 2 1 %0\n"
            "%2 [n] = tanh %1\n"
            "%3 [n] = power 2 %2\n"
            "%4 [] = average %3\n"
            "report r = %4\n");
}

TEST(Lower, NameOfTheWidthIsThatOfTheText) {
  const std::string text = ir_of("width m\nrandom x : [m] ~ normal(0, 1)\nreport r = E(x^2)\n");
  EXPECT_NE(text.find("%0 [m] = standard_normal x\n"), std::string::npos) << text;
}

/// Constants of the report `X`, or the errors.
std::string data_of(const std::string& text, LowerOptions options) {
  options.base_directory = TPLIMIT_SOURCE_DIR "/tests/golden/bad/data";
  const auto found = lowered(text + "report X\n", options);
  if (!found) return render(found.errors(), Source("test.tp", text));
  return to_text(erase_identities(found->program));
}

TEST(Lower, ArraysInsteadOfData) {
  LowerOptions options;
  options.data_arrays = {{"X", {{2, 1}, {0.1, -7}}}};
  const std::string expected = data_of("data X = [[0.1], [-7]]\n", {});
  EXPECT_NE(expected.find("{0.1, -7}"), std::string::npos) << expected;
  EXPECT_EQ(data_of("data X = [1, 2, 3]\n", options), expected);
  EXPECT_EQ(data_of("data X = npy(\"none.npy\", rows = 0..9)\n", options), expected)
      << "the file need not exist";
  options.data_arrays["y"] = {{1}, {3}};
  EXPECT_EQ(data_of("data X, y = csv(\"none.csv\", target = \"b\")\n", options), expected);
}

TEST(Lower, ArraysThatCannotBeData) {
  const auto message = [](const Array& array, const std::string& name = "X") {
    LowerOptions options;
    options.data_arrays = {{name, array}};
    return data_of("data X = [1, 2]\n", options);
  };
  EXPECT_EQ(message({{1}, {3}}, "Z"),
            "test.tp: error[E2115]: an array is given for 'Z', but the program has no such data\n"
            "help: its data: X\n");
  EXPECT_NE(message({{2}, {1, std::numeric_limits<double>::quiet_NaN()}})
                .find("test.tp:1:6: error[E2124]"),
            std::string::npos);
  EXPECT_NE(message({{2, 0}, {}}).find("error[E2124]: data without values"), std::string::npos);
}

TEST(Lower, FilesInsteadOfLiterals) {
  const std::string folder = TPLIMIT_SOURCE_DIR "/tests/golden/bad/data/";
  LowerOptions options;
  options.data_files = {{"X", folder + "good.npy"}};
  const std::string expected = data_of("data X = npy(\"good.npy\")\n", {});
  EXPECT_NE(expected.find("constant"), std::string::npos) << expected;
  EXPECT_EQ(data_of("data X = [[1]]\n", options), expected);
  options.data_files = {{"X", folder + "nan.npy"}};
  EXPECT_NE(data_of("data X = [[1]]\n", options).find("test.tp:1:10: error[E5105]"),
            std::string::npos);
}

TEST(Lower, AMatrixKeepsItsScaleApart) {
  EXPECT_EQ(ir_of("width n\n"
                  "random W : [n, n] ~ normal(0, 9 / n)\n"
                  "random x : [n] ~ normal(0, 1)\n"
                  "report r = E((W @ x) * (W' @ x))\n"),
            "%0 [] = constant {3}\n"
            "%1 matrix = gaussian_matrix W\n"
            "%2 matrix = scale_matrix %1 %0\n"
            "%3 [n] = standard_normal x\n"
            "%4 [n] = matmul %2 %3\n"
            "%5 [n] = matmul_transposed %2 %3\n"
            "%6 [n] = mul %4 %5\n"
            "%7 [] = average %6\n"
            "report r = %7\n");
}

TEST(Lower, AScalarProductIsNTimesAMean) {
  // v @ x / n: the powers n and 1/n meet.
  EXPECT_EQ(ir_of("width n\n"
                  "random x : [n] ~ normal(0, 1)\n"
                  "random v : [n] ~ normal(0, 1)\n"
                  "report r = v @ x / n, s = v @ x / sqrt(n)\n"),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = standard_normal v\n"
            "%2 [] = contract_average batch=0 contracted=0 %0 %1\n"
            "%3 [] = scale 1 n^(1/2) %2\n"
            "report r = %2\n"
            "report s = %3\n");
}

TEST(Lower, LoopsAreUnrolledAndReportsAreSeries) {
  EXPECT_EQ(ir_of("width n\n"
                  "random x : [n] ~ normal(0, 1)\n"
                  "h = x\n"
                  "for t in 1..3 {\n"
                  "  h = tanh(h)\n"
                  "  report r = E(h)\n"
                  "}\n"),
            "%0 [n] = standard_normal x\n"
            "%1 [n] = tanh %0\n"
            "%2 [] = average %1\n"
            "%3 [n] = tanh %1\n"
            "%4 [] = average %3\n"
            "report r[1] = %2\n"
            "report r[2] = %4\n");
}

TEST(Lower, AStepIsAChangeOfAParameter) {
  // loss = E(u^2) / 2: d/du = u / n, times lr n: u - 0.5 u.
  const std::string text =
      "width n\n"
      "param u : [n] ~ normal(0, 1), lr = n\n"
      "step sgd(E(u^2) / 2, lr = 0.5)\n"
      "report r = E(u)\n";
  const std::string whole = ir_of(text, true);
  EXPECT_NE(whole.find("= parameter 0 %"), std::string::npos) << whole;
  EXPECT_NE(whole.find("= change 0 %"), std::string::npos) << whole;
  EXPECT_EQ(ir_of(text),
            "%0 [n] = standard_normal u\n"
            "%1 [n] = scale -0.5 1 %0\n"
            "%2 [n] = add %0 %1\n"
            "%3 [] = average %2\n"
            "report r = %3\n");
}

TEST(Lower, AMatrixUpdateStaysOfLowRank) {
  const std::string text = ir_of(
      "width n\n"
      "param W : [n, n] ~ normal(0, 1 / n)\n"
      "random x : [n] ~ normal(0, 1)\n"
      "random d : [n] ~ normal(0, 1)\n"
      "W += 2 * outer(d, x) / n\n"
      "report r = E(d * (W @ x))\n");
  EXPECT_NE(text.find(" matrix = update_matrix "), std::string::npos) << text;
  EXPECT_EQ(text.find("[n, n]"), std::string::npos) << text;
}

TEST(Lower, ModelsAreInlinedOverBatchAxes) {
  const std::string text = ir_of(
      "width n\n"
      "data X = [[1, 0.5], [-0.3, 1]]\n"
      "random U : [n, 2] ~ normal(0, 1)\n"
      "model f(x) { return tanh(U @ x) }\n"
      "report K = gram(f(X)), one = E(f(X[1])^2)\n");
  EXPECT_NE(text.find("[2, n] = tanh"), std::string::npos) << text;
  EXPECT_NE(text.find("[2, 2] = contract_average batch=0 contracted=0"), std::string::npos) << text;
  EXPECT_NE(text.find("[n] = tanh"), std::string::npos) << text;
}

TEST(Lower, ConstantsCanBeSetFromOutside) {
  LowerOptions options;
  options.constants = {{"c", "7"}};
  const auto found = lowered(
      "width n\nconst c = 2\nrandom x : [n] ~ normal(0, 1)\n"
      "report r = c * E(x)\n",
      options);
  ASSERT_TRUE(found.ok());
  const ir::Program program = erase_identities(found->program);
  EXPECT_NE(to_text(program).find("scale 7 1"), std::string::npos);
  options.constants = {{"d", "7"}};
  const auto unknown = lowered(
      "width n\nconst c = 2\nrandom x : [n] ~ normal(0, 1)\n"
      "report r = c * E(x)\n",
      options);
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.errors()[0].code, "E2114");
}

TEST(Lower, AVectorOfASecondWidthIsSeveralVectors) {
  // A mean over m = 2 n coordinates is the mean of two means.
  EXPECT_EQ(ir_of("width n, m = 2 n\n"
                  "random x : [m] ~ normal(0, 1)\n"
                  "report r = E(x^2)\n"),
            "%0 [n] = standard_normal x.1\n"
            "%1 [n] = standard_normal x.2\n"
            "%2 [n] = power 2 %0\n"
            "%3 [n] = power 2 %1\n"
            "%4 [] = average %2\n"
            "%5 [] = average %3\n"
            "%6 [] = add %4 %5\n"
            "%7 [] = constant {2}\n"
            "%8 [] = div %6 %7\n"
            "report r = %8\n");
}

TEST(Lower, KnowsTheTextBehindItsValues) {
  const auto found = lowered(
      "width n\nparam u : [n] ~ normal(0, 1), lr = n\nz = tanh(u)\n"
      "step sgd(mse([E(z)], [1]), lr = 1)\nreport r = E(z)\n");
  ASSERT_TRUE(found.ok());
  const ir::Program& program = found->program;
  ASSERT_EQ(program.variables.size(), 1u);
  EXPECT_EQ(program.variables[0].name, "u");
  EXPECT_TRUE(program.variables[0].trained);
  EXPECT_EQ(program.variables[0].rate, Exponent(1));
  EXPECT_EQ(program.steps.size(), 1u);
  ASSERT_EQ(program.predictions.size(), 1u);
  EXPECT_EQ(program.predictions[0].name, "[E(z)]");
}

/// "E2102 at 3:12".
std::string first_error(const std::string& text) {
  const auto found = lowered(text);
  if (found.ok()) return "none";
  const Diagnostic& d = found.errors()[0];
  const Location at = Source("test.tp", text).locate(d.span.begin);
  return fmt::format("{} at {}:{}", d.code, at.line, at.column);
}

TEST(LowerErrors, StandWhereTheMistakeIs) {
  const std::string start = "width n\nrandom x : [3, n] ~ normal(0, 1)\n";
  EXPECT_EQ(first_error("random x : [n] ~ normal(0, 1)\nreport E(x)\n"), "E2103 at 1:13");
  EXPECT_EQ(first_error(start + "report E(y)\n"), "E2103 at 3:10");
  EXPECT_EQ(first_error(start + "report E(x[3])\n"), "E2208 at 3:12");
  EXPECT_EQ(first_error(start + "report E(tanh(x, x))\n"), "E2109 at 3:10");
  EXPECT_EQ(first_error(start + "y = E(x)\nreport y + [1, 2]\n"), "E2202 at 4:8");
  EXPECT_EQ(first_error(start + "report E(x)\nwidth m\n"), "E2118 at 4:1");
  EXPECT_EQ(first_error(start), "E2601 at 1:1");
}

TEST(Parametrizations, AllHaveNamesAndKnowAllRoles) {
  for (const std::string& name : known_parametrizations()) {
    const auto p = known_parametrization(name, false);
    ASSERT_TRUE(p) << name;
    EXPECT_EQ(p->name, name);
    for (const Role role : {Role::kInput, Role::kHidden, Role::kOutput, Role::kBias}) {
      EXPECT_EQ(role_from(to_string(role)), role);
      // Without a width axis nothing depends on the width but, maybe, the rate.
      EXPECT_EQ(p->of(role, false).a, Exponent(0));
      EXPECT_EQ(p->of(role, false).b, Exponent(0));
    }
    // A bias is an input weight.
    EXPECT_EQ(p->of(Role::kBias, true).a, p->of(Role::kInput, true).a);
    EXPECT_EQ(p->of(Role::kBias, true).c, p->of(Role::kInput, true).c);
  }
  EXPECT_FALSE(known_parametrization("mean_field", true));
  EXPECT_FALSE(known_parametrization("none", false));
  EXPECT_FALSE(role_from("middle"));
}

TEST(Parametrizations, LeaveFiniteParametersWithoutARoleAsTheyAre) {
  const std::string text = "param s : [] ~ normal(2, 0)\nstep adam(s^2, lr = 0.1)\nreport s\n";
  EXPECT_EQ(ir_of("width n\nparametrization mup\n" + text), ir_of("width n\n" + text));
}

TEST(Parametrizations, ForwardPassesAreStable) {
  // With entries of size n^-(a+b): input O(1), hidden n^(-1/2), output not above n^(-1/2), or,
  // where the sum over n coordinates is not cancelled, n^-1.
  for (const std::string name : {"mup", "ntk", "standard"}) {
    const auto p = *known_parametrization(name, false);
    EXPECT_EQ(p.of(Role::kInput, true).a + p.of(Role::kInput, true).b, Exponent(0)) << name;
    EXPECT_EQ(p.of(Role::kHidden, true).a + p.of(Role::kHidden, true).b, Exponent(1, 2)) << name;
    EXPECT_GE(p.of(Role::kOutput, true).a + p.of(Role::kOutput, true).b, Exponent(1, 2)) << name;
  }
}

TEST(Parametrizations, AShiftDoesNotChangeTraining) {
  // W = n^-a w, w ~ n^-b, rate n^-c: W has size n^-(a+b), and an SGD step moves it by n^-(2a+c).
  const Exponent t(1, 2);
  for (const std::string& name : known_parametrizations())
    for (const Role role : {Role::kInput, Role::kHidden, Role::kOutput}) {
      const Abc x = known_parametrization(name, false)->of(role, true), y = shifted(x, t, false);
      EXPECT_EQ(x.a + x.b, y.a + y.b);
      EXPECT_EQ(x.a + x.a + x.c, y.a + y.a + y.c);
      // Entrywise: gradient of w is n^-a g, Q(n^d n^-a g) stays, and W moves by n^-(a+c).
      const Abc z = shifted(x, t, true);
      EXPECT_EQ(x.d - x.a, z.d - z.a);
      EXPECT_EQ(x.a + x.c, z.a + z.c);
    }
}

TEST(Parametrizations, LargeFirstRatesDependOnDepth) {
  const auto p = *known_parametrization("ip_llr", false);
  EXPECT_EQ(p.first_rate(Role::kHidden, true, 2), Exponent(-2));
  EXPECT_EQ(p.first_rate(Role::kOutput, true, 2), Exponent(-3, 2));
  EXPECT_EQ(p.first_rate(Role::kHidden, false, 2), p.finite_rate);
  const auto later = *known_parametrization("ip", false);
  EXPECT_EQ(later.first_rate(Role::kHidden, true, 2), later.of(Role::kHidden, true).c);
}

}  // namespace
}  // namespace tplimit
