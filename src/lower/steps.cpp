#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "lower/lowerer.hpp"
#include "tplimit/passes/batch.hpp"
#include "tplimit/passes/passes.hpp"

// New versions of parameters, updates written by hand, and gradients of losses.
namespace tplimit::lowering {

using ir::Fn;

// ---- updates
// ---------------------------------------------------------------------------------------

/// A sum of versions of W and of outer products as one new version of W.  Versions of another
/// matrix, such as an average of gradients that began at 0, are outer products here.
Matrix Lowerer::materialise(const Matrix& whole, Span span) {
  ir::Builder& b = build(span);
  std::map<std::uint32_t, Matrix> by_source;
  for (const MatrixTerm& t : whole.terms)
    if (t.w.valid()) by_source[source_of(program_, t.w).value].terms.push_back(t);
  Matrix m = whole;
  const auto expand = [&](std::uint32_t source) {
    if (by_source.size() == 1) return;
    const std::optional<Matrix> outer = as_outer_products(by_source.at(source));
    if (!outer) return;
    by_source.erase(source);
    std::erase_if(m.terms, [&](const MatrixTerm& t) {
      return t.w.valid() && source_of(program_, t.w).value == source;
    });
    m.terms.insert(m.terms.end(), outer->terms.begin(), outer->terms.end());
  };
  // The first last: where all are sums of outer products, it is the one that is updated.
  for (std::size_t k = whole.terms.size(); k-- > 0;)
    if (whole.terms[k].w.valid())
      if (const auto source = source_of(program_, whole.terms[k].w).value;
          by_source.contains(source))
        expand(source);
  std::vector<std::pair<NodeId, NodeId>> versions;  // with their factors, each once
  std::vector<NodeId> update;
  for (const MatrixTerm& t : m.terms) {
    if (!t.w.valid()) {
      update.insert(update.end(), {b.scale(1, 1, t.coefficient), t.d, t.x});
      continue;
    }
    if (t.transposed ||
        (!versions.empty() && source_of(program_, versions[0].first) != source_of(program_, t.w)))
      fail("E2322", "a new version is a sum of versions of one matrix and of outer products", span,
           "", "keep sums of different matrices as expressions: (W + V) @ x");
    const auto same = std::find_if(versions.begin(), versions.end(),
                                   [&](const auto& v) { return v.first == t.w; });
    if (same == versions.end())
      versions.emplace_back(t.w, t.coefficient);
    else
      same->second = b.plus(same->second, t.coefficient);
  }
  if (versions.empty())
    fail("E2322", "a new version is a sum of versions of one matrix and of outer products", span,
         "there is no matrix here", "an update adds outer products: W += c * outer(d, x)");
  NodeId w = b.add(ir::ScaleMatrix{}, {versions[0].first, versions[0].second});
  for (std::size_t k = 1; k < versions.size(); ++k)
    w = b.add(ir::AddVersion{}, {w, versions[k].second, versions[k].first});
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
    for (std::size_t k = 0; k < array->items.size(); ++k) {
      const Matrix& own = change.as<MatrixArray>()->items[k];
      out.items.push_back(own.terms.empty()
                              ? array->items[k]
                              : *updated({array->items[k]}, {own}, span).as<Matrix>());
    }
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
  // What is no variable may stay a sum of outer products, as averages of gradients are.
  if (const auto* m = next.as<Matrix>();
      m && (!variables_named(name->name).empty() ||
            std::any_of(m->terms.begin(), m->terms.end(),
                        [](const MatrixTerm& t) { return t.w.valid(); })))
    next = {materialise(*m, span)};
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
  throw Rejection{
      Diagnostic::error("E2329",
                        fmt::format("the loss was computed with an older version of '{}'", name))
          .at(span)
          .with_label(fmt::format("'{}' has changed since", name))
          .with_help("compute the loss again after the last step, or step both losses at once: "
                     "step sgd(a, ..), sgd(b, ..)")
          .with_note("the loss was computed here", builder_.node(loss).span)};
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
  (void)differentiates_kernel(loss, targets, fixed, span);
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

/// The same matrix, each version and outer product once: what cancels is no rounding error.
Matrix Lowerer::merged(const Matrix& m) {
  Matrix out;
  for (const MatrixTerm& t : m.terms) {
    const auto same = std::find_if(out.terms.begin(), out.terms.end(), [&](const MatrixTerm& o) {
      return std::tie(o.w, o.transposed, o.d, o.x) == std::tie(t.w, t.transposed, t.d, t.x);
    });
    if (same == out.terms.end())
      out.terms.push_back(t);
    else
      same->coefficient = builder_.plus(same->coefficient, t.coefficient);
  }
  std::erase_if(out.terms, [&](const MatrixTerm& t) { return builder_.is_zero(t.coefficient); });
  return out;
}

/// Sum over all entries of x y: <d x', e y'> = <d, e> <x, y> and <W, d x'> = <d, W x>.
NodeId Lowerer::inner_product(const Matrix& x, const Matrix& y, Span span) {
  NodeId total = builder_.constant(0);
  const auto gram = [&](NodeId u, NodeId v) {  // E u_p v_q [p, q]
    const auto flat = [&](NodeId w) {
      return builder_.reshape(w, {ir::size_of(builder_.type(w).dims)});
    };
    return builder_.contract(flat(u), flat(v), 0, 0, true);
  };
  const auto product = [&](const MatrixTerm& s, const MatrixTerm& t) {
    if (s.w.valid() && t.w.valid()) {
      if (s.transposed != t.transposed)
        fail("E2312", "a width matrix is not multiplied by a transpose entry by entry", span);
      return builder_.scale(1, 1, builder_.add(ir::InnerProduct{}, {s.w, t.w}));
    }
    if (s.w.valid() || t.w.valid()) {
      const MatrixTerm &version = s.w.valid() ? s : t, &outer = s.w.valid() ? t : s;
      return inner_product({Tensor{outer.d, {}}},
                           {Tensor{builder_.matmul(version.w, outer.x, version.transposed), {}}},
                           span);
    }
    return builder_.scale(
        1, 2, builder_.sum(builder_.sum(builder_.times(gram(s.d, t.d), gram(s.x, t.x)), 0), 0));
  };
  const Matrix left = merged(x), right = merged(y);
  for (const MatrixTerm& s : left.terms)
    for (const MatrixTerm& t : right.terms)
      total = builder_.plus(
          total, builder_.times(builder_.times(s.coefficient, t.coefficient), product(s, t)));
  return total;
}

/// The same of tensors, matrices and arrays of matrices of one shape.
NodeId Lowerer::inner_product(const Value& a, const Value& b, Span span) {
  if (const auto* t = a.as<Tensor>()) {
    NodeId product = builder_.times(t->node, b.as<Tensor>()->node);
    if (builder_.type(product).width) product = builder_.scale(1, 1, builder_.average(product));
    while (!builder_.type(product).dims.empty()) product = builder_.sum(product, 0);
    return product;
  }
  if (const auto* m = a.as<Matrix>()) return inner_product(*m, *b.as<Matrix>(), span);
  NodeId total = builder_.constant(0);
  for (std::size_t k = 0; k < a.as<MatrixArray>()->items.size(); ++k)
    total = builder_.plus(
        total, inner_product(a.as<MatrixArray>()->items[k], b.as<MatrixArray>()->items[k], span));
  return total;
}

}  // namespace tplimit::lowering
