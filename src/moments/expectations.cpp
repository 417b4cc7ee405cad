#include "moments/expectations.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tplimit::moments {

using namespace ir;

namespace {

/// Of a column of a term: bit k says that factor k is constant there, later bits which pairs of
/// others are dependent.
using Pattern = std::uint64_t;
constexpr std::size_t kMostInPattern = 16, kPatternBits = 64;

bool constant_in(Pattern pattern, std::size_t factor) {
  return factor < kMostInPattern && (pattern >> factor & 1) != 0;
}

/// Columns of a term by their patterns.
struct ColumnGroups {
  const Term& term;
  std::map<Pattern, std::vector<int>> columns{};
  /// One group, and no constant.
  [[nodiscard]] bool plain() const {
    if (columns.size() != 1) return false;
    for (std::size_t k = 0; k < term.factors.size(); ++k)
      if (constant_in(columns.begin()->first, k)) return false;
    return true;
  }
};

ColumnGroups by_patterns(const Term& term, int count, CovarianceStore& store) {
  const auto& factors = term.factors;
  const std::size_t single = std::min(factors.size(), kMostInPattern);
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  for (std::size_t k = 0; k < single; ++k)
    for (std::size_t l = 0; l < k && single + pairs.size() < kPatternBits; ++l)
      if (store.related(factors[k].block, factors[l].block)) pairs.emplace_back(k, l);
  const auto pattern_of = [&](int i) {
    Pattern out = 0;
    for (std::size_t k = 0; k < single; ++k) out |= Pattern{store.is_constant(factors[k], i)} << k;
    for (std::size_t p = 0; p < pairs.size(); ++p) {
      const auto& [k, l] = pairs[p];
      if (((out >> k | out >> l) & 1) == 0)
        out |= Pattern{store.dependent_at(factors[k], factors[l], i)} << (single + p);
    }
    return out;
  };
  const auto varies = [](const Factor& f) {
    return !f.columns || std::adjacent_find(f.columns->begin(), f.columns->end(),
                                            std::not_equal_to<>()) != f.columns->end();
  };
  const bool uniform = std::none_of(factors.begin(), factors.end(), varies);
  ColumnGroups out{term};
  Pattern pattern = 0;
  for (int i = 0; i < count; ++i) {
    if (i == 0 || !uniform) pattern = pattern_of(i);
    out.columns[pattern].push_back(i);
  }
  return out;
}

/// c_i prod f(g_i) in the columns of a group: constants apart from the other factors.
std::pair<Term, Eigen::VectorXd> without_constants(const ColumnGroups& groups, Pattern pattern,
                                                   const std::vector<int>& index,
                                                   CovarianceStore& store) {
  Term rest{{1.0}, {}};
  Eigen::VectorXd constants = Eigen::VectorXd::Ones(static_cast<Eigen::Index>(index.size()));
  for (std::size_t k = 0; k < groups.term.factors.size(); ++k) {
    const Factor& f = groups.term.factors[k];
    if (constant_in(pattern, k)) {
      for (std::size_t i = 0; i < index.size(); ++i)
        constants(static_cast<Eigen::Index>(i)) *= store.value_at_mean(f, index[i]);
      continue;
    }
    rest.factors.push_back(f);
    if (groups.columns.size() == 1) continue;
    std::vector<int> own;
    for (const int i : index) own.push_back(f.column(i));
    rest.factors.back().columns = std::make_shared<const std::vector<int>>(std::move(own));
  }
  return {std::move(rest), std::move(constants)};
}

}  // namespace

