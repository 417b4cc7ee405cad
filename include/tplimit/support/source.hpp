#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
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

/// The text of one program, with those of the files that it imports behind it, and the names under
/// which errors quote them.  Offsets count through all of them.
class Source {
 public:
  struct Part {
    std::string name;
    std::size_t begin, end;  ///< of its text
    std::size_t first_line;  ///< index of its first line in `line_begins_`
    /// What `import "PATH"` in this part stands for, by PATH.
    std::map<std::string, std::size_t, std::less<>> imports{};
  };

  Source() : Source("<none>", "") {}
  Source(std::string name, std::string text);

  /// Of the program itself.
  [[nodiscard]] const std::string& name() const { return parts_[0].name; }
  /// Of all parts, one after the other.
  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] std::string_view text(Span span) const;

  /// The program, then the imported files.
  [[nodiscard]] const std::vector<Part>& parts() const { return parts_; }
  [[nodiscard]] std::string_view text(const Part& part) const {
    return std::string_view(text_).substr(part.begin, part.end - part.begin);
  }
  [[nodiscard]] const Part& part_at(std::size_t offset) const;
  /// Adds a file; its index in `parts()`.
  std::size_t append(std::string name, std::string_view text);
  void link(std::size_t part, std::string path, std::size_t imported) {
    parts_.at(part).imports.insert_or_assign(std::move(path), imported);
  }

  /// Location of a byte offset in its part; offsets past the end give the end.  Cost: O(log lines +
  /// line length).
  [[nodiscard]] Location locate(std::size_t offset) const;
  /// Line number of a byte offset, in its part.
  [[nodiscard]] std::size_t line_of(std::size_t offset) const;
  /// Text of the line that a byte offset stands in, without its line end.
  [[nodiscard]] std::string_view line_at(std::size_t offset) const;
  /// Byte offset at which that line starts.
  [[nodiscard]] std::size_t line_begin_at(std::size_t offset) const {
    return line_begins_[line_index(offset)];
  }

 private:
  [[nodiscard]] std::size_t line_index(std::size_t offset) const;
  void add_lines(std::size_t begin);

  std::string text_;
  std::vector<std::size_t> line_begins_;
  std::vector<Part> parts_;
};

}  // namespace tplimit
