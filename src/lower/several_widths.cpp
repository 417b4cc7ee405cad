// Several widths of fixed ratio, `width n, m = 2 n`: both grow, so all are multiples of one unit, n
// = q g, m = p g. A vector of width m is p vectors of width g (its coordinates are exchangeable, so
// how they are cut changes nothing), a matrix [m, n] is p x q independent matrices [g, g].
// Coordinatewise operations act part by part; means and products with matrices sum over parts.
// Everything after the front end sees one width, g.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lower/lowerer.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::lowering {

using ir::Fn;

namespace {
constexpr std::int64_t kMostUnits = 64;

bool is_wide(const Value& v) {
  if (const auto* t = v.as<Tensor>()) return has_width(t->axes);
  return v.as<Matrix>() || v.as<MatrixArray>() || v.as<Blocks>();
}
}  // namespace

void Lowerer::on(const ast::Width& s, Span span) {
  check_top_level("the width is declared", span);
  if (width_declared_ && !space_.empty()) {  // of an imported file: those of the program
    const auto same = [&](const ast::Width::Item& item) {
      const auto it = std::find_if(widths_.begin(), widths_.end(),
                                   [&](const Width& w) { return w.name == item.name.name; });
      if (it == widths_.end()) return false;
      if (!item.value) return true;
      const Value value = evaluate(*item.value);
      const auto* n = value.as<Number>();
      return n && n->power == 1 && n->value == static_cast<double>(it->units);
    };
    if (!std::all_of(s.items.begin(), s.items.end(), same))
      fail("E2118", "the program has other widths", span, "",
           "an imported file declares the widths of the program, or leaves them out");
    return;
  }
  if (width_declared_)
    fail("E2118", "the width is declared already", span, "",
         "declare all widths in one statement: width n, m = 2 n");
  std::vector<Exponent> ratios;  // to the first width
  for (std::size_t k = 0; k < s.items.size(); ++k) {
    const auto& item = s.items[k];
    if (const auto it = globals_.find(item.name.name); it != globals_.end())
      throw declared_twice(item.name, it->second.span);
    check_new_function(item.name);
    if (k == 0) {
      if (item.value)
        fail("E2150", "the first width has no value", item.value->span, "",
             "it is the symbol that goes to infinity, the others are multiples of it: width n, m = "
             "2 n");
      ratios.emplace_back(1);
    } else {
      ratios.push_back(ratio_of(item, s.items[0].name.name));
    }
    if (k == 0) widths_.push_back({item.name.name, 1});  // the others are multiples of it
  }
  for (std::size_t k = 1; k < s.items.size(); ++k) widths_.push_back({s.items[k].name.name, 1});
  std::int64_t unit = 1;
  for (const Exponent& r : ratios) unit = std::lcm(unit, r.denominator());
  for (std::size_t k = 0; k < ratios.size(); ++k) {
    widths_[k].units = unit / ratios[k].denominator() * ratios[k].numerator();
    if (widths_[k].units > kMostUnits)
      fail("E2150", "this ratio of widths is too large", s.items[k].name.span,
           fmt::format("{} would be {} units of width", widths_[k].name, widths_[k].units),
           fmt::format("at most {}: a width is that many vectors of the smallest common part",
                       kMostUnits));
  }
  program_.width_name = widths_[0].name;
  program_.width_units = widths_[0].units;
  width_declared_ = true;
}

/// As the text says, or --set; a width without a ratio is as large as the first one.
Exponent Lowerer::ratio_of(const ast::Width::Item& item, const std::string& first) {
  const auto set = set_on_command_line(item.name.name, item.name.span);
  if (!set && !item.value) {
    free_widths_.push_back({item.name.name, item.name.span});
    return 1;
  }
  const Span place = set ? item.name.span : item.value->span;
  try {
    const Value v = evaluate(set ? *set->value : *item.value);
    const auto* n = v.as<Number>();
    if (!n || (n->power != 1 && !(set && n->power == 0)))
      fail("E2150", "a width is a multiple of the first one", place, "this is " + describe(v),
           fmt::format("write for instance: {} = 2 {}", item.name.name, first));
    const auto ratio = exponent_from_double(n->value);
    if (!ratio || !(*ratio > 0))
      fail("E2150", "a ratio of widths is a positive fraction with a small denominator", place,
           fmt::format("this is {}", n->value));
    return *ratio;
  } catch (Rejection& r) {
    if (set) blame(r, *set, place);
    throw;
  }
}

