#include "moments/line_rule.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <numbers>
#include <optional>
#include <utility>

#include <boost/math/quadrature/gauss.hpp>

#include "tplimit/ir/functions.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::moments {

using namespace ir;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargest = 37.5;  // phi underflows soon after

// ---- interval arithmetic
// -------------------------------------------------------------------------------------------------
// Rounding is not directed: bounds need two digits, not sixteen.

struct Interval {
  double lo = 0, hi = 0;
  [[nodiscard]] bool bounded() const { return std::isfinite(lo) && std::isfinite(hi); }
  [[nodiscard]] double size() const { return std::max(std::abs(lo), std::abs(hi)); }
};
constexpr Interval kAll{-kInfinity, kInfinity};

/// 0 infinity = 0: both bounds of a product are limits of finite ones.
double times(double a, double b) { return a == 0 || b == 0 ? 0 : a * b; }
Interval ordered(Interval x) { return std::isnan(x.lo) || std::isnan(x.hi) ? kAll : x; }
Interval operator+(Interval a, Interval b) { return ordered({a.lo + b.lo, a.hi + b.hi}); }
Interval operator-(Interval a) { return {-a.hi, -a.lo}; }
Interval operator-(Interval a, Interval b) { return a + (-b); }
Interval operator*(Interval a, Interval b) {
  const std::array<double, 4> p{times(a.lo, b.lo), times(a.lo, b.hi), times(a.hi, b.lo),
                                times(a.hi, b.hi)};
  return ordered({*std::min_element(p.begin(), p.end()), *std::max_element(p.begin(), p.end())});
}
Interval inverse(Interval a) { return a.lo > 0 || a.hi < 0 ? Interval{1 / a.hi, 1 / a.lo} : kAll; }
Interval square(Interval a) {
  const double x = a.lo * a.lo, y = a.hi * a.hi;
  return ordered({a.lo <= 0 && a.hi >= 0 ? 0 : std::min(x, y), std::max(x, y)});
}
template <class F>
Interval rising(F f, Interval a) {
  return ordered({f(a.lo), f(a.hi)});
}
Interval cosine(Interval a) {
  if (!a.bounded() || a.hi - a.lo >= 2 * std::numbers::pi) return {-1, 1};
  Interval out{std::min(std::cos(a.lo), std::cos(a.hi)), std::max(std::cos(a.lo), std::cos(a.hi))};
  if (std::floor(a.hi / (2 * std::numbers::pi)) > std::floor(a.lo / (2 * std::numbers::pi)))
    out.hi = 1;
  if (std::floor((a.hi / std::numbers::pi - 1) / 2) > std::floor((a.lo / std::numbers::pi - 1) / 2))
    out.lo = -1;
  return out;
}
Interval sine(Interval a) {
  return cosine(a - Interval{std::numbers::pi / 2, std::numbers::pi / 2});
}

