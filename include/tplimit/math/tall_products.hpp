#pragma once

#include <cstdint>

/// Products of tall, narrow column-major panels (a chunk of particles by its directions).  A general matrix product spends
/// most of its time packing such operands; these read them where they lie, and fetch the next columns while they compute.
/// Columns of `a` may be stored in single precision: products are then formed in single precision and added up in double
/// over strips of 256 rows or 64 columns; relative error about 1e-7 of |a| |b|.
/// Each number depends on its own column of either side alone, not on how columns are grouped into calls.  Thread-safe, no allocation.
namespace tplimit {

/// c += a' b.  a: rows x m, b: rows x n, c: m x n; leading dimensions lda, ldb, ldc.  Cost: 2 rows m n.
void add_inner_products(std::int64_t rows, const double* a, std::int64_t lda, std::int64_t m, const double* b, std::int64_t ldb,
                        std::int64_t n, double* c, std::int64_t ldc);
void add_inner_products(std::int64_t rows, const float* a, std::int64_t lda, std::int64_t m, const double* b, std::int64_t ldb,
                        std::int64_t n, double* c, std::int64_t ldc);

/// y += sign a w.  a: rows x m, w: m x n, y: rows x n; sign is 1 or -1.  y must not overlap a.  Cost: 2 rows m n.
void add_product(std::int64_t rows, const double* a, std::int64_t lda, std::int64_t m, const double* w, std::int64_t ldw,
                 std::int64_t n, double* y, std::int64_t ldy, double sign = 1);
void add_product(std::int64_t rows, const float* a, std::int64_t lda, std::int64_t m, const double* w, std::int64_t ldw,
                 std::int64_t n, double* y, std::int64_t ldy, double sign = 1);

}  // namespace tplimit
