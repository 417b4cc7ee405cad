#include "tplimit/math/tall_products.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>
#include <Eigen/Core>

namespace tplimit {
namespace {

using Eigen::Index;
using Matrix = Eigen::MatrixXd;

constexpr double kEps = std::numeric_limits<double>::epsilon();

// Around the sizes at which the kernels change over: 8 or 16 lanes, 4 packs, tiles of 8 x 2 and 4
// columns, strips of 256 rows, groups of 64 and 32 columns.
constexpr std::int64_t kRows[] = {0,  1,  2,   3,   7,   8,   9,   15,   31,  32,
                                  33, 63, 127, 128, 129, 255, 257, 1000, 1024};
constexpr std::int64_t kColumns[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 17};
constexpr std::int64_t kTallColumns[] = {0, 1, 2, 3, 8, 9, 16, 31, 63, 64, 65, 130};

/// Double: exact up to the order of sums. Float: columns of `a` are stored in it, so that products
/// are rounded too.
template <class T>
class TallProducts : public ::testing::Test {};
using Precisions = ::testing::Types<double, float>;
TYPED_TEST_SUITE(TallProducts, Precisions);

/// A matrix whose columns lie `gap` numbers further apart than they need; the gaps are NaN and must
/// stay so.
template <class T>
class PanelOf {
 public:
  PanelOf(std::int64_t rows, std::int64_t columns, std::int64_t gap, unsigned seed)
      : rows_(rows),
        columns_(columns),
        ld_(rows + gap),
        memory_(static_cast<std::size_t>(ld_ * columns), std::numeric_limits<T>::quiet_NaN()) {
    std::mt19937 generator(seed);
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (Index j = 0; j < columns; ++j)
      for (Index i = 0; i < rows; ++i)
        memory_[static_cast<std::size_t>(j * ld_ + i)] = static_cast<T>(uniform(generator));
  }
  [[nodiscard]] Matrix map() const {
    return Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>, 0,
                      Eigen::OuterStride<>>(memory_.data(), rows_, columns_,
                                            Eigen::OuterStride<>(ld_))
        .template cast<double>();
  }
  [[nodiscard]] T* data() { return memory_.data(); }
  [[nodiscard]] std::int64_t ld() const { return ld_; }
  [[nodiscard]] bool gaps_untouched() const {
    std::int64_t count = 0;
    for (const T x : memory_) count += std::isnan(x);
    return count == (ld_ - rows_) * columns_;
  }

 private:
  std::int64_t rows_, columns_, ld_;
  std::vector<T> memory_;
};
using Panel = PanelOf<double>;

/// Largest deviation in units of its bound: `terms` products of numbers below 1 in some order.
template <class T>
double excess(const Matrix& got, const Matrix& expected, std::int64_t terms) {
  return got.size() == 0
             ? 0
             : (got - expected).cwiseAbs().maxCoeff() /
                   (double{std::numeric_limits<T>::epsilon()} * static_cast<double>(terms + 2));
}

TYPED_TEST(TallProducts, AddTheEigenProductForOddShapes) {
  for (const auto rows : kRows)
    for (const auto m : kTallColumns)
      for (const auto n : kColumns) {
        PanelOf<TypeParam> a(rows, m, 3, 1);
        Panel b(rows, n, 5, 2), c(m, n, 2, 3);
        const Matrix expected = c.map() + a.map().transpose() * b.map();
        add_inner_products(rows, a.data(), a.ld(), m, b.data(), b.ld(), n, c.data(), c.ld());
        ASSERT_LE(excess<TypeParam>(c.map(), expected, rows), 1)
            << rows << " x " << m << " and " << n;
        ASSERT_TRUE(c.gaps_untouched()) << rows << " x " << m << " and " << n;
      }
}

TYPED_TEST(TallProducts, AddOrSubtractTheEigenProductForOddShapes) {
  for (const auto rows : kRows)
    for (const auto m : kTallColumns)
      for (const auto n : kColumns)
        for (const double sign : {1.0, -1.0}) {
          PanelOf<TypeParam> a(rows, m, 3, 1);
          Panel w(m, n, 2, 2), y(rows, n, 5, 3);
          const Matrix expected = y.map() + sign * (a.map() * w.map());
          add_product(rows, a.data(), a.ld(), m, w.data(), w.ld(), n, y.data(), y.ld(), sign);
          ASSERT_LE(excess<TypeParam>(y.map(), expected, m), 1)
              << rows << " x " << m << " times " << m << " x " << n;
          ASSERT_TRUE(y.gaps_untouched()) << rows << " x " << m << " times " << m << " x " << n;
        }
}

TYPED_TEST(TallProducts, HaveTheSameBitsHoweverColumnsAreGroupedIntoCalls) {
  constexpr std::int64_t kR = 333, kM = 23, kN = 11;
  PanelOf<TypeParam> a(kR, kM, 1, 1);
  Panel b(kR, kN, 0, 2), w(kM, kN, 0, 3), c(kM, kN, 0, 4), y(kR, kN, 0, 5), one_c(kM, kN, 0, 4),
      one_y(kR, kN, 0, 5);
  add_inner_products(kR, a.data(), a.ld(), kM, b.data(), b.ld(), kN, c.data(), c.ld());
  add_product(kR, a.data(), a.ld(), kM, w.data(), w.ld(), kN, y.data(), y.ld());
  for (Index j = 0; j < kN; ++j) {
    for (Index k = 0; k < kM; ++k)
      add_inner_products(kR, a.data() + k * a.ld(), a.ld(), 1, b.data() + j * b.ld(), b.ld(), 1,
                         one_c.data() + k + j * one_c.ld(), one_c.ld());
    add_product(kR, a.data(), a.ld(), kM, w.data() + j * w.ld(), w.ld(), 1,
                one_y.data() + j * one_y.ld(), one_y.ld());
  }
  EXPECT_EQ(c.map(), one_c.map());
  EXPECT_EQ(y.map(), one_y.map());
}

}  // namespace
}  // namespace tplimit
