#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "lower/lowerer.hpp"
#include "tplimit/ir/functions.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/passes/matrix_algebra.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::lowering {

using ir::Fn;

const std::unordered_map<std::string, Fn>& Lowerer::unary_functions() {
  static const auto table = [] {
    std::unordered_map<std::string, Fn> out;
    for (const ir::Function& f : ir::functions())
      if (f.in_language) out.emplace(f.name, f.fn);
    return out;
  }();
  return table;
}

/// A row for each: how it is written, how many arguments it takes, its options, what it means.
const std::unordered_map<std::string, Lowerer::Builtin>& Lowerer::builtins() {
  constexpr std::size_t kAny = Builtin::kAny;
  static const std::unordered_map<std::string, Builtin> table{
      {"E", {"E(x)", 1, 1, {}, &Lowerer::builtin_average}},
      {"gram", {"gram(x) or gram(x, y)", 1, 2, {}, &Lowerer::builtin_gram}},
      {"mean",
       {"mean(x) or mean(x, axis = k)", 1, 1, {"axis", "keepdims"}, &Lowerer::builtin_mean}},
      {"sum", {"sum(x) or sum(x, axis = k)", 1, 1, {"axis", "keepdims"}, &Lowerer::builtin_sum}},
      {"max",
       {"max(x), max(x, axis = k) or max(x, y)",
        1,
        2,
        {"axis", "keepdims"},
        &Lowerer::builtin_max}},
      {"min",
       {"min(x), min(x, axis = k) or min(x, y)",
        1,
        2,
        {"axis", "keepdims"},
        &Lowerer::builtin_min}},
      {"clip", {"clip(x, low, high)", 3, 3, {}, &Lowerer::builtin_clip}},
      {"where", {"where(condition, a, b)", 3, 3, {}, &Lowerer::builtin_where}},
      {"mod", {"mod(x, y)", 2, 2, {}, &Lowerer::builtin_mod}},
      {"floor", {nullptr, 1, 1, {}, &Lowerer::builtin_floor}},
      {"mse", {"mse(output, target)", 2, 2, {}, &Lowerer::builtin_mse}},
      {"size", {"size(x, axis)", 2, 2, {}, &Lowerer::builtin_size}},
      {"ndim", {nullptr, 1, 1, {}, &Lowerer::builtin_ndim, true}},
      {"zeros", {"zeros(a, b, ..)", 0, 16, {}, &Lowerer::builtin_zeros}},
      {"ones", {"ones(a, b, ..)", 0, 16, {}, &Lowerer::builtin_ones}},
      {"stack", {"stack(x, y, ..)", 1, kAny, {}, &Lowerer::builtin_stack}},
      {"concat",
       {"concat(x, y, ..) or concat(x, y, .., axis = k)",
        1,
        kAny,
        {"axis"},
        &Lowerer::builtin_concat}},
      {"stop", {nullptr, 1, 1, {}, &Lowerer::builtin_stop}},
      {"averaged", {nullptr, 1, 1, {}, &Lowerer::builtin_averaged}},
      {"eigvals", {"eigvals(K)", 1, 1, {}, &Lowerer::builtin_eigvals}},
      {"min_eig", {"min_eig(K)", 1, 1, {}, &Lowerer::builtin_min_eig}},
      {"trace", {"trace(A)", 1, 1, {}, &Lowerer::builtin_trace}},
      {"norm", {nullptr, 1, 1, {}, &Lowerer::builtin_norm}},
      {"samples", {"samples(x, count)", 2, 2, {}, &Lowerer::builtin_samples}},
      {"hist",
       {"hist(x, low = a, high = b, bins = k)",
        1,
        1,
        {"low", "high", "bins"},
        &Lowerer::builtin_hist}},
      {"outer", {"outer(d, x)", 2, 2, {}, &Lowerer::builtin_outer}},
      {"einsum", {"einsum(\"pk,k->p\", a, b)", 2, 17, {}, &Lowerer::builtin_einsum}},
      {"grad",
       {"grad(loss, theta) or grad(loss, theta, through = true)",
        2,
        2,
        {"through"},
        &Lowerer::builtin_grad}},
      {"permutation", {"permutation(size, seed)", 2, 2, {}, &Lowerer::builtin_permutation}},
      {"one_hot", {"one_hot(labels, classes)", 2, 2, {}, &Lowerer::builtin_one_hot}},
      {"predict_gd",
       {"predict_gd(Theta, Theta_x, y, lr = rate, steps = k), with time = t for gradient flow, "
        "with neither after convergence",
        3,
        3,
        {"lr", "steps", "time", "reg", "noise"},
        &Lowerer::builtin_predict_gd}},
      {"predict_gd_covariance",
       {"predict_gd_covariance(Theta, Theta_x, K, K_x, K_xx, lr = rate, steps = k)",
        5,
        5,
        {"lr", "steps", "time", "reg", "noise"},
        &Lowerer::builtin_predict_gd_covariance}},
      {"largest_rate", {"largest_rate(Theta)", 1, 1, {}, &Lowerer::builtin_largest_rate}},
      {"logsumexp",
       {"logsumexp(x) or logsumexp(x, axis = k)",
        1,
        1,
        {"axis", "keepdims"},
        &Lowerer::builtin_logsumexp,
        true}},
      {"softmax",
       {"softmax(x) or softmax(x, axis = k)", 1, 1, {"axis"}, &Lowerer::builtin_softmax, true}},
      {"log_softmax",
       {"log_softmax(x) or log_softmax(x, axis = k)",
        1,
        1,
        {"axis"},
        &Lowerer::builtin_log_softmax,
        true}},
      {"cross_entropy",
       {"cross_entropy(logits, labels)", 2, 2, {}, &Lowerer::builtin_cross_entropy, true}},
      {"logistic",
       {"logistic(f, y), a loss; the function of x is sigmoid(x)",
        2,
        2,
        {},
        &Lowerer::builtin_logistic,
        true}},
      {"hinge", {"hinge(f, y)", 2, 2, {}, &Lowerer::builtin_hinge, true}},
      {"huber",
       {"huber(f, y) or huber(f, y, delta = d)", 2, 2, {"delta"}, &Lowerer::builtin_huber, true}},
      {"accuracy", {"accuracy(logits, labels)", 2, 2, {}, &Lowerer::builtin_accuracy, true}},
      {"argmax",
       {"argmax(x) or argmax(x, axis = k)", 1, 1, {"axis"}, &Lowerer::builtin_argmax, true}},
      {"reshape", {"reshape(x, a, b, ..)", 1, 17, {}, &Lowerer::builtin_reshape, true}},
      {"transpose",
       {"transpose(x) or transpose(x, 1, 0, 2)", 1, 17, {}, &Lowerer::builtin_transpose, true}},
      {"permute", {"permute(x, 1, 0, 2)", 2, 17, {}, &Lowerer::builtin_transpose, true}},
      {"zeros_like", {"zeros_like(x)", 1, 1, {}, &Lowerer::builtin_zeros_like, true}},
      {"ones_like", {"ones_like(x)", 1, 1, {}, &Lowerer::builtin_ones_like, true}},
      {"eye", {"eye(size)", 1, 1, {}, &Lowerer::builtin_eye, true}},
      {"cumsum",
       {"cumsum(x) or cumsum(x, axis = k)", 1, 1, {"axis"}, &Lowerer::builtin_cumsum, true}},
      {"solve", {"solve(A, b)", 2, 2, {}, &Lowerer::builtin_solve, true}},
      {"inverse", {"inverse(A)", 1, 1, {}, &Lowerer::builtin_inverse, true}},
      {"logdet", {"logdet(A)", 1, 1, {}, &Lowerer::builtin_logdet, true}}};
  return table;
}

std::vector<LanguageWord> Lowerer::function_words() {
  std::vector<LanguageWord> out;
  const auto add = [&](const std::string& name, const char* form, bool replaceable) {
    out.push_back(
        {LanguageWord::Kind::kFunction, name, form ? form : name + "(x)", {}, replaceable});
  };
  for (const auto& [name, builtin] : builtins()) {
    add(name, builtin.form, builtin.replaceable);
    out.back().options.assign(builtin.options.begin(), builtin.options.end());
  }
  for (const auto& [name, fn] : unary_functions()) add(name, ir::function(fn).form, false);
  return out;
}

bool Lowerer::reserved(const std::string& name) {
  const auto it = builtins().find(name);
  return it != builtins().end() ? !it->second.replaceable : unary_functions().contains(name);
}

