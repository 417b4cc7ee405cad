#include <algorithm>
#include <cmath>
#include <set>

#include "tplimit/passes/passes.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit {

using namespace ir;

Program erase_identities(const Program& program, bool keep_names) {
  return rebuilt(program, keep_names ? Keep::kNames : Keep::kOutputs, {});
}

Program rebuilt(const Program& program, Keep keep, const Rewrite& rewrite) {
  std::vector<bool> needed(program.size(), keep == Keep::kAll);
  for (const NodeId id : outputs_of(program)) needed[id.value] = true;
  if (keep == Keep::kNames)
    for (const NamedValue& named : program.names) needed[named.value.value] = true;
  for (std::size_t k = program.size(); k-- > 0;)
    if (needed[k])
      for (const NodeId in : program.nodes[k].in) needed[in.value] = true;

  Program out = without_nodes(program);
  Builder builder(out);
  std::vector<NodeId> map(program.size());
  for (std::size_t k = 0; k < program.size(); ++k) {
    if (!needed[k]) continue;
    const Node& node = program.nodes[k];
    std::vector<NodeId> in;
    for (const NodeId id : node.in) in.push_back(map[id.value]);
    if (keep != Keep::kAll &&
        (std::holds_alternative<Stop>(node.op) || std::holds_alternative<Parameter>(node.op) ||
         std::holds_alternative<Change>(node.op))) {
      map[k] = in[0];
      continue;
    }
    builder.set_origin(node.span, node.context);
    if (rewrite)
      if (const auto other = rewrite(builder, node, in)) {
        map[k] = *other;
        continue;
      }
    if (const auto* c = std::get_if<Constant>(&node.op))
      map[k] = builder.constant(*c, node.type.dims);
    else
      map[k] = builder.add(node.op, std::move(in));
  }
  for (const Report& report : program.reports) {
    Report copy = report;
    for (auto& entry : copy.entries) entry.value = map[entry.value.value];
    out.reports.push_back(std::move(copy));
  }
  for (const Expectation& expectation : program.expectations) {
    Expectation copy = expectation;
    copy.left = map[copy.left.value];
    copy.right = map[copy.right.value];
    copy.difference = map[copy.difference.value];
    out.expectations.push_back(copy);
  }
  const auto keep_live = [&](const std::vector<NamedValue>& from, std::vector<NamedValue>& to) {
    for (NamedValue value : from) {
      value.value = map[value.value.value];
      if (value.of.valid()) value.of = map[value.of.value];
      if (value.value.valid() && (value.kind != NamedValue::Kind::kGradient || value.of.valid()))
        to.push_back(std::move(value));
    }
  };
  keep_live(program.names, out.names);
  keep_live(program.predictions, out.predictions);
  if (keep == Keep::kAll)
    for (const OutputKernel& k : program.output_kernels)
      out.output_kernels.push_back({map[k.kernel.value], map[k.product.value]});
  for (TrainingStep step : program.steps) {
    for (NodeId& loss : step.losses) loss = map[loss.value];
    std::erase_if(step.losses, [](NodeId id) { return !id.valid(); });
    out.steps.push_back(std::move(step));
  }
  return out;
}

Program without_output_kernels(const Program& program) {
  if (program.output_kernels.empty()) return program;
  std::set<std::uint32_t> kernels;
  for (const OutputKernel& k : program.output_kernels)
    kernels.insert(std::get<Parameter>(program[k.kernel].op).index);
  Program out =
      rebuilt(program, Keep::kAll, [&](Builder&, const Node& node, const std::vector<NodeId>& in) {
        const auto* p = std::get_if<Parameter>(&node.op);
        return p && kernels.contains(p->index) ? std::optional(in[0]) : std::nullopt;
      });
  out.output_kernels.clear();
  return out;
}

Program at_width(const Program& program, double width) {
  Program out = program;
  for (Node& node : out.nodes)
    if (auto* s = std::get_if<Scale>(&node.op); s && s->power != 0)
      *s = {s->factor * std::pow(width, to_double(s->power)), 0};
  return out;
}

std::vector<std::uint32_t> last_uses(const Program& program) {
  std::vector<std::uint32_t> last(program.size());
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    last[k] = k;
    for (const NodeId in : program.nodes[k].in) last[in.value] = k;
  }
  return last;
}

SourceId source_of(const Program& program, NodeId matrix) {
  while (!std::holds_alternative<GaussianMatrix>(program[matrix].op)) {
    TPLIMIT_CHECK(program[matrix].type.matrix && !program[matrix].type.entries,
                  "a version of a Gaussian matrix");
    matrix = program[matrix].in[0];
  }
  return std::get<GaussianMatrix>(program[matrix].op).source;
}

}  // namespace tplimit
