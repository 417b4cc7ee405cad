#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "syntax/lexer.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit {
namespace {

using syntax::closes;
using syntax::opens;
using syntax::Token;
using syntax::TokenKind;

constexpr std::size_t kIndent = 2;
// Comments behind adjacent lines share a column, but lines of code longer than this keep theirs to
// themselves.
constexpr std::size_t kMaxAligned = 72;

bool ends_operand(TokenKind kind) {
  switch (kind) {
    case TokenKind::kIdentifier:
    case TokenKind::kNumber:
    case TokenKind::kString:
    case TokenKind::kTrue:
    case TokenKind::kFalse:
    case TokenKind::kQuote: return true;
    default: return closes(kind);
  }
}

/// Decides where blanks stand between the tokens of a program, which it is shown in order.
class Spacing {
 public:
  enum class Bracket { kParen, kSquare, kMap, kBlock };

  /// True if a blank separates `next` from the token before, should both stand on one line.
  [[nodiscard]] bool blank_before(TokenKind next) const {
    switch (next) {
      case TokenKind::kComma:
      case TokenKind::kSemicolon:
      case TokenKind::kRightParen:
      case TokenKind::kRightSquare:
      case TokenKind::kCaret:
      case TokenKind::kQuote: return false;
      case TokenKind::kRightBrace: return in(Bracket::kBlock) && previous_ != TokenKind::kLeftBrace;
      case TokenKind::kColon: return !in(Bracket::kMap);
      case TokenKind::kDotDot: return previous_ == TokenKind::kComma;
      case TokenKind::kLeftParen:
        return previous_ != TokenKind::kIdentifier && previous_ != TokenKind::kStep &&  // step(x)
               blank_after_previous();
      case TokenKind::kLeftSquare:
        return (!ends_operand(previous_) || behind_role()) && blank_after_previous();
      default: return blank_after_previous();
    }
  }

  void take(TokenKind kind) {
    sign_ = (kind == TokenKind::kPlus || kind == TokenKind::kMinus) && !ends_operand(previous_);
    if (opens(kind)) open_.push_back(bracket(kind));
    if (closes(kind) && !open_.empty()) open_.pop_back();
    before_previous_ = std::exchange(previous_, kind);
  }

  [[nodiscard]] bool in(Bracket bracket) const { return !open_.empty() && open_.back() == bracket; }
  [[nodiscard]] std::size_t depth() const { return open_.size(); }
  /// Number of brackets open inside the innermost block.
  [[nodiscard]] std::size_t expression_depth() const {
    const auto block = std::find(open_.rbegin(), open_.rend(), Bracket::kBlock);
    return static_cast<std::size_t>(block - open_.rbegin());
  }
  /// True if a line that ended here would go on in the next one although no bracket is open.
  [[nodiscard]] bool behind_loose_comma() const {
    return previous_ == TokenKind::kComma && (open_.empty() || in(Bracket::kBlock));
  }

 private:
  [[nodiscard]] bool blank_after_previous() const {
    switch (previous_) {
      case TokenKind::kEnd:
      case TokenKind::kLeftParen:
      case TokenKind::kLeftSquare:
      case TokenKind::kCaret:
      case TokenKind::kDotDot: return false;
      case TokenKind::kLeftBrace: return in(Bracket::kBlock);
      default: return !sign_;
    }
  }

  /// True behind `hidden` in `param W : hidden [n, n]`.
  [[nodiscard]] bool behind_role() const {
    return previous_ == TokenKind::kIdentifier && before_previous_ == TokenKind::kColon &&
           !in(Bracket::kMap);
  }

  /// Maps stand inside parentheses only, blocks outside only; an expression alone holds no blocks.
  [[nodiscard]] Bracket bracket(TokenKind kind) const {
    if (kind == TokenKind::kLeftParen) return Bracket::kParen;
    if (kind == TokenKind::kLeftSquare) return Bracket::kSquare;
    const bool inside_expression =
        previous_ == TokenKind::kEnd || (!open_.empty() && !in(Bracket::kBlock));
    return inside_expression ? Bracket::kMap : Bracket::kBlock;
  }

  std::vector<Bracket> open_;
  TokenKind previous_ = TokenKind::kEnd;  // kEnd before the first token
  TokenKind before_previous_ = TokenKind::kEnd;
  bool sign_ = false;  // the previous token is a + or - in front of its only operand
};

struct Line {
  std::string code;     // with indentation; empty if only a comment stands here
  std::string comment;  // with indentation if there is no code
  bool blank_before = false;
};

/// Lays the tokens of a correct program out in lines.
class Layout {
 public:
  Layout(std::string_view text, const std::vector<Token>& tokens)
      : text_(text), tokens_(tokens), multi_line_(find_multi_line_braces(tokens)) {}

  std::vector<Line> lines() {
    for (at_ = 0; tokens_[at_].kind != TokenKind::kEnd; ++at_) {
      switch (tokens_[at_].kind) {
        case TokenKind::kNewline: newline(); break;
        case TokenKind::kComment: comment(); break;
        default: code(); break;
      }
    }
    end_line();
    return std::move(lines_);
  }

