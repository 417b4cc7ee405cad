#include "tplimit/explain/expression.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include <fmt/format.h>

#include "tplimit/ir/functions.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::explain {

using ir::Fn;

// ---- indices
// ---------------------------------------------------------------------------------------

namespace {

/// Calls f(values) for every assignment of the symbols, row-major.
template <class F>
void for_all(const std::vector<Symbol>& symbols, F f) {
  std::map<std::uint32_t, std::int64_t> values;
  const std::function<void(std::size_t)> go = [&](std::size_t k) {
    if (k == symbols.size()) return f(values);
    for (std::int64_t v = 0; v < symbols[k].size; ++v) {
      values[symbols[k].id] = v;
      go(k + 1);
    }
  };
  go(0);
}

}  // namespace

Index Index::number(std::int64_t value) {
  Index out;
  if (value != 0) out.table_ = std::make_shared<const std::vector<std::int64_t>>(1, value);
  return out;
}

Index Index::table(std::vector<Symbol> symbols, std::vector<std::int64_t> values) {
  // Letters that change nothing are left out.
  for (std::size_t k = symbols.size(); k-- > 0;) {
    std::int64_t inner = 1;
    for (std::size_t j = k + 1; j < symbols.size(); ++j) inner *= symbols[j].size;
    const std::int64_t size = symbols[k].size,
                       outer = static_cast<std::int64_t>(values.size()) / (inner * size);
    const auto at = [&](std::int64_t o, std::int64_t s, std::int64_t i) {
      return values[static_cast<std::size_t>((o * size + s) * inner + i)];
    };
    bool used = false;
    for (std::int64_t o = 0; o < outer && !used; ++o)
      for (std::int64_t s = 1; s < size && !used; ++s)
        for (std::int64_t i = 0; i < inner && !used; ++i) used = at(o, s, i) != at(o, 0, i);
    if (used) continue;
    std::vector<std::int64_t> rest;
    for (std::int64_t o = 0; o < outer; ++o)
      for (std::int64_t i = 0; i < inner; ++i) rest.push_back(at(o, 0, i));
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(k));
    values = std::move(rest);
  }
  if (symbols.empty()) return number(values.front());
  Index out;
  out.symbols_ = std::move(symbols);
  bool identity = out.symbols_.size() == 1;
  for (std::size_t k = 0; k < values.size(); ++k)
    identity = identity && values[k] == static_cast<std::int64_t>(k);
  if (!identity) out.table_ = std::make_shared<const std::vector<std::int64_t>>(std::move(values));
  return out;
}

bool Index::contains(Symbol symbol) const {
  return std::find(symbols_.begin(), symbols_.end(), symbol) != symbols_.end();
}

std::int64_t Index::at(const std::map<std::uint32_t, std::int64_t>& values) const {
  std::int64_t position = 0;
  for (const Symbol& s : symbols_) position = position * s.size + values.at(s.id);
  return table_ ? (*table_)[static_cast<std::size_t>(position)] : position;
}

