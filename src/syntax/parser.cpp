#include "tplimit/syntax/parser.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "syntax/lexer.hpp"
#include "tplimit/support/similar.hpp"
#include "tplimit/syntax/editing.hpp"

namespace tplimit {
namespace {

using syntax::abbreviated;
using syntax::begins_statement;
using syntax::is_keyword;
using syntax::spelling;
using syntax::Token;
using syntax::TokenKind;

// The parser recurses once per level of brackets, blocks, signs and right-associative operators.
constexpr int kMaxNesting = 200;
// Later stages and the destructors recurse over the tree: a+a+a+.. is as deep as it is long.
constexpr int kMaxHeight = 1000;
constexpr std::size_t kMaxErrors = 20;

/// How tightly an operator binds; the loosest first.
enum class Level { kComparison, kSum, kProduct, kSign, kMatMul, kPower };

constexpr Level tighter(Level level) { return static_cast<Level>(static_cast<int>(level) + 1); }

/// `@` and `^` read from right to left, the other operators from left to right.
constexpr Level level_of_right_operand(Level level) {
  return level == Level::kMatMul || level == Level::kPower ? level : tighter(level);
}

struct Infix {
  ast::BinaryOp op;
  Level level;
};

std::optional<Infix> infix(TokenKind kind) {
  using enum ast::BinaryOp;
  switch (kind) {
    case TokenKind::kLess: return Infix{kLess, Level::kComparison};
    case TokenKind::kLessEqual: return Infix{kLessEqual, Level::kComparison};
    case TokenKind::kGreater: return Infix{kGreater, Level::kComparison};
    case TokenKind::kGreaterEqual: return Infix{kGreaterEqual, Level::kComparison};
    case TokenKind::kEqualEqual: return Infix{kEqual, Level::kComparison};
    case TokenKind::kNotEqual: return Infix{kNotEqual, Level::kComparison};
    case TokenKind::kPlus: return Infix{kAdd, Level::kSum};
    case TokenKind::kMinus: return Infix{kSub, Level::kSum};
    case TokenKind::kStar: return Infix{kMul, Level::kProduct};
    case TokenKind::kSlash: return Infix{kDiv, Level::kProduct};
    case TokenKind::kAt: return Infix{kMatMul, Level::kMatMul};
    case TokenKind::kCaret: return Infix{kPow, Level::kPower};
    default: return std::nullopt;
  }
}

std::optional<ast::UpdateOp> update_operator(TokenKind kind) {
  switch (kind) {
    case TokenKind::kPlusEqual: return ast::UpdateOp::kAdd;
    case TokenKind::kMinusEqual: return ast::UpdateOp::kSub;
    case TokenKind::kStarEqual: return ast::UpdateOp::kMul;
    default: return std::nullopt;
  }
}

/// Words that begin a statement in other languages, and what this one has for them.
std::string_view help_for_foreign_word(std::string_view word) {
  struct Entry {
    std::string_view word, help;
  };
  static constexpr std::string_view kArray =
      "write 'param W : [n, n] ~ normal(0, 1/n)' if training moves it, otherwise 'random ..'";
  static constexpr auto kEntries = std::to_array<Entry>({
      {"elif", "write 'else if condition { .. }'"},
      {"elseif", "write 'else if condition { .. }'"},
      {"while", "loops run over a range known in advance: for i in a..b { .. }"},
      {"repeat", "loops run over a range known in advance: for i in a..b { .. }"},
      {"def", "write 'fn phi(z) = expression' or 'fn f(x) { .. return .. }'"},
      {"function", "write 'fn phi(z) = expression' or 'fn f(x) { .. return .. }'"},
      {"func", "write 'fn phi(z) = expression' or 'fn f(x) { .. return .. }'"},
      {"lambda", "write 'fn phi(z) = expression'"},
      {"let", "a value is named by 'name = expression', a constant by 'const name = expression'"},
      {"var", "a value is named by 'name = expression', a constant by 'const name = expression'"},
      {"matrix", kArray},
      {"vector", kArray},
      {"tensor", kArray},
      {"print", "results leave a program through 'report'"},
      {"include", "write: import \"file.tp\", and file.f(x) for what it declares"},
      {"from", "write: import \"file.tp\", and file.f(x) for what it declares"},
      {"class", "models are declared with 'model f(x) { .. }'"},
  });
  const auto found = std::ranges::find(kEntries, word, &Entry::word);
  return found == kEntries.end() ? std::string_view() : found->help;
}

/// The keyword that begins a statement and that `word` probably misspells, or "".
std::string_view similar_keyword(std::string_view word) {
  const std::size_t longest = spelling(TokenKind::kParametrization).size() + 2;
  if (word.size() < 3 || word.size() > longest) return "";
  const std::size_t allowed = word.size() < 5 ? 1 : 2;
  for (auto kind = TokenKind::kWidth; begins_statement(kind);
       kind = static_cast<TokenKind>(static_cast<int>(kind) + 1)) {
    if (edit_distance(word, spelling(kind)) <= allowed) return spelling(kind);
  }
  return "";
}

Diagnostic make_error(const char* code, Span span, std::string message, std::string label = {},
                      std::string help = {}) {
  return Diagnostic::error(code, std::move(message))
      .at(span)
      .with_label(std::move(label))
      .with_help(std::move(help));
}

char escaped(char c) {
  if (c == 'n') return '\n';
  if (c == 't') return '\t';
  return c;
}

/// Value of a string token; the lexer has checked its escapes.
std::string unescaped(std::string_view token) {
  std::string value;
  token.remove_prefix(1);
  if (token.ends_with('"')) token.remove_suffix(1);
  for (std::size_t i = 0; i < token.size(); ++i) {
    const bool escape = token[i] == '\\' && i + 1 < token.size();
    value += escape ? escaped(token[++i]) : token[i];
  }
  return value;
}

/// An expression and the height of its tree.
struct Tree {
  ast::ExprPtr expr;
  int height = 1;
};

template <class Node>
Tree make_tree(Node node, Span span, int height = 1) {
  return {std::make_unique<ast::Expr>(ast::Expr{std::move(node), span}), height};
}

using Statement = decltype(ast::Stmt::node);

/// Recursive descent, one function per construct.
///
/// After an error (`fail`) the parser sees nothing but the end of the text, so that every function
/// winds up by itself and returns placeholders; the statement is then thrown away and reading
/// resumes behind its line (`recover`).
class Parser {
 public:
  Parser(const Source& source, std::vector<Token> tokens, std::size_t begin)
      : source_(source), tokens_(std::move(tokens)), last_end_(static_cast<std::uint32_t>(begin)) {}

