#include "tplimit/math/dual_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <type_traits>
#include <utility>

#include "math/angle.hpp"
#include "math/simd.hpp"
#include "tplimit/math/vector_functions.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {
namespace {

using simd::angle;
using simd::Bits;
using simd::kLanes;
using simd::load;
using simd::mul_add;
using simd::Pack;
using simd::product_error;
using simd::sine_less_product;
using simd::splat;
using simd::store;

constexpr double kPi = std::numbers::pi;
constexpr double kLargest = std::numeric_limits<double>::max();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Buffer = double[256];  // a few dozen of them stay in the first-level cache
constexpr std::size_t kBlock = std::extent_v<Buffer>;

bool any_of(auto mask) { return simd::any(std::bit_cast<Bits>(mask)); }

/// Some covariances, checked and padded with (1, 1, 0) to whole packs.
struct Block {
  alignas(simd::kBytes) Buffer a, b, c;  ///< c clamped to the bound
  alignas(simd::kBytes) Buffer D;        ///< ab - c^2 >= 0, from exact products
  alignas(simd::kBytes) Buffer root;     ///< sqrt(ab)
  alignas(simd::kBytes) Buffer rho;      ///< c/root; 0 where a or b is 0
  alignas(simd::kBytes)
      Buffer sine;  ///< sqrt(D)/root, with the relative accuracy of D; 1 where a or b is 0
  alignas(simd::kBytes) Buffer poison;  ///< NaN where the entry is no covariance, else 0
  std::size_t size = 0, padded = 0;
  bool degenerate = false;  ///< some a or b is 0
  bool constant_a = false, constant_b = false, first = true;

  void fill(std::span<const double> from_a, std::span<const double> from_b,
            std::span<const double> from_c, std::size_t begin);
  void prepare(MomentStatus& status);
};

void Block::fill(std::span<const double> from_a, std::span<const double> from_b,
                 std::span<const double> from_c, std::size_t begin) {
  size = std::min(kBlock, from_c.size() - begin);
  padded = (size + kLanes - 1) / kLanes * kLanes;
  constant_a = from_a.size() == 1 && from_c.size() != 1;
  constant_b = from_b.size() == 1 && from_c.size() != 1;
  first = begin == 0;
  const auto copy = [&](std::span<const double> from, bool constant, double padding, Buffer& to) {
    if (constant)
      std::fill_n(to, size, from[0]);
    else
      std::copy_n(from.data() + begin, size, to);
    std::fill(to + size, to + padded, padding);
  };
  copy(from_a, constant_a, 1, a);
  copy(from_b, constant_b, 1, b);
  copy(from_c, false, 0, c);
}

void Block::prepare(MomentStatus& status) {
  Pack excess = {};
  for (std::size_t i = 0; i < padded; i += kLanes) {
    Pack A = load(a + i), B = load(b + i), C = load(c + i);
    const Pack given_a = A, given_b = B, given_c = C;
    const auto valid_variances = (A >= 0.0) & (A <= kLargest) & (B >= 0.0) & (B <= kLargest);
    A = valid_variances ? simd::abs(A) : splat(1.0);
    B = valid_variances ? simd::abs(B) : splat(1.0);
    auto [up_a, up_b, p, Cs, Ds] = simd::determinant_of(A, B, C);
    const auto valid = valid_variances & (Ds >= -kLargestExcess * p);
    const auto above = valid & (Ds < 0.0);
    const Pack root_s = simd::sqrt(p);
    if (any_of(above)) {
      const Pack e = above ? -Ds / p : Pack{};
      excess = e > excess ? e : excess;
      Cs = above ? simd::with_sign(root_s, Cs) : Cs;
      C = above ? Cs * up_a * up_b : C;
    }
    const auto zero = p == 0.0;
    Ds = valid & (Ds > 0.0) ? Ds : Pack{};
    const Pack inverse = 1.0 / (zero ? splat(1.0) : root_s);
    store(rho + i, (valid & (p > 0.0)) ? Cs * inverse : Pack{});
    store(sine + i, zero ? splat(1.0) : simd::sqrt(Ds) * inverse);
    store(root + i, root_s * up_a * up_b);
    store(D + i, Ds * up_a * up_b * up_a * up_b);
    store(a + i, A);
    store(b + i, B);
    store(c + i, valid ? C : Pack{});
    store(poison + i, valid ? Pack{} : splat(kNan));
    degenerate |= any_of(zero);
    if (status.bad_index == kNoIndex && any_of(~valid))
      for (std::size_t k = i; k < std::min(i + kLanes, size); ++k)
        if (poison[k] != 0) {
          status.bad_index = k;
          status.bad_entry = {given_a[k - i], given_b[k - i], given_c[k - i]};
          break;
        }
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane)
    status.largest_excess = std::max(status.largest_excess, excess[lane]);
}

/// E relu(u) relu(v)/sqrt(ab) and E 1[u > 0] 1[v > 0].
[[gnu::always_inline]] inline std::pair<Pack, Pack> relu_pair(Pack rho, Pack sine) {
  const auto negative = rho < 0.0;
  const Pack magnitude = simd::abs(rho);
  const Pack psi = angle(sine, magnitude);
  const Pack phi =
      negative ? psi : kPi - psi;  // pi - theta, the angle of the sector where u and v are positive
  Pack R = mul_add(rho, phi, sine);
  R = negative ? sine_less_product(phi, R) : R;
  return {R * (0.5 / kPi), phi * (0.5 / kPi)};
}

/// For f with a jump at 0: the entries with a = 0 or b = 0, where u and v are independent, E f(u)
/// f(v) = E f(u) E f(v).
void fix_degenerate(const Block& block, double mean, double at_zero, double* out) {
  if (!block.degenerate) return;
  for (std::size_t i = 0; i < block.size; ++i)
    if (block.a[i] == 0 || block.b[i] == 0)
      out[i] = (block.a[i] == 0 ? at_zero : mean) * (block.b[i] == 0 ? at_zero : mean);
}

// One struct per family: evaluates K and K' (null: not wanted) of a block.

struct TwoSlopeKernel {
  TwoSlope f;
  void operator()(const Block& t, double* K, double* K_prime) const {
    const double jump = (f.above - f.below) * (f.above - f.below), product = f.below * f.above;
    // f(u) f(v) = jump relu(u) relu(v) + product u v + terms that are odd in (u, v).
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      const auto [R, S] = relu_pair(load(t.rho + i), load(t.sine + i));
      if (K) store(K + i, jump * (load(t.root + i) * R) + product * load(t.c + i));
      if (K_prime) store(K_prime + i, jump * S + product);
    }
    if (K_prime) fix_degenerate(t, 0.5 * (f.below + f.above), f.slope_at_zero, K_prime);
  }
};

