#include "moments/fields.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::moments {

using namespace ir;

namespace {
/// a += b; what cancels up to rounding is 0: a constant must not become a Gaussian of variance
/// 1e-32.
void accumulate(double& a, double b) {
  const double sum = a + b;
  a = std::abs(sum) <= kCancelled * std::max(std::abs(a), std::abs(b)) ? 0.0 : sum;
}
}  // namespace

MomentEngine::Field MomentEngine::operand(NodeId id) const {
  if (program_[id].type.width) return *fields_[id.value];
  const MomentValue& v = finite_[id.value];
  Field out = constant(v.value);
  out.method = v.method;
  for (std::size_t j = 0; j < v.value.size(); ++j)
    if (v.value[j] != 0)
      out.relative = std::max(out.relative, v.error_at(j) / std::abs(v.value[j]));
  return out;
}

MomentEngine::Field MomentEngine::constant(std::vector<double> values) const {
  const int columns = static_cast<int>(values.size());
  if (std::all_of(values.begin(), values.end(), [&](double x) { return x == values[0]; }))
    values.resize(1);
  if (values.size() == 1 && values[0] == 0) return {columns, {}};
  return {columns, {{std::move(values), {}}}};
}

MomentEngine::Field MomentEngine::of_affine(int affine) const {
  return {block(affine).rows, {{{1.0}, {{FunctionTable::kIdentity, affine, nullptr}}}}};
}

MomentEngine::Field MomentEngine::remap(const Field& x, const std::vector<int>& index) {
  const auto count = static_cast<int>(index.size());
  Field out{count, {}, x.relative, x.method};
  if (x.polynomials) {
    Polynomials columns;
    for (const int i : index) columns.push_back(i < 0 ? Sparse{} : (*x.polynomials)[at(i)]);
    out.polynomials = std::make_shared<const Polynomials>(std::move(columns));
    return out;
  }
  const bool zeros = std::find(index.begin(), index.end(), -1) != index.end();
  bool in_order = count == x.columns;
  for (std::size_t i = 0; i < index.size() && in_order; ++i)
    in_order = index[i] == static_cast<int>(i);
  if (in_order) return x;
  std::map<const std::vector<int>*, Columns> maps;  // factors that shared a map share the new one
  for (const Term& t : x.terms) {
    Term u;
    if (t.coefficient.size() == 1 && !zeros)
      u.coefficient = t.coefficient;
    else
      for (const int i : index) u.coefficient.push_back(i < 0 ? 0.0 : t.at_column(i));
    for (const Factor& f : t.factors) {
      Columns& columns = maps[f.columns.get()];
      if (!columns) {
        std::vector<int> own;
        for (const int i : index) own.push_back(f.column(std::max(i, 0)));
        columns = std::make_shared<const std::vector<int>>(std::move(own));
      }
      u.factors.push_back({f.f, f.affine, columns});
    }
    if (t.sum) {
      Matrix weights(count, t.sum->rows());
      for (int i = 0; i < count; ++i)
        weights.row(i) = t.sum->weights->row(std::max(index[at(i)], 0));
      u.sum = Sum{std::make_shared<const Matrix>(std::move(weights)), t.sum->f, t.sum->affine};
    }
    out.terms.push_back(std::move(u));
  }
  return out;
}

bool MomentEngine::linear(const Field& x) const {
  return !x.polynomials && std::all_of(x.terms.begin(), x.terms.end(), [](const Term& t) {
    return !t.sum && (t.factors.empty() ||
                      (t.factors.size() == 1 && t.factors[0].f == FunctionTable::kIdentity));
  });
}

int MomentEngine::insert(Affine affine) {
  affines_.push_back(std::make_shared<const Affine>(std::move(affine)));
  ++live_;
  return static_cast<int>(affines_.size() - 1);
}

/// For each column the first that is equal to it by structure.
std::vector<int> MomentEngine::distinct_columns(const Field& x) const {
  const auto columns = at(x.columns);
  std::vector<int> own(columns, 0);
  std::size_t classes = 1;
  if (x.polynomials) {
    std::map<Sparse, int> seen;
    for (std::size_t i = 0; i < columns; ++i)
      own[i] = seen.try_emplace((*x.polynomials)[i], static_cast<int>(i)).first->second;
    return own;
  }
  const auto refine = [&](auto&& attribute) {
    if (classes == columns) return;
    std::map<std::pair<int, std::uint64_t>, int> seen;
    for (std::size_t i = 0; i < columns; ++i)
      own[i] = seen.try_emplace(
                       {own[i], std::bit_cast<std::uint64_t>(attribute(static_cast<int>(i)) + 0.0)},
                       static_cast<int>(i))
                   .first->second;
    classes = seen.size();
  };
  for (const Term& t : x.terms) {
    if (t.coefficient.size() > 1) refine([&](int i) { return t.at_column(i); });
    for (const Factor& f : t.factors) {
      const Affine& from = block(f.affine);
      for (const Part& p : from.parts) {
        if (p.selection()) {
          refine([&](int i) { return static_cast<double>(p.index[at(f.column(i))]); });
          refine([&](int i) { return p.scale(f.column(i)); });
        }
        for (Eigen::Index k = 0; k < p.dense.cols() && classes < columns; ++k)
          refine([&](int i) { return p.dense(f.column(i), k); });
      }
      if (from.mean.size() > 0) refine([&](int i) { return from.mean(f.column(i)); });
    }
    if (t.sum)
      for (Eigen::Index k = 0; k < t.sum->weights->cols() && classes < columns; ++k)
        refine([&](int i) { return (*t.sum->weights)(i, k); });
  }
  return own;
}

