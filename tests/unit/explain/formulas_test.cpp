/// Formulas of small programs, as text and as LaTeX, and what they evaluate to.

#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tplimit/explain/closed_forms.hpp"
#include "tplimit/explain/writing.hpp"
#include "tplimit/lower/lower.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::explain {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

ir::Program limit_program(const std::string& text) {
  const Source source("test.tp", text);
  const auto ast = parse_syntax(source);
  EXPECT_TRUE(ast.ok()) << render(ast.errors(), source);
  const auto lowered = lower(*ast, source, {});
  EXPECT_TRUE(lowered.ok()) << render(lowered.errors(), source);
  const auto limit = leading_order(erase_identities(lowered->program, true), true);
  EXPECT_TRUE(limit.ok()) << render(limit.errors(), source);
  return limit->program;
}

/// The lines of the formulas, without the introduction.
std::string text_of(const std::string& program, const Selection& selection = {}) {
  Formulas formulas = formulas_of(limit_program(program));
  const std::string text = to_text(formulas, view_of(formulas, selection), {}, "test.tp");
  return text.substr(text.find("\n\n") + 2);
}
std::string latex_of(const std::string& program) {
  Formulas formulas = formulas_of(limit_program(program));
  return to_latex(formulas, view_of(formulas, {}), {}, "test.tp");
}

const char* const kTied = R"(width n
random W : [n, n] ~ normal(0, 4 / n)
random x : [n] ~ normal(0, 1)
y = W @ x
z = W' @ tanh(y)
report r = E(z * x)
)";

TEST(FormulasText, OfOneCorrection) {
  // Z^{W' tanh(y)} = G + s^2 E[tanh'(y)] x with s^2 = 4; G is independent of x.
  const std::string text = text_of(kTied);
  EXPECT_THAT(text, HasSubstr("x ~ N(0, 1)\n"));
  EXPECT_THAT(text, HasSubstr("= G[W x]\n"));
  EXPECT_THAT(text, HasSubstr("= G[W' tanh(y)] + 4 E[tanh'(y)] x\n"));
  EXPECT_THAT(text, HasSubstr("Var(G[W x])        = 4\n"));
  EXPECT_THAT(text, HasSubstr("Var(G[W' tanh(y)]) = 4 E[tanh(y)^2]\n"));
}

TEST(FormulasText, SaysHowEntriesOfMatricesAreDistributed) {
  Formulas formulas = formulas_of(limit_program(kTied));
  ASSERT_EQ(formulas.matrices.size(), 2u);  // by source; x has none
  EXPECT_THAT(to_text(formulas, view_of(formulas, {}), {}, "test.tp"),
              HasSubstr("W: entries N(0, 4/n), Cov(G[W x], G[W y]) = 4 E[x y]\n"));
}

TEST(FormulasText, MeansThatAreKnownAreNumbers) {
  const std::string text = text_of(R"(width n
random x : [n] ~ normal(0, 9)
random y : [n] ~ normal(0, 1)
report odd = E(tanh(x)), square = E(x^2), product = E(x^2 * y^2), apart = E(x * y)
)");
  EXPECT_THAT(text, HasSubstr("odd     = 0\n"));
  EXPECT_THAT(text, HasSubstr("square  = 9\n"));
  EXPECT_THAT(text, HasSubstr("product = 9\n"));  // independent factors
  EXPECT_THAT(text, HasSubstr("apart   = 0\n"));
}

