#include "tplimit/passes/known_values.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// A value's entries over its finite axes, the same on every coordinate; empty: nothing is known.
struct Entries {
  std::vector<double> value;      ///< unspecified where not known
  std::vector<double> unknown{};  ///< 1 or 0: the arithmetic of the values tells what is known of a
                                  ///< result, too; empty: all is known
  [[nodiscard]] bool empty() const { return value.empty(); }
  [[nodiscard]] bool known(std::size_t i) const { return unknown.empty() || unknown[i] == 0; }
};

class KnownValues {
 public:
  explicit KnownValues(const Program& program)
      : in_(program), entries_(program.size()), origin_(program.size()) {}

  /// keep: all entries stay, and what is not finite ends nothing.
  std::optional<NodeId> run(bool keep = false) {
    const std::vector<std::uint32_t> last = last_uses(in_);
    std::vector<bool> output(in_.size(), false);
    for (const NodeId id : outputs_of(in_)) output[id.value] = true;
    for (std::uint32_t k = 0; k < in_.size(); ++k) {
      const Node& node = in_.nodes[k];
      if (node.type.matrix) continue;
      const auto* scale = std::get_if<Scale>(&node.op);
      const bool source =
          std::holds_alternative<Constant>(node.op) || (scale && std::isnan(scale->factor));
      if (!source && std::all_of(node.in.begin(), node.in.end(),
                                 [&](NodeId in) { return entries_[in.value].empty(); }))
        continue;
      Entries& own = entries_[k];
      own = std::visit([&](const auto& op) { return visit(op, node); }, node.op);
      const auto is_unknown = [](double u) { return u != 0; };
      if (std::none_of(own.unknown.begin(), own.unknown.end(), is_unknown))
        own.unknown.clear();
      else if (std::all_of(own.unknown.begin(), own.unknown.end(), is_unknown))
        own = {};
      for (std::size_t i = 0; i < own.value.size() && !origin_[k].valid(); ++i)
        if (std::isnan(own.value[i]) && own.known(i)) origin_[k] = {k};
      if (origin_[k].valid())
        for (const NodeId in : node.in)
          if (origin_[in.value].valid() && origin_[in.value] < origin_[k])
            origin_[k] = origin_[in.value];
      if (keep) continue;
      if (output[k] && origin_[k].valid()) return origin_[k];
      for (const NodeId in : node.in)
        if (last[in.value] == k) entries_[in.value] = {};
    }
    return std::nullopt;
  }

  [[nodiscard]] std::vector<std::vector<double>> all_entries() {
    run(true);
    std::vector<std::vector<double>> out;
    for (Entries& e : entries_) {
      for (std::size_t i = 0; i < e.value.size(); ++i)
        if (!e.known(i)) e.value[i] = kNan;
      out.push_back(std::move(e.value));
    }
    return out;
  }

 private:
  [[nodiscard]] Entries nothing(const Node& node) const {
    const auto size = static_cast<std::size_t>(size_of(node.type.dims));
    return {std::vector<double>(size, 0.0), std::vector<double>(size, 1.0)};
  }
  /// Of an operand, written out.
  [[nodiscard]] Entries of(NodeId id) const {
    Entries out = entries_[id.value].empty() ? nothing(in_[id]) : entries_[id.value];
    if (out.unknown.empty()) out.unknown.assign(out.value.size(), 0.0);
    return out;
  }

  /// True if something is 0 or NaN, where other factors or summands need not be known.
  [[nodiscard]] static bool decides(const Entries& x, bool zeros) {
    for (std::size_t i = 0; i < x.value.size(); ++i)
      if (x.known(i) && (std::isnan(x.value[i]) || (zeros && x.value[i] == 0))) return true;
    return false;
  }
  /// Nothing can come of one operand if nothing is known of the other.
  [[nodiscard]] bool hopeless(const Node& node, bool zeros) const {
    bool open = false, decided = false;
    for (const NodeId id : node.in) {
      open = open || entries_[id.value].empty();
      decided = decided || decides(entries_[id.value], zeros);
    }
    return open && !decided;
  }

