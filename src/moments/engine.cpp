#include "moments/engine.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moments/fields.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/check.hpp"

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
      executor_(executor),
      merge_rows_(merge_rows),
      finite_(program.size()),
      fields_(program.size()),
      versions_(program.size()) {
  for (const NodeId id : outputs) needed_[id.value] = kept_[id.value] = true;
  for (std::size_t k = program.size(); k-- > 0;)
    if (needed_[k])
      for (const NodeId in : program.nodes[k].in) needed_[in.value] = true;
}
MomentEngine::~MomentEngine() = default;

void MomentEngine::run() {
  evaluate();
  evaluate_rough_outputs();
  measure_errors();
}

void MomentEngine::survey() { evaluate(); }

/// Those that can be known, alone.
void MomentEngine::evaluate_rough_outputs() {
  if (!rough_) return;
  std::vector<NodeId> rough;
  for (const NodeId id : outputs_)
    if (id.value >= rough_from_ && finite_[id.value].known()) rough.push_back(id);
  not_finite_ = {};
  if (rough.empty()) return;
  MomentEngine exact(program_, rough, executor_, merge_rows_);
  exact.set_budget({std::numeric_limits<double>::infinity(), budget_.operations});
  exact.evaluate();
  for (const NodeId id : rough) finite_[id.value] = std::move(exact.finite_[id.value]);
  not_finite_ = exact.not_finite_;
  excess_ = std::max(excess_, exact.excess_);
  rows_merged_ = std::max(rows_merged_, exact.rows_merged_);
  const Budget more = exact.spent();
  spent_ = {spent_.evaluations + more.evaluations, spent_.operations + more.operations};
}

bool MomentEngine::out_of_evaluations() {
  rough_ = rough_ || functions_.evaluations() > budget_.evaluations;
  return rough_;
}

void MomentEngine::charge(double operations) {
  operations_ += operations;
  if (operations_ > budget_.operations)
    throw Unknown{fmt::format("not decided within {:.0e} operations", budget_.operations), {}};
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
        program_, loose, executor_,
        std::min(merge_rows_, kParallel));  // merging is an error that is measured too
    other.disturbance_ = k;
    other.evaluate();
    const Budget more = other.spent();
    spent_ = {spent_.evaluations + more.evaluations, spent_.operations + more.operations};
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

/// Moves values by +-error.
void MomentEngine::disturb(Matrix& values, double error) {
  if (disturbance_ == 0) return;
  for (double& x : values.reshaped()) {
    std::uint64_t z = disturbance_ += 0x9e3779b97f4a7c15ULL;  // SplitMix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    x += ((z >> 40) & 1) != 0 ? error : -error;
  }
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
      if (rough_ && rough_from_ > k) rough_from_ = k;
    }
  std::vector<NodeId> open;
  for (const NodeId id : outputs_)
    if (finite_[id.value].pairs) open.push_back(id);
  settle(open);
}

/// Evaluates pairs, those of one shape together.  What has no value is unknown.
void MomentEngine::settle(const std::vector<NodeId>& ids) {
  constexpr std::size_t kEachError = 4096;  // entries whose errors are kept one by one
  std::vector<NodeId> left;
  for (const NodeId id : ids)
    if (finite_[id.value].pairs && std::find(left.begin(), left.end(), id) == left.end())
      left.push_back(id);
  while (!left.empty()) {
    const PairMatrix& shape = *finite_[left[0].value].pairs;
    std::vector<NodeId> own, others;
    std::vector<PairMatrix::Target> targets;
    for (const NodeId id : left) {
      MomentValue& v = finite_[id.value];
      if (v.pairs->rows() != shape.rows() || v.pairs->columns() != shape.columns() ||
          v.pairs->symmetric() != shape.symmetric()) {
        others.push_back(id);
        continue;
      }
      v.value.resize(static_cast<std::size_t>(shape.rows()) *
                     static_cast<std::size_t>(shape.columns()));
      if (v.value.size() <= kEachError && v.method != MomentMethod::kExact)
        v.error.resize(v.value.size());
      own.push_back(id);
      targets.push_back(
          {v.pairs, v.value.data(), v.error.size() == v.value.size() ? v.error.data() : nullptr});
    }
    std::string why;
    try {
      note(PairMatrix::evaluate(targets, executor_, disturbance_));
    } catch (const Unknown& unknown) {
      why = unknown.why;
    }
    for (std::size_t k = 0; k < own.size(); ++k) {
      MomentValue& v = finite_[own[k].value];
      if (v.method == MomentMethod::kExact)
        v.error = {0.0};
      else if (v.value.size() > kEachError)
        v.error = {targets[k].largest_error};
      v.pairs = nullptr;
      v.why = why;
      v.culprit = own[k];
    }
    left = std::move(others);
  }
}