std::vector<std::int64_t> Index::values() const {
  if (table_) return *table_;
  std::vector<std::int64_t> out(static_cast<std::size_t>(symbols_.empty() ? 1 : symbols_[0].size));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

bool operator==(const Index& a, const Index& b) {
  return a.symbols_ == b.symbols_ &&
         (a.table_ == b.table_ || (a.table_ && b.table_ && *a.table_ == *b.table_));
}

Index substitute(const Index& index, const Substitution& by) {
  const auto replaced = [&](const Symbol& s) { return by.contains(s.id); };
  if (std::none_of(index.symbols().begin(), index.symbols().end(), replaced)) return index;
  if (index.is_symbol()) return by.at(index.symbols()[0].id);
  std::vector<Symbol> symbols;
  const auto join = [&](const Symbol& s) {
    if (std::find(symbols.begin(), symbols.end(), s) == symbols.end()) symbols.push_back(s);
  };
  for (const Symbol& s : index.symbols()) {
    if (!replaced(s))
      join(s);
    else
      for (const Symbol& t : by.at(s.id).symbols()) join(t);
  }
  std::vector<std::int64_t> values;
  for_all(symbols, [&](const auto& assigned) {
    std::map<std::uint32_t, std::int64_t> inner;
    for (const Symbol& s : index.symbols())
      inner[s.id] = replaced(s) ? by.at(s.id).at(assigned) : assigned.at(s.id);
    values.push_back(index.at(inner));
  });
  return Index::table(std::move(symbols), std::move(values));
}

Index flatten(const Indices& indices, const ir::Dims& dims) {
  std::vector<Symbol> symbols;
  for (const Index& index : indices)
    for (const Symbol& s : index.symbols())
      if (std::find(symbols.begin(), symbols.end(), s) == symbols.end()) symbols.push_back(s);
  std::vector<std::int64_t> values;
  for_all(symbols, [&](const auto& assigned) {
    std::int64_t flat = 0;
    for (std::size_t k = 0; k < indices.size(); ++k)
      flat = flat * dims[k] + indices[k].at(assigned);
    values.push_back(flat);
  });
  return Index::table(std::move(symbols), std::move(values));
}

Indices unflatten(const Index& flat, const ir::Dims& dims) {
  Indices out(dims.size());
  std::int64_t stride = 1;
  for (std::size_t k = dims.size(); k-- > 0;) {
    std::vector<std::int64_t> values = flat.values();
    for (std::int64_t& v : values) v = v / stride % dims[k];
    out[k] = Index::table(flat.symbols(), std::move(values));
    stride *= dims[k];
  }
  return out;
}

// ---- making
// ----------------------------------------------------------------------------------------

std::vector<Symbol> Calculus::fresh(const ir::Dims& dims) {
  std::vector<Symbol> out;
  for (const std::int64_t d : dims) out.push_back(fresh(d));
  return out;
}

Expr Calculus::make(Term term) {
  for (const Index& index : term.indices)
    for (const Symbol& s : index.symbols()) term.symbols.insert(s.id);
  for (const Expr& e : term.args) {
    term.symbols.insert(e->symbols.begin(), e->symbols.end());
    term.width = term.width || e->width;
  }
  if (term.kind == Kind::kRef) term.width = definitions[term.ref].width;
  if (term.kind == Kind::kMean) term.width = false;
  if (term.kind == Kind::kSum || term.kind == Kind::kMax) term.symbols.erase(term.bound.id);
  return std::make_shared<const Term>(std::move(term));
}

Expr Calculus::number(double value) {
  Term t;
  t.number = value;
  return make(std::move(t));
}

Expr Calculus::ref(std::uint32_t definition, Indices indices) {
  const Definition& d = definitions[definition];
  if (d.kind == Definition::Kind::kData &&
      std::all_of(indices.begin(), indices.end(), [](const Index& i) { return i.is_number(); })) {
    std::int64_t flat = 0;
    for (std::size_t k = 0; k < indices.size(); ++k)
      flat = flat * d.axes[k].size + indices[k].number();
    return number(d.values[static_cast<std::size_t>(flat)]);
  }
  if (d.in_line || (d.value && d.value->kind == Kind::kNumber)) {
    Substitution by;
    for (std::size_t k = 0; k < d.axes.size(); ++k) by.emplace(d.axes[k].id, indices[k]);
    const Expr value = d.value;
    return substitute(value, by);
  }
  Term t;
  t.kind = Kind::kRef;
  t.ref = definition;
  t.indices = std::move(indices);
  return make(std::move(t));
}

Expr Calculus::delta(const Index& a, const Index& b) {
  if (a == b) return number(1);
  if (a.is_number() && b.is_number()) return number(0);
  Term t;
  t.kind = Kind::kDelta;
  t.indices = {a, b};
  return make(std::move(t));
}

namespace {

/// c and the rest of c * rest.
std::pair<double, std::vector<Expr>> coefficient_of(const Expr& e) {
  if (e->kind == Kind::kNumber) return {e->number, {}};
  if (e->kind == Kind::kMul && e->args[0]->kind == Kind::kNumber)
    return {e->args[0]->number, {e->args.begin() + 1, e->args.end()}};
  if (e->kind == Kind::kMul) return {1, e->args};
  return {1, {e}};
}

int rank_of(const Expr& e) {
  if (e->kind == Kind::kNumber) return 0;
  if (e->kind == Kind::kDelta) return 1;
  if (!e->width) return e->kind == Kind::kSum || e->kind == Kind::kAdd ? 3 : 2;
  if (e->kind == Kind::kRef) return 4;
  return e->kind == Kind::kAdd || e->kind == Kind::kSum ? 6 : 5;
}

}  // namespace

Expr Calculus::add(std::vector<Expr> terms) {
  std::vector<std::pair<double, std::vector<Expr>>> parts;
  std::vector<std::string> keys;
  std::map<std::string, std::size_t> places;
  double constant = 0;
  const std::function<void(const Expr&)> take = [&](const Expr& e) {
    if (e->kind == Kind::kAdd) {
      for (const Expr& inner : e->args) take(inner);
      return;
    }
    auto part = coefficient_of(e);
    if (part.second.empty()) {
      constant += part.first;
      return;
    }
    std::string text;
    for (const Expr& f : part.second) text += key(f) + "*";
    const auto [it, fresh] = places.try_emplace(std::move(text), parts.size());
    if (fresh)
      parts.push_back(std::move(part));
    else
      parts[it->second].first += part.first;
  };
  for (const Expr& e : terms) take(e);
  std::vector<Expr> out;
  if (constant != 0) out.push_back(number(constant));
  for (auto& [c, rest] : parts) {
    if (c == 0) continue;
    rest.insert(rest.begin(), number(c));
    out.push_back(mul(std::move(rest)));
  }
  if (out.empty()) return number(0);
  if (out.size() == 1) return out[0];
  Term t;
  t.kind = Kind::kAdd;
  t.args = std::move(out);
  return make(std::move(t));
}

Expr Calculus::mul(std::vector<Expr> factors) {
  double c = 1;
  std::vector<std::pair<Expr, double>> powers;
  std::map<std::string, std::size_t> places;
  const std::function<void(const Expr&)> take = [&](const Expr& e) {
    if (e->kind == Kind::kMul) {
      for (const Expr& inner : e->args) take(inner);
      return;
    }
    if (e->kind == Kind::kNumber) {
      c *= e->number;
      return;
    }
    const Expr& base = e->kind == Kind::kPower ? e->args[0] : e;
    const double exponent = e->kind == Kind::kPower ? e->number : 1;
    const auto [it, fresh] = places.try_emplace(key(base), powers.size());
    if (fresh)
      powers.emplace_back(base, exponent);
    else if (base->kind != Kind::kDelta)
      powers[it->second].second += exponent;
  };
  for (const Expr& e : factors) take(e);
  if (c == 0) return number(0);
  std::vector<Expr> out;
  for (auto& [base, exponent] : powers)
    if (exponent != 0) out.push_back(power(base, exponent));
  std::stable_sort(out.begin(), out.end(),
                   [](const Expr& a, const Expr& b) { return rank_of(a) < rank_of(b); });
  if (out.empty()) return number(c);
  if (c != 1) out.insert(out.begin(), number(c));
  if (out.size() == 1) return out[0];
  Term t;
  t.kind = Kind::kMul;
  t.args = std::move(out);
  return make(std::move(t));
}

Expr Calculus::power(Expr base, double exponent) {
  if (exponent == 0) return number(1);
  if (exponent == 1) return base;
  if (base->kind == Kind::kNumber) return number(std::pow(base->number, exponent));
  if (base->kind == Kind::kDelta && exponent > 0) return base;
  const bool whole = exponent == std::round(exponent);
  if (base->kind == Kind::kPower && (whole || base->args[0]->kind == Kind::kMean))
    return power(base->args[0], base->number * exponent);
  if (base->kind == Kind::kMul && whole) {
    std::vector<Expr> factors;
    for (const Expr& f : base->args) factors.push_back(power(f, exponent));
    return mul(std::move(factors));
  }
  if (base->kind == Kind::kFunction && base->order == 0 && base->map.fn == Fn::kStep &&
      exponent > 0)
    return base;
  Term t;
  t.kind = Kind::kPower;
  t.number = exponent;
  t.args = {std::move(base)};
  return make(std::move(t));
}

Expr Calculus::function(const ir::Map& map, int order, Expr x) {
  // Few ways to write one thing: piecewise linear maps by step and delta = step'.
  if (map.fn == Fn::kPower) {
    double c = 1, a = map.parameter;
    for (int k = 0; k < order; ++k) c *= a--;
    return mul({number(c), power(std::move(x), a)});
  }
  const ir::Function& known = ir::function(map.fn);
  const ir::FunctionTraits traits = ir::traits_of(map);
  if (traits.derivative_is_itself) order = 0;
  if (order > 0 && known.slope) {
    const ir::Slope slope = known.slope(map.parameter);
    const Expr f =
        mul({number(slope.factor), function(slope.of, slope.order + order - 1, std::move(x))});
    return order == 1 && slope.constant != 0 ? add({number(slope.constant), f}) : f;
  }
  if (map.fn == Fn::kSqrt) return function({Fn::kPower, 0.5}, order, std::move(x));
  // f(-x) = -f(x) or f(x)
  if (const auto p = traits.parity; p != ir::FunctionTraits::Parity::kNone &&
                                    x->kind == Kind::kMul && x->args[0]->kind == Kind::kNumber &&
                                    x->args[0]->number < 0) {
    const bool odd = (p == ir::FunctionTraits::Parity::kOdd) == (order % 2 == 0);
    const Expr f = function(map, order, mul({number(-1), x}));
    return odd ? mul({number(-1), f}) : f;
  }
  Term t;
  t.kind = Kind::kFunction;
  t.map = map;
  t.order = order;
  t.args = {std::move(x)};
  return make(std::move(t));
}

Expr Calculus::call(const ir::Map& map, std::vector<Expr> args) {
  const auto step = [&](const Expr& x) { return function({Fn::kStep, 0}, 0, x); };
  const auto minus = [&](const Expr& a, const Expr& b) { return add({a, mul({number(-1), b})}); };
  const auto is_condition = [](const Expr& c) {
    return c->kind == Kind::kFunction && c->map.fn == Fn::kStep && c->order == 0;
  };
  switch (map.fn) {
    case Fn::kAdd: return add(std::move(args));
    case Fn::kSub: return minus(args[0], args[1]);
    case Fn::kMul: return mul(std::move(args));
    case Fn::kDiv: return mul({args[0], power(args[1], -1)});
    case Fn::kPow:
      if (args[1]->kind == Kind::kNumber) return power(args[0], args[1]->number);
      break;
    // Kinks and jumps sit in relu and step only.
    case Fn::kMax: return add({args[1], function({Fn::kRelu, 0}, 0, minus(args[0], args[1]))});
    case Fn::kMin: return minus(args[0], function({Fn::kRelu, 0}, 0, minus(args[0], args[1])));
    case Fn::kLess:
      if (args[0]->width || args[1]->width) return step(minus(args[1], args[0]));
      break;
    case Fn::kLessEqual:
      if (args[0]->width || args[1]->width) return minus(number(1), step(minus(args[0], args[1])));
      break;
    case Fn::kWhere:
      if (is_condition(args[0]))
        return add({mul({args[0], args[1]}), mul({minus(number(1), args[0]), args[2]})});
      break;
    default: break;
  }
  Term t;
  t.kind = Kind::kCall;
  t.map = map;
  t.args = std::move(args);
  return make(std::move(t));
}

Expr Calculus::refresh(const Expr& e) {
  TPLIMIT_CHECK(e->kind == Kind::kSum || e->kind == Kind::kMax, "a bound symbol");
  const Symbol s = fresh(e->bound.size);
  Term t;
  t.kind = e->kind;
  t.bound = s;
  t.args = {substitute(e->args[0], {{e->bound.id, Index(s)}})};
  return make(std::move(t));
}

Expr Calculus::sum(Symbol s, const Expr& e) {
  if (!e->symbols.contains(s.id)) return mul({number(static_cast<double>(s.size)), e});
  if (e->kind == Kind::kAdd) {
    std::vector<Expr> terms;
    for (const Expr& t : e->args) terms.push_back(sum(s, t));
    return add(std::move(terms));
  }
  const std::vector<Expr> factors = e->kind == Kind::kMul ? e->args : std::vector{e};
  for (std::size_t k = 0; k < factors.size(); ++k) {
    if (factors[k]->kind != Kind::kDelta) continue;
    for (const int side : {0, 1}) {
      const Index &own = factors[k]->indices[static_cast<std::size_t>(side)],
                  &other = factors[k]->indices[static_cast<std::size_t>(1 - side)];
      if (!own.is_symbol() || own.symbols()[0] != s || other.contains(s)) continue;
      const auto values = other.values();
      if (std::any_of(values.begin(), values.end(), [&](std::int64_t v) { return v >= s.size; }))
        continue;  // 0 for some: a part of a larger axis
      std::vector<Expr> rest = factors;
      rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(k));
      return substitute(mul(std::move(rest)), {{s.id, other}});
    }
  }
  // Sum_s A Sum_t B: the delta may be inside.
  for (std::size_t k = 0; k < factors.size(); ++k) {
    const Expr& inner = factors[k];
    if (inner->kind != Kind::kSum) continue;
    const auto has_delta = [&](const Expr& f) {
      return f->kind == Kind::kDelta &&
             std::any_of(f->indices.begin(), f->indices.end(),
                         [&](const Index& i) { return i.is_symbol() && i.symbols()[0] == s; });
    };
    const Expr& body = inner->args[0];
    if (!(body->kind == Kind::kMul ? std::any_of(body->args.begin(), body->args.end(), has_delta)
                                   : has_delta(body)))
      continue;
    const Expr own = refresh(inner);
    std::vector<Expr> rest = factors;
    rest[k] = own->args[0];
    return sum(own->bound, sum(s, mul(std::move(rest))));
  }
  std::vector<Expr> outside, inside;
  for (const Expr& f : factors) (f->symbols.contains(s.id) ? inside : outside).push_back(f);
  Term t;
  t.kind = Kind::kSum;
  t.bound = s;
  t.args = {mul(std::move(inside))};
  outside.push_back(make(std::move(t)));
  return mul(std::move(outside));
}

