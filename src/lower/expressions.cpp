#include <algorithm>
#include <cmath>
#include <numeric>

#include "lower/lowerer.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/lower/library.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::lowering {

using ast::BinaryOp;
using ir::Fn;

namespace {
constexpr int kMaxNesting = 2000;  // two expressions of the height that the parser allows
constexpr std::int64_t kCommonDenominator =
    20160;  // 2^6 3^2 5 7: sums of many exponents keep a small denominator
}  // namespace

// ---- conversions
// -----------------------------------------------------------------------------------

std::string Lowerer::describe(const Value& value) const {
  return std::visit(
      overloaded{[&](const Number& n) {
                   if (n.power == 0) return fmt::format("the number {}", n.value);
                   const std::string power = power_of_width(n.power, program_.width_name);
                   return n.value == 1 ? power : fmt::format("{} {}", n.value, power);
                 },
                 [&](const Tensor& t) {
                   return t.axes.empty() ? std::string("a scalar")
                                         : "a value of shape " + text(t.axes);
                 },
                 [&](const Matrix&) {
                   return fmt::format("a matrix of shape [{0}, {0}]", program_.width_name);
                 },
                 [&](const MatrixArray&) { return std::string("an array of width matrices"); },
                 [&](const EntryProducts&) {
                   return std::string("products of the entries of width matrices");
                 },
                 [&](const Text& t) { return "the text \"" + t.value + "\""; },
                 [&](const Flag& f) { return std::string(f.value ? "true" : "false"); },
                 [&](const Interval& i) {
                   return fmt::format("the range {}..{}", i.begin, i.begin + i.step * i.count) +
                          (i.step == 1 ? "" : fmt::format(" by {}", i.step));
                 },
                 [&](const List&) { return std::string("a list"); },
                 [&](const Blocks& blocks) {
                   return (blocks.widths.size() == 2 ? "a matrix of shape " : "a value of shape ") +
                          shape_text(blocks);
                 },
                 [&](const Callable& f) { return fmt::format("the function '{}'", f.name); },
                 [&](const Poison&) { return std::string("an undefined value"); }},
      value.v);
}

Tensor Lowerer::list_tensor(const List& list, Span span, const std::vector<Span>& items) {
  if (list.items.empty())
    fail("E2301", "an empty list has no shape", span, "", "write at least one item");
  std::vector<NodeId> parts;
  Axes axes;
  for (const Value& item : list.items) {
    const Span where = parts.size() < items.size() ? items[parts.size()] : span;
    const Tensor t = tensor(item, where);
    if (!parts.empty() && t.axes != axes)
      fail("E2302", "the items differ in shape", where,
           fmt::format("this has shape {}, those before it {}", text(t.axes), text(axes)),
           "all items need one shape, as the rows of a matrix do");
    axes = t.axes;
    Dims dims = finite_dims(axes);
    dims.insert(dims.begin(), 1);
    parts.push_back(build(span).reshape(t.node, dims));
  }
  axes.insert(axes.begin(), Axis{false, static_cast<std::int64_t>(list.items.size())});
  check_size(finite_dims(axes), span);
  const NodeId node = parts.size() == 1 ? parts[0] : build(span).add(ir::Concat{0}, parts);
  return {node, axes};
}

void Lowerer::check_size(const Dims& dims, Span span) const {
  constexpr double kMost = 1e8;
  double size = 1;
  for (const auto d : dims) size *= static_cast<double>(d);
  if (size > kMost)
    fail("E2215", "the value is too large", span,
         fmt::format("it has {} = {:.3g} entries", text(finite_axes(dims)), size),
         "at most 10^8 entries fit into one value");
}

Tensor Lowerer::tensor(const Value& v, Span span) {
  if (const auto* t = v.as<Tensor>()) return *t;
  if (const auto* n = v.as<Number>())
    return {build(span).scale(1, n->power, builder_.constant(n->value)), {}};
  if (const auto* l = v.as<List>()) return list_tensor(*l, span);
  if (v.as<Poison>()) throw Rejection{{}, true};
  if (const auto* blocks = v.as<Blocks>(); blocks && blocks->widths.size() == 1)
    fail("E2305", "a value with a width axis cannot be used here", span, describe(v),
         "average over the coordinates with E(..) or gram(..) first; norm(x)^2 sums the squares of "
         "all "
         "entries");
  if (v.as<EntryProducts>())
    fail("E2303", "the entries of a width matrix cannot be used here", span, describe(v),
         "they can be summed: sum(W^2), mean(W * V)");
  if (v.as<Matrix>() || v.as<MatrixArray>() || v.as<Blocks>())
    fail("E2303", "a width matrix cannot be used here", span, describe(v),
         "multiply a vector by it first: W @ x");
  if (const auto* f = v.as<Callable>())
    fail("E2101", fmt::format("'{}' is a function", f->name), span, "it needs arguments",
         fmt::format("call it: {}(..)", f->name));
  fail("E2304", "a number or an array is needed here", span, "this is " + describe(v));
}

Tensor Lowerer::finite(const Value& v, Span span, const char* what) {
  Tensor t = tensor(v, span);
  if (has_width(t.axes))
    fail("E2305", fmt::format("{} takes no width axis", what), span,
         "this has shape " + text(t.axes),
         "average over the coordinates with E(..) or gram(..) first; norm(x)^2 sums the squares of "
         "all "
         "entries");
  return t;
}

NodeId Lowerer::scalar(const Value& v, Span span, const char* what) {
  const Tensor t = tensor(v, span);
  if (!t.axes.empty())
    fail("E2306", fmt::format("{} must be a scalar", what), span, "this has shape " + text(t.axes));
  return t.node;
}

Number Lowerer::number(const Value& v, Span span, const char* what) {
  if (const auto* n = v.as<Number>()) return *n;
  if (v.as<Poison>()) throw Rejection{{}, true};
  if (const auto* t = v.as<Tensor>(); t && t->axes.empty())
    if (const auto* values = builder_.constant_values(t->node)) return {(*values)[0], 0};
  fail("E2307", fmt::format("{} must be a number known before the run", what), span,
       computed(v) ? "this is computed by the run" : "this is " + describe(v));
}

bool Lowerer::computed(const Value& v) const {
  const auto* t = v.as<Tensor>();
  return t && !builder_.constant_values(t->node);
}

double Lowerer::plain_number(const Value& v, Span span, const char* what) {
  const Number n = number(v, span, what);
  if (n.power != 0)
    fail("E2308", fmt::format("{} must be a number, but it grows with the width", what), span,
         "this is " + describe(v),
         fmt::format("the width {} is a symbol; write a number here", program_.width_name));
  return n.value;
}

std::int64_t Lowerer::integer(const Value& v, Span span, const char* what) {
  const double x = plain_number(v, span, what);
  if (x != std::round(x) || std::abs(x) > 1e15)
    fail("E2309", fmt::format("{} must be an integer", what), span, fmt::format("this is {}", x));
  return static_cast<std::int64_t>(x);
}

std::vector<std::int64_t> Lowerer::integers(const Value& v, Span span, const char* what,
                                            Dims* shape) {
  if (v.as<Number>()) return {integer(v, span, what)};
  const Tensor t = tensor(v, span);
  const auto* values = builder_.constant_values(t.node);
  if (!values)
    fail("E2310", fmt::format("{} must be known before the run", what), span,
         "this is computed by the run",
         "it decides the shape of values, and shapes are fixed before anything runs");
  if (shape) *shape = finite_dims(t.axes);
  if (t.axes.size() > 1 && !shape)
    fail("E2310", fmt::format("{} is an integer, or there is a list of them", what), span,
         "this has shape " + text(t.axes));
  std::vector<std::int64_t> out;
  for (const double x : *values) {
    if (x != std::round(x) || std::abs(x) > 1e15)
      fail("E2309", fmt::format("{} must be an integer", what), span,
           fmt::format("one of them is {}", x));
    out.push_back(static_cast<std::int64_t>(x));
  }
  return out;
}

