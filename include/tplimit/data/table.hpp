#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/support/diagnostic.hpp"

/// Readers of data files: to arrays of doubles, row-major.  They know no program: their diagnostics carry no place in
/// it (`located == false`), the caller points at the statement.
namespace tplimit {

/// A dense array of doubles.  Layout: row-major (last axis fastest).
struct Array {
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};

/// What to read and how; the fields are the options of the `data` statement.
struct DataOptions {
  struct Rows { std::int64_t begin, end; };
  std::optional<Rows> rows;          ///< half-open range of samples (first axis); all when absent
  std::vector<std::string> targets;  ///< csv: names of target columns; empty: no target
  std::vector<std::string> columns;  ///< csv: names of feature columns; empty: every column that is no target
  bool standardize = false;          ///< features: subtract the mean, divide by the standard deviation (divisor N) over
                                     ///< the selected rows; constant columns become 0, with one warning
  bool standardize_target = false;   ///< the same for the targets
  bool flatten = false;              ///< npy, idx: [N, a, b, ..] becomes [N, a*b*..]
};

struct DataSet {
  Array features;                 ///< [N, d]
  std::optional<Array> target;    ///< [N] for one target column, [N, k] for several
  std::vector<Diagnostic> warnings;
};

/// Comma-separated text with one header line.  Quotes ("a,b", "" for a quote inside) are understood, CRLF too.
/// Errors (message names the file, data line and column): E5101 cannot be opened or read, E5102 no header or no rows, E5103 ragged row,
/// E5104 not a number, E5105 NaN or infinite, E5106 unknown column, E5107 rows out of range.
Result<DataSet> read_csv(const std::filesystem::path& file, const DataOptions& options);

/// NumPy .npy 1.0, 2.0, 3.0; C or Fortran order; little/big-endian integers, bool and float32/float64.  Errors: E5101, E5105, E5107,
/// E5111 not an npy file or truncated, E5112 element type not supported (objects, complex, strings).
Result<DataSet> read_npy(const std::filesystem::path& file, const DataOptions& options);

/// IDX (the MNIST format): types 0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E, big-endian.  Errors: E5101, E5105, E5107, E5113 not an idx file or truncated.
Result<DataSet> read_idx(const std::filesystem::path& file, const DataOptions& options);

/// SHA-256 of bytes as 64 lowercase hexadecimal digits (FIPS 180-4).
std::string sha256(std::string_view bytes);

}  // namespace tplimit