/// Columns that differ in which factors are constants, or in which are independent, one group at a
/// time: E a_i F_i b_j G_j = a_i b_j E F_i G_j, a and b the constants.  Nothing if there is but one
/// group, and no constant.
std::optional<Moment> Expectations::by_pattern(const Term& s, int rows, const Term& t,
                                               int columns) {
  const ColumnGroups left = by_patterns(s, rows, store_), right = by_patterns(t, columns, store_);
  if (left.plain() && right.plain()) return std::nullopt;
  Moment out{Matrix::Zero(rows, columns)};
  for (const auto& [row_pattern, row_index] : left.columns)
    for (const auto& [column_pattern, column_index] : right.columns) {
      const auto [F, a] = without_constants(left, row_pattern, row_index, store_);
      const auto [G, b] = without_constants(right, column_pattern, column_index, store_);
      const Moment m = term_moment(F, static_cast<int>(row_index.size()), G,
                                   static_cast<int>(column_index.size()));
      for (Eigen::Index j = 0; j < b.size(); ++j)
        for (Eigen::Index i = 0; i < a.size(); ++i)
          out.value(row_index[static_cast<std::size_t>(i)],
                    column_index[static_cast<std::size_t>(j)]) = a(i) * b(j) * m.entry(i, j);
      out.error = std::max(out.error, m.error * a.cwiseAbs().maxCoeff() * b.cwiseAbs().maxCoeff());
      out.method = weaker(out.method, m.method);
    }
  return out;
}

Moment Expectations::mean_of(const Field& x) { return cross(x, {1, {{{1.0}, {}}}}); }

/// E of products of polynomials in independent standard normals, monomial by monomial.
Moment Expectations::polynomial_cross(const Field& x, const Field& y) {
  Moment out;
  out.value.setZero(x.columns, y.columns);
  const auto p = algebra_.polynomials(x), q = algebra_.polynomials(y);
  if (!p || !q)
    throw Unknown{"a moment of a polynomial with another function of several Gaussians", {}};
  for (int j = 0; j < y.columns; ++j)
    for (int i = 0; i < x.columns; ++i) {
      const Sparse &a = (*p)[at(i)], &b = (*q)[at(j)];
      if (a.size() * b.size() > 20 * kMostProducts)
        throw Unknown{"a polynomial with too many terms", {}};
      constexpr double kExpectation = 40;  // of a product of two monomials
      context_.charge(kExpectation * static_cast<double>(a.size() * b.size()));
      bool fits = true;
      long double sum = 0;  // terms of high degree cancel
      for (const auto& [m, c] : a)
        for (const auto& [n, d] : b)
          sum += static_cast<long double>(c * d) * expectation(multiplied(m, n, fits));
      if (!fits) throw Unknown{"a polynomial of too high a degree", {}};
      out.value(i, j) = static_cast<double>(sum);
    }
  out.method = weaker(x.method, y.method);
  out.error = out.value.cwiseAbs().maxCoeff() * (x.relative + y.relative);
  return out;
}

/// E c s_i d t_j of two fields of one term each, with the same coefficient in all columns.
Moment Expectations::single_terms(const Field& x, const Field& y, bool lazy) {
  Moment m = term_moment(x.terms[0], x.columns, y.terms[0], y.columns, lazy);
  const double c = x.terms[0].coefficient[0] * y.terms[0].coefficient[0];
  if (m.pairs) {
    m.pairs = PairMatrix::scaled(m.pairs, x.terms[0].coefficient[0], y.terms[0].coefficient[0],
                                 context_.carried(x.relative + y.relative));
    m.method = weaker(m.method, weaker(x.method, y.method));
    return m;
  }
  if (c != 1) m.value *= c;
  if (m.value.rows() == 1 && x.columns > 1) m.value = m.value.replicate(x.columns, 1).eval();
  if (m.value.cols() == 1 && y.columns > 1) m.value = m.value.replicate(1, y.columns).eval();
  m.error = std::abs(c) * m.error + m.value.cwiseAbs().maxCoeff() * (x.relative + y.relative);
  m.method = weaker(m.method, weaker(x.method, y.method));
  return m;
}

