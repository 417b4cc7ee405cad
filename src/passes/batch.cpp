#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <unordered_set>

#include "tplimit/passes/batch.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

class Batch {
 public:
  Batch(Builder& b, std::int64_t size, const std::map<NodeId, NodeId>& inputs)
      : b_(b), size_(size), out_(inputs) {
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
  /// Axes of size 1 behind the batch axis, so that the others keep their places counted from the
  /// right.
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
    if (std::holds_alternative<Parameter>(node.op) || std::holds_alternative<Change>(node.op))
      out_[id] = in[0];  // its value is no longer that of the variable
    else
      out_[id] = any ? std::visit([&](const auto& op) { return make(op, node, in); }, node.op)
                     : b_.add(node.op, in);
  }

  // Operations that work on each finite index by itself, or on the last axes.
  NodeId make(const Scale& op, const Node&, const std::vector<NodeId>& in) {
    return b_.add(op, in);
  }
  NodeId make(const Average& op, const Node&, const std::vector<NodeId>& in) {
    return b_.add(op, in);
  }
  NodeId make(const Stop& op, const Node&, const std::vector<NodeId>& in) { return b_.add(op, in); }
  NodeId make(const MatMul& op, const Node&, const std::vector<NodeId>& in) {
    return b_.add(op, in);
  }
  NodeId make(const Eigvals& op, const Node&, const std::vector<NodeId>& in) {
    return b_.add(op, in);
  }
  NodeId make(const LogDet& op, const Node&, const std::vector<NodeId>& in) {
    return b_.add(op, in);
  }
  /// One matrix for all samples: their right sides stand side by side.
  NodeId make(const Solve& op, const Node& node, const std::vector<NodeId>& in) {
    if (batched_.at(node.in[0]) || node.type.dims.size() != 2)
      return b_.add(op, {lead(node.in[0]), lead(node.in[1])});
    const std::int64_t k = node.type.dims[0], m = node.type.dims[1];
    const NodeId columns = b_.reshape(b_.permute(in[1], {1, 0, 2}), {k, size_ * m});
    return b_.permute(b_.reshape(b_.add(op, {in[0], columns}), {k, size_, m}), {1, 0, 2});
  }
  NodeId make(const Samples& op, const Node&, const std::vector<NodeId>& in) {
    return b_.add(op, in);
  }
  NodeId make(const Histogram& op, const Node&, const std::vector<NodeId>& in) {
    return b_.add(op, in);
  }
  // Refused by `unbatchable`, or computed from nothing.
  NodeId make(const Constant& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const StandardNormal& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const GaussianMatrix& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const ScaleMatrix& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const UpdateMatrix& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const AddVersion& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const OuterSum& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const MatrixEntries& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const AddEntries& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const InnerProduct& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const Parameter& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId make(const Change& op, const Node&, const std::vector<NodeId>&) { return impossible(op); }
  NodeId make(const Cholesky& op, const Node&, const std::vector<NodeId>&) {
    return impossible(op);
  }
  NodeId impossible(const Op& op) {
    TPLIMIT_CHECK(false, "an operation that can be batched, got {}", op_name(op));
    return {};
  }
  /// Theta_x h(Theta), row by row of Theta_x: the rows of all samples one below the other.
  NodeId make(const TrainingOperator& op, const Node& node, const std::vector<NodeId>& in) {
    TPLIMIT_CHECK(!batched_.at(node.in[0]), "one kernel of training samples for all samples");
    const Dims dims = b_.type(in[1]).dims;  // [size, q, p]
    return b_.reshape(b_.add(op, {in[0], b_.reshape(in[1], {dims[0] * dims[1], dims[2]})}), dims);
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
  NodeId make(ReduceSum op, const Node&, const std::vector<NodeId>& in) {
    return ++op.axis, b_.add(op, in);
  }
  NodeId make(ReduceMax op, const Node&, const std::vector<NodeId>& in) {
    return ++op.axis, b_.add(op, in);
  }
  NodeId make(LogSumExp op, const Node&, const std::vector<NodeId>& in) {
    return ++op.axis, b_.add(op, in);
  }
  NodeId make(Gather op, const Node&, const std::vector<NodeId>& in) {
    return ++op.axis, b_.add(op, in);
  }
  NodeId make(ScatterAdd op, const Node&, const std::vector<NodeId>& in) {
    return ++op.axis, b_.add(op, in);
  }
  NodeId make(const Permute& op, const Node&, const std::vector<NodeId>& in) {
    std::vector<std::int32_t> axes{0};
    for (const auto a : op.axes) axes.push_back(a + 1);
    return b_.permute(in[0], axes);
  }
  NodeId make(const Reshape& op, const Node&, const std::vector<NodeId>& in) {
    return b_.reshape(in[0], in_front(op.dims));
  }
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

std::vector<NodeId> batched(Builder& builder, const std::vector<NodeId>& outputs, std::int64_t size,
                            const std::map<NodeId, NodeId>& inputs) {
  TPLIMIT_CHECK(size > 0, "a batch has samples");
  Batch batch(builder, size, inputs);
  std::vector<NodeId> out;
  for (const NodeId id : outputs) out.push_back(batch(id));
  return out;
}

std::vector<NodeId> substituted(Builder& builder, const std::vector<NodeId>& outputs,
                                const std::map<NodeId, NodeId>& inputs) {
  Batch same(builder, 0, inputs);
  std::vector<NodeId> out;
  for (const NodeId id : outputs) out.push_back(same(id));
  return out;
}

NodeId substituted(Builder& builder, NodeId output, const std::map<NodeId, NodeId>& inputs) {
  return substituted(builder, std::vector{output}, inputs)[0];
}

namespace {

/// Which axis of a value holds one entry for each row of an input.
class RowAxis {
 public:
  static constexpr int kNone = -1;   ///< does not depend on the input
  static constexpr int kMixed = -2;  ///< entries depend on several rows
  RowAxis(const Builder& b, NodeId input, NodeId output)
      : b_(b), axis_(std::max(input, output).value + 1, kNone) {
    axis_[input.value] = 0;
    for (std::uint32_t k = input.value + 1; k < axis_.size(); ++k) {
      const Node& node = b.node({k});
      const auto of = [&](NodeId in) { return axis_[in.value]; };
      if (std::all_of(node.in.begin(), node.in.end(), [&](NodeId in) { return of(in) == kNone; }))
        continue;
      const bool mixed =
          node.type.matrix ||
          std::any_of(node.in.begin(), node.in.end(), [&](NodeId in) { return of(in) == kMixed; });
      axis_[k] =
          mixed ? kMixed : std::visit([&](const auto& op) { return follow(op, node); }, node.op);
    }
  }
  [[nodiscard]] int of(NodeId id) const { return axis_[id.value]; }

 private:
  [[nodiscard]] int in(const Node& node, std::size_t k) const { return axis_[node.in[k].value]; }
  [[nodiscard]] int rank(NodeId id) const { return static_cast<int>(b_.type(id).dims.size()); }
  /// The axis that an operand's axis becomes where finite axes align from the right.
  [[nodiscard]] int aligned(const Node& node, std::size_t k) const {
    return in(node, k) == kNone
               ? kNone
               : in(node, k) + static_cast<int>(node.type.dims.size()) - rank(node.in[k]);
  }
  [[nodiscard]] static int agreed(int a, int b) {
    return a == kNone || a == b ? b : b == kNone ? a : kMixed;
  }

  // Each entry by itself, or along other axes.
  [[nodiscard]] int follow(const Scale&, const Node& node) const { return in(node, 0); }
  [[nodiscard]] int follow(const Average&, const Node& node) const { return in(node, 0); }
  [[nodiscard]] int follow(const Stop&, const Node& node) const { return in(node, 0); }
  [[nodiscard]] int follow(const Parameter&, const Node& node) const { return in(node, 0); }
  [[nodiscard]] int follow(const Change&, const Node& node) const { return in(node, 0); }
  [[nodiscard]] int follow(const Samples&, const Node& node) const { return in(node, 0); }
  [[nodiscard]] int follow(const Histogram&, const Node& node) const { return in(node, 0); }
  // The matrix does not depend on it.
  [[nodiscard]] int follow(const MatMul&, const Node& node) const { return in(node, 1); }
  [[nodiscard]] int follow(const Expand&, const Node& node) const { return aligned(node, 0); }
  [[nodiscard]] int follow(const Map&, const Node& node) const {
    int out = kNone;
    for (std::size_t k = 0; k < node.in.size(); ++k) out = agreed(out, aligned(node, k));
    return out;
  }
  // Sources are not reached: nothing they are computed from has the axis.
  [[nodiscard]] int follow(const Constant&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const StandardNormal&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const GaussianMatrix&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const ScaleMatrix&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const UpdateMatrix&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const AddVersion&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const OuterSum&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const MatrixEntries&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const AddEntries&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const InnerProduct&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const Cholesky&, const Node&) const { return kMixed; }
  [[nodiscard]] int follow(const Contract& op, const Node& node) const {
    const int a = in(node, 0), b = in(node, 1), left = rank(node.in[0]) - op.contracted,
              right = rank(node.in[1]) - op.contracted;
    if (a >= left || b >= right) return kMixed;  // summed over
    if (a < op.batch && b < op.batch) return agreed(a, b);
    if (a != kNone && b != kNone) return kMixed;
    return a != kNone ? a : b < op.batch ? b : b - op.batch + left;
  }
  [[nodiscard]] int reduced(int axis, const Node& node) const {
    return in(node, 0) == axis ? kMixed : in(node, 0) - (axis < in(node, 0) ? 1 : 0);
  }
  [[nodiscard]] int follow(const ReduceSum& op, const Node& node) const {
    return reduced(op.axis, node);
  }
  [[nodiscard]] int follow(const ReduceMax& op, const Node& node) const {
    return reduced(op.axis, node);
  }
  [[nodiscard]] int follow(const LogSumExp& op, const Node& node) const {
    return reduced(op.axis, node);
  }
  [[nodiscard]] int follow(const Gather& op, const Node& node) const {
    return in(node, 0) == op.axis ? kMixed : in(node, 0);
  }
  [[nodiscard]] int follow(const ScatterAdd& op, const Node& node) const {
    return in(node, 0) == op.axis ? kMixed : in(node, 0);
  }
  [[nodiscard]] int follow(const Permute& op, const Node& node) const {
    return static_cast<int>(std::find(op.axes.begin(), op.axes.end(), in(node, 0)) -
                            op.axes.begin());
  }
  [[nodiscard]] int follow(const Reshape&, const Node& node) const {
    const Dims &from = b_.type(node.in[0]).dims, &to = node.type.dims;
    std::int64_t before = 1, now = 1;
    for (int k = 0; k < in(node, 0); ++k) before *= from[static_cast<std::size_t>(k)];
    for (std::size_t k = 0; k < to.size(); now *= to[k++])
      if (now == before && to[k] == from[static_cast<std::size_t>(in(node, 0))])
        return static_cast<int>(k);
    return kMixed;
  }
  [[nodiscard]] int follow(const Concat& op, const Node& node) const {
    int out = kNone;
    for (std::size_t k = 0; k < node.in.size(); ++k) out = agreed(out, in(node, k));
    return out == op.axis ? kMixed : out;
  }
  [[nodiscard]] int follow(const Eigvals&, const Node& node) const {
    return in(node, 0) < rank(node.in[0]) - 2 ? in(node, 0) : kMixed;
  }
  [[nodiscard]] int follow(const LogDet&, const Node& node) const {
    return in(node, 0) < rank(node.in[0]) - 2 ? in(node, 0) : kMixed;
  }
  [[nodiscard]] int follow(const Solve&, const Node& node) const {
    const int a = in(node, 0), y = in(node, 1), batch = rank(node.in[0]) - 2;
    if (a >= batch || y == batch) return kMixed;
    return agreed(a, y);
  }
  [[nodiscard]] int follow(const TrainingOperator&, const Node& node) const {
    return in(node, 0) == kNone && in(node, 1) == 0 ? 0 : kMixed;
  }

  const Builder& b_;
  std::vector<int> axis_;
};

}  // namespace

bool mixes_rows(const Builder& builder, NodeId output, NodeId input) {
  if (builder.type(input).dims.at(0) == 1) return false;
  const int axis = RowAxis(builder, input, output).of(output);
  return axis != RowAxis::kNone && axis != 0;
}

std::optional<Diagnostic> unbatchable(const Builder& builder, const std::vector<NodeId>& outputs,
                                      const std::vector<NodeId>& inputs) {
  std::vector<NodeId> stack = outputs;
  std::set<NodeId> behind;
  while (!stack.empty()) {
    const NodeId id = stack.back();
    stack.pop_back();
    if (!behind.insert(id).second) continue;
    const auto& in = builder.node(id).in;
    stack.insert(stack.end(), in.begin(), in.end());
  }
  std::set<NodeId> moving(inputs.begin(), inputs.end());
  for (const NodeId id : behind) {  // ascending: operands come first
    const Node& node = builder.node(id);
    const auto moves = [&](NodeId in) { return moving.contains(in); };
    if (moves(id) || std::none_of(node.in.begin(), node.in.end(), moves)) continue;
    moving.insert(id);
    const bool kernel = std::holds_alternative<TrainingOperator>(node.op) && moves(node.in[0]);
    if (!kernel && !node.type.matrix && !std::holds_alternative<Cholesky>(node.op)) continue;
    return Diagnostic::error("E2134", "a model cannot be evaluated for many samples here")
        .at(node.span)
        .with_label(kernel ? "the kernel of the training samples depends on the sample"
                           : "a matrix depends on the sample")
        .with_help(kernel ? "predict_gd(Theta, Theta_x, y) may depend on the sample through Theta_x"
                          : "update matrices outside the model");
  }
  return std::nullopt;
}

bool depends_on(const Builder& builder, std::vector<NodeId> outputs,
                const std::vector<NodeId>& inputs) {
  if (inputs.empty()) return false;
  const std::set<NodeId> ends(inputs.begin(), inputs.end());
  std::unordered_set<std::uint32_t> seen;
  while (!outputs.empty()) {
    const NodeId id = outputs.back();
    outputs.pop_back();
    // Operands stand before what is computed from them.
    if (id < *ends.begin() || !seen.insert(id.value).second) continue;
    if (ends.contains(id)) return true;
    const auto& in = builder.node(id).in;
    outputs.insert(outputs.end(), in.begin(), in.end());
  }
  return false;
}

}  // namespace tplimit
