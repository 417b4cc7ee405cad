#include "tplimit/math/normals.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <boost/random/sobol.hpp>

#include "math/simd.hpp"
#include "tplimit/support/check.hpp"

// Integers, and doubles through + - * / sqrt without fused multiply-add: a normal has the same bits
// on every machine (given -ffp-contract=off), so a seed means the same numbers on every rank and
// every laptop.

namespace tplimit {
namespace {

using simd::kLanes;
using simd::Pack;
using simd::plain_horner;

constexpr std::uint64_t kGoldenRatio =
    0x9e3779b97f4a7c15;  // 2^64 / golden ratio, odd: the increment of splitmix64

/// Finaliser of splitmix64 (Stafford's variant 13): a bijection in which each input bit changes
/// each output bit with probability 1/2.
constexpr std::uint64_t finalise(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// Finaliser of MurmurHash3: the second round of plain_normals, with other constants than the
/// first.
constexpr std::uint64_t finalise_again(std::uint64_t z) {
  z = (z ^ (z >> 33)) * 0xff51afd7ed558ccd;
  z = (z ^ (z >> 33)) * 0xc4ceb9fe1a85ec53;
  return z ^ (z >> 33);
}

// -------------------------------------------------------------------------------------------------
// quantile Wichura (1988), Algorithm AS 241, routine PPND16: three rational functions.

/// |p - 1/2| up to which the central approximation holds.
constexpr double kCentral = 0.425;

/// Phi^-1(1/2 + q) for |q| <= kCentral.  Elsewhere the result means nothing.
Pack central_quantile(Pack q) {
  constexpr double kA[] = {3.3871328727963666080e0, 1.3314166789178437745e2,
                           1.9715909503065514427e3, 1.3731693765509461125e4,
                           4.5921953931549871457e4, 6.7265770927008700853e4,
                           3.3430575583588128105e4, 2.5090809287301226727e3};
  constexpr double kB[] = {1.0,
                           4.2313330701600911252e1,
                           6.8718700749205790830e2,
                           5.3941960214247511077e3,
                           2.1213794301586595867e4,
                           3.9307895800092710610e4,
                           2.8729085735721942674e4,
                           5.2264952788528545610e3};
  const Pack r = kCentral * kCentral - q * q;
  return q * plain_horner(r, kA) / plain_horner(r, kB);
}

/// |Phi^-1(t)| for t <= 1/2 - kCentral, given sqrt(-log t).
Pack tail_quantile(Pack root) {
  constexpr double kC[] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                           5.76949722146069140550e0,  3.64784832476320460504e0,
                           1.27045825245236838258e0,  2.41780725177450611770e-1,
                           2.27238449892691845833e-2, 7.74545014278341407640e-4};
  constexpr double kD[] = {1.0,
                           2.05319162663775882187e0,
                           1.67638483018380384940e0,
                           6.89767334985100004550e-1,
                           1.48103976427480074590e-1,
                           1.51986665636164571966e-2,
                           5.47593808499534494600e-4,
                           1.05075007164441684324e-9};
  const Pack r = root - 1.6;
  const Pack z = plain_horner(r, kC) / plain_horner(r, kD);
  const auto far = root > 5.0;
  if (!simd::any(std::bit_cast<simd::Bits>(far))) return z;  // t < e^-25: 3 in 10^11 normals
  constexpr double kE[] = {6.65790464350110377720e0,  5.46378491116411436990e0,
                           1.78482653991729133580e0,  2.96560571828504891230e-1,
                           2.65321895265761230930e-2, 1.24266094738807843860e-3,
                           2.71155556874348757815e-5, 2.01033439929228813265e-7};
  constexpr double kF[] = {1.0,
                           5.99832206555887937690e-1,
                           1.36929880922735805310e-1,
                           1.48753612908506148525e-2,
                           7.86869131145613259100e-4,
                           1.84631831751005468180e-5,
                           1.42151175831644588870e-7,
                           2.04426310338993978564e-15};
  const Pack s = root - 5.0;
  return far ? plain_horner(s, kE) / plain_horner(s, kF) : z;
}

/// Elements handled at once: the buffers stay in the first-level cache, and the tails of one block
/// fill several packs.
constexpr std::size_t kBlock = 256;
using Block = std::array<double, kBlock>;

/// out[i] = Phi^-1(1/2 + q[i]) for i < n; q[n..] is overwritten.  0 < |q[i]| < 1/2, and 1/2 -
/// |q[i]| is exact.
void centred_quantiles(Block& q, double* out, std::size_t n) {
  const std::size_t padded = (n + kLanes - 1) / kLanes * kLanes;
  std::fill(q.data() + n, q.data() + padded, 0.0);
  Block z;
  for (std::size_t i = 0; i < padded; i += kLanes)
    simd::store(&z[i], central_quantile(simd::load(&q[i])));

  // 15 in 100 are tails, rarely a whole pack of them: collect them (without a branch: it would be
  // mispredicted), then treat full packs.
  std::array<std::uint32_t, kBlock> position;
  std::size_t tails = 0;
  for (std::size_t i = 0; i < n; ++i) {
    position[tails] = static_cast<std::uint32_t>(i);
    tails += static_cast<std::size_t>(std::abs(q[i]) > kCentral);
  }
  Block t;
  for (std::size_t k = 0; k < tails; ++k) t[k] = q[position[k]];
  const std::size_t padded_tails = (tails + kLanes - 1) / kLanes * kLanes;
  std::fill(t.data() + tails, t.data() + padded_tails, kCentral);
  for (std::size_t k = 0; k < padded_tails; k += kLanes) {
    const Pack centred = simd::load(&t[k]);
    const Pack magnitude =
        tail_quantile(simd::sqrt(-simd::log_of_normal(0.5 - simd::abs(centred))));
    simd::store(&t[k], simd::with_sign(magnitude, centred));
  }
  for (std::size_t k = 0; k < tails; ++k) z[position[k]] = t[k];
  std::copy_n(z.data(), n, out);
}

// -------------------------------------------------------------------------------------------------
// Sobol
constexpr std::size_t kBits = 32;
using Directions = std::array<std::uint32_t, kBits>;

constexpr std::uint32_t reverse_bits(std::uint32_t x) {
  x = ((x >> 1) & 0x55555555) | ((x & 0x55555555) << 1);
  x = ((x >> 2) & 0x33333333) | ((x & 0x33333333) << 2);
  x = ((x >> 4) & 0x0f0f0f0f) | ((x & 0x0f0f0f0f) << 4);
  x = ((x >> 8) & 0x00ff00ff) | ((x & 0x00ff00ff) << 8);
  return (x >> 16) | (x << 16);
}

/// Direction numbers of all dimensions, bits reversed (the first binary digit of the point is bit
/// 0): the scramble wants them so.
const std::vector<Directions>& reversed_directions() {
  static const std::vector<Directions> table = [] {
    std::vector<Directions> directions(kSobolDimensions);
    boost::random::sobol_engine<std::uint32_t, kBits> engine(kSobolDimensions);
    for (std::size_t k = 0; k < kBits; ++k) {
      // The engine starts at point 1 and counts in Gray code: after seed(s) it gives the XOR of the
      // direction numbers of the bits of g = (s + 1) ^ ((s + 1) >> 1); s + 1 = 2^(k+1) - 1 makes g
      // = 2^k, so the point is direction number k itself.
      engine.seed(static_cast<std::uint32_t>((std::uint64_t{2} << k) - 2));
      for (Directions& dimension : directions) dimension[k] = reverse_bits(engine());
    }
    return directions;
  }();
  return table;
}

/// Nested uniform (Owen) scramble of bit-reversed 32-bit fractions.
/// Bit j of the result is bit j of x, flipped or not according to the lower bits of x alone: an
/// addition carries only upwards, an odd multiple and x ^ (even x) too.  Seen from the binary
/// point, each digit is flipped depending on the digits before it, which is Owen's scramble with a
/// hash in place of a table of random bits (Laine and Karras 2011; Burley 2020).  The even
/// constants are Vegdahl's (2021), chosen for avalanche; two keyed rounds instead of his one make
/// the flips of different nodes pairwise independent with 128 bits of key, and the estimates'
/// fourth moments that of true Owen scrambling too.
struct Scramble {
  std::uint32_t add1, multiply1, add2, multiply2;

