#include <gtest/gtest.h>

#include "tplimit/report/text.hpp"

// What a comparison of several reports says in the end.
namespace tplimit {
namespace {

Comparison with(const std::vector<std::pair<const char*, Verdict>>& reports) {
  Comparison out;
  std::vector<Verdict> verdicts;
  for (const auto& [name, verdict] : reports) {
    ReportResult report;
    report.name = name;
    report.value = report.error = {0};
    out.limit.reports.push_back(report);
    out.reports.emplace_back(Convergence{});
    out.reports.back()->verdict = verdict;
    out.reports.back()->entries.push_back({0, 0, {}, {}, {}, {}, 1, 0, {}});
    verdicts.push_back(verdict);
  }
  out.verdict = overall(verdicts);
  return out;
}

std::string last(const std::vector<std::pair<const char*, Verdict>>& reports) {
  const Source source("net.tp", "");
  ProgramInfo info{source};
  const std::string text = to_text(with(reports), info);
  const std::size_t begin = text.find("overall: ");
  return text.substr(begin, text.find("; expected", begin) - begin);
}

TEST(ComparisonText, SaysWhichReportsDoNotAgree) {
  const auto agrees = Verdict::kAgrees, disagrees = Verdict::kDisagrees,
             inconclusive = Verdict::kInconclusive;
  EXPECT_EQ(last({{"a", agrees}, {"loss", disagrees}, {"b", agrees}}),
            "overall: disagrees: loss (1 of 3 reports); agrees: 2");
  EXPECT_EQ(last({{"a", agrees}, {"loss", inconclusive}}),
            "overall: agrees (1 of 2 reports); inconclusive: loss");
  EXPECT_EQ(last({{"a", disagrees}, {"b", inconclusive}, {"c", disagrees}}),
            "overall: disagrees: a, c (2 of 3 reports); inconclusive: b");
  EXPECT_EQ(last({{"a", agrees}}), "overall: agrees (1 of 1 report)");
  EXPECT_EQ(last({{"a", inconclusive}}), "overall: inconclusive (1 of 1 report)");
}

}  // namespace
}  // namespace tplimit
