#pragma once

#include <cmath>
#include <numbers>
#include <utility>

#include "math/simd.hpp"

/// Angles and exact products of packs, for kernels of pairs of Gaussians.  Private to the math
/// module.
namespace tplimit::simd {

/// a b - p for p = a b rounded, exactly (barring underflow).
inline Pack product_error(Pack a, Pack b, Pack p) {
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__)) || !defined(__x86_64__)
#if defined(__x86_64__)
  return mul_add(a, b, -p);
#else
  for (std::size_t lane = 0; lane < kLanes; ++lane) a[lane] = std::fma(a[lane], b[lane], -p[lane]);
  return a;
#endif
#else
  // Without the instruction: halves of 26 bits (Veltkamp), whose products are exact (Dekker).
  const Pack a_high = pack_of(bits_of(a) & 0xfffffffff8000000), a_low = a - a_high;
  const Pack b_high = pack_of(bits_of(b) & 0xfffffffff8000000), b_low = b - b_high;
  return ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

/// 2^-e and 2^e for which x 4^-e is in [1, 4), given x >= 0 (x = 0 and subnormal x: less).
inline std::pair<Pack, Pack> even_scale(Pack x) {
  const Bits half = ((bits_of(x) >> 52) + 1) >> 1;  // e + 512
  return {pack_of((1535 - half) << 52), pack_of((half + 511) << 52)};
}

/// ab - c^2 from exact products; scaled by powers of two that keep ab, c^2 and the errors of these
/// products away from overflow and underflow.
struct Determinant {
  Pack up_a, up_b;  ///< sqrt(a) and sqrt(b) are these times what they are scaled
  Pack ab, c, D;    ///< scaled
};
inline Determinant determinant_of(Pack a, Pack b, Pack c) {
  const auto [down_a, up_a] = even_scale(a);
  const auto [down_b, up_b] = even_scale(b);
  const Pack A = a * down_a * down_a, B = b * down_b * down_b, C = c * down_a * down_b;
  const Pack ab = A * B, cc = C * C;
  return {up_a, up_b, ab, C, (ab - cc) + (product_error(A, B, ab) - product_error(C, C, cc))};
}

/// The angle of (x, y), atan2(y, x), for x, y >= 0, not both 0; 2 eps, also for small angles.
[[gnu::always_inline]] inline Pack angle(Pack y, Pack x) {
  constexpr double kPi = std::numbers::pi,
                   kHalfPiRest = 6.123233995736766e-17;  // pi/2 less its nearest double
  const auto steep = y > x;
  const Pack big = steep ? y : x, small = steep ? x : y;
  // Beyond tan(pi/8): atan(r) = pi/4 + atan((r - 1)/(r + 1)).
  const auto far = small > 0.41421356237309503 * big;
  const Pack r = (far ? small - big : small) / (far ? small + big : big);
  const Pack z = r * r;
  // (atan(r)/r - 1)/r^2, interpolated at Chebyshev points of z in [0, tan^2(pi/8)]: 2^-58 of
  // atan(r).
  constexpr double kQ[] = {-0x1.5555555555555p-2, 0x1.9999999999953p-3,  -0x1.249249248d7eep-3,
                           0x1.c71c71c304b64p-4,  -0x1.745d165df3ee7p-4, 0x1.3b1392d9e64b0p-4,
                           -0x1.110e880a643d8p-4, 0x1.e19a13b800ab6p-5,  -0x1.ac7a937cce153p-5,
                           0x1.74ddd3c6187b4p-5,  -0x1.1b33b8784aa69p-5, 0x1.0ad368c98424cp-6};
  Pack p = mul_add(r * z, polynomial(z, z * z, kQ), r);
  p = far ? 0.25 * kPi + (p + 0.5 * kHalfPiRest) : p;
  return steep ? 0.5 * kPi - (p - kHalfPiRest) : p;
}

/// sin p - p cos p for p in [0, pi/2]; direct: this difference, which cancels for small p.
[[gnu::always_inline]] inline Pack sine_less_product(Pack p, Pack direct) {
  // p^3 sum_k (-p^2)^k (2k + 2)/(2k + 3)!, to 4e-16 for p < 1/2, from where on the cancellation
  // costs at most 5 bits.
  constexpr double kSeries[] = {1.0 / 3,       -1.0 / 30,        1.0 / 840,        -1.0 / 45360,
                                1.0 / 3991680, -1.0 / 518918400, 1.0 / 93405312000};
  const Pack square = p * p;
  return p < 0.5 ? square * p * horner<0, 1>(square, kSeries) : direct;
}

}  // namespace tplimit::simd
