#include "tplimit/report/convergence.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>
#include <Eigen/QR>
#include <boost/math/distributions/chi_squared.hpp>
#include <boost/math/distributions/fisher_f.hpp>
#include <boost/math/special_functions/digamma.hpp>
#include <boost/math/special_functions/trigamma.hpp>

#include "tplimit/support/check.hpp"

namespace tplimit {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSmallestP = 1e-3;  // of a whole report
constexpr double kDoubtfulP = 0.05;  // .. where nothing but the mean speaks for the limit
constexpr double kErrors = 3;        // how many standard errors the slope may lie above -1/2
constexpr double kApart = 2;         // .. and must lie below that of networks that stay random
constexpr double kCurvature =
    0.12;  // standard error of log sd at the smallest width for 1 + d/n, see docs/compare.md
constexpr double kBend = 0.5;  // .. and of n variance, which no other entry averages out
constexpr double kNextTerm =
    0.25;  // largest next term of the mean in units of the last one fitted, smallest width ..
constexpr double kNextTermOfOne = 1;  // .. and where only b/n is fitted; docs/compare.md

/// What is known about each width and entry before any test.
struct Summary {
  VectorXd width;                ///< n_k
  VectorXd inverse;              ///< smallest width / n_k, in (0, 1]
  VectorXd seeds;                ///< S_k
  MatrixXd mean, variance, rms;  ///< widths x entries
  VectorXd fall;  ///< n^(-2 e) for an expected spread n^e: n, or 1 where the limit is random
  VectorXd scaled_variance;  ///< per entry: mean of n^(-2 e) s^2 over widths, weighted by S_k - 1
  double dof = 0;            ///< sum of S_k - 1
  double rounding = 0;       ///< differences up to this are no differences
  Index smallest = 0, largest = 0;
};

void check_input(const VectorXd& limit, const VectorXd& limit_error,
                 const std::vector<WidthSamples>& samples, double limit_dof) {
  TPLIMIT_CHECK(limit.size() == limit_error.size(), "one error per limit, not {} for {}",
                limit_error.size(), limit.size());
  TPLIMIT_CHECK(limit.allFinite() && limit_error.allFinite() && (limit_error.array() >= 0).all(),
                "limits and errors are finite, errors not negative");
  TPLIMIT_CHECK(limit_dof >= 1, "degrees of freedom at least 1, not {}", limit_dof);
  TPLIMIT_CHECK(!samples.empty(), "at least one width");
  for (const WidthSamples& sample : samples) {
    TPLIMIT_CHECK(std::isfinite(sample.width) && sample.width > 0, "a positive width, not {}",
                  sample.width);
    TPLIMIT_CHECK(sample.values.rows() >= 2, "at least two seeds at width {}", sample.width);
    TPLIMIT_CHECK(sample.values.cols() == limit.size(), "{} entries at width {}, not {}",
                  limit.size(), sample.width, sample.values.cols());
    TPLIMIT_CHECK(sample.values.allFinite(), "finite samples at width {}", sample.width);
    const auto same = [&](const WidthSamples& other) {
      return &other != &sample && other.width == sample.width;
    };
    TPLIMIT_CHECK(std::none_of(samples.begin(), samples.end(), same), "width {} stands once",
                  sample.width);
  }
}

Summary summarise(const VectorXd& limit, const std::vector<WidthSamples>& samples,
                  double largest_number, double spread) {
  const auto widths = static_cast<Index>(samples.size());
  Summary s;
  s.width.resize(widths);
  s.seeds.resize(widths);
  s.mean.resize(widths, limit.size());
  s.variance.resize(widths, limit.size());
  s.rms.resize(widths, limit.size());
  for (Index k = 0; k < widths; ++k) {
    const auto& [width, values] = samples[static_cast<std::size_t>(k)];
    const auto seeds = static_cast<double>(values.rows());
    s.width[k] = width;
    s.seeds[k] = seeds;
    const MatrixXd deviation = values.rowwise() - limit.transpose();
    const Eigen::RowVectorXd bias = deviation.colwise().mean();
    s.mean.row(k) = limit.transpose() + bias;
    s.variance.row(k) = (deviation.rowwise() - bias).colwise().squaredNorm() / (seeds - 1);
    s.rms.row(k) = (deviation.colwise().squaredNorm() / seeds).cwiseSqrt();
  }
  s.width.minCoeff(&s.smallest);
  s.width.maxCoeff(&s.largest);
  s.inverse = s.width[s.smallest] / s.width.array();
  s.rounding = kRounding * std::max(1.0, largest_number);
  s.dof = (s.seeds.array() - 1).sum();
  s.fall = s.width.array().pow(-2 * spread);
  s.scaled_variance =
      ((s.seeds.array() - 1) * s.fall.array()).matrix().transpose() * s.variance / s.dof;
  return s;
}

// ---- mean
// ------------------------------------------------------------------------------------------

struct MeanTest {
  double p_value;
  double resolution;
};

/// The residual of each column of `rhs` after least squares on `design`.
MatrixXd residual(const MatrixXd& design, const MatrixXd& rhs) {
  return rhs - design * Eigen::ColPivHouseholderQR<MatrixXd>(design).solve(rhs);
}

/// The equations mean(n) - limit = L + b m/n + c (m/n)^2 for one entry, m the smallest width,
/// divided by their standard errors. Rows: the widths, then the limit as a datum, L = 0 +-
/// limit_error.
class MeanEquations {
 public:
  enum class Limit { kExact, kDatum, kUnknown };  ///< L is 0; known to within its error; free
  MeanEquations(const Summary& s, const VectorXd& bias, VectorXd variance, double limit_error,
                Limit limit)
      : s_(s),
        bias_(bias),
        variance_(std::move(variance)),
        limit_error_(limit_error),
        limit_(limit),
        terms_(std::min<Index>(2, bias.size() - 1)) {
    // The series goes on: the next term may be as large as a quarter of the last one (or a
    // sixteenth of the one before, should the last vanish by chance), the term after that again a
    // quarter; that one enters as an error.
    if (terms_ == 0) return;
    const VectorXd fit = Eigen::ColPivHouseholderQR<MatrixXd>(design()).solve(data());
    next_ = (terms_ > 1 ? kNextTerm : kNextTermOfOne) * std::abs(fit[terms_ - 1]);
    if (terms_ > 1) next_ = std::max(next_, kNextTerm * kNextTerm * std::abs(fit[terms_ - 2]));
    variance_.array() +=
        (kNextTerm * next_ * s.inverse.array().pow(static_cast<double>(terms_ + 2))).square();
  }