/// A rectangle of complex numbers.
struct Box {
  Interval re, im;
  [[nodiscard]] double size() const { return std::hypot(re.size(), im.size()); }
};
const Box kEverywhere{kAll, kAll};
Box real(double x) { return {{x, x}, {}}; }
Box operator+(const Box& a, const Box& b) { return {a.re + b.re, a.im + b.im}; }
Box operator-(const Box& a) { return {-a.re, -a.im}; }
Box operator-(const Box& a, const Box& b) { return a + (-b); }
Box operator*(const Box& a, const Box& b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
Box scaled(double c, const Box& a) { return {Interval{c, c} * a.re, Interval{c, c} * a.im}; }
Box square(const Box& a) { return {square(a.re) - square(a.im), Interval{2, 2} * (a.re * a.im)}; }
Box inverse(const Box& a) {
  const Interval norm = square(a.re) + square(a.im);
  if (!(norm.lo > 0)) return kEverywhere;
  const Interval d = inverse(norm);
  return {a.re * d, -a.im * d};
}
Box exp(const Box& a) {
  const Interval r = rising([](double x) { return std::exp(x); }, a.re);
  return {r * cosine(a.im), r * sine(a.im)};
}
Box cosine(const Box& a) {
  const Interval abs_im{0, a.im.size()};
  const Interval c{
      std::cosh(a.im.lo <= 0 && a.im.hi >= 0 ? 0 : std::min(std::abs(a.im.lo), std::abs(a.im.hi))),
      std::cosh(abs_im.hi)};
  const Interval s = rising([](double x) { return std::sinh(x); }, a.im);
  return {cosine(a.re) * c, -(sine(a.re) * s)};
}
Box sine(const Box& a) {
  return cosine({a.re - Interval{std::numbers::pi / 2, std::numbers::pi / 2}, a.im});
}
Box log(const Box& a) {
  if (!(a.re.lo > 0)) return kEverywhere;
  const double angle = std::atan2(a.im.size(), a.re.lo);
  return {{std::log(a.re.lo), std::log(std::hypot(a.re.hi, a.im.size()))}, {-angle, angle}};
}
Box sigmoid(const Box& a) {
  if (a.re.lo + a.re.hi > 0) return inverse(real(1) + exp(-a));
  const Box w = exp(a);
  return w * inverse(real(1) + w);
}
Box tanh(const Box& a) {
  return a.re.lo + a.re.hi > 0 ? scaled(2, sigmoid(scaled(2, a))) - real(1)
                               : real(1) - scaled(2, sigmoid(scaled(-2, a)));
}
Box softplus(const Box& a) {
  return a.re.lo + a.re.hi > 0 ? a + log(real(1) + exp(-a)) : log(real(1) + exp(a));
}
/// |erf(x + i y) - erf(x)| <= 2/sqrt(pi) |y| exp(y^2 - x^2).
double erf_spread(const Box& a) {
  const double y = a.im.size(), x = a.re.lo <= 0 && a.re.hi >= 0
                                        ? 0
                                        : std::min(std::abs(a.re.lo), std::abs(a.re.hi));
  const double spread = std::numbers::inv_sqrtpi * 2 * y * std::exp((y - x) * (y + x));
  return std::isnan(spread) ? kInfinity : spread;
}
Box erf(const Box& a) {
  const Interval d{-erf_spread(a), erf_spread(a)};
  return {rising([](double x) { return std::erf(x); }, a.re) + d, d};
}
Box normal_distribution(const Box& a) {
  const double spread = 0.5 * erf_spread(scaled(1 / std::numbers::sqrt2, a));
  const Interval d{-spread, spread};
  return {rising([](double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }, a.re) + d, d};
}
Box power(const Box& a, double p) {
  if (p == std::floor(p) && std::abs(p) <= 64) {
    Box out = real(1), factor = p < 0 ? inverse(a) : a;
    for (int k = static_cast<int>(std::abs(p)); k > 0; k /= 2) {
      if (k % 2 != 0) out = out * factor;
      factor = square(factor);
    }
    return out;
  }
  return exp(scaled(p, log(a)));
}

// ---- enclosures of the nodes of a function
// ----------------------------------------------------------------------------------

/// What is known of a node on a panel of the real line, and of its continuation from there to the
/// box.
struct Enclosure {
  double left = 0, right = 0;  ///< at the ends, continued from within
  Interval range, slope;       ///< on the panel
  Box box;
};

class Enclosures {
 public:
  Enclosures(const FunctionTable& table, FunctionTable::Id f)
      : program_(table.program(f)), out_(table.output(f)), nodes_(program_.size()) {}

  /// Encloses f on [from, to]; `half` of the box's size.  A kink inside sets root() to where it is,
  /// if its argument changes sign.
  const Enclosure& enclose(double from, double to) {
    const double centre = 0.5 * (from + to), half = 0.5 * (to - from);
    from_ = from;
    to_ = to;
    root_.reset();
    nodes_[0] = {from,
                 to,
                 {from, to},
                 {1, 1},
                 {{centre - 2 * half, centre + 2 * half},
                  {-std::numbers::sqrt3 * half, std::numbers::sqrt3 * half}}};
    for (std::size_t k = 1; k <= out_.value; ++k) nodes_[k] = node(program_.nodes[k]);
    return nodes_[out_.value];
  }
  [[nodiscard]] std::optional<double> root() const { return root_; }

 private:
  using E = Enclosure;

  static E fixed(double c) { return {c, c, {c, c}, {}, real(c)}; }
  static E unknown(E e) {
    e.box = kEverywhere;
    e.slope = kAll;
    return e;
  }
  /// Tightens the range of what is monotone.
  static E finish(E e) {
    if (e.slope.lo >= 0 && std::isfinite(e.left) && std::isfinite(e.right))
      e.range = {e.left, std::max(e.left, e.right)};
    if (e.slope.hi <= 0 && std::isfinite(e.left) && std::isfinite(e.right))
      e.range = {std::min(e.left, e.right), e.left};
    return e;
  }
  static E sum(const E& a, const E& b) {
    return finish(
        {a.left + b.left, a.right + b.right, a.range + b.range, a.slope + b.slope, a.box + b.box});
  }
  static E product(const E& a, const E& b) {
    return finish({a.left * b.left, a.right * b.right, a.range * b.range,
                   a.slope * b.range + a.range * b.slope, a.box * b.box});
  }
  static E scaled(double c, const E& a) { return product(fixed(c), a); }
  static E difference(const E& a, const E& b) { return sum(a, scaled(-1, b)); }
  template <class F>
  static E monotone(F f, const E& a, Box box, Interval slope = {0, kInfinity}) {
    return finish({f(a.left), f(a.right), rising(f, a.range), a.slope * slope, box});
  }
  /// Any function of one number with its values and a bound of its range.
  template <class F>
  static E general(F f, const E& a, Interval range, Box box) {
    return finish({f(a.left), f(a.right), range,
                   a.slope.lo == 0 && a.slope.hi == 0 ? Interval{} : kAll, box});
  }

  /// Sign of a node on the panel; 0: it changes or cannot be told; 2: it is 0 throughout.
  int sign_of(const E& a, const std::function<double(double)>& value) {
    if (a.range.lo == 0 && a.range.hi == 0) return 2;
    // What is analytic on the panel is 0 at points only; what has a kink or jump there may be 0 on
    // a part of it.
    const bool analytic = std::isfinite(a.box.size());
    if (!analytic && (a.range.lo > 0 || a.range.hi < 0)) return a.range.lo > 0 ? 1 : -1;
    const double noise = a.range.bounded() ? 2e-14 * a.range.size() : 0;
    if (analytic && a.range.lo >= -noise) return 1;
    if (analytic && a.range.hi <= noise) return -1;
    if (!root_ && std::isfinite(a.left) && std::isfinite(a.right) && std::abs(a.left) > noise &&
        std::abs(a.right) > noise && (a.left > 0) != (a.right > 0)) {
      double low = from_, high = to_;
      for (int k = 0; k < 200 && high - low > 1e-17 + 1e-16 * std::abs(low); ++k) {
        const double middle = 0.5 * (low + high);
        if (middle == low || middle == high) break;
        ((value(middle) > 0) == (a.left > 0) ? low : high) = middle;
      }
      root_ = std::abs(low) < 1e-16 * (to_ - from_) ? 0.0 : 0.5 * (low + high);
    }
    return 0;
  }
  double value_at(NodeId id, double x) const {
    std::vector<std::vector<double>> values;
    FunctionTable::run(program_, 1, &x, values, id);
    return values[id.value][0];
  }

  E node(const Node& n) {
    if (const auto* c = std::get_if<Constant>(&n.op)) return fixed(c->values->front());
    const E& a = nodes_[n.in[0].value];
    if (const auto* s = std::get_if<Scale>(&n.op)) return scaled(s->factor, a);
    const auto* m = std::get_if<Map>(&n.op);
    return m ? map(*m, n) : a;
  }

  static E elementary(Fn fn, const E& a) {
    const auto sigmoid_of = [](double x) {
      return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
    };
    switch (fn) {
      case Fn::kTanh: return monotone([](double x) { return std::tanh(x); }, a, tanh(a.box));
      case Fn::kSigmoid: return monotone(sigmoid_of, a, sigmoid(a.box));
      case Fn::kSoftplus:
        return monotone(
            [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }, a,
            softplus(a.box));
      case Fn::kErf: return monotone([](double x) { return std::erf(x); }, a, erf(a.box));
      case Fn::kExp:
        return monotone([](double x) { return std::exp(x); }, a, exp(a.box),
                        rising([](double x) { return std::exp(x); }, a.range));
      case Fn::kSin:
        return general([](double x) { return std::sin(x); }, a, sine(a.range), sine(a.box));
      case Fn::kCos:
        return general([](double x) { return std::cos(x); }, a, cosine(a.range), cosine(a.box));
      case Fn::kLog:
        return monotone([](double x) { return std::log(x); }, a,
                        a.range.lo > 0 || a.left == 0 || a.right == 0 ? log(a.box) : kEverywhere);
      default:
        return monotone([](double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }, a,
                        normal_distribution(a.box));
    }
  }

  E map(const Map& m, const Node& n) {
    return n.in.size() == 1 ? of_one(m, n.in[0]) : of_several(m.fn, n);
  }

  static E hull(const E& x, const E& y) {
    return {x.left,
            y.right,
            {std::min(x.range.lo, y.range.lo), std::max(x.range.hi, y.range.hi)},
            kAll,
            kEverywhere};
  }
  /// What breaks where x is 0: a branch, by the sign of x, if x has one on the panel, else the
  /// whole.
  E by_sign(NodeId x, const std::function<E(int)>& branch, const std::function<E()>& whole) {
    const int s = cut_at_root(x);
    return s == 0 ? unknown(whole()) : branch(s);
  }

  E of_one(const Map& m, NodeId x) {
    const E& a = nodes_[x.value];
    switch (m.fn) {
      case Fn::kAbs:
        return by_sign(
            x, [&](int s) { return s < 0 ? scaled(-1, a) : a; },
            [&] {
              return E{std::abs(a.left), std::abs(a.right), {0, a.range.size()}, kAll, kEverywhere};
            });
      case Fn::kSign:
        return by_sign(
            x, [&](int s) { return fixed(s == 2 ? 0 : s); },
            [&] { return hull(fixed(-1), fixed(1)); });
      case Fn::kStep:
        return by_sign(
            x, [&](int s) { return fixed(s == 1 ? 1 : 0); },
            [&] { return hull(fixed(0), fixed(1)); });
      case Fn::kRelu: return leaky_relu(x, 0);
      case Fn::kLeakyRelu: return leaky_relu(x, m.parameter);
      case Fn::kElu: return elu(x, m.parameter);
      case Fn::kSilu: return product(a, elementary(Fn::kSigmoid, a));
      case Fn::kGelu: return product(a, elementary(Fn::kGelu, a));
      case Fn::kGeluTanh: {
        const E inner = scaled(std::sqrt(2 / std::numbers::pi),
                               sum(a, scaled(0.044715, product(a, square_of(a)))));
        return product(scaled(0.5, a), sum(fixed(1), elementary(Fn::kTanh, inner)));
      }
      case Fn::kSqrt: return power_of(a, 0.5);
      case Fn::kPower:
        cut_at_root(x);  // where a pole may be, also one of even order
        return power_of(a, m.parameter);
      case Fn::kTanh:
      case Fn::kSigmoid:
      case Fn::kSoftplus:
      case Fn::kErf:
      case Fn::kSin:
      case Fn::kCos:
      case Fn::kExp:
      case Fn::kLog: return elementary(m.fn, a);
      default: break;
    }
    TPLIMIT_CHECK(false, "a function that quadrature encloses, or one with a definition, got {}",
                  name(m.fn));
    return {};
  }

  /// slope x below 0, x above.
  E leaky_relu(NodeId x, double slope) {
    const E& a = nodes_[x.value];
    return by_sign(
        x, [&](int s) { return s > 0 ? a : scaled(slope, a); },
        [&] { return hull(scaled(slope, a), a); });
  }
  /// alpha (exp(x) - 1) below 0, x above.
  E elu(NodeId x, double alpha) {
    const E& a = nodes_[x.value];
    return by_sign(
        x,
        [&](int s) { return s > 0 ? a : scaled(alpha, sum(elementary(Fn::kExp, a), fixed(-1))); },
        [&] {
          return E{0,
                   0,
                   {-std::abs(alpha), std::max(std::abs(alpha), a.range.size())},
                   kAll,
                   kEverywhere};
        });
  }

  E of_several(Fn fn, const Node& n) {
    const E &a = nodes_[n.in[0].value], &b = nodes_[n.in[1].value];
    switch (fn) {
      case Fn::kAdd: return sum(a, b);
      case Fn::kSub: return difference(a, b);
      case Fn::kMul:
        if (n.in[0] != n.in[1]) return product(a, b);
        cut_at_root(n.in[0]);
        return square_of(a);
      case Fn::kDiv:
        cut_at_root(n.in[1]);  // a pole
        return finish({a.left / b.left, a.right / b.right, a.range * inverse(b.range),
                       b.slope.lo == 0 && b.slope.hi == 0 ? a.slope * inverse(b.range) : kAll,
                       a.box * inverse(b.box)});
      case Fn::kPow:
        if (b.range.lo == b.range.hi) return power_of(a, b.range.lo);
        return elementary(Fn::kExp, product(b, elementary(Fn::kLog, a)));
      case Fn::kMin:
      case Fn::kMax: {
        const int s = sign_of_difference(n);
        if (s == 0) return unknown(hull(a, b));
        return (s > 0) == (fn == Fn::kMax) ? a : b;
      }
      case Fn::kLess:
      case Fn::kLessEqual:
      case Fn::kEqual:
      case Fn::kNotEqual: {
        const int s = sign_of_difference(n);
        if (s == 0) return unknown(hull(fixed(0), fixed(1)));
        const bool equal = s == 2;
        return fixed(fn == Fn::kLess        ? s < 0
                     : fn == Fn::kLessEqual ? s < 0 || equal
                                            : (fn == Fn::kEqual) == equal);
      }
      case Fn::kWhere: {
        const E& c = nodes_[n.in[2].value];
        const int s = cut_at_root(n.in[0]);
        if (s == 0 && a.box.size() == kInfinity)
          return unknown(hull(b, c));  // a condition that jumps here
        return s == 2 ? c : b;         // elsewhere it is 0 at points only
      }
      case Fn::kMod: return modulo(n.in[0], n.in[1]);
      default: return unknown({0, 0, kAll, kAll, kEverywhere});
    }
  }

  /// Its sign; where that changes is a place to cut.
  int cut_at_root(NodeId x) {
    return sign_of(nodes_[x.value], [&](double at) { return value_at(x, at); });
  }
  int sign_of_difference(const Node& n) {
    return sign_of(difference(nodes_[n.in[0].value], nodes_[n.in[1].value]),
                   [&](double x) { return value_at(n.in[0], x) - value_at(n.in[1], x); });
  }

  /// x - y floor(x / y).
  E modulo(NodeId x, NodeId y) {
    const E &a = nodes_[x.value], &b = nodes_[y.value];
    const E ratio =
        product(a, finish({1 / b.left, 1 / b.right, inverse(b.range), kAll, inverse(b.box)}));
    const auto ratio_at = [&](double at) { return value_at(x, at) / value_at(y, at); };
    const Interval whole{std::floor(ratio.range.lo), std::floor(ratio.range.hi)};
    // Not by a value: one point may be another one than all others, as sign(h^2) at 0.
    const double middle = std::floor(whole.bounded() ? 0.5 * (ratio.range.lo + ratio.range.hi)
                                                     : ratio_at(0.5 * (from_ + to_)));
    // Away from the jumps y floor(x / y) is a multiple of y.  What is analytic touches a jump
    // at points only.
    const bool analytic = std::isfinite(ratio.box.size()) && ratio.range.lo < ratio.range.hi;
    const double noise = analytic ? 1e-12 * std::max(1.0, ratio.range.size()) : 0;
    if (whole.bounded() && ratio.range.lo >= middle - noise &&
        (ratio.range.hi < middle + 1 || (analytic && ratio.range.hi <= middle + 1 + noise)))
      return difference(a, scaled(middle, b));
    for (const double jump : {middle, middle + 1})
      (void)sign_of(difference(ratio, fixed(jump)), [&](double at) { return ratio_at(at) - jump; });
    return unknown({0, 0, {-b.range.size(), b.range.size()}, kAll, kEverywhere});
  }

  static E square_of(const E& a) {
    return finish({a.left * a.left, a.right * a.right, square(a.range),
                   Interval{2, 2} * (a.range * a.slope), square(a.box)});
  }
  static E power_of(const E& a, double p) {
    if (p == 0) return fixed(1);
    if (p == 1) return a;
    if (p == 2) return square_of(a);
    const auto f = [p](double x) { return std::pow(x, p); };
    const Box box = power(a.box, p);
    if (a.range.lo >= 0 || a.left == 0 || a.right == 0) {
      const Interval positive{std::max(0.0, a.range.lo), a.range.hi};
      if (a.range.lo >= 0)
        return p > 0 ? monotone(f, a, box)
                     : finish({f(a.left),
                               f(a.right),
                               {f(positive.hi), f(positive.lo)},
                               a.slope * Interval{-kInfinity, 0},
                               box});
    }
    if (p == std::floor(p)) {
      Interval range{1, 1};
      for (int k = 0; k < static_cast<int>(std::abs(p)) && k < 64; ++k) range = range * a.range;
      return finish({f(a.left), f(a.right), p > 0 ? range : inverse(range), kAll, box});
    }
    return {f(a.left), f(a.right), kAll, kAll, kEverywhere};
  }

  const Program& program_;
  NodeId out_;
  std::vector<Enclosure> nodes_;
  double from_ = 0, to_ = 0;
  std::optional<double> root_;
};

// ---- the rule
// -------------------------------------------------------------------------------------------------

template <unsigned kNodes>
struct GaussRule {
  std::array<double, kNodes> x{}, w{};
  GaussRule() {
    using Gauss = boost::math::quadrature::gauss<double, kNodes>;
    for (std::size_t k = 0; k < kNodes / 2; ++k) {
      x[kNodes / 2 + k] = Gauss::abscissa()[k];
      x[kNodes / 2 - 1 - k] = -Gauss::abscissa()[k];
      w[kNodes / 2 + k] = w[kNodes / 2 - 1 - k] = Gauss::weights()[k];
    }
  }
};
const GaussRule<kLineNodes>& rule() {
  static const GaussRule<kLineNodes> r;
  return r;
}
double density(double z) {
  return std::numbers::inv_sqrtpi / std::numbers::sqrt2 * std::exp(-0.5 * z * z);
}

class Line {
 public:
  Line(const FunctionTable& table, std::span<const LineFunction> functions, double power, int most)
      : table_(table), functions_(functions), power_(power), most_(most) {
    for (const LineFunction& f : functions) enclosures_.emplace_back(table, f.f);
  }

  LineRule run() {
    // From the peak of the density outwards, so that the tails are measured by what has been found.
    // No round numbers, where kinks are likely: they are to be cut at, and known.
    constexpr std::array<double, 11> kCuts{0.5772156649015329, 1.618033988749895, 2.718281828459045,
                                           4.123105625617661,  5.656854249492381, 7.681145747868608,
                                           10.04987562112089,  13.1529464379659,  18.02775637731995,
                                           25.07987240796891,  32.01562118716424};
    for (std::size_t side : {0u, 1u}) end_[side] = farthest(side == 0 ? -1 : 1);
    std::deque<Piece> queue{{-kCuts[0], kCuts[0]}};
    for (std::size_t k = 0; k < kCuts.size(); ++k) {
      const double to = k + 1 < kCuts.size() ? kCuts[k + 1] : kLargest;
      if (kCuts[k] < end_[1]) queue.push_back({kCuts[k], std::min(to, end_[1])});
      if (kCuts[k] < end_[0]) queue.push_back({-std::min(to, end_[0]), -kCuts[k]});
    }
    for (Piece& p : queue) examine(p);
    bool full = false;
    while (!queue.empty()) {
      Piece p = queue.front();
      queue.pop_front();
      if (out_.status == LineStatus::kDiverges) return out_;
      if (settle(p)) continue;
      // Sticky, or the rest would be halved down to rounding by turns.
      full = full || static_cast<int>(out_.panels.size() + queue.size()) > most_;
      if (full) {
        give_up(p);
        continue;
      }
      const double middle = p.split ? *p.split : 0.5 * (p.from + p.to);
      if (p.split) out_.kinks.push_back(middle);
      Piece left{p.from, middle}, right{middle, p.to};
      examine(left);
      examine(right);
      for (Piece* child : {&left, &right}) {
        Piece& other = child == &left ? right : left;
        // The singular point is in this half: the other is one more term of a geometric series of
        // panels.
        if (other.range.bounded() && other.finite && !child->accepted && !child->range.bounded() &&
            !p.split) {
          child->term = other.magnitude;
          child->ratio = p.term > 0 ? other.magnitude / p.term : 0;
          child->before = p.ratio;
          child->depth = p.depth + 1;
        }
      }
      // A cut at a root restarts the series.
      for (const Piece& child : {left, right})
        if (child.accepted)
          take(child);
        else
          queue.push_back(child);
    }
    tails();
    std::sort(out_.panels.begin(), out_.panels.end(),
              [](const auto& a, const auto& b) { return a.from < b.from; });
    out_.error += kEpsilon * (8 * out_.magnitude + variation_);
    return out_;
  }

 private:
  struct Piece {
    double from, to;
    double term = 0, ratio = 0, before = 0;  ///< of the series of panels that leads here
    int depth = 0;
    bool accepted = false, finite = true;
    double value = 0, magnitude = 0, bound = 0, peak = 0, variation = 0;
    Interval range{};
    std::optional<double> split{};
  };

  double weight(double z) const {
    return std::pow(std::numbers::inv_sqrtpi / std::numbers::sqrt2, power_) *
           std::exp(-0.5 * power_ * z * z);
  }

  /// Bounds and, if they are good enough, values.
  void examine(Piece& p) {
    const double centre = 0.5 * (p.from + p.to), half = 0.5 * (p.to - p.from);
    double bound = 1;
    Interval range{1, 1};
    for (std::size_t k = 0; k < functions_.size(); ++k) {
      const LineFunction& f = functions_[k];
      double from = f.mean + f.slope * p.from, to = f.mean + f.slope * p.to;
      if (from > to) std::swap(from, to);
      const Enclosure& e = enclosures_[k].enclose(from, to);
      bound = times(bound, e.box.size());
      range = range * e.range;
      if (const auto root = enclosures_[k].root(); root && !p.split) {
        const double z = (*root - f.mean) / f.slope;
        if (z > p.from && z < p.to) p.split = z;
      }
    }
    const double edge = std::max(0.0, std::abs(centre) - 2 * half), y = std::numbers::sqrt3 * half;
    bound *= std::pow(std::numbers::inv_sqrtpi / std::numbers::sqrt2, power_) *
             std::exp(-0.5 * power_ * (edge - y) * (edge + y));
    if (std::isnan(bound)) bound = kInfinity;
    const double nearest = p.from > 0 ? p.from : p.to < 0 ? -p.to : 0;
    p.range = range;
    p.peak = times(range.size(), weight(nearest));
    constexpr double kError = 4.6 * 4.9e-19;  // 64/15 / (1 - r^-2) r^-32
    p.bound = kError * half * bound;
    if (2 * half * p.peak <= 1e-19 * out_.magnitude || p.peak == 0) {  // too little to count
      p.accepted = true;
      p.bound = 2 * half * p.peak;
      out_.error += p.bound;
      p.bound = 0;
      return;
    }
    if (!std::isfinite(p.bound)) {
      // Beyond the largest number, and not only at a pole.
      if (std::isinf(product_at(centre - 0.41 * half)) &&
          std::isinf(product_at(centre + 0.37 * half)))
        out_.status = LineStatus::kDiverges;
      if (!range.bounded()) return;
    }
    std::array<double, kLineNodes> x{}, y_k{}, values;
    values.fill(1);
    for (const LineFunction& f : functions_) {
      for (std::size_t i = 0; i < kLineNodes; ++i)
        x[i] = f.mean + f.slope * (centre + half * rule().x[i]);
      table_.evaluate(f.f, kLineNodes, x.data(), y_k.data());
      for (std::size_t i = 0; i < kLineNodes; ++i) values[i] *= y_k[i];
    }
    p.value = p.magnitude = p.variation = 0;
    double shift = 0;  // what rounding of the arguments moves them by, in z
    for (const LineFunction& f : functions_)
      shift = std::max(shift, std::max(std::abs(p.from), std::abs(p.to)) +
                                  (f.slope != 0 ? std::abs(f.mean / f.slope) : 0));
    for (std::size_t i = 0; i < kLineNodes; ++i) {
      const double z = centre + half * rule().x[i], w = half * rule().w[i] * weight(z);
      p.value += w * values[i];
      p.magnitude += w * std::abs(values[i]);
      if (i > 0) p.variation += shift * std::abs(values[i] - values[i - 1]) * weight(z);
      p.finite = p.finite && std::isfinite(values[i]);
    }
    // Rounding may keep a box away from 0 that is not, that of tanh(x) = 2 sigmoid(2 x) - 1 near 0:
    // next to a pole the range by values tells.
    p.accepted = p.finite && range.bounded() && std::isfinite(p.bound) &&
                 p.bound <= 2e-16 * (p.magnitude + 0.02 * out_.magnitude);
    if (p.accepted) out_.magnitude += p.magnitude;
  }
  void take(const Piece& p) {
    if (p.magnitude == 0 && p.bound == 0) return;
    out_.value += p.value;
    out_.error += p.bound;
    variation_ += p.variation;
    out_.panels.push_back({p.from, p.to});
  }
  /// True if there is nothing left to do for the piece.
  bool settle(Piece& p) {
    if (p.accepted) {
      take(p);
      return true;
    }
    const double width = p.to - p.from, far = std::max(std::abs(p.from), std::abs(p.to));
    const bool tiny = width <= 4e-14 * far || width < 1e-280;
    if (p.range.bounded()) {
      if (!tiny && width * p.peak > 1e-18 * out_.magnitude) return false;
      out_.error += width * p.peak;
      return true;
    }
    // Unbounded: a series of panels towards a singular point.
    const double nearest = std::min(std::abs(p.from), std::abs(p.to));
    const bool fine =
        width <= 1e-9 * std::max(nearest, 1e-3 * far) && nearest > 0;  // nodes are no longer exact
    if (p.depth < 24 || p.term == 0) {
      if (!fine && !tiny) return false;
      out_.status = LineStatus::kNotConverged;  // unbounded, and no series tells how
      out_.error = kInfinity;
      return true;
    }
    const bool settled =
        p.ratio < 0.9 && p.term * p.ratio / (1 - p.ratio) <= 1e-17 * out_.magnitude;
    if (!settled && !fine && !tiny && p.depth < 240) return false;
    if (!(p.ratio < 0.98)) {
      out_.status = LineStatus::kDiverges;
      return true;
    }
    const double rest = p.term * p.ratio / (1 - p.ratio);
    out_.value += std::copysign(rest, product_at(0.5 * (p.from + p.to)));
    out_.magnitude += rest;
    const double rounding = kEpsilon * far / width;
    out_.error +=
        rest * std::min(1.0, 10 * (std::abs(p.ratio - p.before) / (1 - p.ratio) + rounding)) +
        1e-3 * rest * (rounding > 1e-9);
    return true;
  }
  double product_at(double z) const {
    double product = 1;
    for (const LineFunction& f : functions_) {
      const double x = f.mean + f.slope * z;
      double y = 0;
      table_.evaluate(f.f, 1, &x, &y);
      product *= y;
    }
    return product;
  }
  void give_up(const Piece& p) {
    if (out_.status == LineStatus::kConverged) out_.status = LineStatus::kNotConverged;
    out_.error += (p.to - p.from) * p.peak;
  }
  /// Up to where the integrand is a finite number, and well inside: log(r) of a uniform r is not
  /// beyond 8.3, where r rounds to 0, and log(1 + exp(19 x)) beyond 37.4.  `tails` bounds the rest.
  double farthest(double side) const {
    const auto finite = [&](double z) { return std::isfinite(product_at(side * z)); };
    if (finite(kLargest)) return kLargest;
    double low = kLargest, high = kLargest;
    constexpr double kNearest = 6.9;  // any nearer, and what is beyond counts: 1e-12 of all
    while (low > kNearest && !finite(low)) high = std::exchange(low, low - 0.5);
    if (low <= kNearest) return kLargest;
    for (int k = 0; k < 40; ++k) (finite(0.5 * (low + high)) ? low : high) = 0.5 * (low + high);
    return 0.9 * low;
  }
  /// What lies beyond the last panel, from the last three.
  void tails() {
    if (power_ != 1 || out_.status != LineStatus::kConverged) return;
    for (const double side : {-1.0, 1.0}) {
      const double end = end_[side < 0 ? 0 : 1], step = end / (kLargest / 2);
      std::array<double, 3> term{};
      for (std::size_t k = 0; k < 3; ++k) {
        const double z = side * (end - step * static_cast<double>(2 - k));
        term[k] = std::abs(weight(z) * product_at(z));
      }
      if (!std::isfinite(term[2])) {
        out_.status = LineStatus::kDiverges;
        return;
      }
      if (term[2] <= 1e-17 * out_.magnitude) continue;
      const double ratio = term[1] > 0 ? term[2] / term[1] : kInfinity;
      if (!(ratio < 0.8)) {
        out_.status = LineStatus::kDiverges;
        return;
      }
      out_.error += step * term[2] / (1 - ratio);
    }
  }

  const FunctionTable& table_;
  std::span<const LineFunction> functions_;
  double power_;
  int most_;
  std::vector<Enclosures> enclosures_;
  std::array<double, 2> end_{kLargest, kLargest};  ///< on the left, on the right
  LineRule out_;
  double variation_ = 0;
};

// ---- two dimensions
// -------------------------------------------------------------------------------------------------

/// Where a function of one number changes how fast.
struct Features {
  std::vector<LineRule::Panel> panels;  ///< sorted
  std::vector<double> kinks;
};

/// How an integral along a line meets a function: f(mean + slope z), smoothed over a width.
struct Meeting {
  const Features* features;
  double mean, slope, smooth;
};

void collect_panels(std::span<const Meeting> meetings, double radius,
                    std::vector<LineRule::Panel>& out) {
  constexpr double kWidest = 2, kSmoothed = 3, kReach = 8;
  std::vector<double> cuts;
  const int parts = static_cast<int>(std::ceil(2 * radius / kWidest));
  for (int k = 0; k <= parts; ++k) cuts.push_back(radius * (2.0 * k / parts - 1));
  for (const Meeting& m : meetings)
    if (m.smooth == 0 && m.slope != 0)
      for (const double kink : m.features->kinks)
        if (const double z = (kink - m.mean) / m.slope; std::abs(z) < radius) cuts.push_back(z);
  std::sort(cuts.begin(), cuts.end());
  out.clear();
  std::vector<LineRule::Panel> stack;
  for (std::size_t c = cuts.size(); c-- > 1;)
    if (cuts[c] - cuts[c - 1] > 1e-13) stack.push_back({cuts[c - 1], cuts[c]});
  while (!stack.empty()) {
    const LineRule::Panel p = stack.back();
    stack.pop_back();
    const double width = p.to - p.from, middle = 0.5 * (p.from + p.to);
    bool fine = true;
    for (const Meeting& m : meetings) {
      if (m.slope == 0) continue;
      const double size = width * std::abs(m.slope),
                   reach = kReach * m.smooth + (m.smooth > 0 ? 0.5 * size : -1e-9 * size);
      if (size <= kSmoothed * m.smooth) continue;
      const double one = m.mean + m.slope * p.from, other = m.mean + m.slope * p.to;
      const double low = std::min(one, other) - reach, high = std::max(one, other) + reach;
      if (m.smooth > 0)
        for (const double kink : m.features->kinks) fine &= !(kink > low && kink < high);
      const auto& panels = m.features->panels;
      for (auto q = std::partition_point(panels.begin(), panels.end(),
                                         [&](const auto& x) { return x.to <= low; });
           fine && q != panels.end() && q->from < high; ++q)
        fine = size <= 1.01 * std::max(q->to - q->from, kSmoothed * m.smooth);
      if (!fine) break;
    }
    if (fine || width < 1e-12)
      out.push_back(p);
    else {
      stack.push_back({middle, p.to});
      stack.push_back({p.from, middle});
    }
  }
}

/// Sums over the nodes of one rule in both directions.
template <unsigned kNodes>
struct PlaneSums {
  double value = 0, magnitude = 0, edge = 0;
  bool finite = true;
  std::int64_t points = 0;

  void run(const FunctionTable& table, std::span<const PlaneFunction> functions,
           std::span<const Features> features, double radius, std::int64_t most) {
    static const GaussRule<kNodes> gauss;
    std::vector<Meeting> meetings;
    for (std::size_t k = 0; k < functions.size(); ++k)
      meetings.push_back(
          {&features[k], functions[k].mean, functions[k].a, std::abs(functions[k].b)});
    std::vector<LineRule::Panel> outer, inner;
    collect_panels(meetings, radius, outer);
    std::vector<double> z, weights, x, y, product;
    for (const LineRule::Panel& p : outer)
      for (std::size_t i = 0; i < kNodes; ++i) {
        const double half = 0.5 * (p.to - p.from), u = 0.5 * (p.from + p.to) + half * gauss.x[i];
        meetings.clear();
        for (std::size_t k = 0; k < functions.size(); ++k)
          meetings.push_back(
              {&features[k], functions[k].mean + functions[k].a * u, functions[k].b, 0});
        collect_panels(meetings, radius, inner);
        const std::size_t count = inner.size() * kNodes;
        z.resize(count);
        weights.resize(count);
        x.resize(count);
        y.resize(count);
        product.assign(count, 1.0);
        for (std::size_t q = 0; q < inner.size(); ++q)
          for (std::size_t j = 0; j < kNodes; ++j) {
            const double h = 0.5 * (inner[q].to - inner[q].from);
            z[q * kNodes + j] = 0.5 * (inner[q].from + inner[q].to) + h * gauss.x[j];
            weights[q * kNodes + j] = h * gauss.w[j] * density(z[q * kNodes + j]);
          }
        double factor = 1;
        for (std::size_t k = 0; k < functions.size(); ++k) {
          if (functions[k].b == 0) {
            table.evaluate(functions[k].f, 1, &meetings[k].mean, y.data());
            factor *= y[0];
            continue;
          }
          for (std::size_t j = 0; j < count; ++j) x[j] = meetings[k].mean + functions[k].b * z[j];
          table.evaluate(functions[k].f, static_cast<std::int64_t>(count), x.data(), y.data());
          for (std::size_t j = 0; j < count; ++j) product[j] *= y[j];
        }
        double sum = 0, size = 0;
        for (std::size_t j = 0; j < count; ++j) {
          sum += weights[j] * product[j];
          size += weights[j] * std::abs(product[j]);
        }
        points += static_cast<std::int64_t>(count);
        const double weight = half * gauss.w[i] * density(u);
        value += weight * factor * sum;
        magnitude += weight * std::abs(factor) * size;
        edge += weight * std::abs(factor) *
                (weights.front() * std::abs(product.front()) +
                 weights.back() * std::abs(product.back()));
        if (std::abs(u) > radius - 0.5) edge += weight * std::abs(factor) * size;
        finite = finite && std::isfinite(sum) && std::isfinite(factor);
        if (points > most) return;
      }
  }
};

}  // namespace