  explicit Scramble(std::uint64_t key) {
    const std::uint64_t first = mix_key(key, 1);
    const std::uint64_t second = mix_key(key, 2);
    add1 = static_cast<std::uint32_t>(first);
    multiply1 = static_cast<std::uint32_t>(first >> 32) | 1;
    add2 = static_cast<std::uint32_t>(second);
    multiply2 = static_cast<std::uint32_t>(second >> 32) | 1;
  }

  std::uint32_t operator()(std::uint32_t x) const {
    x ^= x * 0x3d20adea;
    x = (x + add1) * multiply1;
    x ^= x * 0x05526c56;
    x = (x + add2) * multiply2;
    x ^= x * 0x53a22864;
    return x;
  }
};

}  // namespace

std::uint64_t mix_key(std::uint64_t key, std::uint64_t word) {
  return finalise(finalise(key + kGoldenRatio) + word * kGoldenRatio);
}

std::uint64_t hash_text(const char* text, std::size_t size) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, 64 bits: offset basis and prime
  for (std::size_t i = 0; i < size; ++i)
    hash = (hash ^ static_cast<unsigned char>(text[i])) * 0x100000001b3;
  return finalise(hash);
}

double normal_quantile(double p) {
  if (!(p > 0.0 && p < 1.0)) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    if (p == 0.0) return -kInfinity;
    if (p == 1.0) return kInfinity;
    return std::numeric_limits<double>::quiet_NaN();
  }
  // The packs of the array path with one lane in use: the same bits, by construction.
  const double q = p - 0.5;
  if (std::abs(q) <= kCentral) return central_quantile(simd::splat(q))[0];
  const double t = q < 0.0 ? p : 1.0 - p;
  const bool subnormal = t < std::numeric_limits<double>::min();
  const Pack log_t = subnormal ? simd::log_of_normal(simd::splat(t * 0x1p54), simd::splat(-54.0))
                               : simd::log_of_normal(simd::splat(t));
  return std::copysign(tail_quantile(simd::sqrt(-log_t))[0], q);
}

