#include "tplimit/passes/determinacy.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <unordered_map>

#include "tplimit/ir/functions.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/passes/known_values.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

constexpr double kErrors = 5;
constexpr double kRounding = 1e-12;
constexpr std::size_t kLongest = 64;  // longer sums are taken as one unknown

/// An average of a network, or whatever is no linear form in others; the default one is the
/// number 1.
struct Symbol {
  NodeId node;
  std::size_t entry = 0;
  Exponent power;  ///< of the width, beside it
  friend auto operator<=>(const Symbol&, const Symbol&) = default;
};
using Form = std::map<Symbol, double>;

using Marked = std::vector<char>;

class Determinacy {
 public:
  Determinacy(const Program& program, const std::vector<Decision>& decisions,
              const std::function<Numbers(NodeId)>& limit, bool judged)
      : program_(program), limit_(limit), judged_(judged) {
    for (const Decision& d : decisions) decisions_[d.node.value] = &d;
  }

  Undetermined run() {
    if (std::none_of(decisions_.begin(), decisions_.end(),
                     [&](const auto& d) { return near_a_jump(*d.second); }))
      return {};
    for (Marks* marks : {static_cast<Marks*>(&out_), &out_.open}) {
      marks->at.resize(program_.size());
      marks->root.resize(program_.size());
    }
    known_ = known_entries(program_);
    for (std::uint32_t k = 0; k < program_.size(); ++k) {
      const Node& node = program_.nodes[k];
      Marked own = inherited({k}, node, out_), open = inherited({k}, node, out_.open);
      if (const auto it = decisions_.find(k); it != decisions_.end() && near_a_jump(*it->second))
        decide(*it->second, node, own, open);
      if ((node.type.width || node.type.matrix) && !open.empty()) {
        if (!judged_ && own.empty()) mark(out_, {k}, std::move(open), out_.open);
        open.clear();
      }
      mark(out_, {k}, std::move(own), out_);
      mark(out_.open, {k}, std::move(open), out_.open);
    }
    return std::move(out_);
  }

  Marks reach(const std::map<std::uint32_t, std::vector<double>>& from) {
    out_.at.resize(program_.size());
    out_.root.resize(program_.size());
    for (std::uint32_t k = from.empty() ? 0 : from.begin()->first; k < program_.size(); ++k) {
      Marked own = inherited({k}, program_.nodes[k], out_);
      if (const auto it = from.find(k); it != from.end()) {
        own.resize(it->second.size(), 0);
        for (std::size_t j = 0; j < own.size(); ++j) own[j] = own[j] || it->second[j] != 0;
      }
      mark(out_, {k}, std::move(own), out_);
    }
    return std::move(static_cast<Marks&>(out_));
  }

 private:
  void mark(Marks& to, NodeId id, Marked own, const Marks& from) const {
    if (std::find(own.begin(), own.end(), 1) == own.end()) return;
    to.at[id.value] = std::move(own);
    for (const NodeId in : program_[id].in)
      if (!to.root[id.value].valid() && from.any(in)) to.root[id.value] = from.root[in.value];
    if (!to.root[id.value].valid()) to.root[id.value] = id;
  }
  [[nodiscard]] bool random(NodeId id, std::size_t entry) const {
    return out_.holds(id, entry) || out_.open.holds(id, entry);
  }

