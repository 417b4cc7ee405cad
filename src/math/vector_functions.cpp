#include "tplimit/math/vector_functions.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "math/simd.hpp"

#if defined(__x86_64__)
#include <sleef.h>
#endif

// All but sin, cos and pow is written here, branch-free on vectors: with AVX-512 tanh, erf and gelu
// take a quarter of SLEEF 3.5.1's time (which aims at 1 ulp where a few eps will do), expm1 a
// third, softplus half; exp and log are equal with AVX-512 and a quarter faster with AVX2. One
// reduction and one polynomial serve exp, expm1, tanh, sigmoid, softplus, erf and gelu. Polynomials
// and rational functions are minimax fits (Remez, 50 digits); the error of the fit stands beside
// each.

namespace tplimit {
namespace {

using simd::abs;
using simd::at_least;
using simd::at_most;
using simd::Bits;
using simd::for_each_pack;
using simd::mul_add;
using simd::Pack;
using simd::polynomial;
using simd::splat;
using simd::with_sign;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// e^y = 2^n (1 + p), with |log(1 + p)| <= log(2)/2 (and a little).
struct Exponential {
  Pack p;
  Bits n;  ///< two's complement in the lower 12 bits; the rest is noise

  /// 2^n for |n| <= 1022.
  Pack scale() const { return simd::pack_of((n + 1023) << 52); }

