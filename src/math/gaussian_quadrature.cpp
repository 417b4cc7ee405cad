#include "tplimit/math/gaussian_quadrature.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include <boost/math/quadrature/gauss.hpp>
#include <boost/math/quadrature/gauss_kronrod.hpp>

#include "math/simd.hpp"
#include "tplimit/math/tall_products.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit {
namespace {

using Index = std::int64_t;
using Vector = std::vector<double>;

constexpr Index kPoints = 4096;  // per call of an integrand
constexpr double kEps = std::numeric_limits<double>::epsilon();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
// The density of a standard normal relative to its peak is below 1e-21 at 10 and the smallest
// double at 38.
constexpr double kRadius = 10;
constexpr double kLargestRadius = 37;
const double kDensity = 1 / std::sqrt(2 * std::numbers::pi);

constexpr std::size_t at(Index i) { return static_cast<std::size_t>(i); }
double density(double z) { return kDensity * std::exp(-0.5 * z * z); }

}  // namespace

Whitened whiten(std::span<const double> covariance, int largest_rank) {
  Whitened w;
  w.dim = static_cast<Index>(std::llround(std::sqrt(static_cast<double>(covariance.size()))));
  const Index d = w.dim;
  TPLIMIT_CHECK(d > 0 && at(d * d) == covariance.size(), "a square covariance, not {} entries",
                covariance.size());
  const auto fail = [&](QuadratureStatus status) {
    w.status = status;
    return w;
  };
  Vector scale(at(d)), R(at(d * d)), pivot_row(at(d));
  for (Index i = 0; i < d; ++i) {
    const double variance = covariance[at(i + i * d)];
    if (!(variance >= 0) || !std::isfinite(variance))
      return fail(QuadratureStatus::kNotACovariance);
    scale[at(i)] = std::sqrt(variance);
  }
  // Covariances are computed numbers: 1e-10 is the disagreement that dual_kernel clamps too.
  for (Index j = 0; j < d; ++j)
    for (Index i = 0; i < d; ++i) {
      const double c = covariance[at(i + j * d)], bound = scale[at(i)] * scale[at(j)];
      if (!std::isfinite(c) || std::abs(c) > bound * (1 + kLargestExcess) ||
          std::abs(c - covariance[at(j + i * d)]) > kLargestExcess * bound)
        return fail(QuadratureStatus::kNotACovariance);
      R[at(i + j * d)] = bound > 0 ? c / bound : 0;
    }
  const double noise = 8 * kEps * static_cast<double>(d);
  for (;;) {
    Index p = 0;
    double smallest = 0, largest_rest = 0;
    for (Index i = 0; i < d; ++i) {
      if (R[at(i + i * d)] > R[at(p + p * d)]) p = i;
      smallest = std::min(smallest, R[at(i + i * d)]);
    }
    if (smallest < -kLargestExcess) return fail(QuadratureStatus::kNotACovariance);
    const double pivot = R[at(p + p * d)];
    if (pivot <= noise) {
      for (const double r : R) largest_rest = std::max(largest_rest, std::abs(r));
      if (largest_rest > std::sqrt(kLargestExcess)) return fail(QuadratureStatus::kNotACovariance);
      return w;
    }
    if (w.rank == largest_rank) return fail(QuadratureStatus::kRankTooLarge);
    const double root = std::sqrt(pivot);
    for (Index i = 0; i < d; ++i) pivot_row[at(i)] = R[at(i + p * d)] / root;
    for (Index j = 0; j < d; ++j)
      for (Index i = 0; i < d; ++i)
        R[at(i + j * d)] = std::fma(-pivot_row[at(i)], pivot_row[at(j)], R[at(i + j * d)]);
    for (Index i = 0; i < d; ++i) R[at(i + p * d)] = R[at(p + i * d)] = 0;
    for (Index i = 0; i < d; ++i) w.L.push_back(scale[at(i)] * pivot_row[at(i)]);
    ++w.rank;
  }
}

namespace {

/// Collects points z, evaluates f on blocks of them and hands the values on.
class PointBlock {
 public:
  PointBlock(const Whitened& w, const Integrand& f, int outputs)
      : w_(w),
        f_(f),
        z_(at(kPoints * w.rank)),
        x_(at(kPoints * w.dim)),
        values_(at(kPoints * outputs)) {}

  Index size() const { return size_; }
  bool full() const { return size_ == kPoints; }
  void push(const double* z) {
    for (int k = 0; k < w_.rank; ++k) z_[at(size_ * w_.rank + k)] = z[k];
    ++size_;
  }
  /// Values of output o at o size(); valid until clear().
  const double* evaluate() {
    for (Index i = 0; i < w_.dim; ++i)
      for (Index n = 0; n < size_; ++n) {
        double x = 0;
        for (int k = 0; k < w_.rank; ++k) x += w_(i, k) * z_[at(n * w_.rank + k)];
        x_[at(n + i * size_)] = x;
      }
    f_(size_, x_.data(), values_.data());
    return values_.data();
  }
  const double* point(Index n) const { return z_.data() + n * w_.rank; }
  void clear() { size_ = 0; }