/// In where(t > 0, 1 / t, 0), t a number, the branch that is not taken may be undefined: the other
/// one stands for it.
std::vector<Value> Lowerer::positional_values(const ast::Call& call, const std::string& name) {
  std::vector<Value> out;
  std::size_t taken = 0;
  for (std::size_t k = 0; k < call.args.size(); ++k) {
    try {
      out.push_back(evaluate(*call.args[k]));
    } catch (const Rejection& r) {
      if (name != "where" || taken == 0 || k != 3 - taken || r.silent || !r.undefined) throw;
      out.push_back({Poison{}});
    }
    if (const auto* c = out[0].as<Number>(); k == 0 && c && c->power == 0)
      taken = c->value != 0 ? 1 : 2;
  }
  if (taken != 0 && out.size() == 3 && out[3 - taken].as<Poison>()) out[3 - taken] = out[taken];
  return out;
}

Lowerer::Arguments Lowerer::arguments(const ast::Call& call, const std::string& name, Span span,
                                      const Builtin& builtin) {
  const auto& [form, least, most, names, lower, replaceable] = builtin;
  Arguments a{call, name, span, form, {}, {}, {}};
  if (call.args.size() < least || call.args.size() > most)
    fail("E2109",
         fmt::format("'{}' takes {} argument{}, got {}", name,
                     least == most           ? std::to_string(least)
                     : most == Builtin::kAny ? fmt::format("at least {}", least)
                     : most == least + 1     ? fmt::format("{} or {}", least, most)
                                             : fmt::format("{} to {}", least, most),
                     most == 1 || (most == Builtin::kAny && least == 1) ? "" : "s",
                     call.args.size()),
         span, "", a.form_help());
  check_once(call.named);
  a.positional = positional_values(call, name);
  for (const auto& arg : call.args) a.spans.push_back(arg->span);
  for (const auto& named : call.named) {
    if (std::none_of(names.begin(), names.end(),
                     [&](const char* n) { return named.name.name == n; }))
      unknown_option(
          name, named.name,
          names.empty() ? a.form_help() : fmt::format("its options: {}", fmt::join(names, ", ")));
    a.named[named.name.name] = {evaluate(*named.value), named.value->span};
  }
  return a;
}

std::optional<std::size_t> Lowerer::axis_argument(Arguments& a, const Tensor& x) {
  const auto it = a.named.find("axis");
  if (it == a.named.end()) {
    if (x.axes.size() == 1 && x.axes[0].width && a.name != "concat")
      fail(
          "E2213", fmt::format("'{}' reduces finite axes, and there is none", a.name), a.spans[0],
          "this has shape " + text(x.axes),
          "E(x) averages over the coordinates; norm(x)^2 is the sum of the squares of all entries");
    return std::nullopt;
  }
  const auto& [value, where] = it->second;
  std::int64_t axis = integer(value, where, "an axis");
  const auto rank = static_cast<std::int64_t>(x.axes.size());
  if (axis < -rank || axis >= rank)
    fail("E2212", fmt::format("axis {} does not exist", axis), where,
         "the value has shape " + text(x.axes));
  if (axis < 0) axis += rank;
  if (x.axes[static_cast<std::size_t>(axis)].width)
    fail("E2213", fmt::format("axis {} is the width axis", axis), where,
         "the value has shape " + text(x.axes),
         a.name == "concat"
             ? fmt::format("concat makes a longer width where one is declared: width "
                           "{0}, m = 2 {0}",
                           program_.width_name)
             : "E(..) averages over the coordinates");
  return static_cast<std::size_t>(axis);
}

Value Lowerer::builtin_unary(const ast::Call& call, const std::string& name, Span span, Fn fn) {
  const ir::Function& f = ir::function(fn);
  Arguments a =
      arguments(call, name, span, {f.form, 1, f.default_parameter ? 2u : 1u, {}, nullptr});
  double parameter = f.default_parameter.value_or(0);
  if (a.positional.size() == 2) {
    parameter = plain_number(a.positional[1], a.spans[1], f.parameter_name);
    if (!std::isfinite(parameter)) not_finite("this is not a finite number", a.spans[1]);
  }
  if (const auto* n = a.positional[0].as<Number>();
      n && fn == Fn::kSqrt && n->power != 0 && n->value >= 0)
    return {checked(Number{std::sqrt(n->value), n->power / 2}, span)};
  separate_operands(a);
  Value out = elementwise(fn, {a.positional[0]}, span, parameter);
  if (const auto* n = out.as<Number>(), *x = a.positional[0].as<Number>();
      n && x && !std::isfinite(n->value) && std::isfinite(x->value))
    not_finite(fmt::format("{}({}) is not a finite number", name, x->value), span);
  return out;
}

/// Rejects what is no number or array at the argument itself, not at the whole call.
void Lowerer::separate_operands(Arguments& a) {
  for (std::size_t k = 0; k < a.positional.size(); ++k)
    if (!a.positional[k].as<Number>()) a.positional[k] = {tensor(a.positional[k], a.spans[k])};
}

Value Lowerer::builtin_average(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  return {Tensor{build(a.span).average(x.node), finite_axes(finite_dims(x.axes))}};
}

Value Lowerer::builtin_gram(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const Tensor y = a.positional.size() == 2 ? tensor(a.positional[1], a.spans[1]) : x;
  for (const Tensor* t : {&x, &y})
    if (!has_width(t->axes))
      fail("E2214", "gram averages over a width axis", t == &x ? a.spans[0] : a.spans[1],
           "this has shape " + text(t->axes), "for finite values use einsum, or A @ A");
  const Dims dx = finite_dims(x.axes), dy = finite_dims(y.axes);
  if (dx.size() != dy.size() || (!dx.empty() && !std::equal(dx.begin(), dx.end() - 1, dy.begin())))
    fail("E2202", "shapes do not fit together in gram", a.span,
         fmt::format("{} and {}", text(x.axes), text(y.axes)),
         "the last finite axes are paired, all earlier ones must be equal");
  const int batch = dx.empty() ? 0 : static_cast<int>(dx.size()) - 1;
  Dims dims(dx);
  if (!dy.empty()) dims.push_back(dy.back());
  check_size(dims, a.span);
  return {Tensor{build(a.span).contract(x.node, y.node, batch, 0, true), finite_axes(dims)}};
}

/// The last axis, if none is given.
std::size_t Lowerer::axis_or_last(Arguments& a, const Tensor& x) {
  const char* name = a.name.c_str();
  if (x.axes.empty())
    fail("E2212", fmt::format("'{}' works along an axis, and there is none", name), a.spans[0],
         "this is a scalar");
  if (const auto axis = axis_argument(a, x)) return *axis;
  if (x.axes.back().width)
    fail("E2213",
         fmt::format("'{}' works along a finite axis, and the last one is the width", name),
         a.spans[0], "this has shape " + text(x.axes),
         fmt::format("name another axis: {}(.., axis = 0)", name));
  return x.axes.size() - 1;
}

std::int32_t Lowerer::finite_position(const Axes& axes, std::size_t axis) {
  return static_cast<std::int32_t>(std::count_if(axes.begin(),
                                                 axes.begin() + static_cast<std::ptrdiff_t>(axis),
                                                 [](const Axis& k) { return !k.width; }));
}

Tensor Lowerer::reduce_axis(const Tensor& x, std::size_t axis, Reduction how) {
  Tensor out = x;
  out.axes.erase(out.axes.begin() + static_cast<std::ptrdiff_t>(axis));
  const std::int32_t k = finite_position(x.axes, axis);
  switch (how) {
    case Reduction::kSum: out.node = builder_.add(ir::ReduceSum{k}, {x.node}); break;
    case Reduction::kMax: out.node = builder_.add(ir::ReduceMax{k}, {x.node}); break;
    case Reduction::kLogSumExp: out.node = builder_.add(ir::LogSumExp{k}, {x.node}); break;
  }
  return out;
}

Tensor Lowerer::reduce(const Tensor& x, std::optional<std::size_t> axis, Reduction how) {
  if (axis) return reduce_axis(x, *axis, how);
  Tensor out = x;
  for (std::size_t k = out.axes.size(); k-- > 0;)
    if (!out.axes[k].width) out = reduce_axis(out, k, how);
  return out;
}

/// The value of an option that is true or false.
bool Lowerer::flag(const Arguments& a, const char* name, bool otherwise) const {
  const auto it = a.named.find(name);
  if (it == a.named.end()) return otherwise;
  const auto* value = it->second.first.as<Flag>();
  if (!value)
    fail("E2304", fmt::format("'{}' is true or false", name), it->second.second,
         "this is " + describe(it->second.first));
  return value->value;
}

/// With `keepdims = true`, the axes along which x was reduced stay, of size 1.
Tensor Lowerer::keeping(Arguments& a, const Tensor& x, std::optional<std::size_t> axis,
                        Tensor reduced) {
  if (!flag(a, "keepdims", false)) return reduced;
  reduced.axes = x.axes;
  for (std::size_t k = 0; k < reduced.axes.size(); ++k)
    if (!reduced.axes[k].width && k == axis.value_or(k)) reduced.axes[k].size = 1;
  reduced.node = builder_.reshape(reduced.node, finite_dims(reduced.axes));
  return reduced;
}