  [[nodiscard]] VectorXd data() const { return column(bias_, 0); }
  /// (m/n)^power at every width; 0: as if the limit were off by 1.
  [[nodiscard]] VectorXd power(Index power) const {
    return column(s_.inverse.array().pow(static_cast<double>(power)), 0);
  }
  /// Columns: b, c, then L unless it is exact.
  [[nodiscard]] MatrixXd design() const {
    MatrixXd out(rows(), terms_ + (limit_ == Limit::kExact ? 0 : 1));
    for (Index j = 0; j < terms_; ++j) out.col(j) = power(j + 1);
    if (limit_ != Limit::kExact) out.col(terms_) = column(VectorXd::Ones(bias_.size()), 1);
    return out;
  }
  [[nodiscard]] Index terms() const { return terms_; }
  /// Largest next term at the smallest width.
  [[nodiscard]] double next() const { return next_; }

  /// The unknowns, as in the columns of design(), with the next term as one more: 0 +- next().
  [[nodiscard]] std::vector<Estimate> solve() const {
    const MatrixXd known = design();
    const Index more = next_ > 0 ? 1 : 0;
    MatrixXd a = MatrixXd::Zero(known.rows() + more, known.cols() + more);
    VectorXd y = VectorXd::Zero(a.rows());
    a.topLeftCorner(known.rows(), known.cols()) = known;
    y.head(known.rows()) = data();
    if (more > 0) {
      a.col(known.cols()).head(known.rows()) = power(terms_ + 1);
      a(known.rows(), known.cols()) = 1 / next_;
    }
    const MatrixXd inverse = Eigen::CompleteOrthogonalDecomposition<MatrixXd>(a)
                                 .pseudoInverse();  // error^2 = its squared rows
    const VectorXd value = inverse * y;
    std::vector<Estimate> out;
    for (Index j = 0; j < known.cols(); ++j) out.push_back({value[j], inverse.row(j).norm()});
    return out;
  }

 private:
  [[nodiscard]] Index rows() const { return bias_.size() + (limit_ == Limit::kDatum ? 1 : 0); }
  [[nodiscard]] VectorXd column(const VectorXd& per_width, double for_limit) const {
    VectorXd out(rows());
    out.head(bias_.size()) = per_width.array() / variance_.array().sqrt();
    if (limit_ == Limit::kDatum) out[bias_.size()] = for_limit / limit_error_;
    return out;
  }

