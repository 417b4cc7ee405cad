#include "tplimit/syntax/parser.hpp"

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace tplimit {
namespace {

// ---- the tree as text: (+ a (* b c))
// --------------------------------------------------------------

std::string text_of(const ast::Expr& expr);
std::string text_of(const ast::ExprPtr& expr) { return expr ? text_of(*expr) : "_"; }
std::string text_of(const ast::Identifier& identifier) { return identifier.name; }
std::string text_of(const ast::NamedArgument& argument) {
  return argument.name.name + "=" + text_of(argument.value);
}
std::string text_of(const ast::Argument& a) {
  return a.otherwise ? fmt::format("{}={}", a.name.name, text_of(a.otherwise)) : a.name.name;
}
std::string text_of(const ast::MapEntry& entry) {
  return text_of(entry.key) + ":" + text_of(entry.value);
}
std::string text_of(const ast::Width::Item& i) {
  return i.value ? i.name.name + "=" + text_of(i.value) : i.name.name;
}
std::string text_of(const ast::ReportItem& i) {
  return i.name.empty() ? text_of(i.value) : i.name[0].name + "=" + text_of(i.value);
}

template <class T>
std::string joined(const std::vector<T>& items) {
  std::string out;
  for (const T& item : items) out += (out.empty() ? "" : " ") + text_of(item);
  return out;
}

std::string_view sign_of(ast::BinaryOp op) {
  using enum ast::BinaryOp;
  switch (op) {
    case kAdd: return "+";
    case kSub: return "-";
    case kMul: return "*";
    case kDiv: return "/";
    case kPow: return "^";
    case kMatMul: return "@";
    case kLess: return "<";
    case kLessEqual: return "<=";
    case kGreater: return ">";
    case kGreaterEqual: return ">=";
    case kEqual: return "==";
    case kNotEqual: return "!=";
  }
  return "?";
}

struct ExprText {
  std::string operator()(const ast::Number& e) const { return fmt::format("{}", e.value); }
  std::string operator()(const ast::String& e) const { return '"' + e.value + '"'; }
  std::string operator()(const ast::Boolean& e) const { return e.value ? "true" : "false"; }
  std::string operator()(const ast::Name& e) const { return e.name; }
  std::string operator()(const ast::Negate& e) const {
    return fmt::format("(- {})", text_of(e.operand));
  }
  std::string operator()(const ast::Transpose& e) const {
    return fmt::format("(' {})", text_of(e.operand));
  }
  std::string operator()(const ast::Binary& e) const {
    return fmt::format("({} {} {})", sign_of(e.op), text_of(e.left), text_of(e.right));
  }
  std::string operator()(const ast::Range& e) const {
    return fmt::format("(.. {} {}{})", text_of(e.begin), text_of(e.end),
                       e.step ? " " + text_of(e.step) : "");
  }
  std::string operator()(const ast::Index& e) const {
    return fmt::format("{}[{}]", text_of(e.base), joined(e.items));
  }
  std::string operator()(const ast::Call& e) const {
    return fmt::format("{}({}{}{})", e.callee.name, joined(e.args),
                       e.args.empty() || e.named.empty() ? "" : " ", joined(e.named));
  }
  std::string operator()(const ast::List& e) const { return fmt::format("[{}]", joined(e.items)); }
  std::string operator()(const ast::Tuple& e) const { return fmt::format("<{}>", joined(e.items)); }
  std::string operator()(const ast::Map& e) const {
    return fmt::format("{{{}}}", joined(e.entries));
  }
};

std::string text_of(const ast::Expr& expr) { return std::visit(ExprText{}, expr.node); }

std::string text_of(const std::vector<ast::Stmt>& body);

struct StmtText {
  std::string operator()(const ast::Width& s) const {
    return fmt::format("width {}", joined(s.items));
  }
  std::string operator()(const ast::Const& s) const {
    return fmt::format("{} {} {}", s.depth ? "depth" : "const", s.name.name, text_of(s.value));
  }
  std::string operator()(const ast::Data& s) const {
    return fmt::format("data <{}> {}", joined(s.names), text_of(s.value));
  }
  std::string operator()(const ast::Param& s) const {
    return fmt::format("{} {} <{}> [{}] {} <{}>", s.trained ? "param" : "random", s.name.name,
                       joined(s.role), joined(s.axes), text_of(s.law), joined(s.options));
  }
  std::string operator()(const ast::Assign& s) const {
    return fmt::format("<{}> = {}", joined(s.targets), joined(s.values));
  }
  std::string operator()(const ast::Function& s) const {
    const auto* value = s.body.empty() ? nullptr : std::get_if<ast::Return>(&s.body[0].node);
    if (value && value->values.size() == 1)  // of `= value` as of `{ return value }`
      return fmt::format("fn {} <{}> {}", s.name.name, joined(s.params), text_of(value->values[0]));
    return fmt::format("model {} <{}> {{{}}}", s.name.name, joined(s.params), text_of(s.body));
  }
  std::string operator()(const ast::If& s) const {
    std::string out;
    for (const auto& [condition, body] : s.branches)
      out += fmt::format("{}{} {{{}}}", out.empty() ? "if " : " else ",
                         condition ? text_of(condition) : "", text_of(body));
    return out;
  }
  std::string operator()(const ast::Assert& s) const {
    return fmt::format("assert {} {}", text_of(s.condition), s.text ? text_of(s.text) : "");
  }
  std::string operator()(const ast::Import& s) const {
    return fmt::format("import {} as {}", s.path.value, s.space);
  }
  std::string operator()(const ast::Return& s) const {
    return fmt::format("return {}", joined(s.values));
  }
  std::string operator()(const ast::For& s) const {
    return fmt::format("for {} {} {{{}}}", s.variable.name, text_of(s.range), text_of(s.body));
  }
  std::string operator()(const ast::Step& s) const {
    return fmt::format("step {}", joined(s.updates));
  }
  std::string operator()(const ast::Update& s) const {
    const std::string_view op = s.op == ast::UpdateOp::kAdd   ? "+="
                                : s.op == ast::UpdateOp::kSub ? "-="
                                                              : "*=";
    return fmt::format("{} {} {}", text_of(s.target), op, text_of(s.value));
  }
  std::string operator()(const ast::Report& s) const {
    return fmt::format("report {}", joined(s.items));
  }
  std::string operator()(const ast::Expect& s) const {
    return fmt::format("expect {} {} {}", text_of(s.left), text_of(s.right), text_of(s.within));
  }
  std::string operator()(const ast::Parametrization& s) const {
    return fmt::format("parametrization {}", text_of(s.value));
  }
};

std::string text_of(const std::vector<ast::Stmt>& body) {
  std::string out;
  for (const ast::Stmt& statement : body)
    out += (out.empty() ? "" : "; ") + std::visit(StmtText{}, statement.node);
  return out;
}

/// The statements of a program, or its rendered errors.
std::string parsed(const std::string& text) {
  const Source source("t.tp", text);
  const auto program = parse_syntax(source, false);
  return program ? text_of(program->statements) : render(program.errors(), source);
}

/// The value of `text` as an expression.
std::string expression(const std::string& text) {
  const Source source("t.tp", "x = " + text);
  const auto program = parse_syntax(source);
  if (!program) return render(program.errors(), source);
  return text_of(std::get<ast::Assign>(program->statements.at(0).node).values.at(0));
}

/// "line:column code" of each error.
std::vector<std::string> errors(const std::string& text) {
  const Source source("t.tp", text);
  const auto program = parse_syntax(source);
  std::vector<std::string> out;
  for (const Diagnostic& error : program.errors()) {
    const Location where = source.locate(error.span.begin);
    out.push_back(fmt::format("{}:{} {}", where.line, where.column, error.code));
  }
  return out;
}

using Errors = std::vector<std::string>;

Diagnostic only_error(const std::string& text) {
  const auto program = parse_syntax(Source("t.tp", text));
  EXPECT_EQ(program.errors().size(), 1u) << text;
  return program.errors().empty() ? Diagnostic{} : program.errors().front();
}

std::string repeated(std::string_view text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

// ---- expressions
// ----------------------------------------------------------------------------------

TEST(ParseExpression, ReadsAtoms) {
  EXPECT_EQ(expression("1"), "1");
  EXPECT_EQ(expression(".5e-1"), "0.05");
  EXPECT_EQ(expression("name_1"), "name_1");
  EXPECT_EQ(expression("true"), "true");
  EXPECT_EQ(expression("false"), "false");
  EXPECT_EQ(expression(R"("a\tb\n\"c\" \\")"), "\"a\tb\n\"c\" \\\"");
}

TEST(ParseExpression, ReadsSumsAndProductsFromTheLeft) {
  EXPECT_EQ(expression("a - b - c + d"), "(+ (- (- a b) c) d)");
  EXPECT_EQ(expression("a / b * c / d"), "(/ (* (/ a b) c) d)");
  EXPECT_EQ(expression("a + b * c"), "(+ a (* b c))");
  EXPECT_EQ(expression("(a + b) * c"), "(* (+ a b) c)");
}

TEST(ParseExpression, ReadsPowersFromTheRight) {
  EXPECT_EQ(expression("a^b^c"), "(^ a (^ b c))");
  EXPECT_EQ(expression("2 * n^2"), "(* 2 (^ n 2))");
  EXPECT_EQ(expression("n^-0.5"), "(^ n (- 0.5))");
  EXPECT_EQ(expression("2^-1^2"), "(^ 2 (- (^ 1 2)))");
  EXPECT_EQ(expression("2^-1 * 3"), "(* (^ 2 (- 1)) 3)");
  EXPECT_EQ(expression("2^-a @ b"), "(@ (^ 2 (- a)) b)");
  EXPECT_EQ(expression("a'^2"), "(^ (' a) 2)");
}

TEST(ParseExpression, ReadsMatrixProductsFromTheRight) {
  EXPECT_EQ(expression("W @ W' @ x"), "(@ W (@ (' W) x))");
  EXPECT_EQ(expression("v @ z / n"), "(/ (@ v z) n)");
  EXPECT_EQ(expression("2 * W @ x"), "(* 2 (@ W x))");
  EXPECT_EQ(expression("A @ x^2"), "(@ A (^ x 2))");
  EXPECT_EQ(expression("W[l] @ z"), "(@ W[l] z)");
}

TEST(ParseExpression, BindsSignsBetweenProductsAndMatrixProducts) {
  EXPECT_EQ(expression("-x^2"), "(- (^ x 2))");
  EXPECT_EQ(expression("-A @ x"), "(- (@ A x))");
  EXPECT_EQ(expression("-a * b"), "(* (- a) b)");
  EXPECT_EQ(expression("-a + b"), "(+ (- a) b)");
  EXPECT_EQ(expression("2 * -x"), "(* 2 (- x))");
  EXPECT_EQ(expression("2 * -A @ x"), "(* 2 (- (@ A x)))");
  EXPECT_EQ(expression("A @ -x @ y + z"), "(+ (@ A (- (@ x y))) z)");
  EXPECT_EQ(expression("a - -b"), "(- a (- b))");
  EXPECT_EQ(expression("--a"), "(- (- a))");
  EXPECT_EQ(expression("+a - +b"), "(- a b)");
  EXPECT_EQ(expression("-x'"), "(- (' x))");
}

TEST(ParseExpression, BindsComparisonsLoosest) {
  EXPECT_EQ(expression("a + 1 < b * 2"), "(< (+ a 1) (* b 2))");
  EXPECT_EQ(expression("where(x >= 0, x, 0)"), "where((>= x 0) x 0)");
  EXPECT_EQ(expression("a == b"), "(== a b)");
  EXPECT_EQ(expression("a != b"), "(!= a b)");
  EXPECT_EQ(expression("(a <= b) * (b > c)"), "(* (<= a b) (> b c))");
}

TEST(ParseExpression, AppliesPostfixOperatorsInOrder) {
  EXPECT_EQ(expression("W'[0]'"), "(' (' W)[0])");
  EXPECT_EQ(expression("f(X)[0][1]"), "f(X)[0][1]");
  EXPECT_EQ(expression("(a + b)'"), "(' (+ a b))");
}

TEST(ParseExpression, ReadsIndices) {
  EXPECT_EQ(expression("X[i, j..k]"), "X[i (.. j k)]");
  EXPECT_EQ(expression("X[a+1..b-1]"), "X[(.. (+ a 1) (- b 1))]");
  EXPECT_EQ(expression("X[perm[a..b]]"), "X[perm[(.. a b)]]");
  EXPECT_EQ(expression("X[.., 0]"), "X[(.. _ _) 0]");
  EXPECT_EQ(expression("X[a..]"), "X[(.. a _)]");
  EXPECT_EQ(expression("X[..b, a..]"), "X[(.. _ b) (.. a _)]");
  EXPECT_EQ(expression("X[-1..0]"), "X[(.. (- 1) 0)]");
}

TEST(ParseExpression, ReadsCalls) {
  EXPECT_EQ(expression("f()"), "f()");
  EXPECT_EQ(expression("f(a, g(b))"), "f(a g(b))");
  EXPECT_EQ(expression("sgd(loss, lr = eta, only = (U, v), scale = {W: n^2, U[0]: n})"),
            "sgd(loss lr=eta only=<U v> scale={W:(^ n 2) U[0]:n})");
  EXPECT_EQ(expression("csv(\"f\", rows = 0..32)"), "csv(\"f\" rows=(.. 0 32))");
  EXPECT_EQ(expression("take(X, 0..4)"), "take(X (.. 0 4))");
  EXPECT_EQ(expression("f(a == b)"), "f((== a b))");
  EXPECT_EQ(expression("f({})"), "f({})");
}

TEST(ParseExpression, TellsTuplesFromParentheses) {
  EXPECT_EQ(expression("(a)"), "a");
  EXPECT_EQ(expression("(a,)"), "<a>");
  EXPECT_EQ(expression("(a, b)"), "<a b>");
  EXPECT_EQ(expression("(a, b,)"), "<a b>");
}

TEST(ParseExpression, NestsLists) {
  EXPECT_EQ(expression("[]"), "[]");
  EXPECT_EQ(expression("[1, -2]"), "[1 (- 2)]");
  EXPECT_EQ(expression("[[1, 2], [3, 4],]"), "[[1 2] [3 4]]");
}

TEST(ParseExpression, SpansItsTokensAndParentheses) {
  const Source source("t.tp", "y = 2 * ( a + b )' - f( c )[0]");
  const auto program = parse_syntax(source);
  ASSERT_TRUE(program.ok());
  const ast::Expr& difference = *std::get<ast::Assign>(program->statements[0].node).values[0];
  EXPECT_EQ(source.text(program->statements[0].span), source.text());
  EXPECT_EQ(source.text(difference.span), "2 * ( a + b )' - f( c )[0]");
  const auto& minus = std::get<ast::Binary>(difference.node);
  EXPECT_EQ(source.text(minus.op_span), "-");
  EXPECT_EQ(source.text(minus.right->span), "f( c )[0]");
  const auto& product = std::get<ast::Binary>(minus.left->node);
  EXPECT_EQ(source.text(product.right->span), "( a + b )'");
  EXPECT_EQ(source.text(std::get<ast::Transpose>(product.right->node).operand->span), "( a + b )");
}

// ---- statements
// -----------------------------------------------------------------------------------

TEST(ParseStatement, ReadsDeclarations) {
  EXPECT_EQ(parsed("width n"), "width n");
  EXPECT_EQ(parsed("width n, m = 2 * n"), "width n m=(* 2 n)");
  EXPECT_EQ(parsed("const T = 20"), "const T 20");
  EXPECT_EQ(parsed("depth L = 8"), "depth L 8");
  EXPECT_EQ(parsed("const depth = 8"), "const depth 8");
  EXPECT_EQ(parsed("data X, y = csv(\"f.csv\")"), "data <X y> csv(\"f.csv\")");
  EXPECT_EQ(parsed("data X = [[1], [2]]"), "data <X> [[1] [2]]");
  EXPECT_EQ(parsed("param U : [n, 64] ~ normal(0, 1/64), lr = n"),
            "param U <> [n 64] normal(0 (/ 1 64)) <lr=n>");
  EXPECT_EQ(parsed("param W : hidden [n, n] ~ normal(0, 1), lr = 1, wd = 0.1"),
            "param W <hidden> [n n] normal(0 1) <lr=1 wd=0.1>");
  EXPECT_EQ(parsed("param W : hidden [n, n]"), "param W <hidden> [n n] _ <>");
  EXPECT_EQ(parsed("random c : [] ~ normal(0, 1)"), "random c <> [] normal(0 1) <>");
  EXPECT_EQ(parsed("parametrization mup"), "parametrization mup");
  EXPECT_EQ(parsed("parametrization abc(a = 0, b = 1/2)"), "parametrization abc(a=0 b=(/ 1 2))");
  EXPECT_EQ(parsed("fn phi(z) = tanh(z)^2"), "fn phi <z> (^ tanh(z) 2)");
}

TEST(ParseStatement, SpansTheAxesWithTheirBrackets) {
  const Source source("t.tp", "param U : input [ n, 3 ] ~ normal(0, 1)");
  const auto program = parse_syntax(source);
  ASSERT_TRUE(program.ok());
  EXPECT_EQ(source.text(std::get<ast::Param>(program->statements[0].node).axes_span), "[ n, 3 ]");
}

TEST(ParseStatement, ReadsAssignmentsAndUpdates) {
  EXPECT_EQ(parsed("a = b"), "<a> = b");
  EXPECT_EQ(parsed("out, z = f(X)"), "<out z> = f(X)");
  EXPECT_EQ(parsed("a, b = b, a"), "<a b> = b a");
  EXPECT_EQ(parsed("W += c * outer(d, x)"), "W += (* c outer(d x))");
  EXPECT_EQ(parsed("W -= d"), "W -= d");
  EXPECT_EQ(parsed("W[0] *= c"), "W[0] *= c");
}

TEST(ParseStatement, ReadsModelsAndLoops) {
  EXPECT_EQ(parsed("model f(x, y) {\n  h = x\n\n  return h, y\n}\n"),
            "model f <x y> {<h> = x; return h y}");
  EXPECT_EQ(parsed("model f() { return 1 }"), "fn f <> 1");
  EXPECT_EQ(parsed("fn f(x, c = 1) { return c }"), "fn f <x c=1> c");
  EXPECT_EQ(parsed("if a { b = 1 }\n\nelse if c { } else { d = 2 }"),
            "if a {<b> = 1} else c {} else  {<d> = 2}");
  EXPECT_EQ(parsed("assert a < b, \"t\""), "assert (< a b) \"t\"");
  EXPECT_EQ(parsed("for i in 9..-1 by -2 { }"), "for i (.. 9 (- 1) (- 2)) {}");
  EXPECT_EQ(parsed("for l in 0..2 { z = tanh(W[l] @ z) }"),
            "for l (.. 0 2) {<z> = tanh((@ W[l] z))}");
  EXPECT_EQ(parsed("for i in a+1..b { for j in 0..i { s = 1; t = 2 }; u = 3 }"),
            "for i (.. (+ a 1) b) {for j (.. 0 i) {<s> = 1; <t> = 2}; <u> = 3}");
  EXPECT_EQ(parsed("for i in 0..2 {}"), "for i (.. 0 2) {}");
  EXPECT_EQ(parsed("model f(x) { for i in 0..2 { return x } }"),
            "model f <x> {for i (.. 0 2) {return x}}");
}

TEST(ParseStatement, ReadsStepsReportsAndExpectations) {
  EXPECT_EQ(parsed("step sgd(loss, lr = 1), sgd(b, lr = 2)"), "step sgd(loss lr=1) sgd(b lr=2)");
  EXPECT_EQ(parsed("report a, K = gram(z), out"), "report a K=gram(z) out");
  EXPECT_EQ(parsed("report a == b"), "report (== a b)");
  EXPECT_EQ(parsed("expect E(u * x) == 1 - a within 1e-3"), "expect E((* u x)) (- 1 a) 0.001");
}

TEST(ParseStatement, EndsAtNewlinesOutsideBracketsAndAtSemicolons) {
  EXPECT_EQ(parsed("a = 1; b = 2;; c = 3;\n;\n"), "<a> = 1; <b> = 2; <c> = 3");
  EXPECT_EQ(parsed("a = f(1,\n\n  2  # two\n)\nb = (3\n + 4)\n"), "<a> = f(1 2); <b> = (+ 3 4)");
  EXPECT_EQ(parsed("a = [[1,\n 2],\n\n [3, 4]\n]"), "<a> = [[1 2] [3 4]]");
  EXPECT_EQ(parsed("step sgd(loss, scale = {W: 1,\n U\n: 2\n})"), "step sgd(loss scale={W:1 U:2})");
  EXPECT_EQ(parsed("a = W[\n0\n]"), "<a> = W[0]");
}

TEST(ParseStatement, GoesOnBehindACommaAtTheEndOfALine) {
  EXPECT_EQ(parsed("report a,\n  # and\n\n  b,\n  c\nd = 1"), "report a b c; <d> = 1");
  EXPECT_EQ(parsed("param U : [n] ~ normal(0, 1),\n  lr = n"), "param U <> [n] normal(0 1) <lr=n>");
  EXPECT_EQ(parsed("a,\nb = f(x)"), "<a b> = f(x)");
}

TEST(ParseStatement, AcceptsBlankLinesCommentsAndBothLineEnds) {
  EXPECT_EQ(parsed(""), "");
  EXPECT_EQ(parsed("\n\n# only a comment"), "");
  EXPECT_EQ(parsed("\r\na = 1 # one\r\n\r\nb = 2"), "<a> = 1; <b> = 2");
  EXPECT_EQ(parsed("model f(x) { # head\n  # inside\n  return x\n  # end\n}"), "fn f <x> x");
}

TEST(ParseStatement, ReadsTheProgramOfTheDesign) {
  EXPECT_EQ(errors(R"(
width n
const T = 20
data X, y = csv("data/digits8x8.csv", rows = 0..32, target = "target", standardize = true, standardize_target = true)
param U : [n, 64]   ~ normal(0, 1/64),  lr = n        # init law and learning-rate scale
param W : [2, n, n] ~ normal(0, 1/n)
param v : [n]       ~ normal(0, 1),     lr = n
model f(x) {                    # x : [P, 64]
  h = U @ x
  z = tanh(h)
  for l in 0..2 { z = tanh(W[l] @ z) }
  return v @ z / n, z
}
for t in 0..T {
  out, z = f(X)
  loss = mse(out, y)
  report loss, out, gram(z), min_eig(gram(z))
  step sgd(loss, lr = 0.5)
}
random A : [n, n] ~ normal(0, 1/n)
u = A' @ tanh(y)
expect E(u * x) == E(1 - tanh(y)^2) within 1e-3
)"),
            Errors{});
}

// ---- errors
// ---------------------------------------------------------------------------------------

TEST(ParseError, ShowsPlaceLabelNoteAndHelp) {
  EXPECT_EQ(parsed("a = (1 2)\nb = 3 ** 4\n"),
            "t.tp:1:8: error[E1011]: expected ',' or ')', found '2'\n"
            "   1 | a = (1 2)\n"
            "     |        ^ expected ',' or ')'\n"
            "t.tp:1:5: note: the '(' is here\n"
            "help: a product is written with '*'\n"
            "t.tp:2:7: error[E1028]: '**' is not an operator\n"
            "   2 | b = 3 ** 4\n"
            "     |       ^^\n"
            "help: a power is written '^'\n");
}

TEST(ParseError, PointsAtMissingExpressions) {
  EXPECT_EQ(errors("a ="), Errors{"1:4 E1010"});
  EXPECT_EQ(errors("a = b +  # more\n"), Errors{"1:8 E1010"});
  EXPECT_EQ(errors("a = ()"), Errors{"1:5 E1010"});
  EXPECT_EQ(errors("a = W[]"), Errors{"1:6 E1010"});
  EXPECT_EQ(errors("a = * 3"), Errors{"1:5 E1010"});
  EXPECT_EQ(errors("a = {W: 1}"), Errors{"1:5 E1010"});
  EXPECT_EQ(errors("report a,\nstep sgd(b)"), Errors{"2:1 E1010"});
  EXPECT_EQ(only_error("report a,\nstep sgd(b)").help,
            "the comma at the end of the line before continues it here");
}

TEST(ParseError, NamesWhatItExpected) {
  EXPECT_EQ(only_error("data X csv()").message,
            "expected '=' after the names of data, found 'csv'");
  EXPECT_EQ(only_error("param U [n]").message,
            "expected ':' after the name of a parameter, found '['");
  EXPECT_EQ(only_error("param U : [n] = 3").message,
            "expected '~' before the law of a parameter, found '='");
  EXPECT_EQ(only_error("param U : n ~ normal(0, 1)").message,
            "expected '[' before the axes of a parameter, found '~'");
  EXPECT_EQ(only_error("for i = 0..2 { }").message,
            "expected 'in' after the loop variable, found '='");
  EXPECT_EQ(only_error("expect a = b within 1").message,
            "expected '==' between the sides of 'expect', found '='");
  EXPECT_EQ(only_error("expect a == b").message,
            "expected 'within' before the tolerance of 'expect', found the end of the file");
  EXPECT_EQ(only_error("width 3\n").message, "expected the name of a width, found '3'");
  EXPECT_EQ(only_error("fn f(z) { z }").code, "E1013");
  EXPECT_EQ(only_error("step sgd(a, scale = {W = 1})").message,
            "expected ':' after the key of a map, found '='");
}

TEST(ParseError, RefusesASecondStatementOnTheLine) {
  EXPECT_EQ(errors("a = 1 b = 2"), Errors{"1:7 E1012"});
  EXPECT_EQ(errors("for i in 0..1 { a = 1 } b = 2"), Errors{"1:25 E1012"});
  EXPECT_EQ(errors("const a = 1, b = 2"), Errors{"1:12 E1012"});
  EXPECT_EQ(errors("x = y = 3"), Errors{"1:7 E1012"});
  EXPECT_EQ(errors("y = 2 (x)"), Errors{"1:7 E1012"});
  EXPECT_EQ(errors("a = x {"), (Errors{"1:7 E1012"}));
}

TEST(ParseError, RefusesWhatIsNoStatement) {
  EXPECT_EQ(errors("f(x)"), Errors{"1:1 E1013"});
  EXPECT_EQ(errors("x + 3"), Errors{"1:1 E1013"});
  EXPECT_EQ(errors("3 = x"), Errors{"1:1 E1013"});
  EXPECT_EQ(errors("in = 3"), Errors{"1:1 E1013"});
  EXPECT_EQ(errors("U : [n] ~ normal(0, 1)"), Errors{"1:3 E1013"});
  EXPECT_EQ(errors("{ a = 1 }"), Errors{"1:1 E1013"});
}

TEST(ParseError, SuggestsTheKeywordMeant) {
  EXPECT_EQ(only_error("parm U : [n] ~ normal(0, 1)").help, "did you mean 'param'?");
  EXPECT_EQ(only_error("retrun x").help, "did you mean 'return'?");
  EXPECT_EQ(only_error("reports x").help, "did you mean 'report'?");
  EXPECT_EQ(only_error("something x").help, "");
}

TEST(ParseError, TellsWhereTheUnclosedBracketIs) {
  EXPECT_EQ(errors("y = f(x\nz = 3\n"), Errors{"2:1 E1014"});
  EXPECT_EQ(errors("y = f(x\nreport z\nw = (1\n"), (Errors{"2:1 E1014", "3:7 E1014"}));
  EXPECT_EQ(errors("y = (a]"), Errors{"1:7 E1014"});
  const Diagnostic error = only_error("y = f(x, [1, 2\nreport y\n");
  EXPECT_EQ(error.message, "'[' is not closed before the keyword 'report'");
  ASSERT_EQ(error.notes.size(), 1u);
  EXPECT_EQ(error.notes[0].span, (Span{9, 10}));
}

TEST(ParseError, ReportsBracketsThatCloseNothing) {
  EXPECT_EQ(errors("y = a)"), Errors{"1:6 E1015"});
  EXPECT_EQ(errors("] = 3"), Errors{"1:1 E1015"});
  EXPECT_EQ(errors("a = 1\n}\nb = 2"), Errors{"2:1 E1015"});
}

TEST(ParseError, ReadsABodyWithoutItsOpeningBrace) {
  EXPECT_EQ(errors("for i in 0..2\n  a = 1\n}\nb = 2"), Errors{"1:14 E1016"});
  EXPECT_EQ(errors("for i in 0..2\n{\n  a = 1\n}\n"), Errors{"1:14 E1016"});
  EXPECT_EQ(errors("for i in 0..2:\n  a = 1\nb = 2"), Errors{"1:14 E1016"});
  EXPECT_EQ(errors("for i in 0..2: {\n  a = 1\n}\nb = 2"), Errors{"1:14 E1016"});
  EXPECT_EQ(errors("model f(x)\n  return x\n}"), Errors{"1:11 E1016"});
}

TEST(ParseError, ReportsBodiesLeftOpen) {
  EXPECT_EQ(errors("for i in 0..2 {\n  a = 1\n"), Errors{"2:8 E1017"});
  EXPECT_EQ(errors("model f(x) { for i in 0..2 {"), Errors{"1:29 E1017"});
}

TEST(ParseError, RefusesChainedComparisons) {
  EXPECT_EQ(errors("a = x < y < z"), Errors{"1:11 E1018"});
}

TEST(ParseError, AllowsRangesInTheirPlacesOnly) {
  EXPECT_EQ(errors("a = 0..3"), Errors{"1:6 E1019"});
  EXPECT_EQ(errors("a = [0..3]"), Errors{"1:7 E1019"});
  EXPECT_EQ(errors("a = (0..3)"), Errors{"1:7 E1019"});
  EXPECT_EQ(errors("a = f(..3)"), Errors{"1:7 E1019"});
  EXPECT_EQ(errors("a = X[0..1..2]"), Errors{"1:11 E1019"});
  EXPECT_EQ(errors("a = f(0..)"), Errors{"1:10 E1010"});
  EXPECT_EQ(errors("for i in ..3 { }"), Errors{"1:10 E1019"});
  EXPECT_EQ(errors("for i in 0.. { }"), Errors{"1:14 E1010"});
  EXPECT_EQ(errors("for i in 5 { }"), Errors{"1:10 E1026"});
}

TEST(ParseError, RefusesTargetsThatAreNoNames) {
  EXPECT_EQ(errors("W[0] = x"), Errors{"1:1 E1020"});
  EXPECT_EQ(errors("W' += x"), Errors{"1:1 E1020"});
  EXPECT_EQ(errors("W[0][1] += x"), Errors{"1:1 E1020"});
  EXPECT_EQ(errors("f(x) *= 2"), Errors{"1:1 E1020"});
}

TEST(ParseError, ChecksTheFormOfStatements) {
  EXPECT_EQ(errors("return 3"), Errors{"1:1 E1021"});
  EXPECT_EQ(errors("model f(x) { return x }\nreturn 3"), Errors{"2:1 E1021"});
  EXPECT_EQ(errors("a = f(lr = 1, 2)"), Errors{"1:15 E1022"});
  EXPECT_EQ(errors("param U : [n] ~ 3"), Errors{"1:17 E1023"});
  EXPECT_EQ(errors("step loss"), Errors{"1:6 E1024"});
  EXPECT_EQ(errors("parametrization 3"), Errors{"1:17 E1025"});
  EXPECT_EQ(errors("const step = 3"), Errors{"1:7 E1027"});
  EXPECT_EQ(errors("fn f(in) = 3"), Errors{"1:6 E1027"});
}

TEST(ParseError, KnowsOperatorsOfOtherLanguages) {
  EXPECT_EQ(errors("a == 3"), Errors{"1:3 E1028"});
  EXPECT_EQ(errors("a := 3"), Errors{"1:3 E1028"});
  EXPECT_EQ(errors("a /= 3"), Errors{"1:3 E1028"});
  EXPECT_EQ(errors("a++"), Errors{"1:2 E1028"});
  EXPECT_EQ(errors("a = b // c"), Errors{"1:7 E1028"});
  EXPECT_EQ(errors("a = b /= c"), Errors{"1:7 E1028"});
  EXPECT_EQ(errors("a = 'text'"), Errors{"1:5 E1007"});
  EXPECT_EQ(errors("data X = csv('data/digits.csv')"), Errors{"1:14 E1007"})
      << "nothing about the dot behind it";
}

TEST(ParseError, KnowsWordsOfOtherLanguages) {
  EXPECT_EQ(errors("if x > 3 {\n  a = 1\n}\nelif y { }\nb = 2"), Errors{"4:1 E1029"});
  EXPECT_EQ(errors("while (x) { }"), Errors{"1:1 E1029"});
  EXPECT_EQ(errors("let a = 3"), Errors{"1:1 E1029"});
  EXPECT_EQ(errors("print(a)"), Errors{"1:1 E1029"});
  EXPECT_EQ(errors("matrix W : [n, n] ~ normal(0, 1/n)"), Errors{"1:1 E1029"});
  EXPECT_EQ(errors("vector u ~ normal(0, 1) [n]"), Errors{"1:1 E1029"});
  EXPECT_EQ(errors("let = 3\nprint = let"), Errors{}) << "they are ordinary names";
}

TEST(ParseError, OfBranches) {
  EXPECT_EQ(errors("if a\n  b = 1\n}"), Errors{"1:5 E1016"});
  EXPECT_EQ(errors("else { }"), Errors{"1:1 E1013"});
  EXPECT_EQ(errors("a = if b"), Errors{"1:5 E1010"});
  EXPECT_EQ(errors("// text\na = 1"), Errors{"1:1 E1028"});
  EXPECT_EQ(errors("fn f(a = 1, b) = 2"), Errors{"1:13 E1033"});
}

TEST(ParseError, ReportsNumbersOutOfRange) {
  EXPECT_EQ(errors("a = 1e999"), Errors{"1:5 E1004"});
  EXPECT_EQ(errors("a = 1e-999"), Errors{"1:5 E1004"});
}

TEST(ParseError, MergesThoseOfTheLexerInOrder) {
  EXPECT_EQ(errors("a = 1 $ 2\nb = )\nc = 1.2.3\nd = \"open\n"),
            (Errors{"1:7 E1001", "2:5 E1010", "3:5 E1003", "4:5 E1005"}));
  EXPECT_EQ(errors("a = \u03B7 + 1.5.2"), Errors{"1:5 E1002"}) << "one for each line";
}

TEST(ParseError, GoesOnWithTheNextLine) {
  EXPECT_EQ(errors("a = +\nb = 1\nc = f(1 2,\n  3)\nd = *\n"),
            (Errors{"1:6 E1010", "3:9 E1011", "5:5 E1010"}));
  EXPECT_EQ(errors("model f(x {\n  a = )\n  return x\n}\nb = )"),
            (Errors{"1:11 E1011", "2:7 E1010", "5:5 E1010"}));
  EXPECT_EQ(errors("for i in 0..2 { a = ) }\nb = )"), (Errors{"1:21 E1010", "2:5 E1010"}));
  EXPECT_EQ(errors("for i in 0..2 {\n  a = (\n}\nb = 1"), Errors{"3:1 E1010"});
}

TEST(ParseError, StopsAfterTwenty) {
  EXPECT_EQ(errors(repeated("a = )\n", 100)).size(), 20u);
  EXPECT_EQ(errors(repeated("a = $\n", 100)).size(), 20u);
  EXPECT_EQ(errors(repeated("return 1\n", 100)).size(), 20u);
}

// ---- limits
// ---------------------------------------------------------------------------------------

// ---- several files

TEST(ParseImports, ReadsPathsAndNames) {
  EXPECT_EQ(parsed("import \"lib/blocks.tp\""), "import lib/blocks.tp as blocks.");
  EXPECT_EQ(parsed("import \"my-net.tp\" as net"), "import my-net.tp as net.");
  EXPECT_EQ(imported_paths("import \"a.tp\"\nx = 1\nimport \"b/c.tp\" as d\n"),
            (std::vector<std::string>{"a.tp", "b/c.tp"}));
}

TEST(ParseLimits, AllowsTwoHundredLevels) {
  EXPECT_EQ(expression(repeated("(", 200) + "a" + repeated(")", 200)), "a");
  EXPECT_EQ(errors("x = " + repeated("(", 201) + "a" + repeated(")", 201)), Errors{"1:205 E1030"});
  EXPECT_EQ(errors(repeated("for i in 0..1 {\n", 200) + repeated("}\n", 200)), Errors{});
  EXPECT_EQ(errors(repeated("for i in 0..1 {\n", 201) + repeated("}\n", 201)),
            Errors{"201:15 E1030"});
}

TEST(ParseLimits, ReportsDeepNestingOnce) {
  constexpr int kMany = 100'000;
  for (const char* opening : {"(", "[", "- ", "+", "a^", "a@", "f(", "W[", "f({a:", "2^-"}) {
    EXPECT_EQ(only_error("x = " + repeated(opening, kMany)).code, "E1030") << opening;
  }
  EXPECT_EQ(only_error(repeated("for i in 0..1 {", kMany)).code, "E1030");
  EXPECT_EQ(only_error(repeated("model f(x) {\n", kMany)).code, "E1030");
}

TEST(ParseLimits, SurvivesDeepBodiesOfBrokenHeaders) {
  EXPECT_FALSE(errors(repeated("for {", 100'000)).empty());
  EXPECT_FALSE(errors(repeated("{", 100'000)).empty());
  EXPECT_FALSE(errors(repeated("}", 100'000)).empty());
}

TEST(ParseLimits, BoundsTheHeightOfTrees) {
  EXPECT_EQ(errors("x = a" + repeated(" + a", 999)), Errors{});
  for (const char* more : {" + a", " * a", "'", "[0]", " - (a)"}) {
    EXPECT_EQ(only_error("x = a" + repeated(more, 100'000)).code, "E1031") << more;
  }
}

TEST(ParseLimits, HoldsLongListsAndPrograms) {
  EXPECT_EQ(errors("x = [" + repeated("1/3, ", 100'000) + "]"), Errors{});
  EXPECT_EQ(errors(repeated("x = 1\n", 100'000)), Errors{});
  EXPECT_EQ(errors("report a" + repeated(", a", 100'000)), Errors{});
}

}  // namespace
}  // namespace tplimit
