#include "tplimit/report/document.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tplimit/report/text.hpp"

namespace tplimit {
namespace {

using namespace document;

ReportResult matrix() {
  ReportResult r;
  r.name = "K";
  r.shape = {2, 3};
  r.value = {1, 2, 3, 4, 5, 6};
  r.error = std::vector<double>(6, 0);
  return r;
}

TEST(Series, HasTheLastAxisAsColumns) {
  const ReportResult r = matrix();
  const Series series{&r};
  EXPECT_EQ(series.rows(), 2u);
  EXPECT_EQ(series.columns(), 3u);
  EXPECT_EQ(series.label_names(), std::vector<std::string>{""});
  EXPECT_EQ(series.labels(1), std::vector<std::string>{"[1]"});
  EXPECT_EQ(series.heading(2), "[2]");
  EXPECT_EQ(series.cell(1, 2), "6");
}

TEST(Series, HasIterationsAsRows) {
  ReportResult r = matrix();
  r.index_names = {"t"};
  r.index_values = {{10, 20}};
  const Series series{&r};
  EXPECT_EQ(series.label_names(), std::vector<std::string>{"t"});
  EXPECT_EQ(series.labels(1), std::vector<std::string>{"20"});
  EXPECT_EQ(series.heading(0), "[0]");
}

TEST(Series, OfOneAxisHasOneRowWithoutALabel) {
  ReportResult r = matrix();
  r.shape = {6};
  const Series series{&r};
  EXPECT_EQ(series.rows(), 1u);
  EXPECT_TRUE(series.label_names().empty());
  EXPECT_TRUE(series.labels(0).empty());
}

TEST(Text, HasAnEmptyLineBetweenSectionsThatSaySomething) {
  Document document;
  document.add({Heading{1, "title", {}}, Paragraph{{"a", "b"}}});
  document.add({OmissionNote{"nothing was left out"}});
  document.add({Items{{"c"}}});
  EXPECT_EQ(to_text(document), "title\na\nb\n\n  c\n");
}

TEST(Text, AlignsColumnsAsTheyAsk) {
  Document document;
  using Align = Column::Align;
  document.add({Table{{{{"left"}, {"a", "bb"}},
                       {{"right"}, {"1", "10"}, Align::kRight},
                       {{"point"}, {"1.5", "10.25"}, Align::kPoint}}}});
  EXPECT_EQ(to_text(document),
            "left  right  point\n"
            "a         1   1.5\n"
            "bb       10  10.25\n");
}

TEST(Text, WritesLongSumsTermByTerm) {
  const std::string term(60, 'x');
  Document document;
  document.add(
      {Formulas{{{"a", "=", {"- " + term, "+ " + term}, "note"}, {"bc", "~", {"+ y"}, ""}}}});
  EXPECT_EQ(to_text(document), "  a  = -" + term + "   # note\n       + " + term + "\n  bc ~ y\n");
}

}  // namespace
}  // namespace tplimit
