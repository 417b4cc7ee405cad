#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>

#include "lower/lowerer.hpp"
#include "tplimit/passes/batch.hpp"
#include "tplimit/syntax/parser.hpp"

// The optimisers of `step`: a table, the reading of their options, and what they do.
namespace tplimit::lowering {

using ir::Fn;

namespace {

enum class Moves {
  kAlongGradient,  ///< theta - rate g
  kEntryByEntry,   ///< theta - rate psi(g), psi on each entry
  kAlongFlow,      ///< all variables together, in substeps
};

}  // namespace

struct Lowerer::Optimiser {
  struct Option {
    const char* name;
    void (Lowerer::*read)(Descent&, const ast::Expr& value);
  };
  const char* name;
  const char* rate;     ///< the option
  const char* rate_is;  ///< what it is
  Moves moves;
  std::vector<Option> options;    ///< beside the rate, `only` and `scale`
  const char* instead = nullptr;  ///< not available: what to write

  [[nodiscard]] std::string form(const char* value = "..") const {
    return fmt::format("{}(loss, {} = {})", name, rate, value);
  }
  [[nodiscard]] const Option* option(const std::string& wanted) const {
    const auto it = std::find_if(options.begin(), options.end(),
                                 [&](const Option& o) { return o.name == wanted; });
    return it == options.end() ? nullptr : &*it;
  }
  [[nodiscard]] std::string options_text() const {
    std::string out = fmt::format("its options: {}", rate);
    for (const Option& o : options) out += fmt::format(", {}", o.name);
    return out + ", only, scale";
  }
  static const std::vector<Optimiser>& all();
};

const std::vector<Lowerer::Optimiser>& Lowerer::Optimiser::all() {
  static const std::vector<Optimiser> table{
      {"sgd", "lr", "learning rate", Moves::kAlongGradient, {}},
      {"signsgd", "lr", "learning rate", Moves::kEntryByEntry, {{"eps", &Lowerer::read_epsilon}}},
      {"flow", "dt", "time step", Moves::kAlongFlow, {{"steps", &Lowerer::read_substeps}}},
      {"adam",
       "lr",
       "learning rate",
       Moves::kEntryByEntry,
       {},
       "step signsgd(loss, lr = ..) has the same powers of n"}};
  return table;
}

std::string Lowerer::optimiser_form(const std::string& name) {
  for (const Optimiser& o : Optimiser::all())
    if (o.name == name && !o.instead) return "step " + o.form();
  return "";
}

const Lowerer::Optimiser& Lowerer::optimiser_named(const ast::Identifier& name) const {
  std::vector<std::string> forms;
  for (const Optimiser& o : Optimiser::all()) {
    if (o.name == name.name) {
      if (o.instead)
        fail("E2105", fmt::format("optimiser '{}' is not available in this version", o.name),
             name.span, "", o.instead);
      return o;
    }
    if (!o.instead) forms.push_back(o.form());
  }
  const std::string last = std::move(forms.back());
  forms.pop_back();
  fail("E2324", fmt::format("unknown optimiser '{}'", name.name), name.span, "",
       fmt::format("write: step {} or {}", fmt::join(forms, ", "), last));
}

// ---- options
// ---------------------------------------------------------------------------------------

void Lowerer::read_epsilon(Descent& d, const ast::Expr& value) {
  d.epsilon = plain_number(evaluate(value), value.span, "eps");
  if (!(d.epsilon >= 0 && std::isfinite(d.epsilon)))
    fail("E2146", "'eps' is negative or not finite", value.span,
         fmt::format("this is {}", d.epsilon));
}

void Lowerer::read_substeps(Descent& d, const ast::Expr& value) {
  d.substeps = integer(evaluate(value), value.span, "the number of substeps");
  if (d.substeps < 1)
    fail("E2151", "a step has at least one substep", value.span,
         fmt::format("this is {}", d.substeps));
}

/// The variables of a name in `only` or `scale`: one, or its parts of several widths.
std::vector<std::string> Lowerer::trained_variables(const ast::Expr& e, const char* help) const {
  const auto* name = std::get_if<ast::Name>(&e.node);
  std::vector<std::string> out = name ? variables_named(name->name) : std::vector<std::string>{};
  if (out.empty()) fail("E2326", "this is not a parameter", e.span, "", help);
  if (!variables_.at(out[0]).trained)
    fail("E2326", fmt::format("'{}' is random, not trained", name->name), e.span, "",
         "declare it with param");
  return out;
}

/// `entries`: what was read, in order.
void Lowerer::read_scales(Descent& d, const ast::Expr& value,
                          std::vector<const ast::MapEntry*>& entries) {
  const auto* map = std::get_if<ast::Map>(&value.node);
  if (!map)
    fail("E2325", "'scale' maps parameters to rates", value.span, "",
         "for instance scale = {W: n^2, v: 1}");
  for (const auto& entry : map->entries) {
    const std::vector<std::string> names =
        trained_variables(*entry.key, "scale = {..} maps names of parameters to rates");
    if (d.scales.contains(names[0]))
      fail("E2113", fmt::format("'{}' is scaled twice", std::get<ast::Name>(entry.key->node).name),
           entry.key->span);
    entries.push_back(&entry);
    Value rate = evaluate(*entry.value);
    (void)scalar(rate, entry.value->span, "a learning rate");
    for (const std::string& own : names) d.scales[own] = rate;
  }
}

/// What the step moves: what the loss depends on, or a part of it.
void Lowerer::choose_variables(Descent& d,
                               const std::optional<std::vector<const ast::Expr*>>& only) {
  const auto reached = behind(d.loss);
  if (!only) {
    for (const auto& name : variable_order_)
      if (variables_.at(name).trained && depends_on_current(d.loss, reached, name, d.span))
        d.names.push_back(name);
    if (d.names.empty())
      fail("E2328", "the loss depends on no parameter", d.span, "",
           "a value that is trained is declared with param");
    return;
  }
  for (const ast::Expr* e : *only) {
    const std::vector<std::string> names =
        trained_variables(*e, "only = (..) lists names of parameters");
    const std::string& name = std::get<ast::Name>(e->node).name;
    if (std::find(d.names.begin(), d.names.end(), names[0]) != d.names.end())
      fail("E2113", fmt::format("'{}' is named twice", name), e->span);
    for (const std::string& own : names) {
      d.names.push_back(own);
      if (!depends_on_current(d.loss, reached, own, d.span))
        fail("E2328", fmt::format("the loss does not depend on '{}'", name), e->span);
    }
  }
}

Lowerer::Descent Lowerer::read_descent(const ast::Call& call, Span span) {
  const Optimiser& optimiser = optimiser_named(call.callee);
  if (call.args.size() != 1)
    fail("E2109", fmt::format("{} takes one loss, got {}", optimiser.name, call.args.size()), span,
         "", fmt::format("write: step {}", optimiser.form()));
  check_once(call.named);
  Descent out{&optimiser, call.args[0]->span};
  bool has_rate = false;
  std::optional<std::vector<const ast::Expr*>> only;
  std::vector<const ast::MapEntry*> scaled;
  for (const auto& option : call.named) {
    const auto& name = option.name.name;
    const ast::Expr& value = *option.value;
    if (name == optimiser.rate) {
      out.rate = evaluate(value);
      (void)scalar(out.rate, value.span, fmt::format("a {}", optimiser.rate_is).c_str());
      has_rate = true;
    } else if (name == "only") {
      only.emplace();
      const auto add = [&](const auto& items) {
        for (const auto& e : items) only->push_back(e.get());
      };
      if (const auto* t = std::get_if<ast::Tuple>(&value.node))
        add(t->items);
      else if (const auto* l = std::get_if<ast::List>(&value.node))
        add(l->items);
      else
        only->push_back(&value);
    } else if (name == "scale") {
      read_scales(out, value, scaled);
    } else if (const Optimiser::Option* own = optimiser.option(name)) {
      (this->*own->read)(out, value);
    } else {
      unknown_option(optimiser.name, option.name, optimiser.options_text());
    }
  }
  if (!has_rate)
    fail("E2327", fmt::format("{} needs a {}", optimiser.name, optimiser.rate_is), span, "",
         fmt::format("write: step {}", optimiser.form("0.1")));
  out.loss = scalar({finite(evaluate(*call.args[0]), out.span, "a loss")}, out.span, "a loss");
  choose_variables(out, only);
  for (const ast::MapEntry* entry : scaled)
    if (const auto& name = std::get<ast::Name>(entry->key->node).name;
        std::find(out.names.begin(), out.names.end(), variables_named(name)[0]) == out.names.end())
      fail("E2328", fmt::format("this step does not update '{}'", name), entry->key->span, "",
           "the loss does not depend on it, or `only` leaves it out");
  return out;
}

// ---- steps
// -----------------------------------------------------------------------------------------

/// -rate own(theta).
NodeId Lowerer::factor_of(const Descent& d, const std::string& name, Span span) {
  const bool entrywise = d.optimiser->moves == Moves::kEntryByEntry;
  const Value own =
      d.scales.contains(name) ? d.scales.at(name) : rate_of(variables_.at(name), span, entrywise);
  const Value rate = arithmetic(ast::BinaryOp::kMul, d.rate, own, span);
  return build(span).negate(scalar(rate, span, "a learning rate"));
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
  const std::int64_t substeps = descents[0].substeps;
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
  const auto flows = [](const Descent& d) { return d.optimiser->moves == Moves::kAlongFlow; };
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
    if (flows(d) != flows(descents[0]))
      fail("E2152", "these do not step at once", update->span, "a flow beside another optimiser",
           "write two statements, one after the other");
    if (d.substeps != descents[0].substeps)
      fail("E2152", "these do not step at once", update->span,
           fmt::format("{} and {} substeps", descents[0].substeps, d.substeps),
           "give both the same number: steps = k");
    if (flows(d)) continue;
    const Parts found = gradients(d.loss, versions_of(d.names), update->span, true);
    for (const auto& [name, g] : found) {
      const NodeId factor = factor_of(d, name, update->span);
      if (d.optimiser->moves == Moves::kEntryByEntry) {
        versions.emplace_back(name, entrywise_update(name, g, factor, d.epsilon));
        continue;
      }
      Value change = weighted(g, factor);
      if (const auto* t = change.as<Tensor>()) change = {Tensor{change_of(name, t->node), t->axes}};
      changes.emplace_back(name, std::move(change));
    }
  }
  if (flows(descents[0])) {
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
