#include "moments/expectations.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tplimit::moments {

using namespace ir;

/// A derivative at a pole may have an infinite mean where the function has a finite one.
Moment Expectations::finite_part(const std::function<Moment()>& moment) {
  try {
    return moment();
  } catch (Unknown& unknown) {
    unknown.infinite = unknown.grows;
    throw;
  }
}

namespace {
/// The density of each u_i at `position`, its variance, and how far the position is from its mean.
struct Densities {
  Eigen::VectorXd density, variance, distance;
};
Densities density_at(double position, const Factor& u, int rows, const Eigen::VectorXd& variances,
                     const Eigen::VectorXd& means) {
  Densities out{Eigen::VectorXd(rows), Eigen::VectorXd(rows), Eigen::VectorXd(rows)};
  for (int i = 0; i < rows; ++i) {
    const double distance = out.distance(i) =
        position - (means.size() > 0 ? means(u.column(i)) : 0.0);
    const double a = out.variance(i) = variances(u.column(i));
    // A Gaussian of variance 0 is W y for a y that is 0: whatever the derivative by it is, it
    // stands beside that y.
    out.density(i) =
        a > 0 ? std::exp(-0.5 * distance * distance / a) / std::sqrt(2 * std::numbers::pi * a)
              : 0.0;
  }
  return out;
}

/// v given u = position: v - Cov(v, u) / Var(u) (u - position), a linear field.
Field given_position(const Factor& v, const Factor& u, int rows, const Covariance& c,
                     const Eigen::VectorXd& a, double position) {
  std::vector<double> onto(at(rows)), shift(at(rows));
  for (int i = 0; i < rows; ++i) {
    const double both = c.value ? (*c.value)(v.column(i), u.column(i)) : 0.0;
    onto[at(i)] = a(i) > 0 ? -both / a(i) : 0.0;
    shift[at(i)] = -onto[at(i)] * position;
  }
  Field given{rows,
              {{{1.0}, {{FunctionTable::kIdentity, v.block, v.columns}}}, {std::move(onto), {u}}}};
  if (position != 0) given.terms.push_back({std::move(shift), {}});
  return given;
}
}  // namespace

/// E d/du of the product of factors on two sides, u the Gaussian behind factor k.  A jump of height
/// J at c adds J E[delta(u - c) rest]: the density of u at c times E[rest | u = c], where the other
/// Gaussians are v - Cov(v, u) / Var(u) (u - c).
Moment Expectations::slope(const SidedFactors& factors, std::size_t k, int rows, int columns) {
  const auto& [side, own] = factors[k];
  if (side == 1) {
    SidedFactors mirrored = factors;
    for (auto& [s, f] : mirrored) s = 1 - s;
    Moment out = slope(mirrored, k, columns, rows);
    out.value.transposeInPlace();
    return out;
  }
  std::vector<int> constants;  // do not depend on u
  for (int i = 0; i < rows; ++i)
    if (store_.is_constant(own, i)) constants.push_back(i);
  if (static_cast<int>(constants.size()) == rows) return {Matrix::Zero(1, 1)};
  std::array<Term, 2> sides{Term{{1.0}, {}}, Term{{1.0}, {}}};
  for (std::size_t l = 0; l < factors.size(); ++l) {
    sides[at(factors[l].first)].factors.push_back(factors[l].second);
    if (l == k) sides[0].factors.back().f = functions_.derivative(own.f);
  }
  const auto& polynomial = functions_.polynomial(functions_.derivative(own.f));
  const bool flat = polynomial && std::all_of(polynomial->begin(), polynomial->end(),
                                              [](double c) { return c == 0; });
  Moment out = flat ? Moment{Matrix::Zero(1, 1)}
                    : finite_part([&] { return term_moment(sides[0], rows, sides[1], columns); });
  if (!functions_.integrable(own.f))
    throw Unknown{"the derivative of a function with poles, branch points or many jumps", {}};
  for (const auto& [position, height] : functions_.jumps(own.f)) {
    const Factor u{FunctionTable::kIdentity, own.block, own.columns};
    const Variances& variance = store_.variances(u.block);
    const Eigen::VectorXd& means = store_.block(u.block).mean;
    const auto [density, a, distance] = density_at(position, u, rows, variance.value, means);
    std::array<Term, 2> rest{Term{{1.0}, {}}, Term{{1.0}, {}}};
    const Factor* across = nullptr;  // depends on u, on the other side
    double relative = variance.relative;
    for (std::size_t l = 0; l < factors.size(); ++l) {
      if (l == k) continue;
      const auto& [other, f] = factors[l];
      if (other == 1 ? !store_.dependent(u, rows, f, columns)
                     : !store_.dependent_somewhere(u, f, rows)) {
        rest[at(other)].factors.push_back(f);
        continue;
      }
      const Covariance& c = store_.covariance(f.block, u.block);
      relative = std::max(relative, c.relative);
      if (other == 1) {
        if (factors.size() > 2)
          throw Unknown{
              "the derivative of a function with jumps, times functions of several Gaussians", {}};
        across = &f;
        continue;
      }
      const Field given = given_position(f, u, rows, c, a, position);
      rest[0].factors.push_back({f.f, algebra_.block_of(given), nullptr});
    }
    const Moment conditional = across ? conditional_means(*across, columns, u, a, distance)
                                      : term_moment(rest[0], rows, rest[1], columns);
    const Matrix& value = conditional.value;
    if (out.value.rows() == 1 && rows > 1) out.value = out.value.replicate(rows, 1).eval();
    if (out.value.cols() == 1 && value.cols() > 1)
      out.value = out.value.replicate(1, value.cols()).eval();
    for (Eigen::Index j = 0; j < out.value.cols(); ++j)
      for (int i = 0; i < rows; ++i)
        out.value(i, j) +=
            height * density(i) * value(value.rows() == 1 ? 0 : i, value.cols() == 1 ? 0 : j);
    const double largest = std::abs(height) * density.maxCoeff();
    out.error += largest * (conditional.error + 2 * relative * value.cwiseAbs().maxCoeff());
    out.method = weaker(weaker(out.method, variance.method),
                        weaker(conditional.method, MomentMethod::kClosedForm));
  }
  if (!constants.empty() && out.value.rows() == 1 && rows > 1)
    out.value = out.value.replicate(rows, 1).eval();
  for (const int i : constants) out.value.row(i).setZero();
  return out;
}

