#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace tplimit::lsp {

/// Of a name or number.
[[nodiscard]] bool is_word(char c);

/// As the protocol counts: lines and UTF-16 code units, both from 0.
struct Position {
  std::size_t line = 0, character = 0;
};

/// Places in one text.  The text must outlive this.
class Positions {
 public:
  explicit Positions(std::string_view text);
  /// Offsets past the end give the end.  Cost: O(log lines + line length).
  [[nodiscard]] Position position(std::size_t offset) const;
  /// Positions behind the end of a line give the end of the line.
  [[nodiscard]] std::size_t offset(Position position) const;

 private:
  std::string_view text_;
  std::vector<std::size_t> begins_;  // of lines
};

}  // namespace tplimit::lsp
