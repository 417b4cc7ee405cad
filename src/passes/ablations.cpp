#include "tplimit/passes/ablations.hpp"

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <utility>

#include "tplimit/math/normals.hpp"
#include "tplimit/passes/gradient.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

std::string to_string(const Ablations& a) {
  std::vector<std::string> parts;
  if (a.no_correction)
    parts.emplace_back("no correction terms");
  else if (!a.decouple.empty())
    parts.push_back(fmt::format("{} decoupled", fmt::join(a.decouple, ", ")));
  if (a.lazy) parts.emplace_back("lazy training");
  return fmt::format("{}", fmt::join(parts, ", "));
}

namespace {

/// Appends a changed copy of a program, node by node; reports, names and the like follow.
class Rewriting {
 protected:
  explicit Rewriting(const Program& program)
      : in_(program), out_(without_nodes(program)), b_(out_) {
    map_.resize(program.size());
  }
  NodeId copy(const Node& node, std::vector<NodeId> in) {
    if (const auto* c = std::get_if<Constant>(&node.op)) return b_.constant(*c, node.type.dims);
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
    for (const auto& [from, to] :
         {std::pair{&in_.names, &out_.names}, std::pair{&in_.predictions, &out_.predictions}})
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
      if (const auto* g = std::get_if<GaussianMatrix>(&node.op);
          g && copy_of.contains(g->source.value)) {
        copies[{k}] = b_.add(GaussianMatrix{copy_of.at(g->source.value)}, {});
      } else if (node.type.matrix) {
        std::vector<NodeId> same = in;
        for (std::size_t j = 0; j < same.size(); ++j)
          if (const auto it = copies.find(node.in[j]); it != copies.end()) same[j] = it->second;
        if (same != in) {
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
      return Diagnostic::error("E2149", "lazy training needs to know the output of the network")
          .with_help("it is the first argument of mse: train with mse(f, y)");
    find_predictions();
    tangent_.resize(in_.size());
    changed_.assign(in_.size(), false);
    for (std::uint32_t k = 0; k < in_.size(); ++k) {
      const Node& node = in_.nodes[k];
      b_.set_origin(node.span, node.context);
      if (node.type.entries)
        return Diagnostic::error("E2149",
                                 "lazy training of an entrywise optimiser is not available")
            .at(node.span)
            .with_help("train with sgd");
      if (node.type.matrix)
        matrix(k, node);
      else
        value(k, node);
      changed_[k] = is_change({k}) || is_update(node.op) ||
                    std::any_of(node.in.begin(), node.in.end(),
                                [&](NodeId in) { return changed_[in.value]; });
      if (error_) return *error_;
    }
    // A parameter without a width axis has moved visibly.
    const auto is_moved_parameter = [&](NodeId id) {
      return structure_[id.value].leaf && !in_[id].type.width && !prediction_[id.value] &&
             tangent_[id.value].valid();
    };
    const auto reported = [&](NodeId id, Span span) {
      if (is_moved_parameter(id))
        map_[id.value] = b_.plus(map_[id.value], std::exchange(tangent_[id.value], {}));
      else
        check_reported(id, span);
    };
    for (const Report& report : in_.reports)
      for (const auto& entry : report.entries) reported(entry.value, report.span);
    for (const Expectation& e : in_.expectations)
      for (const NodeId id : {e.left, e.right}) reported(id, e.span);
    if (error_) return *error_;
    return finish();
  }

 private:
  // ---- which values are outputs

  /// What a value computes, whatever the data and the versions of the parameters: equal for the
  /// output on other samples, at other times, or written once more.  Multiples of finite values and
  /// rearrangements are linear and are looked through.
  struct Structure {
    std::uint64_t key = 0;  ///< 0: nothing but constants
    bool leaf = false;      ///< a parameter or random value itself
    friend bool operator==(const Structure&, const Structure&) = default;
  };
  [[nodiscard]] bool is_change(NodeId id) const {
    return std::holds_alternative<Change>(in_[id].op);
  }
  [[nodiscard]] Structure structure_of(std::uint32_t k) const {
    const Node& node = in_.nodes[k];
    const auto of = [&](std::size_t i) { return structure_[node.in[i].value]; };
    const auto mixed = [&](std::uint64_t tag, bool ordered) {
      std::uint64_t key = mix_key(tag, node.op.index() + 1);
      for (std::size_t i = 0; i < node.in.size(); ++i)
        key = ordered ? mix_key(key, of(i).key) : key + mix_key(tag, of(i).key);
      return Structure{key, false};
    };
    const auto product = [](const Structure& a, const Structure& b) {
      return mix_key(4, a.key) + mix_key(4, b.key);
    };
    bool constant = !node.in.empty();
    for (std::size_t i = 0; i < node.in.size(); ++i) constant = constant && of(i).key == 0;
    const auto other = [&] { return constant ? Structure{} : mixed(5, true); };
    return std::visit(
        overloaded{
            [&](const Constant&) { return Structure{}; },
            [&](const StandardNormal& s) {
              return Structure{mix_key(1, s.source.value), true};
            },
            [&](const GaussianMatrix& s) {
              return Structure{mix_key(1, s.source.value), true};
            },
            [&](const Parameter& p) {
              return constant ? Structure{mix_key(2, p.index), true} : of(0);
            },
            [&](const UpdateMatrix&) { return of(0); },
            [&](const AddVersion&) { return of(0); },
            [&](const AddEntries&) { return of(0); },
            [&](const OuterSum&) { return other(); },
            [&](const MatrixEntries&) { return other(); },
            [&](const InnerProduct&) { return other(); },
            [&](const ScaleMatrix&) { return of(0); },
            [&](const Map& m) {
              if (constant) return Structure{};
              if (m.fn == Fn::kAdd || m.fn == Fn::kSub)  // a version of a parameter
                for (const std::size_t i : {0u, 1u})
                  if (is_change(node.in[1 - i])) return of(i);
              if (m.fn == Fn::kMul) return Structure{product(of(0), of(1)), false};
              return mixed(mix_key(static_cast<std::uint64_t>(m.fn),
                                   std::bit_cast<std::uint64_t>(m.parameter)),
                           m.fn != Fn::kAdd);
            },
            [&](const Concat&) {
              for (std::size_t i = 1; i < node.in.size(); ++i)
                if (of(i) != of(0)) return mixed(0, true);
              return of(0);
            },
            [&](const Scale& c) {  // before a function acts on it, a multiple is another value
              return node.type.width && !constant && !of(0).leaf
                         ? Structure{mix_key(mix_key(6, std::bit_cast<std::uint64_t>(c.factor)),
                                             of(0).key),
                                     false}
                         : of(0);
            },
            [&](const Average&) {
              return constant ? Structure{} : Structure{mix_key(3, of(0).key), false};
            },
            [&](const Contract& c) {
              if (constant) return Structure{};
              if (c.average && c.contracted == 0)
                return Structure{mix_key(3, product(of(0), of(1))), false};  // E(a b)
              return mixed(c.average, false);
            },
            [&](const MatMul& m) { return mixed(m.transposed, true); },
            [&](const Gather&) { return of(0); },
            [&](const Permute&) { return of(0); },
            [&](const Reshape&) { return of(0); },
            [&](const Expand&) { return of(0); },
            [&](const Stop&) { return of(0); },
            [&](const Change&) { return of(0); },
            [&](const ReduceSum&) { return other(); },
            [&](const ReduceMax&) { return other(); },
            [&](const LogSumExp&) { return other(); },
            [&](const ScatterAdd&) { return other(); },
            [&](const Cholesky&) { return other(); },
            [&](const Eigvals&) { return other(); },
            [&](const TrainingOperator&) { return other(); },
            [&](const Solve&) { return other(); },
            [&](const LogDet&) { return other(); },
            [&](const Samples&) { return other(); },
            [&](const Histogram&) { return other(); },
        },
        node.op);
  }

  /// The readout behind an average over coordinates, v of E(v z) with z no parameter; else invalid.
  [[nodiscard]] NodeId readout_of(NodeId id) const {
    const Node& node = in_[id];
    const auto* c = std::get_if<Contract>(&node.op);
    const std::vector<NodeId>* factors = c && c->average ? &node.in : nullptr;
    if (std::holds_alternative<Average>(node.op))
      if (const auto* m = std::get_if<Map>(&in_[node.in[0]].op); m && m->fn == Fn::kMul)
        factors = &in_[node.in[0]].in;
    if (!factors) return {};
    const bool first = structure_[(*factors)[0].value].leaf,
               second = structure_[(*factors)[1].value].leaf;
    return first == second ? NodeId{} : (*factors)[first ? 0 : 1];
  }

  /// The finite values that one is computed from without passing an output.
  template <class F>
  void each_finite_behind(NodeId root, bool past_outputs, F f) const {
    std::vector<NodeId> stack{root};
    std::set<NodeId> seen;
    while (!stack.empty()) {
      const NodeId id = stack.back();
      stack.pop_back();
      if (in_[id].type.width || in_[id].type.matrix || (!past_outputs && prediction_[id.value]) ||
          !seen.insert(id).second)
        continue;
      f(id);
      if (!is_change(id)) stack.insert(stack.end(), in_[id].in.begin(), in_[id].in.end());
    }
  }

  void find_predictions() {
    structure_.reserve(in_.size());
    for (std::uint32_t k = 0; k < in_.size(); ++k) structure_.push_back(structure_of(k));
    std::set<NodeId> named;
    std::set<std::uint64_t> keys;
    std::vector<NodeId> stack;
    for (const NamedValue& p : in_.predictions) {
      named.insert(p.value);
      stack.push_back(p.value);
      each_finite_behind(p.value, true, [&](NodeId id) {
        if (const NodeId v = readout_of(id); v.valid()) readouts_.insert(structure_[v.value].key);
      });
    }
    // f and g of an output f + c or f - g are outputs.
    std::set<NodeId> looked_at;
    while (!stack.empty()) {
      const NodeId id = stack.back();
      stack.pop_back();
      if (!looked_at.insert(id).second) continue;
      bool output = named.contains(id);
      each_finite_behind(id, true,
                         [&](NodeId behind) { output = output || readout_of(behind).valid(); });
      if (!output) continue;
      keys.insert(structure_[id.value].key);
      const auto* m = std::get_if<Map>(&in_[id].op);
      if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub))
        stack.insert(stack.end(), in_[id].in.begin(), in_[id].in.end());
      else if (in_[id].in.size() == 1 && structure_[in_[id].in[0].value] == structure_[id.value])
        stack.push_back(in_[id].in[0]);
    }
    keys.erase(0);
    prediction_.assign(in_.size(), false);
    forward_.assign(in_.size(), false);
    for (const Report& report : in_.reports)
      for (const auto& entry : report.entries)
        if (structure_[entry.value.value].leaf) stack.push_back(entry.value);
    for (std::uint32_t k = 0; k < in_.size(); ++k) {
      const Type& type = in_.nodes[k].type;
      if (!named.contains({k}) && (type.width || type.matrix || !keys.contains(structure_[k].key)))
        continue;
      prediction_[k] = true;
      stack.push_back({k});
    }
    while (!stack.empty()) {
      const NodeId id = stack.back();
      stack.pop_back();
      if (forward_[id.value]) continue;
      forward_[id.value] = true;
      // What lies behind an update belongs to training, not to the network.
      if (is_change(id) || is_update(in_[id].op)) continue;
      for (const NodeId in : in_[id].in) stack.push_back(in);
    }
  }

