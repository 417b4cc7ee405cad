#include "syntax/lexer.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace tplimit::syntax {
namespace {

// In the order of TokenKind.
constexpr auto kSpellings = std::to_array<std::string_view>({
    "the end of the file",
    "the end of the line",
    "a comment",
    "an invalid character",
    "a name",
    "a number",
    "a string",
    "width",
    "const",
    "depth",
    "data",
    "param",
    "random",
    "parametrization",
    "fn",
    "model",
    "for",
    "step",
    "report",
    "expect",
    "return",
    "if",
    "assert",
    "import",
    "in",
    "within",
    "by",
    "else",
    "true",
    "false",
    "+",
    "-",
    "*",
    "/",
    "^",
    "@",
    "'",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    ";",
    "=",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "+=",
    "-=",
    "*=",
    "..",
    "~",
});
static_assert(kSpellings.size() == static_cast<std::size_t>(TokenKind::kTilde) + 1);
static_assert(kSpellings[static_cast<std::size_t>(TokenKind::kTilde)] == "~");

/// Characters that word processors and papers put where the language has an ASCII token.
struct Lookalike {
  std::string_view typed;
  std::string_view meant;
  TokenKind kind;  ///< lexed instead, so that the rest of the line is still checked
};
constexpr auto kLookalikes = std::to_array<Lookalike>({
    {"\u2212", "-", TokenKind::kMinus},  // minus sign
    {"\u2013", "-", TokenKind::kMinus},  // en dash
    {"\u2014", "-", TokenKind::kMinus},  // em dash
    {"\u00D7", "*", TokenKind::kStar},   // multiplication sign
    {"\u00B7", "*", TokenKind::kStar},   // middle dot
    {"\u22C5", "*", TokenKind::kStar},   // dot operator
    {"\u00F7", "/", TokenKind::kSlash},  // division sign
    {"\u2264", "<=", TokenKind::kLessEqual}, {"\u2265", ">=", TokenKind::kGreaterEqual},
    {"\u2260", "!=", TokenKind::kNotEqual},  {"\u223C", "~", TokenKind::kTilde},  // tilde operator
    {"\u2026", "..", TokenKind::kDotDot},                                         // ellipsis
    {"\u2018", "'", TokenKind::kQuote},  // single quotation marks and prime
    {"\u2019", "'", TokenKind::kQuote},      {"\u2032", "'", TokenKind::kQuote},
    {"\u1D40", "'", TokenKind::kQuote},  // superscript T
    {"\u201C", "\"", TokenKind::kInvalid},   {"\u201D", "\"", TokenKind::kInvalid},
    {"\u00B2", "^2", TokenKind::kInvalid},   {"\u00BD", "1/2", TokenKind::kInvalid},
    {"\u00A0", " ", TokenKind::kInvalid},  // no-break space
});

struct GreekLetter {
  std::string_view letter;
  std::string_view name;
};
constexpr auto kGreek = std::to_array<GreekLetter>({
    {"α", "alpha"}, {"β", "beta"},  {"γ", "gamma"}, {"δ", "delta"}, {"ε", "eps"},
    {"ζ", "zeta"},  {"η", "eta"},   {"θ", "theta"}, {"κ", "kappa"}, {"λ", "lambda"},
    {"μ", "mu"},    {"ν", "nu"},    {"ξ", "xi"},    {"π", "pi"},    {"ρ", "rho"},
    {"σ", "sigma"}, {"τ", "tau"},   {"φ", "phi"},   {"χ", "chi"},   {"ψ", "psi"},
    {"ω", "omega"}, {"Γ", "Gamma"}, {"Δ", "Delta"}, {"Θ", "Theta"}, {"Λ", "Lambda"},
    {"Σ", "Sigma"}, {"Φ", "Phi"},   {"µ", "mu"},
});

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
constexpr bool is_word(char c) { return is_letter(c) || is_digit(c); }
constexpr bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

TokenKind word_kind(std::string_view word) {
  constexpr auto kFirst = static_cast<std::size_t>(TokenKind::kWidth);
  constexpr auto kLast = static_cast<std::size_t>(TokenKind::kFalse);
  for (std::size_t i = kFirst; i <= kLast; ++i) {
    if (kSpellings[i] == word) return static_cast<TokenKind>(i);
  }
  return TokenKind::kIdentifier;
}

const Lookalike* find_lookalike(std::string_view code_point) {
  const auto found = std::ranges::find(kLookalikes, code_point, &Lookalike::typed);
  return found == kLookalikes.end() ? nullptr : &*found;
}

std::string greek_help(std::string_view code_point) {
  const auto found = std::ranges::find(kGreek, code_point, &GreekLetter::letter);
  return found == kGreek.end() ? std::string() : fmt::format("write it out: '{}'", found->name);
}

/// What to write instead of a point, by the letters behind it: members and methods of arrays.
std::string_view help_for_member(std::string_view word) {
  if (word == "T" || word == "t" || word == "mT" || word == "transpose" || word == "permute")
    return "a transpose is written x', another order of axes transpose(x, 1, 0, 2)";
  if (word == "shape" || word == "size") return "the entries along an axis are size(x, 0)";
  if (word == "detach" || word == "data") return "a constant for gradients is stop(x)";
  if (word == "backward" || word == "step" || word == "zero_grad")
    return "step sgd(loss, lr = ..) takes the gradient of a loss and moves the parameters";
  if (!word.empty())
    return "functions stand alone, as relu(x), and so does what acts on a value: sum(x, axis = 0)";
  return "a transpose is written x', a range a..b";
}

constexpr std::string_view kOneAxis =
    "'..' is one whole axis: of x [a, b], x[.., None] is [a, 1, b] and x[.., .., None] [a, b, 1]";

/// What to write instead of an ASCII character that other languages use.
std::string_view help_for(std::string_view rest) {
  switch (rest[0]) {
    case '%': return "the remainder of a division is mod(a, b); a comment starts with '#'";
    case '!': return "'not equal' is written '!='";
    case '&':
    case '|':
    case '?': return "a choice by a condition is where(condition, a, b)";
    case '.': {
      const auto end = std::find_if_not(rest.begin() + 1, rest.end(), [](unsigned char c) {
        return std::isalnum(c) != 0 || c == '_';
      });
      return help_for_member(std::string_view(rest.begin() + 1, end));
    }
    case '\\':
      return "a line that ends inside parentheses or behind a comma continues on the next one";
    case '$': return "a name stands by itself";
    case '\r': return "end the lines with LF or CR LF";
    default: return "";
  }
}

class Lexer {
 public:
  Lexer(std::string_view text, std::size_t begin) : text_(text), at_(begin) {
    // Source texts average four bytes per token; one allocation too large is cheaper than growing.
    out_.tokens.reserve((text.size() - begin) / 3 + 2);
  }