 private:
  const Whitened& w_;
  const Integrand& f_;
  Vector z_, x_, values_;
  Index size_ = 0;
};

QuadratureResult at_origin(const Whitened& w, const Integrand& f, int outputs) {
  QuadratureResult result;
  result.values.assign(at(outputs), 0);
  result.errors.assign(at(outputs), 0);
  const Vector origin(at(w.dim), 0);
  f(1, origin.data(), result.values.data());
  result.evaluations = 1;
  for (const double v : result.values)
    if (!std::isfinite(v)) result.status = QuadratureStatus::kNotFinite;
  return result;
}

// ---- Trapezoid rule ----

/// The sums of one rule, not yet multiplied by h^rank.
struct BallSums {
  Vector value, magnitude;
  Vector shell;  ///< the part of `magnitude` in the outermost unit of the radius: more than what
                 ///< lies outside the ball
  bool finite = true;
};

/// Adds the points of the grid with step h in the ball that are not on the grid with step 2h
/// (first: all points).
Index add_level(const Whitened& w, PointBlock& block, int outputs, double h, double radius,
                bool first, BallSums& sums) {
  Index evaluations = 0;
  const auto flush = [&] {
    const Index n = block.size();
    const double* values = block.evaluate();
    evaluations += n;
    for (Index i = 0; i < n; ++i) {
      double square = 0, weight = 1;
      for (int k = 0; k < w.rank; ++k) {
        square += block.point(i)[k] * block.point(i)[k];
        weight *= density(block.point(i)[k]);
      }
      const bool outer = square > (radius - 1) * (radius - 1);
      for (int o = 0; o < outputs; ++o) {
        const double term = weight * values[i + o * n];
        sums.value[at(o)] += term;
        sums.magnitude[at(o)] += std::abs(term);
        if (outer) sums.shell[at(o)] += std::abs(term);
        sums.finite &= std::isfinite(term);
      }
    }
    block.clear();
  };
  std::array<double, kMostDimensions> z{};
  const auto walk = [&](const auto& self, int k, double rest, bool odd) -> void {
    const auto last = static_cast<Index>(std::floor(std::sqrt(rest) / h));
    const bool innermost = k + 1 == w.rank;
    for (Index n = -last; n <= last; ++n) {
      const bool now_odd = odd || n % 2 != 0;
      if (innermost && !first && !now_odd) continue;
      z[at(k)] = static_cast<double>(n) * h;
      if (innermost) {
        block.push(z.data());
        if (block.full()) flush();
      } else {
        self(self, k + 1, std::max(0.0, rest - z[at(k)] * z[at(k)]), now_odd);
      }
    }
  };
  walk(walk, 0, radius * radius, false);
  if (block.size() > 0) flush();
  return evaluations;
}

// ---- Kinks: one coordinate inside the other ----

struct Plane {
  std::array<double, kMostDimensions> normal{};
  double offset = 0;
};

/// Gauss-Kronrod rule with 31 points on [-1, 1]; `gauss` holds the weights of the 15-point rule, 0
/// at the other points.
struct PairedRule {
  static constexpr int kNodes = 31;
  std::array<double, kNodes> x{}, kronrod{}, gauss{};
  PairedRule() {
    using Kronrod = boost::math::quadrature::gauss_kronrod<double, kNodes>;
    using Gauss = boost::math::quadrature::gauss<double, 15>;
    for (int side : {-1, 1})
      for (std::size_t k = 0; k < Kronrod::abscissa().size(); ++k) {
        const std::size_t slot = side < 0 ? 15 - k : 15 + k;
        x[slot] = side * Kronrod::abscissa()[k];
        kronrod[slot] = Kronrod::weights()[k];
        for (std::size_t g = 0; g < Gauss::abscissa().size(); ++g)
          if (std::abs(Gauss::abscissa()[g] - Kronrod::abscissa()[k]) < 1e-12)
            gauss[slot] = Gauss::weights()[g];
      }
  }
};

class NestedIntegral {
 public:
  NestedIntegral(const Whitened& w, const Integrand& f, int outputs,
                 std::span<const Hyperplane> kinks, const QuadratureOptions& options)
      : w_(w), outputs_(outputs), options_(options), block_(w, f, outputs), planes_(at(w.rank)) {
    for (const Hyperplane& kink : kinks) {
      TPLIMIT_CHECK(static_cast<Index>(kink.normal.size()) == w.dim,
                    "a normal with {} entries, not {}", w.dim, kink.normal.size());
      Plane p;
      double size = 0;
      for (int k = 0; k < w.rank; ++k)
        for (Index i = 0; i < w.dim; ++i) {
          p.normal[at(k)] += w(i, k) * kink.normal[at(i)];
          size += std::abs(w(i, k) * kink.normal[at(i)]);
        }
      p.offset = kink.offset;
      add_plane(w.rank - 1, p, kParallel * size);
    }
    for (int k = w.rank - 1; k > 0; --k) project(k);
  }

  /// Per output: value, error, magnitude (of the absolute value), tail (estimate of what lies
  /// beyond the radius).
  struct Sums {
    Vector value, error, magnitude, tail;
    explicit Sums(int outputs)
        : value(at(outputs)), error(at(outputs)), magnitude(at(outputs)), tail(at(outputs)) {}
    std::array<Vector*, 4> all() { return {&value, &error, &magnitude, &tail}; }
    Sums& operator+=(const Sums& piece) {
      for (std::size_t o = 0; o < value.size(); ++o) {
        value[o] += piece.value[o];
        error[o] += piece.error[o];
        magnitude[o] += piece.magnitude[o];
        tail[o] += piece.tail[o];
      }
      return *this;
    }
  };

  /// Absolute budgets for the error of each output; infinite ones take each piece as it comes.
  Sums run(const Vector& budget, double radius) {
    radius_ = radius;
    Sums sums(outputs_);
    std::array<double, kMostDimensions> z{};
    integrate(0, z, budget, sums);
    return sums;
  }
  Index evaluations() const { return evaluations_; }
  bool exhausted() const { return exhausted_; }
  bool finite() const { return finite_; }

 private:
  // Rounding makes components, distances and angles of this size of what is zero.
  static constexpr double kParallel = 1e-13;
  static constexpr double kWidest =
      3;  // standard deviations: the density alone is then integrated to rounding error
  struct Panel {
    double from, to;
    bool first, last;
  };

  void add_plane(int k, Plane p, double noise) {
    double norm = 0;
    for (const double n : p.normal) norm = std::hypot(norm, n);
    if (norm <= noise) return;
    for (double& n : p.normal) n /= norm;
    p.offset /= norm;
    if (!(std::abs(p.offset) < kLargestRadius * 2)) return;
    for (const Plane& q : planes_[at(k)])
      for (const double sign : {-1.0, 1.0}) {
        double distance = std::abs(p.offset - sign * q.offset);
        for (std::size_t j = 0; j < p.normal.size(); ++j)
          distance = std::max(distance, std::abs(p.normal[j] - sign * q.normal[j]));
        if (distance <= kParallel) return;
      }
    planes_[at(k)].push_back(p);
  }

  /// What the integral over coordinate k makes of its planes: cuts of the integrals over the
  /// coordinates before k.
  void project(int k) {
    const auto& all = planes_[at(k)];
    for (std::size_t i = 0; i < all.size(); ++i) {
      const Plane& p = all[i];
      const double last = p.normal[at(k)];
      // A steep plane crosses all of coordinate k within a narrow strip, too narrow perhaps for any
      // node to fall into it: its middle and its edges, at 8 standard deviations of z_k.
      if (std::abs(last) < 0.1)
        for (const double edge : {-8.0, 0.0, 8.0}) {
          Plane strip = p;
          strip.normal[at(k)] = 0;
          strip.offset -= last * edge;
          add_plane(k - 1, strip, kParallel);
        }
      if (std::abs(last) <= kParallel) continue;
      for (std::size_t j = 0; j < i; ++j) {
        const Plane& q = all[j];
        if (std::abs(q.normal[at(k)]) <= kParallel) continue;
        Plane meeting;
        for (int m = 0; m < k; ++m)
          meeting.normal[at(m)] = p.normal[at(m)] * q.normal[at(k)] - q.normal[at(m)] * last;
        meeting.offset = p.offset * q.normal[at(k)] - q.offset * last;
        add_plane(k - 1, meeting, kParallel);
      }
    }
  }

  std::vector<Panel> first_panels(int k, const std::array<double, kMostDimensions>& z) const {
    Vector cuts = {-radius_, radius_};
    for (const Plane& p : planes_[at(k)]) {
      if (std::abs(p.normal[at(k)]) <= kParallel) continue;
      double rest = p.offset;
      for (int j = 0; j < k; ++j) rest -= p.normal[at(j)] * z[at(j)];
      const double cut = rest / p.normal[at(k)];
      if (std::abs(cut) < radius_) cuts.push_back(cut);
    }
    std::sort(cuts.begin(), cuts.end());
    std::vector<Panel> panels;
    for (std::size_t c = 1; c < cuts.size(); ++c) {
      const double from = cuts[c - 1], width = cuts[c] - from;
      if (width <= kParallel) continue;  // what is lost is of the size of rounding errors
      const auto parts = static_cast<int>(std::ceil(width / kWidest));
      for (int i = 0; i < parts; ++i)
        panels.push_back({from + width * i / parts,
                          i + 1 == parts ? cuts[c] : from + width * (i + 1) / parts, false, false});
    }
    if (!panels.empty()) {
      panels.front().first = true;
      panels.back().last = true;
    }
    return panels;
  }

  static const PairedRule& paired_rule() {
    static const PairedRule rule;
    return rule;
  }
  using Point = std::array<double, kMostDimensions>;

