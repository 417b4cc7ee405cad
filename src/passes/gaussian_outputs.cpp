#include <algorithm>

#include "tplimit/passes/batch.hpp"
#include "tplimit/passes/gaussian_outputs.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit {

using namespace ir;

bool linear_in(const Builder& b, NodeId f, const std::vector<NodeId>& sources) {
  const auto is_source = [&](NodeId id) { return std::find(sources.begin(), sources.end(), id) != sources.end(); };
  std::vector<bool> depends(f.value + 1, false);
  for (std::uint32_t k = std::min_element(sources.begin(), sources.end())->value; k <= f.value; ++k) {
    const auto& in = b.node({k}).in;
    depends[k] = is_source({k}) || std::any_of(in.begin(), in.end(), [&](NodeId id) { return depends[id.value]; });
  }
  std::vector<NodeId> stack{f};
  std::vector<bool> seen(f.value + 1, false);
  while (!stack.empty()) {
    const NodeId id = stack.back();
    stack.pop_back();
    if (is_source(id) || !depends[id.value] || seen[id.value]) continue;
    seen[id.value] = true;
    const Node& node = b.node(id);
    const auto on = [&](std::size_t k) { return static_cast<bool>(depends[node.in[k].value]); };
    bool linear = false;
    if (const auto* m = std::get_if<Map>(&node.op)) {
      if (m->fn == Fn::kAdd || m->fn == Fn::kSub) linear = true;
      else if (m->fn == Fn::kMul) linear = !on(0) || !on(1);
      else if (m->fn == Fn::kDiv) linear = !on(1);
      else if (m->fn == Fn::kWhere) linear = !on(0);
    } else if (std::holds_alternative<Contract>(node.op)) {
      linear = !on(0) || !on(1);
    } else if (std::holds_alternative<MatMul>(node.op)) {
      linear = !on(0);
    } else {
      linear = std::holds_alternative<Scale>(node.op) || std::holds_alternative<Average>(node.op) || std::holds_alternative<ReduceSum>(node.op) || std::holds_alternative<Gather>(node.op) || std::holds_alternative<ScatterAdd>(node.op) ||
               std::holds_alternative<Permute>(node.op) || std::holds_alternative<Reshape>(node.op) || std::holds_alternative<Expand>(node.op) || std::holds_alternative<Concat>(node.op) || std::holds_alternative<Stop>(node.op) ||
               std::holds_alternative<Parameter>(node.op) || std::holds_alternative<Change>(node.op);
    }
    if (!linear) return false;
    stack.insert(stack.end(), node.in.begin(), node.in.end());
  }
  return true;
}

std::optional<LinearPart> linear_part(Builder& b, NodeId f, NodeId source) {
  if (!depends_on(b, f, {source}) || !linear_in(b, f, {source})) return std::nullopt;
  Result<std::vector<Derivative>> d = gradient(b, f, {source});
  if (!d || !(*d)[0].tensor.valid() || depends_on(b, (*d)[0].tensor, {source})) return std::nullopt;
  const Type type = b.type(source);
  return LinearPart{std::move((*d)[0]), substituted(b, f, {{source, b.zeros(type.width, type.dims)}})};
}