struct TwoStepKernel {
  TwoStep f;
  void operator()(const Block& t, double* K, double* K_prime) const {
    const double jump = (f.above - f.below) * (f.above - f.below), product = f.below * f.above;
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      if (K) store(K + i, jump * relu_pair(load(t.rho + i), load(t.sine + i)).second + product);
      if (K_prime) store(K_prime + i, Pack{});
    }
    if (K) fix_degenerate(t, 0.5 * (f.below + f.above), f.at_zero, K);
  }
};

double factorial(int n) {
  double result = 1;
  for (int k = 2; k <= n; ++k) result *= k;
  return result;
}

/// max(x, 0)^n, n >= 2.  In polar coordinates, with phi = pi - theta and x = cos phi = -rho,
///   K = (ab)^(n/2) n!/(2 pi) I_n,  I_n = int_0^phi (cos g - cos phi)^n dg,
///   n I_n = -(2n - 1) x I_(n-1) + (n - 1)(1 - x^2) I_(n-2) (by parts),
/// whose terms are positive for rho >= 0.  For rho < 0, with S = sin^2(phi/2) <= 1/2,
///   I_n = 2^n B(1/2, n + 1) S^(n + 1/2) 2F1(1/2, 1/2; n + 3/2; S) (by sin(g/2) = t sin(phi/2)),
///   again without cancellation.
class ReluPowerKernel {
 public:
  explicit ReluPowerKernel(int n) : n_(n), high_(n), low_(n - 1) {}
  void operator()(const Block& t, double* K, double* K_prime) const {
    const double scale = factorial(n_) / (2 * kPi);
    const double scale_prime =
        static_cast<double>(n_) * static_cast<double>(n_) * factorial(n_ - 1) / (2 * kPi);
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      const Pack rho = load(t.rho + i), sine = load(t.sine + i), root = load(t.root + i);
      const auto negative = rho < 0.0;
      Pack before = kPi - angle(sine, simd::abs(rho));
      Pack I = mul_add(rho, before, sine);
      Pack power = root;  // root^(n - 1)
      for (int k = 2; k <= n_; ++k) {
        const Pack next =
            ((2 * k - 1) * rho * I + (k - 1) * (sine * sine) * before) * splat(1.0 / k);
        before = I;
        I = next;
        if (k > 2) power = power * root;
      }
      if (any_of(negative)) {
        // 2 S = 1 - |rho| = sine^2/(1 + |rho|)
        const Pack root_S = sine / simd::sqrt(2.0 + 2.0 * simd::abs(rho));
        const Pack S = root_S * root_S;
        Pack power_S = root_S;  // S^(n - 1/2)
        for (int k = 1; k < n_; ++k) power_S = power_S * S;
        if (K) I = negative ? high_(S) * (power_S * S) : I;
        if (K_prime) before = negative ? low_(S) * power_S : before;
      }
      if (K) store(K + i, scale * I * power * root);
      if (K_prime) store(K_prime + i, scale_prime * before * power);
    }
  }

 private:
  /// 2^n B(1/2, n + 1) 2F1(1/2, 1/2; n + 3/2; S) for 0 <= S <= 1/2, a series with positive terms.
  struct Hypergeometric {
    explicit Hypergeometric(int n) {
      double c = 2;  // 2^n B(1/2, n + 1), by B(1/2, n + 1) = 2n/(2n + 1) B(1/2, n)
      for (int k = 1; k <= n; ++k) c *= 2 * (2.0 * k) / (2.0 * k + 1);
      double relative = 1;
      for (int k = 0; relative > 1e-18; ++k) {
        coefficients.push_back(c);
        const double ratio = (k + 0.5) * (k + 0.5) / ((k + 1.0) * (n + k + 1.5));
        c *= ratio;
        relative *= 0.5 * ratio;
      }
    }
    Pack operator()(Pack S) const {
      Pack sum = {};
      for (std::size_t k = coefficients.size(); k-- > 0;)
        sum = mul_add(sum, S, splat(coefficients[k]));
      return sum;
    }
    std::vector<double> coefficients;
  };

  int n_;
  Hypergeometric high_, low_;
};

