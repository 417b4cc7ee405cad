#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "tplimit/data/table.hpp"

/// Parts shared by the readers of data files.
namespace tplimit::data_files {

inline Diagnostic file_error(std::string code, std::string message, std::string help) {
  return Diagnostic::error(std::move(code), std::move(message)).with_help(std::move(help));
}

/// Text from a file made fit for a one-line message: control bytes become \xNN, at most `limit`
/// bytes, never half a code point.
inline std::string printable(std::string_view text, std::size_t limit = 32) {
  std::size_t size = std::min(text.size(), limit);
  if (size < text.size()) {
    while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0U) == 0x80U) --size;
  }
  std::string out;
  for (const char c : text.substr(0, size)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  if (size < text.size()) out += "...";
  return out;
}

inline std::string display_name(const std::filesystem::path& file) {
  return printable(file.string(), 1000);
}

/// A regular file, or bytes that stand for one, read by position.
class File {
 public:
  static File of_bytes(std::string name, std::string bytes) {
    File file;
    file.name_ = std::move(name);
    file.size_ = bytes.size();
    file.bytes_ = std::move(bytes);
    return file;
  }
  /// Errors: E5101.
  static Result<File> open(const std::filesystem::path& path) {
    File file;
    file.name_ = display_name(path);
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (!std::filesystem::exists(status)) {
      return file_error("E5101", fmt::format("{}: no such file", file.name_),
                        "paths are relative to the program's own folder; check the spelling");
    }
    if (std::filesystem::is_directory(status))
      return file_error("E5101", fmt::format("{}: it is a folder", file.name_),
                        "name a file in it");
    if (!std::filesystem::is_regular_file(status)) {
      return file_error("E5101", fmt::format("{}: not a regular file", file.name_),
                        "name a file, not a pipe or a device");
    }
    file.size_ = std::filesystem::file_size(path, error);
    if (!error) file.stream_.open(path, std::ios::binary);
    if (error || !file.stream_) {
      return file_error("E5101", fmt::format("{}: cannot be opened", file.name_),
                        "check that you may read the file");
    }
    return file;
  }

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::uint64_t size() const { return size_; }

  /// Fills `bytes` from `position` on; false if the file has no such bytes.
  [[nodiscard]] bool read(std::uint64_t position, char* bytes, std::size_t count) {
    if (position > size_ || count > size_ - position) return false;
    if (!bytes_.empty()) {
      bytes_.copy(bytes, count, static_cast<std::size_t>(position));
      return true;
    }
    stream_.clear();
    stream_.seekg(static_cast<std::streamoff>(position));
    stream_.read(bytes, static_cast<std::streamsize>(count));
    return stream_.gcount() == static_cast<std::streamsize>(count);
  }

  [[nodiscard]] Diagnostic unreadable() const {
    return file_error("E5101", fmt::format("{}: cannot be read", name_),
                      "check the disk, and that nothing is writing to the file");
  }

 private:
  std::string name_;
  std::uint64_t size_ = 0;
  std::string bytes_;  ///< of those; empty: of a file
  std::ifstream stream_;
};

/// Runs a reader; running out of memory becomes E5101.
template <class Out = DataSet, class Reader>
Result<Out> within_memory(const std::filesystem::path& path, const Reader& reader) {
  const auto too_large = [&] {
    return file_error("E5101", fmt::format("{}: does not fit into memory", display_name(path)),
                      "read fewer samples with rows = a..b");
  };
  try {
    return reader();
  } catch (const std::bad_alloc&) {
    return too_large();
  } catch (const std::length_error&) {
    return too_large();
  }
}

/// `rows` if it is a non-empty part of 0..count, else E5107.  Absent: everything.
inline Result<DataOptions::Rows> select_rows(const std::string& name, const DataOptions& options,
                                             std::int64_t count) {
  const DataOptions::Rows rows = options.rows.value_or(DataOptions::Rows{0, count});
  if (rows.begin < 0 || rows.end > count) {
    return file_error("E5107",
                      fmt::format("{}: rows = {}..{}, but the file has {} rows", name, rows.begin,
                                  rows.end, count),
                      fmt::format("choose a range within 0..{}; the end is not included", count));
  }
  if (rows.begin >= rows.end) {
    return file_error("E5107",
                      fmt::format("{}: rows = {}..{} selects no row", name, rows.begin, rows.end),
                      fmt::format("choose a range within 0..{}; the end is not included", count));
  }
  return rows;
}

