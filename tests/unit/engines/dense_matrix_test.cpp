/// Dense matrices of both precisions against plain arrays.

#include "engines/dense_matrix.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/blocks.hpp"
#include "tplimit/math/normals.hpp"

namespace tplimit::engines {
namespace {

using Eigen::Index;

template <class T>
class DenseMatrices : public ::testing::Test {
 protected:
  /// Rounding of W x for entries W of size n^(-1/2) and x of size 1: sums of n terms, each below a
  /// few units of rounding.
  static double tolerance() { return 100 * static_cast<double>(std::numeric_limits<T>::epsilon()); }

  static Matrix apply(DenseMatrix<T>& matrix, const MatrixVersion& w, bool transposed,
                      const Matrix& x) {
    Block y(x.rows(), x.cols());
    matrix.apply(w, transposed, block_of(x), 0, 0, y);
    return matrix_of(y);
  }
  /// Largest deviation of W x and W' x from a plain array's.
  static double distance(DenseMatrix<T>& matrix, const MatrixVersion& w, const Matrix& array) {
    const Matrix x = normals(array.rows(), 3, 77);
    return std::max((apply(matrix, w, false, x) - array * x).cwiseAbs().maxCoeff(),
                    (apply(matrix, w, true, x) - array.transpose() * x).cwiseAbs().maxCoeff());
  }
};
using Numbers = ::testing::Types<float, double>;
TYPED_TEST_SUITE(DenseMatrices, Numbers);

// Around the sizes of columns, slabs and ranges: 8, 32 and 64, 256.
constexpr Index kWidths[] = {1, 5, 8, 33, 64, 100, 257, 1100};

TYPED_TEST(DenseMatrices, HaveTheEntriesOfTheirKey) {
  const Executor executor(1);
  for (const Index n : kWidths) {
    DenseMatrix<TypeParam> matrix(executor, n, 5);
    EXPECT_LT(this->distance(matrix, matrix.initial(),
                             normals(n, n, 5) / std::sqrt(static_cast<double>(n))),
              this->tolerance())
        << n;
  }
}

TYPED_TEST(DenseMatrices, CarryOutUpdatesThatWaitInEveryOrder) {
  const Executor executor(1);
  for (const Index n : kWidths)
    for (const bool product_between : {false, true})
      for (const bool transposed_first : {false, true}) {
        DenseMatrix<TypeParam> matrix(executor, n, 5);
        MatrixVersion w = matrix.initial();
        Matrix array = normals(n, n, 5) / std::sqrt(static_cast<double>(n));
        for (const std::uint64_t step : {1u, 2u, 3u}) {
          const Matrix d1 = normals(n, 2, 10 * step), x1 = normals(n, 2, 10 * step + 1),
                       d2 = normals(n, 3, 10 * step + 2), x2 = normals(n, 3, 10 * step + 3);
          const Block blocks[] = {block_of(d1), block_of(x1), block_of(d2), block_of(x2)};
          w = matrix.update(std::move(w), {{0.7, &blocks[0], &blocks[1], 0, 0, 0, 0},
                                           {-2, &blocks[2], &blocks[3], 0, 0, 0, 0}});
          array += (0.7 * d1 * x1.transpose() - 2 * d2 * x2.transpose()) / static_cast<double>(n);
          w.scale *= 0.5;
          array *= 0.5;
          if (product_between) {
            const Matrix product = this->apply(matrix, w, transposed_first, x1);
            EXPECT_LT((product - (transposed_first ? Matrix(array.transpose()) : array) * x1)
                          .cwiseAbs()
                          .maxCoeff(),
                      4 * this->tolerance())
                << n << ", step " << step;
          }
        }
        EXPECT_LT(this->distance(matrix, w, array), 4 * this->tolerance()) << n;
      }
}

TYPED_TEST(DenseMatrices, KeepOldVersionsApart) {
  const Executor executor(1);
  constexpr Index kN = 100;
  DenseMatrix<TypeParam> matrix(executor, kN, 5);
  const Matrix first = normals(kN, kN, 5) / 10, d = normals(kN, 2, 1), x = normals(kN, 2, 2),
               change = d * x.transpose() / kN;
  const Block db = block_of(d), xb = block_of(x);
  const std::vector<UpdateTerm> terms{{1, &db, &xb, 0, 0, 0, 0}};
  const MatrixVersion w0 = matrix.initial();
  MatrixVersion w1 = matrix.update(w0, terms);
  MatrixVersion half = w1;  // shares what waits
  half.scale = 0.5;
  const MatrixVersion w2 = matrix.update(half, terms), w3 = matrix.update(w2, terms);
  EXPECT_LT(this->distance(matrix, w3, 0.5 * first + 2.5 * change), 4 * this->tolerance());
  EXPECT_LT(this->distance(matrix, w2, 0.5 * first + 1.5 * change), 4 * this->tolerance());
  EXPECT_LT(this->distance(matrix, half, 0.5 * (first + change)), 4 * this->tolerance());
  EXPECT_LT(this->distance(matrix, w1, first + change), 4 * this->tolerance());
  EXPECT_LT(this->distance(matrix, w0, first), 4 * this->tolerance());
}

TYPED_TEST(DenseMatrices, DoNotDependOnTheNumberOfThreads) {
  const auto history = [&](int threads) {
    const Executor executor(threads);
    DenseMatrix<TypeParam> matrix(executor, 700, 5);
    const Matrix x = normals(700, 3, 1);
    MatrixVersion w = matrix.initial();
    const Matrix h = this->apply(matrix, w, false, x), g = this->apply(matrix, w, true, h);
    const Block db = block_of(h), xb = block_of(g);
    w = matrix.update(std::move(w), {{1, &db, &xb, 0, 0, 0, 0}});
    return std::vector<Matrix>{h, g, this->apply(matrix, w, false, x),
                               this->apply(matrix, w, true, x)};
  };
  EXPECT_TRUE(history(1) == history(2));  // every bit
}

TYPED_TEST(DenseMatrices, ShowNumbersThatAreNotFiniteInTheirColumnOnly) {
  const Executor executor(1);
  for (const bool transposed : {false, true}) {
    DenseMatrix<TypeParam> matrix(executor, 40, 5);
    Matrix x = normals(40, 3, 1);
    x(39, 1) = std::numeric_limits<double>::quiet_NaN();
    const Matrix y = this->apply(matrix, matrix.initial(), transposed, x);
    EXPECT_TRUE(y.col(0).allFinite() && y.col(2).allFinite());
    EXPECT_TRUE(y.col(1).array().isNaN().all());
  }
}

}  // namespace
}  // namespace tplimit::engines