struct ErfKernel {
  ScaledErf f;
  void operator()(const Block& t, double* K, double* K_prime) const {
    const double beta = f.B * f.B;
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      // (1 + 2 beta a)(1 + 2 beta b) - 4 beta^2 c^2, without its cancellation
      const Pack s = simd::sqrt(1.0 + 2 * beta * (load(t.a + i) + load(t.b + i)) +
                                4 * beta * (beta * load(t.D + i)));
      const Pack c = load(t.c + i);
      if (K)
        store(K + i, 2 * f.A * f.A / kPi * simd::with_sign(angle(2 * beta * simd::abs(c), s), c) +
                         f.C * f.C);
      if (K_prime) store(K_prime + i, 4 * f.A * f.A * beta / kPi / s);
    }
  }
};

struct GaussBellKernel {
  GaussBell f;
  void operator()(const Block& t, double* K, double* K_prime) const {
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      const Pack a = load(t.a + i), b = load(t.b + i);
      const Pack d = 1.0 + 2 * f.B * (a + b) + 4 * f.B * (f.B * load(t.D + i));
      const auto finite = (1.0 + 2 * f.B * a > 0.0) & (1.0 + 2 * f.B * b > 0.0) & (d > 0.0);
      const Pack value =
          finite ? f.A * f.A / simd::sqrt(d) : splat(std::numeric_limits<double>::infinity());
      if (K) store(K + i, value);
      if (K_prime) store(K_prime + i, 4 * f.B * f.B * load(t.c + i) * value / d);
    }
  }
};

/// K and K' of x Phi(x): s^2 = (1 + a)(1 + b) - c^2, t = atan2(c, s).
struct GeluTerms {
  Pack a, b, c, s, inverse_a, inverse_b, t;
  [[gnu::always_inline]] GeluTerms(const Block& block, std::size_t i)
      : a(load(block.a + i)), b(load(block.b + i)), c(load(block.c + i)) {
    s = simd::sqrt(1.0 + a + b + load(block.D + i));
    inverse_a = 1.0 / (1.0 + a);
    inverse_b = 1.0 / (1.0 + b);
    t = simd::with_sign(angle(simd::abs(c), s), c);
  }
  Pack K() const {
    const Pack rest = (c * inverse_a) * (c * inverse_b) / s + (a * inverse_a) * (b * inverse_b) * s;
    return 0.25 * c + (0.5 / kPi) * (c * t + rest);
  }
  Pack K_prime() const {
    return 0.25 + (0.5 / kPi) * (t + (c / s) * (1.0 / (s * s) + inverse_a + inverse_b));
  }
};

