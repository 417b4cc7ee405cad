#include "tplimit/math/pair_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "math/angle.hpp"
#include "math/simd.hpp"

namespace tplimit {
namespace {

using simd::kLanes;
using simd::load;
using simd::mul_add;
using simd::Pack;
using simd::splat;
using simd::store;

constexpr double kPi = std::numbers::pi;
constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr double kLargest = std::numeric_limits<double>::max();

Pack of_b(const PairColumn& p, const double* b, std::size_t i) {
  return p.one_b ? splat(*b) : load(b + i);
}

Pack larger(Pack x, Pack y) { return x > y ? x : y; }

/// 1 - |rho| for 1 - rho^2 = s2, which says little about a small rho.
Pack gap_of_square(Pack s2, Pack rho) {
  return s2 > 0.5 ? 1.0 - simd::abs(rho) : s2 / (1.0 + simd::sqrt(1.0 - s2));
}

}  // namespace

void gaps_of_values(const PairColumn& p, const double* c, const double* error_c, double* gap,
                    double* error_gap, MomentStatus& status) {
  Pack excess = {};
  for (std::size_t i = 0; i < p.count; i += kLanes) {
    const Pack a = load(p.a + i), b = of_b(p, p.b, i), given = load(c + i);
    const auto variances = (a >= 0.0) & (a <= kLargest) & (b >= 0.0) & (b <= kLargest);
    const Pack A = variances ? simd::abs(a) : splat(1.0), B = variances ? simd::abs(b) : splat(1.0);
    const auto [up_a, up_b, ab, Cs, D] = simd::determinant_of(A, B, given);
    const auto valid = variances & (D >= -kLargestExcess * ab);
    const auto zero = ab == 0.0;
    const Pack safe = zero ? splat(1.0) : ab;
    const Pack above = (valid & (D < 0.0)) ? -D / safe : Pack{};
    excess = larger(above, excess);
    const Pack s2 = D > 0.0 ? D / safe : Pack{};
    store(gap + i,
          zero ? splat(1.0) : gap_of_square(s2 > 1.0 ? splat(1.0) : s2, Cs / simd::sqrt(safe)));
    const Pack root = load(p.root_a + i) * of_b(p, p.root_b, i);
    const Pack e = load(error_c + i) / (root > 0.0 ? root : splat(1.0)) +
                   0.5 * (load(p.error_a + i) + of_b(p, p.error_b, i)) + above + kEpsilon;
    store(error_gap + i, zero ? Pack{} : e);
    if (p.same) store(error_gap + i, Pack{});
    if (status.bad_index == kNoIndex && simd::any(std::bit_cast<simd::Bits>(~valid)))
      for (std::size_t lane = 0; lane < kLanes; ++lane)
        if (std::bit_cast<simd::Bits>(valid)[lane] == 0) {
          status.bad_index = i + lane;
          status.bad_entry = {a[lane], b[lane], given[lane]};
          break;
        }
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane)
    status.largest_excess = std::max(status.largest_excess, excess[lane]);
}

void gap_errors(std::size_t count, const GapError& law, const double* gap, double* error_gap) {
  for (std::size_t i = 0; i < count; i += kLanes) {
    const Pack t = load(gap + i);
    store(error_gap + i, law.relative * t + (law.absolute + law.sine * law.sine) +
                             (2 * law.sine) * simd::sqrt(2.0 * t));
  }
}

void pair_angles(const PairColumn& p, double sign, const double* c, const double* gap,
                 const double* error_gap, const PairAngles& out) {
  for (std::size_t i = 0; i < p.count; i += kLanes) {
    const Pack t = load(gap + i), e = load(error_gap + i), sine = simd::sqrt(t * (2.0 - t)),
               cosine = 1.0 - t;
    const auto negative = sign * load(c + i) < 0.0;
    const Pack psi = simd::angle(sine, cosine),
               rest = simd::sine_less_product(psi, sine - psi * cosine),
               phi = negative ? psi : kPi - psi;
    store(out.phi + i, phi);
    store(out.S + i, negative ? rest : mul_add(cosine, phi, sine));
    store(out.rest + i, rest);
    // |acos(1 - t - e) - acos(1 - t)| <= min(e / sine, sqrt(2 e)) up to e^2, and there is an
    // angle's own rounding.
    const Pack scale = sine + simd::sqrt(e);
    store(out.error_phi + i,
          (2 * kEpsilon) * phi +
              (scale > 0.0 ? 2.0 * e / (scale > 0.0 ? scale : splat(1.0)) : Pack{}));
  }
}

void two_slope_pairs(const PairColumn& p, const TwoSlope& f, double factor, double scale,
                     const PairInput& in, const PairAngles& angles, const PairOutput& out) {
  // f(u) f(v) = jump relu(u) relu(v) + product u v + terms that are odd in (u, v).
  const double jump = (f.above - f.below) * (f.above - f.below) / (2 * kPi),
               product = f.below * f.above;
  const double root_scale = factor * jump * std::abs(scale), c_scale = factor * product * scale,
               size = std::abs(factor);
  const double q = kPi * jump / (kPi * jump + product);  // the share of relu's correlation in f's
  for (std::size_t i = 0; i < p.count; i += kLanes) {
    const Pack c = load(in.c + i), e = load(in.error + i), S = load(angles.S + i),
               phi = load(angles.phi + i), rest = load(angles.rest + i);
    const Pack root = load(p.root_a + i) * of_b(p, p.root_b, i);
    const Pack relu = root_scale * root * S, linear = c_scale * c, value = relu + linear;
    store(out.value + i, value);
    const Pack relative = load(p.error_a + i) + of_b(p, p.error_b, i),
               rounding = (4 * kEpsilon) *
                          (simd::abs(relu) + simd::abs(linear) + std::abs(root_scale) * root * phi);
    if (p.same) {  // factor |scale| (below^2 + above^2)/2 a
      store(out.error + i, 0.5 * relative * simd::abs(value) + rounding);
    } else {
      // dK/dc = jump phi + product, a dK/da = b dK/db = jump sqrt(ab - c^2) / 2
      const auto negative = scale * c < 0.0;
      const Pack sine_root =
          simd::abs(negative ? root * S + simd::abs(c) * phi : root * S - simd::abs(c) * phi);
      store(out.error + i, (size * std::abs(scale)) * (simd::abs(jump * phi + product) * e +
                                                       (0.5 * jump) * sine_root * relative) +
                               rounding);
    }
    if (!out.gap) continue;
    if (!in.gap) continue;
    const Pack t = load(in.gap + i), w = (q / kPi) * rest;
    const auto negative = scale * c < 0.0;
    const Pack rho = w - (1 - q) * (1.0 - t);  // for negative correlations
    const Pack opposite = rho < 0.0 ? q + w + (1 - q) * t : (2 - q) - w - (1 - q) * t;
    const Pack next = negative ? opposite : t - w;
    store(out.gap + i, root > 0.0 ? larger(next, Pack{}) : splat(1.0));
  }
}

void two_step_pairs(const PairColumn& p, const TwoStep& f, double factor, double,
                    const PairInput& in, const PairAngles& angles, const PairOutput& out) {
  const double jump = (f.above - f.below) * (f.above - f.below) / (2 * kPi),
               product = f.below * f.above;
  const double mean = 0.5 * (f.below + f.above),
               norm = 0.5 * (f.below * f.below + f.above * f.above);
  for (std::size_t i = 0; i < p.count; i += kLanes) {
    const Pack a = load(p.a + i), b = of_b(p, p.b, i), phi = load(angles.phi + i);
    const auto zero_a = a == 0.0, zero_b = b == 0.0, zero = zero_a | zero_b;
    const Pack constant =
        (zero_a ? splat(f.at_zero) : splat(mean)) * (zero_b ? splat(f.at_zero) : splat(mean));
    const Pack value = zero ? constant : jump * phi + product;
    store(out.value + i, factor * value);
    const Pack moved = zero ? Pack{} : (p.same ? 0.0 : jump) * load(angles.error_phi + i);
    store(out.error + i,
          std::abs(factor) * (moved + (2 * kEpsilon) * (simd::abs(value) + std::abs(product))));
    if (!out.gap) continue;
    const Pack norm_a = zero_a ? splat(f.at_zero * f.at_zero) : splat(norm),
               norm_b = zero_b ? splat(f.at_zero * f.at_zero) : splat(norm);
    const Pack root = simd::sqrt(norm_a * norm_b),
               far = 1.0 - simd::abs(value) / (root > 0.0 ? root : splat(1.0));
    const auto near = ~zero & (phi > 0.5 * kPi);
    // phi = pi - psi, and psi is needed with its own relative accuracy: from S - phi cos.. it is
    // acos(1 - t).
    Pack psi = kPi - phi;
    if (in.gap) {
      const Pack t = load(in.gap + i);
      psi = simd::angle(simd::sqrt(t * (2.0 - t)), 1.0 - t);
    }
    store(out.gap + i, p.same ? Pack{}
                       : near ? (jump / norm) * psi
                              : larger(root > 0.0 ? far : splat(1.0), Pack{}));
  }
}

GapError after_two_slope(const TwoSlope&, const GapError& e) {
  return {e.relative + 8 * kEpsilon, e.absolute, e.sine};
}

GapError after_two_step(const TwoStep& f, const GapError& e) {
  const double jump = (f.above - f.below) * (f.above - f.below) / (2 * kPi),
               norm = 0.5 * (f.below * f.below + f.above * f.above);
  return {0.5 * e.relative + 4 * kEpsilon, jump / norm * (std::sqrt(2 * e.absolute) + e.sine), 0};
}

void erf_pairs(const PairColumn& p, const ScaledErf& f, double factor, double scale,
               const PairInput& in, const PairOutput& out, MomentStatus& status) {
  // K = 2 A^2/pi asin(2 beta c / sqrt((1 + 2 beta a)(1 + 2 beta b))) + C^2
  const double beta = f.B * f.B * scale * scale, size = factor * 2 * f.A * f.A / kPi,
               constant = factor * f.C * f.C;
  alignas(64) double gap_buffer[kPairLanes], error_buffer[kPairLanes];
  for (std::size_t i = 0; i < p.count; i += kLanes) {
    const Pack a = load(p.a + i), b = of_b(p, p.b, i), c = load(in.c + i);
    Pack t;
    if (in.gap) {
      t = load(in.gap + i);
    } else {
      PairColumn one = p;
      one.count = kLanes;
      one.a += i, one.root_a += i, one.error_a += i;
      if (!p.one_b) one.b += i, one.root_b += i, one.error_b += i;
      gaps_of_values(one, in.c + i, in.error + i, gap_buffer, error_buffer, status);
      t = load(gap_buffer);
    }
    // (1 + 2 beta a)(1 + 2 beta b) - 4 beta^2 c^2, without its cancellation
    const Pack D = (a * b) * (t * (2.0 - t)), s2 = 1.0 + 2 * beta * (a + b) + 4 * beta * (beta * D),
               s = simd::sqrt(s2);
    const Pack tangent = 2 * beta * simd::abs(c) / s;
    const Pack value = size * simd::with_sign(simd::angle(2 * beta * simd::abs(c), s), c);
    store(out.value + i, value + constant);
    // dK/dc = size 2 beta / s, dK/da = -size tan beta / (1 + 2 beta a)
    const Pack by_c = 2 * beta / s, by_a = beta * tangent * a / (1.0 + 2 * beta * a),
               by_b = beta * tangent * b / (1.0 + 2 * beta * b);
    const Pack ea = load(p.error_a + i), eb = of_b(p, p.error_b, i);
    const Pack moved = p.same ? simd::abs(by_c * a - by_a - by_b) * ea
                              : by_c * load(in.error + i) + by_a * ea + by_b * eb;
    store(out.error + i,
          std::abs(size) * moved + (3 * kEpsilon) * (simd::abs(value) + std::abs(constant)));
  }
}

void bell_pairs(const PairColumn& p, const GaussBell& f, double factor, double scale,
                const PairInput& in, const PairOutput& out) {
  // K = A^2 / sqrt(d), d = 1 + 2 B (a + b) + 4 B^2 (ab - c^2)
  const double B = f.B * scale * scale, size = factor * f.A * f.A;
  for (std::size_t i = 0; i < p.count; i += kLanes) {
    const Pack a = load(p.a + i), b = of_b(p, p.b, i), c = load(in.c + i), t = load(in.gap + i);
    const Pack d = 1.0 + 2 * B * (a + b) + 4 * B * (B * ((a * b) * (t * (2.0 - t)))),
               value = size / simd::sqrt(d);
    store(out.value + i, value);
    // d log K/dc = 4 B^2 c / d, d log K/d log a = -B a (1 + 2 B b) / d
    const Pack by_c = 4 * B * B * simd::abs(c) / d, by_a = B * a * (1.0 + 2 * B * b) / d,
               by_b = B * b * (1.0 + 2 * B * a) / d;
    const Pack ea = load(p.error_a + i), eb = of_b(p, p.error_b, i);
    const Pack moved = p.same ? simd::abs(by_c * a - by_a - by_b) * ea
                              : by_c * load(in.error + i) + by_a * ea + by_b * eb;
    store(out.error + i, simd::abs(value) * (moved + 6 * kEpsilon));
  }
}

void add_pairs(const PairColumn& p, const PairInput& x, const PairColumn& q, const PairInput& y,
               const PairOutput& out) {
  const bool gaps = out.gap && x.gap && y.gap;
  for (std::size_t i = 0; i < p.count; i += kLanes) {
    const Pack c1 = load(x.c + i), c2 = load(y.c + i), value = c1 + c2;
    store(out.value + i, value);
    store(out.error + i,
          load(x.error + i) + load(y.error + i) + (0.5 * kEpsilon) * simd::abs(value));
    if (!gaps) continue;
    // With variances (a1, b1), (a2, b2): ab - c^2 = D1 + D2 + (sqrt(a1 b2) - sqrt(a2 b1))^2 + 2
    // sqrt(a1 b1 a2 b2) (1 - rho1 rho2).
    const Pack a1 = load(p.a + i), b1 = of_b(p, p.b, i), a2 = load(q.a + i), b2 = of_b(q, q.b, i);
    const Pack t1 = load(x.gap + i), t2 = load(y.gap + i);
    const Pack ab = (a1 + a2) * (b1 + b2), u = simd::sqrt(a1 * b2), v = simd::sqrt(a2 * b1),
               difference = u - v;
    const auto opposite = (c1 < 0.0) != (c2 < 0.0);
    const Pack both = t1 + t2 - t1 * t2;  // 1 - |rho1 rho2|
    const Pack D = a1 * b1 * (t1 * (2.0 - t1)) + a2 * b2 * (t2 * (2.0 - t2)) +
                   (difference * difference + 2.0 * u * v * (opposite ? 2.0 - both : both));
    const Pack s2 = D / (ab > 0.0 ? ab : splat(1.0));
    store(out.gap + i, ab > 0.0 ? gap_of_square(s2 > 1.0 ? splat(1.0) : s2,
                                                value / simd::sqrt(ab > 0.0 ? ab : splat(1.0)))
                                : splat(1.0));
  }
}

void multiply_pairs(std::size_t count, const PairInput& x, const PairInput& y,
                    const PairOutput& out) {
  const bool gaps = out.gap && x.gap && y.gap;
  for (std::size_t i = 0; i < count; i += kLanes) {
    const Pack u = load(x.c + i), v = load(y.c + i), value = u * v;
    store(out.value + i, value);
    store(out.error + i, load(x.error + i) * simd::abs(v) + load(y.error + i) * simd::abs(u) +
                             (0.5 * kEpsilon) * simd::abs(value));
    if (!gaps) continue;
    const Pack t1 = load(x.gap + i), t2 = load(y.gap + i);
    store(out.gap + i, t1 + t2 - t1 * t2);
  }
}

void gram_tile(std::size_t count, const double* x, std::size_t leading, const double* y,
               std::size_t depth, double* value, std::size_t leading_value) {
  for (std::size_t i = 0; i < count; i += kLanes) {
    Pack sum[kPairLanes] = {};
    for (std::size_t k = 0; k < depth; ++k) {
      const Pack row = load(x + i + k * leading);
      for (std::size_t j = 0; j < kPairLanes; ++j)
        sum[j] = mul_add(row, splat(y[j + k * kPairLanes]), sum[j]);
    }
    for (std::size_t j = 0; j < kPairLanes; ++j) store(value + i + j * leading_value, sum[j]);
  }
}

void gram_pairs(const PairColumn& p, const double* x, std::size_t leading, const double* y,
                std::size_t depth, const PairOutput& out) {
  for (std::size_t i = 0; i < p.count; i += kLanes) {
    const Pack c = load(out.value + i), root = load(p.root_a + i) * of_b(p, p.root_b, i);
    store(out.error + i, (kEpsilon * (2 + 0.5 * static_cast<double>(depth))) * root);
    if (!out.gap) continue;
    const Pack a = load(p.a + i), b = of_b(p, p.b, i), ab = a * b;
    Pack s2 = (ab - c * c) / (ab > 0.0 ? ab : splat(1.0));
    // Where this cancels: the distance of y to the line of x, whose error is quadratic in that of
    // its coefficient.
    const auto near = (ab > 0.0) & (s2 < 0.25);
    if (simd::any(std::bit_cast<simd::Bits>(near))) {
      // From the shorter to the longer one or the other way round by a rule that is symmetric in
      // both.
      const auto by_x = a >= b;
      const Pack m = c / (by_x ? (a > 0.0 ? a : splat(1.0)) : (b > 0.0 ? b : splat(1.0)));
      Pack square = {};
      for (std::size_t k = 0; k < depth; ++k) {
        const Pack u = load(x + i + k * leading), v = splat(y[k * kPairLanes]),
                   r = by_x ? mul_add(-m, u, v) : mul_add(-m, v, u);
        square = mul_add(r, r, square);
      }
      s2 = near ? square / (by_x ? (b > 0.0 ? b : splat(1.0)) : (a > 0.0 ? a : splat(1.0))) : s2;
    }
    s2 = s2 > 1.0 ? splat(1.0) : larger(s2, Pack{});
    store(out.gap + i,
          ab > 0.0 ? gap_of_square(s2, c / simd::sqrt(ab > 0.0 ? ab : splat(1.0))) : splat(1.0));
  }
}

void disturb_pairs(std::size_t count, std::uint64_t key, double* value, const double* error) {
  for (std::size_t i = 0; i < count; ++i) {
    std::uint64_t z =
        std::bit_cast<std::uint64_t>(value[i]) + key * 0x9e3779b97f4a7c15ULL;  // SplitMix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    value[i] += ((z >> 40) & 1) != 0 ? error[i] : -error[i];
  }
}

}  // namespace tplimit