  Lexed run() {
    if (text_.substr(at_).starts_with("\xEF\xBB\xBF")) at_ += 3;  // byte order mark
    while (at_ < text_.size()) lex_token();
    push(TokenKind::kEnd, at_);
    return std::move(out_);
  }

 private:
  // '\0' behind the end: callers only compare with characters that begin or continue a token.
  [[nodiscard]] char peek(std::size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  [[nodiscard]] std::string_view from(std::size_t begin) const {
    return text_.substr(begin, at_ - begin);
  }

  void push(TokenKind kind, std::size_t begin) {
    out_.tokens.push_back({kind, span(begin, at_)});
    note_import();
  }
  void push_next(TokenKind kind, std::size_t length) {
    at_ += length;
    push(kind, at_ - length);
  }

  /// What `import "PATH"` and `import "PATH" as NAME` allow to stand before a point.
  void note_import() {
    const std::vector<Token>& t = out_.tokens;
    const std::size_t n = t.size();
    const auto word = [&](std::size_t k) {
      return text_.substr(t[k].span.begin, t[k].span.end - t[k].span.begin);
    };
    // Without quotes it is a mistake, of which the parser tells.
    if (n >= 2 && t[n - 2].kind == TokenKind::kImport &&
        (t[n - 1].kind == TokenKind::kString || t[n - 1].kind == TokenKind::kIdentifier)) {
      std::string_view path = word(n - 1);
      if (path.starts_with('"')) path.remove_prefix(1);
      if (path.ends_with('"')) path.remove_suffix(1);
      imports_.push_back(name_of_import(path));
    } else if (n >= 4 && t[n - 4].kind == TokenKind::kImport &&
               t[n - 3].kind == TokenKind::kString && word(n - 2) == "as" &&
               t[n - 1].kind == TokenKind::kIdentifier) {
      imports_.back() = word(n - 1);
    }
  }

  static Span span(std::size_t begin, std::size_t end) {
    return {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)};
  }

