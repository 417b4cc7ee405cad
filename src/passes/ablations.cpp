#include "tplimit/passes/ablations.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "tplimit/passes/gradient.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

std::string to_string(const Ablations& a) {
  std::vector<std::string> parts;
  if (a.no_correction) parts.emplace_back("no correction terms");
  else if (!a.decouple.empty()) parts.push_back(fmt::format("{} decoupled", fmt::join(a.decouple, ", ")));
  if (a.lazy) parts.emplace_back("lazy training");
  return fmt::format("{}", fmt::join(parts, ", "));
}

namespace {

/// Appends a changed copy of a program, node by node; reports, names and the like follow.
class Rewriting {
 protected:
  explicit Rewriting(const Program& program) : in_(program), b_(out_) {
    out_.sources = program.sources;
    out_.contexts = program.contexts;
    out_.width_name = program.width_name;
    out_.width_units = program.width_units;
    out_.has_random_scalars = program.has_random_scalars;
    out_.variables = program.variables;
    map_.resize(program.size());
  }
  NodeId copy(const Node& node, std::vector<NodeId> in) {
    if (const auto* c = std::get_if<Constant>(&node.op)) return b_.constant(*c->values, node.type.dims);
    return b_.add(node.op, std::move(in));
  }
  Program finish() {
    const auto of = [&](NodeId id) { return map_[id.value]; };
    for (Report report : in_.reports) {
      for (auto& entry : report.entries) entry.value = of(entry.value);
      out_.reports.push_back(std::move(report));
    }
    for (Expectation e : in_.expectations) {
      e.left = of(e.left);
      e.right = of(e.right);
      e.difference = b_.minus(e.left, e.right);
      out_.expectations.push_back(e);
    }
    for (const auto& [from, to] : {std::pair{&in_.names, &out_.names}, std::pair{&in_.predictions, &out_.predictions}})
      for (NamedValue value : *from) {
        value.value = of(value.value);
        if (value.of.valid()) value.of = of(value.of);
        to->push_back(std::move(value));
      }
    for (TrainingStep step : in_.steps) {
      for (NodeId& loss : step.losses) loss = of(loss);
      out_.steps.push_back(std::move(step));
    }
    return std::move(out_);
  }

  const Program& in_;
  Program out_;
  Builder b_;
  std::vector<NodeId> map_;
};

class Decoupling : Rewriting {
 public:
  Decoupling(const Program& program, std::set<std::uint32_t> sources) : Rewriting(program) {
    std::map<std::uint32_t, SourceId> copy_of;
    for (const std::uint32_t s : sources) {
      copy_of[s] = {static_cast<std::uint32_t>(out_.sources.size())};
      GaussianSource own = program.sources[s];
      own.name += "~";
      out_.sources.push_back(std::move(own));
    }
    std::map<NodeId, NodeId> copies;  // of matrix versions
    for (std::uint32_t k = 0; k < program.size(); ++k) {
      const Node& node = program.nodes[k];
      b_.set_origin(node.span, node.context);
      std::vector<NodeId> in;
      for (const NodeId id : node.in) in.push_back(map_[id.value]);
      const auto* product = std::get_if<MatMul>(&node.op);
      if (product && product->transposed)
        if (const auto it = copies.find(node.in[0]); it != copies.end()) in[0] = it->second;
      if (const auto* g = std::get_if<GaussianMatrix>(&node.op); g && copy_of.contains(g->source.value)) {
        copies[{k}] = b_.add(GaussianMatrix{copy_of.at(g->source.value)}, {});
      } else if (node.type.matrix && !node.in.empty()) {
        if (const auto it = copies.find(node.in[0]); it != copies.end()) {
          std::vector<NodeId> same = in;
          same[0] = it->second;
          Op op = node.op;
          // A copy is a variable of its own.
          if (auto* p = std::get_if<Parameter>(&op)) p->index += 1u << 30;
          copies[{k}] = b_.add(std::move(op), std::move(same));
        }
      }
      map_[k] = copy(node, std::move(in));
    }
  }
  Program run() { return finish(); }
};

/// Values as (at theta_0, tangent): x_t = x + dx to first order in theta_t - theta_0.
class Linearisation : Rewriting {
 public:
  explicit Linearisation(const Program& program) : Rewriting(program) {}