  const Summary& s_;
  const VectorXd& bias_;
  VectorXd variance_;
  double limit_error_;
  Limit limit_;
  Index terms_;
  double next_ = 0;
};

/// A limit far more exact than the samples counts as exact: as a row of the fit it would hide the
/// other rows in rounding.
MeanEquations::Limit kind_of_limit(const VectorXd& variance, double limit_error) {
  return limit_error > 1e-6 * std::sqrt(variance.minCoeff()) ? MeanEquations::Limit::kDatum
                                                             : MeanEquations::Limit::kExact;
}

/// Does mean(n) - limit = (0 +- limit_error) + b/n + c/n^2 fit one entry?  limit_error is taken as
/// exact. `bias` is mean - limit, `variance` that of the mean, per width.
MeanTest fit_mean(const Summary& s, const VectorXd& bias, const VectorXd& variance,
                  double limit_error) {
  const MeanEquations equations(s, bias, variance, limit_error,
                                kind_of_limit(variance, limit_error));
  const Index widths = bias.size(), terms = equations.terms();
  const double next = equations.next();
  const MatrixXd design = equations.design();
  MatrixXd columns(design.rows(), 3);
  columns << equations.data(), equations.power(terms + 1), equations.power(0);
  const MatrixXd left = design.cols() > 0 ? residual(design, columns) : columns;
  // What is left of the samples; of the next term, within its bounds; of a shift of the limit by 1.
  const auto misfit = [&](const VectorXd& data, const VectorXd& next_term) {
    const double squared = next_term.squaredNorm();
    const double size = squared > 0 ? std::clamp(data.dot(next_term) / squared, -next, next) : 0;
    return (data - size * next_term).squaredNorm();
  };
  const VectorXd shift = left.col(2);
  const double chi2 = misfit(left.col(0), left.col(1));
  const double shift_squared = shift.squaredNorm();
  const auto beside_shift = [&](const VectorXd& v) -> VectorXd {
    return v - shift * (shift.dot(v) / shift_squared);
  };
  const double shift_chi2 =
      shift_squared > 0 ? chi2 - misfit(beside_shift(left.col(0)), beside_shift(left.col(1))) : 0;
  // A shift can hide behind the next term as well: taken as a number of standard deviation `next`
  // here.
  const double overlap = shift.dot(left.col(1)) * next;
  const double resolved = std::sqrt(std::max(
      0.0, shift_squared - overlap * overlap / (1 + next * next * left.col(1).squaredNorm())));

  const auto tail = [&](double squared, double tested) {
    const boost::math::fisher_f_distribution<double> reference(tested, s.dof);
    return boost::math::cdf(
        boost::math::complement(reference, std::clamp(squared / tested, 0.0, 1e100)));
  };
  // A wrong limit is looked for on its own as well: in one direction the test is sharper than in
  // all of them.
  const auto tested = static_cast<double>(widths - terms);
  const double p = tested > 1 ? std::min(1.0, 2 * std::min(tail(chi2, tested), tail(shift_chi2, 1)))
                              : tail(chi2, 1);
  return {p, resolved > 0 ? 1 / resolved : kInfinity};
}

/// The same where limit_error is itself an estimate with `limit_dof` degrees of freedom: with
/// probability 1 - alpha the true one is at most `largest`, so alpha + p(largest) is a p-value for
/// every alpha.  (Satterthwaite's approximation is too liberal in the far tails that many entries
/// need: 9 % wrong verdicts for 30 entries and 3 degrees of freedom.)
MeanTest test_mean(const Summary& s, const VectorXd& bias, const VectorXd& variance,
                   double limit_error, double limit_dof) {
  MeanTest test = fit_mean(s, bias, variance, limit_error);
  if (limit_error == 0 || std::isinf(limit_dof)) return test;
  const boost::math::chi_squared_distribution<double> chi_squared(limit_dof);
  test.p_value = 1;
  for (double alpha = 0.1; alpha > 1e-12; alpha /= 10) {
    const double largest =
        limit_error * std::sqrt(limit_dof / boost::math::quantile(chi_squared, alpha));
    const double p = fit_mean(s, bias, variance, largest).p_value;
    test.p_value = std::min(test.p_value, alpha + p);
    if (p >= alpha) break;  // smaller alpha only makes p larger
  }
  return test;
}

/// Covariance of what the widths show: independent errors, and one that they share.
struct Covariance {
  VectorXd variance, shared;  ///< diag(variance) + shared shared'