  // ---- jumps
  /// How far from the jump, in units of what may be an error; entries of the margin, or of the
  /// result for mod.
  [[nodiscard]] std::vector<double> distances(const Decision& d) const {
    const auto error = [](const Numbers& x, std::size_t j) {
      if (!x.error || x.error->empty()) return std::numeric_limits<double>::quiet_NaN();
      return x.error->size() == 1 ? (*x.error)[0] : (*x.error)[j];
    };
    // Without an estimate: what 10^4 particles leave.
    const auto tolerance = [&](const Numbers& x, std::size_t j, double size) {
      const double e = error(x, j);
      return kErrors * (e == e ? e : 1e-2 * size) + kRounding * std::max(1.0, size);
    };
    std::vector<double> out;
    if (d.margin.valid()) {
      double size = 0;
      for (const NodeId id : d.operands)
        for (const double v : *limit_(id).value) size = std::max(size, std::abs(v));
      const Numbers m = limit_(d.margin);
      for (std::size_t j = 0; j < m.value->size(); ++j)
        out.push_back((*m.value)[j] / tolerance(m, j, size));
      return out;
    }
    const Numbers x = limit_(d.operands[0]), y = limit_(d.operands[1]);
    const auto a = indices(d.node, 0), b = indices(d.node, 1);
    for (std::size_t j = 0; j < a.size(); ++j) {
      const double u = (*x.value)[a[j]], v = (*y.value)[b[j]], q = u / v;
      const double own =
          tolerance(x, a[j], std::abs(u)) + std::abs(q) * tolerance(y, b[j], std::abs(v));
      out.push_back(std::abs(q - std::round(q)) * std::abs(v) / own);
    }
    return out;
  }
  [[nodiscard]] bool near_a_jump(const Decision& d) const {
    if (!d.jump) return false;
    const auto far = distances(d);
    return std::any_of(far.begin(), far.end(), [](double x) { return !(std::abs(x) > 1); });
  }
  /// Sampling alone leaves open whether it lies on the jump.
  [[nodiscard]] bool only_sampled(const Decision& d, std::size_t entry,
                                  const std::vector<std::size_t>& places) const {
    const Numbers m = limit_(d.margin.valid() ? d.margin : d.operands[0]);
    if (!m.sampled) return false;
    if (!d.margin.valid() || std::abs((*m.value)[entry]) > kRounding) return true;
    // A difference of one number from itself, chosen here among others, has no error of its own.
    for (std::size_t k = 0; k < d.operands.size(); ++k) {
      const Numbers x = limit_(d.operands[k]);
      if (!x.error || x.error->empty()
              ? x.sampled
              : (*x.error)[x.error->size() == 1                 ? 0
                           : places.size() == d.operands.size() ? places[k]
                                                                : entry] > 0)
        return true;
    }
    return false;
  }
  void decide(const Decision& d, const Node& node, Marked& own, Marked& open) {
    if (branches_agree(node)) return;
    own.resize(static_cast<std::size_t>(size_of(node.type.dims)), 0);
    open.resize(own.size(), 0);
    const auto far = distances(d);
    const Map& m = std::get<Map>(node.op);
    // The condition of `where` has its own shape.
    const std::size_t sides = m.fn == Fn::kWhere || node.in.size() == 1 ? 1 : 2;
    std::vector<std::vector<std::size_t>> index;
    for (std::size_t k = 0; k < sides; ++k) {
      need(node.in[k]);
      index.push_back(indices(d.node, k));
    }
    for (std::size_t j = 0; j < own.size(); ++j) {
      const std::size_t at = far.size() == own.size() ? j : far.size() == 1 ? 0 : index[0][j];
      if (own[j] || std::abs(far[at]) > 1) continue;
      Form difference = form(node.in[0])[index[0][j]];
      bool fluctuates;
      if (sides == 2 && m.fn == Fn::kMod)
        fluctuates = !constant(difference) || !constant(form(node.in[1])[index[1][j]]);
      else {
        if (sides == 2) add(difference, form(node.in[1])[index[1][j]], -1);
        fluctuates = !constant(difference);
      }
      if (!fluctuates) continue;
      std::vector<std::size_t> places;
      for (std::size_t k = 0; k < sides; ++k) places.push_back(index[k][j]);
      (only_sampled(d, at, places) ? open : own)[j] = 1;
    }
  }