Moment Expectations::cross(const Field& x, const Field& y, bool lazy) {
  if (x.polynomials || y.polynomials) return polynomial_cross(x, y);
  if (x.terms.size() == 1 && y.terms.size() == 1 && x.terms[0].coefficient.size() == 1 &&
      y.terms[0].coefficient.size() == 1)
    return single_terms(x, y, lazy);
  Moment out;
  double size = 0;
  out.value.setZero(x.columns, y.columns);
  const auto parts =
      [](const Field& z) {  // each term with the columns where its coefficient is not 0
        std::vector<std::pair<Term, std::vector<int>>> all;
        for (const Term& t : z.terms) {
          std::vector<int> index;
          for (int i = 0; i < z.columns; ++i)
            if (t.at_column(i) != 0) index.push_back(i);
          if (!index.empty())
            all.emplace_back(static_cast<int>(index.size()) == z.columns
                                 ? t
                                 : FieldAlgebra::remap({z.columns, {t}}, index).terms[0],
                             std::move(index));
        }
        return all;
      };
  const auto left = parts(x), right = parts(y);
  // One infinite mean beside finite ones makes the sum infinite; two may cancel.
  std::optional<Unknown> infinite;
  std::size_t count = 0;
  for (const auto& [s, rows] : left)
    for (const auto& [t, columns] : right) {
      Moment m;
      try {
        m = term_moment(s, static_cast<int>(rows.size()), t, static_cast<int>(columns.size()));
      } catch (Unknown& unknown) {
        if (!unknown.infinite) throw;
        infinite = std::move(unknown);
        ++count;
        continue;
      }
      double largest = 0;
      for (int j = 0; j < static_cast<int>(columns.size()); ++j) {
        const double cj = t.at_column(j);
        for (int i = 0; i < static_cast<int>(rows.size()); ++i) {
          const double c = cj * s.at_column(i);
          out.value(rows[at(i)], columns[at(j)]) += c * m.entry(i, j);
          largest = std::max(largest, std::abs(c));
        }
      }
      out.error += largest * m.error;
      size += largest * m.value.cwiseAbs().maxCoeff();
      out.method = weaker(out.method, m.method);
    }
  if (infinite) {
    infinite->infinite = count == 1;
    infinite->grows = infinite->grows && count == 1;
    throw Unknown{*infinite};
  }
  out.error += size * (x.relative + y.relative);
  out.method = weaker(out.method, weaker(x.method, y.method));
  return out;
}

/// Factors in groups of which no two depend on each other; those of one factor first: their mean is
/// often 0, and then so is all.
std::vector<SidedFactors> Expectations::independent_groups(const SidedFactors& factors, int rows,
                                                           int columns) {
  const auto linked = [&](const auto& a, const auto& b) {
    if (a.first == b.first)
      return store_.dependent_somewhere(a.second, b.second, a.first == 0 ? rows : columns);
    return a.first == 0 ? store_.dependent(a.second, rows, b.second, columns)
                        : store_.dependent(b.second, rows, a.second, columns);
  };
  std::vector<std::size_t> group(factors.size());
  std::iota(group.begin(), group.end(), std::size_t{0});
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t i = 0; i < factors.size(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (group[i] != group[j] && linked(factors[i], factors[j])) {
          group[i] = group[j] = std::min(group[i], group[j]);
          changed = true;
        }
  }
  std::vector<SidedFactors> groups(factors.size());
  for (std::size_t i = 0; i < factors.size(); ++i) groups[group[i]].push_back(factors[i]);
  std::erase_if(groups, [](const auto& own) { return own.empty(); });
  std::stable_sort(groups.begin(), groups.end(),
                   [](const auto& a, const auto& b) { return a.size() < b.size(); });
  return groups;
}

/// By a change of measure, if that is what is best: bounded functions of one or two Gaussians are
/// done in bulk.
std::optional<Moment> Expectations::change_of_measure(const SidedFactors& own, int rows,
                                                      int columns) {
  const bool centred = std::all_of(own.begin(), own.end(), [&](const auto& f) {
    return store_.block(f.second.block).mean.size() == 0;
  });
  if (own.size() == 1 && centred && functions_.closed_form(own[0].second.f)) return std::nullopt;
  if (own.size() == 2 && own[0].first != own[1].first && centred &&
      functions_.pair_form(own[0].second.f, own[1].second.f))
    return std::nullopt;
  if (own.size() <= 2 &&
      std::none_of(own.begin(), own.end(), [&](const auto& f) { return grows(f.second); }))
    return std::nullopt;
  return tilted(own, rows, columns);
}

