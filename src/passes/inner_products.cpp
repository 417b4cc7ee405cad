#include "tplimit/passes/inner_products.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

/// top + rest / n; invalid: 0.
struct Parts {
  NodeId top, rest;
};

class Expansion {
 public:
  explicit Expansion(Builder& b) : b_(b) {}

  NodeId operator()(NodeId a, NodeId b) {
    const Parts parts = product(a, b);
    const NodeId rest = parts.rest.valid() ? b_.scale(1, -1, parts.rest) : b_.constant(0);
    return parts.top.valid() ? b_.plus(parts.top, rest) : rest;
  }

 private:
  /// A matrix of entries A / n by itself, as a version of the matrix that it is added to.
  struct Entries {
    NodeId entries;
    NodeId matrix;
  };

  [[nodiscard]] bool is_atom(NodeId id) const {
    return std::holds_alternative<GaussianMatrix>(b_.node(id).op) || alone_.contains(id);
  }

  Parts product(NodeId a, NodeId b) {
    // The later version is the one that is taken apart.
    if (is_atom(b) || (!is_atom(a) && b < a)) std::swap(a, b);
    const auto known = known_.find({a, b});
    if (known != known_.end()) return known->second;
    const Parts out = is_atom(b) ? atoms(a, b) : taken_apart(a, b);
    known_.emplace(std::pair(a, b), out);
    return out;
  }

  Parts atoms(NodeId a, NodeId b) {
    if (b < a) std::swap(a, b);
    const auto left = alone_.find(a), right = alone_.find(b);
    if (left == alone_.end() || right == alone_.end()) return {b_.add(InnerProduct{}, {a, b}), {}};
    // The mean of the products of all entries, by a product with 1.
    const NodeId both = b_.times(left->second.entries, right->second.entries);
    return {{},
            b_.average(b_.matmul(alone(right->second.matrix, both),
                                 b_.expand(b_.constant(1), true, {}), false))};
  }

  Parts taken_apart(NodeId a, NodeId b) {
    const Node node = b_.node(b);  // a copy: the program grows
    return visit_version(
        node.op, overloaded{
                     [&](const GaussianMatrix&) { return Parts{}; },  // an atom
                     [&](const Parameter&) { return product(a, node.in[0]); },
                     [&](const Stop&) { return product(a, node.in[0]); },
                     [&](const ScaleMatrix&) { return times(node.in[1], product(a, node.in[0])); },
                     [&](const UpdateMatrix&) {
                       Parts out = product(a, node.in[0]);
                       for (std::size_t k = 1; k < node.in.size(); k += 3) {
                         const NodeId image = b_.matmul(a, node.in[k + 2], false);
                         NodeId mean = b_.average(b_.times(node.in[k + 1], image));
                         while (!b_.type(mean).dims.empty()) mean = b_.sum(mean, 0);
                         out = plus(out, {{}, b_.times(node.in[k], mean)});
                       }
                       return out;
                     },
                     [&](const AddVersion&) {
                       return plus(product(a, node.in[0]),
                                   times(node.in[1], product(a, node.in[2])));
                     },
                     [&](const AddEntries&) {
                       return plus(product(a, node.in[0]),
                                   times(node.in[1], product(a, alone(node.in[0], node.in[2]))));
                     },
                 });
  }

  NodeId alone(NodeId matrix, NodeId entries) {
    const NodeId nothing = b_.add(ScaleMatrix{}, {gaussian(matrix), b_.constant(0)});
    const NodeId out = b_.add(AddEntries{}, {nothing, b_.constant(1), entries});
    alone_.emplace(out, Entries{entries, matrix});
    return out;
  }
  [[nodiscard]] NodeId gaussian(NodeId matrix) const {
    while (!std::holds_alternative<GaussianMatrix>(b_.node(matrix).op))
      matrix = b_.node(matrix).in[0];
    return matrix;
  }

  Parts plus(const Parts& x, const Parts& y) {
    const auto sum = [&](NodeId a, NodeId b) {
      return a.valid() && b.valid() ? b_.plus(a, b) : a.valid() ? a : b;
    };
    return {sum(x.top, y.top), sum(x.rest, y.rest)};
  }
  /// Of 1 - decay / n, what is divided by n belongs to the rest.
  Parts times(NodeId c, const Parts& x) {
    const auto multiple = [&](NodeId factor, NodeId a) {
      return a.valid() && factor.valid() ? b_.times(factor, a) : NodeId{};
    };
    const Parts factor = apart(c);
    return plus({multiple(factor.top, x.top), multiple(factor.rest, x.top)},
                {{}, multiple(c, x.rest)});
  }
  Parts apart(NodeId c) {
    const Node node = b_.node(c);  // a copy: the program grows
    if (const auto* s = std::get_if<Scale>(&node.op); s && s->power <= -1)
      return {{}, b_.scale(s->factor, s->power + 1, node.in[0])};
    if (const auto* m = std::get_if<Map>(&node.op); m && m->fn == Fn::kAdd)
      return plus(apart(node.in[0]), apart(node.in[1]));
    return {c, {}};
  }

  Builder& b_;
  std::map<std::pair<NodeId, NodeId>, Parts> known_;
  std::map<NodeId, Entries> alone_;
};

}  // namespace

Program expand_inner_products(const Program& program) {
  if (std::none_of(program.nodes.begin(), program.nodes.end(),
                   [](const Node& node) { return std::holds_alternative<InnerProduct>(node.op); }))
    return program;
  std::optional<Expansion> expansion;
  return rebuilt(
      program, Keep::kAll,
      [&](Builder& b, const Node& node, const std::vector<NodeId>& in) -> std::optional<NodeId> {
        if (!std::holds_alternative<InnerProduct>(node.op)) return std::nullopt;
        if (!expansion) expansion.emplace(b);
        return (*expansion)(in[0], in[1]);
      });
}

}  // namespace tplimit