/// A block of Gaussians equal to a linear field.
int MomentEngine::affine_of(const Field& x) {
  if (x.terms.size() == 1 && x.terms[0].coefficient == std::vector<double>{1.0} &&
      x.terms[0].factors.size() == 1 && !x.terms[0].factors[0].columns)
    return x.terms[0].factors[0].affine;
  Affine out;
  out.rows = x.columns;
  charge(static_cast<double>(x.terms.size()) * x.columns);
  const auto dense = [&](Part& p) {
    if (!p.selection()) return;
    p.dense = Matrix::Zero(x.columns, families_[at(p.family)].size);
    for (int i = 0; i < x.columns; ++i) p.dense(i, p.index[at(i)]) += p.scale(i);
  };
  for (const Term& t : x.terms) {
    Eigen::VectorXd c(x.columns);
    for (int i = 0; i < x.columns; ++i) c(i) = t.at_column(i);
    if (t.factors.empty()) {
      if (out.mean.size() == 0) out.mean = Eigen::VectorXd::Zero(x.columns);
      out.mean += c;
      continue;
    }
    const Factor& f = t.factors[0];
    const Affine& from = block(f.affine);
    if (from.mean.size() > 0) {
      if (out.mean.size() == 0) out.mean = Eigen::VectorXd::Zero(x.columns);
      for (int i = 0; i < x.columns; ++i) out.mean(i) += c(i) * from.mean(f.column(i));
    }
    for (const Part& p : from.parts) {
      Part q{p.family, {}, {}, {}};
      if (p.selection()) {
        q.scale.resize(x.columns);
        for (int i = 0; i < x.columns; ++i) {
          q.index.push_back(p.index[at(f.column(i))]);
          q.scale(i) = c(i) * p.scale(f.column(i));
        }
      } else {
        q.dense.resize(x.columns, p.dense.cols());
        for (int i = 0; i < x.columns; ++i) q.dense.row(i) = c(i) * p.dense.row(f.column(i));
      }
      const auto same = std::find_if(out.parts.begin(), out.parts.end(),
                                     [&](const Part& o) { return o.family == q.family; });
      if (same == out.parts.end()) {
        out.parts.push_back(std::move(q));
      } else if (same->selection() && q.selection() && same->index == q.index) {
        for (int i = 0; i < x.columns; ++i) accumulate(same->scale(i), q.scale(i));
      } else {
        dense(*same);
        dense(q);
        charge(2 * static_cast<double>(q.dense.size()));
        for (Eigen::Index k = 0; k < q.dense.size(); ++k)
          accumulate(same->dense.data()[k], q.dense.data()[k]);
      }
    }
  }
  return insert(std::move(out));
}

/// Linear fields become one Gaussian block; equal factors of several terms are collected.
MomentEngine::Field MomentEngine::simplified(Field x) {
  std::erase_if(x.terms, [](const Term& t) {
    return std::all_of(t.coefficient.begin(), t.coefficient.end(), [](double c) { return c == 0; });
  });
  if (x.terms.size() > 1 && linear(x)) {
    const int affine = affine_of(x);
    const double relative = x.relative;
    const MomentMethod method = x.method;
    x = of_affine(affine);
    x.relative = relative;
    x.method = method;
  }
  if (x.terms.size() > kManyTerms) join_sums(x);
  if (x.terms.size() > kMostTerms) throw Unknown{fmt::format("more than {} terms", kMostTerms), {}};
  return x;
}

MomentEngine::Field MomentEngine::expanded(const Field& x) const {
  Field out{x.columns, {}, x.relative, x.method, x.polynomials};
  for (const Term& t : x.terms) {
    const int rows = t.sum ? t.sum->rows() : 1;
    if (out.terms.size() + at(rows) > kMostTerms)
      throw Unknown{"a sum over many functions of Gaussians times another", {}};
    if (!t.sum)
      out.terms.push_back(t);
    else
      for (int s = 0; s < rows; ++s) {
        Term u{{}, t.factors};
        for (int i = 0; i < x.columns; ++i)
          u.coefficient.push_back(t.at_column(i) * (*t.sum->weights)(i, s));
        u.factors.push_back(
            {t.sum->f, t.sum->affine, std::make_shared<const std::vector<int>>(at(x.columns), s)});
        out.terms.push_back(std::move(u));
      }
  }
  return out;
}

std::shared_ptr<const MomentEngine::Polynomials> MomentEngine::polynomials(const Field& x) {
  if (x.polynomials) return x.polynomials;
  if (std::any_of(x.terms.begin(), x.terms.end(), [](const Term& t) { return t.sum.has_value(); }))
    return nullptr;
  for (const Term& t : x.terms)
    for (const Factor& f : t.factors) {
      if (!functions_.polynomial(f.f)) return nullptr;
      for (const Part& p : block(f.affine).parts) {
        if (families_[at(p.family)].matrix >= 0) return nullptr;
        std::set<int> used;
        for (int i = 0; i < x.columns; ++i) {
          const int row = f.column(i);
          if (p.selection())
            used.insert(p.index[at(row)]);
          else
            for (int k = 0; k < p.dense.cols(); ++k)
              if (p.dense(row, k) != 0) used.insert(k);
          if (static_cast<int>(used.size()) > kMostSymbols) return nullptr;
        }
        for (const int k : used)
          if (static_cast<int>(symbols_.size()) < kMostSymbols || symbols_.contains({p.family, k}))
            symbols_.try_emplace({p.family, k}, static_cast<int>(symbols_.size()));
          else
            return nullptr;
      }
    }
  Polynomials columns(at(x.columns));
  for (int i = 0; i < x.columns; ++i)
    for (const Term& t : x.terms) {
      Sparse whole{{Monomial{}, t.at_column(i)}};
      for (const Factor& f : t.factors) {
        const Affine& affine = block(f.affine);
        const int row = f.column(i);
        if (is_constant(f, i)) {  // a polynomial almost everywhere need not be one there
          for (auto& [m, c] : whole) c *= value_at_mean(f, i);
          continue;
        }
        Sparse g;
        if (affine.mean.size() > 0) g.push_back({Monomial{}, affine.mean(row)});
        for (const Part& p : affine.parts)
          for (int k = 0; k < families_[at(p.family)].size; ++k) {
            const double c =
                p.selection() ? (p.index[at(row)] == k ? p.scale(row) : 0.0) : p.dense(row, k);
            if (c == 0) continue;
            const int symbol = symbols_.at({p.family, k});
            Monomial m{};
            m[at(symbol / 8)] = std::uint64_t{1} << (8 * (symbol % 8));
            g.push_back({m, c});
          }
        g = collected(std::move(g));
        // Horner's rule
        const std::vector<double>& c = *functions_.polynomial(f.f);
        Sparse value;
        for (std::size_t j = c.size(); j-- > 0;) {
          auto next = product(value, g);
          if (!next) return nullptr;
          next->push_back({Monomial{}, c[j]});
          value = collected(std::move(*next));
        }
        auto next = product(whole, value);
        if (!next) return nullptr;
        whole = std::move(*next);
      }
      columns[at(i)].insert(columns[at(i)].end(), whole.begin(), whole.end());
    }
  for (Sparse& column : columns) column = collected(std::move(column));
  return std::make_shared<const Polynomials>(std::move(columns));
}

