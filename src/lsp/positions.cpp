#include "lsp/positions.hpp"

#include <algorithm>

#include "tplimit/support/source.hpp"

namespace tplimit::lsp {
namespace {

/// Bytes and UTF-16 code units of the code point at `at`; bytes that are no UTF-8 count one each.
std::pair<std::size_t, std::size_t> unit_at(std::string_view text, std::size_t at) {
  const std::size_t bytes = std::max<std::size_t>(code_point_length(text, at), 1);
  return {bytes, bytes == 4 ? 2 : 1};
}

}  // namespace

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

Positions::Positions(std::string_view text) : text_(text), begins_{0} {
  for (std::size_t i = text.find('\n'); i != std::string_view::npos; i = text.find('\n', i + 1))
    begins_.push_back(i + 1);
}

Position Positions::position(std::size_t offset) const {
  offset = std::min(offset, text_.size());
  const auto after = std::upper_bound(begins_.begin(), begins_.end(), offset);
  const std::size_t line = static_cast<std::size_t>(after - begins_.begin()) - 1;
  std::size_t character = 0;
  for (std::size_t at = begins_[line]; at < offset;) {
    const auto [bytes, units] = unit_at(text_, at);
    at += bytes;
    character += units;
  }
  return {line, character};
}

std::size_t Positions::offset(Position position) const {
  if (position.line >= begins_.size()) return text_.size();
  std::size_t at = begins_[position.line];
  for (std::size_t passed = 0; passed < position.character && at < text_.size();) {
    if (text_[at] == '\n' || (text_[at] == '\r' && at + 1 < text_.size() && text_[at + 1] == '\n'))
      break;
    const auto [bytes, units] = unit_at(text_, at);
    at += bytes;
    passed += units;
  }
  return at;
}

}  // namespace tplimit::lsp
