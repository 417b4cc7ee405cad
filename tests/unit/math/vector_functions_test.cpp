#include "tplimit/math/vector_functions.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace tplimit {
namespace {

using Vector = std::vector<double>;

constexpr double kEps = std::numeric_limits<double>::epsilon();
constexpr double kTolerance = 4 * kEps;  // the promise of the header
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kSmallest = std::numeric_limits<double>::denorm_min();
constexpr double kNormal = std::numeric_limits<double>::min();
constexpr double kLargest = std::numeric_limits<double>::max();

struct Function {
  std::string name;
  void (*vector)(const double*, double*, std::size_t);
  long double (*reference)(long double);
};

long double sigmoid(long double x) {
  const long double e = std::exp(-std::abs(x));
  return (x < 0 ? e : 1.0L) / (1 + e);
}

long double softplus(long double x) {
  return (x > 0 ? x : 0.0L) + std::log1p(std::exp(-std::abs(x)));
}

long double gelu(long double x) {
  if (x == -std::numeric_limits<long double>::infinity()) return -0.0L;
  return 0.5L * x * std::erfc(-x * std::sqrt(0.5L));
}

const std::vector<Function>& functions() {
  static const std::vector<Function> all = {
      {"exp", vector_exp, [](long double x) { return std::exp(x); }},
      {"log", vector_log, [](long double x) { return std::log(x); }},
      {"tanh", vector_tanh, [](long double x) { return std::tanh(x); }},
      {"erf", vector_erf, [](long double x) { return std::erf(x); }},
      {"sin", vector_sin, [](long double x) { return std::sin(x); }},
      {"cos", vector_cos, [](long double x) { return std::cos(x); }},
      {"sigmoid", vector_sigmoid, sigmoid},
      {"softplus", vector_softplus, softplus},
      {"expm1", vector_expm1, [](long double x) { return std::expm1(x); }},
      {"gelu", vector_gelu, gelu},
  };
  return all;
}

/// Zeros, infinities, the edges of the number range, and the places where some implementation
/// changes its formula; both signs.
Vector special_values() {
  Vector values = {0.0,  kSmallest, 3 * kSmallest, kNormal, 1.5 * kNormal, kLargest, kInfinity,
                   kEps, 1.0,       2.0,           1e-8,    1e8,           1e22};
  for (const double edge : {0.9,
                            5.93,
                            6.0,
                            8.3,
                            19.1,
                            20.0,
                            37.0,
                            37.5,
                            38.0,
                            38.4,
                            38.6,
                            40.0,
                            708.3,
                            709.0,
                            709.782712893384,
                            710.0,
                            744.5,
                            745.0,
                            745.2,
                            746.0,
                            750.0,
                            std::sqrt(0.5),
                            std::log(2.0) / 2,
                            std::log(2.0),
                            1.5707963267948966,
                            3.141592653589793}) {
    for (const double v : {std::nextafter(edge, 0.0), edge, std::nextafter(edge, kInfinity)})
      values.push_back(v);
  }
  const std::size_t positive = values.size();
  for (std::size_t i = 0; i < positive; ++i) values.push_back(-values[i]);
  values.push_back(kNan);
  return values;
}

/// Dense where networks work, and 620 decades elsewhere; fixed seed.
Vector wide_values(std::size_t each) {
  std::mt19937_64 generator(20240607);
  std::normal_distribution<double> normal(0.0, 1.5);
  std::uniform_real_distribution<double> near(-45.0, 45.0);
  std::uniform_real_distribution<double> far(-760.0, 760.0);
  std::uniform_real_distribution<double> decades(-323.3, 308.2);
  Vector values = special_values();
  for (std::size_t i = 0; i < each; ++i) {
    values.push_back(normal(generator));
    values.push_back(near(generator));
    values.push_back(far(generator));
    values.push_back(std::copysign(std::pow(10.0, decades(generator)), normal(generator)));
  }
  return values;
}

/// Is `got` the double that `want` (computed in long double) asks for, within kTolerance?  Records
/// the worst relative error.
testing::AssertionResult agrees(double x, double got, long double want, long double& worst) {
  const auto rounded = static_cast<double>(want);
  const auto fail = [&] {
    return testing::AssertionFailure()
           << std::hexfloat << "at " << x << ": " << got << ", not " << rounded;
  };
  if (std::isnan(rounded)) return std::isnan(got) ? testing::AssertionSuccess() : fail();
  if (std::isinf(rounded) || rounded == 0.0) {
    // A result that underflows may come out as the smallest subnormal number, but not with the
    // wrong sign.
    const bool close = got == rounded || (want != 0.0L && std::abs(got) <= kSmallest);
    return close && std::signbit(got) == std::signbit(rounded) ? testing::AssertionSuccess()
                                                               : fail();
  }
  const long double error = std::abs(static_cast<long double>(got) - want);
  if (std::abs(want) >= kNormal) worst = std::max(worst, error / std::abs(want));
  // A subnormal result is rounded once more.
  const long double allowed =
      kTolerance * std::abs(want) + (std::abs(want) < kNormal ? kSmallest : 0.0);
  return error <= allowed ? testing::AssertionSuccess() : fail();
}

std::uint64_t bits(double x) { return std::bit_cast<std::uint64_t>(x); }

/// NaN is NaN: its sign and payload are nobody's business.
bool same_bits(double a, double b) {
  return bits(a) == bits(b) || (std::isnan(a) && std::isnan(b));
}

class EachFunction : public testing::TestWithParam<Function> {};

TEST_P(EachFunction, IsWithinFourEpsOfLongDouble) {
  const Vector x = wide_values(50000);
  Vector out(x.size());
  GetParam().vector(x.data(), out.data(), x.size());
  long double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    ASSERT_TRUE(agrees(x[i], out[i], GetParam().reference(x[i]), worst)) << GetParam().name;
  RecordProperty("worst_relative_error_in_eps", std::to_string(static_cast<double>(worst / kEps)));
}

TEST_P(EachFunction, GivesTheSameBitsHoweverTheArrayIsCut) {
  Vector x = wide_values(100);
  std::shuffle(x.begin(), x.end(), std::mt19937_64(1));  // special values next to ordinary ones
  Vector whole(x.size());
  GetParam().vector(x.data(), whole.data(), x.size());
  for (const std::size_t cut : {std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{5},
                                std::size_t{8}, std::size_t{13}, std::size_t{31}}) {
    Vector parts(x.size(), -1.0);
    for (std::size_t i = 0; i < x.size(); i += cut)
      GetParam().vector(&x[i], &parts[i], std::min(cut, x.size() - i));
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_TRUE(same_bits(parts[i], whole[i]))
          << GetParam().name << " of " << x[i] << ", calls of " << cut;
    }
  }
}

