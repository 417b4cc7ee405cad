#include <algorithm>
#include <limits>
#include <map>

#include <fmt/format.h>

#include "driver/limits.hpp"
#include "tplimit/passes/batch.hpp"
#include "tplimit/passes/faults.hpp"
#include "tplimit/passes/matrix_algebra.hpp"

namespace tplimit {

using namespace ir;

namespace {

/// The networks' outputs for kernels of outputs, where a report is linear in these.
void use_outputs(Module& module) {
  Program program = *module.marked;
  Builder b(program);
  std::map<NodeId, NodeId> products;
  std::vector<NodeId> kernels;
  for (const OutputKernel& k : program.output_kernels)
    if (products.emplace(k.kernel, k.product).second) kernels.push_back(k.kernel);
  for (Report& report : program.reports) {
    const bool linear =
        std::all_of(report.entries.begin(), report.entries.end(),
                    [&](const auto& entry) { return linear_in(b, entry.value, kernels); });
    for (auto& entry : report.entries) {
      if (!linear || !depends_on(b, {entry.value}, kernels)) continue;
      b.set_origin(report.span, program[entry.value].context);
      entry.value = substituted(b, entry.value, products);
      report.random = true;
    }
  }
  module.program = erase_identities(program);
  verify(module.program);
}

}  // namespace

Result<Module> conditioned(Module module, const GradedOptions::Given& given) {
  Program program = module.program;
  NodeId f;
  for (const NamedValue& named : program.names)
    if (named.name == given.name && named.kind == NamedValue::Kind::kValue &&
        (!f.valid() || named.value < f))
      f = named.value;
  const auto refused = [&](std::string message) {
    return faults::cannot_be_given(std::move(message))
        .at_if(f.valid(), f.valid() ? program[f].span : Span{});
  };
  if (!f.valid()) return refused(fmt::format("no value '{}' reaches a report", given.name));
  Builder b(program);
  b.set_origin(program[f].span, program[f].context);
  const std::int64_t size = size_of(program[f].type.dims);
  std::vector<double> values = given.values;
  if (values.size() == 1) values.assign(static_cast<std::size_t>(size), values[0]);
  if (static_cast<std::int64_t>(values.size()) != size)
    return refused(
        fmt::format("'{}' has {} entries, given are {}", given.name, size, values.size()));
  const auto parts =
      b.type(f).width ? std::nullopt : readouts_of(b, f, readout_candidates(program));
  if (!parts) return refused(fmt::format("'{}' is not linear in an initial vector", given.name));
  NodeId total;
  for (const SourceSlope& slope : parts->slopes) {
    const NodeId own = b.scale(1, 1, covariance(b, slope, slope));
    total = total.valid() ? b.plus(total, own) : own;
  }
  const NodeId inverse =
      b.add(TrainingOperator{1, std::numeric_limits<double>::infinity(), 0, false},
            {total, identity_matrix(b, size)});
  const NodeId missing =
      b.reshape(b.minus(b.constant(std::move(values), program[f].type.dims), f), {size});
  const NodeId weights = b.reshape(b.contract(inverse, missing, 0, 1, false), {1, size});
  std::map<NodeId, NodeId> moved;
  for (const SourceSlope& slope : parts->slopes) {
    NodeId& to = moved[slope.source] = slope.source;
    for (const SourceSlope::Term& t : slope.terms) {
      const NodeId rows = b.permute(t.d, {1, 0});
      const auto weighted = [&] { return b.contract(rows, weights, 0, 1, false); };  // [m, 1]
      if (!t.x.valid())
        to = b.plus(to, b.reshape(weighted(), b.type(slope.source).dims));
      else if (!t.own)  // entries of W have the covariance d x' / n with f
        to = b.add(UpdateMatrix{},
                   {to, b.constant(1), b.reshape(weighted(), b.type(t.x).dims), t.x});
      else
        to = b.add(UpdateMatrix{},
                   {to, b.constant(1), b.times(b.reshape(weights, {size, 1}), t.d), t.x});
    }
  }
  const auto follow = [&](NodeId& id) { id = substituted(b, id, moved); };
  for (Report& report : program.reports)
    for (auto& entry : report.entries) follow(entry.value);
  for (Expectation& e : program.expectations)
    for (NodeId* side : {&e.left, &e.right, &e.difference}) follow(*side);
  module.program = erase_identities(program);
  verify(module.program);
  return module;
}

Module comparable(Module module) {
  if (module.marked) use_outputs(module);
  const LeadingOrderResult limit = leading_order(module.program);
  if (limit) return module;
  const std::vector<Report>& reports = module.program.reports;
  if (std::any_of(reports.begin(), reports.end(), [](const Report& r) { return r.random; })) {
    // Products of outputs stand for kernels already; outputs beside them become covariances.
    std::vector<bool> gaussian = fluctuating_reports(module.program);
    for (std::size_t k = 0; k < reports.size(); ++k)
      gaussian[k] = gaussian[k] && !reports[k].random;
    GaussianOutputs programs = gaussian_outputs(module.program, gaussian);
    if (!programs.notes.empty()) module.program = std::move(programs.networks);
    return module;
  }
  if (auto apart = limit_of_products_apart(module.program, limit))
    module.program = std::move(apart->program);
  if (auto covariances = covariance_limit(module.program))
    module.program = std::move(covariances->programs.networks);
  return module;
}

}  // namespace tplimit
