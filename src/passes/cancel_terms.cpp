#include <algorithm>
#include <cmath>
#include <map>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit {

using namespace ir;

namespace {

/// Terms of a sum that is looked into.
std::size_t most_terms(const Type& type) { return type.width ? 8 : 4096; }

/// sum_k c_k n^p_k x_k, each broadcast, plus constants times powers of n.
struct Terms {
  std::map<std::pair<NodeId, Exponent>, double> of;
  std::map<Exponent, NodeId> constant;
  bool cancelled = false;
  [[nodiscard]] std::size_t size() const { return of.size() + constant.size(); }
};

class Cancellation {
 public:
  std::optional<NodeId> operator()(Builder& b, const Node& node, const std::vector<NodeId>& in) {
    const auto* m = std::get_if<Map>(&node.op);
    if (!m || in.size() > 2) return std::nullopt;
    const auto expanded = [&](NodeId x) { return b.expand(x, node.type.width, node.type.dims); };
    // Without a width axis what has none: engines find out whether numbers lie on a jump.
    const auto shaped = [&](NodeId x) { return b.expand(x, b.type(x).width, node.type.dims); };
    if (in.size() == 1) {
      if ((m->fn != Fn::kStep && m->fn != Fn::kSign) ||
          !std::holds_alternative<Expand>(b.node(in[0]).op))
        return std::nullopt;
      return expanded(b.map(m->fn, {shaped(b.node(in[0]).in[0])}));
    }
    switch (m->fn) {
      case Fn::kAdd:
      case Fn::kSub: {
        const Terms sum = joined(b, in[0], in[1], m->fn == Fn::kAdd ? 1 : -1);
        if (!sum.cancelled) return std::nullopt;
        const NodeId out = expanded(written(b, sum));
        terms_.emplace(out, sum);
        return out;
      }
      case Fn::kLess:
      case Fn::kLessEqual:
      case Fn::kEqual:
      case Fn::kNotEqual: {
        const Terms difference = joined(b, in[0], in[1], -1);
        if (!difference.cancelled) return std::nullopt;
        return expanded(b.map(m->fn, {shaped(written(b, difference)), b.constant(0)}));
      }
      case Fn::kMin:
      case Fn::kMax: {  // max(x, y) = y + relu(x - y)
        const Terms difference = joined(b, in[0], in[1], -1);
        if (!difference.cancelled) return std::nullopt;
        const NodeId rest = b.map(Fn::kRelu, {shaped(written(b, difference))});
        return expanded(m->fn == Fn::kMax ? b.plus(in[1], rest) : b.minus(in[0], rest));
      }
      case Fn::kMod: {
        Terms x = terms(b, in[0]);
        const auto* y = b.constant_values(in[1]);
        const auto whole = x.constant.find(Exponent(0));
        if (!y || y->size() != 1 || whole == x.constant.end() || x.size() < 2) return std::nullopt;
        const auto& c = *b.constant_values(whole->second);
        if (std::any_of(c.begin(), c.end(),
                        [&](double v) { return v != std::round(v / (*y)[0]) * (*y)[0]; }))
          return std::nullopt;
        x.constant.erase(whole);
        return expanded(b.map(Fn::kMod, {shaped(written(b, x)), in[1]}));
      }
      default: return std::nullopt;
    }
  }

