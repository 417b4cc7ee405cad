#include "engines/moment_fields.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "tplimit/math/gaussian_quadrature.hpp"

namespace tplimit::engines {

using namespace ir;

namespace {
std::string not_a_covariance(const std::array<double, 3>& entry) {
  const auto [a, b, c] = entry;
  if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c)) return "a covariance is infinite or not a number: values grow without bound";
  if (a < 0 || b < 0) return fmt::format("a covariance is not positive semidefinite: a variance is {:.3g}", std::min(a, b));
  if (a > 0 && b > 0) return fmt::format("a covariance is not positive semidefinite: a squared correlation is 1 + {:.2g}", c / a * (c / b) - 1);
  return fmt::format("a covariance is not positive semidefinite: {:.3g} with a constant", c);
}
}  // namespace

MomentValue MomentEngine::average(const Node& node) {
  MomentValue out;
  if (std::holds_alternative<Average>(node.op)) {
    out.value.resize(static_cast<std::size_t>(size_of(node.type.dims)));
    const Moment m = mean_of(operand(node.in[0]));
    for (std::size_t j = 0; j < out.value.size(); ++j) out.value[j] = m.value(static_cast<Eigen::Index>(j), 0);
    out.error = {m.error};
    out.method = m.method;
    return out;
  }
  const auto* c = std::get_if<Contract>(&node.op);
  if (!c) throw Unknown{"histograms are drawn by the particle engine", {}};
  const Dims &a = program_[node.in[0]].type.dims, &b = program_[node.in[1]].type.dims;
  const auto batch = static_cast<int>(size_of({a.begin(), a.begin() + c->batch})), depth = static_cast<int>(size_of({a.end() - c->contracted, a.end()}));
  const auto rows = static_cast<int>(size_of(a)) / batch / depth, columns = static_cast<int>(size_of(b)) / batch / depth;
  const Field x = operand(node.in[0]), y = operand(node.in[1]);
  std::vector<double> error(at(batch), 0.0);
  if (batch * depth != 1) out.value.assign(static_cast<std::size_t>(size_of(node.type.dims)), 0.0);
  for (int p = 0; p < batch; ++p)
    for (int l = 0; l < depth; ++l) {
      std::vector<int> left, right;
      for (int i = 0; i < rows; ++i) left.push_back((p * rows + i) * depth + l);
      for (int j = 0; j < columns; ++j) right.push_back((p * columns + j) * depth + l);
      // The other way round: columns of the matrix are rows of the result.
      const Moment m = cross(remap(y, right), remap(x, left));
      if (batch == 1 && depth == 1) {
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

bool MomentEngine::related(int p, int q) const {
  for (const Part& a : block(p).parts)
    for (const Part& b : block(q).parts) {
      const Family &f = families_[at(a.family)], &g = families_[at(b.family)];
      if (a.family == b.family || (f.matrix >= 0 && f.matrix == g.matrix && f.transposed == g.transposed)) return true;
    }
  return false;
}

const MomentEngine::Covariance& MomentEngine::family_covariance(int f, int g) {
  const auto known = family_covariances_.find({f, g});
  if (known != family_covariances_.end()) return known->second;
  Covariance out;
  const Family a = families_[at(f)], b = families_[at(g)];
  if (a.matrix < 0) {
    out.identity = f == g;
  } else if (a.matrix == b.matrix && a.transposed == b.transposed) {
    if (const auto other = family_covariances_.find({g, f}); other != family_covariances_.end()) {
      out = other->second;
      out.value = std::make_shared<const Matrix>(out.value->transpose());
    } else {
      Moment m = cross(*a.x, *b.x);
      if (f == g) symmetrise(m.value);
      out.method = m.method;
      const double size = m.value.cwiseAbs().maxCoeff();
      out.relative = size > 0 ? m.error / size : 0;
      out.value = std::make_shared<const Matrix>(std::move(m.value));
    }
  }
  return family_covariances_.emplace(std::pair{f, g}, std::move(out)).first->second;
}

void MomentEngine::each_column(Eigen::Index rows, Eigen::Index columns, const std::function<void(int)>& body) const {
  constexpr Eigen::Index kWorthThreads = 8192;
  if (rows * columns < kWorthThreads) for (int j = 0; j < static_cast<int>(columns); ++j) body(j);
  else executor_.parallel(columns, [&](std::int64_t j) { body(static_cast<int>(j)); });
}

void MomentEngine::symmetrise(Matrix& x) const {
  constexpr int kTile = 64;  // both tiles fit the first-level cache
  const int size = static_cast<int>(x.rows()), tiles = (size + kTile - 1) / kTile;
  each_column(Eigen::Index{kTile} * size, tiles, [&](int q) {
    for (int p = 0; p <= q; ++p)
      for (int j = q * kTile; j < std::min(size, (q + 1) * kTile); ++j)
        for (int i = p * kTile; i < std::min({size, (p + 1) * kTile, j}); ++i) x(i, j) = x(j, i) = 0.5 * (x(i, j) + x(j, i));
  });
}

/// a C.
MomentEngine::Matrix MomentEngine::times_covariance(const Part& a, const Covariance& c, int rows, int size) {
  if (!a.selection()) return c.identity ? a.dense : Matrix(a.dense * *c.value);
  Matrix out = Matrix::Zero(rows, size);
  for (int i = 0; i < rows; ++i) {
    if (c.identity) out(i, a.index[at(i)]) = a.scale(i);
    else out.row(i) = a.scale(i) * c.value->row(a.index[at(i)]);
  }
  return out;
}

/// The diagonal of covariance(p, p).
const MomentEngine::Variances& MomentEngine::variances(int p) {
  if (const auto known = variances_.find(p); known != variances_.end()) return known->second;
  const Affine& x = block(p);
  Variances out{Eigen::VectorXd::Zero(x.rows)};
  for (const Part& a : x.parts)
    for (const Part& b : x.parts) {
      const Covariance& c = family_covariance(a.family, b.family);
      if (!c.identity && !c.value) continue;
      out.relative = std::max(out.relative, c.relative);
      out.method = weaker(out.method, c.method);
      if (a.selection() && b.selection()) {
        for (int i = 0; i < x.rows; ++i) {
          const int k = a.index[at(i)], l = b.index[at(i)];
          out.value(i) += a.scale(i) * b.scale(i) * (c.identity ? (k == l ? 1.0 : 0.0) : (*c.value)(k, l));
        }
      } else if (c.identity && !a.selection() && !b.selection()) {
        out.value += a.dense.cwiseProduct(b.dense).rowwise().sum();
      } else {
        const Matrix left = times_covariance(a, c, x.rows, families_[at(b.family)].size);
        if (b.selection()) for (int i = 0; i < x.rows; ++i) out.value(i) += b.scale(i) * left(i, b.index[at(i)]);
        else out.value += left.cwiseProduct(b.dense).rowwise().sum();
      }
    }
  return variances_.emplace(p, std::move(out)).first->second;
}

const MomentEngine::Covariance& MomentEngine::covariance(int p, int q) {
  if (const auto known = covariances_.find({p, q}); known != covariances_.end()) return known->second;
  Covariance out;
  Matrix sum;
  const Affine &x = block(p), &y = block(q);
  for (const Part& a : x.parts)
    for (const Part& b : y.parts) {
      const Covariance& c = family_covariance(a.family, b.family);
      if (!c.identity && !c.value) continue;
      out.relative = std::max(out.relative, c.relative);
      out.method = weaker(out.method, c.method);
      const auto whole = [](const Part& s) {
        for (std::size_t i = 0; i < s.index.size(); ++i) if (s.index[i] != static_cast<int>(i) || s.scale(static_cast<Eigen::Index>(i)) != 1) return false;
        return s.selection();
      };
      if (x.parts.size() == 1 && y.parts.size() == 1 && c.value && whole(a) && whole(b) && c.value->rows() == x.rows && c.value->cols() == y.rows) {
        out.value = c.value;  // the matrix itself, no copy
        continue;
      }
      if (a.selection() && b.selection() && !c.identity) {
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
      Matrix product(x.rows, y.rows);
      if (c.identity && !a.selection() && !b.selection()) {
        product.noalias() = a.dense * b.dense.transpose();
      } else {
        const Matrix left = times_covariance(a, c, x.rows, families_[at(b.family)].size);
        if (b.selection()) for (int j = 0; j < y.rows; ++j) product.col(j) = b.scale(j) * left.col(b.index[at(j)]);
        else product.noalias() = left * b.dense.transpose();
      }
      if (sum.size() == 0) sum = std::move(product);
      else sum += product;
    }
  if (!out.value && sum.size() > 0) out.value = std::make_shared<const Matrix>(std::move(sum));
  return covariances_.emplace(std::pair{p, q}, std::move(out)).first->second;
}

MomentEngine::Moment MomentEngine::mean_of(const Field& x) { return cross(x, {1, {{{1.0}, {}}}}); }

MomentEngine::Moment MomentEngine::cross(const Field& x, const Field& y) {
  Moment out;
  if (x.polynomials || y.polynomials) {
    out.value.setZero(x.columns, y.columns);
    const auto p = polynomials(x), q = polynomials(y);
    if (!p || !q) throw Unknown{"a moment of a polynomial with another function of several Gaussians", {}};
    for (int j = 0; j < y.columns; ++j)
      for (int i = 0; i < x.columns; ++i) {
        const Sparse &a = (*p)[at(i)], &b = (*q)[at(j)];
        if (a.size() * b.size() > 20 * kMostProducts) throw Unknown{"a polynomial with too many terms", {}};
        bool fits = true;
        long double sum = 0;  // terms of high degree cancel
        for (const auto& [m, c] : a)
          for (const auto& [n, d] : b) sum += static_cast<long double>(c * d) * expectation(multiplied(m, n, fits));
        if (!fits) throw Unknown{"a polynomial of too high a degree", {}};
        out.value(i, j) = static_cast<double>(sum);
      }
    out.method = weaker(x.method, y.method);
    out.error = out.value.cwiseAbs().maxCoeff() * (x.relative + y.relative);
    return out;
  }
  double size = 0;
  if (x.terms.size() == 1 && y.terms.size() == 1 && x.terms[0].coefficient.size() == 1 && y.terms[0].coefficient.size() == 1) {
    Moment m = term_moment(x.terms[0], x.columns, y.terms[0], y.columns);
    const double c = x.terms[0].coefficient[0] * y.terms[0].coefficient[0];
    if (c != 1) m.value *= c;
    if (m.value.rows() == 1 && x.columns > 1) m.value = m.value.replicate(x.columns, 1).eval();
    if (m.value.cols() == 1 && y.columns > 1) m.value = m.value.replicate(1, y.columns).eval();
    m.error = std::abs(c) * m.error + m.value.cwiseAbs().maxCoeff() * (x.relative + y.relative);
    m.method = weaker(m.method, weaker(x.method, y.method));
    return m;
  }
  out.value.setZero(x.columns, y.columns);
  for (const Term& s : x.terms)
    for (const Term& t : y.terms) {
      const Moment m = term_moment(s, x.columns, t, y.columns);
      double largest = 0;
      for (int j = 0; j < y.columns; ++j) {
        const double cj = t.at_column(j);
        for (int i = 0; i < x.columns; ++i) {
          const double c = cj * s.at_column(i);
          out.value(i, j) += c * m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : j);
          largest = std::max(largest, std::abs(c));
        }
      }
      out.error += largest * m.error;
      size += largest * m.value.cwiseAbs().maxCoeff();
      out.method = weaker(out.method, m.method);
    }
  out.error += size * (x.relative + y.relative);
  out.method = weaker(out.method, weaker(x.method, y.method));
  return out;
}

/// Factors of both sides in independent groups; the moment is the product of the groups'.
MomentEngine::Moment MomentEngine::term_moment(const Term& s, int rows, const Term& t, int columns) {
  if (s.sum || t.sum) return sum_moment(s, rows, t, columns);
  std::vector<std::pair<int, Factor>> factors;  // (side, factor)
  for (const Factor& f : s.factors) factors.emplace_back(0, f);
  for (const Factor& f : t.factors) factors.emplace_back(1, f);
  std::vector<std::size_t> group(factors.size());
  std::iota(group.begin(), group.end(), std::size_t{0});
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t i = 0; i < factors.size(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (group[i] != group[j] && related(factors[i].second.affine, factors[j].second.affine)) {
          group[i] = group[j] = std::min(group[i], group[j]);
          changed = true;
        }
  }
  std::vector<Moment> parts;
  for (std::size_t g = 0; g < factors.size(); ++g) {
    std::vector<std::pair<int, Factor>> own;
    for (std::size_t i = 0; i < factors.size(); ++i)
      if (group[i] == g) own.push_back(factors[i]);
    if (own.empty()) continue;
    parts.push_back(group_moment(own, rows, columns));
    if (parts.back().method == MomentMethod::kExact && (parts.back().value.array() == 0).all()) return {Matrix::Zero(1, 1)};
  }
  if (parts.empty()) return {Matrix::Ones(1, 1)};
  std::sort(parts.begin(), parts.end(), [](const Moment& a, const Moment& b) { return a.value.size() > b.value.size(); });
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
    Matrix next(std::max(out.value.rows(), m.value.rows()), std::max(out.value.cols(), m.value.cols()));
    for (Eigen::Index j = 0; j < next.cols(); ++j)
      for (Eigen::Index i = 0; i < next.rows(); ++i)
        next(i, j) = out.value(out.value.rows() == 1 ? 0 : i, out.value.cols() == 1 ? 0 : j) * m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : j);
    out.error = out.error * size + m.error * old_size;
    out.value = std::move(next);
  }
  return out;
}

/// Of dependent factors.  Quadratures are kept: in training under a fixed kernel every step asks for the same.
MomentEngine::Moment MomentEngine::group_moment(const std::vector<std::pair<int, Factor>>& own, int rows, int columns) {
  std::vector<int> key{rows, columns};
  for (const auto& [side, f] : own) {
    key.insert(key.end(), {side, static_cast<int>(f.f), f.affine, f.columns ? static_cast<int>(f.columns->size()) : -1});
    if (f.columns) key.insert(key.end(), f.columns->begin(), f.columns->end());
  }
  if (const auto known = quadratures_.find(key); known != quadratures_.end()) return known->second.moment;
  Moment out;
  if (own.size() == 1) {
    out = mean(own[0].second, own[0].first == 0 ? rows : columns);
    if (own[0].first == 1) out.value.transposeInPlace();
  } else if (own.size() == 2 && own[0].first != own[1].first) {
    out = pair(own[0].second, rows, own[1].second, columns);
  } else {
    std::optional<Moment> closed;
    if (own.size() == 2) closed = same_side(own[0].second, own[1].second, own[0].first == 0 ? rows : columns);
    if (closed && own[0].first == 1) closed->value.transposeInPlace();
    if (!closed) closed = polynomial_moment(own, rows, columns);
    if (!closed) closed = stein(own, rows, columns);
    if (!closed && own.size() == 2) {
      closed = selected(own[0].second, own[1].second, own[0].first == 0 ? rows : columns);
      if (closed && own[0].first == 1) closed->value.transposeInPlace();
    }
    out = closed ? std::move(*closed) : single_entries(own, rows, columns);
  }
  constexpr Eigen::Index kMostKept = 1 << 18;
  if (out.method == MomentMethod::kQuadrature && out.value.size() <= kMostKept) {
    std::vector<int> affines;
    for (const auto& [side, f] : own) affines.push_back(f.affine);
    quadratures_.emplace(std::move(key), Known{out, std::move(affines)});
  }
  return out;
}

void MomentEngine::note(const MomentStatus& status) {
  excess_ = std::max(excess_, status.largest_excess);
  if (status.bad_index != kNoIndex) throw Unknown{not_a_covariance(status.bad_entry), {}};
  if (status.overflow) throw Unknown{"a moment overflows", {}};
}

/// d log E f(u)^2 / d log Var u: how relative errors of variances grow.
double MomentEngine::amplification(FunctionTable::Id f, const Eigen::VectorXd& variances) {
  if (f == FunctionTable::kIdentity) return 1;
  const auto& closed = functions_.closed_form(f);
  if (!closed) return functions_.piecewise(f) ? static_cast<double>(std::max<std::size_t>(2, functions_.piecewise(f)->above.size())) : 2;
  constexpr double kShift = 1e-6;
  const std::size_t count = static_cast<std::size_t>(std::min<Eigen::Index>(variances.size(), 16));
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double a = variances(static_cast<Eigen::Index>(i * static_cast<std::size_t>(variances.size()) / count)) * closed->scale * closed->scale;
    if (!(a > 0)) continue;
    const std::array<double, 2> v{a, a * (1 + kShift)};
    std::array<double, 2> k{};
    (void)dual_kernel(closed->g, v, v, v, k);
    if (k[0] > 0) largest = std::max(largest, std::abs(k[1] / k[0] - 1) / kShift);
  }
  return largest;
}

