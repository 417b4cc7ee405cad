#include "moments/expectations.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <set>
#include <utility>

#include "moments/line_rule.hpp"
#include "tplimit/math/gaussian_quadrature.hpp"

namespace tplimit::moments {

using namespace ir;

/// d log E f(u)^2 / d log Var u: how relative errors of variances grow.
double Expectations::amplification(FunctionTable::Id f, const Eigen::VectorXd& variances) {
  if (f == FunctionTable::kIdentity) return 1;
  const auto& closed = functions_.closed_form(f);
  if (!closed)
    return functions_.piecewise(f) ? static_cast<double>(std::max<std::size_t>(
                                         2, functions_.piecewise(f)->above.size()))
                                   : 2;
  constexpr double kShift = 1e-6;
  const std::size_t count = static_cast<std::size_t>(std::min<Eigen::Index>(variances.size(), 16));
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double a = variances(static_cast<Eigen::Index>(
                         i * static_cast<std::size_t>(variances.size()) / count)) *
                     closed->scale * closed->scale;
    if (!(a > 0)) continue;
    const std::array<double, 2> v{a, a * (1 + kShift)};
    std::array<double, 2> k{};
    (void)dual_kernel(closed->g, v, v, v, k);
    if (k[0] > 0) largest = std::max(largest, std::abs(k[1] / k[0] - 1) / kShift);
  }
  return largest;
}

/// The moment of factors that are all polynomials in independent normals.
std::optional<Moment> Expectations::polynomial_moment(const SidedFactors& factors, int rows,
                                                      int columns) {
  std::array<Field, 2> sides{Field{1, {{{1.0}, {}}}}, Field{1, {{{1.0}, {}}}}};
  for (const auto& [side, f] : factors) {
    Field& field = sides[at(side)];
    field.columns = side == 0 ? rows : columns;
    field.terms[0].factors.push_back(f);
  }
  for (Field& field : sides) {
    field.polynomials = algebra_.polynomials(field);
    if (!field.polynomials) return std::nullopt;
    field.terms.clear();
  }
  return cross(sides[0], sides[1]);
}

/// E f(u_i) g(v_i) for two Gaussians behind each column, if there is a closed form.
std::optional<Moment> Expectations::same_side(const Factor& s, const Factor& t, int rows) {
  const auto form = functions_.pair_form(s.f, t.f);
  if (!form || store_.block(s.block).mean.size() > 0 || store_.block(t.block).mean.size() > 0)
    return std::nullopt;
  std::array<std::vector<double>, 3> arrays;  // a, b, c
  Moment out{Matrix(rows, 1)};
  double relative = 0;
  for (std::size_t k = 0; k < 3; ++k) {
    const Factor &p = k == 1 ? t : s, &q = k == 0 ? s : t;
    const Covariance& c = store_.covariance(p.block, q.block);
    const double scale =
        (k == 1 ? form->scale_g : form->scale_f) * (k == 0 ? form->scale_f : form->scale_g);
    for (int i = 0; i < rows; ++i)
      arrays[k].push_back(c.value ? scale * (*c.value)(p.column(i), q.column(i)) : 0.0);
    relative = std::max(relative, c.relative);
    out.method = weaker(out.method, c.method);
  }
  std::vector<double> value(at(rows));
  context_.note(form->kernel(arrays[0], arrays[1], arrays[2], value));
  for (int i = 0; i < rows; ++i) out.value(i, 0) = form->factor * value[at(i)];
  // What errors of a, b and c by this part of sqrt(a b) change.
  const auto change = [&](double part) {
    std::vector<double> total(at(rows), 0.0), moved(at(rows));
    for (const std::size_t k : {0u, 1u, 2u}) {
      auto abc = arrays;
      for (std::size_t i = 0; i < at(rows); ++i)
        abc[k][i] += k < 2
                         ? part * arrays[k][i]
                         : -std::copysign(part * std::sqrt(arrays[0][i] * arrays[1][i]), abc[2][i]);
      (void)form->kernel(abc[0], abc[1], abc[2], moved);
      for (std::size_t i = 0; i < at(rows); ++i)
        total[i] += std::abs(form->factor * (moved[i] - value[i]));
    }
    return *std::max_element(total.begin(), total.end());
  };
  const bool exact = functions_.polynomial(s.f) && functions_.polynomial(t.f);
  double rounding = 0;
  if (!exact) {
    out.method = weaker(out.method, MomentMethod::kClosedForm);
    rounding = kClosedFormError * out.value.cwiseAbs().maxCoeff() + change(kCovarianceRounding);
  }
  context_.disturb(out.value, rounding);
  out.error = rounding + (relative > 0 ? change(relative) : 0);
  return out;
}

