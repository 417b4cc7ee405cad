#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tplimit {

/// Half-open byte range [begin, end) of one source text.
struct Span {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;

  /// Smallest span that covers both.
  [[nodiscard]] constexpr Span to(Span other) const {
    return {begin < other.begin ? begin : other.begin, end > other.end ? end : other.end};
  }
  friend bool operator==(const Span&, const Span&) = default;
};

/// Line and column, both counted from 1; columns count code points.
struct Location {
  std::size_t line = 1;
  std::size_t column = 1;
};

/// Bytes of the UTF-8 code point that starts at `offset`: 1 to 4, or 0 if there is no valid one.
[[nodiscard]] std::size_t code_point_length(std::string_view text, std::size_t offset);

/// Columns that `text` takes: its code points, where a byte that is not valid UTF-8 counts as one.
/// Cost: O(bytes).
[[nodiscard]] std::size_t count_columns(std::string_view text);

/// The text of one program and the name under which errors quote it.
class Source {
 public:
  Source() : Source("<none>", "") {}
  Source(std::string name, std::string text);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] std::string_view text(Span span) const;

  /// Location of a byte offset; offsets past the end give the end.  Cost: O(log lines + line
  /// length).
  [[nodiscard]] Location locate(std::size_t offset) const;
  /// Line number of a byte offset.
  [[nodiscard]] std::size_t line_of(std::size_t offset) const;
  /// Text of a line (counted from 1) without its line end.
  [[nodiscard]] std::string_view line(std::size_t number) const;
  /// Byte offset at which a line (counted from 1) starts.
  [[nodiscard]] std::size_t line_begin(std::size_t number) const {
    return line_begins_.at(number - 1);
  }

 private:
  std::string name_;
  std::string text_;
  std::vector<std::size_t> line_begins_;
};

}  // namespace tplimit