  /// u' C^-1 v, by Sherman and Morrison.  Cost: O(widths).
  [[nodiscard]] double inner(const VectorXd& u, const VectorXd& v) const {
    const VectorXd scaled = shared.cwiseQuotient(variance);
    return u.dot(v.cwiseQuotient(variance)) -
           u.dot(scaled) * scaled.dot(v) / (1 + shared.dot(scaled));
  }
};

/// How one entry approaches its limit; `variance` is that of the mean.
Corrections fit_corrections(const Summary& s, const std::vector<WidthSamples>& samples, Index entry,
                            double limit, const VectorXd& bias, const VectorXd& variance,
                            double limit_error) {
  Corrections out;
  const std::vector<Estimate> given =
      MeanEquations(s, bias, variance, limit_error, kind_of_limit(variance, limit_error)).solve();
  const std::vector<Estimate> alone =
      MeanEquations(s, bias, variance, 0, MeanEquations::Limit::kUnknown).solve();
  const double smallest = s.width[s.smallest];
  out.limit = {limit + alone.back().value, alone.back().error};
  out.slope = {smallest * given[0].value, smallest * given[0].error};

  // n s^2 = v (1 + e m/n), e = 0 +- kBend.  Errors of s^2 in units of v: what one width shows alone
  // is too uncertain, and smaller where s^2 is smaller by chance, so they are common, but for the
  // number of seeds.
  const VectorXd dof = s.seeds.array() - 1;
  const double pooled = s.scaled_variance[entry];
  out.variance.value = pooled;
  if (!(pooled > 0)) return out;
  double jackknife = 0;
  for (Index k = 0; k < s.width.size(); ++k) {
    if (s.seeds[k] < 3) continue;
    const VectorXd values = samples[static_cast<std::size_t>(k)].values.col(entry);
    const Eigen::ArrayXd squares = (values.array() - values.mean()).square() * (s.fall[k] / pooled);
    const Eigen::ArrayXd without = (squares.sum() - squares * s.seeds[k] / dof[k]) / (dof[k] - 1);
    jackknife += (without - without.mean()).square().sum() * dof[k] / s.seeds[k] * dof[k] /
                 static_cast<double>(s.width.size());
  }
  const double of_one = std::max(2.0, jackknife);  // variance of s^2 / v, times S - 1
  const Covariance covariance{of_one / dof.array(), kBend * s.inverse};
  const VectorXd one = VectorXd::Ones(dof.size());
  const VectorXd ratio = s.variance.col(entry).array() * s.fall.array() / pooled;
  const double weight = covariance.inner(one, one);
  out.variance.value = pooled * covariance.inner(one, ratio) / weight;
  out.variance.error = pooled / std::sqrt(weight);
  return out;
}

// ---- spread
// ----------------------------------------------------------------------------------------

/// Straight line through (log n, y) by generalised least squares; the error grows with the misfit.
SlopeFit fit_slope(const VectorXd& log_width, const VectorXd& y, const Covariance& covariance) {
  const Index points = y.size();
  // Widths from their weighted mean: then level and slope are independent.
  const VectorXd one = VectorXd::Ones(points);
  const double weight = covariance.inner(one, one);
  const VectorXd x = log_width.array() - covariance.inner(one, log_width) / weight;
  const double precision = covariance.inner(x, x), slope = covariance.inner(x, y) / precision;
  const VectorXd rest = y - (covariance.inner(one, y) / weight) * one - slope * x;
  const double misfit =
      points > 2 ? covariance.inner(rest, rest) / static_cast<double>(points - 2) : 1;
  return {slope, std::sqrt(std::max(1.0, misfit) / precision)};
}

std::optional<SlopeFit> fit_spread(const Summary& s, const std::vector<WidthSamples>& samples) {
  // Entries that still move by more than rounding at the largest width.
  std::vector<Index> moving;
  for (Index e = 0; e < s.scaled_variance.size(); ++e) {
    if (std::sqrt(s.scaled_variance[e] / s.fall[s.largest]) > 4 * s.rounding) moving.push_back(e);
  }
  if (moving.empty() || s.width.size() < 2) return std::nullopt;
  const auto entries = static_cast<Index>(moving.size());
  const VectorXd unit = s.scaled_variance(moving).cwiseSqrt().cwiseInverse();

  // Deviations from the mean of their width, in units in which each entry has variance 1/n on
  // average.
  std::vector<MatrixXd> deviations;
  MatrixXd all(static_cast<Index>(s.seeds.sum()), entries);
  Index row = 0;
  for (const WidthSamples& sample : samples) {
    MatrixXd d = sample.values(Eigen::all, moving);
    d = (d.rowwise() - Eigen::RowVectorXd(d.colwise().mean())).eval() * unit.asDiagonal();
    all.middleRows(row, d.rows()) = d * std::sqrt(s.fall[static_cast<Index>(deviations.size())]);
    row += d.rows();
    deviations.push_back(std::move(d));
  }

  // Effective number of independent entries, tr(C)^2 / tr(C^2) of their covariance C: for normal
  // samples the pooled variance has relative variance 2 / (dof * that).  Few seeds make the sample
  // value too small, which errs on the safe side.
  const MatrixXd gram =
      all.rows() < all.cols() ? MatrixXd(all * all.transpose()) : MatrixXd(all.transpose() * all);
  const double independent = std::max(1.0, gram.trace() * gram.trace() / gram.squaredNorm());

  std::vector<Index> used;
  VectorXd y(s.width.size()), own(s.width.size()), chi_square(s.width.size());
  for (Index k = 0; k < s.width.size(); ++k) {
    const VectorXd contribution = deviations[static_cast<std::size_t>(k)].rowwise().squaredNorm() /
                                  static_cast<double>(entries);
    const double dof = s.seeds[k] - 1;
    const double pooled = contribution.sum() / dof;
    if (!(pooled > 0)) continue;  // all seeds equal: nothing to take a logarithm of
    used.push_back(k);
    const double half = dof * independent / 2;
    y[k] = 0.5 * (std::log(pooled) - boost::math::digamma(half) + std::log(half));
    chi_square[k] = 0.25 * boost::math::trigamma(half);
    own[k] = 0;
    if (s.seeds[k] > 2) {
      // Without seed i the sum of squares loses S/(S-1) d_i^2.  The floor keeps the logarithm
      // finite when one seed is all there is.
      const Eigen::ArrayXd without =
          (pooled * dof - contribution.array() * s.seeds[k] / dof).max(1e-3 * pooled * dof) /
          (dof - 1);
      const Eigen::ArrayXd logs = 0.5 * without.log();
      own[k] = (logs - logs.mean()).square().sum() * dof / s.seeds[k];
    }
  }
  const auto points = static_cast<Index>(used.size());
  if (points < 2) return std::nullopt;

  const VectorXd dof = s.seeds(used).array() - 1;
  const double typical = (own(used).array() * dof.array()).mean();
  const VectorXd variance =
      (typical / dof.array()).max(own(used).array()).max(chi_square(used).array());
  return fit_slope(s.width(used).array().log(), y(used), {variance, kCurvature * s.inverse(used)});
}

/// Slope of |mean - limit|, pooled over entries, where it stands out of the noise at two widths or
/// more.
std::optional<SlopeFit> fit_bias(const Summary& s, const VectorXd& limit,
                                 const VectorXd& limit_error, const MatrixXd& mean_variance,
                                 const std::vector<Index>& differing) {
  std::vector<double> log_width, y, variance;
  for (Index k = 0; k < s.width.size(); ++k) {
    double squared = 0, error = 0;
    for (const Index e : differing) {
      const auto bias_squared = [&](Index width) {
        return (s.mean(width, e) - limit[e]) * (s.mean(width, e) - limit[e]);
      };
      const auto noise = [&](Index width) {
        return mean_variance(width, e) + limit_error[e] * limit_error[e];
      };
      const double weight = 1 / (bias_squared(s.smallest) +
                                 noise(s.smallest));  // else one large entry would decide alone
      const double bias2 = std::max(0.0, bias_squared(k) - noise(k));
      squared += weight * (bias_squared(k) - noise(k));
      // Var (b + x)^2 = 4 b^2 v + 2 v^2; entries as if fully correlated.
      error += weight * std::sqrt(4 * bias2 * noise(k) + 2 * noise(k) * noise(k));
    }
    if (!(squared > 3 * error)) continue;
    log_width.push_back(std::log(s.width[k]));
    y.push_back(0.5 * std::log(squared));
    variance.push_back(0.25 * error * error / (squared * squared) +
                       1e-24);  // + : exact samples have an exact slope
  }
  if (y.size() < 2) return std::nullopt;
  const auto points = static_cast<Index>(y.size());
  const auto vector = [&](const std::vector<double>& v) {
    return Eigen::Map<const VectorXd>(v.data(), points);
  };
  return fit_slope(vector(log_width), vector(y), {vector(variance), VectorXd::Zero(points)});
}

// ---- verdict
// ---------------------------------------------------------------------------------------

double largest_number(const VectorXd& limit, const std::vector<WidthSamples>& samples) {
  double largest = limit.size() > 0 ? limit.cwiseAbs().maxCoeff() : 0;
  for (const WidthSamples& sample : samples) {
    if (sample.values.size() > 0) largest = std::max(largest, sample.values.cwiseAbs().maxCoeff());
  }
  return largest;
}

std::string slope_text(const std::optional<SlopeFit>& fit, std::string_view what = "sd") {
  return fit ? fmt::format("{} slope {:.2f} +- {:.2f}", what, fit->slope, fit->error)
             : fmt::format("no {} slope", what);
}

/// What the entries of a report say together.
struct Evidence {
  std::vector<Index> differing;  ///< entries that are not equal to the limit to rounding
  Index worst = 0;               ///< of these, with the smallest p
  MatrixXd mean_variance;        ///< width x entry
  double noise2 = 0, size2 = 0;  ///< sums of squares over them: resolution of the means, limits
};

/// Tests the mean of every entry.
Evidence test_entries(const Summary& s, const VectorXd& limit, const VectorXd& limit_error,
                      const std::vector<WidthSamples>& samples, double limit_dof,
                      std::vector<EntryConvergence>& entries) {
  const Index widths = s.width.size();
  Evidence out;
  out.mean_variance.resize(widths, limit.size());
  for (Index e = 0; e < limit.size(); ++e) {
    const VectorXd bias = s.mean.col(e).array() - limit[e];
    // Equal to the limit, seed by seed: |value - limit| <= sqrt(S) rms.
    const bool equal = (s.rms.col(e).array() * s.seeds.array().sqrt()).maxCoeff() <= s.rounding;
    out.mean_variance.col(e) =
        s.variance.col(e).array().max(s.scaled_variance[e] / s.fall.array()) / s.seeds.array() +
        s.rounding * s.rounding;
    MeanTest test{1, 0};
    std::optional<Corrections> corrections;
    if (widths > 1)
      corrections = equal ? Corrections{{limit[e], 0}, {}, {}}
                          : fit_corrections(s, samples, e, limit[e], bias, out.mean_variance.col(e),
                                            limit_error[e]);
    if (!equal) {
      test = test_mean(s, bias, out.mean_variance.col(e), limit_error[e], limit_dof);
      if (out.differing.empty() ||
          test.p_value < entries[static_cast<std::size_t>(out.worst)].p_value)
        out.worst = e;
      out.differing.push_back(e);
      out.noise2 += test.resolution * test.resolution;
      out.size2 += limit[e] * limit[e];
    }
    const VectorXd sd = s.variance.col(e).cwiseSqrt();
    entries.push_back({limit[e], limit_error[e], s.mean.col(e), sd.array() / s.seeds.array().sqrt(),
                       sd, s.rms.col(e), test.p_value, test.resolution, corrections});
  }
  return out;
}

/// Verdict and reason, from the p value of the means, the slope of the spread, and how much either
/// could have shown.
void decide(Convergence& result, const Summary& s, const Evidence& found, double spread,
            double unit) {
  const Index widths = s.width.size();
  const EntryConvergence& entry = result.entries[static_cast<std::size_t>(found.worst)];
  const std::string slope = slope_text(result.sd_slope);
  const auto off = [&](std::string_view what) {
    return fmt::format(
        "{} (p = {:.2g}; entry {}: {:.6g} +- {:.2g} at width {:.0f}, limit {:.6g} +- {:.2g})", what,
        result.p_value, found.worst, unit * entry.mean[s.largest],
        unit * entry.mean_error[s.largest], s.width[s.largest], unit * entry.limit,
        unit * entry.limit_error);
  };
  // Networks that stay random (spread: grow) must be excluded, not only allowed for.
  const double other = spread + 0.5;
  const bool moving = s.scaled_variance(found.differing).array().sqrt().maxCoeff() > 4 * s.rounding;
  const bool told_apart =
      result.sd_slope && result.sd_slope->slope + kApart * result.sd_slope->error < other;
  // One width: sd / |limit| is n^-1/2 or 1; between them lies n^-1/4.
  const double sd2 = s.variance.row(s.largest)(found.differing).sum();
  const bool small =
      widths > 1 || spread == 0 || sd2 * std::sqrt(s.width[s.largest]) <= found.size2;
  double limit_error2 = 0;
  for (const Index e : found.differing)
    limit_error2 += std::pow(result.entries[static_cast<std::size_t>(e)].limit_error, 2);
  const bool falls_too_slowly =
      result.sd_slope && result.sd_slope->slope > spread + kErrors * result.sd_slope->error;
  const bool mean_has_power = found.noise2 <= found.size2 / 4 && small;
  const bool mean_alone = mean_has_power && (widths == 1 || result.p_value > kDoubtfulP);
  const auto say = [&](Verdict verdict, std::string reason) {
    result.verdict = verdict;
    result.reason = std::move(reason);
  };
  if (result.p_value <= kSmallestP && widths == 1) {
    say(Verdict::kInconclusive,
        off("mean is off, and one width cannot tell a finite-width correction from a wrong limit"));
  } else if (result.p_value <= kSmallestP) {
    say(Verdict::kDisagrees, off("mean does not tend to the limit") + ", " + slope);
  } else if (falls_too_slowly && spread == -0.5 && sd2 <= 16 * limit_error2) {
    // What the limit computation could not resolve, a sample next to the boundary of an accuracy,
    // networks of these widths need not have resolved either.
    say(Verdict::kInconclusive,
        fmt::format("mean fits (p = {:.2g}), but {}, and the limit is known no better than single "
                    "networks spread; take larger widths and more particles",
                    result.p_value, slope));
  } else if (falls_too_slowly) {
    say(Verdict::kDisagrees, fmt::format("{}: {}; mean fits (p = {:.2g})",
                                         spread == 0 ? "sd grows" : "sd does not fall like n^-1/2",
                                         slope, result.p_value));
  } else if (spread == 0 && widths > 1 ? told_apart && mean_alone
                                       : told_apart || (mean_alone && (widths == 1 || !moving))) {
    // Where networks stay random only their mean tests the limit.
    const bool faster =
        result.sd_slope && result.sd_slope->slope < spread - kErrors * result.sd_slope->error;
    say(Verdict::kAgrees,
        widths == 1
            ? fmt::format("mean is within its error of the limit (p = {:.2g}); one width: rates "
                          "not tested",
                          result.p_value)
            : fmt::format("mean fits (p = {:.2g}), {}{}", result.p_value, slope,
                          !faster       ? ""
                          : spread == 0 ? ", falling"
                                        : ", faster than n^-1/2"));
  } else if (mean_has_power && !mean_alone) {
    say(Verdict::kInconclusive,
        off("mean is doubtful") + ", " + slope + "; take more seeds or larger widths");
  } else if (mean_has_power) {
    say(Verdict::kInconclusive,
        fmt::format("mean fits (p = {:.2g}), but {}; take more seeds or widths further apart",
                    result.p_value,
                    !result.sd_slope ? "how the sd falls cannot be seen"
                                     : slope + " cannot be told from " +
                                           (spread == 0 ? "1/2, sd that grows"
                                                        : "0, networks that stay random")));
  } else {
    say(Verdict::kInconclusive,
        fmt::format("noise hides it: limit tested to +- {:.2g} only, {}; take more seeds or larger "
                    "widths",
                    unit * std::sqrt(found.noise2 / static_cast<double>(found.differing.size())),
                    slope));
  }
}

/// The numbers are in units of `unit`, which messages undo.
Convergence assess(const VectorXd& limit, const VectorXd& limit_error,
                   const std::vector<WidthSamples>& samples, double limit_dof, double spread,
                   double unit) {
  Convergence result;
  if (limit.size() == 0) {
    result.reason = "the report has no entries";
    return result;
  }
  const Summary s = summarise(limit, samples, largest_number(limit, samples), spread);
  const Evidence found = test_entries(s, limit, limit_error, samples, limit_dof, result.entries);
  if (found.differing.empty()) {
    result.verdict = Verdict::kAgrees;
    result.reason = "equal to the limit to rounding at every width";
    return result;
  }
  // Bonferroni: the worst of so many entries.
  result.p_value = std::min(1.0, result.entries[static_cast<std::size_t>(found.worst)].p_value *
                                     static_cast<double>(found.differing.size()));
  result.sd_slope = fit_spread(s, samples);
  result.bias_slope = fit_bias(s, limit, limit_error, found.mean_variance, found.differing);
  decide(result, s, found, spread, unit);
  return result;
}

/// Slope of the root mean square over seeds and entries of what tends to 0.
std::optional<SlopeFit> fit_rms(const Summary& s, const std::vector<WidthSamples>& samples) {
  std::vector<Index> used;
  VectorXd y(s.width.size()), variance(s.width.size());
  double typical = 0;
  for (Index k = 0; k < s.width.size(); ++k) {
    const VectorXd square =
        samples[static_cast<std::size_t>(k)].values.rowwise().squaredNorm();  // of each seed
    const double sum = square.sum();
    if (!(std::sqrt(sum) > s.rounding))
      continue;  // exactly 0 at this width: nothing to take a logarithm of
    used.push_back(k);
    y[k] = 0.5 * std::log(sum / s.seeds[k]);
    // Seeds differ by (m + x)^2, x ~ N(0, v): 4 m^2 v + 2 v^2; entries as if fully correlated.
    const Eigen::ArrayXd mean2 = s.mean.row(k).array().square(), v = s.variance.row(k).array();
    const double normal = (4 * mean2 * v + 2 * v.square()).sqrt().sum() / (mean2 + v).sum();
    const Eigen::ArrayXd without = 0.5 * (sum - square.array()).max(1e-3 * sum).log();
    const double jackknife =
        (without - without.mean()).square().sum() * (s.seeds[k] - 1) / s.seeds[k];
    variance[k] = std::max(0.25 * normal * normal / s.seeds[k], jackknife);
    typical += variance[k] * s.seeds[k];
  }
  const auto points = static_cast<Index>(used.size());
  if (points < 2) return std::nullopt;
  typical /= static_cast<double>(points);
  const VectorXd own = variance(used).array().max(typical / s.seeds(used).array()) + 1e-24;
  // The next power may be n^-1/4 smaller only.
  const VectorXd curvature = kCurvature * s.inverse(used).array().sqrt().sqrt();
  return fit_slope(s.width(used).array().log(), y(used), {own, curvature});
}

}  // namespace