  ast::Program program() {
    ast::Program program;
    while (kind() != TokenKind::kEnd) {
      statements(program.statements);
      if (kind() == TokenKind::kRightBrace) stray_brace();
    }
    return program;
  }

  Diagnostics take_errors() { return std::move(errors_); }

 private:
  // ---- tokens
  // ---------------------------------------------------------------------------------------

  [[nodiscard]] const Token& token() const { return tokens_[at_]; }
  [[nodiscard]] TokenKind kind() const { return tokens_[at_].kind; }
  [[nodiscard]] std::string_view text(Span span) const { return source_.text(span); }
  [[nodiscard]] std::size_t last() const { return tokens_.size() - 1; }

  /// Kind of the token behind the current one.
  [[nodiscard]] TokenKind next_kind() const { return tokens_[next()].kind; }
  [[nodiscard]] std::size_t next() const {
    std::size_t i = std::min(at_ + 1, last());
    while (newlines_are_blanks() && tokens_[i].kind == TokenKind::kNewline) ++i;
    return i;
  }

  /// Inside ( ) and [ ] a statement goes on in the next line, and so it does behind a comma.
  [[nodiscard]] bool newlines_are_blanks() const {
    return open_brackets_ > 0 || kind() == TokenKind::kComma;
  }

  Token advance() {
    const Token consumed = token();
    if (consumed.kind != TokenKind::kEnd) {
      if (consumed.kind != TokenKind::kNewline) last_end_ = consumed.span.end;
      at_ = next();
    }
    return consumed;
  }

  bool accept(TokenKind wanted) {
    if (kind() != wanted) return false;
    advance();
    return true;
  }

  /// `where` completes "expected '=' ..".
  bool expect(TokenKind wanted, std::string_view where, std::string_view help = {}) {
    if (accept(wanted)) return true;
    if (!failed()) {
      fail(make_error("E1011", here(),
                      fmt::format("expected '{}' {}, found {}", spelling(wanted), where, found()),
                      fmt::format("expected '{}'", spelling(wanted)), std::string(help)));
    }
    return false;
  }

  /// Kind of the token before the current one, line ends included.
  [[nodiscard]] TokenKind previous_kind() const {
    return at_ > 0 ? tokens_[at_ - 1].kind : TokenKind::kNewline;
  }
  /// True if the current token is the first one of its line.
  [[nodiscard]] bool begins_line() const { return previous_kind() == TokenKind::kNewline; }

  /// True if the token before the current one is `wanted` and touches it, as in `**`.
  [[nodiscard]] bool touches_previous(TokenKind wanted) const {
    return at_ > 0 && touching(at_ - 1, wanted, kind());
  }
  /// True if the current token is `first` and `second` touches it.
  [[nodiscard]] bool at_pair(TokenKind first, TokenKind second) const {
    return at_ < last() && touching(at_, first, second);
  }
  [[nodiscard]] bool touching(std::size_t i, TokenKind first, TokenKind second) const {
    return tokens_[i].kind == first && tokens_[i + 1].kind == second &&
           tokens_[i].span.end == tokens_[i + 1].span.begin;
  }

  [[nodiscard]] Span span_from(std::uint32_t begin) const {
    return {begin, std::max(begin, last_end_)};
  }

  // ---- errors
  // ---------------------------------------------------------------------------------------

  [[nodiscard]] bool failed() const { return failed_at_.has_value(); }

  /// Records an error that does not keep the parser from reading on.
  void complain(Diagnostic error) {
    if (!failed() && errors_.size() < kMaxErrors) errors_.push_back(std::move(error));
  }

  /// Records an error and gives the statement up.
  void fail(Diagnostic error) {
    if (failed()) return;
    complain(std::move(error));
    if (errors_.size() >= kMaxErrors) return stop();
    failed_at_ = at_;
    at_ = last();
  }

  /// Gives the rest of the text up.
  void stop() {
    failed_at_ = last();
    at_ = last();
    braces_match_ = false;
  }

  /// The current token as a place to point at; for the end of a line the end of what stands on it.
  [[nodiscard]] Span here() const {
    const bool at_line_end = kind() == TokenKind::kNewline || kind() == TokenKind::kEnd;
    return at_line_end ? Span{last_end_, last_end_} : token().span;
  }

  /// The current token in the words of a message.
  [[nodiscard]] std::string found() const {
    if (kind() == TokenKind::kNewline || kind() == TokenKind::kEnd)
      return std::string(spelling(kind()));
    if (is_keyword(kind())) return fmt::format("the keyword '{}'", spelling(kind()));
    return fmt::format("'{}'", abbreviated(text(token().span)));
  }

  /// Counts a level of nesting for as long as it lives.
  class Nested {
   public:
    explicit Nested(Parser& parser) : parser_(parser) {
      if (++parser_.nesting_ > kMaxNesting) parser_.too_deep();
    }
    ~Nested() { --parser_.nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    Parser& parser_;
  };

  /// What follows is at least as deep, so nothing sensible can be said about the rest of the text.
  void too_deep() {
    complain(make_error("E1030", here(),
                        fmt::format("nested more than {} levels deep", kMaxNesting),
                        "the level too many"));
    stop();
  }

  template <class Node>
  Tree grow(Node node, Span span, int height_of_operands) {
    if (height_of_operands >= kMaxHeight) {
      fail(make_error("E1031", here(),
                      fmt::format("an expression chains more than {} operations", kMaxHeight), "",
                      "name a part of it and go on in another statement"));
    }
    return make_tree(std::move(node), span, height_of_operands + 1);
  }

  // ---- recovery
  // -------------------------------------------------------------------------------------

  /// Resumes behind the line of the error in the statement that began at token `first`.
  void recover(std::size_t first) {
    at_ = *std::exchange(failed_at_, std::nullopt);
    const int depth = std::exchange(open_brackets_, 0);
    if (const auto closing = closing_bracket(depth)) {
      at_ = *closing + 1;
    } else if (at_ > first && begins_line()) {
      return;  // a new statement began where the old one should have gone on
    }
    skip_rest_of_line();
  }

  /// Index of the token that closes the `depth` brackets which are open at the current token; none
  /// if a statement begins or a body begins or ends before.
  [[nodiscard]] std::optional<std::size_t> closing_bracket(int depth) const {
    for (std::size_t i = at_; depth > 0 && i < last(); ++i) {
      const TokenKind kind = tokens_[i].kind;
      const bool body_begins =
          kind == TokenKind::kLeftBrace && tokens_[i + 1].kind == TokenKind::kNewline;
      const bool body_ends =
          kind == TokenKind::kRightBrace && tokens_[i - 1].kind == TokenKind::kNewline;
      if (body_begins || body_ends || begins_statement(kind)) return std::nullopt;
      if (syntax::opens(kind)) ++depth;
      if (syntax::closes(kind) && --depth == 0) return i;
    }
    return std::nullopt;
  }

