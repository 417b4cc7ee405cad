#include "tplimit/passes/products_apart.hpp"

#include <optional>
#include <utility>
#include <vector>

#include "tplimit/passes/passes.hpp"

namespace tplimit {

using namespace ir;

namespace {

constexpr std::size_t kMost = 8;  // summands

/// What W x is selected and scaled from.
bool is_product(const Builder& b, NodeId id) {
  for (;; id = b.node(id).in[0]) {
    const Op& op = b.node(id).op;
    if (std::holds_alternative<MatMul>(op)) return true;
    if (!std::holds_alternative<Scale>(op) && !std::holds_alternative<Reshape>(op) &&
        !std::holds_alternative<Gather>(op))
      return false;
  }
}

/// Summands of one type that are all products; empty if some are not, or there are too many.
bool add_summands(const Builder& b, NodeId id, std::vector<NodeId>& out) {
  const Node& node = b.node(id);
  if (const auto* m = std::get_if<Map>(&node.op);
      m && m->fn == Fn::kAdd && b.type(node.in[0]) == node.type && b.type(node.in[1]) == node.type)
    return add_summands(b, node.in[0], out) && add_summands(b, node.in[1], out);
  out.push_back(id);
  return out.size() <= kMost && is_product(b, id);
}

std::optional<NodeId> apart(Builder& b, const Node& node, const std::vector<NodeId>& in) {
  const auto* c = std::get_if<Contract>(&node.op);
  if (!c || !c->average) return std::nullopt;
  std::vector<NodeId> left, right;
  if (!add_summands(b, in[0], left) || !add_summands(b, in[1], right) ||
      left.size() * right.size() == 1)
    return std::nullopt;
  NodeId sum;
  for (const NodeId x : left)
    for (const NodeId y : right) {
      const NodeId own = b.add(*c, {x, y});
      sum = sum.valid() ? b.plus(sum, own) : own;
    }
  return sum;
}

}  // namespace

Program products_apart(const Program& program) { return rebuilt(program, Keep::kOutputs, apart); }

}  // namespace tplimit