TEST_P(EachFunction, WorksInPlaceAndWritesNothingElse) {
  const Vector x = wide_values(10);
  for (std::size_t n = 0; n < 40; ++n) {
    Vector expected(n);
    GetParam().vector(x.data(), expected.data(), n);
    Vector buffer(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(n));
    buffer.push_back(17.25);
    GetParam().vector(buffer.data(), buffer.data(), n);
    for (std::size_t i = 0; i < n; ++i)
      ASSERT_TRUE(same_bits(buffer[i], expected[i])) << GetParam().name;
    ASSERT_EQ(buffer[n], 17.25) << GetParam().name << " wrote past " << n;
  }
}

INSTANTIATE_TEST_SUITE_P(VectorFunctions, EachFunction, testing::ValuesIn(functions()),
                         [](const auto& function) { return function.param.name; });

TEST(VectorFunctions, OddFunctionsAreOddToTheBit) {
  const Vector x = wide_values(2000);
  Vector minus_x(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) minus_x[i] = -x[i];
  Vector plus(x.size());
  Vector minus(x.size());
  for (const auto function : {vector_tanh, vector_erf, vector_sin}) {
    function(x.data(), plus.data(), x.size());
    function(minus_x.data(), minus.data(), x.size());
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_TRUE(same_bits(plus[i], -minus[i])) << x[i];
  }
}

TEST(VectorFunctions, BoundedFunctionsStayWithinTheirBounds) {
  const Vector x = wide_values(50000);
  Vector out(x.size());
  for (const auto function : {vector_tanh, vector_erf, vector_sin, vector_cos}) {
    function(x.data(), out.data(), x.size());
    for (const double value : out) ASSERT_FALSE(std::abs(value) > 1.0);
  }
  vector_sigmoid(x.data(), out.data(), x.size());
  for (const double value : out) ASSERT_FALSE(value < 0.0 || value > 1.0);
}

TEST(VectorFunctions, GeluKeepsItsRelativeErrorFarOut) {
  // x Phi(x) to 25 digits (mpmath); where the subnormal numbers begin Phi itself, without the
  // factor x, already is one.
  const Vector x = {-1.0, -5.0, -10.0, -20.0, -30.0, -37.0, -37.5625};
  const Vector want = {-0.1586552539314570514147675,     -1.433257859395969558368762e-6,
                       -7.619853024160526065973343e-23,  -5.507248237212467390151246e-88,
                       -1.472014178144456117860143e-196, -2.118461352334093424392781e-298,
                       -1.654128684796672572017548e-307};
  Vector out(x.size());
  vector_gelu(x.data(), out.data(), x.size());
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(out[i] / want[i], 1.0, kTolerance) << x[i];
}

TEST(VectorPow, IsWithinFourEpsOfLongDoubleForEveryExponent) {
  const Vector x = wide_values(1500);
  Vector out(x.size());
  for (const double exponent :
       {0.0,     1.0, 2.0,  3.0,  4.0,    5.0,   -1.0, -2.0,      -3.0,       0.5, -0.5,
        1.0 / 3, 1.7, -2.4, 17.0, -100.0, 1e-10, 1e10, kInfinity, -kInfinity, kNan}) {
    vector_pow(x.data(), exponent, out.data(), x.size());
    long double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_TRUE(agrees(
          x[i], out[i],
          std::pow(static_cast<long double>(x[i]), static_cast<long double>(exponent)), worst))
          << exponent;
    }
  }
}

TEST(VectorPow, GivesTheSameBitsHoweverTheArrayIsCut) {
  Vector x = wide_values(100);
  std::shuffle(x.begin(), x.end(), std::mt19937_64(1));
  for (const double exponent : {2.0, 3.0, -1.0, 0.5, 1.7}) {
    Vector whole(x.size());
    vector_pow(x.data(), exponent, whole.data(), x.size());
    for (const std::size_t cut : {std::size_t{1}, std::size_t{3}, std::size_t{13}}) {
      Vector parts = x;
      for (std::size_t i = 0; i < x.size(); i += cut)
        vector_pow(&parts[i], exponent, &parts[i], std::min(cut, x.size() - i));
      for (std::size_t i = 0; i < x.size(); ++i)
        ASSERT_TRUE(same_bits(parts[i], whole[i])) << x[i] << " to the " << exponent;
    }
  }
}

}  // namespace
}  // namespace tplimit