  void skip_rest_of_line() {
    while (!at_statement_end() && !(begins_line() && begins_statement(kind()))) {
      if (kind() == TokenKind::kLeftBrace) {
        discard_block();
      } else {
        advance();
      }
    }
  }

  [[nodiscard]] bool at_statement_end() const {
    return kind() == TokenKind::kNewline || kind() == TokenKind::kSemicolon ||
           kind() == TokenKind::kRightBrace || kind() == TokenKind::kEnd;
  }

  /// Reads the body of a broken header for its errors, and so that its `}` is not taken for
  /// another's.
  void discard_block() {
    const Nested nested(*this);
    advance();
    const bool in_model = std::exchange(in_model_, true);
    std::vector<ast::Stmt> ignored;
    statements(ignored);
    in_model_ = in_model;
    accept(TokenKind::kRightBrace);
  }

  // ---- statements
  // -----------------------------------------------------------------------------------

  /// Statements up to a `}` or the end of the text.
  void statements(std::vector<ast::Stmt>& out) {
    for (;;) {
      while (kind() == TokenKind::kNewline || kind() == TokenKind::kSemicolon) advance();
      if (kind() == TokenKind::kRightBrace || kind() == TokenKind::kEnd) return;
      const std::size_t first = at_;
      const std::uint32_t begin = token().span.begin;
      Statement node = statement();
      end_of_statement();
      if (failed()) {
        recover(first);
      } else {
        out.push_back({std::move(node), span_from(begin)});
      }
    }
  }

  Statement statement() {
    switch (kind()) {
      case TokenKind::kWidth: return width();
      case TokenKind::kConst:
      case TokenKind::kDepth: return constant();
      case TokenKind::kData: return data();
      case TokenKind::kParam: return param(true);
      case TokenKind::kRandom: return param(false);
      case TokenKind::kParametrization: return parametrization();
      case TokenKind::kFn: return function();
      case TokenKind::kModel: return function();
      case TokenKind::kFor: return loop();
      case TokenKind::kIf: return conditional();
      case TokenKind::kAssert: return assertion();
      case TokenKind::kImport: return import_file();
      case TokenKind::kStep: return step();
      case TokenKind::kReport: return report();
      case TokenKind::kExpect: return expectation();
      case TokenKind::kReturn: return return_values();
      case TokenKind::kIdentifier: return assignment_or_update();
      default: return no_statement();
    }
  }

  Statement no_statement() {
    const bool brace = kind() == TokenKind::kLeftBrace;
    if (closes_nothing()) return {};
    if (at_pair(TokenKind::kSlash, TokenKind::kSlash) ||
        at_pair(TokenKind::kSlash, TokenKind::kStar)) {
      advance();
      foreign_pair("a comment starts with '#'");
      return {};
    }
    fail(make_error("E1013", here(), fmt::format("expected a statement, found {}", found()),
                    "no statement begins like this",
                    brace ? "braces hold the bodies of 'for', 'if', 'fn' and 'model'"
                    : kind() == TokenKind::kElse ? "'else' stands behind the '}' of its 'if'"
                                                 : ""));
    return {};
  }

  Statement width() {
    advance();
    ast::Width width;
    do {
      ast::Width::Item item{identifier("the name of a width"), nullptr};
      if (accept(TokenKind::kEqual)) {
        item.value = expression();
        if (kind() == TokenKind::kIdentifier) {  // 2 n
          ast::ExprPtr factor = std::move(item.value), width_name = expression();
          const Span span = factor->span.to(width_name->span);
          item.value = std::make_unique<ast::Expr>(ast::Expr{
              ast::Binary{ast::BinaryOp::kMul, std::move(factor), std::move(width_name), span},
              span});
        }
      }
      width.items.push_back(std::move(item));
    } while (accept(TokenKind::kComma));
    return width;
  }

  Statement constant() {
    const bool depth = kind() == TokenKind::kDepth;
    advance();
    ast::Const constant{identifier("the name of a constant"), nullptr, depth};
    expect(TokenKind::kEqual, "after the name of a constant");
    constant.value = expression();
    if (kind() == TokenKind::kComma) unexpected("each constant has a statement of its own");
    return constant;
  }

  Statement data() {
    advance();
    ast::Data data{identifiers("a name for the data"), nullptr};
    expect(TokenKind::kEqual, "after the names of data",
           "write data X, y = csv(\"file.csv\") or data X = [[1, 2], [3, 4]]");
    data.value = expression();
    return data;
  }

  Statement param(bool trained) {
    static constexpr std::string_view kForm =
        "the form is: param U : [n, 64] ~ normal(0, 1/64), lr = n";
    static constexpr std::string_view kArray =
        "all sizes stand behind the ':', that of an array first: param W : [2, n, n] ~ normal(0, "
        "1/n)";
    advance();
    ast::Param param;
    param.trained = trained;
    param.name = identifier("the name of a parameter");
    expect(TokenKind::kColon, "after the name of a parameter",
           kind() == TokenKind::kLeftSquare ? kArray : kForm);
    if (kind() == TokenKind::kIdentifier) param.role.push_back(identifier("a role"));
    axes(param);
    if (kind() == TokenKind::kEqual)
      expect(TokenKind::kTilde, "before the law of a parameter", kForm);
    if (accept(TokenKind::kTilde)) param.law = law();
    while (accept(TokenKind::kComma)) param.options.push_back(option());
    return param;
  }

  void axes(ast::Param& param) {
    const std::uint32_t begin = token().span.begin;
    if (kind() != TokenKind::kLeftSquare) {
      expect(TokenKind::kLeftSquare, "before the axes of a parameter", "a scalar has the axes []");
      return;
    }
    bracketed(TokenKind::kRightSquare, [&] { param.axes.push_back(expression()); });
    param.axes_span = span_from(begin);
  }

  ast::ExprPtr law() {
    ast::ExprPtr law = binary(Level::kSum).expr;
    if (!std::holds_alternative<ast::Call>(law->node)) {
      complain(make_error("E1023", law->span, "the law of a parameter is not a call", "not a law",
                          "write normal(mean, variance), for example normal(0, 1/n)"));
    }
    return law;
  }

  ast::NamedArgument option() {
    ast::NamedArgument option{identifier("the name of an option"), nullptr};
    expect(TokenKind::kEqual, "after the name of an option");
    option.value = expression();
    return option;
  }

  Statement parametrization() {
    advance();
    ast::ExprPtr value = expression();
    if (!std::holds_alternative<ast::Name>(value->node) &&
        !std::holds_alternative<ast::Call>(value->node)) {
      complain(make_error("E1025", value->span, "a parametrization is a name or a call", "",
                          "write for example: parametrization mup"));
    }
    return ast::Parametrization{std::move(value)};
  }