Expr Calculus::maximum(Symbol symbol, const Expr& e) {
  if (!e->symbols.contains(symbol.id)) return e;
  Term t;
  t.kind = Kind::kMax;
  t.bound = symbol;
  t.args = {e};
  return make(std::move(t));
}

Expr Calculus::substitute(const Expr& e, const Substitution& by) {
  Substitution own;
  for (const auto& [id, index] : by)
    if (e->symbols.contains(id)) own.emplace(id, index);
  if (own.empty()) return e;
  const auto at = [&](const Indices& indices) {
    Indices out;
    for (const Index& i : indices) out.push_back(explain::substitute(i, own));
    return out;
  };
  const auto each = [&] {
    std::vector<Expr> out;
    for (const Expr& a : e->args) out.push_back(substitute(a, own));
    return out;
  };
  switch (e->kind) {
    case Kind::kNumber: return e;
    case Kind::kRef: return ref(e->ref, at(e->indices));
    case Kind::kDelta: {
      const Indices i = at(e->indices);
      return delta(i[0], i[1]);
    }
    case Kind::kAdd: return add(each());
    case Kind::kMul: return mul(each());
    case Kind::kPower: return power(each()[0], e->number);
    case Kind::kFunction: return function(e->map, e->order, each()[0]);
    case Kind::kCall: return call(e->map, each());
    case Kind::kMean: return mean(each()[0]);
    case Kind::kJump: {
      Term t;
      t.kind = Kind::kJump;
      t.args = each();
      return make(std::move(t));
    }
    case Kind::kSum:
    case Kind::kMax: {
      for (const auto& [id, index] : own)
        if (index.contains(e->bound))
          return substitute(refresh(e), own);  // else the new letter would be bound
      const Expr body = each()[0];
      return e->kind == Kind::kSum ? sum(e->bound, body) : maximum(e->bound, body);
    }
  }
  return e;
}