struct GeluKernel {
  Gelu f;
  void operator()(const Block& block, double* K, double* K_prime) const {
    for (std::size_t i = 0; i < block.padded; i += kLanes) {
      const GeluTerms terms(block, i);
      if (K) store(K + i, f.A * f.A * terms.K());
      if (K_prime) store(K_prime + i, f.A * f.A * terms.K_prime());
    }
  }
};

struct GeluDerivativeKernel {
  GeluDerivative f;
  void operator()(const Block& block, double* K, double* K_prime) const {
    for (std::size_t i = 0; i < block.padded; i += kLanes) {
      const GeluTerms terms(block, i);
      if (K) store(K + i, f.A * f.A * terms.K_prime());
      if (K_prime) {
        // gelu'' = phi (2 - x^2): 1/(2 pi s) times E (2 - x^2)(2 - y^2) under the covariance Sigma
        // (I + Sigma)^-1.
        const Pack inverse = 1.0 / (terms.s * terms.s), D = load(block.D + i);
        const Pack a = (terms.a + D) * inverse, b = (terms.b + D) * inverse, c = terms.c * inverse;
        store(K_prime + i,
              (f.A * f.A * 0.5 / kPi) * ((2.0 - a) * (2.0 - b) + 2.0 * c * c) / terms.s);
      }
    }
  }
};

/// With m = exp(-w^2 (a + b - 2c)/2) and q = exp(-w^2 (a + b + 2c)/2): K = A^2/2 (m - q cos 2p) =
/// A^2/2 (m - q + 2 q sin^2 p), K' = A^2 w^2/2 (m - q + 2 q cos^2 p), and m - q by expm1, because
/// all of K may be small.
struct SineKernel {
  Sine f;
  void operator()(const Block& t, double* K, double* K_prime) const {
    const double w2 = f.w * f.w, sine = std::sin(f.p), cosine = std::cos(f.p);
    alignas(simd::kBytes) Buffer larger, q, difference;
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      const Pack a = load(t.a + i), b = load(t.b + i), c = load(t.c + i), magnitude = simd::abs(c);
      store(larger + i, -0.5 * w2 * ((a - magnitude) + (b - magnitude)));
      store(q + i, -0.5 * w2 * ((a + c) + (b + c)));
      store(difference + i, -2 * w2 * magnitude);
    }
    vector_exp(larger, larger, t.padded);
    vector_exp(q, q, t.padded);
    vector_expm1(difference, difference, t.padded);
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      const Pack d = simd::with_sign(load(larger + i) * -load(difference + i), load(t.c + i));
      if (K) store(K + i, (0.5 * f.A * f.A) * (d + 2 * sine * sine * load(q + i)));
      if (K_prime)
        store(K_prime + i, (0.5 * f.A * f.A * w2) * (d + 2 * cosine * cosine * load(q + i)));
    }
  }
};

struct ExpKernel {
  ScaledExp f;
  void operator()(const Block& t, double* K, double* K_prime) const {
    alignas(simd::kBytes) Buffer x, correction;
    const Pack g = splat(f.B * f.B), g_rest = product_error(splat(f.B), splat(f.B), g);
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      // The exponent's own rounding error would be multiplied by the exponent: carry it along.
      const Pack half_a = 0.5 * load(t.a + i), half_b = 0.5 * load(t.b + i), c = load(t.c + i);
      const auto add = [](Pack p, Pack q, Pack& rest) {
        const Pack sum = p + q, part = sum - p;
        rest = rest + ((p - (sum - part)) + (q - part));
        return sum;
      };
      Pack rest = {};
      const Pack sum = add(add(half_a, half_b, rest), c, rest);
      const Pack product = g * sum;
      store(x + i, product);
      store(correction + i, product_error(g, sum, product) + (g * rest + g_rest * sum));
    }
    vector_exp(x, x, t.padded);
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      const Pack e = load(x + i), r = load(correction + i);
      const Pack value = f.A * f.A * (e <= kLargest ? mul_add(e, r, e) : e);
      if (K) store(K + i, value);
      if (K_prime) store(K_prime + i, f.B * f.B * value);
    }
  }
};

