#include "tplimit/support/source.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace tplimit {
namespace {

constexpr unsigned char byte_at(std::string_view text, std::size_t i) {
  return static_cast<unsigned char>(text[i]);
}

/// What the lead byte of a UTF-8 sequence promises: its length and the range of the second byte,
/// which is what excludes overlong forms, surrogates and code points past U+10FFFF.
struct Lead {
  std::size_t length;
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
};

constexpr Lead classify(unsigned char lead) {
  if (lead < 0x80) return {1};
  if (lead < 0xC2) return {0};
  if (lead < 0xE0) return {2};
  if (lead == 0xE0) return {3, 0xA0};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3};
  if (lead == 0xF0) return {4, 0x90};
  if (lead < 0xF4) return {4};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

constexpr bool is_continuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

}  // namespace

std::size_t code_point_length(std::string_view text, std::size_t offset) {
  if (offset >= text.size()) return 0;
  const Lead lead = classify(byte_at(text, offset));
  if (lead.length <= 1) return lead.length;
  if (text.size() - offset < lead.length) return 0;
  const unsigned char second = byte_at(text, offset + 1);
  if (second < lead.second_min || second > lead.second_max) return 0;
  for (std::size_t i = 2; i < lead.length; ++i) {
    if (!is_continuation(byte_at(text, offset + i))) return 0;
  }
  return lead.length;
}

std::size_t count_columns(std::string_view text) {
  std::size_t columns = 0;
  for (std::size_t i = 0; i < text.size(); ++columns)
    i += std::max<std::size_t>(code_point_length(text, i), 1);
  return columns;
}

Source::Source(std::string name, std::string text) : text_(std::move(text)) {
  parts_.push_back({std::move(name), 0, text_.size(), 0});
  add_lines(0);
}

void Source::add_lines(std::size_t begin) {
  line_begins_.push_back(begin);
  for (std::size_t i = text_.find('\n', begin); i != std::string::npos; i = text_.find('\n', i + 1))
    line_begins_.push_back(i + 1);
}

std::size_t Source::append(std::string name, std::string_view text) {
  text_ += '\n';  // so that the offset behind the last part's end is none of this one
  const std::size_t begin = text_.size();
  text_ += text;
  parts_.push_back({std::move(name), begin, text_.size(), line_begins_.size()});
  add_lines(begin);
  return parts_.size() - 1;
}

const Source::Part& Source::part_at(std::size_t offset) const {
  const auto after =
      std::upper_bound(parts_.begin() + 1, parts_.end(), offset,
                       [](std::size_t at, const Part& part) { return at < part.begin; });
  return *std::prev(after);
}

std::string_view Source::text(Span span) const {
  const std::size_t begin = std::min<std::size_t>(span.begin, text_.size());
  const std::size_t end = std::clamp<std::size_t>(span.end, begin, text_.size());
  return std::string_view(text_).substr(begin, end - begin);
}

Location Source::locate(std::size_t offset) const {
  // Offsets inside the line end belong to the column right behind the line.
  const std::string_view before =
      line_at(offset).substr(0, std::min(offset, text_.size()) - line_begin_at(offset));
  return {line_of(offset), count_columns(before) + 1};
}

std::size_t Source::line_index(std::size_t offset) const {
  const auto after = std::upper_bound(line_begins_.begin(), line_begins_.end(), offset);
  return static_cast<std::size_t>(after - line_begins_.begin()) - 1;
}

std::size_t Source::line_of(std::size_t offset) const {
  return line_index(offset) - part_at(offset).first_line + 1;
}

std::string_view Source::line_at(std::size_t offset) const {
  const std::size_t index = line_index(offset), begin = line_begins_[index];
  const std::size_t end = std::min(text_.find('\n', begin), part_at(offset).end);
  std::string_view line = std::string_view(text_).substr(begin, end - begin);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

}  // namespace tplimit