/// A reduced value beside x again: one entry along the axis.
NodeId Lowerer::along(const Tensor& reduced, const Tensor& x, std::size_t axis) {
  Dims dims = finite_dims(x.axes);
  dims[static_cast<std::size_t>(finite_position(x.axes, axis))] = 1;
  return builder_.reshape(reduced.node, dims);
}

/// Sum over all entries of products of matrices; nothing of others.
std::optional<NodeId> Lowerer::sum_of_entries(Arguments& a) {
  const auto* products = a.positional[0].as<EntryProducts>();
  if (!products) return std::nullopt;
  if (const auto axis = a.named.find("axis"); axis != a.named.end())
    fail("E2303", "products of the entries of width matrices are summed over all entries",
         axis->second.second);
  build(a.span);
  NodeId total = builder_.constant(0);
  for (const EntryProducts::Term& t : products->terms)
    total =
        builder_.plus(total, builder_.times(t.coefficient, product_of_entries(t.a, t.b, a.span)));
  return total;
}

Value Lowerer::builtin_sum(Arguments& a) {
  if (const auto total = sum_of_entries(a)) return {Tensor{*total, {}}};
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const auto axis = axis_argument(a, x);
  build(a.span);
  return {keeping(a, x, axis, reduce(x, axis, Reduction::kSum))};
}

Value Lowerer::builtin_mean(Arguments& a) {
  if (const auto total = sum_of_entries(a)) return {Tensor{builder_.scale(1, -2, *total), {}}};
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const auto axis = axis_argument(a, x);
  const std::int64_t count = axis ? x.axes[*axis].size : ir::size_of(finite_dims(x.axes));
  build(a.span);
  const Tensor sum = reduce(x, axis, Reduction::kSum);
  return {keeping(a, x, axis,
                  {builder_.scale(1.0 / static_cast<double>(count), 0, sum.node), sum.axes})};
}

Value Lowerer::builtin_max(Arguments& a) {
  if (a.positional.size() == 2) return coordinatewise(a, Fn::kMax);
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const auto axis = axis_argument(a, x);
  build(a.span);
  return {keeping(a, x, axis, reduce(x, axis, Reduction::kMax))};
}

Value Lowerer::builtin_min(Arguments& a) {
  if (a.positional.size() == 2) return coordinatewise(a, Fn::kMin);
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  build(a.span);
  const auto axis = axis_argument(a, x);
  const Tensor largest = reduce({builder_.negate(x.node), x.axes}, axis, Reduction::kMax);
  return {keeping(a, x, axis, {builder_.negate(largest.node), largest.axes})};
}

Value Lowerer::builtin_clip(Arguments& a) {
  separate_operands(a);
  return elementwise(
      Fn::kMin,
      {elementwise(Fn::kMax, {a.positional[0], a.positional[1]}, a.span), a.positional[2]}, a.span);
}

Value Lowerer::builtin_where(Arguments& a) { return coordinatewise(a, Fn::kWhere); }

Value Lowerer::builtin_mod(Arguments& a) {
  if (const auto* m = a.positional[1].as<Number>(); m && m->value == 0)
    divided_by_zero(a.spans[1], "this is 0");
  return coordinatewise(a, Fn::kMod);
}

Value Lowerer::builtin_floor(Arguments& a) {
  const Value fraction = elementwise(Fn::kMod, {a.positional[0], {Number{1, 0}}}, a.span);
  return elementwise(Fn::kSub, {a.positional[0], fraction}, a.span);
}

Value Lowerer::coordinatewise(Arguments& a, Fn fn) {
  if (!a.named.empty())
    fail("E2112", fmt::format("'{}' of several values has no options", a.name),
         a.call.named[0].name.span, "", a.form_help());
  separate_operands(a);
  return elementwise(fn, a.positional, a.span);
}

/// Two finite values of one shape.
std::pair<Tensor, Tensor> Lowerer::compared(Arguments& a) {
  const char* name = a.name.c_str();
  Tensor f = finite(a.positional[0], a.spans[0], name),
         y = finite(a.positional[1], a.spans[1], name);
  if (f.axes != y.axes)
    fail("E2202", fmt::format("{} compares values of one shape", name), a.span,
         fmt::format("{} and {}", text(f.axes), text(y.axes)));
  return {std::move(f), std::move(y)};
}

Value Lowerer::builtin_mse(Arguments& a) {
  const auto [f, y] = compared(a);
  build(a.span);
  return mean_over_samples(a, f, builder_.map(Fn::kPower, {builder_.minus(f.node, y.node)}, 2),
                           0.5);
}

/// A loss: the mean over samples of factor times terms for the entries of f.  They add over the
/// last axis of [.., k], k outputs; that of [k] is the samples of one output, unless it is of
/// `classes`.
Value Lowerer::mean_over_samples(Arguments& a, const Tensor& f, NodeId terms, double factor,
                                 bool classes) {
  program_.predictions.push_back({canonical_text(source_, a.spans[0]), f.node, 0, a.spans[0],
                                  context_, static_cast<std::uint32_t>(program_.steps.size())});
  std::int64_t samples = 1;
  for (std::size_t k = 0; k < f.axes.size(); ++k)
    if ((f.axes.size() == 1 && !classes) || k + 1 < f.axes.size()) samples *= f.axes[k].size;
  const Tensor all{terms, f.axes};
  return {Tensor{builder_.scale(factor / static_cast<double>(samples), 0,
                                reduce(all, std::nullopt, Reduction::kSum).node),
                 {}}};
}

// ---- classification
// --------------------------------------------------------------------------------

Value Lowerer::builtin_logsumexp(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const std::size_t axis = axis_or_last(a, x);
  build(a.span);
  return {keeping(a, x, axis, reduce(x, axis, Reduction::kLogSumExp))};
}

Tensor Lowerer::log_softmax(const Tensor& x, std::size_t axis) {
  const NodeId sum = along(reduce(x, axis, Reduction::kLogSumExp), x, axis);
  return {builder_.minus(x.node, sum), x.axes};
}

Value Lowerer::builtin_log_softmax(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const std::size_t axis = axis_or_last(a, x);
  build(a.span);
  return {log_softmax(x, axis)};
}

Value Lowerer::builtin_softmax(Arguments& a) {
  const Tensor logarithm = *builtin_log_softmax(a).as<Tensor>();
  return {Tensor{builder_.map(Fn::kExp, {logarithm.node}), logarithm.axes}};
}

/// The second argument as rows of probabilities beside logits [.., k].
Tensor Lowerer::targets(Arguments& a, const Tensor& logits) {
  const Tensor y = finite(a.positional[1], a.spans[1], a.name.c_str());
  const auto* values = builder_.constant_values(y.node);
  const std::int64_t classes = logits.axes.back().size;
  if (y.axes == logits.axes) {
    for (std::size_t row = 0; values && row < values->size();
         row += static_cast<std::size_t>(classes)) {
      const auto begin = values->begin() + static_cast<std::ptrdiff_t>(row), end = begin + classes;
      const double sum = std::accumulate(begin, end, 0.0);
      if (std::any_of(begin, end, [](double p) { return p < 0; }) || std::abs(sum - 1) > 1e-6)
        fail(
            "E2218", "these are no probabilities of classes", a.spans[1],
            fmt::format("a row of {} has the entries {:.4g}, and the sum {:.4g}", text(y.axes),
                        fmt::join(begin, begin + std::min<std::int64_t>(classes, 4), ", "), sum),
            "rows of probabilities are >= 0 and add up to 1; for one output f with labels -1 and 1 "
            "there are logistic(f, y) and hinge(f, y)");
    }
    return y;
  }
  if (y.axes != Axes(logits.axes.begin(), logits.axes.end() - 1))
    fail("E2202", fmt::format("shapes do not fit together in {}", a.name), a.span,
         fmt::format("logits of shape {} and labels of shape {}", text(logits.axes), text(y.axes)),
         "the last axis of the logits is that of classes; labels are class indices, without this "
         "axis, or rows of probabilities");
  if (!values)
    fail("E2310", "labels must be known before the run", a.spans[1], "this is computed by the run",
         "rows of probabilities, of the shape of the logits, may be computed");
  Arguments one_hot{a.call,
                    "one_hot",
                    a.span,
                    a.form,
                    {{y}, {Number{static_cast<double>(classes), 0}}},
                    {a.spans[1], a.spans[1]},
                    {}};
  const NodeId rows = builtin_one_hot(one_hot).as<Tensor>()->node;
  return {builder_.reshape(rows, finite_dims(logits.axes)), logits.axes};
}

namespace {
constexpr const char* kNoClasses = "logits have a last axis of classes, [.., k]";
}