MomentEngine::Field MomentEngine::of_polynomials(Polynomials columns, const Field& x,
                                                 const Field& y) const {
  Field out{
      static_cast<int>(columns.size()), {}, x.relative + y.relative, weaker(x.method, y.method)};
  out.polynomials = std::make_shared<const Polynomials>(std::move(columns));
  return out;
}

MomentEngine::Field MomentEngine::add(Field x, const Field& y, double sign) {
  if (x.polynomials || y.polynomials) {
    const auto p = polynomials(x), q = polynomials(y);
    if (!p || !q) throw Unknown{"a polynomial beside another function of several Gaussians", {}};
    Polynomials columns = *p;
    for (std::size_t i = 0; i < columns.size(); ++i) {
      for (const auto& [m, c] : (*q)[i]) columns[i].emplace_back(m, sign * c);
      columns[i] = collected(std::move(columns[i]));
    }
    Field out = of_polynomials(std::move(columns), x, y);
    out.relative = std::max(x.relative, y.relative);
    return out;
  }
  charge(8.0 * static_cast<double>(x.terms.size() * y.terms.size()));
  for (Term t : y.terms) {
    if (sign != 1)
      for (double& c : t.coefficient) c *= sign;
    const auto same = std::find_if(x.terms.begin(), x.terms.end(), [&](const Term& o) {
      return o.factors.size() == t.factors.size() &&
             std::equal(o.factors.begin(), o.factors.end(), t.factors.begin(),
                        [](const Factor& a, const Factor& b) {
                          return a.f == b.f && a.affine == b.affine &&
                                 (a.columns == b.columns ||
                                  (a.columns && b.columns && *a.columns == *b.columns));
                        }) &&
             o.sum.has_value() == t.sum.has_value() &&
             (!o.sum || (o.sum->weights == t.sum->weights && o.sum->f == t.sum->f &&
                         o.sum->affine == t.sum->affine));
    });
    if (same == x.terms.end()) {
      x.terms.push_back(std::move(t));
      continue;
    }
    if (same->coefficient.size() < t.coefficient.size())
      same->coefficient.resize(t.coefficient.size(), same->coefficient[0]);
    for (std::size_t i = 0; i < same->coefficient.size(); ++i)
      accumulate(same->coefficient[i], t.at_column(static_cast<int>(i)));
  }
  x.relative = std::max(x.relative, y.relative);
  x.method = weaker(x.method, y.method);
  return simplified(std::move(x));
}

MomentEngine::Field MomentEngine::times(const Field& x, const Field& y) {
  // Sums of products are kept as they are while they are short: other functions may still multiply
  // them.
  const bool brief = x.constant() || y.constant() || x.terms.size() * y.terms.size() <= kFewTerms;
  if (const auto p = brief && !x.polynomials && !y.polynomials ? nullptr : polynomials(x))
    if (const auto q = polynomials(y)) {
      Polynomials columns;
      for (std::size_t i = 0; i < p->size(); ++i) {
        auto own = product((*p)[i], (*q)[i]);
        if (!own) throw Unknown{"a polynomial of too high a degree or with too many terms", {}};
        columns.push_back(std::move(*own));
      }
      return of_polynomials(std::move(columns), x, y);
    }
  if (x.polynomials || y.polynomials)
    throw Unknown{"a polynomial times another function of several Gaussians", {}};
  const auto has_sum = [](const Field& z) {
    return std::any_of(z.terms.begin(), z.terms.end(),
                       [](const Term& t) { return t.sum.has_value(); });
  };
  if (has_sum(x) && has_sum(y)) return times(expanded(x), y);
  Field out{x.columns, {}, x.relative + y.relative, weaker(x.method, y.method)};
  if (x.terms.size() * y.terms.size() > kMostTerms)
    throw Unknown{"a product of sums with too many terms", {}};
  for (const Term& s : x.terms)
    for (const Term& t : y.terms) {
      Term u{s.coefficient, s.factors, s.sum ? s.sum : t.sum};
      if (t.coefficient.size() > u.coefficient.size())
        u.coefficient.resize(t.coefficient.size(), u.coefficient[0]);
      for (std::size_t i = 0; i < u.coefficient.size(); ++i)
        u.coefficient[i] *= t.at_column(static_cast<int>(i));
      for (const Factor& f : t.factors) {
        const auto same = std::find_if(u.factors.begin(), u.factors.end(), [&](const Factor& o) {
          return o.affine == f.affine &&
                 (o.columns == f.columns || (o.columns && f.columns && *o.columns == *f.columns));
        });
        if (same == u.factors.end())
          u.factors.push_back(f);
        else
          same->f = functions_.times(same->f, f.f);
      }
      std::sort(u.factors.begin(), u.factors.end(), [](const Factor& a, const Factor& b) {
        return std::tie(a.affine, a.f) < std::tie(b.affine, b.f);
      });
      out = add(std::move(out), {x.columns, {std::move(u)}, out.relative, out.method}, 1);
    }
  return out;
}

