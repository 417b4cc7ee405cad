#include "tplimit/passes/theory_checks.hpp"

#include <map>
#include <set>

#include "tplimit/passes/passes.hpp"

namespace tplimit {

using namespace ir;

namespace {

/// The name of a function with a kink or jump; null if it is smooth.
const char* kinked(const Map& map) {
  switch (map.fn) {
    case Fn::kAbs: case Fn::kSign: case Fn::kStep: case Fn::kRelu: case Fn::kLeakyRelu: case Fn::kMin: case Fn::kMax: case Fn::kMod: return name(map.fn);
    case Fn::kElu: return map.parameter == 1 ? nullptr : name(map.fn);
    default: return nullptr;
  }
}

}  // namespace

Diagnostics theory_checks(const Program& program) {
  // A correction needs W and W' of one Gaussian matrix.
  std::map<std::uint32_t, int> sides;
  for (const Node& node : program.nodes)
    if (const auto* m = std::get_if<MatMul>(&node.op)) sides[source_of(program, node.in[0]).value] |= m->transposed ? 2 : 1;
  bool corrections = false;
  for (const auto& [source, both] : sides) corrections = corrections || both == 3;

  Diagnostics out;
  std::set<std::tuple<std::uint32_t, std::uint32_t, std::string>> said;
  const auto warn = [&](const Node& node, const char* code, std::string message, std::string label, std::string help) {
    if (said.emplace(node.span.begin, node.span.end, code).second) out.push_back({Severity::kWarning, code, std::move(message), node.span, std::move(label), std::move(help), {}, true});
  };
  // Nodes that a matrix product is computed from: only there a derivative is taken.
  std::vector<bool> multiplied(program.size(), false);
  for (std::size_t k = program.size(); k-- > 0;) {
    const Node& node = program.nodes[k];
    const bool product = std::holds_alternative<MatMul>(node.op);
    for (const NodeId in : node.in)
      if (program[in].type.width && (product || multiplied[k])) multiplied[in.value] = true;
  }
  // step and sign as derivatives of what was named already.
  std::set<NodeId> arguments;
  for (const Node& node : program.nodes)
    if (const auto* map = std::get_if<Map>(&node.op); map && kinked(*map) && map->fn != Fn::kStep && map->fn != Fn::kSign) arguments.insert(node.in.begin(), node.in.end());
  for (std::size_t k = 0; k < program.size(); ++k) {
    const Node& node = program.nodes[k];
    const auto* map = std::get_if<Map>(&node.op);
    if (!map || !node.type.width) continue;
    if ((map->fn == Fn::kStep || map->fn == Fn::kSign) && arguments.contains(node.in[0])) continue;
    if (const char* what = kinked(*map); what && corrections && multiplied[k])
      warn(node, "W5311", fmt::format("'{}' is not smooth", what), "the theorem's proof takes derivatives of this", "the corrections are taken by Stein's lemma, which needs no derivative; networks agree with them, but no theorem says so");
    if (map->fn == Fn::kExp)
      warn(node, "W5312", "'exp' grows faster than every polynomial", "the theorem asks for polynomially bounded maps", "moments may be far from typical: compare with networks");
  }
  return out;
}

}  // namespace tplimit