/// The moment of factors that are all polynomials in independent normals.
std::optional<MomentEngine::Moment> MomentEngine::polynomial_moment(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
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
std::optional<MomentEngine::Moment> MomentEngine::same_side(const Factor& s, const Factor& t, int rows) {
  const auto form = functions_.pair_form(s.f, t.f);
  if (!form || block(s.affine).mean.size() > 0 || block(t.affine).mean.size() > 0) return std::nullopt;
  std::array<std::vector<double>, 3> arrays;  // a, b, c
  Moment out{Matrix(rows, 1)};
  double relative = 0;
  for (std::size_t k = 0; k < 3; ++k) {
    const Factor &p = k == 1 ? t : s, &q = k == 0 ? s : t;
    const Covariance& c = covariance(p.affine, q.affine);
    const double scale = (k == 1 ? form->scale_g : form->scale_f) * (k == 0 ? form->scale_f : form->scale_g);
    for (int i = 0; i < rows; ++i) arrays[k].push_back(c.value ? scale * (*c.value)(p.column(i), q.column(i)) : 0.0);
    relative = std::max(relative, c.relative);
    out.method = weaker(out.method, c.method);
  }
  std::vector<double> value(at(rows));
  note(form->kernel(arrays[0], arrays[1], arrays[2], value));
  for (int i = 0; i < rows; ++i) out.value(i, 0) = form->factor * value[at(i)];
  const bool exact = functions_.polynomial(s.f) && functions_.polynomial(t.f);
  if (!exact) out.method = weaker(out.method, MomentMethod::kClosedForm);
  if (!exact) disturb(out.value, kClosedFormError * out.value.cwiseAbs().maxCoeff());
  const Eigen::VectorXd a = Eigen::Map<const Eigen::VectorXd>(arrays[0].data(), rows) / (form->scale_f * form->scale_f);
  out.error = ((exact ? 0 : kClosedFormError) + relative * std::max(amplification(s.f, a), amplification(t.f, a))) * out.value.cwiseAbs().maxCoeff();
  return out;
}

/// As entries of all pairs of columns, if those are no more: quadratures of all pairs share their work.
std::optional<MomentEngine::Moment> MomentEngine::selected(const Factor& s, const Factor& t, int rows) {
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
  const auto of = [](const Factor& f, std::vector<int> columns) { return Factor{f.f, f.affine, std::make_shared<const std::vector<int>>(std::move(columns))}; };
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
MomentEngine::Moment MomentEngine::normal_means(FunctionTable::Id f, const Matrix& means, const Matrix& variances) {
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

MomentEngine::Moment MomentEngine::pair(const Factor& s, int rows, const Factor& t, int columns) {
  const Affine &x = block(s.affine), &y = block(t.affine);
  const Covariance c = covariance(s.affine, t.affine);
  const bool identities = s.f == FunctionTable::kIdentity && t.f == FunctionTable::kIdentity;
  if (!identities && (x.mean.size() > 0 || y.mean.size() > 0)) {
    const std::vector<std::pair<int, Factor>> both{{0, s}, {1, t}};
    const auto reduced = stein(both, rows, columns);
    return reduced ? *reduced : single_entries(both, rows, columns);
  }
  Moment out{Matrix(rows, columns), 0, c.method};
  const auto gather = [&](int j, double factor) {  // column j of the covariances
    double* to = out.value.col(j).data();
    if (!c.value) {
      std::fill_n(to, rows, 0.0);
      return;
    }
    const double* from = c.value->col(t.column(j)).data();
    if (s.columns) for (int i = 0; i < rows; ++i) to[i] = factor * from[s.column(i)];
    else for (int i = 0; i < rows; ++i) to[i] = factor * from[i];
  };
  const auto gather_all = [&] { each_column(rows, columns, [&](int j) { gather(j, 1); }); };
  if (identities) {
    gather_all();
    out.error = c.relative * out.value.cwiseAbs().maxCoeff();
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i)
        if (x.mean.size() > 0 && y.mean.size() > 0) out.value(i, j) += x.mean(s.column(i)) * y.mean(t.column(j));
    return out;
  }
  const auto &p = functions_.polynomial(s.f), &q = functions_.polynomial(t.f);
  if (!(p && q) && (s.f == FunctionTable::kIdentity || t.f == FunctionTable::kIdentity)) return *stein({{0, s}, {1, t}}, rows, columns);
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
      const Moment u = mean({f, s.affine, s.columns}, rows), v = mean({g, t.affine, t.columns}, columns);
      if (l > 0) factorial *= static_cast<double>(l);
      sum += (power.array() * (u.value * v.value.transpose()).array()).matrix() / factorial;
      power = (power.array() * out.value.array()).matrix().eval();
      f = functions_.derivative(f);
      g = functions_.derivative(g);
    }
    out.value = std::move(sum);
    out.error = relative * static_cast<double>(p->size() + q->size() - 2) * out.value.cwiseAbs().maxCoeff();
    return out;
  }
  if (const auto form = functions_.pair_form(s.f, t.f)) {
    const Eigen::VectorXd av = a * (form->scale_f * form->scale_f), bv = b * (form->scale_g * form->scale_g);
    std::vector<MomentStatus> status(at(columns));
    each_column(rows, columns, [&](int j) {
      gather(j, form->scale_f * form->scale_g);
      const std::span<double> column(out.value.col(j).data(), at(rows));
      status[at(j)] = form->kernel({av.data(), at(rows)}, {&bv(j), 1}, column, column);
      if (form->factor != 1) out.value.col(j) *= form->factor;
    });
    for (const MomentStatus& one : status) note(one);
    const double largest = out.value.cwiseAbs().maxCoeff();
    out.method = weaker(out.method, MomentMethod::kClosedForm);
    disturb(out.value, kClosedFormError * largest);
    out.error = (kClosedFormError + relative * std::max(amplification(s.f, a), amplification(t.f, b))) * largest;
    return out;
  }
  gather_all();
  if (functions_.kinks(s.f).empty() && functions_.kinks(t.f).empty() && functions_.integrable(s.f) && functions_.integrable(t.f)) {
    GramInput input;
    input.rows = rows;
    input.columns = columns;
    input.covariance = out.value.data();
    input.leading = rows;
    input.row_variances = {a.data(), static_cast<std::size_t>(rows)};
    input.column_variances = {b.data(), static_cast<std::size_t>(columns)};
    input.symmetric = s.f == t.f && s.affine == t.affine && s.columns == t.columns;
    const auto evaluate = [this](FunctionTable::Id id) {
      return [this, id](std::int64_t count, const double* points, double* values) { functions_.evaluate(id, count, points, values); };
    };
    Matrix value(rows, columns);
    const GramResult r = gram_quadrature(input, evaluate(s.f), s.f == t.f ? UnaryFunctions{} : UnaryFunctions{evaluate(t.f)}, 1, {value.data(), static_cast<std::size_t>(value.size())},
                                         [this](std::int64_t count, const std::function<void(std::int64_t)>& body) { executor_.parallel(count, body); });
    note(r.status);
    if (!r.converged) throw Unknown{"quadrature does not converge", {}};
    out.value = std::move(value);
    const double largest = out.value.cwiseAbs().maxCoeff();
    out.method = MomentMethod::kQuadrature;
    disturb(out.value, r.largest_error * largest);
    out.error = (r.largest_error + relative * 2) * largest;
    return out;
  }
  return single_entries({{0, s}, {1, t}}, rows, columns);
}

