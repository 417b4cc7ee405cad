#include "moments/covariance_store.hpp"

#include <algorithm>
#include <cmath>

namespace tplimit::moments {

using namespace ir;

int CovarianceStore::add_family(GaussianFamily family) {
  families_.push_back(std::move(family));
  return families() - 1;
}

/// Drops blocks and covariances that no live value and no family needs.
void CovarianceStore::collect(const std::vector<const Field*>& fields) {
  std::vector<bool> live(blocks_.size(), false);
  const auto mark = [&](const Field* x) {
    if (!x) return;
    for (const Term& t : x->terms) {
      for (const Factor& f : t.factors) live[at(f.block)] = true;
      if (t.sum) live[at(t.sum->block)] = true;
      for (const FormPower& p : t.forms)
        for (const int q : p.form)
          for (const QuadraticForm::Square& s : form(q).squares) live[at(s.block)] = true;
    }
  };
  for (const Field* x : fields) mark(x);
  for (const GaussianFamily& f : families_) mark(f.x.get());
  for (std::size_t i = 0; i < live.size(); ++i)
    if (!live[i]) blocks_[i] = nullptr;
  std::erase_if(covariances_, [&](const auto& c) {
    return !live[at(c.first.first)] || !live[at(c.first.second)];
  });
  std::erase_if(pair_covariances_, [&](const auto& c) {
    return !live[at(c.first.first)] || !live[at(c.first.second)];
  });
  std::erase_if(variances_, [&](const auto& v) { return !live[at(v.first)]; });
  live_ = static_cast<std::size_t>(std::count(live.begin(), live.end(), true));
  sweep_at_ = std::max<std::size_t>(256, 2 * live_);
}

void CovarianceStore::drop_blocks_from(int first) {
  for (std::size_t p = at(first); p < blocks_.size(); ++p)
    if (blocks_[p]) {
      blocks_[p] = nullptr;
      --live_;
    }
  const auto later = [first](const auto& c) {
    return c.first.first >= first || c.first.second >= first;
  };
  std::erase_if(covariances_, later);
  std::erase_if(pair_covariances_, later);
  variances_.erase(variances_.lower_bound(first), variances_.end());
}

int CovarianceStore::add_form(QuadraticForm form) {
  const auto [known, fresh] =
      form_numbers_.try_emplace(std::move(form), static_cast<int>(forms_.size()));
  if (fresh) forms_.push_back(&known->first);
  return known->second;
}

int CovarianceStore::insert(GaussianBlock block) {
  blocks_.push_back(std::make_shared<const GaussianBlock>(std::move(block)));
  ++live_;
  return static_cast<int>(blocks_.size() - 1);
}

/// Families of different matrices, or of a matrix and its transpose, are independent.
bool CovarianceStore::related_families(int f, int g) const {
  if (f == g) return true;
  const GaussianFamily &a = families_[at(f)], &b = families_[at(g)];
  return a.matrix >= 0 && a.matrix == b.matrix && a.transposed == b.transposed;
}

bool CovarianceStore::related(int p, int q) const {
  for (const LinearPart& a : block(p).parts)
    for (const LinearPart& b : block(q).parts)
      if (related_families(a.family, b.family)) return true;
  return false;
}

/// Whether some s_i and some t_j are correlated: of jointly Gaussian variables, those that are not
/// are independent.
bool CovarianceStore::dependent(const Factor& s, int rows, const Factor& t, int columns) {
  if (!related(s.block, t.block)) return false;
  if (!covariances_.contains({s.block, t.block})) {  // as far as that takes no matrix of numbers
    const GaussianBlock &x = block(s.block), &y = block(t.block);
    for (const LinearPart& a : x.parts)
      for (const LinearPart& b : y.parts)
        if (related_families(a.family, b.family) && family_covariance(a.family, b.family).pairs)
          return true;
    if (x.parts.size() == 1 && y.parts.size() == 1 && families_[at(x.parts[0].family)].matrix < 0 &&
        !x.parts[0].selection() && !y.parts[0].selection()) {
      for (int j = 0; j < columns; ++j)
        for (int i = 0; i < rows; ++i)
          if (x.parts[0].dense.row(s.column(i)).dot(y.parts[0].dense.row(t.column(j))) != 0)
            return true;
      return false;
    }
  }
  const auto c = covariance(s.block, t.block).value;
  if (!c) return false;
  for (int j = 0; j < columns; ++j)
    for (int i = 0; i < rows; ++i)
      if ((*c)(s.column(i), t.column(j)) != 0) return true;
  return false;
}

/// Whether s_i and t_i are correlated.
bool CovarianceStore::dependent_at(const Factor& s, const Factor& t, int i) {
  if (!related(s.block, t.block)) return false;
  const auto c = covariance(s.block, t.block).value;
  return c && (*c)(s.column(i), t.column(i)) != 0;
}

bool CovarianceStore::dependent_somewhere(const Factor& s, const Factor& t, int rows) {
  for (int i = 0; i < rows; ++i)
    if (dependent_at(s, t, i)) return true;
  return false;
}

/// Whether the Gaussian behind column i has variance 0.  What holds almost everywhere need not hold
/// at one point.
bool CovarianceStore::is_constant(const Factor& f, int i) {
  if (f.f == FunctionTable::kIdentity) return false;
  const Variances& v = variances(f.block);
  const Eigen::Index row = f.column(i);
  if (v.resolution.size() > 0 && v.value(row) <= v.resolution(row) * v.resolution(row)) {
    // Zero or not: the same for what is continuous, but not across a jump.
    const double mean = block(f.block).mean.size() > 0 ? block(f.block).mean(row) : 0.0,
                 near = v.resolution(row), far = near / std::sqrt(kCancelled);
    const std::array<double, 5> x{mean, mean - near, mean + near, mean - far, mean + far};
    std::array<double, 5> y{};
    functions_.evaluate(f.f, 5, x.data(), y.data());
    constexpr double kContinuous = 1e-4;
    const double size = std::max({std::abs(y[0]), std::abs(y[3]), std::abs(y[4])});
    if (std::max(std::abs(y[1] - y[0]), std::abs(y[2] - y[0])) > kContinuous * size)
      throw Unknown{"a function that jumps where its argument's variance is 0 up to rounding", {}};
  }
  return v.value(row) == 0;
}

double CovarianceStore::value_at_mean(const Factor& f, int i) const {
  const GaussianBlock& affine = block(f.block);
  const double mean = affine.mean.size() > 0 ? affine.mean(f.column(i)) : 0.0;
  double out = 0;
  functions_.evaluate(f.f, 1, &mean, &out);
  return out;
}

/// Cov(hatZ^{Wx}, hatZ^{Wy}) = E Z^x Z^y, 0 between families of different matrices or of W and W'
/// (docs/theory.md, "The limit of a Tensor Program").  The scale of W stands in MatrixVersion.
/// Moments that may come as pairs stay pairs: only these carry the gap 1 - |rho| that kinked
/// functions need near correlations +-1 (docs/theory.md, "Moments without sampling").
Covariance& CovarianceStore::family_covariance(int f, int g) {
  const auto known = family_covariances_.find({f, g});
  if (known != family_covariances_.end()) return known->second;
  Covariance out;
  const GaussianFamily a = families_[at(f)], b = families_[at(g)];
  if (a.matrix < 0) {
    out.identity = f == g;
  } else if (a.matrix == b.matrix && a.transposed == b.transposed) {
    if (const auto other = family_covariances_.find({g, f}); other != family_covariances_.end()) {
      out = settled(other->second);
      out.value = std::make_shared<const Matrix>(out.value->transpose());
      out.pairs = nullptr;
    } else {
      Moment m = moments_->cross(*a.x, *b.x, true);
      if (m.pairs && !m.pairs->left() && f != g)
        if (auto left = side(f), right = side(g); left && right)
          m.pairs = PairMatrix::with_sides(m.pairs, left, right);
      out.method = m.method;
      if (m.pairs && m.pairs->left() && (f != g || m.pairs->symmetric())) {
        out.pairs = m.pairs;
      } else {
        m = settled(std::move(m));
        if (f == g) context_.symmetrise(m.value);
        const double size = m.value.cwiseAbs().maxCoeff();
        out.relative = size > 0 ? m.error / size : 0;
        out.value = std::make_shared<const Matrix>(std::move(m.value));
      }
    }
  }
  return family_covariances_.emplace(std::pair{f, g}, std::move(out)).first->second;
}

/// The moments of the members of a family with themselves.
std::shared_ptr<const PairSide> CovarianceStore::side(int f) {
  const Covariance& c = family_covariance(f, f);
  if (c.pairs) return c.pairs->left();
  return c.value ? PairMatrix::dense(
                       c.value, context_.carried(c.relative) * c.value->cwiseAbs().maxCoeff(), true)
                       ->left()
                 : nullptr;
}

const Covariance& CovarianceStore::settled(Covariance& c) {
  if (c.value || !c.pairs) return c;
  Moment m = settled({{}, 0, c.method, c.pairs});
  const double size = m.value.cwiseAbs().maxCoeff();
  c.relative = size > 0 ? m.error / size : 0;
  c.value = std::make_shared<const Matrix>(std::move(m.value));
  return c;
}

Moment CovarianceStore::settled(Moment m) {
  if (!m.pairs) return m;
  m.value.resize(m.pairs->rows(), m.pairs->columns());
  std::array<PairMatrix::Target, 1> target{{{m.pairs, m.value.data()}}};
  context_.note(PairMatrix::evaluate(target, context_.executor, context_.disturbance));
  m.error = m.method == MomentMethod::kExact ? 0 : context_.carried(target[0].largest_error);
  m.pairs = nullptr;
  return m;
}

/// A moment as pairs; one row or column stands for all.  same: of the same variables on both sides.
Pairs CovarianceStore::as_pairs(const Moment& m, int rows, int columns, bool same) const {
  if (m.pairs) return m.pairs;
  if (m.value.rows() == rows && m.value.cols() == columns)
    return PairMatrix::dense(std::make_shared<const Matrix>(m.value), context_.carried(m.error),
                             same);
  const Eigen::VectorXd ones_left = Eigen::VectorXd::Ones(rows),
                        ones_right = Eigen::VectorXd::Ones(columns);
  if (m.value.size() == 1 && same && m.value(0, 0) >= 0) {
    const Eigen::VectorXd root = std::sqrt(m.value(0, 0)) * ones_left;
    return PairMatrix::outer(root, root, context_.carried(m.error), true);
  }
  const Pairs out = m.value.cols() == 1
                        ? PairMatrix::outer(m.value.rows() == 1 ? m.value(0, 0) * ones_left
                                                                : Eigen::VectorXd(m.value.col(0)),
                                            ones_right, context_.carried(m.error), false)
                        : PairMatrix::outer(ones_left, m.value.row(0).transpose(),
                                            context_.carried(m.error), false);
  return PairMatrix::with_sides(out, nullptr, nullptr);
}

/// The covariance of two blocks as pairs, as far as that takes no numbers.
const PairCovariance& CovarianceStore::pair_covariance(int p, int q) {
  if (const auto known = pair_covariances_.find({p, q}); known != pair_covariances_.end())
    return known->second;
  const auto find = [&]() -> PairCovariance {
    PairCovariance out;
    const GaussianBlock &x = block(p), &y = block(q);
    std::vector<int> terms_of_x(x.parts.size()), terms_of_y(y.parts.size());
    for (std::size_t k = 0; k < x.parts.size(); ++k)
      for (std::size_t l = 0; l < y.parts.size(); ++l) {
        const LinearPart &a = x.parts[k], &b = y.parts[l];
        if (!related_families(a.family, b.family)) continue;
        const Covariance& c = family_covariance(a.family, b.family);
        if (!c.identity && !c.value && !c.pairs) continue;
        if (p == q && k != l) return {};  // their sum is symmetric, they are not
        out.method = weaker(out.method, c.method);
        const auto one_member = [](const LinearPart& s) {
          return s.selection() && std::all_of(s.index.begin(), s.index.end(),
                                              [&](int i) { return i == s.index[0]; });
        };
        Pairs own;
        if (c.identity && !a.selection() && !b.selection()) {
          own = PairMatrix::gram(a.dense, p == q ? Matrix() : b.dense);
        } else if (c.identity && one_member(a) && one_member(b)) {
          if (a.index[0] != b.index[0]) continue;
          own = PairMatrix::outer(a.scale, b.scale, 0, p == q);
        } else if (c.pairs && a.selection() && b.selection()) {
          const double s = a.scale(0), t = b.scale(0);
          const Pairs members = PairMatrix::selected(c.pairs, a.index, b.index);
          if ((a.scale.array() == s).all() && (b.scale.array() == t).all())
            own = PairMatrix::scaled(members, s, t);
          else
            own = PairMatrix::product(PairMatrix::outer(a.scale, b.scale, 0, p == q), members);
        } else {
          return {};
        }
        out.pairs = out.pairs ? PairMatrix::sum(out.pairs, own, 1) : own;
        ++terms_of_x[k];
        ++terms_of_y[l];
      }
    // A sum has the sides of its terms: the variances of the blocks, where every part stands in one
    // term, and parts of one block are independent.
    const auto whole = [&](int own, const std::vector<int>& terms) {
      return std::all_of(terms.begin(), terms.end(), [](int count) { return count == 1; }) &&
             (terms.size() == 1 || pair_covariance(own, own).pairs);
    };
    if (out.pairs && p != q && !(whole(p, terms_of_x) && whole(q, terms_of_y)))
      out.pairs = PairMatrix::with_sides(out.pairs, nullptr, nullptr);
    return out;
  };
  PairCovariance out = find();
  return pair_covariances_.emplace(std::pair{p, q}, std::move(out)).first->second;
}

/// The covariances behind two factors, with sides.
PairCovariance CovarianceStore::pairs_of(const Factor& s, int rows, const Factor& t, int columns) {
  const auto map = [](const Factor& f, int own) {
    std::vector<int> index;
    for (int i = 0; i < own; ++i) index.push_back(f.column(i));
    return index;
  };
  const bool same = s.block == t.block && same_columns(s.columns, t.columns);
  PairCovariance out = pair_covariance(s.block, t.block);
  if (out.pairs) {
    out.pairs = PairMatrix::selected(out.pairs, map(s, rows), map(t, columns));
  } else {
    const Covariance& c = covariance(s.block, t.block);
    out.method = c.method;
    if (c.value)
      out.pairs =
          PairMatrix::dense(c.value, context_.carried(c.relative) * c.value->cwiseAbs().maxCoeff(),
                            same, map(s, rows), map(t, columns));
    else
      out.pairs =
          PairMatrix::outer(Eigen::VectorXd::Zero(rows), Eigen::VectorXd::Zero(columns), 0, false);
  }
  if (!out.pairs->left() || !out.pairs->right()) {
    const auto side_of = [&](const Factor& f, int own) {
      const Variances& v = variances(f.block);
      out.method = weaker(out.method, v.method);
      auto found = std::make_shared<PairSide>(at(own));
      for (int i = 0; i < own; ++i) {
        found->variance[at(i)] = v.value(f.column(i));
        found->root[at(i)] = std::sqrt(std::max(0.0, found->variance[at(i)]));
        found->error[at(i)] = context_.carried(v.relative);
      }
      return found;
    };
    out.pairs = PairMatrix::with_sides(out.pairs, side_of(s, rows), side_of(t, columns));
  }
  for (const auto& [own, size] :
       {std::pair{out.pairs->left(), rows}, std::pair{out.pairs->right(), columns}})
    for (int i = 0; i < size; ++i)
      if (const double v = own->variance[at(i)]; !(v >= 0 && std::isfinite(v)))
        throw Unknown{not_a_covariance({v, v, v}), {}};
  return out;
}

/// a C.
Matrix CovarianceStore::times_covariance(const LinearPart& a, const Covariance& c, int rows,
                                         int size) {
  if (!a.selection()) return c.identity ? a.dense : Matrix(a.dense * *c.value);
  Matrix out = Matrix::Zero(rows, size);
  for (int i = 0; i < rows; ++i) {
    if (c.identity)
      out(i, a.index[at(i)]) = a.scale(i);
    else
      out.row(i) = a.scale(i) * c.value->row(a.index[at(i)]);
  }
  return out;
}

/// The diagonal of covariance(p, p).
const Variances& CovarianceStore::variances(int p) {
  if (const auto known = variances_.find(p); known != variances_.end()) return known->second;
  const GaussianBlock& x = block(p);
  Variances out{Eigen::VectorXd::Zero(x.rows)};
  context_.charge(kTermOperations + 20.0 * static_cast<double>(x.parts.size() * x.parts.size()));
  if (const PairCovariance& own = pair_covariance(p, p); own.pairs && own.pairs->left()) {
    const PairSide& side = *own.pairs->left();
    for (int i = 0; i < x.rows; ++i) {
      out.value(i) = side.variance[at(i)];
      if (own.method != MomentMethod::kExact)
        out.relative = std::max(out.relative, side.error[at(i)]);
    }
    out.method = own.method;
  } else {
    for (const LinearPart& a : x.parts)
      for (const LinearPart& b : x.parts) {
        if (!related_families(a.family, b.family)) continue;
        const Covariance& c = settled(family_covariance(a.family, b.family));
        if (!c.identity && !c.value) continue;
        out.relative = std::max(out.relative, c.relative);
        out.method = weaker(out.method, c.method);
        if (a.selection() && b.selection()) {
          for (int i = 0; i < x.rows; ++i) {
            const int k = a.index[at(i)], l = b.index[at(i)];
            out.value(i) +=
                a.scale(i) * b.scale(i) * (c.identity ? (k == l ? 1.0 : 0.0) : (*c.value)(k, l));
          }
        } else if (c.identity && !a.selection() && !b.selection()) {
          out.value += a.dense.cwiseProduct(b.dense).rowwise().sum();
        } else {
          context_.charge(0.25 * x.rows * families_[at(b.family)].size *
                          (a.selection() ? 1 : families_[at(a.family)].size));
          const Matrix left = times_covariance(a, c, x.rows, families_[at(b.family)].size);
          if (b.selection())
            for (int i = 0; i < x.rows; ++i) out.value(i) += b.scale(i) * left(i, b.index[at(i)]);
          else
            out.value += left.cwiseProduct(b.dense).rowwise().sum();
        }
      }
  }
  // The square of a difference of products with a matrix is a sum that cancels: known up to the
  // errors of its terms.
  Eigen::VectorXd size = Eigen::VectorXd::Zero(x.rows), count = size;
  double relative = 0;
  for (const LinearPart& a : x.parts) {
    if (families_[at(a.family)].matrix < 0) continue;
    const std::shared_ptr<const PairSide> members = side(a.family);
    if (!members) continue;
    const Eigen::VectorXd deviations =
        Eigen::Map<const Eigen::VectorXd>(members->root.data(), families_[at(a.family)].size);
    const Covariance& own = family_covariance(a.family, a.family);
    relative = std::max(
        relative,
        own.value ? own.relative : *std::max_element(members->error.begin(), members->error.end()));
    for (int i = 0; i < x.rows; ++i) {
      if (a.selection()) {
        size(i) += std::abs(a.scale(i)) * deviations(a.index[at(i)]);
        count(i) += a.scale(i) != 0;
      } else {
        size(i) += a.dense.row(i).cwiseAbs().dot(deviations);
        count(i) += static_cast<double>((a.dense.row(i).array() != 0).count());
      }
    }
  }
  if ((count.array() > 1).any()) {
    out.resolution = (count.array() > 1).select(size * std::sqrt(kCancelled + 2 * relative), 0.0);
    for (int i = 0; i < x.rows; ++i)
      if (out.value(i) < 0 && out.value(i) > -out.resolution(i) * out.resolution(i))
        out.value(i) = 0;
  }
  return variances_.emplace(p, std::move(out)).first->second;
}

/// sum_{k,l} L_k Cov(G_k, H_l) M_l' over the parts of both blocks.
const Covariance& CovarianceStore::covariance(int p, int q) {
  if (const auto known = covariances_.find({p, q}); known != covariances_.end())
    return known->second;
  Covariance out;
  Matrix sum;
  const GaussianBlock &x = block(p), &y = block(q);
  context_.charge(kTermOperations + 20.0 * static_cast<double>(x.parts.size() * y.parts.size()));
  bool open = false;  // a family's covariance has no numbers yet
  for (const LinearPart& a : x.parts)
    for (const LinearPart& b : y.parts) {
      if (!related_families(a.family, b.family)) continue;
      const Covariance& c = family_covariance(a.family, b.family);
      open = open || (c.pairs && !c.value);
    }
  if (const PairCovariance& own = open ? pair_covariance(p, q) : PairCovariance{}; own.pairs) {
    const Moment m = settled({{}, 0, own.method, own.pairs});
    const double size = m.value.cwiseAbs().maxCoeff();
    out.relative = size > 0 ? m.error / size : 0;
    out.method = own.method;
    out.value = std::make_shared<const Matrix>(m.value);
    return covariances_.emplace(std::pair{p, q}, std::move(out)).first->second;
  }
  for (const LinearPart& a : x.parts)
    for (const LinearPart& b : y.parts) {
      if (!related_families(a.family, b.family)) continue;
      const Covariance& c = settled(family_covariance(a.family, b.family));
      if (!c.identity && !c.value) continue;
      out.relative = std::max(out.relative, c.relative);
      out.method = weaker(out.method, c.method);
      const auto whole = [](const LinearPart& s) {
        for (std::size_t i = 0; i < s.index.size(); ++i)
          if (s.index[i] != static_cast<int>(i) || s.scale(static_cast<Eigen::Index>(i)) != 1)
            return false;
        return s.selection();
      };
      if (x.parts.size() == 1 && y.parts.size() == 1 && c.value && whole(a) && whole(b) &&
          c.value->rows() == x.rows && c.value->cols() == y.rows) {
        out.value = c.value;  // the matrix itself, no copy
        continue;
      }
      if (a.selection() && b.selection() && !c.identity) {
        context_.charge(2.0 * x.rows * y.rows);
        const bool first = sum.size() == 0;
        if (first) sum.resize(x.rows, y.rows);
        context_.each_column(x.rows, y.rows, [&](int j) {
          const double* from = c.value->col(b.index[at(j)]).data();
          double* to = sum.col(j).data();
          for (int i = 0; i < x.rows; ++i) {
            const double one = a.scale(i) * b.scale(j) * from[a.index[at(i)]];
            to[i] = first ? one : to[i] + one;
          }
        });
        continue;
      }
      const double size = families_[at(b.family)].size;
      context_.charge(c.identity
                          ? 0.25 * x.rows * y.rows * size
                          : 0.25 * x.rows * size *
                                ((a.selection() ? 1 : families_[at(a.family)].size) + y.rows));
      Matrix product(x.rows, y.rows);
      if (c.identity && !a.selection() && !b.selection()) {
        product.noalias() = a.dense * b.dense.transpose();
      } else {
        const Matrix left = times_covariance(a, c, x.rows, families_[at(b.family)].size);
        if (b.selection())
          for (int j = 0; j < y.rows; ++j) product.col(j) = b.scale(j) * left.col(b.index[at(j)]);
        else
          product.noalias() = left * b.dense.transpose();
      }
      if (sum.size() == 0)
        sum = std::move(product);
      else
        sum += product;
    }
  if (!out.value && sum.size() > 0) out.value = std::make_shared<const Matrix>(std::move(sum));
  return covariances_.emplace(std::pair{p, q}, std::move(out)).first->second;
}

}  // namespace tplimit::moments
