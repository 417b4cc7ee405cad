#include "tplimit/math/slab_products.hpp"

#include "math/simd.hpp"

namespace tplimit {
namespace {

using Index = std::int64_t;
using simd::kLanesOf;
using simd::load;
using simd::PackOf;
using simd::splat;
using simd::store;

// 16 accumulators fit the 32 registers of AVX-512; 8 the 16 of AVX2 and SSE2.
constexpr int kRowPacks = simd::kBytes == 64 ? 4 : 2;
constexpr int kStep = 4;
static_assert(kStep == kVectorStep && kStep == kColumnBlock);

/// Rows of a slab that are handled at once: all of them where registers are wide.
template <class T>
constexpr Index kTileRows = kRowPacks* kLanesOf<T>;

}  // namespace

template <class T>
void add_slab_product(const T* a, Index columns, const T* x, Index vectors, double* y) {
  constexpr Index h = kSlabRows<T>, lanes = kLanesOf<T>;
  for (Index p = 0; p < vectors; p += kStep)
    for (Index i = 0; i < h; i += kTileRows<T>) {
      PackOf<T> sum[kRowPacks][kStep] = {};
      for (Index k = 0; k < columns; k += kStep) {
        const T* weights = x + k * vectors + p * kStep;
        for (int b = 0; b < kStep; ++b) {
          PackOf<T> left[kRowPacks];
          for (int r = 0; r < kRowPacks; ++r) left[r] = load(a + (k + b) * h + i + r * lanes);
          for (int j = 0; j < kStep; ++j) {
            const PackOf<T> weight = splat(weights[j * kStep + b]);
            for (int r = 0; r < kRowPacks; ++r)
              sum[r][j] = simd::mul_add(left[r], weight, sum[r][j]);
          }
        }
      }
      for (int j = 0; j < kStep; ++j)
        for (int r = 0; r < kRowPacks; ++r)
          for (int l = 0; l < lanes; ++l)
            y[(p + j) * h + i + r * lanes + l] += static_cast<double>(sum[r][j][l]);
    }
}

template <class T>
void add_transposed_slab_product(const T* a, Index columns, const T* d, Index vectors, double* y) {
  constexpr Index h = kSlabRows<T>, lanes = kLanesOf<T>;
  // Lanes are vectors, so no sum runs across lanes.
  for (Index k = 0; k < columns; k += kColumnStep)
    for (Index p = 0; p < vectors; p += lanes) {
      PackOf<T> sum[kColumnStep] = {};
      for (Index i = 0; i < h; ++i) {
        const PackOf<T> right = load(d + i * vectors + p);
        for (Index c = 0; c < kColumnStep; ++c)
          sum[c] = simd::mul_add(splat(a[(k + c) * h + i]), right, sum[c]);
      }
      for (Index c = 0; c < kColumnStep; ++c)
        for (int l = 0; l < lanes; ++l)
          y[(k + c) * vectors + p + l] += static_cast<double>(sum[c][l]);
    }
}

template <class T>
void add_slab_update(T* a, Index columns, const T* d, const T* x, Index vectors) {
  constexpr Index h = kSlabRows<T>, lanes = kLanesOf<T>;
  for (Index k = 0; k < columns; k += kStep)
    for (Index i = 0; i < h; i += kTileRows<T>) {
      T* tile = a + k * h + i;
      // The tile after next, or where it would be: the latency of the memory does not hide behind
      // short sums.
      for (int c = 0; c < kStep; ++c)
        for (int r = 0; r < kRowPacks; ++r)
          __builtin_prefetch(tile + (2 * kStep + c) * h + r * lanes, 1);
      PackOf<T> sum[kStep][kRowPacks] = {};
      for (Index p = 0; p < vectors; ++p) {
        PackOf<T> left[kRowPacks];
        for (int r = 0; r < kRowPacks; ++r) left[r] = load(d + p * h + i + r * lanes);
        for (int c = 0; c < kStep; ++c) {
          const PackOf<T> weight = splat(x[k * vectors + p * kStep + c]);
          for (int r = 0; r < kRowPacks; ++r) sum[c][r] = simd::mul_add(left[r], weight, sum[c][r]);
        }
      }
      for (int c = 0; c < kStep; ++c)
        for (int r = 0; r < kRowPacks; ++r)
          store(tile + c * h + r * lanes, load(tile + c * h + r * lanes) + sum[c][r]);
    }
}

template void add_slab_product(const double*, Index, const double*, Index, double*);
template void add_slab_product(const float*, Index, const float*, Index, double*);
template void add_transposed_slab_product(const double*, Index, const double*, Index, double*);
template void add_transposed_slab_product(const float*, Index, const float*, Index, double*);
template void add_slab_update(double*, Index, const double*, const double*, Index);
template void add_slab_update(float*, Index, const float*, const float*, Index);

}  // namespace tplimit