 private:
  static void add(Builder& b, Terms& to, const Terms& x, double factor, Exponent power) {
    for (const auto& [key, c] : x.of) {
      double& own = to.of[{key.first, key.second + power}];
      const double before = std::abs(own) + std::abs(c * factor);
      own += c * factor;
      if (std::abs(own) > 1e-14 * before) continue;
      to.of.erase({key.first, key.second + power});
      to.cancelled = true;
    }
    for (const auto& [p, constant] : x.constant) {
      const NodeId scaled = b.scale(factor, 0, constant);
      const auto [it, fresh] = to.constant.try_emplace(p + power, scaled);
      if (fresh) continue;
      it->second = b.plus(it->second, scaled);
      if (!b.is_zero(it->second)) continue;
      to.constant.erase(it);
      to.cancelled = true;
    }
  }
  Terms joined(Builder& b, NodeId x, NodeId y, double sign) {
    Terms out = terms(b, x);
    out.cancelled = false;
    add(b, out, terms(b, y), sign, 0);
    return out;
  }
  Terms terms(Builder& b, NodeId id) {
    if (const auto it = terms_.find(id); it != terms_.end()) return it->second;
    Terms out = found(b, id);
    if (out.size() > most_terms(b.type(id))) {
      out = {};
      out.of[{id, 0}] = 1;
    }
    terms_.emplace(id, out);
    return out;
  }
  Terms found(Builder& b, NodeId id) {
    const Node node = b.node(id);  // a copy: the program grows below
    Terms out;
    const auto from = [&](std::size_t k, double factor, Exponent power = 0) {
      add(b, out, terms(b, node.in[k]), factor, power);
    };
    if (b.constant_values(id)) {
      if (!b.is_zero(id)) out.constant[0] = id;
      return out;
    }
    if (const auto* s = std::get_if<Scale>(&node.op)) {
      from(0, s->factor, s->power);
      return out;
    }
    if (std::holds_alternative<Expand>(node.op)) {
      from(0, 1);
      return out;
    }
    if (const auto* m = std::get_if<Map>(&node.op)) {
      if (m->fn == Fn::kAdd || m->fn == Fn::kSub) {
        // The longer of two long operands stays as it is.
        const std::size_t most = terms(b, node.in[0]).size(), other = terms(b, node.in[1]).size(),
                          longer = most < other ? 1 : 0;
        for (const std::size_t k : {0u, 1u}) {
          const double sign = k == 1 && m->fn == Fn::kSub ? -1 : 1;
          if (k == longer && most + other > most_terms(node.type))
            out.of[{node.in[k], 0}] += sign;
          else
            from(k, sign);
        }
        return out;
      }
      if (m->fn == Fn::kDiv)
        if (const auto* c = b.constant_values(node.in[1]); c && c->size() == 1 && (*c)[0] != 0) {
          from(0, 1 / (*c)[0]);
          return out;
        }
    }
    const bool rows = std::holds_alternative<Gather>(node.op) ||
                      std::holds_alternative<Reshape>(node.op) ||
                      std::holds_alternative<Permute>(node.op);
    if (rows || std::holds_alternative<MatMul>(node.op)) {
      const std::size_t k = rows ? 0 : 1;
      const Terms inner = terms(b, node.in[k]);
      const Type type = b.type(node.in[k]);
      if (inner.size() > 1) {
        const auto image = [&](NodeId x) {
          std::vector<NodeId> in = node.in;
          in[k] = b.expand(x, type.width, type.dims);
          return b.add(node.op, std::move(in));
        };
        for (const auto& [key, c] : inner.of) out.of[{image(key.first), key.second}] += c;
        for (const auto& [p, constant] : inner.constant) {
          const NodeId x = image(constant);
          if (b.constant_values(x))
            out.constant[p] = x;
          else
            out.of[{x, p}] += 1;
        }
        return out;
      }
    }
    out.of[{id, 0}] = 1;
    return out;
  }
  /// The largest power first.
  static NodeId written(Builder& b, const Terms& terms) {
    std::map<Exponent, NodeId> sums;
    const auto plus = [&](Exponent power, NodeId x) {
      const auto [it, fresh] = sums.try_emplace(power, x);
      if (!fresh) it->second = b.plus(it->second, x);
    };
    for (const auto& [key, c] : terms.of) plus(key.second, b.scale(c, 0, key.first));
    for (const auto& [power, constant] : terms.constant) plus(power, constant);
    NodeId out;
    for (auto it = sums.rbegin(); it != sums.rend(); ++it) {
      const NodeId x = b.scale(1, it->first, it->second);
      out = out.valid() ? b.plus(out, x) : x;
    }
    return out.valid() ? out : b.constant(0);
  }

  std::map<NodeId, Terms> terms_;  ///< of nodes of the new program
};

}  // namespace

Program cancel_terms(const Program& program) {
  const bool any = std::any_of(program.nodes.begin(), program.nodes.end(), [](const Node& node) {
    const auto* m = std::get_if<Map>(&node.op);
    return is_jump(node) || std::holds_alternative<InnerProduct>(node.op) ||
           (m && (m->fn == Fn::kAbs || m->fn == Fn::kDiv));
  });
  if (!any) return program;
  return erase_identities(rebuilt(
      program, Keep::kOutputs,
      [own = Cancellation()](Builder& b, const Node& node, const std::vector<NodeId>& in) mutable {
        return own(b, node, in);
      }));
}

}  // namespace tplimit