  /// fn f(x) = .., fn f(x) { .. }, and the same with model.
  Statement function() {
    const Token keyword = advance();
    const bool model = keyword.kind == TokenKind::kModel;
    ast::Function function;
    function.name = identifier(model ? "the name of a model" : "the name of a function");
    function.params = parameters(model ? "of a model" : "of a function");
    if (kind() == TokenKind::kEqual || (!model && kind() != TokenKind::kLeftBrace)) {
      expect(TokenKind::kEqual, "before the body of a function",
             "a function is fn phi(z) = tanh(z)^2, or fn phi(z) { .. return .. }");
      ast::Return value;
      value.values.push_back(expression());
      const Span span = value.values[0]->span;
      function.body.push_back({std::move(value), span});
      return function;
    }
    const bool outer = std::exchange(in_model_, true);
    function.body = block(keyword);
    in_model_ = outer;
    return function;
  }

  std::vector<ast::Argument> parameters(std::string_view owner) {
    std::vector<ast::Argument> out;
    if (kind() != TokenKind::kLeftParen) {
      expect(TokenKind::kLeftParen, fmt::format("before the arguments {}", owner));
      return out;
    }
    bracketed(TokenKind::kRightParen, [&] {
      ast::Argument argument{identifier("the name of an argument"), nullptr};
      if (accept(TokenKind::kEqual)) {
        argument.otherwise = range().expr;
      } else if (!out.empty() && out.back().otherwise && !failed()) {
        complain(make_error(
            "E1033", argument.name.span, "an argument without a default behind one that has one",
            "calls could not leave the one before out", "put the arguments with defaults last"));
      }
      out.push_back(std::move(argument));
    });
    return out;
  }

  Statement loop() {
    static constexpr std::string_view kForm =
        "the form is: for i in a..b { .. }, or for x in array { .. }";
    const Token keyword = advance();
    ast::For loop;
    loop.variable = identifier("the name of a loop variable");
    expect(TokenKind::kIn, "after the loop variable", kForm);
    loop.range = range().expr;
    if (std::holds_alternative<ast::Number>(loop.range->node)) {
      complain(make_error("E1026", loop.range->span, "a loop runs over a range or an array",
                          "not a range a..b", "0..5 means 0, 1, 2, 3, 4"));
    }
    loop.body = block(keyword);
    return loop;
  }

  Statement conditional() {
    ast::If choice;
    for (Token keyword = advance();;) {
      ast::ExprPtr condition = expression();
      choice.branches.push_back({std::move(condition), block(keyword)});
      if (failed() || !find_else()) return choice;
      keyword = advance();
      if (accept(TokenKind::kIf)) continue;
      choice.branches.push_back({nullptr, block(keyword)});
      return choice;
    }
  }

  /// Goes to the `else` behind a body, in the same line or a later one, if there is one.
  bool find_else() {
    std::size_t i = at_;
    while (tokens_[i].kind == TokenKind::kNewline) ++i;
    if (tokens_[i].kind != TokenKind::kElse) return false;
    at_ = i;
    return true;
  }

  Statement assertion() {
    advance();
    ast::Assert assertion{expression(), nullptr};
    if (accept(TokenKind::kComma)) assertion.text = expression();
    return assertion;
  }

  Statement import_file() {
    static constexpr std::string_view kForm =
        "write: import \"blocks.tp\", and blocks.f(x) for what it declares; or import "
        "\"blocks.tp\" "
        "as b";
    advance();
    ast::Import import;
    import.path_span = here();
    if (kind() != TokenKind::kString) {
      fail(make_error("E1011", here(),
                      fmt::format("expected a path in quotes behind 'import', found {}", found()),
                      "", std::string(kForm)));
      return import;
    }
    import.path.value = unescaped(text(advance().span));
    const bool named = kind() == TokenKind::kIdentifier && text(token().span) == "as";
    if (named) advance();
    const std::string name = named ? identifier("a name for the imported file").name
                                   : std::string(syntax::name_of_import(import.path.value));
    if (!failed() && !syntax::is_name(name))
      fail(make_error("E1034", import.path_span,
                      fmt::format("'{}' is no name for what the file declares", name), "",
                      fmt::format("write: import \"{}\" as NAME", import.path.value)));
    import.space = name + '.';
    return import;
  }

  Statement step() {
    advance();
    ast::Step step;
    do {
      ast::ExprPtr update = expression();
      if (!std::holds_alternative<ast::Call>(update->node)) {
        complain(make_error("E1024", update->span, "a step is a call of an optimiser", "not a call",
                            "write for example: step sgd(loss, lr = 0.1)"));
      }
      step.updates.push_back(std::move(update));
    } while (accept(TokenKind::kComma));
    return step;
  }

  Statement report() {
    advance();
    ast::Report report;
    do {
      ast::ReportItem item;
      if (kind() == TokenKind::kIdentifier && next_kind() == TokenKind::kEqual) {
        item.name.push_back(identifier("a name"));
        advance();
      }
      item.value = expression();
      report.items.push_back(std::move(item));
    } while (accept(TokenKind::kComma));
    return report;
  }

  Statement expectation() {
    static constexpr std::string_view kForm = "the form is: expect a == b within tolerance";
    advance();
    ast::Expect expectation;
    expectation.left = binary(Level::kSum).expr;
    expect(TokenKind::kEqualEqual, "between the sides of 'expect'", kForm);
    expectation.right = binary(Level::kSum).expr;
    expect(TokenKind::kWithin, "before the tolerance of 'expect'", kForm);
    expectation.within = binary(Level::kSum).expr;
    return expectation;
  }

  Statement return_values() {
    const Token keyword = advance();
    if (!in_model_) {
      complain(make_error("E1021", keyword.span, "'return' outside a model",
                          "there is nothing to return from",
                          "results leave a program through 'report'"));
    }
    return ast::Return{expressions()};
  }

  Statement assignment_or_update() {
    if (next_kind() == TokenKind::kEqual || next_kind() == TokenKind::kComma) return assignment();
    const std::size_t first = at_;
    ast::ExprPtr target = postfix().expr;
    const auto op = update_operator(kind());
    if (!op) return no_assignment(tokens_[first], *target);
    if (!is_update_target(*target)) {
      fail(make_error("E1020", target->span,
                      fmt::format("'{}' needs a name or name[index] on its left", spelling(kind())),
                      "not something that can be updated"));
    }
    advance();
    return ast::Update{std::move(target), *op, expression()};
  }

  Statement assignment() {
    ast::Assign assign;
    assign.targets = identifiers("a name to assign to");
    expect(TokenKind::kEqual, "after the names to assign to");
    assign.values = expressions();
    return assign;
  }