// ---- names
// -----------------------------------------------------------------------------------------

Lowerer::Binding* Lowerer::find_or_null(const std::string& name) {
  if (locals_) {
    if (const auto it = locals_->find(name); it != locals_->end()) return &it->second;
    if (library_call_) return nullptr;
    const auto it = declared(globals_, name);
    if (it == globals_.end()) return nullptr;
    // A model depends on parameters and its arguments, and on nothing else that a run computes.
    const bool script = it->second.kind == Kind::kLocal || it->second.kind == Kind::kLoop;
    return script && !known_before_run(it->second.value) ? nullptr : &it->second;
  }
  const auto it = declared(globals_, name);
  return it == globals_.end() ? nullptr : &it->second;
}

bool Lowerer::known_before_run(const Value& v) const {
  if (const auto* t = v.as<Tensor>()) {
    // A constant that `grad` takes the derivative by is wrapped, see `named`.
    const ir::Node& node = builder_.node(t->node);
    return builder_.constant_values(std::holds_alternative<ir::Parameter>(node.op) ? node.in[0]
                                                                                   : t->node);
  }
  if (const auto* list = v.as<List>())
    return std::all_of(list->items.begin(), list->items.end(),
                       [&](const Value& item) { return known_before_run(item); });
  return !v.as<Matrix>() && !v.as<MatrixArray>() && !v.as<EntryProducts>() && !v.as<Blocks>();
}

bool Lowerer::of_the_language(const std::string& name) {
  return builtins().contains(name) || unary_functions().contains(name);
}

std::optional<Callable> Lowerer::callable(const std::string& name) {
  if (const Binding* binding = find_or_null(name)) {
    if (const auto* f = binding->value.as<Callable>()) return *f;
    if (binding->value.as<Poison>()) throw Rejection{{}, true};
  }
  if (const auto it = declared(functions_, name); it != functions_.end() && !library_call_)
    return Callable{it->first, &it->second};
  if (of_the_language(name)) return Callable{name};
  if (const auto it = library().find(name); it != library().end())
    return Callable{name, &it->second};
  return std::nullopt;
}

const Source& Lowerer::library_source() {
  static const Source source("std.tp", std::string(standard_library()));
  return source;
}

const std::unordered_map<std::string, Definition>& Lowerer::library() {
  static const auto program = parse_syntax(library_source());
  static const auto table = [] {
    std::unordered_map<std::string, Definition> out;
    TPLIMIT_CHECK(program.ok(), "the standard library can be read: {}",
                  render(program.errors(), library_source()));
    for (const ast::Stmt& stmt : program->statements)
      if (const auto* f = std::get_if<ast::Function>(&stmt.node)) out[f->name.name] = {f, true};
    return out;
  }();
  return table;
}

Value Lowerer::evaluate_name(const std::string& name, Span span) {
  if (Binding* binding = find_or_null(name)) {
    if (binding->value.as<Poison>()) throw Rejection{{}, true};
    return binding->value;
  }
  for (const Width& w : widths_)
    if (name == w.name) return {Number{static_cast<double>(w.units), 1}};
  if (name == "pi") return {Number{3.14159265358979323846, 0}};
  if (name == "inf") return {Number{std::numeric_limits<double>::infinity(), 0}};
  if (auto f = callable(name)) return {std::move(*f)};
  if (locals_ && declared(globals_, name) != globals_.end())
    fail("E2102", fmt::format("'{}' is not visible inside a model", name), span,
         "this is computed by the run",
         "a model sees parameters and what is known before the run (constants, data, and what is "
         "computed from them); pass it as an argument");
  std::vector<std::string> known;
  if (locals_)
    for (const auto& [other, binding] : *locals_) known.push_back(other);
  for (const auto& [other, binding] : globals_)
    if (find_or_null(other)) known.push_back(other);
  for (const auto& [other, definition] : functions_) known.push_back(other);
  for (const Width& w : widths_) known.push_back(w.name);
  std::sort(known.begin(), known.end());
  std::string help = did_you_mean(name, known);
  if (help.empty() && name == "n" && !width_declared_) help = "declare the width first: width n";
  if (name == "None") help = "None makes a new axis where it is an index by itself: x[.., None]";
  fail("E2103", fmt::format("unknown name '{}'", name), span, "", help);
}

// ---- arithmetic
// ------------------------------------------------------------------------------------

/// g[.., None] * h of g [P], h [P, n], as one writes it in numpy: [P, 1] is aligned with [P].
void Lowerer::warn_of_axis_beside_width(const std::vector<Tensor>& in, const Axes& result,
                                        Span span) {
  for (const Tensor& wide : in)
    for (const Tensor& other : in)
      if (!wide.axes.empty() && wide.axes.back().width && !has_width(other.axes) &&
          other.axes.size() == wide.axes.size() && other.axes.size() > 1 &&
          other.axes.back().size == 1 && result.size() > wide.axes.size() &&
          std::equal(other.axes.begin(), other.axes.end() - 1, wide.axes.begin(),
                     [](const Axis& x, const Axis& y) {
                       return x == y || (x.size == 1 && !x.width) || (y.size == 1 && !y.width);
                     }) &&
          ir::size_of(finite_dims(result)) > ir::size_of(finite_dims(wide.axes)))
        warn("W2202",
             fmt::format("{} beside {} makes {}", text(other.axes), text(wide.axes), text(result)),
             span,
             "a value without a width axis is constant over coordinates: g * h of g [P], h [P, n] "
             "needs no axis of size 1");
}

Tensor Lowerer::combine(Fn fn, const std::vector<Tensor>& in, Span span, double parameter) {
  Dims dims;
  bool width = false;
  std::size_t after = 0;
  for (const Tensor& t : in) {
    const Dims own = finite_dims(t.axes);
    if (has_width(t.axes)) {
      if (width && axes_after_width(t.axes) != after)
        fail("E2201", "the width axes do not stand in the same place", span,
             fmt::format("{} and {}", text(in[0].axes), text(t.axes)),
             "transpose one of them with '");
      width = true;
      after = axes_after_width(t.axes);
    }
    if (own.size() > dims.size()) dims.insert(dims.begin(), own.size() - dims.size(), 1);
    for (std::size_t k = 1; k <= own.size(); ++k) {
      auto& to = dims[dims.size() - k];
      const auto from = own[own.size() - k];
      if (to != from && to != 1 && from != 1)
        fail("E2202", "shapes do not fit together", span,
             fmt::format("{} and {}", text(in[0].axes), text(t.axes)),
             "finite axes align from the right and must be equal or 1; a value without a width "
             "axis is constant over coordinates");
      if (to == 1) to = from;
    }
  }
  check_size(dims, span);
  if (after > dims.size()) after = dims.size();
  std::vector<NodeId> nodes;
  for (const Tensor& t : in) nodes.push_back(t.node);
  Axes axes = finite_axes(dims);
  if (width) axes.insert(axes.end() - static_cast<std::ptrdiff_t>(after), Axis{true, 0});
  warn_of_axis_beside_width(in, axes, span);
  return {build(span).map(fn, std::move(nodes), parameter), std::move(axes)};
}