/// Copies, multiples, sums and products of matrices of pairs.
bool MomentEngine::pairs_step(NodeId id, const Node& node) {
  MomentValue& out = finite_[id.value];
  const auto value = [&](std::size_t k) -> const MomentValue& { return finite_[node.in[k].value]; };
  const auto size = static_cast<std::size_t>(size_of(node.type.dims));
  const auto fits = [&](std::size_t k) {
    return value(k).pairs && static_cast<std::size_t>(value(k).pairs->rows()) *
                                     static_cast<std::size_t>(value(k).pairs->columns()) ==
                                 size;
  };
  if (node.in.size() == 1) {
    const auto* scale = std::get_if<Scale>(&node.op);
    if (!fits(0) || !(scale || std::holds_alternative<Reshape>(node.op) ||
                      std::holds_alternative<ReduceSum>(node.op)))
      return false;
    out.pairs = scale ? PairMatrix::multiple(value(0).pairs, scale->factor) : value(0).pairs;
    out.method = value(0).method;
    return true;
  }
  const auto* m = std::get_if<Map>(&node.op);
  if (!m || node.in.size() != 2 || (m->fn != Fn::kAdd && m->fn != Fn::kSub && m->fn != Fn::kMul))
    return false;
  const std::size_t k = fits(0) ? 0 : 1;
  if (!fits(k)) return false;
  const MomentValue &x = value(k), &y = value(1 - k);
  if (m->fn == Fn::kMul && !y.pairs && y.value.size() == 1) {
    const double c = y.value[0];
    out.pairs = PairMatrix::multiple(x.pairs, c, c != 0 ? carried(y.error_at(0)) / std::abs(c) : 0);
  } else if (fits(0) && fits(1) &&
             program_[node.in[0]].type.dims == program_[node.in[1]].type.dims &&
             x.pairs->rows() == y.pairs->rows()) {
    out.pairs = m->fn == Fn::kMul
                    ? PairMatrix::product(x.pairs, y.pairs)
                    : PairMatrix::sum(value(0).pairs, value(1).pairs, m->fn == Fn::kAdd ? 1 : -1);
  } else if (!y.pairs && y.value.size() == size &&
             program_[node.in[0]].type.dims == program_[node.in[1]].type.dims &&
             std::isfinite(*std::max_element(y.error.begin(), y.error.end()))) {
    auto numbers = std::make_shared<Matrix>(x.pairs->rows(), x.pairs->columns());
    std::copy(y.value.begin(), y.value.end(), numbers->data());
    const bool symmetric = x.pairs->symmetric() && *numbers == numbers->transpose();
    const Pairs other = PairMatrix::dense(
        std::move(numbers), carried(*std::max_element(y.error.begin(), y.error.end())), symmetric);
    out.pairs = m->fn == Fn::kMul
                    ? PairMatrix::product(x.pairs, other)
                    : PairMatrix::sum(k == 0 ? x.pairs : other, k == 0 ? other : x.pairs,
                                      m->fn == Fn::kAdd ? 1 : -1);
  } else {
    return false;
  }
  out.method = weaker(x.method, y.method);
  return true;
}

