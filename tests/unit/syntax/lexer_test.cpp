#include "syntax/lexer.hpp"

#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace tplimit::syntax {
namespace {

using Kinds = std::vector<TokenKind>;
using enum TokenKind;

Kinds kinds(std::string_view text) {
  Kinds kinds;
  for (const Token& token : lex(text).tokens) kinds.push_back(token.kind);
  EXPECT_EQ(kinds.back(), kEnd);
  kinds.pop_back();
  return kinds;
}

std::vector<std::string> texts(std::string_view text) {
  std::vector<std::string> texts;
  for (const Token& token : lex(text).tokens) {
    if (token.kind != kEnd)
      texts.emplace_back(text.substr(token.span.begin, token.span.end - token.span.begin));
  }
  return texts;
}

std::string code(std::string_view text) {
  const Lexed lexed = lex(text);
  return lexed.errors.empty() ? "" : lexed.errors.front().code;
}

std::string help(std::string_view text) {
  const Lexed lexed = lex(text);
  return lexed.errors.empty() ? "" : lexed.errors.front().help;
}

TEST(Lexer, SpellsEveryOperator) {
  for (auto kind = kPlus; kind <= kTilde;
       kind = static_cast<TokenKind>(static_cast<int>(kind) + 1)) {
    EXPECT_EQ(kinds(spelling(kind)), Kinds{kind}) << spelling(kind);
  }
}

TEST(Lexer, DepthIsAKeywordWhereItDeclares) {
  EXPECT_EQ(kinds("depth L = 8"), (Kinds{kDepth, kIdentifier, kEqual, kNumber}));
  EXPECT_EQ(kinds("; depth L"), (Kinds{kSemicolon, kDepth, kIdentifier}));
  EXPECT_EQ(kinds("depth = 8"), (Kinds{kIdentifier, kEqual, kNumber}));
  EXPECT_EQ(kinds("depth, b"), (Kinds{kIdentifier, kComma, kIdentifier}));
  EXPECT_EQ(kinds("const depth = 8"), (Kinds{kConst, kIdentifier, kEqual, kNumber}));
  EXPECT_EQ(kinds("for depth in x"), (Kinds{kFor, kIdentifier, kIn, kIdentifier}));
  EXPECT_EQ(kinds("a == depth within"), (Kinds{kIdentifier, kEqualEqual, kIdentifier, kWithin}));
  EXPECT_TRUE(is_name("depth"));
}

TEST(Lexer, TellsKeywordsFromNames) {
  for (auto kind = kWidth; kind <= kFalse;
       kind = static_cast<TokenKind>(static_cast<int>(kind) + 1)) {
    if (kind != kDepth) {
      EXPECT_EQ(kinds(spelling(kind)), Kinds{kind}) << spelling(kind);
    }
    EXPECT_EQ(kinds(std::string(spelling(kind)) + "_"), Kinds{kIdentifier});
    EXPECT_EQ(begins_statement(kind), kind <= kImport);
    EXPECT_TRUE(is_keyword(kind));
  }
  EXPECT_EQ(kinds("Width _x x1 E e5"),
            (Kinds{kIdentifier, kIdentifier, kIdentifier, kIdentifier, kIdentifier}));
  EXPECT_FALSE(is_keyword(kIdentifier));
  EXPECT_FALSE(is_keyword(kPlus));
}

TEST(Lexer, PrefersTheLongerOperator) {
  EXPECT_EQ(texts("a+=b==c<=d>=e!=f*=g-=h"),
            (std::vector<std::string>{"a", "+=", "b", "==", "c", "<=", "d", ">=", "e", "!=", "f",
                                      "*=", "g", "-=", "h"}));
  EXPECT_EQ(texts("a===b"), (std::vector<std::string>{"a", "==", "=", "b"}));
}

TEST(Lexer, ReadsEveryFormOfNumber) {
  for (const char* number : {"1", "0", "0.5", ".5", "1e-3", "1E+30", "12.25e7", "007"}) {
    EXPECT_EQ(kinds(number), Kinds{kNumber}) << number;
    EXPECT_EQ(code(number), "") << number;
  }
}

TEST(Lexer, KeepsTheDotsOfARangeOutOfItsEnds) {
  EXPECT_EQ(texts("0..32"), (std::vector<std::string>{"0", "..", "32"}));
  EXPECT_EQ(texts("0.5..1.5"), (std::vector<std::string>{"0.5", "..", "1.5"}));
  EXPECT_EQ(texts("0...5"), (std::vector<std::string>{"0", "..", ".5"}));
  EXPECT_EQ(texts("1e3..n"), (std::vector<std::string>{"1e3", "..", "n"}));
  EXPECT_EQ(texts("a..b"), (std::vector<std::string>{"a", "..", "b"}));
}

TEST(Lexer, ReportsMalformedNumbersAsOneToken) {
  for (const char* number :
       {"1.5.2", "1.", "2n", "0x10", "1e", "1.e5", "3..5.5.5", "1_000", "1.x"}) {
    EXPECT_EQ(code(number), "E1003") << number;
  }
  EXPECT_EQ(kinds("1.5.2"), Kinds{kNumber});
  EXPECT_EQ(help("2n"), "if a product is meant, write '2 * n'");
  EXPECT_EQ(help("3."), "write '3.0'");
  EXPECT_EQ(help("1.5.2"), "");
}

TEST(Lexer, EndsStringsOnTheirLine) {
  EXPECT_EQ(texts(R"("a \" b" "\\" "")"),
            (std::vector<std::string>{R"("a \" b")", R"("\\")", "\"\""}));
  EXPECT_EQ(kinds("\"open\nx"), (Kinds{kString, kNewline, kIdentifier}));
  EXPECT_EQ(code("\"open\nx"), "E1005");
  EXPECT_EQ(code("\"open"), "E1005");
  EXPECT_EQ(code("\"open\\"), "E1005");
  EXPECT_EQ(code("\"open\\\n"), "E1005");
  EXPECT_EQ(code("\"\\n\\t\\\\\\\"\""), "");
  EXPECT_EQ(code("\"C:\\data\""), "E1006");
  EXPECT_EQ(code("\"\\\u00E9\""), "E1006");
}