/// Each column of a row-major rows x columns array to mean 0 and standard deviation 1 (divisor:
/// rows).  Columns that are constant to rounding become 0; the numbers of those that were not 0
/// before, as black pixels are, are returned.  Safe for values of any finite size.
inline std::vector<std::size_t> standardize_columns(std::vector<double>& values,
                                                    std::size_t columns) {
  std::vector<std::size_t> constant;
  if (columns == 0 || values.empty()) return constant;
  const std::size_t rows = values.size() / columns;
  std::vector<double> low(columns, std::numeric_limits<double>::infinity()),
      high(columns, -std::numeric_limits<double>::infinity());
  const auto each = [&](auto&& visit) {
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < columns; ++j) visit(values[i * columns + j], j);
    }
  };
  each([&](double x, std::size_t j) {
    low[j] = std::min(low[j], x);
    high[j] = std::max(high[j], x);
  });
  // Deviations from the column's middle, in units of its half range, lie in [-1, 1]: no sum below
  // can overflow or lose digits.
  std::vector<double> middle(columns), unit(columns, 0);
  for (std::size_t j = 0; j < columns; ++j) {
    const double half_range = high[j] / 2 - low[j] / 2;
    middle[j] = low[j] / 2 + high[j] / 2;
    // 4 eps: a column whose values differ by rounding only would come out as rounding noise of
    // size 1.
    if (half_range <= 2 * std::numeric_limits<double>::epsilon() *
                          std::max(std::abs(low[j]), std::abs(high[j]))) {
      if (middle[j] != 0) constant.push_back(j);
    } else {
      unit[j] = half_range;
    }
  }
  each([&](double& x, std::size_t j) { x = unit[j] > 0 ? (x - middle[j]) / unit[j] : 0; });
  std::vector<double> mean(columns, 0), variance(columns, 0);
  each([&](double x, std::size_t j) { mean[j] += x; });
  for (double& m : mean) m /= static_cast<double>(rows);
  each([&](double x, std::size_t j) { variance[j] += (x - mean[j]) * (x - mean[j]); });
  for (double& v : variance) v = std::sqrt(v / static_cast<double>(rows));
  each([&](double& x, std::size_t j) { x = variance[j] > 0 ? (x - mean[j]) / variance[j] : 0; });
  return constant;
}

/// W5201, one for all constant columns of a file.
inline Diagnostic constant_columns_warning(const std::string& name,
                                           const std::vector<std::string>& columns) {
  constexpr std::size_t kNamed = 5;
  std::string list;
  for (std::size_t i = 0; i < std::min(columns.size(), kNamed); ++i)
    list += (i == 0 ? "" : ", ") + columns[i];
  if (columns.size() > kNamed) list += fmt::format(" and {} more", columns.size() - kNamed);
  return Diagnostic::warning(
             "W5201",
             fmt::format("{}: {} constant over the selected rows and became 0: {}", name,
                         columns.size() == 1 ? "1 column is"
                                             : fmt::format("{} columns are", columns.size()),
                         list))
      .with_help("leave such columns out, or select rows in which they vary");
}

/// a * b, or nothing on overflow.  Needs a, b >= 0.
inline std::optional<std::int64_t> product(std::int64_t a, std::int64_t b) {
  if (a != 0 && b > std::numeric_limits<std::int64_t>::max() / a) return std::nullopt;
  return a * b;
}

/// "(3, 4)", for messages.
inline std::string shape_text(const std::vector<std::int64_t>& shape) {
  return shape.size() == 1 ? fmt::format("({},)", shape.front())
                           : fmt::format("({})", fmt::join(shape, ", "));
}

/// How the numbers of a binary array are stored.
struct Element {
  enum class Kind { kBool, kUnsigned, kSigned, kFloat } kind;
  std::size_t size;  ///< bytes: 1, 2, 4 or 8; floats 4 or 8
  bool big_endian;
};

inline double decode(const char* bytes, Element element) {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < element.size; ++i) {
    const auto byte =
        static_cast<unsigned char>(bytes[element.big_endian ? i : element.size - 1 - i]);
    word = (word << 8U) | byte;
  }
  const auto unused = static_cast<unsigned>(64 - 8 * element.size);
  switch (element.kind) {
    case Element::Kind::kBool: return word != 0 ? 1 : 0;
    case Element::Kind::kUnsigned: return static_cast<double>(word);
    case Element::Kind::kSigned:
      return static_cast<double>(static_cast<std::int64_t>(word << unused) >> unused);
    case Element::Kind::kFloat:
      return element.size == 4
                 ? static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(word)))
                 : std::bit_cast<double>(word);
  }
  return 0;
}