  static bool is_update_target(const ast::Expr& target) {
    if (std::holds_alternative<ast::Name>(target.node)) return true;
    const auto* index = std::get_if<ast::Index>(&target.node);
    return index != nullptr && std::holds_alternative<ast::Name>(index->base->node);
  }

  /// Says why a line that begins with a name is no statement.
  Statement no_assignment(Token word, const ast::Expr& target) {
    if (failed() || closes_nothing() || foreign_operator()) return {};
    const std::string_view name = text(word.span);
    const bool only_a_name = std::holds_alternative<ast::Name>(target.node);
    if (const auto help = help_for_foreign_word(name); !help.empty()) {
      fail(make_error("E1029", word.span, fmt::format("'{}' is not part of the language", name), "",
                      std::string(help)));
    } else if (kind() == TokenKind::kEqual) {
      fail(make_error("E1020", target.span, "only whole names can be assigned", "not a name",
                      "values never change; build the new one and assign it to a name"));
    } else if (kind() == TokenKind::kTilde || (only_a_name && kind() == TokenKind::kColon)) {
      fail(make_error("E1013", here(),
                      fmt::format("'{}' without 'param' or 'random'", spelling(kind())), "",
                      fmt::format("write 'param {} ..' or 'random {} ..'", abbreviated(name),
                                  abbreviated(name))));
    } else if (only_a_name && !at_statement_end() && !infix(kind())) {
      const std::string_view keyword = similar_keyword(name);
      fail(make_error("E1013", word.span,
                      fmt::format("no statement begins with '{}'", abbreviated(name)), "",
                      !keyword.empty() ? fmt::format("did you mean '{}'?", keyword)
                      : text({word.span.end, word.span.end + 1}) == "."
                          ? "methods are no statements: step sgd(loss, lr = ..) moves parameters"
                          : ""));
    } else {
      fail(make_error("E1013", target.span, "an expression alone does nothing", "",
                      "give it a name (name = ..) or report it (report ..)"));
    }
    return {};
  }

  /// Reports operators of other languages where an assignment needs its own.
  bool foreign_operator() {
    const Span op = token().span;
    const auto is_not_an_operator = [&](std::string_view help) {
      const Span both = op.to(tokens_[at_ + 1].span);
      fail(make_error("E1028", both, fmt::format("'{}' is not an operator", text(both)), "",
                      std::string(help)));
      return true;
    };
    if (kind() == TokenKind::kEqualEqual) {
      fail(make_error("E1028", op, "'==' compares two values", "an assignment is written '='"));
      return true;
    }
    if (at_pair(TokenKind::kColon, TokenKind::kEqual))
      return is_not_an_operator("an assignment is written '='");
    for (const TokenKind sign : {TokenKind::kPlus, TokenKind::kMinus}) {
      if (at_pair(sign, sign)) return is_not_an_operator("write 'name += 1'");
    }
    for (const TokenKind sign : {TokenKind::kSlash, TokenKind::kCaret, TokenKind::kAt}) {
      if (at_pair(sign, TokenKind::kEqual))
        return is_not_an_operator("updates are written '+=', '-=' or '*='");
    }
    return false;
  }

  void end_of_statement() {
    if (!at_statement_end()) unexpected();
  }

  /// Says why the current token cannot follow a complete statement.
  void unexpected(std::string_view help = {}) {
    if (failed() || closes_nothing()) return;
    if (kind() == TokenKind::kDotDot) return misplaced_range();
    fail(make_error("E1012", here(),
                    fmt::format("expected the end of the statement, found {}", found()),
                    "the statement is complete before this",
                    std::string(help.empty() ? help_for_unexpected() : help)));
  }

  [[nodiscard]] std::string_view help_for_unexpected() const {
    if (found() == "'as'") return "a report has its name in front: report loss = mse(f(X), y)";
    switch (kind()) {
      case TokenKind::kIdentifier:
      case TokenKind::kNumber:
      case TokenKind::kString:
      case TokenKind::kLeftParen:
        return "a product is written with '*'; a new statement needs a new line or ';'";
      case TokenKind::kLeftBrace:
        return "braces hold the bodies of 'for', 'if', 'fn' and 'model', and maps inside "
               "parentheses";
      case TokenKind::kEqual: return "a line assigns once";
      default: return begins_statement(kind()) ? "a new statement needs a new line or ';'" : "";
    }
  }

  /// Reports a closing bracket that nothing opened.
  bool closes_nothing() {
    if (kind() != TokenKind::kRightParen && kind() != TokenKind::kRightSquare) return false;
    const std::string_view opening = kind() == TokenKind::kRightParen ? "(" : "[";
    fail(make_error("E1015", here(), fmt::format("{} closes nothing", found()),
                    fmt::format("no '{}' is open here", opening)));
    return true;
  }

  // ---- blocks
  // ---------------------------------------------------------------------------------------

  std::vector<ast::Stmt> block(Token keyword) {
    std::vector<ast::Stmt> body;
    const Nested nested(*this);
    if (failed()) return body;
    const std::optional<Token> open = open_block(keyword);
    statements(body);
    if (!accept(TokenKind::kRightBrace) && open) never_closed(*open);
    return body;
  }

  /// The `{` of a body.  Without one the body is read all the same: its statements are right, only
  /// the brace is missing.
  std::optional<Token> open_block(Token keyword) {
    if (kind() == TokenKind::kLeftBrace) return advance();
    complain(make_error("E1016", here(),
                        fmt::format("expected '{{' before the body of '{}', found {}",
                                    spelling(keyword.kind), found()),
                        "expected '{'", "the '{' stands on the same line"));
    if (const auto brace = next_brace()) {
      at_ = *brace;
      return advance();
    }
    while (!at_statement_end()) advance();
    braces_match_ = false;
    return std::nullopt;
  }

  /// Index of a `{` further on in this line, or at the beginning of the next one that is not blank.
  [[nodiscard]] std::optional<std::size_t> next_brace() const {
    const auto is = [this](std::size_t i, TokenKind wanted) { return tokens_[i].kind == wanted; };
    std::size_t i = at_;
    while (!is(i, TokenKind::kLeftBrace) && !is(i, TokenKind::kNewline) && !is(i, TokenKind::kEnd))
      ++i;
    while (is(i, TokenKind::kNewline)) ++i;
    return is(i, TokenKind::kLeftBrace) ? std::optional(i) : std::nullopt;
  }

  void never_closed(Token open) {
    if (!std::exchange(braces_match_, false)) return;
    Diagnostic error = make_error(
        "E1017", here(), "a body is not closed before the end of the file", "expected '}'");
    error.notes.push_back({"the '{' is here", open.span});
    complain(std::move(error));
  }

