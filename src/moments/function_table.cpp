#include "moments/function_table.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <numbers>

#include "tplimit/ir/functions.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/passes/gradient.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::moments {

using namespace ir;

namespace {

Program with_variable() {
  Program program;
  program.contexts = {""};
  program.sources.push_back({"x", false, {}, {}});
  return program;
}

/// Copies what `out` needs of another function into a builder, of `x` instead of its variable.
NodeId copy_into(Builder& b, const Program& program, NodeId out, NodeId x = {0}) {
  std::vector<bool> needed(program.size(), false);
  needed[out.value] = true;
  for (std::size_t k = out.value; k > 0; --k)
    if (needed[k])
      for (const NodeId id : program.nodes[k].in) needed[id.value] = true;
  std::vector<NodeId> map(program.size());
  for (std::size_t k = 0; k <= out.value; ++k) {
    if (!needed[k]) continue;
    const Node& node = program.nodes[k];
    std::vector<NodeId> in;
    for (const NodeId id : node.in) in.push_back(map[id.value]);
    if (const auto* c = std::get_if<Constant>(&node.op))
      map[k] = b.constant(*c, node.type.dims);
    else
      map[k] = k == 0 ? x : b.add(node.op, std::move(in));
  }
  return map[out.value];
}

// ---- recognition: f as sum_k c_k x^p_k A_k(x), A one of a few transcendental atoms
// --------------------------------------

struct Atom {
  enum class Kind { kOne, kStep, kErf, kBell, kExp, kSine } kind = Kind::kOne;
  double a = 0, b = 0;  ///< erf(a x), exp(-a x^2), exp(a x), sin(a x + b)
  friend auto operator<=>(const Atom&, const Atom&) = default;
};
struct Key {
  int power = 0;
  Atom atom;
  friend auto operator<=>(const Key&, const Key&) = default;
};
using Expansion = std::map<Key, double>;
using MaybeExpansion = std::optional<Expansion>;

void add_to(Expansion& to, const Key& key, double c) {
  if ((to[key] += c) == 0) to.erase(key);
}
MaybeExpansion sum(const MaybeExpansion& x, const MaybeExpansion& y, double sign = 1) {
  if (!x || !y) return std::nullopt;
  Expansion out = *x;
  for (const auto& [key, c] : *y) add_to(out, key, sign * c);
  return out;
}
MaybeExpansion product(const MaybeExpansion& x, const MaybeExpansion& y) {
  if (!x || !y) return std::nullopt;
  Expansion out;
  for (const auto& [k, c] : *x)
    for (const auto& [l, d] : *y) {
      Key key{k.power + l.power, k.atom};
      if (key.power > 64) return std::nullopt;
      if (l.atom.kind != Atom::Kind::kOne) {
        using enum Atom::Kind;
        if (k.atom.kind == kOne)
          key.atom = l.atom;
        else if (k.atom.kind == kStep && l.atom.kind == kStep)
          key.atom = k.atom;
        else if (k.atom.kind == kBell && l.atom.kind == kBell)
          key.atom.a = k.atom.a + l.atom.a;
        else if (k.atom.kind == kExp && l.atom.kind == kExp)
          key.atom.a = k.atom.a + l.atom.a;
        else
          return std::nullopt;
      }
      add_to(out, key, c * d);
    }
  return out;
}
MaybeExpansion constant(double c) {
  Expansion out;
  if (c != 0) out[{0, {}}] = c;
  return out;
}
/// c if e = c x^power and nothing else.
std::optional<double> only_power(const Expansion& e, int power) {
  if (e.empty()) return power == 1 ? std::nullopt : std::optional<double>(0.0);
  const Key key{power, {}};
  return e.size() == 1 && e.begin()->first == key ? std::optional<double>(e.begin()->second)
                                                  : std::nullopt;
}

/// 1[x > 0] or 1 - 1[x > 0].
bool is_indicator(const Expansion& e) {
  const Key one{0, {}}, step{0, {Atom::Kind::kStep, 0, 0}};
  return e == Expansion{{step, 1.0}} || e == Expansion{{one, 1.0}, {step, -1.0}};
}

MaybeExpansion single(Atom::Kind kind, double a = 0, double b = 0) {
  return Expansion{{{0, {kind, a, b}}, 1.0}};
}
/// 1[s x > 0], which is 1 - 1[x > 0] for s < 0.
MaybeExpansion step_of(double s) {
  return s > 0 ? single(Atom::Kind::kStep) : sum(constant(1), single(Atom::Kind::kStep), -1);
}
/// below y + (above - below) y 1[y > 0], y = s x.
MaybeExpansion two_slope(const MaybeExpansion& y, double below, double above) {
  const auto s = only_power(*y, 1);
  if (!s) return std::nullopt;
  return sum(product(constant(below), y),
             product(constant(above - below), product(y, step_of(*s))));
}
/// The part of y = s x where sign y > 0: max(0, y) for sign 1, min(0, y) for -1.
MaybeExpansion one_side(const MaybeExpansion& y, double sign) {
  const auto s = only_power(*y, 1);
  return s ? product(y, step_of(sign * *s)) : std::nullopt;
}
MaybeExpansion power_of(const MaybeExpansion& y, double n) {
  if (n < 0 || n > 64 || n != std::floor(n)) return std::nullopt;
  MaybeExpansion out = constant(1);
  for (int k = 0; k < static_cast<int>(n); ++k) out = product(out, y);
  return out;
}
/// y (1 + erf(y / sqrt 2)) / 2, y = s x.
MaybeExpansion gelu_of(const MaybeExpansion& y) {
  const auto s = only_power(*y, 1);
  if (!s) return std::nullopt;
  const MaybeExpansion erf = single(Atom::Kind::kErf, *s / std::numbers::sqrt2);
  return sum(product(constant(0.5), y), product(constant(0.5), product(y, erf)));
}
/// sin(y + phase), y = w x + p.
MaybeExpansion sine_of(const Expansion& y, double phase) {
  double w = 0;
  for (const auto& [key, c] : y) {
    if (key == Key{1, {}})
      w = c;
    else if (key == Key{0, {}})
      phase += c;
    else
      return std::nullopt;
  }
  return w == 0 ? std::nullopt : single(Atom::Kind::kSine, w, phase);
}
/// exp(s x), or exp(-c x^2).
MaybeExpansion exponential_of(const Expansion& y) {
  if (const auto s = only_power(y, 1)) return single(Atom::Kind::kExp, *s);
  if (const auto c = only_power(y, 2); c && *c < 0) return single(Atom::Kind::kBell, -*c);
  return std::nullopt;
}

MaybeExpansion expand_map(const Map& m, const std::vector<MaybeExpansion>& in) {
  for (const auto& e : in)
    if (!e) return std::nullopt;
  const MaybeExpansion& y = in[0];
  const std::optional<double> slope = only_power(*y, 1);
  switch (m.fn) {
    case Fn::kAdd: return sum(in[0], in[1]);
    case Fn::kSub: return sum(in[0], in[1], -1);
    case Fn::kMul: return product(in[0], in[1]);
    case Fn::kDiv:
      if (const auto d = only_power(*in[1], 0); d && *d != 0)
        return product(in[0], constant(1 / *d));
      return std::nullopt;
    case Fn::kPower: return power_of(y, m.parameter);
    case Fn::kRelu: return two_slope(y, 0, 1);
    case Fn::kAbs: return two_slope(y, -1, 1);
    case Fn::kLeakyRelu: return two_slope(y, m.parameter, 1);
    case Fn::kStep: return slope ? step_of(*slope) : std::nullopt;
    case Fn::kSign:
      return slope ? sum(product(constant(2), step_of(*slope)), constant(1), -1) : std::nullopt;
    case Fn::kLess:
      if (in[0]->empty())
        if (const auto s = only_power(*in[1], 1)) return step_of(*s);
      if (in[1]->empty() && slope) return step_of(-*slope);
      return std::nullopt;
    case Fn::kMax:
      if (in[1]->empty()) return two_slope(y, 0, 1);
      return in[0]->empty() ? one_side(in[1], 1) : std::nullopt;
    case Fn::kMin:
      if (in[1]->empty()) return two_slope(y, 1, 0);
      return in[0]->empty() ? one_side(in[1], -1) : std::nullopt;
    case Fn::kNotEqual: return in[1]->empty() && is_indicator(*y) ? y : std::nullopt;
    case Fn::kWhere:
      return is_indicator(*y) ? sum(in[2], product(in[0], sum(in[1], in[2], -1))) : std::nullopt;
    case Fn::kErf: return slope ? single(Atom::Kind::kErf, *slope) : std::nullopt;
    case Fn::kGelu: return gelu_of(y);
    case Fn::kExp: return exponential_of(*y);
    case Fn::kSin: return sine_of(*y, 0);
    case Fn::kCos: return sine_of(*y, std::numbers::pi / 2);
    default: return std::nullopt;
  }
}

bool near(double x, double y) {
  return std::abs(x - y) <= 4e-16 * std::max(std::abs(x), std::abs(y));
}

/// Scales and factors are taken out where that costs no accuracy, so that f and f(2 x) have one
/// form.
std::optional<Recognised> match(const Expansion& e, double at_zero) {
  using enum Atom::Kind;
  const auto at = [&](int power, Atom::Kind kind) -> std::pair<double, Atom> {
    for (const auto& [key, c] : e)
      if (key.power == power && key.atom.kind == kind) return {c, key.atom};
    return {0, {}};
  };
  const auto made_of = [&](std::initializer_list<std::pair<int, Atom::Kind>> parts) {
    std::size_t found = 0;
    for (const auto& [power, kind] : parts) found += at(power, kind).first != 0;
    return found == e.size();
  };
  const auto [one, no_atom] = at(0, kOne);
  const auto [x, no_atom_x] = at(1, kOne);
  if (std::all_of(e.begin(), e.end(), [](const auto& t) { return t.first.atom.kind == kOne; })) {
    Polynomial p{std::vector<double>(
        e.empty() ? 1 : static_cast<std::size_t>(e.rbegin()->first.power + 1), 0.0)};
    for (const auto& [key, c] : e) p.coefficients[static_cast<std::size_t>(key.power)] = c;
    return Recognised{p};
  }
  if (const double c = at(1, kStep).first; made_of({{1, kOne}, {1, kStep}})) {
    if (x + c == 0) return Recognised{TwoSlope{0, 1, 0}, -x, -1};
    return Recognised{TwoSlope{x / (x + c), 1, 0}, x + c};
  }
  if (const double c = at(0, kStep).first; made_of({{0, kOne}, {0, kStep}}))
    return Recognised{TwoStep{one / c, one / c + 1, at_zero / c}, c};
  if (e.size() == 1) {
    const auto& [key, c] = *e.begin();
    if (key.atom.kind == kStep) return Recognised{ReluPower{key.power}, c};
    if (key.power == 0 && key.atom.kind == kBell)
      return Recognised{GaussBell{1, 1}, c, std::sqrt(key.atom.a)};
    if (key.power == 0 && key.atom.kind == kExp) return Recognised{ScaledExp{c, key.atom.a}};
    if (key.power == 0 && key.atom.kind == kSine)
      return Recognised{Sine{1, 1, key.atom.b}, c, key.atom.a};
  }
  if (const auto [c, atom] = at(0, kErf); made_of({{0, kOne}, {0, kErf}}))
    return Recognised{ScaledErf{1, 1, one / c}, c, atom.a};
  // s x Phi(s x) = x s/2 + x erf(s x / sqrt 2) s/2
  if (const auto [c, atom] = at(1, kErf); made_of({{1, kOne}, {1, kErf}})) {
    const double s = atom.a * std::numbers::sqrt2;
    if (near(c, x)) return Recognised{Gelu{1}, 2 * x / s, s};
    if (near(c, -x)) return Recognised{Gelu{1}, -2 * x / s, -s};
  }
  // Phi(s x) + s x phi(s x)
  if (const auto [c, atom] = at(0, kErf); made_of({{0, kOne}, {0, kErf}, {1, kBell}})) {
    const auto [bell, bell_atom] = at(1, kBell);
    const double s = atom.a * std::numbers::sqrt2;
    if (near(c, one) && std::abs(bell_atom.a - s * s / 2) <= 1e-15 * s * s &&
        std::abs(bell - 2 * one * s / std::sqrt(2 * std::numbers::pi)) <= 1e-15 * std::abs(bell))
      return Recognised{GeluDerivative{1}, 2 * one, s};
  }
  return std::nullopt;
}

// ---- exponentials of quadratic polynomials that a function contains as factors
// --------------------------------------

/// c_0 + c_1 x + c_2 x^2.
using Quadratic = std::array<double, 3>;
using MaybeQuadratic = std::optional<Quadratic>;

/// p + c q.
Quadratic combined(const Quadratic& p, double c, const Quadratic& q) {
  return {p[0] + c * q[0], p[1] + c * q[1], p[2] + c * q[2]};
}
bool is_constant(const MaybeQuadratic& p) { return p && (*p)[1] == 0 && (*p)[2] == 0; }
/// p q, if its degree is 2 at most.
MaybeQuadratic product(const MaybeQuadratic& p, const MaybeQuadratic& q) {
  if (!p || !q) return std::nullopt;
  const Quadratic &x = *p, &y = *q;
  if (x[2] * y[1] != 0 || x[1] * y[2] != 0 || x[2] * y[2] != 0) return std::nullopt;
  return Quadratic{x[0] * y[0], x[0] * y[1] + x[1] * y[0], x[0] * y[2] + x[1] * y[1] + x[2] * y[0]};
}

/// Writes each node of a function as exp(q(x)) rest(x), q quadratic, from those of its operands.
class ExponentialFactors {
 public:
  struct Split {
    Quadratic exponent{};
    NodeId rest;
  };