/// A binary array in a file: what the headers of npy and idx say.
struct Layout {
  std::vector<std::int64_t> shape;
  Element element;
  std::uint64_t position;  ///< of the first number
  bool fortran_order = false;
  std::string format_code;  ///< E5111 or E5113: the code of a file that contradicts its header
};

/// Options that need named columns.  Errors: E5108.
inline std::optional<Diagnostic> without_names(const std::string& name,
                                               const DataOptions& options) {
  if (!options.targets.empty() || !options.columns.empty()) {
    return file_error(
        "E5108",
        fmt::format("{}: columns are chosen by name, but this kind of file has no column names",
                    name),
        "leave out `target` and `columns`, and read targets from a file of their own; or use a csv "
        "file");
  }
  if (options.standardize_target) {
    return file_error("E5108",
                      fmt::format("{}: standardize_target is set, but there is no target", name),
                      "use `standardize` where the targets are read from a file of their own");
  }
  return std::nullopt;
}

/// Numbers of one sample, if the shape is that of an array with values, and the file has as many
/// bytes as it says.  Errors: layout.format_code.
inline Result<std::int64_t> numbers_per_sample(const File& file, const Layout& layout) {
  const std::string& name = file.name();
  const auto& shape = layout.shape;
  if (shape.empty()) {
    return file_error(layout.format_code,
                      fmt::format("{}: holds a single number, not an array", name),
                      "the first axis must count samples");
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
    return file_error(
        layout.format_code,
        fmt::format("{}: the array has no values, its shape is {}", name, shape_text(shape)),
        "write a file with at least one sample");
  }
  std::optional<std::int64_t> per_row = 1;
  for (std::size_t i = 1; i < shape.size() && per_row; ++i) per_row = product(*per_row, shape[i]);
  const auto count = per_row ? product(shape.front(), *per_row) : std::nullopt;
  const auto bytes =
      count ? product(*count, static_cast<std::int64_t>(layout.element.size)) : std::nullopt;
  const std::uint64_t present = file.size() - layout.position;
  if (!bytes || static_cast<std::uint64_t>(*bytes) != present) {
    const bool truncated = !bytes || static_cast<std::uint64_t>(*bytes) > present;
    return file_error(
        layout.format_code,
        fmt::format("{}: {}: shape {} of {}-byte numbers needs {} bytes, the file has {}", name,
                    truncated ? "truncated" : "longer than its header says", shape_text(shape),
                    layout.element.size, bytes ? fmt::format("{}", *bytes) : "more than 2^63",
                    present),
        "write or download the file again");
  }
  return *per_row;
}

/// "2, 3": the indices of a number of a sample, as NumPy writes them.
inline std::string position_in_sample(const std::vector<std::int64_t>& shape, std::size_t column) {
  std::vector<std::size_t> index(shape.size() - 1);
  for (std::size_t axis = shape.size() - 1; axis > 0; --axis) {
    index[axis - 1] = column % static_cast<std::size_t>(shape[axis]);
    column /= static_cast<std::size_t>(shape[axis]);
  }
  return fmt::format("{}", fmt::join(index, ", "));
}

/// In which row, and where in its sample, the numbers of a file stand, one after the other.
class Places {
 public:
  Places(const Layout& layout, std::int64_t first_row, std::size_t columns)
      : shape_(layout.shape),
        fortran_order_(layout.fortran_order),
        columns_(columns),
        row_(first_row),
        index_(shape_.size(), 0) {}
  [[nodiscard]] std::int64_t row() const { return row_; }
  [[nodiscard]] std::size_t column() const { return column_; }
  void advance() {
    if (!fortran_order_) {
      if (++column_ < columns_) return;
      column_ = 0;
      ++row_;
      return;
    }
    if (++row_ < shape_[0]) return;
    row_ = 0;
    for (std::size_t axis = 1; axis < shape_.size() && ++index_[axis] == shape_[axis]; ++axis)
      index_[axis] = 0;
    column_ = 0;  // of a row-major sample
    for (std::size_t axis = 1; axis < shape_.size(); ++axis)
      column_ =
          column_ * static_cast<std::size_t>(shape_[axis]) + static_cast<std::size_t>(index_[axis]);
  }