  void stray_brace() {
    if (std::exchange(braces_match_, false)) {
      complain(make_error("E1015", here(), "'}' closes nothing", "no '{' is open here"));
    }
    advance();
  }

  // ---- expressions
  // ----------------------------------------------------------------------------------

  ast::ExprPtr expression() { return binary(Level::kComparison).expr; }

  std::vector<ast::ExprPtr> expressions() {
    std::vector<ast::ExprPtr> values;
    do values.push_back(expression());
    while (accept(TokenKind::kComma));
    return values;
  }

  /// Operators at least as tight as `loosest`, by precedence climbing.
  Tree binary(Level loosest) {
    Tree left = prefix(loosest);
    bool compared = false;
    for (;;) {
      const auto op = infix(kind());
      if (!op || op->level < loosest) return left;
      if (op->level == Level::kComparison && std::exchange(compared, true)) chained_comparison();
      left = operation(std::move(left), *op);
    }
  }

  Tree operation(Tree left, Infix op) {
    const Token sign = advance();
    const Level level = level_of_right_operand(op.level);
    Tree right = level == op.level ? nested_binary(level) : binary(level);
    const Span span = left.expr->span.to(right.expr->span);
    const int height = std::max(left.height, right.height);
    return grow(ast::Binary{op.op, std::move(left.expr), std::move(right.expr), sign.span}, span,
                height);
  }

  Tree nested_binary(Level loosest) {
    const Nested nested(*this);
    return binary(loosest);
  }

  /// A sign takes everything tighter than a product, -A @ x = -(A @ x), but no more than its
  /// context: 2^-a @ b = (2^-a)
  /// @ b.
  Tree prefix(Level context) {
    if (kind() != TokenKind::kMinus && kind() != TokenKind::kPlus) return postfix();
    const Token sign = advance();
    Tree operand = nested_binary(std::max(Level::kSign, context));
    const Span span = sign.span.to(operand.expr->span);
    if (sign.kind == TokenKind::kMinus)
      return grow(ast::Negate{std::move(operand.expr)}, span, operand.height);
    operand.expr->span = span;
    return operand;
  }

  void chained_comparison() {
    fail(make_error("E1018", here(), "comparisons cannot be chained", "a second comparison",
                    "compare two values at a time: (a < b) * (b < c)"));
  }

  Tree postfix() {
    Tree base = primary();
    for (;;) {
      if (kind() == TokenKind::kQuote) {
        const Span span = base.expr->span.to(advance().span);
        base = grow(ast::Transpose{std::move(base.expr)}, span, base.height);
      } else if (kind() == TokenKind::kLeftSquare) {
        base = index(std::move(base));
      } else {
        return base;
      }
    }
  }

  Tree index(Tree base) {
    const std::uint32_t begin = base.expr->span.begin;
    const Token open = token();
    ast::Index index{std::move(base.expr), {}};
    int height = base.height;
    bracketed(TokenKind::kRightSquare, [&] {
      Tree item = open_range();
      height = std::max(height, item.height);
      index.items.push_back(std::move(item.expr));
    });
    if (index.items.empty()) {
      fail(make_error("E1010", span_from(open.span.begin), "expected an index between '[' and ']'",
                      "", "a whole axis is written '..'"));
    }
    return grow(std::move(index), span_from(begin), height);
  }

  Tree primary() {
    const Token first = token();
    switch (kind()) {
      case TokenKind::kIdentifier: return next_kind() == TokenKind::kLeftParen ? call() : name();
      case TokenKind::kNumber: return number();
      case TokenKind::kString:
        advance();
        return make_tree(ast::String{unescaped(text(first.span))}, first.span);
      case TokenKind::kTrue:
      case TokenKind::kFalse:
        advance();
        return make_tree(ast::Boolean{first.kind == TokenKind::kTrue}, first.span);
      case TokenKind::kLeftParen: return parenthesised();
      case TokenKind::kLeftSquare: return list();
      case TokenKind::kLeftBrace:
        if (open_brackets_ > 0) return map();
        break;
      case TokenKind::kStep:  // inside an expression: the function step(x)
        if (next_kind() == TokenKind::kLeftParen && !begins_line()) return call();
        break;
      default: break;
    }
    no_expression();
    return make_tree(ast::Name{}, first.span);
  }

  Tree name() {
    const Token word = advance();
    return make_tree(ast::Name{std::string(text(word.span))}, word.span);
  }

  Tree number() {
    const Token token = advance();
    const std::string_view digits = text(token.span);
    double value = 0;
    if (std::from_chars(digits.data(), digits.data() + digits.size(), value).ec ==
        std::errc::result_out_of_range) {
      complain(make_error("E1004", token.span,
                          fmt::format("the number '{}' does not fit a double", abbreviated(digits)),
                          "", "numbers reach from about 1e-308 to 1e308"));
    }
    return make_tree(ast::Number{value}, token.span);
  }

  Tree call() {
    const std::uint32_t begin = token().span.begin;
    ast::Call call;
    const Token callee = advance();
    call.callee = {std::string(text(callee.span)), callee.span};
    int height = 1;
    bracketed(TokenKind::kRightParen, [&] { height = std::max(height, argument(call)); });
    return grow(std::move(call), span_from(begin), height);
  }

  /// Adds one argument to `call` and returns the height of its tree.
  int argument(ast::Call& call) {
    if (kind() == TokenKind::kIdentifier && next_kind() == TokenKind::kEqual) {
      ast::Identifier name = identifier("a name");
      advance();
      Tree value = range();
      call.named.push_back({std::move(name), std::move(value.expr)});
      return value.height;
    }
    Tree value = range();
    if (!call.named.empty()) {
      complain(make_error("E1022", value.expr->span, "a positional argument behind a named one",
                          "has no name", "put it before the named arguments"));
    }
    call.args.push_back(std::move(value.expr));
    return value.height;
  }

  /// (e), or a tuple: (a, b, ..), (a,).
  Tree parenthesised() {
    const Token open = token();
    ast::Tuple tuple;
    int height = 1;
    const bool trailing_comma = bracketed(TokenKind::kRightParen, [&] {
      Tree item = binary(Level::kComparison);
      height = std::max(height, item.height);
      tuple.items.push_back(std::move(item.expr));
    });
    const Span span = span_from(open.span.begin);
    if (tuple.items.empty()) {
      fail(make_error("E1010", span, "expected an expression between '(' and ')'"));
      return make_tree(ast::Name{}, span);
    }
    if (tuple.items.size() > 1 || trailing_comma) return grow(std::move(tuple), span, height);
    ast::ExprPtr& inner = tuple.items.front();
    inner->span = span;
    return {std::move(inner), height};
  }

