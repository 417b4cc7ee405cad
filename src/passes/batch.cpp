#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "tplimit/passes/batch.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

class Batch {
 public:
  Batch(Builder& b, std::int64_t size, const std::map<NodeId, NodeId>& inputs) : b_(b), size_(size), out_(inputs) {
    for (const auto& [from, to] : inputs) batched_.emplace(from, size > 0);
  }

  NodeId operator()(NodeId root) {
    std::vector<NodeId> stack{root};
    while (!stack.empty()) {
      const NodeId id = stack.back();
      bool ready = true;
      if (!out_.contains(id))
        for (const NodeId in : b_.node(id).in)
          if (!out_.contains(in)) {
            stack.push_back(in);
            ready = false;
          }
      if (!ready) continue;
      stack.pop_back();
      if (!out_.contains(id)) rebuild(id);
    }
    return lead(root);
  }

 private:
  /// The new node with the batch axis in front, whether it depends on the inputs or not.
  NodeId lead(NodeId old) {
    const NodeId x = out_.at(old);
    if (size_ == 0 || batched_.at(old)) return x;
    return b_.expand(x, b_.type(x).width, in_front(b_.type(x).dims));
  }
  [[nodiscard]] Dims in_front(Dims dims) const {
    dims.insert(dims.begin(), size_);
    return dims;
  }
  /// Axes of size 1 behind the batch axis, so that the others keep their places counted from the right.
  NodeId aligned(NodeId old, std::size_t rank) {
    const NodeId x = out_.at(old);
    Dims dims = b_.type(x).dims;
    if (!batched_.at(old) || dims.size() == rank + 1) return x;
    dims.insert(dims.begin() + 1, rank + 1 - dims.size(), 1);
    return b_.reshape(x, dims);
  }

  void rebuild(NodeId id) {
    const Node node = b_.node(id);  // a copy: the program grows below
    bool any = false, changed = false;
    for (const NodeId in : node.in) {
      any = any || batched_.at(in);
      changed = changed || out_.at(in) != in;
    }
    batched_[id] = any;
    if (!changed) {
      out_[id] = id;
      return;
    }
    b_.set_origin(node.span, node.context);
    std::vector<NodeId> in;
    for (const NodeId k : node.in) in.push_back(out_.at(k));
    if (std::holds_alternative<Parameter>(node.op) || std::holds_alternative<Change>(node.op)) out_[id] = in[0];  // its value is no longer that of the variable
    else out_[id] = any ? std::visit([&](const auto& op) { return make(op, node, in); }, node.op) : b_.add(node.op, in);
  }

  // Operations that work on each finite index by itself, or on the last axes.
  template <class Op>
  NodeId make(const Op& op, const Node& node, const std::vector<NodeId>& in) {
    TPLIMIT_CHECK(!node.type.matrix, "a matrix version per sample is refused before");
    return b_.add(op, in);
  }
  NodeId make(const Map& op, const Node& node, std::vector<NodeId> in) {
    for (std::size_t k = 0; k < in.size(); ++k) in[k] = aligned(node.in[k], node.type.dims.size());
    return b_.add(op, in);
  }
  NodeId make(const Contract& op, const Node& node, const std::vector<NodeId>& in) {
    const bool left = batched_.at(node.in[0]), right = batched_.at(node.in[1]);
    if (op.batch == 0 && left != right) {
      const NodeId out = b_.add(op, in);
      if (left) return out;
      std::vector<std::int32_t> axes(node.type.dims.size() + 1);  // [I, P, J] -> [P, I, J]
      std::iota(axes.begin(), axes.end(), 0);
      const auto own = static_cast<std::ptrdiff_t>(b_.type(node.in[0]).dims.size()) - op.contracted;
      std::rotate(axes.begin(), axes.begin() + own, axes.begin() + own + 1);
      return b_.permute(out, axes);
    }
    return b_.contract(lead(node.in[0]), lead(node.in[1]), op.batch + 1, op.contracted, op.average);
  }
  NodeId make(ReduceSum op, const Node&, const std::vector<NodeId>& in) { return ++op.axis, b_.add(op, in); }
  NodeId make(ReduceMax op, const Node&, const std::vector<NodeId>& in) { return ++op.axis, b_.add(op, in); }
  NodeId make(Gather op, const Node&, const std::vector<NodeId>& in) { return ++op.axis, b_.add(op, in); }
  NodeId make(ScatterAdd op, const Node&, const std::vector<NodeId>& in) { return ++op.axis, b_.add(op, in); }
  NodeId make(const Permute& op, const Node&, const std::vector<NodeId>& in) {
    std::vector<std::int32_t> axes{0};
    for (const auto a : op.axes) axes.push_back(a + 1);
    return b_.permute(in[0], axes);
  }
  NodeId make(const Reshape& op, const Node&, const std::vector<NodeId>& in) { return b_.reshape(in[0], in_front(op.dims)); }
  NodeId make(const Expand& op, const Node& node, const std::vector<NodeId>&) {
    return b_.expand(aligned(node.in[0], op.dims.size()), op.width, in_front(op.dims));
  }
  NodeId make(Concat op, const Node& node, std::vector<NodeId> in) {
    for (std::size_t k = 0; k < in.size(); ++k) in[k] = lead(node.in[k]);
    return ++op.axis, b_.add(op, in);
  }

  Builder& b_;
  std::int64_t size_;
  std::map<NodeId, NodeId> out_;
  std::map<NodeId, bool> batched_;
};

}  // namespace

std::vector<NodeId> batched(Builder& builder, const std::vector<NodeId>& outputs, std::int64_t size, const std::map<NodeId, NodeId>& inputs) {
  TPLIMIT_CHECK(size > 0, "a batch has samples");
  Batch batch(builder, size, inputs);
  std::vector<NodeId> out;
  for (const NodeId id : outputs) out.push_back(batch(id));
  return out;
}

std::vector<NodeId> substituted(Builder& builder, const std::vector<NodeId>& outputs, const std::map<NodeId, NodeId>& inputs) {
  Batch same(builder, 0, inputs);
  std::vector<NodeId> out;
  for (const NodeId id : outputs) out.push_back(same(id));
  return out;
}

NodeId substituted(Builder& builder, NodeId output, const std::map<NodeId, NodeId>& inputs) { return substituted(builder, std::vector{output}, inputs)[0]; }

bool depends_on(const Builder& builder, NodeId output, const std::vector<NodeId>& inputs) {
  std::vector<NodeId> stack{output};
  std::set<NodeId> seen;
  while (!stack.empty()) {
    const NodeId id = stack.back();
    stack.pop_back();
    if (!seen.insert(id).second) continue;
    if (std::find(inputs.begin(), inputs.end(), id) != inputs.end()) return true;
    const auto& in = builder.node(id).in;
    stack.insert(stack.end(), in.begin(), in.end());
  }
  return false;
}

}  // namespace tplimit