Value Lowerer::elementwise(Fn fn, const std::vector<Value>& in, Span span, double parameter) {
  const bool numbers = std::all_of(in.begin(), in.end(), [](const Value& v) {
    return v.as<Number>() && v.as<Number>()->power == 0;
  });
  std::vector<Tensor> tensors;
  for (const Value& v : in) tensors.push_back(tensor(v, span));
  const Tensor out = combine(fn, tensors, span, parameter);
  if (numbers)
    if (const auto* values = builder_.constant_values(out.node)) return {Number{(*values)[0], 0}};
  return {out};
}

/// Powers of the width stay small fractions, so that no sum or product of them overflows.
Number Lowerer::checked(Number n, Span span) {
  const double p = static_cast<double>(n.power.numerator()),
               q = static_cast<double>(n.power.denominator());
  if (std::abs(p) > 1000 * q || kCommonDenominator % n.power.denominator() != 0)
    fail("E2403", "this power of the width is out of range", span,
         "it is " + power_of_width(n.power, program_.width_name),
         fmt::format("exponents lie between -1000 and 1000 and are fractions such as 1/2, 2/3 or "
                     "5/48 (denominators divide {})",
                     kCommonDenominator));
  return n;
}

bool Lowerer::is_zero(const Value& v) const {
  const auto* n = v.as<Number>();
  const auto* t = v.as<Tensor>();
  return (n && n->value == 0) || (t && t->axes.empty() && builder_.is_zero(t->node));
}

Value Lowerer::scaled_matrix(const Matrix& m, NodeId factor) {
  Matrix out = m;
  for (MatrixTerm& t : out.terms) t.coefficient = builder_.times(t.coefficient, factor);
  return {out};
}

/// A * B and W^2 of width matrices, and sums and multiples of them; nothing if a and b are others.
std::optional<EntryProducts> Lowerer::entry_products(BinaryOp op, const Value& a, const Value& b,
                                                     Span span) {
  const auto products = [&](const Matrix& x, const Matrix& y) {
    return EntryProducts{{{build(span).constant(1), x, y}}};
  };
  if (const auto* y = b.as<Number>(); op == BinaryOp::kPow && y && y->value == 2 && y->power == 0) {
    if (const auto* m = a.as<Matrix>()) return products(*m, *m);
    if (const auto* array = a.as<MatrixArray>()) {
      EntryProducts out;
      for (const Matrix& m : array->items) out.terms.push_back(products(m, m).terms[0]);
      return out;
    }
  }
  if (op == BinaryOp::kMul && a.as<Matrix>() && b.as<Matrix>())
    return products(*a.as<Matrix>(), *b.as<Matrix>());
  const auto *x = a.as<EntryProducts>(), *y = b.as<EntryProducts>();
  const auto multiple = [&](EntryProducts of, NodeId factor) {
    for (EntryProducts::Term& t : of.terms) t.coefficient = builder_.times(t.coefficient, factor);
    return of;
  };
  if (x && y && (op == BinaryOp::kAdd || op == BinaryOp::kSub)) {
    EntryProducts out = *x;
    const EntryProducts right = multiple(*y, build(span).constant(op == BinaryOp::kAdd ? 1 : -1));
    out.terms.insert(out.terms.end(), right.terms.begin(), right.terms.end());
    return out;
  }
  if (op == BinaryOp::kMul && (x || y) && !(x && y))
    return multiple(x ? *x : *y, scalar(x ? b : a, span, "the factor of a width matrix"));
  if (op == BinaryOp::kDiv && x && !y)
    return multiple(*x,
                    build(span).map(Fn::kDiv, {builder_.constant(1),
                                               scalar(b, span, "the divisor of a width matrix")}));
  return std::nullopt;
}

Value Lowerer::arithmetic(BinaryOp op, const Value& a, const Value& b, Span span) {
  if (a.as<Poison>() || b.as<Poison>()) throw Rejection{{}, true};
  if (auto parts = part_by_part({a, b}, span, [&](const std::vector<Value>& args) {
        return arithmetic(op, args[0], args[1], span);
      }))
    return std::move(*parts);
  const auto *x = a.as<Number>(), *y = b.as<Number>();
  const auto defined = [&](Number result, Number left, Number right) {
    if (std::isnan(result.value) ||
        (std::isinf(result.value) && std::isfinite(left.value) && std::isfinite(right.value)))
      not_finite(
          std::isnan(result.value) ? "this is not a real number" : "this number is too large", span,
          fmt::format("computed from {} and {}", left.value, right.value));
    return result;
  };
  if (x && y) {
    switch (op) {
      case BinaryOp::kAdd:
      case BinaryOp::kSub:
        if (x->power == y->power)
          return {defined(
              Number{op == BinaryOp::kAdd ? x->value + y->value : x->value - y->value, x->power},
              *x, *y)};
        break;
      case BinaryOp::kMul:
        return {checked(defined(Number{x->value * y->value, x->power + y->power}, *x, *y), span)};
      case BinaryOp::kDiv:
        if (y->value == 0) divided_by_zero(span);
        return {checked(defined(Number{x->value / y->value, x->power - y->power}, *x, *y), span)};
      case BinaryOp::kPow: {
        if (y->power != 0)
          fail("E2402", "an exponent may not depend on the width", span,
               "the exponent is " + describe(b));
        if (x->value == 0 && y->value < 0)
          divided_by_zero(span, fmt::format("0 to the power {}", y->value));
        const auto power = exponent_from_double(y->value);
        if (x->power != 0 && !power)
          fail("E2403", "a power of the width must be a fraction with a small denominator", span,
               fmt::format("the exponent is {}", y->value),
               "write it as a fraction, for instance n^(1/3)");
        const Number out = defined(Number{std::pow(x->value, y->value), 0}, *x, *y);
        return {checked(Number{out.value, x->power == 0 ? Exponent(0) : x->power * *power}, span)};
      }
      default: break;
    }
  }
  if (auto products = entry_products(op, a, b, span)) return {std::move(*products)};
  const auto *ma = a.as<Matrix>(), *mb = b.as<Matrix>();
  if (a.as<MatrixArray>() || b.as<MatrixArray>())
    array_not_indexed(span, "write W[0] for one of them");
  if (ma || mb) {
    build(span);
    if (ma && mb && (op == BinaryOp::kAdd || op == BinaryOp::kSub)) {
      Matrix out = *ma;
      const Value right = op == BinaryOp::kAdd ? b : scaled_matrix(*mb, builder_.constant(-1));
      for (const MatrixTerm& t : right.as<Matrix>()->terms) out.terms.push_back(t);
      return {out};
    }
    // An accumulator of gradients starts at 0.
    if ((op == BinaryOp::kAdd || op == BinaryOp::kSub) && is_zero(ma ? b : a))
      return ma ? a : op == BinaryOp::kAdd ? b : scaled_matrix(*mb, builder_.constant(-1));
    if (op == BinaryOp::kMul && !(ma && mb)) {
      const Value& other = ma ? b : a;
      return scaled_matrix(ma ? *ma : *mb, scalar(other, span, "the factor of a width matrix"));
    }
    if (op == BinaryOp::kDiv && ma && !mb) {
      const NodeId factor = builder_.map(
          Fn::kDiv, {builder_.constant(1), scalar(b, span, "the divisor of a width matrix")});
      return scaled_matrix(*ma, factor);
    }
    if (op == BinaryOp::kPow)
      fail("E2312", "the entries of a width matrix have no other power than the square", span,
           fmt::format("{} and {}", describe(a), describe(b)),
           "sum(W^2) is the squared norm, norm(W) the norm");
    fail("E2312", "this operation is not defined for width matrices", span,
         fmt::format("{} and {}", describe(a), describe(b)),
         "matrices can be added, scaled by numbers, transposed and applied to vectors: W @ x");
  }
  switch (op) {
    case BinaryOp::kAdd: return elementwise(Fn::kAdd, {a, b}, span);
    case BinaryOp::kSub: return elementwise(Fn::kSub, {a, b}, span);
    case BinaryOp::kMul: return elementwise(Fn::kMul, {a, b}, span);
    case BinaryOp::kDiv:
      if (y && y->value == 0) divided_by_zero(span);
      return elementwise(Fn::kDiv, {a, b}, span);
    case BinaryOp::kPow:
      if (y && y->power == 0) {
        if (y->value == 0) return elementwise(Fn::kPower, {a}, span, 0);
        if (y->value == 1) return a;
        if (y->value == 0.5) return elementwise(Fn::kSqrt, {a}, span);
        return elementwise(Fn::kPower, {a}, span, y->value);
      }
      return elementwise(Fn::kPow, {a, b}, span);
    case BinaryOp::kLess: return elementwise(Fn::kLess, {a, b}, span);
    case BinaryOp::kLessEqual: return elementwise(Fn::kLessEqual, {a, b}, span);
    case BinaryOp::kGreater: return elementwise(Fn::kLess, {b, a}, span);
    case BinaryOp::kGreaterEqual: return elementwise(Fn::kLessEqual, {b, a}, span);
    case BinaryOp::kEqual: return elementwise(Fn::kEqual, {a, b}, span);
    case BinaryOp::kNotEqual: return elementwise(Fn::kNotEqual, {a, b}, span);
    case BinaryOp::kMatMul: break;
  }
  TPLIMIT_CHECK(false, "matrix products are handled elsewhere");
  return {};
}