 private:
  /// For each token whether it is a brace whose partner stands on another line.
  static std::vector<bool> find_multi_line_braces(const std::vector<Token>& tokens) {
    struct Open {
      std::size_t token, newlines;
    };
    std::vector<bool> multi_line(tokens.size(), false);
    std::vector<Open> open;
    std::size_t newlines = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i].kind == TokenKind::kNewline) ++newlines;
      if (tokens[i].kind == TokenKind::kLeftBrace) open.push_back({i, newlines});
      if (tokens[i].kind != TokenKind::kRightBrace || open.empty()) continue;
      multi_line[i] = multi_line[open.back().token] = open.back().newlines != newlines;
      open.pop_back();
    }
    return multi_line;
  }

  [[nodiscard]] std::string_view token_text() const {
    const Span span = tokens_[at_].span;
    return text_.substr(span.begin, span.end - span.begin);
  }
  [[nodiscard]] bool line_is_empty() const { return line_.code.empty() && line_.comment.empty(); }

  void newline() {
    if (before_else()) return;
    if (line_is_empty()) {
      blank_ = true;
    } else {
      end_line();
    }
  }

  /// True for the line end between a `}` and its `else`, which stand on one line.
  [[nodiscard]] bool before_else() const {
    std::size_t next = at_;
    while (tokens_[next].kind == TokenKind::kNewline) ++next;
    std::size_t last = at_;
    while (last > 0 && tokens_[last].kind == TokenKind::kNewline) --last;
    return tokens_[next].kind == TokenKind::kElse && tokens_[last].kind == TokenKind::kRightBrace;
  }

  void end_line() {
    if (!line_is_empty()) lines_.push_back(std::exchange(line_, {}));
    break_due_ = false;
  }

  void begin_line(bool closes_block) {
    line_.blank_before =
        std::exchange(blank_, false) && !lines_.empty() && !opened_block_ && !closes_block;
    opened_block_ = false;
  }

  [[nodiscard]] std::string indentation(std::size_t closed) const {
    return std::string(
        kIndent * (spacing_.depth() - closed + (spacing_.behind_loose_comma() ? 1 : 0)), ' ');
  }

  /// Number of brackets that a line which begins here closes before anything else; it is indented
  /// less.
  [[nodiscard]] std::size_t closing_run() const {
    const std::size_t most = spacing_.expression_depth();
    if (most == 0) return closes(tokens_[at_].kind) ? 1 : 0;  // the } of a block stands alone
    std::size_t run = 0;
    while (run < most && closes(tokens_[at_ + run].kind)) ++run;
    return run;
  }

  void comment() {
    std::string_view comment = token_text();
    comment = comment.substr(0, comment.find_last_not_of(" \t") + 1);
    if (line_.code.empty()) {
      begin_line(false);
      line_.comment = indentation(0);
    }
    line_.comment += comment;
  }

  void code() {
    const TokenKind kind = tokens_[at_].kind;
    const bool block_brace = kind == TokenKind::kRightBrace ? spacing_.in(Spacing::Bracket::kBlock)
                                                            : !inside_expression();
    const bool breaks = multi_line_[at_] && block_brace;
    if (break_due_ || (breaks && kind == TokenKind::kRightBrace)) end_line();
    if (line_.code.empty()) {
      begin_line(breaks && kind == TokenKind::kRightBrace);
      line_.code = indentation(closing_run());
    } else if (spacing_.blank_before(kind)) {
      line_.code += ' ';
    }
    line_.code += token_text();
    spacing_.take(kind);
    if (breaks && kind == TokenKind::kLeftBrace) break_due_ = opened_block_ = true;
  }

  [[nodiscard]] bool inside_expression() const {
    return spacing_.depth() > 0 && !spacing_.in(Spacing::Bracket::kBlock);
  }

  std::string_view text_;
  const std::vector<Token>& tokens_;
  std::vector<bool> multi_line_;
  std::size_t at_ = 0;
  Spacing spacing_;
  std::vector<Line> lines_;
  Line line_;
  bool blank_ = false;         // a blank line was seen behind the last line
  bool break_due_ = false;     // the next token of code begins a line
  bool opened_block_ = false;  // the last line of code opened a block
};

bool has_trailing_comment(const Line& line) { return !line.code.empty() && !line.comment.empty(); }

/// Column of the comments behind lines [first, last).
std::size_t comment_column(const std::vector<Line>& lines, std::size_t first, std::size_t last) {
  std::size_t column = 0;
  for (std::size_t i = first; i < last; ++i) {
    const std::size_t width = count_columns(lines[i].code);
    if (width <= kMaxAligned) column = std::max(column, width + 2);
  }
  return column;
}

/// Pads the code in front of trailing comments, so that those of adjacent lines stand below each
/// other.
void align_comments(std::vector<Line>& lines) {
  for (std::size_t first = 0, last = 0; first < lines.size(); first = last) {
    last = first + 1;
    if (!has_trailing_comment(lines[first])) continue;
    while (last < lines.size() && has_trailing_comment(lines[last]) && !lines[last].blank_before)
      ++last;
    const std::size_t column = comment_column(lines, first, last);
    for (std::size_t i = first; i < last; ++i) {
      const std::size_t width = count_columns(lines[i].code);
      lines[i].code.append(std::max(column, width + 2) - width, ' ');
    }
  }
}

}  // namespace

Result<std::string> format_source(const Source& source) {
  const auto program = parse_syntax(source, false);
  if (!program) return program.errors();
  const syntax::Lexed lexed = syntax::lex(source.text());
  std::vector<Line> lines = Layout(source.text(), lexed.tokens).lines();
  align_comments(lines);
  std::string out;
  for (const Line& line : lines) {
    if (line.blank_before) out += '\n';
    out += line.code;
    out += line.comment;
    out += '\n';
  }
  return out;
}

std::string canonical_text(const Source& source, Span span) {
  const std::string_view text = source.text(span);
  const syntax::Lexed lexed = syntax::lex(text);
  Spacing spacing;
  std::string out;
  for (const Token& token : lexed.tokens) {
    if (syntax::is_layout(token.kind) || token.kind == TokenKind::kEnd) continue;
    if (spacing.blank_before(token.kind)) out += ' ';
    out += text.substr(token.span.begin, token.span.end - token.span.begin);
    spacing.take(token.kind);
  }
  return out;
}

}  // namespace tplimit