Value Lowerer::builtin_cross_entropy(Arguments& a) {
  const Tensor f = finite(a.positional[0], a.spans[0], "cross_entropy");
  if (f.axes.empty()) fail("E2204", kNoClasses, a.spans[0], "this is a scalar");
  const Tensor y = targets(a, f);
  build(a.span);
  const Tensor logarithm = log_softmax(f, f.axes.size() - 1);
  return mean_over_samples(a, f, builder_.times(y.node, logarithm.node), -1, true);
}

/// y f of labels -1 and 1.
Tensor Lowerer::margin(Arguments& a) {
  const auto [f, y] = compared(a);
  if (const auto* values = builder_.constant_values(y.node))
    if (std::find(values->begin(), values->end(), 0.0) != values->end())
      fail("E2218", fmt::format("'{}' takes labels -1 and 1", a.name), a.spans[1],
           "one of them is 0", "2 * y - 1 makes them of labels 0 and 1");
  return {build(a.span).times(y.node, f.node), f.axes};
}

Value Lowerer::builtin_logistic(Arguments& a) {
  const Tensor m = margin(a);
  return mean_over_samples(a, finite(a.positional[0], a.spans[0], "logistic"),
                           builder_.map(Fn::kSoftplus, {builder_.negate(m.node)}));
}

Value Lowerer::builtin_hinge(Arguments& a) {
  const Tensor m = margin(a);
  return mean_over_samples(a, finite(a.positional[0], a.spans[0], "hinge"),
                           builder_.map(Fn::kRelu, {builder_.minus(builder_.constant(1), m.node)}));
}

/// c (r - c / 2) with c = clip(r, -delta, delta): r^2 / 2 for |r| < delta, of slope delta beyond.
Value Lowerer::builtin_huber(Arguments& a) {
  const auto [f, y] = compared(a);
  double delta = 1;
  if (const auto it = a.named.find("delta"); it != a.named.end()) {
    delta = plain_number(it->second.first, it->second.second, "delta");
    if (!(delta > 0) || std::isinf(delta))
      fail("E2215", "delta must be positive and finite", it->second.second,
           fmt::format("this is {}", delta), "without a limit it is mse(f, y)");
  }
  build(a.span);
  const NodeId r = builder_.minus(f.node, y.node),
               c = builder_.map(Fn::kMin, {builder_.map(Fn::kMax, {r, builder_.constant(-delta)}),
                                           builder_.constant(delta)});
  return mean_over_samples(a, f, builder_.times(c, builder_.minus(r, builder_.scale(0.5, 0, c))));
}

/// The first of the largest entries: k - 1 - max_j [x_j is largest] (k - 1 - j).
Tensor Lowerer::largest(const Tensor& x, std::size_t axis) {
  const Tensor top = reduce(x, axis, Reduction::kMax);
  const std::int64_t count = x.axes[axis].size;
  std::vector<double> left;
  for (std::int64_t j = 0; j < count; ++j) left.push_back(static_cast<double>(count - 1 - j));
  Dims dims(finite_dims(x.axes).size() - static_cast<std::size_t>(finite_position(x.axes, axis)),
            1);
  dims[0] = count;
  const NodeId is_top = builder_.map(Fn::kEqual, {x.node, along(top, x, axis)}),
               weighted = builder_.times(is_top, builder_.constant(std::move(left), dims));
  const Tensor best = reduce({weighted, x.axes}, axis, Reduction::kMax);
  return {builder_.minus(builder_.constant(static_cast<double>(count - 1)), best.node), best.axes};
}

Value Lowerer::builtin_argmax(Arguments& a) {
  const Tensor x = finite(a.positional[0], a.spans[0], "argmax");
  const std::size_t axis = axis_or_last(a, x);
  build(a.span);
  return {largest(x, axis)};
}

/// The share of right guesses, by classes or, of one output, by signs.
Value Lowerer::builtin_accuracy(Arguments& a) {
  const Tensor f = finite(a.positional[0], a.spans[0], "accuracy"),
               y = finite(a.positional[1], a.spans[1], "accuracy");
  Tensor right;
  if (f.axes == y.axes && f.axes.size() < 2) {
    const Tensor m = margin(a);
    right = {builder_.map(Fn::kLess, {builder_.constant(0), m.node}), m.axes};
  } else {
    if (f.axes.empty()) fail("E2204", kNoClasses, a.spans[0], "this is a scalar");
    const Tensor rows = targets(a, f);
    build(a.span);
    const std::size_t last = f.axes.size() - 1;
    const Tensor guess = largest(f, last), label = largest(rows, last);
    right = {builder_.map(Fn::kEqual, {guess.node, label.node}), guess.axes};
  }
  const double count = static_cast<double>(ir::size_of(finite_dims(right.axes)));
  return {
      Tensor{builder_.scale(1 / count, 0, reduce(right, std::nullopt, Reduction::kSum).node), {}}};
}

Value Lowerer::filled(Arguments& a, double value) {
  Axes axes;
  std::size_t which = 0;
  for (std::size_t k = 0; k < a.positional.size(); ++k) {
    if (const auto width = width_of(a.positional[k])) {
      which = *width;
      if (has_width(axes))
        fail("E2207", "a value has at most one width axis", a.spans[k], "",
             fmt::format("a matrix is declared: param W : [{0}, {0}] ~ normal(0, 0)",
                         program_.width_name));
      axes.push_back({true, 0});
    } else {
      const std::int64_t size = integer(a.positional[k], a.spans[k], "a size");
      if (size < 1)
        fail("E2215", "a size must be at least 1", a.spans[k], fmt::format("this is {}", size),
             "what concat joins to may be an empty list: h = [], h = concat(h, [x])");
      axes.push_back({false, size});
    }
  }
  const Dims dims = finite_dims(axes);
  check_size(dims, a.span);
  const NodeId constant = build(a.span).constant(value, dims);
  const Value out{Tensor{builder_.expand(constant, has_width(axes), dims), axes}};
  return has_width(axes) ? joined({which}, std::vector<Value>(
                                               static_cast<std::size_t>(widths_[which].units), out))
                         : out;
}
/// Entries along an axis: a number, or the width.
std::pair<Axes, std::vector<std::size_t>> Lowerer::axes_of(const Value& x, Span span) {
  if (x.as<Poison>()) throw Rejection{{}, true};
  Axes axes;
  std::vector<std::size_t> widths;  // of several, in order
  if (const auto* blocks = x.as<Blocks>()) widths = blocks->widths;
  const Value& part = widths.empty() ? x : x.as<Blocks>()->parts[0];
  if (const auto* array = part.as<MatrixArray>()) axes = finite_axes(array->dims);
  if (part.as<MatrixArray>() || part.as<Matrix>())
    axes.insert(axes.end(), 2, Axis{true, 0});
  else
    axes = tensor(part, span).axes;
  return {axes, widths};
}

Value Lowerer::builtin_ndim(Arguments& a) {
  return {Number{static_cast<double>(axes_of(a.positional[0], a.spans[0]).first.size()), 0}};
}

Value Lowerer::builtin_size(Arguments& a) {
  const auto [axes, widths] = axes_of(a.positional[0], a.spans[0]);
  std::int64_t axis = integer(a.positional[1], a.spans[1], "an axis");
  const auto rank = static_cast<std::int64_t>(axes.size());
  if (axis < -rank || axis >= rank)
    fail("E2212", fmt::format("axis {} does not exist", axis), a.spans[1],
         "the value has " + std::to_string(rank) + (rank == 1 ? " axis" : " axes"));
  const auto k = static_cast<std::size_t>(axis < 0 ? axis + rank : axis);
  if (!axes[k].width) return {Number{static_cast<double>(axes[k].size), 0}};
  const auto before = static_cast<std::size_t>(
      std::count_if(axes.begin(), axes.begin() + static_cast<std::ptrdiff_t>(k),
                    [](const Axis& other) { return other.width; }));
  const std::int64_t units = widths.empty() ? 1 : widths_[widths[before]].units;
  return {Number{static_cast<double>(units), 1}};
}

Value Lowerer::builtin_zeros(Arguments& a) {
  if (a.positional.size() == 2) {  // a matrix, of widths
    const auto rows = width_of(a.positional[0]), columns = width_of(a.positional[1]);
    if (rows && columns)
      return joined({*rows, *columns},
                    std::vector<Value>(
                        static_cast<std::size_t>(widths_[*rows].units * widths_[*columns].units),
                        {Matrix{}}));
  }
  return filled(a, 0);
}
Value Lowerer::builtin_ones(Arguments& a) { return filled(a, 1); }

Tensor Lowerer::filled_like(Arguments& a, double value) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const Dims dims = finite_dims(x.axes);
  const NodeId constant = build(a.span).constant(value, dims);
  return {builder_.expand(constant, has_width(x.axes), dims), x.axes};
}
Value Lowerer::builtin_zeros_like(Arguments& a) {
  if (a.positional[0].as<Matrix>()) return {Matrix{}};
  return {filled_like(a, 0)};
}
Value Lowerer::builtin_ones_like(Arguments& a) { return {filled_like(a, 1)}; }