/// K = sum_l Q_l(a) Q_l(b) c^l with Q_l(q) = E f^(l)/sqrt(l!) = sum_i w_li q^i, w_li = c_(l+2i)
/// (l+2i)!/(2^i i! sqrt(l!)). Coefficients of such sums may cancel (all Q_l but one vanish for a
/// Hermite polynomial): weights have two parts, and Horner's rule carries its rounding errors along
/// (Graillat, Langlois, Louvet).
class PolynomialKernel {
 public:
  explicit PolynomialKernel(const Polynomial& f) {
    const std::size_t n = f.coefficients.size();
    weights_.resize(n);
    long double root_factorial = 1;
    for (std::size_t l = 0; l < n; ++l) {
      if (l > 0) root_factorial *= std::sqrt(static_cast<long double>(l));
      long double w = root_factorial;
      for (std::size_t i = 0; l + 2 * i < n; ++i) {
        const auto above = static_cast<long double>(l + 2 * i);
        if (i > 0) w *= above * (above - 1) / static_cast<long double>(2 * i);
        const long double weight = f.coefficients[l + 2 * i] * w;
        const auto high = static_cast<double>(weight);
        const auto low = static_cast<double>(weight - static_cast<long double>(high));
        weights_[l].push_back({high, std::isfinite(high) ? low : 0});
      }
    }
    of_a_.resize(n * kBlock);
    of_b_.resize(n * kBlock);
  }

  void operator()(const Block& t, double* K, double* K_prime) {
    if (t.first || !t.constant_a) evaluate(t.a, t.padded, t.constant_a, of_a_);
    if (t.first || !t.constant_b) evaluate(t.b, t.padded, t.constant_b, of_b_);
    for (std::size_t i = 0; i < t.padded; i += kLanes) {
      const Pack c = load(t.c + i);
      Pack sum = {}, sum_prime = {};
      for (std::size_t l = weights_.size(); l-- > 0;) {
        const Pack term = load(of_a_.data() + l * kBlock + i) * load(of_b_.data() + l * kBlock + i);
        if (l > 0) sum_prime = mul_add(sum_prime, c, static_cast<double>(l) * term);
        sum = mul_add(sum, c, term);
      }
      if (K) store(K + i, sum);
      if (K_prime) store(K_prime + i, sum_prime);
    }
  }

 private:
  struct Weight {
    double high, low;
  };

  void evaluate(const double* q, std::size_t padded, bool constant,
                std::vector<double>& out) const {
    for (std::size_t l = 0; l < weights_.size(); ++l) {
      double* row = out.data() + l * kBlock;
      for (std::size_t i = 0; i < (constant ? kLanes : padded); i += kLanes) {
        const Pack x = load(q + i);
        Pack sum = {}, rest = {};
        for (std::size_t k = weights_[l].size(); k-- > 0;) {
          const Weight w = weights_[l][k];
          const Pack product = sum * x;
          const Pack product_rest = product_error(sum, x, product);
          sum = product + w.high;
          const Pack part = sum - product;
          rest =
              mul_add(rest, x, product_rest + ((product - (sum - part)) + (w.high - part)) + w.low);
        }
        const Pack total = sum + rest;
        store(row + i, total == total ? total : sum);  // overflow shows as infinity
      }
      if (constant) std::fill_n(row, kBlock, row[0]);
    }
  }

  std::vector<std::vector<Weight>> weights_;
  std::vector<double> of_a_, of_b_;
};

template <class Kernel>
MomentStatus sweep(Kernel kernel, std::span<const double> a, std::span<const double> b,
                   std::span<const double> c, std::span<double> K, std::span<double> K_prime) {
  MomentStatus status;
  Block block;
  alignas(simd::kBytes) Buffer value, value_prime;
  for (std::size_t begin = 0; begin < c.size(); begin += kBlock) {
    block.fill(a, b, c, begin);
    block.degenerate = false;
    MomentStatus part;
    block.prepare(part);
    kernel(block, K.empty() ? nullptr : value, K_prime.empty() ? nullptr : value_prime);
    const auto finish = [&](double* from, std::span<double> to) {
      Bits infinite = {};
      for (std::size_t i = 0; i < block.padded; i += kLanes) {
        const Pack x = load(from + i), poison = load(block.poison + i);
        infinite |= std::bit_cast<Bits>(~(simd::abs(x) <= kLargest) & (poison == 0.0));
        store(from + i, x + poison);
      }
      part.overflow |= simd::any(infinite);
      std::copy_n(from, block.size, to.data() + begin);
    };
    if (!K.empty()) finish(value, K);
    if (!K_prime.empty()) finish(value_prime, K_prime);
    status.merge(part, begin);
  }
  return status;
}