std::optional<ReadoutParts> readouts_of(Builder& b, NodeId f) {
  const Dims dims = b.type(f).dims;
  const std::int64_t size = size_of(dims);
  // One row of the Jacobian is the gradient of f[k]; batched over the unit vectors it is all rows.
  const auto weight = b.add(Parameter{0}, {b.constant(1, dims)});
  NodeId scalar = b.sum(b.reshape(b.times(weight, f), {size}), 0);
  ReadoutParts out{{}, f};
  std::vector<NodeId> sources, slopes;
  // Later declarations first, as in nngp: what a readout multiplies is not mistaken for the readout.
  for (std::size_t k = b.program().size(); k-- > 0;) {
    const NodeId source{static_cast<std::uint32_t>(k)};
    if (!std::holds_alternative<StandardNormal>(b.node(source).op)) continue;
    const auto part = linear_part(b, scalar, source);
    if (!part) continue;
    sources.push_back(source);
    slopes.push_back(part->slope.tensor);
    scalar = part->at_zero;
    const Type type = b.type(source);
    out.rest = substituted(b, out.rest, {{source, b.zeros(true, type.dims)}});
  }
  if (slopes.empty()) return std::nullopt;
  std::vector<double> unit(static_cast<std::size_t>(size * size), 0.0);
  for (std::int64_t k = 0; k < size; ++k) unit[static_cast<std::size_t>(k * size + k)] = 1;
  Dims rows = dims;
  rows.insert(rows.begin(), size);
  const std::vector<NodeId> jacobians = batched(b, slopes, size, {{weight, b.constant(std::move(unit), rows)}});
  for (std::size_t k = 0; k < sources.size(); ++k) out.slopes.emplace_back(sources[k], jacobians[k]);
  return out;
}

namespace {

/// A value of size N with a Gaussian limit.
struct GaussianOutput {
  NodeId covariance;  ///< [N, N]: sum over readouts r of <df/dr, df/dr'>, r ~ N(0, 1)
  NodeId mean;        ///< f at r = 0, of f's shape
};

std::optional<GaussianOutput> split(Builder& b, NodeId f) {
  const auto parts = readouts_of(b, f);
  if (!parts) return std::nullopt;
  const std::int64_t size = size_of(b.type(f).dims);
  GaussianOutput out{{}, parts->rest};
  for (const auto& [source, slope] : parts->slopes) {
    const NodeId row = b.reshape(slope, {size, size_of(b.type(slope).dims) / size});
    const NodeId own = b.scale(1, 1, b.contract(row, row, 0, 1, true));  // a sum over n coordinates
    out.covariance = out.covariance.valid() ? b.plus(out.covariance, own) : own;
  }
  return out;
}

}  // namespace

GaussianOutputs gaussian_outputs(const Program& program, const std::vector<bool>& reports) {
  GaussianOutputs out{program, program, {}};
  out.limit.reports.clear();
  out.networks.reports.clear();
  Builder b(out.limit);
  std::vector<Report> limit, networks;
  for (std::size_t k = 0; k < program.reports.size(); ++k) {
    const Report& report = program.reports[k];
    Report covariance = report, mean = report, square = report;
    bool convertible = reports[k], centred = true;
    for (std::size_t j = 0; j < report.entries.size() && convertible; ++j) {
      const NodeId f = report.entries[j].value;
      b.set_origin(report.span, program[f].context);
      const auto parts = split(b, f);
      convertible = parts.has_value();
      if (!parts) break;
      Dims twice = program[f].type.dims;
      twice.insert(twice.end(), program[f].type.dims.begin(), program[f].type.dims.end());
      const NodeId deviation = b.reshape(b.minus(f, parts->mean), {size_of(program[f].type.dims)});
      covariance.entries[j].value = b.reshape(parts->covariance, twice);
      mean.entries[j].value = parts->mean;
      square.entries[j].value = b.reshape(b.contract(deviation, deviation, 0, 0, false), twice);
      centred = centred && b.is_zero(parts->mean);
    }
    if (!convertible) {
      limit.push_back(report);
      networks.push_back(report);
      continue;
    }
    covariance.random = square.random = true;
    covariance.name = square.name = "cov(" + report.name + ")";
    mean.name = "mean(" + report.name + ")";
    limit.push_back(covariance);
    networks.push_back(square);
    if (!centred) {
      limit.push_back(mean);
      networks.push_back(mean);
    }
    out.notes.push_back({Severity::kWarning, "W5302", fmt::format("report '{}' tends to a Gaussian, not to a number: its covariance is reported", report.name), report.span, "", "", {}, true});
  }
  out.networks = out.limit;  // both meanings share one program text; dead code is dropped below
  out.limit.reports = std::move(limit);
  out.networks.reports = std::move(networks);
  out.limit = erase_identities(out.limit);
  out.networks = erase_identities(out.networks);
  return out;
}

}  // namespace tplimit