  /// b: where the rests are built; its node 0 is x.
  ExponentialFactors(Builder& b, const Program& function)
      : b_(b),
        function_(function),
        value_(function.size()),
        polynomial_(function.size()),
        split_(function.size()) {}

  Split of(NodeId out) {
    for (std::size_t k = 0; k <= out.value; ++k) {
      value_[k] = copied(k);
      split_[k] = {{}, value_[k]};
      split(k);
    }
    return split_[out.value];
  }

 private:
  NodeId copied(std::size_t k) {
    const Node& node = function_.nodes[k];
    if (const auto* c = std::get_if<Constant>(&node.op))
      return b_.constant(*c->values, node.type.dims);
    if (k == 0) return {0};
    std::vector<NodeId> in;
    for (const NodeId i : node.in) in.push_back(value_[i.value]);
    return b_.add(node.op, std::move(in));
  }

  void split(std::size_t k) {
    const Node& node = function_.nodes[k];
    MaybeQuadratic& polynomial = polynomial_[k];
    const auto p = [&](std::size_t j) -> const MaybeQuadratic& {
      return polynomial_[node.in[j].value];
    };
    if (k == 0) {
      polynomial = Quadratic{0, 1, 0};
    } else if (const auto* c = std::get_if<Constant>(&node.op)) {
      polynomial = Quadratic{c->values->front(), 0, 0};
    } else if (const auto* s = std::get_if<Scale>(&node.op)) {
      if (p(0)) polynomial = combined({}, s->factor, *p(0));
      const Split& x = split_of(node, 0);
      split_[k] = {x.exponent, b_.scale(s->factor, 0, x.rest)};
    } else if (const auto* m = std::get_if<Map>(&node.op)) {
      split_map(k, *m);
    } else if (node.in.size() == 1) {  // Expand
      polynomial = p(0);
      const Split& x = split_of(node, 0);
      split_[k] = {x.exponent, x.exponent == Quadratic{} ? value_[k] : x.rest};
    }
  }