  /// A reported value that moves with the parameters but is not computed from outputs would show
  /// its value at the start.
  void check_reported(NodeId root, Span span) {
    each_finite_behind(root, false, [&](NodeId id) {
      const NodeId v = readout_of(id);
      const bool output =
          v.valid() && changed_[v.value] && readouts_.contains(structure_[v.value].key);
      if ((output || is_change(id)) && !error_)
        error_ = Diagnostic::error("E2149", "lazy training does not know what this is")
                     .at(span)
                     .with_label(output ? "an average of a trained readout, but of no output"
                                        : "it moves with a trained parameter, but is no output")
                     .with_help(
                         "outputs are what mse compares with targets, and the same function "
                         "of the parameters on other samples; values computed from those "
                         "may be reported, and features, which stay");
    });
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
    const NodeId before = tangent_[node.in[0].value].valid()
                              ? tangent_[node.in[0].value]
                              : b_.add(ScaleMatrix{}, {in[0], b_.constant(0)});
    if (std::holds_alternative<ScaleMatrix>(node.op))
      return fail(node, "weight decay and momentum have no place in lazy training");
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
    if (std::holds_alternative<InnerProduct>(node.op))  // of theta_t
      for (std::size_t j = 0; j < in.size(); ++j)
        if (const NodeId moved = tangent_[node.in[j].value]; moved.valid()) {
          if (forward_[k])
            return fail(node, "outputs with norms of trained matrices have no lazy training");
          in[j] = b_.add(AddVersion{}, {in[j], b_.constant(1), moved});
        }
    NodeId frozen = copy(node, in);
    if (b_.type(frozen) != node.type) frozen = b_.expand(frozen, node.type.width, node.type.dims);
    map_[k] = frozen;
    // Only what an output is computed from has a tangent; gradients and features stay at theta_0.
    if (!forward_[k]) return;
    std::vector<NodeId> moves;
    for (const NodeId id : node.in) moves.push_back(tangent_[id.value]);
    if (std::none_of(moves.begin(), moves.end(), [](NodeId id) { return id.valid(); })) return;
    const Result<NodeId> found = tangent(b_, node, in, frozen, moves);
    if (!found) return fail(node, found.errors()[0].message.c_str());
    NodeId d = *found;
    if (!d.valid()) return;
    if (b_.type(d) != node.type) d = b_.expand(d, node.type.width, node.type.dims);
    if (prediction_[k])
      map_[k] = b_.plus(frozen, d);  // the output itself, from here on
    else
      tangent_[k] = d;
  }

