#pragma once

#include <cstdint>

/// Products of tall, narrow column-major panels (a chunk of particles by a few dozen columns).  A general matrix product
/// spends most of its time packing such operands; these read them where they lie.
/// Results do not depend on how columns are grouped into calls of the same panel sizes.  Thread-safe, no allocation.
namespace tplimit {

/// c += a' b.  a: rows x m, b: rows x n, c: m x n; leading dimensions lda, ldb, ldc.  Cost: 2 rows m n.
void add_inner_products(std::int64_t rows, const double* a, std::int64_t lda, std::int64_t m, const double* b, std::int64_t ldb,
                        std::int64_t n, double* c, std::int64_t ldc);

/// y += sign a w.  a: rows x m, w: m x n, y: rows x n; sign is 1 or -1.  y must not overlap a.  Cost: 2 rows m n.
void add_product(std::int64_t rows, const double* a, std::int64_t lda, std::int64_t m, const double* w, std::int64_t ldw,
                 std::int64_t n, double* y, std::int64_t ldy, double sign = 1);

}  // namespace tplimit