  void split_map(std::size_t k, const Map& m) {
    const Node& node = function_.nodes[k];
    if (m.fn == Fn::kExp)
      split_[k] = exponential_of(node.in[0], 1);
    else if (m.fn == Fn::kAdd || m.fn == Fn::kSub)
      split_sum(k, m);
    else if (m.fn == Fn::kMul)
      split_product(k);
    else if (m.fn == Fn::kDiv)
      split_quotient(k);
    else if (m.fn == Fn::kPower || m.fn == Fn::kSqrt)
      split_power(k, m);
  }

  /// exp(q) f +- exp(q) g = exp(q) (f +- g); f + 0 = f.
  void split_sum(std::size_t k, const Map& m) {
    const Node& node = function_.nodes[k];
    const MaybeQuadratic &p = polynomial_[node.in[0].value], &q = polynomial_[node.in[1].value];
    if (p && q) polynomial_[k] = combined(*p, m.fn == Fn::kAdd ? 1 : -1, *q);
    const Split &x = split_of(node, 0), &y = split_of(node, 1);
    if (x.exponent == y.exponent && x.exponent != Quadratic{})
      split_[k] = {x.exponent, b_.map(m.fn, {x.rest, y.rest})};
    else if (b_.is_zero(value_[node.in[1].value]))
      split_[k] = x;
    else if (b_.is_zero(value_[node.in[0].value]) && m.fn == Fn::kAdd)
      split_[k] = y;
  }

