#pragma once

#include <cstdint>

#include "engines/tall.hpp"
#include "tplimit/math/normals.hpp"

/// Blocks and plain matrices, for tests of engines.
namespace tplimit::engines {

inline Matrix normals(Eigen::Index rows, Eigen::Index columns, std::uint64_t key) {
  Matrix out(rows, columns);
  for (Eigen::Index j = 0; j < columns; ++j)
    plain_normals(mix_key(key, static_cast<std::uint64_t>(j)), 0,
                  {out.col(j).data(), static_cast<std::size_t>(rows)});
  return out;
}

inline Block block_of(const Matrix& m) {
  Block out(m.rows(), m.cols());
  for (std::int64_t c = 0; c < out.chunks(); ++c)
    all_columns(out, c) = m.middleRows(c * out.ld(), out.chunk_rows(c));
  return out;
}

inline Matrix matrix_of(const Block& b) {
  Matrix out(b.rows(), b.columns());
  for (std::int64_t c = 0; c < b.chunks(); ++c)
    out.middleRows(c * b.ld(), b.chunk_rows(c)) = all_columns(b, c);
  return out;
}

}  // namespace tplimit::engines