std::optional<std::size_t> Lowerer::width_of(const Value& v) const {
  const auto* n = v.as<Number>();
  if (!n || n->power != 1) return std::nullopt;
  for (std::size_t k = 0; k < widths_.size(); ++k)
    if (n->value == static_cast<double>(widths_[k].units)) return k;
  return std::nullopt;
}

bool Lowerer::several_widths() const {
  return std::any_of(widths_.begin(), widths_.end(), [](const Width& w) { return w.units > 1; });
}

std::string Lowerer::shape_text(const Blocks& b) const {
  if (b.widths.size() == 2) {
    const auto* array = b.parts[0].as<MatrixArray>();
    std::string out = "[";
    if (array)
      for (const auto d : array->dims) out += fmt::format("{}, ", d);
    return out + fmt::format("{}, {}]", widths_[b.widths[0]].name, widths_[b.widths[1]].name);
  }
  const auto* t = b.parts[0].as<Tensor>();
  return t ? to_text(t->axes, widths_[b.widths[0]].name)
           : fmt::format("[{}]", widths_[b.widths[0]].name);
}

/// One part is an ordinary value.
Value Lowerer::joined(std::vector<std::size_t> widths, std::vector<Value> parts) const {
  if (parts.size() == 1) return std::move(parts[0]);
  return {Blocks{std::move(widths), std::move(parts)}};
}

/// A vector of this width as a list of parts.
std::vector<Value> Lowerer::parts_of(const Value& v, std::size_t width, Span span) const {
  const auto* blocks = v.as<Blocks>();
  if (blocks && blocks->widths.size() == 1 &&
      widths_[blocks->widths[0]].units == widths_[width].units)
    return blocks->parts;
  if (!blocks && is_wide(v) && widths_[width].units == 1) return {v};
  fail("E2205", "the widths differ", span,
       fmt::format("this is {}, but the width '{}' is needed", describe(v), widths_[width].name));
}

/// f for every part, if one of the arguments has parts; those without a width axis are the same for
/// all.
std::optional<Value> Lowerer::part_by_part(const std::vector<Value>& args, Span span,
                                           const PartFunction& f) {
  const Blocks* first = nullptr;
  for (const Value& v : args)
    if (const auto* blocks = v.as<Blocks>(); blocks && !first) first = blocks;
  if (!first) return std::nullopt;
  const auto differ = [&](const Value& v) {
    fail("E2201", "the values have different widths", span,
         fmt::format("{} and {}", shape_text(*first),
                     v.as<Tensor>()   ? text(v.as<Tensor>()->axes)
                     : v.as<Blocks>() ? shape_text(*v.as<Blocks>())
                                      : describe(v)),
         "a matrix [m, n] takes vectors of width n to vectors of width m");
  };
  for (const Value& v : args) {
    const auto* blocks = v.as<Blocks>();
    if (blocks ? blocks->widths != first->widths : is_wide(v)) differ(v);
  }
  Blocks out{first->widths, {}};
  struct Shown {  // messages name the width of the whole
    Shown(std::string& place, std::string name)
        : place_(place), before_(std::exchange(place, std::move(name))) {}
    ~Shown() { place_ = before_; }
    Shown(const Shown&) = delete;
    Shown& operator=(const Shown&) = delete;
    std::string& place_;
    std::string before_;
  } const shown(shown_width_, first->widths.size() == 1 ? widths_[first->widths[0]].name : "");
  for (std::size_t k = 0; k < first->parts.size(); ++k) {
    std::vector<Value> own;
    for (const Value& v : args) own.push_back(v.as<Blocks>() ? v.as<Blocks>()->parts[k] : v);
    out.parts.push_back(f(own));
  }
  return Value{std::move(out)};
}