/// As entries of all pairs of columns, if those are no more: quadratures of all pairs share their
/// work.
std::optional<Moment> Expectations::selected(const Factor& s, const Factor& t, int rows) {
  const auto distinct = [&](const Factor& f, std::vector<int>& place) {
    std::map<int, int> places;
    std::vector<int> columns;
    for (int i = 0; i < rows; ++i) {
      const auto [it, fresh] = places.emplace(f.column(i), static_cast<int>(columns.size()));
      if (fresh) columns.push_back(f.column(i));
      place.push_back(it->second);
    }
    return columns;
  };
  std::vector<int> left_place, right_place;
  std::vector<int> left = distinct(s, left_place), right = distinct(t, right_place);
  if (left.size() * right.size() > at(rows)) return std::nullopt;
  const auto of = [](const Factor& f, std::vector<int> columns) {
    return Factor{f.f, f.block, std::make_shared<const std::vector<int>>(std::move(columns))};
  };
  const int p = static_cast<int>(left.size()), q = static_cast<int>(right.size());
  const Moment all = pair(of(s, std::move(left)), p, of(t, std::move(right)), q);
  Moment out{Matrix(rows, 1), all.error, all.method};
  for (int i = 0; i < rows; ++i) out.value(i, 0) = all.value(left_place[at(i)], right_place[at(i)]);
  return out;
}

/// E f(u) g(v) of centred Gaussians, g odd or even: only f's part of the same parity counts.  Of
/// relu it is x / 2 or |x| / 2, of step sign(x) / 2 or 1 / 2.
std::optional<Moment> Expectations::by_parity(const Factor& s, int rows, const Factor& t,
                                              int columns) {
  if (may_diverge(s) || may_diverge(t)) return std::nullopt;
  const auto& pieces = functions_.piecewise(s.f);
  const int parity = functions_.parity(t.f);
  if (parity * functions_.parity(s.f) < 0) return Moment{Matrix::Zero(rows, columns)};
  if (parity == 0 || !pieces) return std::nullopt;
  double c = 0;
  for (std::size_t k = 0; k < std::max(pieces->above.size(), pieces->below.size()); ++k) {
    const double above = k < pieces->above.size() ? pieces->above[k] : 0.0,
                 below = k < pieces->below.size() ? pieces->below[k] : 0.0;
    const double part = 0.5 * (above + parity * (k % 2 == 0 ? below : -below));
    if (part == 0) continue;
    if (k != (parity < 0 ? 1u : 0u)) return std::nullopt;  // neither c nor c x
    c = part;
  }
  if (c == 0) return Moment{Matrix::Zero(rows, columns)};
  Moment out;
  if (parity < 0) {
    out = *stein({{0, {FunctionTable::kIdentity, s.block, s.columns}}, {1, t}}, rows, columns);
  } else {
    out = mean(t, columns);
    out.value = out.value.transpose().replicate(rows, 1).eval();
  }
  out.value *= c;
  out.error *= std::abs(c);
  return out;
}

/// E f(u) g(v) = sum_l c^l / l! E f^(l)(u) E g^(l)(v) of polynomials, c the covariances.
Moment Expectations::polynomial_pair(const Factor& s, int rows, const Factor& t, int columns,
                                     const Matrix& covariances, double relative) {
  const auto &p = functions_.polynomial(s.f), &q = functions_.polynomial(t.f);
  Matrix sum = Matrix::Zero(rows, columns), power = Matrix::Ones(rows, columns);
  FunctionTable::Id f = s.f, g = t.f;
  double factorial = 1;
  for (std::size_t l = 0; l < std::min(p->size(), q->size()); ++l) {
    const Moment u = mean({f, s.block, s.columns}, rows),
                 v = mean({g, t.block, t.columns}, columns);
    if (l > 0) factorial *= static_cast<double>(l);
    sum += (power.array() * (u.value * v.value.transpose()).array()).matrix() / factorial;
    power = (power.array() * covariances.array()).matrix().eval();
    f = functions_.derivative(f);
    g = functions_.derivative(g);
  }
  Moment out{std::move(sum)};
  out.error =
      relative * static_cast<double>(p->size() + q->size() - 2) * out.value.cwiseAbs().maxCoeff();
  return out;
}

