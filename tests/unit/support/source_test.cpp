#include "tplimit/support/source.hpp"

#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "tplimit/support/check.hpp"

namespace tplimit {
namespace {

TEST(CodePointLength, AcceptsEveryLengthOfUtf8) {
  EXPECT_EQ(code_point_length("a", 0), 1u);
  EXPECT_EQ(code_point_length("\u00E9", 0), 2u);
  EXPECT_EQ(code_point_length("\u20AC", 0), 3u);
  EXPECT_EQ(code_point_length("\U0001F600", 0), 4u);
  EXPECT_EQ(code_point_length("\U0010FFFF", 0), 4u);
  EXPECT_EQ(code_point_length(std::string_view("\0", 1), 0), 1u);
}

TEST(CodePointLength, RefusesWhatUtf8Forbids) {
  EXPECT_EQ(code_point_length("", 0), 0u);
  EXPECT_EQ(code_point_length("a", 1), 0u);
  EXPECT_EQ(code_point_length("\x80", 0), 0u) << "continuation byte";
  EXPECT_EQ(code_point_length("\xC0\xAF", 0), 0u) << "overlong, two bytes";
  EXPECT_EQ(code_point_length("\xE0\x80\xAF", 0), 0u) << "overlong, three bytes";
  EXPECT_EQ(code_point_length("\xF0\x80\x80\xAF", 0), 0u) << "overlong, four bytes";
  EXPECT_EQ(code_point_length("\xED\xA0\x80", 0), 0u) << "surrogate";
  EXPECT_EQ(code_point_length("\xF4\x90\x80\x80", 0), 0u) << "past U+10FFFF";
  EXPECT_EQ(code_point_length("\xFF", 0), 0u);
  EXPECT_EQ(code_point_length("\xE2\x82", 0), 0u) << "cut short";
  EXPECT_EQ(code_point_length("\xE2\x82z", 0), 0u);
}

TEST(CountColumns, CountsCodePointsAndEachInvalidByteOnce) {
  EXPECT_EQ(count_columns(""), 0u);
  EXPECT_EQ(count_columns("a\u00E9\u20AC\U0001F600"), 4u);
  EXPECT_EQ(count_columns("\xE2\x82 \xFF"), 4u);
}

TEST(Source, LocatesOffsetsByLineAndCodePoint) {
  const Source source("s.tp", "ab\n\u00E9\u00E9x\n\nlast");
  EXPECT_EQ(source.locate(0).line, 1u);
  EXPECT_EQ(source.locate(0).column, 1u);
  EXPECT_EQ(source.locate(2).column, 3u) << "the line end belongs to its line";
  EXPECT_EQ(source.locate(7).line, 2u);
  EXPECT_EQ(source.locate(7).column, 3u) << "two code points of two bytes before it";
  EXPECT_EQ(source.locate(9).line, 3u);
  EXPECT_EQ(source.locate(10).line, 4u);
}

TEST(Source, LocatesOffsetsPastTheEndAtTheEnd) {
  const Source source("s.tp", "ab\ncd");
  EXPECT_EQ(source.locate(5).column, 3u);
  EXPECT_EQ(source.locate(1000).line, 2u);
  EXPECT_EQ(source.locate(1000).column, 3u);
  EXPECT_EQ(Source("s.tp", "ab\n").locate(3).line, 2u) << "behind the last line end a line begins";
}

TEST(Source, GivesLinesWithoutTheirEnds) {
  const Source source("s.tp", "one\r\ntwo\n\nfour");
  EXPECT_EQ(source.line_at(0), "one");
  EXPECT_EQ(source.line_at(4), "one");
  EXPECT_EQ(source.line_at(5), "two");
  EXPECT_EQ(source.line_at(9), "");
  EXPECT_EQ(source.line_at(10), "four");
  EXPECT_EQ(source.line_at(1000), "four");
  EXPECT_EQ(source.line_begin_at(12), 10u);
  EXPECT_EQ(source.locate(4).column, 4u) << "CR LF is one line end";
}

TEST(Source, KeepsImportedFilesBehindTheProgram) {
  for (const std::string text : {"ab\ncd", "ab\ncd\n"}) {
    Source source("s.tp", text);
    const std::size_t k = source.append("lib/t.tp", "x\nyz");
    source.link(0, "t.tp", k);
    const Source::Part& part = source.parts()[k];
    EXPECT_EQ(source.text(source.parts()[0]), text);
    EXPECT_EQ(source.text(part), "x\nyz");
    EXPECT_EQ(source.part_at(text.size()).name, "s.tp") << "the end of the program is its own";
    EXPECT_EQ(source.part_at(part.begin).name, "lib/t.tp");
    EXPECT_EQ(source.part_at(10000).name, "lib/t.tp");
    EXPECT_EQ(source.line_of(text.size()), text.size() == 5 ? 2u : 3u);
    EXPECT_EQ(source.line_at(text.size()), text.size() == 5 ? "cd" : "");
    EXPECT_EQ(source.line_of(part.begin), 1u);
    EXPECT_EQ(source.line_at(part.begin), "x");
    EXPECT_EQ(source.locate(part.begin + 3).line, 2u);
    EXPECT_EQ(source.locate(part.begin + 3).column, 2u);
    EXPECT_EQ(source.line_at(part.begin + 3), "yz");
    EXPECT_EQ(source.parts()[0].imports.at("t.tp"), k);
  }
}

TEST(Source, ClampsSpansToTheText) {
  const Source source("s.tp", "hello");
  EXPECT_EQ(source.text({1, 3}), "el");
  EXPECT_EQ(source.text({3, 100}), "lo");
  EXPECT_EQ(source.text({100, 200}), "");
  EXPECT_EQ(source.text({3, 1}), "");
}

TEST(Source, IsOneEmptyLineWithoutText) {
  const Source source;
  EXPECT_EQ(source.name(), "<none>");
  EXPECT_EQ(source.line_at(0), "");
  EXPECT_EQ(source.locate(0).line, 1u);
  EXPECT_EQ(source.locate(0).column, 1u);
}

TEST(Span, CoversBothOperandsOfTo) {
  EXPECT_EQ((Span{3, 5}.to({7, 9})), (Span{3, 9}));
  EXPECT_EQ((Span{7, 9}.to({3, 5})), (Span{3, 9}));
}

}  // namespace
}  // namespace tplimit
