#include "engines/operation_estimate.hpp"

#include <algorithm>
#include <vector>

#include "tplimit/ir/kernels.hpp"

namespace tplimit::engines {

using namespace ir;

double estimate_operations(const Schedule& schedule, std::int64_t particles) {
  constexpr double kProduct = 0.5, kFunction = 4,
                   kNormal = 16;  // of a number and a direction; of a number
  const Program& program = *schedule.program;
  std::vector<double> directions(program.sources.size(), 0.0);  // of a matrix so far
  std::vector<std::uint32_t> source(program.size(), 0);
  double per_particle = 0;
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    const Node& node = program.nodes[k];
    if (!schedule.needed[k]) continue;
    const auto size = [&](NodeId id) {
      return static_cast<double>(size_of(program[id].type.dims));
    };
    if (node.type.matrix && !node.type.entries)
      source[k] = node.in.empty() ? std::get<GaussianMatrix>(node.op).source.value
                                  : source[node.in[0].value];
    if (const bool product = std::holds_alternative<MatMul>(node.op);
        product || std::holds_alternative<UpdateMatrix>(node.op)) {
      double& known = directions[source[product ? node.in[0].value : k]];
      for (const auto& fresh : schedule.spaces.columns[k]) {
        known = std::min(known + static_cast<double>(fresh.count), static_cast<double>(particles));
        per_particle += static_cast<double>(fresh.count) * (kNormal + kProduct * known);
      }
      if (product) per_particle += kProduct * known * size(node.in[1]);
    } else if (std::holds_alternative<Contract>(node.op) && is_average(node.op)) {
      per_particle += 0.5 * kProduct * size({k});
    } else if (is_average(node.op)) {
      per_particle += size(node.in[0]);
    } else if (node.type.width) {
      per_particle += size({k}) * (std::holds_alternative<Map>(node.op) ? kFunction : 1);
    }
  }
  return per_particle * static_cast<double>(particles);
}

}  // namespace tplimit::engines
