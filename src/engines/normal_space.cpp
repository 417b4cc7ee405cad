#include "engines/normal_space.hpp"

#include <cmath>
#include <numeric>

#include <Eigen/Cholesky>

#include "tplimit/math/normals.hpp"

namespace tplimit::engines {
namespace {

/// Some x with a x = b for a positive semidefinite `a` and b in its range: Cholesky with diagonal pivoting that ends when no
/// diagonal entry is above `floor`, so that rounding noise is never divided by.  (A plain LDL' does divide by it.)
Matrix solve_semidefinite(Matrix a, const Matrix& b, double floor) {
  std::vector<Eigen::Index> order(static_cast<std::size_t>(a.rows()));
  std::iota(order.begin(), order.end(), Eigen::Index{0});
  Eigen::Index rank = 0;
  for (; rank < a.rows(); ++rank) {
    Eigen::Index pivot = 0;
    if (!(a.diagonal().tail(a.rows() - rank).maxCoeff(&pivot) > floor)) break;
    pivot += rank;
    std::swap(order[static_cast<std::size_t>(rank)], order[static_cast<std::size_t>(pivot)]);
    a.row(rank).swap(a.row(pivot));
    a.col(rank).swap(a.col(pivot));
    const Eigen::Index rest = a.rows() - rank - 1;
    a(rank, rank) = std::sqrt(a(rank, rank));
    a.col(rank).tail(rest) /= a(rank, rank);
    a.bottomRightCorner(rest, rest).noalias() -= a.col(rank).tail(rest) * a.col(rank).tail(rest).transpose();
  }
  Matrix y(rank, b.cols());
  for (Eigen::Index i = 0; i < rank; ++i) y.row(i) = b.row(order[static_cast<std::size_t>(i)]);
  const auto factor = a.topLeftCorner(rank, rank).triangularView<Eigen::Lower>();
  factor.solveInPlace(y);
  factor.adjoint().solveInPlace(y);
  Matrix x = Matrix::Zero(b.rows(), b.cols());
  for (Eigen::Index i = 0; i < rank; ++i) x.row(order[static_cast<std::size_t>(i)]) = y.row(i);
  return x;
}

}  // namespace

void multiply_columns(const Executor& executor, Block& g, std::int64_t first, const Matrix& right) {
  executor.parallel(g.chunks(), [&](std::int64_t c) {
    auto columns = columns_of(g, c, first, g.columns() - first);
    columns = (columns * right).eval();
  });
}

NormalSpace::NormalSpace(const Executor& executor, std::int64_t rows, NormalLaw law, std::vector<std::uint64_t> keys)
    : executor_(executor), rows_(rows), law_(law), keys_(std::move(keys)), matching_(law == NormalLaw::kMatched) {
  if (!matching_) return;
  ones_ = Block(rows, 1);
  for (std::int64_t c = 0; c < ones_.chunks(); ++c) std::fill_n(ones_.chunk(c), ones_.chunk_rows(c), 1.0);
  members_.push_back({&ones_, 1});
}

std::int64_t NormalSpace::kept_columns() const {
  std::int64_t count = 0;
  for (const Member& m : members_) count += m.columns;
  return count;
}

void NormalSpace::fill(Block& into, std::int64_t first, const std::vector<std::uint64_t>& dimensions) const {
  executor_.parallel(into.chunks(), [&](std::int64_t c) {
    const std::int64_t begin = c * kChunkRows, end = begin + into.chunk_rows(c);
    for (std::size_t j = 0; j < dimensions.size(); ++j) {
      double* column = into.chunk(c) + (first + static_cast<std::int64_t>(j)) * into.ld();
      for (std::int64_t row = begin; row < end;) {
        const std::int64_t part = row / part_rows(), stop = std::min(end, (part + 1) * part_rows());
        const std::span<double> out(column + (row - begin), static_cast<std::size_t>(stop - row));
        const std::uint64_t key = mix_key(keys_[static_cast<std::size_t>(part)], dimensions[j]), point = static_cast<std::uint64_t>(row - part * part_rows());
        if (law_ == NormalLaw::kMatched && dimensions[j] < kSobolDimensions) sobol_normals(dimensions[j], key, point, out);
        else plain_normals(key, point, out);
        row = stop;
      }
    }
  });
}

/// Brings the products of an opposite basis with the space's members up to date: new rows for new members' columns, new
/// columns for new directions.
void NormalSpace::update(Opposite& o) const {
  const Eigen::Index old_r = o.schur.rows(), r = o.q->columns();
  o.k.resize(members_.size());
  o.schur.conservativeResize(r, r);
  for (std::size_t m = 0; m < members_.size(); ++m) {
    const std::int64_t columns = members_[m].columns;
    Matrix& k = o.k[m];
    const Eigen::Index old_rows = k.rows();
    k.conservativeResize(columns, r);
    const auto products = [&](std::int64_t first_row, std::int64_t row_count, std::int64_t first, std::int64_t count) {
      return Matrix(sum_over_chunks(executor_, o.q->chunks(), row_count, count, [&](std::int64_t c, Matrix& part) {
               add_inner(part, columns_of(*members_[m].block, c, first_row, row_count), columns_of(*o.q, c, first, count));
             }) / static_cast<double>(rows_));
    };
    if (columns > old_rows && old_r > 0) {
      const Matrix fresh = products(old_rows, columns - old_rows, 0, old_r);
      k.block(old_rows, 0, columns - old_rows, old_r) = fresh;
      o.schur.topLeftCorner(old_r, old_r).noalias() -= fresh.transpose() * fresh;
    }
    if (r > old_r) k.rightCols(r - old_r) = products(0, columns, old_r, r - old_r);
  }
  if (r > old_r) {
    o.schur.rightCols(r - old_r).setZero();
    o.schur.bottomRightCorner(r - old_r, r - old_r).setIdentity();
    for (const Matrix& k : o.k) o.schur.rightCols(r - old_r).noalias() -= k.transpose() * k.rightCols(r - old_r);
    o.schur.bottomLeftCorner(r - old_r, old_r) = o.schur.topRightCorner(old_r, r - old_r).transpose();
  }
}

/// Makes columns [first, end) orthogonal to all members and to the opposite basis.  The members N are orthonormal, Q is,
/// but not to N: with K = <N, Q> the least-squares coefficients are w = (I - K'K)^+ (<Q, g> - K'<N, g>) for Q and <N, g> - K w for N.
double NormalSpace::project(Block& g, std::int64_t first, Opposite* opposite) const {
  const std::int64_t count = g.columns() - first;
  std::vector<Matrix> a;
  for (const Member& m : members_)
    a.push_back(sum_over_chunks(executor_, g.chunks(), m.columns, count, [&](std::int64_t c, Matrix& part) {
                  add_inner(part, columns_of(*m.block, c, 0, m.columns), columns_of(g, c, first, count));
                }) / static_cast<double>(rows_));
  Matrix w;
  if (opposite && opposite->q->columns() > 0) {
    w = inner(executor_, *opposite->q, 0, g, first);
    if (!members_.empty()) {
      for (std::size_t m = 0; m < members_.size(); ++m) w.noalias() -= opposite->k[m].transpose() * a[m];
      // 1e-10: directions of Q whose part outside the members is below 1e-5 cannot be told from rounding noise twice over.
      w = solve_semidefinite(opposite->schur, w, 1e-10);
      for (std::size_t m = 0; m < members_.size(); ++m) a[m].noalias() -= opposite->k[m] * w;
    }
  }
  executor_.parallel(g.chunks(), [&](std::int64_t c) {
    const auto columns = columns_of(g, c, first, count);
    for (std::size_t m = 0; m < members_.size(); ++m) add_times(columns, columns_of(*members_[m].block, c, 0, members_[m].columns), a[m], -1);
    if (w.size() > 0) add_times(columns, all_columns(*opposite->q, c), w, -1);
  });
  Eigen::RowVectorXd squares = Eigen::RowVectorXd::Zero(count);
  for (const Matrix& k : a) squares += k.colwise().squaredNorm();
  if (w.size() > 0) squares += w.colwise().squaredNorm();
  return squares.maxCoeff();
}

void NormalSpace::whiten(Block& g, std::int64_t first) const {
  const std::int64_t count = g.columns() - first;
  const Matrix covariance = sum_over_chunks(executor_, g.chunks(), count, count, [&](std::int64_t c, Matrix& part) {
                              const auto x = columns_of(g, c, first, count);
                              add_inner(part, x, x);
                            }) / static_cast<double>(rows_);
  const Eigen::LLT<Matrix> llt(covariance);
  multiply_columns(executor_, g, first, llt.matrixU().solve(Matrix::Identity(count, count)));
}

void NormalSpace::draw(Block& into, const std::vector<std::uint64_t>& dimensions, Opposite* opposite) {
  const std::int64_t first = into.columns(), count = static_cast<std::int64_t>(dimensions.size());
  if (count == 0) return;
  const std::int64_t rank = opposite ? opposite->q->columns() : 0;
  if (matching_ && 2 * (kept_columns() + rank + count) > part_rows()) {  // the same with joined particles, for the bias to be of one kind
    matching_ = false;
    members_.clear();
  }
  into.append(count);
  fill(into, first, dimensions);
  if (!matching_) {
    (void)project(into, first, opposite);  // no members: only off the opposite basis
    return;
  }
  if (opposite) update(*opposite);
  // Twice is enough (Kahan), and once where little was taken off: fresh normals are nearly orthogonal to what is there, and what cancels is no more than what was there.
  constexpr double kLittle = 0.25;
  for (int pass = 0; pass < 2; ++pass) {
    const double removed = project(into, first, opposite);
    whiten(into, first);
    if (removed < kLittle) break;
  }
  for (Member& m : members_)
    if (m.block == &into) {
      m.columns = into.columns();
      return;
    }
  members_.push_back({&into, into.columns()});
}

}  // namespace tplimit::engines
