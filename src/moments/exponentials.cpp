#include "moments/algebra.hpp"

#include <algorithm>
#include <cmath>

#include <Eigen/Core>

#include "tplimit/math/symmetric_eigen.hpp"

namespace tplimit::moments {

using namespace ir;

namespace {
/// Where the Gaussians behind a factor stand among the variables; new ones are added.
Eigen::Index place_of(std::vector<Factor>& variables, const Factor& f) {
  const auto known = std::find_if(variables.begin(), variables.end(),
                                  [&](const Factor& v) { return v.same_gaussians(f); });
  const auto place = known - variables.begin();
  if (known == variables.end()) variables.push_back({FunctionTable::kIdentity, f.block, f.columns});
  return static_cast<Eigen::Index>(place);
}

/// Polynomials of degree 2 as sums of products of members of families; nothing if the degree is
/// higher.
std::optional<Field> products_of_members(const Field& x,
                                         const std::map<std::pair<int, int>, int>& symbols,
                                         CovarianceStore& store, FunctionTable& functions,
                                         std::vector<Factor>& variables) {
  Field out{x.columns, {}};
  for (const auto& [member, symbol] : symbols) {
    (void)symbol;
    GaussianBlock one{x.columns,
                      {},
                      {{member.first,
                        std::vector<int>(at(x.columns), member.second),
                        Eigen::VectorXd::Ones(x.columns),
                        {}}}};
    (void)place_of(variables, {FunctionTable::kIdentity, store.insert(std::move(one)), nullptr});
  }
  std::vector<Factor> by_symbol(symbols.size());
  std::size_t slot = 0;
  for (const auto& [member, symbol] : symbols) by_symbol[at(symbol)] = variables[slot++];
  for (int i = 0; i < x.columns; ++i)
    for (const auto& [monomial, c] : (*x.polynomials)[at(i)]) {
      Term t{std::vector<double>(at(x.columns), 0.0), {}};
      t.coefficient[at(i)] = c;
      for (int k = 0; k < static_cast<int>(symbols.size()); ++k)
        for (auto e = monomial[at(k / 8)] >> (8 * (k % 8)) & 0xff; e > 0; --e)
          t.factors.push_back(by_symbol[at(k)]);
      if (t.factors.size() > 2) return std::nullopt;
      if (t.factors.size() == 2 && t.factors[0].block == t.factors[1].block) {
        t.factors.pop_back();
        t.factors[0].f = functions.times(FunctionTable::kIdentity, FunctionTable::kIdentity);
      }
      out.terms.push_back(std::move(t));
    }
  return out;
}

/// c u^i v^j, c times the coefficients of a term.
struct QuadraticMonomial {
  const Term& term;
  Eigen::Index u, v;
  double c;
  int i, j;
};

/// A sum of monomials of degree 2 in each column, as +-squares of linear fields and a linear field:
/// sum_kl A_kl u_k u_l = sum_m sign(lambda_m) (sum_l sqrt|lambda_m| e_ml u_l)^2.
struct SquaresAndLinear {
  std::vector<Field> squares;  ///< those with a plus sign, then those with a minus sign
  Field linear;
};
SquaresAndLinear diagonalised(const std::vector<QuadraticMonomial>& monomials,
                              const std::vector<Factor>& variables, int columns) {
  const auto size = static_cast<Eigen::Index>(variables.size());
  std::vector<Field> squares(2 * variables.size(), Field{columns, {}});
  for (Field& f : squares)
    for (const Factor& v : variables)
      f.terms.push_back({std::vector<double>(at(columns), 0.0), {v}});
  Field linear = squares.empty() ? Field{columns, {}} : squares[0];
  linear.terms.push_back({std::vector<double>(at(columns), 0.0), {}});
  for (int i = 0; i < columns; ++i) {
    Matrix form = Matrix::Zero(size, size);
    for (const QuadraticMonomial& m : monomials) {
      const double c = m.c * m.term.at_column(i);
      if (m.i + m.j == 0) {
        linear.terms.back().coefficient[at(i)] += c;
      } else if (m.i + m.j == 1) {
        linear.terms[static_cast<std::size_t>(m.i == 1 ? m.u : m.v)].coefficient[at(i)] += c;
      } else {
        const Eigen::Index other = m.j == 0 ? m.u : m.v, first = m.i == 0 ? m.v : m.u;
        form(first, other) += 0.5 * c;
        form(other, first) += 0.5 * c;
      }
    }
    if (size == 0 || (form.array() == 0).all()) continue;
    const SymmetricEigen eigen(form);
    const double largest = eigen.values.cwiseAbs().maxCoeff();
    for (Eigen::Index k = 0; k < size; ++k) {
      const double lambda = eigen.values(k);
      if (std::abs(lambda) <= kCancelled * largest) continue;
      Field& square = squares[static_cast<std::size_t>(lambda > 0 ? k : size + k)];
      for (Eigen::Index l = 0; l < size; ++l)
        square.terms[static_cast<std::size_t>(l)].coefficient[at(i)] =
            std::sqrt(std::abs(lambda)) * eigen.vectors(l, k);
    }
  }
  return {std::move(squares), std::move(linear)};
}
}  // namespace

/// exp of a sum of quadratic polynomials in Gaussians and functions of one: a product of functions
/// of one.  Forms are diagonalised column by column: exp(u v) = exp((u + v)^2 / 4) exp(-(u - v)^2 /
/// 4).
std::optional<Field> FieldAlgebra::exponential(const Field& x) {
  std::vector<Factor> variables;
  std::vector<QuadraticMonomial> monomials;
  const auto as_terms =
      x.polynomials ? products_of_members(x, symbols_, store_, functions_, variables) : x;
  if (!as_terms) return std::nullopt;
  Term out{{1.0}, {}};
  for (const Term& t : as_terms->terms) {
    if (!t.plain()) return std::nullopt;
    std::size_t degree = 0;
    for (const Factor& f : t.factors)
      degree += functions_.polynomial(f.f) ? functions_.polynomial(f.f)->size() - 1 : 3;
    if (degree > 2) {
      if (t.factors.size() != 1 || t.coefficient.size() != 1) return std::nullopt;
      out.factors.push_back(
          {functions_.compose({Fn::kExp, 0}, {functions_.scaled(t.coefficient[0], t.factors[0].f)}),
           t.factors[0].block, t.factors[0].columns});
      continue;
    }
    const std::vector<double> one{1.0};
    const auto& p = t.factors.empty() ? one : *functions_.polynomial(t.factors[0].f);
    const auto& q = t.factors.size() < 2 ? one : *functions_.polynomial(t.factors[1].f);
    const Eigen::Index u = t.factors.empty() ? 0 : place_of(variables, t.factors[0]),
                       v = t.factors.size() < 2 ? 0 : place_of(variables, t.factors[1]);
    for (std::size_t i = 0; i < p.size(); ++i)
      for (std::size_t j = 0; j < q.size(); ++j)
        monomials.push_back({t, u, v, p[i] * q[j], static_cast<int>(i), static_cast<int>(j)});
  }
  const auto [squares, linear] = diagonalised(monomials, variables, x.columns);
  const auto append = [&](const Field& argument, FunctionTable::Id f) {
    Field some = argument;
    std::erase_if(some.terms, [](const Term& t) {
      return std::all_of(t.coefficient.begin(), t.coefficient.end(),
                         [](double c) { return c == 0; });
    });
    if (!some.terms.empty()) out.factors.push_back({f, block_of(some), nullptr});
  };
  const auto square = functions_.times(FunctionTable::kIdentity, FunctionTable::kIdentity);
  for (std::size_t k = 0; k < squares.size(); ++k)
    append(squares[k],
           functions_.compose({Fn::kExp, 0},
                              {k < squares.size() / 2 ? square : functions_.scaled(-1, square)}));
  append(linear, functions_.compose({Fn::kExp, 0}, {FunctionTable::kIdentity}));
  std::sort(out.factors.begin(), out.factors.end(), [](const Factor& a, const Factor& b) {
    return std::tie(a.block, a.f) < std::tie(b.block, b.f);
  });
  return Field{x.columns, {std::move(out)}, x.relative, x.method};
}

}  // namespace tplimit::moments