/// 1 on the diagonal and below it.
NodeId Lowerer::ones_up_to_diagonal(std::int64_t size) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < size; ++i)
    for (std::int64_t j = 0; j < size; ++j) out.push_back(j <= i ? 1 : 0);
  return builder_.constant(std::move(out), {size, size});
}

Value Lowerer::builtin_eye(Arguments& a) {
  if (width_of(a.positional[0]))
    fail("E2207", "a matrix with two width axes is not written out", a.spans[0], "",
         "the identity is W @ x -> x: leave it out");
  const std::int64_t size = integer(a.positional[0], a.spans[0], "a size");
  if (size < 1)
    fail("E2215", "a size must be at least 1", a.spans[0], fmt::format("this is {}", size));
  check_size({size, size}, a.span);
  build(a.span);
  return {Tensor{identity_matrix(build(a.span), size), finite_axes({size, size})}};
}

/// [m, k] times the axis of x, of size k, which is then of size m.
Tensor Lowerer::contract_axis(NodeId matrix, const Tensor& x, std::size_t axis) {
  const std::int32_t own = finite_position(x.axes, axis),
                     rank = static_cast<std::int32_t>(finite_dims(x.axes).size());
  std::vector<std::int32_t> order, back;  // the axis last, and in its place again
  for (std::int32_t k = 0; k < rank; ++k) {
    if (k != own) order.push_back(k);
    back.push_back(k < own ? k : k == own ? rank - 1 : k - 1);
  }
  order.push_back(own);
  Tensor out = x;
  out.axes[axis].size = builder_.type(matrix).dims[0];
  out.node = builder_.permute(
      builder_.contract(builder_.permute(x.node, order), matrix, 0, 1, false), back);
  return out;
}

Value Lowerer::builtin_cumsum(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const std::size_t axis = axis_or_last(a, x);
  const std::int64_t size = x.axes[axis].size;
  check_size({size, size}, a.span);
  build(a.span);
  return {contract_axis(ones_up_to_diagonal(size), x, axis)};
}

/// The width axis stays where it is among the entries: what stands before it and behind it is
/// reshaped by itself.
Value Lowerer::builtin_reshape(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  Axes axes;
  std::optional<std::size_t> open;
  const auto part = [](const Axes& of, bool before) {  // entries before or behind the width
    std::int64_t size = 1;
    bool met = false;
    for (const Axis& k : of) {
      met = met || k.width;
      if (!k.width && met != before) size *= k.size;
    }
    return size;
  };
  for (std::size_t k = 1; k < a.positional.size(); ++k) {
    if (width_of(a.positional[k])) {
      if (has_width(axes)) fail("E2207", "a value has at most one width axis", a.spans[k]);
      axes.push_back({true, 0});
      continue;
    }
    if (const auto* n = a.positional[k].as<Number>(); n && n->power == 1)
      fail("E2308", "a width that is not declared", a.spans[k],
           "this is " + describe(a.positional[k]),
           fmt::format("heads are widths of their own: width d, {0} = 4 d, and reshape(x, S, 4, d)",
                       program_.width_name));
    const std::int64_t size = integer(a.positional[k], a.spans[k], "a size");
    if (size != -1 && size < 1)
      fail("E2215", "a size must be at least 1", a.spans[k], fmt::format("this is {}", size),
           "-1, for one axis, is what is left");
    if (size == -1 && std::exchange(open, axes.size()))
      fail("E2215", "only one size may be -1", a.spans[k]);
    axes.push_back({false, size == -1 ? 1 : size});
  }
  const auto whole = [&](const Axes& of) { return ir::size_of(finite_dims(of)); };
  if (open && whole(x.axes) % whole(axes) == 0) axes[*open].size = whole(x.axes) / whole(axes);
  if (whole(axes) != whole(x.axes) || has_width(axes) != has_width(x.axes))
    fail("E2202", "a reshape keeps the number of entries", a.span,
         fmt::format("{} to {}", text(x.axes), text(axes)),
         has_width(axes) != has_width(x.axes) ? "the width axis stays: reshape(x, a, n)" : "");
  if (part(axes, true) != part(x.axes, true))
    fail("E2202", "a reshape does not move the width axis", a.span,
         fmt::format("{} to {}", text(x.axes), text(axes)),
         "as many entries before it as there were; transpose(x, 1, 0) changes the order of axes");
  return {Tensor{build(a.span).reshape(x.node, finite_dims(axes)), axes}};
}

Value Lowerer::builtin_transpose(Arguments& a) {
  if (a.positional.size() == 1) return transpose(a.positional[0], a.spans[0]);
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const auto rank = static_cast<std::int64_t>(x.axes.size());
  std::vector<std::size_t> order;
  for (std::size_t k = 1; k < a.positional.size(); ++k) {
    const std::int64_t given = integer(a.positional[k], a.spans[k], "an axis");
    const auto axis = static_cast<std::size_t>(given < 0 ? given + rank : given);
    if (given < -rank || given >= rank)
      fail("E2212", fmt::format("axis {} does not exist", given), a.spans[k],
           "the value has shape " + text(x.axes));
    if (std::find(order.begin(), order.end(), axis) != order.end())
      fail("E2212", fmt::format("axis {} stands twice", given), a.spans[k]);
    order.push_back(axis);
  }
  if (order.size() != x.axes.size())
    fail("E2212", fmt::format("'{}' takes the order of all axes", a.name), a.span,
         "the value has shape " + text(x.axes), "two axes of a vector: transpose(x, 1, 0)");
  Axes axes;
  std::vector<std::int32_t> finite;
  for (const std::size_t axis : order) {
    axes.push_back(x.axes[axis]);
    if (!x.axes[axis].width) finite.push_back(finite_position(x.axes, axis));
  }
  return {Tensor{build(a.span).permute(x.node, std::move(finite)), axes}};
}

Value Lowerer::builtin_stack(Arguments& a) {
  if (a.positional[0].as<Matrix>()) {
    MatrixArray out{{static_cast<std::int64_t>(a.positional.size())}, {}};
    for (std::size_t k = 0; k < a.positional.size(); ++k) {
      if (!a.positional[k].as<Matrix>())
        fail("E2202", "shapes do not fit together in stack", a.spans[k], describe(a.positional[k]));
      out.items.push_back(*a.positional[k].as<Matrix>());
    }
    return {out};
  }
  return {list_tensor(List{a.positional}, a.span, a.spans)};
}

Value Lowerer::builtin_concat(Arguments& a) {
  for (std::size_t k = a.positional.size(); k-- > 0 && a.positional.size() > 1;)
    if (const auto* list = a.positional[k].as<List>(); list && list->items.empty()) {
      a.positional.erase(a.positional.begin() + static_cast<std::ptrdiff_t>(k));  // h = [] at first
      a.spans.erase(a.spans.begin() + static_cast<std::ptrdiff_t>(k));
    }
  std::vector<NodeId> parts;
  Tensor out = tensor(a.positional[0], a.spans[0]);
  const std::size_t axis = axis_argument(a, out).value_or(0);
  if (out.axes.empty() || out.axes[axis].width)
    fail(
        "E2213", "concat joins along a finite axis", a.spans[0], "this has shape " + text(out.axes),
        out.axes.size() > 1 ? "choose another one: axis = 1"
                            : "stack(x, y) makes a new axis; a layer on both is a matrix for each: "
                              "U @ x + V @ y, the blocks of one on their concatenation");
  std::size_t finite_axis = 0;
  for (std::size_t k = 0; k < axis; ++k) finite_axis += out.axes[k].width ? 0u : 1u;
  parts.push_back(out.node);
  for (std::size_t k = 1; k < a.positional.size(); ++k) {
    const Tensor t = tensor(a.positional[k], a.spans[k]);
    Axes expected = out.axes;
    if (t.axes.size() == expected.size()) expected[axis] = t.axes[axis];
    if (t.axes != expected)
      fail("E2202", "shapes do not fit together in concat", a.spans[k],
           fmt::format("{} and {}", text(out.axes), text(t.axes)));
    out.axes[axis].size += t.axes[axis].size;
    parts.push_back(t.node);
  }
  check_size(finite_dims(out.axes), a.span);
  out.node = build(a.span).add(ir::Concat{static_cast<std::int32_t>(finite_axis)}, parts);
  return {out};
}

Value Lowerer::builtin_stop(Arguments& a) {
  build(a.span);
  const auto stopped = [&](NodeId x) {
    return !x.valid() || builder_.constant_values(x) ? x : builder_.add(ir::Stop{}, {x});
  };
  const auto matrix = [&](Matrix m) {
    for (MatrixTerm& t : m.terms)
      t = {stopped(t.coefficient), stopped(t.w), t.transposed, stopped(t.d), stopped(t.x)};
    return m;
  };
  if (const auto* m = a.positional[0].as<Matrix>()) return {matrix(*m)};
  if (const auto* array = a.positional[0].as<MatrixArray>()) {
    MatrixArray out{array->dims, {}};
    for (const Matrix& m : array->items) out.items.push_back(matrix(m));
    return {std::move(out)};
  }
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  return {Tensor{builder_.add(ir::Stop{}, {x.node}), x.axes}};
}