void plain_normals(std::uint64_t key, std::uint64_t first, std::span<double> out) {
  // Two keys, so that streams are not shifted copies of each other: the first places the stream on
  // the Weyl sequence, the second changes what is made of it.
  const std::uint64_t start = mix_key(key, 1) + first * kGoldenRatio;
  const std::uint64_t twist = mix_key(key, 2);
  Block q;
  for (std::size_t begin = 0; begin < out.size(); begin += kBlock) {
    const std::size_t n = std::min(kBlock, out.size() - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint64_t bits =
          finalise_again(finalise(start + (begin + i) * kGoldenRatio) ^ twist);
      // 52 bits k as 1 + k 2^-52, then q = +-(k + 1/2) 2^-53 with the sign from another bit; each
      // step is exact.
      const double magnitude =
          0.5 * (std::bit_cast<double>((bits >> 12) | 0x3ff0000000000000) - 1.0 + 0x1p-53);
      q[i] = std::bit_cast<double>(std::bit_cast<std::uint64_t>(magnitude) | (bits << 63));
    }
    centred_quantiles(q, out.data() + begin, n);
  }
}

void sobol_normals(std::size_t dimension, std::uint64_t key, std::uint64_t first,
                   std::span<double> out) {
  TPLIMIT_CHECK(dimension < kSobolDimensions, "a Sobol dimension below {}, not {}",
                kSobolDimensions, dimension);
  TPLIMIT_CHECK(
      first <= (std::uint64_t{1} << kBits) && out.size() <= (std::uint64_t{1} << kBits) - first,
      "Sobol points below 2^{}, not {} from number {} on", kBits, out.size(), first);
  if (out.empty()) return;
  const Directions& v = reversed_directions()[dimension];
  const Scramble scramble(key);

  // Point i is the XOR of v[k] over the bits k of i: a table for the lower 8 bits, combined with
  // one word for the others.
  constexpr std::size_t kLow = std::bit_width(kBlock) - 1;
  std::array<std::uint32_t, kBlock> low;
  low[0] = 0;
  const std::size_t offset = first % kBlock;
  const std::size_t entries =
      std::min(kBlock, offset + out.size());  // short calls fill only what they read
  for (std::size_t k = 0, size = 1; size < entries; ++k, size *= 2) {
    for (std::size_t i = 0; i < size; ++i) low[size + i] = low[i] ^ v[k];
  }
  Directions prefix;  // prefix[k] = v[0] ^ .. ^ v[k] over the upper bits: what changes when the
                      // count of blocks passes to a multiple of 2^k
  std::uint32_t high = 0;
  std::uint64_t block = first / kBlock;
  for (std::size_t k = kLow; k < kBits; ++k) {
    prefix[k - kLow] = v[k] ^ (k == kLow ? 0 : prefix[k - kLow - 1]);
    if ((block >> (k - kLow)) & 1) high ^= v[k];
  }

  Block q;
  std::size_t from = offset;
  for (std::size_t begin = 0; begin < out.size();) {
    const std::size_t n = std::min(kBlock - from, out.size() - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t k = reverse_bits(scramble(low[from + i] ^ high));
      // q = (k + 1/2) 2^-32 - 1/2, through a signed integer: that conversion is the one every
      // vector unit has.
      q[i] = (static_cast<double>(static_cast<std::int32_t>(k ^ 0x80000000)) + 0.5) * 0x1p-32;
    }
    centred_quantiles(q, out.data() + begin, n);
    begin += n;
    from = 0;
    ++block;
    if (begin < out.size()) high ^= prefix[static_cast<std::size_t>(std::countr_zero(block))];
  }
}

}  // namespace tplimit
