#include "moments/algebra.hpp"

#include <algorithm>
#include <cmath>

#include "tplimit/support/overloaded.hpp"

/// Sums over many rows of one function, as training makes them: sum_s w_s f(g_s).  Blocks are
/// joined as a binary counter is incremented, so that every row is copied O(log) times; rows of
/// parallel direction become one.
namespace tplimit::moments {

using namespace ir;

namespace {
/// f(c x) = c^degree f(x) for c > 0.
std::optional<int> degree_of(const std::optional<Recognised>& f) {
  if (!f) return std::nullopt;
  return std::visit(overloaded{[](const TwoSlope&) { return std::optional<int>(1); },
                               [](const TwoStep&) { return std::optional<int>(0); },
                               [](const ReluPower& p) { return std::optional<int>(p.n); },
                               [](const auto&) { return std::optional<int>(); }},
                    f->g);
}

constexpr double kRounding = 1e-14;  ///< of 1 - rho^2
}  // namespace

/// The rows of a, and row s of b times factor[s] added to row[s]; row -1: left out.
int FieldAlgebra::stacked(int a, int b, const std::vector<int>& row,
                          const std::vector<double>& factor, int rows) {
  const GaussianBlock &x = store_.block(a), &y = store_.block(b);
  GaussianBlock out;
  out.rows = rows;
  if (x.mean.size() > 0 || y.mean.size() > 0) {
    out.mean = Eigen::VectorXd::Zero(rows);
    if (x.mean.size() > 0) out.mean.head(x.rows) = x.mean;
    for (int s = 0; s < y.rows && y.mean.size() > 0; ++s)
      if (row[at(s)] >= 0) out.mean(row[at(s)]) += factor[at(s)] * y.mean(s);
  }
  const auto part_of = [&](int family) -> Matrix& {
    for (LinearPart& p : out.parts)
      if (p.family == family) return p.dense;
    out.parts.push_back({family, {}, {}, Matrix::Zero(rows, store_.family(family).size)});
    return out.parts.back().dense;
  };
  for (const LinearPart& p : x.parts) {
    Matrix& dense = part_of(p.family);
    if (p.selection())
      for (int i = 0; i < x.rows; ++i) dense(i, p.index[at(i)]) += p.scale(i);
    else
      dense.topRows(x.rows) += p.dense;
  }
  for (const LinearPart& p : y.parts) {
    Matrix& dense = part_of(p.family);
    for (int s = 0; s < y.rows; ++s) {
      const int i = row[at(s)];
      if (i < 0) continue;
      if (p.selection())
        dense(i, p.index[at(s)]) += factor[at(s)] * p.scale(s);
      else
        dense.row(i) += factor[at(s)] * p.dense.row(s);
    }
  }
  return store_.insert(std::move(out));
}

/// Empty if the blocks are over different Gaussians.
std::optional<JoinedBlocks> FieldAlgebra::join(FunctionTable::Id f, int a, int b) {
  const auto families = [&](int p) {
    std::vector<int> out;
    for (const LinearPart& q : store_.block(p).parts) out.push_back(q.family);
    std::sort(out.begin(), out.end());
    return out;
  };
  if (families(a) != families(b)) return std::nullopt;
  const int old = store_.block(a).rows, fresh = store_.block(b).rows;
  const double tolerance = functions_.polynomial(f) ? 0 : merge_rows_;  // exact algebra stays exact
  JoinedBlocks out{a, std::vector<int>(at(fresh), -1), std::vector<double>(at(fresh), 1.0)};
  // Candidates by correlation (means have no direction: such rows must agree as they are).
  const bool centred = store_.block(a).mean.size() == 0 && store_.block(b).mean.size() == 0;
  const auto degree = centred ? degree_of(functions_.closed_form(f)) : std::nullopt;
  const Eigen::VectorXd va = store_.variances(a).value, vb = store_.variances(b).value;
  struct Candidate {
    int other;
    bool in_b;
    double ratio;
  };
  std::vector<std::optional<Candidate>> candidates(at(fresh));
  {
    const Covariance ab = store_.covariance(a, b), bb = store_.covariance(b, b);
    const double least = std::sqrt(std::max(0.0, 1 - tolerance * tolerance - kRounding));
    for (int s = 0; s < fresh; ++s) {
      double best = least;
      const auto look = [&](double c, double v, int other, bool in_b) {
        const double rho = v > 0 && vb(s) > 0 ? c / std::sqrt(v * vb(s)) : v == vb(s) ? 1.0 : 0.0;
        if (rho < best || (candidates[at(s)] && rho == best)) return;
        best = rho;
        candidates[at(s)] = Candidate{other, in_b, v > 0 ? std::sqrt(vb(s) / v) : 1.0};
      };
      for (int i = 0; i < old; ++i) look(ab.value ? (*ab.value)(i, s) : 0.0, va(i), i, false);
      for (int r = 0; r < s; ++r)
        if (!candidates[at(r)]) look(bb.value ? (*bb.value)(r, s) : 0.0, vb(r), r, true);
    }
    store_.forget_covariance(a, b);
  }
  // 1 - rho^2 is known to rounding only, so rho says nothing about angles below 1e-7: the distance
  // itself decides, the deviation of one row minus the multiple of the other.
  int rows = old;
  std::vector<int> position(at(fresh), -1);  // of rows that are kept
  for (int s = 0; s < fresh; ++s) {
    std::optional<double> distance;
    if (const auto& c = candidates[at(s)]; c && (!c->in_b || position[at(c->other)] >= 0) &&
                                           (degree || std::abs(c->ratio - 1) <= tolerance)) {
      const double ratio = degree ? c->ratio : 1.0;
      const auto row_of = [&](int affine, int k, double factor) {
        return Field{1,
                     {{{factor},
                       {{FunctionTable::kIdentity, affine,
                         std::make_shared<const std::vector<int>>(1, k)}}}}};
      };
      const Field other = row_of(c->in_b ? b : a, c->other, -ratio);
      Field difference = row_of(b, s, 1);
      difference.terms.push_back(other.terms[0]);
      const int d = block_of(difference);
      distance = std::sqrt(std::max(0.0, store_.variances(d).value(0)) / (vb(s) > 0 ? vb(s) : 1.0));
      if (store_.block(d).mean.size() > 0) *distance += std::abs(store_.block(d).mean(0));
      if (*distance <= tolerance) {
        out.row[at(s)] = c->in_b ? position[at(c->other)] : c->other;
        out.factor[at(s)] = degree ? std::pow(ratio, *degree) : 1.0;
        out.error = std::max(out.error, 2 * *distance);
        ++rows_merged_;
      }
    }
    if (out.row[at(s)] < 0) out.row[at(s)] = position[at(s)] = rows++;
  }
  if (rows > old) out.block = stacked(a, b, position, std::vector<double>(at(fresh), 1.0), rows);
  return out;
}

/// Terms c f(block) and sums over blocks become as few sums as a binary counter has digits.
void FieldAlgebra::join_sums(Field& x) {
  std::vector<Term> kept;
  std::map<FunctionTable::Id, std::vector<WeightedSum>> sums;
  for (const Term& t : x.terms) {
    if (t.sum && t.factors.empty() && t.forms.empty()) {
      WeightedSum s = *t.sum;
      if (t.coefficient != std::vector<double>{1.0}) {
        Matrix weights = *s.weights;
        for (int i = 0; i < x.columns; ++i) weights.row(i) *= t.at_column(i);
        s.weights = std::make_shared<const Matrix>(std::move(weights));
      }
      sums[s.f].push_back(std::move(s));
    } else if (t.plain() && t.factors.size() == 1 && !functions_.polynomial(t.factors[0].f)) {
      const Factor& f = t.factors[0];
      std::map<int, int> slot;
      for (int i = 0; i < x.columns; ++i)
        slot.try_emplace(f.column(i), static_cast<int>(slot.size()));
      Matrix weights = Matrix::Zero(x.columns, static_cast<Eigen::Index>(slot.size()));
      for (int i = 0; i < x.columns; ++i) weights(i, slot[f.column(i)]) = t.at_column(i);
      std::vector<int> used(slot.size());
      for (const auto& [row, k] : slot) used[at(k)] = row;
      sums[f.f].push_back({std::make_shared<const Matrix>(std::move(weights)), f.f,
                           block_of(remap(of_block(f.block), used))});
    } else {
      kept.push_back(t);
    }
  }
  for (auto& [f, all] : sums) {
    std::stable_sort(all.begin(), all.end(), [](const WeightedSum& a, const WeightedSum& b) {
      return a.rows() > b.rows();
    });
    std::vector<WeightedSum> stack;
    for (WeightedSum& next : all) {
      stack.push_back(std::move(next));
      while (stack.size() > 1 && stack[stack.size() - 2].rows() <= 2 * stack.back().rows()) {
        const WeightedSum &a = stack[stack.size() - 2], &b = stack.back();
        const auto joined = join(f, a.block, b.block);
        if (!joined) break;
        Matrix weights = Matrix::Zero(x.columns, store_.block(joined->block).rows);
        weights.leftCols(a.rows()) = *a.weights;
        for (int s = 0; s < b.rows(); ++s)
          weights.col(joined->row[at(s)]) += joined->factor[at(s)] * b.weights->col(s);
        x.relative += joined->error;
        stack.pop_back();
        stack.back() = {std::make_shared<const Matrix>(std::move(weights)), f, joined->block};
      }
    }
    for (WeightedSum& s : stack) kept.push_back({{1.0}, {}, std::move(s)});
  }
  x.terms = std::move(kept);
}

/// One more update c sum_p d_p x_p' / n; updates by linear d and one function of Gaussians x are
/// joined.
void FieldAlgebra::append(MatrixVersion& v, double c, const Field& d, const Field& x) {
  v.updates.push_back({c, std::make_shared<const Field>(d), std::make_shared<const Field>(x)});
  if (v.updates.size() <= kFewTerms) return;
  // (f, block of d with c and the coefficients of x, block behind x)
  const auto rows_of = [&](const MatrixVersion::Update& u) -> std::optional<std::array<int, 3>> {
    if (!linear(*u.d) || u.d->constant() || u.x->terms.size() != 1) return std::nullopt;
    const Term& t = u.x->terms[0];
    if (!t.plain() || t.factors.size() != 1) return std::nullopt;
    Field left = times(*u.d, constant(std::vector<double>(at(u.d->columns), u.c)));
    if (t.coefficient != std::vector<double>{1.0})
      left = times(left, Field{u.x->columns, {{t.coefficient, {}}}});
    const Factor& f = t.factors[0];
    return std::array{
        static_cast<int>(f.f), block_of(left),
        block_of({u.x->columns, {{{1.0}, {{FunctionTable::kIdentity, f.block, f.columns}}}}})};
  };
  while (v.updates.size() > 1) {
    const MatrixVersion::Update &a = v.updates[v.updates.size() - 2], &b = v.updates.back();
    if (a.d->columns > 2 * b.d->columns) return;
    const auto p = rows_of(a), q = rows_of(b);
    if (!p || !q || (*p)[0] != (*q)[0]) return;
    const auto joined = join((*p)[0], (*p)[2], (*q)[2]);
    if (!joined) return;
    Field left = of_block(
        stacked((*p)[1], (*q)[1], joined->row, joined->factor, store_.block(joined->block).rows));
    left.relative = std::max(a.d->relative, b.d->relative) + joined->error;
    left.method = weaker(a.d->method, b.d->method);
    Field right{store_.block(joined->block).rows,
                {{{1.0}, {{(*p)[0], joined->block, nullptr}}}},
                std::max(a.x->relative, b.x->relative),
                weaker(a.x->method, b.x->method)};
    v.updates.pop_back();
    v.updates.back() = {1.0, std::make_shared<const Field>(std::move(left)),
                        std::make_shared<const Field>(std::move(right))};
  }
}

}  // namespace tplimit::moments