TEST(FormulasText, IndependentMatricesHaveNoCorrection) {
  const std::string text = text_of(R"(width n
random W : [n, n] ~ normal(0, 1 / n)
random V : [n, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
y = W @ x
z = V' @ tanh(y)
report r = E(z * x)
)");
  EXPECT_THAT(text, HasSubstr("= G[V' tanh(y)]\n"));
  EXPECT_THAT(text, HasSubstr("r = 0\n"));
}

TEST(FormulasText, ALowRankUpdateHasItsOwnTerm) {
  // (W + 3 d x' / n) z = W z + 3 E[x z] d.
  const std::string text = text_of(R"(width n
param W : [n, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
random d : [n] ~ normal(0, 1)
W += 3 * outer(d, x) / n
z = tanh(x)
y = W @ z
report r = E(y * d)
)");
  EXPECT_THAT(text, HasSubstr("= G[W z] + 3 E[x z] d\n"));
}

TEST(FormulasText, SelectionsAreByNameAndStep) {
  const std::string program = R"(width n
param u : [n] ~ normal(0, 1), lr = n
for t in 0..2 {
  z = tanh(u)
  q = E(z^2)
  report q
  step sgd(q / 2, lr = 1)
}
)";
  Formulas formulas = formulas_of(limit_program(program));
  EXPECT_EQ(fault_of(formulas, {{"z"}, {{1, 2}}}), "");
  EXPECT_EQ(fault_of(formulas, {{"z", "w"}}), "no value 'w' is in the limit");
  EXPECT_THAT(fault_of(formulas, {{}, {{3, 4}}}), HasSubstr("the program takes 2 steps, from 0"));
  const std::string all = text_of(program), chosen = text_of(program, {{"z"}, {{1, 2}}});
  EXPECT_THAT(chosen, Not(HasSubstr("z(0) =")));
  EXPECT_THAT(chosen, HasSubstr("z(1) = tanh(u(1))\n"));
  EXPECT_THAT(all, HasSubstr("z(0) = tanh(u(0))\n"));
  EXPECT_THAT(all, HasSubstr("u(1) = u(0) - du(0)\n"));
  const View some = view_of(formulas, {{"z"}, {{1, 2}}});
  ASSERT_FALSE(some.definitions.empty());
  bool shown = false;
  for (const std::uint32_t d : some.definitions) {
    const Definition& definition = formulas.calculus.definitions[d];
    if (definition.name == "z") {
      EXPECT_EQ(definition.step, 1u);
      shown = true;
    }
  }
  EXPECT_TRUE(shown);
  EXPECT_LT(some.definitions.size(), view_of(formulas, {}).definitions.size());
}

TEST(FormulasText, OfResidualNetworksDoNotDoubleWithEveryBlock) {
  // Cov(G[W' d]) = E[tanh' tanh'] E[d d] and d = v + sum of such Gaussians: written out to the end,
  // as short sums are, every block would double it.
  const auto length = [](int blocks) {
    return text_of("width n\nconst L = " + std::to_string(blocks) + R"(
param U : [n, 2] ~ normal(0, 1), lr = n
param W : [L, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  h = U @ x
  for l in 0..L { h = h + tanh(W[l] @ h) }
  return v @ h / n
}
loss = mse(f([[1, 0.2], [0.1, 1]]), [1, -1])
step sgd(loss, lr = 0.1)
report f([[1, 0.2], [0.1, 1]])
)")
        .size();
  };
  EXPECT_LT(length(16),
            5 * length(8));  // 3.5: the lines grow with the blocks, as their number does
}

TEST(FormulasLatex, HasTheSameFormulas) {
  const std::string latex = latex_of(R"(width n
random W : [n, n] ~ normal(0, 4 / n)
random x : [n] ~ normal(0, 1)
y = W @ x
s = tanh(y)
z = W' @ s
report r = E(z * x)
)");
  EXPECT_THAT(latex, HasSubstr("\\section*{\\texttt{test.tp}: the limit of infinite width}"));
  EXPECT_THAT(latex, HasSubstr("Z^{y} &= \\hat{Z}^{W\\, x}"));
  EXPECT_THAT(latex, HasSubstr("Z^{s} &= \\tanh\\left(Z^{y}\\right)"));
  EXPECT_THAT(latex, HasSubstr("Z^{z} &= \\hat{Z}^{W^{\\top}\\, s} + 4\\, "
                               "\\mathbb{E}\\left[\\tanh'\\left(Z^{y}\\right)\\right]\\, Z^{x}"));
  EXPECT_THAT(latex, HasSubstr("\\operatorname{Var}(\\hat{Z}^{W^{\\top}\\, s}) &= "
                               "4\\, \\mathbb{E}\\left[\\left(Z^{s}\\right)^{2}\\right]"));
  EXPECT_THAT(latex, ::testing::EndsWith("\\end{document}\n"));
}

TEST(FormulasLatex, EscapesNames) {
  const std::string latex = latex_of(
      "width n\nrandom my_x : [n] ~ normal(0, 1)\nmy_z = tanh(my_x)\nreport my_r = E(my_z^2)\n");
  for (std::size_t at = latex.find("my"); at != std::string::npos; at = latex.find("my", at + 1))
    EXPECT_NE(latex[at + 2], '_') << latex.substr(at, 8);  // a bare _ would be a subscript
}

// ---- back to programs

TEST(Evaluable, UsesNoMatrixFromBothSides) {
  const ir::Program limit = limit_program(kTied);
  Formulas formulas = formulas_of(limit);
  const Evaluable found = evaluable(formulas, limit, {});
  EXPECT_NO_THROW(ir::verify(found.program));
  ASSERT_EQ(found.program.reports.size(), 1u);
  std::vector<int> sides(found.program.sources.size(), 0);
  for (const ir::Node& node : found.program.nodes)
    if (const auto* m = std::get_if<ir::MatMul>(&node.op))
      sides[source_of(found.program, node.in[0]).value] |= m->transposed ? 2 : 1;
  for (const int side : sides) EXPECT_NE(side, 3);
}

// ---- closed forms, from the Gaussian integral

/// E f(a) g(b) for a, b = standard deviation times normals of correlation r, by the trapezoidal
/// rule, which converges beyond all powers for smooth integrands.
template <class F, class G>
double pair_mean(double A, double B, double C, F f, G g) {
  const double a = std::sqrt(A), slope = C / A, rest = std::sqrt(B - C * C / A);
  constexpr double kStep = 0.05, kEnd = 9;
  double sum = 0;
  for (double u = -kEnd; u <= kEnd; u += kStep)
    for (double v = -kEnd; v <= kEnd; v += kStep)
      sum += f(a * u) * g(slope * a * u + rest * v) * std::exp(-(u * u + v * v) / 2);
  return sum * kStep * kStep / (2 * std::numbers::pi);
}

/// Means of the formulas of a program that have closed forms.
std::vector<ClosedForm> closed_forms_of(const std::string& program) {
  Formulas formulas = formulas_of(limit_program(program));
  std::vector<ClosedForm> out;
  for (const Expr& mean : view_of(formulas, {}).means)
    if (auto form = closed_form(formulas.calculus, mean)) out.push_back(*form);
  return out;
}
std::string mean_of(const std::string& body) {
  return "width n\nrandom x : [n] ~ normal(0, 1)\nrandom y : [n] ~ normal(0, 1)\nreport r = E(" +
         body + ")\n";
}

TEST(ClosedForms, OfPairsOfSmoothFunctionsAreTheirIntegrals) {
  const double A = 0.7, B = 1.3, C = -0.4;
  const auto check = [&](const std::string& fn, auto f) {
    const auto forms = closed_forms_of(mean_of(fn + "(x) * " + fn + "(x + y)"));
    ASSERT_EQ(forms.size(), 1u) << fn;
    EXPECT_TRUE(forms[0].pair) << fn;
    EXPECT_NEAR(forms[0].value(A, B, C), pair_mean(A, B, C, f, f), 1e-10) << fn;
    EXPECT_NEAR(forms[0].value(B, A, C), forms[0].value(A, B, C), 1e-14) << fn;  // symmetric
  };
  check("erf", [](double x) { return std::erf(x); });
  check("sin", [](double x) { return std::sin(x); });
  check("cos", [](double x) { return std::cos(x); });
  check("exp", [](double x) { return std::exp(x); });
}

TEST(ClosedForms, OfPairsWithKinksAtKnownCorrelations) {
  const auto value = [](const std::string& fn, double r) {
    const auto forms = closed_forms_of(mean_of(fn + "(x) * " + fn + "(x + y)"));
    return forms.size() == 1 ? forms[0].value(1, 1, r) : std::nan("");
  };
  // Independent: product of the means; equal: mean square; opposite: 0 or minus it.
  EXPECT_NEAR(value("step", 0), 0.25, 1e-15);
  EXPECT_NEAR(value("step", 1), 0.5, 1e-15);
  EXPECT_NEAR(value("step", -1), 0, 1e-15);
  EXPECT_NEAR(value("sign", 0), 0, 1e-15);
  EXPECT_NEAR(value("sign", 1), 1, 1e-15);
  EXPECT_NEAR(value("sign", -1), -1, 1e-15);
  EXPECT_NEAR(value("relu", 0), 1 / (2 * std::numbers::pi), 1e-15);
  EXPECT_NEAR(value("relu", 1), 0.5, 1e-15);
  EXPECT_NEAR(value("relu", -1), 0, 1e-15);
  EXPECT_NEAR(value("abs", 0), 2 / std::numbers::pi, 1e-15);
  EXPECT_NEAR(value("abs", 1), 1, 1e-15);
  EXPECT_NEAR(value("abs", -1), 1, 1e-15);
}

TEST(ClosedForms, OfOneFunctionAndOfSquares) {
  const double C = 0.8;
  const auto one = [](double) { return 1.0; };
  const auto mean = [&](auto f) { return pair_mean(C, 1, 0, f, one); };
  const auto value = [&](const std::string& body) {
    const auto forms = closed_forms_of(mean_of(body));
    return forms.size() == 1 && !forms[0].pair ? forms[0].value(C, C, C) : std::nan("");
  };
  EXPECT_NEAR(value("exp(x)"), mean([](double x) { return std::exp(x); }), 1e-10);
  EXPECT_NEAR(value("cos(x)"), mean([](double x) { return std::cos(x); }), 1e-10);
  EXPECT_NEAR(value("gelu(x)"),
              mean([](double x) { return x * std::erfc(-x / std::numbers::sqrt2) / 2; }), 1e-10);
  EXPECT_NEAR(value("erf(x)^2"), mean([](double x) { return std::erf(x) * std::erf(x); }), 1e-10);
  EXPECT_NEAR(value("sin(x)^2"), mean([](double x) { return std::sin(x) * std::sin(x); }), 1e-10);
  EXPECT_NEAR(value("cos(x)^2"), mean([](double x) { return std::cos(x) * std::cos(x); }), 1e-10);
  EXPECT_NEAR(value("relu(x)"), std::sqrt(C / (2 * std::numbers::pi)), 1e-15);
  EXPECT_NEAR(value("abs(x)"), std::sqrt(2 * C / std::numbers::pi), 1e-15);
}

TEST(ClosedForms, NoneWhereNoneIsKnown) {
  for (const std::string body :
       {"tanh(x) * tanh(x + y)", "sin(x) * cos(x + y)", "exp(x^2 / 8)", "relu(x) * x * y^2"})
    EXPECT_TRUE(closed_forms_of(mean_of(body)).empty()) << body;
}

}  // namespace
}  // namespace tplimit::explain
