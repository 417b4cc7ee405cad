#include "moments/fields.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "moments/line_rule.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/math/gaussian_quadrature.hpp"

namespace tplimit::moments {

using namespace ir;

namespace {
constexpr double kTerm = 100;              // operations of any term, at least
constexpr double kLooseQuadrature = 1e-6;  // relative errors that beat those of particles

std::string not_a_covariance(const std::array<double, 3>& entry) {
  const auto [a, b, c] = entry;
  if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c))
    return "a covariance is infinite or not a number: values grow without bound";
  if (a < 0 || b < 0)
    return fmt::format("a covariance is not positive semidefinite: a variance is {:.3g}",
                       std::min(a, b));
  if (a > 0 && b > 0)
    return fmt::format(
        "a covariance is not positive semidefinite: a squared correlation is 1 + {:.2g}",
        c / a * (c / b) - 1);
  return fmt::format("a covariance is not positive semidefinite: {:.3g} with a constant", c);
}
}  // namespace

MomentValue MomentEngine::average(const Node& node) {
  MomentValue out;
  if (std::holds_alternative<Average>(node.op)) {
    out.value.resize(static_cast<std::size_t>(size_of(node.type.dims)));
    const Moment m = mean_of(operand(node.in[0]));
    for (std::size_t j = 0; j < out.value.size(); ++j)
      out.value[j] = m.value(static_cast<Eigen::Index>(j), 0);
    out.error = {m.error};
    out.method = m.method;
    return out;
  }
  const auto* c = std::get_if<Contract>(&node.op);
  if (!c) throw Unknown{"histograms are drawn by the particle engine", {}};
  const ContractSizes sizes(*c, program_[node.in[0]].type.dims, program_[node.in[1]].type.dims);
  const auto batch = static_cast<int>(sizes.batch), rows = static_cast<int>(sizes.left),
             columns = static_cast<int>(sizes.right), depth = static_cast<int>(sizes.inner);
  const Field x = operand(node.in[0]), y = operand(node.in[1]);
  std::vector<double> error(at(batch), 0.0);
  if (batch * depth != 1) out.value.assign(static_cast<std::size_t>(size_of(node.type.dims)), 0.0);
  for (int p = 0; p < batch; ++p)
    for (int l = 0; l < depth; ++l) {
      std::vector<int> left, right;
      for (int i = 0; i < rows; ++i) left.push_back((p * rows + i) * depth + l);
      for (int j = 0; j < columns; ++j) right.push_back((p * columns + j) * depth + l);
      // The other way round: columns of the matrix are rows of the result.
      const Moment m = cross(remap(y, right), remap(x, left), batch == 1 && depth == 1);
      if (m.pairs) {
        out.pairs = m.pairs;
      } else if (batch == 1 && depth == 1) {
        out.value.assign(m.value.data(), m.value.data() + m.value.size());
      } else {
        double* to = out.value.data() + static_cast<std::ptrdiff_t>(p) * m.value.size();
        for (Eigen::Index k = 0; k < m.value.size(); ++k) to[k] += m.value.data()[k];
      }
      error[at(p)] += m.error;
      out.method = weaker(out.method, m.method);
    }
  out.error = {*std::max_element(error.begin(), error.end())};
  return out;
}

/// Families of different matrices, or of a matrix and its transpose, are independent.
bool MomentEngine::related_families(int f, int g) const {
  if (f == g) return true;
  const Family &a = families_[at(f)], &b = families_[at(g)];
  return a.matrix >= 0 && a.matrix == b.matrix && a.transposed == b.transposed;
}

bool MomentEngine::related(int p, int q) const {
  for (const Part& a : block(p).parts)
    for (const Part& b : block(q).parts)
      if (related_families(a.family, b.family)) return true;
  return false;
}

