#include "tplimit/math/tall_products.hpp"

#include <algorithm>
#include <cstring>

#include "math/simd.hpp"

// Measured on AVX-512 (bench/math/tall_products_bench.cpp): with 1024-row panels from main memory,
// a plain register tile waits for memory and reaches a third of the speed of a matrix product in
// the cache; with each tile fetching its share of the columns that come next, it reaches 70 to 80
// %.

namespace tplimit {
namespace {

using Index = std::int64_t;
using simd::kBytes;
using simd::kLanes;
using simd::kLanesOf;
using simd::load;
using simd::mul_add;
using simd::PackOf;
using simd::splat;

/// The lower (Half = 0) or upper half of a pack of floats as doubles.
template <int Half>
simd::Pack half_as_double(PackOf<float> p) {
  typedef float Floats __attribute__((vector_size(kBytes / 2)));
  Floats half;
  std::memcpy(&half, reinterpret_cast<const char*>(&p) + Half * sizeof half, sizeof half);
  return __builtin_convertvector(half, simd::Pack);
}
simd::Pack folded(simd::Pack p) { return p; }
simd::Pack folded(PackOf<float> p) { return half_as_double<0>(p) + half_as_double<1>(p); }

/// Sum of the lanes: pairs of neighbours, then pairs of pairs, ..
[[gnu::always_inline]] inline double sum_of_lanes(simd::Pack p) {
  double part[kLanes];
  simd::store(part, p);
  for (std::size_t width = 1; width < kLanes; width *= 2)
    for (std::size_t k = 0; k < kLanes; k += 2 * width) part[k] += part[k + width];
  return part[0];
}

/// out[k] += sum of the lanes of p[k], k < 8, in the order of sum_of_lanes.
[[gnu::always_inline]] inline void add_sums_of_lanes(const simd::Pack (&p)[8], double* out) {
#if defined(__AVX512F__)
  simd::Pack pairs[4], quads[2];
  for (int k = 0; k < 4; ++k)
    pairs[k] = _mm512_add_pd(_mm512_unpacklo_pd(p[2 * k], p[2 * k + 1]),
                             _mm512_unpackhi_pd(p[2 * k], p[2 * k + 1]));
  const auto blocks = [](simd::Pack a, simd::Pack b) {
    return simd::Pack(
        _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd)));
  };
  for (int k = 0; k < 2; ++k) quads[k] = blocks(pairs[2 * k], pairs[2 * k + 1]);
  simd::store(out, simd::load(out) + blocks(quads[0], quads[1]));
#else
  for (int k = 0; k < 8; ++k) out[k] += sum_of_lanes(p[k]);
#endif
}

// ---- inner products
// ----------------------------------------------------------------------------------

/// M columns of a against N columns of b: M N accumulators stay in registers while the rows stream
/// by, and F columns of `next` are fetched.
template <class T, int M, int N, int F>
void inner_tile(Index rows, const T* next, const T* a, Index lda, const T* b, Index ldb, double* c,
                Index ldc) {
  constexpr Index kStep = kLanesOf<T>;
  PackOf<T> acc[std::size_t{N}][std::size_t{M}] = {};
  const Index whole = rows - rows % kStep;
  for (Index i = 0; i < whole; i += kStep) {
    PackOf<T> right[std::size_t{N}];
    for (int j = 0; j < N; ++j) right[j] = load(b + j * ldb + i);
    for (int f = 0; f < F; ++f) __builtin_prefetch(next + f * lda + i, 0, 2);
    for (int k = 0; k < M; ++k) {
      const PackOf<T> left = load(a + k * lda + i);
      for (int j = 0; j < N; ++j) acc[j][k] = mul_add(left, right[j], acc[j][k]);
    }
  }
  for (int j = 0; j < N; ++j) {
    if constexpr (M == 8) {
      simd::Pack sums[8];
      for (int k = 0; k < 8; ++k) sums[k] = folded(acc[j][k]);
      add_sums_of_lanes(sums, c + j * ldc);
    } else {
      for (int k = 0; k < M; ++k) c[k + j * ldc] += sum_of_lanes(folded(acc[j][k]));
    }
    if (whole < rows)
      for (int k = 0; k < M; ++k) {
        double sum = 0;
        for (Index i = whole; i < rows; ++i) sum += double{a[k * lda + i]} * double{b[j * ldb + i]};
        c[k + j * ldc] += sum;
      }
  }
}