// ---- means
// -----------------------------------------------------------------------------------------

const std::set<std::uint32_t>& Calculus::families(const Expr& e) {
  if (const auto it = family_cache_.find(e.get()); it != family_cache_.end())
    return it->second.second;
  std::set<std::uint32_t> out;
  if (e->kind == Kind::kRef && e->width) out = definitions[e->ref].families;
  if (e->kind != Kind::kMean)
    for (const Expr& a : e->args) {
      const auto& own = families(a);
      out.insert(own.begin(), own.end());
    }
  return family_cache_.emplace(e.get(), std::pair{e, std::move(out)}).first->second.second;
}

Calculus::Parity Calculus::parity(const Expr& e, const std::set<std::uint32_t>& flipped) {
  if (!e->width) return Parity::kEven;
  const auto times = [](Parity a, Parity b) {
    if (a == Parity::kNone || b == Parity::kNone) return Parity::kNone;
    return a == b ? Parity::kEven : Parity::kOdd;
  };
  switch (e->kind) {
    case Kind::kRef: {
      const Definition& d = definitions[e->ref];
      if (d.kind == Definition::Kind::kSource || d.kind == Definition::Kind::kGaussian)
        return flipped.contains(d.family) ? Parity::kOdd : Parity::kEven;
      if (!d.value) return Parity::kNone;
      const auto slot = std::pair{e->ref, flipped};
      if (const auto it = parities_.find(slot); it != parities_.end()) return it->second;
      const Parity p = parity(d.value, flipped);
      return parities_[slot] = p;
    }
    case Kind::kAdd: {
      const Parity first = parity(e->args[0], flipped);
      for (const Expr& a : e->args)
        if (parity(a, flipped) != first) return Parity::kNone;
      return first;
    }
    case Kind::kMul: {
      Parity p = Parity::kEven;
      for (const Expr& a : e->args) p = times(p, parity(a, flipped));
      return p;
    }
    case Kind::kPower: {
      const Parity p = parity(e->args[0], flipped);
      if (p == Parity::kEven || e->number != std::round(e->number))
        return p == Parity::kEven ? p : Parity::kNone;
      return p == Parity::kOdd && std::fmod(std::abs(e->number), 2.0) == 0 ? Parity::kEven : p;
    }
    case Kind::kFunction: {
      const Parity p = parity(e->args[0], flipped);
      if (p != Parity::kOdd) return p;
      const ir::FunctionTraits traits = ir::traits_of(e->map);
      const auto own = traits.parity;
      if (traits.odd_up_to_constant && e->order > 0)  // sigmoid', and delta = step', are even
        return e->order % 2 == 1 ? Parity::kEven : Parity::kOdd;
      if (own == ir::FunctionTraits::Parity::kNone) return Parity::kNone;
      return (own == ir::FunctionTraits::Parity::kOdd) == (e->order % 2 == 0) ? Parity::kOdd
                                                                              : Parity::kEven;
    }
    case Kind::kSum: return parity(e->args[0], flipped);
    case Kind::kCall:
    case Kind::kMax:
    case Kind::kJump:
      for (const Expr& a : e->args)
        if (parity(a, flipped) != Parity::kEven) return Parity::kNone;
      return Parity::kEven;
    case Kind::kNumber:
    case Kind::kDelta:
    case Kind::kMean: break;
  }
  return Parity::kEven;
}

