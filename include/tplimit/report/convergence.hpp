#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <Eigen/Core>

/// Is a limit prediction borne out by finite networks?  Pure statistics: knows no program.
namespace tplimit {

/// One report (all its entries, flattened) at one width, several seeds.
struct WidthSamples {
  double width;
  Eigen::MatrixXd values;  ///< seeds x entries
};

/// y = coefficient * n^slope fitted to log y; `error` is one standard error of the slope.
/// Numbers that differ by this part of themselves are equal to rounding.
inline constexpr double kRounding = 64 * std::numeric_limits<double>::epsilon();

struct SlopeFit {
  double slope;
  double error;
};

/// A number and one standard error.
struct Estimate {
  double value = 0, error = 0;
};

/// How one entry approaches its limit: mean(n) = limit + slope/n + O(1/n^2), n var(n) = variance +
/// O(1/n) (var(n) where the limit is random).
struct Corrections {
  Estimate limit;     ///< extrapolated from the widths alone
  Estimate slope;     ///< of the mean in 1/n, given the widths and the limit with its error
  Estimate variance;  ///< over networks, times n
};

struct EntryConvergence {
  double limit, limit_error;
  Eigen::VectorXd mean, mean_error, sd,
      rms;  ///< one per width, in the order given; mean_error is sd / sqrt(seeds),
            ///< rms the root mean square of (value - limit)
  double
      p_value;  ///< of mean(n) = limit + b/n + c/n^2; 1 for entries equal to the limit to rounding
  double resolution;  ///< standard error of (limit - the limit that the widths alone extrapolate
                      ///< to); 0 for entries equal to the limit to rounding
  std::optional<Corrections> corrections{};  ///< absent for one width
};

enum class Verdict { kAgrees, kInconclusive, kDisagrees };

struct Convergence {
  std::vector<EntryConvergence> entries;
  std::optional<SlopeFit> sd_slope;  ///< of the seed standard deviation; expected -1/2; absent for
                                     ///< one width, and when the seeds differ by rounding only
  std::optional<SlopeFit>
      bias_slope;  ///< of |mean - limit|; expected -1; absent when noise hides the bias
  std::optional<SlopeFit>
      rms_slope;  ///< of assess_vanishing: of the root mean square over seeds and entries
  double p_value =
      1;  ///< smallest entry p-value times the number of entries not equal to the limit, at most 1
  Verdict verdict = Verdict::kInconclusive;
  std::string reason;  ///< one line: why this verdict
};

/// Compares finite-width samples with a limit and its standard error; docs/compare.md has the
/// reasons and the rates of wrong verdicts.
///
/// Needs: limit and limit_error of one size, the columns of all values; errors >= 0; all numbers
/// finite; widths positive and different, in any order; at least 2 seeds each.  Samples of
/// different seeds and widths are taken as independent, entries of one sample are not. `limit_dof`:
/// degrees of freedom behind limit_error (randomisations less one); infinite if the error is exact.
/// `spread`: the power of n that the standard deviation over seeds should follow, -1/2, or 0 where
/// the limit itself is random and `limit` is its mean; read n^spread for n^-1/2 below.
///
/// - Equal: an entry whose values all lie within 64 eps max(1, largest number of the report) of the
/// limit agrees and
///   takes no further part.
/// - Mean: weighted least squares of mean(n) = L + b/n + c/n^2 to the means of all widths and to
/// the limit as one more
///   datum, L = limit +- limit_error; two widths: without c, one width: without b and c.  A next
///   term is allowed, at the smallest width up to a quarter of c's (two widths: up to b's).
///   Variance of a mean: the larger of the sample's own and of the one all widths together give
///   under sd ~ n^-1/2.  p from F with the pooled degrees of freedom, for any misfit and for a
///   shifted limit: twice the smaller.  Report: Bonferroni over entries.
/// - Spread: generalised least squares of log sd against log n.  Variances are pooled over entries,
/// each in units of
///   its own mean n sd^2.  Error of log sd: the largest of jackknife over seeds (per width, and its
///   mean over widths) and chi-square with the effective number of independent entries.  A
///   correction 1 + d/n of sd is allowed for as an error of 0.12 at the smallest width.  Error of
///   the slope: times sqrt(chi^2/dof) where that exceeds 1.
/// - Corrections: the terms of Mean, the next one taken as 0 +- its bound; `limit` without the
/// limit as a datum.  Variance: weighted by
///   S - 1, with relative errors from the larger of chi-square and jackknife, and the correction of
///   Spread.
/// - Verdict: `disagrees` when p <= 1e-3 or slope > n^spread + 3 errors.  `agrees` when neither,
/// and slope + 2 errors < 0, which excludes
///   networks that stay random (spread 0: < 1/2, sd that grows, and resolution <= |limit| / 2, root
///   mean squares over entries).  Where seeds are equal, resolution alone decides; one width also
///   needs sd <= n^-1/4 |limit|.  Also when all entries are equal.  Else, and when a single width
///   is off (b cannot be fitted), `inconclusive`.
///
/// Errors: InternalError where `Needs` is broken.
/// Cost: O(entries (seeds + widths)) + O(entries (all seeds) min(entries, all seeds)).
Convergence assess_convergence(const Eigen::VectorXd& limit, const Eigen::VectorXd& limit_error,
                               const std::vector<WidthSamples>& samples,
                               double limit_dof = std::numeric_limits<double>::infinity(),
                               double spread = -0.5);

/// The same for a report that vanishes, counted as n^order, order < 0, with corrections that may be
/// n^-1/4 smaller only: does its root mean square over seeds and entries?  `disagrees` when its
/// slope > order + 3 errors; `agrees` when slope + 2 errors < 0; else `inconclusive`.  One width:
/// as above.
Convergence assess_vanishing(const std::vector<WidthSamples>& samples, double order);

/// kDisagrees if any disagrees; else kAgrees if any agrees; else kInconclusive.
Verdict overall(const std::vector<Verdict>& verdicts);

}  // namespace tplimit