  void fail(const Node& node, const char* what) {
    if (!error_)
      error_ = Diagnostic::error("E2149", what)
                   .at(node.span)
                   .with_help("leave --lazy out, or write the network with other functions");
  }

  std::vector<NodeId> tangent_;
  std::vector<Structure> structure_;
  std::vector<bool> prediction_, forward_, changed_;
  std::set<std::uint64_t> readouts_;  ///< keys of what outputs are linear in
  std::set<NodeId> started_;          ///< matrix versions at and above a declaration
  std::optional<Diagnostic> error_;
};

}  // namespace

namespace {

/// W, and of an array or of several units W[0], W.1.
bool is_of(std::string_view source, std::string_view name) {
  if (!source.starts_with(name)) return false;
  source.remove_prefix(name.size());
  return source.empty() || source[0] == '[' ||
         (source.size() > 1 && source[0] == '.' && source[1] >= '0' && source[1] <= '9');
}

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
      if (!source.matrix || !is_of(source.name, name)) continue;
      chosen.insert(s);
      found = true;
    }
    if (!found)
      return Diagnostic::error("E2148", fmt::format("--decouple {}: the program has no width "
                                                    "matrix '{}'",
                                                    name, name))
          .with_help(matrices.empty() ? "it has none"
                                      : fmt::format("its matrices: {}", fmt::join(matrices, ", ")));
  }
  return Decoupling(program, std::move(chosen)).run();
}

Result<Program> linearised(const Program& program) { return Linearisation(program).run(); }

}  // namespace tplimit