  // ---- what an undetermined entry reaches
  Marked evaluated(const Node& node, const Op& op, std::size_t k, const Marked& from) const {
    Node plain{op, {false, false, node.type.dims}, {}, {}, 0};
    const Type type{false, false, program_[node.in[k]].type.dims};
    const std::vector<double> values(from.begin(), from.end());
    std::vector<double> out(static_cast<std::size_t>(size_of(node.type.dims)));
    evaluate_rows(plain, {&type}, {{values.data(), 1, 1}}, {out.data(), 1, 1});
    Marked reached(out.size());
    for (std::size_t j = 0; j < out.size(); ++j) reached[j] = out[j] != 0;
    return reached;
  }
  [[nodiscard]] std::vector<double> nonzero(NodeId id) const {
    std::vector<double> out(static_cast<std::size_t>(size_of(program_[id].type.dims)), 1.0);
    if (const auto* c = std::get_if<Constant>(&program_[id].op))
      for (std::size_t j = 0; j < out.size(); ++j) out[j] = (*c->values)[j] != 0;
    return out;
  }
  /// What multiplies an indicator is 0 in the limit.
  [[nodiscard]] bool vanishes(const Decision& d, std::size_t entry) const {
    const Numbers x = limit_(d.margin);
    const bool certain = !x.sampled || (x.error && !x.error->empty() &&
                                        (*x.error)[x.error->size() == 1 ? 0 : entry] == 0);
    return certain && std::abs((*x.value)[x.value->size() == 1 ? 0 : entry]) <= kRounding;
  }
  Marked inherited(NodeId id, const Node& node, const Marks& marks) {
    if (std::none_of(node.in.begin(), node.in.end(), [&](NodeId in) { return marks.any(in); }))
      return {};
    const auto size = static_cast<std::size_t>(node.type.matrix ? 1 : size_of(node.type.dims));
    Marked own(size, 0);
    const auto join = [&](const Marked& from) {
      for (std::size_t j = 0; j < size; ++j) own[j] = own[j] || from[j];
    };
    const auto all = [&] { own.assign(size, 1); };
    if (node.type.matrix) {
      all();
      return own;
    }
    const auto same = [&] { join(marks.at[node.in[0].value]); };
    const auto reached = [&](const Op& op) {
      join(evaluated(node, op, 0, marks.at[node.in[0].value]));
    };
    std::visit(overloaded{
                   [&](const Map& m) {
                     if (m.fn == Fn::kWhere) need(node.in[0]);
                     for (std::size_t k = 0; k < node.in.size(); ++k) {
                       if (k == 0 && m.fn == Fn::kWhere && branches_agree(node)) continue;
                       const Marked& from = marks.at[node.in[k].value];
                       if (from.empty()) continue;
                       const auto index = indices(id, k);
                       const auto other =
                           m.fn == Fn::kMul ? nonzero(node.in[1 - k]) : std::vector<double>{};
                       const auto its = m.fn == Fn::kMul || m.fn == Fn::kWhere
                                            ? indices(id, m.fn == Fn::kMul ? 1 - k : 0)
                                            : std::vector<std::size_t>{};
                       const auto factor = decisions_.find(id.value);
                       const bool bounded = m.fn == Fn::kMul && factor != decisions_.end() &&
                                            is_indicator(program_, node.in[k]);
                       for (std::size_t j = 0; j < size; ++j) {
                         if (!from[index[j]] || (m.fn == Fn::kMul && other[its[j]] == 0)) continue;
                         if (bounded && vanishes(*factor->second, its[j])) continue;
                         if (m.fn == Fn::kWhere && k > 0)
                           if (const auto taken = condition(node.in[0], its[j]);
                               taken && *taken != (k == 1))
                             continue;
                         own[j] = 1;
                       }
                     }
                   },
                   [&](const Contract& c) {
                     for (const std::size_t k : {0u, 1u}) {
                       const Marked& from = marks.at[node.in[k].value];
                       if (from.empty()) continue;
                       const std::vector<double> here(from.begin(), from.end()),
                           there = nonzero(node.in[1 - k]);
                       const Type a{false, false, program_[node.in[0]].type.dims},
                           b{false, false, program_[node.in[1]].type.dims};
                       Node plain{Contract{c.batch, c.contracted, false},
                                  {false, false, node.type.dims},
                                  {},
                                  {},
                                  0};
                       std::vector<double> out(size);
                       evaluate_rows(plain, {&a, &b},
                                     {{(k == 0 ? here : there).data(), 1, 1},
                                      {(k == 0 ? there : here).data(), 1, 1}},
                                     {out.data(), 1, 1});
                       for (std::size_t j = 0; j < size; ++j) own[j] = own[j] || out[j] != 0;
                     }
                   },
                   [&](const MatMul&) {
                     if (marks.any(node.in[0]))
                       all();
                     else
                       join(marks.at[node.in[1].value]);
                   },
                   [&](const Concat&) {
                     const auto index = parts(node);
                     for (std::size_t j = 0; j < size; ++j) {
                       const Marked& from = marks.at[node.in[index[j].first].value];
                       own[j] = !from.empty() && from[index[j].second];
                     }
                   },
                   [&](const ReduceMax& max) { reached(ReduceSum{max.axis}); },
                   [&](const LogSumExp& op) { reached(ReduceSum{op.axis}); },
                   [&](const Average&) { same(); },
                   [&](const Scale&) { same(); },
                   [&](const Stop&) { same(); },
                   [&](const Parameter&) { same(); },
                   [&](const Change&) { same(); },
                   [&](const ReduceSum& op) { reached(op); },
                   [&](const Gather& op) { reached(op); },
                   [&](const ScatterAdd& op) { reached(op); },
                   [&](const Permute& op) { reached(op); },
                   [&](const Reshape& op) { reached(op); },
                   [&](const Expand&) {
                     reached(Expand{false, node.type.dims});
                   },
                   [&](const Constant&) { all(); },
                   [&](const StandardNormal&) { all(); },
                   [&](const GaussianMatrix&) { all(); },
                   [&](const ScaleMatrix&) { all(); },
                   [&](const UpdateMatrix&) { all(); },
                   [&](const AddVersion&) { all(); },
                   [&](const OuterSum&) { all(); },
                   [&](const MatrixEntries&) { all(); },
                   [&](const AddEntries&) { all(); },
                   [&](const InnerProduct&) { all(); },
                   [&](const Cholesky&) { all(); },
                   [&](const Eigvals&) { all(); },
                   [&](const TrainingOperator&) { all(); },
                   [&](const Solve&) { all(); },
                   [&](const LogDet&) { all(); },
                   [&](const Samples&) { all(); },
                   [&](const Histogram&) { all(); },
               },
               node.op);
    return own;
  }
  bool branches_agree(const Node& node) {
    const auto* m = std::get_if<Map>(&node.op);
    if (!m || m->fn != Fn::kWhere) return false;
    if (node.in[1] == node.in[2]) return true;
    if (node.type.width || program_[node.in[1]].type.dims != program_[node.in[2]].type.dims)
      return false;
    for (const std::size_t k : {1u, 2u}) need(node.in[k]);
    return form(node.in[1]) == form(node.in[2]);
  }
  /// Whether the condition of `where` is met, if networks agree about it.
  std::optional<bool> condition(NodeId c, std::size_t entry) {
    if (program_[c].type.width || random(c, entry)) return std::nullopt;
    const Form& f = form(c)[entry];
    if (!constant(f)) return std::nullopt;
    return !f.empty();
  }