  /// Panels of one coordinate that are halved together, and their integrands: node j of panel a is
  /// number a kNodes + j, its output o is at outputs number + o.
  struct Generation {
    std::vector<Panel> panels;
    Sums nodes{0};
    [[nodiscard]] std::size_t size() const { return panels.size() * at(PairedRule::kNodes); }
  };
  [[nodiscard]] double node(const Generation& g, std::size_t n) const {
    const Panel& p = g.panels[n / at(PairedRule::kNodes)];
    return 0.5 * (p.from + p.to) + 0.5 * (p.to - p.from) * rule_.x[n % at(PairedRule::kNodes)];
  }

  /// E over z_k, z_(k+1), .. given z_0 .. z_(k-1), added to `sums`.
  void integrate(int k, Point z, const Vector& budget, Sums& sums) {
    if (k >= kMostDimensions) return;  // never, but it bounds the recursion for the compiler
    Generation active;
    active.panels = first_panels(k, z);
    std::vector<Panel> refined;
    Sums piece(outputs_);
    while (!active.panels.empty()) {
      for (Vector* v : active.nodes.all()) v->assign(active.size() * at(outputs_), 0);
      if (k + 1 == w_.rank)
        evaluate_nodes(k, z, active);
      else
        integrate_nodes(k, z, budget, active);
      exhausted_ |= evaluations_ >= options_.max_evaluations;
      refined.clear();
      for (std::size_t a = 0; a < active.panels.size(); ++a) {
        const Panel& p = active.panels[a];
        const bool accept = integrate_panel(active, a, budget, piece);
        if (accept || exhausted_ || 0.5 * (p.to - p.from) <= kParallel) {
          sums += piece;
        } else {
          const double middle = 0.5 * (p.from + p.to);
          refined.push_back({p.from, middle, p.first, false});
          refined.push_back({middle, p.to, false, p.last});
        }
      }
      std::swap(active.panels, refined);
    }
  }

  /// The integrand itself, at the nodes of the last coordinate.
  void evaluate_nodes(int k, Point& z, Generation& active) {
    for (std::size_t n = 0; n < active.size();) {
      const std::size_t begin = n;
      for (; n < active.size() && !block_.full(); ++n) {
        z[at(k)] = node(active, n);
        block_.push(z.data());
      }
      const double* values = block_.evaluate();
      for (std::size_t i = begin; i < n; ++i)
        for (int o = 0; o < outputs_; ++o) {
          const double v = values[i - begin + at(o) * (n - begin)];
          finite_ &= std::isfinite(v);
          active.nodes.value[i * at(outputs_) + at(o)] = v;
          active.nodes.magnitude[i * at(outputs_) + at(o)] = std::abs(v);
        }
      evaluations_ += block_.size();
      block_.clear();
    }
  }

  /// At each node z_k the integral over the coordinates behind it.
  void integrate_nodes(int k, Point& z, const Vector& budget, Generation& active) {
    Vector inner_budget(at(outputs_));
    for (std::size_t n = 0; n < active.size(); ++n) {
      z[at(k)] = node(active, n);
      // Constant in z_k, so that the tails may be coarse; a tenth, so that its noise cannot
      // make the outer integral refine.
      for (int o = 0; o < outputs_; ++o)
        inner_budget[at(o)] = 0.1 * budget[at(o)] / (2 * radius_ * density(z[at(k)]));
      Sums inner(outputs_);
      integrate(k + 1, z, inner_budget, inner);
      const auto to = active.nodes.all();
      const auto from = inner.all();
      for (std::size_t v = 0; v < to.size(); ++v)
        std::copy(from[v]->begin(), from[v]->end(),
                  to[v]->begin() + static_cast<std::ptrdiff_t>(n * at(outputs_)));
    }
  }

  /// The integral over panel number a by Kronrod's rule; whether it and Gauss's agree within the
  /// panel's share of the budget.
  bool integrate_panel(const Generation& active, std::size_t a, const Vector& budget, Sums& piece) {
    constexpr int kNodes = PairedRule::kNodes;
    const Panel& p = active.panels[a];
    const Sums& nodes = active.nodes;
    const double half = 0.5 * (p.to - p.from);
    bool accept = true;
    for (int o = 0; o < outputs_; ++o) {
      double fine = 0, coarse = 0, inner_error = 0, magnitude = 0, tail = 0;
      for (int j = 0; j < kNodes; ++j) {
        const std::size_t n = a * at(kNodes) + at(j), slot = n * at(outputs_) + at(o);
        const double weight = half * density(node(active, n));
        fine += weight * rule_.kronrod[at(j)] * nodes.value[slot];
        coarse += weight * rule_.gauss[at(j)] * nodes.value[slot];
        inner_error += weight * rule_.kronrod[at(j)] * nodes.error[slot];
        magnitude += weight * rule_.kronrod[at(j)] * nodes.magnitude[slot];
        tail += weight * rule_.kronrod[at(j)] * nodes.tail[slot];
      }
      const double difference = std::abs(fine - coarse);
      // Wide gaps only: a panel of rounding size cannot be halved.  50 eps: the rounding of
      // sums of 31 terms.
      accept &= difference <= budget[at(o)] * half / radius_ ||
                difference <= 50 * kEps * magnitude || !std::isfinite(difference);
      if (p.first) tail += density(p.from) * nodes.magnitude[a * at(kNodes) * at(outputs_) + at(o)];
      if (p.last)
        tail += density(p.to) * nodes.magnitude[((a + 1) * at(kNodes) - 1) * at(outputs_) + at(o)];
      piece.value[at(o)] = fine;
      piece.error[at(o)] = difference + inner_error;
      piece.magnitude[at(o)] = magnitude;
      piece.tail[at(o)] = tail;
    }
    return accept;
  }

  const PairedRule& rule_ = paired_rule();
  const Whitened& w_;
  int outputs_;
  QuadratureOptions options_;
  PointBlock block_;
  std::vector<std::vector<Plane>> planes_;
  double radius_ = kRadius;
  Index evaluations_ = 0;
  bool exhausted_ = false, finite_ = true;
};

}  // namespace

void serial_for(Index count, const std::function<void(Index)>& body) {
  for (Index i = 0; i < count; ++i) body(i);
}

