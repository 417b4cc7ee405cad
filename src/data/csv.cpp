#include <charconv>
#include <cmath>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/common.hpp"
#include "tplimit/data/table.hpp"

namespace tplimit {
namespace {

using data_files::file_error;
using data_files::printable;

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

struct Field {
  std::string_view text;  ///< trimmed if not quoted
  bool quoted = false;
};

/// Cuts text into records and fields (RFC 4180, with LF, CRLF or CR as line ends).
class Records {
 public:
  explicit Records(std::string_view text) : rest_(text) {}

  /// The next record, or false at the end of the text and after a malformed quote.
  bool next() {
    fields_.clear();
    unescaped_.clear();
    if (rest_.empty()) return false;
    line_ = next_line_;
    while (true) {
      rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t"), rest_.size()));
      if (!rest_.empty() && rest_.front() == '"') {
        if (!quoted_field()) return false;
      } else {
        const std::size_t end = std::min(rest_.find_first_of(",\r\n"), rest_.size());
        fields_.push_back({trimmed(rest_.substr(0, end)), false});
        rest_.remove_prefix(end);
      }
      if (rest_.empty()) return true;
      const char separator = rest_.front();
      rest_.remove_prefix(1);
      if (separator == ',') continue;
      if (separator == '\r' && !rest_.empty() && rest_.front() == '\n') rest_.remove_prefix(1);
      ++next_line_;
      return true;
    }
  }

  [[nodiscard]] const std::vector<Field>& fields() const { return fields_; }
  /// Of the first character of the last record, counted from 1.
  [[nodiscard]] std::size_t line() const { return line_; }
  [[nodiscard]] bool blank() const {
    return fields_.size() == 1 && fields_.front().text.empty() && !fields_.front().quoted;
  }
  /// What is wrong with a quote; empty if nothing is.
  [[nodiscard]] const std::string& fault() const { return fault_; }

 private:
  bool quoted_field() {
    rest_.remove_prefix(1);
    const std::string_view start = rest_;
    std::size_t size = 0;
    bool escapes = false;
    while (true) {
      const std::size_t quote = start.find('"', size);
      if (quote == std::string_view::npos) {
        fault_ = "a quote is opened and never closed";
        return false;
      }
      size = quote;
      if (quote + 1 == start.size() || start[quote + 1] != '"') break;
      escapes = true;
      size += 2;
    }
    const std::string_view raw = start.substr(0, size);
    for (std::size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] == '\n' || (raw[i] == '\r' && (i + 1 == raw.size() || raw[i + 1] != '\n')))
        ++next_line_;
    }
    rest_.remove_prefix(size + 1);
    rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t"), rest_.size()));
    if (!rest_.empty() && std::string_view(",\r\n").find(rest_.front()) == std::string_view::npos) {
      fault_ = fmt::format("there is text after a closing quote: '{}'",
                           printable(rest_.substr(0, rest_.find_first_of(",\r\n"))));
      return false;
    }
    if (!escapes) {
      fields_.push_back({raw, true});
      return true;
    }
    std::string& text = unescaped_.emplace_back();
    for (std::size_t i = 0; i < raw.size(); ++i) {
      text += raw[i];
      if (raw[i] == '"') ++i;
    }
    fields_.push_back({text, true});
    return true;
  }

  std::string_view rest_;
  std::vector<Field> fields_;
  std::deque<std::string> unescaped_;  // a deque keeps the addresses that fields_ points at
  std::size_t line_ = 0;
  std::size_t next_line_ = 1;
  std::string fault_;
};

enum class Parsed { kNumber, kNotANumber, kNaN, kInfinite };

/// A decimal number with a point; "inf" and "nan" are recognised to be refused by name.
Parsed parse_number(std::string_view text, double& value) {
  text = trimmed(text);
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return Parsed::kNotANumber;
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end != text.data() + text.size() || error == std::errc::invalid_argument)
    return Parsed::kNotANumber;
  if (error == std::errc::result_out_of_range) {
    // Too large or too small?  The decimal exponent of the first digit that is not 0 tells.
    std::int64_t exponent = 0;
    const std::size_t e = std::min(text.find_first_of("eE"), text.size());
    if (e < text.size()) {
      const std::string_view digits = text.substr(e + (text[e + 1] == '+' ? 2 : 1));
      if (std::from_chars(digits.data(), digits.data() + digits.size(), exponent).ec ==
          std::errc::result_out_of_range) {
        exponent = digits.starts_with('-') ? -1'000'000'000 : 1'000'000'000;
      }
    }
    const std::string_view mantissa = text.substr(0, e);
    const std::size_t digit = std::min(mantissa.find_first_of("123456789"), mantissa.size());
    const std::size_t point = std::min(mantissa.find('.'), mantissa.size());
    if (exponent + static_cast<std::int64_t>(point) - static_cast<std::int64_t>(digit) > 0)
      return Parsed::kInfinite;
    value = 0;
  }
  if (std::isnan(value)) return Parsed::kNaN;
  return std::isinf(value) ? Parsed::kInfinite : Parsed::kNumber;
}