  /// exp(p) f exp(q) g = exp(p + q) f g.
  void split_product(std::size_t k) {
    const Node& node = function_.nodes[k];
    polynomial_[k] = product(polynomial_[node.in[0].value], polynomial_[node.in[1].value]);
    const Split &x = split_of(node, 0), &y = split_of(node, 1);
    split_[k] = {combined(x.exponent, 1, y.exponent), b_.times(x.rest, y.rest)};
  }

  /// exp(p) f / (exp(q) g) = exp(p - q) f / g.
  void split_quotient(std::size_t k) {
    const Node& node = function_.nodes[k];
    const MaybeQuadratic &p = polynomial_[node.in[0].value], &q = polynomial_[node.in[1].value];
    if (p && is_constant(q) && (*q)[0] != 0) polynomial_[k] = combined({}, 1 / (*q)[0], *p);
    const Split &x = split_of(node, 0), &y = split_of(node, 1);
    split_[k] = {combined(x.exponent, -1, y.exponent), b_.map(Fn::kDiv, {x.rest, y.rest})};
  }

  /// (exp(p) f)^n = exp(n p) f^n.
  void split_power(std::size_t k, const Map& m) {
    const Node& node = function_.nodes[k];
    const double n = m.fn == Fn::kSqrt ? 0.5 : m.parameter;
    if (const MaybeQuadratic& p = polynomial_[node.in[0].value]; n == 2 && p && (*p)[2] == 0)
      polynomial_[k] = Quadratic{(*p)[0] * (*p)[0], 2 * (*p)[0] * (*p)[1], (*p)[1] * (*p)[1]};
    if (const Split& x = split_of(node, 0); x.exponent != Quadratic{})
      split_[k] = {combined({}, n, x.exponent), b_.map(m.fn, {x.rest}, m.parameter)};
  }

