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

MaybeExpansion expand_map(const Map& m, const std::vector<MaybeExpansion>& in) {
  for (const auto& e : in)
    if (!e) return std::nullopt;
  const MaybeExpansion& y = in[0];
  const auto atom = [](Atom::Kind kind, double a, double b = 0) {
    return MaybeExpansion(Expansion{{{0, {kind, a, b}}, 1.0}});
  };
  const std::optional<double> slope = only_power(*y, 1);
  // 1[y > 0] for y = s x
  const auto step = [&](double s) {
    return s > 0 ? atom(Atom::Kind::kStep, 0) : sum(constant(1), atom(Atom::Kind::kStep, 0), -1);
  };
  const auto two_slope =
      [&](double below, double above) -> MaybeExpansion {  // below y + (above - below) y 1[y > 0]
    if (!slope) return std::nullopt;
    return sum(product(constant(below), y),
               product(constant(above - below), product(y, step(*slope))));
  };
  switch (m.fn) {
    case Fn::kAdd: return sum(in[0], in[1]);
    case Fn::kSub: return sum(in[0], in[1], -1);
    case Fn::kMul: return product(in[0], in[1]);
    case Fn::kDiv:
      if (const auto d = only_power(*in[1], 0); d && *d != 0)
        return product(in[0], constant(1 / *d));
      return std::nullopt;
    case Fn::kPower: {
      if (m.parameter < 0 || m.parameter > 64 || m.parameter != std::floor(m.parameter))
        return std::nullopt;
      MaybeExpansion out = constant(1);
      for (int k = 0; k < static_cast<int>(m.parameter); ++k) out = product(out, y);
      return out;
    }
    case Fn::kRelu: return two_slope(0, 1);
    case Fn::kAbs: return two_slope(-1, 1);
    case Fn::kLeakyRelu: return two_slope(m.parameter, 1);
    case Fn::kStep: return slope ? step(*slope) : std::nullopt;
    case Fn::kSign:
      return slope ? sum(product(constant(2), step(*slope)), constant(1), -1) : std::nullopt;
    case Fn::kLess:
      if (in[0]->empty())
        if (const auto s = only_power(*in[1], 1)) return step(*s);
      if (in[1]->empty() && slope) return step(-*slope);
      return std::nullopt;
    case Fn::kMax:
      if (in[1]->empty()) return two_slope(0, 1);
      if (const auto s = only_power(*in[1], 1); s && in[0]->empty())
        return product(in[1], step(*s));
      return std::nullopt;
    case Fn::kMin:
      if (in[1]->empty()) return two_slope(1, 0);
      if (const auto s = only_power(*in[1], 1); s && in[0]->empty())
        return product(in[1], step(-*s));
      return std::nullopt;
    case Fn::kNotEqual: return in[1]->empty() && is_indicator(*y) ? y : std::nullopt;
    case Fn::kWhere:
      return is_indicator(*y) ? sum(in[2], product(in[0], sum(in[1], in[2], -1))) : std::nullopt;
    case Fn::kErf: return slope ? atom(Atom::Kind::kErf, *slope) : std::nullopt;
    case Fn::kGelu: {
      if (!slope) return std::nullopt;
      return sum(
          product(constant(0.5), y),
          product(constant(0.5), product(y, atom(Atom::Kind::kErf, *slope / std::numbers::sqrt2))));
    }
    case Fn::kExp:
      if (slope) return atom(Atom::Kind::kExp, *slope);
      if (const auto c = only_power(*y, 2); c && *c < 0) return atom(Atom::Kind::kBell, -*c);
      return std::nullopt;
    case Fn::kSin:
    case Fn::kCos: {
      double w = 0, p = m.fn == Fn::kCos ? std::numbers::pi / 2 : 0;
      for (const auto& [key, c] : *y) {
        if (key == Key{1, {}})
          w = c;
        else if (key == Key{0, {}})
          p += c;
        else
          return std::nullopt;
      }
      return w == 0 ? std::nullopt : atom(Atom::Kind::kSine, w, p);
    }
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
      switch (m->fn) {
        case Fn::kAdd: slope[k] = b.plus(d[0], d[1]); break;
        case Fn::kSub: slope[k] = b.minus(d[0], d[1]); break;
        case Fn::kMul: slope[k] = b.plus(b.times(d[0], in[1]), b.times(in[0], d[1])); break;
        case Fn::kDiv:
          slope[k] = b.map(Fn::kDiv, {b.minus(d[0], b.times(value[k], d[1])), in[1]});
          break;
        case Fn::kMin:
        case Fn::kMax: {
          const NodeId first = b.map(
              Fn::kLess, m->fn == Fn::kMin ? std::vector{in[0], in[1]} : std::vector{in[1], in[0]});
          slope[k] = b.plus(b.times(first, d[0]), b.times(b.minus(b.constant(1), first), d[1]));
          break;
        }
        case Fn::kWhere: slope[k] = b.map(Fn::kWhere, {in[0], d[1], d[2]}); break;
        case Fn::kMod: slope[k] = d[0]; break;
        case Fn::kSign:
        case Fn::kStep:
        case Fn::kLess:
        case Fn::kLessEqual:
        case Fn::kEqual:
        case Fn::kNotEqual:
        case Fn::kPow: break;
        default: slope[k] = b.times(derivative_of(b, *m, in[0], value[k]), d[0]);
      }
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
  using Quadratic = std::array<double, 3>;
  struct Split {
    Quadratic exponent{};
    NodeId rest;
  };
  Program program = with_variable();
  Builder b(program);
  (void)b.add(StandardNormal{{0}}, {});
  const auto combined = [](const Quadratic& p, double c, const Quadratic& q) {
    return Quadratic{p[0] + c * q[0], p[1] + c * q[1], p[2] + c * q[2]};
  };
  std::vector<NodeId> value(f.program.size());
  std::vector<std::optional<Quadratic>> polynomial(f.program.size());  // of degree 2 at most
  std::vector<Split> split(f.program.size());
  // exp(c x) of node x, its sums apart.
  const std::function<Split(NodeId, double)> exponential_of = [&](NodeId x, double c) -> Split {
    if (const auto& p = polynomial[x.value]) return {combined({}, c, *p), b.constant(1)};
    const Node& node = f.program[x];
    if (const auto* s = std::get_if<Scale>(&node.op))
      return exponential_of(node.in[0], c * s->factor);
    const auto* m = std::get_if<Map>(&node.op);
    const auto factor = [&](std::size_t k) {
      return m && polynomial[node.in[k].value] && (*polynomial[node.in[k].value])[1] == 0 &&
                     (*polynomial[node.in[k].value])[2] == 0
                 ? (*polynomial[node.in[k].value])[0]
                 : 0.0;
    };
    if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub)) {
      const Split one = exponential_of(node.in[0], c),
                  other = exponential_of(node.in[1], m->fn == Fn::kAdd ? c : -c);
      return {combined(one.exponent, 1, other.exponent), b.times(one.rest, other.rest)};
    }
    if (m && m->fn == Fn::kMul)
      for (const std::size_t k : {0u, 1u})
        if (const double by = factor(k); by != 0) return exponential_of(node.in[1 - k], c * by);
    if (m && m->fn == Fn::kDiv)
      if (const double by = factor(1); by != 0) return exponential_of(node.in[0], c / by);
    return {{},
            b.map(Fn::kExp, {c == 1 ? value[x.value] : b.times(b.constant(c), value[x.value])})};
  };
  for (std::size_t k = 0; k <= f.out.value; ++k) {
    const Node& node = f.program.nodes[k];
    std::vector<NodeId> in;
    for (const NodeId i : node.in) in.push_back(value[i.value]);
    const auto* constant = std::get_if<Constant>(&node.op);
    value[k] = constant ? b.constant(*constant->values, node.type.dims)
               : k == 0 ? NodeId{0}
                        : b.add(node.op, std::move(in));
    split[k] = {{}, value[k]};
    const auto p = [&](std::size_t j) -> const std::optional<Quadratic>& {
      return polynomial[node.in[j].value];
    };
    const auto of = [&](std::size_t j) -> const Split& { return split[node.in[j].value]; };
    const auto* m = std::get_if<Map>(&node.op);
    if (k == 0) {
      polynomial[k] = Quadratic{0, 1, 0};
    } else if (constant) {
      polynomial[k] = Quadratic{constant->values->front(), 0, 0};
    } else if (const auto* s = std::get_if<Scale>(&node.op)) {
      if (p(0)) polynomial[k] = combined({}, s->factor, *p(0));
      split[k] = {of(0).exponent, b.scale(s->factor, 0, of(0).rest)};
    } else if (!m) {
      if (node.in.size() != 1) continue;
      polynomial[k] = p(0);
      split[k] = {of(0).exponent, of(0).exponent == Quadratic{} ? value[k] : of(0).rest};  // Expand
    } else if (m->fn == Fn::kExp) {
      split[k] = exponential_of(node.in[0], 1);
    } else if (m->fn == Fn::kAdd || m->fn == Fn::kSub) {
      if (p(0) && p(1)) polynomial[k] = combined(*p(0), m->fn == Fn::kAdd ? 1 : -1, *p(1));
      if (of(0).exponent == of(1).exponent && of(0).exponent != Quadratic{})
        split[k] = {of(0).exponent, b.map(m->fn, {of(0).rest, of(1).rest})};
      else if (b.is_zero(value[node.in[1].value]))
        split[k] = of(0);
      else if (b.is_zero(value[node.in[0].value]) && m->fn == Fn::kAdd)
        split[k] = of(1);
    } else if (m->fn == Fn::kMul) {
      if (p(0) && p(1)) {
        const Quadratic &x = *p(0), &y = *p(1);
        if (x[2] * y[1] == 0 && x[1] * y[2] == 0 && x[2] * y[2] == 0)
          polynomial[k] = Quadratic{x[0] * y[0], x[0] * y[1] + x[1] * y[0],
                                    x[0] * y[2] + x[1] * y[1] + x[2] * y[0]};
      }
      split[k] = {combined(of(0).exponent, 1, of(1).exponent), b.times(of(0).rest, of(1).rest)};
    } else if (m->fn == Fn::kDiv) {
      if (p(0) && p(1) && (*p(1))[0] != 0 && (*p(1))[1] == 0 && (*p(1))[2] == 0)
        polynomial[k] = combined({}, 1 / (*p(1))[0], *p(0));
      split[k] = {combined(of(0).exponent, -1, of(1).exponent),
                  b.map(Fn::kDiv, {of(0).rest, of(1).rest})};
    } else if (m->fn == Fn::kPower || m->fn == Fn::kSqrt) {
      const double n = m->fn == Fn::kSqrt ? 0.5 : m->parameter;
      if (n == 2 && p(0) && (*p(0))[2] == 0)
        polynomial[k] = Quadratic{(*p(0))[0] * (*p(0))[0], 2 * (*p(0))[0] * (*p(0))[1],
                                  (*p(0))[1] * (*p(0))[1]};
      if (of(0).exponent != Quadratic{})
        split[k] = {combined({}, n, of(0).exponent), b.map(m->fn, {of(0).rest}, m->parameter)};
    }
  }
  const auto [exponent, rest] = split[f.out.value];
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
    return PairForm{
        1,
        1,
        1,
        [&p, &q](auto a, auto b, auto c, auto K) { return piecewise_kernel(*p, *q, a, b, c, K); },
        nullptr,
        f == g,
        p->above[0] != p->below[0] && q->above[0] != q->below[0]};
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
  for (const double position : kinks(f)) {
    // f(c + h) - f(c - h) = J + O(h), and the O(h) is extrapolated away.
    const double h = 1e-6 * std::max(1.0, std::abs(position));
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
  const auto difference_at = [&](const Node& node, double x) {
    std::vector<std::vector<double>> values;
    NodeId last = node.in[0];
    for (const NodeId i : node.in) last = std::max(last, i);
    run(program, 1, &x, values, last);
    const bool two = arity(std::get<Map>(node.op).fn) == 2 && std::get<Map>(node.op).fn != Fn::kDiv;
    return two ? values[node.in[0].value][0] - values[node.in[1].value][0]
               : values[node.in[node.in.size() == 2 ? 1 : 0].value][0];
  };
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
    const auto g = [&](double x) { return difference_at(node, x); };
    const std::size_t before = f.kinks.size();
    const double g0 = g(0), g1 = g(1) - g0;
    bool linear = true;
    for (const double x : {-7.0, -0.3, 0.5, 3.0, 11.0})
      linear =
          linear && std::abs(g(x) - (g0 + g1 * x)) <= 1e-14 * (std::abs(g0) + std::abs(g1 * x));
    if (linear) {
      if (g1 != 0) f.kinks.push_back(g0 == 0 ? 0.0 : -g0 / g1);
      f.null = f.null ||
               (m->fn == Fn::kEqual && NodeId{static_cast<std::uint32_t>(k)} == f.out && g1 != 0);
    } else {
      // As many roots on a grid as fine as any kink may need, or there are too many.
      std::vector<double> grid(40'001);
      for (std::size_t i = 0; i < grid.size(); ++i)
        grid[i] = std::sinh(std::asinh(1e4) * (static_cast<double>(i) - 20'000.3) / 20'000);
      std::vector<std::vector<double>> on_grid;
      NodeId last = node.in[0];
      for (const NodeId i : node.in) last = std::max(last, i);
      run(program, static_cast<std::int64_t>(grid.size()), grid.data(), on_grid, last);
      const bool two = arity(m->fn) == 2 && m->fn != Fn::kDiv;
      const auto read = [&](NodeId id, std::size_t i) {
        return program[id].type.width ? on_grid[id.value][i] : on_grid[id.value][0];
      };
      std::size_t changes = 0;
      double previous = 0;
      for (std::size_t i = 0; i < grid.size(); ++i) {
        const double now = two ? read(node.in[0], i) - read(node.in[1], i)
                               : read(node.in[node.in.size() == 2 ? 1 : 0], i);
        if (now != 0 && previous != 0 && (now > 0) != (previous > 0)) ++changes;
        if (now != 0) previous = now;
      }
      double left = -1e4, at_left = g(left);
      for (int i = 1; i <= 2000; ++i) {
        const double right = std::sinh(std::asinh(1e4) * (i - 1000) / 1000.0), at_right = g(right);
        // A change of sign, or an edge of where g is 0: a condition may be 0 on a half-line.
        if ((at_left == 0) != (at_right == 0) || at_left * at_right < 0) {
          double a = left, b = right;
          for (int j = 0; j < 200 && b - a > 1e-16 * (std::abs(a) + std::abs(b)); ++j) {
            const double middle = 0.5 * (a + b), value = g(middle);
            (at_left == 0 ? value == 0 : value * at_left > 0) ? a = middle : b = middle;
          }
          f.kinks.push_back(at_right == 0 ? b : at_left == 0 ? a : 0.5 * (a + b));
        }
        left = right;
        at_left = at_right;
      }
      if (changes > f.kinks.size() - before) f.integrable = false;
    }
    if (m->fn == Fn::kDiv && f.kinks.size() > before) f.integrable = false;
  }
  std::sort(f.kinks.begin(), f.kinks.end());
  f.kinks.erase(std::unique(f.kinks.begin(), f.kinks.end()), f.kinks.end());
  if (f.kinks.size() > 16) f.integrable = false;
}

}  // namespace tplimit::moments