  // ---- linear forms
  static bool constant(const Form& f) {
    return std::none_of(f.begin(), f.end(),
                        [](const auto& term) { return term.first.node.valid(); });
  }
  static void add(Form& to, const Form& x, double factor, Exponent power = 0) {
    for (const auto& [key, c] : x) {
      Symbol symbol = key;
      symbol.power += power;
      const auto [it, fresh] = to.try_emplace(symbol, 0.0);
      const double before = it->second;
      it->second += c * factor;
      if (std::abs(it->second) <= 1e-14 * (std::abs(before) + std::abs(c * factor))) to.erase(it);
    }
  }
  [[nodiscard]] const std::vector<Form>& form(NodeId id) const { return forms_.at(id.value); }
  [[nodiscard]] bool linear(const Node& node) const {
    if (node.type.width || node.type.matrix) return false;
    return std::visit(overloaded{[](const Contract& c) { return !c.average; },
                                 [](const Map&) { return true; },
                                 [](const Scale&) { return true; },
                                 [](const ReduceSum&) { return true; },
                                 [](const ReduceMax&) { return true; },
                                 [](const Gather&) { return true; },
                                 [](const Permute&) { return true; },
                                 [](const Reshape&) { return true; },
                                 [](const Expand&) { return true; },
                                 [](const Concat&) { return true; },
                                 [](const Stop&) { return true; },
                                 [](const Constant&) { return false; },
                                 [](const StandardNormal&) { return false; },
                                 [](const Average&) { return false; },
                                 [](const LogSumExp&) { return false; },
                                 [](const ScatterAdd&) { return false; },
                                 [](const Parameter&) { return false; },
                                 [](const Change&) { return false; },
                                 [](const MatMul&) { return false; },
                                 [](const GaussianMatrix&) { return false; },
                                 [](const ScaleMatrix&) { return false; },
                                 [](const UpdateMatrix&) { return false; },
                                 [](const AddVersion&) { return false; },
                                 [](const OuterSum&) { return false; },
                                 [](const MatrixEntries&) { return false; },
                                 [](const AddEntries&) { return false; },
                                 [](const InnerProduct&) { return false; },
                                 [](const Cholesky&) { return false; },
                                 [](const Eigvals&) { return false; },
                                 [](const TrainingOperator&) { return false; },
                                 [](const Solve&) { return false; },
                                 [](const LogDet&) { return false; },
                                 [](const Samples&) { return false; },
                                 [](const Histogram&) { return false; }},
                      node.op);
  }
  /// Finds the forms of a number and of all that it is computed from.
  void need(NodeId id) {
    if (program_[id].type.width) return;
    std::vector<NodeId> stack{id}, missing;
    while (!stack.empty()) {
      const NodeId top = stack.back();
      stack.pop_back();
      if (!forms_.try_emplace(top.value).second) continue;
      missing.push_back(top);
      if (linear(program_[top]))
        for (const NodeId in : program_[top].in) stack.push_back(in);
    }
    std::sort(missing.begin(), missing.end());
    for (const NodeId m : missing) forms_[m.value] = formed(m);
  }
  std::vector<Form> formed(NodeId id) const {
    const Node& node = program_[id];
    const auto size = static_cast<std::size_t>(size_of(node.type.dims));
    std::vector<Form> out(size);
    const auto number = [&](std::size_t j, double x) {
      out[j].clear();
      if (x != 0) out[j] = {{Symbol{}, x}};
    };
    const auto opaque = [&](std::size_t j) {
      if (!known_.empty() && !known_[id.value].empty() && std::isfinite(known_[id.value][j]))
        number(j, known_[id.value][j]);
      else
        out[j] = {{Symbol{id, j, 0}, 1.0}};
    };
    if (const auto* c = std::get_if<Constant>(&node.op)) {
      for (std::size_t j = 0; j < size; ++j) number(j, (*c->values)[j]);
      return out;
    }
    if (!linear(node)) {
      for (std::size_t j = 0; j < size; ++j) opaque(j);
      return out;
    }
    const auto finish = [&]() -> std::vector<Form>&& {
      for (std::size_t j = 0; j < size; ++j)
        if (out[j].size() > kLongest || random(id, j)) opaque(j);
      return std::move(out);
    };
    if (const auto* s = std::get_if<Scale>(&node.op)) {
      for (std::size_t j = 0; j < size; ++j) add(out[j], form(node.in[0])[j], s->factor, s->power);
    } else if (const auto* m = std::get_if<Map>(&node.op)) {
      const auto it = decisions_.find(id.value);
      const Decision* d = it == decisions_.end() ? nullptr : it->second;
      const std::vector<double> far =
          d && m->fn != Fn::kWhere ? distances(*d) : std::vector<double>{};
      std::vector<std::vector<std::size_t>> index;
      for (std::size_t k = 0; k < node.in.size(); ++k) index.push_back(indices(id, k));
      const std::vector<double> value =
          d && d->jump && m->fn != Fn::kWhere && !(m->fn == Fn::kMod && d->margin.valid())
              ? evaluate(node, *d)
              : std::vector<double>{};
      for (std::size_t j = 0; j < size; ++j) {
        const auto x = [&](std::size_t k) -> const Form& { return form(node.in[k])[index[k][j]]; };
        // What follows one operand: which one is not known at a tie.
        const auto follows = [&](std::size_t k, double factor) { add(out[j], x(k), factor); };
        switch (m->fn) {
          case Fn::kAdd:
          case Fn::kSub:
            follows(0, 1);
            follows(1, m->fn == Fn::kAdd ? 1 : -1);
            break;
          case Fn::kMul:
          case Fn::kDiv: {
            const std::size_t k = constant(x(1)) ? 1 : 0;  // the factor
            if (!constant(x(k)) || (m->fn == Fn::kDiv && (k == 0 || x(1).size() != 1)))
              opaque(j);
            else
              for (const auto& [one, c] : x(k))
                m->fn == Fn::kMul ? add(out[j], x(1 - k), c, one.power)
                                  : add(out[j], x(0), 1 / c, -one.power);
            break;
          }
          case Fn::kMin:
          case Fn::kMax:
            if (x(0) == x(1))
              follows(0, 1);
            else if (far.size() == size && std::abs(far[j]) > 1)
              follows((far[j] > 0) == (m->fn == Fn::kMax) ? 0 : 1, 1);
            else
              opaque(j);
            break;
          case Fn::kAbs:
          case Fn::kRelu:
          case Fn::kLeakyRelu:
            if (far.size() != size || !(std::abs(far[j]) > 1))
              opaque(j);
            else if (far[j] > 0)
              follows(0, 1);
            else if (m->fn != Fn::kRelu)
              follows(0, m->fn == Fn::kAbs ? -1 : m->parameter);
            break;
          case Fn::kStep:
          case Fn::kSign:
          case Fn::kLess:
          case Fn::kLessEqual:
          case Fn::kEqual:
          case Fn::kNotEqual:
            if (value.size() == size)
              number(j, value[j]);
            else
              opaque(j);
            break;
          case Fn::kMod:  // x - floor(x / y) y
            if (value.size() != size || !constant(x(1)) || d->margin.valid())
              opaque(j);
            else {
              follows(0, 1);
              add(out[j], {{Symbol{}, 1.0}},
                  value[j] - (*limit_(d->operands[0]).value)[index[0][j]]);
            }
            break;
          case Fn::kWhere: {
            const Form& c = x(0);
            if (x(1) == x(2))
              follows(1, 1);
            else if (constant(c))
              follows(c.empty() ? 2 : 1, 1);
            else
              opaque(j);
            break;
          }
          default: opaque(j);
        }
      }
    } else if (const auto* c = std::get_if<Contract>(&node.op)) {
      const ContractSizes n(*c, program_[node.in[0]].type.dims, program_[node.in[1]].type.dims);
      const auto rows = static_cast<std::size_t>(n.left),
                 columns = static_cast<std::size_t>(n.right),
                 sum = static_cast<std::size_t>(n.inner);
      for (std::size_t j = 0; j < size; ++j) {
        const std::size_t p = j / (rows * columns), left = p * rows + j / columns % rows,
                          right = p * columns + j % columns;
        for (std::size_t k = 0; k < sum; ++k) {
          const Form &x = form(node.in[0])[left * sum + k], &y = form(node.in[1])[right * sum + k];
          if (!constant(x) && !constant(y)) {
            opaque(j);
            break;
          }
          for (const auto& [one, factor] : constant(y) ? y : x)
            add(out[j], constant(y) ? x : y, factor, one.power);
          if (out[j].size() > kLongest) break;
        }
      }
    } else if (std::holds_alternative<ReduceSum>(node.op) ||
               std::holds_alternative<ReduceMax>(node.op)) {
      const auto* add_up = std::get_if<ReduceSum>(&node.op);
      const auto axis =
          static_cast<std::size_t>(add_up ? add_up->axis : std::get<ReduceMax>(node.op).axis);
      const Dims& dims = program_[node.in[0]].type.dims;
      std::size_t within = 1;
      for (std::size_t k = axis + 1; k < dims.size(); ++k)
        within *= static_cast<std::size_t>(dims[k]);
      const auto count = static_cast<std::size_t>(dims[axis]);
      const auto it = decisions_.find(id.value);
      for (std::size_t j = 0; j < size; ++j) {
        const auto at = [&](std::size_t k) {
          return (j / within * count + k) * within + j % within;
        };
        if (add_up) {
          for (std::size_t k = 0; k < count && out[j].size() <= kLongest; ++k)
            add(out[j], form(node.in[0])[at(k)], 1);
          continue;
        }
        if (it == decisions_.end()) {
          opaque(j);
          continue;
        }
        const Numbers x = limit_(it->second->operands[0]);
        std::size_t best = 0;
        for (std::size_t k = 1; k < count; ++k)
          if ((*x.value)[at(k)] > (*x.value)[at(best)]) best = k;
        const auto error = [&](std::size_t k) {
          return !x.error || x.error->empty() ? 1e-2 * std::abs((*x.value)[at(k)])
                 : x.error->size() == 1       ? (*x.error)[0]
                                              : (*x.error)[at(k)];
        };
        bool unique = true;
        for (std::size_t k = 0; k < count; ++k)
          if (k != best && form(node.in[0])[at(k)] != form(node.in[0])[at(best)])
            unique = unique && (*x.value)[at(best)] - (*x.value)[at(k)] >
                                   kErrors * (error(k) + error(best)) +
                                       kRounding * std::max(1.0, std::abs((*x.value)[at(best)]));
        if (unique)
          out[j] = form(node.in[0])[at(best)];
        else
          opaque(j);
      }
    } else if (std::holds_alternative<Concat>(node.op)) {
      const auto index = parts(node);
      for (std::size_t j = 0; j < size; ++j)
        out[j] = form(node.in[index[j].first])[index[j].second];
    } else {  // copies
      const auto index = indices(id, 0);
      for (std::size_t j = 0; j < size; ++j) out[j] = form(node.in[0])[index[j]];
    }
    return finish();
  }
  /// A jump at the limits of its operands.
  [[nodiscard]] std::vector<double> evaluate(const Node& node, const Decision& d) const {
    std::vector<double> out(static_cast<std::size_t>(size_of(node.type.dims)));
    const Node plain{node.op, {false, false, node.type.dims}, {}, {}, 0};
    const double zero = 0;
    if (d.margin.valid()) {
      const Type number{};
      std::vector<const Type*> types{&plain.type};
      std::vector<View> in{{limit_(d.margin).value->data(), 1, 1}};
      if (node.in.size() == 2) {
        types.push_back(&number);
        in.push_back({&zero, 1, 1});
      }
      evaluate_rows(plain, types, in, {out.data(), 1, 1});
    } else {
      const Type x{false, false, program_[node.in[0]].type.dims},
          y{false, false, program_[node.in[1]].type.dims};
      evaluate_rows(plain, {&x, &y},
                    {{limit_(d.operands[0]).value->data(), 1, 1},
                     {limit_(d.operands[1]).value->data(), 1, 1}},
                    {out.data(), 1, 1});
    }
    return out;
  }

