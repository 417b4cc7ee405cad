#include "tplimit/passes/theory_checks.hpp"

#include <cmath>
#include <map>
#include <set>

#include "tplimit/ir/functions.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit {

using namespace ir;

namespace {

/// The name of a function with a kink or jump, as the text writes it; null if it and its derivative
/// are continuous.
const char* kinked(const Op& op) {
  if (std::holds_alternative<ReduceMax>(op)) return "max";
  const auto* map = std::get_if<Map>(&op);
  if (!map || first_delta(*map).value_or(3) > 2) return nullptr;
  return written(map->fn);
}

/// x^(2k) times a negative number, as in exp(-x^2 / 2) of Gaussian densities (and gelu's slope).
bool is_minus_even_power(const Program& program, NodeId id) {
  double factor = 1;
  for (;;) {
    const Node& node = program[id];
    const auto* map = std::get_if<Map>(&node.op);
    if (const auto* scale = std::get_if<Scale>(&node.op)) {
      factor *= scale->factor;
    } else if (map && map->fn == Fn::kDiv) {
      const auto* by = std::get_if<Constant>(&program[node.in[1]].op);
      if (!by || by->values->size() != 1) return false;
      factor *= by->values->front();
    } else {
      return factor < 0 && map && map->fn == Fn::kPower && std::fmod(map->parameter, 2) == 0;
    }
    id = node.in[0];
  }
}

}  // namespace

Diagnostics theory_checks(const Program& program) {
  // A correction needs W and W' of one Gaussian matrix.
  std::map<std::uint32_t, int> sides;
  for (const Node& node : program.nodes)
    if (const auto* m = std::get_if<MatMul>(&node.op))
      sides[source_of(program, node.in[0]).value] |= m->transposed ? 2 : 1;
  bool corrections = false;
  for (const auto& [source, both] : sides) corrections = corrections || both == 3;

  Diagnostics out;
  std::set<std::tuple<std::uint32_t, std::uint32_t, std::string>> said;
  const auto warn = [&](const Node& node, const char* code, std::string message, std::string label,
                        std::string help) {
    if (said.emplace(node.span.begin, node.span.end, code).second)
      out.push_back(Diagnostic::warning(code, std::move(message))
                        .at(node.span)
                        .with_label(std::move(label))
                        .with_help(std::move(help)));
  };
  // Nodes that a matrix product is computed from: only there a derivative is taken.
  std::vector<bool> multiplied(program.size(), false);
  for (std::size_t k = program.size(); k-- > 0;) {
    const Node& node = program.nodes[k];
    const bool product = std::holds_alternative<MatMul>(node.op);
    for (const NodeId in : node.in)
      if (program[in].type.width && (product || multiplied[k])) multiplied[in.value] = true;
  }
  // Derivatives of what was named already: step and sign of relu and abs, comparisons of max and
  // min.
  std::set<std::vector<NodeId>> arguments;
  for (const Node& node : program.nodes)
    if (const auto* map = std::get_if<Map>(&node.op); map && first_delta(*map).value_or(1) > 1)
      arguments.insert(node.in);
  for (std::size_t k = 0; k < program.size(); ++k) {
    const Node& node = program.nodes[k];
    const auto* map = std::get_if<Map>(&node.op);
    if (!node.type.width || (map && first_delta(*map) == 1 && arguments.contains(node.in)))
      continue;
    if (const char* what = kinked(node.op); what && corrections && multiplied[k])
      warn(node, "W5311", fmt::format("'{}' is not smooth", what),
           "the theorem's proof takes derivatives of this",
           "the corrections are taken by Stein's lemma, which needs no derivative; networks agree "
           "with them, but no theorem says so");
    if (map && traits_of(*map).faster_than_polynomial && !is_minus_even_power(program, node.in[0]))
      warn(node, "W5312", fmt::format("'{}' grows faster than every polynomial", name(map->fn)),
           "the theorem asks for polynomially bounded maps",
           "moments may be far from typical: compare with networks");
  }
  return out;
}

}  // namespace tplimit
