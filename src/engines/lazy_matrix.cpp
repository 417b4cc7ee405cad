#include "engines/lazy_matrix.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace tplimit::engines {
namespace {

/// b with zero rows and columns added, for versions and coefficients older than the newest
/// directions.
Matrix padded(const Matrix& b, Eigen::Index rows, Eigen::Index cols) {
  Matrix out = Matrix::Zero(rows, cols);
  out.topLeftCorner(b.rows(), b.cols()) = b;
  return out;
}

}  // namespace

LazyMatrix::LazyMatrix(const Executor& executor, std::int64_t rows, const LazySettings& settings,
                       NormalSpace& input, NormalSpace& output,
                       std::array<std::int64_t, 2> capacity)
    : executor_(executor), rows_(rows), settings_(settings) {
  for (const std::size_t s : {0u, 1u}) {
    const std::int64_t most = std::max<std::int64_t>(1, std::min(capacity[s], rows)),
                       own_rows = share_of(executor.ranks(), rows).count;
    sides_[s].q = OrthonormalBasis(rows, own_rows, most, settings.rank_tol, settings.single);
    sides_[s].f = Panel(own_rows, most, settings.single);
  }
  sides_[0].fresh_space = &output;
  sides_[1].fresh_space = &input;
  input.watch(directions(0));
  output.watch(directions(1));
}

void LazyMatrix::check_rank(std::int64_t more) const {
  const std::int64_t columns = directions(0).columns() + directions(1).columns() + more;
  if (settings_.law == NormalLaw::kMatched && 2 * columns > rows_)
    throw too_many_directions(columns, rows_,
                              fmt::format("raise --particles to {} or more, or --rank-tol",
                                          std::int64_t{1} << static_cast<int>(std::ceil(
                                              std::log2(8.0 * static_cast<double>(columns))))));
}

Matrix LazyMatrix::reveal(int side_index, const Block& x, std::uint32_t node,
                          std::uint64_t dimension, const Panel* also, Matrix* also_x) {
  Side& side = sides_[static_cast<std::size_t>(side_index)];
  const Panel &q = side.q.directions(),
              &opposite = directions(static_cast<std::size_t>(1 - side_index));
  const auto known = side.known.find(node);
  const std::int64_t r = q.columns(), p = x.columns(), more = also ? also->columns() : 0,
                     own = known == side.known.end() ? r + 1 : 0;
  const double m = static_cast<double>(rows_);
  // One sweep for <Q, x>, the norms of x, and <also, x>.
  const Matrix products = sum_over_chunks(executor_, x.chunks(), own + more, p,
                                          [&](std::int64_t c, Matrix& part) {
                                            const auto xc = all_columns(x, c);
                                            if (own > 0) {
                                              add_inner(part.topRows(r), q, c, xc);
                                              part.row(r) += xc.colwise().squaredNorm();
                                            }
                                            if (more > 0)
                                              add_inner(part.bottomRows(more), *also, c, xc);
                                          }) /
                          m;
  executor_.count(2 * m * static_cast<double>((own + more) * p));
  if (also) *also_x = products.bottomRows(more);
  if (own == 0) return padded(known->second, r, p);
  const Eigen::VectorXd squared_norms = products.row(r).transpose();
  if (!squared_norms.allFinite()) throw not_finite();
  Matrix a = products.topRows(r);

  // What is left of x, known up to cancellation: enough where all of it is to be dropped.
  const Eigen::ArrayXd left = squared_norms - a.colwise().squaredNorm().transpose(),
                       noise =
                           (settings_.single ? 1e-5 : 1e-12) * squared_norms;  // 80 eps, 4500 eps
  if ((squared_norms.array() == 0 ||
       left + noise < settings_.rank_tol * settings_.rank_tol * squared_norms.array())
          .all()) {
    // What is below the noise of cancellation counts as 0.
    const Eigen::ArrayXd dropped =
        (squared_norms.array() == 0 || left <= noise).select(0.0, left / squared_norms.array());
    largest_dropped_ = std::max(largest_dropped_, std::sqrt(dropped.maxCoeff()));
  } else {
    OrthonormalBasis::Extension extended = side.q.extend(
        executor_, x, std::move(a), squared_norms, [&](std::int64_t fresh) { check_rank(fresh); });
    a = std::move(extended.coefficients);
    largest_dropped_ = std::max(largest_dropped_, extended.dropped);
    std::vector<std::uint64_t> dimensions;
    for (const Eigen::Index j : extended.fresh)
      dimensions.push_back(dimension + static_cast<std::uint64_t>(j));
    if (!dimensions.empty()) (void)side.fresh_space->draw(side.f, dimensions, &opposite);
  }
  side.known.emplace(node, a);
  return a;
}

void LazyMatrix::apply(const MatrixVersion& w, bool transposed, const Block& x,
                       std::uint32_t x_node, std::uint64_t dimension, Block& y) {
  Side &side = sides_[transposed ? 1 : 0], &other = sides_[transposed ? 0 : 1];
  // The correction term: products with the fresh normals of the opposite direction.
  Matrix on_opposite;
  const Matrix a = reveal(transposed ? 1 : 0, x, x_node, dimension, &other.f, &on_opposite);
  on_opposite *= w.scale;
  if (w.coefficients.size() > 0) {
    const Matrix& c = w.coefficients;
    if (transposed)
      on_opposite.topRows(c.cols()).noalias() += c.transpose() * a.topRows(c.rows());
    else
      on_opposite.topRows(c.rows()).noalias() += c * a.topRows(c.cols());
  }
  const Matrix on_fresh = w.scale * a;
  const PanelWeights of_fresh(side.f, on_fresh), of_opposite(other.q.directions(), on_opposite);
  executor_.count(
      2 * static_cast<double>(rows_ * (on_fresh.rows() + on_opposite.rows()) * x.columns()));
  executor_.parallel(y.chunks(), [&](std::int64_t c) {
    auto out = all_columns(y, c);
    out.setZero();
    of_fresh.add_product_to(out, c);
    of_opposite.add_product_to(out, c);
  });
}

MatrixVersion LazyMatrix::update(MatrixVersion w, const std::vector<UpdateTerm>& terms) {
  for (const UpdateTerm& t : terms) {
    const Matrix d = reveal(1, *t.d, t.d_node, t.d_dimension);
    const Matrix x = reveal(0, *t.x, t.x_node, t.x_dimension);
    if (w.coefficients.rows() < directions(1).columns() ||
        w.coefficients.cols() < directions(0).columns())
      w.coefficients = padded(w.coefficients, directions(1).columns(), directions(0).columns());
    w.coefficients.topLeftCorner(d.rows(), x.rows()).noalias() += t.c * d * x.transpose();
  }
  return w;
}

void LazyMatrix::save(Writer& out) const {
  for (const Side& side : sides_) {
    side.q.save(out);
    side.f.save(out);
    out.value<std::uint64_t>(side.known.size());
    for (const auto& [node, products] : side.known) {
      out.value(node);
      out.matrix(products);
    }
  }
  out.value(largest_dropped_);
}

void LazyMatrix::load(Reader& in) {
  for (Side& side : sides_) {
    side.q.load(in);
    side.f = Panel::load(in);
    side.known.clear();
    for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
      const auto node = in.value<std::uint32_t>();
      side.known.emplace(node, in.matrix());
    }
  }
  largest_dropped_ = in.value<double>();
}

}  // namespace tplimit::engines