/// E d/du of the product of factors on two sides, u the Gaussian behind factor k.  A jump of height J at c adds
/// J E[delta(u - c) rest]: the density of u at c times E[rest | u = c], where the other Gaussians are v - Cov(v, u) / Var(u) (u - c).
MomentEngine::Moment MomentEngine::slope(const std::vector<std::pair<int, Factor>>& factors, std::size_t k, int rows, int columns) {
  const auto& [side, own] = factors[k];
  if (side == 1) {
    std::vector<std::pair<int, Factor>> mirrored = factors;
    for (auto& [s, f] : mirrored) s = 1 - s;
    Moment out = slope(mirrored, k, columns, rows);
    out.value.transposeInPlace();
    return out;
  }
  std::array<Term, 2> sides{Term{{1.0}, {}}, Term{{1.0}, {}}};
  for (std::size_t l = 0; l < factors.size(); ++l) {
    sides[at(factors[l].first)].factors.push_back(factors[l].second);
    if (l == k) sides[0].factors.back().f = functions_.derivative(own.f);
  }
  const auto& polynomial = functions_.polynomial(functions_.derivative(own.f));
  const bool flat = polynomial && std::all_of(polynomial->begin(), polynomial->end(), [](double c) { return c == 0; });
  Moment out = flat ? Moment{Matrix::Zero(1, 1)} : term_moment(sides[0], rows, sides[1], columns);
  for (const auto& [position, height] : functions_.jumps(own.f)) {
    const Factor u{FunctionTable::kIdentity, own.affine, own.columns};
    const Variances& variance = variances(u.affine);
    const Eigen::VectorXd& means = block(u.affine).mean;
    Eigen::VectorXd density(rows), a(rows), distance(rows);
    for (int i = 0; i < rows; ++i) {
      distance(i) = position - (means.size() > 0 ? means(u.column(i)) : 0.0);
      a(i) = variance.value(u.column(i));
      if (!(a(i) > 0) && distance(i) == 0) throw Unknown{"the derivative of a function at its jump", {}};
      density(i) = a(i) > 0 ? std::exp(-0.5 * distance(i) * distance(i) / a(i)) / std::sqrt(2 * std::numbers::pi * a(i)) : 0.0;
    }
    std::array<Term, 2> rest{Term{{1.0}, {}}, Term{{1.0}, {}}};
    const Factor* across = nullptr;  // depends on u, on the other side
    double relative = variance.relative;
    for (std::size_t l = 0; l < factors.size(); ++l) {
      if (l == k) continue;
      const auto& [other, f] = factors[l];
      if (!related(f.affine, u.affine)) {
        rest[at(other)].factors.push_back(f);
        continue;
      }
      const Covariance& c = covariance(f.affine, u.affine);
      relative = std::max(relative, c.relative);
      if (other == 1) {
        if (factors.size() > 2) throw Unknown{"the derivative of a function with jumps, times functions of several Gaussians", {}};
        across = &f;
        continue;
      }
      std::vector<double> onto(at(rows)), shift(at(rows));
      for (int i = 0; i < rows; ++i) {
        const double both = c.value ? (*c.value)(f.column(i), u.column(i)) : 0.0;
        onto[at(i)] = a(i) > 0 ? -both / a(i) : 0.0;
        shift[at(i)] = -onto[at(i)] * position;
      }
      Field given{rows, {{{1.0}, {{FunctionTable::kIdentity, f.affine, f.columns}}}, {std::move(onto), {u}}}};
      if (position != 0) given.terms.push_back({std::move(shift), {}});
      rest[0].factors.push_back({f.f, affine_of(given), nullptr});
    }
    const Moment conditional = across ? conditional_means(*across, columns, u, a, distance) : term_moment(rest[0], rows, rest[1], columns);
    const Matrix& value = conditional.value;
    if (out.value.rows() == 1 && rows > 1) out.value = out.value.replicate(rows, 1).eval();
    if (out.value.cols() == 1 && value.cols() > 1) out.value = out.value.replicate(1, value.cols()).eval();
    for (Eigen::Index j = 0; j < out.value.cols(); ++j)
      for (int i = 0; i < rows; ++i) out.value(i, j) += height * density(i) * value(value.rows() == 1 ? 0 : i, value.cols() == 1 ? 0 : j);
    const double largest = std::abs(height) * density.maxCoeff();
    out.error += largest * (conditional.error + 2 * relative * value.cwiseAbs().maxCoeff());
    out.method = weaker(weaker(out.method, variance.method), weaker(conditional.method, MomentMethod::kClosedForm));
  }
  return out;
}

