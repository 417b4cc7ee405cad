#include "moments/expectations.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include <Eigen/SVD>

#include "tplimit/math/gaussian_quadrature.hpp"

/// An inverse power of a quadratic form q of Gaussians is an integral over exponentials,
///   E P q^-k = 1/Gamma(k) int s^k E P exp(-s q) dt,  s = e^t,
/// and these are changes of measure: with q = c + sum_k (sigma_k z_k)^2, z standard normal,
///   E P(z) exp(-s q) = e^(-s c) prod_k (1 + 2 s sigma_k^2)^(-1/2) E P(z_k / (1 + 2 s
///   sigma_k^2)^(1/2)),
/// so that whatever is known of P is known under the integral (docs/theory.md, "Moments without
/// sampling").  The integrand is analytic for Re s > 0 and at most E |P| exp(-Re(s) q) there, so
/// the trapezoidal rule of step h in t is off by at most
///   2 (cos d)^-k / (exp(2 pi d / h) - 1) E |P| q^-k  for every d < pi/2.
namespace tplimit::moments {

using namespace ir;

namespace {
constexpr double kFineStep = 0.2, kRoughStep = 1;
constexpr double kNegligible = 1e-18;  // of the largest value of the integrand
/// The largest value falls at least as e^(-t/2) once s is beyond all scales, if the mean exists and
/// powers are multiples of 1/2.
constexpr double kLongestTail = 100;

double error_of_trapezoid(double k, double step) {
  const double d = std::max(0.5, std::numbers::pi / 2 - k * step / (2 * std::numbers::pi));
  return 2 * std::pow(std::cos(d), -k) / std::expm1(2 * std::numbers::pi * d / step);
}

/// Gaussians by block and row, each once.
class Variables {
 public:
  int add(int block, int row) {
    const auto [known, fresh] =
        places_.try_emplace({block, row}, static_cast<int>(variables_.size()));
    if (fresh) variables_.emplace_back(block, row);
    return known->second;
  }
  [[nodiscard]] const std::vector<std::pair<int, int>>& all() const { return variables_; }

