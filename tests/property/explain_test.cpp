/// The limit as formulas: programs evaluated by their formulas alone, with an independent matrix for every product and all
/// correction terms written out, give what the lazy Gaussian matrices give.

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/property/random_program.hpp"
#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

using ::testing::HasSubstr;

LimitFormulas formulas_of(const Module& module) {
  auto formulas = limit_formulas(module);
  if (!formulas) throw std::runtime_error(render(formulas.errors(), module.source) + "\n" + module.source.text());
  return std::move(*formulas);
}

LimitResult by_formulas(const Module& module, const EvaluateOptions& options) {
  LimitFormulas formulas = formulas_of(module);
  auto result = evaluate_formulas(formulas, {}, options);
  if (!result) throw std::runtime_error(render(result.errors(), module.source) + "\n" + module.source.text());
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
    const auto error = [&](const ReportResult& r, std::size_t j) { return r.error.empty() ? 0.0 : r.error[j]; };
    for (std::size_t j = 0; j < a.reports[k].value.size(); ++j) {
      const double own = std::hypot(error(a.reports[k], j), error(b.reports[k], j));
      EXPECT_NEAR(a.reports[k].value[j], b.reports[k].value[j], worst * own + 1e-9 * (1 + std::abs(a.reports[k].value[j]))) << a.reports[k].name << ' ' << j << ", error " << own;
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
    const std::string text = random_training(dice);
    SCOPED_TRACE(fmt::format("seed {}\n{}", seed, text));
    const Module module = parsed(text);
    expect_same(limit_of(module, particles(8192, 16, seed)), by_formulas(module, particles(8192, 16, seed + 1)));
  }
}

}  // namespace
}  // namespace tplimit::test