 private:
  const std::vector<std::int64_t>& shape_;
  bool fortran_order_;
  std::size_t columns_;
  std::int64_t row_;
  std::size_t column_ = 0;
  std::vector<std::int64_t> index_;  ///< Fortran order: of the sample's axes
};

/// values: row-major.  Errors: E5101, E5105.
inline std::optional<Diagnostic> read_rows(File& file, const Layout& layout, DataOptions::Rows rows,
                                           std::int64_t per_row, std::vector<double>& values) {
  const auto columns = static_cast<std::size_t>(per_row);
  const std::size_t size = layout.element.size;
  // Numbers come from the file in one run: the selected rows in C order, everything in Fortran
  // order (first axis fastest).
  const std::int64_t first = layout.fortran_order ? 0 : rows.begin * per_row;
  const std::int64_t last = (layout.fortran_order ? layout.shape.front() : rows.end) * per_row;
  constexpr std::int64_t kChunk = 1 << 14;
  std::vector<char> buffer(static_cast<std::size_t>(std::min(kChunk, last - first)) * size);
  Places place(layout, layout.fortran_order ? 0 : rows.begin, columns);
  for (std::int64_t begin = first; begin < last; begin += kChunk) {
    const auto chunk = static_cast<std::size_t>(std::min(kChunk, last - begin));
    const std::uint64_t position = layout.position + static_cast<std::uint64_t>(begin) * size;
    if (!file.read(position, buffer.data(), chunk * size)) return file.unreadable();
    for (std::size_t i = 0; i < chunk; ++i, place.advance()) {
      if (place.row() < rows.begin || place.row() >= rows.end) continue;
      const double value = decode(buffer.data() + i * size, layout.element);
      if (!std::isfinite(value))
        return file_error("E5105",
                          fmt::format("{}: value [{}{}{}] is {}", file.name(), place.row(),
                                      layout.shape.size() > 1 ? ", " : "",
                                      position_in_sample(layout.shape, place.column()),
                                      std::isnan(value) ? "NaN" : "infinite"),
                          "remove or replace the value, or leave its row out with rows = a..b");
      values[static_cast<std::size_t>(place.row() - rows.begin) * columns + place.column()] = value;
    }
  }
  return std::nullopt;
}

/// Reads the selected rows of a binary array and applies the options.
/// Errors: E5101, E5105, E5107, E5108 and layout.format_code.
inline Result<DataSet> read_array(File& file, const Layout& layout, const DataOptions& options) {
  const std::string& name = file.name();
  if (auto error = without_names(name, options)) return *error;
  const auto per_row = numbers_per_sample(file, layout);
  if (!per_row) return per_row.errors();
  const auto& shape = layout.shape;
  const auto selected = select_rows(name, options, shape.front());
  if (!selected) return selected.errors();
  const std::int64_t rows = selected->end - selected->begin;
  const auto columns = static_cast<std::size_t>(*per_row);
  DataSet data;
  data.features.shape = shape;
  data.features.shape.front() = rows;
  if (options.flatten && shape.size() > 1) data.features.shape = {rows, *per_row};
  auto& values = data.features.values;
  values.resize(static_cast<std::size_t>(rows) * columns);
  if (auto error = read_rows(file, layout, *selected, *per_row, values)) return *error;
  if (options.standardize) {
    std::vector<std::string> constant;
    for (const std::size_t j : standardize_columns(values, columns))
      constant.push_back(shape.size() > 1 ? fmt::format("[:, {}]", position_in_sample(shape, j))
                                          : "[:]");
    if (!constant.empty()) data.warnings.push_back(constant_columns_warning(name, constant));
  }
  return data;
}

/// What other tools left in front: compressed or archived files, to say so.
inline std::string archive_hint(std::string_view start) {
  if (start.starts_with("\x1f\x8b")) return "it is compressed: unpack it first with gunzip";
  if (start.starts_with("PK\x03\x04"))
    return "it is a zip or npz archive: unpack it first and name the array file";
  return {};
}

/// The array of an npy file that stands in memory; a number has no axes.  Errors: as read_npy.
Result<Array> array_in_npy(std::string name, std::string bytes);

}  // namespace tplimit::data_files
