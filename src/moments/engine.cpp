#include "moments/engine.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit::moments {

using namespace ir;

namespace {
constexpr double kLooseError = 1e-9;
constexpr std::uint64_t kDisturbedRuns = 2;
constexpr double kOfChanges =
    6;  // own errors of closed forms and quadratures are several times what they are off by: with
        // 7, a number is off by more in 1 of 2,000 cases
constexpr double kNode = 1000;       // operations of any node, at least
constexpr double kParallel = 1e-12;  // rows that differ by rounding only
}  // namespace

MomentEngine::MomentEngine(const Program& program, const std::vector<NodeId>& outputs,
                           const Executor& executor, double merge_rows)
    : program_(program),
      outputs_(outputs),
      needed_(program.size(), false),
      kept_(program.size(), false),
      merge_rows_(merge_rows),
      context_(executor),
      store_(context_),
      algebra_(context_, store_, merge_rows),
      expectations_(context_, store_, algebra_),
      finite_(program.size()),
      fields_(program.size()),
      versions_(program.size()) {
  for (const NodeId id : outputs) needed_[id.value] = kept_[id.value] = true;
  for (std::size_t k = program.size(); k-- > 0;)
    if (needed_[k])
      for (const NodeId in : program.nodes[k].in) needed_[in.value] = true;
  find_averages();
}

void MomentEngine::find_averages() {
  averages_.assign(program_.size(), false);
  for (std::size_t k = 0; k < program_.size(); ++k) {
    const Node& node = program_.nodes[k];
    const bool average = !node.type.width && !node.type.matrix &&
                         std::any_of(node.in.begin(), node.in.end(),
                                     [&](NodeId in) { return program_[in].type.width; });
    averages_[k] = average || std::any_of(node.in.begin(), node.in.end(),
                                          [&](NodeId in) { return averages_[in.value]; });
  }
}

void MomentEngine::run() {
  evaluate();
  evaluate_rough_outputs();
  measure_errors();
}

void MomentEngine::survey() { evaluate(); }

/// Those that can be known, alone.
void MomentEngine::evaluate_rough_outputs() {
  if (!context_.rough) return;
  std::vector<NodeId> rough;
  for (const NodeId id : outputs_)
    if (id.value >= rough_from_ && finite_[id.value].known()) rough.push_back(id);
  not_finite_ = {};
  if (rough.empty()) return;
  MomentEngine exact(program_, rough, context_.executor, merge_rows_);
  exact.set_budget({std::numeric_limits<double>::infinity(), context_.budget.operations});
  exact.evaluate();
  for (const NodeId id : rough) finite_[id.value] = std::move(exact.finite_[id.value]);
  not_finite_ = exact.not_finite_;
  context_.excess = std::max(context_.excess, exact.largest_excess());
  rows_merged_elsewhere_ = exact.rows_merged();
  count_spent(exact);
}

void MomentEngine::count_spent(const MomentEngine& other) {
  const Budget more = other.spent();
  spent_ = {spent_.evaluations + more.evaluations, spent_.operations + more.operations};
}

void MomentEngine::measure_errors() {
  const auto largest = [](const std::vector<double>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0,
                           [](double a, double x) { return std::max(a, std::abs(x)); });
  };
  std::vector<NodeId> loose;
  for (const NodeId id : outputs_) {
    const MomentValue& v = finite_[id.value];
    const double size = std::max(
        largest(v.value), std::binary_search(margins_.begin(), margins_.end(), id) ? 1.0 : 0.0);
    if (v.known() && largest(v.error) > kLooseError * size) loose.push_back(id);
  }
  if (loose.empty() || not_finite_.valid()) return;
  std::vector<double> change(loose.size(), 0.0);
  for (std::uint64_t k = 1; k <= kDisturbedRuns; ++k) {
    MomentEngine other(
        program_, loose, context_.executor,
        std::min(merge_rows_, kParallel));  // merging is an error that is measured too
    other.context_.disturbance = k;
    other.evaluate();
    count_spent(other);
    for (std::size_t i = 0; i < loose.size(); ++i) {
      const MomentValue &a = finite_[loose[i].value], &b = other[loose[i]];
      if (!b.known()) return;  // the bounds stand
      for (std::size_t j = 0; j < a.value.size(); ++j)
        change[i] = std::max(change[i], std::abs(a.value[j] - b.value[j]));
    }
  }
  for (std::size_t i = 0; i < loose.size(); ++i)
    for (double& e : finite_[loose[i].value].error) e = std::min(e, kOfChanges * change[i]);
}