/// Sums of `depth` columns each are best done by `combine`: no more terms than by adding columns
/// one by one.
bool MomentEngine::one_product(const Field& x, int depth) const {
  if (x.polynomials) return false;
  return x.columns == depth || linear(x) ||
         std::all_of(x.terms.begin(), x.terms.end(),
                     [](const Term& t) { return t.factors.empty(); });
}

/// Entries of weights * p that are what rounding leaves of a sum that cancels become 0, as in
/// affine_of.
void MomentEngine::drop_cancelled(Matrix& product, const Matrix& weights, const Part& p) {
  if (weights.cols() < 2) return;
  const Eigen::VectorXd rows = weights.cwiseAbs().rowwise().sum();
  const double most = p.selection() ? p.scale.cwiseAbs().maxCoeff() : p.dense.cwiseAbs().maxCoeff();
  for (Eigen::Index k = 0; k < product.cols(); ++k)
    for (Eigen::Index i = 0; i < product.rows(); ++i) {
      if (product(i, k) == 0 || std::abs(product(i, k)) > kCancelled * rows(i) * most) continue;
      double size = 0;
      for (Eigen::Index s = 0; s < weights.cols(); ++s)
        size += std::abs(weights(i, s) * (!p.selection() ? p.dense(s, k)
                                          : p.index[static_cast<std::size_t>(s)] == k ? p.scale(s)
                                                                                      : 0.0));
      if (std::abs(product(i, k)) <= kCancelled * size) product(i, k) = 0;
    }
}

MomentEngine::Field MomentEngine::combine(const Matrix& weights, const Field& y) {
  const int rows = static_cast<int>(weights.rows());
  Field out{rows, {}, y.relative, y.method};
  if (y.constant()) {
    std::vector<double> sum(at(rows), 0.0);
    for (const Term& t : y.terms)
      for (int s = 0; s < y.columns; ++s)
        for (int i = 0; i < rows; ++i) sum[at(i)] += t.at_column(s) * weights(i, s);
    out.terms = constant(std::move(sum)).terms;
    return out;
  }
  if (linear(y)) {
    const Affine& from = block(affine_of(y));
    Affine to;
    to.rows = rows;
    if (from.mean.size() > 0) to.mean = weights * from.mean;
    for (const Part& p : from.parts) {
      Part q{p.family, {}, {}, Matrix::Zero(rows, families_[at(p.family)].size)};
      if (p.selection())
        for (int s = 0; s < y.columns; ++s)
          q.dense.col(p.index[at(s)]) += p.scale(s) * weights.col(s);
      else
        q.dense = weights * p.dense;
      charge(static_cast<double>(q.dense.size()) *
             (p.selection() ? 1 : 0.25 * static_cast<double>(weights.cols())));
      drop_cancelled(q.dense, weights, p);
      to.parts.push_back(std::move(q));
    }
    const Field sum = of_affine(insert(std::move(to)));
    out.terms = sum.terms;
    return out;
  }
  Field flat{y.columns, {}}, rest{y.columns, {}, y.relative, y.method, y.polynomials};
  for (const Term& t : y.terms) {
    const bool one = t.factors.size() == 1 && !t.sum;
    if (t.constant() || (one && t.factors[0].f == FunctionTable::kIdentity)) {
      flat.terms.push_back(t);
    } else if (t.sum && t.factors.empty()) {
      Eigen::VectorXd c(y.columns);
      for (int s = 0; s < y.columns; ++s) c(s) = t.at_column(s);
      out.terms.push_back(
          {{1.0},
           {},
           Sum{std::make_shared<const Matrix>((weights * c.asDiagonal()) * *t.sum->weights),
               t.sum->f, t.sum->affine}});
    } else if (one && !functions_.polynomial(t.factors[0].f)) {
      const Factor& f = t.factors[0];
      std::vector<int> slot(at(block(f.affine).rows), -1), used;
      for (int s = 0; s < y.columns; ++s)
        if (int& k = slot[at(f.column(s))]; k < 0) {
          k = static_cast<int>(used.size());
          used.push_back(f.column(s));
        }
      Matrix own = Matrix::Zero(rows, static_cast<Eigen::Index>(used.size()));
      for (int s = 0; s < y.columns; ++s)
        own.col(slot[at(f.column(s))]) += t.at_column(s) * weights.col(s);
      if (used.size() <= kFewRows) {
        for (std::size_t k = 0; k < used.size(); ++k)
          out.terms.push_back(
              {{own.col(static_cast<Eigen::Index>(k)).data(),
                own.col(static_cast<Eigen::Index>(k)).data() + rows},
               {{f.f, f.affine, std::make_shared<const std::vector<int>>(at(rows), used[k])}}});
        continue;
      }
      const bool whole = static_cast<int>(used.size()) == block(f.affine).rows &&
                         std::is_sorted(used.begin(), used.end());
      const int affine = whole ? f.affine : affine_of(remap(of_affine(f.affine), used));
      out.terms.push_back(
          {{1.0}, {}, Sum{std::make_shared<const Matrix>(std::move(own)), f.f, affine}});
    } else {
      rest.terms.push_back(t);
    }
  }
  if (!flat.terms.empty()) out = add(std::move(out), combine(weights, flat), 1);
  if (rest.terms.empty() && !rest.polynomials) return simplified(std::move(out));
  for (int s = 0; s < y.columns; ++s) {
    if ((weights.col(s).array() == 0).all()) continue;
    Field one = remap(rest, std::vector<int>(static_cast<std::size_t>(rows), s));
    out = add(std::move(out),
              times(one, constant({weights.col(s).data(), weights.col(s).data() + rows})), 1);
  }
  return out;
}

