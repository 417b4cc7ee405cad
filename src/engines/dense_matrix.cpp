#include "engines/dense_matrix.hpp"

#include <cmath>

#include "tplimit/math/normals.hpp"

namespace tplimit::engines {

MatrixVersion DenseMatrix::initial() {
  auto entries = std::make_shared<Block>(n_, n_);
  const double s = 1 / std::sqrt(static_cast<double>(n_));
  executor_.parallel(entries->chunks(), [&](std::int64_t c) {
    const std::int64_t rows = entries->chunk_rows(c);
    for (std::int64_t j = 0; j < n_; ++j) {
      double* out = entries->chunk(c) + j * entries->ld();
      plain_normals(mix_key(key_, static_cast<std::uint64_t>(j)), static_cast<std::uint64_t>(c * kChunkRows), {out, static_cast<std::size_t>(rows)});
      for (std::int64_t i = 0; i < rows; ++i) out[i] *= s;
    }
  });
  return {1, {}, entries};
}

void DenseMatrix::apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t, std::uint64_t, Block& y) {
  const Block& e = *w.entries;
  executor_.parallel(y.chunks(), [&](std::int64_t c) {
    auto out = all_columns(y, c);
    out.setZero();
    for (std::int64_t k = 0; k < x.chunks(); ++k) {
      if (transposed) out.noalias() += columns_of(e, k, c * kChunkRows, y.chunk_rows(c)).transpose() * all_columns(x, k);
      else out.noalias() += columns_of(e, c, k * kChunkRows, x.chunk_rows(k)) * all_columns(x, k);
    }
    if (w.scale != 1) out *= w.scale;
  });
}

template <class Change>
MatrixVersion DenseMatrix::changed(MatrixVersion w, Change change) {
  if (w.entries.use_count() > 1) {  // an older version is still needed
    auto copy = std::make_shared<Block>(n_, n_);
    executor_.parallel(copy->chunks(), [&](std::int64_t c) { all_columns(*copy, c) = all_columns(*w.entries, c); });
    w.entries = copy;
  }
  const Block& e = *w.entries;
  executor_.parallel(e.chunks(), [&](std::int64_t c) {
    for (std::int64_t k = 0; k < e.chunks(); ++k) {
      auto part = columns_of(e, c, k * kChunkRows, e.chunk_rows(k));
      if (w.scale != 1) part *= w.scale;
      change(part, c, k);
    }
  });
  w.scale = 1;
  return w;
}

MatrixVersion DenseMatrix::update(MatrixVersion w, const std::vector<UpdateTerm>& terms) {
  return changed(std::move(w), [&](auto& part, std::int64_t c, std::int64_t k) {
    for (const UpdateTerm& t : terms) part.noalias() += (t.c / static_cast<double>(n_) * all_columns(*t.d, c)) * all_columns(*t.x, k).transpose();
  });
}

MatrixVersion DenseMatrix::update_entrywise(MatrixVersion w, const std::vector<UpdateTerm>& terms, double c, double epsilon) {
  return changed(std::move(w), [&](auto& part, std::int64_t row, std::int64_t column) {
    Matrix g = Matrix::Zero(part.rows(), part.cols());
    for (const UpdateTerm& t : terms) g.noalias() += (t.c * all_columns(*t.d, row)) * all_columns(*t.x, column).transpose();
    if (epsilon == 0) part.array() += c * g.array().sign();
    else part.array() += c * g.array() / (g.array().square() + epsilon * epsilon).sqrt();
  });
}

}  // namespace tplimit::engines
