#pragma once

#include <cstdint>

/// Products of a large matrix with few vectors.  The matrix (of float or double) is cut into slabs
/// of kSlabRows rows, each column-major and contiguous, so that a product reads it once, in the
/// order in which it lies in memory.
///
/// Vectors are packed in blocks of B coordinates: B numbers of the first vector, B of the second,
/// ..; B differs from product to product. Sums are taken in T over one call and added to y in
/// double, always in the same order.  Thread-safe, no allocation.
namespace tplimit {

/// 256 bytes: four cache lines of every column.
template <class T>
inline constexpr std::int64_t kSlabRows = 256 / static_cast<std::int64_t>(sizeof(T));
/// Columns for one call: 32 kB, which stay in the first-level cache while all vectors pass.  Any
/// multiple of kColumnStep is possible.
inline constexpr std::int64_t kSlabColumns = 128;
inline constexpr std::int64_t kColumnStep = 8;
/// Vectors are padded to a multiple of kVectorStep, for the transposed product to a multiple of
/// kVectorLanes.
inline constexpr std::int64_t kVectorStep = 4;
template <class T>
inline constexpr std::int64_t kVectorLanes = 64 / static_cast<std::int64_t>(sizeof(T));
/// B of a vector of the slab's columns, in the product and in the update.
inline constexpr std::int64_t kColumnBlock = 4;

/// y += A x.  A: kSlabRows x columns; x: columns x vectors, B = kColumnBlock; y: kSlabRows x
/// vectors, column-major. Cost: 2 kSlabRows columns vectors.
template <class T>
void add_slab_product(const T* a, std::int64_t columns, const T* x, std::int64_t vectors,
                      double* y);

/// y += A' d.  d: kSlabRows x vectors, y: columns x vectors, both row-major (B = 1).  Cost: 2
/// kSlabRows columns vectors.
template <class T>
void add_transposed_slab_product(const T* a, std::int64_t columns, const T* d, std::int64_t vectors,
                                 double* y);

/// A += d x'.  d: kSlabRows x vectors, column-major (B = kSlabRows); x: columns x vectors, B =
/// kColumnBlock; any number of vectors. Cost: 2 kSlabRows columns vectors.
template <class T>
void add_slab_update(T* a, std::int64_t columns, const T* d, const T* x, std::int64_t vectors);

}  // namespace tplimit
