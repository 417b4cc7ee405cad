#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/// The widest vector of doubles that the compiler's target has, as a GCC/Clang vector type: + - * /
/// comparisons and `mask ? a : b` work lane by lane, on every architecture.  Only what those cannot
/// express is spelled out here. Private to the math module.
namespace tplimit::simd {

#if defined(__AVX512F__)
inline constexpr std::size_t kBytes = 64;
#elif defined(__AVX2__)
inline constexpr std::size_t kBytes = 32;
#else
inline constexpr std::size_t kBytes = 16;
#endif

/// Doubles in one Pack.
inline constexpr std::size_t kLanes = kBytes / sizeof(double);

typedef double Pack __attribute__((vector_size(kBytes)));
typedef float FloatPack __attribute__((vector_size(kBytes)));
typedef std::uint64_t Bits __attribute__((vector_size(kBytes)));

/// The pack of a type, and how many there are in it.
template <class T>
using PackOf = std::conditional_t<std::is_same_v<T, float>, FloatPack, Pack>;
template <class T>
inline constexpr std::int64_t kLanesOf = static_cast<std::int64_t>(kBytes / sizeof(T));

/// The same number in every lane.
inline Pack splat(double value) { return value - Pack{}; }
inline FloatPack splat(float value) { return value - FloatPack{}; }

/// kLanes doubles from x, which need not be aligned.
inline Pack load(const double* x) {
  Pack pack;
  std::memcpy(&pack, x, sizeof pack);
  return pack;
}

inline FloatPack load(const float* x) {
  FloatPack pack;
  std::memcpy(&pack, x, sizeof pack);
  return pack;
}

/// kLanes doubles to out, which need not be aligned.
inline void store(double* out, Pack pack) { std::memcpy(out, &pack, sizeof pack); }
inline void store(float* out, FloatPack pack) { std::memcpy(out, &pack, sizeof pack); }

inline Bits bits_of(Pack pack) { return std::bit_cast<Bits>(pack); }
inline Pack pack_of(Bits bits) { return std::bit_cast<Pack>(bits); }

/// a b + c: one rounding where the target has the instruction (a library call per lane would be far
/// too slow), else two.
inline Pack mul_add(Pack a, Pack b, Pack c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}
inline FloatPack mul_add(FloatPack a, FloatPack b, FloatPack c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline Pack sqrt(Pack a) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_pd(
      0xff, a);  // g++ 12 warns about the unmasked one: its header reads an undefined vector
#elif defined(__AVX2__)
  return _mm256_sqrt_pd(a);
#elif defined(__x86_64__)
  return _mm_sqrt_pd(a);
#else
  for (std::size_t lane = 0; lane < kLanes; ++lane) a[lane] = std::sqrt(a[lane]);
  return a;
#endif
}

inline Pack abs(Pack a) { return pack_of(bits_of(a) & ~(std::uint64_t{1} << 63)); }

/// |magnitude| with the sign of `sign`; magnitude >= 0 or NaN.
inline Pack with_sign(Pack magnitude, Pack sign) {
  return pack_of(bits_of(magnitude) | (bits_of(sign) & (std::uint64_t{1} << 63)));
}

/// min(a, limit) and max(a, limit), NaN where a is NaN.
inline Pack at_most(Pack a, double limit) { return a > limit ? splat(limit) : a; }
inline Pack at_least(Pack a, double limit) { return a < limit ? splat(limit) : a; }

/// Is a comparison true in some lane?
inline bool any(Bits mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(std::bit_cast<__m512i>(mask), std::bit_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_pd(std::bit_cast<__m256d>(mask)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_pd(std::bit_cast<__m128d>(mask)) != 0;
#else
  std::uint64_t all = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) all |= mask[lane];
  return all != 0;
#endif
}

/// c[First] + c[First + Step] x + c[First + 2 Step] x^2 + .., by Horner's rule.
template <std::size_t First, std::size_t Step, std::size_t Size>
inline Pack horner(Pack x, const double (&c)[Size]) {
  if constexpr (First + Step >= Size) {
    return splat(c[First]);
  } else {
    return mul_add(horner<First + Step, Step>(x, c), x, splat(c[First]));
  }
}

/// c[0] + c[1] x + c[2] x^2 + .., given x^2.  Even and odd powers apart: half the latency of one
/// Horner chain (which, not throughput, limits the longer functions), and half the number of
/// roundings in a row.
template <std::size_t Size>
inline Pack polynomial(Pack x, Pack square, const double (&c)[Size]) {
  return mul_add(horner<1, 2>(square, c), x, horner<0, 2>(square, c));
}

/// c[0] + c[1] x + c[2] x^2 + .. with separate multiplications and additions: the same bits on
/// every machine.
template <std::size_t First = 0, std::size_t Size>
inline Pack plain_horner(Pack x, const double (&c)[Size]) {
  if constexpr (First + 1 == Size) {
    return splat(c[First]);
  } else {
    return plain_horner<First + 1>(x, c) * x + c[First];
  }
}

/// log x for positive, normal, finite x; below 1 ulp.  No fused multiply-add, so the same bits on
/// every machine. x = 2^n m, m in [sqrt(1/2), sqrt 2); f = m - 1, s = f / (2 + f), log m = 2 atanh
/// s = f - f^2/2 + s (f^2/2 + R(s^2)), which keeps the large terms f and n log 2 exact until the
/// last two additions.
inline Pack log_of_normal(Pack x, Pack extra_exponent = Pack{}) {
  // Subtracting the bits of sqrt(1/2) makes the exponent field count from sqrt(1/2) on; 1024 keeps
  // it positive, so that a logical shift will do (the arithmetic one is missing before AVX-512).
  constexpr std::uint64_t kHalfRoot = 0x3fe6a09e667f3bcd;
  constexpr std::uint64_t kBias = std::uint64_t{1024} << 52;
  const Bits shifted = bits_of(x) - kHalfRoot + kBias;
  const Bits exponent = shifted >> 52;  // n + 1024
  const Bits mantissa = bits_of(x) - ((exponent << 52) - kBias);
  // Integers below 2^52 become doubles by writing them into the mantissa of 2^52: there is no
  // 64-bit conversion before AVX-512.
  const Pack n = pack_of(exponent | 0x4330000000000000) - (0x1p52 + 1024.0) + extra_exponent;
  const Pack f = pack_of(mantissa) - 1.0;
  const Pack s = f / (f + 2.0);
  const Pack z = s * s;
  // Minimax (Remez) for 2 (atanh(s)/s - 1)/z on |s| <= 3 - 2 sqrt 2: the error is below 2^-59 of
  // log m.
  constexpr double kRest[] = {0x1.555555555558bp-1, 0x1.9999999981c6dp-2, 0x1.2492494084102p-2,
                              0x1.c71c530ce99b0p-3, 0x1.74660f187034fp-3, 0x1.39a62262201e5p-3,
                              0x1.2edc4a19974c2p-3};
  const Pack rest = z * plain_horner(z, kRest);
  const Pack half_square = 0.5 * f * f;
  // log 2 in two parts, the first with 32 bits, so that n times it is exact.
  return n * 0x1.62e42feep-1 -
         ((half_square - (s * (half_square + rest) + n * 0x1.a39ef35793c76p-33)) - f);
}

/// Calls f(Pack) -> Pack on every kLanes elements of x.  The last, incomplete pack is padded: each
/// element goes through the same instructions wherever it stands, so its bits do not depend on its
/// position or on n.
template <class Function>
inline void for_each_pack(const double* x, double* out, std::size_t n, const Function& f) {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(x + i)));
  if (i < n) {
    double buffer[kLanes];
    for (std::size_t lane = 0; lane < kLanes; ++lane) buffer[lane] = x[i + lane < n ? i + lane : i];
    store(buffer, f(load(buffer)));
    for (std::size_t lane = 0; i + lane < n; ++lane) out[i + lane] = buffer[lane];
  }
}

/// The same for a function known at compile time (so that it can be inlined without optimisation
/// too).
template <Pack (*kFunction)(Pack)>
inline void for_each_pack(const double* x, double* out, std::size_t n) {
  for_each_pack(
      x, out, n, [](Pack a) __attribute__((always_inline)) { return kFunction(a); });
}

}  // namespace tplimit::simd