/// Positions of the columns to read.
struct Columns {
  std::vector<std::size_t> features, targets;
};

/// Errors: E5106.
Result<Columns> choose_columns(const std::string& name, const std::vector<std::string>& header,
                               const DataOptions& options) {
  enum class Use : unsigned char { kNone, kFeature, kTarget };
  std::vector<Use> use(header.size(), Use::kNone);
  Columns columns;
  const auto list = [&] {
    std::string text;
    for (std::size_t i = 0; i < std::min<std::size_t>(header.size(), 8); ++i)
      text += (i == 0 ? "" : ", ") + printable(header[i]);
    return text + (header.size() > 8 ? fmt::format(" and {} more", header.size() - 8) : "");
  };
  const auto take = [&](const std::vector<std::string>& wanted, Use as,
                        std::vector<std::size_t>& out) -> std::optional<Diagnostic> {
    for (const std::string& column : wanted) {
      const auto found = std::find(header.begin(), header.end(), column);
      const std::string shown = printable(column);
      if (found == header.end()) {
        return file_error("E5106", fmt::format("{}: no column '{}'", name, shown),
                          fmt::format("the columns are {}", list()));
      }
      if (std::find(found + 1, header.end(), column) != header.end()) {
        return file_error("E5106", fmt::format("{}: two columns are called '{}'", name, shown),
                          "give each column its own name in the first line");
      }
      const auto position = static_cast<std::size_t>(found - header.begin());
      if (use[position] != Use::kNone) {
        const bool both = use[position] != as;
        return file_error("E5106",
                          fmt::format("{}: column '{}' is named {}", name, shown,
                                      both ? "as a feature and as a target" : "twice"),
                          "name it once");
      }
      use[position] = as;
      out.push_back(position);
    }
    return std::nullopt;
  };
  if (auto error = take(options.targets, Use::kTarget, columns.targets)) return *error;
  if (auto error = take(options.columns, Use::kFeature, columns.features)) return *error;
  if (options.columns.empty()) {
    for (std::size_t i = 0; i < header.size(); ++i) {
      if (use[i] == Use::kNone) columns.features.push_back(i);
    }
  }
  if (columns.features.empty()) {
    return file_error("E5106",
                      fmt::format("{}: every column is a target, no feature is left", name),
                      "name fewer target columns");
  }
  return columns;
}

/// One csv file, from its text to rows of numbers.
class Reader {
 public:
  Reader(const std::string& name, std::string_view content, const DataOptions& options)
      : name_(name), options_(options), records_(content) {}

  Result<std::vector<std::string>> names() {
    if (auto error = read_header()) return *error;
    return header_;
  }

  Result<DataSet> read() {
    if (auto error = read_header()) return *error;
    auto chosen = choose_columns(name_, header_, options_);
    if (!chosen) return chosen.errors();
    columns_ = *chosen;
    std::int64_t rows = 0;
    if (auto error = read_rows(rows)) return *error;
    auto selected = data_files::select_rows(name_, options_, rows);
    if (!selected) return selected.errors();
    set_shapes(selected->end - selected->begin);
    standardize();
    return std::move(data_);
  }

 private:
  using MaybeError = std::optional<Diagnostic>;

  [[nodiscard]] Diagnostic malformed() const {
    return file_error("E5103",
                      fmt::format("{}: line {}: {}", name_, records_.line(), records_.fault()),
                      "write \"\" for a quote inside a quoted value, and close each quote");
  }

  /// Errors: E5102, E5103.
  MaybeError read_header() {
    const bool has_header = records_.next();
    if (!records_.fault().empty()) return malformed();
    if (!has_header || records_.blank()) {
      return file_error("E5102",
                        fmt::format("{}: no header: {}", name_,
                                    has_header ? "the first line is empty" : "the file is empty"),
                        "the first line must hold the names of the columns, separated by commas");
    }
    bool only_numbers = true;
    for (const Field& field : records_.fields()) {
      double ignored = 0;
      only_numbers =
          only_numbers && !field.quoted && parse_number(field.text, ignored) == Parsed::kNumber;
      header_.emplace_back(field.text);
    }
    if (only_numbers) {
      return file_error(
          "E5102",
          fmt::format("{}: no header: the first line holds numbers, not names of columns", name_),
          "put a line with the names of the columns first, or quote names that look like numbers");
    }
    return std::nullopt;
  }

  /// Stops behind the last row that is wanted.  Errors: E5102 to E5105.
  MaybeError read_rows(std::int64_t& row) {
    const auto& wanted = options_.rows;
    const bool can_stop = wanted && wanted->begin >= 0 && wanted->begin < wanted->end;
    std::size_t blank_line = 0;
    while (!(can_stop && row == wanted->end) && records_.next()) {
      if (records_.blank()) {
        if (blank_line == 0) blank_line = records_.line();
        continue;
      }
      if (blank_line != 0) {
        return file_error("E5103", fmt::format("{}: line {}: the line is empty", name_, blank_line),
                          "delete the line, or fill in its values");
      }
      if (records_.fields().size() != header_.size()) return wrong_count();
      if (!wanted || (row >= wanted->begin && row < wanted->end)) {
        if (auto error = append(columns_.features, data_.features.values)) return error;
        if (auto error = append(columns_.targets, targets_)) return error;
      }
      ++row;
    }
    if (!records_.fault().empty()) return malformed();
    if (row == 0)
      return file_error("E5102", fmt::format("{}: no rows: there is only a header", name_),
                        "add lines of numbers below the header");
    return std::nullopt;
  }