  /// `op` on arrays that have the shapes of the node's operands, without coordinates.
  std::vector<double> evaluated(const Op& op, const Node& node,
                                const std::vector<const std::vector<double>*>& in) const {
    Node plain{op, {false, false, node.type.dims}, node.in, node.span, node.context};
    std::vector<Type> types;
    for (const NodeId id : node.in) types.push_back({false, false, in_[id].type.dims});
    std::vector<const Type*> pointers;
    std::vector<View> views;
    for (std::size_t k = 0; k < in.size(); ++k) {
      pointers.push_back(&types[k]);
      views.push_back({in[k]->data(), 1, 1});
    }
    std::vector<double> out(static_cast<std::size_t>(size_of(node.type.dims)));
    evaluate_rows(plain, pointers, views, {out.data(), 1, 1});
    return out;
  }

  /// Where all operands are known, so is the result: it needs no arithmetic of what is unknown.
  std::optional<Entries> all_known(const Op& op, const Node& node) const {
    std::vector<const std::vector<double>*> values;
    for (const NodeId id : node.in) {
      const Entries& x = entries_[id.value];
      if (x.empty() || !x.unknown.empty()) return std::nullopt;
      values.push_back(&x.value);
    }
    return Entries{evaluated(op, node, values)};
  }
  /// Known where nothing that goes in is unknown; `op` only moves entries, or adds some.
  Entries linear(const Op& op, const Node& node) const {
    if (auto all = all_known(op, node)) return std::move(*all);
    std::vector<Entries> in;
    for (const NodeId id : node.in) in.push_back(of(id));
    std::vector<const std::vector<double>*> values, unknown;
    for (const Entries& x : in) {
      values.push_back(&x.value);
      unknown.push_back(&x.unknown);
    }
    Entries out{evaluated(op, node, values), evaluated(op, node, unknown)};
    for (double& u : out.unknown) u = u != 0 ? 1 : 0;
    return out;
  }
  /// As `linear`, but a NaN makes a sum NaN, whatever the rest.
  Entries sum(const Op& op, const Node& node) const {
    if (auto all = all_known(op, node)) return std::move(*all);
    Entries out = linear(op, node), x = of(node.in[0]);
    for (std::size_t i = 0; i < x.value.size(); ++i)
      x.value[i] = x.unknown[i] == 0 && std::isnan(x.value[i]) ? 1 : 0;
    const std::vector<double> nans = evaluated(op, node, {&x.value});
    for (std::size_t i = 0; i < nans.size(); ++i)
      if (nans[i] != 0) out.value[i] = kNan, out.unknown[i] = 0;
    return out;
  }