Value Lowerer::block_product(const Value& a, const Value& x, Span span, Span a_span, Span x_span) {
  const auto *left = a.as<Blocks>(), *right = x.as<Blocks>();
  const auto sum_of = [&](const std::vector<Value>& terms) {
    Value out = terms[0];
    for (std::size_t k = 1; k < terms.size(); ++k)
      out = arithmetic(ast::BinaryOp::kAdd, out, terms[k], span);
    return out;
  };
  const bool vector = left ? left->widths.size() == 1 : a.as<Tensor>() && is_wide(a);
  if (vector && right && right->widths.size() == 2)  // x' W = (W' x)'
    return block_product(block_transpose(*right, x_span), a, span, x_span, a_span);
  if (vector && x.as<Matrix>())
    fail("E2205", "sizes differ in '@'", span, fmt::format("{} and {}", describe(a), describe(x)));
  if (right && right->widths.size() == 2)
    fail("E2313", "'@' takes a vector on its right", x_span, describe(x),
         "apply matrices one after the other: W @ (V @ x); '@' groups to the right");
  if ((left && left->widths.size() == 2) || a.as<Matrix>() || a.as<MatrixArray>()) {
    if (!left)
      fail("E2205", "sizes differ in '@'", span,
           fmt::format("{} and {}", describe(a), describe(x)));
    const std::size_t rows = static_cast<std::size_t>(widths_[left->widths[0]].units),
                      columns = static_cast<std::size_t>(widths_[left->widths[1]].units);
    const std::vector<Value> xs = parts_of(x, left->widths[1], x_span);
    std::vector<Value> out;
    for (std::size_t r = 0; r < rows; ++r) {
      std::vector<Value> terms;
      for (std::size_t c = 0; c < columns; ++c)
        terms.push_back(matmul(left->parts[r * columns + c], xs[c], span, a_span, x_span));
      out.push_back(sum_of(terms));
    }
    return joined({left->widths[0]}, std::move(out));
  }
  Value parts = *part_by_part({a, x}, span, [&](const std::vector<Value>& own) {
    return matmul(own[0], own[1], span, a_span, x_span);
  });
  const std::vector<Value>& products = parts.as<Blocks>()->parts;
  if (is_wide(products[0])) return parts;
  // The width was contracted: n times a sum of averages, so that a division by the width cancels
  // it.
  std::vector<Value> averages;
  for (const Value& product : products)
    averages.push_back(arithmetic(ast::BinaryOp::kMul, product, {Number{1, -1}}, span));
  return arithmetic(ast::BinaryOp::kMul, sum_of(averages), {Number{1, 1}}, span);
}

Value Lowerer::block_transpose(const Blocks& b, Span span) {
  Blocks out{{b.widths.rbegin(), b.widths.rend()}, {}};
  if (b.widths.size() == 1) {
    for (const Value& v : b.parts) out.parts.push_back(transpose(v, span));
    return {std::move(out)};
  }
  const std::size_t rows = static_cast<std::size_t>(widths_[b.widths[0]].units),
                    columns = static_cast<std::size_t>(widths_[b.widths[1]].units);
  for (std::size_t c = 0; c < columns; ++c)
    for (std::size_t r = 0; r < rows; ++r)
      out.parts.push_back(transpose(b.parts[r * columns + c], span));
  return {std::move(out)};
}

/// A builtin whose arguments have parts; nothing if none has.
std::optional<Value> Lowerer::block_call(const ast::Call& call, const std::string& name,
                                         Span span) {
  if (name == "size" || name == "ndim" ||  // which ask for the shape of the whole
      (!builtins().contains(name) && !unary_functions().contains(name)))
    return std::nullopt;
  std::vector<const ast::Expr*> places;
  for (const auto& arg : call.args) places.push_back(arg.get());
  for (const auto& named : call.named) places.push_back(named.value.get());
  if (places.empty()) return std::nullopt;
  std::vector<Value> values = positional_values(call, name);
  for (const auto& named : call.named) values.push_back(evaluate(*named.value));
  const bool parts = std::any_of(values.begin(), values.end(),
                                 [](const Value& v) { return v.as<Blocks>() != nullptr; });
  const PartFunction one = [&](const std::vector<Value>& own) {
    struct Given {  // the arguments stand for these values while the builtin reads them
      explicit Given(std::map<const ast::Expr*, Value>& map) : map_(map) {}
      ~Given() { map_.clear(); }
      Given(const Given&) = delete;
      Given& operator=(const Given&) = delete;
      std::map<const ast::Expr*, Value>& map_;
    } const given(given_);
    for (std::size_t k = 0; k < places.size(); ++k) given_[places[k]] = own[k];
    return evaluate_call(call, span);
  };
  if (name == "reshape")
    if (auto out = reshaped_width(values, span)) return out;
  if (name == "concat")
    if (auto out = joined_widths(call, values, span)) return out;
  if (!parts) return one(values);
  if (name == "outer" && values.size() == 2 && is_wide(values[0]) && is_wide(values[1]))
    return block_outer(values[0], values[1], span, one);
  if (name == "transpose" && values.size() == 1) return transpose(values[0], span);
  Value out = *part_by_part(values, span, one);
  const Blocks& blocks = *out.as<Blocks>();
  if (is_wide(blocks.parts[0])) return out;
  // Sums over coordinates became one number for each part.
  if (name == "samples") return blocks.parts[0];
  if (name == "norm") {
    Value squares{Number{0, 0}};
    for (const Value& part : blocks.parts)
      squares =
          arithmetic(ast::BinaryOp::kAdd, squares, elementwise(Fn::kPower, {part}, span, 2), span);
    return elementwise(Fn::kSqrt, {squares}, span);
  }
  const bool sums = name == "sum" || name == "einsum";
  if (!sums && name != "E" && name != "gram" && name != "hist" && name != "mean")
    fail("E2305", fmt::format("'{}' takes no width of several units", name), span,
         describe(values[0]));
  Value sum = blocks.parts[0];
  for (std::size_t k = 1; k < blocks.parts.size(); ++k)
    sum = arithmetic(ast::BinaryOp::kAdd, sum, blocks.parts[k], span);
  if (sums) return sum;
  return arithmetic(ast::BinaryOp::kDiv, sum, {Number{static_cast<double>(blocks.parts.size()), 0}},
                    span);
}