Value Lowerer::transpose(const Value& v, Span span) {
  if (const auto* m = v.as<Matrix>()) {
    Matrix out = *m;
    for (MatrixTerm& t : out.terms) {
      if (t.w.valid())
        t.transposed = !t.transposed;
      else
        std::swap(t.d, t.x);
    }
    return {out};
  }
  if (v.as<MatrixArray>()) array_not_indexed(span, "write W[0]'");
  if (const auto* blocks = v.as<Blocks>()) return block_transpose(*blocks, span);
  const Tensor t = tensor(v, span);
  if (t.axes.size() < 2)
    fail("E2203", "a transpose needs at least two axes", span, "this has shape " + text(t.axes),
         "x' of a vector is not needed: v @ x contracts last axes, outer(d, x) is d x'");
  Axes axes = t.axes;
  const std::size_t last = axes.size() - 1;
  std::swap(axes[last], axes[last - 1]);
  NodeId node = t.node;
  if (!axes[last].width && !axes[last - 1].width) {
    const std::size_t rank = finite_dims(t.axes).size();
    std::vector<std::int32_t> order(rank);
    std::iota(order.begin(), order.end(), 0);
    std::swap(order[rank - 1], order[rank - 2]);
    node = build(span).permute(node, order);
  }
  return {Tensor{node, axes}};
}

Value Lowerer::apply_matrix(const Matrix& w, const Tensor& x, Span span) {
  ir::Builder& b = build(span);
  NodeId sum;
  const Dims dims = finite_dims(x.axes);
  for (const MatrixTerm& t : w.terms) {
    NodeId y;
    if (t.w.valid()) {
      y = b.matmul(t.w, x.node, t.transposed);
    } else {  // sum_p d[p] (x[p]' x) over coordinates: n times averages
      const NodeId flat_d = b.reshape(t.d, {ir::size_of(b.type(t.d).dims)});
      const NodeId flat_x = b.reshape(t.x, {ir::size_of(b.type(t.x).dims)});
      const NodeId products = b.contract(x.node, flat_x, 0, 0, true);  // [.., p]
      y = b.scale(1, 1, b.contract(products, b.permute(flat_d, {0}), 0, 1, false));
    }
    y = b.times(t.coefficient, y);
    sum = sum.valid() ? b.plus(sum, y) : y;
  }
  if (!sum.valid()) sum = b.zeros(true, dims);
  return {Tensor{sum, x.axes}};
}

Value Lowerer::matmul(const Value& a, const Value& x, Span span, Span a_span, Span x_span) {
  if (a.as<Poison>() || x.as<Poison>()) throw Rejection{{}, true};
  const std::string& n = program_.width_name;
  if (a.as<Blocks>() || x.as<Blocks>()) return block_product(a, x, span, a_span, x_span);
  if (a.as<MatrixArray>() || x.as<MatrixArray>())
    array_not_indexed(a.as<MatrixArray>() ? a_span : x_span, "write W[0] @ x");
  if (const auto* vector = a.as<Tensor>();
      x.as<Matrix>() && vector && !vector->axes.empty() && vector->axes.back().width)
    return matmul(transpose(x, x_span), a, span, x_span, a_span);  // x' W = (W' x)'
  if (x.as<Matrix>())
    fail("E2313", "'@' takes a vector on its right", x_span, describe(x),
         "apply matrices one after the other: W @ (V @ x); '@' groups to the right");
  const Tensor right = tensor(x, x_span);
  if (right.axes.empty())
    fail("E2204", "'@' contracts last axes, but this is a scalar", x_span, "", "use * for scalars");
  if (const auto* w = a.as<Matrix>()) {
    if (!right.axes.back().width)
      fail("E2205", "sizes differ in '@'", x_span,
           fmt::format("this has shape {}, but the matrix takes [.., {}]", text(right.axes), n));
    return apply_matrix(*w, right, span);
  }
  const Tensor left = tensor(a, a_span);
  if (left.axes.empty())
    fail("E2204", "'@' contracts last axes, but this is a scalar", a_span, "", "use * for scalars");
  if (left.axes.back().width && right.axes.size() == 2 && right.axes[0].width &&
      !right.axes[1].width)
    return matmul(transpose(x, x_span), a, span, x_span, a_span);  // h @ V is V' @ h
  // [m, k] @ [.., k, n]: the width has no entries to be contracted with, the axis before it has.
  if (right.axes.size() > 1 && right.axes.back().width && !has_width(left.axes) &&
      left.axes.back() == right.axes[right.axes.size() - 2]) {
    build(span);
    if (left.axes.size() < 3) {
      const std::int64_t rows = left.axes.size() == 2 ? left.axes[0].size : 1;
      const std::size_t axis = right.axes.size() - 2;
      Tensor out =
          contract_axis(builder_.reshape(left.node, {rows, left.axes.back().size}), right, axis);
      check_size(finite_dims(out.axes), span);
      if (left.axes.size() == 1) {
        out.axes.erase(out.axes.begin() + static_cast<std::ptrdiff_t>(axis));
        out.node = builder_.reshape(out.node, finite_dims(out.axes));
      }
      return {out};
    }
    // [b.., m, k] @ [k, n]: the same for each head or sample.
    if (right.axes.size() == 2) {
      const std::int64_t k = left.axes.back().size, rows = ir::size_of(finite_dims(left.axes)) / k;
      Tensor out = contract_axis(builder_.reshape(left.node, {rows, k}), right, 0);
      out.axes.assign(left.axes.begin(), left.axes.end() - 1);
      out.axes.push_back({true, 0});
      check_size(finite_dims(out.axes), span);
      out.node = builder_.reshape(out.node, finite_dims(out.axes));
      return {out};
    }
    // [b.., m, k] @ [b.., k, n]: a matrix for each sample.
    if (std::equal(left.axes.begin(), left.axes.end() - 2, right.axes.begin(),
                   right.axes.end() - 2)) {
      Tensor out = right;
      out.axes[out.axes.size() - 2] = left.axes[left.axes.size() - 2];
      check_size(finite_dims(out.axes), span);
      out.node = builder_.contract(left.node, right.node, static_cast<int>(left.axes.size()) - 2, 1,
                                   false);
      return {out};
    }
  }
  if (left.axes.size() > 2 && left.axes.back().width && right.axes.back().width &&
      axes_after_width(left.axes) == 0) {  // rows of readouts in several axes
    const Axes rows(left.axes.begin(), left.axes.end() - 1);
    const Tensor flat{build(span).reshape(left.node, {ir::size_of(finite_dims(rows))}),
                      {Axis{false, ir::size_of(finite_dims(rows))}, left.axes.back()}};
    Tensor out = *matmul({flat}, x, span, a_span, x_span).as<Tensor>();
    out.axes.pop_back();
    out.axes.insert(out.axes.end(), rows.begin(), rows.end());
    check_size(finite_dims(out.axes), span);
    out.node = builder_.reshape(out.node, finite_dims(out.axes));
    return {out};
  }
  if (left.axes.size() > 2)
    fail("E2206", "the left side of '@' has more than two axes", a_span,
         "this has shape " + text(left.axes),
         "index it first, or use einsum: einsum(\"pst,ptn->psn\", A, x) for a matrix of each "
         "sample");
  const Axis &inner_left = left.axes.back(), &inner_right = right.axes.back();
  if (inner_left != inner_right)
    fail(
        "E2205", "sizes differ in '@'", span,
        fmt::format("last axes of {} and {} are contracted", text(left.axes), text(right.axes)),
        right.axes.back().width && !has_width(left.axes)
            ? "a finite matrix [m, k] acts on the axis before the width of [.., k, n]; another one "
              "is moved there by transpose(x, ..)"
        : right.axes.size() == 2 && left.axes.size() == 2 && right.axes[0] == inner_left &&
                !has_width(left.axes) && !has_width(right.axes)
            ? "'@' contracts the last axes of both sides, A @ B is B A': the product A B is B' @ A"
        : right.axes.size() > 1 && right.axes[right.axes.size() - 2] == inner_left
            ? "'@' contracts the last axes of both sides: transpose the right side with ' (or "
              "drop its ')"
        : left.axes.size() == 2 && left.axes[0] == inner_right
            ? "'@' contracts the last axes of both sides: transpose the left side with '"
            : "'@' contracts the last axes of both sides");
  Axes axes(right.axes.begin(), right.axes.end() - 1);
  axes.insert(axes.end(), left.axes.begin(), left.axes.end() - 1);
  if (std::count_if(axes.begin(), axes.end(), [](const Axis& k) { return k.width; }) > 1)
    fail("E2207", "the product would have two width axes", span,
         fmt::format("{} @ {}", text(left.axes), text(right.axes)),
         "outer(d, x) makes such a matrix for an update W += ..");
  check_size(finite_dims(axes), span);
  ir::Builder& b = build(span);
  if (inner_left.width)
    return {Tensor{b.scale(1, 1, b.contract(right.node, left.node, 0, 0, true)), axes}};
  return {Tensor{b.contract(right.node, left.node, 0, 1, false), axes}};
}