Value Lowerer::builtin_permutation(Arguments& a) {
  const std::int64_t size = integer(a.positional[0], a.spans[0], "the size of a permutation");
  const std::int64_t seed = integer(a.positional[1], a.spans[1], "the seed of a permutation");
  if (size < 1 || size > 10'000'000)
    fail("E2215", "the size of a permutation must be between 1 and 10^7", a.spans[0],
         fmt::format("this is {}", size));
  std::vector<double> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), 0.0);
  const std::uint64_t key = mix_key(0x7065726dULL, static_cast<std::uint64_t>(seed));
  for (std::size_t i = order.size(); i > 1;
       --i) {  // Fisher-Yates; the remainder's bias is below 2^-37
    const auto j = static_cast<std::size_t>(mix_key(key, i) % i);
    std::swap(order[i - 1], order[j]);
  }
  return {Tensor{build(a.span).constant(std::move(order), {size}), {{false, size}}}};
}

Value Lowerer::builtin_one_hot(Arguments& a) {
  Dims dims;
  const std::int64_t classes = integer(a.positional[1], a.spans[1], "the number of classes");
  if (classes < 1)
    fail("E2215", "the number of classes must be at least 1", a.spans[1],
         fmt::format("this is {}", classes));
  if (const auto* t = a.positional[0].as<Tensor>();
      t && computed(a.positional[0]) && !has_width(t->axes)) {
    // As argmax gives them: the route that is taken.
    dims = finite_dims(t->axes);
    dims.push_back(1);
    std::vector<double> all(static_cast<std::size_t>(classes));
    std::iota(all.begin(), all.end(), 0.0);
    build(a.span);
    const NodeId hot = builder_.map(Fn::kEqual, {builder_.reshape(t->node, dims),
                                                 builder_.constant(std::move(all), {classes})});
    dims.back() = classes;
    check_size(dims, a.span);
    return {Tensor{hot, finite_axes(dims)}};
  }
  const std::vector<std::int64_t> labels = integers(a.positional[0], a.spans[0], "a label", &dims);
  if (dims.empty()) dims = {1};
  dims.push_back(classes);
  check_size(dims, a.span);
  std::vector<double> out;
  for (const auto label : labels) {
    if (label < 0 || label >= classes)
      fail("E2208", fmt::format("label {}, but there are {} classes", label, classes), a.spans[0],
           "", "labels count from 0");
    for (std::int64_t c = 0; c < classes; ++c) out.push_back(c == label ? 1 : 0);
  }
  return {Tensor{build(a.span).constant(std::move(out), dims), finite_axes(dims)}};
}

Tensor Lowerer::square_matrix(Arguments& a) {
  const Tensor x = finite(a.positional[0], a.spans[0], a.name.c_str());
  if (x.axes.size() < 2 || x.axes.back() != x.axes[x.axes.size() - 2])
    fail("E2216", fmt::format("'{}' takes a square matrix", a.name), a.spans[0],
         "this has shape " + text(x.axes));
  return x;
}

Value Lowerer::builtin_eigvals(Arguments& a) {
  Tensor x = square_matrix(a);
  x.node = build(a.span).add(ir::Eigvals{}, {x.node});
  x.axes.pop_back();
  return {x};
}

Value Lowerer::builtin_min_eig(Arguments& a) {
  Tensor x = *builtin_eigvals(a).as<Tensor>();
  const auto rank = x.axes.size();
  x.node = build(a.span).gather(x.node, static_cast<int>(rank) - 1, {0});
  x.axes.pop_back();
  x.node = builder_.reshape(x.node, finite_dims(x.axes));
  return {x};
}

Value Lowerer::builtin_trace(Arguments& a) {
  const Tensor x = square_matrix(a);
  const std::int64_t k = x.axes.back().size;
  build(a.span);
  Tensor out{builder_.times(x.node, identity_matrix(builder_, k)), x.axes};
  out = reduce_axis(out, out.axes.size() - 1, Reduction::kSum);
  return {reduce_axis(out, out.axes.size() - 1, Reduction::kSum)};
}

/// A sum of multiples in which all cancel, up to rounding.
bool Lowerer::sums_to_zero(NodeId id) const {
  std::map<NodeId, double> terms;  // a default node: 1
  std::size_t left = 256;
  const std::function<void(NodeId, double)> add = [&](NodeId x, double c) {
    const ir::Node& node = builder_.node(x);
    const auto* m = std::get_if<ir::Map>(&node.op);
    const auto* s = std::get_if<ir::Scale>(&node.op);
    if (left > 0) --left;
    if (const auto* values = builder_.constant_values(x)) {
      terms[{}] += c * (*values)[0];
    } else if (left > 0 && s && s->power == 0) {
      add(node.in[0], c * s->factor);
    } else if (left > 0 && m && (m->fn == Fn::kAdd || m->fn == Fn::kSub)) {
      add(node.in[0], c);
      add(node.in[1], m->fn == Fn::kAdd ? c : -c);
    } else {
      terms[x] += c;
    }
  };
  add(id, 1);
  return std::all_of(terms.begin(), terms.end(),
                     [](const auto& term) { return std::abs(term.second) < 1e-12; });
}

/// What multiplies each Gaussian matrix in a sum of versions.  Where all have the same in them and
/// the factors add up to 1, as those of (1 - c) W + c W_0, it is what they have.
Lowerer::GaussianPart Lowerer::gaussian_part(
    const std::vector<std::pair<NodeId, NodeId>>& versions) {
  std::vector<GaussianPart> parts;
  NodeId total = builder_.constant(0);
  for (const auto& [factor, w] : versions) {
    parts.push_back(gaussian_part(w));
    total = builder_.plus(total, factor);
  }
  GaussianPart out;
  if (std::all_of(parts.begin(), parts.end(), [&](const auto& p) { return p == parts[0]; })) {
    if (sums_to_zero(builder_.minus(total, builder_.constant(1)))) return parts[0];
    const bool none = sums_to_zero(total);
    for (const auto& [source, factor] : parts[0])
      out[source] = none ? builder_.constant(0) : builder_.times(total, factor);
    return out;
  }
  for (std::size_t k = 0; k < parts.size(); ++k)
    for (const auto& [source, factor] : parts[k]) {
      const NodeId own = builder_.times(versions[k].first, factor);
      const auto [it, fresh] = out.emplace(source, own);
      if (!fresh) it->second = builder_.plus(it->second, own);
    }
  return out;
}

Lowerer::GaussianPart Lowerer::gaussian_part(NodeId w) {
  if (const auto it = gaussian_parts_.find(w); it != gaussian_parts_.end()) return it->second;
  GaussianPart out;
  if (std::holds_alternative<ir::GaussianMatrix>(builder_.node(w).op)) {
    out[w] = builder_.constant(1);
  } else if (const ir::Op& op = builder_.node(w).op; std::holds_alternative<ir::ScaleMatrix>(op) ||
                                                     std::holds_alternative<ir::AddVersion>(op)) {
    std::vector<std::pair<NodeId, NodeId>> versions;
    NodeId next = w;
    for (; std::holds_alternative<ir::AddVersion>(builder_.node(next).op);
         next = builder_.node(next).in[0])
      versions.emplace_back(builder_.node(next).in[1], builder_.node(next).in[2]);
    if (std::holds_alternative<ir::ScaleMatrix>(builder_.node(next).op))
      versions.emplace_back(builder_.node(next).in[1], builder_.node(next).in[0]);
    else
      versions.emplace_back(builder_.constant(1), next);
    out = gaussian_part(versions);
  } else {
    out = gaussian_part(builder_.node(w).in[0]);
  }
  return gaussian_parts_[w] = out;
}

