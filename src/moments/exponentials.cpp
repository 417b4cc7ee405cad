#include <algorithm>
#include <cmath>
#include <limits>

#include <Eigen/Eigenvalues>

#include "moments/fields.hpp"
#include "tplimit/math/gaussian_quadrature.hpp"

/// Exponentials of quadratic forms of Gaussians.  A product with them is a change of measure:
///   E exp(z'Bz + g'z) F(z) = det(M)^(-1/2) exp(g' M^-1 g / 2) E F(M^-1 g + M^(-1/2) z),  M = I - 2
///   B,  z standard normal,
/// so that they add nothing to the dimension of what is left, and it is seen whether the mean
/// exists: only if M is positive definite.
namespace tplimit::moments {

using namespace ir;

namespace {

constexpr double kLooseClosedForm =
    1e-11;  // relative: for narrow bells far away quadrature does better
constexpr double kLeastEigenvalue = 1e-10;  // of M: below, rounding decides the value

/// Whether |f| neither vanishes nor falls as a Gaussian far away on either side, as far as values
/// show.
bool falls_slowly(const FunctionTable& table, FunctionTable::Id f, double mean, double deviation) {
  for (const double side : {-1.0, 1.0}) {
    double before = 0;
    for (const double distance : {6.0, 12.0, 24.0, 48.0}) {
      const double x = mean + side * distance * deviation;
      double y = 0;
      table.evaluate(f, 1, &x, &y);
      const double log = std::log(
          std::abs(y));  // doubles with the distance for exponentials, quadruples for Gaussians
      if (std::isnan(log) || std::isinf(log) ||
          (distance > 6 && log < 0 && -log > 2.5 * std::abs(before) + 5))
        return false;
      before = log;
    }
  }
  return true;
}

}  // namespace

/// exp of a sum of quadratic polynomials in Gaussians and functions of one: a product of functions
/// of one.  Forms are diagonalised column by column: exp(u v) = exp((u + v)^2 / 4) exp(-(u - v)^2 /
/// 4).
std::optional<MomentEngine::Field> MomentEngine::exponential(const Field& x) {
  std::vector<Factor> variables;
  const auto variable = [&](const Factor& f) {
    const auto known = std::find_if(variables.begin(), variables.end(), [&](const Factor& v) {
      return v.affine == f.affine &&
             (v.columns == f.columns || (v.columns && f.columns && *v.columns == *f.columns));
    });
    const auto slot = known - variables.begin();
    if (known == variables.end())
      variables.push_back({FunctionTable::kIdentity, f.affine, f.columns});
    return static_cast<Eigen::Index>(slot);
  };
  struct Monomials {  // c u^i v^j
    const Term& term;
    Eigen::Index u, v;
    double c;
    int i, j;
  };
  std::vector<Monomials> monomials;
  Field as_terms{x.columns, {}};
  if (x.polynomials) {  // back to products of members of families
    for (const auto& [member, symbol] : symbols_) {
      (void)symbol;
      Affine one{x.columns,
                 {},
                 {{member.first,
                   std::vector<int>(at(x.columns), member.second),
                   Eigen::VectorXd::Ones(x.columns),
                   {}}}};
      (void)variable({FunctionTable::kIdentity, insert(std::move(one)), nullptr});
    }
    std::vector<Factor> by_symbol(symbols_.size());
    std::size_t slot = 0;
    for (const auto& [member, symbol] : symbols_) by_symbol[at(symbol)] = variables[slot++];
    for (int i = 0; i < x.columns; ++i)
      for (const auto& [monomial, c] : (*x.polynomials)[at(i)]) {
        Term t{std::vector<double>(at(x.columns), 0.0), {}};
        t.coefficient[at(i)] = c;
        for (int k = 0; k < static_cast<int>(symbols_.size()); ++k)
          for (auto e = monomial[at(k / 8)] >> (8 * (k % 8)) & 0xff; e > 0; --e)
            t.factors.push_back(by_symbol[at(k)]);
        if (t.factors.size() > 2) return std::nullopt;
        if (t.factors.size() == 2 && t.factors[0].affine == t.factors[1].affine) {
          t.factors.pop_back();
          t.factors[0].f = functions_.times(FunctionTable::kIdentity, FunctionTable::kIdentity);
        }
        as_terms.terms.push_back(std::move(t));
      }
  } else {
    as_terms = x;
  }
  Term out{{1.0}, {}};
  for (const Term& t : as_terms.terms) {
    if (t.sum) return std::nullopt;
    std::size_t degree = 0;
    for (const Factor& f : t.factors)
      degree += functions_.polynomial(f.f) ? functions_.polynomial(f.f)->size() - 1 : 3;
    if (degree > 2) {
      if (t.factors.size() != 1 || t.coefficient.size() != 1) return std::nullopt;
      out.factors.push_back(
          {functions_.compose({Fn::kExp, 0}, {functions_.scaled(t.coefficient[0], t.factors[0].f)}),
           t.factors[0].affine, t.factors[0].columns});
      continue;
    }
    const std::vector<double> one{1.0};
    const auto& p = t.factors.empty() ? one : *functions_.polynomial(t.factors[0].f);
    const auto& q = t.factors.size() < 2 ? one : *functions_.polynomial(t.factors[1].f);
    const Eigen::Index u = t.factors.empty() ? 0 : variable(t.factors[0]),
                       v = t.factors.size() < 2 ? 0 : variable(t.factors[1]);
    for (std::size_t i = 0; i < p.size(); ++i)
      for (std::size_t j = 0; j < q.size(); ++j)
        monomials.push_back({t, u, v, p[i] * q[j], static_cast<int>(i), static_cast<int>(j)});
  }
  const auto size = static_cast<Eigen::Index>(variables.size());
  std::vector<Field> squares(
      2 * at(static_cast<int>(size)),
      Field{x.columns, {}});  // those with a plus sign, then those with a minus sign
  for (Field& f : squares)
    for (const Factor& v : variables)
      f.terms.push_back({std::vector<double>(at(x.columns), 0.0), {v}});
  Field linear = squares.empty() ? Field{x.columns, {}} : squares[0];
  linear.terms.push_back({std::vector<double>(at(x.columns), 0.0), {}});
  for (int i = 0; i < x.columns; ++i) {
    Matrix form = Matrix::Zero(size, size);
    for (const Monomials& m : monomials) {
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
    const Eigen::SelfAdjointEigenSolver<Matrix> eigen(form);
    const double largest = eigen.eigenvalues().cwiseAbs().maxCoeff();
    for (Eigen::Index k = 0; k < size; ++k) {
      const double lambda = eigen.eigenvalues()(k);
      if (std::abs(lambda) <= kCancelled * largest) continue;
      Field& square = squares[static_cast<std::size_t>(lambda > 0 ? k : size + k)];
      for (Eigen::Index l = 0; l < size; ++l)
        square.terms[static_cast<std::size_t>(l)].coefficient[at(i)] =
            std::sqrt(std::abs(lambda)) * eigen.eigenvectors()(l, k);
    }
  }
  const auto append = [&](const Field& argument, FunctionTable::Id f) {
    Field some = argument;
    std::erase_if(some.terms, [](const Term& t) {
      return std::all_of(t.coefficient.begin(), t.coefficient.end(),
                         [](double c) { return c == 0; });
    });
    if (!some.terms.empty()) out.factors.push_back({f, affine_of(some), nullptr});
  };
  const auto square = functions_.times(FunctionTable::kIdentity, FunctionTable::kIdentity);
  for (std::size_t k = 0; k < squares.size(); ++k)
    append(squares[k],
           functions_.compose({Fn::kExp, 0},
                              {k < squares.size() / 2 ? square : functions_.scaled(-1, square)}));
  append(linear, functions_.compose({Fn::kExp, 0}, {FunctionTable::kIdentity}));
  std::sort(out.factors.begin(), out.factors.end(), [](const Factor& a, const Factor& b) {
    return std::tie(a.affine, a.f) < std::tie(b.affine, b.f);
  });
  return Field{x.columns, {std::move(out)}, x.relative, x.method};
}

/// A factor whose growth a rule with a fixed range may not follow.
bool MomentEngine::grows(const Factor& f) {
  const Exponential e = functions_.exponential(f.f);
  constexpr double kSteep = 2;
  return e.quadratic > 0 ||
         (e.linear != 0 &&
          std::abs(e.linear) * std::sqrt(std::max(0.0, variances(f.affine).value.maxCoeff())) >
              kSteep);
}

/// Whether E |f| may be infinite, as far as values far away and poles tell.
bool MomentEngine::may_diverge(const Factor& f) {
  if (functions_.polynomial(f.f)) return false;
  if (!functions_.integrable(f.f)) return true;
  const Affine& x = block(f.affine);
  const double mean = x.mean.size() > 0 ? x.mean.cwiseAbs().maxCoeff() : 0.0,
               deviation = std::sqrt(std::max(0.0, variances(f.affine).value.maxCoeff()));
  constexpr double kFar = 40, kGrowth = 0.4;  // 1/2: as fast as the density falls
  for (const double side : {-1.0, 1.0}) {
    const double z = side * (mean + kFar * deviation);
    double y = 0;
    functions_.evaluate(f.f, 1, &z, &y);
    if (!(std::log(std::abs(y)) <= kGrowth * kFar * kFar)) return true;
  }
  return false;
}

/// The moment of dependent factors, some with exponentials, by a change of measure; nothing if
/// there is no exponential, or the means of exponentials without the other factors diverge and
/// these may mend it.
std::optional<MomentEngine::Moment> MomentEngine::tilted(
    const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  std::vector<Exponential> exponentials;
  bool some = false, left = false, right = false;
  Moment out{{}, 0, MomentMethod::kClosedForm};
  double relative = 0;
  for (const auto& [side, f] : factors) {
    exponentials.push_back(functions_.exponential(f.f));
    some = some || !exponentials.back().trivial();
    (side == 0 ? left : right) = true;
  }
  if (!some) return std::nullopt;
  const bool steep =
      std::any_of(factors.begin(), factors.end(), [&](const auto& f) { return grows(f.second); });
  for (const auto& [side, f] : factors)
    for (const auto& other : factors) {
      const Covariance& c = covariance(f.affine, other.second.affine);
      relative = std::max(relative, c.relative);
      out.method = weaker(out.method, c.method);
    }
  if (auto known = recalled(factors, rows, columns)) return std::move(*known);
  const Eigen::Index own_rows = left ? rows : 1, count = own_rows * (right ? columns : 1);
  out.value.resize(own_rows, count / own_rows);
  double own_error = 0;
  const auto symbols = static_cast<int>(symbols_.size());
  constexpr Eigen::Index kChunk = 64;  // covariances of so many rows are small
  for (Eigen::Index begin = 0; begin < count; begin += kChunk) {
    const Eigen::Index size = std::min(kChunk, count - begin);
    std::vector<std::vector<std::size_t>> slots(factors.size());  // which Gaussian of each entry
    std::vector<Matrix> roots;
    std::vector<Eigen::VectorXd> means;
    std::vector<double> scale, error;
    Eigen::Index dim = 0;
    for (Eigen::Index e = begin; e < begin + size; ++e) {
      const auto i = static_cast<int>(e % own_rows), j = static_cast<int>(e / own_rows);
      std::vector<std::pair<int, int>> variables;  // (affine, column)
      for (std::size_t k = 0; k < factors.size(); ++k) {
        const Factor& f = factors[k].second;
        const std::pair<int, int> v{f.affine, f.column(factors[k].first == 0 ? i : j)};
        const auto known = std::find(variables.begin(), variables.end(), v);
        slots[k].push_back(static_cast<std::size_t>(known - variables.begin()));
        if (known == variables.end()) variables.push_back(v);
      }
      const auto n = static_cast<Eigen::Index>(variables.size());
      Matrix covariances = Matrix::Zero(n, n);
      Eigen::VectorXd mean = Eigen::VectorXd::Zero(n), quadratic = mean, slope = mean;
      double exponent = 0, size_of_exponent = 0;
      for (Eigen::Index k = 0; k < n; ++k) {
        const auto [affine, row] = variables[static_cast<std::size_t>(k)];
        if (block(affine).mean.size() > 0) mean(k) = block(affine).mean(row);
        for (Eigen::Index l = 0; l < n; ++l)
          if (const auto& [other, column] = variables[static_cast<std::size_t>(l)];
              covariance(affine, other).value)
            covariances(k, l) = (*covariance(affine, other).value)(row, column);
      }
      covariances = (0.5 * (covariances + covariances.transpose())).eval();
      for (std::size_t k = 0; k < factors.size(); ++k) {
        const auto slot = static_cast<Eigen::Index>(slots[k].back());
        exponent += exponentials[k].constant;
        size_of_exponent += std::abs(exponentials[k].constant);
        slope(slot) += exponentials[k].linear;
        quadratic(slot) += exponentials[k].quadratic;
      }
      const Whitened w = whiten({covariances.data(), static_cast<std::size_t>(n * n)});
      if (w.status == QuadratureStatus::kNotACovariance || w.status == QuadratureStatus::kNotFinite)
        return std::nullopt;  // others say why
      const Matrix root = Eigen::Map<const Matrix>(w.L.data(), n, w.rank);
      exponent += mean.dot(slope + quadratic.cwiseProduct(mean));
      const Eigen::VectorXd g = root.transpose() * (slope + 2 * quadratic.cwiseProduct(mean));
      const Eigen::SelfAdjointEigenSolver<Matrix> eigen(
          Matrix::Identity(w.rank, w.rank) - 2 * root.transpose() * quadratic.asDiagonal() * root);
      const Eigen::VectorXd& lambda = eigen.eigenvalues();
      const double least = w.rank > 0 ? lambda.minCoeff() : 1,
                   most = std::max(1.0, w.rank > 0 ? lambda.maxCoeff() : 1);
      if (!(least > kLeastEigenvalue * most)) {
        for (std::size_t k = 0; k < factors.size(); ++k) {
          const auto slot = static_cast<Eigen::Index>(slots[k].back());
          if (!functions_.polynomial(exponentials[k].rest) &&
              !falls_slowly(functions_, exponentials[k].rest, mean(slot),
                            std::sqrt(covariances(slot, slot))))
            return std::nullopt;
        }
        throw Unknown{kInfiniteMean, {}, true, true};
      }
      const Eigen::VectorXd h = eigen.eigenvectors().transpose() * g;
      const Eigen::VectorXd inverse = lambda.cwiseInverse();
      exponent += 0.5 * h.dot(inverse.cwiseProduct(h)) - 0.5 * lambda.array().log().sum();
      if (!(exponent < 700)) throw Unknown{"a mean that overflows", {}, true};
      // Independent Gaussians stay independent, not only up to rounding.
      const Matrix mixed = root * eigen.eigenvectors() * inverse.cwiseSqrt().asDiagonal();
      Matrix moved = mixed * mixed.transpose();
      for (Eigen::Index k = 0; k < n; ++k)
        for (Eigen::Index l = 0; l < n; ++l)
          if (k != l && std::abs(moved(k, l)) <= kCancelled * std::sqrt(moved(k, k) * moved(l, l)))
            moved(k, l) = 0;
      Matrix next = Matrix::Zero(n, n);
      Eigen::Index used = 0;
      std::vector<bool> done(variables.size(), false);
      for (Eigen::Index k = 0; k < n; ++k) {
        if (done[static_cast<std::size_t>(k)]) continue;
        std::vector<Eigen::Index> group{k};
        done[static_cast<std::size_t>(k)] = true;
        for (std::size_t a = 0; a < group.size(); ++a)
          for (Eigen::Index l = 0; l < n; ++l)
            if (!done[static_cast<std::size_t>(l)] && moved(group[a], l) != 0) {
              done[static_cast<std::size_t>(l)] = true;
              group.push_back(l);
            }
        const Matrix own = moved(group, group);
        const Whitened v = whiten({own.data(), static_cast<std::size_t>(own.size())});
        if (v.status == QuadratureStatus::kNotACovariance ||
            v.status == QuadratureStatus::kNotFinite)
          return std::nullopt;
        for (std::size_t a = 0; a < group.size(); ++a)
          for (int r = 0; r < v.rank; ++r)
            next(group[a], used + r) = v(static_cast<std::int64_t>(a), r);
        used += v.rank;
      }
      roots.push_back(next.leftCols(used));
      const Eigen::VectorXd shift = root * (eigen.eigenvectors() * inverse.cwiseProduct(h));
      means.push_back(mean + shift);
      scale.push_back(std::exp(exponent));
      // Rounding and errors of covariances move M by `change`.
      const double change =
          (relative + 4 * std::numeric_limits<double>::epsilon() * static_cast<double>(n)) * most;
      error.push_back(change * (inverse.sum() + inverse.cwiseProduct(h).squaredNorm()) +
                      kClosedFormError * (1 + size_of_exponent + std::abs(exponent)));
      if (!steep && error.back() > kLooseClosedForm) return std::nullopt;
      dim = std::max(dim, used);
    }
    // The other factors, of Gaussians with other means and covariances.
    auto [family, fresh] =
        tilted_normals_.try_emplace(static_cast<int>(dim), static_cast<int>(families_.size()));
    if (fresh) families_.push_back({static_cast<int>(dim), -1, false, nullptr});
    Term rest{{1.0}, {}};
    double constant = 1;
    std::vector<std::size_t> owner;  // of the rest's factors
    for (std::size_t k = 0; k < factors.size(); ++k) {
      const FunctionTable::Id f = exponentials[k].rest;
      if (const auto& p = functions_.polynomial(f); p && p->size() == 1) {
        constant *= p->front();
        continue;
      }
      const auto same = std::find_if(owner.begin(), owner.end(),
                                     [&](std::size_t o) { return slots[o] == slots[k]; });
      if (same != owner.end()) {
        FunctionTable::Id& both = rest.factors[static_cast<std::size_t>(same - owner.begin())].f;
        both = functions_.times(both, f);
        continue;
      }
      Affine block{static_cast<int>(size),
                   Eigen::VectorXd(size),
                   {{family->second, {}, {}, Matrix::Zero(size, dim)}}};
      for (Eigen::Index e = 0; e < size; ++e) {
        const auto slot = static_cast<Eigen::Index>(slots[k][static_cast<std::size_t>(e)]);
        const auto entry = static_cast<std::size_t>(e);
        block.mean(e) = means[entry](slot);
        block.parts[0].dense.row(e).head(roots[entry].cols()) = roots[entry].row(slot);
      }
      if ((block.mean.array() == 0).all()) block.mean.resize(0);
      if (dim == 0) block.parts.clear();
      owner.push_back(k);
      rest.factors.push_back({f, insert(std::move(block)), nullptr});
    }
    const Moment m = rest.factors.empty()
                         ? Moment{Matrix::Ones(1, 1)}
                         : term_moment(rest, static_cast<int>(size), {{1.0}, {}}, 1);
    out.method = weaker(out.method, m.method);
    for (Eigen::Index e = 0; e < size; ++e) {
      const double factor = constant * scale[static_cast<std::size_t>(e)],
                   own = m.value(m.value.rows() == 1 ? 0 : e, 0);
      out.value((begin + e) % own_rows, (begin + e) / own_rows) = factor * own;
      out.error = std::max(out.error, std::abs(factor) * m.error);
      own_error = std::max(own_error, std::abs(factor * own) * error[static_cast<std::size_t>(e)]);
    }
  }
  std::erase_if(symbols_, [&](const auto& s) { return s.second >= symbols; });
  disturb(out.value, own_error);
  out.error += own_error;
  remember(factors, rows, columns, out);
  return out;
}

}  // namespace tplimit::moments
