#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>

#include <fmt/format.h>

namespace tplimit {

/// A power of the width n: a reduced fraction with positive denominator.
/// (Boost.Rational 1.74 recurses without end when it is compared with an integer in C++20.)
class Exponent {
 public:
  constexpr Exponent(std::int64_t numerator = 0, std::int64_t denominator = 1)
      : p_(numerator), q_(denominator) {  // NOLINT: implicit on purpose
    const std::int64_t divisor = std::gcd(p_, q_) * (q_ < 0 ? -1 : 1);
    p_ /= divisor;
    q_ /= divisor;
  }
  [[nodiscard]] constexpr std::int64_t numerator() const { return p_; }
  [[nodiscard]] constexpr std::int64_t denominator() const { return q_; }

  friend constexpr Exponent operator+(Exponent a, Exponent b) {
    return {a.p_ * b.q_ + b.p_ * a.q_, a.q_ * b.q_};
  }
  friend constexpr Exponent operator-(Exponent a, Exponent b) {
    return {a.p_ * b.q_ - b.p_ * a.q_, a.q_ * b.q_};
  }
  friend constexpr Exponent operator*(Exponent a, Exponent b) { return {a.p_ * b.p_, a.q_ * b.q_}; }
  friend constexpr Exponent operator/(Exponent a, Exponent b) { return {a.p_ * b.q_, a.q_ * b.p_}; }
  constexpr Exponent operator-() const { return {-p_, q_}; }
  constexpr Exponent& operator+=(Exponent b) { return *this = *this + b; }
  friend constexpr bool operator==(Exponent a, Exponent b) { return a.p_ == b.p_ && a.q_ == b.q_; }
  friend constexpr auto operator<=>(Exponent a, Exponent b) { return a.p_ * b.q_ <=> b.p_ * a.q_; }

 private:
  std::int64_t p_, q_;
};

inline double to_double(Exponent e) {
  return static_cast<double>(e.numerator()) / static_cast<double>(e.denominator());
}

/// The fraction with denominator at most 48 that equals `x` to 1e-9, if there is one.
inline std::optional<Exponent> exponent_from_double(double x) {
  if (!(std::abs(x) < 1e6)) return std::nullopt;
  for (std::int64_t q = 1; q <= 48; ++q) {
    const double p = std::round(x * static_cast<double>(q));
    if (std::abs(p / static_cast<double>(q) - x) < 1e-9)
      return Exponent(static_cast<std::int64_t>(p), q);
  }
  return std::nullopt;
}

/// e / 2 rounded up to a multiple of 1/64, so that what is halved again and again stays a short
/// fraction; but what vanishes goes on vanishing: -1/64 stands for every power above -1/32 as well.
constexpr Exponent half(Exponent e) {
  constexpr std::int64_t kParts = 64;
  const std::int64_t scaled = e.numerator() * kParts, per = 2 * e.denominator();
  const std::int64_t up = scaled >= 0 ? (scaled + per - 1) / per : -(-scaled / per);
  return {e.numerator() < 0 ? std::min<std::int64_t>(up, -1) : up, kParts};
}

/// "0", "-1", "1/2".
inline std::string to_string(Exponent e) {
  return e.denominator() == 1 ? fmt::format("{}", e.numerator())
                              : fmt::format("{}/{}", e.numerator(), e.denominator());
}

/// "1", "n", "n^-1", "n^(1/2)".
inline std::string power_of_width(Exponent e, const std::string& width = "n") {
  if (e == 0) return "1";
  if (e == 1) return width;
  return e.denominator() == 1 ? width + "^" + to_string(e) : width + "^(" + to_string(e) + ")";
}

}  // namespace tplimit