  /// exp(c x) of node x: exp(c (y +- z)) = exp(c y) exp(+-c z), so that a polynomial among other
  /// summands is found.
  Split exponential_of(NodeId x, double c) {
    if (const auto& p = polynomial_[x.value]) return {combined({}, c, *p), b_.constant(1)};
    const Node& node = function_[x];
    if (const auto* s = std::get_if<Scale>(&node.op))
      return exponential_of(node.in[0], c * s->factor);
    const auto* m = std::get_if<Map>(&node.op);
    const auto factor = [&](std::size_t k) {
      const MaybeQuadratic& p = polynomial_[node.in[k].value];
      return is_constant(p) ? (*p)[0] : 0.0;
    };
    if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub)) {
      const Split one = exponential_of(node.in[0], c),
                  other = exponential_of(node.in[1], m->fn == Fn::kAdd ? c : -c);
      return {combined(one.exponent, 1, other.exponent), b_.times(one.rest, other.rest)};
    }
    if (m && m->fn == Fn::kMul)
      for (const std::size_t k : {0u, 1u})
        if (const double by = factor(k); by != 0) return exponential_of(node.in[1 - k], c * by);
    if (m && m->fn == Fn::kDiv)
      if (const double by = factor(1); by != 0) return exponential_of(node.in[0], c / by);
    const NodeId value = value_[x.value];
    return {{}, b_.map(Fn::kExp, {c == 1 ? value : b_.times(b_.constant(c), value)})};
  }

  [[nodiscard]] const Split& split_of(const Node& node, std::size_t k) const {
    return split_[node.in[k].value];
  }

  Builder& b_;
  const Program& function_;
  std::vector<NodeId> value_;
  std::vector<MaybeQuadratic> polynomial_;
  std::vector<Split> split_;
};

// ---- where a function breaks
// --------------------------------------

/// What passes 0 where a node breaks: its argument, of two arguments their difference, of a
/// quotient the divisor.
class BreakArgument {
 public:
  BreakArgument(const Program& program, const Node& node)
      : program_(program),
        first_(node.in[0]),
        last_(*std::max_element(node.in.begin(), node.in.end())) {
    const Fn fn = std::get<Map>(node.op).fn;
    if (fn == Fn::kDiv)
      first_ = node.in[1];
    else if (arity(fn) == 2)
      second_ = node.in[1];
  }

  [[nodiscard]] std::vector<double> at(const std::vector<double>& x) const {
    std::vector<std::vector<double>> values;
    FunctionTable::run(program_, std::ssize(x), x.data(), values, last_);
    const auto read = [&](NodeId id, std::size_t i) {
      return program_[id].type.width ? values[id.value][i] : values[id.value][0];
    };
    std::vector<double> out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      out[i] = second_ ? read(first_, i) - read(*second_, i) : read(first_, i);
    return out;
  }
  double operator()(double x) const { return at({x})[0]; }

 private:
  const Program& program_;
  NodeId first_;
  std::optional<NodeId> second_;
  NodeId last_;
};

/// (g_0, g_1) if g(x) = g_0 + g_1 x, as far as a few points show.
std::optional<std::pair<double, double>> as_line(const BreakArgument& g) {
  const double g0 = g(0), g1 = g(1) - g0;
  for (const double x : {-7.0, -0.3, 0.5, 3.0, 11.0})
    if (!(std::abs(g(x) - (g0 + g1 * x)) <= 1e-14 * (std::abs(g0) + std::abs(g1 * x))))
      return std::nullopt;
  return std::pair{g0, g1};
}

constexpr double kFarthestBreak = 1e4;

