#include "tplimit/math/slab_products.hpp"

#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>
#include <Eigen/Core>

namespace tplimit {
namespace {

using Index = std::int64_t;
using Matrix = Eigen::MatrixXd;

template <class T>
class SlabProducts : public ::testing::Test {
 protected:
  /// Entries in (-1, 1) that T holds exactly.
  Matrix numbers(Index rows, Index columns) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    return Matrix::NullaryExpr(rows, columns,
                               [&] { return static_cast<double>(uniform(generator_)); });
  }
  static std::vector<T> packed(const Matrix& x, Index block) {
    std::vector<T> out(static_cast<std::size_t>(x.size()));
    for (Index q = 0; q < x.cols(); ++q)
      for (Index i = 0; i < x.rows(); ++i)
        out[static_cast<std::size_t>((i / block * x.cols() + q) * block + i % block)] =
            static_cast<T>(x(i, q));
    return out;
  }
  /// `terms` products of numbers below 1.
  static double bound(Index terms) {
    return static_cast<double>(terms + 2) * static_cast<double>(std::numeric_limits<T>::epsilon());
  }

 private:
  std::mt19937 generator_{3};
};
using Numbers = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SlabProducts, Numbers);

TYPED_TEST(SlabProducts, AddToWhatIsThere) {
  constexpr Index h = kSlabRows<TypeParam>, lanes = kVectorLanes<TypeParam>;
  for (const Index columns : {kColumnStep, 3 * kColumnStep, kSlabColumns})
    for (const Index count : {1, 2, 3}) {
      const Matrix a = this->numbers(h, columns);
      const std::vector<TypeParam> slab = this->packed(a, h);

      const Matrix x = this->numbers(columns, count * kVectorStep), y0 = this->numbers(h, x.cols());
      Matrix y = y0;
      add_slab_product(slab.data(), columns, this->packed(x, kColumnBlock).data(), x.cols(),
                       y.data());
      EXPECT_LE((y - y0 - a * x).cwiseAbs().maxCoeff(), this->bound(columns))
          << columns << " columns";

      const Matrix d = this->numbers(h, count * lanes),
                   z0 = this->numbers(d.cols(), columns);  // row-major: z is its transpose
      Matrix z = z0;
      add_transposed_slab_product(slab.data(), columns, this->packed(d, 1).data(), d.cols(),
                                  z.data());
      EXPECT_LE((z - z0 - d.transpose() * a).cwiseAbs().maxCoeff(), this->bound(h))
          << columns << " columns";
    }
}

TYPED_TEST(SlabProducts, UpdateTheSlabByAnyRank) {
  constexpr Index h = kSlabRows<TypeParam>;
  for (const Index columns : {kColumnStep, 2 * kSlabColumns})
    for (const Index rank : {0, 1, 4, 7}) {
      const Matrix a = this->numbers(h, columns), d = this->numbers(h, rank),
                   x = this->numbers(columns, rank);
      std::vector<TypeParam> slab = this->packed(a, h);
      add_slab_update(slab.data(), columns, this->packed(d, h).data(),
                      this->packed(x, kColumnBlock).data(), rank);
      const Matrix got = Eigen::Map<const Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic>>(
                             slab.data(), h, columns)
                             .template cast<double>();
      EXPECT_LE((got - a - d * x.transpose()).cwiseAbs().maxCoeff(),
                this->bound(rank) * static_cast<double>(1 + rank));
    }
}

}  // namespace
}  // namespace tplimit