/// The moment of dependent factors, by the first that applies of: a change of measure, a mean of
/// one Gaussian, a pair of Gaussians, polynomials (exact), Stein's lemma, quadrature.
Moment Expectations::group_moment(const SidedFactors& own, int rows, int columns, bool lazy) {
  if (auto changed = change_of_measure(own, rows, columns)) return std::move(*changed);
  const auto& [side, first] = own[0];
  const int count = side == 0 ? rows : columns;
  const auto turned = [&, mirrored = side == 1](Moment m) {
    if (mirrored) m.value.transposeInPlace();
    return m;
  };
  if (own.size() == 1) return turned(mean(first, count));
  if (own.size() == 2 && own[0].first != own[1].first)
    return pair(first, rows, own[1].second, columns, lazy);
  if (own.size() == 2)
    if (auto closed = same_side(first, own[1].second, count)) return turned(std::move(*closed));
  if (auto exact = polynomial_moment(own, rows, columns)) return std::move(*exact);
  if (auto reduced = stein(own, rows, columns)) return std::move(*reduced);
  if (own.size() == 2)
    if (auto bulk = selected(first, own[1].second, count)) return turned(std::move(*bulk));
  return single_entries(own, rows, columns);
}

/// The product of the moments of independent groups, as numbers.
Moment Expectations::product_of(std::vector<Moment> parts) {
  std::sort(parts.begin(), parts.end(),
            [](const Moment& a, const Moment& b) { return a.value.size() > b.value.size(); });
  Moment out = std::move(parts[0]);
  for (std::size_t k = 1; k < parts.size(); ++k) {
    const Moment& m = parts[k];
    const double old_size = out.value.cwiseAbs().maxCoeff(), size = m.value.cwiseAbs().maxCoeff();
    out.method = weaker(out.method, m.method);
    if (m.value.size() == 1) {
      out.error = out.error * size + m.error * old_size;
      out.value *= m.value(0, 0);
      continue;
    }
    Matrix next(std::max(out.value.rows(), m.value.rows()),
                std::max(out.value.cols(), m.value.cols()));
    for (Eigen::Index j = 0; j < next.cols(); ++j)
      for (Eigen::Index i = 0; i < next.rows(); ++i)
        next(i, j) =
            out.value(out.value.rows() == 1 ? 0 : i, out.value.cols() == 1 ? 0 : j) * m.entry(i, j);
    out.error = out.error * size + m.error * old_size;
    out.value = std::move(next);
  }
  return out;
}

/// E s_i t_j.  Factors of both sides fall into independent groups, and the moment is the product of
/// the groups' (docs/theory.md, "Moments without sampling": factors of independent groups
/// separate).  A group of mean 0 makes the product 0 only if the others have means.
Moment Expectations::term_moment(const Term& s, int rows, const Term& t, int columns, bool lazy) {
  context_.charge(kTermOperations + 8.0 * rows * columns);
  if (!s.forms.empty() || !t.forms.empty()) return form_moment(s, rows, t, columns);
  if (s.sum || t.sum) return sum_moment(s, rows, t, columns);
  if (auto parts = by_pattern(s, rows, t, columns)) return std::move(*parts);
  // No argument is a constant now: what is 0 almost everywhere has the mean 0, whatever stands
  // beside it.
  for (const auto* side : {&s, &t})
    for (const Factor& f : side->factors)
      if (functions_.null(f.f)) return {Matrix::Zero(1, 1)};
  SidedFactors factors;  // (side, factor)
  for (const Factor& f : s.factors) factors.emplace_back(0, f);
  for (const Factor& f : t.factors) factors.emplace_back(1, f);
  std::vector<Moment> parts;
  bool zero = false;
  for (const auto& own : independent_groups(factors, rows, columns)) {
    if (zero &&
        std::none_of(own.begin(), own.end(), [&](const auto& f) { return may_diverge(f.second); }))
      continue;
    parts.push_back(group_moment(own, rows, columns, lazy));
    // 0, if what it is multiplied by has a mean: symmetry proves nothing beside exp of a square.
    zero = zero || (parts.back().method == MomentMethod::kExact && !parts.back().pairs &&
                    (parts.back().value.array() == 0).all());
  }
  if (zero) return {Matrix::Zero(1, 1)};
  if (parts.empty()) return {Matrix::Ones(1, 1)};
  if (std::any_of(parts.begin(), parts.end(), [](const Moment& m) { return m.pairs != nullptr; })) {
    const auto equal = [](const Factor& a, const Factor& b) { return a.same(b); };
    const bool same = rows == columns && std::equal(s.factors.begin(), s.factors.end(),
                                                    t.factors.begin(), t.factors.end(), equal);
    Moment out;
    for (const Moment& m : parts) {
      const Pairs own = store_.as_pairs(m, rows, columns, same);
      out.pairs = out.pairs ? PairMatrix::product(out.pairs, own) : own;
      out.method = weaker(out.method, m.method);
    }
    return out;
  }
  return product_of(std::move(parts));
}