  /// x 2^n, rounded once or, if the result is subnormal, twice; any n from -2044 to 2046.
  Pack times(Pack x) const {
    // 2^n itself may not be a number: take two halves.
    const Bits biased = (n + 2048) & 0xfff;
    const Bits half = biased >> 1;
    return x * simd::pack_of((half - 1) << 52) * simd::pack_of((biased - half - 1) << 52);
  }
};

/// Splits e^(y + correction), for |y| <= 1400 and |correction| tiny; p has a relative error of
/// about 1 eps for any y with n = 0.
[[gnu::always_inline]] inline Exponential split_exp(Pack y, Pack correction = Pack{}) {
  // Adding 1.5 * 2^52 leaves the nearest integer in the lowest bits: rounding and conversion
  // without an instruction for either.
  constexpr double kRounder = 0x1.8p52;
  const Pack shifted = mul_add(y, splat(0x1.71547652b82fep+0), splat(kRounder));
  const Pack n = shifted - kRounder;
  // log 2 in two parts, the first with 32 bits, so that n times it is exact with or without fma.
  Pack r = mul_add(n, splat(-0x1.62e42feep-1), y);
  r = mul_add(n, splat(-0x1.a39ef35793c76p-33), r) + correction;
  // (e^r - 1 - r)/r^2 on |r| <= log(2)/2: 2^-55.5 of e^r - 1.
  constexpr double kCoefficients[] = {
      0x1.0000000000004p-1,  0x1.555555555553cp-3,  0x1.55555555524efp-5,  0x1.111111111879ep-7,
      0x1.6c16c17e67074p-10, 0x1.a01a017785331p-13, 0x1.a019a898cdcb4p-16, 0x1.71de8322b9404p-19,
      0x1.28a0dca083a66p-22, 0x1.ae72a3296e9f1p-26};
  const Pack square = r * r;
  const Pack q = polynomial(r, square, kCoefficients);
  return {mul_add(square, q, r), simd::bits_of(shifted)};
}

/// The ends of the exponential: e^-746 rounds to 0, e^710 to infinity.
[[gnu::always_inline]] inline Pack clamp_exponent(Pack x) {
  return at_least(at_most(x, 710.0), -746.0);
}

[[gnu::always_inline]] inline Pack exp_pack(Pack x) {
  const Exponential e = split_exp(clamp_exponent(x));
  return e.times(e.p + 1.0);
}

[[gnu::always_inline]] inline Pack expm1_pack(Pack x) {
  // 2^n (p + (1 - 2^-n)): the inner difference is exact where it matters.  Below -40 the result is
  // -1, and 2^-n stays finite. Twice 2^-n is built, because n = 1024 occurs, for which 2^-n is
  // subnormal (0 will do).
  const Exponential e = split_exp(at_least(at_most(x, 710.0), -40.0));
  const Pack twice_inverse = simd::pack_of((1024 - e.n) << 52);
  const Pack result = e.times(e.p + (1.0 - 0.5 * twice_inverse));
  return x == 0.0 ? x : result;  // the zero keeps its sign
}

[[gnu::always_inline]] inline Pack tanh_pack(Pack x) {
  // tanh a = u/(u + 2) with u = e^2a - 1 = 2^n p + (2^n - 1), whose relative error is small for all
  // a >= 0.  From a = 19.1 on the result is 1.
  const Pack a = at_most(abs(x), 20.0);
  const Exponential e = split_exp(a + a);
  const Pack scale = e.scale();
  const Pack u = mul_add(scale, e.p, scale - 1.0);
  return with_sign(u / (u + 2.0), x);
}

[[gnu::always_inline]] inline Pack sigmoid_pack(Pack x) {
  // e^-|x| cannot overflow; for x < 0 it is also the numerator, which keeps the relative error.
  const Pack e = exp_pack(-abs(x));
  return (x < 0.0 ? e : splat(1.0)) / (e + 1.0);
}

[[gnu::always_inline]] inline Pack softplus_pack(Pack x) {
  const Pack e = exp_pack(-abs(x));
  // log(1 + e) = 2 atanh(t/2), t = 2 e/(2 + e) <= 2/3: t (1 + z B(z)), z = t^2/4.
  const Pack t = (e + e) / (e + 2.0);
  const Pack z = 0.25 * t * t;
  // B on z <= 1/9: 2^-59.3 of the logarithm.
  constexpr double kB[] = {0x1.555555555553fp-2, 0x1.999999999f003p-3, 0x1.24924921281b9p-3,
                           0x1.c71c73da0af6fp-4, 0x1.745cbc37091e9p-4, 0x1.3b1d3b934c72fp-4,
                           0x1.106f59e6f86e3p-4, 0x1.ef6859bd62c1ep-5, 0x1.577cfe76eae8dp-5,
                           0x1.5ae5a4c5db6bbp-4};
  const Pack B = polynomial(z, z * z, kB);
  return (x > 0.0 ? x : Pack{}) + mul_add(t * z, B, t);
}

[[gnu::always_inline]] inline Pack log_pack(Pack x) {
  const auto subnormal = x < std::numeric_limits<double>::min();
  const Pack normal = subnormal ? x * 0x1p54 : x;
  Pack result = simd::log_of_normal(normal, subnormal ? splat(-54.0) : Pack{});
  result = x < kInfinity ? result : x;  // infinity and NaN are their own logarithms
  return x > 0.0 ? result
                 : (x == 0.0 ? splat(-kInfinity)
                             : (x + splat(std::numeric_limits<double>::quiet_NaN())));
}

[[gnu::always_inline]] inline Pack erf_pack(Pack x) {
  const Pack a = at_most(abs(x), 6.0);  // from 5.93 on the result is 1
  // |x| < 0.9: x S(x^2), 2^-54.5.
  const Pack z = a * a;
  constexpr double kS[] = {0x1.20dd750429b6dp+0,   -0x1.812746b0378f8p-2,  0x1.ce2f21a0375b9p-4,
                           -0x1.b82ce30f2398fp-6,  0x1.565bcc8917da1p-8,   -0x1.c02d9c107a6f9p-11,
                           0x1.f9a0769e28e2ap-14,  -0x1.f4a075b64ef45p-17, 0x1.b78f627c8762fp-20,
                           -0x1.4dbdb51db2b4bp-23, 0x1.6025e576bfd36p-27};
  const Pack small = a * polynomial(z, z * z, kS);
  // Else 1 - e^(-x^2) P(x)/Q(x), 2^-58 of erf: erfc is at most a quarter of erf here, so its errors
  // hardly count.
  constexpr double kP[] = {0x1.fffffdff70d68p-1, 0x1.6054c82557b87p+0, 0x1.dd1a69eab71d0p-1,
                           0x1.73cb85ecb8b24p-2, 0x1.4bd3cce0aca2fp-4, 0x1.1451126799425p-7};
  constexpr double kQ[] = {0x1.0000000000000p+0, 0x1.40991900c8af6p+1, 0x1.61084ad880011p+1,
                           0x1.b908ffe1b28d8p+0, 0x1.4d5b31f181a36p-1, 0x1.26109801bc38cp-3,
                           0x1.e9c37414f43dfp-7};
  const Pack ratio = polynomial(a, z, kP) / polynomial(a, z, kQ);
  const Exponential e = split_exp(-z);
  const Pack scale = e.scale();
  const Pack large = 1.0 - mul_add(scale, e.p, scale) * ratio;
  return with_sign(a < 0.9 ? small : large, x);
}

[[gnu::always_inline]] inline Pack gelu_pack(Pack x) {
  // Phi(-a) = e^(-a^2/2) P(a)/Q(a), 2^-54, for a = |x| <= 40, where e^(-a^2/2) has long been 0.
  // Clamping x (not only a) from below also gives the limit -0 at -infinity, where x Phi(x) would
  // be infinity times 0.
  const Pack clamped = at_least(x, -40.0);
  const Pack a = at_most(abs(clamped), 40.0);
  constexpr double kP[] = {0x1.0000000000000p-1, 0x1.8d0e731fc37d4p-1,  0x1.309dff7cdefbfp-1,
                           0x1.28f12eeca1d3cp-2, 0x1.915f4e296c88ep-4,  0x1.847e04981997ep-6,
                           0x1.0d3da1fd5f3a5p-8, 0x1.028f500e7a8fcp-11, 0x1.3a9adef5f7f65p-15,
                           0x1.76f5a01d0cbf8p-20};
  constexpr double kQ[] = {0x1.0000000000000p+0,  0x1.2ca84e5f32966p+1, 0x1.4832d277c2ddap+1,
                           0x1.b7a0fb510dfe3p+0,  0x1.91586b64aba5cp-1, 0x1.05e016611cbb1p-2,
                           0x1.f0f8e52ea0ae6p-5,  0x1.5486114d72513p-7, 0x1.44f97aa0efe8ep-10,
                           0x1.8a4c816bced1dp-14, 0x1.d5f127942079ap-19};
  // For large a each step of one Horner chain adds its rounding in full (4.3 eps in all; 2.9 in
  // this way), and the error of a^2 nearly cancels in the ratio.
  const Pack square = a * a;
  const Pack ratio = polynomial(a, square, kP) / polynomial(a, square, kQ);
  // An error of eps in a^2 would be one of a^2 eps/2 in the result.  So a = head + (a - head), the
  // head with 26 bits: its square is exact, and the remainder (a - head)(a + head)/2 < 2e-5 goes
  // into the reduced argument.
  const Pack head = simd::pack_of(simd::bits_of(a) & 0xfffffffff8000000);
  const Exponential e = split_exp(-0.5 * head * head, -0.5 * (a - head) * (a + head));
  // The factor x goes in before the power of two: Phi alone may be subnormal where x Phi is not.
  const Pack tail = e.times((clamped < 0.0 ? clamped : splat(1.0)) * mul_add(e.p, ratio, ratio));
  return clamped < 0.0 ? tail : x * (1.0 - tail);
}

// SLEEF: the `finz` and `cinz` functions (the same results with any vector width), because the
// plain ones choose a faster path when all lanes have small arguments, and then an element's bits
// could depend on its neighbours.
#if defined(__AVX512F__)
Pack sin_pack(Pack x) { return Sleef_finz_sind8_u10avx512f(x); }
Pack cos_pack(Pack x) { return Sleef_finz_cosd8_u10avx512f(x); }
Pack pow_pack(Pack x, Pack y) { return Sleef_finz_powd8_u10avx512f(x, y); }
#elif defined(__AVX2__)
Pack sin_pack(Pack x) { return Sleef_finz_sind4_u10avx2(x); }
Pack cos_pack(Pack x) { return Sleef_finz_cosd4_u10avx2(x); }
Pack pow_pack(Pack x, Pack y) { return Sleef_finz_powd4_u10avx2(x, y); }
#elif defined(__x86_64__)
Pack sin_pack(Pack x) { return Sleef_cinz_sind2_u10sse2(x); }
Pack cos_pack(Pack x) { return Sleef_cinz_cosd2_u10sse2(x); }
Pack pow_pack(Pack x, Pack y) { return Sleef_cinz_powd2_u10sse2(x, y); }
#else
Pack sin_pack(Pack x) {
  for (std::size_t lane = 0; lane < simd::kLanes; ++lane) x[lane] = std::sin(x[lane]);
  return x;
}
Pack cos_pack(Pack x) {
  for (std::size_t lane = 0; lane < simd::kLanes; ++lane) x[lane] = std::cos(x[lane]);
  return x;
}
Pack pow_pack(Pack x, Pack y) {
  for (std::size_t lane = 0; lane < simd::kLanes; ++lane) x[lane] = std::pow(x[lane], y[lane]);
  return x;
}
#endif

}  // namespace

void vector_exp(const double* x, double* out, std::size_t n) { for_each_pack<exp_pack>(x, out, n); }
void vector_log(const double* x, double* out, std::size_t n) { for_each_pack<log_pack>(x, out, n); }
void vector_tanh(const double* x, double* out, std::size_t n) {
  for_each_pack<tanh_pack>(x, out, n);
}
void vector_erf(const double* x, double* out, std::size_t n) { for_each_pack<erf_pack>(x, out, n); }
void vector_sin(const double* x, double* out, std::size_t n) { for_each_pack<sin_pack>(x, out, n); }
void vector_cos(const double* x, double* out, std::size_t n) { for_each_pack<cos_pack>(x, out, n); }
void vector_sigmoid(const double* x, double* out, std::size_t n) {
  for_each_pack<sigmoid_pack>(x, out, n);
}
void vector_softplus(const double* x, double* out, std::size_t n) {
  for_each_pack<softplus_pack>(x, out, n);
}
void vector_expm1(const double* x, double* out, std::size_t n) {
  for_each_pack<expm1_pack>(x, out, n);
}
void vector_gelu(const double* x, double* out, std::size_t n) {
  for_each_pack<gelu_pack>(x, out, n);
}

void vector_pow(const double* x, double exponent, double* out, std::size_t n) {
  // Small integer powers are most of what programs use, and 20 times faster by multiplication (at
  // most two roundings).
  if (exponent == 1.0) {
    for_each_pack(x, out, n,
                  [](Pack a) { return a; });  // SLEEF 3.5.1 makes infinity of the largest double
  } else if (exponent == 2.0) {
    for_each_pack(x, out, n, [](Pack a) { return a * a; });
  } else if (exponent == 3.0) {
    for_each_pack(x, out, n, [](Pack a) { return a * a * a; });
  } else if (exponent == 4.0) {
    for_each_pack(x, out, n, [](Pack a) { return (a * a) * (a * a); });
  } else {
    for_each_pack(x, out, n, [y = splat(exponent)](Pack a) { return pow_pack(a, y); });
  }
}

}  // namespace tplimit