/// (i, j): E[f(v_j) | u_i is `distance` from its mean], u_i of variance a(i).
MomentEngine::Moment MomentEngine::conditional_means(const Factor& f, int columns, const Factor& u, const Eigen::VectorXd& a, const Eigen::VectorXd& distance) {
  const auto rows = static_cast<int>(a.size());
  const Covariance c = covariance(f.affine, u.affine);
  const Variances& b = variances(f.affine);
  const Eigen::VectorXd own_mean = block(f.affine).mean;
  const bool moved = own_mean.size() > 0 || (distance.array() != 0).any();
  Matrix variance(rows, columns), mean;
  if (moved) mean.resize(rows, columns);
  constexpr double kNearlyParallel = 1e-6;  // 1 - rho^2 where the difference of two numbers is replaced by the length of a difference
  std::vector<std::pair<int, int>> near;
  for (int j = 0; j < columns; ++j)
    for (int i = 0; i < rows; ++i) {
      const double both = c.value ? (*c.value)(f.column(j), u.column(i)) : 0.0, onto = a(i) > 0 ? both / a(i) : 0.0;
      variance(i, j) = std::max(0.0, b.value(f.column(j)) - onto * both);
      if (variance(i, j) < kNearlyParallel * b.value(f.column(j))) near.emplace_back(i, j);
      if (moved) mean(i, j) = (own_mean.size() > 0 ? own_mean(f.column(j)) : 0.0) + onto * distance(i);
    }
  if (!near.empty()) {
    std::vector<int> of_u, of_v;
    std::vector<double> onto;
    for (const auto& [i, j] : near) {
      of_u.push_back(u.column(i));
      of_v.push_back(f.column(j));
      onto.push_back(a(i) > 0 && c.value ? -(*c.value)(of_v.back(), of_u.back()) / a(i) : 0.0);
    }
    const auto columns_of = [](std::vector<int> v) { return std::make_shared<const std::vector<int>>(std::move(v)); };
    const int difference = affine_of({static_cast<int>(near.size()), {{{1.0}, {{FunctionTable::kIdentity, f.affine, columns_of(of_v)}}}, {onto, {{FunctionTable::kIdentity, u.affine, columns_of(of_u)}}}}});
    const Variances& exact = variances(difference);
    for (std::size_t k = 0; k < near.size(); ++k) variance(near[k].first, near[k].second) = std::max(0.0, exact.value(static_cast<Eigen::Index>(k)));
  }
  Moment out = normal_means(f.f, mean, variance);
  out.method = weaker(out.method, weaker(c.method, b.method));
  return out;
}