Convergence assess_vanishing(const std::vector<WidthSamples>& samples, double order) {
  const Index entries = samples.empty() ? 0 : samples[0].values.cols();
  const VectorXd zero = VectorXd::Zero(entries);
  Convergence result = assess_convergence(zero, zero, samples, kInfinity);
  if (entries == 0 || samples.size() < 2) return result;
  const Summary s = summarise(zero, samples, 0, 0);
  if (s.rms.maxCoeff() <= s.rounding) return result;
  result.verdict = Verdict::kInconclusive;
  result.p_value = 1;  // the mean need not go like 1/n
  result.rms_slope = fit_rms(s, samples);
  const auto& fit = result.rms_slope;
  const std::string counted =
      fmt::format("limit 0, counted n^{:.4g}, {}", order, slope_text(fit, "rms"));
  result.reason = counted;
  if (!fit) return result;
  if (fit->slope > order + kErrors * fit->error) {
    result.verdict = Verdict::kDisagrees;
    result.reason += ": does not vanish like that";
  } else if (fit->slope + kApart * fit->error < 0) {
    result.verdict = Verdict::kAgrees;
    if (fit->slope < order - kErrors * fit->error) result.reason += ", faster";
  } else {
    result.reason += " cannot be told from 0; take more seeds or widths further apart";
  }
  return result;
}