PlaneRule plane_rule(const FunctionTable& table, std::span<const PlaneFunction> functions) {
  constexpr std::int64_t kMostPoints = 50'000'000;
  PlaneRule out;
  std::vector<Features> features(functions.size());
  for (std::size_t k = 0; k < functions.size(); ++k) {
    const double slope = std::hypot(functions[k].a, functions[k].b);
    const LineFunction line{functions[k].f, functions[k].mean, slope};
    LineRule rule = line_rule(table, {&line, 1}, 0.5);
    if (rule.status != LineStatus::kConverged) {
      out.status = LineStatus::kNotConverged;
      return out;
    }
    for (const auto& p : rule.panels)
      features[k].panels.push_back({line.mean + slope * p.from, line.mean + slope * p.to});
    for (const double z : rule.kinks) features[k].kinks.push_back(line.mean + slope * z);
  }
  for (const double radius : {9.0, 14.0, 22.0, 36.0}) {
    PlaneSums<kLineNodes> fine;
    fine.run(table, functions, features, radius, kMostPoints);
    if (!fine.finite || fine.points > kMostPoints) break;
    out.value = fine.value;
    out.magnitude = fine.magnitude;
    if (!(fine.edge <= 1e-14 * fine.magnitude)) continue;
    PlaneSums<12> coarse;
    coarse.run(table, functions, features, radius, kMostPoints);
    out.error = std::abs(fine.value - coarse.value) + fine.edge + 16 * kEpsilon * fine.magnitude;
    return out;
  }
  out.status = LineStatus::kNotConverged;
  return out;
}

void hermite_nodes(const FunctionTable& table, FunctionTable::Id f, double slope,
                   std::int64_t order, std::vector<double>& z, std::vector<double>& w) {
  const LineFunction line{f, 0, slope};
  const LineRule r = line_rule(table, {&line, 1}, 0.5);
  const double widest = 6 / std::sqrt(static_cast<double>(
                                order));  // Hermite functions have frequencies up to sqrt(order)
  z.clear();
  w.clear();
  for (const auto& p : r.panels) {
    const int parts = static_cast<int>(std::ceil((p.to - p.from) / widest));
    for (int k = 0; k < parts; ++k) {
      const double half = 0.5 * (p.to - p.from) / parts, centre = p.from + half * (2 * k + 1);
      for (std::size_t i = 0; i < kLineNodes; ++i) {
        z.push_back(centre + half * rule().x[i]);
        w.push_back(half * rule().w[i]);
      }
    }
  }
}

LineRule line_rule(const FunctionTable& table, std::span<const LineFunction> functions,
                   double power, int most_panels) {
  return Line(table, functions, power, most_panels).run();
}

}  // namespace tplimit::moments