Moment Expectations::mean(const Factor& s, int rows) {
  const GaussianBlock& affine = store_.block(s.block);
  if (s.f == FunctionTable::kIdentity) {
    Moment out{Matrix::Zero(rows, 1)};
    if (affine.mean.size() > 0)
      for (int i = 0; i < rows; ++i) out.value(i, 0) = affine.mean(s.column(i));
    return out;
  }
  if (affine.mean.size() == 0 && functions_.parity(s.f) < 0 && !may_diverge(s))
    return {Matrix::Zero(rows, 1)};
  const Variances& v = store_.variances(s.block);
  Matrix mean, variance(rows, 1);
  for (int i = 0; i < rows; ++i) variance(i, 0) = v.value(s.column(i));
  if (affine.mean.size() > 0) {
    mean.resize(rows, 1);
    for (int i = 0; i < rows; ++i) mean(i, 0) = affine.mean(s.column(i));
  }
  Moment out = normal_means(s.f, mean, variance);
  out.method = weaker(out.method, v.method);
  out.error += v.relative * amplification(s.f, variance.col(0)) * out.value.cwiseAbs().maxCoeff();
  return out;
}

/// E f of normals, entry by entry; no means: 0.
Moment Expectations::normal_means(FunctionTable::Id f, const Matrix& means,
                                  const Matrix& variances) {
  const auto& closed = functions_.closed_form(f);
  const auto& pieces = functions_.piecewise(f);
  Moment out{Matrix(variances.rows(), variances.cols())};
  if ((closed || pieces) && means.size() == 0) {
    const auto count = static_cast<std::size_t>(variances.size());
    if (closed) {
      const Matrix scaled = variances * (closed->scale * closed->scale);
      context_.note(gaussian_mean(closed->g, {scaled.data(), count}, {out.value.data(), count}));
      out.value *= closed->factor;
    } else {
      context_.note(piecewise_mean(*pieces, {variances.data(), count}, {out.value.data(), count}));
    }
    if (!functions_.polynomial(f)) {
      out.method = MomentMethod::kClosedForm;
      out.error = kClosedFormError * out.value.cwiseAbs().maxCoeff();
      context_.disturb(out.value, out.error);
    }
    return out;
  }
  return entries(variances.rows(), variances.cols(), [&](Eigen::Index i, Eigen::Index j) {
    return ProductMoment{{variances(i, j)}, {means.size() > 0 ? means(i, j) : 0.0}, {{0, f}}};
  });
}

/// The moment of terms of which at least one has a sum.
Moment Expectations::sum_moment(const Term& s, int rows, const Term& t, int columns) {
  if (!s.sum || (t.sum && t.factors.empty() && !s.factors.empty())) {  // plain sums go first
    Moment out = sum_moment(t, columns, s, rows);
    out.value.transposeInPlace();
    return out;
  }
  const Term inner{{1.0}, {s.sum->inner()}};
  const Matrix& weights = *s.sum->weights;
  if (s.factors.empty()) {  // weights times the moments of the rows
    const Moment m = term_moment(inner, s.sum->rows(), t, columns);
    Moment out{{}, m.error * weights.cwiseAbs().rowwise().sum().maxCoeff(), m.method};
    if (m.value.rows() == 1)
      out.value = weights.rowwise().sum() * m.value;
    else
      out.value = weights * m.value;
    return out;
  }
  if (!t.sum && t.factors.empty())
    return row_sums(weights, term_moment({{1.0}, s.factors}, rows, inner, s.sum->rows()));
  if (!t.sum && t.factors.size() == 1 && t.factors[0].f == FunctionTable::kIdentity)
    return stein(s, rows, t.factors[0], columns);
  Field x{rows, {s}}, y{columns, {t}};
  x.terms[0].coefficient = y.terms[0].coefficient = {1.0};
  return cross(algebra_.expanded(x), algebra_.expanded(y));
}

}  // namespace tplimit::moments