/// mean[i] = f(a[i]) where a[i] is a variance.
template <class Function>
MomentStatus sweep_mean(std::span<const double> a, std::span<double> mean, const Function& f) {
  MomentStatus status;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const bool valid = a[i] >= 0 && a[i] <= kLargest;
    if (!valid && status.bad_index == kNoIndex) {
      status.bad_index = i;
      status.bad_entry = {a[i], a[i], a[i]};
    }
    mean[i] = valid ? f(a[i]) : kNan;
    status.overflow |= valid && !std::isfinite(mean[i]);
  }
  return status;
}

/// E max(u, 0)^n/a^(n/2) = 2^(n/2 - 1) Gamma((n + 1)/2)/sqrt(pi).
double relu_power_mean(int n) {
  double result = n % 2 == 0 ? 0.5 : 1 / std::sqrt(2 * kPi);
  for (int k = 2 + n % 2; k <= n; k += 2) result *= k - 1;
  return result;
}

double half_power(double a, int n) {
  const double whole = std::pow(a, n / 2);
  return n % 2 == 0 ? whole : whole * std::sqrt(a);
}

/// sum_m of coefficients of even (or odd: of the derivative) degree times moments; compensated as
/// in PolynomialKernel.
struct PolynomialMean {
  std::vector<long double> weights;
  PolynomialMean(const Polynomial& f, std::size_t first) {
    long double moment = 1;  // (2m - 1)!!
    for (std::size_t j = first; j < f.coefficients.size(); j += 2) {
      const std::size_t m = j / 2;
      if (m > 0) moment *= static_cast<long double>(2 * m - 1);
      weights.push_back(f.coefficients[j] * moment *
                        (first == 1 ? static_cast<long double>(j) : 1.0L));
    }
  }
  double operator()(double a) const {
    long double sum = 0;
    for (std::size_t m = weights.size(); m-- > 0;) sum = sum * a + weights[m];
    return static_cast<double>(sum);
  }
};

/// Both pieces as powers of u+ and (-u)+: x^k is (-1)^k (-x)^k below 0.
struct PiecewiseKernel {
  const PiecewisePolynomial &f, &g;

  static double above(const PiecewisePolynomial& p, std::size_t k) {
    return k < p.above.size() ? p.above[k] : 0;
  }
  static double below(const PiecewisePolynomial& p, std::size_t k) {
    return k < p.below.size() ? (k % 2 == 0 ? p.below[k] : -p.below[k]) : 0;
  }
  static std::size_t size(const PiecewisePolynomial& p) {
    return std::max(p.below.size(), p.above.size());
  }
  static double mean(const PiecewisePolynomial& p, double a) {
    if (a == 0) return p.at_zero;
    double sum = 0;
    for (std::size_t k = 0; k < size(p); ++k)
      sum += (above(p, k) + below(p, k)) * relu_power_mean(static_cast<int>(k)) *
             half_power(a, static_cast<int>(k));
    return sum;
  }

  /// J[m + M k] = E x+^m y+^k of standard normals with correlation rho.
  static void moments(double rho, double sine, std::size_t M, std::size_t N,
                      const std::vector<double>& half, std::vector<double>& J) {
    const double density = 1 / std::sqrt(2 * kPi);
    const auto edge = [&](std::size_t k) -> double {  // E x+^k 1[y > 0]
      if (k == 0) return std::atan2(sine, -rho) / (2 * kPi);
      if (k == 1) return 0.5 * density * (rho < 0 ? sine * sine / (1 - rho) : 1 + rho);
      return 0;
    };
    J.assign(M * N, 0.0);
    for (std::size_t m = 0; m < M; ++m)
      J[m] = m < 2 ? edge(m)
                   : static_cast<double>(m - 1) * J[m - 2] +
                         rho * density * std::pow(sine, static_cast<double>(m - 1)) * half[m - 1];
    std::vector<double> other(N);
    for (std::size_t k = 0; k < N; ++k) {
      other[k] = k < 2
                     ? edge(k)
                     : static_cast<double>(k - 1) * other[k - 2] +
                           rho * density * std::pow(sine, static_cast<double>(k - 1)) * half[k - 1];
      J[M * k] = other[k];
    }
    for (std::size_t k = 1; k < N; ++k)
      for (std::size_t m = 1; m < M; ++m) {
        const double lower = m == 1 ? density * std::pow(sine, static_cast<double>(k)) * half[k]
                                    : static_cast<double>(m - 1) * J[m - 2 + M * k];
        J[m + M * k] = lower + rho * static_cast<double>(k) * J[m - 1 + M * (k - 1)];
      }
  }