  [[nodiscard]] Diagnostic wrong_count() const {
    const auto count = [](std::size_t n, std::string_view what) {
      return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
    };
    return file_error(
        "E5103",
        fmt::format("{}: line {}: {}, but the header names {}", name_, records_.line(),
                    count(records_.fields().size(), "value"), count(header_.size(), "column")),
        "give each line one value for each column; quote values that contain a comma");
  }

  /// Some columns of the current row.  Errors: E5104, E5105.
  MaybeError append(const std::vector<std::size_t>& from, std::vector<double>& to) const {
    for (const std::size_t i : from) {
      const std::string_view field = records_.fields()[i].text;
      double value = 0;
      const Parsed parsed = parse_number(field, value);
      if (parsed != Parsed::kNumber) return no_number(parsed, field, i);
      to.push_back(value);
    }
    return std::nullopt;
  }

  [[nodiscard]] Diagnostic no_number(Parsed parsed, std::string_view field,
                                     std::size_t column) const {
    const std::string place =
        fmt::format("{}: line {}, column '{}'", name_, records_.line(), printable(header_[column]));
    if (parsed == Parsed::kNotANumber) {
      const bool other_separator = field.find_first_of(";\t|") != std::string_view::npos;
      return file_error(
          "E5104",
          fmt::format("{}: {}", place,
                      field.empty() ? "the value is missing"
                                    : fmt::format("'{}' is not a number", printable(field))),
          other_separator ? "separate values by commas, and write 1.5, not 1,5"
                          : "write a number, or choose other columns with `columns`");
    }
    return file_error("E5105",
                      fmt::format("{}: '{}' is {}", place, printable(field),
                                  parsed == Parsed::kNaN ? "NaN" : "infinite or too large"),
                      "remove or replace the value, or leave its row out with rows = a..b");
  }

  void set_shapes(std::int64_t rows) {
    data_.features.shape = {rows, static_cast<std::int64_t>(columns_.features.size())};
    if (columns_.targets.empty()) return;
    data_.target = Array{{rows}, std::move(targets_)};
    if (columns_.targets.size() > 1)
      data_.target->shape.push_back(static_cast<std::int64_t>(columns_.targets.size()));
  }

  void standardize() {
    std::vector<std::string> constant;
    const auto apply = [&](std::vector<double>& values, const std::vector<std::size_t>& from) {
      for (const std::size_t j : data_files::standardize_columns(values, from.size()))
        constant.push_back(printable(header_[from[j]]));
    };
    if (options_.standardize) apply(data_.features.values, columns_.features);
    if (options_.standardize_target) apply(data_.target->values, columns_.targets);
    if (!constant.empty())
      data_.warnings.push_back(data_files::constant_columns_warning(name_, constant));
  }

  const std::string& name_;
  const DataOptions& options_;
  Records records_;
  std::vector<std::string> header_;
  Columns columns_;
  DataSet data_;
  std::vector<double> targets_;
};

/// `with(reader)` for what the file holds.
template <class Out, class With>
Result<Out> read(const std::filesystem::path& path, const DataOptions& options, const With& with) {
  auto opened = data_files::File::open(path);
  if (!opened) return opened.errors();
  data_files::File file = std::move(opened).value();
  const std::string& name = file.name();
  if (options.standardize_target && options.targets.empty()) {
    return file_error("E5108",
                      fmt::format("{}: standardize_target is set, but no target is named", name),
                      "name the target: target = \"..\"");
  }
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  if (!file.read(0, text.data(), text.size())) return file.unreadable();

  std::string_view content = text;
  if (std::string help = data_files::archive_hint(content); !help.empty()) {
    return file_error("E5102", fmt::format("{}: no header: this is not text", name),
                      std::move(help));
  }
  if (content.starts_with("\xEF\xBB\xBF")) content.remove_prefix(3);  // byte order mark
  Reader reader(name, content, options);
  return with(reader);
}

}  // namespace

Result<DataSet> read_csv(const std::filesystem::path& file, const DataOptions& options) {
  return data_files::within_memory<DataSet>(file, [&] {
    return read<DataSet>(file, options, [](Reader& reader) { return reader.read(); });
  });
}

Result<std::vector<std::string>> csv_columns(const std::filesystem::path& file) {
  using Names = std::vector<std::string>;
  return data_files::within_memory<Names>(
      file, [&] { return read<Names>(file, {}, [](Reader& reader) { return reader.names(); }); });
}

}  // namespace tplimit
