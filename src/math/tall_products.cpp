#include "tplimit/math/tall_products.hpp"

#include "math/simd.hpp"

namespace tplimit {
namespace {

using simd::kLanes;
using simd::load;
using simd::mul_add;
using simd::Pack;
using simd::splat;
using simd::store;
using Index = std::int64_t;
constexpr Index kStep = static_cast<Index>(kLanes);

double sum_of_lanes(Pack p) {
  double sum = 0;
  for (std::size_t k = 0; k < kLanes; ++k) sum += p[k];
  return sum;
}

/// M columns of a against N columns of b: M N accumulators stay in registers while the rows stream by.
template <int M, int N>
void inner_tile(Index rows, const double* a, Index lda, const double* b, Index ldb, double* c, Index ldc) {
  Pack acc[std::size_t{M}][std::size_t{N}] = {};
  const Index whole = rows - rows % kStep;
  for (Index i = 0; i < whole; i += kStep) {
    Pack right[std::size_t{N}];
    for (int j = 0; j < N; ++j) right[j] = load(b + j * ldb + i);
    for (int k = 0; k < M; ++k) {
      const Pack left = load(a + k * lda + i);
      for (int j = 0; j < N; ++j) acc[k][j] = mul_add(left, right[j], acc[k][j]);
    }
  }
  for (int k = 0; k < M; ++k)
    for (int j = 0; j < N; ++j) {
      double sum = sum_of_lanes(acc[k][j]);
      for (Index i = whole; i < rows; ++i) sum += a[k * lda + i] * b[j * ldb + i];
      c[k + j * ldc] += sum;
    }
}

// 16 accumulators fit the 32 registers of AVX-512; 8 the 16 of AVX2 and SSE2.
constexpr int kTileM = kLanes == 8 ? 4 : 2;
constexpr int kTileN = 4;

template <int N>
void inner_columns(Index rows, const double* a, Index lda, Index m, const double* b, Index ldb, double* c, Index ldc) {
  Index k = 0;
  for (; k + kTileM <= m; k += kTileM) inner_tile<kTileM, N>(rows, a + k * lda, lda, b, ldb, c + k, ldc);
  for (; k < m; ++k) inner_tile<1, N>(rows, a + k * lda, lda, b, ldb, c + k, ldc);
}

/// R packs of rows by N columns of y += a w.
template <int R, int N>
void product_tile(const double* a, Index lda, Index m, const double* w, Index ldw, double* y, Index ldy, double sign) {
  Pack acc[std::size_t{R}][std::size_t{N}] = {};
  for (Index k = 0; k < m; ++k) {
    Pack left[std::size_t{R}];
    for (int r = 0; r < R; ++r) left[r] = load(a + k * lda + r * kStep);
    for (int j = 0; j < N; ++j) {
      const Pack weight = splat(w[k + j * ldw]);
      for (int r = 0; r < R; ++r) acc[r][j] = mul_add(left[r], weight, acc[r][j]);
    }
  }
  const Pack s = splat(sign);
  for (int j = 0; j < N; ++j)
    for (int r = 0; r < R; ++r) store(y + j * ldy + r * kStep, mul_add(s, acc[r][j], load(y + j * ldy + r * kStep)));
}

constexpr int kTileR = kLanes == 8 ? 4 : 2;

template <int N>
void product_columns(Index rows, const double* a, Index lda, Index m, const double* w, Index ldw, double* y, Index ldy, double sign) {
  Index i = 0;
  for (; i + kTileR * kStep <= rows; i += kTileR * kStep) product_tile<kTileR, N>(a + i, lda, m, w, ldw, y + i, ldy, sign);
  for (; i + kStep <= rows; i += kStep) product_tile<1, N>(a + i, lda, m, w, ldw, y + i, ldy, sign);
  for (; i < rows; ++i)
    for (int j = 0; j < N; ++j) {
      double sum = 0;
      for (Index k = 0; k < m; ++k) sum += a[k * lda + i] * w[k + j * ldw];
      y[j * ldy + i] += sign * sum;
    }
}

}  // namespace

void add_inner_products(Index rows, const double* a, Index lda, Index m, const double* b, Index ldb, Index n, double* c, Index ldc) {
  Index j = 0;
  for (; j + kTileN <= n; j += kTileN) inner_columns<kTileN>(rows, a, lda, m, b + j * ldb, ldb, c + j * ldc, ldc);
  for (; j < n; ++j) inner_columns<1>(rows, a, lda, m, b + j * ldb, ldb, c + j * ldc, ldc);
}

void add_product(Index rows, const double* a, Index lda, Index m, const double* w, Index ldw, Index n, double* y, Index ldy, double sign) {
  // Rows outside, so that a strip of a is read from the cache for every group of columns.
  constexpr Index kStrip = 128;
  for (Index i = 0; i < rows; i += kStrip) {
    const Index count = rows - i < kStrip ? rows - i : kStrip;
    Index j = 0;
    for (; j + kTileN <= n; j += kTileN) product_columns<kTileN>(count, a + i, lda, m, w + j * ldw, ldw, y + i + j * ldy, ldy, sign);
    for (; j < n; ++j) product_columns<1>(count, a + i, lda, m, w + j * ldw, ldw, y + i + j * ldy, ldy, sign);
  }
}

}  // namespace tplimit