std::optional<MomentEngine::Unary> MomentEngine::as_unary(const Field& x) {
  std::optional<Unary> out;
  if (x.polynomials) return out;
  FunctionTable::Id sum = -1;
  double shift = 0;
  for (const Term& t : x.terms) {
    if (t.coefficient.size() != 1 || t.factors.size() > 1 || t.sum) return std::nullopt;
    if (t.factors.empty()) {
      shift += t.coefficient[0];
      continue;
    }
    const Factor& f = t.factors[0];
    if (out &&
        (out->affine != f.affine || !(out->columns == f.columns ||
                                      (out->columns && f.columns && *out->columns == *f.columns))))
      return std::nullopt;
    const auto scaled = t.coefficient[0] == 1 ? f.f : functions_.scaled(t.coefficient[0], f.f);
    sum = out ? functions_.compose({Fn::kAdd, 0}, {sum, scaled}) : scaled;
    out = Unary{sum, f.affine, f.columns};
  }
  if (!out) return std::nullopt;
  out->f = shift == 0 ? sum : functions_.compose({Fn::kAdd, 0}, {sum, shift});
  return out;
}

/// A field of functions of different multiples and shifts of one Gaussian behind each column, as
/// functions of that Gaussian.
std::optional<MomentEngine::Unary> MomentEngine::of_one_gaussian(const Field& x) {
  if (x.polynomials) return std::nullopt;
  std::optional<std::pair<int, std::vector<int>>> base;  // family, members
  FunctionTable::Id sum = -1;
  double constants = 0;
  for (const Term& t : x.terms) {
    if (t.coefficient.size() != 1 || t.sum) return std::nullopt;
    if (t.factors.empty()) {
      constants += t.coefficient[0];
      continue;
    }
    FunctionTable::Id product = -1;
    for (const Factor& f : t.factors) {
      const Affine& from = block(f.affine);
      if (from.parts.size() != 1 || !from.parts[0].selection()) return std::nullopt;
      const Part& part = from.parts[0];
      const auto shift = [&](int i) { return from.mean.size() > 0 ? from.mean(f.column(i)) : 0.0; };
      std::pair<int, std::vector<int>> own{part.family, {}};
      for (int i = 0; i < x.columns; ++i) {
        if (part.scale(f.column(i)) != part.scale(f.column(0)) || shift(i) != shift(0))
          return std::nullopt;
        own.second.push_back(part.index[at(f.column(i))]);
      }
      if (base && *base != own) return std::nullopt;
      base = std::move(own);
      const auto moved = functions_.shifted(f.f, part.scale(f.column(0)), shift(0));
      product = product < 0 ? moved : functions_.times(product, moved);
    }
    if (t.coefficient[0] != 1) product = functions_.scaled(t.coefficient[0], product);
    sum = sum < 0 ? product : functions_.compose({Fn::kAdd, 0}, {sum, product});
  }
  if (!base) return std::nullopt;
  if (constants != 0) sum = functions_.compose({Fn::kAdd, 0}, {sum, constants});
  const auto [known, is_new] = members_.try_emplace(*base, -1);
  if (is_new || !affines_[at(known->second)])
    known->second = insert(
        {x.columns, {}, {{base->first, base->second, Eigen::VectorXd::Ones(x.columns), {}}}});
  return Unary{sum, known->second, nullptr};
}

// ---- nodes with coordinates
// -------------------------------------------------------------------------

MomentEngine::Field MomentEngine::field_step(NodeId id, const Node& node) {
  const auto count = static_cast<int>(size_of(node.type.dims));
  // Operations that copy columns: evaluated on column numbers.
  const auto copied = [&](NodeId in) {
    std::vector<double> numbers(static_cast<std::size_t>(size_of(program_[in].type.dims))),
        moved(static_cast<std::size_t>(count));
    std::iota(numbers.begin(), numbers.end(), 0.0);
    Node finite = node;
    finite.type.width = false;
    if (auto* e = std::get_if<Expand>(&finite.op)) e->width = false;
    const Type type{false, false, program_[in].type.dims};
    evaluate_rows(finite, {&type}, {{numbers.data(), 1, 1}}, {moved.data(), 1, 1});
    return remap(operand(in), std::vector<int>(moved.begin(), moved.end()));
  };
  return std::visit(
      overloaded{
          [&](const StandardNormal&) -> Field {
            Family family;
            family.size = count;
            families_.push_back(std::move(family));
            std::vector<int> all(static_cast<std::size_t>(count));
            std::iota(all.begin(), all.end(), 0);
            return of_affine(insert({count,
                                     {},
                                     {{static_cast<int>(families_.size() - 1),
                                       std::move(all),
                                       Eigen::VectorXd::Ones(count),
                                       {}}}}));
          },
          [&](const Scale& s) {
            return times(operand(node.in[0]),
                         constant(std::vector<double>(static_cast<std::size_t>(count), s.factor)));
          },
          [&](const Map& m) { return map(m, node); },
          [&](const Contract& c) { return contract(c, node); },
          [&](const Gather&) { return copied(node.in[0]); },
          [&](const Permute&) { return copied(node.in[0]); },
          [&](const Reshape&) { return copied(node.in[0]); },
          [&](const Expand&) { return copied(node.in[0]); },
          [&](const ReduceSum& r) {
            const Dims& dims = program_[node.in[0]].type.dims;
            const auto axis = static_cast<std::size_t>(r.axis);
            const auto inner = static_cast<int>(size_of(
                           {dims.begin() + static_cast<std::ptrdiff_t>(axis) + 1, dims.end()})),
                       size = static_cast<int>(dims[axis]);
            const Field x = operand(node.in[0]);
            const auto source = [&](int j, int k) {
              return (j / inner * size + k) * inner + j % inner;
            };
            if (one_product(x, size)) {
              Matrix ones = Matrix::Zero(count, x.columns);
              for (int k = 0; k < size; ++k)
                for (int j = 0; j < count; ++j) ones(j, source(j, k)) = 1;
              return combine(ones, x);
            }
            Field out{count, {}};
            for (int k = 0; k < size; ++k) {
              std::vector<int> index;
              for (int j = 0; j < count; ++j) index.push_back(source(j, k));
              out = add(std::move(out), remap(x, index), 1);
            }
            return out;
          },
          [&](const Concat& c) {
            const auto axis = static_cast<std::size_t>(c.axis);
            const auto inner = static_cast<int>(
                           size_of({node.type.dims.begin() + static_cast<std::ptrdiff_t>(axis) + 1,
                                    node.type.dims.end()})),
                       whole = static_cast<int>(node.type.dims[axis]);
            Field out{count, {}};
            int offset = 0;
            for (const NodeId in : node.in) {
              const auto size = static_cast<int>(program_[in].type.dims[axis]);
              std::vector<int> index;
              for (int j = 0; j < count; ++j) {
                const int k = j / inner % whole - offset;
                index.push_back(
                    k < 0 || k >= size ? -1 : (j / inner / whole * size + k) * inner + j % inner);
              }
              out = add(std::move(out), remap(operand(in), index), 1);
              offset += size;
            }
            return out;
          },
          [&](const ScatterAdd& s) {
            const auto axis = static_cast<std::size_t>(s.axis);
            const auto inner = static_cast<int>(
                           size_of({node.type.dims.begin() + static_cast<std::ptrdiff_t>(axis) + 1,
                                    node.type.dims.end()})),
                       size = static_cast<int>(s.size);
            const auto slices = static_cast<int>(s.indices->size());
            Field out{count, {}};
            // Slices that go to different places are moved together.
            std::vector<bool> done(static_cast<std::size_t>(slices), false);
            for (int left = slices; left > 0;) {
              std::vector<int> from(static_cast<std::size_t>(size), -1), index;
              for (int i = 0; i < slices; ++i) {
                int& slot = from[static_cast<std::size_t>((*s.indices)[at(i)])];
                if (done[at(i)] || slot >= 0) continue;
                slot = i;
                done[at(i)] = true;
                --left;
              }
              for (int j = 0; j < count; ++j) {
                const int k = from[at(j / inner % size)];
                index.push_back(k < 0 ? -1 : (j / inner / size * slices + k) * inner + j % inner);
              }
              out = add(std::move(out), remap(operand(node.in[0]), index), 1);
            }
            return out;
          },
          [&](const MatMul& m) {
            return multiply(*versions_[node.in[0].value], node.in[1], m.transposed);
          },
          [&](const auto&) -> Field {
            throw Unknown{fmt::format("'{}' of values with coordinates", op_name(node.op)), id};
          }},
      node.op);
}

