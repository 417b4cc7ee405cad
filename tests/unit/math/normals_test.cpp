#include "tplimit/math/normals.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <boost/math/special_functions/erf.hpp>
#include <boost/random/sobol.hpp>

#include "tplimit/support/check.hpp"

namespace tplimit {
namespace {

using Vector = std::vector<double>;

constexpr double kQuantileTolerance = 1e-15;  // relative, the promise of the header
constexpr double kStandardErrors =
    5.0;  // sampling tests: fixed seeds, within 5 of their own standard errors

std::uint64_t bits(double x) { return std::bit_cast<std::uint64_t>(x); }

/// One number for the bits of many doubles.
std::uint64_t fingerprint(const Vector& values) {
  std::uint64_t hash = 0;
  for (const double value : values) hash = mix_key(hash, bits(value));
  return hash;
}

Vector plain(std::uint64_t key, std::uint64_t first, std::size_t n) {
  Vector out(n);
  plain_normals(key, first, out);
  return out;
}

Vector sobol(std::size_t dimension, std::uint64_t key, std::uint64_t first, std::size_t n) {
  Vector out(n);
  sobol_normals(dimension, key, first, out);
  return out;
}

double normal_distribution_function(double z) { return 0.5 * std::erfc(-z * std::sqrt(0.5)); }

/// The 32 scrambled binary digits behind each Sobol normal; fails the test where a normal is not
/// exactly the quantile of such a number.
std::vector<std::uint32_t> digits(std::size_t dimension, std::uint64_t key, std::uint64_t first,
                                  std::size_t n) {
  std::vector<std::uint32_t> result;
  for (const double z : sobol(dimension, key, first, n)) {
    const double scaled = normal_distribution_function(z) * 0x1p32 - 0.5;
    result.push_back(static_cast<std::uint32_t>(std::llround(scaled)));
    EXPECT_NEAR(scaled, std::round(scaled), 1e-4);
    EXPECT_EQ(bits(z), bits(normal_quantile((result.back() + 0.5) * 0x1p-32)));
  }
  return result;
}

double mean(const Vector& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double correlation(const Vector& a, const Vector& b) {
  const double mean_a = mean(a);
  const double mean_b = mean(b);
  double ab = 0;
  double aa = 0;
  double bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return ab / std::sqrt(aa * bb);
}

double square(double x) { return x * x; }

// -------------------------------------------------------------------------------------------------
// keys

TEST(MixKey, NeverMapsTwoWordsOrTwoKeysTogether) {
  std::set<std::uint64_t> by_word;
  std::set<std::uint64_t> by_key;
  for (std::uint64_t i = 0; i < 20000; ++i) {
    by_word.insert(mix_key(7, i));
    by_key.insert(mix_key(i, 7));
  }
  EXPECT_EQ(by_word.size(), 20000u);
  EXPECT_EQ(by_key.size(), 20000u);
  EXPECT_NE(mix_key(1, 2), mix_key(2, 1));
  EXPECT_NE(mix_key(0, 0), 0u);
}

TEST(MixKey, FlipsHalfOfTheBitsForEachFlippedBit) {
  constexpr int kTrials = 2000;
  for (unsigned bit = 0; bit < 64; ++bit) {
    double by_word = 0;
    double by_key = 0;
    for (std::uint64_t i = 0; i < kTrials; ++i) {
      const std::uint64_t flip = std::uint64_t{1} << bit;
      by_word += std::popcount(mix_key(i, 3 * i) ^ mix_key(i, (3 * i) ^ flip));
      by_key += std::popcount(mix_key(i, 3 * i) ^ mix_key(i ^ flip, 3 * i));
    }
    const double standard_error = 4.0 / std::sqrt(kTrials);  // 64 fair coins: standard deviation 4
    EXPECT_NEAR(by_word / kTrials, 32.0, kStandardErrors * standard_error) << bit;
    EXPECT_NEAR(by_key / kTrials, 32.0, kStandardErrors * standard_error) << bit;
  }
}

TEST(HashText, TellsTextsApartAndReadsExactlySizeBytes) {
  EXPECT_EQ(hash_text("W1 and more", 2), hash_text("W1", 2));
  EXPECT_NE(hash_text("W1", 2), hash_text("W2", 2));
  EXPECT_NE(hash_text("", 0), hash_text("\0", 1));
  EXPECT_NE(hash_text("ab", 2), hash_text("ba", 2));
}

// -------------------------------------------------------------------------------------------------
// quantile

/// Phi^-1(p) for p <= 1/2 in extended precision.
long double reference_quantile(long double p) {
  return -std::sqrt(2.0L) * boost::math::erfc_inv(2 * p);
}

TEST(NormalQuantile, IsWithinItsRelativeErrorOfBoost) {
  std::mt19937_64 generator(99);
  std::uniform_real_distribution<double> uniform(0.0, 0.5);
  std::uniform_real_distribution<double> decades(-307.0, -0.31);
  // Both sides of the places where the approximation changes (0.075 and e^-25), and the smallest
  // doubles.
  Vector p = {0.25, 0.4999999999999999, 1e-100, 2.3e-308, 1e-310, 4.9e-324};
  for (const double edge : {0.075, std::exp(-25.0)}) {
    for (const double x : {edge * (1 - 1e-9), edge, edge * (1 + 1e-9)}) p.push_back(x);
  }
  for (int i = 0; i < 20000; ++i) {
    p.push_back(uniform(generator));
    p.push_back(std::pow(10.0, decades(generator)));
  }
  for (const double x : p) {
    if (x <= 0.0) continue;
    const long double want = reference_quantile(x);
    ASSERT_LE(std::abs((normal_quantile(x) - want) / want), kQuantileTolerance) << x;
    const double mirrored = 1.0 - x;  // rounded: ask for the quantile of what was rounded to
    if (mirrored < 1.0 && mirrored != 0.5) {
      const long double want_mirrored = -reference_quantile(1.0L - mirrored);
      ASSERT_LE(std::abs((normal_quantile(mirrored) - want_mirrored) / want_mirrored),
                kQuantileTolerance)
          << mirrored;
    }
  }
}

TEST(NormalQuantile, IsOddAboutOneHalfToTheBit) {
  EXPECT_EQ(normal_quantile(0.5), 0.0);
  for (int k = 1; k < 4096; ++k) {
    const double p = k / 8192.0;
    EXPECT_EQ(bits(normal_quantile(1.0 - p)), bits(-normal_quantile(p))) << p;
  }
}

TEST(NormalQuantile, IsInfiniteAtTheEndsAndNaNOutside) {
  EXPECT_EQ(normal_quantile(0.0), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(normal_quantile(1.0), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(normal_quantile(-0.1)));
  EXPECT_TRUE(std::isnan(normal_quantile(1.1)));
  EXPECT_TRUE(std::isnan(normal_quantile(std::numeric_limits<double>::quiet_NaN())));
}

// -------------------------------------------------------------------------------------------------
// plain normals

TEST(PlainNormals, DoNotDependOnHowARangeIsCut) {
  const Vector whole = plain(11, 0, 3000);
  std::mt19937_64 generator(5);
  for (int round = 0; round < 20; ++round) {
    Vector parts(whole.size());
    for (std::size_t i = 0; i < parts.size();) {
      const std::size_t n =
          std::min<std::size_t>(generator() % (round < 10 ? 20 : 700), parts.size() - i);
      plain_normals(11, i, std::span(parts).subspan(i, n));
      i += n;
    }
    ASSERT_EQ(parts, whole);
  }
}

TEST(PlainNormals, HaveNormalMomentsAndDistribution) {
  constexpr std::size_t kCount = 1 << 20;
  Vector z = plain(mix_key(2024, 1), 0, kCount);
  const double n = kCount;
  double power[5] = {};
  for (const double x : z) {
    for (int k = 1; k <= 4; ++k) power[k] += std::pow(x, k) / n;
  }
  EXPECT_NEAR(power[1], 0.0, kStandardErrors / std::sqrt(n));
  EXPECT_NEAR(power[2], 1.0, kStandardErrors * std::sqrt(2 / n));
  EXPECT_NEAR(power[3], 0.0, kStandardErrors * std::sqrt(15 / n));
  EXPECT_NEAR(power[4], 3.0, kStandardErrors * std::sqrt(96 / n));
  // Kolmogorov-Smirnov: sqrt(n) D exceeds 2.5 once in 10^5 keys.
  std::sort(z.begin(), z.end());
  double distance = 0;
  for (std::size_t i = 0; i < kCount; ++i) {
    const double F = normal_distribution_function(z[i]);
    distance = std::max({distance, std::abs(F - static_cast<double>(i) / n),
                         std::abs(F - static_cast<double>(i + 1) / n)});
  }
  EXPECT_LT(std::sqrt(n) * distance, 2.5);
  EXPECT_LT(std::max(-z.front(), z.back()), 8.3);
}

TEST(PlainNormals, ShowNoCorrelationOfNeighbouringIndicesOrKeys) {
  constexpr std::size_t kCount = 1 << 16;
  const double limit = kStandardErrors / std::sqrt(static_cast<double>(kCount));
  const auto squares = [](Vector z) {
    for (double& x : z) x *= x;
    return z;
  };
  for (const std::uint64_t key :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{12345678901234567}}) {
    const Vector z = plain(key, 0, kCount);
    for (const std::uint64_t lag : {1u, 2u, 3u, 8u, 256u}) {
      const Vector later = plain(key, lag, kCount);
      EXPECT_NEAR(correlation(z, later), 0.0, limit) << key << " lag " << lag;
      EXPECT_NEAR(correlation(squares(z), squares(later)), 0.0, limit) << key << " lag " << lag;
    }
    // The last difference is the increment of the counter: keys that far apart must not be shifted
    // copies of each other.
    for (const std::uint64_t difference :
         {std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{1} << 32, std::uint64_t{1} << 63,
          std::uint64_t{0x9e3779b97f4a7c15}}) {
      for (const std::uint64_t shift : {0u, 1u}) {
        const Vector other = plain(key + difference, shift, kCount);
        EXPECT_NEAR(correlation(z, other), 0.0, limit) << key << " and key + " << difference;
        EXPECT_NEAR(correlation(squares(z), squares(other)), 0.0, limit)
            << key << " and key + " << difference;
      }
    }
  }
}

TEST(PlainNormals, AreUniformAcrossKeysAtOneIndex) {
  constexpr std::size_t kCount = 1 << 16;
  constexpr std::size_t kCells = 256;
  std::vector<int> cells(kCells);
  for (std::uint64_t key = 0; key < kCount; ++key) {
    const double u = normal_distribution_function(plain(key, 0, 1)[0]);
    ++cells[std::min(kCells - 1, static_cast<std::size_t>(u * kCells))];
  }
  double chi_square = 0;
  for (const int cell : cells)
    chi_square += square(cell - double{kCount} / kCells) / (double{kCount} / kCells);
  EXPECT_NEAR(chi_square, kCells - 1.0, kStandardErrors * std::sqrt(2.0 * (kCells - 1)));
}

TEST(PlainNormals, HaveTheSameBitsOnEveryMachine) {
  EXPECT_EQ(fingerprint(plain(42, 0, 100000)), 4308696550882377657u);
  EXPECT_EQ(fingerprint(plain(42, std::uint64_t{1} << 40, 1000)), 11221873845144005741u);
}

// -------------------------------------------------------------------------------------------------
// Sobol normals

/// Point `index` of the unscrambled sequence, all dimensions below `dimensions`, from Boost's
/// generator, which counts in Gray code from 1 on.
std::vector<std::uint32_t> boost_point(boost::random::sobol_engine<std::uint32_t, 32>& engine,
                                       std::uint32_t index) {
  std::vector<std::uint32_t> point(engine.dimension());
  if (index == 0) return point;
  std::uint32_t position = index;  // inverse of the Gray code
  for (unsigned shift = 1; shift < 32; shift *= 2) position ^= position >> shift;
  engine.seed(position - 1);
  for (std::uint32_t& coordinate : point) coordinate = engine();
  return point;
}

TEST(SobolNormals, AreANestedScrambleOfBoostsPoints) {
  // Nested: two scrambled coordinates agree in exactly as many leading binary digits as the
  // unscrambled ones.
  constexpr std::size_t kPoints = 300;
  boost::random::sobol_engine<std::uint32_t, 32> engine(kSobolDimensions);
  for (const std::uint64_t first :
       {std::uint64_t{0}, std::uint64_t{123456789}, (std::uint64_t{1} << 32) - kPoints}) {
    std::vector<std::vector<std::uint32_t>> points;
    for (std::size_t i = 0; i < kPoints; ++i)
      points.push_back(boost_point(engine, static_cast<std::uint32_t>(first + i)));
    for (const std::size_t dimension :
         {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{37}, kSobolDimensions - 1}) {
      const std::vector<std::uint32_t> scrambled =
          digits(dimension, mix_key(first, dimension), first, kPoints);
      for (std::size_t i = 0; i < kPoints; ++i) {
        for (std::size_t j = 0; j < i; ++j) {
          ASSERT_EQ(std::countl_zero(scrambled[i] ^ scrambled[j]),
                    std::countl_zero(points[i][dimension] ^ points[j][dimension]))
              << "dimension " << dimension << ", points " << first + i << " and " << first + j;
        }
      }
    }
  }
}

TEST(SobolNormals, FillEachDyadicIntervalOnce) {
  for (const std::size_t dimension : {0u, 1u, 5u, 100u, 1000u}) {
    for (const std::uint64_t key : {1u, 2u}) {
      for (const std::uint64_t start : {0u, 3u}) {
        const std::vector<std::uint32_t> all = digits(dimension, key, start << 12, 1 << 12);
        for (unsigned m = 0; m <= 12; ++m) {
          std::set<std::uint64_t> intervals;
          for (std::size_t i = 0; i < (std::size_t{1} << m); ++i)
            intervals.insert(std::uint64_t{all[i]} >> (32 - m));
          ASSERT_EQ(intervals.size(), std::size_t{1} << m)
              << "dimension " << dimension << ", key " << key << ", m = " << m;
        }
      }
    }
  }
}

TEST(SobolNormals, KeepTheNetOfTheFirstTwoDimensions) {
  for (const std::uint64_t key : {1u, 2u, 3u}) {
    const std::vector<std::uint32_t> x = digits(0, mix_key(key, 0), 0, 1024);
    const std::vector<std::uint32_t> y = digits(1, mix_key(key, 1), 0, 1024);
    for (unsigned m = 0; m <= 10; ++m) {
      for (unsigned wide = 0; wide <= m; ++wide) {
        std::set<std::uint64_t> boxes;
        for (std::size_t i = 0; i < (std::size_t{1} << m); ++i) {
          boxes.insert(((std::uint64_t{x[i]} >> (32 - wide)) << 32) |
                       (std::uint64_t{y[i]} >> (32 - (m - wide))));
        }
        ASSERT_EQ(boxes.size(), std::size_t{1} << m)
            << "key " << key << ", m = " << m << ", " << wide << " digits of the first";
      }
    }
  }
}

TEST(SobolNormals, DoNotDependOnHowARangeIsCut) {
  const std::uint64_t end = std::uint64_t{1} << 32;
  for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{777}, end - 3000}) {
    const Vector whole = sobol(9, 4, first, 3000);
    std::mt19937_64 generator(5);
    for (int round = 0; round < 20; ++round) {
      Vector parts(whole.size());
      for (std::size_t i = 0; i < parts.size();) {
        const std::size_t n =
            std::min<std::size_t>(generator() % (round < 10 ? 20 : 700), parts.size() - i);
        sobol_normals(9, 4, first + i, std::span(parts).subspan(i, n));
        i += n;
      }
      ASSERT_EQ(parts, whole);
    }
  }
}

TEST(SobolNormals, RefusesPointsAndDimensionsThatDoNotExist) {
  Vector out(2);
  EXPECT_THROW(sobol_normals(kSobolDimensions, 1, 0, out), InternalError);
  EXPECT_THROW(sobol_normals(0, 1, (std::uint64_t{1} << 32) - 1, out), InternalError);
  EXPECT_THROW(sobol_normals(0, 1, ~std::uint64_t{0}, out), InternalError);
  EXPECT_NO_THROW(sobol_normals(0, 1, (std::uint64_t{1} << 32) - 2, out));
  EXPECT_NO_THROW(sobol_normals(0, 1, std::uint64_t{1} << 32, std::span<double>()));
}

TEST(SobolNormals, AreUniformOverKeys) {
  // Each digit of one point, and the top six together: fair over consecutive keys.
  constexpr std::size_t kKeys = 1 << 14;
  for (const std::uint64_t index : {0u, 1u, 1000u}) {
    std::vector<int> ones(32);
    std::vector<int> cells(64);
    for (std::uint64_t key = 0; key < kKeys; ++key) {
      const auto u = static_cast<std::uint32_t>(
          normal_distribution_function(sobol(2, key, index, 1)[0]) * 0x1p32);
      for (unsigned bit = 0; bit < 32; ++bit) ones[bit] += static_cast<int>((u >> bit) & 1);
      ++cells[u >> 26];
    }
    for (const int count : ones)
      EXPECT_NEAR(count, kKeys / 2.0, kStandardErrors * std::sqrt(kKeys / 4.0)) << index;
    double chi_square = 0;
    for (const int cell : cells) chi_square += square(cell - kKeys / 64.0) / (kKeys / 64.0);
    EXPECT_NEAR(chi_square, 63.0, kStandardErrors * std::sqrt(126.0)) << index;
  }
}

/// Errors of the averages of f over the first `points` points, for keys 0 .. keys-1.
Vector rqmc_errors(std::size_t dimensions, std::size_t points, std::size_t keys, double exact,
                   const std::function<double(std::span<const double>)>& f) {
  Vector errors;
  std::vector<Vector> z(dimensions);
  Vector point(dimensions);
  for (std::uint64_t key = 0; key < keys; ++key) {
    for (std::size_t d = 0; d < dimensions; ++d) z[d] = sobol(d, mix_key(key, d), 0, points);
    double sum = 0;
    for (std::size_t i = 0; i < points; ++i) {
      for (std::size_t d = 0; d < dimensions; ++d) point[d] = z[d][i];
      sum += f(point);
    }
    errors.push_back(sum / static_cast<double>(points) - exact);
  }
  return errors;
}

double root_mean_square(const Vector& values) {
  double sum = 0;
  for (const double value : values) sum += square(value);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

double exp_of_uniform(std::span<const double> z) {
  return std::exp(normal_distribution_function(z[0]));
}

/// Smooth, of mean 1, with interactions of all orders.
double product(std::span<const double> z) {
  double result = 1;
  for (const double x : z) result *= 1 + 0.5 * std::sin(x);
  return result;
}

TEST(SobolNormals, ErrorFallsLikePointsToTheMinusThreeHalvesInOneDimension) {
  constexpr std::size_t kKeys = 100;
  const double exact = std::exp(1.0) - 1.0;
  const double coarse = root_mean_square(rqmc_errors(1, 1 << 5, kKeys, exact, exp_of_uniform));
  const double fine = root_mean_square(rqmc_errors(1, 1 << 11, kKeys, exact, exp_of_uniform));
  // Each rms is known to 1/sqrt(2 keys), so the exponent to 0.02.
  EXPECT_NEAR(std::log2(coarse / fine) / 6, 1.5, kStandardErrors * 0.025);
  // Owen (1997): the variance tends to |f'|^2 / (12 M^3).
  EXPECT_NEAR(fine / std::sqrt((std::exp(2.0) - 1) / 24 / std::pow(2.0, 33)), 1.0,
              kStandardErrors / std::sqrt(2.0 * kKeys));
}

TEST(SobolNormals, ErrorFallsMuchFasterThanSamplingInFiveDimensions) {
  constexpr std::size_t kKeys = 50;
  const double coarse = root_mean_square(rqmc_errors(5, 1 << 6, kKeys, 1.0, product));
  const double fine = root_mean_square(rqmc_errors(5, 1 << 12, kKeys, 1.0, product));
  EXPECT_GT(std::log2(coarse / fine) / 6, 0.8);
  // Plain sampling: standard deviation of the product over sqrt(M).
  const double variance_of_one = 0.25 * (1 - std::exp(-2.0)) / 2;
  const double sampling = std::sqrt((std::pow(1 + variance_of_one, 5) - 1) / (1 << 12));
  EXPECT_LT(fine, sampling / 10);
}

TEST(SobolNormals, ErrorsOfDifferentKeysAreIndependentAndUnbiased) {
  constexpr std::size_t kKeys = 2000;
  for (const std::size_t points : {std::size_t{1}, std::size_t{16}, std::size_t{128}}) {
    const Vector errors = rqmc_errors(3, points, kKeys, 1.0, product);
    const double standard_error = root_mean_square(errors) / std::sqrt(double{kKeys});
    EXPECT_NEAR(mean(errors), 0.0, kStandardErrors * standard_error) << points;
    for (const std::ptrdiff_t lag : {1, 2, 4}) {
      const Vector early(errors.begin(), errors.end() - lag);
      const Vector late(errors.begin() + lag, errors.end());
      EXPECT_NEAR(correlation(early, late), 0.0, kStandardErrors / std::sqrt(double{kKeys}))
          << points << " points, keys " << lag << " apart";
    }
  }
}

TEST(SobolNormals, HaveTheSameBitsOnEveryMachine) {
  EXPECT_EQ(fingerprint(sobol(0, 42, 0, 100000)), 16557742566640069669u);
  EXPECT_EQ(fingerprint(sobol(3666, 42, (std::uint64_t{1} << 32) - 1000, 1000)),
            826827609447701811u);
}

}  // namespace
}  // namespace tplimit