  Tree list() {
    const Token open = token();
    ast::List list;
    int height = 1;
    bracketed(TokenKind::kRightSquare, [&] {
      Tree item = binary(Level::kComparison);
      height = std::max(height, item.height);
      list.items.push_back(std::move(item.expr));
    });
    return grow(std::move(list), span_from(open.span.begin), height);
  }

  Tree map() {
    const Token open = token();
    ast::Map map;
    int height = 1;
    bracketed(TokenKind::kRightBrace, [&] {
      Tree key = binary(Level::kSum);
      expect(TokenKind::kColon, "after the key of a map", "maps are written {W: n^2, U: n}");
      Tree value = binary(Level::kComparison);
      height = std::max({height, key.height, value.height});
      map.entries.push_back({std::move(key.expr), std::move(value.expr)});
    });
    return grow(std::move(map), span_from(open.span.begin), height);
  }

  /// a, a..b, or a..b by c.
  Tree range() {
    Tree begin = binary(Level::kComparison);
    if (kind() != TokenKind::kDotDot) return begin;
    const std::uint32_t first = begin.expr->span.begin;
    advance();
    return end_of_range(std::move(begin), binary(Level::kSum), first);
  }

  /// a, a..b, a.., ..b or .., as indices may be, with or without a step.
  Tree open_range() {
    const std::uint32_t first = token().span.begin;
    Tree begin{nullptr, 1};
    if (kind() != TokenKind::kDotDot) begin = binary(Level::kComparison);
    if (kind() != TokenKind::kDotDot) return begin;
    advance();
    Tree end{nullptr, 1};
    if (kind() != TokenKind::kComma && kind() != TokenKind::kRightSquare &&
        kind() != TokenKind::kBy)
      end = binary(Level::kSum);
    return end_of_range(std::move(begin), std::move(end), first);
  }

  Tree end_of_range(Tree begin, Tree end, std::uint32_t first) {
    Tree step{nullptr, 1};
    if (accept(TokenKind::kBy)) step = binary(Level::kSum);
    const int height = std::max({begin.height, end.height, step.height});
    return grow(ast::Range{std::move(begin.expr), std::move(end.expr), std::move(step.expr)},
                span_from(first), height);
  }

  /// Reads `open item, item, .. closer` from its opening bracket on, a comma behind the last item
  /// allowed. Returns whether there was such a comma.
  template <class Item>
  bool bracketed(TokenKind closer, Item item) {
    const Nested nested(*this);
    ++open_brackets_;
    const Token open = advance();
    bool comma = false;
    while (kind() != closer) {
      item();
      comma = accept(TokenKind::kComma);
      if (!comma) break;
    }
    close(open, closer);
    return comma;
  }

  void close(Token open, TokenKind closer) {
    if (kind() != closer) return not_closed(open, closer);
    --open_brackets_;  // first, for a newline behind the bracket may end the statement
    advance();
  }

  /// Says why neither a comma nor the closing bracket was found.
  void not_closed(Token open, TokenKind closer) {
    if (failed()) return;
    if (kind() == TokenKind::kDotDot) return misplaced_range();
    const std::string_view opening = spelling(open.kind);
    const bool ended = syntax::closes(kind()) || begins_line() || begins_statement(kind()) ||
                       kind() == TokenKind::kEnd;
    Diagnostic error = make_error(ended ? "E1014" : "E1011", here(), "",
                                  fmt::format("expected ',' or '{}'", spelling(closer)));
    error.message = ended
                        ? fmt::format("'{}' is not closed before {}", opening, found())
                        : fmt::format("expected ',' or '{}', found {}", spelling(closer), found());
    if (!ended) error.help = help_for_operand();
    error.notes.push_back({fmt::format("the '{}' is here", opening), open.span});
    fail(std::move(error));
  }

  [[nodiscard]] std::string_view help_for_operand() const {
    const bool operand = kind() == TokenKind::kIdentifier || kind() == TokenKind::kNumber ||
                         kind() == TokenKind::kLeftParen;
    return operand ? "a product is written with '*'" : "";
  }

  void misplaced_range() {
    fail(make_error("E1019", here(), "a range is not allowed here", "",
                    "ranges stand in the header of 'for', in indices and as arguments of calls; "
                    "both ends may be left out in "
                    "indices only"));
  }

  /// Says why no expression begins at the current token.
  void no_expression() {
    if (failed()) return;
    if (kind() == TokenKind::kDotDot) return misplaced_range();
    if (kind() == TokenKind::kQuote) {
      return fail(make_error("E1007", here(), "a string in single quotes",
                             "' is the transpose, behind a matrix",
                             "write strings in double quotes"));
    }
    if (touches_previous(TokenKind::kStar) && kind() == TokenKind::kStar)
      return foreign_pair("a power is written '^'");
    if (touches_previous(TokenKind::kSlash) &&
        (kind() == TokenKind::kSlash || kind() == TokenKind::kStar)) {
      return foreign_pair("a comment starts with '#'");
    }
    if (kind() == TokenKind::kEqual && infix(previous_kind()) &&
        touches_previous(previous_kind())) {
      return foreign_pair("the operators with '=' are == != <= >= += -= *=");
    }
    fail(make_error("E1010", here(), fmt::format("expected an expression, found {}", found()),
                    "expected an expression", std::string(help_for_missing_expression())));
  }

  /// Two tokens that are one operator elsewhere.
  void foreign_pair(std::string_view help) {
    const Span both = tokens_[at_ - 1].span.to(token().span);
    fail(make_error("E1028", both, fmt::format("'{}' is not an operator", abbreviated(text(both))),
                    "", std::string(help)));
  }

  [[nodiscard]] std::string_view help_for_missing_expression() const {
    if (kind() == TokenKind::kNewline)
      return "a line ends a statement, unless it ends inside parentheses or behind a comma";
    if (kind() == TokenKind::kColon) return "a slice is a..b, and a whole axis '..'";
    if (previous_kind() == TokenKind::kDotDot)
      return "only indices may leave an end of a range out";
    if (kind() == TokenKind::kLeftBrace) return "maps stand inside the parentheses of a call";
    if (begins_line() && begins_statement(kind()))
      return "the comma at the end of the line before continues it here";
    if (kind() == TokenKind::kIf || kind() == TokenKind::kElse)
      return "inside an expression a choice is where(condition, a, b)";
    if (is_keyword(kind())) return "keywords cannot be used as names";
    return "";
  }

  // ---- names
  // ----------------------------------------------------------------------------------------