QuadratureResult smooth_expectation(std::span<const double> covariance, const Integrand& f,
                                    int outputs, const QuadratureOptions& options) {
  TPLIMIT_CHECK(outputs >= 1, "an integrand with values, not {}", outputs);
  const Whitened w = whiten(covariance);
  QuadratureResult result;
  result.status = w.status;
  if (!result.converged()) return result;
  if (w.rank == 0) return at_origin(w, f, outputs);
  result.rank = w.rank;
  PointBlock block(w, f, outputs);
  constexpr std::array<double, 4> kBall = {1, 2, std::numbers::pi, 4 * std::numbers::pi / 3};
  for (double radius = kRadius;; radius = std::min(radius + 6, kLargestRadius)) {
    BallSums sums{Vector(at(outputs)), Vector(at(outputs)), Vector(at(outputs))};
    Vector before;
    double volume = 1;  // h^rank
    bool agreed = false, wide_enough = true;
    for (double h = 1; !agreed && wide_enough; h /= 2, volume = std::pow(h, w.rank)) {
      const double points = kBall[at(w.rank)] * std::pow(radius, w.rank) / volume;
      if (static_cast<double>(result.evaluations) + points >
          static_cast<double>(options.max_evaluations))
        break;
      result.evaluations += add_level(w, block, outputs, h, radius, h == 1, sums);
      Vector now = sums.value;
      for (double& v : now) v *= volume;
      // Two rules that are too coarse agree too easily, and do so where both sample an oscillation
      // in phase.
      agreed = !before.empty() && h <= std::min(0.25, options.largest_step);
      result.errors.assign(at(outputs), std::numeric_limits<double>::infinity());
      for (int o = 0; o < outputs && !before.empty(); ++o) {
        result.errors[at(o)] = std::abs(now[at(o)] - before[at(o)]) + volume * sums.shell[at(o)];
        agreed &= std::abs(now[at(o)] - before[at(o)]) <=
                  options.tolerance * volume * sums.magnitude[at(o)];
        // A ball that cuts off what counts leaves a jump, for which the rule would never converge.
        wide_enough &= sums.shell[at(o)] <= 0.1 * options.tolerance * sums.magnitude[at(o)];
      }
      result.values = before = now;
      if (!sums.finite) {
        result.status = QuadratureStatus::kNotFinite;
        return result;
      }
    }
    if (agreed && wide_enough) return result;
    if (wide_enough || radius >= kLargestRadius) {
      result.status = wide_enough ? QuadratureStatus::kNotConverged : QuadratureStatus::kNotFinite;
      result.values.resize(at(outputs), 0);
      result.errors.resize(at(outputs), std::numeric_limits<double>::infinity());
      return result;
    }
  }
}

QuadratureResult kinked_expectation(std::span<const double> covariance, const Integrand& f,
                                    int outputs, std::span<const Hyperplane> kinks,
                                    const QuadratureOptions& options) {
  TPLIMIT_CHECK(outputs >= 1, "an integrand with values, not {}", outputs);
  const Whitened w = whiten(covariance);
  QuadratureResult result;
  result.status = w.status;
  if (!result.converged()) return result;
  if (w.rank == 0) return at_origin(w, f, outputs);
  result.rank = w.rank;
  NestedIntegral integral(w, f, outputs, kinks, options);
  Vector budget(at(outputs), std::numeric_limits<double>::infinity());
  for (double radius = kRadius;;) {
    const auto sums = integral.run(budget, radius);
    result.values = sums.value;
    result.errors = sums.error;
    result.evaluations = integral.evaluations();
    bool accurate = true, wide_enough = true;
    for (int o = 0; o < outputs; ++o) {
      const double bound = options.tolerance * sums.magnitude[at(o)];
      accurate &= sums.error[at(o)] <= bound;
      wide_enough &= sums.tail[at(o)] <= 0.1 * bound;
      result.errors[at(o)] += sums.tail[at(o)];
    }
    if (!integral.finite()) {
      result.status = QuadratureStatus::kNotFinite;
      return result;
    }
    if (accurate && wide_enough) return result;
    // The first run only finds the size of the integral; one with a budget that still fails has met
    // the limit on evaluations.
    const bool budgeted = std::isfinite(budget[0]);
    if (integral.exhausted() || (budgeted && wide_enough)) {
      result.status = QuadratureStatus::kNotConverged;
      return result;
    }
    if (!wide_enough && radius >= kLargestRadius) {
      result.status = QuadratureStatus::kNotFinite;
      return result;
    }
    if (!wide_enough) {
      radius = std::min(radius + 6, kLargestRadius);
      budget.assign(at(outputs), std::numeric_limits<double>::infinity());
    } else {
      // Half: the inner integrals' errors come on top.
      for (int o = 0; o < outputs; ++o)
        budget[at(o)] = 0.5 * options.tolerance * sums.magnitude[at(o)];
    }
  }
}

// ---- Arrays of kernels ----

namespace {

using simd::kLanes;
using simd::Pack;

constexpr Index kChunk =
    16;  // rows (columns) whose coefficients lie together: two packs of eight, or four of four
constexpr Index kTailStep = 32;
constexpr Index kLargestOrder = 4096;
constexpr Index kLargestGrid = 8192;

/// A trapezoid rule on x >= 0 for coefficients of orders below `order`: even and odd parts of a
/// function apart.
struct HermiteGrid {
  Index order = 0;  ///< even
  double step = 0, radius = 0;
  Index half = 0;    ///< points k step, k = 0 .. half - 1
  Vector weights;    ///< step phi(x_k), half as much at 0
  Vector even, odd;  ///< half x order/2, column-major: weights he_2m(x_k), weights he_(2m+1)(x_k)
};

HermiteGrid make_grid(Index order, double step, double radius) {
  HermiteGrid g{order, step, radius};
  g.half = static_cast<Index>(std::floor(radius / step)) + 1;
  g.weights.resize(at(g.half));
  g.even.resize(at(g.half * order / 2));
  g.odd.resize(at(g.half * order / 2));
  for (Index k = 0; k < g.half; ++k) {
    const double x = static_cast<double>(k) * step,
                 weight = (k == 0 ? 0.5 : 1.0) * step * density(x);
    g.weights[at(k)] = weight;
    double before = 0, now = weight;
    for (Index l = 0; l < order; ++l) {
      (l % 2 == 0 ? g.even : g.odd)[at(k + l / 2 * g.half)] = now;
      const double next = (x * now - std::sqrt(static_cast<double>(l)) * before) /
                          std::sqrt(static_cast<double>(l + 1));
      before = now;
      now = next;
    }
  }
  return g;
}

/// Coefficients of a function of variables with variances, all in chunks.
struct Side {
  std::span<const double> variances;
  const UnaryFunctions* f = nullptr;
  int functions = 0;
  Index count = 0, chunks = 0, order = 0;
  Vector coefficients;  ///< [o][chunk][l][lane]
  Vector second;        ///< [o][i]: E f_o^2
  Vector tails;         ///< [o][i][l / kTailStep]: sqrt(sum of squares from l on / E f^2), for l a
                        ///< multiple of kTailStep
  bool finite = true;

