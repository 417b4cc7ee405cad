#include "engines/lazy_matrix.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

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
    : executor_(executor), arrays_(executor, rows), rows_(rows), settings_(settings) {
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

bool LazyMatrix::has_room_for(std::int64_t more) const {
  const std::int64_t columns = directions(0).columns() + directions(1).columns() + more;
  if (static_cast<double>(columns) <= settings_.room * static_cast<double>(rows_)) return true;
  if (settings_.may_store) return false;
  throw too_many_directions(
      columns, rows_,
      fmt::format("raise --particles to {} or more, or --rank-tol, or let matrices be stored",
                  std::int64_t{1} << static_cast<int>(
                      std::ceil(std::log2(8.0 * static_cast<double>(columns))))));
}

namespace {
/// Thrown where a basis would grow beyond the room there is.
struct NoRoom {};
}  // namespace

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
  if (gaussian_) return products.topRows(r);
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
    OrthonormalBasis::Extension extended =
        side.q.extend(executor_, x, std::move(a), squared_norms, [&](std::int64_t fresh) {
          if (!has_room_for(fresh)) throw NoRoom{};
        });
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
  if (!gaussian_) try {
      return apply_lazily(w, transposed, x, x_node, dimension, y);
    } catch (const NoRoom&) {
      store();
    }
  apply_stored(w, transposed, x, x_node, y);
}

void LazyMatrix::apply_lazily(const MatrixVersion& w, bool transposed, const Block& x,
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
  if (w.entries) add_entries_product(*w.entries, w.entries_scale, transposed, x, y);
}

/// y += factor A x or factor A' x.  Every rank has all entries.
void LazyMatrix::add_entries_product(Slabs& a, double factor, bool transposed, const Block& x,
                                     Block& y) const {
  const Share own = share_of(executor_.ranks(), rows_);
  Block product(rows_, x.columns()), whole;
  arrays_.apply(a, factor, transposed, all_rows(executor_, x, rows_, whole), product);
  executor_.count(2 * static_cast<double>(rows_) * static_cast<double>(rows_ * x.columns()));
  executor_.parallel(y.chunks(), [&](std::int64_t c) {
    all_columns(y, c) += all_columns(product, c + own.first / kChunkRows);
  });
}

MatrixVersion LazyMatrix::combined(MatrixVersion w, double c, const MatrixVersion& b) {
  w.scale += c * b.scale;
  const Eigen::Index rows = std::max(w.coefficients.rows(), b.coefficients.rows()),
                     cols = std::max(w.coefficients.cols(), b.coefficients.cols());
  w.coefficients = padded(w.coefficients, rows, cols);
  w.coefficients.topLeftCorner(b.coefficients.rows(), b.coefficients.cols()) += c * b.coefficients;
  if (b.entries) {
    w = with_own_entries(std::move(w));
    arrays_.add(*w.entries, c * b.entries_scale, *b.entries);
  }
  return w;
}

MatrixVersion LazyMatrix::with_own_entries(MatrixVersion w) {
  if (settings_.law == NormalLaw::kExact)
    throw EvaluationStop{"E4204", "an entrywise update needs stored matrices",
                         "use --matrices stored and a smaller width"};
  w.entries = w.entries ? arrays_.owned(std::move(w.entries)) : arrays_.zeros();
  w.entries->scale = std::exchange(w.entries_scale, 1);
  if (gaussian_ && w.scale != 0) arrays_.add(*w.entries, std::exchange(w.scale, 0), *gaussian_);
  return w;
}

double LazyMatrix::inner_product(const MatrixVersion&, const MatrixVersion&) {
  throw EvaluationStop{"E4204", "the entries of a matrix are needed, which are not stored",
                       "use --matrices stored and a smaller width"};
}

MatrixVersion LazyMatrix::update(MatrixVersion w, const std::vector<UpdateTerm>& terms) {
  std::vector<Matrix> on_d, on_x;  // <Qd, d>, <Qx, x>
  if (!gaussian_) try {
      for (const UpdateTerm& t : terms) {
        on_d.push_back(reveal(1, *t.d, t.d_node, t.d_dimension));
        on_x.push_back(reveal(0, *t.x, t.x_node, t.x_dimension));
      }
    } catch (const NoRoom&) {
      store();
    }
  if (gaussian_) return stored(std::move(w), terms);
  if (w.coefficients.rows() < directions(1).columns() ||
      w.coefficients.cols() < directions(0).columns())
    w.coefficients = padded(w.coefficients, directions(1).columns(), directions(0).columns());
  for (std::size_t k = 0; k < terms.size(); ++k)
    w.coefficients.topLeftCorner(on_d[k].rows(), on_x[k].rows()).noalias() +=
        terms[k].c * on_d[k] * on_x[k].transpose();
  return w;
}

// ---- stored