/// A vector that is a product with numbers or with independent factors falls apart in a mean.
Expr Calculus::spread(const Expr& factor) {
  const double exponent = factor->kind == Kind::kPower ? factor->number : 1;
  const Expr& base = factor->kind == Kind::kPower ? factor->args[0] : factor;
  if (base->kind != Kind::kRef || !base->width || exponent != std::round(exponent) || exponent < 0)
    return factor;
  const Definition& d = definitions[base->ref];
  if (!d.value || d.value->kind != Kind::kMul || weight(d.value) > 8) return factor;
  const auto is_sum = [](const Expr& f) { return f->kind == Kind::kSum || f->kind == Kind::kAdd; };
  if (std::any_of(d.value->args.begin(), d.value->args.end(), is_sum)) return factor;
  bool apart = false;
  std::set<std::uint32_t> met;
  for (const Expr& f : d.value->args) {
    apart = apart || !f->width;
    const auto& own = families(f);
    if (f->width && !met.empty())
      apart = apart || std::none_of(own.begin(), own.end(),
                                    [&](std::uint32_t x) { return met.contains(x); });
    met.insert(own.begin(), own.end());
  }
  if (!apart) return factor;
  Substitution by;
  for (std::size_t k = 0; k < d.axes.size(); ++k) by.emplace(d.axes[k].id, base->indices[k]);
  return power(substitute(d.value, by), exponent);
}

std::optional<Expr> Calculus::covariance(const Expr& a, const Expr& b) {
  const auto gaussian = [&](const Expr& e) {
    return e->kind == Kind::kRef && (definitions[e->ref].kind == Definition::Kind::kSource ||
                                     definitions[e->ref].kind == Definition::Kind::kGaussian);
  };
  if (!gaussian(a) || !gaussian(b)) return std::nullopt;
  const Definition &x = definitions[a->ref], &y = definitions[b->ref];
  if (x.family != y.family) return number(0);
  if (x.kind == Definition::Kind::kSource) {
    std::vector<Expr> deltas{number(x.scale * x.scale)};
    for (std::size_t k = 0; k < a->indices.size(); ++k)
      deltas.push_back(delta(a->indices[k], b->indices[k]));
    return mul(std::move(deltas));
  }
  const double square = x.scale * y.scale;
  return mul({number(square), mean(mul({ref(x.operand, a->indices), ref(y.operand, b->indices)}))});
}

/// Factors that share no family of Gaussians are independent.
std::vector<std::vector<Expr>> Calculus::independent_groups(const std::vector<Expr>& random) {
  std::vector<std::size_t> group(random.size());
  std::iota(group.begin(), group.end(), 0);
  const std::function<std::size_t(std::size_t)> root = [&](std::size_t k) {
    return group[k] == k ? k : group[k] = root(group[k]);
  };
  for (std::size_t k = 0; k < random.size(); ++k)
    for (std::size_t j = 0; j < k; ++j) {
      const auto &a = families(random[k]), &b = families(random[j]);
      if (std::any_of(a.begin(), a.end(), [&](std::uint32_t x) { return b.contains(x); }))
        group[root(k)] = root(j);
    }
  std::map<std::size_t, std::vector<Expr>> groups;
  for (std::size_t k = 0; k < random.size(); ++k) groups[root(k)].push_back(random[k]);
  std::vector<std::vector<Expr>> out;
  for (auto& [first, members] : groups) out.push_back(std::move(members));
  return out;
}