/// concat(x, y) along the width, which is another one that is declared.  Nothing along other axes.
std::optional<Value> Lowerer::joined_widths(const ast::Call& call, const std::vector<Value>& values,
                                            Span span) {
  std::vector<Value> parts;
  std::optional<std::size_t> at;  // of the width
  const std::size_t count = call.args.size();
  for (std::size_t k = 0; k < count; ++k) {
    const auto* blocks = values[k].as<Blocks>();
    const auto* t = (blocks ? blocks->parts[0] : values[k]).as<Tensor>();
    if (!t || !has_width(t->axes)) return std::nullopt;
    at = static_cast<std::size_t>(
        std::find_if(t->axes.begin(), t->axes.end(), [](const Axis& a) { return a.width; }) -
        t->axes.begin());
    const std::size_t rank = t->axes.size();
    const std::int64_t axis = values.size() > count ? integer(values[count], span, "an axis") : 0;
    if (axis != static_cast<std::int64_t>(*at) &&
        axis + static_cast<std::int64_t>(rank) != static_cast<std::int64_t>(*at))
      return std::nullopt;
    if (blocks)
      parts.insert(parts.end(), blocks->parts.begin(), blocks->parts.end());
    else
      parts.push_back(values[k]);
    if (parts.back().as<Tensor>()->axes != parts[0].as<Tensor>()->axes)
      fail("E2202", "shapes do not fit together in concat", call.args[k]->span,
           describe(values[k]));
  }
  const auto units = static_cast<std::int64_t>(parts.size());
  const auto width = std::find_if(widths_.begin(), widths_.end(),
                                  [&](const Width& w) { return w.units == units; });
  if (width == widths_.end())
    fail("E2213", "concat along the width makes a width that is not declared", span,
         fmt::format("it is {} {}", to_string(Exponent(units, widths_[0].units)), widths_[0].name),
         "declare it at the top, for instance: width n, m = 2 n");
  return joined({static_cast<std::size_t>(width - widths_.begin())}, std::move(parts));
}

