#pragma once

#include <map>
#include <unordered_map>
#include <vector>

#include "engines/state_file.hpp"
#include "engines/tall.hpp"
#include "tplimit/ir/kernels.hpp"

namespace tplimit::engines {

/// Jumps whose side rounding decides, as of sign(sin(x)^2 + cos(x)^2 - 1): found by Monte Carlo
/// arithmetic (Parker 1997) on a few rows of each run.  Every value f that reaches the argument of
/// a jump has a shadow: what comes of shadows, times 1 + kStep or 1 - kStep.  Unlike a bound of the
/// error, it knows that training contracts and that errors have signs, so that 1,000 steps add up
/// to what they are.  s(f) = |f| + |shadow - f| / kStep is about what f is the sum of; rounding
/// decides where the argument is smaller than kUnit s, but not 0, which a difference of equals is
/// exactly.  Averages over all coordinates are taken as they are.
///
/// Such a jump has a shadow that lies on it, as in exact arithmetic it may.  Only where that
/// differs in what leaves the coordinates, averages and updates of matrices, does it matter: units
/// of a relu network that training keeps at their kink go to and fro by ever smaller steps, until
/// rounding decides, of nothing.
class RoundingWatch {
 public:
  static constexpr std::int64_t kRows = 64;

  /// `needed`: per node.
  RoundingWatch(const ir::Program& program, const std::vector<bool>& needed);

  /// A row-by-row result, from the first rows of its operands.
  void value(ir::NodeId id, const std::vector<const ir::Type*>& types,
             const std::vector<ir::View>& in, const ir::View& out);
  /// y = W x or W' x.
  void product(ir::NodeId id, const ir::View& x, const ir::View& y);
  void forget(ir::NodeId id) { shadows_.erase(id.value); }
  /// Per jump, entries that rounding decides, on any of these ranks; none if that does not matter.
  [[nodiscard]] std::map<std::uint32_t, std::vector<double>> decided(
      const Communicator& ranks) const;

  void save(Writer& out) const;
  void load(Reader& in);

 private:
  using Rows = std::vector<double>;
  [[nodiscard]] Rows evaluate(const ir::Node& node, const std::vector<const ir::Type*>& types,
                              const std::vector<ir::View>& in, std::int64_t rows) const;
  /// s of a value, from those of its operands.
  [[nodiscard]] Rows scale_of(const ir::Node& node, const std::vector<const ir::Type*>& types,
                              const std::vector<ir::View>& in, const std::vector<Rows>& scales,
                              const Rows& value, std::int64_t rows) const;
  /// `on_the_jump`: what `by_rounding` finds.
  [[nodiscard]] Rows shadow_of(ir::NodeId id, const std::vector<const ir::Type*>& types,
                               const std::vector<ir::View>& in, std::int64_t rows,
                               const std::vector<std::size_t>& on_the_jump) const;
  /// Entries of the operand that decides, where rounding has decided.
  [[nodiscard]] std::vector<std::size_t> by_rounding(const ir::Node& jump,
                                                     const std::vector<const ir::Type*>& types,
                                                     const std::vector<ir::View>& in,
                                                     std::int64_t rows) const;
  void keep(ir::NodeId id, const Rows& value, Rows shadow, std::int64_t rows);
  [[nodiscard]] const Rows* shadow(ir::NodeId id) const;

  const ir::Program& program_;
  /// What is made of a value besides values of the same coordinates.
  enum class Leaves : std::uint8_t { kNothing, kUpdate, kNumber };

  std::vector<bool> watched_;   ///< reaches the argument of a jump, or comes from a jump
  std::vector<Leaves> leaves_;  ///< the most that is made of it
  std::map<std::uint32_t, std::vector<double>> decided_;  ///< per jump and entry: 1 or 0
  bool any_decided_ = false, matters_ = false;
  std::unordered_map<std::uint32_t, Rows>
      shadows_;  ///< per value that is alive, column by column; a fresh one is its own
};

}  // namespace tplimit::engines