/// E df/du of a term for every Gaussian u behind it whose block is wanted.
std::vector<MomentEngine::Slope> MomentEngine::slopes(const Term& t, int rows, const std::function<bool(int)>& wanted) {
  std::vector<Slope> out;
  std::vector<std::pair<int, Factor>> factors;
  for (const Factor& f : t.factors) factors.emplace_back(0, f);
  if (t.sum) factors.emplace_back(1, t.sum->inner());
  for (std::size_t k = 0; k < t.factors.size(); ++k) {
    const Factor& f = t.factors[k];
    if (!wanted(f.affine)) continue;
    Moment m = slope(factors, k, rows, t.sum ? t.sum->rows() : 1);
    out.push_back({{FunctionTable::kIdentity, f.affine, f.columns}, t.sum ? row_sums(*t.sum->weights, m) : std::move(m)});
  }
  if (t.sum && wanted(t.sum->affine)) {  // sum_s w_s E[dF/dg_s] g_s is one Gaussian
    const Moment m = slope(factors, t.factors.size(), rows, t.sum->rows());
    Matrix weights = *t.sum->weights;
    for (Eigen::Index s = 0; s < weights.cols(); ++s)
      for (int i = 0; i < rows; ++i) weights(i, s) *= m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : s);
    const int affine = affine_of(combine(weights, of_affine(t.sum->affine)));
    out.push_back({{FunctionTable::kIdentity, affine, nullptr}, {Matrix::Ones(1, 1), m.error / std::max(m.value.cwiseAbs().maxCoeff(), 1e-300), m.method}});
  }
  return out;
}

