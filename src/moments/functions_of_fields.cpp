#include "moments/algebra.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "tplimit/ir/functions.hpp"
#include "tplimit/ir/kernels.hpp"

namespace tplimit::moments {

using namespace ir;

/// x^n of a product, factor by factor.
std::optional<Field> FieldAlgebra::powers(const Field& x, double n) {
  Field out = x;
  Term& t = out.terms[0];
  if (t.sum) return std::nullopt;
  for (double& c : t.coefficient) c = std::pow(c, n);
  for (Factor& f : t.factors) f.f = functions_.compose({Fn::kPower, n}, {f.f});
  for (FormPower& p : t.forms) p.power *= n;
  return out;
}

/// q^power, q a sum of squares of Gaussians of mean 0 and a constant that is not negative.
std::optional<Field> FieldAlgebra::power_of_form(const Field& x, double power) {
  if (x.polynomials) return std::nullopt;
  // c_0 + c_2 u^2 for each term
  std::vector<std::array<double, 2>> monomials;
  for (const Term& t : x.terms) {
    if (!t.plain() || t.factors.size() > 1) return std::nullopt;
    if (t.factors.empty()) {
      monomials.push_back({1, 0});
      continue;
    }
    const auto& p = functions_.polynomial(t.factors[0].f);
    if (!p || p->size() != 3 || (*p)[1] != 0) return std::nullopt;
    monomials.push_back({(*p)[0], (*p)[2]});
  }
  FormPower out{{}, power};
  for (int i = 0; i < x.columns; ++i) {
    QuadraticForm q;
    for (std::size_t k = 0; k < x.terms.size(); ++k) {
      const Term& t = x.terms[k];
      const auto [constant, square] = monomials[k];
      q.offset += constant * t.at_column(i);
      const double weight = square * t.at_column(i);
      if (weight == 0) continue;
      const Factor& f = t.factors[0];
      const int row = f.column(i);
      const Eigen::VectorXd& mean = store_.block(f.block).mean;
      if (weight < 0 || (mean.size() > 0 && mean(row) != 0)) return std::nullopt;
      q.squares.push_back({f.block, row, weight});
    }
    std::sort(q.squares.begin(), q.squares.end());
    for (std::size_t k = q.squares.size(); k-- > 1;)
      if (QuadraticForm::Square& a = q.squares[k - 1], &b = q.squares[k];
          a.block == b.block && a.row == b.row) {
        a.weight += b.weight;
        q.squares.erase(q.squares.begin() + static_cast<std::ptrdiff_t>(k));
      }
    // Of one Gaussian it is a function of that.
    if (q.squares.size() < 2 || q.offset < 0) return std::nullopt;
    out.form.push_back(store_.add_form(std::move(q)));
  }
  if (std::all_of(out.form.begin(), out.form.end(), [&](int q) { return q == out.form[0]; }))
    out.form.resize(1);
  return Field{x.columns,
               {Term{{1.0}, {}, std::nullopt, {std::move(out)}}},
               std::max(1.0, std::abs(power)) * x.relative,
               x.method};
}

/// phi(r x, r y) = r^d phi(x, y) where r > 0 is a product of powers of forms in every term.
std::optional<Field> FieldAlgebra::homogeneous(const Map& m, const Node& node,
                                               const std::vector<Field>& in, const Field& quality) {
  const std::vector<FormPower>* r = nullptr;
  for (const Field& x : in)
    for (const Term& t : x.terms) {
      if (r && t.forms != *r) return std::nullopt;
      r = &t.forms;
    }
  if (!r || r->empty()) return std::nullopt;
  const bool extremum = m.fn == Fn::kMin || m.fn == Fn::kMax,
             comparison = m.fn == Fn::kLess || m.fn == Fn::kLessEqual || m.fn == Fn::kEqual ||
                          m.fn == Fn::kNotEqual;
  const auto degree = extremum     ? std::optional<Exponent>(1)
                      : comparison ? std::optional<Exponent>(0)
                                   : traits_of(m).degree;
  if (!degree) return std::nullopt;
  Term scale{{1.0}, {}, std::nullopt, *r};
  for (FormPower& p : scale.forms) p.power *= to_double(*degree);
  std::vector<Field> bare = in;
  for (Field& x : bare)
    for (Term& t : x.terms) t.forms.clear();
  const Field value = apply(m, node, std::move(bare));
  if (*degree == 0) return value;
  Field factor = quality;
  factor.terms = {std::move(scale)};
  return times(value, factor);
}

/// All operands functions of one Gaussian block, or constants: one new function.  shifted: also of
/// different multiples and shifts of one Gaussian.
std::optional<Field> FieldAlgebra::composed(const Map& m, std::vector<Field>& in,
                                            const Field& quality, bool shifted) {
  std::vector<std::variant<FunctionTable::Id, double>> operands;
  std::optional<UnaryField> of;
  for (Field& x : in) {
    if (x.terms.empty() && !x.polynomials) {
      operands.emplace_back(0.0);
    } else if (x.terms.size() == 1 && x.terms[0].constant() && x.terms[0].coefficient.size() == 1) {
      operands.emplace_back(x.terms[0].coefficient[0]);
    } else {
      if (!as_unary(x) && linear(x) && m.fn != Fn::kAdd && m.fn != Fn::kSub && m.fn != Fn::kMul &&
          m.fn != Fn::kDiv)
        x.terms = of_block(block_of(x)).terms;
      const auto u = shifted ? of_one_gaussian(x) : as_unary(x);
      if (!u || (of && (of->block != u->block || !same_columns(of->columns, u->columns))))
        return std::nullopt;
      of = u;
      operands.emplace_back(u->f);
    }
  }
  if (!of) return std::nullopt;
  Field out = quality;
  out.terms = {{{1.0}, {{functions_.compose(m, operands), of->block, of->columns}}}};
  return out;
}

/// What needs no function of several Gaussians because operands are linear or constant.
std::optional<Field> FieldAlgebra::of_linear(const Map& m, const Node& node,
                                             const std::vector<Field>& in) {
  switch (m.fn) {
    case Fn::kAdd:
    case Fn::kSub:
      if (linear(in[0]) && linear(in[1])) return add(in[0], in[1], m.fn == Fn::kAdd ? 1 : -1);
      break;
    case Fn::kMul:
      for (const std::size_t k : {0u, 1u})
        if (in[k].constant()) return times(in[1 - k], in[k]);
      break;
    case Fn::kDiv: {
      if (in[1].terms.size() == 1 && in[1].terms[0].constant()) {
        Field inverse = in[1];
        for (double& c : inverse.terms[0].coefficient) c = 1 / c;
        return times(in[0], inverse);
      }
      break;
    }
    case Fn::kLess:
    case Fn::kLessEqual:
    case Fn::kEqual:
    case Fn::kNotEqual:
      // By the difference of Gaussians, one Gaussian, of which it is known whether its variance is
      // 0.
      if (linear(in[0]) && linear(in[1]) && !in[0].constant() && !in[1].constant())
        return apply(m, node, {simplified(add(in[0], in[1], -1)), Field{in[0].columns, {}}});
      break;
    case Fn::kMax:
    case Fn::kMin:  // b + relu(a - b), a - relu(a - b)
      if (linear(in[0]) && linear(in[1]) && !in[0].constant() && !in[1].constant()) {
        Field positive = apply({Fn::kRelu, 0}, node, {simplified(add(in[0], in[1], -1))});
        return m.fn == Fn::kMax ? add(in[1], positive, 1) : add(in[0], positive, -1);
      }
      break;
    default: break;
  }
  return std::nullopt;
}

/// By sums and products of functions of one Gaussian each.
std::optional<Field> FieldAlgebra::by_products(const Map& m, const std::vector<Field>& in,
                                               const Field& quality) {
  switch (m.fn) {
    case Fn::kAdd: return add(in[0], in[1], 1);
    case Fn::kSub: return add(in[0], in[1], -1);
    case Fn::kMul: return times(in[0], in[1]);
    case Fn::kExp:
      if (auto product = exponential(in[0])) return *product;
      break;
    case Fn::kSqrt:
      if (auto root = power_of_form(in[0], 0.5)) return *root;
      break;
    case Fn::kPower:
      if (in[0].terms.size() == 1 && !in[0].polynomials && m.parameter == std::floor(m.parameter))
        if (auto product = powers(in[0], m.parameter)) return *product;
      if (m.parameter < 0 || m.parameter != std::floor(m.parameter))
        if (auto power = power_of_form(in[0], m.parameter)) return *power;
      if (m.parameter == 2 || m.parameter == 3) {
        Field out = times(in[0], in[0]);
        return m.parameter == 2 ? out : times(out, in[0]);
      }
      break;
    case Fn::kWhere:  // 1[c] a + (1 - 1[c]) b
      if (const auto u = as_unary(in[0])) {
        const auto indicator = functions_.compose({Fn::kNotEqual, 0}, {u->f, 0.0});
        Field yes = quality, no = quality;
        yes.terms = {{{1.0}, {{indicator, u->block, u->columns}}}};
        no.terms = {
            {{1.0}, {{functions_.compose({Fn::kSub, 0}, {1.0, indicator}), u->block, u->columns}}}};
        return add(times(yes, in[1]), times(no, in[2]), 1);
      }
      break;
    case Fn::kDiv:
      if (in[1].terms.size() == 1 && !in[1].polynomials &&
          (in[1].terms[0].factors.size() > 1 || !in[1].terms[0].forms.empty()))
        if (const auto inverse = powers(in[1], -1)) return times(in[0], *inverse);
      if (const auto u = as_unary(in[1])) {
        Field inverse = quality;
        inverse.terms = {
            {{1.0}, {{functions_.compose({Fn::kPower, -1}, {u->f}), u->block, u->columns}}}};
        return times(in[0], inverse);
      }
      if (const auto inverse = power_of_form(in[1], -1)) return times(in[0], *inverse);
      break;
    default: break;
  }
  return std::nullopt;
}

/// Of operands that are constant over the coordinates.
Field FieldAlgebra::of_constants(const Map& m, const Node& node, const std::vector<Field>& in,
                                 const Field& quality) const {
  std::vector<std::vector<double>> values;
  std::vector<View> views;
  std::vector<Type> types(in.size(), Type{false, false, {in[0].columns}});
  std::vector<const Type*> pointers;
  for (const Field& x : in) {
    values.emplace_back(static_cast<std::size_t>(x.columns), 0.0);
    for (const Term& t : x.terms)
      for (int j = 0; j < x.columns; ++j) values.back()[at(j)] += t.at_column(j);
  }
  for (std::size_t k = 0; k < in.size(); ++k) {
    views.push_back({values[k].data(), 1, 1});
    pointers.push_back(&types[k]);
  }
  Node finite_node = node;
  finite_node.op = m;  // of what `node` was taken apart into
  finite_node.type = types[0];
  std::vector<double> result(static_cast<std::size_t>(in[0].columns));
  evaluate_rows(finite_node, pointers, views, {result.data(), 1, 1});
  Field out = constant(std::move(result));
  out.relative = quality.relative;
  out.method = quality.method;
  return out;
}

/// Columns of several makes, as a concatenation leaves them: one make at a time.
std::optional<Field> FieldAlgebra::make_by_make(const Map& m, const Node& node,
                                                const std::vector<Field>& in,
                                                const Field& quality) {
  std::map<std::vector<double>, std::vector<int>> makes;
  for (int i = 0; i < in[0].columns; ++i) {
    std::vector<double> key;
    for (const Field& x : in)
      for (const Term& t : x.terms) key.push_back(t.at_column(i));
    makes[std::move(key)].push_back(i);
  }
  constexpr std::size_t kMostMakes = 64;
  if (makes.size() <= 1 || makes.size() > kMostMakes) return std::nullopt;
  Field out = quality;
  for (const auto& [key, index] : makes) {
    std::vector<Field> own;
    for (const Field& x : in) {
      own.push_back(remap(x, index));
      for (Term& t : own.back().terms) t.coefficient.resize(1);
      own.back() = simplified(std::move(own.back()));
    }
    std::vector<int> back(at(in[0].columns), -1);
    for (std::size_t k = 0; k < index.size(); ++k) back[at(index[k])] = static_cast<int>(k);
    out = add(std::move(out), remap(apply(m, node, std::move(own)), back), 1);
  }
  return out;
}

bool FieldAlgebra::lies_on_a_jump(const Map& m, const Node& node, const std::vector<Field>& in) {
  const bool whole = m.fn == Fn::kMod;
  if (!whole && (!is_piecewise_constant(node.op) || m.fn == Fn::kWhere)) return false;
  const auto near = [&](double x) {
    return std::abs(whole ? x - std::nearbyint(x) : x) <= 1e-12 * (1 + std::abs(x));
  };
  const Field d =
      simplified(in.size() == 1 ? in[0] : apply({whole ? Fn::kDiv : Fn::kSub, 0}, node, in));
  if (d.polynomials) return false;
  if (d.constant()) {
    for (int j = 0; j < d.columns; ++j) {
      double value = 0;
      for (const Term& t : d.terms) value += t.at_column(j);
      if (near(value)) return true;
    }
    return false;
  }
  const auto u = as_unary(d);
  if (!u) return false;
  constexpr int kPoints = 33, kAtom = 3;  // a jump itself is met once at most
  std::array<double, kPoints> x{}, y{};
  const Variances& variances = store_.variances(u->block);
  std::set<int> seen;
  for (int j = 0; j < d.columns; ++j) {
    const int column = u->columns ? (*u->columns)[at(j)] : j;
    if (!seen.insert(column).second) continue;
    for (int k = 0; k < kPoints; ++k)
      x[at(k)] = std::sqrt(variances.value(column)) * (0.1834 * (k - kPoints / 2) + 0.0127);
    functions_.evaluate(u->f, kPoints, x.data(), y.data());
    if (std::count_if(y.begin(), y.end(), near) >= kAtom) return true;
  }
  return false;
}

Field FieldAlgebra::apply(const Map& m, const Node& node, std::vector<Field> in) {
  Field quality{in[0].columns, {}};
  for (const Field& x : in) {
    quality.relative = std::max(quality.relative, x.relative);
    quality.method = weaker(quality.method, x.method);
  }
  if (auto out = of_linear(m, node, in)) return std::move(*out);
  if (auto out = composed(m, in, quality, false)) return std::move(*out);
  if (m.fn != Fn::kAdd && m.fn != Fn::kSub && m.fn != Fn::kMul)
    if (auto out = composed(m, in, quality, true)) return std::move(*out);
  if (auto out = by_products(m, in, quality)) return std::move(*out);
  if (std::all_of(in.begin(), in.end(), [](const Field& x) { return x.constant(); }))
    return of_constants(m, node, in, quality);
  if (auto out = homogeneous(m, node, in, quality)) return std::move(*out);
  if (auto out = make_by_make(m, node, in, quality)) return std::move(*out);
  throw Unknown{fmt::format("'{}' of more than one Gaussian", name(m.fn)), {}};
}

}  // namespace tplimit::moments