MomentEngine::Field MomentEngine::map(const Map& m, const Node& node) {
  std::vector<Field> in;
  for (const NodeId k : node.in) {
    // Finite axes align from the right.
    const Dims& own = program_[k].type.dims;
    std::vector<int> index;
    for (std::int64_t j = 0; j < size_of(node.type.dims); ++j) {
      std::int64_t rest = j, from = 0, stride = 1;
      for (std::size_t a = 0; a < node.type.dims.size(); ++a) {
        const std::int64_t size = node.type.dims[node.type.dims.size() - 1 - a], i = rest % size;
        rest /= size;
        if (a >= own.size()) continue;
        const std::int64_t mine = own[own.size() - 1 - a];
        if (mine != 1) from += i * stride;
        stride *= mine;
      }
      index.push_back(static_cast<int>(from));
    }
    in.push_back(remap(operand(k), index));
  }
  return apply(m, node, std::move(in));
}

/// x^n of a product, factor by factor.
std::optional<MomentEngine::Field> MomentEngine::powers(const Field& x, double n) {
  Field out = x;
  Term& t = out.terms[0];
  if (t.sum) return std::nullopt;
  for (double& c : t.coefficient) c = std::pow(c, n);
  for (Factor& f : t.factors) f.f = functions_.compose({Fn::kPower, n}, {f.f});
  return out;
}