/// (i, j): E[f(v_j) | u_i is `distance` from its mean], u_i of variance a(i).
Moment Expectations::conditional_means(const Factor& f, int columns, const Factor& u,
                                       const Eigen::VectorXd& a, const Eigen::VectorXd& distance) {
  const auto rows = static_cast<int>(a.size());
  const Covariance c = store_.covariance(f.block, u.block);
  const Variances& b = store_.variances(f.block);
  const Eigen::VectorXd own_mean = store_.block(f.block).mean;
  const bool moved = own_mean.size() > 0 || (distance.array() != 0).any();
  Matrix variance(rows, columns), mean;
  if (moved) mean.resize(rows, columns);
  constexpr double kNearlyParallel = 1e-6;  // 1 - rho^2 where the difference of two numbers is
                                            // replaced by the length of a difference
  std::vector<std::pair<int, int>> near;
  for (int j = 0; j < columns; ++j)
    for (int i = 0; i < rows; ++i) {
      const double both = c.value ? (*c.value)(f.column(j), u.column(i)) : 0.0,
                   onto = a(i) > 0 ? both / a(i) : 0.0;
      variance(i, j) = std::max(0.0, b.value(f.column(j)) - onto * both);
      if (variance(i, j) < kNearlyParallel * b.value(f.column(j))) near.emplace_back(i, j);
      if (moved)
        mean(i, j) = (own_mean.size() > 0 ? own_mean(f.column(j)) : 0.0) + onto * distance(i);
    }
  if (!near.empty()) {
    std::vector<int> of_u, of_v;
    std::vector<double> onto;
    for (const auto& [i, j] : near) {
      of_u.push_back(u.column(i));
      of_v.push_back(f.column(j));
      onto.push_back(a(i) > 0 && c.value ? -(*c.value)(of_v.back(), of_u.back()) / a(i) : 0.0);
    }
    const auto columns_of = [](std::vector<int> v) {
      return std::make_shared<const std::vector<int>>(std::move(v));
    };
    const int difference =
        algebra_.block_of({static_cast<int>(near.size()),
                           {{{1.0}, {{FunctionTable::kIdentity, f.block, columns_of(of_v)}}},
                            {onto, {{FunctionTable::kIdentity, u.block, columns_of(of_u)}}}}});
    const Variances& exact = store_.variances(difference);
    for (std::size_t k = 0; k < near.size(); ++k)
      variance(near[k].first, near[k].second) =
          std::max(0.0, exact.value(static_cast<Eigen::Index>(k)));
  }
  Moment out = normal_means(f.f, mean, variance);
  out.method = weaker(out.method, weaker(c.method, b.method));
  return out;
}

