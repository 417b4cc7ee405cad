#pragma once

#include <limits>
#include <span>
#include <vector>

#include "engines/state_file.hpp"
#include "engines/tall.hpp"
#include "tplimit/ir/program.hpp"

namespace tplimit::engines {

/// What a run saw of the terms of an average, to judge what its particles cannot resolve
/// (docs/theory.md, "Errors").
struct TermSummary {
  /// Sizes of the largest terms, descending; of an average of many entries one size for each
  /// particle, which bounds that of all entries.
  std::vector<double> largest;
  std::vector<double> low, high;  ///< per entry: bounds of its terms
  double mean = 0;                ///< of the sizes
  std::vector<double> apart;  ///< per entry: largest change of a term if a product that is 0 on all
                              ///< particles were that of its largest factors
  std::vector<double> unseen;  ///< per entry: largest change of a term if a jump that no particle
                               ///< crosses were crossed
};

void save(Writer& out, const TermSummary& terms);
[[nodiscard]] TermSummary load_terms(Reader& in);

/// Terms kept in `largest` of one run.
inline constexpr std::int64_t kLargestTerms = 128;

/// Smallest and largest value per column, over rows.
struct ColumnRanges {
  /// Of no rows yet.  A rank without rows has all columns too.
  explicit ColumnRanges(std::size_t columns)
      : low(columns, std::numeric_limits<double>::infinity()),
        high(columns, -std::numeric_limits<double>::infinity()) {}
  std::vector<double> low, high;
  void include(const ir::View& x);
  void merge(const ColumnRanges& other);
  /// Over all ranks.
  void share(const Communicator& ranks);
};

/// The size of each row's term of an average over these rows: |f|, or |x| |y| of a contraction.
void term_sizes(const ir::Node& node, const std::vector<const ir::Type*>& types,
                const std::vector<ir::View>& in, double* sizes);
/// Bounds of the terms of each entry from those of the operands' columns.
void bound_terms(const ir::Node& node, const std::vector<const ir::Type*>& types,
                 const std::vector<const ColumnRanges*>& in, TermSummary& out);
/// Raises `unseen` to the largest change of a term, row by row, if the operands were `changed`.
void include_changes(const ir::Node& node, const std::vector<const ir::Type*>& types,
                     const std::vector<ir::View>& in, const std::vector<ir::View>& changed,
                     std::vector<double>& unseen);
/// The largest of the sizes of all ranks, descending.
std::vector<double> largest_of(std::vector<double> sizes, const Communicator& ranks);

/// relu, max and min: constant on one side of the kink if an argument is.
[[nodiscard]] bool has_flat_side(const ir::Op& op);
/// Some values of column j of a function, all alike: across the jump, or as far beyond the kink as
/// these arguments come near it.  They stay where the argument does not vary.
void cross(const ir::Op& op, const std::vector<const ir::Type*>& types,
           const std::vector<ir::View>& in, std::int64_t j, std::span<double> values);

}  // namespace tplimit::engines
