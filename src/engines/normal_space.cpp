#include "engines/normal_space.hpp"

#include <cmath>

#include <Eigen/Cholesky>

#include "engines/cholesky.hpp"
#include "tplimit/math/normals.hpp"

namespace tplimit::engines {

void multiply_columns(const Executor& executor, Block& g, const Matrix& right) {
  executor.parallel(
      g.chunks(), [&](std::int64_t c) { all_columns(g, c) = (all_columns(g, c) * right).eval(); });
}

NormalSpace::NormalSpace(const Executor& executor, std::int64_t rows, NormalLaw law,
                         std::vector<std::uint64_t> keys)
    : executor_(executor),
      rows_(rows),
      law_(law),
      keys_(std::move(keys)),
      matching_(law == NormalLaw::kMatched) {
  if (!matching_) return;
  ones_ = Panel(share_of(executor_.ranks(), rows_).count, 1, false);
  Block ones(ones_.rows(), 1);
  for (std::int64_t c = 0; c < ones.chunks(); ++c)
    std::fill_n(ones.chunk(c), ones.chunk_rows(c), 1.0);
  ones_.append(executor_, ones);
  normals_.push_back({&ones_, 1, {}});
}

void NormalSpace::watch(const Panel& q) {
  single_ = single_ || q.single();
  if (matching_) directions_.push_back({&q, 0, {}});
}

std::int64_t NormalSpace::family_columns() const {
  std::int64_t count = 0;
  for (const Member& m : normals_) count += m.panel->columns();
  for (const Member& m : directions_) count += m.kept + m.panel->columns() - m.known;
  return count;
}

Block NormalSpace::fill(const std::vector<std::uint64_t>& dimensions) const {
  const Share own = share_of(executor_.ranks(), rows_);
  Block into(own.count, static_cast<std::int64_t>(dimensions.size()));
  executor_.parallel(into.chunks(), [&](std::int64_t c) {
    const std::int64_t begin = own.first + c * kChunkRows, end = begin + into.chunk_rows(c);
    for (std::size_t j = 0; j < dimensions.size(); ++j) {
      double* column = into.chunk(c) + static_cast<std::int64_t>(j) * into.ld();
      for (std::int64_t row = begin; row < end;) {
        const std::int64_t part = row / part_rows(), stop = std::min(end, (part + 1) * part_rows());
        const std::span<double> out(column + (row - begin), static_cast<std::size_t>(stop - row));
        const std::uint64_t key = mix_key(keys_[static_cast<std::size_t>(part)], dimensions[j]),
                            point = static_cast<std::uint64_t>(row - part * part_rows());
        if (law_ == NormalLaw::kMatched && dimensions[j] < kSobolDimensions)
          sobol_normals(dimensions[j], key, point, out);
        else
          plain_normals(key, point, out);
        row = stop;
      }
    }
  });
  return into;
}

/// Takes columns of Q that came since into the factor.  normals_q: <N, q>; directions_q: <Q, q> for
/// those columns of Q that matter, among which the new ones are `fresh`; column j of member m is in
/// its row row[m] + j.
void NormalSpace::extend(const Matrix& normals_q, const Matrix& directions_q,
                         const std::vector<Direction>& fresh,
                         const std::vector<std::int64_t>& row) {
  const auto row_of = [&](const Direction& d) { return row[d.member] + d.column; };
  const auto known = static_cast<Eigen::Index>(kept_.size()),
             count = static_cast<Eigen::Index>(fresh.size());
  Matrix v(known, count);
  for (Eigen::Index l = 0; l < known; ++l)
    v.row(l) = directions_q.row(row_of(kept_[static_cast<std::size_t>(l)]));
  std::int64_t first = 0;
  for (Member& m : normals_) {
    m.k.conservativeResizeLike(Matrix::Zero(m.panel->columns(), known));
    v.noalias() -= m.k.transpose() * normals_q.middleRows(first, m.panel->columns());
    first += m.panel->columns();
  }
  lower_.triangularView<Eigen::Lower>().solveInPlace(v);
  Matrix rest(count, count);
  for (Eigen::Index j = 0; j < count; ++j)
    rest.row(j) = directions_q.row(row_of(fresh[static_cast<std::size_t>(j)]));
  rest.noalias() -= normals_q.transpose() * normals_q;
  rest.noalias() -= v.transpose() * v;
  // 1e-5 (1e-3 in single precision): a smaller rest cannot be told from rounding noise twice over,
  // and would be divided by.
  const OrderedFactor factor =
      factor_in_order(rest, Eigen::VectorXd::Ones(count), single_ ? 1e-3 : 1e-5, count);
  const auto more = static_cast<Eigen::Index>(factor.kept.size());
  first = 0;
  for (Member& m : normals_) {
    m.k.conservativeResize(Eigen::NoChange, known + more);
    for (Eigen::Index l = 0; l < more; ++l)
      m.k.col(known + l) = normals_q.col(factor.kept[static_cast<std::size_t>(l)])
                               .segment(first, m.panel->columns());
    first += m.panel->columns();
  }
  lower_.conservativeResizeLike(Matrix::Zero(known + more, known + more));
  for (Eigen::Index l = 0; l < more; ++l) {
    const Eigen::Index j = factor.kept[static_cast<std::size_t>(l)];
    lower_.row(known + l).head(known) = v.col(j).transpose();
    kept_.push_back(fresh[static_cast<std::size_t>(j)]);
    ++directions_[kept_.back().member].kept;
  }
  lower_.bottomRightCorner(more, more) = factor.lower;
  for (Member& m : directions_) m.known = m.panel->columns();
}

/// Makes the columns orthogonal to all of N and Q, and orthonormal.  False: do it again.
bool NormalSpace::project(Block& g) {
  // One sweep for <N, .> and <Q, .> of g and of those columns q of Q that the factor does not know
  // yet.
  std::vector<std::int64_t> own_first, row;
  std::vector<Direction> unknown;
  std::int64_t normals = 0, rows = 0;
  for (const Member& m : normals_) normals += m.panel->columns();
  for (std::size_t d = 0; d < directions_.size(); ++d) {
    const Member& m = directions_[d];
    own_first.push_back(std::ssize(unknown));
    row.push_back(rows - m.first());
    rows += m.panel->columns() - m.first();
    for (std::int64_t j = m.known; j < m.panel->columns(); ++j) unknown.push_back({d, j});
  }
  rows += normals;
  const std::int64_t fresh = std::ssize(unknown);
  const std::int64_t count = g.columns(), columns = fresh + count, ld = g.ld();
  Matrix products =
      sum_over_chunks(
          executor_, g.chunks(), rows, columns,
          [&](std::int64_t c, Matrix& part) {
            const Buffer copy(fresh > 0 ? columns * ld : 0);
            double* right = fresh > 0 ? copy.data() : g.chunk(c);
            if (fresh > 0) {
              for (std::size_t d = 0; d < directions_.size(); ++d)
                directions_[d].panel->read(c, directions_[d].known,
                                           directions_[d].panel->columns() - directions_[d].known,
                                           right + own_first[d] * ld);
              std::copy_n(g.chunk(c), count * ld, right + fresh * ld);
            }
            const auto right_columns = [&](std::int64_t first, std::int64_t many) {
              return ChunkMap(right + first * ld, g.chunk_rows(c), many, Eigen::OuterStride<>(ld));
            };
            std::int64_t at = 0;
            for (const Member& m : normals_) {
              add_inner(part.middleRows(at, m.panel->columns()), *m.panel, c,
                        right_columns(0, columns));
              at += m.panel->columns();
            }
            for (std::size_t d = 0; d < directions_.size(); ++d) {
              // A basis is orthonormal: its products with its own new columns are known.
              const Member& m = directions_[d];
              const std::int64_t size = m.panel->columns() - m.first(), begin = own_first[d],
                                 end = begin + m.panel->columns() - m.known;
              for (const auto& [from, many] :
                   {std::pair(std::int64_t{0}, begin), std::pair(end, columns - end)}) {
                if (m.first() == 0)
                  add_inner(part.block(at, from, size, many), *m.panel, c,
                            right_columns(from, many));
                else  // new columns alone
                  add_inner(part.block(at, from, size, many), right_columns(begin, size),
                            right_columns(from, many));
              }
              at += size;
            }
          }) /
      static_cast<double>(rows_);
  executor_.count(2 * static_cast<double>(rows_ * (rows * (columns + count) + count * count)));
  if (fresh > 0) {
    for (std::int64_t j = 0; j < fresh; ++j) {
      const Direction& d = unknown[static_cast<std::size_t>(j)];
      products(normals + row[d.member] + d.column, j) = 1;
    }
    extend(products.topLeftCorner(normals, fresh), products.bottomLeftCorner(rows - normals, fresh),
           unknown, row);
  }
  // With n = <N, g> and u = <Q, g>: <R, g> = L^-1 (u - K' n), and N n + R <R, g> is to be taken
  // off.
  Matrix on_normals = products.topRightCorner(normals, count);
  std::vector<Matrix> on_directions(directions_.size());
  // Twice is enough (Kahan), and once where little was taken off: fresh normals are nearly
  // orthogonal to what is there, and what cancels is no more than what was there.  Unless
  // coefficients of Q are large, as where Q is nearly in the span of N.
  constexpr double kLittle = 0.25, kLarge = 10;
  bool done = !single_ && on_normals.colwise().squaredNorm().maxCoeff() < kLittle;
  if (!kept_.empty()) {
    Matrix t(static_cast<Eigen::Index>(kept_.size()), count);
    for (std::size_t l = 0; l < kept_.size(); ++l)
      t.row(static_cast<Eigen::Index>(l)) =
          products.row(normals + row[kept_[l].member] + kept_[l].column).tail(count);
    std::int64_t at = 0;
    for (const Member& m : normals_) {
      if (m.k.rows() > 0) t.noalias() -= m.k.transpose() * on_normals.middleRows(at, m.k.rows());
      at += m.panel->columns();
    }
    lower_.triangularView<Eigen::Lower>().solveInPlace(t);
    done = done &&
           (on_normals.colwise().squaredNorm() + t.colwise().squaredNorm()).maxCoeff() < kLittle;
    lower_.triangularView<Eigen::Lower>().adjoint().solveInPlace(t);
    done = done && t.cwiseAbs().maxCoeff() < kLarge;
    at = 0;
    for (const Member& m : normals_) {
      if (m.k.rows() > 0) on_normals.middleRows(at, m.k.rows()).noalias() -= m.k * t;
      at += m.panel->columns();
    }
    for (std::size_t l = 0; l < kept_.size(); ++l) {
      Matrix& own = on_directions[kept_[l].member];
      if (own.size() == 0) own = Matrix::Zero(directions_[kept_[l].member].panel->columns(), count);
      own.row(kept_[l].column) = t.row(static_cast<Eigen::Index>(l));
    }
  }
  std::vector<PanelWeights> off;
  std::int64_t at = 0;
  for (const Member& m : normals_) {
    off.emplace_back(*m.panel, on_normals.middleRows(at, m.panel->columns()), -1);
    at += m.panel->columns();
  }
  for (std::size_t d = 0; d < directions_.size(); ++d)
    if (on_directions[d].size() > 0) off.emplace_back(*directions_[d].panel, on_directions[d], -1);
  const Matrix gram = sum_over_chunks(executor_, g.chunks(), count, count,
                                      [&](std::int64_t c, Matrix& part) {
                                        const auto own = all_columns(g, c);
                                        for (const PanelWeights& w : off) w.add_product_to(own, c);
                                        add_inner(part, own, own);
                                      }) /
                      static_cast<double>(rows_);
  multiply_columns(executor_, g,
                   Eigen::LLT<Matrix>(gram).matrixU().solve(Matrix::Identity(count, count)));
  return done;
}

void NormalSpace::project_off(Block& g, const Panel& q) const {
  if (q.columns() == 0) return;
  const Matrix w = sum_over_chunks(executor_, g.chunks(), q.columns(), g.columns(),
                                   [&](std::int64_t c, Matrix& part) {
                                     add_inner(part, q, c, all_columns(g, c));
                                   }) /
                   static_cast<double>(rows_);
  const PanelWeights off(q, w, -1);
  executor_.parallel(g.chunks(), [&](std::int64_t c) { off.add_product_to(all_columns(g, c), c); });
}

Block NormalSpace::draw(Panel& into, const std::vector<std::uint64_t>& dimensions,
                        const Panel* opposite) {
  Block g = fill(dimensions);
  if (matching_ &&
      2 * (family_columns() + g.columns()) >
          part_rows()) {  // the same with joined particles, for the bias to be of one kind
    matching_ = false;
    normals_.clear();
    directions_.clear();
    kept_.clear();
  }
  if (!matching_) {
    if (opposite) project_off(g, *opposite);
  } else if (!dimensions.empty()) {
    if (!project(g)) (void)project(g);
    if (std::none_of(normals_.begin(), normals_.end(),
                     [&](const Member& m) { return m.panel == &into; }))
      normals_.push_back({&into, 0, {}});
  }
  into.append(executor_, g);
  return g;
}

void NormalSpace::save(Writer& out, const std::vector<const Panel*>& panels) const {
  out.value(matching_);
  for (const auto* members : {&normals_, &directions_}) {
    out.value<std::uint64_t>(members->size());
    for (const Member& m : *members) {
      const auto place = std::find(panels.begin(), panels.end(), m.panel);
      TPLIMIT_CHECK(place != panels.end(), "all panels of a space are known");
      out.value<std::uint64_t>(static_cast<std::uint64_t>(place - panels.begin()));
      out.value(m.known);
      out.matrix(m.k);
    }
  }
  out.value<std::uint64_t>(kept_.size());
  for (const Direction& k : kept_) {
    out.value<std::uint64_t>(k.member);
    out.value(k.column);
  }
  out.matrix(lower_);
}

void NormalSpace::load(Reader& in, const std::vector<const Panel*>& panels) {
  matching_ = in.value<bool>();
  for (auto* members : {&normals_, &directions_}) {
    members->clear();
    for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
      Member m{panels.at(in.value<std::uint64_t>()), 0, {}};
      m.known = in.value<std::int64_t>();
      m.k = in.matrix();
      members->push_back(std::move(m));
    }
  }
  kept_.clear();
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
    const auto member = in.value<std::uint64_t>();
    kept_.push_back({member, in.value<std::int64_t>()});
    ++directions_.at(member).kept;
  }
  lower_ = in.matrix();
}

}  // namespace tplimit::engines
