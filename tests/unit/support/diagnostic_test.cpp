#include "tplimit/support/diagnostic.hpp"

#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

namespace tplimit {
namespace {

Span span_of(const std::string& text, const std::string& part) {
  const auto begin = static_cast<std::uint32_t>(text.find(part));
  return {begin, begin + static_cast<std::uint32_t>(part.size())};
}

/// An error at the first occurrence of `part`.
Diagnostic error_at(const std::string& text, const std::string& part, std::string label = {}) {
  Diagnostic error;
  error.code = "E1234";
  error.message = "wrong";
  error.span = span_of(text, part);
  error.label = std::move(label);
  return error;
}

std::string rendered(const std::string& text, const Diagnostic& diagnostic) {
  return render(diagnostic, Source("net.tp", text));
}

TEST(Diagnostic, IsBuiltByName) {
  const Diagnostic d = Diagnostic::warning("W5301", "vanishes")
                           .at({3, 5})
                           .with_label("here")
                           .with_help("do this")
                           .with_note("because", {0, 1});
  EXPECT_EQ(d.severity, Severity::kWarning);
  EXPECT_EQ(d.code, "W5301");
  EXPECT_EQ(d.message, "vanishes");
  EXPECT_TRUE(d.located);
  EXPECT_EQ(d.span, (Span{3, 5}));
  EXPECT_EQ(d.label, "here");
  EXPECT_EQ(d.help, "do this");
  ASSERT_EQ(d.notes.size(), 1u);
  EXPECT_EQ(d.notes[0].message, "because");
  EXPECT_FALSE(Diagnostic::error("E5001", "cannot read").located);
}

TEST(Render, ShowsPlaceLineCaretNotesAndHelp) {
  const std::string text = "width n\nparam W1 : [n, n] ~ normal(0, 1)\n\n\n\n\nh1 = W1 @ x0\n";
  Diagnostic error = error_at(text, "x0", "x0 has size n, but W1 takes size d");
  error.code = "E2103";
  error.message = "sizes differ in '@'";
  error.help = "declare x0 with size d";
  error.notes.push_back({"W1 is declared here", span_of(text, "param")});
  EXPECT_EQ(rendered(text, error),
            "net.tp:7:11: error[E2103]: sizes differ in '@'\n"
            "   7 | h1 = W1 @ x0\n"
            "     |           ^^ x0 has size n, but W1 takes size d\n"
            "net.tp:2:1: note: W1 is declared here\n"
            "help: declare x0 with size d\n");
}

TEST(Render, LeavesPlaceAndQuoteOutWhenThereIsNone) {
  Diagnostic error = error_at("", "", "unused");
  error.located = false;
  error.notes.push_back({"nor has this one", {}});
  EXPECT_EQ(rendered("a = 1\n", error),
            "net.tp: error[E1234]: wrong\nnet.tp: note: nor has this one\n");
}

TEST(Render, NamesTheSeverityAndSkipsAnEmptyCode) {
  Diagnostic warning = error_at("a", "a");
  warning.severity = Severity::kWarning;
  EXPECT_EQ(rendered("a", warning), "net.tp:1:1: warning[E1234]: wrong\n   1 | a\n     | ^\n");
  warning.severity = Severity::kNote;
  warning.code.clear();
  EXPECT_EQ(rendered("a", warning), "net.tp:1:1: note: wrong\n   1 | a\n     | ^\n");
}

TEST(Render, JoinsSeveralDiagnostics) {
  const std::string text = "a b";
  const Diagnostics both = {error_at(text, "a"), error_at(text, "b")};
  const Source source("net.tp", text);
  EXPECT_EQ(render(both, source), render(both[0], source) + render(both[1], source));
}

TEST(Render, CopiesTabsIntoTheCaretLine) {
  const std::string text = "\ta\t= b";
  EXPECT_EQ(rendered(text, error_at(text, "b")),
            "net.tp:1:6: error[E1234]: wrong\n"
            "   1 | \ta\t= b\n"
            "     | \t \t  ^\n");
}

TEST(Render, CountsColumnsInCodePoints) {
  const std::string text = "# \u00E9\u20AC\U0001F600 x";
  EXPECT_EQ(rendered(text, error_at(text, "x")),
            "net.tp:1:7: error[E1234]: wrong\n"
            "   1 | # \u00E9\u20AC\U0001F600 x\n"
            "     |       ^\n");
  EXPECT_EQ(rendered(text, error_at(text, "\u00E9\u20AC")),
            "net.tp:1:3: error[E1234]: wrong\n"
            "   1 | # \u00E9\u20AC\U0001F600 x\n"
            "     |   ^^\n");
}

TEST(Render, ShowsInvalidAndControlBytesAsQuestionMarks) {
  const std::string text = "\xFF\xE2\x82 \x1B[2J \xC2\x9B x\r\n";
  Diagnostic error = error_at(text, "x", "bad \x07 label");
  error.message = "bad \xC0 message";
  error.help = std::string("nul ") + '\0';
  EXPECT_EQ(rendered(text, error),
            "net.tp:1:12: error[E1234]: bad ? message\n"
            "   1 | ??? ?[2J ? x\n"
            "     |            ^ bad ? label\n"
            "help: nul ?\n");
}

TEST(Render, PutsAtLeastOneCaretAndStaysOnTheFirstLine) {
  const std::string text = "first (\nsecond )\n";
  EXPECT_EQ(rendered(text, error_at(text, "(\nsecond )")),
            "net.tp:1:7: error[E1234]: wrong\n"
            "   1 | first (\n"
            "     |       ^\n");
  Diagnostic at_line_end = error_at(text, "\n");
  at_line_end.span.end = at_line_end.span.begin;
  EXPECT_EQ(rendered(text, at_line_end),
            "net.tp:1:8: error[E1234]: wrong\n"
            "   1 | first (\n"
            "     |        ^\n");
}

TEST(Render, QuotesAnEmptyLastLineWithoutTrailingBlanks) {
  const std::string text = "a\n";
  Diagnostic error = error_at(text, "a");
  error.span = {2, 2};
  EXPECT_EQ(rendered(text, error), "net.tp:2:1: error[E1234]: wrong\n   2 |\n     | ^\n");
}

TEST(Render, WidensTheGutterForLargeLineNumbers) {
  const std::string text = std::string(99999, '\n') + "x";
  EXPECT_EQ(rendered(text, error_at(text, "x")),
            "net.tp:100000:1: error[E1234]: wrong\n100000 | x\n       | ^\n");
}

TEST(Render, CutsLongLinesAroundTheCaret) {
  const std::string text = std::string(500, 'a') + "X" + std::string(500, 'b');
  EXPECT_EQ(rendered(text, error_at(text, "X", "here")),
            "net.tp:1:501: error[E1234]: wrong\n"
            "   1 | ..." +
                std::string(48, 'a') + "X" + std::string(47, 'b') +
                "...\n"
                "     | " +
                std::string(51, ' ') + "^ here\n");
}

TEST(Render, CutsLongLinesAtOneSideNearTheirEnds) {
  const std::string text = "X" + std::string(998, 'b') + "Y";
  EXPECT_EQ(rendered(text, error_at(text, "X")),
            "net.tp:1:1: error[E1234]: wrong\n   1 | X" + std::string(95, 'b') + "...\n     | ^\n");
  EXPECT_EQ(rendered(text, error_at(text, "Y")), "net.tp:1:1000: error[E1234]: wrong\n   1 | ..." +
                                                     std::string(95, 'b') + "Y\n     | " +
                                                     std::string(98, ' ') + "^\n");
}

TEST(Render, CutsCaretsWithTheirLine) {
  const std::string text(1000, 'a');
  EXPECT_EQ(rendered(text, error_at(text, text)), "net.tp:1:1: error[E1234]: wrong\n   1 | " +
                                                      std::string(96, 'a') + "...\n     | " +
                                                      std::string(96, '^') + "\n");
}

TEST(Render, SurvivesSpansOutsideTheText) {
  Diagnostic error = error_at("", "");
  error.span = {1000, 2000};
  EXPECT_EQ(rendered("ab", error), "net.tp:1:3: error[E1234]: wrong\n   1 | ab\n     |   ^\n");
  error.span = {1, 0};
  EXPECT_EQ(rendered("ab", error), "net.tp:1:2: error[E1234]: wrong\n   1 | ab\n     |  ^\n");
}

TEST(Result, HoldsAValueOrTheDiagnostics) {
  const Result<int> value = 3;
  EXPECT_TRUE(value.ok());
  EXPECT_EQ(*value, 3);
  EXPECT_TRUE(value.errors().empty());
  const Result<int> error = error_at("a", "a");
  EXPECT_FALSE(error);
  ASSERT_EQ(error.errors().size(), 1u);
  EXPECT_EQ(error.errors()[0].code, "E1234");
}

TEST(Result, MovesItsValueOut) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(5);
  const std::unique_ptr<int> taken = std::move(result).value();
  EXPECT_EQ(*taken, 5);
}

TEST(Result, ThrowsWhenAskedForAValueItDoesNotHold) {
  const Result<int> error = error_at("a", "a");
  EXPECT_THROW((void)error.value(), InternalError);
  const Result<int> empty = Diagnostics{};
  EXPECT_THROW((void)*empty, InternalError);
}

}  // namespace
}  // namespace tplimit
