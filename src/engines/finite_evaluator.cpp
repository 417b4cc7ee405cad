#include "engines/finite_evaluator.hpp"

#include <algorithm>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::engines {

using namespace ir;

FiniteEvaluator::FiniteEvaluator(const Program& program, std::vector<NodeId> given,
                                 std::vector<NodeId> wanted)
    : program_(program), given_(std::move(given)), wanted_(std::move(wanted)) {
  std::vector<bool> is_given(program.size(), false), needed(program.size(), false);
  for (const NodeId id : given_) is_given[id.value] = true;
  for (const NodeId id : wanted_) needed[id.value] = true;
  for (std::uint32_t k = static_cast<std::uint32_t>(program.size()); k-- > 0;) {
    if (!needed[k] || is_given[k]) continue;
    TPLIMIT_CHECK(!program.nodes[k].type.width && !program.nodes[k].type.matrix,
                  "a finite tail has finite operands");
    if (const auto* c = std::get_if<Constant>(&program.nodes[k].op))
      values_[k] = *c->values;
    else
      order_.push_back(k);
    for (const NodeId in : program.nodes[k].in) needed[in.value] = true;
  }
  std::reverse(order_.begin(), order_.end());
}

std::vector<std::vector<double>> FiniteEvaluator::evaluate(
    const std::vector<const double*>& given_values) {
  for (std::size_t k = 0; k < given_.size(); ++k)
    values_[given_[k].value].assign(given_values[k],
                                    given_values[k] + size_of(program_[given_[k]].type.dims));
  for (const std::uint32_t k : order_) {
    const Node& node = program_.nodes[k];
    std::vector<View> in;
    std::vector<const Type*> types;
    for (const NodeId operand : node.in) {
      in.push_back({values_.at(operand.value).data(), 1, 1});
      types.push_back(&program_[operand].type);
    }
    std::vector<double> out(static_cast<std::size_t>(size_of(node.type.dims)));
    evaluate_rows(node, types, in, {out.data(), 1, 1});
    values_[k] = std::move(out);
  }
  std::vector<std::vector<double>> out;
  for (const NodeId id : wanted_) out.push_back(values_.at(id.value));
  return out;
}

}  // namespace tplimit::engines