Value Lowerer::evaluate_binary(const ast::Binary& b, Span span) {
  const Value left = evaluate(*b.left);
  const Value right = evaluate(*b.right);
  const auto check_operand = [&](const Value& v,
                                 Span where) {  // point at the operand, not at the whole expression
    if (v.as<Text>() || v.as<Flag>() || v.as<Interval>() || v.as<List>() || v.as<Callable>())
      (void)tensor(v, where);
  };
  // Texts and flags are compared with their like: if mode == "causal" { .. }
  if (b.op == BinaryOp::kEqual || b.op == BinaryOp::kNotEqual) {
    const auto *text = left.as<Text>(), *other_text = right.as<Text>();
    const auto *flag = left.as<Flag>(), *other_flag = right.as<Flag>();
    if ((text && other_text) || (flag && other_flag)) {
      const bool equal = text ? text->value == other_text->value : flag->value == other_flag->value;
      return {Number{equal == (b.op == BinaryOp::kEqual) ? 1.0 : 0.0, 0}};
    }
  }
  check_operand(left, b.left->span);
  check_operand(right, b.right->span);
  if (const auto* divisor = right.as<Number>();
      b.op == BinaryOp::kDiv && divisor && divisor->value == 0)
    divided_by_zero(b.right->span, "this is 0");
  if (b.op == BinaryOp::kMatMul) return matmul(left, right, span, b.left->span, b.right->span);
  return arithmetic(b.op, left, right, span);
}

// ---- indexing
// --------------------------------------------------------------------------------------

std::int64_t Lowerer::step_of(const ast::Range& range) {
  if (!range.step) return 1;
  const std::int64_t step = integer(evaluate(*range.step), range.step->span, "a step");
  if (step == 0) fail("E2332", "the step of a range is not 0", range.step->span);
  return step;
}

Lowerer::Selection Lowerer::selection(const ast::Expr& item, std::int64_t size) {
  const std::string entries =
      fmt::format("the axis has {} entr{}, counted from 0", size, size == 1 ? "y" : "ies");
  if (const auto* range = std::get_if<ast::Range>(&item.node)) {
    const std::int64_t step = step_of(*range);
    const bool down = step < 0;
    const std::int64_t begin = range->begin
                                   ? integer(evaluate(*range->begin), range->begin->span, "a bound")
                               : down ? size - 1
                                      : 0;
    const std::int64_t end = range->end
                                 ? integer(evaluate(*range->end), range->end->span, "a bound")
                             : down ? -1
                                    : size;
    const std::int64_t least = down ? -1 : 0, most = down ? size - 1 : size;
    if (begin < least || begin > most || end < least || end > most)
      fail("E2208", fmt::format("the slice {}..{} reaches outside the axis", begin, end), item.span,
           entries);
    if (down ? begin <= end : begin >= end)
      fail("E2209", "the slice is empty", item.span, fmt::format("{}..{} has no entry", begin, end),
           down ? "ranges are half-open: a..b by -1 has the entries a to b + 1"
                : "ranges are half-open: a..b has the entries a to b - 1");
    Selection s{{}, false, {}};
    for (std::int64_t i = begin; down ? i > end : i < end; i += step) s.positions.push_back(i);
    s.shape = {static_cast<std::int64_t>(s.positions.size())};
    return s;
  }
  const Value v = evaluate(item);
  const bool single = v.as<Number>() || (v.as<Tensor>() && v.as<Tensor>()->axes.empty());
  Dims shape;
  std::vector<std::int64_t> positions = integers(v, item.span, "an index", &shape);
  Selection s{std::move(positions), single, std::move(shape)};
  for (auto& i : s.positions) {
    if (i < 0) i += size;
    if (i < 0 || i >= size)
      fail("E2208", fmt::format("index {} is outside the axis", i < 0 ? i - size : i), item.span,
           entries);
  }
  return s;
}

/// x[.., None], unless the program has a value of this name.
bool Lowerer::is_new_axis(const ast::Expr& item) {
  const auto* name = std::get_if<ast::Name>(&item.node);
  return name && name->name == "None" && !find_or_null("None");
}

Value Lowerer::evaluate_index(const ast::Index& index, Span span) {
  const auto select = [&](const ast::Expr& item, std::int64_t size) {
    return selection(item, size);
  };
  // W[l] in a loop over layers: the whole array need not be copied for one of its matrices.
  if (const auto* name = std::get_if<ast::Name>(&index.base->node)) {
    const Binding* binding = find_or_null(name->name);
    const auto* array = binding ? binding->value.as<MatrixArray>() : nullptr;
    if (array && array->dims.size() == 1 && index.items.size() == 1)
      if (const Selection s = select(*index.items[0], array->dims[0]); s.single)
        return {array->items[static_cast<std::size_t>(s.positions[0])]};
  }
  return index_value(evaluate(*index.base), index, span);
}

