#include <algorithm>
#include <cmath>
#include <tuple>

#include "lower/lowerer.hpp"
#include "tplimit/passes/batch.hpp"
#include "tplimit/syntax/parser.hpp"

// New versions of parameters: updates written by hand, and the optimisers of `step`.
namespace tplimit::lowering {

using ir::Fn;

// ---- updates
// ---------------------------------------------------------------------------------------

/// A sum c W + outer products as one new version of W.
Matrix Lowerer::materialise(const Matrix& m, Span span) {
  ir::Builder& b = build(span);
  NodeId w, factor;
  std::vector<NodeId> update;
  for (const MatrixTerm& t : m.terms) {
    if (!t.w.valid()) {
      update.insert(update.end(), {b.scale(1, 1, t.coefficient), t.d, t.x});
    } else {
      if (t.transposed || (w.valid() && w != t.w))
        fail("E2322", "a new version is a multiple of one matrix plus outer products", span, "",
             "keep sums of different matrices as expressions: (W + V) @ x");
      w = t.w;
      factor = factor.valid() ? b.plus(factor, t.coefficient) : t.coefficient;
    }
  }
  if (!w.valid())
    fail("E2322", "a new version is a multiple of one matrix plus outer products", span,
         "there is no matrix here", "an update adds outer products: W += c * outer(d, x)");
  w = b.add(ir::ScaleMatrix{}, {w, factor});
  if (!update.empty()) {
    update.insert(update.begin(), w);
    w = b.add(ir::UpdateMatrix{}, std::move(update));
  }
  return Matrix{{MatrixTerm{b.constant(1), w, false, {}, {}}}};
}

void Lowerer::set_version(const std::string& name, Value value) {
  Binding& binding = globals_.at(name);
  Variable& variable = variables_.at(name);
  for (const NodeId id : version_nodes(binding.value)) variable.old_versions.insert(id);
  // Reached again (lr = 0, W *= 1): then it is current once more.
  for (const NodeId id : version_nodes(value)) variable.old_versions.erase(id);
  record_name(name, value, binding.span, ir::NamedValue::Kind::kVersion);
  binding.value = std::move(value);
  if (variable.part_of) {  // the whole sees it
    const auto& [whole, part] = *variable.part_of;
    Blocks blocks = *globals_.at(whole).value.as<Blocks>();
    blocks.parts[part] = binding.value;
    globals_.at(whole).value = {std::move(blocks)};
  }
}

Value Lowerer::updated(const Value& current, const Value& change, Span span) {
  if (const auto* m = current.as<Matrix>())
    return {materialise(*arithmetic(ast::BinaryOp::kAdd, {*m}, change, span).as<Matrix>(), span)};
  if (const auto* array = current.as<MatrixArray>()) {
    MatrixArray out{array->dims, {}};
    for (std::size_t k = 0; k < array->items.size(); ++k)
      out.items.push_back(
          *updated({array->items[k]}, {change.as<MatrixArray>()->items[k]}, span).as<Matrix>());
    return {out};
  }
  return elementwise(Fn::kAdd, {current, change}, span);
}

void Lowerer::on(const ast::Update& s, Span span) {
  if (!outside_models())
    fail("E2605", "updates stand outside models", span, "",
         "return the values and update in the main script");
  const ast::Expr* target = s.target.get();
  const auto* index = std::get_if<ast::Index>(&target->node);
  const ast::Expr& base = index ? *index->base : *target;
  const auto* name = std::get_if<ast::Name>(&base.node);
  if (!name) fail("E2323", "only a name can be updated", target->span);
  const Value current = evaluate(*target);
  const Value value = evaluate(*s.value);
  Value next;
  if (s.op == ast::UpdateOp::kMul) {
    if (const auto* array = current.as<MatrixArray>()) {
      MatrixArray out{array->dims, {}};
      for (const Matrix& m : array->items)
        out.items.push_back(
            materialise(*arithmetic(ast::BinaryOp::kMul, {m}, value, span).as<Matrix>(), span));
      next = {out};
    } else {
      next = arithmetic(ast::BinaryOp::kMul, current, value, span);
    }
  } else if (current.as<MatrixArray>()) {
    const auto* other = value.as<MatrixArray>();
    if (!other || other->dims != current.as<MatrixArray>()->dims)
      fail("E2322", "an array of matrices is updated by an array of outer products", s.value->span,
           "this is " + describe(value), "update one matrix: W[0] += c * outer(d, x)");
    MatrixArray change = *other;
    if (s.op == ast::UpdateOp::kSub)
      for (Matrix& m : change.items) m = *scaled_matrix(m, build(span).constant(-1)).as<Matrix>();
    next = updated(current, {change}, span);
  } else {
    next = arithmetic(s.op == ast::UpdateOp::kAdd ? ast::BinaryOp::kAdd : ast::BinaryOp::kSub,
                      current, value, span);
  }
  if (!variables_named(name->name).empty())
    program_.steps.push_back({std::exchange(differentiated_, {}), span, context_});
  if (const auto* m = next.as<Matrix>()) next = {materialise(*m, span)};
  if (const auto* now = current.as<Tensor>(), *then = next.as<Tensor>();
      now && then && now->axes != then->axes)
    fail("E2120", "an update may not change the shape", s.value->span,
         fmt::format("{} would become {}", text(now->axes), text(then->axes)));

  if (!index) return rebind({name->name, base.span}, std::move(next), span);
  // One matrix of an array.
  Binding* binding = find_or_null(name->name);
  const auto* array = binding ? binding->value.as<MatrixArray>() : nullptr;
  if (!array || !next.as<Matrix>() || index->items.size() != array->dims.size())
    fail("E2323", "only a whole value or one matrix of an array can be updated", target->span,
         "this is " + describe(current),
         current.as<MatrixArray>()
             ? "index every axis: W[0, 1] += .."
             : "build the new value from parts, for instance with concat(..)");
  MatrixArray whole = *array;
  std::int64_t position = 0;
  for (std::size_t k = 0; k < whole.dims.size(); ++k) {
    std::int64_t i = integer(evaluate(*index->items[k]), index->items[k]->span, "an index");
    if (i < 0) i += whole.dims[k];
    position = position * whole.dims[k] + i;
  }
  whole.items[static_cast<std::size_t>(position)] = *next.as<Matrix>();
  rebind({name->name, base.span}, {whole}, span);
}

Lowerer::Descent Lowerer::read_descent(const ast::Call& call, Span span) {
  const std::string& optimiser = call.callee.name;
  const bool flow = optimiser == "flow", entrywise = optimiser == "signsgd";
  if (optimiser == "adam")
    fail("E2105", "optimiser 'adam' is not available in this version", call.callee.span, "",
         "step signsgd(loss, lr = ..) has the same powers of n");
  if (optimiser != "sgd" && !flow && !entrywise)
    fail("E2324", fmt::format("unknown optimiser '{}'", call.callee.name), call.callee.span, "",
         "write: step sgd(loss, lr = ..), signsgd(loss, lr = ..) or flow(loss, dt = ..)");
  const char* rate_name = flow ? "dt" : "lr";
  if (call.args.size() != 1)
    fail("E2109", fmt::format("{} takes one loss, got {}", optimiser, call.args.size()), span, "",
         fmt::format("write: step {}(loss, {} = ..)", optimiser, rate_name));
  check_once(call.named);
  Descent out{{}, {}, {}, {}, call.args[0]->span};
  if (entrywise) out.epsilon = 0;
  if (flow) out.substeps = 1;
  bool has_rate = false;
  std::optional<std::vector<const ast::Expr*>> only;
  std::vector<const ast::MapEntry*> scaled;
  for (const auto& option : call.named) {
    const auto& name = option.name.name;
    if (name == rate_name) {
      out.rate = evaluate(*option.value);
      (void)scalar(out.rate, option.value->span, flow ? "a time step" : "a learning rate");
      has_rate = true;
    } else if (name == "steps" && flow) {
      out.substeps = integer(evaluate(*option.value), option.value->span, "the number of substeps");
      if (*out.substeps < 1)
        fail("E2151", "a step has at least one substep", option.value->span,
             fmt::format("this is {}", *out.substeps));
    } else if (name == "only") {
      only.emplace();
      if (const auto* t = std::get_if<ast::Tuple>(&option.value->node))
        for (const auto& e : t->items) only->push_back(e.get());
      else if (const auto* l = std::get_if<ast::List>(&option.value->node))
        for (const auto& e : l->items) only->push_back(e.get());
      else
        only->push_back(option.value.get());
    } else if (name == "scale") {
      const auto* map = std::get_if<ast::Map>(&option.value->node);
      if (!map)
        fail("E2325", "'scale' maps parameters to rates", option.value->span, "",
             "for instance scale = {W: n^2, v: 1}");
      for (const auto& entry : map->entries) {
        const auto* key = std::get_if<ast::Name>(&entry.key->node);
        const std::vector<std::string> names =
            key ? variables_named(key->name) : std::vector<std::string>{};
        if (names.empty())
          fail("E2326", "this is not a parameter", entry.key->span, "",
               "scale = {..} maps names of parameters to rates");
        if (!variables_.at(names[0]).trained)
          fail("E2326", fmt::format("'{}' is random, not trained", key->name), entry.key->span, "",
               "declare it with param");
        if (out.scales.contains(names[0]))
          fail("E2113", fmt::format("'{}' is scaled twice", key->name), entry.key->span);
        scaled.push_back(&entry);
        Value rate = evaluate(*entry.value);
        (void)scalar(rate, entry.value->span, "a learning rate");
        for (const std::string& own : names) out.scales[own] = rate;
      }
    } else if (name == "eps" && entrywise) {
      out.epsilon = plain_number(evaluate(*option.value), option.value->span, "eps");
      if (!(*out.epsilon >= 0 && std::isfinite(*out.epsilon)))
        fail("E2146", "'eps' is negative or not finite", option.value->span,
             fmt::format("this is {}", *out.epsilon));
    } else {
      fail("E2112", fmt::format("'{}' has no option '{}'", optimiser, name), option.name.span, "",
           flow        ? "its options: dt, steps, only, scale"
           : entrywise ? "its options: lr, eps, only, scale"
                       : "its options: lr, only, scale");
    }
  }
  if (!has_rate)
    fail("E2327", fmt::format("{} needs a {}", optimiser, flow ? "time step" : "learning rate"),
         span, "", fmt::format("write: step {}(loss, {} = 0.1)", optimiser, rate_name));
  out.loss = scalar({finite(evaluate(*call.args[0]), out.span, "a loss")}, out.span, "a loss");
  const auto reached = behind(out.loss);
  if (only) {
    for (const ast::Expr* e : *only) {
      const auto* name = std::get_if<ast::Name>(&e->node);
      const std::vector<std::string> names =
          name ? variables_named(name->name) : std::vector<std::string>{};
      if (names.empty())
        fail("E2326", "this is not a parameter", e->span, "",
             "only = (..) lists names of parameters");
      if (std::find(out.names.begin(), out.names.end(), names[0]) != out.names.end())
        fail("E2113", fmt::format("'{}' is named twice", name->name), e->span);
      if (!variables_.at(names[0]).trained)
        fail("E2326", fmt::format("'{}' is random, not trained", name->name), e->span, "",
             "declare it with param");
      for (const std::string& own : names) {
        out.names.push_back(own);
        if (!depends_on_current(out.loss, reached, own, out.span))
          fail("E2328", fmt::format("the loss does not depend on '{}'", name->name), e->span);
      }
    }
  } else {
    for (const auto& name : variable_order_)
      if (variables_.at(name).trained && depends_on_current(out.loss, reached, name, out.span))
        out.names.push_back(name);
    if (out.names.empty())
      fail("E2328", "the loss depends on no parameter", call.args[0]->span, "",
           "a value that is trained is declared with param");
  }
  for (const ast::MapEntry* entry : scaled)
    if (const auto& name = std::get<ast::Name>(entry->key->node).name;
        std::find(out.names.begin(), out.names.end(), variables_named(name)[0]) == out.names.end())
      fail("E2328", fmt::format("this step does not update '{}'", name), entry->key->span, "",
           "the loss does not depend on it, or `only` leaves it out");
  return out;
}

std::vector<NodeId> Lowerer::current_versions() const {
  std::vector<NodeId> out;
  for (const auto& name : variable_order_)
    for (const NodeId id : version_nodes(globals_.at(name).value)) out.push_back(id);
  return out;
}

std::unordered_set<std::uint32_t> Lowerer::behind(NodeId loss) const {
  const std::vector<NodeId> versions = current_versions();
  const std::set<NodeId> ends(versions.begin(), versions.end());
  std::unordered_set<std::uint32_t> seen;
  std::vector<NodeId> stack{loss};
  while (!stack.empty()) {
    const NodeId id = stack.back();
    stack.pop_back();
    if (!seen.insert(id.value).second || ends.contains(id) ||
        std::holds_alternative<ir::Stop>(builder_.node(id).op))
      continue;
    for (const NodeId in : builder_.node(id).in) stack.push_back(in);
  }
  return seen;
}

/// True if the loss depends on the current version of a parameter; an error if only on an older
/// one.
bool Lowerer::depends_on_current(NodeId loss, const std::unordered_set<std::uint32_t>& behind,
                                 const std::string& name, Span span) const {
  const auto reached = [&](NodeId id) { return behind.contains(id.value); };
  const std::vector<NodeId> current = version_nodes(globals_.at(name).value);
  if (std::any_of(current.begin(), current.end(), reached)) return true;
  const std::set<NodeId>& old = variables_.at(name).old_versions;
  // Whichever is smaller: there is one old version for each step made.
  const bool found_old = old.size() < behind.size()
                             ? std::any_of(old.begin(), old.end(), reached)
                             : std::any_of(behind.begin(), behind.end(),
                                           [&](std::uint32_t id) { return old.contains({id}); });
  if (!found_old) return false;
  Rejection r{Diagnostic{Severity::kError,
                         "E2329",
                         fmt::format("the loss was computed with an older version of '{}'", name),
                         span,
                         fmt::format("'{}' has changed since", name),
                         "compute the loss again after the last step, or step both losses at once: "
                         "step sgd(a, ..), sgd(b, ..)",
                         {},
                         true},
              false};
  r.diagnostic.notes.push_back({"the loss was computed here", builder_.node(loss).span});
  throw r;
}

Rejection Lowerer::not_differentiable(Diagnostic d, Span span) {
  d.notes.push_back({"the gradient is taken here", span});
  return {std::move(d), false};
}

/// -rate own(theta).
NodeId Lowerer::factor_of(const Descent& d, const std::string& name, Span span) {
  const Value own = d.scales.contains(name)
                        ? d.scales.at(name)
                        : rate_of(variables_.at(name), span, d.epsilon.has_value());
  const Value rate = arithmetic(ast::BinaryOp::kMul, d.rate, own, span);
  return build(span).negate(scalar(rate, span, "a learning rate"));
}

Lowerer::Parts Lowerer::versions_of(const std::vector<std::string>& names) const {
  Parts out;
  for (const std::string& name : names) out.emplace_back(name, globals_.at(name).value);
  return out;
}

/// dloss / dtheta for each of these versions, which are independent variables whatever made them.
Lowerer::Parts Lowerer::gradients(NodeId loss, const Parts& at, Span span, bool name_them) {
  std::vector<NodeId> targets, fixed = current_versions();
  for (const auto& [name, version] : at)
    for (const NodeId id : version_nodes(version)) targets.push_back(id);
  fixed.insert(fixed.end(), targets.begin(), targets.end());
  build(span);
  std::vector<std::pair<NodeId, NodeId>> cotangents;
  const Result<std::vector<Derivative>> derivatives =
      gradient(builder_, loss, targets, fixed, name_them ? &cotangents : nullptr);
  // Not of multiples and rearrangements: the builder merges them with later ones, past the value.
  const auto whole = [](const ir::Op& op) {
    return std::holds_alternative<ir::Map>(op) || std::holds_alternative<ir::MatMul>(op) ||
           std::holds_alternative<ir::Parameter>(op) || std::holds_alternative<ir::Contract>(op);
  };
  for (const auto& [of, value] : cotangents)
    if (whole(builder_.node(of).op) &&
        (std::holds_alternative<ir::MatMul>(builder_.node(of).op) || named_.contains(of)))
      program_.names.push_back({"", value, 0, span, context_,
                                static_cast<std::uint32_t>(program_.steps.size()),
                                ir::NamedValue::Kind::kGradient, of});
  if (!derivatives) throw not_differentiable(derivatives.errors()[0], span);
  Parts out;
  const Derivative* next = derivatives->data();
  for (const auto& [name, version] : at) {
    out.emplace_back(name, as_value(version, next));
    next += version_nodes(version).size();
  }
  return out;
}

Value Lowerer::weighted(const Value& part, NodeId factor) {
  if (const auto* t = part.as<Tensor>()) return {Tensor{builder_.times(factor, t->node), t->axes}};
  if (const auto* m = part.as<Matrix>()) return scaled_matrix(*m, factor);
  MatrixArray out = *part.as<MatrixArray>();
  for (Matrix& m : out.items) m = *scaled_matrix(m, factor).as<Matrix>();
  return {out};
}

Value Lowerer::sum(const Value& a, const Value& b) {
  if (const auto* t = a.as<Tensor>())
    return {Tensor{builder_.plus(t->node, b.as<Tensor>()->node), t->axes}};
  const auto joined = [](Matrix x, const Matrix& y) {
    x.terms.insert(x.terms.end(), y.terms.begin(), y.terms.end());
    return x;
  };
  if (const auto* m = a.as<Matrix>()) return {joined(*m, *b.as<Matrix>())};
  MatrixArray out = *a.as<MatrixArray>();
  for (std::size_t k = 0; k < out.items.size(); ++k)
    out.items[k] = joined(out.items[k], b.as<MatrixArray>()->items[k]);
  return {out};
}

/// Sum over all entries of a b; matrices are sums of outer products, and <d x', e y'> = <d, e> <x,
/// y>.
NodeId Lowerer::inner_product(const Value& a, const Value& b) {
  if (const auto* t = a.as<Tensor>()) {
    NodeId product = builder_.times(t->node, b.as<Tensor>()->node);
    if (builder_.type(product).width) product = builder_.scale(1, 1, builder_.average(product));
    while (!builder_.type(product).dims.empty()) product = builder_.sum(product, 0);
    return product;
  }
  NodeId total = builder_.constant(0);
  const auto add = [&](const Matrix& x, const Matrix& y) {
    const auto gram = [&](NodeId u, NodeId v) {  // E u_p v_q [p, q]
      const auto flat = [&](NodeId w) {
        return builder_.reshape(w, {ir::size_of(builder_.type(w).dims)});
      };
      return builder_.contract(flat(u), flat(v), 0, 0, true);
    };
    for (const MatrixTerm& s : x.terms)
      for (const MatrixTerm& t : y.terms) {
        const NodeId both =
            builder_.sum(builder_.sum(builder_.times(gram(s.d, t.d), gram(s.x, t.x)), 0), 0);
        total = builder_.plus(
            total, builder_.scale(
                       1, 2, builder_.times(builder_.times(s.coefficient, t.coefficient), both)));
      }
  };
  if (const auto* m = a.as<Matrix>())
    add(*m, *b.as<Matrix>());
  else
    for (std::size_t k = 0; k < a.as<MatrixArray>()->items.size(); ++k)
      add(a.as<MatrixArray>()->items[k], b.as<MatrixArray>()->items[k]);
  return total;
}

/// theta + factor psi(n^d g), psi(g) = g / sqrt(g^2 + eps^2) on each entry of the gradient g.
Value Lowerer::entrywise_update(const std::string& name, const Value& gradient, NodeId factor,
                                double epsilon) {
  const Variable& variable = variables_.at(name);
  ir::Builder& b = builder_;
  const Exponent d = variable.role
                         ? effective(*variable.role, has_width(variable.axes), false, true).d
                         : Exponent(0);
  const Value& now = globals_.at(name).value;
  if (const auto* t = now.as<Tensor>()) {
    const NodeId g = b.scale(1, d, gradient.as<Tensor>()->node);
    const NodeId psi =
        epsilon == 0
            ? b.map(Fn::kSign, {g})
            : b.map(Fn::kDiv, {g, b.map(Fn::kSqrt, {b.plus(b.map(Fn::kPower, {g}, 2),
                                                           b.constant(epsilon * epsilon))})});
    return elementwise(Fn::kAdd, {now, {Tensor{change_of(name, b.times(factor, psi)), t->axes}}},
                       b.span());
  }
  const auto one = [&](const Matrix& m, const Matrix& g) {
    std::vector<NodeId> in{m.terms[0].w};
    for (const MatrixTerm& t : g.terms)
      in.insert(in.end(), {b.scale(1, d, t.coefficient), t.d, t.x});
    if (in.size() == 1) return m;
    in.push_back(factor);
    return Matrix{{MatrixTerm{
        b.constant(1), b.add(ir::UpdateMatrix{true, epsilon}, std::move(in)), false, {}, {}}}};
  };
  if (const auto* m = now.as<Matrix>()) return {one(*m, *gradient.as<Matrix>())};
  MatrixArray out = *now.as<MatrixArray>();
  for (std::size_t k = 0; k < out.items.size(); ++k)
    out.items[k] = one(out.items[k], gradient.as<MatrixArray>()->items[k]);
  return {out};
}

/// theta' = -sum over descents of rate own(theta) dloss/dtheta from time 0 to 1: classical
/// Runge-Kutta of order 4, `substeps` times. The parameters between stages are versions like
/// others, theta + sum_k c_k g_k, so that every gradient is made of a few vectors once. Error, of
/// the loss: g_5 . (theta_4 - theta_3), g_5 the gradient at the result theta_4 and theta_3 the
/// embedded solution of order 3 that uses it (weights 1/6, 1/3, 1/3, 0, 1/6): the first gradient of
/// the next substep, so that it costs one evaluation in all.
std::pair<Lowerer::Parts, NodeId> Lowerer::flow(const std::vector<Descent>& descents, Span span) {
  std::vector<std::string> names;
  for (const Descent& d : descents)
    for (const auto& name : d.names)
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  const std::int64_t substeps = *descents[0].substeps;
  std::vector<std::map<std::string, NodeId>> factors;
  std::unordered_set<std::uint32_t> reached;
  for (const Descent& d : descents) {
    factors.emplace_back();
    for (const auto& name : d.names)
      factors.back()[name] =
          build(span).scale(1 / static_cast<double>(substeps), 0, factor_of(d, name, span));
    reached.merge(behind(d.loss));
  }
  const Parts start = versions_of(names);
  // What the text names since the last step has a name at every stage, z~2, for those who read the
  // program later.
  std::vector<ir::NamedValue> named;
  for (std::size_t k = program_.names.size();
       k-- > 0 && program_.names[k].step == program_.steps.size();)
    if (program_.names[k].kind == ir::NamedValue::Kind::kValue) named.push_back(program_.names[k]);

  // The losses as functions of the parameters: what stop(..) holds, and parameters that do not
  // move, stay.
  const auto losses_at = [&](const Parts& at, std::int64_t label) {
    std::map<NodeId, NodeId> replaced;
    for (const NodeId id : current_versions()) replaced[id] = id;
    std::vector<NodeId> wanted;
    for (const Descent& d : descents) wanted.push_back(d.loss);
    for (const std::uint32_t id : reached)
      if (std::holds_alternative<ir::Stop>(builder_.node({id}).op)) replaced[{id}] = {id};
    for (std::size_t p = 0; p < at.size(); ++p) {
      const std::vector<NodeId> from = version_nodes(start[p].second),
                                to = version_nodes(at[p].second);
      for (std::size_t j = 0; j < from.size(); ++j) replaced[from[j]] = to[j];
    }
    std::vector<NodeId> losses = substituted(builder_, wanted, replaced);
    if (label == 0) return losses;
    const auto name = [&](ir::NamedValue value, NodeId node) {
      value.name += fmt::format("~{}", label);
      value.value = node;
      program_.names.push_back(std::move(value));
      named_.insert(node);
    };
    for (const auto& [variable, version] : at)
      if (const auto* t = version.as<Tensor>())
        name({variable, {}, 0, span, context_, static_cast<std::uint32_t>(program_.steps.size())},
             t->node);
    for (std::size_t k = named.size(); k-- > 0;)
      if (reached.contains(named[k].value.value))
        name(named[k], substituted(builder_, named[k].value, replaced));
    return losses;
  };
  struct Stage {
    std::vector<Parts> gradients;  // of each loss, with respect to all that moves
    Parts slope;
  };
  const auto stage = [&](const Parts& at, std::int64_t label, bool name_them = true) {
    Stage out;
    const std::vector<NodeId> losses = losses_at(at, label);
    for (std::size_t k = 0; k < descents.size(); ++k) {
      out.gradients.push_back(gradients(losses[k], at, descents[k].span, name_them));
      for (const auto& [name, g] : out.gradients.back()) {
        if (!factors[k].contains(name)) continue;
        const Value own = weighted(g, factors[k].at(name));
        const auto same = std::find_if(out.slope.begin(), out.slope.end(),
                                       [&](const auto& other) { return other.first == name; });
        if (same == out.slope.end())
          out.slope.emplace_back(name, own);
        else
          same->second = sum(same->second, own);
      }
    }
    return out;
  };
  const auto combined = [&](const std::vector<std::pair<double, const Value*>>& terms) {
    std::optional<Value> out;
    for (const auto& [weight, term] : terms) {
      const Value own = weighted(*term, builder_.constant(weight));
      out = out ? sum(*out, own) : own;
    }
    return *out;
  };
  const auto moved = [&](const Parts& from,
                         const std::vector<std::pair<double, const Stage*>>& stages) {
    Parts out;
    for (std::size_t p = 0; p < from.size(); ++p) {
      std::vector<std::pair<double, const Value*>> terms;
      for (const auto& [weight, s] : stages) terms.emplace_back(weight, &s->slope[p].second);
      Value change = combined(terms);
      if (const auto* t = change.as<Tensor>())
        change = {Tensor{change_of(from[p].first, t->node), t->axes}};
      out.emplace_back(from[p].first, updated(from[p].second, change, span));
    }
    return out;
  };

  Parts now = start;
  Stage k1 = stage(now, 0);
  NodeId error = builder_.constant(0);
  for (std::int64_t s = 0; s < substeps; ++s) {
    count_work(span);
    const Stage k2 = stage(moved(now, {{0.5, &k1}}), 4 * s + 2);
    const Stage k3 = stage(moved(now, {{0.5, &k2}}), 4 * s + 3);
    const Stage k4 = stage(moved(now, {{1, &k3}}), 4 * s + 4);
    now = moved(now, {{1.0 / 6, &k1}, {1.0 / 3, &k2}, {1.0 / 3, &k3}, {1.0 / 6, &k4}});
    // The values at the end of the step have the names that the text gives them there.
    const bool last = s + 1 == substeps;
    Stage k5 = stage(now, last ? 0 : 4 * s + 5, !last);
    build(span);
    for (const Parts& gradient : k5.gradients) {
      NodeId change = builder_.constant(0);
      for (std::size_t p = 0; p < now.size(); ++p)
        change = builder_.plus(
            change, inner_product(gradient[p].second, combined({{1.0 / 6, &k4.slope[p].second},
                                                                {-1.0 / 6, &k5.slope[p].second}})));
      error = builder_.plus(error, builder_.map(Fn::kAbs, {change}));
    }
    k1 = std::move(k5);
  }
  return {std::move(now), error};
}

/// One series for each flow statement, over the times that it was run.
void Lowerer::report_flow_error(const ast::Step& s, const std::vector<Descent>& descents,
                                NodeId error, Span span) {
  const auto [slot, fresh] = flow_error_slots_.try_emplace(&s, program_.reports.size());
  if (fresh) {
    std::vector<std::string> losses;
    for (const Descent& d : descents) losses.push_back(canonical_text(source_, d.span));
    ir::Report report;
    report.name = unused_report_name(fmt::format("flow error of {}", fmt::join(losses, ", ")));
    report.index_names = {"step"};
    report.span = span;
    program_.reports.push_back(std::move(report));
  }
  auto& entries = program_.reports[slot->second].entries;
  entries.push_back({{static_cast<std::int64_t>(entries.size())}, error});
}

void Lowerer::on(const ast::Step& s, Span span) {
  if (!outside_models())
    fail("E2605", "steps stand outside models", span, "",
         "return the loss and step in the main script");
  // Simultaneous: all gradients first, at the same versions, then all updates.
  std::vector<Descent> descents;
  std::vector<NodeId> losses;
  Parts changes, versions;
  for (const auto& update : s.updates) {
    const auto* call = std::get_if<ast::Call>(&update->node);
    if (!call)
      fail("E2324", "a step names an optimiser", update->span, "",
           "write: step sgd(loss, lr = ..)");
    const Descent& d = descents.emplace_back(read_descent(*call, update->span));
    losses.push_back(d.loss);
    if (d.substeps != descents[0].substeps)
      fail("E2152", "these do not step at once", update->span,
           d.substeps && descents[0].substeps
               ? fmt::format("{} and {} substeps", *descents[0].substeps, *d.substeps)
               : "a flow beside another optimiser",
           d.substeps && descents[0].substeps ? "give both the same number: steps = k"
                                              : "write two statements, one after the other");
    if (d.substeps) continue;
    const Parts found = gradients(d.loss, versions_of(d.names), update->span, true);
    for (const auto& [name, g] : found) {
      const NodeId factor = factor_of(d, name, update->span);
      if (d.epsilon) {
        versions.emplace_back(name, entrywise_update(name, g, factor, *d.epsilon));
        continue;
      }
      Value change = weighted(g, factor);
      if (const auto* t = change.as<Tensor>()) change = {Tensor{change_of(name, t->node), t->axes}};
      changes.emplace_back(name, std::move(change));
    }
  }
  if (descents[0].substeps) {
    NodeId error;
    std::tie(versions, error) = flow(descents, span);
    report_flow_error(s, descents, error, span);
  }
  for (auto& [name, change] : changes) {
    const auto same = std::find_if(versions.begin(), versions.end(),
                                   [&](const auto& v) { return v.first == name; });
    if (same == versions.end())
      versions.emplace_back(name, updated(globals_.at(name).value, change, span));
    else
      same->second = updated(same->second, change, span);
  }
  for (auto& [name, value] : versions) set_version(name, std::move(value));
  differentiated_.clear();
  program_.steps.push_back({std::move(losses), span, context_});
}

}  // namespace tplimit::lowering
