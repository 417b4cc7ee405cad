#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tplimit/support/diagnostic.hpp"

/// Readers of data files: to arrays of doubles, row-major.  They know no program: their diagnostics
/// carry no place in it (`located == false`), the caller points at the statement.
///
/// Every file is treated as hostile: a header decides no allocation before the file's length has
/// confirmed it.
namespace tplimit {

/// A dense array of doubles.  Layout: row-major (last axis fastest).
struct Array {
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};

/// What to read and how; the fields are the options of the `data` statement.
struct DataOptions {
  struct Rows {
    std::int64_t begin, end;
  };
  std::optional<Rows> rows{};          ///< half-open range of samples (first axis); all when absent
  std::vector<std::string> targets{};  ///< csv: names of target columns; empty: no target
  std::vector<std::string>
      columns{};  ///< csv: names of feature columns, in this order; empty: all but the targets
  bool standardize =
      false;  ///< features: subtract the mean, divide by the standard deviation (divisor N)
              ///< over the selected rows; constant columns become 0, with one warning
  bool standardize_target = false;  ///< the same for the targets
  bool flatten = false;             ///< npy, idx: [N, a, b, ..] becomes [N, a*b*..]; [N] stays [N]
};

struct DataSet {
  Array features;  ///< [N, d]; from npy and idx the shape in the file
  std::optional<Array>
      target;  ///< [N] for one target column, [N, k] for several, in the order of `targets`
  std::vector<Diagnostic>
      warnings;  ///< W5201: columns that are constant (to rounding), not 0, and became 0
};

/// Comma-separated text with one header line.  Quotes ("a,b", "" for a quote inside, line ends
/// inside) are understood, so are CRLF, spaces around values and a byte order mark; empty lines at
/// the end are skipped.  A column that is neither feature nor target may hold any text.  Numbers
/// are decimal with a point, whatever the locale. Reading stops after the last selected row: what
/// follows is not checked. Errors (message names the file, line and column): E5101 cannot be opened
/// or read, or does not fit into memory; E5102 no header or no rows (a first line of numbers is no
/// header); E5103 ragged or empty row, unfinished quote; E5104 not a number; E5105 NaN or infinite;
/// E5106 unknown, ambiguous or repeated column, or no feature left; E5107 rows out of range; E5108
/// option that does not fit (standardize_target without targets).
Result<DataSet> read_csv(const std::filesystem::path& file, const DataOptions& options);

/// NumPy .npy 1.0, 2.0, 3.0; C or Fortran order; little/big-endian integers, bool and
/// float32/float64. Only the selected rows are kept, and in C order only they are read. Errors:
/// E5101, E5105, E5107; E5108 targets or column names (there are none); E5111 not an npy file,
/// truncated, longer than its header says, or without values; E5112 element type not supported
/// (objects, records, complex, strings, float16).
Result<DataSet> read_npy(const std::filesystem::path& file, const DataOptions& options);

/// The names of the columns of a csv file.  Errors: E5101 to E5103.
Result<std::vector<std::string>> csv_columns(const std::filesystem::path& file);

struct NamedArray {
  std::string name;
  Array array;
};
/// NumPy .npz archives, stored or deflated: all arrays, as read_npy takes them; a number has no
/// axes. Other members are passed over.  Errors: E5101; E5105, E5111, E5112 of an array; E5114 not
/// a zip archive, truncated, damaged, encrypted, or otherwise compressed.
Result<std::vector<NamedArray>> read_npz(const std::filesystem::path& file);

/// IDX (the MNIST format): types 0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E, big-endian.
/// Errors: E5101, E5105, E5107, E5108; E5113 not an idx file, truncated, longer than its header
/// says, or without values.
Result<DataSet> read_idx(const std::filesystem::path& file, const DataOptions& options);

/// SHA-256 of bytes as 64 lowercase hexadecimal digits (FIPS 180-4).
std::string sha256(std::string_view bytes);

}  // namespace tplimit