Value Lowerer::index_value(Value base, const ast::Index& index, Span span) {
  const auto select = [&](const ast::Expr& item, std::int64_t size) {
    return selection(item, size);
  };
  if (const auto* l = base.as<List>()) base = {list_tensor(*l, index.base->span)};
  if (base.as<Poison>()) throw Rejection{{}, true};
  if (auto parts = part_by_part({base}, span, [&](const std::vector<Value>& part) {
        return index_value(part[0], index, span);
      }))
    return std::move(*parts);

  if (const auto* array = base.as<MatrixArray>()) {
    MatrixArray now = *array;
    std::size_t axis = 0;
    for (const auto& item : index.items) {
      if (axis >= now.dims.size())
        fail("E2210", "too many indices", item->span, "a width axis cannot be indexed",
             "coordinates have no names; use E(..), gram(..) or samples(..)");
      const Selection s = select(*item, now.dims[axis]);
      std::int64_t outer = 1, inner = 1;
      for (std::size_t k = 0; k < axis; ++k) outer *= now.dims[k];
      for (std::size_t k = axis + 1; k < now.dims.size(); ++k) inner *= now.dims[k];
      std::vector<Matrix> items;
      for (std::int64_t o = 0; o < outer; ++o)
        for (const auto p : s.positions)
          for (std::int64_t q = 0; q < inner; ++q)
            items.push_back(
                now.items[static_cast<std::size_t>((o * now.dims[axis] + p) * inner + q)]);
      now.items = std::move(items);
      const auto at = now.dims.begin() + static_cast<std::ptrdiff_t>(axis);
      now.dims.insert(now.dims.erase(at), s.shape.begin(), s.shape.end());
      axis += s.shape.size();
    }
    if (now.dims.empty()) return {now.items[0]};
    return {now};
  }
  if (base.as<Matrix>())
    fail("E2210", "a width axis cannot be indexed", span, describe(base),
         "coordinates have no names; use E(..), gram(..) or samples(..)");

  Tensor t = tensor(base, index.base->span);
  const Axes whole = t.axes;
  std::size_t axis = 0, finite_axis = 0;
  for (const auto& item : index.items) {
    if (is_new_axis(*item)) {
      t.axes.insert(t.axes.begin() + static_cast<std::ptrdiff_t>(axis++), {false, 1});
      t.node = build(span).reshape(t.node, finite_dims(t.axes));
      ++finite_axis;
      continue;
    }
    if (axis >= t.axes.size())
      fail("E2211", "too many indices", item->span,
           whole.empty() ? "the value is a scalar" : "the value has shape " + text(whole));
    if (t.axes[axis].width) {
      const auto* range = std::get_if<ast::Range>(&item->node);
      if (!range || range->begin || range->end)
        fail("E2210", "a width axis cannot be indexed", item->span,
             "the value has shape " + text(whole),
             "coordinates have no names; use E(..), gram(..) or samples(..)");
      ++axis;
      continue;
    }
    const Selection s = select(*item, t.axes[axis].size);
    ir::Builder& b = build(span);
    t.node = b.gather(t.node, static_cast<int>(finite_axis), s.positions);
    const Axes own = finite_axes(s.shape);
    const auto at = t.axes.begin() + static_cast<std::ptrdiff_t>(axis);
    t.axes.insert(t.axes.erase(at), own.begin(), own.end());
    t.node = b.reshape(t.node, finite_dims(t.axes));
    axis += own.size();
    finite_axis += own.size();
    check_size(finite_dims(t.axes), item->span);
  }
  return {t};
}

// ---- expressions
// -----------------------------------------------------------------------------------