  Result<Program> run() {
    if (in_.predictions.empty())
      return Diagnostic{Severity::kError, "E2149", "lazy training needs to know the output of the network", {}, "", "it is the first argument of mse: train with mse(f, y)", {}, false};
    find_predictions();
    tangent_.resize(in_.size());
    for (std::uint32_t k = 0; k < in_.size(); ++k) {
      const Node& node = in_.nodes[k];
      b_.set_origin(node.span, node.context);
      if (node.type.matrix) matrix(k, node);
      else value(k, node);
      if (error_) return *error_;
    }
    return finish();
  }

 private:
  /// The same expressions elsewhere, such as the output on test samples, are outputs too.
  void find_predictions() {
    std::set<std::pair<std::uint32_t, std::uint32_t>> spans;
    for (const NamedValue& p : in_.predictions) spans.emplace(in_[p.value].span.begin, in_[p.value].span.end);
    prediction_.assign(in_.size(), false);
    forward_.assign(in_.size(), false);
    std::vector<NodeId> stack;
    std::vector<bool> used_by_same(in_.size(), false);  // parts of one expression: the last node is its value
    for (const Node& node : in_.nodes)
      for (const NodeId in : node.in)
        if (in_[in].span == node.span) used_by_same[in.value] = true;
    std::set<NodeId> exact;
    for (const NamedValue& p : in_.predictions) exact.insert(p.value);
    for (std::uint32_t k = 0; k < in_.size(); ++k)
      if (exact.contains({k}) || (!in_.nodes[k].type.width && !in_.nodes[k].type.matrix && !used_by_same[k] && spans.contains({in_.nodes[k].span.begin, in_.nodes[k].span.end}))) {
        prediction_[k] = true;
        stack.push_back({k});
      }
    while (!stack.empty()) {
      const NodeId id = stack.back();
      stack.pop_back();
      if (forward_[id.value]) continue;
      forward_[id.value] = true;
      // What lies behind an update belongs to training, not to the network.
      if (std::holds_alternative<Change>(in_[id].op) || std::holds_alternative<UpdateMatrix>(in_[id].op)) continue;
      for (const NodeId in : in_[id].in) stack.push_back(in);
    }
  }

  void matrix(std::uint32_t k, const Node& node) {
    std::vector<NodeId> in;
    for (const NodeId id : node.in) in.push_back(map_[id.value]);
    const bool trained = !node.in.empty() && started_.contains(node.in[0]);
    if (std::holds_alternative<Parameter>(node.op) || trained) started_.insert({k});
    if (!trained) {
      map_[k] = copy(node, std::move(in));
      return;
    }
    if (std::holds_alternative<Parameter>(node.op)) {  // a version that the script assigned
      map_[k] = in[0];
      tangent_[k] = tangent_[node.in[0].value];
      return;
    }
    // A version: theta_0 stays; its difference from theta_t is a matrix of its own, 0 W + updates.
    map_[k] = in[0];
    const NodeId before = tangent_[node.in[0].value].valid() ? tangent_[node.in[0].value] : b_.add(ScaleMatrix{}, {in[0], b_.constant(0)});
    if (std::holds_alternative<ScaleMatrix>(node.op)) return fail(node, "weight decay has no place in lazy training");
    in[0] = before;
    tangent_[k] = b_.add(node.op, std::move(in));
  }

  void value(std::uint32_t k, const Node& node) {
    std::vector<NodeId> in;
    for (const NodeId id : node.in) in.push_back(map_[id.value]);
    if (std::holds_alternative<Change>(node.op)) {
      map_[k] = b_.zeros(node.type.width, node.type.dims);
      tangent_[k] = copy(node, std::move(in));
      return;
    }
    NodeId frozen = copy(node, in);
    if (b_.type(frozen) != node.type) frozen = b_.expand(frozen, node.type.width, node.type.dims);
    map_[k] = frozen;
    // Only what an output is computed from has a tangent; gradients and features stay at theta_0.
    if (!forward_[k]) return;
    bool moves = false;
    for (const NodeId id : node.in) moves = moves || tangent_[id.value].valid();
    if (!moves) return;
    NodeId d = tangent(node, in, frozen);
    if (!d.valid()) return;
    if (b_.type(d) != node.type) d = b_.expand(d, node.type.width, node.type.dims);
    if (prediction_[k]) map_[k] = b_.plus(frozen, d);  // the output itself, from here on
    else tangent_[k] = d;
  }

  void fail(const Node& node, const char* what) {
    if (!error_) error_ = Diagnostic{Severity::kError, "E2149", what, node.span, "", "leave --lazy out, or write the network with other functions", {}, true};
  }

