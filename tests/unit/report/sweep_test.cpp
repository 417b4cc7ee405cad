#include "tplimit/report/sweep.hpp"

#include <cmath>

#include <gtest/gtest.h>

namespace tplimit {
namespace {

ReportResult report_of(std::vector<double> values, std::vector<double> errors) {
  ReportResult r;
  r.name = "loss";
  if (values.size() > 1) r.shape = {static_cast<std::int64_t>(values.size())};
  r.value = std::move(values);
  r.error = std::move(errors);
  return r;
}

Sweep sweep_of(const std::vector<std::pair<double, double>>& values) {
  Sweep out{{{"eta", {}}}, {}, SweepGoal{"loss"}};
  for (const auto& [value, error] : values) {
    out.axes[0].values.push_back(std::to_string(out.rows.size()));
    LimitResult limit;
    limit.reports = {report_of({value}, {error})};
    out.rows.push_back({{out.axes[0].values.back()}, {}, std::move(limit)});
  }
  return out;
}

TEST(Sweep, AllCombinationsTheLastAxisFastest) {
  const auto rows = combinations({{"a", {"1", "2"}}, {"b", {"x", "y"}}});
  ASSERT_EQ(rows.size(), 4U);
  EXPECT_EQ(rows[1], (std::vector<std::string>{"1", "y"}));
  EXPECT_EQ(rows[2], (std::vector<std::string>{"2", "x"}));
}

TEST(Sweep, TheBestAndWhatIsNotToldApartFromIt) {
  Sweep sweep = sweep_of({{1.0, 0.1}, {0.9, 0.1}, {2, 0.1}, {0.5, 0.01}});
  auto best = best_of(sweep);
  ASSERT_TRUE(best);
  EXPECT_EQ(best->best, 3U);
  EXPECT_TRUE(best->ties.empty());
  sweep.rows[3].outcome = Diagnostics{Diagnostic::error("E4101", "not finite")};
  best = best_of(sweep);
  ASSERT_TRUE(best);
  EXPECT_EQ(best->best, 1U);
  EXPECT_EQ(best->ties, std::vector<std::size_t>{0});
  sweep.goal->highest = true;
  EXPECT_EQ(best_of(sweep)->best, 2U);
  sweep.goal->report = "accuracy";
  EXPECT_FALSE(best_of(sweep));
}

TEST(Sweep, UndeterminedValuesAreNeverTheBest) {
  const auto best = best_of(sweep_of({{NAN, 0}, {1, 0}}));
  ASSERT_TRUE(best);
  EXPECT_EQ(best->best, 1U);
}

TEST(Sweep, ArraysAreShownByTheirNorm) {
  const auto s = summary_of(report_of({3, -4}, {0.1, 0.1}));
  ASSERT_TRUE(s);
  EXPECT_EQ(s->label, "|loss|");
  EXPECT_DOUBLE_EQ(s->value, 5);
  EXPECT_DOUBLE_EQ(*s->error, 0.14);  // 3/5 0.1 + 4/5 0.1: fully correlated entries
  EXPECT_FALSE(summary_of(report_of({1}, {}))->error);
}

}  // namespace
}  // namespace tplimit
