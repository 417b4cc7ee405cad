/// The limit as formulas: programs evaluated by their formulas alone, with an independent matrix
/// for every product and all correction terms written out, give what the lazy Gaussian matrices
/// give.

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/property/random_program.hpp"
#include "tests/support/run.hpp"
#include "tplimit/explain/closed_forms.hpp"

namespace tplimit::test {
namespace {

using ::testing::HasSubstr;

LimitFormulas formulas_of(const Module& module) {
  auto formulas = limit_formulas(module);
  if (!formulas)
    throw std::runtime_error(render(formulas.errors(), module.source) + "\n" +
                             module.source.text());
  return std::move(*formulas);
}

LimitResult by_formulas(const Module& module, const EvaluateOptions& options) {
  LimitFormulas formulas = formulas_of(module);
  auto result = evaluate_formulas(formulas, {}, options);
  if (!result)
    throw std::runtime_error(render(result.errors(), module.source) + "\n" + module.source.text());
  return std::move(*result);
}

std::string text_of(const std::string& program, const explain::Selection& selection = {}) {
  LimitFormulas formulas = formulas_of(parsed(program));
  return to_text(formulas.formulas, view_of(formulas.formulas, selection), {}, "test.tp");
}

/// Scores of the differences; both sides have errors of 15 degrees of freedom.
void expect_same(const LimitResult& a, const LimitResult& b, double worst = 6.5) {
  ASSERT_EQ(a.reports.size(), b.reports.size());
  for (std::size_t k = 0; k < a.reports.size(); ++k) {
    ASSERT_EQ(a.reports[k].value.size(), b.reports[k].value.size());
    const auto error = [&](const ReportResult& r, std::size_t j) {
      return r.error.empty() ? 0.0 : r.error[j];
    };
    for (std::size_t j = 0; j < a.reports[k].value.size(); ++j) {
      const double own = std::hypot(error(a.reports[k], j), error(b.reports[k], j));
      EXPECT_NEAR(a.reports[k].value[j], b.reports[k].value[j],
                  worst * own + 1e-9 * (1 + std::abs(a.reports[k].value[j])))
          << a.reports[k].name << ' ' << j << ", error " << own;
    }
  }
}

double more() {
  const char* factor = std::getenv("TPLIMIT_MORE");
  return factor ? std::strtod(factor, nullptr) : 1;
}

TEST(Formulas, OfRandomProgramsEvaluateToTheirLimits) {
  const auto programs = static_cast<std::uint64_t>(40 * more());
  for (std::uint64_t seed = 0; seed < programs; ++seed) {
    Dice dice(3000 + seed);
    const std::string text = random_training(dice, seed % 8 == 7);
    SCOPED_TRACE(fmt::format("seed {}\n{}", seed, text));
    const Module module = parsed(text);
    expect_same(limit_of(module, particles(8192, 16, seed)),
                by_formulas(module, particles(8192, 16, seed + 1)));
    // And all of them can be written.
    LimitFormulas formulas = formulas_of(module);
    const explain::View view = view_of(formulas.formulas, {});
    EXPECT_THAT(to_text(formulas.formulas, view, {}, "test.tp"),
                HasSubstr("the limit of infinite width"));
    EXPECT_THAT(to_latex(formulas.formulas, view, {}, "test.tp"),
                ::testing::EndsWith("\\end{document}\n"));
    EXPECT_THAT(to_json(formulas.formulas, view, {}, program_info(module)),
                ::testing::StartsWith("{"));
  }
}

std::string program_text(const std::string& name) {
  auto source = read_source(std::string(TPLIMIT_SOURCE_DIR) + "/programs/" + name);
  return source->text();
}

const char* const kBare = R"(width n
random W : [n, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
y = W @ x
u = W' @ tanh(y)
report E(u * x)
)";

const char* const kResidual = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [2, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  h = U @ x
  for l in 0..2 { h = h + W[l] @ tanh(h) / sqrt(2) }
  return v @ h / n
}
for t in 0..3 {
  out = f(X)
  report out
  step sgd(mse(out, y), lr = 0.5)
}
)";

TEST(Formulas, OfTheSimplestCorrectionReadAsInThePaper) {
  const std::string text = text_of(kBare);
  EXPECT_THAT(text, HasSubstr("= G[W' tanh(y)] + E[tanh'(y)] x\n"));
  EXPECT_THAT(text, HasSubstr("Var(G[W' tanh(y)]) = E[tanh(y)^2]\n"));
}

TEST(Formulas, OfTwoHiddenLayersHaveTheCorrectionOfTheSameStep) {
  const std::string program = R"(width n
param U : [n] ~ normal(0, 1), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
data xi = [1, -1]
data y = [1, -1]
for t in 0..2 {
  z = tanh(U * xi[t])
  h = W @ z
  g = tanh(h)
  out = v @ g / n
  report out
  step sgd((out - y[t])^2 / 2, lr = 1)
}
)";
  const std::string text = text_of(program);
  // Step 0: v is independent of h and has mean 0, so E[v tanh''(h)] vanishes.
  EXPECT_THAT(text, HasSubstr("dz(0) = G[W' dh(0)]"));
  // Step 1: earlier backward products correct the forward one, and both forward products the
  // backward one.
  EXPECT_THAT(text,
              HasSubstr("= G[W z(1)] + E[tanh'(U(1)) tanh'(U(0))] dh(0) - E[z(0) z(1)] dh(0)\n"));
  EXPECT_THAT(text, HasSubstr("= G[W' dh(1)] + E[∂dh(1)/∂G[W z(0)]] z(0) + E[dg(1) tanh''(h(1))] "
                              "z(1) - E[dh(0) dh(1)] z(0)"));
}

