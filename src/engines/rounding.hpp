#pragma once

#include <map>
#include <unordered_map>
#include <vector>

#include "engines/state_file.hpp"
#include "engines/tall.hpp"
#include "tplimit/ir/kernels.hpp"

namespace tplimit::engines {

/// Jumps whose side rounding decides, as of sign(sin(x)^2 + cos(x)^2 - 1): found by running error
/// analysis of a few rows of each run. Every value f that reaches the argument of a jump has a
/// scale s(f) = |f| + sum_k |df/dx_k| s(x_k): about what it is the sum of. Rounding decides where
/// the argument is smaller than kUnit s, but not 0, which a difference of equals is exactly.
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
  void forget(ir::NodeId id) { scales_.erase(id.value); }
  /// Per jump, entries that rounding decides, on any of these ranks.
  [[nodiscard]] std::map<std::uint32_t, std::vector<double>> decided(
      const Communicator& ranks) const;

  void save(Writer& out) const;
  void load(Reader& in);

 private:
  using Rows = std::vector<double>;
  [[nodiscard]] Rows evaluate(const ir::Node& node, const std::vector<const ir::Type*>& types,
                              const std::vector<ir::View>& in, std::int64_t rows) const;
  [[nodiscard]] Rows scale_of(const ir::Node& node, const std::vector<const ir::Type*>& types,
                              const std::vector<ir::View>& in,
                              const std::vector<const Rows*>& scales, const Rows& value,
                              std::int64_t rows) const;

  const ir::Program& program_;
  std::vector<bool> before_;                              ///< reaches the argument of a jump
  std::map<std::uint32_t, std::vector<double>> decided_;  ///< per jump and entry: 1 or 0
  std::unordered_map<std::uint32_t, Rows>
      scales_;  ///< per value that is alive, column by column; a fresh one has |value|
};

}  // namespace tplimit::engines