/// Rules on panels that are proved to be fine enough, for Mehler's series of functions that are not
/// smooth, and for correlations near 1, where the series is too slow.
GramRules Expectations::line_rules(FunctionTable::Id f, const Eigen::VectorXd& a,
                                   FunctionTable::Id g, const Eigen::VectorXd& b) {
  return {[this, f, g](bool column, double variance, std::int64_t order, std::vector<double>& z,
                       std::vector<double>& w) {
            hermite_nodes(functions_, column ? g : f, std::sqrt(variance), order, z, w);
          },
          [this, f, g, &a, &b](std::int64_t i, std::int64_t j, double rho) {
            const double root_a = std::sqrt(a(i)), root_b = std::sqrt(b(j)),
                         rest = std::sqrt((1 - rho) * (1 + rho));
            if (rest == 0) {
              const std::array<LineFunction, 2> line{LineFunction{f, 0, root_a},
                                                     LineFunction{g, 0, rho * root_b}};
              const LineRule r = line_rule(functions_, line, 1);
              return std::pair{r.value, r.status == LineStatus::kConverged
                                            ? r.error
                                            : std::numeric_limits<double>::infinity()};
            }
            const std::array<PlaneFunction, 2> plane{
                PlaneFunction{f, 0, root_a, 0}, PlaneFunction{g, 0, root_b * rho, root_b * rest}};
            const PlaneRule r = plane_rule(functions_, plane);
            return std::pair{r.value, r.status == LineStatus::kConverged
                                          ? r.error
                                          : std::numeric_limits<double>::infinity()};
          }};
}

/// Roots of E f(u)^2, E (u f'(u))^2 and Var(u) E f'(u)^2, and the variation of f within 8 standard
/// deviations, the largest for variances of u in [2^power, 2^(power + 1)]; the heights of f's
/// jumps.
const Expectations::Steepness& Expectations::steepness(FunctionTable::Id f, int power) {
  const auto [it, is_new] = steepness_.try_emplace({f, power});
  Steepness& out = it->second;
  if (!is_new) return out;
  // Rules on u = s sinh(t) see features of size 1 below any variance; a bound needs few digits.
  constexpr double kStep = 0.05;
  const double s = std::min(1.0, std::sqrt(std::ldexp(1.0, power)));
  const auto count = static_cast<std::int64_t>(
      std::ceil(std::asinh(8 * std::sqrt(std::ldexp(1.0, power + 1)) / s) / kStep));
  const auto places = static_cast<std::size_t>(2 * count);  // of which none is 0
  std::vector<double> u(places), weight(places), value(places), slope(places);
  for (std::size_t k = 0; k < places; ++k) {
    const double t = (static_cast<double>(k) - static_cast<double>(count) + 0.5) * kStep;
    u[k] = s * std::sinh(t);
    weight[k] = s * kStep * std::cosh(t);
  }
  functions_.evaluate(f, 2 * count, u.data(), value.data());
  functions_.evaluate(functions_.derivative(f), 2 * count, u.data(), slope.data());
  for (std::size_t q = 0; q < places; ++q) out.variation += std::abs(slope[q]) * weight[q];
  for (const int k : {power, power + 1}) {
    const double variance = std::ldexp(1.0, k);
    double size = 0, stretch = 0, squares = 0;
    for (std::size_t q = 0; q < places; ++q) {
      const double w = weight[q] * std::exp(-u[q] * u[q] / (2 * variance)) /
                       std::sqrt(2 * std::numbers::pi * variance),
                   d = slope[q] * slope[q] * w;
      size += value[q] * value[q] * w;
      squares += d;
      stretch += u[q] * u[q] * d;
    }
    out.size = std::max(out.size, std::sqrt(size));
    out.slope = std::max(out.slope, std::sqrt(variance * squares));
    out.stretch = std::max(out.stretch, std::sqrt(stretch));
  }
  for (const auto& [position, height] : functions_.jumps(f)) out.jump += std::abs(height);
  out.variation += out.jump;
  if (out.jump > 0) out.slope = std::numeric_limits<double>::infinity();
  return out;
}