  /// sum over operands of d(op)/d(operand) times its tangent.
  NodeId tangent(const Node& node, const std::vector<NodeId>& in, NodeId y) {
    const auto moving = [&](std::size_t k) { return tangent_[node.in[k].value].valid(); };
    const auto dx = [&](std::size_t k) { return tangent_[node.in[k].value]; };
    NodeId sum;
    const auto add = [&](NodeId term) { sum = sum.valid() ? b_.plus(sum, term) : term; };
    std::visit(
        overloaded{
            [&](const Map& m) {
              if (in.size() == 1) return add(b_.times(derivative_of(b_, m, in[0], y), dx(0)));
              switch (m.fn) {
                case Fn::kAdd: case Fn::kSub:
                  if (moving(0)) add(dx(0));
                  if (moving(1)) add(m.fn == Fn::kAdd ? dx(1) : b_.negate(dx(1)));
                  return;
                case Fn::kMul:
                  if (moving(0)) add(b_.times(dx(0), in[1]));
                  if (moving(1)) add(b_.times(in[0], dx(1)));
                  return;
                case Fn::kDiv:
                  if (moving(0)) add(b_.map(Fn::kDiv, {dx(0), in[1]}));
                  if (moving(1)) add(b_.negate(b_.map(Fn::kDiv, {b_.times(y, dx(1)), in[1]})));
                  return;
                case Fn::kWhere:
                  if (moving(1)) add(b_.times(in[0], dx(1)));
                  if (moving(2)) add(b_.times(b_.minus(b_.constant(1), in[0]), dx(2)));
                  return;
                default: return fail(node, "this function has no tangent in lazy training");
              }
            },
            [&](const Contract& c) {
              if (moving(0)) add(b_.add(c, {dx(0), in[1]}));
              if (moving(1)) add(b_.add(c, {in[0], dx(1)}));
            },
            [&](const MatMul& m) {
              if (moving(0)) add(b_.matmul(dx(0), in[1], m.transposed));
              if (moving(1)) add(b_.matmul(in[0], dx(1), m.transposed));
            },
            [&](const Concat& c) {
              std::vector<NodeId> parts;
              for (std::size_t k = 0; k < in.size(); ++k) {
                const Type type = b_.type(in[k]);
                parts.push_back(moving(k) ? dx(k) : b_.zeros(type.width, type.dims));
              }
              add(b_.add(c, std::move(parts)));
            },
            [&](const Stop&) {},
            [&](const Parameter&) { add(dx(0)); },
            [&](const auto& op) {
              using T = std::decay_t<decltype(op)>;
              if constexpr (std::is_same_v<T, Scale> || std::is_same_v<T, Average> || std::is_same_v<T, ReduceSum> || std::is_same_v<T, Gather> || std::is_same_v<T, ScatterAdd> ||
                            std::is_same_v<T, Permute> || std::is_same_v<T, Reshape> || std::is_same_v<T, Expand>)
                add(b_.add(op, {dx(0)}));
              else fail(node, "this operation has no tangent in lazy training");
            },
        },
        node.op);
    return sum;
  }

  std::vector<NodeId> tangent_;
  std::vector<bool> prediction_, forward_;
  std::set<NodeId> started_;  ///< matrix versions at and above a declaration
  std::optional<Diagnostic> error_;
};

}  // namespace

Result<Program> decoupled(const Program& program, const Ablations& ablations) {
  std::set<std::uint32_t> chosen;
  std::vector<std::string> matrices;
  for (std::uint32_t s = 0; s < program.sources.size(); ++s) {
    if (!program.sources[s].matrix) continue;
    matrices.push_back(program.sources[s].name);
    if (ablations.no_correction) chosen.insert(s);
  }
  for (const std::string& name : ablations.decouple) {
    bool found = false;
    for (std::uint32_t s = 0; s < program.sources.size(); ++s) {
      const GaussianSource& source = program.sources[s];
      if (!source.matrix || (source.name != name && source.name.substr(0, source.name.find('[')) != name)) continue;
      chosen.insert(s);
      found = true;
    }
    if (!found)
      return Diagnostic{Severity::kError, "E2148", fmt::format("--decouple {}: the program has no width matrix '{}'", name, name), {}, "",
                        matrices.empty() ? "it has none" : fmt::format("its matrices: {}", fmt::join(matrices, ", ")), {}, false};
  }
  return Decoupling(program, std::move(chosen)).run();
}

Result<Program> linearised(const Program& program) { return Linearisation(program).run(); }

}  // namespace tplimit