MomentEngine::Field MomentEngine::apply(const Map& m, const Node& node, std::vector<Field> in) {
  Field quality{in[0].columns, {}};
  for (const Field& x : in) {
    quality.relative = std::max(quality.relative, x.relative);
    quality.method = weaker(quality.method, x.method);
  }
  // All operands functions of one Gaussian block, or constants: one new function.
  const auto compose = [&](bool shifted) -> std::optional<Field> {
    std::vector<std::variant<FunctionTable::Id, double>> operands;
    std::optional<Unary> of;
    for (Field& x : in) {
      if (x.terms.empty() && !x.polynomials) {
        operands.emplace_back(0.0);
      } else if (x.terms.size() == 1 && x.terms[0].constant() &&
                 x.terms[0].coefficient.size() == 1) {
        operands.emplace_back(x.terms[0].coefficient[0]);
      } else {
        if (!as_unary(x) && linear(x) && m.fn != Fn::kAdd && m.fn != Fn::kSub && m.fn != Fn::kMul &&
            m.fn != Fn::kDiv)
          x.terms = of_affine(affine_of(x)).terms;
        const auto u = shifted ? of_one_gaussian(x) : as_unary(x);
        if (!u || (of && (of->affine != u->affine ||
                          !(of->columns == u->columns ||
                            (of->columns && u->columns && *of->columns == *u->columns)))))
          return std::nullopt;
        of = u;
        operands.emplace_back(u->f);
      }
    }
    if (!of) return std::nullopt;
    Field out = quality;
    out.terms = {{{1.0}, {{functions_.compose(m, operands), of->affine, of->columns}}}};
    return out;
  };
  switch (m.fn) {
    case Fn::kAdd:
    case Fn::kSub:
      if (linear(in[0]) && linear(in[1])) return add(in[0], in[1], m.fn == Fn::kAdd ? 1 : -1);
      break;
    case Fn::kMul:
      for (const std::size_t k : {0u, 1u})
        if (in[k].constant()) return times(in[1 - k], in[k]);
      break;
    case Fn::kDiv: {
      if (in[1].terms.size() == 1 && in[1].terms[0].constant()) {
        Field inverse = in[1];
        for (double& c : inverse.terms[0].coefficient) c = 1 / c;
        return times(in[0], inverse);
      }
      break;
    }
    case Fn::kLess:
    case Fn::kLessEqual:
    case Fn::kEqual:
    case Fn::kNotEqual:
      // By the difference of Gaussians, one Gaussian, of which it is known whether its variance is
      // 0.
      if (linear(in[0]) && linear(in[1]) && !in[0].constant() && !in[1].constant())
        return apply(m, node, {simplified(add(in[0], in[1], -1)), Field{in[0].columns, {}}});
      break;
    case Fn::kMax:
    case Fn::kMin:  // b + relu(a - b), a - relu(a - b)
      if (linear(in[0]) && linear(in[1]) && !in[0].constant() && !in[1].constant()) {
        Field positive = apply({Fn::kRelu, 0}, node, {simplified(add(in[0], in[1], -1))});
        return m.fn == Fn::kMax ? add(in[1], positive, 1) : add(in[0], positive, -1);
      }
      break;
    default: break;
  }
  if (auto composed = compose(false)) return *composed;
  if (m.fn != Fn::kAdd && m.fn != Fn::kSub && m.fn != Fn::kMul)
    if (auto composed = compose(true)) return *composed;
  switch (m.fn) {
    case Fn::kAdd: return add(in[0], in[1], 1);
    case Fn::kSub: return add(in[0], in[1], -1);
    case Fn::kMul: return times(in[0], in[1]);
    case Fn::kExp:
      if (auto product = exponential(in[0])) return *product;
      break;
    case Fn::kPower:
      if (in[0].terms.size() == 1 && !in[0].polynomials && m.parameter == std::floor(m.parameter))
        if (auto product = powers(in[0], m.parameter)) return *product;
      if (m.parameter == 2 || m.parameter == 3) {
        Field out = times(in[0], in[0]);
        return m.parameter == 2 ? out : times(out, in[0]);
      }
      break;
    case Fn::kWhere:  // 1[c] a + (1 - 1[c]) b
      if (const auto u = as_unary(in[0])) {
        const auto indicator = functions_.compose({Fn::kNotEqual, 0}, {u->f, 0.0});
        Field yes = quality, no = quality;
        yes.terms = {{{1.0}, {{indicator, u->affine, u->columns}}}};
        no.terms = {
            {{1.0},
             {{functions_.compose({Fn::kSub, 0}, {1.0, indicator}), u->affine, u->columns}}}};
        return add(times(yes, in[1]), times(no, in[2]), 1);
      }
      break;
    case Fn::kDiv:
      if (in[1].terms.size() == 1 && !in[1].polynomials && in[1].terms[0].factors.size() > 1)
        if (const auto inverse = powers(in[1], -1)) return times(in[0], *inverse);
      if (const auto u = as_unary(in[1])) {
        Field inverse = quality;
        inverse.terms = {
            {{1.0}, {{functions_.compose({Fn::kPower, -1}, {u->f}), u->affine, u->columns}}}};
        return times(in[0], inverse);
      }
      break;
    default: break;
  }
  const bool finite =
      std::all_of(in.begin(), in.end(), [](const Field& x) { return x.constant(); });
  if (finite) {  // constant over the coordinates
    std::vector<std::vector<double>> values;
    std::vector<View> views;
    std::vector<Type> types(in.size(), Type{false, false, {in[0].columns}});
    std::vector<const Type*> pointers;
    for (const Field& x : in) {
      values.emplace_back(static_cast<std::size_t>(x.columns), 0.0);
      for (const Term& t : x.terms)
        for (int j = 0; j < x.columns; ++j) values.back()[at(j)] += t.at_column(j);
    }
    for (std::size_t k = 0; k < in.size(); ++k) {
      views.push_back({values[k].data(), 1, 1});
      pointers.push_back(&types[k]);
    }
    Node finite_node = node;
    finite_node.type = types[0];
    std::vector<double> result(static_cast<std::size_t>(in[0].columns));
    evaluate_rows(finite_node, pointers, views, {result.data(), 1, 1});
    Field out = constant(std::move(result));
    out.relative = quality.relative;
    out.method = quality.method;
    return out;
  }
  // Columns of several makes, as a concatenation leaves them: one make at a time.
  std::map<std::vector<double>, std::vector<int>> makes;
  for (int i = 0; i < in[0].columns; ++i) {
    std::vector<double> key;
    for (const Field& x : in)
      for (const Term& t : x.terms) key.push_back(t.at_column(i));
    makes[std::move(key)].push_back(i);
  }
  constexpr std::size_t kMostMakes = 64;
  if (makes.size() > 1 && makes.size() <= kMostMakes) {
    Field out = quality;
    for (const auto& [key, index] : makes) {
      std::vector<Field> own;
      for (const Field& x : in) {
        own.push_back(remap(x, index));
        for (Term& t : own.back().terms) t.coefficient.resize(1);
        own.back() = simplified(std::move(own.back()));
      }
      std::vector<int> back(at(in[0].columns), -1);
      for (std::size_t k = 0; k < index.size(); ++k) back[at(index[k])] = static_cast<int>(k);
      out = add(std::move(out), remap(apply(m, node, std::move(own)), back), 1);
    }
    return out;
  }
  throw Unknown{fmt::format("'{}' of more than one Gaussian", name(m.fn)), {}};
}

