#pragma once

#include <array>
#include <cstddef>
#include <limits>
#include <span>
#include <variant>
#include <vector>

/// Second moments of functions of two Gaussians in closed form, entry by entry over arrays.
/// Everywhere (u, v) ~ N(0, [[a, c], [c, b]]); K = E f(u) f(v) and K' = E f'(u) f'(v), f' the
/// derivative almost everywhere. Thread-safe; results do not depend on how an array is cut into
/// calls.
namespace tplimit {

/// below min(x, 0) + above max(x, 0): relu (0, 1), leaky relu (alpha, 1), abs (-1, 1), identity (1,
/// 1).
struct TwoSlope {
  double below = 0;
  double above = 1;
  double slope_at_zero = 0;  ///< f'(0); matters only where a or b is 0
  friend bool operator==(const TwoSlope&, const TwoSlope&) = default;
};

/// `below` for x < 0, `above` for x > 0, `at_zero` at 0: sign (-1, 1, 0), step (0, 1, 0), the
/// derivative of a TwoSlope.
struct TwoStep {
  double below = 0;
  double above = 1;
  double at_zero = 0;
  friend bool operator==(const TwoStep&, const TwoStep&) = default;
};

/// max(x, 0)^n for n >= 0; n = 0 is 1[x > 0].
struct ReluPower {
  int n = 1;
  friend bool operator==(const ReluPower&, const ReluPower&) = default;
};

/// A erf(B x) + C.
struct ScaledErf {
  double A = 1;
  double B = 1;
  double C = 0;
  friend bool operator==(const ScaledErf&, const ScaledErf&) = default;
};

/// A exp(-B x^2).  B < 0 is allowed where the moments exist (1 + 2 B (a + b) + 4 B^2 (ab - c^2) >
/// 0); elsewhere infinite.
struct GaussBell {
  double A = 1;
  double B = 1;
  friend bool operator==(const GaussBell&, const GaussBell&) = default;
};

/// A x Phi(x), Phi the standard normal distribution function.
struct Gelu {
  double A = 1;
  friend bool operator==(const Gelu&, const Gelu&) = default;
};

/// A (Phi(x) + x phi(x)), the derivative of Gelu{A}.
struct GeluDerivative {
  double A = 1;
  friend bool operator==(const GeluDerivative&, const GeluDerivative&) = default;
};

/// A sin(w x + p); the cosine has p = pi/2.
struct Sine {
  double A = 1;
  double w = 1;
  double p = 0;
  friend bool operator==(const Sine&, const Sine&) = default;
};

/// A exp(B x).
struct ScaledExp {
  double A = 1;
  double B = 1;
  friend bool operator==(const ScaledExp&, const ScaledExp&) = default;
};

/// sum_j coefficients[j] x^j, any degree; no coefficients is 0.
struct Polynomial {
  std::vector<double> coefficients;
  friend bool operator==(const Polynomial&, const Polynomial&) = default;
};

using DualFunction = std::variant<TwoSlope, TwoStep, ReluPower, ScaledErf, GaussBell, Gelu,
                                  GeluDerivative, Sine, ScaledExp, Polynomial>;

inline constexpr std::size_t kNoIndex = std::numeric_limits<std::size_t>::max();

/// What the data of a call were like.  Nothing here is an exception: covariances are computed
/// numbers.
struct MomentStatus {
  double largest_excess =
      0;  ///< largest c^2/(ab) - 1 that was above the bound by rounding and was clamped; else 0
  std::size_t bad_index = kNoIndex;   ///< first entry that is no covariance: a or b negative, NaN,
                                      ///< infinite, or c^2 > ab(1 + 1e-10)
  std::array<double, 3> bad_entry{};  ///< its a, b, c (of a mean: the variance, thrice)
  bool overflow =
      false;  ///< some result is infinite or not a number although its entry is a covariance
  [[nodiscard]] bool ok() const { return bad_index == kNoIndex && !overflow; }
  /// Joins the status of a part whose first entry is entry `first` of the whole.
  void merge(const MomentStatus& part, std::size_t first = 0);
};

/// Largest c^2/(ab) - 1 that is taken for rounding and clamped.
inline constexpr double kLargestExcess = 1e-10;

/// K[i] = E f(u) f(v) and K_prime[i] = E f'(u) f'(v) for (u, v) ~ N(0, [[a[i], c[i]], [c[i],
/// b[i]]]). Shapes: c has n entries; a and b have n, or 1, which then stands for all.  K and
/// K_prime have n entries, or none: then they
///   are not computed (both together share the angle, so they cost little more than one).  Either
///   may be the array c itself.
/// Returns: absolute error <= 1e-14 sqrt(K(a,a) K(b,b)) (the same for K'), for ReluPower and its
/// derivative and for relu as a
///   TwoSlope also 1e-12 of the value at any correlation, apart from the effect of rounding in a,
///   b, c themselves.  Entries that are no covariance become NaN and are reported in the status;
///   all others are right in any case.
/// Errors: InternalError if the sizes do not fit, or n < 0 in ReluPower.  Polynomial and ReluPower
/// overflow as their powers do. Cost: relu K and K' about 10 ns per pair entry or less with vector
/// units; no allocation but for Polynomial. Source: Cho & Saul 2009 (powers of relu); Williams 1997
/// (erf); the others by Gaussian integrals; K' by Price's theorem
///   K' = dK/dc, except TwoStep, whose derivative almost everywhere is 0 (as is ReluPower{0}'s).
[[nodiscard]] MomentStatus dual_kernel(const DualFunction& f, std::span<const double> a,
                                       std::span<const double> b, std::span<const double> c,
                                       std::span<double> K, std::span<double> K_prime = {});

/// sum_k below[k] x^k for x < 0, sum_k above[k] x^k for x > 0, at_zero at 0.
struct PiecewisePolynomial {
  std::vector<double> below, above;
  double at_zero = 0;
};

/// K[i] = E f(u) g(v), for two functions that differ, such as a step and a relu; (u, v), shapes and
/// status as in dual_kernel. Returns: absolute error <= 1e-14 sqrt(E F(u)^2 E G(v)^2), F and G with
/// the absolute values of the coefficients.  K may be c. Cost: about 50 ns per entry for steps and
/// relus; grows with the product of the degrees. Source: Stein's lemma, E u+^m v+^k = a (m - 1) E
/// u+^(m-2) v+^k + c k E u+^(m-1) v+^(k-1).
[[nodiscard]] MomentStatus piecewise_kernel(const PiecewisePolynomial& f,
                                            const PiecewisePolynomial& g, std::span<const double> a,
                                            std::span<const double> b, std::span<const double> c,
                                            std::span<double> K);

/// mean[i] = E f(u), u ~ N(0, a[i]); as gaussian_mean.
[[nodiscard]] MomentStatus piecewise_mean(const PiecewisePolynomial& f, std::span<const double> a,
                                          std::span<double> mean);

/// mean[i] = E f(u), u ~ N(0, a[i]).
/// Returns: absolute error <= 1e-14 sqrt(E f(u)^2); largest_excess is 0.  mean may be the array a
/// itself. Errors: InternalError if the sizes differ.
[[nodiscard]] MomentStatus gaussian_mean(const DualFunction& f, std::span<const double> a,
                                         std::span<double> mean);

/// mean[i] = E f'(u), u ~ N(0, a[i]); as gaussian_mean.
[[nodiscard]] MomentStatus gaussian_mean_derivative(const DualFunction& f,
                                                    std::span<const double> a,
                                                    std::span<double> mean);

}  // namespace tplimit
