#include "moments/expectations.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "moments/line_rule.hpp"
#include "tplimit/math/gaussian_quadrature.hpp"

namespace tplimit::moments {

using namespace ir;

namespace {
constexpr double kLooseQuadrature = 1e-6;  // relative errors that beat those of particles
}  // namespace

namespace {
/// Gauss's rule for the standard normal density: exact for polynomials of degree 11.
constexpr std::array<double, 6> kRoughNodes{-3.324257433552119,  -1.889175877753711,
                                            -0.6167065901925942, 0.6167065901925942,
                                            1.889175877753711,   3.324257433552119};
constexpr std::array<double, 6> kRoughWeights{0.002555784402056, 0.088615746041915,
                                              0.408828469556029, 0.408828469556029,
                                              0.088615746041915, 0.002555784402056};
constexpr std::size_t kRough = kRoughNodes.size();
}  // namespace

/// Half of the shortest panel of f(mean + sqrt(variance) z) in z; 0 if there is no rule.
double Expectations::resolution(FunctionTable::Id f, double mean, double variance) {
  const LineFunction line{f, mean, std::sqrt(std::max(0.0, variance))};
  const LineRule r = line_rule(functions_, {&line, 1}, 0.5);
  if (r.status != LineStatus::kConverged) return 0;
  double out = 1;
  for (const auto& p : r.panels) out = std::min(out, 0.5 * (p.to - p.from));
  return out;
}

/// What determines a matrix of moments: its factors on each side and their columns.
std::vector<int> Expectations::key_of(const SidedFactors& factors, int rows, int columns,
                                      bool mirrored) {
  std::vector<int> key{mirrored ? columns : rows, mirrored ? rows : columns};
  for (const int own : {0, 1})
    for (const auto& [side, f] : factors) {
      if ((mirrored ? 1 - side : side) != own) continue;
      key.insert(key.end(), {own, f.f, f.block});
      for (int i = 0; i < (side == 0 ? rows : columns); ++i) key.push_back(f.column(i));
    }
  return key;
}

/// Quadratures are asked for again: E f(u) g(v) is E g(v) f(u), and a tangent kernel has the
/// covariances of the layers in it.
std::optional<Moment> Expectations::recalled(const SidedFactors& factors, int rows,
                                             int columns) const {
  for (const bool mirrored : {false, true})
    if (const auto known = quadratures_.find(key_of(factors, rows, columns, mirrored));
        known != quadratures_.end()) {
      Moment out = known->second;
      if (mirrored) out.value.transposeInPlace();
      return out;
    }
  return std::nullopt;
}

void Expectations::remember(const SidedFactors& factors, int rows, int columns, const Moment& m) {
  constexpr Eigen::Index kMostNumbers = 1 << 20;
  if ((remembered_ += m.value.size()) > kMostNumbers) {
    quadratures_.clear();
    remembered_ = m.value.size();
  }
  if (m.value.size() <= kMostNumbers)
    quadratures_.emplace(key_of(factors, rows, columns, false), m);
}

/// One quadrature per entry, over the different Gaussians behind the factors.
Moment Expectations::single_entries(const SidedFactors& factors, int rows, int columns) {
  if (auto known = recalled(factors, rows, columns)) return std::move(*known);
  const bool symmetric =
      key_of(factors, rows, columns, false) == key_of(factors, rows, columns, true);
  bool left = false, right = false;
  double relative = 0;
  for (const auto& [side, f] : factors) {
    (side == 0 ? left : right) = true;
    for (const auto& other : factors)
      relative = std::max(relative, store_.covariance(f.block, other.second.block).relative);
  }
  Moment out = entries(
      left ? rows : 1, right ? columns : 1,
      [&](Eigen::Index i, Eigen::Index j) {
        ProductMoment entry;
        std::vector<std::pair<int, int>> variables;  // (affine, column)
        for (const auto& [side, f] : factors) {
          const std::pair<int, int> v{f.block, f.column(static_cast<int>(side == 0 ? i : j))};
          const auto known = std::find(variables.begin(), variables.end(), v);
          entry.functions.emplace_back(static_cast<std::size_t>(known - variables.begin()), f.f);
          if (known == variables.end()) variables.push_back(v);
        }
        const std::size_t dim = variables.size();
        entry.covariances.assign(dim * dim, 0.0);
        for (std::size_t k = 0; k < dim; ++k) {
          const Eigen::VectorXd& mean = store_.block(variables[k].first).mean;
          entry.means.push_back(mean.size() > 0 ? mean(variables[k].second) : 0.0);
          for (std::size_t l = 0; l < dim; ++l)
            if (const Covariance& c =
                    store_.known_covariance(variables[k].first, variables[l].first);
                c.value)
              entry.covariances[k + dim * l] = (*c.value)(variables[k].second, variables[l].second);
        }
        for (std::size_t k = 0; k < dim; ++k)
          for (std::size_t l = 0; l < k; ++l)
            entry.covariances[k + dim * l] = entry.covariances[l + dim * k] =
                0.5 * (entry.covariances[k + dim * l] + entry.covariances[l + dim * k]);
        return entry;
      },
      symmetric);
  out.error += 2 * relative * out.value.cwiseAbs().maxCoeff();
  remember(factors, rows, columns, out);
  return out;
}

/// Some number of the right kind: which moments are known does not depend on it.
double Expectations::rough_value(const FunctionTable& functions, const ProductMoment& entry,
                                 std::string& failure) {
  const Whitened w = whiten(entry.covariances);
  if (w.status == QuadratureStatus::kRankTooLarge)
    failure = "a moment of more than 3 dependent Gaussians";
  if (w.status != QuadratureStatus::kConverged) return 1;
  std::size_t points = 1;
  for (int r = 0; r < w.rank; ++r) points *= kRough;
  std::vector<double> product(points, 1.0), x(points), y(points);
  for (const auto& [k, f] : entry.functions) {
    for (std::size_t p = 0; p < points; ++p) {
      x[p] = entry.means[k];
      for (std::size_t r = 0, rest = p; r < static_cast<std::size_t>(w.rank); ++r, rest /= kRough)
        x[p] += w(static_cast<std::int64_t>(k), static_cast<int>(r)) * kRoughNodes[rest % kRough];
    }
    functions.evaluate(f, static_cast<std::int64_t>(points), x.data(), y.data());
    for (std::size_t p = 0; p < points; ++p) product[p] *= y[p];
  }
  double sum = 0;
  for (std::size_t p = 0; p < points; ++p) {
    for (std::size_t r = 0, rest = p; r < static_cast<std::size_t>(w.rank); ++r, rest /= kRough)
      product[p] *= kRoughWeights[rest % kRough];
    sum += product[p];
  }
  return std::isfinite(sum) ? sum : 1;
}

/// E f(u) g(v), variances a and b, by the first terms of Mehler's series.
Matrix Expectations::rough_pair(const FunctionTable& functions, FunctionTable::Id f,
                                const Eigen::VectorXd& a, FunctionTable::Id g,
                                const Eigen::VectorXd& b, const Matrix& covariances) {
  const auto coefficients = [&](FunctionTable::Id h, const Eigen::VectorXd& variances) {
    Matrix out = Matrix::Zero(variances.size(), static_cast<Eigen::Index>(kRough));
    std::array<double, kRough> x{}, y{};
    for (Eigen::Index i = 0; i < variances.size(); ++i) {
      for (std::size_t q = 0; q < kRough; ++q)
        x[q] = std::sqrt(std::max(0.0, variances(i))) * kRoughNodes[q];
      functions.evaluate(h, static_cast<std::int64_t>(kRough), x.data(), y.data());
      for (std::size_t q = 0; q < kRough; ++q) {
        double before = 0, polynomial = kRoughWeights[q] * (std::isfinite(y[q]) ? y[q] : 1);
        for (std::size_t l = 0; l < kRough; ++l) {
          out(i, static_cast<Eigen::Index>(l)) += polynomial;
          const double next =
              (kRoughNodes[q] * polynomial - std::sqrt(static_cast<double>(l)) * before) /
              std::sqrt(static_cast<double>(l + 1));
          before = polynomial;
          polynomial = next;
        }
      }
    }
    return out;
  };
  const Matrix left = coefficients(f, a), right = coefficients(g, b);
  Matrix out(a.size(), b.size());
  for (Eigen::Index j = 0; j < b.size(); ++j)
    for (Eigen::Index i = 0; i < a.size(); ++i) {
      const double size = std::sqrt(std::max(0.0, a(i) * b(j))),
                   rho = size > 0 ? std::clamp(covariances(i, j) / size, -1.0, 1.0) : 0.0;
      double sum = 0;
      for (auto l = static_cast<Eigen::Index>(kRough); l-- > 0;)
        sum = sum * rho + left(i, l) * right(j, l);
      out(i, j) = sum;
    }
  return out;
}

namespace {
struct EntryResult {
  double value = 0, error = 0;
  std::string failure;  ///< not empty: why there is no value
};

/// By trapezoid rules, or nested rules cut at kinks, in up to 3 dimensions.
EntryResult integrated_in_space(const FunctionTable& functions, const ProductMoment& entry,
                                const QuadratureOptions& options) {
  EntryResult out;
  const std::size_t dim = entry.means.size();
  std::vector<Hyperplane> kinks;
  for (const auto& [k, f] : entry.functions)
    for (const double offset : functions.kinks(f)) {
      Hyperplane h{std::vector<double>(dim, 0.0), offset - entry.means[k]};
      h.normal[k] = 1;
      kinks.push_back(std::move(h));
    }
  const auto integrand = [&](std::int64_t count, const double* points, double* values) {
    std::vector<double> x(static_cast<std::size_t>(count)), y(x.size());
    std::fill_n(values, count, 1.0);
    for (const auto& [k, f] : entry.functions) {
      for (std::int64_t p = 0; p < count; ++p)
        x[static_cast<std::size_t>(p)] =
            points[static_cast<std::int64_t>(k) * count + p] + entry.means[k];
      functions.evaluate(f, count, x.data(), y.data());
      for (std::int64_t p = 0; p < count; ++p) values[p] *= y[static_cast<std::size_t>(p)];
    }
  };
  const QuadratureResult r =
      kinks.empty() ? smooth_expectation(entry.covariances, integrand, 1, options)
                    : kinked_expectation(entry.covariances, integrand, 1, kinks, options);
  switch (r.status) {
    case QuadratureStatus::kConverged: break;
    case QuadratureStatus::kNotConverged: out.failure = "quadrature does not converge"; return out;
    case QuadratureStatus::kRankTooLarge:
      out.failure = "a moment of more than 3 dependent Gaussians";
      return out;
    case QuadratureStatus::kNotACovariance:
      out.failure = std::all_of(entry.covariances.begin(), entry.covariances.end(),
                                [](double x) { return std::isfinite(x); })
                        ? "a covariance is not positive semidefinite"
                        : not_a_covariance({std::numeric_limits<double>::infinity(), 0, 0});
      return out;
    case QuadratureStatus::kNotFinite: out.failure = "a moment overflows"; return out;
  }
  out.value = r.values[0];
  out.error = r.errors[0];
  return out;
}

/// One moment by the cheapest rule that is proved to be fine enough: on a line, in a plane with
/// kinks or sharp features, or in up to 3 dimensions (docs/theory.md, "Moments without sampling",
/// 3).
EntryResult integrated(
    const FunctionTable& functions, const ProductMoment& entry,
    const std::function<double(FunctionTable::Id, double mean, double variance)>& resolution) {
  EntryResult out;
  const std::size_t dim = entry.means.size();
  const Whitened w = whiten(entry.covariances);
  const auto accept = [&](LineStatus status, double value, double error, double magnitude) {
    out.value = value;
    out.error = error;
    if (status == LineStatus::kDiverges)
      out.failure = kInfiniteMean;
    else if (!(error <= kLooseQuadrature * magnitude))
      out.failure = "quadrature does not converge";
  };
  if (w.status == QuadratureStatus::kConverged && w.rank <= 1) {
    std::vector<LineFunction> line;
    for (const auto& [k, f] : entry.functions)
      line.push_back({f, entry.means[k], w.rank == 1 ? w(static_cast<std::int64_t>(k), 0) : 0.0});
    const LineRule r = line_rule(functions, line, 1);
    accept(r.status, r.value, r.error, r.magnitude);
    return out;
  }
  // Trapezoid rules with steps that resolve all factors, whose frequencies add (4/h for panels of
  // half-length h).
  double frequency = 9, finest = 1;
  bool smooth = true;
  for (const auto& [k, f] : entry.functions) {
    const double h = resolution(f, entry.means[k], entry.covariances[k * (dim + 1)]);
    frequency += 4 / h;
    finest = std::min(finest, h);
    smooth = smooth && functions.kinks(f).empty() && functions.integrable(f);
  }
  QuadratureOptions options;
  options.max_evaluations = 20'000'000;
  options.largest_step = 2 * std::numbers::pi / frequency;
  const double most_points = std::pow(20 / options.largest_step, 2);
  if (w.status == QuadratureStatus::kConverged && w.rank == 2 && (!smooth || most_points > 1e6)) {
    std::vector<PlaneFunction> plane;
    for (const auto& [k, f] : entry.functions)
      plane.push_back({f, entry.means[k], w(static_cast<std::int64_t>(k), 0),
                       w(static_cast<std::int64_t>(k), 1)});
    const PlaneRule r = plane_rule(functions, plane);
    if (r.status == LineStatus::kNotConverged)
      out.failure = "quadrature does not converge";
    else
      accept(r.status, r.value, r.error, r.magnitude);
    return out;
  }
  constexpr double kCoarse = 0.03;  // panels of the nested rule find features of this width
  if (finest < kCoarse && !smooth) {
    out.failure = finest > 0 ? "functions of three Gaussians with narrow features"
                             : "a function with poles or branch points";
    return out;
  }
  return integrated_in_space(functions, entry, options);
}
}  // namespace

/// A matrix of moments, each by a quadrature of its own.
Moment Expectations::entries(
    Eigen::Index rows, Eigen::Index columns,
    const std::function<ProductMoment(Eigen::Index, Eigen::Index)>& entry_at, bool symmetric) {
  if (integrals_ > 0)  // a quadrature of quadratures costs more than particles
    for (Eigen::Index j = 0; j < columns; ++j)
      for (Eigen::Index i = 0; i < rows; ++i)
        if (entry_at(i, j).means.size() > 1)
          throw Unknown{"a quotient by a quadratic form beside functions that have no closed form",
                        {}};
  Moment out{Matrix::Zero(rows, columns), 0, MomentMethod::kQuadrature};
  std::vector<double> errors(static_cast<std::size_t>(out.value.size()), 0.0);
  std::vector<std::string> failures(errors.size());
  const auto resolution_of = [this](FunctionTable::Id f, double mean, double variance) {
    return resolution(f, mean, variance);
  };
  const auto integrate = [&](std::int64_t e) {
    const Eigen::Index i = e % rows, j = e / rows;
    if (symmetric && i > j) return;
    const ProductMoment entry = entry_at(i, j);
    if (context_.rough) {
      out.value(i, j) = rough_value(functions_, entry, failures[static_cast<std::size_t>(e)]);
      return;
    }
    EntryResult r = integrated(functions_, entry, resolution_of);
    out.value(i, j) = r.value;
    errors[static_cast<std::size_t>(e)] = r.error;
    failures[static_cast<std::size_t>(e)] = std::move(r.failure);
  };
  constexpr std::int64_t kBatch = 64;  // what is over the budget does not depend on threads
  for (std::int64_t first = 0; first < out.value.size(); first += kBatch) {
    if (!context_.rough && context_.out_of_evaluations())
      return entries(rows, columns, entry_at, symmetric);
    context_.executor.parallel(std::min<std::int64_t>(kBatch, out.value.size() - first),
                               [&](std::int64_t e) { integrate(first + e); });
  }
  for (const std::string& f : failures)
    if (!f.empty()) throw Unknown{f, {}, f == kInfiniteMean};
  out.error = *std::max_element(errors.begin(), errors.end());
  context_.disturb(out.value, out.error);
  if (symmetric) out.value.triangularView<Eigen::StrictlyLower>() = out.value.transpose().eval();
  return out;
}

}  // namespace tplimit::moments
