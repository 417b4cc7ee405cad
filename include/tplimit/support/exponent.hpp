#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include <boost/rational.hpp>
#include <fmt/format.h>

namespace tplimit {

/// A power of the width n.
using Exponent = boost::rational<std::int64_t>;

inline double to_double(const Exponent& e) { return boost::rational_cast<double>(e); }

/// The rational with denominator at most 48 that equals `x` to 1e-9, if there is one.
inline std::optional<Exponent> exponent_from_double(double x) {
  if (!(std::abs(x) < 1e6)) return std::nullopt;
  for (std::int64_t q = 1; q <= 48; ++q) {
    const double p = std::round(x * static_cast<double>(q));
    if (std::abs(p / static_cast<double>(q) - x) < 1e-9) return Exponent(static_cast<std::int64_t>(p), q);
  }
  return std::nullopt;
}

/// "0", "-1", "1/2".
inline std::string to_string(const Exponent& e) {
  return e.denominator() == 1 ? fmt::format("{}", e.numerator()) : fmt::format("{}/{}", e.numerator(), e.denominator());
}

/// "1", "n", "n^-1", "n^(1/2)".
inline std::string power_of_width(const Exponent& e) {
  if (e == 0) return "1";
  if (e == 1) return "n";
  return e.denominator() == 1 ? "n^" + to_string(e) : "n^(" + to_string(e) + ")";
}

}  // namespace tplimit