  // ---- places
  /// For every entry of a node the entry of an operand that it is made of: of a copy, or by
  /// broadcasting.
  [[nodiscard]] std::vector<std::size_t> indices(NodeId id, std::size_t k) const {
    const Node& node = program_[id];
    const Type from{false, false, program_[node.in[k]].type.dims};
    const bool copies =
        std::holds_alternative<Gather>(node.op) || std::holds_alternative<Permute>(node.op) ||
        std::holds_alternative<Reshape>(node.op) || std::holds_alternative<Stop>(node.op);
    const Node plain{copies ? node.op : Op{Expand{false, node.type.dims}},
                     {false, false, node.type.dims},
                     {},
                     {},
                     0};
    std::vector<double> values(static_cast<std::size_t>(size_of(from.dims))),
        out(static_cast<std::size_t>(size_of(node.type.dims)));
    std::iota(values.begin(), values.end(), 0.0);
    evaluate_rows(plain, {&from}, {{values.data(), 1, 1}}, {out.data(), 1, 1});
    return {out.begin(), out.end()};
  }
  /// For every entry of a Concat its operand and the entry there.
  [[nodiscard]] std::vector<std::pair<std::size_t, std::size_t>> parts(const Node& node) const {
    std::vector<Type> types;
    std::vector<std::vector<double>> values;
    std::vector<std::size_t> first{0};
    for (const NodeId in : node.in) {
      types.push_back({false, false, program_[in].type.dims});
      values.emplace_back(static_cast<std::size_t>(size_of(types.back().dims)));
      std::iota(values.back().begin(), values.back().end(), static_cast<double>(first.back()));
      first.push_back(first.back() + values.back().size());
    }
    std::vector<const Type*> pointers;
    std::vector<View> in;
    for (std::size_t k = 0; k < types.size(); ++k) {
      pointers.push_back(&types[k]);
      in.push_back({values[k].data(), 1, 1});
    }
    const Node plain{node.op, {false, false, node.type.dims}, {}, {}, 0};
    std::vector<double> out(static_cast<std::size_t>(size_of(node.type.dims)));
    evaluate_rows(plain, pointers, in, {out.data(), 1, 1});
    std::vector<std::pair<std::size_t, std::size_t>> places;
    for (const double place : out) {
      const auto at = static_cast<std::size_t>(place);
      const auto k = static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), at) -
                                              first.begin()) -
                     1;
      places.emplace_back(k, at - first[k]);
    }
    return places;
  }

  const Program& program_;
  const std::function<Numbers(NodeId)>& limit_;
  bool judged_;
  std::unordered_map<std::uint32_t, const Decision*> decisions_;
  std::unordered_map<std::uint32_t, std::vector<Form>> forms_;
  std::vector<std::vector<double>> known_;  ///< entries that are the same number at every width
  Undetermined out_;
};

}  // namespace

