#include "moments/expectations.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include <Eigen/Core>

#include "tplimit/math/gaussian_quadrature.hpp"
#include "tplimit/math/symmetric_eigen.hpp"

/// A product with exponentials of quadratic forms is a change of measure:
///   E exp(z'Bz + g'z) F(z) = det(M)^(-1/2) exp(g' M^-1 g / 2) E F(M^-1 g + M^(-1/2) z),
/// M = I - 2 B, z standard normal, so that they add nothing to the dimension of what is left, and
/// it is seen whether the mean exists: only if M is positive definite.
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

/// N(mean, covariances) times exp(exponent + sum_k slope_k u_k + quadratic_k u_k^2).
struct TiltedLaw {
  Matrix covariances;
  Eigen::VectorXd mean, slope, quadratic;
  double exponent = 0, size_of_exponent = 0;
};
/// scale N(mean, root root'): what a tilted law is.
struct MovedLaw {
  Matrix root;
  Eigen::VectorXd mean;
  double scale, error;  ///< error: relative, of the scale
};

/// A root of a covariance in which independent groups stay independent, not only up to rounding.
std::optional<Matrix> root_by_groups(const Matrix& moved) {
  const Eigen::Index n = moved.rows();
  Matrix next = Matrix::Zero(n, n);
  Eigen::Index used = 0;
  std::vector<bool> done(static_cast<std::size_t>(n), false);
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
    const Whitened v =
        whiten({own.data(), static_cast<std::size_t>(own.size())}, static_cast<int>(own.rows()));
    if (v.status != QuadratureStatus::kConverged) return std::nullopt;
    for (std::size_t a = 0; a < group.size(); ++a)
      for (int r = 0; r < v.rank; ++r)
        next(group[a], used + r) = v(static_cast<std::int64_t>(a), r);
    used += v.rank;
  }
  return Matrix(next.leftCols(used));
}

/// With covariances L L', u = mean + L z: the exponent is z'Bz + g'z + a constant, B = L' diag(q) L
/// and g = L' (slope + 2 q mean), and M = I - 2 B.  Nothing if this is no covariance, or if the
/// mean of the exponential diverges and other factors may mend that (diverges returns, or throws).
std::optional<MovedLaw> moved_law(TiltedLaw law, double relative,
                                  const std::function<void()>& diverges) {
  const Eigen::Index n = law.mean.size();
  const Whitened w =
      whiten({law.covariances.data(), static_cast<std::size_t>(n * n)}, static_cast<int>(n));
  if (w.status != QuadratureStatus::kConverged) return std::nullopt;  // others say why
  const Matrix root = Eigen::Map<const Matrix>(w.L.data(), n, w.rank);
  law.exponent += law.mean.dot(law.slope + law.quadratic.cwiseProduct(law.mean));
  const Eigen::VectorXd g =
      root.transpose() * (law.slope + 2 * law.quadratic.cwiseProduct(law.mean));
  const SymmetricEigen eigen(Matrix::Identity(w.rank, w.rank) -
                             2 * root.transpose() * law.quadratic.asDiagonal() * root);
  const Eigen::VectorXd& lambda = eigen.values;
  const double least = w.rank > 0 ? lambda.minCoeff() : 1,
               most = std::max(1.0, w.rank > 0 ? lambda.maxCoeff() : 1);
  if (!(least > kLeastEigenvalue * most)) {
    diverges();
    return std::nullopt;
  }
  const Eigen::VectorXd h = eigen.vectors.transpose() * g;
  const Eigen::VectorXd inverse = lambda.cwiseInverse();
  law.exponent += 0.5 * h.dot(inverse.cwiseProduct(h)) - 0.5 * lambda.array().log().sum();
  if (!(law.exponent < 700)) throw Unknown{"a mean that overflows", {}, true};
  const Matrix mixed = root * eigen.vectors * inverse.cwiseSqrt().asDiagonal();
  Matrix moved = mixed * mixed.transpose();
  for (Eigen::Index k = 0; k < n; ++k)
    for (Eigen::Index l = 0; l < n; ++l)
      if (k != l && std::abs(moved(k, l)) <= kCancelled * std::sqrt(moved(k, k) * moved(l, l)))
        moved(k, l) = 0;
  auto next = root_by_groups(moved);
  if (!next) return std::nullopt;
  const Eigen::VectorXd shift = root * (eigen.vectors * inverse.cwiseProduct(h));
  // Rounding and errors of covariances move M by `change`.
  const double change = (relative + 4 * kEpsilon * static_cast<double>(n)) * most;
  const double error = change * (inverse.sum() + inverse.cwiseProduct(h).squaredNorm()) +
                       kClosedFormError * (1 + law.size_of_exponent + std::abs(law.exponent));
  return MovedLaw{std::move(*next), law.mean + shift, std::exp(law.exponent), error};
}