  void error(const char* code, Span where, std::string message, std::string label = {},
             std::string help = {}) {
    if (error_on_line_ || out_.errors.size() >= kMaxLexicalErrors) return;
    error_on_line_ = true;
    out_.errors.push_back(Diagnostic::error(code, std::move(message))
                              .at(where)
                              .with_label(std::move(label))
                              .with_help(std::move(help)));
  }

  void lex_token() {
    const char c = text_[at_];
    if (c == ' ' || c == '\t') {
      ++at_;
    } else if (is_letter(c)) {
      lex_word();
    } else if (is_digit(c) || (c == '.' && is_digit(peek(1)))) {
      lex_number();
    } else if (c == '\n') {
      lex_newline(1);
    } else if (c == '\r' && peek(1) == '\n') {
      lex_newline(2);
    } else if (c == '#') {
      lex_comment();
    } else if (c == '"') {
      lex_string();
    } else if (!is_ascii(c)) {
      lex_foreign();
    } else {
      lex_operator();
    }
  }

  void lex_newline(std::size_t length) {
    push_next(TokenKind::kNewline, length);
    error_on_line_ = false;
  }

  // A carriage return ends it too: left inside, it would hide on some screens what stands before
  // it.
  void lex_comment() {
    const std::size_t begin = at_;
    at_ = std::min(text_.find_first_of("\r\n", at_), text_.size());
    push(TokenKind::kComment, begin);
  }

  /// Length of a code point that may be meant as part of a name although it is not ASCII; else 0.
  [[nodiscard]] std::size_t foreign_letter_length() const {
    const std::size_t length = code_point_length(text_, at_);
    return length > 1 && find_lookalike(text_.substr(at_, length)) == nullptr ? length : 0;
  }

  void lex_word() {
    const std::size_t begin = at_;
    while (is_word(peek())) ++at_;
    if (peek() == '.' && is_letter(peek(1))) {
      const bool path = !out_.tokens.empty() && out_.tokens.back().kind == TokenKind::kImport;
      if (!path && std::ranges::find(imports_, from(begin)) == imports_.end())
        error("E1001", span(at_, at_ + 1), "unexpected character '.'", "",
              std::string(help_for(text_.substr(at_))));
      while (peek() == '.' && is_letter(peek(1)))
        for (++at_; is_word(peek());) ++at_;
      push(TokenKind::kIdentifier, begin);
    } else if (is_ascii(peek())) {
      const TokenKind kind = word_kind(from(begin));
      push(kind == TokenKind::kDepth && !declares() ? TokenKind::kIdentifier : kind, begin);
    } else {
      lex_foreign_word(begin);
    }
  }

  /// Behind `depth`: it is a keyword only at the begin of a statement and before a name, so that
  /// programs may call a value so.
  [[nodiscard]] bool declares() const {
    const TokenKind last = out_.tokens.empty() ? TokenKind::kNewline : out_.tokens.back().kind;
    std::size_t name = at_;
    while (name < text_.size() && (text_[name] == ' ' || text_[name] == '\t')) ++name;
    std::size_t end = name;
    while (end < text_.size() && is_word(text_[end])) ++end;
    return (last == TokenKind::kNewline || last == TokenKind::kSemicolon) && name > at_ &&
           is_name(text_.substr(name, end - name));
  }