/// On a grid as fine as any kink may need.
std::size_t sign_changes(const BreakArgument& g) {
  std::vector<double> grid(40'001);
  for (std::size_t i = 0; i < grid.size(); ++i)
    grid[i] = std::sinh(std::asinh(kFarthestBreak) * (static_cast<double>(i) - 20'000.3) / 20'000);
  std::size_t changes = 0;
  double previous = 0;
  for (const double now : g.at(grid)) {
    if (now != 0 && previous != 0 && (now > 0) != (previous > 0)) ++changes;
    if (now != 0) previous = now;
  }
  return changes;
}

/// By bisection where g changes its sign, or at an edge of where g is 0: a condition may be 0 on a
/// half-line.
std::vector<double> roots(const BreakArgument& g) {
  std::vector<double> out;
  double left = -kFarthestBreak, at_left = g(left);
  for (int i = 1; i <= 2000; ++i) {
    const double right = std::sinh(std::asinh(kFarthestBreak) * (i - 1000) / 1000.0),
                 at_right = g(right);
    if ((at_left == 0) != (at_right == 0) || at_left * at_right < 0) {
      double a = left, b = right;
      for (int j = 0; j < 200 && b - a > 1e-16 * (std::abs(a) + std::abs(b)); ++j) {
        const double middle = 0.5 * (a + b), value = g(middle);
        (at_left == 0 ? value == 0 : value * at_left > 0) ? a = middle : b = middle;
      }
      out.push_back(at_right == 0 ? b : at_left == 0 ? a : 0.5 * (a + b));
    }
    left = right;
    at_left = at_right;
  }
  return out;
}

}  // namespace

FunctionTable::FunctionTable() {
  Program program = with_variable();
  const NodeId x = Builder(program).add(StandardNormal{{0}}, {});
  (void)intern(std::move(program), x);
}

FunctionTable::Id FunctionTable::intern(Program program, NodeId out) {
  std::string key = fmt::format("{} {}", to_text(program), out.value);
  if (const auto it = known_.find(key); it != known_.end()) return it->second;
  Function f{std::move(program), out, {}, {}, {}, {}, true, -1, {}};
  recognise(f);
  find_kinks(f);
  functions_.push_back(std::move(f));
  const Id id = static_cast<Id>(functions_.size() - 1);
  known_.emplace(std::move(key), id);
  return id;
}

FunctionTable::Id FunctionTable::compose(const Map& map,
                                         const std::vector<std::variant<Id, double>>& operands) {
  Program program = with_variable();
  Builder b(program);
  (void)b.add(StandardNormal{{0}}, {});
  std::vector<NodeId> in;
  for (const auto& operand : operands) {
    if (const Id* f = std::get_if<Id>(&operand))
      in.push_back(copy_into(b, functions_[static_cast<std::size_t>(*f)].program,
                             functions_[static_cast<std::size_t>(*f)].out));
    else
      in.push_back(b.constant(std::get<double>(operand)));
  }
  const auto definition = function(map.fn).definition;
  NodeId out = definition ? definition(b, map.parameter, in[0]) : b.map(map.fn, in, map.parameter);
  if (!b.type(out).width) out = b.expand(out, true, {});
  return intern(std::move(program), out);
}

FunctionTable::Id FunctionTable::shifted(Id f, double scale, double shift) {
  if (scale == 1 && shift == 0) return f;
  Program program = with_variable();
  Builder b(program);
  NodeId x = b.add(StandardNormal{{0}}, {});
  if (scale != 1) x = b.map(Fn::kMul, {x, b.constant(scale)});
  if (shift != 0) x = b.map(Fn::kAdd, {x, b.constant(shift)});
  const NodeId out = copy_into(b, functions_[static_cast<std::size_t>(f)].program,
                               functions_[static_cast<std::size_t>(f)].out, x);
  return intern(std::move(program), out);
}

namespace {
/// (phi(x_0, ..))' = sum_k dphi/dx_k x_k' between jumps.
NodeId slope_of(Builder& b, const Map& m, const std::vector<NodeId>& x, NodeId y,
                const std::vector<NodeId>& d) {
  if (traits_of(m).constant_on_pieces) return b.constant(0);
  switch (m.fn) {
    case Fn::kAdd: return b.plus(d[0], d[1]);
    case Fn::kSub: return b.minus(d[0], d[1]);
    case Fn::kMul: return b.plus(b.times(d[0], x[1]), b.times(x[0], d[1]));
    case Fn::kDiv: return b.map(Fn::kDiv, {b.minus(d[0], b.times(y, d[1])), x[1]});
    case Fn::kMin:
    case Fn::kMax: {
      const NodeId first =
          b.map(Fn::kLess, m.fn == Fn::kMin ? std::vector{x[0], x[1]} : std::vector{x[1], x[0]});
      return b.plus(b.times(first, d[0]), b.times(b.minus(b.constant(1), first), d[1]));
    }
    case Fn::kWhere: return b.map(Fn::kWhere, {x[0], d[1], d[2]});
    case Fn::kMod: return d[0];
    case Fn::kPow: return b.constant(0);  // nobody asks: it has no derivative at its branch point
    default: return b.times(derivative_of(b, m, x[0], y), d[0]);
  }
}
}  // namespace

FunctionTable::Id FunctionTable::derivative(Id id) {
  if (const Id known = functions_[static_cast<std::size_t>(id)].derivative; known >= 0)
    return known;
  Program program = with_variable();
  Builder b(program);
  const NodeId x = b.add(StandardNormal{{0}}, {});
  const Function& f = functions_[static_cast<std::size_t>(id)];
  std::vector<NodeId> value(f.program.size()), slope(f.program.size());
  for (std::size_t k = 0; k <= f.out.value; ++k) {
    const Node& node = f.program.nodes[k];
    std::vector<NodeId> in, d;
    for (const NodeId i : node.in) {
      in.push_back(value[i.value]);
      d.push_back(slope[i.value]);
    }
    slope[k] = b.constant(0);
    if (k == 0) {
      value[k] = x;
      slope[k] = b.constant(1);
    } else if (const auto* c = std::get_if<Constant>(&node.op)) {
      value[k] = b.constant(*c, node.type.dims);
    } else if (const auto* s = std::get_if<Scale>(&node.op)) {
      value[k] = b.add(*s, in);
      slope[k] = b.add(*s, {d[0]});
    } else if (const auto* m = std::get_if<Map>(&node.op)) {
      value[k] = b.map(m->fn, in, m->parameter);
      slope[k] = slope_of(b, *m, in, value[k], d);
    } else {
      value[k] = b.add(node.op, in);  // Expand
      slope[k] = d.empty() ? slope[k] : d[0];
    }
  }
  NodeId out = slope[f.out.value];
  if (!b.type(out).width) out = b.expand(out, true, {});
  const Id result = intern(std::move(program), out);
  return functions_[static_cast<std::size_t>(id)].derivative = result;
}

const Exponential& FunctionTable::exponential(Id id) {
  if (const auto& known = functions_[static_cast<std::size_t>(id)].exponential) return *known;
  const Function& f = functions_[static_cast<std::size_t>(id)];
  Program program = with_variable();
  Builder b(program);
  (void)b.add(StandardNormal{{0}}, {});
  const auto [exponent, rest] = ExponentialFactors(b, f.program).of(f.out);
  Exponential out{exponent[0], exponent[1], exponent[2], id};
  if (!out.trivial()) {
    // Only what the rest needs: kinks are looked for in all nodes.
    Program clean = with_variable();
    Builder c(clean);
    NodeId result = copy_into(c, program, rest, c.add(StandardNormal{{0}}, {}));
    if (!c.type(result).width) result = c.expand(result, true, {});
    out.rest = intern(std::move(clean), result);
  } else {
    out.constant = 0;
  }
  return *(functions_[static_cast<std::size_t>(id)].exponential = out);
}

void FunctionTable::run(const Program& program, std::int64_t count, const double* x,
                        std::vector<std::vector<double>>& values, NodeId out) {
  values.resize(program.size());
  for (std::size_t k = 0; k <= out.value; ++k) {
    const Node& node = program.nodes[k];
    if (k == 0) {
      values[0].assign(x, x + count);
      continue;
    }
    if (const auto* c = std::get_if<Constant>(&node.op)) {
      values[k] = *c->values;
      continue;
    }
    std::vector<View> in;
    std::vector<const Type*> types;
    for (const NodeId i : node.in) {
      const bool width = program[i].type.width;
      in.push_back({values[i.value].data(), width ? count : 1, width ? count : 1});
      types.push_back(&program[i].type);
    }
    const std::int64_t rows = node.type.width ? count : 1;
    values[k].resize(static_cast<std::size_t>(rows));
    evaluate_rows(node, types, in, {values[k].data(), rows, rows});
  }
}

void FunctionTable::evaluate(Id id, std::int64_t count, const double* x, double* y) const {
  if (id == kIdentity) {
    std::copy_n(x, count, y);
    return;
  }
  const Function& f = functions_[static_cast<std::size_t>(id)];
  evaluations_.fetch_add((count + kCall) * f.out.value, std::memory_order_relaxed);
  std::vector<std::vector<double>> values;
  run(f.program, count, x, values, f.out);
  std::copy(values[f.out.value].begin(), values[f.out.value].end(), y);
}

void FunctionTable::recognise(Function& f) {
  std::vector<MaybeExpansion> expansions(f.program.size());
  for (std::size_t k = 0; k <= f.out.value; ++k) {
    const Node& node = f.program.nodes[k];
    if (k == 0) {
      expansions[k] = Expansion{{{1, {}}, 1.0}};
    } else if (const auto* c = std::get_if<Constant>(&node.op)) {
      expansions[k] = constant(c->values->front());
    } else if (const auto* s = std::get_if<Scale>(&node.op)) {
      expansions[k] = product(constant(s->factor), expansions[node.in[0].value]);
    } else if (const auto* m = std::get_if<Map>(&node.op)) {
      std::vector<MaybeExpansion> in;
      for (const NodeId i : node.in) in.push_back(expansions[i.value]);
      expansions[k] = expand_map(*m, in);
    } else if (node.in.size() == 1) {
      expansions[k] = expansions[node.in[0].value];
    }
  }
  if (!expansions[f.out.value]) return;
  const Expansion& e = *expansions[f.out.value];
  const double zero = 0;
  std::vector<std::vector<double>> values;
  run(f.program, 1, &zero, values, f.out);
  const double at_zero = values[f.out.value][0];
  f.closed = match(e, at_zero);
  if (std::all_of(e.begin(), e.end(), [](const auto& t) {
        return t.first.atom.kind == Atom::Kind::kOne || t.first.atom.kind == Atom::Kind::kStep;
      })) {
    std::size_t size = 1;
    for (const auto& [key, c] : e) size = std::max(size, static_cast<std::size_t>(key.power) + 1);
    f.piecewise = PiecewisePolynomial{std::vector<double>(size, 0.0),
                                      std::vector<double>(size, 0.0), at_zero};
    for (const auto& [key, c] : e) {
      f.piecewise->above[static_cast<std::size_t>(key.power)] += c;
      if (key.atom.kind == Atom::Kind::kOne)
        f.piecewise->below[static_cast<std::size_t>(key.power)] += c;
    }
  }
  if (f.closed)
    if (const auto* p = std::get_if<Polynomial>(&f.closed->g)) f.polynomial = p->coefficients;
}

std::optional<PairForm> FunctionTable::pair_form(Id f, Id g) const {
  const auto &closed = closed_form(f), &other = closed_form(g);
  if (closed && other && closed->g == other->g)
    return PairForm{closed->scale,
                    other->scale,
                    closed->factor * other->factor,
                    [&form = closed->g](auto a, auto b, auto c, auto K) {
                      return dual_kernel(form, a, b, c, K);
                    },
                    &closed->g,
                    f == g};
  if (const auto& p = piecewise(f), &q = piecewise(g); p && q)
    return PairForm{1,
                    1,
                    1,
                    [&p, &q](auto a, auto b, auto c, auto K) { return piecewise_kernel(*p, *q, a, b, c, K); },
                    nullptr,
                    f == g};
  return std::nullopt;
}

int FunctionTable::parity(Id id) const {
  const Function& f = functions_[static_cast<std::size_t>(id)];
  std::vector<int> known(f.program.size(), 0);
  for (std::size_t k = 0; k <= f.out.value; ++k) {
    const Node& node = f.program.nodes[k];
    const auto of = [&](std::size_t j) { return known[node.in[j].value]; };
    const auto* m = std::get_if<Map>(&node.op);
    if (k == 0)
      known[k] = -1;
    else if (std::all_of(node.in.begin(), node.in.end(),
                         [&](NodeId i) { return known[i.value] == 1; }))
      known[k] = 1;
    else if (!m)
      known[k] = of(0);
    else if (m->fn == Fn::kAdd || m->fn == Fn::kSub)
      known[k] = of(0) == of(1) ? of(0) : 0;
    else if (m->fn == Fn::kMul || m->fn == Fn::kDiv)
      known[k] = of(0) * of(1);
    else if (m->fn == Fn::kWhere)
      known[k] = of(0) == 1 && of(1) == of(2) ? of(1) : 0;
    else if (arity(m->fn) == 1 && of(0) == -1)
      known[k] = traits_of(*m).parity == FunctionTraits::Parity::kEven  ? 1
                 : traits_of(*m).parity == FunctionTraits::Parity::kOdd ? -1
                                                                        : 0;
  }
  return known[f.out.value];
}

std::vector<std::pair<double, double>> FunctionTable::jumps(Id f) const {
  std::vector<std::pair<double, double>> out;
  const std::vector<double>& all = kinks(f);
  for (std::size_t k = 0; k < all.size(); ++k) {
    const double position = all[k];
    // f(c + h) - f(c - h) = J + O(h), and the O(h) is extrapolated away.  No other kink is as near.
    double h = 1e-6 * std::max(1.0, std::abs(position));
    if (k > 0) h = std::min(h, (position - all[k - 1]) / 2);
    if (k + 1 < all.size()) h = std::min(h, (all[k + 1] - position) / 2);
    const std::array<double, 4> x{position - h, position - h / 2, position + h / 2, position + h};
    std::array<double, 4> y{};
    evaluate(f, 4, x.data(), y.data());
    const double height = 2 * (y[2] - y[1]) - (y[3] - y[0]);
    if (std::abs(height) > 1e-10 * (1 + std::abs(y[1]) + std::abs(y[2])))
      out.emplace_back(position, height);
  }
  return out;
}

void FunctionTable::find_kinks(Function& f) {
  const Program& program = f.program;
  for (std::size_t k = 1; k <= f.out.value; ++k) {
    const Node& node = program.nodes[k];
    const auto* m = std::get_if<Map>(&node.op);
    if (!m) continue;
    const FunctionTraits traits = traits_of(*m);
    if (!traits.smooth_on_pieces) {
      f.integrable = false;
      continue;
    }
    if (m->fn == Fn::kDiv) {
      // A pole within reach shows as a root of the divisor.
      if (std::holds_alternative<Constant>(program[node.in[1]].op)) continue;
    } else if (!traits.first_delta && !traits.constant_on_pieces) {
      continue;  // an equality holds at a point, which no grid may sample, and is a break too
    }
    const BreakArgument g(program, node);
    std::vector<double> breaks;
    if (const auto line = as_line(g)) {
      const auto [g0, g1] = *line;
      if (g1 != 0) breaks.push_back(g0 == 0 ? 0.0 : -g0 / g1);
      f.null = f.null || (m->fn == Fn::kEqual && k == f.out.value && g1 != 0);
    } else {
      breaks = roots(g);
      if (sign_changes(g) > breaks.size()) f.integrable = false;  // there are too many
    }
    if (m->fn == Fn::kDiv && !breaks.empty()) f.integrable = false;
    f.kinks.insert(f.kinks.end(), breaks.begin(), breaks.end());
  }
  std::sort(f.kinks.begin(), f.kinks.end());
  // One kink of several operations, where(x <= c, ..), comes out of each with its own rounding.
  f.kinks.erase(
      std::unique(f.kinks.begin(), f.kinks.end(),
                  [](double a, double b) { return b - a <= 1e-12 * std::max(1.0, std::abs(a)); }),
      f.kinks.end());
  if (f.kinks.size() > 16) f.integrable = false;
}

}  // namespace tplimit::moments