Block LazyMatrix::columns_of_all_ranks(const Panel& panel) const {
  Block own(panel.rows(), panel.columns()), storage;
  for (std::int64_t c = 0; c < panel.chunks(); ++c) panel.read(c, 0, panel.columns(), own.chunk(c));
  if (executor_.ranks().size() == 1) return own;
  (void)all_rows(executor_, own, rows_, storage);
  return storage;
}

/// The law of W given W Qx = Xf and W' Qd = Xb, N with entries N(0, 1/M):
///   W = (Xf Qx' + Qd Xb') / M + (1 - Qd Qd' / M) N (1 - Qx Qx' / M)
///     = N + Qd (Xb - N' Qd)' / M + (Xf - N Qx + Qd <N' Qd, Qx>) Qx' / M.
/// (Xf is orthogonal to the Qd, and Xb to the Qx, that were there before.)
void LazyMatrix::store() {
  gaussian_ = arrays_.drawn(settings_.key, ir::EntryLaw::kNormal);
  const Block qx = columns_of_all_ranks(directions(0)), qd = columns_of_all_ranks(directions(1)),
              xf = columns_of_all_ranks(sides_[0].f), xb = columns_of_all_ranks(sides_[1].f);
  Block right(rows_, qd.columns()), left(rows_, qx.columns());
  if (qd.columns() > 0) arrays_.apply(*gaussian_, 1, true, qd, right);
  if (qx.columns() > 0) arrays_.apply(*gaussian_, 1, false, qx, left);
  Matrix both = Matrix::Zero(qd.columns(), qx.columns());  // <N' Qd, Qx>
  for (std::int64_t c = 0; c < qx.chunks(); ++c)
    if (both.size() > 0) both += all_columns(right, c).transpose() * all_columns(qx, c);
  both /= static_cast<double>(rows_);
  executor_.parallel(qx.chunks(), [&](std::int64_t c) {
    all_columns(right, c) = all_columns(xb, c) - all_columns(right, c);
    all_columns(left, c) = all_columns(xf, c) - all_columns(left, c) + all_columns(qd, c) * both;
  });
  const double m = static_cast<double>(rows_);
  std::vector<UpdateTerm> terms;
  if (qd.columns() > 0) terms.push_back({1, &qd, &right, 0, 0, 0, 0});
  if (qx.columns() > 0) terms.push_back({1, &left, &qx, 0, 0, 0, 0});
  arrays_.add(*gaussian_, terms, 1 / m);
}

/// y = (s W + Qd C Qx' + A) x.
void LazyMatrix::apply_stored(const MatrixVersion& w, bool transposed, const Block& x,
                              std::uint32_t x_node, Block& y) {
  if (w.coefficients.size() > 0) {
    const Matrix a = reveal(transposed ? 1 : 0, x, x_node, 0), &c = w.coefficients;
    const Panel& q = directions(transposed ? 0 : 1);
    Matrix on_q = Matrix::Zero(q.columns(), x.columns());
    if (transposed)
      on_q.topRows(c.cols()).noalias() = c.transpose() * a.topRows(c.rows());
    else
      on_q.topRows(c.rows()).noalias() = c * a.topRows(c.cols());
    const PanelWeights of_q(q, on_q);
    executor_.parallel(y.chunks(), [&](std::int64_t k) {
      auto out = all_columns(y, k);
      out.setZero();
      of_q.add_product_to(out, k);
    });
  } else {
    executor_.parallel(y.chunks(), [&](std::int64_t k) { all_columns(y, k).setZero(); });
  }
  if (w.scale != 0) add_entries_product(*gaussian_, w.scale, transposed, x, y);
  if (w.entries) add_entries_product(*w.entries, w.entries_scale, transposed, x, y);
}

/// W + sum c d x' / n with all that W is made of in its entries.
MatrixVersion LazyMatrix::stored(MatrixVersion w, const std::vector<UpdateTerm>& terms) {
  w = with_own_entries(std::move(w));
  std::vector<UpdateTerm> all = terms;
  Block left, right;
  if (w.coefficients.size() > 0) {
    const Block qd = columns_of_all_ranks(directions(1));
    right = columns_of_all_ranks(directions(0));
    left = Block(rows_, right.columns());
    const Matrix c = padded(w.coefficients, qd.columns(), right.columns());
    executor_.parallel(left.chunks(),
                       [&](std::int64_t k) { all_columns(left, k) = all_columns(qd, k) * c; });
    all.push_back({1, &left, &right, 0, 0, 0, 0});
    w.coefficients = {};
  }
  std::vector<Block> whole(2 * terms.size());
  for (std::size_t k = 0; k < terms.size(); ++k) {
    all[k].d = &all_rows(executor_, *terms[k].d, rows_, whole[2 * k]);
    all[k].x = &all_rows(executor_, *terms[k].x, rows_, whole[2 * k + 1]);
  }
  arrays_.add(*w.entries, all, 1 / static_cast<double>(rows_));
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
  out.value(gaussian_ != nullptr);
  if (gaussian_) engines::save(out, *gaussian_);
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
  if (in.value<bool>()) gaussian_ = load_entries(in);
}

}  // namespace tplimit::engines
