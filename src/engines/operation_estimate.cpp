#include "engines/operation_estimate.hpp"

#include <algorithm>
#include <vector>

#include "tplimit/support/overloaded.hpp"

namespace tplimit::engines {

using namespace ir;
using Where = Plan::Place::Where;

namespace {

constexpr double kProduct = 0.5;  // of a number and a direction
constexpr double kFunction = 4;
constexpr double kNormal = 16;  // of a number

/// Of a row of one operation of a sweep.
double operations_of(const Plan::Sweep::Operation& operation, const Node& node) {
  const auto columns = static_cast<double>(operation.out.columns);
  if (operation.out.where != Where::kSum)
    return columns * (std::holds_alternative<Map>(node.op) ? kFunction : 1);
  return std::holds_alternative<Contract>(node.op) ? 0.5 * kProduct * columns
                                                   : static_cast<double>(operation.in[0].columns);
}

}  // namespace

double estimate_operations(const Schedule& schedule, std::int64_t particles) {
  const Program& program = *schedule.program;
  const auto columns = [&](NodeId id) {
    return static_cast<double>(size_of(program[id].type.dims));
  };
  std::vector<double> directions(program.sources.size(), 0.0);  // of a matrix so far
  // New directions of a matrix: drawn, and made orthogonal to those before.
  const auto reveal = [&](NodeId node, SourceId matrix) {
    double& known = directions[matrix.value];
    double out = 0;
    for (const auto& fresh : schedule.spaces.columns[node.value]) {
      known = std::min(known + static_cast<double>(fresh.count), static_cast<double>(particles));
      out += static_cast<double>(fresh.count) * (kNormal + kProduct * known);
    }
    return out;
  };
  double per_particle = 0;
  for (const Plan::Step& step : schedule.plan.steps)
    per_particle += std::visit(
        overloaded{[&](const Plan::Sweep& sweep) {
                     double out = 0;
                     for (const auto& operation : sweep.operations)
                       out += operations_of(operation, program[operation.node]);
                     return out;
                   },

                   [&](const Plan::EntrySweep& sweep) {
                     // Each particle has as many entries as there are particles.
                     double out = 0;
                     for (const auto& operation : sweep.operations) {
                       const Node& node = program[operation.node];
                       out += std::holds_alternative<Map>(node.op) ? kFunction : 1;
                       if (std::holds_alternative<OuterSum>(node.op))
                         for (std::size_t k = 1; k < node.in.size(); k += 3)
                           out += kProduct * columns(node.in[k]);
                     }
                     return out * static_cast<double>(particles);
                   },
                   [](const Plan::Combine&) { return 0.0; },
                   [&](const Plan::CopyEntries&) { return static_cast<double>(particles); },
                   [&](const Plan::InnerProduct&) { return static_cast<double>(particles); },
                   [&](const Plan::Draw& a) { return columns(a.node); },
                   [](const Plan::Initialise&) { return 0.0; },
                   [&](const Plan::Product& a) {
                     const double fresh = reveal(a.node, a.matrix);
                     return fresh +
                            kProduct * directions[a.matrix.value] * columns(program[a.node].in[1]);
                   },
                   [](const Plan::Rescale&) { return 0.0; },
                   [&](const Plan::Update& a) { return reveal(a.node, a.matrix); },
                   [](const Plan::TakeSamples&) { return 0.0; },
                   [](const Plan::FiniteStep&) { return 0.0; }},
        step.action);
  return per_particle * static_cast<double>(particles);
}

}  // namespace tplimit::engines