  double* chunk(int o, Index c) {
    return coefficients.data() + ((o * chunks + c) * order) * kChunk;
  }
  const double* chunk(int o, Index c) const {
    return coefficients.data() + ((o * chunks + c) * order) * kChunk;
  }
  double moment(int o, Index i) const { return second[at(o * count + i)]; }
  Index tail_steps() const { return order / kTailStep + 1; }
  double tail(int o, Index i, Index step) const {
    return tails[at((o * count + i) * tail_steps() + step)];
  }
};

/// c/sqrt(ab), without overflow or underflow of ab.
double correlation(double a, double b, double c) {
  const double product = a * b;
  return product > 1e-290 && product < 1e290 ? c / std::sqrt(product)
                                             : c / (std::sqrt(a) * std::sqrt(b));
}

bool valid_variance(double v) { return v >= 0 && std::isfinite(v); }

/// Values at all grid points of the members of a chunk, even and odd parts: [o][part]: kChunk x
/// half.
struct ChunkValues {
  Vector even, odd;
  bool wide_enough = true;  ///< nothing that counts lies beyond the radius
  bool finite = true;
};

ChunkValues chunk_values(const Side& side, const HermiteGrid& grid, std::span<const Index> members,
                         Vector& second) {
  const Index n = 2 * grid.half - 1, middle = grid.half - 1;
  ChunkValues out;
  out.even.assign(at(side.functions * kChunk * grid.half), 0);
  out.odd.assign(at(side.functions * kChunk * grid.half), 0);
  second.assign(at(side.functions * kChunk), 0);
  Vector x(at(n)), values(at(n * side.functions));
  for (std::size_t lane = 0; lane < members.size(); ++lane) {
    const double variance = side.variances[at(members[lane])];
    const double root = valid_variance(variance) ? std::sqrt(variance) : 0;
    for (Index k = 0; k < n; ++k) x[at(k)] = root * (static_cast<double>(k - middle) * grid.step);
    (*side.f)(n, x.data(), values.data());
    for (int o = 0; o < side.functions; ++o) {
      const double* v = values.data() + o * n;
      double square = 0;
      for (Index k = 0; k < grid.half; ++k) {
        const double plus = v[middle + k], minus = v[middle - k];
        const std::size_t slot = at((o * grid.half + k) * kChunk) + lane;
        out.even[slot] = plus + minus;
        out.odd[slot] = plus - minus;
        square += grid.weights[at(k)] * (plus * plus + minus * minus);
      }
      second[at(o * kChunk) + lane] = square;
      out.finite &= std::isfinite(square);
      // Coefficients contain f phi he_l, and phi^(1/2) he_l is bounded by about 1.
      const double edge =
          std::max(std::abs(v[0]), std::abs(v[n - 1])) * std::sqrt(density(grid.radius));
      out.wide_enough &= edge <= 1e-15 * std::sqrt(square) || !std::isfinite(square);
    }
  }
  return out;
}

/// The coefficients of one chunk: [l][lane] for each function.
void chunk_coefficients(const HermiteGrid& grid, const ChunkValues& values, int o, double* out) {
  std::fill_n(out, grid.order * kChunk, 0.0);
  const double* even = values.even.data() + o * grid.half * kChunk;
  const double* odd = values.odd.data() + o * grid.half * kChunk;
  add_product(kChunk, even, kChunk, grid.half, grid.even.data(), grid.half, grid.order / 2, out,
              2 * kChunk);
  add_product(kChunk, odd, kChunk, grid.half, grid.odd.data(), grid.half, grid.order / 2,
              out + kChunk, 2 * kChunk);
}

/// Largest sqrt(remainder of Parseval's identity) relative to the norm, of the members of a chunk.
double remainder_of(const double* coefficients, Index order, std::size_t members,
                    const double* second) {
  double worst = 0;
  for (std::size_t lane = 0; lane < members; ++lane) {
    double sum = 0;
    for (Index l = order; l-- > 0;)
      sum += coefficients[at(l * kChunk) + lane] * coefficients[at(l * kChunk) + lane];
    if (second[lane] > 0)
      worst = std::max(worst, std::sqrt(std::max(0.0, second[lane] - sum) / second[lane]));
  }
  return worst;
}

/// Steps that resolve f he_l phi: he_l has frequencies up to sqrt(l), f needs about as many again,
/// and as far must the next alias be away.  16: the width of the density's spectrum.
double step_for(Index order) {
  return 2 * std::numbers::pi / (4 * std::sqrt(static_cast<double>(order)) + 16);
}

struct GridChoice {
  HermiteGrid grid;
  double error =
      0;  ///< of coefficients, relative to the norm of the function: the step and the radius
};

/// Order, step and radius from the smallest, the middle and the largest variance of each side.
GridChoice choose_grid(std::span<const Side* const> sides, double tolerance, double resolution) {
  struct Sample {
    const Side* side;
    std::vector<Index> members;
  };
  std::vector<Sample> samples;
  for (const Side* side : sides) {
    std::vector<Index> sorted;
    for (Index i = 0; i < side->count; ++i)
      if (valid_variance(side->variances[at(i)])) sorted.push_back(i);
    if (sorted.empty()) continue;
    std::stable_sort(sorted.begin(), sorted.end(), [&](Index i, Index j) {
      return side->variances[at(i)] < side->variances[at(j)];
    });
    samples.push_back({side, {sorted.front(), sorted[sorted.size() / 2], sorted.back()}});
  }
  GridChoice choice;
  double radius = 13;  // phi^(1/2) there is 3e-19 of its peak
  double refinement = 1;
  for (Index order = 64;;) {
    // A panel of half-length h holds frequencies up to 4/h (growth e^7 on the ellipse of half-axis
    // sqrt(3) h).
    const double resolving =
        2 * std::numbers::pi / (2 * std::sqrt(static_cast<double>(order)) + 9 + 4 / resolution);
    choice.grid = make_grid(order, refinement * std::min(step_for(order), resolving), radius);
    double remainder = 0;
    bool wide_enough = true, finite = true;
    choice.error = 0;
    const HermiteGrid fine = make_grid(order, 0.5 * choice.grid.step, radius);
    for (const Sample& s : samples) {
      Vector second, second_fine, a(at(order * kChunk)), b(at(order * kChunk));
      const ChunkValues values = chunk_values(*s.side, choice.grid, s.members, second);
      const ChunkValues fine_values = chunk_values(*s.side, fine, s.members, second_fine);
      wide_enough &= values.wide_enough;
      finite &= values.finite && fine_values.finite;
      for (int o = 0; o < s.side->functions; ++o) {
        chunk_coefficients(choice.grid, values, o, a.data());
        chunk_coefficients(fine, fine_values, o, b.data());
        remainder = std::max(remainder, remainder_of(b.data(), order, s.members.size(),
                                                     second_fine.data() + o * kChunk));
        for (std::size_t lane = 0; lane < s.members.size(); ++lane) {
          double difference = 0;
          for (Index l = 0; l < order; ++l)
            difference += std::pow(a[at(l * kChunk) + lane] - b[at(l * kChunk) + lane], 2);
          const double norm = second_fine[at(o * kChunk) + lane];
          const double of_norm = std::abs(second[at(o * kChunk) + lane] - norm);
          if (norm > 0)
            choice.error = std::max({choice.error, std::sqrt(difference / norm), of_norm / norm});
        }
      }
    }
    if (!finite) {
      choice.error = std::numeric_limits<double>::infinity();
      return choice;
    }
    if (!wide_enough && radius < kLargestRadius) {
      radius = std::min(radius + 4, kLargestRadius);
    } else if (remainder * remainder > 0.25 * tolerance && order < kLargestOrder) {
      order *= 2;
    } else if (choice.error > 0.1 * tolerance && 2 * choice.grid.half <= kLargestGrid) {
      refinement *= 0.5;
    } else {
      if (!wide_enough) choice.error = 1;
      return choice;
    }
  }
}

/// Coefficients of one function by nodes of each row's own.
bool coefficients_by_nodes(const Side& side, const GramRules& rules, bool column, Index order,
                           std::span<const Index> members, Vector& second, double* out) {
  std::fill_n(out, order * kChunk, 0.0);
  second.assign(at(kChunk), 0);
  bool finite = true;
  Vector z, w, x, values, before, now;
  for (std::size_t lane = 0; lane < members.size(); ++lane) {
    const double variance = side.variances[at(members[lane])];
    const double root = valid_variance(variance) ? std::sqrt(variance) : 0;
    rules.nodes(column, root * root, order, z, w);
    const std::size_t n = z.size();
    x.resize(n);
    values.resize(n);
    now.resize(n);
    before.assign(n, 0.0);
    for (std::size_t k = 0; k < n; ++k) x[k] = root * z[k];
    (*side.f)(static_cast<Index>(n), x.data(), values.data());
    // Half of the density goes with the function, so that nothing overflows before it counts.
    for (std::size_t k = 0; k < n; ++k) {
      const double half = std::sqrt(density(z[k]));
      now[k] = half;
      second[lane] += w[k] * (half * values[k]) * (half * values[k]);
      values[k] *= w[k] * half;
    }
    finite = finite && std::isfinite(second[lane]);
    for (Index l = 0; l < order; ++l) {
      std::array<double, 8> sums{};
      std::size_t k = 0;
      const double down = std::sqrt(static_cast<double>(l)),
                   up = 1 / std::sqrt(static_cast<double>(l + 1));
      for (; k + 8 <= n; k += 8)
        for (std::size_t i = 0; i < 8; ++i) {
          sums[i] += now[k + i] * values[k + i];
          const double next = (z[k + i] * now[k + i] - down * before[k + i]) * up;
          before[k + i] = now[k + i];
          now[k + i] = next;
        }
      for (; k < n; ++k) {
        sums[0] += now[k] * values[k];
        const double next = (z[k] * now[k] - down * before[k]) * up;
        before[k] = now[k];
        now[k] = next;
      }
      out[at(l * kChunk) + lane] =
          ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
  }
  return finite;
}

/// Kinks make coefficients decay slowly: as many as pay, an entry near the diagonal being worth a
/// thousand rows of one term.
GridChoice choose_order(const GramInput& input, const Side& left, const Side& right,
                        double tolerance) {
  GridChoice choice;
  double least = std::numeric_limits<double>::infinity();
  for (const Index order : {256, 512, 1024, 2048}) {
    const double terms = static_cast<double>(order), reach = std::pow(1e4 * tolerance, 1 / terms);
    Index singles = 0;
    for (Index j = 0; j < right.count; ++j)
      for (Index i = input.symmetric ? j : 0; i < left.count; ++i)
        if (std::abs(correlation(left.variances[at(i)], right.variances[at(j)],
                                 input.covariance[i + j * input.leading])) > reach)
          ++singles;
    // Seconds: points 50 sqrt(order), 1e-9 for each point and term; 3e-3 for an entry.
    const double rows = static_cast<double>(left.count + (input.symmetric ? 0 : right.count));
    const double cost = rows * 50e-9 * std::pow(terms, 1.5) + 3e-3 * static_cast<double>(singles);
    if (cost < least) choice.grid.order = order;
    least = std::min(least, cost);
  }
  choice.grid.half = 1;
  choice.error = 1e-15;
  return choice;
}

void fill_side(Side& side, const HermiteGrid& grid, const ParallelFor& parallel_for,
               const GramRules* rules, bool column) {
  side.order = grid.order;
  side.coefficients.assign(at(side.functions * side.chunks * side.order * kChunk), 0);
  side.second.assign(at(side.functions * side.count), 0);
  side.tails.assign(at(side.functions * side.count * side.tail_steps()), 0);
  std::vector<char> finite(at(side.chunks), 1);
  parallel_for(side.chunks, [&](Index c) {
    std::vector<Index> members;
    for (Index i = c * kChunk; i < std::min(side.count, (c + 1) * kChunk); ++i)
      members.push_back(i);
    Vector second;
    ChunkValues values;
    if (rules) {
      finite[at(c)] = coefficients_by_nodes(side, *rules, column, grid.order, members, second,
                                            side.chunk(0, c));
    } else {
      values = chunk_values(side, grid, members, second);
      finite[at(c)] = values.finite && values.wide_enough;
    }
    for (int o = 0; o < side.functions; ++o) {
      double* coefficients = side.chunk(o, c);
      if (!rules) chunk_coefficients(grid, values, o, coefficients);
      for (std::size_t lane = 0; lane < members.size(); ++lane) {
        const Index i = members[lane];
        const double norm = second[at(o * kChunk) + lane];
        side.second[at(o * side.count + i)] = norm;
        if (!(norm > 0)) continue;
        double sum = 0;
        for (Index l = 0; l < side.order; ++l)
          sum += coefficients[at(l * kChunk) + lane] * coefficients[at(l * kChunk) + lane];
        double rest = std::max(0.0, norm - sum);
        for (Index l = side.order; l-- > 0;) {
          if ((l + 1) % kTailStep == 0)
            side.tails[at((o * side.count + i) * side.tail_steps() + (l + 1) / kTailStep)] =
                std::sqrt(rest / norm);
          rest += coefficients[at(l * kChunk) + lane] * coefficients[at(l * kChunk) + lane];
        }
        side.tails[at((o * side.count + i) * side.tail_steps())] = 1;
      }
    }
  });
  side.finite = std::all_of(finite.begin(), finite.end(), [](char ok) { return ok != 0; });
}

/// sum_l left[l][lane] right[l][j] rho^l for kChunk lanes and 4 columns j, l < order.
void sum_series(Index order, const double* left, const double* right, const double* rho,
                double* out) {
  constexpr Index kPacks = kChunk / static_cast<Index>(kLanes);
  constexpr Index kGroup = kPacks <= 4 ? kPacks : 4;
  for (Index p = 0; p < kPacks; p += kGroup) {
    Pack sum[at(kGroup)][4] = {}, r[at(kGroup)][4];
    const auto offset = [&](Index g) { return (p + g) * static_cast<Index>(kLanes); };
    for (Index g = 0; g < kGroup; ++g)
      for (Index j = 0; j < 4; ++j) r[g][j] = simd::load(rho + j * kChunk + offset(g));
    for (Index l = order; l-- > 0;)
      for (Index g = 0; g < kGroup; ++g) {
        const Pack a = simd::load(left + l * kChunk + offset(g));
        for (Index j = 0; j < 4; ++j)
          sum[g][j] = simd::mul_add(sum[g][j], r[g][j], a * right[l * kChunk + j]);
      }
    for (Index g = 0; g < kGroup; ++g)
      for (Index j = 0; j < 4; ++j) simd::store(out + j * kChunk + offset(g), sum[g][j]);
  }
}

/// One entry by the two-dimensional trapezoid rule.
struct SingleEntry {
  double a, b, rho;
  const UnaryFunctions* f;
  const UnaryFunctions* g;
  int functions;
  double radius;
  std::span<const double> scale;  ///< sqrt(E f^2 E g^2) per function
  double tolerance;
  Index limit;
  double largest_step;  ///< at which two levels that agree may end it

  Vector values;
  double error = std::numeric_limits<double>::infinity();  ///< relative to the scale
  bool converged = false;
  Index evaluations = 0;

  void run() {
    const double sine = std::sqrt(std::max(0.0, (1 - rho) * (1 + rho))), root_a = std::sqrt(a),
                 root_b = std::sqrt(b);
    const bool line = sine == 0;
    Vector sums(at(functions)), before, x, outer, y, inner;
    std::vector<double> weights;
    for (double h = 0.5; !converged; h /= 2) {
      const double points = line ? 4 * radius / h : std::numbers::pi * radius * radius / (h * h);
      if (!before.empty() && points > static_cast<double>(limit)) break;
      const auto last = static_cast<Index>(std::floor(radius / h));
      const Index n = 2 * last + 1;
      x.resize(at(n));
      outer.resize(at(n * functions));
      for (Index k = 0; k < n; ++k) x[at(k)] = root_a * (static_cast<double>(k - last) * h);
      (*f)(n, x.data(), outer.data());
      evaluations += n;
      for (Index k = -last; k <= last; ++k) {
        const double z = static_cast<double>(k) * h;
        const bool all = before.empty() || k % 2 != 0;
        if (line && !all) continue;
        const auto reach = line ? 0
                                : static_cast<Index>(std::floor(
                                      std::sqrt(std::max(0.0, radius * radius - z * z)) / h));
        y.clear();
        weights.clear();
        for (Index m = -reach; m <= reach; ++m) {
          if (!all && m % 2 == 0) continue;
          const double t = static_cast<double>(m) * h;
          y.push_back(root_b * (rho * z + sine * t));
          weights.push_back(line ? 1 : density(t));
        }
        if (y.empty()) continue;
        const auto count = static_cast<Index>(y.size());
        inner.resize(at(count * functions));
        (*g)(count, y.data(), inner.data());
        evaluations += count;
        for (int o = 0; o < functions; ++o) {
          double sum = 0;
          for (Index m = 0; m < count; ++m) sum += weights[at(m)] * inner[at(m + o * count)];
          sums[at(o)] += density(z) * outer[at(k + last + o * n)] * sum;
        }
      }
      values = sums;
      for (double& v : values) v *= line ? h : h * h;
      if (!before.empty()) {
        error = 0;
        for (int o = 0; o < functions; ++o)
          if (scale[at(o)] > 0 || values[at(o)] != 0) {
            const double difference = std::abs(values[at(o)] - before[at(o)]);
            error = std::max(error, std::isfinite(difference) && scale[at(o)] > 0
                                        ? difference / scale[at(o)]
                                        : std::numeric_limits<double>::infinity());
          }
        converged = error <= tolerance && h <= largest_step;
      }
      before = values;
    }
  }
};

/// A tile of entries (i, j), at rho[i - i0 + (j - j0) kChunk].
struct GramTile {
  Index ci, cj, i0, i1, j0, j1;  ///< chunks; rows; columns
  alignas(simd::kBytes) std::array<double, kChunk * kChunk> rho{};
  std::array<bool, kChunk * kChunk> bad{}, needs_single{};  ///< no covariance; not by the series
  double largest = 0;                                       ///< |rho|
  [[nodiscard]] std::size_t slot(Index i, Index j) const { return at(i - i0 + (j - j0) * kChunk); }
};

/// E f(u_i) g(v_j) = sum_l f_l(a_i) g_l(b_j) rho_ij^l, a Mehler series, tile by tile; where
/// correlations are near 1 and that is too slow, one by one (docs/theory.md, "Moments without
/// sampling").
class GramQuadrature {
 public:
  GramQuadrature(const GramInput& input, const UnaryFunctions& f, const UnaryFunctions& g,
                 int functions, std::span<double> values, const ParallelFor& parallel_for,
                 const GramOptions& options)
      : input_(input),
        options_(options),
        functions_(functions),
        values_(values),
        parallel_for_(parallel_for),
        // Parseval's remainder is a difference: below this its rounding decides.
        tolerance_(std::max(options.tolerance, 2e-14)),
        left_(make_side(input.row_variances, f)) {
    if (!input.symmetric) other_ = make_side(input.column_variances, g ? g : f);
    const std::array<const Side*, 2> both = {&left_, &other_};
    choice_ = options.rules ? choose_order(input, left_, right(), tolerance_)
                            : choose_grid(std::span(both).first(input.symmetric ? 1 : 2),
                                          tolerance_, input.resolution);
    fill_side(left_, choice_.grid, parallel_for, options.rules, false);
    if (!input.symmetric) fill_side(other_, choice_.grid, parallel_for, options.rules, true);
    grid_error_ = left_.finite && right().finite ? 2 * choice_.error
                                                 : std::numeric_limits<double>::infinity();
  }

  GramResult run() {
    GramResult result;
    std::vector<Part> parts(at(left_.chunks * right().chunks));
    parallel_for_(std::ssize(parts), [&](Index t) {
      const Index ci = t % left_.chunks, cj = t / left_.chunks;
      if (!input_.symmetric || ci >= cj) evaluate_tile(ci, cj, parts[at(t)]);
    });
    result.largest_scale = largest_scale();
    std::vector<std::pair<Index, Index>> singles;
    for (const Part& part : parts) {
      result.status.merge(part.status);
      result.largest_error = std::max(result.largest_error, part.error);
      singles.insert(singles.end(), part.singles.begin(), part.singles.end());
    }
    result.evaluations =
        (left_.count + (input_.symmetric ? 0 : right().count)) * (2 * choice_.grid.half - 1);
    evaluate_singles(singles, result);
    return result;
  }

 private:
  struct Part {
    MomentStatus status;
    double error = 0;
    std::vector<std::pair<Index, Index>> singles;
  };
  struct SingleReport {
    double error = 0;
    bool converged = true;
    Index evaluations = 0;
  };

  [[nodiscard]] Side make_side(std::span<const double> variances, const UnaryFunctions& u) const {
    Side side;
    side.variances = variances;
    side.f = &u;
    side.functions = functions_;
    side.count = static_cast<Index>(variances.size());
    side.chunks = (side.count + kChunk - 1) / kChunk;
    return side;
  }
  [[nodiscard]] const Side& right() const { return input_.symmetric ? left_ : other_; }
  void set(Index i, Index j, int o, double value) {
    const Index P = input_.rows, Q = input_.columns;
    values_[at(i + j * P + o * P * Q)] = value;
    if (input_.symmetric) values_[at(j + i * P + o * P * Q)] = value;
  }

  void evaluate_tile(Index ci, Index cj, Part& part) {
    GramTile tile{ci,          cj,
                  ci * kChunk, std::min(input_.rows, (ci + 1) * kChunk),
                  cj * kChunk, std::min(input_.columns, (cj + 1) * kChunk)};
    find_correlations(tile, part.status);
    const Index terms = terms_needed(tile);
    for (int o = 0; o < functions_; ++o)
      part.error = std::max(part.error, sum_tile(tile, o, terms));
    for (Index slot = 0; slot < kChunk * kChunk; ++slot)
      if (tile.needs_single[at(slot)])
        part.singles.emplace_back(tile.i0 + slot % kChunk, tile.j0 + slot / kChunk);
  }

  /// rho = c / sqrt(a b); beyond 1 by rounding it is 1.
  void find_correlations(GramTile& tile, MomentStatus& status) const {
    for (Index j = tile.j0; j < tile.j1; ++j)
      for (Index i = tile.i0; i < tile.i1; ++i) {
        if (input_.symmetric && i < j) continue;
        const double a = input_.row_variances[at(i)], b = input_.column_variances[at(j)],
                     c = input_.covariance[i + j * input_.leading];
        double r = a == 0 || b == 0 ? 0 : correlation(a, b, c);
        const double excess = (std::abs(r) - 1) * (std::abs(r) + 1);
        bool& bad = tile.bad[tile.slot(i, j)];
        bad = !valid_variance(a) || !valid_variance(b) || !(excess <= kLargestExcess) ||
              ((a == 0 || b == 0) && c != 0);
        if (bad) {
          status.merge({0, at(i + j * input_.rows), false});
          continue;
        }
        if (excess > 0) {
          status.largest_excess = std::max(status.largest_excess, excess);
          r = std::copysign(1.0, r);
        }
        tile.rho[tile.slot(i, j)] = r;
        tile.largest = std::max(tile.largest, std::abs(r));
      }
  }

  /// Of the series' tail from l = step kTailStep on, by Cauchy and Schwarz:
  /// max |rho|^l tail(f) tail(g).
  [[nodiscard]] double tail_bound(const GramTile& tile, int o, Index step) const {
    double row = 0, column = 0;
    for (Index i = tile.i0; i < tile.i1; ++i) row = std::max(row, left_.tail(o, i, step));
    for (Index j = tile.j0; j < tile.j1; ++j) column = std::max(column, right().tail(o, j, step));
    return std::pow(tile.largest, static_cast<double>(step * kTailStep)) * row * column;
  }

  /// The largest tails of the tile decide how many terms it needs.
  [[nodiscard]] Index terms_needed(const GramTile& tile) const {
    const Index order = choice_.grid.order;
    Index terms = 0;
    for (int o = 0; o < functions_; ++o) {
      Index low = 0, high = order / kTailStep;  // the bound decreases
      while (low < high) {
        const Index middle = (low + high) / 2;
        if (tail_bound(tile, o, middle) <= 0.1 * tolerance_)
          high = middle;
        else
          low = middle + 1;
      }
      terms = std::max(terms, low * kTailStep);
    }
    return std::min(std::max(terms, kTailStep), order);
  }

  /// The series of function o in a tile; its error, of entries that do not need more.
  double sum_tile(GramTile& tile, int o, Index terms) {
    const Index step = terms / kTailStep;
    const bool coarse = grid_error_ > 0.5 * tolerance_;
    double worst = tail_bound(tile, o, step);
    const bool doubtful = worst > 0.5 * tolerance_ || coarse;
    if (doubtful) worst = 0;
    alignas(simd::kBytes) double sums[kChunk * kChunk];
    for (Index j = 0; j < kChunk; j += 4)
      sum_series(terms, left_.chunk(o, tile.ci), right().chunk(o, tile.cj) + j,
                 tile.rho.data() + j * kChunk, sums + j * kChunk);
    for (Index j = tile.j0; j < tile.j1; ++j)
      for (Index i = tile.i0; i < tile.i1; ++i) {
        if (input_.symmetric && i < j) continue;
        const std::size_t slot = tile.slot(i, j);
        set(i, j, o, tile.bad[slot] ? kNan : sums[slot]);
        if (tile.bad[slot] || !doubtful) continue;
        const double own = std::pow(std::abs(tile.rho[slot]), static_cast<double>(terms)) *
                           left_.tail(o, i, step) * right().tail(o, j, step);
        if (own > 0.5 * tolerance_ || coarse)
          tile.needs_single[slot] = true;
        else
          worst = std::max(worst, own);
      }
    return worst + (coarse ? 0 : grid_error_);
  }

  /// sqrt(E f^2 E g^2), largest.
  [[nodiscard]] double largest_scale() const {
    double out = 0;
    for (int o = 0; o < functions_; ++o) {
      double row = 0, column = 0;
      for (Index i = 0; i < input_.rows; ++i) row = std::max(row, left_.moment(o, i));
      for (Index j = 0; j < input_.columns; ++j) column = std::max(column, right().moment(o, j));
      out = std::max(out, std::sqrt(row) * std::sqrt(column));
    }
    return out;
  }

  void evaluate_singles(const std::vector<std::pair<Index, Index>>& singles, GramResult& result) {
    result.single_entries = static_cast<Index>(singles.size());
    std::vector<SingleReport> reports(singles.size());
    if (!singles.empty())
      parallel_for_(result.single_entries, [&](Index s) {
        const auto [i, j] = singles[at(s)];
        reports[at(s)] =
            options_.rules ? by_rules(i, j) : by_trapezoid(i, j, result.single_entries);
      });
    for (const SingleReport& r : reports) {
      result.largest_error = std::max(result.largest_error, r.error);
      result.converged &= r.converged;
      result.evaluations += r.evaluations;
    }
    const Index P = input_.rows, Q = input_.columns;
    for (const auto& [i, j] : singles)
      for (int o = 0; o < functions_; ++o)
        if (!std::isfinite(values_[at(i + j * P + o * P * Q)])) {
          result.status.overflow = true;
          result.converged = false;
        }
  }

  [[nodiscard]] double clamped_correlation(Index i, Index j) const {
    const double a = input_.row_variances[at(i)], b = input_.column_variances[at(j)];
    const double rho =
        a == 0 || b == 0 ? 0 : correlation(a, b, input_.covariance[i + j * input_.leading]);
    return std::clamp(rho, -1.0, 1.0);
  }

  SingleReport by_rules(Index i, Index j) {
    const double scale = std::sqrt(left_.moment(0, i)) * std::sqrt(right().moment(0, j));
    const auto [value, error] = options_.rules->entry(i, j, clamped_correlation(i, j));
    set(i, j, 0, value);
    // The scale of an error that is printed for all entries.
    return {scale > 0    ? error / scale
            : value == 0 ? 0
                         : std::numeric_limits<double>::infinity(),
            error <= 1e-8 * scale, 1};
  }

  SingleReport by_trapezoid(Index i, Index j, Index singles) {
    Vector scale(at(functions_));
    for (int o = 0; o < functions_; ++o)
      scale[at(o)] = std::sqrt(left_.moment(o, i)) * std::sqrt(right().moment(o, j));
    SingleEntry entry{input_.row_variances[at(i)],
                      input_.column_variances[at(j)],
                      clamped_correlation(i, j),
                      left_.f,
                      right().f,
                      functions_,
                      choice_.grid.radius > 13 ? choice_.grid.radius : kRadius,
                      scale,
                      tolerance_,
                      options_.max_evaluations / singles,
                      2 * std::numbers::pi / (9 + 8 / input_.resolution)};
    entry.run();
    for (int o = 0; o < functions_; ++o) set(i, j, o, entry.values[at(o)]);
    return {entry.error, entry.converged, entry.evaluations};
  }

  const GramInput& input_;
  const GramOptions& options_;
  int functions_;
  std::span<double> values_;
  const ParallelFor& parallel_for_;
  double tolerance_;
  Side left_, other_;  ///< other_: of columns, unless they are the rows
  GridChoice choice_;
  double grid_error_ = 0;
};

}  // namespace

GramResult gram_quadrature(const GramInput& input, const UnaryFunctions& f, const UnaryFunctions& g,
                           int functions, std::span<double> values, const ParallelFor& parallel_for,
                           const GramOptions& options) {
  const Index P = input.rows, Q = input.columns;
  TPLIMIT_CHECK(
      functions >= 1 && P >= 0 && Q >= 0 && static_cast<Index>(values.size()) == P * Q * functions,
      "room for {} x {} x {} values, not {}", P, Q, functions, values.size());
  TPLIMIT_CHECK(static_cast<Index>(input.row_variances.size()) == P &&
                    static_cast<Index>(input.column_variances.size()) == Q && input.leading >= P,
                "variances of {} rows and {} columns", P, Q);
  TPLIMIT_CHECK(!input.symmetric || (P == Q && !g),
                "a symmetric matrix is square and of one function");
  TPLIMIT_CHECK(!options.rules || functions == 1, "rules for one function, not {}", functions);
  if (P == 0 || Q == 0) return {};
  return GramQuadrature(input, f, g, functions, values, parallel_for, options).run();
}

}  // namespace tplimit