TEST(Formulas, OfRecurrentResidualAndTiedNetworksEvaluateToTheirLimits) {
  for (const std::string& text :
       {program_text("architectures/rnn_tied.tp"),
        program_text("architectures/tied_autoencoder.tp"), program_text("start/netsor_tied.tp"),
        program_text("architectures/two_widths.tp"), std::string(kResidual),
        one_sample_a_step("tanh(z)", "1", 6), one_sample_a_step("relu(z)", "0.5", 4),
        one_sample_a_step("abs(z)", "0.3", 3)}) {
    SCOPED_TRACE(text);
    LowerOptions shorter;
    if (text.find("const T = 5") != std::string::npos ||
        text.find("const T = 4") != std::string::npos)
      shorter.constants = {{"T", "2"}};
    const Module module = parsed(text, shorter);
    expect_same(limit_of(module, particles(16384, 16, 1)),
                by_formulas(module, particles(16384, 16, 2)));
  }
}

TEST(Formulas, ReluHasBackwardCorrectionsFromItsKink) {
  LimitFormulas formulas = formulas_of(parsed(one_sample_a_step("relu(z)", "0.5", 3)));
  const explain::View view = view_of(formulas.formulas, {});
  const auto numbers = numbers_of(formulas, view.numbers, particles(16384, 8));
  ASSERT_TRUE(numbers.ok());
  int kinked = 0, resolved = 0;
  for (const explain::Number& n : *numbers) {
    if (n.formula->kind != explain::Kind::kRef ||
        !formulas.formulas.calculus.definitions[n.formula->ref].kinked)
      continue;
    ++kinked;
    ASSERT_TRUE(n.possible);
    resolved += std::abs(n.value[0]) > 5 * n.error[0] ? 1 : 0;
  }
  EXPECT_GT(kinked, 2);
  EXPECT_GT(resolved, kinked / 2);
  EXPECT_THAT(to_text(formulas.formulas, view, *numbers, ""), HasSubstr("δ("));
}

TEST(Formulas, NumbersOfCoefficientsAreKnownMoments) {
  LimitFormulas formulas = formulas_of(parsed(kBare));
  const explain::View view = view_of(formulas.formulas, {});
  const auto numbers = numbers_of(formulas, view.numbers);
  ASSERT_TRUE(numbers.ok());
  std::map<std::string, double> by_text;
  for (const explain::Number& n : *numbers)
    by_text[to_text(formulas.formulas, {{}, {}, {}}, {n}, "")] = n.value[0];
  bool slope = false, square = false;
  for (const auto& [text, value] : by_text) {
    if (text.find("E[tanh'(y)] ") != std::string::npos)
      slope = std::abs(value - 0.60570550960217) < 1e-12;  // docs/sources.md
    if (text.find("E[tanh(y)^2]") != std::string::npos)
      square = std::abs(value - 0.39429449039783) < 1e-12;
  }
  EXPECT_TRUE(slope);
  EXPECT_TRUE(square);
}

