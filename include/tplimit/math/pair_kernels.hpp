#pragma once

#include <cstddef>
#include <cstdint>

#include "tplimit/math/dual_kernels.hpp"

/// Kernels of many pairs (u, v) of Gaussians with their errors, column by column, for covariances
/// that go through many layers.
///
/// Where a function has a kink, derivatives of its kernel go like the angle acos(rho), and an error
/// e of rho near 1 becomes one of sqrt(2 e).  So a covariance may carry its *gap* t = 1 - |rho|
/// with a small relative error, and the angle comes from that. All arrays have `count` entries, a
/// multiple of kPairLanes.  The bits of an entry do not depend on its place, and (u, v) and (v, u)
/// have the same: equal inputs keep equal numbers.  Thread-safe.
namespace tplimit {

inline constexpr std::size_t kPairLanes = 8;

/// The variances behind a column of pairs: a of u and b of v; `one_b`: all pairs share v.
struct PairColumn {
  std::size_t count = 0;
  const double *a = nullptr, *root_a = nullptr,
               *error_a = nullptr;  ///< variance, its root, its *relative* error
  const double *b = nullptr, *root_b = nullptr, *error_b = nullptr;
  bool one_b = false;
  bool same = false;  ///< every pair is a variable with itself
};

/// The error of a gap t: relative t + absolute + sine (2 sqrt(2t) + sine), `sine` that of sqrt(1 -
/// rho^2).
struct GapError {
  double relative = 0, absolute = 0, sine = 0;
};

/// Gaps from c, or their errors from a law.  A pair with a or b = 0 has the gap 1: a constant is
/// independent.
void gaps_of_values(const PairColumn& p, const double* c, const double* error_c, double* gap,
                    double* error_gap, MomentStatus& status);
void gap_errors(std::size_t count, const GapError& law, const double* gap, double* error_gap);

/// What the kernels of all functions with one kink or jump at 0 share, for rho = +-(1 - gap) with
/// the sign of sign * c: phi = pi - acos(rho), S = sin(phi) - phi cos(phi) = sqrt(1 - rho^2) + rho
/// phi, and rest = sin(psi) - psi cos(psi) for psi = acos|rho|.
struct PairAngles {
  double *phi, *S, *rest, *error_phi;
};
void pair_angles(const PairColumn& p, double sign, const double* c, const double* gap,
                 const double* error_gap, const PairAngles& out);

/// What comes in and goes out: covariance c, error of c, gap of c (null: none).
struct PairInput {
  const double *c, *error, *gap;
};
struct PairOutput {
  double *value, *error, *gap;  ///< gap: null if not wanted
};

/// factor E f(s u) f(t v), scale = s t.
void two_slope_pairs(const PairColumn& p, const TwoSlope& f, double factor, double scale,
                     const PairInput& in, const PairAngles& angles, const PairOutput& out);
void two_step_pairs(const PairColumn& p, const TwoStep& f, double factor, double scale,
                    const PairInput& in, const PairAngles& angles, const PairOutput& out);
/// factor E f(s u) f(s v), scale = s; status: entries that are no covariance.
void erf_pairs(const PairColumn& p, const ScaledErf& f, double factor, double scale,
               const PairInput& in, const PairOutput& out, MomentStatus& status);

/// factor E f(s u) f(s v) for f.B > 0, given gaps.
void bell_pairs(const PairColumn& p, const GaussBell& f, double factor, double scale,
                const PairInput& in, const PairOutput& out);

/// What the next gap's error is.
[[nodiscard]] GapError after_two_slope(const TwoSlope& f, const GapError& e);
[[nodiscard]] GapError after_two_step(const TwoStep& f, const GapError& e);

/// Sums and products of covariances, x + y and x y, of Gaussians with variances p and q.
void add_pairs(const PairColumn& p, const PairInput& x, const PairColumn& q, const PairInput& y,
               const PairOutput& out);
void multiply_pairs(std::size_t count, const PairInput& x, const PairInput& y,
                    const PairOutput& out);

/// value[i + j leading_value] = sum_k x[i + k leading] y[j + 8 k] for `count` rows i and 8 columns
/// j, in the order of k.
void gram_tile(std::size_t count, const double* x, std::size_t leading, const double* y,
               std::size_t depth, double* value, std::size_t leading_value);
/// The errors of a column j of these sums and, if wanted, its gaps: from the distance of one input
/// to the line through the other where the difference of the variances' product and c^2 cancels.
void gram_pairs(const PairColumn& p, const double* x, std::size_t leading, const double* y,
                std::size_t depth, const PairOutput& out);
/// value += +-error, with signs that are a function of the value.
void disturb_pairs(std::size_t count, std::uint64_t key, double* value, const double* error);

}  // namespace tplimit
