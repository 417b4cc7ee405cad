#include "tplimit/passes/direct_uses.hpp"

#include <algorithm>
#include <variant>

namespace tplimit {

using namespace ir;

namespace {

/// What a node does to an operand with coordinates.
enum class Use {
  kTerm,      ///< the result has the operand as a term, up to finite factors
  kFunction,  ///< the result is a function of it like tanh
  kDirect,    ///< all else; of operations that are not known here, too
};

Use use_of(const Program& program, const Node& node, NodeId operand) {
  const bool alone = std::count_if(node.in.begin(), node.in.end(),
                                   [&](NodeId in) { return program[in].type.width; }) == 1;
  if (const auto* map = std::get_if<Map>(&node.op)) {
    if (map->fn == Fn::kAdd || map->fn == Fn::kSub) return Use::kTerm;
    if (map->fn == Fn::kMul || (map->fn == Fn::kDiv && operand == node.in[0]))
      return alone ? Use::kTerm : Use::kDirect;
    // Powers are polynomials, and what chooses among its operands passes them on.
    return arity(map->fn) == 1 && map->fn != Fn::kPower ? Use::kFunction : Use::kDirect;
  }
  if (const auto* contract = std::get_if<Contract>(&node.op))
    return !contract->average && alone ? Use::kTerm : Use::kDirect;
  const OpTraits traits = std::visit([](const auto& op) { return op.traits(); }, node.op);
  return traits.linear && !traits.average ? Use::kTerm : Use::kDirect;
}

}  // namespace

DirectUses direct_uses(const Program& program) {
  const std::size_t nodes = program.size();
  std::vector<char> used(nodes, 0), gaussian(nodes, 0);
  for (std::size_t k = nodes; k-- > 0;)
    for (const NodeId in : program.nodes[k].in) {
      const Use use = use_of(program, program.nodes[k], in);
      if (use == Use::kDirect || (use == Use::kTerm && used[k])) used[in.value] = 1;
    }
  DirectUses out;
  out.products.assign(program.sources.size(), {false, false});
  out.operands.assign(program.sources.size(), {false, false});
  std::vector<SourceId> source(nodes);  // of matrix nodes
  for (std::size_t k = 0; k < nodes; ++k) {
    const Node& node = program.nodes[k];
    const auto multiplies = [&](SourceId s, std::size_t side, NodeId x) {
      if (gaussian[x.value]) out.operands[s.value][side] = true;
    };
    if (const auto* g = std::get_if<GaussianMatrix>(&node.op))
      source[k] = g->source;
    else if (node.type.matrix && !node.type.entries)
      source[k] = source[node.in[0].value];
    if (const auto* product = std::get_if<MatMul>(&node.op)) {
      const SourceId s = source[node.in[0].value];
      const std::size_t side = product->transposed ? 1 : 0;
      multiplies(s, side, node.in[1]);
      gaussian[k] = 1;
      if (used[k]) out.products[s.value][side] = true;
    } else if (std::holds_alternative<UpdateMatrix>(node.op)) {
      for (std::size_t t = 1; t + 2 < node.in.size(); t += 3) {
        multiplies(source[k], 1, node.in[t + 1]);
        multiplies(source[k], 0, node.in[t + 2]);
      }
    } else if (std::holds_alternative<StandardNormal>(node.op)) {
      gaussian[k] = 1;
    } else if (!node.type.matrix) {
      // A product of two vectors, as a derivative with what it multiplies, is no sum of Gaussians.
      const auto* map = std::get_if<Map>(&node.op);
      const bool multiplied = map && (map->fn == Fn::kMul || map->fn == Fn::kDiv);
      for (const NodeId in : node.in) {
        if (!program[in].type.width || !gaussian[in.value]) continue;
        const Use use = use_of(program, node, in);
        if (use == Use::kTerm || (use == Use::kDirect && !multiplied)) gaussian[k] = 1;
      }
    }
  }
  return out;
}

}  // namespace tplimit