TEST(Formulas, SelectionsShowOnlyWhatWasAskedFor) {
  explain::Selection selection;
  selection.names = {"h"};
  selection.steps = {1, 2};
  const std::string text = text_of(kResidual, selection);
  EXPECT_THAT(text, HasSubstr("step 1 (t = 1)"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("step 0 (t = 0)\n")));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("dv(")));
}

TEST(Formulas, LatexIsBalanced) {
  for (const std::string& program :
       {std::string(kBare), std::string(kResidual), one_sample_a_step("relu(z)", "0.5", 2)}) {
    LimitFormulas formulas = formulas_of(parsed(program));
    const std::string latex =
        to_latex(formulas.formulas, view_of(formulas.formulas, {}), {}, "test_1.tp");
    int depth = 0;
    for (std::size_t k = 0; k < latex.size(); ++k) {
      if (k > 0 && latex[k - 1] == '\\') continue;
      depth += latex[k] == '{' ? 1 : latex[k] == '}' ? -1 : 0;
      ASSERT_GE(depth, 0);
    }
    EXPECT_EQ(depth, 0);
    const auto count = [&](const std::string& what) {
      std::size_t found = 0;
      for (auto at = latex.find(what); at != std::string::npos; at = latex.find(what, at + 1))
        ++found;
      return found;
    };
    EXPECT_EQ(count("\\begin{align*}"), count("\\end{align*}"));
    EXPECT_EQ(count("\\left"), count("\\right"));
    EXPECT_TRUE(std::all_of(latex.begin(), latex.end(), [](char c) {
      return static_cast<unsigned char>(c) < 128;
    }));  // no letter that LaTeX does not know
  }
}

TEST(Formulas, ClosedFormsAreTheMeansTheyStandFor) {
  std::size_t found = 0;
  for (const char* fn :
       {"relu", "abs", "erf", "sin", "cos", "exp", "step", "sign", "gelu", "sigmoid"}) {
    SCOPED_TRACE(fn);
    const std::string text = fmt::format(R"(width n
data X = [[1, 0.5], [-0.3, 0.8], [0.4, -0.6]]
param U : [n, 2] ~ normal(0, 0.7)
h = U @ X
z = {0}(h)
report gram(z), E(z)
L = E(sum({0}(0.5 * h), axis = 0))
d = grad(L, U) * n
report gram(d)
report E(d)
)",
                                         fn);
    LimitFormulas formulas = formulas_of(parsed(text));
    const explain::View view = view_of(formulas.formulas, {});
    std::vector<explain::Expr> means, wanted;
    std::vector<explain::ClosedForm> forms;
    for (const explain::Expr& e : view.means) {
      const auto form = closed_form(formulas.formulas.calculus, e);
      if (!form) continue;
      means.push_back(e);
      forms.push_back(*form);
      for (const auto& [x, y] :
           {std::pair{form->a, form->a}, std::pair{form->b, form->b}, std::pair{form->a, form->b}})
        wanted.push_back(*formulas.formulas.calculus.gaussian_covariance(x, y));
    }
    const auto values = numbers_of(formulas, means), moments = numbers_of(formulas, wanted);
    ASSERT_TRUE(values.ok()) << values.errors()[0].message;
    ASSERT_TRUE(moments.ok()) << moments.errors()[0].message;
    for (std::size_t k = 0; k < means.size(); ++k) {
      ++found;
      // Entry by entry: the letters of a moment are some of those of the mean.
      const auto axes = explain::free_symbols(means[k]);
      const auto entry = [&](const explain::Number& moment, std::size_t at) {
        std::size_t position = 0;
        for (const explain::Symbol& s : explain::free_symbols(moment.formula)) {
          std::size_t inner = 1;
          bool met = false;
          for (const explain::Symbol& t : axes) {
            if (met) inner *= static_cast<std::size_t>(t.size);
            met = met || t == s;
          }
          position = position * static_cast<std::size_t>(s.size) +
                     at / inner % static_cast<std::size_t>(s.size);
        }
        return moment.value[position];
      };
      for (std::size_t at = 0; at < (*values)[k].value.size(); ++at)
        EXPECT_NEAR((*values)[k].value[at],
                    forms[k].value(entry((*moments)[3 * k], at), entry((*moments)[3 * k + 1], at),
                                   entry((*moments)[3 * k + 2], at)),
                    1e-9)
            << forms[k].text << ' ' << at;
    }
  }
  EXPECT_GE(found, 12u);
}