/// Drops blocks and covariances that no live value and no family needs.
void MomentEngine::collect_garbage() {
  if (live_ < sweep_at_) return;
  std::vector<bool> live(affines_.size(), false);
  const auto mark = [&](const std::shared_ptr<const Field>& x) {
    if (!x) return;
    for (const Term& t : x->terms) {
      for (const Factor& f : t.factors) live[at(f.affine)] = true;
      if (t.sum) live[at(t.sum->affine)] = true;
    }
  };
  for (const auto& x : fields_) mark(x);
  for (const Family& f : families_) mark(f.x);
  for (const auto& v : versions_)
    if (v)
      for (const auto& u : v->updates) {
        mark(u.d);
        mark(u.x);
      }
  for (std::size_t i = 0; i < live.size(); ++i)
    if (!live[i]) affines_[i] = nullptr;
  std::erase_if(covariances_, [&](const auto& c) {
    return !live[at(c.first.first)] || !live[at(c.first.second)];
  });
  std::erase_if(pair_covariances_, [&](const auto& c) {
    return !live[at(c.first.first)] || !live[at(c.first.second)];
  });
  std::erase_if(variances_, [&](const auto& v) { return !live[at(v.first)]; });
  live_ = static_cast<std::size_t>(std::count(live.begin(), live.end(), true));
  sweep_at_ = std::max<std::size_t>(256, 2 * live_);
}

void MomentEngine::step(NodeId id) {
  const Node& node = program_[id];
  MomentValue& out = finite_[id.value];
  for (const NodeId in : node.in)
    if (!finite_[in.value].known()) {
      out.why = finite_[in.value].why;
      out.culprit = finite_[in.value].culprit;
      out.infinite = finite_[in.value].infinite;
      return;
    }
  if (std::any_of(node.in.begin(), node.in.end(),
                  [&](NodeId in) { return finite_[in.value].pairs != nullptr; })) {
    if (pairs_step(id, node)) return;
    settle(node.in);
    for (const NodeId in : node.in)
      if (!finite_[in.value].known()) {
        out.why = finite_[in.value].why;
        out.culprit = finite_[in.value].culprit;
        return;
      }
  }
  try {
    charge(kNode);
    if (node.type.matrix) {
      auto v = std::make_shared<Version>();
      if (!node.in.empty()) *v = *versions_[node.in[0].value];
      const auto scalar = [&](NodeId c) {
        const MomentValue& x = finite_[c.value];
        v->method = weaker(v->method, x.method);
        if (x.value[0] != 0) v->relative += x.error_at(0) / std::abs(x.value[0]);
        return x.value[0];
      };
      if (const auto* g = std::get_if<GaussianMatrix>(&node.op)) v->source = g->source.value;
      if (std::holds_alternative<ScaleMatrix>(node.op)) {
        const double c = scalar(node.in[1]);
        v->scale *= c;
        for (auto& u : v->updates) u.c *= c;
      }
      if (std::holds_alternative<UpdateMatrix>(node.op))
        for (std::size_t k = 1; k < node.in.size(); k += 3)
          append(*v, scalar(node.in[k]), operand(node.in[k + 1]), operand(node.in[k + 2]));
      versions_[id.value] = std::move(v);
    } else if (is_average(node.op)) {
      out = average(node);
    } else if (node.type.width) {
      fields_[id.value] = std::make_shared<Field>(simplified(field_step(id, node)));
    } else {
      finite_step(id, node);
    }
    // Infinite constants may be meant, as in max(x, -inf).
    if (!not_finite_.valid() && !std::holds_alternative<Constant>(node.op) &&
        !std::all_of(out.value.begin(), out.value.end(), [](double x) { return std::isfinite(x); }))
      not_finite_ = id;
  } catch (const Unknown& unknown) {
    out.why = unknown.why;
    out.culprit = unknown.culprit.valid() ? unknown.culprit : id;
    out.infinite = unknown.infinite;
  }
}