/// Outer products whose sum the matrix is, if the multiples of Gaussian matrices in it cancel, as
/// in gradients and in differences of versions.
std::optional<Matrix> Lowerer::as_outer_products(const Matrix& m) {
  std::vector<std::pair<NodeId, NodeId>> versions;
  for (const MatrixTerm& t : m.terms) {
    if (t.transposed) return std::nullopt;
    if (t.w.valid()) versions.emplace_back(t.coefficient, t.w);
  }
  if (versions.empty()) return m;
  for (const auto& [source, factor] : gaussian_part(versions))
    if (!sums_to_zero(factor)) return std::nullopt;
  Matrix out;
  bool known = true;
  std::size_t left = 4096;  // versions that are added may have each other in them
  const std::function<void(NodeId, NodeId)> expand = [&](NodeId w, NodeId c) {
    if (left == 0 || --left == 0) known = false;
    if (!known) return;
    const ir::Node node = builder_.node(w);
    if (std::holds_alternative<ir::GaussianMatrix>(node.op)) return;
    if (std::holds_alternative<ir::Parameter>(node.op) ||
        std::holds_alternative<ir::Stop>(node.op)) {
      expand(node.in[0], c);
    } else if (std::holds_alternative<ir::ScaleMatrix>(node.op)) {
      expand(node.in[0], builder_.times(c, node.in[1]));
    } else if (std::holds_alternative<ir::AddVersion>(node.op)) {
      expand(node.in[0], c);
      expand(node.in[2], builder_.times(c, node.in[1]));
    } else if (std::holds_alternative<ir::UpdateMatrix>(node.op)) {
      expand(node.in[0], c);
      for (std::size_t k = 1; k + 2 < node.in.size(); k += 3)  // which divides by n
        out.terms.push_back({builder_.times(c, builder_.scale(1, -1, node.in[k])),
                             {},
                             false,
                             node.in[k + 1],
                             node.in[k + 2]});
    } else {
      known = false;
    }
  };
  for (const MatrixTerm& t : m.terms)
    if (t.w.valid())
      expand(t.w, t.coefficient);
    else
      out.terms.push_back(t);
  return known ? std::optional(out) : std::nullopt;
}

/// Sum over all entries of x y.  Where Gaussian parts cancel, as in W - W0, the value is that of
/// outer products, in which nothing is lost; its derivatives are by the versions themselves.
NodeId Lowerer::product_of_entries(const Matrix& x, const Matrix& y, Span span) {
  const NodeId whole = inner_product(x, y, span);
  const auto has_version = [](const Matrix& m) {
    return std::any_of(m.terms.begin(), m.terms.end(),
                       [](const MatrixTerm& t) { return t.w.valid(); });
  };
  if (!has_version(x) && !has_version(y)) return whole;
  const std::optional<Matrix> left = as_outer_products(x), right = as_outer_products(y);
  // After many updates all pairs of outer products would be too many; versions of each other cost
  // the same at every step, and their large parts cancel as symbols.
  constexpr std::size_t kFew = 32;
  const auto few = [](const std::optional<Matrix>& m) { return m && m->terms.size() <= kFew; };
  if (!few(left) && !few(right)) return whole;
  const auto stop = [&](NodeId v) {
    return builder_.constant_values(v) ? v : builder_.add(ir::Stop{}, {v});
  };
  const NodeId value = inner_product(few(left) ? *left : x, few(right) ? *right : y, span);
  return builder_.plus(stop(value), builder_.minus(whole, stop(whole)));
}

/// The root of the sum of squares of all entries, coordinates among them.
Value Lowerer::builtin_norm(Arguments& a) {
  build(a.span);
  const auto root = [&](NodeId squares) {
    return Value{Tensor{builder_.map(Fn::kSqrt, {squares}), {}}};
  };
  // Of matrices squares are sums of products, which rounding may leave below 0.
  const auto root_of_sum = [&](NodeId squares) {
    return root(builder_.constant_values(squares) ? squares : builder_.map(Fn::kRelu, {squares}));
  };
  if (const auto* m = a.positional[0].as<Matrix>())
    return root_of_sum(product_of_entries(*m, *m, a.span));
  if (const auto* array = a.positional[0].as<MatrixArray>()) {
    NodeId total = builder_.constant(0);
    for (const Matrix& m : array->items)
      total = builder_.plus(total, product_of_entries(m, m, a.span));
    return root_of_sum(total);
  }
  if (const auto* t = a.positional[0].as<Tensor>(); t && has_width(t->axes)) {
    return root(inner_product({*t}, {*t}, a.span));
  }
  const Tensor x = finite(a.positional[0], a.spans[0], "norm");
  const Tensor square{builder_.map(Fn::kPower, {x.node}, 2), x.axes};
  return {
      Tensor{builder_.map(Fn::kSqrt, {reduce(square, std::nullopt, Reduction::kSum).node}), {}}};
}