 private:
  std::map<std::pair<int, int>, int> places_;
  std::vector<std::pair<int, int>> variables_;
};

/// Variables as L z, z standard normal.
struct Root {
  Matrix L;
  double relative = 0;   ///< error of the covariance L L', relative to its largest entry
  bool by_rows = false;  ///< L is known entry by entry
  MomentMethod method = MomentMethod::kExact;
};

/// From the blocks themselves, which keeps nearly parallel rows apart, if they are of independent
/// normals; else from covariances.
Root root_of(CovarianceStore& store, const std::vector<std::pair<int, int>>& variables) {
  Root out;
  const auto n = static_cast<Eigen::Index>(variables.size());
  std::map<int, Eigen::Index> offsets;  // by family
  Eigen::Index normals = 0;
  out.by_rows = true;
  for (const auto& [block, row] : variables)
    for (const LinearPart& p : store.block(block).parts) {
      out.by_rows = out.by_rows && store.family(p.family).matrix < 0;
      if (offsets.try_emplace(p.family, normals).second) normals += store.family(p.family).size;
    }
  if (out.by_rows) {
    out.L = Matrix::Zero(n, normals);
    for (Eigen::Index i = 0; i < n; ++i) {
      const auto& [block, row] = variables[static_cast<std::size_t>(i)];
      for (const LinearPart& p : store.block(block).parts)
        if (p.selection())
          out.L(i, offsets[p.family] + p.index[at(row)]) += p.scale(row);
        else
          out.L.row(i).segment(offsets[p.family], p.dense.cols()) += p.dense.row(row);
    }
    return out;
  }
  Matrix covariances = Matrix::Zero(n, n);
  for (Eigen::Index j = 0; j < n; ++j)
    for (Eigen::Index i = 0; i < n; ++i) {
      const auto& [p, row] = variables[static_cast<std::size_t>(i)];
      const auto& [q, column] = variables[static_cast<std::size_t>(j)];
      const Covariance& c = store.covariance(p, q);
      out.relative = std::max(out.relative, c.relative);
      out.method = weaker(out.method, c.method);
      if (c.value) covariances(i, j) = (*c.value)(row, column);
    }
  covariances = (0.5 * (covariances + covariances.transpose())).eval();
  const Whitened w =
      whiten({covariances.data(), static_cast<std::size_t>(n * n)}, static_cast<int>(n));
  if (w.status != QuadratureStatus::kConverged)
    throw Unknown{"a covariance is not positive semidefinite", {}};
  out.L = Eigen::Map<const Matrix>(w.L.data(), n, w.rank);
  return out;
}

/// Variables as along z + beside z', where q = offset + sum_k (sigma_k z_k)^2.
struct AlongForm {
  Eigen::VectorXd sigma;
  Matrix along, beside;
  /// Relative error of what stands under the integral at s.
  [[nodiscard]] double error_at(double s, const Root& root) const {
    double sum = 0;
    for (Eigen::Index k = 0; k < sigma.size(); ++k) {
      const double ratio = sigma(0) / sigma(k), x = 2 * s * sigma(k) * sigma(k);
      const double size = static_cast<double>(root.L.rows());
      const double of_square = root.by_rows ? 4 * kEpsilon * ratio
                                            : (root.relative + 4 * kEpsilon * size) * ratio * ratio;
      sum += of_square * x / (1 + x);
    }
    return std::min(1.0, sum + 2 * root.relative + 4 * kEpsilon);
  }
};

/// The first variables are those of the form.
AlongForm along_form(const Root& root, const QuadraticForm& q) {
  if (root.L.cols() == 0) return {{}, root.L, root.L};  // nothing varies
  const auto squares = static_cast<Eigen::Index>(q.squares.size());
  Matrix form = root.L.topRows(squares);
  for (Eigen::Index k = 0; k < squares; ++k)
    form.row(k) *= std::sqrt(q.squares[static_cast<std::size_t>(k)].weight);
  const Eigen::JacobiSVD<Matrix> svd(form, Eigen::ComputeThinV);
  const Eigen::VectorXd& sigma = svd.singularValues();
  Eigen::Index rank = 0;
  const double least =
      sigma.size() > 0 ? static_cast<double>(form.cols()) * kEpsilon * sigma(0) : 0;
  while (rank < sigma.size() && sigma(rank) > least) ++rank;
  const Matrix V = svd.matrixV().leftCols(rank);
  AlongForm out{sigma.head(rank), root.L * V, {}};
  out.beside = root.L - out.along * V.transpose();
  out.beside.topRows(squares).setZero();
  const Eigen::VectorXd size = root.L.rowwise().norm();
  const auto drop_rounding = [&](Matrix& x) {
    for (Eigen::Index k = 0; k < x.cols(); ++k)
      for (Eigen::Index i = 0; i < x.rows(); ++i)
        if (std::abs(x(i, k)) <= kCancelled * size(i)) x(i, k) = 0;
  };
  drop_rounding(out.along);
  drop_rounding(out.beside);
  if (out.beside.isZero(0)) out.beside.resize(out.beside.rows(), 0);
  return out;
}

/// While it lives moments are those under an integral; blocks and variables of polynomials that are
/// made meanwhile go with it.
class UnderIntegral {
 public:
  UnderIntegral(CovarianceStore& store, FieldAlgebra& algebra, int& depth)
      : store_(store),
        algebra_(algebra),
        depth_(depth),
        blocks_(store.blocks()),
        symbols_(algebra.symbols()) {
    ++depth_;
  }
  UnderIntegral(const UnderIntegral&) = delete;
  UnderIntegral& operator=(const UnderIntegral&) = delete;
  ~UnderIntegral() {
    --depth_;
    store_.drop_blocks_from(blocks_);
    algebra_.keep_symbols(symbols_);
  }