/// The Gaussians of one entry, (block, column) each, without an exponential.
TiltedLaw joint_law(CovarianceStore& store, const std::vector<std::pair<int, int>>& variables) {
  const auto n = static_cast<Eigen::Index>(variables.size());
  const Eigen::VectorXd zero = Eigen::VectorXd::Zero(n);
  TiltedLaw law{Matrix::Zero(n, n), zero, zero, zero};
  for (Eigen::Index k = 0; k < n; ++k) {
    const auto [affine, row] = variables[static_cast<std::size_t>(k)];
    if (store.block(affine).mean.size() > 0) law.mean(k) = store.block(affine).mean(row);
    for (Eigen::Index l = 0; l < n; ++l)
      if (const auto& [other, column] = variables[static_cast<std::size_t>(l)];
          store.covariance(affine, other).value)
        law.covariances(k, l) = (*store.covariance(affine, other).value)(row, column);
  }
  law.covariances = (0.5 * (law.covariances + law.covariances.transpose())).eval();
  return law;
}

/// The law of entry (i, j), with the exponentials of all its factors; slots: which Gaussian of the
/// entry each factor is of, appended.
TiltedLaw tilted_law(CovarianceStore& store, const SidedFactors& factors,
                     const std::vector<Exponential>& exponentials, int i, int j,
                     std::vector<std::vector<std::size_t>>& slots) {
  std::vector<std::pair<int, int>> variables;  // (block, column)
  for (std::size_t k = 0; k < factors.size(); ++k) {
    const auto& [side, f] = factors[k];
    const std::pair<int, int> v{f.block, f.column(side == 0 ? i : j)};
    const auto known = std::find(variables.begin(), variables.end(), v);
    slots[k].push_back(static_cast<std::size_t>(known - variables.begin()));
    if (known == variables.end()) variables.push_back(v);
  }
  TiltedLaw law = joint_law(store, variables);
  for (std::size_t k = 0; k < factors.size(); ++k) {
    const auto slot = static_cast<Eigen::Index>(slots[k].back());
    law.exponent += exponentials[k].constant;
    law.size_of_exponent += std::abs(exponentials[k].constant);
    law.slope(slot) += exponentials[k].linear;
    law.quadratic(slot) += exponentials[k].quadratic;
  }
  return law;
}

/// Whether some other factor of the last entry may fall fast enough for a mean that diverges
/// without it.
bool mended(const FunctionTable& functions, const std::vector<Exponential>& exponentials,
            const std::vector<std::vector<std::size_t>>& slots, const TiltedLaw& law) {
  for (std::size_t k = 0; k < exponentials.size(); ++k) {
    const auto slot = static_cast<Eigen::Index>(slots[k].back());
    if (!functions.polynomial(exponentials[k].rest) &&
        !falls_slowly(functions, exponentials[k].rest, law.mean(slot),
                      std::sqrt(law.covariances(slot, slot))))
      return true;
  }
  return false;
}

/// What stands beside the exponentials, as functions of Gaussians with the moved means and
/// covariances, and a constant factor; slots: which Gaussian of each entry a factor is of.
std::pair<Term, double> rest_under(const std::vector<MovedLaw>& laws,
                                   const std::vector<Exponential>& exponentials,
                                   const std::vector<std::vector<std::size_t>>& slots, int family,
                                   Eigen::Index dim, CovarianceStore& store,
                                   FunctionTable& functions) {
  Term rest{{1.0}, {}};
  double constant = 1;
  const auto size = static_cast<Eigen::Index>(laws.size());
  std::vector<std::size_t> owner;  // of the rest's factors
  for (std::size_t k = 0; k < exponentials.size(); ++k) {
    const FunctionTable::Id f = exponentials[k].rest;
    if (const auto& p = functions.polynomial(f); p && p->size() == 1) {
      constant *= p->front();
      continue;
    }
    const auto same = std::find_if(owner.begin(), owner.end(),
                                   [&](std::size_t o) { return slots[o] == slots[k]; });
    if (same != owner.end()) {
      FunctionTable::Id& both = rest.factors[static_cast<std::size_t>(same - owner.begin())].f;
      both = functions.times(both, f);
      continue;
    }
    GaussianBlock block{
        static_cast<int>(size), Eigen::VectorXd(size), {{family, {}, {}, Matrix::Zero(size, dim)}}};
    for (Eigen::Index e = 0; e < size; ++e) {
      const auto slot = static_cast<Eigen::Index>(slots[k][static_cast<std::size_t>(e)]);
      const auto entry = static_cast<std::size_t>(e);
      block.mean(e) = laws[entry].mean(slot);
      block.parts[0].dense.row(e).head(laws[entry].root.cols()) = laws[entry].root.row(slot);
    }
    if ((block.mean.array() == 0).all()) block.mean.resize(0);
    if (dim == 0) block.parts.clear();
    owner.push_back(k);
    rest.factors.push_back({f, store.insert(std::move(block)), nullptr});
  }
  return {std::move(rest), constant};
}
}  // namespace

