#pragma once

#include <cstddef>

/// Coordinatewise functions on contiguous arrays, as fast as the machine's vector units allow.
/// out may be equal to x, but must not overlap it otherwise.  n may be any number, alignment is not required.  Results do not depend on how a
/// long array is cut into calls (each element is computed the same way wherever it stands), so runs are
/// bitwise reproducible.  Relative error <= 4 eps unless said otherwise; NaN and infinities propagate as in <cmath>.
namespace tplimit {

void vector_exp(const double* x, double* out, std::size_t n);
void vector_log(const double* x, double* out, std::size_t n);
void vector_tanh(const double* x, double* out, std::size_t n);
void vector_erf(const double* x, double* out, std::size_t n);
void vector_sin(const double* x, double* out, std::size_t n);
void vector_cos(const double* x, double* out, std::size_t n);
void vector_sigmoid(const double* x, double* out, std::size_t n);    ///< 1 / (1 + e^-x), no overflow
void vector_softplus(const double* x, double* out, std::size_t n);   ///< log(1 + e^x), no overflow, relative error kept for x -> -inf
void vector_expm1(const double* x, double* out, std::size_t n);
void vector_gelu(const double* x, double* out, std::size_t n);       ///< x Phi(x); relative error kept for x -> -inf (erfc)
void vector_pow(const double* x, double exponent, double* out, std::size_t n);

}  // namespace tplimit
