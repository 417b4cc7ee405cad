#include "engines/width_matrix.hpp"

#include <algorithm>
#include <cmath>

#include <Eigen/Cholesky>

#include "tplimit/math/normals.hpp"

namespace tplimit::engines {
namespace {

/// Cholesky factor of a Gram matrix in column order, dropping columns whose residual is below tol times their own norm.
struct PivotedFactor {
  std::vector<Eigen::Index> kept;
  Matrix rows;  ///< all columns x kept: column j = sum_l rows(j, l) (direction l) + dropped residual
};

PivotedFactor factor_in_order(const Matrix& gram, const Eigen::VectorXd& squared_norms, double tol) {
  const Eigen::Index n = gram.rows();
  PivotedFactor out{{}, Matrix::Zero(n, n)};
  for (Eigen::Index j = 0; j < n; ++j) {
    double residual = gram(j, j);
    for (std::size_t l = 0; l < out.kept.size(); ++l) {
      const auto k = static_cast<Eigen::Index>(l);
      const Eigen::Index p = out.kept[l];
      const double coefficient = (gram(j, p) - out.rows.row(j).head(k).dot(out.rows.row(p).head(k))) / out.rows(p, k);
      out.rows(j, k) = coefficient;
      residual -= coefficient * coefficient;
    }
    // 1e-13: 450 eps; what is left of gram(j, j) after cancellation beyond that is noise (equal columns leave +-eps of it).
    if (residual > std::max(tol * tol * squared_norms(j), 1e-13 * gram(j, j))) {
      out.rows(j, static_cast<Eigen::Index>(out.kept.size())) = std::sqrt(residual);
      out.kept.push_back(j);
    }
  }
  out.rows.conservativeResize(n, static_cast<Eigen::Index>(out.kept.size()));
  return out;
}

Matrix inverse_transposed(const Matrix& lower) {
  return lower.transpose().triangularView<Eigen::Upper>().solve(Matrix::Identity(lower.rows(), lower.rows()));
}

/// b with zero rows and columns added, for versions and coefficients older than the newest directions.
Matrix padded(const Matrix& b, Eigen::Index rows, Eigen::Index cols) {
  Matrix out = Matrix::Zero(rows, cols);
  out.topLeftCorner(b.rows(), b.cols()) = b;
  return out;
}

}  // namespace

LazyMatrix::LazyMatrix(const Executor& executor, std::int64_t rows, NormalLaw law, double rank_tol, NormalSpace& input,
                       NormalSpace& output, std::array<std::int64_t, 2> capacity)
    : executor_(executor), rows_(rows), law_(law), rank_tol_(rank_tol) {
  for (const std::size_t s : {0u, 1u}) {
    const std::int64_t most = std::max<std::int64_t>(1, std::min(capacity[s], rows));
    sides_[s].q = Block(rows, 0, most);
    sides_[s].f = Block(rows, 0, most);
  }
  sides_[0].fresh_space = &output;
  sides_[1].fresh_space = &input;
  sides_[0].opposite.q = &sides_[1].q;
  sides_[1].opposite.q = &sides_[0].q;
}

void LazyMatrix::check_rank(const Side& side, std::int64_t more) const {
  const std::int64_t columns = side.q.columns() + more + side.opposite.q->columns();
  if (law_ == NormalLaw::kMatched && 2 * columns > rows_)
    throw EvaluationStop{"E4201", fmt::format("{} directions of one matrix are too many for {} particles", columns, rows_),
                         fmt::format("raise --particles to {} or more, or --rank-tol", std::int64_t{1} << static_cast<int>(std::ceil(std::log2(8.0 * static_cast<double>(columns)))))};
}

Matrix LazyMatrix::reveal(Side& side, const Block& x, std::uint32_t node, std::uint64_t dimension) {
  if (const auto it = side.known.find(node); it != side.known.end()) return padded(it->second, side.q.columns(), x.columns());

  const std::int64_t r = side.q.columns(), p = x.columns(), chunks = x.chunks();
  const double m = static_cast<double>(rows_);
  // First sweep: <Q, x> and the norms of x.
  Matrix first = sum_over_chunks(executor_, chunks, r + 1, p, [&](std::int64_t c, Matrix& part) {
                   const auto xc = all_columns(x, c);
                   add_inner(part.topRows(r), all_columns(side.q, c), xc);
                   part.row(r) += xc.colwise().squaredNorm();
                 }) / m;
  const Eigen::VectorXd squared_norms = first.row(r).transpose();
  if (!squared_norms.allFinite()) throw EvaluationStop{"E4101", "a number is not finite", ""};
  Matrix a = first.topRows(r);
  // Second sweep: the residual and its products with Q; third: again, and its Gram matrix.  Twice is enough.
  Block residual(rows_, p);
  const auto subtract = [&](const Matrix& coefficients, bool from_x, bool gram) {
    return Matrix(sum_over_chunks(executor_, chunks, gram ? p : r, p, [&](std::int64_t c, Matrix& part) {
             auto res = all_columns(residual, c);
             if (from_x) res = all_columns(x, c);
             add_times(res, columns_of(side.q, c, 0, r), coefficients, -1);
             add_inner(part, gram ? res : columns_of(side.q, c, 0, r), res);
           }) / m);
  };
  Matrix gram;
  if (r > 0) {
    const Matrix second = subtract(a, true, false);
    gram = subtract(second, false, true);
    a += second;
  } else {
    gram = subtract(a, true, true);
  }
  const PivotedFactor factor = factor_in_order(gram, squared_norms, rank_tol_);
  const auto fresh = static_cast<std::int64_t>(factor.kept.size());
  if (fresh > 0) {
    check_rank(side, fresh);
    TPLIMIT_CHECK(r + fresh <= rows_, "no more directions than coordinates");
    // New directions: the kept residuals, orthonormalised, then once more against Q and among themselves.
    Matrix lower(fresh, fresh), select = Matrix::Zero(p, fresh);
    std::vector<std::uint64_t> dimensions;
    for (std::int64_t l = 0; l < fresh; ++l) {
      const Eigen::Index j = factor.kept[static_cast<std::size_t>(l)];
      lower.row(l) = factor.rows.row(j);
      select(j, l) = 1;
      dimensions.push_back(dimension + static_cast<std::uint64_t>(j));
    }
    const Matrix to_directions = select * inverse_transposed(lower.triangularView<Eigen::Lower>());
    side.q.append(fresh);
    const Matrix again = sum_over_chunks(executor_, chunks, r + fresh, fresh, [&](std::int64_t c, Matrix& part) {
                           auto q = columns_of(side.q, c, r, fresh);
                           q.setZero();
                           add_times(q, all_columns(residual, c), to_directions);
                           add_inner(part.topRows(r), columns_of(side.q, c, 0, r), q);
                         }) / m;
    const Matrix overlap = again.topRows(r);
    const Matrix near_identity = sum_over_chunks(executor_, chunks, fresh, fresh, [&](std::int64_t c, Matrix& part) {
                                   auto q = columns_of(side.q, c, r, fresh);
                                   add_times(q, columns_of(side.q, c, 0, r), overlap, -1);
                                   add_inner(part, q, q);
                                 }) / m;
    const Matrix second_lower = Eigen::LLT<Matrix>(near_identity).matrixL();
    multiply_columns(executor_, side.q, r, inverse_transposed(second_lower));
    // x = Q a + (Q overlap + q second_lower') rows' + dropped
    Matrix whole(r + fresh, p);
    whole.topRows(r) = a + overlap * factor.rows.transpose();
    whole.bottomRows(fresh) = second_lower.transpose() * factor.rows.transpose();
    a = std::move(whole);
    side.fresh_space->draw(side.f, dimensions, &side.opposite);
  }
  side.known.emplace(node, a);
  return a;
}

void LazyMatrix::apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node, std::uint64_t dimension, Block& y) {
  Side &side = sides_[transposed ? 1 : 0], &other = sides_[transposed ? 0 : 1];
  const Matrix a = reveal(side, x, x_node, dimension);
  // The correction term: products with the fresh normals of the opposite direction.
  Matrix on_opposite = w.scale * inner(executor_, other.f, 0, x);
  if (w.coefficients.size() > 0) {
    const Matrix& c = w.coefficients;
    if (transposed) on_opposite.topRows(c.cols()).noalias() += c.transpose() * a.topRows(c.rows());
    else on_opposite.topRows(c.rows()).noalias() += c * a.topRows(c.cols());
  }
  const Matrix on_fresh = w.scale * a;
  executor_.parallel(y.chunks(), [&](std::int64_t c) {
    auto out = all_columns(y, c);
    out.setZero();
    add_times(out, all_columns(side.f, c), on_fresh);
    add_times(out, all_columns(other.q, c), on_opposite);
  });
}

MatrixVersion LazyMatrix::update(MatrixVersion w, const std::vector<UpdateTerm>& terms) {
  for (const UpdateTerm& t : terms) {
    const Matrix d = reveal(sides_[1], *t.d, t.d_node, t.d_dimension);
    const Matrix x = reveal(sides_[0], *t.x, t.x_node, t.x_dimension);
    if (w.coefficients.rows() < sides_[1].q.columns() || w.coefficients.cols() < sides_[0].q.columns())
      w.coefficients = padded(w.coefficients, sides_[1].q.columns(), sides_[0].q.columns());
    w.coefficients.topLeftCorner(d.rows(), x.rows()).noalias() += t.c * d * x.transpose();
  }
  return w;
}

// ---- dense ------------------------------------------------------------------------------------------

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