  Entries visit(const Constant& c, const Node&) const { return {*c.values}; }
  Entries visit(const Scale& s, const Node& node) const {
    Entries x = of(node.in[0]);
    if (std::isnan(s.factor)) std::fill(x.unknown.begin(), x.unknown.end(), 0.0);
    for (std::size_t i = 0; i < x.value.size(); ++i) {
      if (s.power != 0 && x.value[i] != 0 && !std::isnan(x.value[i])) x.unknown[i] = 1;
      x.value[i] *= s.factor;
    }
    return x;
  }
  Entries visit(const Map& m, const Node& node) const {
    if (auto all = all_known(m, node)) return std::move(*all);
    if (m.fn == Fn::kWhere ? entries_[node.in[0].value].empty()
                           : hopeless(node, m.fn == Fn::kMul || m.fn == Fn::kDiv))
      return {};
    std::vector<Entries> in;
    for (const NodeId id : node.in) in.push_back(of(id));
    // Every operand spread to the entries of the result.
    const auto spread = [&](std::size_t k, const std::vector<double>& x) {
      Node one{Expand{false, node.type.dims}, node.type, {node.in[k]}, node.span, node.context};
      return evaluated(one.op, one, {&x});
    };
    std::vector<const std::vector<double>*> values;
    for (const Entries& x : in) values.push_back(&x.value);
    Entries out{evaluated(m, node, values),
                std::vector<double>(static_cast<std::size_t>(size_of(node.type.dims)), 0.0)};
    std::vector<std::vector<double>> value, unknown;
    for (std::size_t k = 0; k < in.size(); ++k) {
      value.push_back(spread(k, in[k].value));
      unknown.push_back(spread(k, in[k].unknown));
    }
    for (std::size_t i = 0; i < out.value.size(); ++i) {
      bool all = true, nan = false, zero = false;
      for (std::size_t k = 0; k < in.size(); ++k) {
        const bool known = unknown[k][i] == 0;
        all = all && known;
        nan = nan || (known && std::isnan(value[k][i]));
        zero = zero ||
               (known && value[k][i] == 0 && (m.fn == Fn::kMul || (m.fn == Fn::kDiv && k == 0)));
      }
      if (all) continue;
      const bool arithmetic = m.fn == Fn::kAdd || m.fn == Fn::kSub || m.fn == Fn::kMul ||
                              m.fn == Fn::kDiv || m.fn == Fn::kMin || m.fn == Fn::kMax;
      if (m.fn == Fn::kWhere && unknown[0][i] == 0) {
        const std::size_t taken = value[0][i] != 0 ? 1 : 2;
        out.value[i] = value[taken][i];
        out.unknown[i] = unknown[taken][i];
      } else if (nan && arithmetic) {
        out.value[i] = kNan;
      } else if (zero) {
        out.value[i] = 0;
      } else {
        out.unknown[i] = 1;
      }
    }
    return out;
  }
  Entries visit(const Contract& c, const Node& node) const {
    const Op plain = Contract{c.batch, c.contracted, false};
    if (auto all = all_known(plain, node)) return std::move(*all);
    if (hopeless(node, true)) return {};
    const Entries a = of(node.in[0]), b = of(node.in[1]);
    const auto product = [&](const std::vector<double>& x, const std::vector<double>& y) {
      return evaluated(plain, node, {&x, &y});
    };
    // A term is unknown if a factor is and neither is 0; it is NaN if one is.
    const auto parts = [](const Entries& x) {
      Entries out{x.value, x.unknown};  // values without those unknown; 1 where not known to be 0
      std::vector<double> nan(x.value.size());
      for (std::size_t i = 0; i < nan.size(); ++i) {
        const bool known = x.unknown[i] == 0;
        nan[i] = known && std::isnan(x.value[i]) ? 1 : 0;
        out.unknown[i] = known && x.value[i] == 0 ? 0 : 1;
        if (!known || nan[i] != 0) out.value[i] = 0;
      }
      return std::pair{std::move(out), std::move(nan)};
    };
    const auto [pa, nan_a] = parts(a);
    const auto [pb, nan_b] = parts(b);
    const std::vector<double> ones_a(nan_a.size(), 1.0), ones_b(nan_b.size(), 1.0);
    Entries out{product(pa.value, pb.value), product(a.unknown, pb.unknown)};
    const std::vector<double> right = product(pa.unknown, b.unknown);
    for (std::size_t i = 0; i < right.size(); ++i)
      out.unknown[i] = out.unknown[i] + right[i] != 0 ? 1 : 0;
    const auto any = [](const std::vector<double>& x) {
      return std::any_of(x.begin(), x.end(), [](double v) { return v != 0; });
    };
    if (any(nan_a) || any(nan_b)) {
      const std::vector<double> na = product(nan_a, ones_b), nb = product(ones_a, nan_b);
      for (std::size_t i = 0; i < na.size(); ++i)
        if (na[i] + nb[i] != 0) out.value[i] = kNan, out.unknown[i] = 0;
    }
    return out;
  }
  Entries visit(const Average&, const Node& node) const { return of(node.in[0]); }
  Entries visit(const ReduceSum& op, const Node& node) const { return sum(op, node); }
  Entries visit(const ScatterAdd& op, const Node& node) const { return sum(op, node); }
  Entries visit(const ReduceMax& op, const Node& node) const { return along_axis(op, node); }
  Entries visit(const LogSumExp& op, const Node& node) const { return along_axis(op, node); }
  template <class T>
  Entries along_axis(const T& op, const Node& node) const {
    Entries out = sum(ReduceSum{op.axis}, node);
    const std::vector<double> values = evaluated(op, node, {&entries_[node.in[0].value].value});
    for (std::size_t i = 0; i < values.size(); ++i)
      if (!std::isnan(out.value[i])) out.value[i] = values[i];
    return out;
  }
  Entries visit(const Gather& op, const Node& node) const { return linear(op, node); }
  Entries visit(const Permute& op, const Node& node) const { return linear(op, node); }
  Entries visit(const Reshape& op, const Node& node) const { return linear(op, node); }
  Entries visit(const Expand& op, const Node& node) const { return linear(op, node); }
  Entries visit(const Concat& op, const Node& node) const { return linear(op, node); }
  Entries visit(const Stop&, const Node& node) const { return of(node.in[0]); }
  Entries visit(const Parameter&, const Node& node) const { return of(node.in[0]); }
  Entries visit(const Change&, const Node& node) const { return of(node.in[0]); }
  /// W 0 = 0, and W x is NaN for a NaN.
  Entries visit(const MatMul&, const Node& node) const {
    Entries x = of(node.in[1]);
    for (std::size_t i = 0; i < x.value.size(); ++i)
      if (x.value[i] != 0 && !std::isnan(x.value[i])) x.unknown[i] = 1;
    return x;
  }
  /// Of whole matrices: a NaN in any entry spoils all.
  Entries whole(const Node& node) const {
    Entries out = nothing(node);
    for (const NodeId id : node.in) {
      const Entries& x = entries_[id.value];
      for (std::size_t i = 0; i < x.value.size(); ++i)
        if (x.known(i) && std::isnan(x.value[i]))
          return {std::vector<double>(out.value.size(), kNan),
                  std::vector<double>(out.value.size(), 0.0)};
    }
    return out;
  }
  Entries visit(const Cholesky&, const Node& node) const { return whole(node); }
  Entries visit(const Eigvals&, const Node& node) const {
    return node.type.dims.size() == 1 ? whole(node) : nothing(node);
  }
  Entries visit(const TrainingOperator&, const Node& node) const { return whole(node); }
  Entries visit(const Solve&, const Node& node) const {
    return node.type.dims.size() == 2 ? whole(node) : nothing(node);
  }
  Entries visit(const LogDet&, const Node& node) const {
    return node.type.dims.empty() ? whole(node) : nothing(node);
  }
  Entries visit(const Samples&, const Node& node) const { return nothing(node); }
  Entries visit(const Histogram&, const Node& node) const { return nothing(node); }
  Entries visit(const StandardNormal&, const Node& node) const { return nothing(node); }
  Entries visit(const GaussianMatrix&, const Node& node) const { return nothing(node); }
  Entries visit(const ScaleMatrix&, const Node& node) const { return nothing(node); }
  Entries visit(const UpdateMatrix&, const Node& node) const { return nothing(node); }
  Entries visit(const AddVersion&, const Node& node) const { return nothing(node); }
  Entries visit(const OuterSum&, const Node& node) const { return nothing(node); }
  Entries visit(const MatrixEntries&, const Node& node) const { return nothing(node); }
  Entries visit(const AddEntries&, const Node& node) const { return nothing(node); }
  Entries visit(const InnerProduct&, const Node& node) const { return nothing(node); }

  const Program& in_;
  std::vector<Entries> entries_;
  std::vector<NodeId> origin_;  ///< where the first NaN behind a value appeared
};

}  // namespace

std::optional<NodeId> certain_nan(const Program& program) { return KnownValues(program).run(); }

std::vector<std::vector<double>> known_entries(const Program& program) {
  return KnownValues(program).all_entries();
}

}  // namespace tplimit