/// Stein's lemma: E x F(u) = E x E F(u) + sum_k Cov(x, u_k) E dF/du_k.  Rows: those of F.
MomentEngine::Moment MomentEngine::stein(const Term& t, int rows, const Factor& x, int columns) {
  Moment out{Matrix::Zero(rows, columns)};
  for (const auto& [u, m] : slopes(t, rows, [&](int affine) { return related(affine, x.affine); })) {
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
      for (int i = 0; i < rows; ++i) out.value(i, j) += mean(x.column(j)) * m.value(m.value.rows() == 1 ? 0 : i, 0);
    out.error += mean.cwiseAbs().maxCoeff() * m.error;
    out.method = weaker(out.method, m.method);
  }
  return out;
}

/// Stein's lemma where one side is a single Gaussian.
std::optional<MomentEngine::Moment> MomentEngine::stein(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  for (const int side : {0, 1}) {
    Term others{{1.0}, {}};
    std::vector<Factor> alone;
    for (const auto& [own, f] : factors) (own == side ? alone : others.factors).push_back(f);
    if (alone.size() != 1 || alone[0].f != FunctionTable::kIdentity || others.factors.empty()) continue;
    Moment out = stein(others, side == 0 ? columns : rows, alone[0], side == 0 ? rows : columns);
    if (side == 0) out.value.transposeInPlace();
    return out;
  }
  return std::nullopt;
}