void MomentEngine::evaluate() {
  last_ = last_uses(program_);
  for (std::uint32_t k = 0; k < program_.size(); ++k)
    if (needed_[k]) {
      step({k});
      for (const NodeId in : program_.nodes[k].in) {
        if (last_[in.value] != k) continue;
        fields_[in.value] = nullptr;  // families keep what they need
        versions_[in.value] = nullptr;
        if (kept_[in.value]) continue;
        finite_[in.value].value = finite_[in.value].error =
            std::vector<double>();  // {} would keep the memory
        finite_[in.value].pairs = nullptr;
      }
      collect_garbage();
      if (context_.rough && rough_from_ > k) rough_from_ = k;
    }
  std::vector<NodeId> open;
  for (const NodeId id : outputs_)
    if (finite_[id.value].pairs) open.push_back(id);
  settle(open);
}

/// Drops blocks and covariances that no live value and no family needs.
void MomentEngine::collect_garbage() {
  if (!store_.crowded()) return;
  std::vector<const Field*> live;
  for (const auto& x : fields_) live.push_back(x.get());
  for (const auto& v : versions_)
    if (v)
      for (const auto& u : v->updates) {
        live.push_back(u.d.get());
        live.push_back(u.x.get());
      }
  store_.collect(live);
}

/// What is computed from an unknown value is unknown, for the same reason.
bool MomentEngine::inherit_unknown(NodeId id, const Node& node) {
  for (const NodeId in : node.in) {
    const MomentValue& x = finite_[in.value];
    if (x.known()) continue;
    MomentValue& out = finite_[id.value];
    out.why = x.why;
    out.culprit = x.culprit;
    out.infinite = x.infinite;
    return true;
  }
  return false;
}

void MomentEngine::step(NodeId id) {
  const Node& node = program_[id];
  if (inherit_unknown(id, node)) return;
  if (std::any_of(node.in.begin(), node.in.end(),
                  [&](NodeId in) { return finite_[in.value].pairs != nullptr; })) {
    if (pairs_step(id, node)) return;
    settle(node.in);
    if (inherit_unknown(id, node)) return;
  }
  try {
    context_.charge(kNode);
    evaluate_node(id, node);
  } catch (const Unknown& unknown) {
    MomentValue& out = finite_[id.value];
    out.why = unknown.why;
    out.culprit = unknown.culprit.valid() ? unknown.culprit : id;
    out.infinite = unknown.infinite;
  }
}

void MomentEngine::evaluate_node(NodeId id, const Node& node) {
  MomentValue& out = finite_[id.value];
  if (node.type.entries) throw Unknown{"an entrywise update has no closed form"};
  if (node.type.matrix)
    versions_[id.value] = matrix_step(node);
  else if (is_average(node.op))
    out = average(node);
  else if (node.type.width)
    fields_[id.value] = std::make_shared<Field>(algebra_.simplified(field_step(id, node)));
  else
    finite_step(id, node);
  // Infinite constants may be meant, as in max(x, -inf).
  if (!not_finite_.valid() && !std::holds_alternative<Constant>(node.op) &&
      !std::all_of(out.value.begin(), out.value.end(), [](double x) { return std::isfinite(x); }))
    not_finite_ = id;
}

Field MomentEngine::operand(NodeId id) const {
  if (program_[id].type.width) return *fields_[id.value];
  const MomentValue& v = finite_[id.value];
  Field out = algebra_.constant(v.value);
  out.method = v.method;
  for (std::size_t j = 0; j < v.value.size(); ++j)
    if (v.value[j] != 0)
      out.relative = std::max(out.relative, v.error_at(j) / std::abs(v.value[j]));
  return out;
}

}  // namespace tplimit::moments