template <class T, int M>
void inner_rows(Index rows, const T* a, Index lda, const T* b, Index ldb, Index n, double* c,
                Index ldc) {
  // Every element of the next M columns is fetched once while this tile is used n / 2 times.
  const Index share = M == 8 ? (n >= 16 ? 1 : n >= 8 ? 2 : 4) : 0;
  Index j = 0;
  for (; j + 2 <= n; j += 2) {
    const Index from = j / 2 * share;
    const T* next = a + (M + from) * lda;
    const T* right = b + j * ldb;
    double* out = c + j * ldc;
    if (share == 0 || from >= M)
      inner_tile<T, M, 2, 0>(rows, next, a, lda, right, ldb, out, ldc);
    else if (share == 1)
      inner_tile<T, M, 2, 1>(rows, next, a, lda, right, ldb, out, ldc);
    else if (share == 2)
      inner_tile<T, M, 2, 2>(rows, next, a, lda, right, ldb, out, ldc);
    else
      inner_tile<T, M, 2, 4>(rows, next, a, lda, right, ldb, out, ldc);
  }
  if (j < n) inner_tile<T, M, 1, 0>(rows, a, a, lda, b + j * ldb, ldb, c + j * ldc, ldc);
}

template <class T>
void inner_panels(Index rows, const T* a, Index lda, Index m, const T* b, Index ldb, Index n,
                  double* c, Index ldc) {
  Index k = 0;
  for (; k + 8 <= m; k += 8) inner_rows<T, 8>(rows, a + k * lda, lda, b, ldb, n, c + k, ldc);
  for (; k + 4 <= m; k += 4) inner_rows<T, 4>(rows, a + k * lda, lda, b, ldb, n, c + k, ldc);
  for (; k + 2 <= m; k += 2) inner_rows<T, 2>(rows, a + k * lda, lda, b, ldb, n, c + k, ldc);
  if (k < m) inner_rows<T, 1>(rows, a + k * lda, lda, b, ldb, n, c + k, ldc);
}

// ---- products
// ----------------------------------------------------------------------------------------

constexpr Index kColumns =
    64;  ///< of a at a time: 64 x 256 rows stay in the second-level cache for all columns of y
constexpr Index kGroup = 32;  ///< columns of y at a time

void add_to(double* y, simd::Pack p) { simd::store(y, simd::load(y) + p); }
void add_to(double* y, PackOf<float> p) {
  add_to(y, half_as_double<0>(p));
  add_to(y + kLanes, half_as_double<1>(p));
}

/// R packs of rows by N columns of y += a w, for m columns of a; F packs of the columns that come
/// after are fetched.
template <class T, int R, int N, int F>
void product_tile(const T* next, const T* a, Index lda, Index m, const T* w, double* y, Index ldy) {
  constexpr Index kStep = kLanesOf<T>;
  PackOf<T> acc[std::size_t{R}][std::size_t{N}] = {};
  for (Index k = 0; k < m; ++k) {
    PackOf<T> left[std::size_t{R}];
    for (int r = 0; r < R; ++r) left[r] = load(a + k * lda + r * kStep);
    for (int f = 0; f < F; ++f) __builtin_prefetch(next + k * lda + f * kStep, 0, 2);
    for (int j = 0; j < N; ++j) {
      const PackOf<T> weight = splat(w[k * N + j]);
      for (int r = 0; r < R; ++r) acc[r][j] = mul_add(left[r], weight, acc[r][j]);
    }
  }
  for (int j = 0; j < N; ++j)
    for (int r = 0; r < R; ++r) add_to(y + j * ldy + r * kStep, acc[r][j]);
}

constexpr int kTileR =
    kLanes == 8 ? 4
                : 2;  // 16 accumulators fit the 32 registers of AVX-512; 8 the 16 of AVX2 and SSE2

/// N columns of y; `first` says how many columns of the group came before, `n` how many there are.
template <class T, int N>
void product_columns(Index rows, const T* a, Index lda, Index m, const T* w, double* y, Index ldy,
                     Index first, Index n) {
  constexpr Index kStep = kLanesOf<T>, kTile = kTileR * kStep;
  const T* next = a + kColumns * lda;
  const Index share = n >= 4 * kTileR ? 1 : n >= 2 * kTileR ? 2 : kTileR;
  const Index from = N == 4 ? first / 4 * share : kTileR;
  Index i = 0;
  for (; i + kTile <= rows; i += kTile) {
    const T* fetch = next + i + from * kStep;
    if (from >= kTileR)
      product_tile<T, kTileR, N, 0>(fetch, a + i, lda, m, w, y + i, ldy);
    else if (share == 1)
      product_tile<T, kTileR, N, 1>(fetch, a + i, lda, m, w, y + i, ldy);
    else if (share == 2)
      product_tile<T, kTileR, N, 2>(fetch, a + i, lda, m, w, y + i, ldy);
    else
      product_tile<T, kTileR, N, kTileR>(fetch, a + i, lda, m, w, y + i, ldy);
  }
  for (; i + kStep <= rows; i += kStep)
    product_tile<T, 1, N, 0>(next, a + i, lda, m, w, y + i, ldy);
  for (; i < rows; ++i)
    for (int j = 0; j < N; ++j) {
      double sum = 0;
      for (Index k = 0; k < m; ++k) sum += double{a[k * lda + i]} * double{w[k * N + j]};
      y[j * ldy + i] += sum;
    }
}