/// Copies, multiples, sums and products of large arrays in the memory of an operand that nothing
/// else needs.
bool MomentEngine::in_place(NodeId id, const Node& node) {
  constexpr std::size_t kLarge = 4096;
  const auto size = static_cast<std::size_t>(size_of(node.type.dims));
  if (size < kLarge) return false;
  const auto usable = [&](std::size_t k) {
    return last_[node.in[k].value] == id.value && !kept_[node.in[k].value] &&
           finite_[node.in[k].value].value.size() == size;
  };
  const auto each = [&](const std::function<void(std::size_t, std::size_t)>& body) {
    each_column(static_cast<Eigen::Index>(kLarge),
                static_cast<Eigen::Index>((size + kLarge - 1) / kLarge),
                [&](int j) { body(at(j) * kLarge, std::min(size, (at(j) + 1) * kLarge)); });
  };
  MomentValue& out = finite_[id.value];
  const auto multiply = [&](double factor) {
    if (factor == 1) return;
    each([&](std::size_t begin, std::size_t end) {
      for (std::size_t j = begin; j < end; ++j) out.value[j] *= factor;
    });
    for (double& e : out.error) e *= std::abs(factor);
  };
  if (node.in.size() == 1) {
    const auto* scale = std::get_if<Scale>(&node.op);
    if (!usable(0) || !(scale || std::holds_alternative<Reshape>(node.op) ||
                        std::holds_alternative<ReduceSum>(node.op)))
      return false;
    out = std::move(finite_[node.in[0].value]);
    if (scale) multiply(scale->factor);
    return true;
  }
  const auto* m = std::get_if<Map>(&node.op);
  if (!m || (m->fn != Fn::kAdd && m->fn != Fn::kSub && m->fn != Fn::kMul) ||
      node.in[0] == node.in[1])
    return false;
  const std::size_t k = usable(0) ? 0 : 1;
  if (!usable(k)) return false;
  const MomentValue& y = finite_[node.in[1 - k].value];
  const MomentMethod method = weaker(finite_[node.in[k].value].method, y.method);
  const auto largest = [](const std::vector<double>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0,
                           [](double a, double x) { return std::max(a, std::abs(x)); });
  };
  const double own_error = finite_[node.in[k].value].error.size() == 1
                               ? finite_[node.in[k].value].error[0]
                               : largest(finite_[node.in[k].value].error);
  const double its_error = y.error.size() == 1 ? y.error[0] : largest(y.error);
  if (y.value.size() == 1 && m->fn == Fn::kMul) {
    const double spread = its_error > 0 ? its_error * largest(finite_[node.in[k].value].value) : 0;
    out = std::move(finite_[node.in[k].value]);
    multiply(y.value[0]);
    for (double& e : out.error) e += spread;
  } else if (y.value.size() == size &&
             program_[node.in[0]].type.dims == program_[node.in[1]].type.dims) {
    const double error =
        m->fn == Fn::kMul
            ? (its_error > 0 ? its_error * largest(finite_[node.in[k].value].value) : 0) +
                  (own_error > 0 ? own_error * largest(y.value) : 0)
            : own_error + its_error;
    out = std::move(finite_[node.in[k].value]);
    out.error = {error};
    each([&](std::size_t begin, std::size_t end) {
      double* to = out.value.data();
      const double* from = y.value.data();
      if (m->fn == Fn::kMul)
        for (std::size_t j = begin; j < end; ++j) to[j] *= from[j];
      else if (m->fn == Fn::kAdd)
        for (std::size_t j = begin; j < end; ++j) to[j] += from[j];
      else if (k == 0)
        for (std::size_t j = begin; j < end; ++j) to[j] -= from[j];
      else
        for (std::size_t j = begin; j < end; ++j) to[j] = from[j] - to[j];
    });
  } else {
    return false;
  }
  out.method = method;
  return true;
}