Convergence assess_convergence(const VectorXd& limit, const VectorXd& limit_error,
                               const std::vector<WidthSamples>& samples, double limit_dof,
                               double spread) {
  check_input(limit, limit_error, samples, limit_dof);
  constexpr double kSquaresOverflow =
      1e100;  // far from it, but where networks of any use have stopped
  const double unit =
      std::max(largest_number(limit, samples), limit_error.size() > 0 ? limit_error.maxCoeff() : 0);
  if (unit < kSquaresOverflow) return assess(limit, limit_error, samples, limit_dof, spread, 1);
  std::vector<WidthSamples> scaled = samples;
  for (WidthSamples& sample : scaled) sample.values /= unit;
  Convergence result = assess(limit / unit, limit_error / unit, scaled, limit_dof, spread, unit);
  for (EntryConvergence& entry : result.entries) {
    for (double* number : {&entry.limit, &entry.limit_error, &entry.resolution}) *number *= unit;
    if (auto& c = entry.corrections) {
      for (double* number : {&c->limit.value, &c->limit.error, &c->slope.value, &c->slope.error})
        *number *= unit;
      for (double* number : {&c->variance.value, &c->variance.error}) *number *= unit * unit;
    }
    for (VectorXd* numbers : {&entry.mean, &entry.mean_error, &entry.sd, &entry.rms})
      *numbers *= unit;
  }
  return result;
}

Verdict overall(const std::vector<Verdict>& verdicts) {
  const auto any = [&](Verdict v) {
    return std::find(verdicts.begin(), verdicts.end(), v) != verdicts.end();
  };
  if (any(Verdict::kDisagrees)) return Verdict::kDisagrees;
  return any(Verdict::kAgrees) ? Verdict::kAgrees : Verdict::kInconclusive;
}

}  // namespace tplimit
