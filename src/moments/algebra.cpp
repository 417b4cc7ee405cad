#include "moments/algebra.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

namespace tplimit::moments {

using namespace ir;

namespace {
/// a += b; what cancels up to rounding is 0: a constant must not become a Gaussian of variance
/// 1e-32.
void accumulate(double& a, double b) {
  const double sum = a + b;
  a = std::abs(sum) <= kCancelled * std::max(std::abs(a), std::abs(b)) ? 0.0 : sum;
}

/// Counted unless it is refused, and cheap.
std::optional<Sparse> charged_product(RunContext& context, const Sparse& a, const Sparse& b) {
  constexpr double kProduct = 200;  // of two monomials, which is then sorted in
  if (a.size() * b.size() <= kMostProducts)
    context.charge(kProduct * static_cast<double>(a.size() * b.size()));
  return product(a, b);
}

/// weights * y of constants.
std::vector<double> combined_constants(const Matrix& weights, const Field& y) {
  std::vector<double> sum(static_cast<std::size_t>(weights.rows()), 0.0);
  for (const Term& t : y.terms)
    for (int s = 0; s < y.columns; ++s)
      for (std::size_t i = 0; i < sum.size(); ++i)
        sum[i] += t.at_column(s) * weights(static_cast<Eigen::Index>(i), s);
  return sum;
}
}  // namespace

Field FieldAlgebra::constant(std::vector<double> values) const {
  const int columns = static_cast<int>(values.size());
  if (std::all_of(values.begin(), values.end(), [&](double x) { return x == values[0]; }))
    values.resize(1);
  if (values.size() == 1 && values[0] == 0) return {columns, {}};
  return {columns, {{std::move(values), {}}}};
}

Field FieldAlgebra::of_block(int affine) const {
  return {store_.block(affine).rows, {{{1.0}, {{FunctionTable::kIdentity, affine, nullptr}}}}};
}

Field FieldAlgebra::remap(const Field& x, const std::vector<int>& index) {
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
      u.factors.push_back({f.f, f.block, columns});
    }
    for (FormPower p : t.forms) {
      if (p.form.size() > 1) {
        std::vector<int> own;
        for (const int i : index) own.push_back(p.at_column(std::max(i, 0)));
        p.form = std::move(own);
      }
      u.forms.push_back(std::move(p));
    }
    if (t.sum) {
      Matrix weights(count, t.sum->rows());
      for (int i = 0; i < count; ++i)
        weights.row(i) = t.sum->weights->row(std::max(index[at(i)], 0));
      u.sum =
          WeightedSum{std::make_shared<const Matrix>(std::move(weights)), t.sum->f, t.sum->block};
    }
    out.terms.push_back(std::move(u));
  }
  return out;
}

bool FieldAlgebra::linear(const Field& x) const {
  return !x.polynomials && std::all_of(x.terms.begin(), x.terms.end(), [](const Term& t) {
    return t.plain() && (t.factors.empty() ||
                         (t.factors.size() == 1 && t.factors[0].f == FunctionTable::kIdentity));
  });
}

/// For each column the first that is equal to it by structure.
std::vector<int> FieldAlgebra::distinct_columns(const Field& x) const {
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
      const GaussianBlock& from = store_.block(f.block);
      for (const LinearPart& p : from.parts) {
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
    for (const FormPower& p : t.forms)
      if (p.form.size() > 1) refine([&](int i) { return static_cast<double>(p.at_column(i)); });
  }
  return own;
}

/// A block of Gaussians equal to a linear field.
int FieldAlgebra::block_of(const Field& x) {
  if (x.terms.size() == 1 && x.terms[0].coefficient == std::vector<double>{1.0} &&
      x.terms[0].factors.size() == 1 && !x.terms[0].factors[0].columns)
    return x.terms[0].factors[0].block;
  GaussianBlock out;
  out.rows = x.columns;
  context_.charge(static_cast<double>(x.terms.size()) * x.columns);
  const auto dense = [&](LinearPart& p) {
    if (!p.selection()) return;
    p.dense = Matrix::Zero(x.columns, store_.family(p.family).size);
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
    const GaussianBlock& from = store_.block(f.block);
    if (from.mean.size() > 0) {
      if (out.mean.size() == 0) out.mean = Eigen::VectorXd::Zero(x.columns);
      for (int i = 0; i < x.columns; ++i) out.mean(i) += c(i) * from.mean(f.column(i));
    }
    for (const LinearPart& p : from.parts) {
      LinearPart q{p.family, {}, {}, {}};
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
                                     [&](const LinearPart& o) { return o.family == q.family; });
      if (same == out.parts.end()) {
        out.parts.push_back(std::move(q));
      } else if (same->selection() && q.selection() && same->index == q.index) {
        for (int i = 0; i < x.columns; ++i) accumulate(same->scale(i), q.scale(i));
      } else {
        dense(*same);
        dense(q);
        context_.charge(2 * static_cast<double>(q.dense.size()));
        for (Eigen::Index k = 0; k < q.dense.size(); ++k)
          accumulate(same->dense.data()[k], q.dense.data()[k]);
      }
    }
  }
  return store_.insert(std::move(out));
}