/// How many terms E[x x] has, written out: 1 where it stays a mean.
std::size_t Calculus::second_moment_terms(std::uint32_t definition) {
  Indices own;
  for (const Symbol& axis : definitions[definition].axes) own.emplace_back(axis);
  const Expr x = spread(ref(definition, std::move(own)));
  std::size_t out = 1;
  for (const Expr& f : x->kind == Kind::kMul ? x->args : std::vector{x})
    out *= std::max<std::size_t>(1, gaussian_terms(f));
  return out;
}

/// Of a sum of Gaussians of mean 0 with numbers as coefficients: how many terms its covariance has,
/// written out as far as gaussian_covariance does; else 0.  A Gaussian G[W x] has those of E[x x]:
/// counted as one, they would double with every block of a residual network.
std::size_t Calculus::gaussian_terms(const Expr& e) {
  constexpr std::size_t kMost = 16;  // a longer sum is left under its name
  if (!e->width) return 0;
  switch (e->kind) {
    case Kind::kRef: {
      if (const auto it = gaussian_terms_.find(e->ref); it != gaussian_terms_.end())
        return it->second;
      const Definition& d = definitions[e->ref];
      const std::size_t out = d.kind == Definition::Kind::kGaussian ? second_moment_terms(d.operand)
                              : d.kind == Definition::Kind::kSource ? 1
                              : d.value                             ? gaussian_terms(d.value)
                                                                    : 0;
      return gaussian_terms_[e->ref] = out <= kMost ? out : 0;
    }
    case Kind::kAdd: {
      std::size_t sum = 0;
      for (const Expr& t : e->args) {
        const std::size_t own = gaussian_terms(t);
        if (own == 0) return 0;
        sum += own;
      }
      return sum <= kMost ? sum : 0;
    }
    case Kind::kMul: {
      const auto is_random = [](const Expr& f) { return f->width; };
      return std::count_if(e->args.begin(), e->args.end(), is_random) == 1
                 ? gaussian_terms(*std::find_if(e->args.begin(), e->args.end(), is_random))
                 : 0;
    }
    case Kind::kSum: return gaussian_terms(e->args[0]);
    default: return 0;
  }
}

std::optional<Expr> Calculus::gaussian_covariance(const Expr& a, const Expr& b) {
  if (gaussian_terms(a) == 0 || gaussian_terms(b) == 0) return std::nullopt;
  // Bilinear: first a is taken apart, then b.
  const auto apart =
      [&](const Expr& e,
          const std::function<std::optional<Expr>(const Expr&)>& f) -> std::optional<Expr> {
    switch (e->kind) {
      case Kind::kRef: {
        const Definition& d = definitions[e->ref];
        if (d.kind == Definition::Kind::kSource || d.kind == Definition::Kind::kGaussian ||
            !d.value)
          return std::nullopt;
        Substitution by;
        for (std::size_t k = 0; k < d.axes.size(); ++k) by.emplace(d.axes[k].id, e->indices[k]);
        const Expr value = d.value;
        return f(substitute(value, by));
      }
      case Kind::kAdd: {
        std::vector<Expr> terms;
        for (const Expr& t : e->args) {
          const auto own = f(t);
          if (!own) return std::nullopt;
          terms.push_back(*own);
        }
        return add(std::move(terms));
      }
      case Kind::kMul: {
        std::vector<Expr> numbers, random;
        for (const Expr& x : e->args) (x->width ? random : numbers).push_back(x);
        if (random.size() != 1 || numbers.empty()) return std::nullopt;
        const auto own = f(random[0]);
        if (!own) return std::nullopt;
        numbers.push_back(*own);
        return mul(std::move(numbers));
      }
      case Kind::kSum: {
        const Expr own = refresh(e);
        const auto body = f(own->args[0]);
        return body ? std::optional(sum(own->bound, *body)) : std::nullopt;
      }
      default: return std::nullopt;
    }
  };
  if (auto known = covariance(a, b)) return known;
  if (auto left = apart(a, [&](const Expr& x) { return gaussian_covariance(x, b); })) return left;
  const bool whole =
      a->kind == Kind::kRef && (definitions[a->ref].kind == Definition::Kind::kSource ||
                                definitions[a->ref].kind == Definition::Kind::kGaussian);
  if (!whole) return std::nullopt;
  return apart(b, [&](const Expr& x) { return gaussian_covariance(a, x); });
}

