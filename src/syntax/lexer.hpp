#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tplimit/support/diagnostic.hpp"
#include "tplimit/support/source.hpp"

/// Tokens of the language; private to the module.
namespace tplimit::syntax {

enum class TokenKind : std::uint8_t {
  kEnd,      ///< behind the last token
  kNewline,  ///< LF or CR LF
  kComment,  ///< from # to the end of the line
  kInvalid,  ///< bytes that begin no token; an error was recorded
  kIdentifier,
  kNumber,
  kString,
  // keywords that begin a statement
  kWidth,
  kConst,
  kDepth,
  kData,
  kParam,
  kRandom,
  kParametrization,
  kFn,
  kModel,
  kFor,
  kStep,
  kReport,
  kExpect,
  kReturn,
  kIf,
  kAssert,
  kImport,
  // keywords inside a statement
  kIn,
  kWithin,
  kBy,
  kElse,
  kTrue,
  kFalse,
  // operators and brackets
  kPlus,
  kMinus,
  kStar,
  kSlash,
  kCaret,
  kAt,
  kQuote,
  kLeftParen,
  kRightParen,
  kLeftSquare,
  kRightSquare,
  kLeftBrace,
  kRightBrace,
  kComma,
  kColon,
  kSemicolon,
  kEqual,
  kEqualEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kPlusEqual,
  kMinusEqual,
  kStarEqual,
  kDotDot,
  kTilde,
};

struct Token {
  TokenKind kind;
  Span span;
};

/// Fixed text of a keyword, operator or bracket; of the other kinds a description such as "a
/// number".
[[nodiscard]] std::string_view spelling(TokenKind kind);

[[nodiscard]] constexpr bool is_keyword(TokenKind kind) {
  return kind >= TokenKind::kWidth && kind <= TokenKind::kFalse;
}
[[nodiscard]] constexpr bool begins_statement(TokenKind kind) {
  return kind >= TokenKind::kWidth && kind <= TokenKind::kImport;
}
[[nodiscard]] constexpr bool opens(TokenKind kind) {
  return kind == TokenKind::kLeftParen || kind == TokenKind::kLeftSquare ||
         kind == TokenKind::kLeftBrace;
}
[[nodiscard]] constexpr bool closes(TokenKind kind) {
  return kind == TokenKind::kRightParen || kind == TokenKind::kRightSquare ||
         kind == TokenKind::kRightBrace;
}
/// True for newlines and comments, which no expression sees.
[[nodiscard]] constexpr bool is_layout(TokenKind kind) {
  return kind == TokenKind::kNewline || kind == TokenKind::kComment;
}

struct Lexed {
  std::vector<Token>
      tokens;  ///< in order of the text, kEnd last; blanks are dropped, everything else is there
  Diagnostics errors;  ///< in order of the text, at most one per line and kMaxLexicalErrors in all
};

inline constexpr std::size_t kMaxLexicalErrors = 20;

/// Splits any bytes into tokens, from `begin` on.  Bad tokens are recorded in `errors` and replaced
/// by what was probably meant, or by kInvalid.  Cost: O(bytes).
[[nodiscard]] Lexed lex(std::string_view text, std::size_t begin = 0);

/// The name under which `import PATH` declares: that of the file, without folder and ending.
[[nodiscard]] std::string_view name_of_import(std::string_view path);
[[nodiscard]] bool is_name(std::string_view text);  ///< an identifier, and no keyword

/// `text` as quoted in a message: cut after 40 columns.
[[nodiscard]] std::string_view abbreviated(std::string_view text);

}  // namespace tplimit::syntax