bool is_indicator(const Program& program, NodeId id) {
  int left = 64;  // of operands shared by many, all ways to them would be gone
  const auto made_of = [&](NodeId x, const auto& self) -> bool {
    const Node& node = program[x];
    if (node.type.random() || --left < 0) return false;
    if (std::holds_alternative<Constant>(node.op) || is_piecewise_constant(node.op)) return true;
    const auto* m = std::get_if<Map>(&node.op);
    const bool copies =
        std::holds_alternative<Scale>(node.op) || std::holds_alternative<Expand>(node.op) ||
        std::holds_alternative<Reshape>(node.op) || std::holds_alternative<Gather>(node.op) ||
        std::holds_alternative<Permute>(node.op) || std::holds_alternative<Stop>(node.op);
    if (!copies && !(m && (m->fn == Fn::kAdd || m->fn == Fn::kSub || m->fn == Fn::kMul)))
      return false;
    return std::all_of(node.in.begin(), node.in.end(), [&](NodeId in) { return self(in, self); });
  };
  return !std::holds_alternative<Constant>(program[id].op) && made_of(id, made_of);
}

bool is_jump(const Node& node) {
  const auto* m = std::get_if<Map>(&node.op);
  return is_piecewise_constant(node.op) || (m && (m->fn == Fn::kMod || m->fn == Fn::kWhere));
}