MomentEngine::Field MomentEngine::contract(const Contract& c, const Node& node) {
  const ContractSizes sizes(c, program_[node.in[0]].type.dims, program_[node.in[1]].type.dims);
  const auto batch = static_cast<int>(sizes.batch), rows = static_cast<int>(sizes.left),
             columns = static_cast<int>(sizes.right), depth = static_cast<int>(sizes.inner);
  const int count = batch * rows * columns;
  // A block times numbers: one matrix product.
  for (const std::size_t k : {0u, 1u}) {
    const NodeId wide = node.in[k], narrow = node.in[1 - k];
    if (program_[narrow].type.width || depth == 1) continue;
    const Field x = operand(wide);
    if (!one_product(x, depth)) continue;
    const auto& numbers = finite_[narrow.value].value;
    Matrix weights = Matrix::Zero(count, x.columns);
    for (int p = 0; p < batch; ++p)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j)
          for (int l = 0; l < depth; ++l) {
            const int left = (p * rows + i) * depth + l, right = (p * columns + j) * depth + l;
            weights((p * rows + i) * columns + j, k == 0 ? left : right) =
                numbers[at(k == 0 ? right : left)];
          }
    Field out = combine(weights, x);
    const Field quality = operand(narrow);
    out.relative += quality.relative;
    out.method = weaker(out.method, quality.method);
    return out;
  }
  if (depth > 256) throw Unknown{"a sum over many products", {}};
  const Field x = operand(node.in[0]), y = operand(node.in[1]);
  Field out{count, {}};
  for (int l = 0; l < depth; ++l) {
    std::vector<int> left, right;
    for (int p = 0; p < batch; ++p)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          left.push_back((p * rows + i) * depth + l);
          right.push_back((p * columns + j) * depth + l);
        }
    out = add(std::move(out), times(remap(x, left), remap(y, right)), 1);
  }
  return out;
}

/// W x = scale (hatZ + sum_s y_s E dx/dg_s) + updates: g_s the Gaussian of W' y_s, made before x
/// (THEORY: Z = hatZ + dotZ).
MomentEngine::Field MomentEngine::multiply(const Version& w, NodeId x_node, bool transposed) {
  const auto x = std::make_shared<const Field>(operand(x_node));
  Field out{x->columns, {}};
  if (w.scale != 0) out = gaussian_part(w, x_node, x, transposed);
  for (const auto& u : w.updates) {
    const Field &onto = transposed ? *u.x : *u.d, &with = transposed ? *u.d : *u.x;
    const Moment m = cross(*x, with);
    Field change = combine(u.c * m.value, onto);
    change.method = weaker(change.method, m.method);
    change.relative += m.error / std::max(m.value.cwiseAbs().maxCoeff(), 1e-300);
    out = add(std::move(out), change, 1);
  }
  out.relative = std::max(out.relative, x->relative) + w.relative;
  out.method = weaker(weaker(out.method, x->method), w.method);
  return out;
}

/// scale (hatZ + sum_s y_s E dx/dg_s).
MomentEngine::Field MomentEngine::gaussian_part(const Version& w, NodeId x_node,
                                                const std::shared_ptr<const Field>& x,
                                                bool transposed) {
  const auto [it, fresh] =
      hats_.try_emplace({w.source, transposed, x_node.value}, static_cast<int>(families_.size()));
  const int family = it->second;
  // Equal columns have equal products, not only up to rounding.
  const std::vector<int> first = distinct_columns(*x);
  std::vector<int> member(first.size()), kept;
  for (std::size_t i = 0; i < first.size(); ++i) {
    if (first[i] == static_cast<int>(i)) kept.push_back(first[i]);
    member[i] =
        first[i] == static_cast<int>(i) ? static_cast<int>(kept.size() - 1) : member[at(first[i])];
  }
  if (fresh)
    families_.push_back(
        {static_cast<int>(kept.size()), static_cast<int>(w.source), transposed,
         kept.size() == first.size() ? x : std::make_shared<const Field>(remap(*x, kept))});
  Field out = of_affine(insert(
      {x->columns, {}, {{family, std::move(member), Eigen::VectorXd::Ones(x->columns), {}}}}));
  const auto opposes = [&](int g) {
    return families_[at(g)].matrix == static_cast<int>(w.source) &&
           families_[at(g)].transposed != transposed;
  };
  std::vector<std::pair<const Term*, Slope>> all;
  for (const Term& t : x->terms)
    for (Slope& one : slopes(t, x->columns, [&](const Factor&f, bool) {
           return std::any_of(block(f.affine).parts.begin(), block(f.affine).parts.end(),
                              [&](const Part& p) { return opposes(p.family); });
         }))
      all.emplace_back(&t, std::move(one));
  std::set<int> opposites;
  for (const auto& [t, one] : all)
    for (const Part& p : block(one.u.affine).parts)
      if (opposes(p.family)) opposites.insert(p.family);
  for (const int g : opposites) {
    const Family opposite = families_[at(g)];
    Matrix derivative;  // as large as a kernel, and often 0
    MomentMethod method = MomentMethod::kExact;
    double error = 0;
    for (const auto& [t, one] : all) {
      const auto& [u, m] = one;
      for (const Part& p : block(u.affine).parts) {
        if (p.family != g) continue;
        method = weaker(method, m.method);
        error = std::max(error, m.error);
        if ((m.value.array() == 0).all()) continue;
        if (derivative.size() == 0) derivative = Matrix::Zero(x->columns, opposite.size);
        for (int j = 0; j < x->columns; ++j) {
          const double e = m.value(m.value.rows() == 1 ? 0 : j, 0) * t->at_column(j);
          const int column = u.column(j);
          if (p.selection())
            derivative(j, p.index[at(column)]) += e * p.scale(column);
          else
            derivative.row(j) += e * p.dense.row(column);
        }
      }
    }
    if (derivative.size() == 0 || (derivative.array() == 0).all()) continue;
    Field correction = combine(derivative, *opposite.x);
    correction.method = weaker(correction.method, method);
    correction.relative += error / derivative.cwiseAbs().maxCoeff();
    out = add(std::move(out), correction, 1);
  }
  return times(out, constant(std::vector<double>(static_cast<std::size_t>(x->columns), w.scale)));
}

}  // namespace tplimit::moments
