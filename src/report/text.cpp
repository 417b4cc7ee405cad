#include "tplimit/report/text.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "report/words.hpp"

namespace tplimit {
namespace {

using namespace document;

constexpr std::size_t kHeadRows = 8, kTailRows = 4;  // shown of a long table
constexpr std::size_t kMaxColumns = 8;               // shown of a wide one
constexpr std::size_t kThreeEntries = 100;  // columns that a table with three entries needs
constexpr std::string_view kGap = "..";

// ---- tables
// ----------------------------------------------------------------------------------------

/// The place of the decimal point, or where it would stand.
std::size_t point(std::string_view cell) {
  return std::min(cell.find_first_of(".(e?"), cell.size());
}

std::string blanks(std::size_t count) { return std::string(count, ' '); }

/// `text` and as many blanks as it lacks to `width` columns.
std::string padded(std::string text, std::size_t width) {
  const std::size_t own = count_columns(text);
  return own < width ? std::move(text) + blanks(width - own) : text;
}

/// Headings and cells of a column, all equally long.
std::vector<std::string> lines_of(const Column& column) {
  std::vector<std::string> out = column.headings;
  std::size_t left = 0, width = column.least_width;
  for (const std::string& cell : column.cells) left = std::max(left, point(cell));
  for (const std::string& cell : column.cells)
    out.push_back(column.align == Column::Align::kPoint ? blanks(left - point(cell)) + cell : cell);
  for (const std::string& cell : out) width = std::max(width, count_columns(cell));
  for (std::string& cell : out)
    cell = column.align == Column::Align::kRight ? blanks(width - count_columns(cell)) + cell
                                                 : padded(std::move(cell), width);
  return out;
}

std::string text_of(const Table& table) {
  std::vector<std::vector<std::string>> columns;
  for (const Column& column : table.columns) columns.push_back(lines_of(column));
  std::string out;
  for (std::size_t row = 0; row < columns.at(0).size(); ++row) {
    std::string line = blanks(table.indent);
    for (std::size_t k = 0; k < columns.size(); ++k)
      line += (k > 0 ? blanks(table.gap) : "") + columns[k][row];
    out += line.substr(0, line.find_last_not_of(' ') + 1) + '\n';
  }
  return out;
}

/// 0..count-1 with the middle left out (one empty element) where there are more than head + tail
/// + 1.
std::vector<std::optional<std::size_t>> ends(std::size_t count, std::size_t head,
                                             std::size_t tail) {
  std::vector<std::optional<std::size_t>> out;
  const bool cut = count > head + tail + 1;
  for (std::size_t k = 0; k < (cut ? head : count); ++k) out.emplace_back(k);
  if (!cut) return out;
  out.emplace_back(std::nullopt);
  for (std::size_t k = count - tail; k < count; ++k) out.emplace_back(k);
  return out;
}

/// `cut` is set when something was left out.
std::string text_of(const Series& series, const TextOptions& options, bool& cut) {
  std::string out = series.caption.empty() ? "" : "  " + series.caption + '\n';
  const std::size_t rows = series.rows(), columns = series.columns();
  if (rows == 0 || columns == 0) return out + "    empty\n";
  const auto shown_rows = ends(rows, options.full ? rows : kHeadRows, kTailRows);

  std::vector<Column> labels;
  for (const std::string& name : series.label_names())
    labels.push_back({{name}, {}, Column::Align::kRight});
  for (const auto& row : shown_rows) {
    const std::vector<std::string> own =
        row ? series.labels(*row) : std::vector<std::string>(labels.size(), std::string(kGap));
    for (std::size_t k = 0; k < labels.size(); ++k) labels[k].cells.push_back(own[k]);
  }
  const auto layout = [&](const std::vector<std::optional<std::size_t>>& shown_columns) {
    Table table{labels, 4, 3};
    for (const auto& c : shown_columns) {
      Column& column = table.columns.emplace_back();
      column.align = Column::Align::kPoint;
      column.headings = {c ? series.heading(*c) : std::string(kGap)};
      for (const auto& row : shown_rows)
        column.cells.push_back(row && c ? series.cell(*row, *c) : std::string(kGap));
    }
    return text_of(table);
  };
  cut = cut || shown_rows.size() < rows;
  if (options.full) return out + layout(ends(columns, columns, 0));
  // As many columns as fit, at least three.
  for (std::size_t count = std::min(columns, kMaxColumns);; --count) {
    const auto shown = ends(columns, columns == count ? count : count - 2, 1);
    std::string text = layout(shown);
    std::size_t widest = 0;
    for (std::size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
         begin = end + 1)
      widest = std::max(widest, count_columns(std::string_view(text).substr(begin, end - begin)));
    if (widest > options.columns && count > 3) continue;
    cut = cut || shown.size() < columns;
    return out + text;
  }
}

/// One character for each of up to `most` rows: ▁ for the smallest number, █ for the largest, · for
/// none.
std::string sparkline(const ReportResult& r, std::size_t column, std::size_t columns,
                      std::size_t most) {
  static constexpr std::array kBlocks{"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const std::size_t rows = r.value.size() / columns, shown = std::min(rows, most);
  std::vector<double> values;
  double low = INFINITY, high = -INFINITY;
  for (std::size_t k = 0; k < shown; ++k) {
    const std::size_t row = shown > 1 ? k * (rows - 1) / (shown - 1) : 0;
    values.push_back(r.value[row * columns + column]);
    if (!std::isfinite(values.back())) continue;
    low = std::min(low, values.back());
    high = std::max(high, values.back());
  }
  std::string out;
  for (const double x : values) {
    const double part = high > low ? (x - low) / (high - low) : 0;
    out += std::isfinite(x) ? kBlocks.at(static_cast<std::size_t>(std::lround(part * 7))) : "·";
  }
  return out;
}

/// Of the first columns of a series over iterations.
std::string sparklines(const Series& series, const TextOptions& options) {
  constexpr std::size_t kLeastRows = 3, kMostLines = 4, kMargin = 20;
  const std::size_t rows = series.rows(), columns = series.columns();
  if (!options.sparklines || series.spread || rows < kLeastRows || columns == 0 ||
      series.report->index_names.empty())
    return "";
  std::string out;
  for (std::size_t column = 0; column < std::min(columns, kMostLines); ++column)
    out += fmt::format("    {}{}{}\n",
                       sparkline(*series.report, column, columns, options.columns - kMargin),
                       columns > 1 ? "   " : "", series.heading(column));
  return out;
}

/// As terminals understand it.
std::string coloured(std::string text, Tone tone, const TextOptions& options) {
  if (!options.colours || tone == Tone::kNone) return text;
  const int code = tone == Tone::kGood ? 32 : tone == Tone::kOpen ? 33 : 31;
  return fmt::format("\033[{}m{}\033[0m", code, text);
}

// ---- formulas
// --------------------------------------------------------------------------------------

std::string text_of(const Formulas& block, std::size_t margin) {
  // Longer left sides do not move the others; longer right sides are written term by term.
  const std::size_t widest = block.numbers ? 48 : 28;
  constexpr std::size_t kLong = 96;
  std::size_t width = 0;
  for (const Formula& formula : block.formulas)
    if (const std::size_t own = count_columns(formula.left); own <= widest)
      width = std::max(width, own);
  std::string out;
  for (const Formula& formula : block.formulas) {
    const std::string left =
        fmt::format("{}{} {} ", blanks(margin), padded(formula.left, width), formula.relation);
    const std::string note = formula.note.empty() ? ""
                             : block.numbers      ? fmt::format("   ({})", formula.note)
                                                  : "   # " + formula.note;
    const std::string whole = sum_of(formula.terms);
    if (count_columns(whole) <= kLong || formula.terms.size() == 1) {
      out += left + whole + note + '\n';
      continue;
    }
    out += left + leading_term(formula.terms[0]) + note + '\n';
    for (std::size_t k = 1; k < formula.terms.size(); ++k)
      out += blanks(count_columns(left)) + formula.terms[k] + '\n';
  }
  return out;
}

// ---- blocks
// ----------------------------------------------------------------------------------------

class Renderer {
 public:
  explicit Renderer(const TextOptions& options) : options_(options) {}

  std::string text_of(const Section& section) {
    part_ = false;
    std::string out;
    for (const Block& block : section.blocks)
      out += std::visit([&](const auto& b) { return text(b); }, block);
    return out;
  }

 private:
  std::string text(const Heading& heading) {
    constexpr int kPart = 3;
    part_ = heading.level >= kPart;
    std::string out = (part_ ? "  " : "") + heading.text;
    for (const std::string& remark : heading.remarks) out += "   " + remark;
    return out + '\n';
  }
  std::string text(const Paragraph& paragraph) const {
    std::string out;
    for (const std::string& line : paragraph.lines)
      out += coloured(line, out.empty() ? paragraph.tone : Tone::kNone, options_) + '\n';
    return out;
  }
  std::string text(const Note& note) const {
    return blanks(note.indent) + coloured(note.text, note.tone, options_) + '\n';
  }
  std::string text(const OmissionNote& note) const {
    return cut_ ? fmt::format("{}  {}\n", kGap, note.text) : "";
  }
  static std::string text(const Items& items) {
    std::string out;
    for (const std::string& item : items.items) out += "  " + item + '\n';
    return out;
  }
  static std::string text(const Scalars& block) {
    std::string out;
    for (const Scalars::Scalar& s : block.scalars) {
      out += padded(s.name, block.name_width) + "   " + s.value;
      for (const std::string& remark : s.remarks) out += "   " + remark;
      out += '\n';
    }
    return out;
  }
  static std::string text(const Table& table) { return tplimit::text_of(table); }
  std::string text(const Series& series) {
    return sparklines(series, options_) + tplimit::text_of(series, options_, cut_);
  }
  std::string text(const Check& check) const {
    const bool failed = check.status == ExpectStatus::kFailed;
    const Tone tone = failed                                     ? Tone::kBad
                      : check.status == ExpectStatus::kUndecided ? Tone::kOpen
                                                                 : Tone::kGood;
    const std::string word = failed ? "FAIL" : words::word(check.status);
    constexpr std::size_t kWord = 9;
    return fmt::format("{}{}  {}: {}\n           {}\n", coloured(word, tone, options_),
                       blanks(kWord - std::min(kWord, word.size())), check.place, check.text,
                       check.finding);
  }
  std::string text(const Formulas& block) const { return tplimit::text_of(block, part_ ? 4 : 2); }
  static std::string text(const Drawing&) { return ""; }
  static std::string text(const Listing&) { return ""; }

  const TextOptions& options_;
  bool cut_ = false;   ///< something of a series was left out
  bool part_ = false;  ///< within a part of a section
};

}  // namespace

std::string to_text(const Document& document, const TextOptions& options) {
  Renderer renderer(options);
  std::string out;
  for (const Section& section : document.sections) {
    const std::string text = renderer.text_of(section);
    if (!text.empty()) out += (out.empty() ? "" : "\n") + text;
  }
  return out;
}

std::string to_text(const LimitResult& limit, const ProgramInfo& program,
                    const TextOptions& options) {
  return to_text(document_of(limit, program), options);
}

std::string to_text(const SimulationResult& networks, const ProgramInfo& program,
                    const TextOptions& options) {
  return to_text(document_of(networks, program), options);
}

std::string to_text(const Comparison& comparison, const ProgramInfo& program,
                    const TextOptions& options) {
  const std::size_t beside = options.columns < kThreeEntries ? 2 : 3;
  return to_text(document_of(comparison, program, {options.full, beside}), options);
}

}  // namespace tplimit