/// Bound on what errors of variances a, b and covariances, by this part of sqrt(a b), change in all
/// E f(u_i) g(v_j).  With u, v of correlation rho, by Price's theorem and Cauchy and Schwarz,
///   |dK/drho| = sqrt(a b) |E f' g'| <= (a E f'^2 b E g'^2)^(1/2),
///   |dK/dlog sqrt(a)| = |E u f' g| <= (E (u f')^2 E g^2)^(1/2).
/// The density of (u, v) is at most 1 / (2 pi (a b (1 - rho^2))^(1/2)), so that, with jumps as
/// well,
///   |dK/drho| <= int |df| int |dg| / (2 pi (1 - rho^2)^(1/2)).
double Expectations::change_of_pairs(FunctionTable::Id f, const Eigen::VectorXd& a,
                                     FunctionTable::Id g, const Eigen::VectorXd& b,
                                     const Matrix& covariances, double part) {
  const auto largest = [&](FunctionTable::Id h, const Eigen::VectorXd& variances) {
    std::set<int> powers;
    for (const double v : variances)
      if (v > 0) powers.insert(std::clamp(std::ilogb(v), -300, 300));
    Steepness out;
    for (const int power : powers) {
      const Steepness& own = steepness(h, power);
      out.size = std::max(out.size, own.size);
      out.stretch = std::max(out.stretch, own.stretch);
      out.slope = std::max(out.slope, own.slope);
      out.variation = std::max(out.variation, own.variation);
      out.jump = own.jump;
    }
    return out;
  };
  const Steepness x = largest(f, a), y = largest(g, b);
  double apart = 1;  // 1 - rho^2 of the closest that are not equal
  for (Eigen::Index j = 0; j < b.size(); ++j)
    for (Eigen::Index i = 0; i < a.size(); ++i)
      if (const double size = a(i) * b(j), c = covariances(i, j); size > c * c)
        apart = std::min(apart, 1 - c * c / size);
  apart = std::max(apart, part);
  const double by_rho = std::min(
      x.slope * y.slope, x.variation * y.variation / (2 * std::numbers::pi * std::sqrt(apart)));
  // A delta in f' beside the mean of g given u.
  const double near = std::pow(apart, -0.25);
  const double change = part * (2 * by_rho + (x.stretch + x.jump * near) * y.size +
                                (y.stretch + y.jump * near) * x.size);
  return std::min(change, 2 * x.size * y.size);  // |K| <= (E f^2 E g^2)^(1/2)
}

/// All E f(u_i) g(v_j) of centred Gaussians by quadratures that share their work; `out` has the
/// covariances, a and b are the variances.
Moment Expectations::pair_quadrature(const Factor& s, const Factor& t, const Eigen::VectorXd& a,
                                     const Eigen::VectorXd& b, Moment out, double relative) {
  const auto rows = static_cast<int>(a.size()), columns = static_cast<int>(b.size());
  const SidedFactors both{{0, s}, {1, t}};
  if (auto known = recalled(both, rows, columns)) return std::move(*known);
  if (context_.out_of_evaluations()) {
    out.value = rough_pair(functions_, s.f, a, t.f, b, out.value);
    out.method = MomentMethod::kQuadrature;
    return out;
  }
  GramInput input;
  input.rows = rows;
  input.columns = columns;
  input.covariance = out.value.data();
  input.leading = rows;
  input.row_variances = {a.data(), static_cast<std::size_t>(rows)};
  input.column_variances = {b.data(), static_cast<std::size_t>(columns)};
  input.symmetric = s.f == t.f && s.block == t.block && same_columns(s.columns, t.columns);
  const auto known_resolution = [&](FunctionTable::Id f, double largest) {
    const int power = largest > 0 ? std::ilogb(largest) + 1 : 0;  // finer for larger variances
    const auto [it, is_new] = resolutions_.try_emplace({f, power}, 0.0);
    if (is_new) it->second = resolution(f, 0, largest > 0 ? std::ldexp(1.0, power) : 0.0);
    return it->second;
  };
  input.resolution =
      std::min(known_resolution(s.f, a.maxCoeff()), known_resolution(t.f, b.maxCoeff()));
  if (!(input.resolution > 0)) return single_entries({{0, s}, {1, t}}, rows, columns);
  GramOptions options;
  const GramRules rules = line_rules(s.f, a, t.f, b);
  constexpr double kNarrow = 0.05;  // Mehler series of higher frequencies, 4/h, have more terms,
                                    // (4/h)^2, than the grid for all rows
  const auto smooth = [&](FunctionTable::Id f) {
    return functions_.kinks(f).empty() && functions_.integrable(f);
  };
  if (!smooth(s.f) || !smooth(t.f) || input.resolution < kNarrow) options.rules = &rules;
  const auto evaluate = [this](FunctionTable::Id id) {
    return [this, id](std::int64_t count, const double* points, double* values) {
      functions_.evaluate(id, count, points, values);
    };
  };
  Matrix value(rows, columns);
  const GramResult r = gram_quadrature(
      input, evaluate(s.f), s.f == t.f ? UnaryFunctions{} : UnaryFunctions{evaluate(t.f)}, 1,
      {value.data(), static_cast<std::size_t>(value.size())},
      [this](std::int64_t count, const std::function<void(std::int64_t)>& body) {
        context_.executor.parallel(count, body);
      },
      options);
  context_.note(r.status);
  if (!r.converged) throw Unknown{"quadrature does not converge", {}};
  const Matrix covariances = std::exchange(out.value, std::move(value));
  out.method = MomentMethod::kQuadrature;
  const auto change = [&](double part) {
    return change_of_pairs(s.f, a, t.f, b, covariances, part);
  };
  const double rounding = r.largest_error * r.largest_scale + change(kCovarianceRounding);
  context_.disturb(out.value, rounding);
  out.error = rounding + (relative > 0 ? change(relative) : 0);
  remember(both, rows, columns, out);
  return out;
}