/// Columns of y that a tile of a group with `count` columns takes from column j on.
constexpr Index tile_columns(Index j, Index count) { return count - j >= 4 ? 4 : 1; }

}  // namespace

void add_inner_products(Index rows, const double* a, Index lda, Index m, const double* b, Index ldb,
                        Index n, double* c, Index ldc) {
  inner_panels(rows, a, lda, m, b, ldb, n, c, ldc);
}

void add_inner_products(Index rows, const float* a, Index lda, Index m, const double* b, Index ldb,
                        Index n, double* c, Index ldc) {
  constexpr Index kStrip = 256;
  float right[static_cast<std::size_t>(kStrip * kGroup)];
  for (Index i = 0; i < rows; i += kStrip) {
    const Index strip = std::min(kStrip, rows - i);
    for (Index begin = 0; begin < n; begin += kGroup) {
      const Index count = std::min(kGroup, n - begin);
      for (Index j = 0; j < count; ++j)
        for (Index r = 0; r < strip; ++r)
          right[j * kStrip + r] = static_cast<float>(b[(begin + j) * ldb + i + r]);
      inner_panels<float>(strip, a + i, lda, m, right, kStrip, count, c + begin * ldc, ldc);
    }
  }
}

template <class T>
PackedWeights<T>::PackedWeights(const double* w, Index ldw, Index rows_of_w, Index columns_of_w,
                                double sign)
    : rows(rows_of_w), columns(columns_of_w) {
  values.reserve(static_cast<std::size_t>(rows * columns));
  for (Index k = 0; k < rows; k += kColumns)
    for (Index begin = 0; begin < columns; begin += kGroup) {
      const Index count = std::min(kGroup, columns - begin);
      for (Index j = 0; j < count; j += tile_columns(j, count))
        for (Index l = k; l < std::min(rows, k + kColumns); ++l)
          for (Index i = 0; i < tile_columns(j, count); ++i)
            values.push_back(static_cast<T>(sign * w[l + (begin + j + i) * ldw]));
    }
}
template struct PackedWeights<double>;
template struct PackedWeights<float>;

template <class T>
void add_product(Index rows, const T* a, Index lda, const PackedWeights<T>& w, double* y,
                 Index ldy) {
  const T* weights = w.values.data();
  for (Index k = 0; k < w.rows; k += kColumns) {
    const Index columns = std::min(kColumns, w.rows - k);
    for (Index begin = 0; begin < w.columns; begin += kGroup) {
      const Index count = std::min(kGroup, w.columns - begin);
      for (Index j = 0; j < count; j += tile_columns(j, count)) {
        double* out = y + (begin + j) * ldy;
        if (tile_columns(j, count) == 4)
          product_columns<T, 4>(rows, a + k * lda, lda, columns, weights, out, ldy, j, count);
        else
          product_columns<T, 1>(rows, a + k * lda, lda, columns, weights, out, ldy, j, count);
        weights += columns * tile_columns(j, count);
      }
    }
  }
}
template void add_product(Index, const double*, Index, const PackedWeights<double>&, double*,
                          Index);
template void add_product(Index, const float*, Index, const PackedWeights<float>&, double*, Index);

void add_product(Index rows, const double* a, Index lda, Index m, const double* w, Index ldw,
                 Index n, double* y, Index ldy, double sign) {
  add_product(rows, a, lda, PackedWeights<double>(w, ldw, m, n, sign), y, ldy);
}

void add_product(Index rows, const float* a, Index lda, Index m, const double* w, Index ldw,
                 Index n, double* y, Index ldy, double sign) {
  add_product(rows, a, lda, PackedWeights<float>(w, ldw, m, n, sign), y, ldy);
}

}  // namespace tplimit