/// A factor whose growth a rule with a fixed range may not follow.
bool Expectations::grows(const Factor& f) {
  const Exponential e = functions_.exponential(f.f);
  constexpr double kSteep = 2;
  return e.quadratic > 0 ||
         (e.linear != 0 &&
          std::abs(e.linear) *
                  std::sqrt(std::max(0.0, store_.variances(f.block).value.maxCoeff())) >
              kSteep);
}

/// Whether E |f| may be infinite, as far as values far away and poles tell.
bool Expectations::may_diverge(const Factor& f) {
  if (functions_.polynomial(f.f)) return false;
  if (!functions_.integrable(f.f)) return true;
  const GaussianBlock& x = store_.block(f.block);
  const double mean = x.mean.size() > 0 ? x.mean.cwiseAbs().maxCoeff() : 0.0,
               deviation = std::sqrt(std::max(0.0, store_.variances(f.block).value.maxCoeff()));
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
std::optional<Moment> Expectations::tilted(const SidedFactors& factors, int rows, int columns) {
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
      const Covariance& c = store_.covariance(f.block, other.second.block);
      relative = std::max(relative, c.relative);
      out.method = weaker(out.method, c.method);
    }
  if (auto known = recalled(factors, rows, columns)) return std::move(*known);
  const Eigen::Index own_rows = left ? rows : 1, count = own_rows * (right ? columns : 1);
  out.value.resize(own_rows, count / own_rows);
  double own_error = 0;
  const auto symbols = algebra_.symbols();
  constexpr Eigen::Index kChunk = 64;  // covariances of so many rows are small
  for (Eigen::Index begin = 0; begin < count; begin += kChunk) {
    const Eigen::Index size = std::min(kChunk, count - begin);
    std::vector<std::vector<std::size_t>> slots(factors.size());  // which Gaussian of each entry
    std::vector<MovedLaw> laws;
    Eigen::Index dim = 0;
    for (Eigen::Index e = begin; e < begin + size; ++e) {
      const TiltedLaw law =
          tilted_law(store_, factors, exponentials, static_cast<int>(e % own_rows),
                     static_cast<int>(e / own_rows), slots);
      auto moved = moved_law(law, relative, [&] {
        if (!mended(functions_, exponentials, slots, law))
          throw Unknown{kInfiniteMean, {}, true, true};
      });
      if (!moved || (!steep && moved->error > kLooseClosedForm)) return std::nullopt;
      dim = std::max(dim, moved->root.cols());
      laws.push_back(std::move(*moved));
    }
    // The other factors, of Gaussians with other means and covariances.
    auto [family, fresh] = tilted_normals_.try_emplace(static_cast<int>(dim), store_.families());
    if (fresh) store_.add_family({static_cast<int>(dim), -1, false, nullptr});
    const auto [rest, constant] =
        rest_under(laws, exponentials, slots, family->second, dim, store_, functions_);
    const Moment m = rest.factors.empty()
                         ? Moment{Matrix::Ones(1, 1)}
                         : term_moment(rest, static_cast<int>(size), {{1.0}, {}}, 1);
    out.method = weaker(out.method, m.method);
    for (Eigen::Index e = 0; e < size; ++e) {
      const double factor = constant * laws[static_cast<std::size_t>(e)].scale,
                   own = m.value(m.value.rows() == 1 ? 0 : e, 0);
      out.value((begin + e) % own_rows, (begin + e) / own_rows) = factor * own;
      out.error = std::max(out.error, std::abs(factor) * m.error);
      own_error =
          std::max(own_error, std::abs(factor * own) * laws[static_cast<std::size_t>(e)].error);
    }
  }
  algebra_.keep_symbols(symbols);
  context_.disturb(out.value, own_error);
  out.error += own_error;
  remember(factors, rows, columns, out);
  return out;
}

}  // namespace tplimit::moments