Moment Expectations::pair(const Factor& s, int rows, const Factor& t, int columns, bool lazy) {
  const GaussianBlock &x = store_.block(s.block), &y = store_.block(t.block);
  const bool identities = s.f == FunctionTable::kIdentity && t.f == FunctionTable::kIdentity;
  if (!identities && (x.mean.size() > 0 || y.mean.size() > 0)) {
    const SidedFactors both{{0, s}, {1, t}};
    const auto reduced = stein(both, rows, columns);
    return reduced ? *reduced : single_entries(both, rows, columns);
  }
  const auto &p = functions_.polynomial(s.f), &q = functions_.polynomial(t.f);
  if (identities && lazy && x.mean.size() == 0 && y.mean.size() == 0) {
    const PairCovariance own = store_.pairs_of(s, rows, t, columns);
    return {{}, 0, own.method, own.pairs};
  }
  const bool one_sided = s.f == FunctionTable::kIdentity || t.f == FunctionTable::kIdentity;
  if (!(p && q) && !one_sided)
    if (const auto form = functions_.pair_form(s.f, t.f)) {
      const PairCovariance own = store_.pairs_of(s, rows, t, columns);
      Moment out{{},
                 0,
                 weaker(own.method, MomentMethod::kClosedForm),
                 PairMatrix::kernel(own.pairs, *form)};
      if (lazy) return out;
      out = store_.settled(std::move(out));
      out.error +=
          kClosedFormError *
          out.value.cwiseAbs().maxCoeff();  // what follows as matrices does not count its rounding
      return out;
    }
  const Covariance c = store_.covariance(s.block, t.block);
  Moment out{Matrix(rows, columns), 0, c.method};
  const auto gather = [&](int j) {  // column j of the covariances
    double* to = out.value.col(j).data();
    if (!c.value) {
      std::fill_n(to, rows, 0.0);
      return;
    }
    const double* from = c.value->col(t.column(j)).data();
    if (s.columns)
      for (int i = 0; i < rows; ++i) to[i] = from[s.column(i)];
    else
      for (int i = 0; i < rows; ++i) to[i] = from[i];
  };
  const auto gather_all = [&] { context_.each_column(rows, columns, [&](int j) { gather(j); }); };
  if (identities) {
    gather_all();
    out.error = c.relative * out.value.cwiseAbs().maxCoeff();
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i)
        if (x.mean.size() > 0 && y.mean.size() > 0)
          out.value(i, j) += x.mean(s.column(i)) * y.mean(t.column(j));
    return out;
  }
  if (!(p && q) && one_sided) return *stein({{0, s}, {1, t}}, rows, columns);
  const Variances &cx = store_.variances(s.block), &cy = store_.variances(t.block);
  Eigen::VectorXd a(rows), b(columns);
  for (int i = 0; i < rows; ++i) a(i) = cx.value(s.column(i));
  for (int j = 0; j < columns; ++j) b(j) = cy.value(t.column(j));
  const double relative = std::max({c.relative, cx.relative, cy.relative});
  out.method = weaker(out.method, weaker(cx.method, cy.method));

  if (p && q) {
    gather_all();
    Moment exact = polynomial_pair(s, rows, t, columns, out.value, relative);
    exact.method = out.method;
    return exact;
  }
  if (auto half = by_parity(s, rows, t, columns)) return std::move(*half);
  if (auto half = by_parity(t, columns, s, rows)) {
    half->value.transposeInPlace();
    return std::move(*half);
  }
  gather_all();
  return pair_quadrature(s, t, a, b, std::move(out), relative);
}

}  // namespace tplimit::moments
