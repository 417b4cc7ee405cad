#include "engines/width_matrix.hpp"

#include <algorithm>
#include <cmath>

#include <Eigen/Cholesky>

#include "engines/cholesky.hpp"
#include "engines/dense_matrix.hpp"

namespace tplimit::engines {
namespace {

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

LazyMatrix::LazyMatrix(const Executor& executor, std::int64_t rows, const LazySettings& settings, NormalSpace& input, NormalSpace& output,
                       std::array<std::int64_t, 2> capacity)
    : executor_(executor), rows_(rows), settings_(settings) {
  for (const std::size_t s : {0u, 1u}) {
    const std::int64_t most = std::max<std::int64_t>(1, std::min(capacity[s], rows)), own_rows = share_of(executor.ranks(), rows).count;
    sides_[s].q = Panel(own_rows, most, settings.single);
    sides_[s].f = Panel(own_rows, most, settings.single);
  }
  sides_[0].fresh_space = &output;
  sides_[1].fresh_space = &input;
  input.watch(sides_[0].q);
  output.watch(sides_[1].q);
}

void LazyMatrix::check_rank(std::int64_t more) const {
  const std::int64_t columns = sides_[0].q.columns() + sides_[1].q.columns() + more;
  if (settings_.law == NormalLaw::kMatched && 2 * columns > rows_)
    throw EvaluationStop{"E4201", fmt::format("{} directions of one matrix are too many for {} particles", columns, rows_),
                         fmt::format("raise --particles to {} or more, or --rank-tol", std::int64_t{1} << static_cast<int>(std::ceil(std::log2(8.0 * static_cast<double>(columns)))))};
}

Matrix LazyMatrix::reveal(int side_index, const Block& x, std::uint32_t node, std::uint64_t dimension, const Panel* also, Matrix* also_x) {
  Side& side = sides_[static_cast<std::size_t>(side_index)];
  const Panel& opposite = sides_[static_cast<std::size_t>(1 - side_index)].q;
  const auto known = side.known.find(node);
  const std::int64_t r = side.q.columns(), p = x.columns(), chunks = x.chunks(), more = also ? also->columns() : 0, own = known == side.known.end() ? r + 1 : 0;
  const double m = static_cast<double>(rows_);
  // First sweep: <Q, x>, the norms of x, and <also, x>.
  const Matrix first = sum_over_chunks(executor_, chunks, own + more, p, [&](std::int64_t c, Matrix& part) {
                         const auto xc = all_columns(x, c);
                         if (own > 0) {
                           add_inner(part.topRows(r), side.q, c, xc);
                           part.row(r) += xc.colwise().squaredNorm();
                         }
                         if (more > 0) add_inner(part.bottomRows(more), *also, c, xc);
                       }) / m;
  executor_.count(2 * m * static_cast<double>((own + more) * p));
  if (also) *also_x = first.bottomRows(more);
  if (own == 0) return padded(known->second, r, p);
  const Eigen::VectorXd squared_norms = first.row(r).transpose();
  if (!squared_norms.allFinite()) throw EvaluationStop{"E4101", "a number is not finite", ""};
  Matrix a = first.topRows(r);

  // What is left of x after a first projection, known up to cancellation.  Where all of it is to be dropped, that is enough; a rest that
  // is small but kept needs a second projection ("twice is enough").
  const Eigen::VectorXd left = squared_norms - a.colwise().squaredNorm().transpose();
  const double tol2 = settings_.rank_tol * settings_.rank_tol;
  const double kCancelled = settings_.single ? 1e-5 : 1e-12;  // of the square: 4500 eps, 80 eps
  if (((left.array() + kCancelled * squared_norms.array() < tol2 * squared_norms.array()) || squared_norms.array() == 0).all()) {
    // What is below the noise of cancellation counts as 0.
    const Eigen::ArrayXd dropped = (squared_norms.array() == 0 || left.array() <= kCancelled * squared_norms.array()).select(0.0, left.array() / squared_norms.array());
    largest_dropped_ = std::max(largest_dropped_, std::sqrt(dropped.maxCoeff()));
    side.known.emplace(node, a);
    return a;
  }
  // eps |x| / |rest| of the rest is not orthogonal to Q after one projection; 1e-6: at most 2e-13.  A basis in single precision is
  // orthonormal to 1e-7 only, and errors would grow from step to step.
  const bool twice = r > 0 && (settings_.single || (left.array() < 1e-6 * squared_norms.array() && squared_norms.array() > 0).any());
  Block rest(x.rows(), p);
  const PanelWeights first_off(side.q, a, -1);
  Matrix second = sum_over_chunks(executor_, chunks, (twice ? r : 0) + p, p, [&](std::int64_t c, Matrix& part) {
                    auto own_rest = all_columns(rest, c);
                    own_rest = all_columns(x, c);
                    first_off.add_product_to(own_rest, c);
                    if (twice) add_inner(part.topRows(r), side.q, c, own_rest);
                    add_inner(part.bottomRows(p), own_rest, own_rest);
                  }) / m;
  executor_.count(2 * m * static_cast<double>((twice ? 2 * r + p : r + p) * p));
  Matrix gram = second.bottomRows(p);
  if (twice) {
    second.conservativeResize(r, Eigen::NoChange);
    gram.noalias() -= second.transpose() * second;
    a += second;
  }
  // As many directions as coordinates span everything: what seems left is noise.
  const OrderedFactor factor = factor_in_order(gram, squared_norms, settings_.rank_tol, rows_ - r);
  const auto fresh = static_cast<std::int64_t>(factor.kept.size());
  for (Eigen::Index j = 0; j < p; ++j) {
    const double dropped = gram(j, j) - factor.rows.row(j).squaredNorm();
    if (dropped > kCancelled * squared_norms(j) && !std::binary_search(factor.kept.begin(), factor.kept.end(), j)) largest_dropped_ = std::max(largest_dropped_, std::sqrt(dropped / squared_norms(j)));
  }
  if (fresh > 0) {
    check_rank(fresh);
    // New directions: the kept rests, orthonormalised; where that magnifies what is left of Q in them, projected once more.
    const Matrix lower = factor.lower();
    Matrix to_directions = Matrix::Zero(p, fresh);
    std::vector<std::uint64_t> dimensions;
    double magnified = 0;
    const Matrix inverse = inverse_transposed(lower);
    for (std::int64_t l = 0; l < fresh; ++l) {
      const Eigen::Index j = factor.kept[static_cast<std::size_t>(l)];
      to_directions.row(j) = inverse.row(l);
      dimensions.push_back(dimension + static_cast<std::uint64_t>(j));
      magnified = std::max(magnified, std::sqrt(twice ? gram(j, j) : squared_norms(j)) / lower(l, l));
    }
    const bool again = r > 0 && (settings_.single || magnified > 1e4);  // 2e-12 of a direction
    const PanelWeights second_off(side.q, twice ? Matrix(second * to_directions) : Matrix(), -1);
    Block q(x.rows(), fresh);
    Matrix third = sum_over_chunks(executor_, chunks, (again ? r : 0) + fresh, fresh, [&](std::int64_t c, Matrix& part) {
                     auto own_q = all_columns(q, c);
                     own_q.noalias() = all_columns(rest, c) * to_directions;
                     if (twice) second_off.add_product_to(own_q, c);
                     if (again) add_inner(part.topRows(r), side.q, c, own_q);
                     add_inner(part.bottomRows(fresh), own_q, own_q);
                   }) / m;
    executor_.count(2 * m * static_cast<double>(((twice ? r : 0) + (again ? 2 * r : 0) + 2 * p) * fresh));
    Matrix near_identity = third.bottomRows(fresh);
    // x = Q a + q rows' + dropped
    Matrix whole(r + fresh, p);
    whole.topRows(r) = a;
    if (again) {
      third.conservativeResize(r, Eigen::NoChange);
      near_identity.noalias() -= third.transpose() * third;
      const PanelWeights third_off(side.q, third, -1);
      executor_.parallel(chunks, [&](std::int64_t c) { third_off.add_product_to(all_columns(q, c), c); });
      whole.topRows(r).noalias() += third * factor.rows.transpose();
    }
    const Matrix second_lower = Eigen::LLT<Matrix>(near_identity).matrixL();
    whole.bottomRows(fresh).noalias() = second_lower.transpose() * factor.rows.transpose();
    multiply_columns(executor_, q, inverse_transposed(second_lower));
    side.q.append(executor_, q);
    a = std::move(whole);
    (void)side.fresh_space->draw(side.f, dimensions, &opposite);
  }
  side.known.emplace(node, a);
  return a;
}

void LazyMatrix::apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node, std::uint64_t dimension, Block& y) {
  Side &side = sides_[transposed ? 1 : 0], &other = sides_[transposed ? 0 : 1];
  // The correction term: products with the fresh normals of the opposite direction.
  Matrix on_opposite;
  const Matrix a = reveal(transposed ? 1 : 0, x, x_node, dimension, &other.f, &on_opposite);
  on_opposite *= w.scale;
  if (w.coefficients.size() > 0) {
    const Matrix& c = w.coefficients;
    if (transposed) on_opposite.topRows(c.cols()).noalias() += c.transpose() * a.topRows(c.rows());
    else on_opposite.topRows(c.rows()).noalias() += c * a.topRows(c.cols());
  }
  const Matrix on_fresh = w.scale * a;
  const PanelWeights of_fresh(side.f, on_fresh), of_opposite(other.q, on_opposite);
  executor_.count(2 * static_cast<double>(rows_ * (on_fresh.rows() + on_opposite.rows()) * x.columns()));
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
    if (w.coefficients.rows() < sides_[1].q.columns() || w.coefficients.cols() < sides_[0].q.columns())
      w.coefficients = padded(w.coefficients, sides_[1].q.columns(), sides_[0].q.columns());
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
    side.q = Panel::load(in);
    side.f = Panel::load(in);
    side.known.clear();
    for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
      const auto node = in.value<std::uint32_t>();
      side.known.emplace(node, in.matrix());
    }
  }
  largest_dropped_ = in.value<double>();
}

void save(Writer& out, const std::vector<MatrixVersion*>& versions) {
  constexpr std::uint64_t kNone = 0;
  std::unordered_map<const DenseEntries*, std::uint64_t> place;  // from 1, in the order of first use
  for (const MatrixVersion* w : versions) {
    out.value(w->scale);
    out.matrix(w->coefficients);
    if (!w->entries) {
      out.value(kNone);
      continue;
    }
    const auto [known, fresh] = place.emplace(w->entries.get(), place.size() + 1);
    out.value(known->second);
    if (fresh) w->entries->save(out);
  }
}

void load(Reader& in, const std::vector<MatrixVersion*>& versions) {
  std::vector<std::shared_ptr<DenseEntries>> entries;
  for (MatrixVersion* w : versions) {
    w->scale = in.value<double>();
    w->coefficients = in.matrix();
    const auto place = in.value<std::uint64_t>();
    if (place == 0) continue;
    if (place > entries.size()) entries.push_back(std::make_shared<DenseEntries>(DenseEntries::load(in)));
    w->entries = entries.at(place - 1);
  }
}

}  // namespace tplimit::engines
