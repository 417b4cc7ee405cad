#include "tplimit/syntax/editing.hpp"

#include "syntax/lexer.hpp"

namespace tplimit {

std::vector<std::string_view> keywords() {
  std::vector<std::string_view> out;
  for (auto kind = syntax::TokenKind::kWidth; syntax::is_keyword(kind);
       kind = static_cast<syntax::TokenKind>(static_cast<int>(kind) + 1))
    out.push_back(syntax::spelling(kind));
  return out;
}

bool is_identifier(std::string_view text) { return syntax::is_name(text); }

}  // namespace tplimit