Expr Calculus::mean_of_product(const std::vector<Expr>& factors) {
  std::vector<Expr> out, random;
  const auto split = [&](const Expr& product) {
    out.clear();
    random.clear();
    for (const Expr& f : product->kind == Kind::kMul ? product->args : std::vector{product})
      (f->width ? random : out).push_back(f);
    return independent_groups(random);
  };
  auto groups = split(mul(factors));
  const std::size_t before = groups.size();
  std::vector<Expr> spread_out;
  for (const Expr& f : factors) spread_out.push_back(spread(f));
  groups = split(mul(std::move(spread_out)));
  if (groups.size() <= before && !random.empty())
    groups = split(mul(factors));  // nothing falls apart: leave the names
  // Sums over finite indices go outside.
  for (std::size_t k = 0; k < random.size(); ++k)
    if (random[k]->kind == Kind::kSum) {
      const Expr own = refresh(random[k]);
      random[k] = own->args[0];
      out.push_back(sum(own->bound, mean(mul(std::move(random)))));
      return mul(std::move(out));
    }
  for (const std::vector<Expr>& members : groups) {
    std::set<std::uint32_t> own;
    for (const Expr& m : members) own.insert(families(m).begin(), families(m).end());
    const std::vector<std::uint32_t> list(own.begin(), own.end());
    const Expr inside = mul(members);
    // Odd under flipping the signs of some families: 0.
    const std::size_t subsets = list.size() <= 4 ? std::size_t{1} << list.size() : list.size() + 1;
    for (std::size_t s = 1; s < subsets; ++s) {
      std::set<std::uint32_t> flipped;
      for (std::size_t k = 0; k < list.size(); ++k)
        if (list.size() <= 4 ? (s >> k & 1) != 0 : k + 1 == s) flipped.insert(list[k]);
      if (parity(inside, flipped) == Parity::kOdd) return number(0);
    }
    std::optional<Expr> known;
    if (members.size() == 2) known = gaussian_covariance(members[0], members[1]);
    if (members.size() == 1 && members[0]->kind == Kind::kPower && members[0]->number == 2)
      known = gaussian_covariance(members[0]->args[0], members[0]->args[0]);
    if (members.size() == 1 && members[0]->kind == Kind::kFunction &&
        members[0]->map.fn == Fn::kStep && members[0]->order == 0 &&
        parity(members[0]->args[0], own) == Parity::kOdd)
      known = number(0.5);  // continuous and symmetric
    if (!known) {
      Term t;
      t.kind = Kind::kMean;
      t.args = {inside};
      known = make(std::move(t));
    }
    out.push_back(*known);
  }
  return mul(std::move(out));
}

Expr Calculus::mean(const Expr& e) {
  if (!e->width) return e;
  if (e->kind == Kind::kAdd) {
    std::vector<Expr> terms;
    for (const Expr& t : e->args) terms.push_back(mean(t));
    return add(std::move(terms));
  }
  if (e->kind != Kind::kMul) return mean_of_product({e});
  const Expr whole = mean_of_product(e->args);
  // (1 - z^2) x: written out if that is shorter.
  for (std::size_t k = 0; k < e->args.size(); ++k) {
    if (e->args[k]->kind != Kind::kAdd || !e->args[k]->width) continue;
    std::vector<Expr> terms;
    for (const Expr& t : e->args[k]->args) {
      std::vector<Expr> factors = e->args;
      factors[k] = t;
      terms.push_back(mean(mul(std::move(factors))));
    }
    const Expr distributed = add(std::move(terms));
    return weight(distributed) <= weight(whole) ? distributed : whole;
  }
  return whole;
}

// ---- derivatives
// -----------------------------------------------------------------------------------

Expr Calculus::response(std::uint32_t definition, std::uint32_t gaussian, const Indices& own,
                        const Indices& at) {
  if (!definitions[definition].width) return number(0);
  if (definition == gaussian) {
    std::vector<Expr> deltas;
    for (std::size_t k = 0; k < own.size(); ++k) deltas.push_back(delta(own[k], at[k]));
    return mul(std::move(deltas));
  }
  if (!definitions[definition].value ||
      !definitions[definition].families.contains(definitions[gaussian].family))
    return number(0);
  const auto slot = std::pair{definition, gaussian};
  auto it = responses_.find(slot);
  if (it == responses_.end()) {
    std::vector<Symbol> symbols = definitions[definition].axes;
    Indices inner;
    for (const Symbol& s : definitions[gaussian].axes) {
      symbols.push_back(fresh(s.size));
      inner.emplace_back(symbols.back());
    }
    const Expr formula = definitions[definition].value;  // a copy: the list grows below
    Expr value = derivative(formula, gaussian, inner);
    const bool simple = value->kind != Kind::kAdd && value->kind != Kind::kSum &&
                        weight(value) <= 6 &&
                        !(value->kind == Kind::kMul &&
                          std::any_of(value->args.begin(), value->args.end(), [](const Expr& f) {
                            return f->kind == Kind::kAdd || f->kind == Kind::kSum;
                          }));
    if (!simple) {
      Definition d;
      d.kind = Definition::Kind::kResponse;
      d.axes = symbols;
      d.width = value->width;
      d.families = families(value);
      d.kinked = kinked(value);
      d.operand = definition;
      d.gaussian = gaussian;
      d.step = definitions[definition].step;
      d.context = definitions[definition].context;
      d.value = value;
      for (const Expr& e : std::vector{value}) {  // what it is made of may be kinked behind a name
        const std::function<bool(const Expr&)> behind = [&](const Expr& x) {
          if (x->kind == Kind::kRef && definitions[x->ref].kinked) return true;
          return std::any_of(x->args.begin(), x->args.end(), behind);
        };
        d.kinked = d.kinked || behind(e);
      }
      definitions.push_back(std::move(d));
      Indices all;
      for (const Symbol& s : symbols) all.emplace_back(s);
      value = ref(static_cast<std::uint32_t>(definitions.size() - 1), std::move(all));
    }
    it = responses_.emplace(slot, std::pair{std::move(symbols), std::move(value)}).first;
  }
  Substitution by;
  for (std::size_t k = 0; k < it->second.first.size(); ++k)
    by.emplace(it->second.first[k].id, k < own.size() ? own[k] : at[k - own.size()]);
  return substitute(it->second.second, by);
}