TEST(Lexer, AcceptsBothLineEndsButNoLoneCarriageReturn) {
  EXPECT_EQ(kinds("a\r\nb\n"), (Kinds{kIdentifier, kNewline, kIdentifier, kNewline}));
  EXPECT_EQ(texts("# note\r\n"), (std::vector<std::string>{"# note", "\r\n"}));
  EXPECT_EQ(code("a\rb"), "E1001");
  EXPECT_EQ(code("# hidden\rb = 1\n"), "E1001");
}

TEST(Lexer, IgnoresAByteOrderMarkAtTheStartOnly) {
  EXPECT_EQ(kinds("\xEF\xBB\xBFwidth"), Kinds{kWidth});
  EXPECT_EQ(code("\xEF\xBB\xBFwidth"), "");
  EXPECT_NE(code("width \xEF\xBB\xBF"), "");
}

TEST(Lexer, NamesLettersOfOtherAlphabets) {
  EXPECT_EQ(code("\u03B7 = 1"), "E1002");
  EXPECT_EQ(help("\u03B7 = 1"), "write it out: 'eta'");
  EXPECT_EQ(kinds("x_\u03B71\u00E9 + 1"), (Kinds{kIdentifier, kPlus, kNumber})) << "still one name";
  EXPECT_EQ(code("x_\u03B71 + 1"), "E1002");
  EXPECT_EQ(code("\"\u03B7\" # \u03B7"), "") << "allowed in strings and comments";
}

TEST(Lexer, SaysWhatLookalikesMean) {
  EXPECT_EQ(kinds("a \u2212 b"), (Kinds{kIdentifier, kMinus, kIdentifier}));
  EXPECT_EQ(code("a \u2212 b"), "E1001");
  EXPECT_EQ(help("a \u2212 b"), "write '-'");
  EXPECT_EQ(kinds("W\u2019"), (Kinds{kIdentifier, kQuote}));
}

TEST(Lexer, ReportsOtherCharactersAndInvalidBytes) {
  for (const char* text :
       {"%", "$", "!", "&", "|", "?", "`", "\\", ".", "\x01", "\x7F", "\xFF", "a\x80", "\v"}) {
    EXPECT_EQ(code(text), "E1001") << text;
  }
  EXPECT_EQ(kinds("\xFF\xFE\x80 a"), (Kinds{kInvalid, kIdentifier}))
      << "one token for a run of invalid bytes";
  EXPECT_EQ(kinds(std::string_view("a\0b", 3)), (Kinds{kIdentifier, kInvalid, kIdentifier}));
  EXPECT_EQ(help("7 % 2"), "the remainder of a division is mod(a, b); a comment starts with '#'");
}

TEST(Lexer, ReportsOneErrorPerLineAndTwentyInAll) {
  EXPECT_EQ(lex("$ $ $\n$").errors.size(), 2u);
  std::string many;
  for (int i = 0; i < 100; ++i) many += "$\n";
  EXPECT_EQ(lex(many).errors.size(), kMaxLexicalErrors);
}

TEST(Lexer, CoversTheTextInOrder) {
  const std::string text = "x = W' @ y[0..2]  # note\r\n\t\"s\" $ \u03B7";
  std::uint32_t end = 0;
  for (const Token& token : lex(text).tokens) {
    EXPECT_LE(end, token.span.begin);
    EXPECT_LE(token.span.begin, token.span.end);
    EXPECT_EQ(text.substr(end, token.span.begin - end).find_first_not_of(" \t"), std::string::npos);
    end = token.span.end;
  }
  EXPECT_EQ(end, text.size());
}

TEST(Abbreviated, CutsAtFortyColumns) {
  EXPECT_EQ(abbreviated("short"), "short");
  std::string accents;
  for (int i = 0; i < 50; ++i) accents += "\u00E9";
  EXPECT_EQ(abbreviated(accents), accents.substr(0, 80));
  EXPECT_EQ(abbreviated(std::string(100, '\xFF')).size(), 40u);
}

}  // namespace
}  // namespace tplimit::syntax
