#pragma once

#include <cstdint>
#include <vector>

/// Products of tall, narrow column-major panels (a chunk of particles by its directions).  A
/// general matrix product spends most of its time packing such operands; these read them where they
/// lie, and fetch the next columns while they compute. Columns of `a` may be stored in single
/// precision: products are then formed in single precision and added up in double over strips of
/// 256 rows or 64 columns; relative error about 1e-7 of |a| |b|. Each number depends on its own
/// column of either side alone, not on how columns are grouped into calls.  Thread-safe, no
/// allocation.
namespace tplimit {

/// c += a' b.  a: rows x m, b: rows x n, c: m x n; leading dimensions lda, ldb, ldc.  Cost: 2 rows
/// m n.
void add_inner_products(std::int64_t rows, const double* a, std::int64_t lda, std::int64_t m,
                        const double* b, std::int64_t ldb, std::int64_t n, double* c,
                        std::int64_t ldc);
void add_inner_products(std::int64_t rows, const float* a, std::int64_t lda, std::int64_t m,
                        const double* b, std::int64_t ldb, std::int64_t n, double* c,
                        std::int64_t ldc);

/// sign w in the order in which products read it, and in the precision of the panels that it
/// multiplies: made once, used for all chunks.
template <class T>
struct PackedWeights {
  PackedWeights(const double* w, std::int64_t ldw, std::int64_t rows, std::int64_t columns,
                double sign = 1);
  std::int64_t rows, columns;
  std::vector<T> values;
};
extern template struct PackedWeights<double>;
extern template struct PackedWeights<float>;

/// y += a w.  a: rows x w.rows, y: rows x w.columns.  y must not overlap a.  Cost: 2 rows w.rows
/// w.columns.
template <class T>
void add_product(std::int64_t rows, const T* a, std::int64_t lda, const PackedWeights<T>& w,
                 double* y, std::int64_t ldy);
extern template void add_product(std::int64_t, const double*, std::int64_t,
                                 const PackedWeights<double>&, double*, std::int64_t);
extern template void add_product(std::int64_t, const float*, std::int64_t,
                                 const PackedWeights<float>&, double*, std::int64_t);

/// y += sign a w for a single panel.  a: rows x m, w: m x n, y: rows x n; sign is 1 or -1.
void add_product(std::int64_t rows, const double* a, std::int64_t lda, std::int64_t m,
                 const double* w, std::int64_t ldw, std::int64_t n, double* y, std::int64_t ldy,
                 double sign = 1);
void add_product(std::int64_t rows, const float* a, std::int64_t lda, std::int64_t m,
                 const double* w, std::int64_t ldw, std::int64_t n, double* y, std::int64_t ldy,
                 double sign = 1);

}  // namespace tplimit
