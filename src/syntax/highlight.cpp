#include "tplimit/syntax/highlight.hpp"

#include "syntax/lexer.hpp"

namespace tplimit {
namespace {

using syntax::TokenKind;

Highlight kind_of(TokenKind kind) {
  if (syntax::is_keyword(kind)) return Highlight::kKeyword;
  if (kind == TokenKind::kNumber) return Highlight::kNumber;
  if (kind == TokenKind::kString) return Highlight::kString;
  if (kind == TokenKind::kComment) return Highlight::kComment;
  return Highlight::kPlain;
}

}  // namespace

std::vector<Highlighted> highlight(std::string_view text) {
  std::vector<Highlighted> out;
  std::uint32_t end = 0;
  const auto add = [&](std::uint32_t to, Highlight kind) {
    if (to <= end) return;
    if (!out.empty() && out.back().kind == kind)
      out.back().span.end = to;
    else
      out.push_back({{end, to}, kind});
    end = to;
  };
  for (const syntax::Token& token : syntax::lex(text).tokens) {
    add(token.span.begin, Highlight::kPlain);
    add(token.span.end, kind_of(token.kind));
  }
  add(static_cast<std::uint32_t>(text.size()), Highlight::kPlain);
  return out;
}

}  // namespace tplimit