Expr Calculus::derivative(const Expr& e, std::uint32_t gaussian, const Indices& at) {
  if (!e->width || !families(e).contains(definitions[gaussian].family)) return number(0);
  const auto d = [&](const Expr& x) { return derivative(x, gaussian, at); };
  switch (e->kind) {
    case Kind::kRef: return response(e->ref, gaussian, e->indices, at);
    case Kind::kAdd: {
      std::vector<Expr> terms;
      for (const Expr& t : e->args) terms.push_back(d(t));
      return add(std::move(terms));
    }
    case Kind::kMul: {
      std::vector<Expr> terms;
      for (std::size_t k = 0; k < e->args.size(); ++k) {
        const Expr slope = d(e->args[k]);
        if (is_zero(slope)) continue;
        std::vector<Expr> factors = e->args;
        factors[k] = slope;
        terms.push_back(mul(std::move(factors)));
      }
      return add(std::move(terms));
    }
    case Kind::kPower:
      return mul({number(e->number), power(e->args[0], e->number - 1), d(e->args[0])});
    case Kind::kFunction: {
      const Expr slope = d(e->args[0]);
      return is_zero(slope) ? slope : mul({function(e->map, e->order + 1, e->args[0]), slope});
    }
    case Kind::kCall: {
      const auto jump = [&](const Expr& x) {
        Term t;
        t.kind = Kind::kJump;
        t.args = {x};
        return make(std::move(t));
      };
      const auto& x = e->args;
      switch (e->map.fn) {
        case Fn::kPow:
          return add({mul({x[1], call(e->map, {x[0], add({x[1], number(-1)})}), d(x[0])}),
                      mul({e, function({Fn::kLog, 0}, 0, x[0]), d(x[1])})});
        case Fn::kWhere:
          return add(
              {call(e->map, {x[0], d(x[1]), number(0)}), call(e->map, {x[0], number(0), d(x[2])})});
        case Fn::kEqual:
        case Fn::kNotEqual: return number(0);
        default: return jump(e);
      }
    }
    case Kind::kSum: {
      const Expr own = refresh(e);
      return sum(own->bound, d(own->args[0]));
    }
    case Kind::kMax: {  // Sum_s [x_s is the largest] dx_s
      const Expr own = refresh(e);
      return sum(own->bound, mul({call({Fn::kEqual, 0}, {own->args[0], e}), d(own->args[0])}));
    }
    case Kind::kNumber:
    case Kind::kDelta:
    case Kind::kMean:
    case Kind::kJump: break;
  }
  return number(0);
}

// ---- inspection
// ------------------------------------------------------------------------------------

namespace {

void write_key(const Expr& e, std::map<std::uint32_t, std::string>& names, bool rename,
               std::string& out) {
  const auto index = [&](const Index& i) {
    out += i.is_symbol() || i.is_number() ? "" : "t";
    for (const Symbol& s : i.symbols()) {
      const auto it = names.find(s.id);
      if (it != names.end())
        out += it->second;
      else if (rename)
        out += names[s.id] = fmt::format("f{}.{}", names.size(), s.size);
      else
        out += fmt::format("s{}", s.id);
      out += ',';
    }
    if (!i.is_symbol())
      for (const std::int64_t v : i.values()) out += fmt::format("{},", v);
    out += ';';
  };
  switch (e->kind) {
    case Kind::kNumber: out += fmt::format("{:a}", e->number); return;
    case Kind::kRef: out += fmt::format("d{}[", e->ref); break;
    case Kind::kDelta: out += "D["; break;
    case Kind::kAdd: out += "+["; break;
    case Kind::kMul: out += "*["; break;
    case Kind::kPower: out += fmt::format("^{:a}[", e->number); break;
    case Kind::kFunction:
      out += fmt::format("f{}.{:a}.{}[", static_cast<int>(e->map.fn), e->map.parameter, e->order);
      break;
    case Kind::kCall: out += fmt::format("c{}[", static_cast<int>(e->map.fn)); break;
    case Kind::kSum: out += fmt::format("S{}[", e->bound.size); break;
    case Kind::kMax: out += fmt::format("M{}[", e->bound.size); break;
    case Kind::kMean: out += "E["; break;
    case Kind::kJump: out += "J["; break;
  }
  for (const Index& i : e->indices) index(i);
  if (e->kind == Kind::kSum || e->kind == Kind::kMax) {
    const auto shadowed = names.find(e->bound.id);
    const std::optional<std::string> before =
        shadowed == names.end() ? std::nullopt : std::optional(shadowed->second);
    names[e->bound.id] = fmt::format("b{}", names.size());
    write_key(e->args[0], names, rename, out);
    if (before)
      names[e->bound.id] = *before;
    else if (!rename)
      names.erase(e->bound.id);
  } else {
    for (const Expr& a : e->args) write_key(a, names, rename, out);
  }
  out += ']';
}

}  // namespace

std::string Calculus::key(const Expr& e, bool rename) {
  std::map<std::uint32_t, std::string> names;
  std::string out;
  write_key(e, names, rename, out);
  return out;
}

std::size_t Calculus::weight(const Expr& e) {
  std::size_t own =
      e->kind == Kind::kNumber || e->kind == Kind::kRef || e->kind == Kind::kDelta ? 1 : 0;
  for (const Expr& a : e->args) own += weight(a);
  return own;
}

bool Calculus::kinked(const Expr& e) {
  if (e->kind == Kind::kJump) return true;
  if (e->kind == Kind::kFunction) {
    const auto first = ir::first_delta(e->map);
    if (first && e->order >= *first) return true;
  }
  return std::any_of(e->args.begin(), e->args.end(), [](const Expr& a) { return kinked(a); });
}

}  // namespace tplimit::explain