  void operator()(const Block& t, double* K, double*) const {
    const std::size_t M = size(f), N = size(g);
    std::vector<double> half, same, opposite;
    for (std::size_t k = 0; k < std::max(M, N); ++k)
      half.push_back(relu_power_mean(static_cast<int>(k)));
    std::fill_n(K, t.padded, 0.0);
    for (std::size_t i = 0; i < t.size; ++i) {
      if (t.a[i] == 0 || t.b[i] == 0) {
        K[i] = mean(f, t.a[i]) * mean(g, t.b[i]);
        continue;
      }
      moments(t.rho[i], t.sine[i], M, N, half, same);
      moments(-t.rho[i], t.sine[i], M, N, half, opposite);
      const double root_a = std::sqrt(t.a[i]), root_b = std::sqrt(t.b[i]);
      double scale_b = 1;
      for (std::size_t k = 0; k < N; ++k, scale_b *= root_b) {
        double scale = scale_b;
        for (std::size_t m = 0; m < M; ++m, scale *= root_a) {
          const double both = above(f, m) * above(g, k) + below(f, m) * below(g, k),
                       mixed = above(f, m) * below(g, k) + below(f, m) * above(g, k);
          if (both != 0) K[i] += scale * both * same[m + M * k];
          if (mixed != 0) K[i] += scale * mixed * opposite[m + M * k];
        }
      }
    }
  }
};

}  // namespace

void MomentStatus::merge(const MomentStatus& part, std::size_t first) {
  largest_excess = std::max(largest_excess, part.largest_excess);
  if (part.bad_index != kNoIndex && (bad_index == kNoIndex || first + part.bad_index < bad_index)) {
    bad_index = first + part.bad_index;
    bad_entry = part.bad_entry;
  }
  overflow |= part.overflow;
}

MomentStatus dual_kernel(const DualFunction& f, std::span<const double> a,
                         std::span<const double> b, std::span<const double> c, std::span<double> K,
                         std::span<double> K_prime) {
  const auto fits = [&](std::size_t size, std::size_t other) {
    return size == c.size() || size == other;
  };
  TPLIMIT_CHECK(fits(a.size(), 1) && fits(b.size(), 1),
                "variances for {} covariances or one, not {} and {}", c.size(), a.size(), b.size());
  TPLIMIT_CHECK(fits(K.size(), 0) && fits(K_prime.size(), 0),
                "room for {} results or none, not {} and {}", c.size(), K.size(), K_prime.size());
  const auto run = [&](auto kernel) { return sweep(std::move(kernel), a, b, c, K, K_prime); };
  return std::visit(
      overloaded{[&](const TwoSlope& g) { return run(TwoSlopeKernel{g}); },
                 [&](const TwoStep& g) { return run(TwoStepKernel{g}); },
                 [&](const ReluPower& g) {
                   TPLIMIT_CHECK(g.n >= 0, "a power n >= 0, not {}", g.n);
                   if (g.n == 0) return run(TwoStepKernel{{0, 1, 0}});
                   if (g.n == 1) return run(TwoSlopeKernel{{0, 1, 0}});
                   return run(ReluPowerKernel(g.n));
                 },
                 [&](const ScaledErf& g) { return run(ErfKernel{g}); },
                 [&](const GaussBell& g) { return run(GaussBellKernel{g}); },
                 [&](const Gelu& g) { return run(GeluKernel{g}); },
                 [&](const GeluDerivative& g) { return run(GeluDerivativeKernel{g}); },
                 [&](const Sine& g) { return run(SineKernel{g}); },
                 [&](const ScaledExp& g) { return run(ExpKernel{g}); },
                 [&](const Polynomial& g) { return run(PolynomialKernel(g)); }},
      f);
}

MomentStatus piecewise_kernel(const PiecewisePolynomial& f, const PiecewisePolynomial& g,
                              std::span<const double> a, std::span<const double> b,
                              std::span<const double> c, std::span<double> K) {
  const auto fits = [&](std::size_t size) { return size == c.size() || size == 1; };
  TPLIMIT_CHECK(fits(a.size()) && fits(b.size()),
                "variances for {} covariances or one, not {} and {}", c.size(), a.size(), b.size());
  TPLIMIT_CHECK(K.size() == c.size(), "room for {} results, not {}", c.size(), K.size());
  return sweep(PiecewiseKernel{f, g}, a, b, c, K, {});
}