  /// `what` completes "expected ..".
  ast::Identifier identifier(std::string_view what) {
    const Token word = token();
    if (accept(TokenKind::kIdentifier)) return {std::string(text(word.span)), word.span};
    if (is_keyword(kind())) {
      fail(make_error("E1027", here(), fmt::format("expected {}, found {}", what, found()),
                      "keywords cannot be used as names",
                      fmt::format("rename it, for example to '{}_'", spelling(kind()))));
    } else if (!failed()) {
      fail(make_error("E1011", here(), fmt::format("expected {}, found {}", what, found()),
                      fmt::format("expected {}", what)));
    }
    return {};
  }

  std::vector<ast::Identifier> identifiers(std::string_view what) {
    std::vector<ast::Identifier> names;
    do names.push_back(identifier(what));
    while (accept(TokenKind::kComma));
    return names;
  }

  const Source& source_;
  std::vector<Token> tokens_;  // without comments; kEnd last
  std::size_t at_ = 0;
  std::uint32_t last_end_;  // end of the last token consumed
  int open_brackets_ = 0;
  int nesting_ = 0;
  bool in_model_ = false;
  bool braces_match_ =
      true;  // false once a brace was reported: counting further ones says nothing new
  std::optional<std::size_t> failed_at_;
  Diagnostics errors_;
};

/// Both lists in order of the text, the first error of each line: what follows it is mostly its
/// consequence.
Diagnostics merged(Diagnostics lexical, Diagnostics grammatical, const Source& source) {
  Diagnostics all = std::move(lexical);
  std::ranges::move(grammatical, std::back_inserter(all));
  // A point that no import allows counts from its word on: it is what is wrong with it.
  const auto begin = [&](const Diagnostic& error) {
    std::size_t at = error.span.begin;
    const std::string& text = source.text();
    const auto in_word = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; };
    if (source.text(error.span) == ".")
      while (at > 0 && in_word(static_cast<unsigned char>(text[at - 1]))) --at;
    return at;
  };
  std::ranges::stable_sort(all, {}, begin);
  const auto repeated = std::ranges::unique(
      all, {}, [&](const Diagnostic& error) { return source.line_begin_at(error.span.begin); });
  all.erase(repeated.begin(), repeated.end());
  if (all.size() > kMaxErrors) all.resize(kMaxErrors);
  return all;
}

/// Declared names of an imported file under that of the file; all else it may not do.
void qualify(std::vector<ast::Stmt>& statements, const std::string& space, Diagnostics& errors) {
  const auto rename = [&](ast::Identifier& name) { name.name = space + name.name; };
  for (ast::Stmt& stmt : statements) {
    if (auto* constant = std::get_if<ast::Const>(&stmt.node)) {
      rename(constant->name);
    } else if (auto* data = std::get_if<ast::Data>(&stmt.node)) {
      for (ast::Identifier& name : data->names) rename(name);
    } else if (auto* param = std::get_if<ast::Param>(&stmt.node)) {
      rename(param->name);
    } else if (auto* assign = std::get_if<ast::Assign>(&stmt.node)) {
      for (ast::Identifier& name : assign->targets) rename(name);
    } else if (auto* function = std::get_if<ast::Function>(&stmt.node)) {
      rename(function->name);
      function->space = space;
    } else if (!std::holds_alternative<ast::Width>(stmt.node) &&
               !std::holds_alternative<ast::Import>(stmt.node) &&
               !std::holds_alternative<ast::Assert>(stmt.node)) {
      errors.push_back(make_error("E1037", stmt.span, "an imported file declares, and does no more",
                                  "this is not imported",
                                  "functions, models, constants, data, parameters and values are; "
                                  "steps, loops and reports belong into the program"));
    }
  }
}

/// Parts of a source, each with the files that it imports in the places of their statements.
class FileReader {
 public:
  /// `recover`: also where there are errors.
  FileReader(const Source& source, bool follow, bool recover = false)
      : source_(source), follow_(follow), recover_(recover) {}

  ast::Program read(std::size_t at, const std::string& space) {
    open_.push_back(at);
    const Source::Part& part = source_.parts()[at];
    syntax::Lexed lexed =
        syntax::lex(std::string_view(source_.text()).substr(0, part.end), part.begin);
    std::erase_if(lexed.tokens,
                  [](const Token& token) { return token.kind == TokenKind::kComment; });
    Parser parser(source_, std::move(lexed.tokens), part.begin);
    ast::Program program = parser.program();
    std::ranges::move(merged(std::move(lexed.errors), parser.take_errors(), source_),
                      std::back_inserter(errors));
    for (ast::Stmt& stmt : program.statements)
      if (auto* import = std::get_if<ast::Import>(&stmt.node); import && follow_ && usable())
        follow(*import, part, space);
    if (!space.empty() && usable()) qualify(program.statements, space, errors);
    open_.pop_back();
    return program;
  }

  Diagnostics errors;

 private:
  void follow(ast::Import& import, const Source::Part& part, const std::string& space) {
    const auto it = part.imports.find(import.path.value);
    if (it == part.imports.end()) {
      errors.push_back(make_error("E1035", import.path_span,
                                  fmt::format("cannot read '{}'", import.path.value), "",
                                  "paths are relative to the file that imports"));
    } else if (std::ranges::find(open_, it->second) != open_.end()) {
      errors.push_back(make_error("E1036", import.path_span, "files import each other in a circle",
                                  fmt::format("'{}' leads back here", import.path.value),
                                  "put what both need into a third file"));
    } else {
      import.space = space + import.space;
      import.statements = read(it->second, import.space).statements;
    }
  }

  [[nodiscard]] bool usable() const { return recover_ || errors.empty(); }

  const Source& source_;
  const bool follow_, recover_;
  std::vector<std::size_t> open_;
};

}  // namespace

Result<ast::Program> parse_syntax(const Source& source, bool imports) {
  // Spans are 32 bits wide.
  if (source.text().size() >= std::numeric_limits<std::uint32_t>::max())
    return Diagnostic::error("E1032", "a program may have at most 4 GiB of text");
  FileReader reader(source, imports);
  ast::Program program = reader.read(0, "");
  if (!reader.errors.empty()) return reader.errors;
  return program;
}

Recovered parse_recovered(const Source& source) {
  FileReader reader(source, true, true);
  ast::Program program = reader.read(0, "");
  return {std::move(program), std::move(reader.errors)};
}

std::vector<std::string> imported_paths(std::string_view text) {
  std::vector<std::string> out;
  const std::vector<Token> tokens = syntax::lex(text).tokens;
  for (std::size_t k = 1; k < tokens.size(); ++k)
    if (tokens[k - 1].kind == TokenKind::kImport && tokens[k].kind == TokenKind::kString)
      out.push_back(
          unescaped(text.substr(tokens[k].span.begin, tokens[k].span.end - tokens[k].span.begin)));
  return out;
}

}  // namespace tplimit