Value Lowerer::evaluate(const ast::Expr& e) {
  // Each level takes a few stack frames: 64 nested calls of expressions 1000 deep would overflow
  // the stack.
  struct Level {
    explicit Level(int& depth) : depth_(depth) { ++depth_; }
    ~Level() { --depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    int& depth_;
  } const level(nesting_);
  if (!given_.empty())
    if (const auto it = given_.find(&e); it != given_.end()) return it->second;
  if (nesting_ > kMaxNesting)
    fail("E2110", "calls and expressions are nested too deeply", e.span, "",
         "name a part of the expression in a statement of its own");
  return std::visit(
      overloaded{
          [&](const ast::Number& x) -> Value {
            return {Number{x.value, 0}};
          },
          [&](const ast::String& s) -> Value { return {Text{s.value}}; },
          [&](const ast::Boolean& f) -> Value { return {Flag{f.value}}; },
          [&](const ast::Name& x) -> Value { return evaluate_name(x.name, e.span); },
          [&](const ast::Negate& x) -> Value {
            const Value v = evaluate(*x.operand);
            if (v.as<Blocks>()) return arithmetic(BinaryOp::kMul, {Number{-1, 0}}, v, e.span);
            if (const auto* n = v.as<Number>()) return {Number{-n->value, n->power}};
            if (v.as<MatrixArray>())
              array_not_indexed(x.operand->span, "write W[0] for one of them");
            if (const auto* m = v.as<Matrix>())
              return scaled_matrix(*m, build(e.span).constant(-1));
            const Tensor t = tensor(v, x.operand->span);
            return {Tensor{build(e.span).negate(t.node), t.axes}};
          },
          [&](const ast::Transpose& x) -> Value { return transpose(evaluate(*x.operand), e.span); },
          [&](const ast::Binary& x) -> Value { return evaluate_binary(x, e.span); },
          [&](const ast::Range& r) -> Value {
            if (!r.begin || !r.end)
              fail("E2314", "an open range belongs in an index", e.span, "", "write X[a..]");
            const std::int64_t begin = integer(evaluate(*r.begin), r.begin->span, "a bound"),
                               end = integer(evaluate(*r.end), r.end->span, "a bound"),
                               step = step_of(r), sign = step > 0 ? 1 : -1;
            const std::int64_t count = (end - begin + step - sign) / step;
            return {Interval{begin, step, std::max<std::int64_t>(count, 0)}};
          },
          [&](const ast::Index& x) -> Value { return evaluate_index(x, e.span); },
          [&](const ast::Call& x) -> Value { return evaluate_call(x, e.span); },
          [&](const ast::List& l) -> Value {
            List out;
            std::vector<Span> spans;
            for (const auto& item : l.items) {
              out.items.push_back(evaluate(*item));
              spans.push_back(item->span);
            }
            // Lists of numbers are arrays at once, so that indexing and arithmetic see them as
            // such.
            const bool plain = !out.items.empty() &&
                               std::all_of(out.items.begin(), out.items.end(), [](const Value& v) {
                                 return v.as<Number>() || v.as<Tensor>() || v.as<List>();
                               });
            if (plain) return {list_tensor(out, e.span, spans)};
            return {out};
          },
          [&](const ast::Tuple& l) -> Value {
            List out;
            for (const auto& item : l.items) out.items.push_back(evaluate(*item));
            return {out};
          },
          [&](const ast::Map&) -> Value {
            fail("E2315", "a map {..} belongs in `scale = {..}` of a step", e.span);
          }},
      e.node);
}

std::vector<Value> Lowerer::evaluate_many(const ast::Expr& e) {
  if (const auto* call = std::get_if<ast::Call>(&e.node))
    if (const auto f = callable(call->callee.name); f && f->definition)
      return inline_call(*f, *call, e.span);
  return {evaluate(e)};
}

Value Lowerer::evaluate_call(const ast::Call& call, Span span) {
  const auto f = callable(call.callee.name);
  const std::string& name = f ? f->name : call.callee.name;
  if (f && f->definition) {
    std::vector<Value> values = inline_call(*f, call, span);
    if (values.size() != 1)
      fail("E2104", fmt::format("'{}' returns {} values", name, values.size()), span, "",
           "assign them to names first: a, b = f(x)");
    return values[0];
  }
  if (f) {
    if (several_widths() && given_.empty())
      if (auto parts = block_call(call, name, span)) return std::move(*parts);
    if (const auto it = unary_functions().find(name); it != unary_functions().end())
      return builtin_unary(call, name, span, it->second);
    const Builtin& builtin = builtins().at(name);
    Arguments a = arguments(call, name, span, builtin);
    return (this->*builtin.lower)(a);
  }
  if (name == "ntk") return builtin_ntk(call, span);
  if (name == "nngp") return builtin_nngp(call, span);
  unknown_function(name, call.callee.span);
}

void Lowerer::unknown_function(const std::string& name, Span span) {
  if (const Binding* binding = find_or_null(name))
    fail("E2107", fmt::format("'{}' is no function", name), span,
         "this is " + describe(binding->value), "a product is written with '*'");
  if (declared(defined_, name) != defined_.end() && declared(functions_, name) == functions_.end())
    fail("E2107", fmt::format("'{}' is defined further down", name), span, "",
         "put functions and models above what calls them");
  static const std::set<std::string> later{"project"};
  if (later.contains(name))
    fail("E2105", fmt::format("'{}' is not available in this version", name), span);
  static const std::set<std::string> statements{"csv", "npy", "npz", "idx", "normal"};
  const std::string optimiser = optimiser_form(name);
  if (statements.contains(name) || !optimiser.empty())
    fail("E2106", fmt::format("'{}' cannot stand here", name), span, "",
         !optimiser.empty() ? "write: " + optimiser
         : name == "normal" ? "write: random x : [n] ~ normal(mean, variance)"
                            : "write: data X, y = csv(\"file\", ..)");
  std::vector<std::string> known;
  for (const auto& [other, f] : builtins()) known.push_back(other);
  for (const auto& [other, f] : unary_functions()) known.push_back(other);
  for (const auto& [other, f] : functions_) known.push_back(other);
  for (const auto& [other, f] : library()) known.push_back(other);
  std::sort(known.begin(), known.end());
  // What the function is called elsewhere.
  static const std::unordered_map<std::string, const char*> elsewhere{
      {"dot", "products are written v @ x"},
      {"matmul", "products are written W @ x"},
      {"inner", "products are written v @ x"},
      {"pow", "powers are written x^a"},
      {"avg", "E(x) averages over the coordinates, mean(x) over finite axes"},
      {"average", "E(x) averages over the coordinates, mean(x) over finite axes"},
      {"var", "write E(x^2) - E(x)^2 over coordinates, mean((f - mean(f))^2) over finite axes"},
      {"variance",
       "write E(x^2) - E(x)^2 over coordinates, mean((f - mean(f))^2) over finite axes"},
      {"std",
       "write sqrt(E(x^2) - E(x)^2) over coordinates, sqrt(mean((f - mean(f))^2)) over finite "
       "axes"},
      {"cov", "gram(x, y) has the entries E(x y)"},
      {"ln", "the natural logarithm is log(x)"},
      {"swish", "it is called silu"},
      {"heaviside", "it is called step"},
      {"mse_loss", "mse(output, target) is half the mean squared error"},
      {"nll_loss", "cross_entropy(logits, labels) takes the logits themselves"},
      {"smooth_l1_loss", "huber(f, y) with delta = 1 is the same"},
      {"tr", "it is called trace"},
      {"eig", "eigvals(K) takes symmetric matrices"},
      {"eigh", "eigvals(K) takes symmetric matrices"},
      {"len", "the entries along an axis are size(x, axis)"},
      {"shape", "the entries along an axis are size(x, axis)"},
      {"layer_norm", "it is called layernorm"},
      {"square", "powers are written x^2"},
      {"maximum", "it is called max(x, y)"},
      {"minimum", "it is called min(x, y)"},
      {"range", "ranges are written a..b or a..b by c"},
      {"view", "it is called reshape"},
      {"unsqueeze", "a new axis is written x[.., None]"},
      {"expand_dims", "a new axis is written x[.., None]"},
      {"squeeze", "index the axis: x[0], x[.., 0]"},
      {"cat", "it is called concat"},
      {"randn", "write: random x : [n] ~ normal(0, 1)"},
      {"clamp", "it is called clip(x, low, high)"},
      {"hardtanh", "write clip(x, -1, 1)"},
      {"hard_tanh", "write clip(x, -1, 1)"},
      {"relu6", "write clip(x, 0, 6)"},
      {"hardsigmoid", "write clip(x / 6 + 0.5, 0, 1)"},
      {"hardswish", "write x * clip(x / 6 + 0.5, 0, 1)"},
      {"selu", "write 1.0507009873554805 * elu(x, 1.6732632423543772)"},
      {"celu", "write max(x, 0) + min(0, a * (exp(x / a) - 1))"},
      {"prelu", "write max(x, 0) + a * min(x, 0), a a param"},
      {"glu", "write a * sigmoid(b)"},
      {"softshrink", "write relu(x - a) - relu(-x - a)"},
      {"hardshrink", "write x * (abs(x) > a)"},
      {"tanhshrink", "write x - tanh(x)"},
      {"logsigmoid", "write -softplus(-x)"},
      {"log_sigmoid", "write -softplus(-x)"},
      {"softmin", "write softmax(-x)"},
      {"round", "write floor(x + 0.5)"},
      {"ceil", "write -floor(-x)"},
      {"trunc", "write sign(x) * floor(abs(x))"},
      {"frac", "write mod(x, 1)"},
      {"log1p", "write log(1 + x)"},
      {"expm1", "write exp(x) - 1"},
      {"log2", "write log(x) / log(2)"},
      {"log10", "write log(x) / log(10)"},
      {"exp2", "write 2^x"},
      {"rsqrt", "write x^-0.5"},
      {"reciprocal", "write 1 / x"},
      {"tan", "write sin(x) / cos(x)"},
      {"sinh", "write (exp(x) - exp(-x)) / 2"},
      {"cosh", "write (exp(x) + exp(-x)) / 2"},
      {"erfc", "write 1 - erf(x)"},
      {"normal_cdf", "write (1 + erf(x / sqrt(2))) / 2"},
      {"prod", "a product over an axis is a loop: p = 1, for k in 0..K { p = p * x[k] }"},
      {"sort", "there is none; max(x, axis = 0), min, argmax and where choose"},
      {"topk", "there is none; max(x, axis = 0), argmax and where choose"},
      {"det", "write exp(logdet(A))"},
      {"inv", "it is called inverse"},
      {"pinv", "inverse(A) of a matrix that is not singular"},
      {"slogdet", "logdet(A), det A > 0"},
      {"eigvalsh", "it is called eigvals"},
      {"kl_div", "write sum(p * (log(p) - log(q)))"},
      {"binary_cross_entropy", "logistic(f, y) takes logits f and labels y of -1 and 1"},
      {"binary_cross_entropy_with_logits",
       "logistic(f, y) takes logits f and labels y of -1 and 1"},
      {"bce_with_logits", "logistic(f, y) takes logits f and labels y of -1 and 1"},
      {"hinge_loss", "it is called hinge(f, y)"},
      {"huber_loss", "it is called huber(f, y)"},
      {"l1_loss", "write mean(abs(f - y))"},
      {"mean_squared_error", "mse(output, target) is half the mean squared error"},
      {"batch_norm",
       "write (h - m) / sqrt(v + eps) with m = mean(h, axis = 0) and v = mean((h - m)^2, axis = "
       "0)"},
      {"batchnorm",
       "write (h - m) / sqrt(v + eps) with m = mean(h, axis = 0) and v = mean((h - m)^2, axis = "
       "0)"},
      {"groupnorm",
       "cut the width, width d, n = 4 d, reshape(x, P, 4, d), and layernorm each part"},
      {"group_norm",
       "cut the width, width d, n = 4 d, reshape(x, P, 4, d), and layernorm each part"},
      {"instance_norm", "write (x - m) / sqrt(v + eps), m and v the means over positions"},
      {"normalize", "write x / sqrt(E(x^2) + eps) along the width, x / norm(x) of a finite vector"},
      {"cosine_similarity",
       "write E(x * y) / sqrt(E(x^2) * E(y^2)); of finite arrays it is align(x, y)"},
      {"embedding", "a table is a parameter, param Em : [V, n] ~ .., and Em[ids] are its rows"},
      {"bce", "logistic(f, y) takes logits f and labels y of -1 and 1"},
      {"svd", "eigvals(A @ A) are the squares of the singular values of a finite A"},
      {"cholesky", "there is none; solve(A, b), inverse(A) and logdet(A) are what it is used for"},
      {"diag", "a diagonal matrix is eye(k) * x, the diagonal of A is sum(eye(k) * A, axis = 0)"},
      {"matrix_power", "write A' @ A for the square of a finite matrix, and so on"},
      {"not", "write 1 - condition"},
      {"and", "write a * b"},
      {"or", "write max(a, b)"},
      {"dropout", "a mask is drawn: random r : [P, n] ~ uniform(0, 1), h * (r < keep) / keep"},
      {"detach", "it is called stop"},
      {"stop_gradient", "it is called stop"},
      {"arange", "positions(S) is [0, 1, .., S - 1]"},
      {"linspace", "write a + (b - a) * positions(S) / (S - 1)"},
      {"flip", "an index goes backwards: x[.. by -1]"},
      {"roll", "write concat(x[k..], x[0..k])"},
      {"tril", "causal_mask(S) is 1 on and below the diagonal"},
      {"flatten", "write reshape(x, P, -1)"},
      {"scaled_dot_product_attention", "it is called attention(q, k, v, mask)"},
      {"multi_head_attention",
       "it is written attention(q, k, v, mask) of heads, reshape(q, S, heads, d)"},
      {"max_pool2d", "max_pool(x, window, stride, axis = 0) acts along one axis"},
      {"avg_pool2d", "avg_pool(x, window, stride, axis = 0) acts along one axis"},
      {"if", "write where(condition, a, b)"}};
  if (const auto it = elsewhere.find(name); it != elsewhere.end())
    fail("E2107", fmt::format("unknown function '{}'", name), span, "", it->second);
  fail("E2107", fmt::format("unknown function '{}'", name), span, "", did_you_mean(name, known));
}

std::string Lowerer::form_of(const Callable& f) const {
  std::string out = "its form: " + f.name + "(";
  for (const ast::Argument& p : f.definition->text->params)
    out += (out.back() == '(' ? "" : ", ") + p.name.name +
           (p.otherwise ? " = " + canonical_text(f.definition->library ? library_source() : source_,
                                                 p.otherwise->span)
                        : "");
  return out + ")";
}

std::vector<Value> Lowerer::inline_call(const Callable& f, const ast::Call& call, Span span) {
  const std::vector<ast::Argument>& params = f.definition->text->params;
  const auto wrong_number = [&] {
    const auto least = static_cast<std::size_t>(std::count_if(
        params.begin(), params.end(), [](const ast::Argument& p) { return !p.otherwise; }));
    fail("E2109",
         fmt::format("'{}' takes {} argument{}, got {}", f.name,
                     least == params.size() ? std::to_string(least)
                                            : fmt::format("{} to {}", least, params.size()),
                     params.size() == 1 ? "" : "s", call.args.size() + call.named.size()),
         span, "", form_of(f));
  };
  if (call.args.size() > params.size()) wrong_number();
  std::vector<std::optional<Value>> values(params.size());
  for (std::size_t k = 0; k < call.args.size(); ++k) values[k] = evaluate(*call.args[k]);
  for (const ast::NamedArgument& argument : call.named) {
    const auto it = std::find_if(params.begin(), params.end(), [&](const ast::Argument& p) {
      return p.name.name == argument.name.name;
    });
    if (it == params.end())
      fail("E2108", fmt::format("'{}' has no argument '{}'", f.name, argument.name.name),
           argument.name.span, "", form_of(f));
    std::optional<Value>& value = values[static_cast<std::size_t>(it - params.begin())];
    if (value)
      fail("E2113", fmt::format("argument '{}' is given twice", argument.name.name),
           argument.name.span, "", form_of(f));
    value = evaluate(*argument.value);
  }
  for (std::size_t k = 0; k < params.size(); ++k)
    if (!values[k] && !params[k].otherwise) wrong_number();
  return call_with(f, std::move(values), span);
}

std::vector<Value> Lowerer::call_with(const Callable& f, std::vector<std::optional<Value>> args,
                                      Span span) {
  const ast::Function& text = *f.definition->text;
  count_work(span);
  if (++call_depth_ > 64) {
    --call_depth_;
    fail("E2110", fmt::format("calls are nested more than {} deep", 64), span, "",
         "models are inlined: one that calls itself never ends; use a loop");
  }
  Scope scope;
  Scope* const outer = std::exchange(locals_, &scope);
  auto outer_return = std::exchange(returned_, std::nullopt);
  const auto loops = loops_.size();
  const auto context = context_;
  const std::optional<Span> outside = library_call_;
  library_call_ = f.definition->library ? std::optional(outside.value_or(span)) : std::nullopt;
  std::string outer_space = std::exchange(space_, text.space);
  const auto restore = [&] {
    locals_ = outer;
    space_ = std::move(outer_space);
    library_call_ = outside;
    --call_depth_;
    loops_.resize(loops);
    context_ = context;
    return std::exchange(returned_, std::move(outer_return));
  };
  try {
    args.resize(text.params.size());
    for (std::size_t k = 0; k < text.params.size(); ++k) {  // a default may name what stands before
      const auto& [name, otherwise] = text.params[k];
      Value value = args[k] ? std::move(*args[k]) : evaluate(*otherwise);
      tell(name.span, value);
      scope[name.name] = {Kind::kLocal, named(std::move(value), name.span), name.span};
    }
    block(text.body);
    if (!returned_)
      fail("E2111", fmt::format("'{}' returns nothing", f.name), span, "",
           "end its body with: return ..");
  } catch (Rejection& r) {
    (void)restore();
    if (f.definition->library) {
      if (outside || r.silent) throw;
      r.diagnostic = std::move(r.diagnostic).at(span);
      r.diagnostic.notes = {
          {fmt::format("inside '{0}' of the standard library: tplimit std {0}", f.name), span}};
      throw;
    }
    auto& notes =
        r.diagnostic.notes;  // the innermost calls are enough, recursion says the same again
    if (!r.silent && notes.size() < 4 &&
        span != (notes.empty() ? r.diagnostic.span : notes.back().span))
      notes.push_back({fmt::format("in this call of '{}'", f.name), span});
    throw;
  }
  return *restore();
}

}  // namespace tplimit::lowering