/// m(i, s) summed over s with weights.
MomentEngine::Moment MomentEngine::row_sums(const Matrix& weights, const Moment& m) {
  Moment out{Matrix::Zero(weights.rows(), 1), m.error * weights.cwiseAbs().rowwise().sum().maxCoeff(), m.method};
  for (Eigen::Index s = 0; s < weights.cols(); ++s)
    for (Eigen::Index i = 0; i < weights.rows(); ++i) out.value(i, 0) += weights(i, s) * m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : s);
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
    if (m.value.rows() == 1) out.value = weights.rowwise().sum() * m.value;
    else out.value = weights * m.value;
    return out;
  }
  if (!t.sum && t.factors.empty()) return row_sums(weights, term_moment({{1.0}, s.factors}, rows, inner, s.sum->rows()));
  if (!t.sum && t.factors.size() == 1 && t.factors[0].f == FunctionTable::kIdentity) return stein(s, rows, t.factors[0], columns);
  Field x{rows, {s}}, y{columns, {t}};
  x.terms[0].coefficient = y.terms[0].coefficient = {1.0};
  return cross(expanded(x), expanded(y));
}

/// One quadrature per entry, over the different Gaussians behind the factors.
MomentEngine::Moment MomentEngine::single_entries(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  bool left = false, right = false;
  double relative = 0;
  for (const auto& [side, f] : factors) {
    (side == 0 ? left : right) = true;
    for (const auto& other : factors) relative = std::max(relative, covariance(f.affine, other.second.affine).relative);
  }
  Moment out = entries(left ? rows : 1, right ? columns : 1, [&](Eigen::Index i, Eigen::Index j) {
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
        if (const Covariance& c = covariances_.at({variables[k].first, variables[l].first}); c.value) entry.covariances[k + dim * l] = (*c.value)(variables[k].second, variables[l].second);
    }
    for (std::size_t k = 0; k < dim; ++k)
      for (std::size_t l = 0; l < k; ++l) entry.covariances[k + dim * l] = entry.covariances[l + dim * k] = 0.5 * (entry.covariances[k + dim * l] + entry.covariances[l + dim * k]);
    return entry;
  });
  out.error += 2 * relative * out.value.cwiseAbs().maxCoeff();
  return out;
}

