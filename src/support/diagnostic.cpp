#include "tplimit/support/diagnostic.hpp"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

namespace tplimit {
namespace {

// A longer line is cut to kMaxColumns columns, of which kColumnsBefore stand before the caret: with
// the gutter and two cut marks an uncut label still begins on a screen of 120 columns.
constexpr std::size_t kMaxColumns = 96;
constexpr std::size_t kColumnsBefore = 48;
constexpr std::string_view kCutMark = "...";

/// The severity as printed in front of the code.
std::string_view severity_word(Severity severity) {
  switch (severity) {
    case Severity::kError: return "error";
    case Severity::kWarning: return "warning";
    case Severity::kNote: return "note";
  }
  return "error";
}

/// True for U+0000..U+001F, U+007F and U+0080..U+009F, which could move the cursor of a terminal.
bool is_control(std::string_view code_point) {
  const auto first = static_cast<unsigned char>(code_point.front());
  if (code_point.size() == 1) return first < 0x20 || first == 0x7F;
  return first == 0xC2 && static_cast<unsigned char>(code_point[1]) < 0xA0;
}

/// Calls `visit(shown)` for each column of `text` with what may be printed there; tabs are passed
/// through.
template <class Visit>
void for_each_column(std::string_view text, Visit visit) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = code_point_length(text, i);
    const std::string_view shown = text.substr(i, std::max<std::size_t>(length, 1));
    visit(length == 0 || (is_control(shown) && shown != "\t") ? std::string_view("?") : shown);
    i += shown.size();
  }
}

std::string printable(std::string_view text) {
  std::string out;
  for_each_column(text, [&](std::string_view shown) { out += shown; });
  return out;
}

/// Half-open range of columns, counted from 0.
struct Columns {
  std::size_t begin, end;
};

/// The part of a line of `length` columns to show when the caret stands at column `caret`.
Columns window_around(std::size_t caret, std::size_t length) {
  if (length <= kMaxColumns) return {0, length};
  const std::size_t wanted = caret > kColumnsBefore ? caret - kColumnsBefore : 0;
  const std::size_t begin = std::min(wanted, length - kMaxColumns);
  return {begin, begin + kMaxColumns};
}

/// Columns of the part of `span` that lies on its first line.
Columns columns_of(Span span, const Source& source) {
  const Location where = source.locate(span.begin);
  const std::string_view line = source.line_at(span.begin);
  const std::size_t line_begin = source.line_begin_at(span.begin);
  const auto in_line = [&](std::size_t offset) {
    return std::min(std::max(offset, line_begin) - line_begin, line.size());
  };
  const std::size_t begin = in_line(span.begin);
  const std::size_t end = std::max(in_line(span.end), begin);
  return {where.column - 1, where.column - 1 + count_columns(line.substr(begin, end - begin))};
}

/// The line of `span` behind its number, and below it carets under the span with the label.
std::string quote(Span span, std::string_view label, const Source& source) {
  const std::size_t line_number = source.line_of(span.begin);
  const std::string_view line = source.line_at(span.begin);
  const Columns marked = columns_of(span, source);
  const std::size_t length = count_columns(line);
  const Columns window = window_around(marked.begin, length);

  std::string shown, padding;
  if (window.begin > 0) {
    shown += kCutMark;
    padding.append(kCutMark.size(), ' ');
  }
  std::size_t column = 0;
  for_each_column(line, [&](std::string_view code_point) {
    if (column >= window.begin && column < window.end) {
      shown += code_point;
      if (column < marked.begin) padding += code_point == "\t" ? '\t' : ' ';
    }
    ++column;
  });
  if (window.end < length) shown += kCutMark;

  const std::size_t marked_end = std::min(marked.end, window.end);
  std::string carets(std::max<std::size_t>(marked_end, marked.begin + 1) - marked.begin, '^');
  if (!label.empty()) carets += ' ' + printable(label);
  const std::string gutter = fmt::format("{:>4}", line_number);
  // An empty line is quoted without the blank behind the bar.
  return fmt::format("{} |{}{}\n{:{}} | {}{}\n", gutter, shown.empty() ? "" : " ", shown, "",
                     gutter.size(), padding, carets);
}

/// "file:line:column: ", or "file: " without a place.
std::string place(Span span, bool located, const Source& source) {
  const std::string name = printable(located ? source.part_at(span.begin).name : source.name());
  if (!located) return name + ": ";
  const Location where = source.locate(span.begin);
  return fmt::format("{}:{}:{}: ", name, where.line, where.column);
}

std::string render(const Diagnostic::Note& note, const Source& source) {
  return fmt::format("{}note: {}\n", place(note.span, note.span != Span{}, source),
                     printable(note.message));
}

}  // namespace

bool any_of(const Diagnostics& errors, std::initializer_list<std::string_view> codes) {
  return std::any_of(errors.begin(), errors.end(), [&](const Diagnostic& d) {
    return std::find(codes.begin(), codes.end(), d.code) != codes.end();
  });
}

Diagnostic Diagnostic::error(std::string code, std::string message) {
  return {Severity::kError, std::move(code), std::move(message), {}, "", "", {}, false};
}

Diagnostic Diagnostic::warning(std::string code, std::string message) {
  return {Severity::kWarning, std::move(code), std::move(message), {}, "", "", {}, false};
}

Diagnostic Diagnostic::at(Span place) && { return std::move(*this).at_if(true, place); }

Diagnostic Diagnostic::at_if(bool known, Span place) && {
  span = place;
  located = known;
  return std::move(*this);
}

Diagnostic Diagnostic::with_label(std::string text) && {
  label = std::move(text);
  return std::move(*this);
}

Diagnostic Diagnostic::with_help(std::string text) && {
  help = std::move(text);
  return std::move(*this);
}

Diagnostic Diagnostic::with_note(std::string text, Span place) && {
  notes.push_back({std::move(text), place});
  return std::move(*this);
}

std::string render(const Diagnostic& diagnostic, const Source& source) {
  const std::string code = diagnostic.code.empty() ? "" : fmt::format("[{}]", diagnostic.code);
  std::string out =
      fmt::format("{}{}{}: {}\n", place(diagnostic.span, diagnostic.located, source),
                  severity_word(diagnostic.severity), code, printable(diagnostic.message));
  if (diagnostic.located) out += quote(diagnostic.span, diagnostic.label, source);
  for (const Diagnostic::Note& note : diagnostic.notes) out += render(note, source);
  if (!diagnostic.help.empty()) out += fmt::format("help: {}\n", printable(diagnostic.help));
  return out;
}

std::string render(const Diagnostics& diagnostics, const Source& source) {
  std::string out;
  for (const Diagnostic& diagnostic : diagnostics) out += render(diagnostic, source);
  return out;
}

}  // namespace tplimit
