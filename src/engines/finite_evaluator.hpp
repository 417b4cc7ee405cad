#pragma once

#include <unordered_map>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit::engines {

/// Evaluates finite nodes from given values of some of them.
class FiniteEvaluator {
 public:
  /// `given`: nodes whose values are supplied; `wanted`: finite nodes that depend on nothing else
  /// but constants.
  FiniteEvaluator(const ir::Program& program, std::vector<ir::NodeId> given,
                  std::vector<ir::NodeId> wanted);
  /// Values of `wanted`, in order.  Not thread-safe.
  std::vector<std::vector<double>> evaluate(const std::vector<const double*>& given_values);

 private:
  const ir::Program& program_;
  std::vector<ir::NodeId> given_, wanted_;
  std::vector<std::uint32_t> order_;  ///< nodes to evaluate
  std::unordered_map<std::uint32_t, std::vector<double>> values_;
};

}  // namespace tplimit::engines
