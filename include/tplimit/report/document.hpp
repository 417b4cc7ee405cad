#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tplimit/report/chart.hpp"
#include "tplimit/report/comparison.hpp"
#include "tplimit/report/program_info.hpp"
#include "tplimit/report/results.hpp"

namespace tplimit {

/// Results as documents: what is said and in which order, not how it is drawn.  A document is built
/// once per result and holds no characters of a layout; report/text.hpp renders it as text.
namespace document {

/// Level 1 names the document, 2 a section of it, 3 a part of a section.
struct Heading {
  int level = 1;
  std::string text;
  std::vector<std::string> remarks{};  ///< beside it: "3 x 3", "closed form"
};

/// What a verdict says of what it judges, for colours.
enum class Tone { kNone, kGood, kOpen, kBad };

/// Sentences, a line each.
struct Paragraph {
  std::vector<std::string> lines;
  Tone tone = Tone::kNone;  ///< of the first line
  bool has_markup = false;  ///< formulas between $ are LaTeX
};

/// A remark on what stands above it.
struct Note {
  std::string text;
  std::size_t indent = 4;  ///< in text
  Tone tone = Tone::kNone;
};

/// Said only where a renderer has left out a part of a series.
struct OmissionNote {
  std::string text;
};

struct Items {
  std::vector<std::string> items;
};

/// Single numbers, a line each.
struct Scalars {
  struct Scalar {
    std::string name, value;
    std::vector<std::string> remarks;
  };
  std::vector<Scalar> scalars;
  std::size_t name_width = 0;  ///< of the names of all such blocks of the document
};

struct Column {
  enum class Align { kLeft, kRight, kPoint };  ///< at the decimal point: numbers
  std::vector<std::string> headings;           ///< above each other; all columns have as many
  std::vector<std::string> cells;              ///< one for each row; all columns have as many
  Align align = Align::kLeft;
  std::size_t least_width = 0;  ///< in text
};

struct Table {
  std::vector<Column> columns;
  std::size_t indent = 0, gap = 2;  ///< in text: in front of the table, and between columns
};

/// All entries of a report, not a scalar: rows are its iterations, or all axes but the last;
/// columns the rest.  They are written when a renderer asks for them, since there may be millions.
struct Series {
  const ReportResult* report = nullptr;  ///< must outlive the document
  bool spread = false;                   ///< standard deviations over draws instead of values
  std::string caption{};

  [[nodiscard]] std::size_t rows() const;
  [[nodiscard]] std::size_t columns() const;
  /// Loop variables, or one empty name for axes, or nothing: what labels(row) has a value for.
  [[nodiscard]] std::vector<std::string> label_names() const;
  [[nodiscard]] std::vector<std::string> labels(std::size_t row) const;
  [[nodiscard]] std::string heading(std::size_t column) const;  ///< "[1,2]"
  [[nodiscard]] std::string cell(std::size_t row, std::size_t column) const;
};

/// What came of one `expect`.
struct Check {
  ExpectStatus status = ExpectStatus::kUndecided;
  std::string place, text;  ///< "net.tp:7", the statement
  std::string finding;      ///< both sides and their difference
};

/// left relation sum of terms; each term begins with "+ " or "- ".
struct Formula {
  std::string left, relation;
  std::vector<std::string> terms;
  std::string note;
};

/// "+ a" as "a", "- a" as "-a".
[[nodiscard]] std::string leading_term(const std::string& term);
/// "a - b + c"
[[nodiscard]] std::string sum_of(const std::vector<std::string>& terms);

/// Formulas below each other, or numbers and how they were found (`note`).
struct Formulas {
  std::vector<Formula> formulas;
  bool numbers = false;
  bool notes_are_markup = false;  ///< notes are written in the markup that the formulas are in
  bool latex = false;             ///< the formulas are LaTeX, not plain text
};

/// Charts of what stands above; made when a renderer asks for them, of what must outlive the
/// document.  Text has none.
struct Drawing {
  std::function<std::vector<chart::Chart>()> charts;
};

/// A text as it stands, where pages show it.
struct Listing {
  std::string text;
  bool program = false;  ///< in the language of programs
};

using Block = std::variant<Heading, Paragraph, Note, OmissionNote, Items, Scalars, Table, Series,
                           Check, Formulas, Drawing, Listing>;

/// Blocks that belong together; text has an empty line between sections.
struct Section {
  std::vector<Block> blocks;
};

struct Document {
  std::vector<Section> sections;

  /// A new section.
  Section& add(std::vector<Block> blocks) {
    sections.push_back({std::move(blocks)});
    return sections.back();
  }
  void append(Document other) {
    for (Section& section : other.sections) sections.push_back(std::move(section));
  }
};

}  // namespace document

/// `limit`, `networks` and `comparison` must outlive their documents.
document::Document document_of(const LimitResult& limit, const ProgramInfo& program);
document::Document document_of(const SimulationResult& networks, const ProgramInfo& program);

/// Which entries of a report a comparison shows.
struct ShownEntries {
  bool all = false;
  std::size_t beside = 3;  ///< how many stand in one table; that many are shown, unless `all`
};
/// Per report: mean (with its error) and seed standard deviation at each width above the limit, for
/// the first, middle and last entries; the rms deviation over all entries; the verdict.
document::Document document_of(const Comparison& comparison, const ProgramInfo& program,
                               ShownEntries shown = {});

/// What a page says beside results: warnings, all that is needed to repeat the run (names and
/// values), the program.
document::Document provenance(const ProgramInfo& program,
                              const std::vector<std::pair<std::string, std::string>>& settings,
                              const std::string& warnings);

}  // namespace tplimit