Value Lowerer::builtin_samples(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  const std::int64_t count = integer(a.positional[1], a.spans[1], "the number of samples");
  if (!has_width(x.axes))
    fail("E2214", "samples are taken along a width axis", a.spans[0],
         "this has shape " + text(x.axes));
  if (count < 1 || count > 100'000)
    fail("E2215", "the number of samples must be between 1 and 100000", a.spans[1],
         fmt::format("this is {}", count));
  Dims dims = finite_dims(x.axes);
  dims.push_back(count);
  check_size(dims, a.span);
  return {Tensor{build(a.span).add(ir::Samples{count}, {x.node}), finite_axes(dims)}};
}

Value Lowerer::builtin_hist(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  if (!has_width(x.axes))
    fail("E2214", "hist counts along a width axis", a.spans[0], "this has shape " + text(x.axes));
  const auto option = [&](const char* name, double otherwise) {
    const auto it = a.named.find(name);
    return it == a.named.end() ? otherwise
                               : plain_number(it->second.first, it->second.second, name);
  };
  const double low = option("low", -4), high = option("high", 4), bins = option("bins", 32);
  if (!(low < high) || !std::isfinite(low) || !std::isfinite(high))
    fail("E2215", "hist needs low < high, both finite", a.span,
         fmt::format("low = {}, high = {}", low, high));
  if (!(bins >= 1 && bins <= 100'000 && bins == std::round(bins)))
    fail("E2215", "the number of bins must be an integer between 1 and 100000",
         a.named.contains("bins") ? a.named.at("bins").second : a.span,
         fmt::format("this is {}", bins));
  Dims dims = finite_dims(x.axes);
  dims.push_back(static_cast<std::int64_t>(bins));
  check_size(dims, a.span);
  return {Tensor{build(a.span).add(ir::Histogram{low, high, dims.back()}, {x.node}),
                 finite_axes(dims)}};
}

Value Lowerer::builtin_outer(Arguments& a) {
  const Tensor d = tensor(a.positional[0], a.spans[0]), x = tensor(a.positional[1], a.spans[1]);
  if (d.axes.empty() || x.axes.empty())
    fail("E2204", "outer takes two vectors", d.axes.empty() ? a.spans[0] : a.spans[1],
         "this is a scalar");
  const Axes batch_d(d.axes.begin(), d.axes.end() - 1), batch_x(x.axes.begin(), x.axes.end() - 1);
  if (batch_d != batch_x || has_width(batch_d))
    fail("E2202", "shapes do not fit together in outer", a.span,
         fmt::format("{} and {}", text(d.axes), text(x.axes)),
         "outer(d, x) is d x', summed over equal leading axes");
  ir::Builder& b = build(a.span);
  if (d.axes.back().width && x.axes.back().width)
    return {Matrix{{MatrixTerm{b.constant(1), {}, false, d.node, x.node}}}};
  // One side is finite: the product is an ordinary block [.., out, in] summed over the batch.
  check_size(finite_dims({d.axes.back(), x.axes.back()}), a.span);
  const std::int64_t samples = ir::size_of(finite_dims(batch_d));
  const auto rows = [&](const Tensor& t) {  // [p.., k] -> [k, p], [p.., n] -> [p]
    if (t.axes.back().width) return b.reshape(t.node, {samples});
    return b.permute(b.reshape(t.node, {samples, t.axes.back().size}), {1, 0});
  };
  return {Tensor{b.contract(rows(d), rows(x), 0, 1, false), {d.axes.back(), x.axes.back()}}};
}

Value Lowerer::builtin_einsum(Arguments& a) {
  const auto* spec_text = a.positional[0].as<Text>();
  if (!spec_text)
    fail("E2316", "einsum starts with its index string", a.spans[0], "",
         "for instance einsum(\"pk,k->p\", a, b)");
  std::string spec;
  for (const char c : spec_text->value)
    if (c != ' ') spec += c;
  const auto arrow = spec.find("->");
  if (arrow == std::string::npos)
    fail("E2316", "einsum needs '->' and the indices of the result", a.spans[0], "",
         "for instance einsum(\"pk,k->p\", a, b)");
  std::vector<std::string> inputs{""};
  for (const char c : spec.substr(0, arrow)) {
    if (c == ',')
      inputs.emplace_back();
    else
      inputs.back() += c;
  }
  const std::string output = spec.substr(arrow + 2);
  if (inputs.size() != a.positional.size() - 1)
    fail("E2316",
         fmt::format("einsum names {} operand{}, but {} {} given", inputs.size(),
                     inputs.size() == 1 ? "" : "s", a.positional.size() - 1,
                     a.positional.size() == 2 ? "is" : "are"),
         a.spans[0], "", "one group of letters per operand, separated by commas");

  std::map<char, Axis> sizes;
  char width = 0;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const Tensor t = tensor(a.positional[k + 1], a.spans[k + 1]);
    if (inputs[k].size() != t.axes.size())
      fail("E2316",
           fmt::format("'{}' has {} ind{}, but the operand has {} ax{}", inputs[k],
                       inputs[k].size(), inputs[k].size() == 1 ? "ex" : "ices", t.axes.size(),
                       t.axes.size() == 1 ? "is" : "es"),
           a.spans[k + 1], "this has shape " + text(t.axes));
    for (std::size_t j = 0; j < t.axes.size(); ++j) {
      const char c = inputs[k][j];
      if (!std::isalpha(static_cast<unsigned char>(c)))
        fail("E2316", fmt::format("'{}' is no index: use letters", c), a.spans[0]);
      if (inputs[k].find(c) != j)
        fail("E2316", fmt::format("index '{}' is repeated within one operand", c), a.spans[0], "",
             "use trace(..) or multiply by an identity");
      const auto [it, fresh] = sizes.emplace(c, t.axes[j]);
      if (!fresh && it->second != t.axes[j])
        fail("E2202", fmt::format("index '{}' has two sizes", c), a.spans[k + 1],
             "this has shape " + text(t.axes));
      if (!t.axes[j].width) continue;
      if (width && width != c)
        fail("E2207", "einsum allows one width axis", a.spans[k + 1],
             fmt::format("here it is '{}', before it was '{}'", c, width),
             "outer(d, x) makes a matrix for an update W += ..");
      width = c;
    }
  }
  for (std::size_t j = 0; j < output.size(); ++j) {
    if (!sizes.contains(output[j]))
      fail("E2316", fmt::format("index '{}' of the result stands in no operand", output[j]),
           a.spans[0]);
    if (output.find(output[j]) != j)
      fail("E2316", fmt::format("index '{}' is repeated in the result", output[j]), a.spans[0]);
  }
  const bool over_width = width && output.find(width) == std::string::npos;

  // Operands are folded from the left; labels of finite axes only.
  ir::Builder& b = build(a.span);
  const auto finite_labels = [&](std::string s) {
    std::erase(s, width);
    return s;
  };
  const auto needed_later = [&](char c, std::size_t next) {
    if (output.find(c) != std::string::npos) return true;
    for (std::size_t k = next; k < inputs.size(); ++k)
      if (inputs[k].find(c) != std::string::npos) return true;
    return false;
  };
  const auto permute_to = [&](NodeId node, const std::string& from, const std::string& to) {
    std::vector<std::int32_t> axes;
    for (const char c : to) axes.push_back(static_cast<std::int32_t>(from.find(c)));
    return b.permute(node, axes);
  };
  NodeId node = tensor(a.positional[1], a.spans[1]).node;
  std::string labels = finite_labels(inputs[0]);
  for (std::size_t k = 1; k <= inputs.size(); ++k) {
    const std::string other = k < inputs.size() ? finite_labels(inputs[k]) : "";
    // Labels that nobody else needs are summed at once.
    for (std::size_t j = labels.size(); j-- > 0;)
      if (other.find(labels[j]) == std::string::npos && !needed_later(labels[j], k)) {
        node = b.sum(node, static_cast<int>(j));
        labels.erase(j, 1);
      }
    if (k == inputs.size()) break;
    NodeId next = tensor(a.positional[k + 1], a.spans[k + 1]).node;
    // Coordinates are summed where the last two operands that have them meet.
    const bool summed = over_width && b.type(node).width && b.type(next).width &&
                        std::none_of(inputs.begin() + static_cast<std::ptrdiff_t>(k) + 1,
                                     inputs.end(), [&](const std::string& later) {
                                       return later.find(width) != std::string::npos;
                                     });
    std::string batch, left, right, inner, next_labels = other;
    for (std::size_t j = next_labels.size(); j-- > 0;)
      if (labels.find(next_labels[j]) == std::string::npos &&
          !needed_later(next_labels[j], k + 1)) {
        next = b.sum(next, static_cast<int>(j));
        next_labels.erase(j, 1);
      }
    for (const char c : labels) {
      if (next_labels.find(c) == std::string::npos)
        left += c;
      else
        (needed_later(c, k + 1) ? batch : inner) += c;
    }
    for (const char c : next_labels)
      if (labels.find(c) == std::string::npos) right += c;
    Dims dims;
    for (const char c : batch + left + right) dims.push_back(sizes.at(c).size);
    check_size(dims, a.span);
    node = b.contract(permute_to(node, labels, batch + left + inner),
                      permute_to(next, next_labels, batch + right + inner),
                      static_cast<int>(batch.size()), static_cast<int>(inner.size()), summed);
    if (summed) node = b.scale(1, 1, node);  // a sum is n times the average
    labels = batch + left + right;
  }
  if (over_width && b.type(node).width) node = b.scale(1, 1, b.average(node));
  Axes axes;
  for (const char c : output) axes.push_back(sizes.at(c));
  return {Tensor{permute_to(node, labels, finite_labels(output)), axes}};
}

std::vector<NodeId> Lowerer::version_nodes(const Value& value) const {
  std::vector<NodeId> out;
  const auto add = [&](const Matrix& m) {
    if (m.terms.size() == 1 && m.terms[0].w.valid() && !m.terms[0].transposed) {
      const auto* c = builder_.constant_values(m.terms[0].coefficient);
      if (c && (*c)[0] == 1) out.push_back(m.terms[0].w);
    }
  };
  if (const auto* t = value.as<Tensor>()) out.push_back(t->node);
  if (const auto* m = value.as<Matrix>()) add(*m);
  if (const auto* a = value.as<MatrixArray>())
    for (const Matrix& m : a->items) add(m);
  return out;
}

Value Lowerer::as_value(const Value& target, const Derivative* derivatives) {
  const auto as_matrix = [](const Derivative& d) {
    Matrix m;
    for (const OuterTerm& t : d.outer) m.terms.push_back({t.coefficient, {}, false, t.d, t.x});
    for (const VersionTerm& t : d.versions) m.terms.push_back({t.coefficient, t.w, false, {}, {}});
    return m;
  };
  if (const auto* t = target.as<Tensor>()) return {Tensor{derivatives->tensor, t->axes}};
  if (target.as<Matrix>()) return {as_matrix(*derivatives)};
  MatrixArray out{target.as<MatrixArray>()->dims, {}};
  for (std::size_t k = 0; k < target.as<MatrixArray>()->items.size(); ++k)
    out.items.push_back(as_matrix(derivatives[k]));
  return {out};
}

Value Lowerer::builtin_grad(Arguments& a) {
  const NodeId loss = scalar({finite(a.positional[0], a.spans[0], "a loss")}, a.spans[0], "a loss");
  const Value& target = a.positional[1];
  const std::vector<NodeId> nodes = version_nodes(target);
  const std::size_t expected =
      target.as<MatrixArray>() ? target.as<MatrixArray>()->items.size() : 1;
  const auto* name = std::get_if<ast::Name>(&a.call.args[1]->node);
  const Binding* binding = name ? find_or_null(name->name) : nullptr;
  const auto keep_apart = [&] {  // once more, with this value as a variable of its own
    met_ = binding->span.begin;
    throw Rejection{{}, true};
  };
  if (nodes.size() != expected && binding && target.as<Matrix>() &&
      !opaque_names_.contains(binding->span.begin))
    keep_apart();
  if (nodes.size() != expected)
    fail("E2502", "a gradient is taken with respect to a named value", a.spans[1],
         "this is " + describe(target),
         target.as<Number>()
             ? fmt::format("a number known before the run is no variable: declare "
                           "param s : [] ~ normal({}, 0), which starts at this value",
                           target.as<Number>()->value)
             : "name a parameter, a random value or a variable");
  if (binding && target.as<Tensor>()) {
    const ir::Op& op = builder_.node(nodes[0]).op;
    if (binding->kind != Kind::kParam && !opaque_names_.contains(binding->span.begin) &&
        (std::holds_alternative<ir::Constant>(op) || std::holds_alternative<ir::Scale>(op) ||
         std::holds_alternative<ir::Expand>(op)))
      keep_apart();
  }
  // Parameters are constants where the loss has the variable in it at their side, as X in the loss
  // of a network trained on X; a variable that is behind updates only is meant through them.
  std::vector<NodeId> fixed;
  if (!flag(a, "through", false)) {
    const std::unordered_set<std::uint32_t> seen = behind(loss);
    if (std::any_of(nodes.begin(), nodes.end(), [&](NodeId id) { return seen.contains(id.value); }))
      fixed = current_versions();
  }
  const bool of_kernel = differentiates_kernel(loss, nodes, fixed, a.span);
  build(a.span);
  differentiated_.push_back(loss);
  Result<std::vector<Derivative>> result = gradient(builder_, loss, nodes, fixed);
  if (!result) throw not_differentiable(result.errors()[0], a.span);
  if (of_kernel)
    for (const Derivative& d : *result)
      if (d.tensor.valid()) kernel_nodes_.push_back(d.tensor);
  return as_value(target, result->data());
}

}  // namespace tplimit::lowering