/// E df/du of a term for every Gaussian u behind it whose block is wanted.
std::vector<ExpectedDerivative> Expectations::slopes(
    const Term& t, int rows, const std::function<bool(const Factor&, bool inner)>& wanted) {
  std::vector<ExpectedDerivative> out;
  const auto behind = [&](const FormPower& p) {
    return std::any_of(p.form.begin(), p.form.end(), [&](int q) {
      const auto& squares = store_.form(q).squares;
      return std::any_of(squares.begin(), squares.end(), [&](const QuadraticForm::Square& s) {
        return wanted({FunctionTable::kIdentity, s.block,
                       std::make_shared<const std::vector<int>>(at(rows), s.row)},
                      false);
      });
    });
  };
  if (!t.forms.empty() && (std::any_of(t.forms.begin(), t.forms.end(), behind) ||
                           std::any_of(t.factors.begin(), t.factors.end(),
                                       [&](const Factor& f) { return wanted(f, false); }) ||
                           (t.sum && wanted(t.sum->inner(), true))))
    throw Unknown{"the derivative of a quotient by a quadratic form", {}};
  SidedFactors factors;
  for (const Factor& f : t.factors) factors.emplace_back(0, f);
  if (t.sum) factors.emplace_back(1, t.sum->inner());
  for (std::size_t k = 0; k < t.factors.size(); ++k) {
    const Factor& f = t.factors[k];
    if (!wanted(f, false)) continue;
    Moment m = slope(factors, k, rows, t.sum ? t.sum->rows() : 1);
    out.push_back({{FunctionTable::kIdentity, f.block, f.columns},
                   t.sum ? row_sums(*t.sum->weights, m) : std::move(m)});
  }
  if (t.sum && wanted(t.sum->inner(), true)) {  // sum_s w_s E[dF/dg_s] g_s is one Gaussian
    const Moment m = slope(factors, t.factors.size(), rows, t.sum->rows());
    Matrix weights = *t.sum->weights;
    for (Eigen::Index s = 0; s < weights.cols(); ++s)
      for (int i = 0; i < rows; ++i) weights(i, s) *= m.entry(i, s);
    const int affine =
        algebra_.block_of(algebra_.combine(weights, algebra_.of_block(t.sum->block)));
    out.push_back({{FunctionTable::kIdentity, affine, nullptr},
                   {Matrix::Ones(1, 1), m.error / std::max(m.value.cwiseAbs().maxCoeff(), 1e-300),
                    m.method}});
  }
  return out;
}

/// Stein's lemma: E x F(u) = E x E F(u) + sum_k Cov(x, u_k) E dF/du_k, where jumps of F count as
/// deltas (docs/theory.md, "Moments without sampling").  Rows: those of F.
Moment Expectations::stein(const Term& t, int rows, const Factor& x, int columns) {
  Moment out{Matrix::Zero(rows, columns)};
  for (const auto& [u, m] : slopes(t, rows, [&](const Factor&f, bool inner) {
         return store_.dependent(f, inner ? t.sum->rows() : rows, x, columns);
       })) {
    const Covariance c = store_.covariance(u.block, x.block);
    if (!c.value) continue;
    double largest = 0;
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i) {
        const double both = (*c.value)(u.column(i), x.column(j));
        largest = std::max(largest, std::abs(both));
        out.value(i, j) += both * m.value(m.value.rows() == 1 ? 0 : i, 0);
      }
    out.error += largest * (m.error + c.relative * m.value.cwiseAbs().maxCoeff());
    out.method = weaker(out.method, weaker(m.method, c.method));
  }
  if (const Eigen::VectorXd mean = store_.block(x.block).mean; mean.size() > 0) {
    const Moment m = term_moment(t, rows, {{1.0}, {}}, 1);
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i)
        out.value(i, j) += mean(x.column(j)) * m.value(m.value.rows() == 1 ? 0 : i, 0);
    out.error += mean.cwiseAbs().maxCoeff() * m.error;
    out.method = weaker(out.method, m.method);
  }
  return out;
}

/// Stein's lemma where one side is a single Gaussian.
std::optional<Moment> Expectations::stein(const SidedFactors& factors, int rows, int columns) {
  for (const int side : {0, 1}) {
    Term others{{1.0}, {}};
    std::vector<Factor> alone;
    for (const auto& [own, f] : factors) (own == side ? alone : others.factors).push_back(f);
    if (alone.size() != 1 || alone[0].f != FunctionTable::kIdentity || others.factors.empty())
      continue;
    Moment out = stein(others, side == 0 ? columns : rows, alone[0], side == 0 ? rows : columns);
    if (side == 0) out.value.transposeInPlace();
    return out;
  }
  return std::nullopt;
}

/// m(i, s) summed over s with weights.
Moment Expectations::row_sums(const Matrix& weights, const Moment& m) {
  Moment out{Matrix::Zero(weights.rows(), 1),
             m.error * weights.cwiseAbs().rowwise().sum().maxCoeff(), m.method};
  for (Eigen::Index s = 0; s < weights.cols(); ++s)
    for (Eigen::Index i = 0; i < weights.rows(); ++i)
      out.value(i, 0) += weights(i, s) * m.entry(i, s);
  return out;
}

}  // namespace tplimit::moments