/// Finite operations: first-order propagation of errors, operand by operand.
void MomentEngine::finite_step(NodeId id, const Node& node) {
  MomentValue& out = finite_[id.value];
  if (const auto* c = std::get_if<Constant>(&node.op)) {
    out.value = *c->values;
    out.error = {0.0};
    return;
  }
  if (std::holds_alternative<Samples>(node.op))
    throw Unknown{"samples are drawn by the particle engine", {}};
  if (in_place(id, node)) return;
  std::vector<const Type*> types;
  std::vector<View> given;
  for (const NodeId k : node.in) {
    types.push_back(&program_[k].type);
    given.push_back({finite_[k.value].value.data(), 1, 1});
    out.method = weaker(out.method, finite_[k.value].method);
  }
  const auto evaluate_at = [&](const std::vector<View>& views) {
    std::vector<double> result(static_cast<std::size_t>(size_of(node.type.dims)));
    evaluate_rows(node, types, views, {result.data(), 1, 1});
    return result;
  };
  out.value = evaluate_at(given);
  if (out.method == MomentMethod::kExact) {
    out.error = {0.0};
    return;
  }
  // Cheap for what large kernels go through: copies, multiples, sums and products of equal shapes.
  const auto* m = std::get_if<Map>(&node.op);
  const auto error_of = [&](std::size_t k) -> const std::vector<double>& {
    return finite_[node.in[k].value].error;
  };
  const auto value_of = [&](std::size_t k) -> const std::vector<double>& {
    return finite_[node.in[k].value].value;
  };
  if (node.in.size() == 1 && !m && !std::holds_alternative<ReduceMax>(node.op) &&
      !std::holds_alternative<Eigvals>(node.op) && !std::holds_alternative<Cholesky>(node.op)) {
    if (error_of(0).size() == 1 && !std::holds_alternative<ScatterAdd>(node.op)) {
      const auto* s = std::get_if<Scale>(&node.op);
      const double copies = std::holds_alternative<ReduceSum>(node.op)
                                ? static_cast<double>(value_of(0).size()) /
                                      static_cast<double>(std::max<std::size_t>(
                                          1, std::min(value_of(0).size(), out.value.size())))
                                : 1;
      out.error = {error_of(0)[0] * (s ? std::abs(s->factor) : copies)};
      return;
    }
    const std::vector<double> errors = error_of(0).size() == 1
                                           ? std::vector<double>(value_of(0).size(), error_of(0)[0])
                                           : error_of(0);
    out.error = evaluate_at({{errors.data(), 1, 1}});
    for (double& e : out.error) e = std::abs(e);
    return;
  }
  if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub || m->fn == Fn::kMul) &&
      value_of(0).size() == out.value.size() && value_of(1).size() == out.value.size()) {
    if (error_of(0).size() == 1 && error_of(1).size() == 1) {
      const auto largest = [](const std::vector<double>& v) {
        return std::accumulate(v.begin(), v.end(), 0.0,
                               [](double a, double x) { return std::max(a, std::abs(x)); });
      };
      const double a = error_of(0)[0], b = error_of(1)[0];
      out.error = {m->fn == Fn::kMul ? (b > 0 ? largest(value_of(0)) * b : 0) +
                                           (a > 0 ? largest(value_of(1)) * a : 0)
                                     : a + b};
      return;
    }
    out.error.resize(out.value.size());
    for (std::size_t j = 0; j < out.error.size(); ++j)
      out.error[j] =
          m->fn == Fn::kMul
              ? std::abs(value_of(0)[j]) * finite_[node.in[1].value].error_at(j) +
                    std::abs(value_of(1)[j]) * finite_[node.in[0].value].error_at(j)
              : finite_[node.in[0].value].error_at(j) + finite_[node.in[1].value].error_at(j);
    return;
  }
  if (std::holds_alternative<TrainingOperator>(
          node.op)) {  // no useful bound for nearly singular kernels: measured
    out.error = {std::numeric_limits<double>::infinity()};
    return;
  }
  out.error.assign(out.value.size(), 0.0);
  std::vector<std::vector<double>> in;
  for (const NodeId k : node.in) in.push_back(finite_[k.value].value);
  const auto evaluate = [&] {
    std::vector<View> views;
    for (const auto& v : in) views.push_back({v.data(), 1, 1});
    return evaluate_at(views);
  };
  const bool bilinear = std::holds_alternative<Contract>(node.op);
  if (bilinear)
    for (auto& v : in)
      for (double& x : v) x = std::abs(x);
  const std::vector<double> base = bilinear ? evaluate() : out.value;
  for (std::size_t k = 0; k < in.size(); ++k) {
    const auto saved = in[k];
    for (std::size_t j = 0; j < saved.size(); ++j)
      in[k][j] += finite_[node.in[k].value].error_at(j);
    const auto moved = evaluate();
    for (std::size_t j = 0; j < base.size(); ++j) out.error[j] += std::abs(moved[j] - base[j]);
    in[k] = saved;
  }
}

}  // namespace tplimit::moments
