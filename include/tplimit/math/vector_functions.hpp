#pragma once

#include <cstddef>

/// Coordinatewise functions on contiguous arrays, as fast as the machine's vector units allow.
/// out may be equal to x, but must not overlap it otherwise.  n may be any number, alignment is not
/// required.  Results do not depend on how a long array is cut into calls (each element is computed
/// the same way wherever it stands, whatever its neighbours are), so runs are bitwise reproducible
/// on one machine with one build; with or without fused multiply-add the last bits differ. Relative
/// error <= 4 eps (eps = 2^-52) in the normal range, which the tests assert; what was measured
/// stands beside each function, with fused multiply-add.  Below that range: within one subnormal
/// unit more.  NaN and infinities propagate as in <cmath>, zeros keep their sign.  Thread-safe, no
/// allocation.
namespace tplimit {

void vector_exp(const double* x, double* out, std::size_t n);  ///< e^x; 0.8 eps
void vector_log(const double* x, double* out,
                std::size_t n);  ///< log x; 0.7 eps; -infinity at 0, NaN below
void vector_tanh(const double* x, double* out, std::size_t n);  ///< tanh x; 1.6 eps; odd to the bit
void vector_erf(const double* x, double* out, std::size_t n);   ///< erf x; 1.8 eps; odd to the bit
void vector_sin(const double* x, double* out, std::size_t n);   ///< sin x, any finite x; 0.6 eps
void vector_cos(const double* x, double* out, std::size_t n);   ///< cos x, any finite x; 0.6 eps
void vector_sigmoid(const double* x, double* out,
                    std::size_t n);  ///< 1 / (1 + e^-x), no overflow; 1.5 eps
void vector_expm1(const double* x, double* out, std::size_t n);  ///< e^x - 1; 1.2 eps

/// log(1 + e^x), no overflow; 1.9 eps, also for x -> -infinity.
void vector_softplus(const double* x, double* out, std::size_t n);

/// x Phi(x), Phi the standard normal distribution function; 3.0 eps, also for x -> -infinity, where
/// it is a tail probability times x.  At -infinity: -0, the limit.
void vector_gelu(const double* x, double* out, std::size_t n);

/// x^exponent as std::pow defines it: 1 for exponent 0 (even of NaN), NaN for x < 0 and a
/// fractional exponent.  1 eps.
void vector_pow(const double* x, double exponent, double* out, std::size_t n);

}  // namespace tplimit