// ---- the algebra
// -------------------------------------------------------------------------------------

class CalculusTest : public ::testing::Test {
 protected:
  using Index = explain::Index;
  std::uint32_t gaussian(std::uint32_t family, std::vector<std::int64_t> dims, bool source = true) {
    explain::Definition d;
    d.kind = source ? explain::Definition::Kind::kSource : explain::Definition::Kind::kGaussian;
    d.axes = c.fresh(dims);
    d.width = true;
    d.family = family;
    d.families = {family};
    d.name = fmt::format("g{}", family);
    c.definitions.push_back(d);
    return static_cast<std::uint32_t>(c.definitions.size() - 1);
  }
  static ir::Map map(ir::Fn fn) { return {fn, 0}; }
  std::string key(const explain::Expr& e) { return explain::Calculus::key(e); }
  explain::Calculus c;
};

TEST_F(CalculusTest, SumsOverDeltasPickOneTerm) {
  const auto g = gaussian(0, {4});
  const auto i = c.fresh(4), j = c.fresh(4), half = c.fresh(2);
  const auto gi = c.ref(g, {Index(i)}), gj = c.ref(g, {Index(j)});
  EXPECT_EQ(key(c.sum(j, c.mul({c.delta(Index(i), Index(j)), gj}))), key(gi));
  EXPECT_EQ(key(c.sum(j, c.mul({c.delta(Index::number(2), Index(j)), gj}))),
            key(c.ref(g, {Index::number(2)})));
  // An index of a part: 0 beyond it, so the sum must stay.
  EXPECT_EQ(c.sum(half, c.mul({c.delta(Index(i), Index(half)), c.ref(g, {Index(half)})}))->kind,
            explain::Kind::kSum);
  EXPECT_EQ(key(c.sum(i, gj)), key(c.mul({c.number(4), gj})));
}

TEST_F(CalculusTest, MeansOfIndependentOddAndGaussianFactors) {
  const auto g = gaussian(0, {3}), v = gaussian(2, {});
  const auto i = c.fresh(3), j = c.fresh(3);
  const auto gi = c.ref(g, {Index(i)}), gj = c.ref(g, {Index(j)}), w = c.ref(v, {});
  EXPECT_EQ(key(c.mean(c.mul({gi, gj}))), key(c.delta(Index(i), Index(j))));
  EXPECT_TRUE(
      explain::Calculus::is_zero(c.mean(c.mul({w, c.function(map(ir::Fn::kTanh), 1, gi)}))));
  EXPECT_TRUE(explain::Calculus::is_zero(c.mean(c.function(map(ir::Fn::kTanh), 2, gi))));
  EXPECT_TRUE(
      explain::Calculus::is_zero(c.mean(c.function(map(ir::Fn::kRelu), 3, gi))));  // delta' is odd
  EXPECT_EQ(key(c.mean(c.function(map(ir::Fn::kRelu), 1, gi))), key(c.number(0.5)));
  EXPECT_EQ(key(c.mean(c.mul({c.power(w, 2), c.function(map(ir::Fn::kTanh), 1, gi)}))),
            key(c.mean(c.function(map(ir::Fn::kTanh), 1, gi))));
}

TEST_F(CalculusTest, DerivativesKeepDeltas) {
  const auto g = gaussian(0, {3}, false);
  const auto i = c.fresh(3), j = c.fresh(3);
  const auto gi = c.ref(g, {Index(i)});
  const auto slope = c.derivative(
      c.derivative(c.function(map(ir::Fn::kRelu), 0, gi), g, {Index(j)}), g, {Index(j)});
  EXPECT_TRUE(explain::Calculus::kinked(slope));
  EXPECT_EQ(key(slope),
            key(c.mul({c.delta(Index(i), Index(j)), c.function(map(ir::Fn::kStep), 1, gi)})));
  EXPECT_FALSE(explain::Calculus::kinked(
      c.derivative(c.function(map(ir::Fn::kTanh), 1, gi), g, {Index(j)})));
}

}  // namespace
}  // namespace tplimit::test