/// Linear fields become one Gaussian block; equal factors of several terms are collected.
Field FieldAlgebra::simplified(Field x) {
  std::erase_if(x.terms, [](const Term& t) {
    return std::all_of(t.coefficient.begin(), t.coefficient.end(), [](double c) { return c == 0; });
  });
  if (x.terms.size() > 1 && linear(x)) {
    const int affine = block_of(x);
    const double relative = x.relative;
    const MomentMethod method = x.method;
    x = of_block(affine);
    x.relative = relative;
    x.method = method;
  }
  if (x.terms.size() > kManyTerms) join_sums(x);
  if (x.terms.size() > kMostTerms) throw Unknown{fmt::format("more than {} terms", kMostTerms), {}};
  return x;
}

Field FieldAlgebra::expanded(const Field& x) const {
  Field out{x.columns, {}, x.relative, x.method, x.polynomials};
  for (const Term& t : x.terms) {
    const int rows = t.sum ? t.sum->rows() : 1;
    if (out.terms.size() + at(rows) > kMostTerms)
      throw Unknown{"a sum over many functions of Gaussians times another", {}};
    if (!t.sum)
      out.terms.push_back(t);
    else
      for (int s = 0; s < rows; ++s) {
        Term u{{}, t.factors, std::nullopt, t.forms};
        for (int i = 0; i < x.columns; ++i)
          u.coefficient.push_back(t.at_column(i) * (*t.sum->weights)(i, s));
        u.factors.push_back(
            {t.sum->f, t.sum->block, std::make_shared<const std::vector<int>>(at(x.columns), s)});
        out.terms.push_back(std::move(u));
      }
  }
  return out;
}

std::shared_ptr<const Polynomials> FieldAlgebra::polynomials(const Field& x) {
  if (x.polynomials) return x.polynomials;
  if (std::any_of(x.terms.begin(), x.terms.end(), [](const Term& t) { return !t.plain(); }))
    return nullptr;
  for (const Term& t : x.terms)
    for (const Factor& f : t.factors) {
      if (!functions_.polynomial(f.f)) return nullptr;
      for (const LinearPart& p : store_.block(f.block).parts) {
        if (store_.family(p.family).matrix >= 0) return nullptr;
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
        const GaussianBlock& affine = store_.block(f.block);
        const int row = f.column(i);
        if (store_.is_constant(f, i)) {  // a polynomial almost everywhere need not be one there
          for (auto& [m, c] : whole) c *= store_.value_at_mean(f, i);
          continue;
        }
        Sparse g;
        if (affine.mean.size() > 0) g.push_back({Monomial{}, affine.mean(row)});
        for (const LinearPart& p : affine.parts)
          for (int k = 0; k < store_.family(p.family).size; ++k) {
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
          auto next = charged_product(context_, value, g);
          if (!next) return nullptr;
          next->push_back({Monomial{}, c[j]});
          value = collected(std::move(*next));
        }
        auto next = charged_product(context_, whole, value);
        if (!next) return nullptr;
        whole = std::move(*next);
      }
      columns[at(i)].insert(columns[at(i)].end(), whole.begin(), whole.end());
    }
  for (Sparse& column : columns) column = collected(std::move(column));
  return std::make_shared<const Polynomials>(std::move(columns));
}

Field FieldAlgebra::of_polynomials(Polynomials columns, const Field& x, const Field& y) const {
  Field out{
      static_cast<int>(columns.size()), {}, x.relative + y.relative, weaker(x.method, y.method)};
  out.polynomials = std::make_shared<const Polynomials>(std::move(columns));
  return out;
}

