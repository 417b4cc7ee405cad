#pragma once

#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "engines/block.hpp"
#include "engines/plan.hpp"
#include "engines/term_summary.hpp"
#include "parallel/executor.hpp"

namespace tplimit::engines {

/// Size and mean of the terms of an average, or of the squared norm that a product takes.  `sizes`:
/// of each row of this rank.  `rows`: of all ranks.
void summarise_sizes(std::vector<double> sizes, const Communicator& ranks, std::int64_t rows,
                     TermSummary& out);

/// Watches a sweep for what particles do not resolve: the terms of those averages that are wanted
/// or may have heavy tails, and the jumps and flat sides behind the wanted ones and behind the
/// vectors that matrices multiply, of which a matrix takes the mean square.
class TermWatch {
 public:
  /// `rows`: of this rank.
  TermWatch(const Schedule& schedule, const Plan::Sweep& sweep, std::int64_t rows);

  /// The operands of an average on some rows, from `row` on.  Thread-safe.
  void average(const Plan::Sweep::Operation& operation, const std::vector<ir::View>& in,
               std::int64_t row);
  /// A value x on some rows, from its operands.  Thread-safe.
  void value(const Plan::Sweep::Operation& operation, const std::vector<ir::View>& in,
             const ir::View& x);

  /// After the sweep.  `rows`: of all ranks.  `blocks`: per node, what the sweep read and left.
  void summarise(const Executor& executor, std::int64_t rows, const std::vector<Block>& blocks,
                 std::map<std::uint32_t, TermSummary>& terms);

 private:
  [[nodiscard]] const ir::Type& type(ir::NodeId id) const { return program_[id].type; }
  [[nodiscard]] bool wanted(ir::NodeId id) const {
    return sizes_.contains(id.value) && !inner_.contains(id.value);
  }
  [[nodiscard]] bool product(ir::NodeId id) const;
  void include(ColumnRanges& to, const ir::View& x);
  /// The largest |a| |b| per column, of factors that vary or are numbers.
  [[nodiscard]] std::vector<double> largest_product(ir::NodeId id) const;
  /// `columns`: to be crossed; those of a product become `largest`.
  void cross_jump(ir::NodeId jump, const std::vector<bool>& columns,
                  const std::vector<double>& largest, const Executor& executor, std::int64_t rows,
                  const std::vector<Block>& blocks, std::map<std::uint32_t, TermSummary>& terms);

  const ir::Program& program_;
  const Plan::Sweep& sweep_;
  std::int64_t rows_;
  std::map<std::uint32_t, std::vector<double>> sizes_;  ///< of the terms of each row, per average
  std::map<std::uint32_t, ColumnRanges> ranges_;        ///< of operands, and of `jumps_`
  std::set<std::pair<std::uint32_t, std::size_t>>
      first_;  ///< (average, operand) that adds to the operand's range
  std::set<std::uint32_t>
      inner_;  ///< averages that are not wanted, with operands that may have heavy tails
  std::set<std::uint32_t> vectors_;  ///< that a matrix multiplies
  std::vector<ir::NodeId> jumps_;    ///< and flat sides, and products
  std::map<std::pair<std::uint32_t, std::size_t>, ColumnRanges> factors_;  ///< of products
  std::mutex mutex_;  ///< of `ranges_` and `factors_`
};

}  // namespace tplimit::engines