/// A matrix of moments, each by a quadrature of its own.
MomentEngine::Moment MomentEngine::entries(Eigen::Index rows, Eigen::Index columns, const std::function<Entry(Eigen::Index, Eigen::Index)>& entry_at) {
  Moment out{Matrix::Zero(rows, columns), 0, MomentMethod::kQuadrature};
  for (const auto& [k, f] : entry_at(0, 0).functions)
    if (!functions_.integrable(f)) throw Unknown{"a function with poles or branch points", {}};
  std::vector<double> errors(static_cast<std::size_t>(out.value.size()), 0.0);
  std::vector<std::string> failures(errors.size());
  executor_.parallel(out.value.size(), [&](std::int64_t e) {
    const Eigen::Index i = e % rows, j = e / rows;
    const Entry entry = entry_at(i, j);
    const std::size_t dim = entry.means.size();
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
        for (std::int64_t p = 0; p < count; ++p) x[static_cast<std::size_t>(p)] = points[static_cast<std::int64_t>(k) * count + p] + entry.means[k];
        functions_.evaluate(f, count, x.data(), y.data());
        for (std::int64_t p = 0; p < count; ++p) values[p] *= y[static_cast<std::size_t>(p)];
      }
    };
    QuadratureOptions options;
    options.max_evaluations = 20'000'000;
    const QuadratureResult r = kinks.empty() ? smooth_expectation(entry.covariances, integrand, 1, options) : kinked_expectation(entry.covariances, integrand, 1, kinks, options);
    const auto slot = static_cast<std::size_t>(e);
    switch (r.status) {
      case QuadratureStatus::kConverged: break;
      case QuadratureStatus::kNotConverged: failures[slot] = "quadrature does not converge"; return;
      case QuadratureStatus::kRankTooLarge: failures[slot] = "a moment of more than 3 dependent Gaussians"; return;
      case QuadratureStatus::kNotACovariance:
        failures[slot] = std::all_of(entry.covariances.begin(), entry.covariances.end(), [](double x) { return std::isfinite(x); })
                             ? "a covariance is not positive semidefinite" : not_a_covariance({std::numeric_limits<double>::infinity(), 0, 0});
        return;
      case QuadratureStatus::kNotFinite: failures[slot] = "a moment overflows"; return;
    }
    out.value(i, j) = r.values[0];
    errors[slot] = r.errors[0];
  });
  for (const std::string& f : failures)
    if (!f.empty()) throw Unknown{f, {}};
  out.error = *std::max_element(errors.begin(), errors.end());
  disturb(out.value, out.error);
  return out;
}

}  // namespace tplimit::engines
