#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "tplimit/math/dual_kernels.hpp"

/// Expectations of arbitrary functions of a few Gaussians by quadrature.
namespace tplimit {

/// Calls body(i) for i in 0..count, in any order and on any threads; returns when all are done.
using ParallelFor =
    std::function<void(std::int64_t count, const std::function<void(std::int64_t)>& body)>;

/// The ParallelFor of one thread.
void serial_for(std::int64_t count, const std::function<void(std::int64_t)>& body);

/// values[i + o count] = f_o(point i), for count points; points is count x dim, column-major, in
/// the original coordinates x.
using Integrand = std::function<void(std::int64_t count, const double* points, double* values)>;

/// { x : normal . x = offset }, in original coordinates; normal has dim entries.
struct Hyperplane {
  std::vector<double> normal;
  double offset = 0;
};

enum class QuadratureStatus {
  kConverged,
  kNotConverged,    ///< the limit on evaluations was reached first; values and errors are what was
                    ///< found
  kRankTooLarge,    ///< the covariance has numerical rank above 3; no values
  kNotACovariance,  ///< not symmetric, not positive semidefinite, or not finite; no values
  kNotFinite,       ///< the integrand was infinite or not a number where the weight counts, or the
                    ///< integral diverges
};

/// x = L z with independent standard normals z.
struct Whitened {
  QuadratureStatus status = QuadratureStatus::kConverged;
  std::int64_t dim = 0;
  int rank = 0;
  std::vector<double> L;  ///< dim x rank, column-major
  double operator()(std::int64_t i, int k) const {
    return L[static_cast<std::size_t>(i + k * dim)];
  }
};

inline constexpr int kMostDimensions = 3;  ///< of integrals of any function

/// Pivoted Cholesky factorisation of the correlations, rows scaled back to the covariances (dim x
/// dim, column-major).  kRankTooLarge beyond largest_rank: L is not complete then.
[[nodiscard]] Whitened whiten(std::span<const double> covariance,
                              int largest_rank = kMostDimensions);

struct QuadratureOptions {
  double tolerance = 1e-12;                    ///< of each output's error, relative to E|f|
  std::int64_t max_evaluations = 200'000'000;  ///< points at which the integrand is evaluated
  double largest_step =
      0.25;  ///< at which two levels of a trapezoid rule may end it: what resolves the integrand
};

struct QuadratureResult {
  QuadratureStatus status = QuadratureStatus::kConverged;
  std::vector<double> values;  ///< E f_o(x), one per output
  std::vector<double> errors;  ///< estimated absolute errors (difference of two levels, and the
                               ///< truncated tail), one per output
  std::int64_t evaluations = 0;
  int rank = 0;  ///< numerical rank of the covariance
  [[nodiscard]] bool converged() const { return status == QuadratureStatus::kConverged; }
};

/// E f_o(x), x ~ N(0, covariance), for smooth f and covariances of rank at most 3 (rank 0: f(0)).
/// Tensor trapezoid rule in whitened coordinates within a ball, h = 1, 1/2, 1/4, .. until two
/// levels agree, the finer one with largest_step or less; points of the coarser level are reused.
/// Converges geometrically for f analytic in a strip; with kinks use kinked_expectation. Shapes:
/// covariance is dim x dim, column-major; dim = sqrt(size).  The integrand is called with up to
/// 4096 points, by one
///   thread at a time.
/// Errors: InternalError if covariance is not square or outputs < 1; see QuadratureStatus for the
/// rest. Cost: about (20/h)^rank evaluations.
[[nodiscard]] QuadratureResult smooth_expectation(std::span<const double> covariance,
                                                  const Integrand& f, int outputs,
                                                  const QuadratureOptions& options = {});

/// The same for f that is smooth away from `kinks` (relu(h_1): normal e_1, offset 0; clip to [-1,
/// 1]: offsets -1 and 1), where it may have jumps or kinks.  The whitened coordinates are
/// integrated one inside the other; each interval is cut where it meets a hyperplane, outer ones
/// also where hyperplanes meet each other, and every piece by Gauss-Kronrod rules, halved until
/// they agree. Hyperplanes may coincide, be parallel, or be constant on the support (these do not
/// matter). Shapes, errors: as smooth_expectation; InternalError if a normal has not dim entries.
/// Cost: about 150^rank evaluations per few kinks.
[[nodiscard]] QuadratureResult kinked_expectation(std::span<const double> covariance,
                                                  const Integrand& f, int outputs,
                                                  std::span<const Hyperplane> kinks,
                                                  const QuadratureOptions& options = {});

/// values[i + o count] = f_o(x[i]) for o in 0..functions: several functions of one number,
/// evaluated together. Called from several threads at once if the ParallelFor has them.
using UnaryFunctions = std::function<void(std::int64_t count, const double* x, double* values)>;

/// Covariances of u_i with v_j for all pairs: rows x columns, column-major.
struct GramInput {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  const double* covariance = nullptr;  ///< entry (i, j) at i + j * leading
  std::int64_t leading = 0;
  std::span<const double> row_variances;     ///< Var u_i
  std::span<const double> column_variances;  ///< Var v_j
  bool symmetric = false;  ///< u = v and f = g: only the lower triangle is read, both are written
  /// f(sqrt(a) z) and g(sqrt(b) z) are polynomials of degree 31, nearly, on all intervals of twice
  /// this length.  Two levels of a trapezoid rule cannot tell that alone: both may sample an
  /// oscillation in phase.
  double resolution = 1;
};

/// For functions with kinks or narrow features: nodes z and weights w for integrals of
/// f(sqrt(variance) z) phi(z) times polynomials of degree below `order`, and single entries.
struct GramRules {
  std::function<void(bool column, double variance, std::int64_t order, std::vector<double>& z,
                     std::vector<double>& w)>
      nodes;
  /// The value of entry (i, j), and an absolute error.
  std::function<std::pair<double, double>(std::int64_t i, std::int64_t j, double correlation)>
      entry;
};

struct GramOptions {
  double tolerance = 1e-13;  ///< of the absolute error, relative to sqrt(E f(u_i)^2 E g(v_j)^2)
  /// Evaluations of all functions at one point that single entries may take in total; the fast path
  /// needs only a few per row.
  std::int64_t max_evaluations = 20'000'000'000;
  const GramRules* rules = nullptr;  ///< one function then
};

struct GramResult {
  MomentStatus status;       ///< bad_index counts entries i + j rows
  double largest_scale = 0;  ///< largest sqrt(E f(u_i)^2 E g(v_j)^2)
  double largest_error = 0;  ///< largest estimated error, relative as the tolerance is
  bool converged = true;     ///< every entry met the tolerance
  std::int64_t evaluations = 0;
  std::int64_t single_entries =
      0;  ///< entries that the expansion could not do and that were integrated one by one
};

/// values[i + j rows + o rows columns] = E f_o(u_i) g_o(v_j) for (u_i, v_j) ~ N(0, [[a_i, c_ij],
/// [c_ij, b_j]]), smooth f and g. Fast path: with F_l(a) = E f(sqrt(a) x) he_l(x), he_l the
/// orthonormal Hermite polynomials, the value is
///   sum_l F_l(a_i) G_l(b_j) rho_ij^l (Mehler), the coefficients from one trapezoid rule per row;
///   the tail is bounded by |rho|^L times what Parseval's identity leaves of E f^2 and E g^2.
///   Entries for which the bound stays above the tolerance go one by one through the
///   two-dimensional trapezoid rule, its step halved until two levels agree.
/// g: empty for g = f.  functions: number of outputs o of f and of g.  Shapes: values has rows x
/// columns x functions entries. Returns: entries that are no covariance become NaN and are reported
/// in status.  Equal for any ParallelFor. Errors: InternalError if sizes do not fit. Cost:
/// coefficients O((rows + columns) N L), entries O(rows columns L), N and L a few hundred to a few
/// thousand, growing like the
///   inverse and the inverse square of the distance of the functions' singularities in units of a
///   standard deviation.
[[nodiscard]] GramResult gram_quadrature(const GramInput& input, const UnaryFunctions& f,
                                         const UnaryFunctions& g, int functions,
                                         std::span<double> values,
                                         const ParallelFor& parallel_for = serial_for,
                                         const GramOptions& options = {});

}  // namespace tplimit