MomentStatus piecewise_mean(const PiecewisePolynomial& f, std::span<const double> a,
                            std::span<double> mean) {
  TPLIMIT_CHECK(a.size() == mean.size(), "as many means as variances, not {} and {}", mean.size(),
                a.size());
  return sweep_mean(a, mean, [&](double v) { return PiecewiseKernel::mean(f, v); });
}

MomentStatus gaussian_mean(const DualFunction& f, std::span<const double> a,
                           std::span<double> mean) {
  TPLIMIT_CHECK(a.size() == mean.size(), "as many means as variances, not {} and {}", mean.size(),
                a.size());
  const auto run = [&](const auto& g) { return sweep_mean(a, mean, g); };
  return std::visit(
      overloaded{
          [&](const TwoSlope& g) {
            return run([&](double v) { return (g.above - g.below) * std::sqrt(v / (2 * kPi)); });
          },
          [&](const TwoStep& g) {
            return run([&](double v) { return v == 0 ? g.at_zero : 0.5 * (g.below + g.above); });
          },
          [&](const ReluPower& g) {
            TPLIMIT_CHECK(g.n >= 0, "a power n >= 0, not {}", g.n);
            const double factor = relu_power_mean(g.n);
            return run([&](double v) { return v == 0 ? 0 : factor * half_power(v, g.n); });
          },
          [&](const ScaledErf& g) { return run([&](double) { return g.C; }); },
          [&](const GaussBell& g) {
            return run([&](double v) {
              const double d = 1 + 2 * g.B * v;
              return d > 0 ? g.A / std::sqrt(d) : std::numeric_limits<double>::infinity();
            });
          },
          [&](const Gelu& g) {
            return run([&](double v) { return g.A * v / std::sqrt(2 * kPi * (1 + v)); });
          },
          [&](const GeluDerivative& g) { return run([&](double) { return 0.5 * g.A; }); },
          [&](const Sine& g) {
            const double amplitude = g.A * std::sin(g.p);
            return run([&](double v) { return amplitude * std::exp(-0.5 * g.w * g.w * v); });
          },
          [&](const ScaledExp& g) {
            return run([&](double v) { return g.A * std::exp(0.5 * g.B * g.B * v); });
          },
          [&](const Polynomial& g) { return run(PolynomialMean(g, 0)); }},
      f);
}

MomentStatus gaussian_mean_derivative(const DualFunction& f, std::span<const double> a,
                                      std::span<double> mean) {
  TPLIMIT_CHECK(a.size() == mean.size(), "as many means as variances, not {} and {}", mean.size(),
                a.size());
  const auto run = [&](const auto& g) { return sweep_mean(a, mean, g); };
  return std::visit(
      overloaded{[&](const TwoSlope& g) {
                   return run([&](double v) {
                     return v == 0 ? g.slope_at_zero : 0.5 * (g.below + g.above);
                   });
                 },
                 [&](const TwoStep&) { return run([](double) { return 0.0; }); },
                 [&](const ReluPower& g) {
                   TPLIMIT_CHECK(g.n >= 0, "a power n >= 0, not {}", g.n);
                   const double factor = g.n == 0 ? 0 : g.n * relu_power_mean(g.n - 1);
                   return run([&](double v) {
                     return v == 0 || g.n == 0 ? 0 : factor * half_power(v, g.n - 1);
                   });
                 },
                 [&](const ScaledErf& g) {
                   return run([&](double v) {
                     return 2 * g.A * g.B / std::sqrt(kPi * (1 + 2 * g.B * g.B * v));
                   });
                 },
                 [&](const GaussBell& g) {
                   return run([&](double v) { return 1 + 2 * g.B * v > 0 ? 0 : kNan; });
                 },
                 [&](const Gelu& g) { return run([&](double) { return 0.5 * g.A; }); },
                 [&](const GeluDerivative& g) {
                   return run([&](double v) {
                     return g.A * (1 + 1 / (1 + v)) / std::sqrt(2 * kPi * (1 + v));
                   });
                 },
                 [&](const Sine& g) {
                   const double amplitude = g.A * g.w * std::cos(g.p);
                   return run([&](double v) { return amplitude * std::exp(-0.5 * g.w * g.w * v); });
                 },
                 [&](const ScaledExp& g) {
                   return run([&](double v) { return g.A * g.B * std::exp(0.5 * g.B * g.B * v); });
                 },
                 [&](const Polynomial& g) { return run(PolynomialMean(g, 1)); }},
      f);
}

}  // namespace tplimit