 private:
  CovarianceStore& store_;
  FieldAlgebra& algebra_;
  int& depth_;
  int blocks_, symbols_;
};

/// Columns of a term by the numbers of their forms.
std::map<std::vector<int>, std::vector<int>> by_forms(const Term& t, int columns) {
  std::map<std::vector<int>, std::vector<int>> out;
  for (int i = 0; i < columns; ++i) {
    std::vector<int> key;
    for (const FormPower& p : t.forms) key.push_back(p.at_column(i));
    out[std::move(key)].push_back(i);
  }
  return out;
}

/// The factors of some columns of a term.
Term factors_at(const Term& t, const std::vector<int>& index) {
  Term out{{1.0}, t.factors};
  for (Factor& f : out.factors) {
    std::vector<int> own;
    for (const int i : index) own.push_back(f.column(i));
    f.columns = std::make_shared<const std::vector<int>>(std::move(own));
  }
  return out;
}

/// The form as factors, one for each block.
std::vector<std::pair<Factor, int>> factors_of(const QuadraticForm& q) {
  std::map<int, std::vector<int>> rows;
  for (const QuadraticForm::Square& s : q.squares) rows[s.block].push_back(s.row);
  std::vector<std::pair<Factor, int>> out;
  for (auto& [block, own] : rows) {
    const auto count = static_cast<int>(own.size());
    out.push_back({{FunctionTable::kIdentity, block,
                    std::make_shared<const std::vector<int>>(std::move(own))},
                   count});
  }
  return out;
}
}  // namespace

/// The moment of terms of which at least one has powers of forms: columns with the same forms are
/// done together.
Moment Expectations::form_moment(const Term& s, int rows, const Term& t, int columns) {
  if (s.sum || t.sum) {
    Field x{rows, {s}}, y{columns, {t}};
    x.terms[0].coefficient = y.terms[0].coefficient = {1.0};
    return cross(algebra_.expanded(x), algebra_.expanded(y));
  }
  const bool same =
      rows == columns && s.forms == t.forms &&
      std::equal(s.factors.begin(), s.factors.end(), t.factors.begin(), t.factors.end(),
                 [](const Factor& a, const Factor& b) { return a.same(b); });
  struct Part {
    const std::vector<int>&rows, &columns;
    std::map<int, double> powers;
  };
  std::vector<Part> parts;
  const auto left = by_forms(s, rows), right = by_forms(t, columns);
  for (const auto& [row_forms, row_index] : left)
    for (const auto& [column_forms, column_index] : right) {
      if (same && column_forms < row_forms) continue;
      std::map<int, double> powers;
      for (std::size_t k = 0; k < s.forms.size(); ++k) powers[row_forms[k]] += s.forms[k].power;
      for (std::size_t k = 0; k < t.forms.size(); ++k) powers[column_forms[k]] += t.forms[k].power;
      std::erase_if(powers, [](const auto& p) { return p.second == 0; });
      if (powers.size() > 1) throw Unknown{"quotients by more than one quadratic form", {}};
      if (!powers.empty() && powers.begin()->second > 0)
        throw Unknown{"a root of a quadratic form", {}};
      parts.push_back({row_index, column_index, std::move(powers)});
    }
  Moment out{Matrix::Zero(rows, columns)};
  for (const auto& [row_index, column_index, powers] : parts) {
    const Term F = factors_at(s, row_index), G = factors_at(t, column_index);
    const auto own_rows = static_cast<int>(row_index.size()),
               own_columns = static_cast<int>(column_index.size());
    const Moment m = powers.empty()
                         ? term_moment(F, own_rows, G, own_columns)
                         : over_form(F, own_rows, G, own_columns,
                                     store_.form(powers.begin()->first), -powers.begin()->second);
    for (int j = 0; j < own_columns; ++j)
      for (int i = 0; i < own_rows; ++i) {
        const int row = row_index[at(i)], column = column_index[at(j)];
        out.value(row, column) = m.entry(i, j);
        if (same) out.value(column, row) = m.entry(i, j);
      }
    out.error = std::max(out.error, m.error);
    out.method = weaker(out.method, m.method);
  }
  return out;
}

/// E s_i t_j q^-k; what does not depend on the form stands beside the integral.
Moment Expectations::over_form(const Term& s, int rows, const Term& t, int columns,
                               const QuadraticForm& q, double k) {
  SidedFactors outside, inside;
  for (const Factor& f : s.factors) outside.emplace_back(0, f);
  for (const Factor& f : t.factors) outside.emplace_back(1, f);
  const auto own = factors_of(q);
  const auto count = [&](int side) { return side == 0 ? rows : columns; };
  const auto linked = [&](const std::pair<int, Factor>& f) {
    return std::any_of(own.begin(), own.end(),
                       [&](const auto& u) {
                         return store_.dependent(f.second, count(f.first), u.first, u.second);
                       }) ||
           std::any_of(inside.begin(), inside.end(), [&](const auto& g) {
             return f.first == g.first
                        ? store_.dependent_somewhere(f.second, g.second, count(f.first))
                        : store_.dependent(f.second, count(f.first), g.second, count(g.first));
           });
  };
  for (bool changed = true; changed;) {
    const auto next = std::find_if(outside.begin(), outside.end(), linked);
    changed = next != outside.end();
    if (!changed) break;
    inside.push_back(*next);
    outside.erase(next);
  }
  std::vector<Moment> parts;
  if (!outside.empty()) {
    std::array<Term, 2> beside{Term{{1.0}, {}}, Term{{1.0}, {}}};
    for (const auto& [side, f] : outside) beside[at(side)].factors.push_back(f);
    parts.push_back(term_moment(beside[0], rows, beside[1], columns));
  }
  parts.push_back(inverse_power(inside, rows, columns, q, k));
  return product_of(std::move(parts));
}

/// E prod_f f q^-k; absolute: the f are absolute values.
Moment Expectations::inverse_power(const SidedFactors& factors, int rows, int columns,
                                   const QuadraticForm& q, double k, bool absolute) {
  Variables variables;
  for (const QuadraticForm::Square& s : q.squares) variables.add(s.block, s.row);
  std::map<int, std::map<int, int>> used;  // block -> row -> row of the tilted block
  for (const auto& [side, f] : factors)
    for (int i = 0; i < (side == 0 ? rows : columns); ++i) {
      auto& own = used[f.block];
      own.try_emplace(f.column(i), static_cast<int>(own.size()));
      variables.add(f.block, f.column(i));
    }
  const Root root = root_of(store_, variables.all());
  context_.charge(40.0 * static_cast<double>(q.squares.size()) *
                  static_cast<double>(std::min(root.L.rows(), root.L.cols()) * root.L.cols()));
  const AlongForm law = along_form(root, q);
  std::array<Term, 2> sides{Term{{1.0}, {}}, Term{{1.0}, {}}};
  for (const auto& [side, f] : factors) {
    std::vector<int> own;
    for (int i = 0; i < (side == 0 ? rows : columns); ++i)
      own.push_back(used[f.block][f.column(i)]);
    sides[at(side)].factors.push_back(
        {f.f, f.block, std::make_shared<const std::vector<int>>(std::move(own))});
  }
  if (law.sigma.size() == 0) {  // q is a constant
    if (q.offset == 0) throw Unknown{kInfiniteMean, {}, true};
    std::array<Term, 2> plain{Term{{1.0}, {}}, Term{{1.0}, {}}};
    for (const auto& [side, f] : factors) plain[at(side)].factors.push_back(f);
    Moment out = term_moment(plain[0], rows, plain[1], columns);
    out.value *= std::pow(q.offset, -k);
    out.error *= std::pow(q.offset, -k);
    return out;
  }
  const Eigen::Index rank = law.sigma.size(), dim = rank + law.beside.cols();
  const auto family = tilted_normals_.try_emplace(static_cast<int>(dim), store_.families());
  if (family.second) store_.add_family({static_cast<int>(dim), -1, false, nullptr});
  const Eigen::VectorXd squared = law.sigma.array().square();
  // The moment under the integral at s.
  const auto tilted_at = [&](double s) {
    context_.charge(kTermOperations +
                    4.0 * static_cast<double>(variables.all().size()) * static_cast<double>(dim));
    const Eigen::VectorXd shrunk = (1 + 2 * s * squared.array()).rsqrt();
    std::array<Term, 2> own = sides;
    std::map<int, int> tilted;  // block -> block
    const UnderIntegral scope(store_, algebra_, integrals_);
    for (const auto& [block, row_of] : used) {
      const auto size = static_cast<int>(row_of.size());
      GaussianBlock to{size, {}, {{family.first->second, {}, {}, Matrix(size, dim)}}};
      const Eigen::VectorXd mean = store_.block(block).mean;
      if (mean.size() > 0) to.mean.resize(size);
      for (const auto& [from, row] : row_of) {
        const int place = variables.add(block, from);
        to.parts[0].dense.row(row).head(rank) =
            law.along.row(place).cwiseProduct(shrunk.transpose());
        to.parts[0].dense.row(row).tail(dim - rank) = law.beside.row(place);
        if (mean.size() > 0) to.mean(row) = mean(from);
      }
      tilted[block] = store_.insert(std::move(to));
    }
    for (Term& t : own)
      for (Factor& f : t.factors) f.block = tilted.at(f.block);
    return term_moment(own[0], rows, own[1], columns);
  };
  const double step = context_.rough ? kRoughStep : kFineStep;
  Moment out{Matrix::Zero(rows, columns), 0, weaker(MomentMethod::kQuadrature, root.method)};
  double largest = 0, own_error = 0;
  const auto add_node = [&](std::int64_t node) {
    const double t = step * static_cast<double>(node), s = std::exp(t);
    const double log_gamma = std::lgamma(k),
                 log_root = 0.5 * (2 * s * squared.array()).log1p().sum(),
                 weight = step * std::exp(k * t - s * q.offset - log_gamma - log_root),
                 rounding = kEpsilon *
                            (1 + std::abs(k * t) + s * q.offset + std::abs(log_gamma) + log_root);
    if (weight == 0) return 0.0;
    const Moment m = tilted_at(s);
    for (Eigen::Index j = 0; j < columns; ++j)
      for (Eigen::Index i = 0; i < rows; ++i) out.value(i, j) += weight * m.entry(i, j);
    const double size = weight * m.value.cwiseAbs().maxCoeff();
    out.error += weight * m.error;
    own_error += size * (law.error_at(s, root) + rounding);
    out.method = weaker(out.method, m.method);
    largest = std::max(largest, size);
    return size;
  };
  // From the scale of the largest variance to that of the smallest or to where exp(-s c) ends all,
  // and on until nothing is left on either side.
  const double begin = -std::log(2 * squared(0) + q.offset),
               scales = -std::log(2 * squared(rank - 1)),
               end = q.offset > 0 ? std::min(scales, std::log(745 / q.offset)) : scales;
  const auto first = static_cast<std::int64_t>(std::floor(begin / step));
  double size = 0, before = 0;
  for (std::int64_t node = first; static_cast<double>(node) * step <= end + kLongestTail; ++node) {
    before = size;
    size = add_node(node);
    if (static_cast<double>(node) * step > end && size <= kNegligible * largest) break;
  }
  constexpr double kFalls = 1e-6;  // from node to node, far beyond all scales
  if (size > kNegligible * largest && size > (1 - kFalls) * before)
    throw Unknown{kInfiniteMean, {}, true};
  if (size > kNegligible * largest)
    throw Unknown{"an inverse power of a quadratic form with a mean that barely exists", {}};
  for (std::int64_t node = first - 1; add_node(node) > kNegligible * largest; --node) {}
  if (largest == 0) {
    // Symmetry proves a mean 0 only where it exists.
    if (q.offset == 0 && !absolute) {
      SidedFactors sizes = factors;
      for (auto& [side, f] : sizes) f.f = functions_.compose({Fn::kAbs, 0}, {f.f});
      (void)inverse_power(sizes, rows, columns, q, k, true);
    }
    return {Matrix::Zero(1, 1)};
  }
  own_error += (error_of_trapezoid(k, step) + 4 * kEpsilon) * out.value.cwiseAbs().maxCoeff();
  context_.disturb(out.value, own_error);
  out.error += own_error;
  return out;
}

}  // namespace tplimit::moments