Field FieldAlgebra::add(Field x, const Field& y, double sign) {
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
  context_.charge(8.0 * static_cast<double>(x.terms.size() * y.terms.size()));
  for (Term t : y.terms) {
    if (sign != 1)
      for (double& c : t.coefficient) c *= sign;
    const auto same = std::find_if(x.terms.begin(), x.terms.end(), [&](const Term& o) {
      return o.factors.size() == t.factors.size() && o.forms == t.forms &&
             std::equal(o.factors.begin(), o.factors.end(), t.factors.begin(),
                        [](const Factor& a, const Factor& b) {
                          return a.f == b.f && a.block == b.block &&
                                 same_columns(a.columns, b.columns);
                        }) &&
             o.sum.has_value() == t.sum.has_value() &&
             (!o.sum || (o.sum->weights == t.sum->weights && o.sum->f == t.sum->f &&
                         o.sum->block == t.sum->block));
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

Field FieldAlgebra::times(const Field& x, const Field& y) {
  // Sums of products are kept as they are while they are short: other functions may still multiply
  // them.
  const bool brief = x.constant() || y.constant() || x.terms.size() * y.terms.size() <= kFewTerms;
  if (const auto p = brief && !x.polynomials && !y.polynomials ? nullptr : polynomials(x))
    if (const auto q = polynomials(y)) {
      Polynomials columns;
      for (std::size_t i = 0; i < p->size(); ++i) {
        auto own = charged_product(context_, (*p)[i], (*q)[i]);
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
      Term u{s.coefficient, s.factors, s.sum ? s.sum : t.sum, s.forms};
      if (t.coefficient.size() > u.coefficient.size())
        u.coefficient.resize(t.coefficient.size(), u.coefficient[0]);
      for (std::size_t i = 0; i < u.coefficient.size(); ++i)
        u.coefficient[i] *= t.at_column(static_cast<int>(i));
      for (const Factor& f : t.factors) {
        const auto same = std::find_if(u.factors.begin(), u.factors.end(), [&](const Factor& o) {
          return o.block == f.block && same_columns(o.columns, f.columns);
        });
        if (same == u.factors.end())
          u.factors.push_back(f);
        else
          same->f = functions_.times(same->f, f.f);
      }
      std::sort(u.factors.begin(), u.factors.end(), [](const Factor& a, const Factor& b) {
        return std::tie(a.block, a.f) < std::tie(b.block, b.f);
      });
      for (const FormPower& p : t.forms) {
        const auto same = std::find_if(u.forms.begin(), u.forms.end(),
                                       [&](const FormPower& o) { return o.form == p.form; });
        if (same == u.forms.end())
          u.forms.push_back(p);
        else
          same->power += p.power;
      }
      std::erase_if(u.forms, [](const FormPower& p) { return p.power == 0; });
      std::sort(u.forms.begin(), u.forms.end(),
                [](const FormPower& a, const FormPower& b) { return a.form < b.form; });
      Field product{x.columns, {std::move(u)}, out.relative, out.method};
      out = add(std::move(out), std::move(product), 1);
    }
  return out;
}

/// Sums of `depth` columns each are best done by `combine`: no more terms than by adding columns
/// one by one.
bool FieldAlgebra::one_product(const Field& x, int depth) const {
  if (x.polynomials) return false;
  return x.columns == depth || linear(x) ||
         std::all_of(x.terms.begin(), x.terms.end(),
                     [](const Term& t) { return t.factors.empty() && t.forms.empty(); });
}

/// Entries of weights * p that are what rounding leaves of a sum that cancels become 0, as in
/// affine_of.
void FieldAlgebra::drop_cancelled(Matrix& product, const Matrix& weights, const LinearPart& p) {
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

Field FieldAlgebra::combine(const Matrix& weights, const Field& y) {
  const int rows = static_cast<int>(weights.rows());
  Field out{rows, {}, y.relative, y.method};
  if (y.constant()) {
    out.terms = constant(combined_constants(weights, y)).terms;
    return out;
  }
  if (linear(y)) {
    const GaussianBlock& from = store_.block(block_of(y));
    GaussianBlock to;
    to.rows = rows;
    if (from.mean.size() > 0) to.mean = weights * from.mean;
    for (const LinearPart& p : from.parts) {
      LinearPart q{p.family, {}, {}, Matrix::Zero(rows, store_.family(p.family).size)};
      if (p.selection())
        for (int s = 0; s < y.columns; ++s)
          q.dense.col(p.index[at(s)]) += p.scale(s) * weights.col(s);
      else
        q.dense = weights * p.dense;
      context_.charge(static_cast<double>(q.dense.size()) *
                      (p.selection() ? 1 : 0.25 * static_cast<double>(weights.cols())));
      drop_cancelled(q.dense, weights, p);
      to.parts.push_back(std::move(q));
    }
    const Field sum = of_block(store_.insert(std::move(to)));
    out.terms = sum.terms;
    return out;
  }
  Field flat{y.columns, {}}, rest{y.columns, {}, y.relative, y.method, y.polynomials};
  for (const Term& t : y.terms) {
    const bool one = t.factors.size() == 1 && t.plain();
    if (t.constant() || (one && t.factors[0].f == FunctionTable::kIdentity)) {
      flat.terms.push_back(t);
    } else if (t.sum && t.factors.empty() && t.forms.empty()) {
      Eigen::VectorXd c(y.columns);
      for (int s = 0; s < y.columns; ++s) c(s) = t.at_column(s);
      out.terms.push_back(
          {{1.0},
           {},
           WeightedSum{std::make_shared<const Matrix>((weights * c.asDiagonal()) * *t.sum->weights),
                       t.sum->f, t.sum->block}});
    } else if (one && !functions_.polynomial(t.factors[0].f)) {
      const Factor& f = t.factors[0];
      std::vector<int> slot(at(store_.block(f.block).rows), -1), used;
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
               {{f.f, f.block, std::make_shared<const std::vector<int>>(at(rows), used[k])}}});
        continue;
      }
      const bool whole = static_cast<int>(used.size()) == store_.block(f.block).rows &&
                         std::is_sorted(used.begin(), used.end());
      const int affine = whole ? f.block : block_of(remap(of_block(f.block), used));
      out.terms.push_back(
          {{1.0}, {}, WeightedSum{std::make_shared<const Matrix>(std::move(own)), f.f, affine}});
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

std::optional<UnaryField> FieldAlgebra::as_unary(const Field& x) {
  std::optional<UnaryField> out;
  if (x.polynomials) return out;
  FunctionTable::Id sum = -1;
  double shift = 0;
  for (const Term& t : x.terms) {
    if (t.coefficient.size() != 1 || t.factors.size() > 1 || !t.plain()) return std::nullopt;
    if (t.factors.empty()) {
      shift += t.coefficient[0];
      continue;
    }
    const Factor& f = t.factors[0];
    if (out && (out->block != f.block || !same_columns(out->columns, f.columns)))
      return std::nullopt;
    const auto scaled = t.coefficient[0] == 1 ? f.f : functions_.scaled(t.coefficient[0], f.f);
    sum = out ? functions_.compose({Fn::kAdd, 0}, {sum, scaled}) : scaled;
    out = UnaryField{sum, f.block, f.columns};
  }
  if (!out) return std::nullopt;
  out->f = shift == 0 ? sum : functions_.compose({Fn::kAdd, 0}, {sum, shift});
  return out;
}

/// A field of functions of different multiples and shifts of one Gaussian behind each column, as
/// functions of that Gaussian.
std::optional<UnaryField> FieldAlgebra::of_one_gaussian(const Field& x) {
  if (x.polynomials) return std::nullopt;
  std::optional<std::pair<int, std::vector<int>>> base;  // family, members
  FunctionTable::Id sum = -1;
  double constants = 0;
  for (const Term& t : x.terms) {
    if (t.coefficient.size() != 1 || !t.plain()) return std::nullopt;
    if (t.factors.empty()) {
      constants += t.coefficient[0];
      continue;
    }
    FunctionTable::Id product = -1;
    for (const Factor& f : t.factors) {
      const GaussianBlock& from = store_.block(f.block);
      if (from.parts.size() != 1 || !from.parts[0].selection()) return std::nullopt;
      const LinearPart& part = from.parts[0];
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
  if (is_new || !store_.contains(known->second))
    known->second = store_.insert(
        {x.columns, {}, {{base->first, base->second, Eigen::VectorXd::Ones(x.columns), {}}}});
  return UnaryField{sum, known->second, nullptr};
}

void FieldAlgebra::keep_symbols(int count) {
  std::erase_if(symbols_, [&](const auto& s) { return s.second >= count; });
}

}  // namespace tplimit::moments
