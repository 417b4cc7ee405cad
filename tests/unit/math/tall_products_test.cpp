#include "tplimit/math/tall_products.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <Eigen/Core>
#include <gtest/gtest.h>

namespace tplimit {
namespace {

using Eigen::Index;
using Matrix = Eigen::MatrixXd;
using Map = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

constexpr double kEps = std::numeric_limits<double>::epsilon();

// Around the sizes at which the kernels change over: 8 lanes, 4 packs, tiles of 4 columns, strips of 128 rows.
constexpr std::int64_t kRows[] = {0, 1, 2, 3, 7, 8, 9, 15, 31, 32, 33, 63, 127, 128, 129, 255, 257, 1000, 1024};
constexpr std::int64_t kColumns[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 13};

/// A matrix whose columns lie `gap` numbers further apart than they need; the gaps are NaN and must stay so.
class Panel {
 public:
  Panel(std::int64_t rows, std::int64_t columns, std::int64_t gap, unsigned seed)
      : rows_(rows), columns_(columns), ld_(rows + gap), memory_(static_cast<std::size_t>(ld_ * columns), std::numeric_limits<double>::quiet_NaN()) {
    std::mt19937 generator(seed);
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (Index j = 0; j < columns; ++j)
      for (Index i = 0; i < rows; ++i) map()(i, j) = uniform(generator);
  }
  [[nodiscard]] Map map() { return {memory_.data(), rows_, columns_, Eigen::OuterStride<>(ld_)}; }
  [[nodiscard]] double* data() { return memory_.data(); }
  [[nodiscard]] std::int64_t ld() const { return ld_; }
  [[nodiscard]] bool gaps_untouched() const {
    std::int64_t count = 0;
    for (const double x : memory_) count += std::isnan(x);
    return count == (ld_ - rows_) * columns_;
  }

 private:
  std::int64_t rows_, columns_, ld_;
  std::vector<double> memory_;
};

/// Largest deviation in units of its bound: `terms` products of numbers below 1 in some order.
double excess(const Matrix& got, const Matrix& expected, std::int64_t terms) {
  return got.size() == 0 ? 0 : (got - expected).cwiseAbs().maxCoeff() / (kEps * static_cast<double>(terms + 2));
}

TEST(AddInnerProducts, AddsTheEigenProductForOddShapes) {
  for (const auto rows : kRows)
    for (const auto m : kColumns)
      for (const auto n : kColumns) {
        Panel a(rows, m, 3, 1), b(rows, n, 5, 2), c(m, n, 2, 3);
        const Matrix expected = c.map() + a.map().transpose() * b.map();
        add_inner_products(rows, a.data(), a.ld(), m, b.data(), b.ld(), n, c.data(), c.ld());
        ASSERT_LE(excess(c.map(), expected, rows), 1) << rows << " x " << m << " and " << n;
        ASSERT_TRUE(c.gaps_untouched()) << rows << " x " << m << " and " << n;
      }
}

TEST(AddProduct, AddsOrSubtractsTheEigenProductForOddShapes) {
  for (const auto rows : kRows)
    for (const auto m : kColumns)
      for (const auto n : kColumns)
        for (const double sign : {1.0, -1.0}) {
          Panel a(rows, m, 3, 1), w(m, n, 2, 2), y(rows, n, 5, 3);
          const Matrix expected = y.map() + sign * (a.map() * w.map());
          add_product(rows, a.data(), a.ld(), m, w.data(), w.ld(), n, y.data(), y.ld(), sign);
          ASSERT_LE(excess(y.map(), expected, m), 1) << rows << " x " << m << " times " << m << " x " << n;
          ASSERT_TRUE(y.gaps_untouched()) << rows << " x " << m << " times " << m << " x " << n;
        }
}

TEST(TallProducts, HaveTheSameBitsHoweverColumnsAreGroupedIntoCalls) {
  constexpr std::int64_t kR = 333, kM = 7, kN = 11;
  Panel a(kR, kM, 1, 1), b(kR, kN, 0, 2), w(kM, kN, 0, 3), c(kM, kN, 0, 4), y(kR, kN, 0, 5), one_c(kM, kN, 0, 4), one_y(kR, kN, 0, 5);
  add_inner_products(kR, a.data(), a.ld(), kM, b.data(), b.ld(), kN, c.data(), c.ld());
  add_product(kR, a.data(), a.ld(), kM, w.data(), w.ld(), kN, y.data(), y.ld());
  for (Index j = 0; j < kN; ++j) {
    for (Index k = 0; k < kM; ++k)
      add_inner_products(kR, a.data() + k * a.ld(), a.ld(), 1, b.data() + j * b.ld(), b.ld(), 1, one_c.data() + k + j * one_c.ld(), one_c.ld());
    add_product(kR, a.data(), a.ld(), kM, w.data() + j * w.ld(), w.ld(), 1, one_y.data() + j * one_y.ld(), one_y.ld());
  }
  EXPECT_EQ(c.map(), one_c.map());
  EXPECT_EQ(y.map(), one_y.map());
}

}  // namespace
}  // namespace tplimit