  /// The rest of a name that contains letters of other alphabets; reports the first of them.
  void lex_foreign_word(std::size_t begin) {
    for (std::size_t length = 1; length > 0 && at_ < text_.size();) {
      length = is_ascii(peek()) ? (is_word(peek()) ? 1 : 0) : foreign_letter_length();
      if (length > 1) report_foreign_letter(length);
      at_ += length;
    }
    push(word_kind(from(begin)), begin);
  }

  void report_foreign_letter(std::size_t length) {
    const std::string_view letter = text_.substr(at_, length);
    error("E1002", span(at_, at_ + length), fmt::format("'{}' cannot stand in a name", letter),
          "names are made of a to z, A to Z, 0 to 9 and '_'", greek_help(letter));
  }

  void lex_foreign() {
    const std::size_t length = code_point_length(text_, at_);
    if (length == 0) return lex_invalid_bytes();
    const std::string_view typed = text_.substr(at_, length);
    const Lookalike* lookalike = find_lookalike(typed);
    if (lookalike == nullptr) return lex_foreign_word(at_);
    error("E1001", span(at_, at_ + length), fmt::format("unexpected character '{}'", typed), "",
          fmt::format("write '{}'", lookalike->meant));
    push_next(lookalike->kind, length);
  }

  void lex_invalid_bytes() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && !is_ascii(text_[at_]) && code_point_length(text_, at_) == 0) ++at_;
    error("E1001", span(begin, at_), "the text is not valid UTF-8 here", "",
          "save the file as UTF-8");
    push(TokenKind::kInvalid, begin);
  }

  [[nodiscard]] bool skip_digits() {
    const std::size_t begin = at_;
    while (is_digit(peek())) ++at_;
    return at_ > begin;
  }

  // The two dots of `0..32` are a range, never a decimal point.
  [[nodiscard]] bool at_decimal_point() const { return peek() == '.' && peek(1) != '.'; }

  void lex_number() {
    const std::size_t begin = at_;
    bool well_formed = skip_digits() || at_decimal_point();
    if (at_decimal_point()) {
      ++at_;
      well_formed = skip_digits() && well_formed;
    }
    if ((peek() == 'e' || peek() == 'E') &&
        (is_digit(peek(1)) || ((peek(1) == '+' || peek(1) == '-') && is_digit(peek(2))))) {
      at_ += 2;
      while (is_digit(peek())) ++at_;
    }
    const std::size_t tail = at_;
    while (is_word(peek()) || at_decimal_point()) ++at_;
    if (!well_formed || at_ > tail) report_malformed_number(begin, tail);
    push(TokenKind::kNumber, begin);
  }

  void report_malformed_number(std::size_t begin, std::size_t tail) {
    const std::string_view head = text_.substr(begin, tail - begin);
    const std::string_view rest = from(tail);
    std::string help;
    if (head.ends_with('.')) {
      help = fmt::format("write '{}0'", abbreviated(head));
    } else if (!rest.empty() && is_letter(rest.front()) && std::ranges::all_of(rest, is_word)) {
      help = fmt::format("if a product is meant, write '{} * {}'", abbreviated(head),
                         abbreviated(rest));
    }
    error("E1003", span(begin, at_), fmt::format("malformed number '{}'", abbreviated(from(begin))),
          "", std::move(help));
  }

  void lex_string() {
    const std::size_t begin = at_++;
    while (at_ < text_.size() && peek() != '"' && peek() != '\n' && peek() != '\r') {
      if (peek() == '\\') {
        lex_escape();
      } else {
        ++at_;
      }
    }
    if (peek() == '"') {
      ++at_;
    } else {
      error("E1005", span(begin, at_), "the string is not closed on its line",
            "the closing '\"' is missing");
    }
    push(TokenKind::kString, begin);
  }

  void lex_escape() {
    const std::size_t begin = at_++;
    if (at_ == text_.size()) return;  // the string is not closed, which is reported instead
    switch (peek()) {
      case '"':
      case '\\':
      case 'n':
      case 't': ++at_; return;
      case '\n':
      case '\r': return;
      default:
        at_ += code_point_length(text_, at_);
        error("E1006", span(begin, at_), "unknown escape in a string", "",
              "the escapes are \\\" \\\\ \\n \\t; write a backslash as \\\\");
    }
  }

  void lex_operator() {
    const auto either = [this](char second, TokenKind with, TokenKind without) {
      peek(1) == second ? push_next(with, 2) : push_next(without, 1);
    };
    switch (peek()) {
      case '+': return either('=', TokenKind::kPlusEqual, TokenKind::kPlus);
      case '-': return either('=', TokenKind::kMinusEqual, TokenKind::kMinus);
      case '*': return either('=', TokenKind::kStarEqual, TokenKind::kStar);
      case '=': return either('=', TokenKind::kEqualEqual, TokenKind::kEqual);
      case '<': return either('=', TokenKind::kLessEqual, TokenKind::kLess);
      case '>': return either('=', TokenKind::kGreaterEqual, TokenKind::kGreater);
      case '!': return peek(1) == '=' ? push_next(TokenKind::kNotEqual, 2) : lex_unexpected();
      case '.': return peek(1) == '.' ? push_next(TokenKind::kDotDot, 2) : lex_unexpected();
      case '/': return push_next(TokenKind::kSlash, 1);
      case '^': return push_next(TokenKind::kCaret, 1);
      case '@': return push_next(TokenKind::kAt, 1);
      case '\'': return push_next(TokenKind::kQuote, 1);
      case '(': return push_next(TokenKind::kLeftParen, 1);
      case ')': return push_next(TokenKind::kRightParen, 1);
      case '[': return push_next(TokenKind::kLeftSquare, 1);
      case ']': return push_next(TokenKind::kRightSquare, 1);
      case '{': return push_next(TokenKind::kLeftBrace, 1);
      case '}': return push_next(TokenKind::kRightBrace, 1);
      case ',': return push_next(TokenKind::kComma, 1);
      case ':': return push_next(TokenKind::kColon, 1);
      case ';': return push_next(TokenKind::kSemicolon, 1);
      case '~': return push_next(TokenKind::kTilde, 1);
      default: return lex_unexpected();
    }
  }

  void lex_unexpected() {
    const char c = text_[at_];
    const bool visible = c > ' ' && c < 0x7F;
    const bool after_range = c == '.' && at_ >= 2 && text_.substr(at_ - 2, 2) == "..";
    const std::string message = visible ? fmt::format("unexpected character '{}'", c)
                                        : fmt::format("unexpected control character 0x{:02X}",
                                                      static_cast<unsigned char>(c));
    error("E1001", span(at_, at_ + 1), message, "",
          std::string(after_range ? kOneAxis : help_for(text_.substr(at_))));
    push_next(TokenKind::kInvalid, 1);
  }

  std::string_view text_;
  std::size_t at_;
  std::vector<std::string_view> imports_;
  bool error_on_line_ = false;
  Lexed out_;
};

}  // namespace

std::string_view spelling(TokenKind kind) { return kSpellings[static_cast<std::size_t>(kind)]; }

Lexed lex(std::string_view text, std::size_t begin) { return Lexer(text, begin).run(); }

std::string_view name_of_import(std::string_view path) {
  path.remove_prefix(path.find_last_of("/\\") + 1);  // npos + 1 is 0
  return path.substr(0, path.rfind('.'));
}

bool is_name(std::string_view text) {
  return !text.empty() && is_letter(text[0]) && std::ranges::all_of(text, is_word) &&
         (word_kind(text) == TokenKind::kIdentifier || word_kind(text) == TokenKind::kDepth);
}

std::string_view abbreviated(std::string_view text) {
  constexpr std::size_t kMaxColumns = 40;
  std::size_t end = 0;
  for (std::size_t columns = 0; columns < kMaxColumns && end < text.size(); ++columns) {
    end += std::max<std::size_t>(code_point_length(text, end), 1);
  }
  return text.substr(0, end);
}

}  // namespace tplimit::syntax