void hold_decisions(Program& program, std::vector<Decision>& decisions) {
  if (std::none_of(decisions.begin(), decisions.end(), [&](const Decision& d) { return d.jump; }))
    decisions.clear();
  if (decisions.empty()) return;
  Report all;
  for (const Decision& d : decisions) {
    for (const NodeId id : d.operands) all.entries.push_back({{}, id});
    if (d.margin.valid()) all.entries.push_back({{}, d.margin});
  }
  program.reports.push_back(std::move(all));
}

void release_decisions(LeadingOrder& limit, const Program& source,
                       std::vector<Decision> decisions) {
  if (decisions.empty()) return;
  auto kept = limit.program.reports.back().entries.begin();
  for (Decision& d : decisions) {
    for (NodeId& id : d.operands) id = (kept++)->value;
    if (d.margin.valid()) d.margin = (kept++)->value;
  }
  limit.program.reports.pop_back();
  limit.source = std::make_shared<const Program>(source);
  limit.decisions = std::move(decisions);
}

Undetermined undetermined(const Program& program, const std::vector<Decision>& decisions,
                          const std::function<Numbers(NodeId)>& limit, bool judged) {
  return Determinacy(program, decisions, limit, judged).run();
}

Marks reached_from(const Program& program,
                   const std::map<std::uint32_t, std::vector<double>>& entries) {
  return Determinacy(program, {}, nullptr, true).reach(entries);
}

}  // namespace tplimit