/// reshape(x, a.., d) of x [b.., n] with n = k d, which becomes k axes of d each, the heads of
/// attention; or the way back, from [.., k, d] to [.., n].  Nothing of a width that stays.
std::optional<Value> Lowerer::reshaped_width(const std::vector<Value>& values, Span span) {
  const auto* blocks = values[0].as<Blocks>();
  const std::vector<Value> parts = blocks ? blocks->parts : std::vector<Value>{values[0]};
  const auto* first = parts[0].as<Tensor>();
  const auto to = width_of(values.back());
  if (!first || !has_width(first->axes) || !to) return std::nullopt;
  const std::int64_t own = blocks ? widths_[blocks->widths[0]].units : 1, next = widths_[*to].units;
  if (own == next) return std::nullopt;
  const std::int64_t ratio = std::max(own, next) / std::min(own, next);
  if (!first->axes.back().width || std::max(own, next) % std::min(own, next) != 0)
    fail("E2202", "a width is cut into widths, or put together from some, where it stands last",
         span, describe(values[0]), "reshape(x, S, 4, d) of x [S, n], where width d, n = 4 d");
  const std::int64_t entries = ir::size_of(finite_dims(first->axes)),
                     total = own > next ? entries * ratio : entries / ratio;
  Dims dims;
  std::int64_t known = 1;
  for (std::size_t k = 1; k + 1 < values.size(); ++k) {
    dims.push_back(integer(values[k], span, "a size"));
    if (dims.back() > 0) known *= dims.back();
  }
  for (std::int64_t& size : dims)
    if (size == -1 && total % known == 0) size = total / known;
  if (std::any_of(dims.begin(), dims.end(), [](std::int64_t size) { return size < 1; }) ||
      ir::size_of(dims) != total || (own < next && entries % ratio != 0))
    fail("E2202", "a reshape keeps the number of entries", span,
         fmt::format("{} to [{}, {}]", describe(values[0]), fmt::join(dims, ", "),
                     widths_[*to].name));
  Axes axes = finite_axes(dims);
  axes.push_back({true, 0});
  ir::Builder& b = build(span);
  const auto node = [&](std::int64_t k) {
    return parts[static_cast<std::size_t>(k)].as<Tensor>()->node;
  };
  std::vector<Value> out;
  if (own > next) {  // each new part holds one of every `next` old ones, side by side
    for (std::int64_t j = 0; j < next; ++j) {
      std::vector<NodeId> beside;
      for (std::int64_t g = 0; g < ratio; ++g)
        beside.push_back(b.reshape(node(g * next + j), {entries, 1}));
      out.push_back({Tensor{b.reshape(b.add(ir::Concat{1}, std::move(beside)), dims), axes}});
    }
  } else {
    for (std::int64_t g = 0; g < ratio; ++g)
      for (std::int64_t j = 0; j < own; ++j)
        out.push_back(
            {Tensor{b.reshape(b.gather(b.reshape(node(j), {total, ratio}), 1, {g}), dims), axes}});
  }
  return joined({*to}, std::move(out));
}

/// d x', d and x of any widths.
Value Lowerer::block_outer(const Value& d, const Value& x, Span span, const PartFunction& f) {
  const auto unit = static_cast<std::size_t>(
      std::find_if(widths_.begin(), widths_.end(), [](const Width& w) { return w.units == 1; }) -
      widths_.begin());
  const auto width = [&](const Value& v) {
    return v.as<Blocks>() ? v.as<Blocks>()->widths[0] : unit;
  };
  Blocks out{{width(d), width(x)}, {}};
  for (const Value& left : parts_of(d, out.widths[0], span))
    for (const Value& right : parts_of(x, out.widths[1], span))
      out.parts.push_back(f({left, right}));
  return {std::move(out)};
}

/// The parts are variables of their own, "W.1", "W.2", ..; the name stands for all of them.
Value Lowerer::declare_blocks(const ast::Param& s, const Axes& axes,
                              const std::vector<std::size_t>& widths, const Value& rate,
                              std::optional<Role> role, Span span) {
  std::int64_t count = 1;
  for (const std::size_t w : widths) count *= widths_[w].units;
  bind(s.name, {Blocks{widths, std::vector<Value>(static_cast<std::size_t>(count))}}, Kind::kParam);
  Blocks out{widths, {}};
  for (std::int64_t k = 0; k < count; ++k) {
    const ast::Identifier name{fmt::format("{}.{}", s.name.name, k + 1), s.name.span};
    try {
      out.parts.push_back(declare(s, name, axes, rate, role, span));
    } catch (const Rejection&) {
      globals_.at(s.name.name).value = {Poison{}};
      throw;
    }
    variables_.at(name.name).part_of = {s.name.name, static_cast<std::size_t>(k)};
  }
  globals_.at(s.name.name).value = {std::move(out)};
  return globals_.at(s.name.name).value;
}

std::vector<std::string> Lowerer::variables_named(const std::string& name) const {
  if (variables_.contains(name)) return {name};
  const auto it = globals_.find(name);
  const auto* blocks = it == globals_.end() || it->second.kind != Kind::kParam
                           ? nullptr
                           : it->second.value.as<Blocks>();
  std::vector<std::string> out;
  for (std::size_t k = 0; blocks && k < blocks->parts.size(); ++k)
    out.push_back(fmt::format("{}.{}", name, k + 1));
  return out;
}

}  // namespace tplimit::lowering
