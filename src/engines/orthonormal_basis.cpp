#include "engines/orthonormal_basis.hpp"

#include <cmath>

#include <Eigen/Cholesky>

#include "engines/cholesky.hpp"

namespace tplimit::engines {
namespace {

Matrix inverse_transposed(const Matrix& lower) {
  const auto n = lower.rows();
  return lower.transpose().triangularView<Eigen::Upper>().solve(Matrix::Identity(n, n));
}

double largest_norm(const Matrix& columns) {
  return columns.size() == 0 ? 0 : std::sqrt(columns.colwise().squaredNorm().maxCoeff());
}

}  // namespace

OrthonormalBasis::Extension OrthonormalBasis::extend(
    const Executor& executor, const Block& x, Matrix known, const Eigen::VectorXd& squared_norms,
    const std::function<void(std::int64_t)>& admit) {
  const std::int64_t p = x.columns(), chunks = x.chunks();
  const double m = static_cast<double>(rows_),
               defect_allowed = q_.single() ? kDefectSingle : kDefect;
  // Squares below are differences: of |x|^2 = 1 these are noise.  4500 eps; of floats 80 eps.
  const double noise = q_.single() ? 1e-5 : 1e-12;
  Extension out{std::move(known), {}, 0};
  std::vector<bool> kept(static_cast<std::size_t>(p), false);

  // rest = x - Q <Q, x>, and what that leaves of Q in it.
  Block rest(x.rows(), p);
  std::int64_t r = q_.columns();
  const auto subtract_and_measure = [&](const Block& from, const Panel& basis, const Matrix& a) {
    const PanelWeights off(basis, a, -1);
    executor.count(2 * m * static_cast<double>((a.rows() + r + p) * p));
    return Matrix(sum_over_chunks(executor, chunks, r + p, p,
                                  [&](std::int64_t c, Matrix& part) {
                                    auto own = all_columns(rest, c);
                                    if (&from != &rest) own = all_columns(from, c);
                                    off.add_product_to(own, c);
                                    add_inner(part.topRows(r), q_, c, own);
                                    add_inner(part.bottomRows(p), own, own);
                                  }) /
                  m);
  };
  Matrix products = subtract_and_measure(x, q_, out.coefficients);
  for (;;) {
    const Matrix left = products.topRows(r);  // <Q, rest>
    // The Gram matrix of (1 - Q Q') rest: a second projection, wherever it is needed.
    Matrix gram = products.bottomRows(p) - left.transpose() * left;
    for (Eigen::Index j = 0; j < p; ++j)
      if (kept[static_cast<std::size_t>(j)]) gram.row(j).setZero(), gram.col(j).setZero();
    // As many directions as coordinates span everything: what seems left is noise.
    const OrderedFactor factor = factor_in_order(gram, squared_norms, tol_, rows_ - r);
    const auto fresh = static_cast<std::int64_t>(factor.kept.size());
    for (const Eigen::Index j : factor.kept) kept[static_cast<std::size_t>(j)] = true;
    out.dropped = 0;
    for (Eigen::Index j = 0; j < p; ++j) {
      if (kept[static_cast<std::size_t>(j)]) continue;
      const double dropped = gram(j, j) - factor.rows.row(j).squaredNorm();
      if (dropped > noise * squared_norms(j))
        out.dropped = std::max(out.dropped, std::sqrt(dropped / squared_norms(j)));
    }
    if (fresh == 0) return out;
    admit(fresh);

    // New directions: the kept rests, orthonormalised, q = rest T - Q <Q, rest T>.
    const Matrix inverse = inverse_transposed(factor.lower);
    Matrix t = Matrix::Zero(p, fresh);
    for (std::int64_t l = 0; l < fresh; ++l) {
      const Eigen::Index j = factor.kept[static_cast<std::size_t>(l)];
      t.row(j) = inverse.row(l);
      out.fresh.push_back(j);
    }
    Matrix defect = left * t;
    const bool project = largest_norm(defect) > defect_allowed;
    // Rounding of the rests is magnified by T.
    const bool measure = r > 0 && 2e-16 * factor.magnified > defect_allowed;
    Block q(x.rows(), fresh);
    const auto project_and_measure = [&](bool first) {
      const bool off = !first || project;
      const PanelWeights weights(q_, off ? defect : Matrix(), -1);
      executor.count(2 * m *
                     static_cast<double>(
                         ((off ? r : 0) + (measure ? r : 0) + fresh + (first ? p : 0)) * fresh));
      Matrix sums = sum_over_chunks(executor, chunks, (measure ? r : 0) + fresh, fresh,
                                    [&](std::int64_t c, Matrix& part) {
                                      auto own = all_columns(q, c);
                                      if (first) own.noalias() = all_columns(rest, c) * t;
                                      if (off) weights.add_product_to(own, c);
                                      if (measure) add_inner(part.topRows(r), q_, c, own);
                                      add_inner(part.bottomRows(fresh), own, own);
                                    }) /
                    m;
      if (measure) defect = sums.topRows(r);
      return Matrix(sums.bottomRows(fresh));
    };
    Matrix near_identity = project_and_measure(true);
    // Each pass multiplies the defect by that of Q: the second pass is needed only where T is
    // large.
    for (int pass = 0; measure && pass < 3 && largest_norm(defect) > defect_allowed; ++pass)
      near_identity = project_and_measure(false);

    // q := q R^-1, and <q, x>: an inner product like all others, not what the factor remembers of
    // it.
    const Matrix to_orthonormal = inverse_transposed(Eigen::LLT<Matrix>(near_identity).matrixL());
    executor.count(2 * m * static_cast<double>((fresh + p) * fresh));
    const Matrix on_fresh = sum_over_chunks(executor, chunks, fresh, p,
                                            [&](std::int64_t c, Matrix& part) {
                                              auto own = all_columns(q, c);
                                              own = (own * to_orthonormal).eval();
                                              add_inner(part, own, all_columns(x, c));
                                            }) /
                            m;
    q_.append(executor, q);
    r += fresh;
    out.coefficients.conservativeResize(r, Eigen::NoChange);
    out.coefficients.bottomRows(fresh) = on_fresh;
    if (!factor.undecided) return out;
    // Where more than tol |x| may hide, look again: the same rests without the new directions.
    Panel added(x.rows(), fresh, false);
    added.append(executor, q);
    products = subtract_and_measure(rest, added, on_fresh);
  }
}

}  // namespace tplimit::engines
