#include "tplimit/syntax/parser.hpp"

#include <string>

#include <gtest/gtest.h>

namespace tplimit {
namespace {

/// The formatted text, or the rendered errors; formatting it again must change nothing.
std::string formatted(const std::string& text) {
  const Source source("t.tp", text);
  const auto once = format_source(source);
  if (!once) return render(once.errors(), source);
  const auto twice = format_source(Source("t.tp", *once));
  EXPECT_TRUE(twice.ok()) << *once;
  if (twice) {
    EXPECT_EQ(*twice, *once);
  }
  return *once;
}

std::string canonical(const std::string& text) {
  return canonical_text(Source("t.tp", text), {0, static_cast<std::uint32_t>(text.size())});
}

TEST(Format, KeepsElseBehindItsBrace) {
  EXPECT_EQ(formatted("if a{\nb=1\n}\n\nelse if c{d=1}\nelse{\ne=f(x,c=1)\n}"),
            "if a {\n  b = 1\n} else if c { d = 1 } else {\n  e = f(x, c = 1)\n}\n");
  EXPECT_EQ(formatted("for i in 9..-1 by  -2{ assert  i>0,\"t\" }"),
            "for i in 9..-1 by -2 { assert i > 0, \"t\" }\n");
}

TEST(Format, PutsOneBlankAroundOperators) {
  EXPECT_EQ(formatted("a=b+c*d-e/f@g"), "a = b + c * d - e / f @ g\n");
  EXPECT_EQ(formatted("a  =  b<=c"), "a = b <= c\n");
  EXPECT_EQ(formatted("W+=c*outer(d,x);V*=2"), "W += c * outer(d, x); V *= 2\n");
  EXPECT_EQ(formatted("expect a==b  within 1e-3"), "expect a == b within 1e-3\n");
}

TEST(Format, KeepsPowersRangesTransposesAndSignsTight) {
  EXPECT_EQ(formatted("a = n ^ - 0.5 + W ' @ x"), "a = n^-0.5 + W' @ x\n");
  EXPECT_EQ(formatted("a = X[ 0 .. 3 , .. , a .. ]"), "a = X[0..3, .., a..]\n");
  EXPECT_EQ(formatted("a = X[.., ..b, - 1 .. .5]"), "a = X[.., ..b, -1...5]\n");
  EXPECT_EQ(formatted("a = - b - - c + (- d)"), "a = -b - -c + (-d)\n");
  EXPECT_EQ(formatted("a = 2*-x - +y"), "a = 2 * -x - +y\n");
  EXPECT_EQ(formatted("model f(x) { return - x }"), "model f(x) { return -x }\n");
  EXPECT_EQ(formatted("model f(x)=- x"), "model f(x) = -x\n");
}

TEST(Format, PutsNoBlankInsideBrackets) {
  EXPECT_EQ(formatted("a = f ( x , [ 1 , 2 ] , ( y , ) )"), "a = f(x, [1, 2], (y,))\n");
  EXPECT_EQ(formatted("a = W [ 0 ] [ 1 ] '"), "a = W[0][1]'\n");
  EXPECT_EQ(formatted("step sgd(l, scale={ W : n^2 , U:n }, only=(U,V))"),
            "step sgd(l, scale = {W: n^2, U: n}, only = (U, V))\n");
  EXPECT_EQ(formatted("report (a + b)*c, [1]"), "report (a + b) * c, [1]\n");
  EXPECT_EQ(formatted("model f(x) {return(x)}"), "model f(x) { return (x) }\n");
}

TEST(Format, SpacesDeclarations) {
  EXPECT_EQ(formatted("width n,m=2*n"), "width n, m = 2 * n\n");
  EXPECT_EQ(formatted("depth  L=8;depth=2"), "depth L = 8; depth = 2\n");
  EXPECT_EQ(formatted("param U:[n,64]~normal(0,1/64),lr=n"),
            "param U : [n, 64] ~ normal(0, 1 / 64), lr = n\n");
  EXPECT_EQ(formatted("param W:hidden[n,n]~normal(0,1)"),
            "param W : hidden [n, n] ~ normal(0, 1)\n");
  EXPECT_EQ(formatted("data X,y=csv( \"a  b.csv\",rows=0 .. 32 )"),
            "data X, y = csv(\"a  b.csv\", rows = 0..32)\n");
  EXPECT_EQ(formatted("fn phi( z )=tanh(z)^2"), "fn phi(z) = tanh(z)^2\n");
}

TEST(Format, IndentsBlocksByTwo) {
  EXPECT_EQ(formatted("model f(x) {\nh = x\n      for i in 0..2 {\n h=h\n}\nreturn h\n    }"),
            "model f(x) {\n  h = x\n  for i in 0..2 {\n    h = h\n  }\n  return h\n}\n");
}

TEST(Format, KeepsBlocksOfOneLine) {
  EXPECT_EQ(formatted("for l in 0..2 {z=tanh(z);y=z}"), "for l in 0..2 { z = tanh(z); y = z }\n");
  EXPECT_EQ(formatted("for l in 0..2 {  }"), "for l in 0..2 {}\n");
  EXPECT_EQ(formatted("for i in 0..2 {for j in 0..2 {z=1}}"),
            "for i in 0..2 { for j in 0..2 { z = 1 } }\n");
}

TEST(Format, BreaksBlocksOfSeveralLinesAtBothBraces) {
  EXPECT_EQ(formatted("for i in 0..2 { a = 1\nb = 2 }"), "for i in 0..2 {\n  a = 1\n  b = 2\n}\n");
  EXPECT_EQ(formatted("for i in 0..2 { for j in 0..2 {\na = 1 } }\n"),
            "for i in 0..2 {\n  for j in 0..2 {\n    a = 1\n  }\n}\n");
  EXPECT_EQ(formatted("for i in 0..2 { a = f(1,\n2) }"),
            "for i in 0..2 {\n  a = f(1,\n    2)\n}\n");
  EXPECT_EQ(formatted("for i in 0..2 {\n}\n"), "for i in 0..2 {\n}\n");
}

TEST(Format, IndentsContinuedLines) {
  EXPECT_EQ(formatted("data X = [\n[1,2],\n[3,\n4]\n]\n"),
            "data X = [\n  [1, 2],\n  [3,\n    4]\n]\n");
  EXPECT_EQ(formatted("report a,\nb,\n# and\nc\nd = 1"), "report a,\n  b,\n  # and\n  c\nd = 1\n");
  EXPECT_EQ(formatted("for i in 0..1 {\nreport a,\nb\n}"),
            "for i in 0..1 {\n  report a,\n    b\n}\n");
  EXPECT_EQ(formatted("a = f(g(\nx\n))"), "a = f(g(\n    x\n))\n");
  EXPECT_EQ(formatted("step sgd(l, scale = {\nW: 1\n})"), "step sgd(l, scale = {\n    W: 1\n})\n");
  EXPECT_EQ(formatted("a = (b\n- c)"), "a = (b\n  - c)\n");
}

TEST(Format, KeepsCommentsAndAlignsAdjacentOnes) {
  EXPECT_EQ(formatted("a = 1 # one\nbcd = 2 #two  \n\nc = 3# three\n"),
            "a = 1    # one\nbcd = 2  #two\n\nc = 3  # three\n");
  EXPECT_EQ(
      formatted("   # alone\nmodel f(x) {# head\n# inside\nreturn x# tail\n  # end\n}# after"),
      "# alone\nmodel f(x) {  # head\n  # inside\n  return x  # tail\n  # end\n}  # after\n");
  EXPECT_EQ(formatted("for i in 0..1 { # head\na = 1 } # end"),
            "for i in 0..1 {  # head\n  a = 1\n}  # end\n");
}

TEST(Format, LeavesTheCommentOfAVeryLongLineAlone) {
  const std::string wide = "a = " + std::string(80, 'b');
  EXPECT_EQ(formatted(wide + " # x\nc = 1 # y"), wide + "  # x\nc = 1  # y\n");
}

TEST(Format, MeasuresCodeInColumnsWhenItAligns) {
  EXPECT_EQ(formatted("a = \"\u00E9\u00E9\" # x\nb = \"cc\" # y"),
            "a = \"\u00E9\u00E9\"  # x\nb = \"cc\"  # y\n");
}

TEST(Format, ReducesBlankLinesToOneAndDropsThemAtEnds) {
  EXPECT_EQ(formatted("\n\na = 1\n\n \n\t\nb = 2\n\n\n"), "a = 1\n\nb = 2\n");
  EXPECT_EQ(formatted("for i in 0..2 {\n\na = 1\n\n}"), "for i in 0..2 {\n  a = 1\n}\n");
  EXPECT_EQ(formatted("\n# one\n\n\n# two\n\n"), "# one\n\n# two\n");
  EXPECT_EQ(formatted(""), "");
  EXPECT_EQ(formatted("\n \n"), "");
}

TEST(Format, WritesPlainLineEndsAndNoByteOrderMark) {
  EXPECT_EQ(formatted("\xEF\xBB\xBF"
                      "a = 1 \r\n# b \r\n\r\nc = 2"),
            "a = 1\n# b\n\nc = 2\n");
}

TEST(Format, KeepsSemicolons) {
  EXPECT_EQ(formatted("a = 1 ;\n;b = 2 ;; c = 3"), "a = 1;\n; b = 2;; c = 3\n");
}

TEST(Format, ReportsTheErrorsOfTheParser) {
  const auto result = format_source(Source("t.tp", "a = "));
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.errors().front().code, "E1010");
}

TEST(CanonicalText, PutsTheTokensOfASpanOnOneLine) {
  EXPECT_EQ(canonical("min_eig( gram(z) )/n^ 2"), "min_eig(gram(z)) / n^2");
  EXPECT_EQ(canonical("f(a, # first\n   b)"), "f(a, b)");
  EXPECT_EQ(canonical("- x"), "-x");
  EXPECT_EQ(canonical("{W:n, U : 1}"), "{W: n, U: 1}");
  EXPECT_EQ(canonical(""), "");
}

TEST(CanonicalText, TakesTheSpanOnly) {
  const Source source("t.tp", "report a+b, K=gram( z )\n");
  EXPECT_EQ(canonical_text(source, {7, 10}), "a + b");
  EXPECT_EQ(canonical_text(source, {14, 23}), "gram(z)");
  EXPECT_EQ(canonical_text(source, {100, 200}), "");
}

TEST(CanonicalText, NamesAReportAlikeHoweverItIsWritten) {
  const Source source("t.tp", "report E( u*x ), E(u\n * x)");
  const auto program = parse_syntax(source);
  ASSERT_TRUE(program.ok());
  const auto& items = std::get<ast::Report>(program->statements[0].node).items;
  EXPECT_EQ(canonical_text(source, items[0].value->span),
            canonical_text(source, items[1].value->span));
}

}  // namespace
}  // namespace tplimit
