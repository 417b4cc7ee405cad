/// Powers of the width as fractions.

#include "tplimit/support/exponent.hpp"

#include <cmath>
#include <numeric>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace rc {
template <>
struct Arbitrary<tplimit::Exponent> {
  static Gen<tplimit::Exponent> arbitrary() {
    return gen::map(gen::pair(gen::inRange(-200, 201), gen::inRange(1, 49)), [](auto fraction) {
      return tplimit::Exponent(fraction.first, fraction.second);
    });
  }
};
}  // namespace rc

namespace tplimit {

void showValue(Exponent e, std::ostream& out) { out << to_string(e); }

namespace {

RC_GTEST_PROP(Exponents, AreReduced, (int p, int q)) {
  RC_PRE(q != 0);
  const Exponent e(p, q);
  RC_ASSERT(e.denominator() > 0);
  RC_ASSERT(std::gcd(e.numerator(), e.denominator()) == 1);
  RC_ASSERT(e.numerator() * q == e.denominator() * p);
}

RC_GTEST_PROP(Exponents, AreAField, (Exponent a, Exponent b, Exponent c)) {
  RC_ASSERT(a + b == b + a);
  RC_ASSERT(a * b == b * a);
  RC_ASSERT((a + b) + c == a + (b + c));
  RC_ASSERT(a * (b + c) == a * b + a * c);
  RC_ASSERT((a + b) - b == a);
  RC_ASSERT(a + -a == Exponent(0));
  if (b != 0) RC_ASSERT((a * b) / b == a);
}

RC_GTEST_PROP(Exponents, AreOrderedAsNumbers, (Exponent a, Exponent b)) {
  // Different fractions differ by 1/48^2 at least, far above rounding.
  RC_ASSERT((a < b) == (to_double(a) < to_double(b)));
  RC_ASSERT((a == b) == (to_double(a) == to_double(b)));
  RC_ASSERT((a < b) == (b > a));
  RC_ASSERT((a < b) == (a - b < 0));
}

RC_GTEST_PROP(Exponents, ComeBackFromNumbers, (Exponent e)) {
  RC_ASSERT(exponent_from_double(to_double(e)) == e);
  // Something else is no such fraction: neighbours of denominators up to 48 lie 1/2256 apart.
  RC_ASSERT(!exponent_from_double(to_double(e) + 1e-7));
}

RC_GTEST_PROP(Exponents, HalvesAreShortAndRoundedUp, (Exponent e)) {
  const Exponent h = half(e);
  if (e > 0 || e <= Exponent(-1, 32)) RC_ASSERT(h + h >= e);
  RC_ASSERT(h - e / 2 < Exponent(1, 64));
  RC_ASSERT(64 % h.denominator() == 0);
  RC_ASSERT((h < 0) == (e < 0));
}

TEST(Exponents, WhatVanishesGoesOnVanishing) {
  Exponent e(-1);
  for (int k = 0; k < 100; ++k) e = half(e);
  EXPECT_EQ(e, Exponent(-1, 64));
  // -1/66 is no multiple of 1/64, and 0 would not vanish.
  EXPECT_EQ(half(Exponent(-1, 33)), Exponent(-1, 64));
  EXPECT_EQ(half(Exponent(0)), Exponent(0));
}

TEST(Exponents, NumbersThatAreNoFraction) {
  EXPECT_FALSE(exponent_from_double(std::nan("")));
  EXPECT_FALSE(exponent_from_double(HUGE_VAL));
  EXPECT_FALSE(exponent_from_double(std::sqrt(2.0)));
}

TEST(Exponents, AreWrittenAsInFormulas) {
  EXPECT_EQ(to_string(Exponent(2, -4)), "-1/2");
  EXPECT_EQ(to_string(Exponent(6, 3)), "2");
  EXPECT_EQ(power_of_width(0), "1");
  EXPECT_EQ(power_of_width(1), "n");
  EXPECT_EQ(power_of_width(-1, "m"), "m^-1");
  EXPECT_EQ(power_of_width({1, 2}), "n^(1/2)");
}

}  // namespace
}  // namespace tplimit