/// Whether some s_i and some t_j are correlated: of jointly Gaussian variables, those that are not
/// are independent.
bool MomentEngine::dependent(const Factor& s, int rows, const Factor& t, int columns) {
  if (!related(s.affine, t.affine)) return false;
  if (!covariances_.contains({s.affine, t.affine})) {  // as far as that takes no matrix of numbers
    const Affine &x = block(s.affine), &y = block(t.affine);
    for (const Part& a : x.parts)
      for (const Part& b : y.parts)
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
  const auto c = covariance(s.affine, t.affine).value;
  if (!c) return false;
  for (int j = 0; j < columns; ++j)
    for (int i = 0; i < rows; ++i)
      if ((*c)(s.column(i), t.column(j)) != 0) return true;
  return false;
}

/// Whether s_i and t_i are correlated.
bool MomentEngine::dependent_at(const Factor& s, const Factor& t, int i) {
  if (!related(s.affine, t.affine)) return false;
  const auto c = covariance(s.affine, t.affine).value;
  return c && (*c)(s.column(i), t.column(i)) != 0;
}

bool MomentEngine::dependent_somewhere(const Factor& s, const Factor& t, int rows) {
  for (int i = 0; i < rows; ++i)
    if (dependent_at(s, t, i)) return true;
  return false;
}

/// Whether the Gaussian behind column i has variance 0.  What holds almost everywhere need not hold
/// at one point.
bool MomentEngine::is_constant(const Factor& f, int i) {
  if (f.f == FunctionTable::kIdentity) return false;
  const Variances& v = variances(f.affine);
  const Eigen::Index row = f.column(i);
  if (v.resolution.size() > 0 && v.value(row) <= v.resolution(row) * v.resolution(row)) {
    // Zero or not: the same for what is continuous, but not across a jump.
    const double mean = block(f.affine).mean.size() > 0 ? block(f.affine).mean(row) : 0.0,
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

double MomentEngine::value_at_mean(const Factor& f, int i) const {
  const Affine& affine = block(f.affine);
  const double mean = affine.mean.size() > 0 ? affine.mean(f.column(i)) : 0.0;
  double out = 0;
  functions_.evaluate(f.f, 1, &mean, &out);
  return out;
}

/// Columns that differ in which factors are constants, or in which are independent, one group at a
/// time; nothing if there is but one group, and no constant.
std::optional<MomentEngine::Moment> MomentEngine::by_pattern(const Term& s, int rows, const Term& t,
                                                             int columns) {
  struct Side {
    const Term& term;
    int count;
    std::map<std::uint64_t, std::vector<int>>
        groups{};                 ///< by (which are constants, which pairs are dependent)
    std::uint64_t constants = 0;  ///< the bits of constants
  };
  std::array<Side, 2> sides{Side{s, rows}, Side{t, columns}};
  for (Side& side : sides) {
    const auto& factors = side.term.factors;
    const std::size_t single = std::min<std::size_t>(factors.size(), 16);
    side.constants = (std::uint64_t{1} << single) - 1;
    std::vector<std::pair<std::size_t, std::size_t>> pairs;
    for (std::size_t k = 0; k < single; ++k)
      for (std::size_t l = 0; l < k && single + pairs.size() < 64; ++l)
        if (related(factors[k].affine, factors[l].affine)) pairs.emplace_back(k, l);
    const auto varies = [&](const Factor& f) {
      return !f.columns || std::adjacent_find(f.columns->begin(), f.columns->end(),
                                              std::not_equal_to<>()) != f.columns->end();
    };
    const bool uniform = std::none_of(factors.begin(), factors.end(), varies);
    std::vector<std::uint64_t> masks(at(side.count), 0);
    for (int i = 0; i < side.count; ++i) {
      std::uint64_t& mask = masks[at(i)];
      if (i > 0 && uniform) {
        mask = masks[0];
        continue;
      }
      for (std::size_t k = 0; k < single; ++k)
        mask |= std::uint64_t{is_constant(factors[k], i)} << k;
      for (std::size_t p = 0; p < pairs.size(); ++p) {
        const auto& [k, l] = pairs[p];
        if (((mask >> k | mask >> l) & 1) == 0)
          mask |= std::uint64_t{dependent_at(factors[k], factors[l], i)} << (single + p);
      }
    }
    for (int i = 0; i < side.count; ++i) side.groups[masks[at(i)]].push_back(i);
  }
  const auto plain = [](const Side& side) {
    return side.groups.size() == 1 && (side.groups.begin()->first & side.constants) == 0;
  };
  if (plain(sides[0]) && plain(sides[1])) return std::nullopt;
  const auto part =
      [&](const Side& side, std::uint64_t mask,
          const std::vector<int>& index) {  // the factors that are not constants, and the constants
        Term term{{1.0}, {}};
        Eigen::VectorXd constants = Eigen::VectorXd::Ones(static_cast<Eigen::Index>(index.size()));
        for (std::size_t k = 0; k < side.term.factors.size(); ++k) {
          const Factor& f = side.term.factors[k];
          if (k < 16 && (mask >> k & 1) != 0) {
            for (std::size_t i = 0; i < index.size(); ++i)
              constants(static_cast<Eigen::Index>(i)) *= value_at_mean(f, index[i]);
            continue;
          }
          term.factors.push_back(f);
          if (side.groups.size() == 1) continue;
          std::vector<int> own;
          for (const int i : index) own.push_back(f.column(i));
          term.factors.back().columns = std::make_shared<const std::vector<int>>(std::move(own));
        }
        return std::pair{std::move(term), std::move(constants)};
      };
  Moment out{Matrix::Zero(rows, columns)};
  for (const auto& [left, row_index] : sides[0].groups)
    for (const auto& [right, column_index] : sides[1].groups) {
      const auto [a, row_constants] = part(sides[0], left, row_index);
      const auto [b, column_constants] = part(sides[1], right, column_index);
      const Moment m = term_moment(a, static_cast<int>(row_index.size()), b,
                                   static_cast<int>(column_index.size()));
      for (std::size_t j = 0; j < column_index.size(); ++j)
        for (std::size_t i = 0; i < row_index.size(); ++i)
          out.value(row_index[i], column_index[j]) =
              row_constants(static_cast<Eigen::Index>(i)) *
              column_constants(static_cast<Eigen::Index>(j)) *
              m.value(m.value.rows() == 1 ? 0 : static_cast<Eigen::Index>(i),
                      m.value.cols() == 1 ? 0 : static_cast<Eigen::Index>(j));
      out.error = std::max(out.error, m.error * row_constants.cwiseAbs().maxCoeff() *
                                          column_constants.cwiseAbs().maxCoeff());
      out.method = weaker(out.method, m.method);
    }
  return out;
}

MomentEngine::Covariance& MomentEngine::family_covariance(int f, int g) {
  const auto known = family_covariances_.find({f, g});
  if (known != family_covariances_.end()) return known->second;
  Covariance out;
  const Family a = families_[at(f)], b = families_[at(g)];
  if (a.matrix < 0) {
    out.identity = f == g;
  } else if (a.matrix == b.matrix && a.transposed == b.transposed) {
    if (const auto other = family_covariances_.find({g, f}); other != family_covariances_.end()) {
      out = settled(other->second);
      out.value = std::make_shared<const Matrix>(out.value->transpose());
      out.pairs = nullptr;
    } else {
      Moment m = cross(*a.x, *b.x, true);
      if (m.pairs && !m.pairs->left() && f != g)
        if (auto left = side(f), right = side(g); left && right)
          m.pairs = PairMatrix::with_sides(m.pairs, left, right);
      out.method = m.method;
      if (m.pairs && m.pairs->left() && (f != g || m.pairs->symmetric())) {
        out.pairs = m.pairs;
      } else {
        m = settled(std::move(m));
        if (f == g) symmetrise(m.value);
        const double size = m.value.cwiseAbs().maxCoeff();
        out.relative = size > 0 ? m.error / size : 0;
        out.value = std::make_shared<const Matrix>(std::move(m.value));
      }
    }
  }
  return family_covariances_.emplace(std::pair{f, g}, std::move(out)).first->second;
}

/// The moments of the members of a family with themselves.
std::shared_ptr<const PairSide> MomentEngine::side(int f) {
  const Covariance& c = family_covariance(f, f);
  if (c.pairs) return c.pairs->left();
  return c.value ? PairMatrix::dense(c.value, carried(c.relative) * c.value->cwiseAbs().maxCoeff(),
                                     true)
                       ->left()
                 : nullptr;
}

const MomentEngine::Covariance& MomentEngine::settled(Covariance& c) {
  if (c.value || !c.pairs) return c;
  Moment m = settled({{}, 0, c.method, c.pairs});
  const double size = m.value.cwiseAbs().maxCoeff();
  c.relative = size > 0 ? m.error / size : 0;
  c.value = std::make_shared<const Matrix>(std::move(m.value));
  return c;
}

MomentEngine::Moment MomentEngine::settled(Moment m) {
  if (!m.pairs) return m;
  m.value.resize(m.pairs->rows(), m.pairs->columns());
  std::array<PairMatrix::Target, 1> target{{{m.pairs, m.value.data()}}};
  note(PairMatrix::evaluate(target, executor_, disturbance_));
  m.error = m.method == MomentMethod::kExact ? 0 : carried(target[0].largest_error);
  m.pairs = nullptr;
  return m;
}

/// A moment as pairs; one row or column stands for all.  same: of the same variables on both sides.
Pairs MomentEngine::as_pairs(const Moment& m, int rows, int columns, bool same) const {
  if (m.pairs) return m.pairs;
  if (m.value.rows() == rows && m.value.cols() == columns)
    return PairMatrix::dense(std::make_shared<const Matrix>(m.value), carried(m.error), same);
  const Eigen::VectorXd ones_left = Eigen::VectorXd::Ones(rows),
                        ones_right = Eigen::VectorXd::Ones(columns);
  if (m.value.size() == 1 && same && m.value(0, 0) >= 0) {
    const Eigen::VectorXd root = std::sqrt(m.value(0, 0)) * ones_left;
    return PairMatrix::outer(root, root, carried(m.error), true);
  }
  const Pairs out =
      m.value.cols() == 1
          ? PairMatrix::outer(
                m.value.rows() == 1 ? m.value(0, 0) * ones_left : Eigen::VectorXd(m.value.col(0)),
                ones_right, carried(m.error), false)
          : PairMatrix::outer(ones_left, m.value.row(0).transpose(), carried(m.error), false);
  return PairMatrix::with_sides(out, nullptr, nullptr);
}

/// The covariance of two blocks as pairs, as far as that takes no numbers.
const MomentEngine::PairCovariance& MomentEngine::pair_covariance(int p, int q) {
  if (const auto known = pair_covariances_.find({p, q}); known != pair_covariances_.end())
    return known->second;
  const auto find = [&]() -> PairCovariance {
    PairCovariance out;
    const Affine &x = block(p), &y = block(q);
    for (std::size_t k = 0; k < x.parts.size(); ++k)
      for (std::size_t l = 0; l < y.parts.size(); ++l) {
        const Part &a = x.parts[k], &b = y.parts[l];
        if (!related_families(a.family, b.family)) continue;
        const Covariance& c = family_covariance(a.family, b.family);
        if (!c.identity && !c.value && !c.pairs) continue;
        if (p == q && k != l) return {};  // their sum is symmetric, they are not
        out.method = weaker(out.method, c.method);
        const auto one_member = [](const Part& s) {
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
      }
    return out;
  };
  PairCovariance out = find();
  return pair_covariances_.emplace(std::pair{p, q}, std::move(out)).first->second;
}

/// The covariances behind two factors, with sides.
MomentEngine::PairCovariance MomentEngine::pairs_of(const Factor& s, int rows, const Factor& t,
                                                    int columns) {
  const auto map = [](const Factor& f, int own) {
    std::vector<int> index;
    for (int i = 0; i < own; ++i) index.push_back(f.column(i));
    return index;
  };
  const bool same = s.affine == t.affine && (s.columns == t.columns ||
                                             (s.columns && t.columns && *s.columns == *t.columns));
  PairCovariance out = pair_covariance(s.affine, t.affine);
  if (out.pairs) {
    out.pairs = PairMatrix::selected(out.pairs, map(s, rows), map(t, columns));
  } else {
    const Covariance& c = covariance(s.affine, t.affine);
    out.method = c.method;
    if (c.value)
      out.pairs = PairMatrix::dense(c.value, carried(c.relative) * c.value->cwiseAbs().maxCoeff(),
                                    same, map(s, rows), map(t, columns));
    else
      out.pairs =
          PairMatrix::outer(Eigen::VectorXd::Zero(rows), Eigen::VectorXd::Zero(columns), 0, false);
  }
  if (!out.pairs->left() || !out.pairs->right()) {
    const auto side_of = [&](const Factor& f, int own) {
      const Variances& v = variances(f.affine);
      out.method = weaker(out.method, v.method);
      auto found = std::make_shared<PairSide>(at(own));
      for (int i = 0; i < own; ++i) {
        found->variance[at(i)] = v.value(f.column(i));
        found->root[at(i)] = std::sqrt(std::max(0.0, found->variance[at(i)]));
        found->error[at(i)] = carried(v.relative);
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

void MomentEngine::each_column(Eigen::Index rows, Eigen::Index columns,
                               const std::function<void(int)>& body) const {
  constexpr Eigen::Index kWorthThreads = 8192;
  if (rows * columns < kWorthThreads)
    for (int j = 0; j < static_cast<int>(columns); ++j) body(j);
  else
    executor_.parallel(columns, [&](std::int64_t j) { body(static_cast<int>(j)); });
}

void MomentEngine::symmetrise(Matrix& x) const {
  constexpr int kTile = 64;  // both tiles fit the first-level cache
  const int size = static_cast<int>(x.rows()), tiles = (size + kTile - 1) / kTile;
  each_column(Eigen::Index{kTile} * size, tiles, [&](int q) {
    for (int p = 0; p <= q; ++p)
      for (int j = q * kTile; j < std::min(size, (q + 1) * kTile); ++j)
        for (int i = p * kTile; i < std::min({size, (p + 1) * kTile, j}); ++i)
          x(i, j) = x(j, i) = 0.5 * (x(i, j) + x(j, i));
  });
}

/// a C.
MomentEngine::Matrix MomentEngine::times_covariance(const Part& a, const Covariance& c, int rows,
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
const MomentEngine::Variances& MomentEngine::variances(int p) {
  if (const auto known = variances_.find(p); known != variances_.end()) return known->second;
  const Affine& x = block(p);
  Variances out{Eigen::VectorXd::Zero(x.rows)};
  charge(kTerm + 20.0 * static_cast<double>(x.parts.size() * x.parts.size()));
  if (const PairCovariance& own = pair_covariance(p, p); own.pairs && own.pairs->left()) {
    const PairSide& side = *own.pairs->left();
    for (int i = 0; i < x.rows; ++i) {
      out.value(i) = side.variance[at(i)];
      if (own.method != MomentMethod::kExact)
        out.relative = std::max(out.relative, side.error[at(i)]);
    }
    out.method = own.method;
  } else {
    for (const Part& a : x.parts)
      for (const Part& b : x.parts) {
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
          charge(0.25 * x.rows * families_[at(b.family)].size *
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
  for (const Part& a : x.parts) {
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

const MomentEngine::Covariance& MomentEngine::covariance(int p, int q) {
  if (const auto known = covariances_.find({p, q}); known != covariances_.end())
    return known->second;
  Covariance out;
  Matrix sum;
  const Affine &x = block(p), &y = block(q);
  charge(kTerm + 20.0 * static_cast<double>(x.parts.size() * y.parts.size()));
  bool open = false;  // a family's covariance has no numbers yet
  for (const Part& a : x.parts)
    for (const Part& b : y.parts) {
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
  for (const Part& a : x.parts)
    for (const Part& b : y.parts) {
      if (!related_families(a.family, b.family)) continue;
      const Covariance& c = settled(family_covariance(a.family, b.family));
      if (!c.identity && !c.value) continue;
      out.relative = std::max(out.relative, c.relative);
      out.method = weaker(out.method, c.method);
      const auto whole = [](const Part& s) {
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
        charge(2.0 * x.rows * y.rows);
        const bool first = sum.size() == 0;
        if (first) sum.resize(x.rows, y.rows);
        each_column(x.rows, y.rows, [&](int j) {
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
      charge(c.identity ? 0.25 * x.rows * y.rows * size
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

/// A derivative at a pole may have an infinite mean where the function has a finite one.
MomentEngine::Moment MomentEngine::finite_part(const std::function<Moment()>& moment) {
  try {
    return moment();
  } catch (Unknown& unknown) {
    unknown.infinite = unknown.grows;
    throw;
  }
}

MomentEngine::Moment MomentEngine::mean_of(const Field& x) { return cross(x, {1, {{{1.0}, {}}}}); }

MomentEngine::Moment MomentEngine::cross(const Field& x, const Field& y, bool lazy) {
  Moment out;
  if (x.polynomials || y.polynomials) {
    out.value.setZero(x.columns, y.columns);
    const auto p = polynomials(x), q = polynomials(y);
    if (!p || !q)
      throw Unknown{"a moment of a polynomial with another function of several Gaussians", {}};
    for (int j = 0; j < y.columns; ++j)
      for (int i = 0; i < x.columns; ++i) {
        const Sparse &a = (*p)[at(i)], &b = (*q)[at(j)];
        if (a.size() * b.size() > 20 * kMostProducts)
          throw Unknown{"a polynomial with too many terms", {}};
        charge(4.0 * static_cast<double>(a.size() * b.size()));
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
  double size = 0;
  if (x.terms.size() == 1 && y.terms.size() == 1 && x.terms[0].coefficient.size() == 1 &&
      y.terms[0].coefficient.size() == 1) {
    Moment m = term_moment(x.terms[0], x.columns, y.terms[0], y.columns, lazy);
    const double c = x.terms[0].coefficient[0] * y.terms[0].coefficient[0];
    if (m.pairs) {
      m.pairs = PairMatrix::scaled(m.pairs, x.terms[0].coefficient[0], y.terms[0].coefficient[0],
                                   carried(x.relative + y.relative));
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
                                 : remap({z.columns, {t}}, index).terms[0],
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
          out.value(rows[at(i)], columns[at(j)]) +=
              c * m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : j);
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

/// Factors of both sides in independent groups; the moment is the product of the groups'.
MomentEngine::Moment MomentEngine::term_moment(const Term& s, int rows, const Term& t, int columns,
                                               bool lazy) {
  charge(kTerm + 8.0 * rows * columns);
  if (s.sum || t.sum) return sum_moment(s, rows, t, columns);
  if (auto parts = by_pattern(s, rows, t, columns)) return std::move(*parts);
  // No argument is a constant now: what is 0 almost everywhere has the mean 0, whatever stands
  // beside it.
  for (const auto* side : {&s, &t})
    for (const Factor& f : side->factors)
      if (functions_.null(f.f)) return {Matrix::Zero(1, 1)};
  std::vector<std::pair<int, Factor>> factors;  // (side, factor)
  for (const Factor& f : s.factors) factors.emplace_back(0, f);
  for (const Factor& f : t.factors) factors.emplace_back(1, f);
  const auto linked = [&](const auto& a, const auto& b) {
    if (a.first == b.first)
      return dependent_somewhere(a.second, b.second, a.first == 0 ? rows : columns);
    return a.first == 0 ? dependent(a.second, rows, b.second, columns)
                        : dependent(b.second, rows, a.second, columns);
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
  std::vector<std::vector<std::pair<int, Factor>>> groups(factors.size());
  for (std::size_t i = 0; i < factors.size(); ++i) groups[group[i]].push_back(factors[i]);
  std::erase_if(groups, [](const auto& own) { return own.empty(); });
  // Those of one factor first: their mean is often 0, and then so is all.
  std::stable_sort(groups.begin(), groups.end(),
                   [](const auto& a, const auto& b) { return a.size() < b.size(); });
  // Bounded functions of one or two Gaussians are done in bulk.
  const auto change_of_measure =
      [&](const std::vector<std::pair<int, Factor>>& own) -> std::optional<Moment> {
    const bool centred = std::all_of(own.begin(), own.end(), [&](const auto& f) {
      return block(f.second.affine).mean.size() == 0;
    });
    if (own.size() == 1 && centred && functions_.closed_form(own[0].second.f)) return std::nullopt;
    if (own.size() == 2 && own[0].first != own[1].first && centred &&
        functions_.pair_form(own[0].second.f, own[1].second.f))
      return std::nullopt;
    if (own.size() <= 2 &&
        std::none_of(own.begin(), own.end(), [&](const auto& f) { return grows(f.second); }))
      return std::nullopt;
    return tilted(own, rows, columns);
  };
  std::vector<Moment> parts;
  bool zero = false;
  for (const auto& own : groups) {
    if (zero &&
        std::none_of(own.begin(), own.end(), [&](const auto& f) { return may_diverge(f.second); }))
      continue;
    if (auto changed = change_of_measure(own)) {
      parts.push_back(std::move(*changed));
    } else if (own.size() == 1) {
      Moment m = mean(own[0].second, own[0].first == 0 ? rows : columns);
      if (own[0].first == 1) m.value.transposeInPlace();
      parts.push_back(std::move(m));
    } else if (own.size() == 2 && own[0].first != own[1].first) {
      parts.push_back(pair(own[0].second, rows, own[1].second, columns, lazy));
    } else {
      std::optional<Moment> closed;
      if (own.size() == 2)
        closed = same_side(own[0].second, own[1].second, own[0].first == 0 ? rows : columns);
      if (closed && own[0].first == 1) closed->value.transposeInPlace();
      if (!closed) closed = polynomial_moment(own, rows, columns);
      if (!closed) closed = stein(own, rows, columns);
      if (!closed && own.size() == 2) {
        closed = selected(own[0].second, own[1].second, own[0].first == 0 ? rows : columns);
        if (closed && own[0].first == 1) closed->value.transposeInPlace();
      }
      parts.push_back(closed ? std::move(*closed) : single_entries(own, rows, columns));
    }
    // 0, if what it is multiplied by has a mean.
    zero = zero || (parts.back().method == MomentMethod::kExact && !parts.back().pairs &&
                    (parts.back().value.array() == 0).all());
  }
  if (zero) return {Matrix::Zero(1, 1)};
  if (parts.empty()) return {Matrix::Ones(1, 1)};
  if (std::any_of(parts.begin(), parts.end(), [](const Moment& m) { return m.pairs != nullptr; })) {
    const auto equal = [](const Factor& a, const Factor& b) {
      return a.f == b.f && a.affine == b.affine &&
             (a.columns == b.columns || (a.columns && b.columns && *a.columns == *b.columns));
    };
    const bool same = rows == columns && std::equal(s.factors.begin(), s.factors.end(),
                                                    t.factors.begin(), t.factors.end(), equal);
    Moment out;
    for (const Moment& m : parts) {
      const Pairs own = as_pairs(m, rows, columns, same);
      out.pairs = out.pairs ? PairMatrix::product(out.pairs, own) : own;
      out.method = weaker(out.method, m.method);
    }
    return out;
  }
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
        next(i, j) = out.value(out.value.rows() == 1 ? 0 : i, out.value.cols() == 1 ? 0 : j) *
                     m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : j);
    out.error = out.error * size + m.error * old_size;
    out.value = std::move(next);
  }
  return out;
}

void MomentEngine::note(const MomentStatus& status) {
  if (rough_) return;  // rough moments need be no covariances
  excess_ = std::max(excess_, status.largest_excess);
  if (status.bad_index != kNoIndex) throw Unknown{not_a_covariance(status.bad_entry), {}};
  if (status.overflow) throw Unknown{"a moment overflows", {}};
}

/// d log E f(u)^2 / d log Var u: how relative errors of variances grow.
double MomentEngine::amplification(FunctionTable::Id f, const Eigen::VectorXd& variances) {
  if (f == FunctionTable::kIdentity) return 1;
  const auto& closed = functions_.closed_form(f);
  if (!closed)
    return functions_.piecewise(f) ? static_cast<double>(std::max<std::size_t>(
                                         2, functions_.piecewise(f)->above.size()))
                                   : 2;
  constexpr double kShift = 1e-6;
  const std::size_t count = static_cast<std::size_t>(std::min<Eigen::Index>(variances.size(), 16));
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double a = variances(static_cast<Eigen::Index>(
                         i * static_cast<std::size_t>(variances.size()) / count)) *
                     closed->scale * closed->scale;
    if (!(a > 0)) continue;
    const std::array<double, 2> v{a, a * (1 + kShift)};
    std::array<double, 2> k{};
    (void)dual_kernel(closed->g, v, v, v, k);
    if (k[0] > 0) largest = std::max(largest, std::abs(k[1] / k[0] - 1) / kShift);
  }
  return largest;
}

/// The moment of factors that are all polynomials in independent normals.
std::optional<MomentEngine::Moment> MomentEngine::polynomial_moment(
    const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  std::array<Field, 2> sides{Field{1, {{{1.0}, {}}}}, Field{1, {{{1.0}, {}}}}};
  for (const auto& [side, f] : factors) {
    Field& field = sides[at(side)];
    field.columns = side == 0 ? rows : columns;
    field.terms[0].factors.push_back(f);
  }
  for (Field& field : sides) {
    field.polynomials = polynomials(field);
    if (!field.polynomials) return std::nullopt;
    field.terms.clear();
  }
  return cross(sides[0], sides[1]);
}

/// E f(u_i) g(v_i) for two Gaussians behind each column, if there is a closed form.
std::optional<MomentEngine::Moment> MomentEngine::same_side(const Factor& s, const Factor& t,
                                                            int rows) {
  const auto form = functions_.pair_form(s.f, t.f);
  if (!form || block(s.affine).mean.size() > 0 || block(t.affine).mean.size() > 0)
    return std::nullopt;
  std::array<std::vector<double>, 3> arrays;  // a, b, c
  Moment out{Matrix(rows, 1)};
  double relative = 0;
  for (std::size_t k = 0; k < 3; ++k) {
    const Factor &p = k == 1 ? t : s, &q = k == 0 ? s : t;
    const Covariance& c = covariance(p.affine, q.affine);
    const double scale =
        (k == 1 ? form->scale_g : form->scale_f) * (k == 0 ? form->scale_f : form->scale_g);
    for (int i = 0; i < rows; ++i)
      arrays[k].push_back(c.value ? scale * (*c.value)(p.column(i), q.column(i)) : 0.0);
    relative = std::max(relative, c.relative);
    out.method = weaker(out.method, c.method);
  }
  std::vector<double> value(at(rows));
  note(form->kernel(arrays[0], arrays[1], arrays[2], value));
  for (int i = 0; i < rows; ++i) out.value(i, 0) = form->factor * value[at(i)];
  const bool exact = functions_.polynomial(s.f) && functions_.polynomial(t.f);
  if (!exact) out.method = weaker(out.method, MomentMethod::kClosedForm);
  if (!exact) disturb(out.value, kClosedFormError * out.value.cwiseAbs().maxCoeff());
  const Eigen::VectorXd a =
      Eigen::Map<const Eigen::VectorXd>(arrays[0].data(), rows) / (form->scale_f * form->scale_f);
  out.error = ((exact ? 0 : kClosedFormError) +
               relative * std::max(amplification(s.f, a), amplification(t.f, a))) *
              out.value.cwiseAbs().maxCoeff();
  return out;
}

/// As entries of all pairs of columns, if those are no more: quadratures of all pairs share their
/// work.
std::optional<MomentEngine::Moment> MomentEngine::selected(const Factor& s, const Factor& t,
                                                           int rows) {
  const auto distinct = [&](const Factor& f, std::vector<int>& place) {
    std::map<int, int> places;
    std::vector<int> columns;
    for (int i = 0; i < rows; ++i) {
      const auto [it, fresh] = places.emplace(f.column(i), static_cast<int>(columns.size()));
      if (fresh) columns.push_back(f.column(i));
      place.push_back(it->second);
    }
    return columns;
  };
  std::vector<int> left_place, right_place;
  std::vector<int> left = distinct(s, left_place), right = distinct(t, right_place);
  if (left.size() * right.size() > at(rows)) return std::nullopt;
  const auto of = [](const Factor& f, std::vector<int> columns) {
    return Factor{f.f, f.affine, std::make_shared<const std::vector<int>>(std::move(columns))};
  };
  const int p = static_cast<int>(left.size()), q = static_cast<int>(right.size());
  const Moment all = pair(of(s, std::move(left)), p, of(t, std::move(right)), q);
  Moment out{Matrix(rows, 1), all.error, all.method};
  for (int i = 0; i < rows; ++i) out.value(i, 0) = all.value(left_place[at(i)], right_place[at(i)]);
  return out;
}

MomentEngine::Moment MomentEngine::mean(const Factor& s, int rows) {
  const Affine& affine = block(s.affine);
  if (s.f == FunctionTable::kIdentity) {
    Moment out{Matrix::Zero(rows, 1)};
    if (affine.mean.size() > 0)
      for (int i = 0; i < rows; ++i) out.value(i, 0) = affine.mean(s.column(i));
    return out;
  }
  if (affine.mean.size() == 0 && functions_.parity(s.f) < 0 && !may_diverge(s))
    return {Matrix::Zero(rows, 1)};
  const Variances& v = variances(s.affine);
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
MomentEngine::Moment MomentEngine::normal_means(FunctionTable::Id f, const Matrix& means,
                                                const Matrix& variances) {
  const auto& closed = functions_.closed_form(f);
  const auto& pieces = functions_.piecewise(f);
  Moment out{Matrix(variances.rows(), variances.cols())};
  if ((closed || pieces) && means.size() == 0) {
    const auto count = static_cast<std::size_t>(variances.size());
    if (closed) {
      const Matrix scaled = variances * (closed->scale * closed->scale);
      note(gaussian_mean(closed->g, {scaled.data(), count}, {out.value.data(), count}));
      out.value *= closed->factor;
    } else {
      note(piecewise_mean(*pieces, {variances.data(), count}, {out.value.data(), count}));
    }
    if (!functions_.polynomial(f)) {
      out.method = MomentMethod::kClosedForm;
      out.error = kClosedFormError * out.value.cwiseAbs().maxCoeff();
      disturb(out.value, out.error);
    }
    return out;
  }
  return entries(variances.rows(), variances.cols(), [&](Eigen::Index i, Eigen::Index j) {
    return Entry{{variances(i, j)}, {means.size() > 0 ? means(i, j) : 0.0}, {{0, f}}};
  });
}

/// E f(u) g(v) of centred Gaussians, g odd or even: only f's part of the same parity counts.  Of
/// relu it is x / 2 or |x| / 2, of step sign(x) / 2 or 1 / 2.
std::optional<MomentEngine::Moment> MomentEngine::by_parity(const Factor& s, int rows,
                                                            const Factor& t, int columns) {
  if (may_diverge(s) || may_diverge(t)) return std::nullopt;
  const auto& pieces = functions_.piecewise(s.f);
  const int parity = functions_.parity(t.f);
  if (parity * functions_.parity(s.f) < 0) return Moment{Matrix::Zero(rows, columns)};
  if (parity == 0 || !pieces) return std::nullopt;
  double c = 0;
  for (std::size_t k = 0; k < std::max(pieces->above.size(), pieces->below.size()); ++k) {
    const double above = k < pieces->above.size() ? pieces->above[k] : 0.0,
                 below = k < pieces->below.size() ? pieces->below[k] : 0.0;
    const double part = 0.5 * (above + parity * (k % 2 == 0 ? below : -below));
    if (part == 0) continue;
    if (k != (parity < 0 ? 1u : 0u)) return std::nullopt;  // neither c nor c x
    c = part;
  }
  if (c == 0) return Moment{Matrix::Zero(rows, columns)};
  Moment out;
  if (parity < 0) {
    out = *stein({{0, {FunctionTable::kIdentity, s.affine, s.columns}}, {1, t}}, rows, columns);
  } else {
    out = mean(t, columns);
    out.value = out.value.transpose().replicate(rows, 1).eval();
  }
  out.value *= c;
  out.error *= std::abs(c);
  return out;
}

MomentEngine::Moment MomentEngine::pair(const Factor& s, int rows, const Factor& t, int columns,
                                        bool lazy) {
  const Affine &x = block(s.affine), &y = block(t.affine);
  const bool identities = s.f == FunctionTable::kIdentity && t.f == FunctionTable::kIdentity;
  if (!identities && (x.mean.size() > 0 || y.mean.size() > 0)) {
    const std::vector<std::pair<int, Factor>> both{{0, s}, {1, t}};
    const auto reduced = stein(both, rows, columns);
    return reduced ? *reduced : single_entries(both, rows, columns);
  }
  const auto &p = functions_.polynomial(s.f), &q = functions_.polynomial(t.f);
  if (identities && lazy && x.mean.size() == 0 && y.mean.size() == 0) {
    const PairCovariance own = pairs_of(s, rows, t, columns);
    return {{}, 0, own.method, own.pairs};
  }
  const bool one_sided = s.f == FunctionTable::kIdentity || t.f == FunctionTable::kIdentity;
  if (!(p && q) && !one_sided)
    if (const auto form = functions_.pair_form(s.f, t.f)) {
      const PairCovariance own = pairs_of(s, rows, t, columns);
      Moment out{{},
                 0,
                 weaker(own.method, MomentMethod::kClosedForm),
                 PairMatrix::kernel(own.pairs, *form)};
      if (lazy) return out;
      out = settled(std::move(out));
      out.error +=
          kClosedFormError *
          out.value.cwiseAbs().maxCoeff();  // what follows as matrices does not count its rounding
      return out;
    }
  const Covariance c = covariance(s.affine, t.affine);
  Moment out{Matrix(rows, columns), 0, c.method};
  const auto gather = [&](int j) {  // column j of the covariances
    double* to = out.value.col(j).data();
    if (!c.value) {
      std::fill_n(to, rows, 0.0);
      return;
    }
    const double* from = c.value->col(t.column(j)).data();
    if (s.columns)
      for (int i = 0; i < rows; ++i) to[i] = from[s.column(i)];
    else
      for (int i = 0; i < rows; ++i) to[i] = from[i];
  };
  const auto gather_all = [&] { each_column(rows, columns, [&](int j) { gather(j); }); };
  if (identities) {
    gather_all();
    out.error = c.relative * out.value.cwiseAbs().maxCoeff();
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i)
        if (x.mean.size() > 0 && y.mean.size() > 0)
          out.value(i, j) += x.mean(s.column(i)) * y.mean(t.column(j));
    return out;
  }
  if (!(p && q) && one_sided) return *stein({{0, s}, {1, t}}, rows, columns);
  const Variances &cx = variances(s.affine), &cy = variances(t.affine);
  Eigen::VectorXd a(rows), b(columns);
  for (int i = 0; i < rows; ++i) a(i) = cx.value(s.column(i));
  for (int j = 0; j < columns; ++j) b(j) = cy.value(t.column(j));
  const double relative = std::max({c.relative, cx.relative, cy.relative});
  out.method = weaker(out.method, weaker(cx.method, cy.method));

  if (p && q) {
    gather_all();  // E f(u) g(v) = sum_l c^l / l! E f^(l)(u) E g^(l)(v)
    Matrix sum = Matrix::Zero(rows, columns), power = Matrix::Ones(rows, columns);
    FunctionTable::Id f = s.f, g = t.f;
    double factorial = 1;
    for (std::size_t l = 0; l < std::min(p->size(), q->size()); ++l) {
      const Moment u = mean({f, s.affine, s.columns}, rows),
                   v = mean({g, t.affine, t.columns}, columns);
      if (l > 0) factorial *= static_cast<double>(l);
      sum += (power.array() * (u.value * v.value.transpose()).array()).matrix() / factorial;
      power = (power.array() * out.value.array()).matrix().eval();
      f = functions_.derivative(f);
      g = functions_.derivative(g);
    }
    out.value = std::move(sum);
    out.error =
        relative * static_cast<double>(p->size() + q->size() - 2) * out.value.cwiseAbs().maxCoeff();
    return out;
  }
  if (auto half = by_parity(s, rows, t, columns)) return std::move(*half);
  if (auto half = by_parity(t, columns, s, rows)) {
    half->value.transposeInPlace();
    return std::move(*half);
  }
  gather_all();
  const std::vector<std::pair<int, Factor>> both{{0, s}, {1, t}};
  if (auto known = recalled(both, rows, columns)) return std::move(*known);
  if (out_of_evaluations()) {
    out.value = rough_pair(functions_, s.f, a, t.f, b, out.value);
    out.method = MomentMethod::kQuadrature;
    return out;
  }
  GramInput input;
  input.rows = rows;
  input.columns = columns;
  input.covariance = out.value.data();
  input.leading = rows;
  input.row_variances = {a.data(), static_cast<std::size_t>(rows)};
  input.column_variances = {b.data(), static_cast<std::size_t>(columns)};
  input.symmetric =
      s.f == t.f && s.affine == t.affine &&
      (s.columns == t.columns || (s.columns && t.columns && *s.columns == *t.columns));
  const auto known_resolution = [&](FunctionTable::Id f, double largest) {
    const int power = largest > 0 ? std::ilogb(largest) + 1 : 0;  // finer for larger variances
    const auto [it, is_new] = resolutions_.try_emplace({f, power}, 0.0);
    if (is_new) it->second = resolution(f, 0, largest > 0 ? std::ldexp(1.0, power) : 0.0);
    return it->second;
  };
  input.resolution =
      std::min(known_resolution(s.f, a.maxCoeff()), known_resolution(t.f, b.maxCoeff()));
  if (!(input.resolution > 0)) return single_entries({{0, s}, {1, t}}, rows, columns);
  GramOptions options;
  const GramRules rules{
      [&](bool column, double variance, std::int64_t order, std::vector<double>& z,
          std::vector<double>& w) {
        hermite_nodes(functions_, column ? t.f : s.f, std::sqrt(variance), order, z, w);
      },
      [&](std::int64_t i, std::int64_t j, double rho) {
        const double root_a = std::sqrt(a(i)), root_b = std::sqrt(b(j)),
                     rest = std::sqrt((1 - rho) * (1 + rho));
        if (rest == 0) {
          const std::array<LineFunction, 2> line{LineFunction{s.f, 0, root_a},
                                                 LineFunction{t.f, 0, rho * root_b}};
          const LineRule r = line_rule(functions_, line, 1);
          return std::pair{r.value, r.status == LineStatus::kConverged
                                        ? r.error
                                        : std::numeric_limits<double>::infinity()};
        }
        const std::array<PlaneFunction, 2> plane{
            PlaneFunction{s.f, 0, root_a, 0}, PlaneFunction{t.f, 0, root_b * rho, root_b * rest}};
        const PlaneRule r = plane_rule(functions_, plane);
        return std::pair{r.value, r.status == LineStatus::kConverged
                                      ? r.error
                                      : std::numeric_limits<double>::infinity()};
      }};
  constexpr double kNarrow = 0.05;  // Mehler series of higher frequencies, 4/h, have more terms,
                                    // (4/h)^2, than the grid for all rows
  const auto smooth = [&](FunctionTable::Id f) {
    return functions_.kinks(f).empty() && functions_.integrable(f);
  };
  if (!smooth(s.f) || !smooth(t.f) || input.resolution < kNarrow) options.rules = &rules;
  const auto evaluate = [this](FunctionTable::Id id) {
    return [this, id](std::int64_t count, const double* points, double* values) {
      functions_.evaluate(id, count, points, values);
    };
  };
  Matrix value(rows, columns);
  const GramResult r = gram_quadrature(
      input, evaluate(s.f), s.f == t.f ? UnaryFunctions{} : UnaryFunctions{evaluate(t.f)}, 1,
      {value.data(), static_cast<std::size_t>(value.size())},
      [this](std::int64_t count, const std::function<void(std::int64_t)>& body) {
        executor_.parallel(count, body);
      },
      options);
  note(r.status);
  if (!r.converged) throw Unknown{"quadrature does not converge", {}};
  out.value = std::move(value);
  out.method = MomentMethod::kQuadrature;
  disturb(out.value, r.largest_error * r.largest_scale);
  out.error = (r.largest_error + relative * 2) * r.largest_scale;
  remember(both, rows, columns, out);
  return out;
}

/// Half of the shortest panel of f(mean + sqrt(variance) z) in z; 0 if there is no rule.
double MomentEngine::resolution(FunctionTable::Id f, double mean, double variance) {
  const LineFunction line{f, mean, std::sqrt(std::max(0.0, variance))};
  const LineRule r = line_rule(functions_, {&line, 1}, 0.5);
  if (r.status != LineStatus::kConverged) return 0;
  double out = 1;
  for (const auto& p : r.panels) out = std::min(out, 0.5 * (p.to - p.from));
  return out;
}

/// E d/du of the product of factors on two sides, u the Gaussian behind factor k.  A jump of height
/// J at c adds J E[delta(u - c) rest]: the density of u at c times E[rest | u = c], where the other
/// Gaussians are v - Cov(v, u) / Var(u) (u - c).
MomentEngine::Moment MomentEngine::slope(const std::vector<std::pair<int, Factor>>& factors,
                                         std::size_t k, int rows, int columns) {
  const auto& [side, own] = factors[k];
  if (side == 1) {
    std::vector<std::pair<int, Factor>> mirrored = factors;
    for (auto& [s, f] : mirrored) s = 1 - s;
    Moment out = slope(mirrored, k, columns, rows);
    out.value.transposeInPlace();
    return out;
  }
  std::vector<int> constants;  // do not depend on u
  for (int i = 0; i < rows; ++i)
    if (is_constant(own, i)) constants.push_back(i);
  if (static_cast<int>(constants.size()) == rows) return {Matrix::Zero(1, 1)};
  std::array<Term, 2> sides{Term{{1.0}, {}}, Term{{1.0}, {}}};
  for (std::size_t l = 0; l < factors.size(); ++l) {
    sides[at(factors[l].first)].factors.push_back(factors[l].second);
    if (l == k) sides[0].factors.back().f = functions_.derivative(own.f);
  }
  const auto& polynomial = functions_.polynomial(functions_.derivative(own.f));
  const bool flat = polynomial && std::all_of(polynomial->begin(), polynomial->end(),
                                              [](double c) { return c == 0; });
  Moment out = flat ? Moment{Matrix::Zero(1, 1)}
                    : finite_part([&] { return term_moment(sides[0], rows, sides[1], columns); });
  if (!functions_.integrable(own.f))
    throw Unknown{"the derivative of a function with poles, branch points or many jumps", {}};
  for (const auto& [position, height] : functions_.jumps(own.f)) {
    const Factor u{FunctionTable::kIdentity, own.affine, own.columns};
    const Variances& variance = variances(u.affine);
    const Eigen::VectorXd& means = block(u.affine).mean;
    Eigen::VectorXd density(rows), a(rows), distance(rows);
    for (int i = 0; i < rows; ++i) {
      distance(i) = position - (means.size() > 0 ? means(u.column(i)) : 0.0);
      a(i) = variance.value(u.column(i));
      // A Gaussian of variance 0 is W y for a y that is 0: whatever the derivative by it is, it
      // stands beside that y.
      density(i) = a(i) > 0 ? std::exp(-0.5 * distance(i) * distance(i) / a(i)) /
                                  std::sqrt(2 * std::numbers::pi * a(i))
                            : 0.0;
    }
    std::array<Term, 2> rest{Term{{1.0}, {}}, Term{{1.0}, {}}};
    const Factor* across = nullptr;  // depends on u, on the other side
    double relative = variance.relative;
    for (std::size_t l = 0; l < factors.size(); ++l) {
      if (l == k) continue;
      const auto& [other, f] = factors[l];
      if (other == 1 ? !dependent(u, rows, f, columns) : !dependent_somewhere(u, f, rows)) {
        rest[at(other)].factors.push_back(f);
        continue;
      }
      const Covariance& c = covariance(f.affine, u.affine);
      relative = std::max(relative, c.relative);
      if (other == 1) {
        if (factors.size() > 2)
          throw Unknown{
              "the derivative of a function with jumps, times functions of several Gaussians", {}};
        across = &f;
        continue;
      }
      std::vector<double> onto(at(rows)), shift(at(rows));
      for (int i = 0; i < rows; ++i) {
        const double both = c.value ? (*c.value)(f.column(i), u.column(i)) : 0.0;
        onto[at(i)] = a(i) > 0 ? -both / a(i) : 0.0;
        shift[at(i)] = -onto[at(i)] * position;
      }
      Field given{
          rows,
          {{{1.0}, {{FunctionTable::kIdentity, f.affine, f.columns}}}, {std::move(onto), {u}}}};
      if (position != 0) given.terms.push_back({std::move(shift), {}});
      rest[0].factors.push_back({f.f, affine_of(given), nullptr});
    }
    const Moment conditional = across ? conditional_means(*across, columns, u, a, distance)
                                      : term_moment(rest[0], rows, rest[1], columns);
    const Matrix& value = conditional.value;
    if (out.value.rows() == 1 && rows > 1) out.value = out.value.replicate(rows, 1).eval();
    if (out.value.cols() == 1 && value.cols() > 1)
      out.value = out.value.replicate(1, value.cols()).eval();
    for (Eigen::Index j = 0; j < out.value.cols(); ++j)
      for (int i = 0; i < rows; ++i)
        out.value(i, j) +=
            height * density(i) * value(value.rows() == 1 ? 0 : i, value.cols() == 1 ? 0 : j);
    const double largest = std::abs(height) * density.maxCoeff();
    out.error += largest * (conditional.error + 2 * relative * value.cwiseAbs().maxCoeff());
    out.method = weaker(weaker(out.method, variance.method),
                        weaker(conditional.method, MomentMethod::kClosedForm));
  }
  if (!constants.empty() && out.value.rows() == 1 && rows > 1)
    out.value = out.value.replicate(rows, 1).eval();
  for (const int i : constants) out.value.row(i).setZero();
  return out;
}

/// (i, j): E[f(v_j) | u_i is `distance` from its mean], u_i of variance a(i).
MomentEngine::Moment MomentEngine::conditional_means(const Factor& f, int columns, const Factor& u,
                                                     const Eigen::VectorXd& a,
                                                     const Eigen::VectorXd& distance) {
  const auto rows = static_cast<int>(a.size());
  const Covariance c = covariance(f.affine, u.affine);
  const Variances& b = variances(f.affine);
  const Eigen::VectorXd own_mean = block(f.affine).mean;
  const bool moved = own_mean.size() > 0 || (distance.array() != 0).any();
  Matrix variance(rows, columns), mean;
  if (moved) mean.resize(rows, columns);
  constexpr double kNearlyParallel = 1e-6;  // 1 - rho^2 where the difference of two numbers is
                                            // replaced by the length of a difference
  std::vector<std::pair<int, int>> near;
  for (int j = 0; j < columns; ++j)
    for (int i = 0; i < rows; ++i) {
      const double both = c.value ? (*c.value)(f.column(j), u.column(i)) : 0.0,
                   onto = a(i) > 0 ? both / a(i) : 0.0;
      variance(i, j) = std::max(0.0, b.value(f.column(j)) - onto * both);
      if (variance(i, j) < kNearlyParallel * b.value(f.column(j))) near.emplace_back(i, j);
      if (moved)
        mean(i, j) = (own_mean.size() > 0 ? own_mean(f.column(j)) : 0.0) + onto * distance(i);
    }
  if (!near.empty()) {
    std::vector<int> of_u, of_v;
    std::vector<double> onto;
    for (const auto& [i, j] : near) {
      of_u.push_back(u.column(i));
      of_v.push_back(f.column(j));
      onto.push_back(a(i) > 0 && c.value ? -(*c.value)(of_v.back(), of_u.back()) / a(i) : 0.0);
    }
    const auto columns_of = [](std::vector<int> v) {
      return std::make_shared<const std::vector<int>>(std::move(v));
    };
    const int difference =
        affine_of({static_cast<int>(near.size()),
                   {{{1.0}, {{FunctionTable::kIdentity, f.affine, columns_of(of_v)}}},
                    {onto, {{FunctionTable::kIdentity, u.affine, columns_of(of_u)}}}}});
    const Variances& exact = variances(difference);
    for (std::size_t k = 0; k < near.size(); ++k)
      variance(near[k].first, near[k].second) =
          std::max(0.0, exact.value(static_cast<Eigen::Index>(k)));
  }
  Moment out = normal_means(f.f, mean, variance);
  out.method = weaker(out.method, weaker(c.method, b.method));
  return out;
}

/// E df/du of a term for every Gaussian u behind it whose block is wanted.
std::vector<MomentEngine::Slope> MomentEngine::slopes(
    const Term& t, int rows, const std::function<bool(const Factor&, bool inner)>& wanted) {
  std::vector<Slope> out;
  std::vector<std::pair<int, Factor>> factors;
  for (const Factor& f : t.factors) factors.emplace_back(0, f);
  if (t.sum) factors.emplace_back(1, t.sum->inner());
  for (std::size_t k = 0; k < t.factors.size(); ++k) {
    const Factor& f = t.factors[k];
    if (!wanted(f, false)) continue;
    Moment m = slope(factors, k, rows, t.sum ? t.sum->rows() : 1);
    out.push_back({{FunctionTable::kIdentity, f.affine, f.columns},
                   t.sum ? row_sums(*t.sum->weights, m) : std::move(m)});
  }
  if (t.sum && wanted(t.sum->inner(), true)) {  // sum_s w_s E[dF/dg_s] g_s is one Gaussian
    const Moment m = slope(factors, t.factors.size(), rows, t.sum->rows());
    Matrix weights = *t.sum->weights;
    for (Eigen::Index s = 0; s < weights.cols(); ++s)
      for (int i = 0; i < rows; ++i)
        weights(i, s) *= m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : s);
    const int affine = affine_of(combine(weights, of_affine(t.sum->affine)));
    out.push_back({{FunctionTable::kIdentity, affine, nullptr},
                   {Matrix::Ones(1, 1), m.error / std::max(m.value.cwiseAbs().maxCoeff(), 1e-300),
                    m.method}});
  }
  return out;
}

/// Stein's lemma: E x F(u) = E x E F(u) + sum_k Cov(x, u_k) E dF/du_k.  Rows: those of F.
MomentEngine::Moment MomentEngine::stein(const Term& t, int rows, const Factor& x, int columns) {
  Moment out{Matrix::Zero(rows, columns)};
  for (const auto& [u, m] : slopes(t, rows, [&](const Factor&f, bool inner) {
         return dependent(f, inner ? t.sum->rows() : rows, x, columns);
       })) {
    const Covariance c = covariance(u.affine, x.affine);
    if (!c.value) continue;
    double largest = 0;
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i) {
        const double both = (*c.value)(u.column(i), x.column(j));
        largest = std::max(largest, std::abs(both));
        out.value(i, j) += both * m.value(m.value.rows() == 1 ? 0 : i, 0);
      }
    out.error += largest * (m.error + c.relative * m.value.cwiseAbs().maxCoeff());
    out.method = weaker(out.method, weaker(m.method, c.method));
  }
  if (const Eigen::VectorXd mean = block(x.affine).mean; mean.size() > 0) {
    const Moment m = term_moment(t, rows, {{1.0}, {}}, 1);
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i)
        out.value(i, j) += mean(x.column(j)) * m.value(m.value.rows() == 1 ? 0 : i, 0);
    out.error += mean.cwiseAbs().maxCoeff() * m.error;
    out.method = weaker(out.method, m.method);
  }
  return out;
}

/// Stein's lemma where one side is a single Gaussian.
std::optional<MomentEngine::Moment> MomentEngine::stein(
    const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  for (const int side : {0, 1}) {
    Term others{{1.0}, {}};
    std::vector<Factor> alone;
    for (const auto& [own, f] : factors) (own == side ? alone : others.factors).push_back(f);
    if (alone.size() != 1 || alone[0].f != FunctionTable::kIdentity || others.factors.empty())
      continue;
    Moment out = stein(others, side == 0 ? columns : rows, alone[0], side == 0 ? rows : columns);
    if (side == 0) out.value.transposeInPlace();
    return out;
  }
  return std::nullopt;
}

/// m(i, s) summed over s with weights.
MomentEngine::Moment MomentEngine::row_sums(const Matrix& weights, const Moment& m) {
  Moment out{Matrix::Zero(weights.rows(), 1),
             m.error * weights.cwiseAbs().rowwise().sum().maxCoeff(), m.method};
  for (Eigen::Index s = 0; s < weights.cols(); ++s)
    for (Eigen::Index i = 0; i < weights.rows(); ++i)
      out.value(i, 0) +=
          weights(i, s) * m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : s);
  return out;
}

/// The moment of terms of which at least one has a sum.
MomentEngine::Moment MomentEngine::sum_moment(const Term& s, int rows, const Term& t, int columns) {
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
  return cross(expanded(x), expanded(y));
}

/// What determines a matrix of moments: its factors on each side and their columns.
std::vector<int> MomentEngine::key_of(const std::vector<std::pair<int, Factor>>& factors, int rows,
                                      int columns, bool mirrored) {
  std::vector<int> key{mirrored ? columns : rows, mirrored ? rows : columns};
  for (const int own : {0, 1})
    for (const auto& [side, f] : factors) {
      if ((mirrored ? 1 - side : side) != own) continue;
      key.insert(key.end(), {own, f.f, f.affine});
      for (int i = 0; i < (side == 0 ? rows : columns); ++i) key.push_back(f.column(i));
    }
  return key;
}

/// Quadratures are asked for again: E f(u) g(v) is E g(v) f(u), and a tangent kernel has the
/// covariances of the layers in it.
std::optional<MomentEngine::Moment> MomentEngine::recalled(
    const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) const {
  for (const bool mirrored : {false, true})
    if (const auto known = quadratures_.find(key_of(factors, rows, columns, mirrored));
        known != quadratures_.end()) {
      Moment out = known->second;
      if (mirrored) out.value.transposeInPlace();
      return out;
    }
  return std::nullopt;
}

void MomentEngine::remember(const std::vector<std::pair<int, Factor>>& factors, int rows,
                            int columns, const Moment& m) {
  constexpr Eigen::Index kMostNumbers = 1 << 20;
  if ((remembered_ += m.value.size()) > kMostNumbers) {
    quadratures_.clear();
    remembered_ = m.value.size();
  }
  if (m.value.size() <= kMostNumbers)
    quadratures_.emplace(key_of(factors, rows, columns, false), m);
}

/// One quadrature per entry, over the different Gaussians behind the factors.
MomentEngine::Moment MomentEngine::single_entries(
    const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  if (auto known = recalled(factors, rows, columns)) return std::move(*known);
  const bool symmetric =
      key_of(factors, rows, columns, false) == key_of(factors, rows, columns, true);
  bool left = false, right = false;
  double relative = 0;
  for (const auto& [side, f] : factors) {
    (side == 0 ? left : right) = true;
    for (const auto& other : factors)
      relative = std::max(relative, covariance(f.affine, other.second.affine).relative);
  }
  Moment out = entries(
      left ? rows : 1, right ? columns : 1,
      [&](Eigen::Index i, Eigen::Index j) {
        Entry entry;
        std::vector<std::pair<int, int>> variables;  // (affine, column)
        for (const auto& [side, f] : factors) {
          const std::pair<int, int> v{f.affine, f.column(static_cast<int>(side == 0 ? i : j))};
          const auto known = std::find(variables.begin(), variables.end(), v);
          entry.functions.emplace_back(static_cast<std::size_t>(known - variables.begin()), f.f);
          if (known == variables.end()) variables.push_back(v);
        }
        const std::size_t dim = variables.size();
        entry.covariances.assign(dim * dim, 0.0);
        for (std::size_t k = 0; k < dim; ++k) {
          const Eigen::VectorXd& mean = block(variables[k].first).mean;
          entry.means.push_back(mean.size() > 0 ? mean(variables[k].second) : 0.0);
          for (std::size_t l = 0; l < dim; ++l)
            if (const Covariance& c = covariances_.at({variables[k].first, variables[l].first});
                c.value)
              entry.covariances[k + dim * l] = (*c.value)(variables[k].second, variables[l].second);
        }
        for (std::size_t k = 0; k < dim; ++k)
          for (std::size_t l = 0; l < k; ++l)
            entry.covariances[k + dim * l] = entry.covariances[l + dim * k] =
                0.5 * (entry.covariances[k + dim * l] + entry.covariances[l + dim * k]);
        return entry;
      },
      symmetric);
  out.error += 2 * relative * out.value.cwiseAbs().maxCoeff();
  remember(factors, rows, columns, out);
  return out;
}

namespace {
/// Gauss's rule for the standard normal density: exact for polynomials of degree 11.
constexpr std::array<double, 6> kRoughNodes{-3.324257433552119,  -1.889175877753711,
                                            -0.6167065901925942, 0.6167065901925942,
                                            1.889175877753711,   3.324257433552119};
constexpr std::array<double, 6> kRoughWeights{0.002555784402056, 0.088615746041915,
                                              0.408828469556029, 0.408828469556029,
                                              0.088615746041915, 0.002555784402056};
constexpr std::size_t kRough = kRoughNodes.size();
}  // namespace

/// Some number of the right kind: which moments are known does not depend on it.
double MomentEngine::rough_value(const FunctionTable& functions, const Entry& entry,
                                 std::string& failure) {
  const Whitened w = whiten(entry.covariances);
  if (w.status == QuadratureStatus::kRankTooLarge)
    failure = "a moment of more than 3 dependent Gaussians";
  if (w.status != QuadratureStatus::kConverged) return 1;
  std::size_t points = 1;
  for (int r = 0; r < w.rank; ++r) points *= kRough;
  std::vector<double> product(points, 1.0), x(points), y(points);
  for (const auto& [k, f] : entry.functions) {
    for (std::size_t p = 0; p < points; ++p) {
      x[p] = entry.means[k];
      for (std::size_t r = 0, rest = p; r < static_cast<std::size_t>(w.rank); ++r, rest /= kRough)
        x[p] += w(static_cast<std::int64_t>(k), static_cast<int>(r)) * kRoughNodes[rest % kRough];
    }
    functions.evaluate(f, static_cast<std::int64_t>(points), x.data(), y.data());
    for (std::size_t p = 0; p < points; ++p) product[p] *= y[p];
  }
  double sum = 0;
  for (std::size_t p = 0; p < points; ++p) {
    for (std::size_t r = 0, rest = p; r < static_cast<std::size_t>(w.rank); ++r, rest /= kRough)
      product[p] *= kRoughWeights[rest % kRough];
    sum += product[p];
  }
  return std::isfinite(sum) ? sum : 1;
}

/// E f(u) g(v), variances a and b, by the first terms of Mehler's series.
MomentEngine::Matrix MomentEngine::rough_pair(const FunctionTable& functions, FunctionTable::Id f,
                                              const Eigen::VectorXd& a, FunctionTable::Id g,
                                              const Eigen::VectorXd& b, const Matrix& covariances) {
  const auto coefficients = [&](FunctionTable::Id h, const Eigen::VectorXd& variances) {
    Matrix out = Matrix::Zero(variances.size(), static_cast<Eigen::Index>(kRough));
    std::array<double, kRough> x{}, y{};
    for (Eigen::Index i = 0; i < variances.size(); ++i) {
      for (std::size_t q = 0; q < kRough; ++q)
        x[q] = std::sqrt(std::max(0.0, variances(i))) * kRoughNodes[q];
      functions.evaluate(h, static_cast<std::int64_t>(kRough), x.data(), y.data());
      for (std::size_t q = 0; q < kRough; ++q) {
        double before = 0, polynomial = kRoughWeights[q] * (std::isfinite(y[q]) ? y[q] : 1);
        for (std::size_t l = 0; l < kRough; ++l) {
          out(i, static_cast<Eigen::Index>(l)) += polynomial;
          const double next =
              (kRoughNodes[q] * polynomial - std::sqrt(static_cast<double>(l)) * before) /
              std::sqrt(static_cast<double>(l + 1));
          before = polynomial;
          polynomial = next;
        }
      }
    }
    return out;
  };
  const Matrix left = coefficients(f, a), right = coefficients(g, b);
  Matrix out(a.size(), b.size());
  for (Eigen::Index j = 0; j < b.size(); ++j)
    for (Eigen::Index i = 0; i < a.size(); ++i) {
      const double size = std::sqrt(std::max(0.0, a(i) * b(j))),
                   rho = size > 0 ? std::clamp(covariances(i, j) / size, -1.0, 1.0) : 0.0;
      double sum = 0;
      for (auto l = static_cast<Eigen::Index>(kRough); l-- > 0;)
        sum = sum * rho + left(i, l) * right(j, l);
      out(i, j) = sum;
    }
  return out;
}

/// A matrix of moments, each by a quadrature of its own.
MomentEngine::Moment MomentEngine::entries(
    Eigen::Index rows, Eigen::Index columns,
    const std::function<Entry(Eigen::Index, Eigen::Index)>& entry_at, bool symmetric) {
  Moment out{Matrix::Zero(rows, columns), 0, MomentMethod::kQuadrature};
  std::vector<double> errors(static_cast<std::size_t>(out.value.size()), 0.0);
  std::vector<std::string> failures(errors.size());
  const auto integrate = [&](std::int64_t e) {
    const Eigen::Index i = e % rows, j = e / rows;
    if (symmetric && i > j) return;
    const Entry entry = entry_at(i, j);
    if (rough_) {
      out.value(i, j) = rough_value(functions_, entry, failures[static_cast<std::size_t>(e)]);
      return;
    }
    const std::size_t dim = entry.means.size();
    const auto slot = static_cast<std::size_t>(e);
    const Whitened w = whiten(entry.covariances);
    const auto accept = [&](LineStatus status, double value, double error, double magnitude) {
      out.value(i, j) = value;
      errors[slot] = error;
      if (status == LineStatus::kDiverges)
        failures[slot] = kInfiniteMean;
      else if (!(error <= kLooseQuadrature * magnitude))
        failures[slot] = "quadrature does not converge";
    };
    if (w.status == QuadratureStatus::kConverged && w.rank <= 1) {
      std::vector<LineFunction> line;
      for (const auto& [k, f] : entry.functions)
        line.push_back({f, entry.means[k], w.rank == 1 ? w(static_cast<std::int64_t>(k), 0) : 0.0});
      const LineRule r = line_rule(functions_, line, 1);
      return accept(r.status, r.value, r.error, r.magnitude);
    }
    // Trapezoid rules with steps that resolve all factors, whose frequencies add (4/h for panels of
    // half-length h).
    double frequency = 9, finest = 1;
    bool smooth = true;
    for (const auto& [k, f] : entry.functions) {
      const double h = resolution(f, entry.means[k], entry.covariances[k * (dim + 1)]);
      frequency += 4 / h;
      finest = std::min(finest, h);
      smooth = smooth && functions_.kinks(f).empty() && functions_.integrable(f);
    }
    QuadratureOptions options;
    options.max_evaluations = 20'000'000;
    options.largest_step = 2 * std::numbers::pi / frequency;
    const double most_points = std::pow(20 / options.largest_step, 2);
    if (w.status == QuadratureStatus::kConverged && w.rank == 2 && (!smooth || most_points > 1e6)) {
      std::vector<PlaneFunction> plane;
      for (const auto& [k, f] : entry.functions)
        plane.push_back({f, entry.means[k], w(static_cast<std::int64_t>(k), 0),
                         w(static_cast<std::int64_t>(k), 1)});
      const PlaneRule r = plane_rule(functions_, plane);
      if (r.status == LineStatus::kNotConverged)
        failures[slot] = "quadrature does not converge";
      else
        accept(r.status, r.value, r.error, r.magnitude);
      return;
    }
    constexpr double kCoarse = 0.03;  // panels of the nested rule find features of this width
    if (finest < kCoarse && !smooth) {
      failures[slot] = finest > 0 ? "functions of three Gaussians with narrow features"
                                  : "a function with poles or branch points";
      return;
    }
    std::vector<Hyperplane> kinks;
    for (const auto& [k, f] : entry.functions)
      for (const double offset : functions_.kinks(f)) {
        Hyperplane h{std::vector<double>(dim, 0.0), offset - entry.means[k]};
        h.normal[k] = 1;
        kinks.push_back(std::move(h));
      }
    const auto integrand = [&](std::int64_t count, const double* points, double* values) {
      std::vector<double> x(static_cast<std::size_t>(count)), y(x.size());
      std::fill_n(values, count, 1.0);
      for (const auto& [k, f] : entry.functions) {
        for (std::int64_t p = 0; p < count; ++p)
          x[static_cast<std::size_t>(p)] =
              points[static_cast<std::int64_t>(k) * count + p] + entry.means[k];
        functions_.evaluate(f, count, x.data(), y.data());
        for (std::int64_t p = 0; p < count; ++p) values[p] *= y[static_cast<std::size_t>(p)];
      }
    };
    const QuadratureResult r =
        kinks.empty() ? smooth_expectation(entry.covariances, integrand, 1, options)
                      : kinked_expectation(entry.covariances, integrand, 1, kinks, options);
    switch (r.status) {
      case QuadratureStatus::kConverged: break;
      case QuadratureStatus::kNotConverged: failures[slot] = "quadrature does not converge"; return;
      case QuadratureStatus::kRankTooLarge:
        failures[slot] = "a moment of more than 3 dependent Gaussians";
        return;
      case QuadratureStatus::kNotACovariance:
        failures[slot] = std::all_of(entry.covariances.begin(), entry.covariances.end(),
                                     [](double x) { return std::isfinite(x); })
                             ? "a covariance is not positive semidefinite"
                             : not_a_covariance({std::numeric_limits<double>::infinity(), 0, 0});
        return;
      case QuadratureStatus::kNotFinite: failures[slot] = "a moment overflows"; return;
    }
    out.value(i, j) = r.values[0];
    errors[slot] = r.errors[0];
  };
  constexpr std::int64_t kBatch = 64;  // what is over the budget does not depend on threads
  for (std::int64_t first = 0; first < out.value.size(); first += kBatch) {
    if (!rough_ && out_of_evaluations()) return entries(rows, columns, entry_at, symmetric);
    executor_.parallel(std::min<std::int64_t>(kBatch, out.value.size() - first),
                       [&](std::int64_t e) { integrate(first + e); });
  }
  for (const std::string& f : failures)
    if (!f.empty()) throw Unknown{f, {}, f == kInfiniteMean};
  out.error = *std::max_element(errors.begin(), errors.end());
  disturb(out.value, out.error);
  if (symmetric) out.value.triangularView<Eigen::StrictlyLower>() = out.value.transpose().eval();
  return out;
}

}  // namespace tplimit::moments
