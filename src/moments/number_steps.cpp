#include "moments/engine.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <Eigen/LU>

#include "tplimit/ir/kernels.hpp"

namespace tplimit::moments {

using namespace ir;

namespace {
double largest(const std::vector<double>& v) {
  return std::accumulate(v.begin(), v.end(), 0.0,
                         [](double a, double x) { return std::max(a, std::abs(x)); });
}
double largest_error(const MomentValue& x) {
  return x.error.size() == 1 ? x.error[0] : largest(x.error);
}

/// |x| e_y: what an error of y does to x y, not 0 times infinity.
double times_error(const std::vector<double>& x, double error) {
  return error > 0 ? error * largest(x) : 0;
}

/// One bound for all entries of x + y, x - y or x y, entry by entry, to first order:
/// e_x + e_y, or |x| e_y + |y| e_x.
double bound_of(Fn fn, const MomentValue& x, const MomentValue& y) {
  const double a = largest_error(x), b = largest_error(y);
  return fn == Fn::kMul ? times_error(x.value, b) + times_error(y.value, a) : a + b;
}

bool sum_or_product(const Map* m) {
  return m && (m->fn == Fn::kAdd || m->fn == Fn::kSub || m->fn == Fn::kMul);
}
}  // namespace

/// Evaluates pairs, those of one shape together.  What has no value is unknown.
void MomentEngine::settle(const std::vector<NodeId>& ids) {
  constexpr std::size_t kEachError = 4096;  // entries whose errors are kept one by one
  std::vector<NodeId> left;
  for (const NodeId id : ids)
    if (finite_[id.value].pairs && std::find(left.begin(), left.end(), id) == left.end())
      left.push_back(id);
  while (!left.empty()) {
    const PairMatrix& shape = *finite_[left[0].value].pairs;
    std::vector<NodeId> own, others;
    std::vector<PairMatrix::Target> targets;
    for (const NodeId id : left) {
      MomentValue& v = finite_[id.value];
      if (v.pairs->rows() != shape.rows() || v.pairs->columns() != shape.columns() ||
          v.pairs->symmetric() != shape.symmetric()) {
        others.push_back(id);
        continue;
      }
      v.value.resize(static_cast<std::size_t>(shape.rows()) *
                     static_cast<std::size_t>(shape.columns()));
      if (v.value.size() <= kEachError && v.method != MomentMethod::kExact)
        v.error.resize(v.value.size());
      own.push_back(id);
      targets.push_back(
          {v.pairs, v.value.data(), v.error.size() == v.value.size() ? v.error.data() : nullptr});
    }
    std::string why;
    try {
      context_.note(PairMatrix::evaluate(targets, context_.executor, context_.disturbance));
    } catch (const Unknown& unknown) {
      why = unknown.why;
    }
    for (std::size_t k = 0; k < own.size(); ++k) {
      MomentValue& v = finite_[own[k].value];
      if (v.method == MomentMethod::kExact)
        v.error = {0.0};
      else if (v.value.size() > kEachError)
        v.error = {targets[k].largest_error};
      v.pairs = nullptr;
      v.why = why;
      v.culprit = own[k];
    }
    left = std::move(others);
  }
}

/// Copies, multiples, sums and products of matrices of pairs.
bool MomentEngine::pairs_step(NodeId id, const Node& node) {
  MomentValue& out = finite_[id.value];
  const auto value = [&](std::size_t k) -> const MomentValue& { return finite_[node.in[k].value]; };
  const auto size = static_cast<std::size_t>(size_of(node.type.dims));
  const auto fits = [&](std::size_t k) {
    return value(k).pairs && static_cast<std::size_t>(value(k).pairs->rows()) *
                                     static_cast<std::size_t>(value(k).pairs->columns()) ==
                                 size;
  };
  if (node.in.size() == 1) {
    const auto* scale = std::get_if<Scale>(&node.op);
    if (!fits(0) || !(scale || std::holds_alternative<Reshape>(node.op) ||
                      std::holds_alternative<ReduceSum>(node.op)))
      return false;
    out.pairs = scale ? PairMatrix::multiple(value(0).pairs, scale->factor) : value(0).pairs;
    out.method = value(0).method;
    return true;
  }
  const auto* m = std::get_if<Map>(&node.op);
  if (!m || node.in.size() != 2 || (m->fn != Fn::kAdd && m->fn != Fn::kSub && m->fn != Fn::kMul))
    return false;
  const std::size_t k = fits(0) ? 0 : 1;
  if (!fits(k)) return false;
  const MomentValue &x = value(k), &y = value(1 - k);
  if (m->fn == Fn::kMul && !y.pairs && y.value.size() == 1) {
    const double c = y.value[0];
    out.pairs = PairMatrix::multiple(x.pairs, c,
                                     c != 0 ? context_.carried(y.error_at(0)) / std::abs(c) : 0);
  } else if (fits(0) && fits(1) &&
             program_[node.in[0]].type.dims == program_[node.in[1]].type.dims &&
             x.pairs->rows() == y.pairs->rows()) {
    out.pairs = m->fn == Fn::kMul
                    ? PairMatrix::product(x.pairs, y.pairs)
                    : PairMatrix::sum(value(0).pairs, value(1).pairs, m->fn == Fn::kAdd ? 1 : -1);
  } else if (!y.pairs && y.value.size() == size &&
             program_[node.in[0]].type.dims == program_[node.in[1]].type.dims &&
             std::isfinite(*std::max_element(y.error.begin(), y.error.end()))) {
    auto numbers = std::make_shared<Matrix>(x.pairs->rows(), x.pairs->columns());
    std::copy(y.value.begin(), y.value.end(), numbers->data());
    const bool symmetric = x.pairs->symmetric() && *numbers == numbers->transpose();
    const Pairs other = PairMatrix::dense(
        std::move(numbers), context_.carried(*std::max_element(y.error.begin(), y.error.end())),
        symmetric);
    out.pairs = m->fn == Fn::kMul
                    ? PairMatrix::product(x.pairs, other)
                    : PairMatrix::sum(k == 0 ? x.pairs : other, k == 0 ? other : x.pairs,
                                      m->fn == Fn::kAdd ? 1 : -1);
  } else {
    return false;
  }
  out.method = weaker(x.method, y.method);
  return true;
}

/// Copies, multiples, sums and products of large arrays in the memory of an operand that nothing
/// else needs.
bool MomentEngine::in_place(NodeId id, const Node& node) {
  constexpr std::size_t kLarge = 4096;
  const auto size = static_cast<std::size_t>(size_of(node.type.dims));
  if (size < kLarge) return false;
  const auto usable = [&](std::size_t k) {
    return last_[node.in[k].value] == id.value && !kept_[node.in[k].value] &&
           finite_[node.in[k].value].value.size() == size;
  };
  const auto each = [&](const std::function<void(std::size_t, std::size_t)>& body) {
    context_.each_column(
        static_cast<Eigen::Index>(kLarge), static_cast<Eigen::Index>((size + kLarge - 1) / kLarge),
        [&](int j) { body(at(j) * kLarge, std::min(size, (at(j) + 1) * kLarge)); });
  };
  MomentValue& out = finite_[id.value];
  const auto multiply = [&](double factor) {
    if (factor == 1) return;
    each([&](std::size_t begin, std::size_t end) {
      for (std::size_t j = begin; j < end; ++j) out.value[j] *= factor;
    });
    for (double& e : out.error) e *= std::abs(factor);
  };
  if (node.in.size() == 1) {
    const auto* scale = std::get_if<Scale>(&node.op);
    if (!usable(0) || !(scale || std::holds_alternative<Reshape>(node.op) ||
                        std::holds_alternative<ReduceSum>(node.op)))
      return false;
    out = std::move(finite_[node.in[0].value]);
    if (scale) multiply(scale->factor);
    return true;
  }
  const auto* m = std::get_if<Map>(&node.op);
  if (!sum_or_product(m) || node.in[0] == node.in[1]) return false;
  const std::size_t k = usable(0) ? 0 : 1;
  if (!usable(k)) return false;
  MomentValue& x = finite_[node.in[k].value];
  const MomentValue& y = finite_[node.in[1 - k].value];
  const MomentMethod method = weaker(x.method, y.method);
  if (y.value.size() == 1 && m->fn == Fn::kMul) {
    const double spread = times_error(x.value, largest_error(y));
    out = std::move(x);
    multiply(y.value[0]);
    for (double& e : out.error) e += spread;
  } else if (y.value.size() == size &&
             program_[node.in[0]].type.dims == program_[node.in[1]].type.dims) {
    const double error = bound_of(m->fn, x, y);
    out = std::move(x);
    out.error = {error};
    each([&](std::size_t begin, std::size_t end) {
      double* to = out.value.data();
      const double* from = y.value.data();
      if (m->fn == Fn::kMul)
        for (std::size_t j = begin; j < end; ++j) to[j] *= from[j];
      else if (m->fn == Fn::kAdd)
        for (std::size_t j = begin; j < end; ++j) to[j] += from[j];
      else if (k == 0)
        for (std::size_t j = begin; j < end; ++j) to[j] -= from[j];
      else
        for (std::size_t j = begin; j < end; ++j) to[j] = from[j] - to[j];
    });
  } else {
    return false;
  }
  out.method = method;
  return true;
}

/// Finite operations: first-order propagation of errors, operand by operand.
void MomentEngine::finite_step(NodeId id, const Node& node) {
  MomentValue& out = finite_[id.value];
  if (const auto* c = std::get_if<Constant>(&node.op)) {
    out.value = *c->values;
    out.error = {0.0};
    return;
  }
  if (std::holds_alternative<Samples>(node.op))
    throw Unknown{"samples are drawn by the particle engine", {}};
  if (in_place(id, node)) return;
  std::vector<const Type*> types;
  std::vector<const double*> given;
  for (const NodeId k : node.in) {
    types.push_back(&program_[k].type);
    given.push_back(finite_[k.value].value.data());
    out.method = weaker(out.method, finite_[k.value].method);
  }
  const RowFunction evaluate_at = [&](const std::vector<const double*>& operands) {
    std::vector<View> views;
    for (const double* x : operands) views.push_back({x, 1, 1});
    std::vector<double> result(static_cast<std::size_t>(size_of(node.type.dims)));
    evaluate_rows(node, types, views, {result.data(), 1, 1});
    return result;
  };
  out.value = evaluate_at(given);
  if (out.method == MomentMethod::kExact)
    out.error = {0.0};
  else if (!bound_error(node, out, evaluate_at))
    bound_error_by_differences(node, out, evaluate_at);
}

/// Errors of what large kernels go through, cheaply: copies, multiples, sums and products of equal
/// shapes.  False if the node is none of these.
bool MomentEngine::bound_error(const Node& node, MomentValue& out,
                               const RowFunction& evaluate_at) const {
  const auto* m = std::get_if<Map>(&node.op);
  const MomentValue& x = finite_[node.in[0].value];
  const bool linear = std::visit([](const auto& own) { return own.traits().linear; }, node.op);
  if (node.in.size() == 1 && linear) {
    if (x.error.size() == 1 && !std::holds_alternative<ScatterAdd>(node.op)) {
      const auto* s = std::get_if<Scale>(&node.op);
      const double copies = std::holds_alternative<ReduceSum>(node.op)
                                ? static_cast<double>(x.value.size()) /
                                      static_cast<double>(std::max<std::size_t>(
                                          1, std::min(x.value.size(), out.value.size())))
                                : 1;
      out.error = {x.error[0] * (s ? std::abs(s->factor) : copies)};
      return true;
    }
    const std::vector<double> errors =
        x.error.size() == 1 ? std::vector<double>(x.value.size(), x.error[0]) : x.error;
    out.error = evaluate_at({errors.data()});
    for (double& e : out.error) e = std::abs(e);
    return true;
  }
  if (!sum_or_product(m) || x.value.size() != out.value.size()) return false;
  const MomentValue& y = finite_[node.in[1].value];
  if (y.value.size() != out.value.size()) return false;
  if (x.error.size() == 1 && y.error.size() == 1) {
    out.error = {bound_of(m->fn, x, y)};
    return true;
  }
  out.error.resize(out.value.size());
  for (std::size_t j = 0; j < out.error.size(); ++j)
    out.error[j] = m->fn == Fn::kMul
                       ? std::abs(x.value[j]) * y.error_at(j) + std::abs(y.value[j]) * x.error_at(j)
                       : x.error_at(j) + y.error_at(j);
  return true;
}

/// With |dA| <= E, M = |A^-1| E and r = ||M||, by rows, below 1: |d(A^-1 Y)| <= (1 - M)^-1 v, v =
/// |A^-1| (E |X| + |dY|), and |d log det A| <= tr M + k r^2 / (2 (1 - r)).
bool MomentEngine::bound_error_of_equations(const Node& node, MomentValue& out) const {
  const bool solve = std::holds_alternative<Solve>(node.op);
  if (!solve && !std::holds_alternative<LogDet>(node.op)) return false;
  using Eigen::Index;
  using Rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const MomentValue& a = finite_[node.in[0].value];
  const Index k = program_[node.in[0]].type.dims.back(), m = solve ? node.type.dims.back() : 1;
  out.error.assign(out.value.size(), 0.0);
  const auto errors = [](const MomentValue& x, Index first, Index rows, Index columns) {
    Rows e(rows, columns);
    for (Index j = 0; j < e.size(); ++j)
      e.data()[j] = x.error_at(static_cast<std::size_t>(first + j));
    return e;
  };
  for (Index p = 0; p < static_cast<Index>(a.value.size()) / (k * k); ++p) {
    const Rows inverse = Eigen::Map<const Rows>(a.value.data() + p * k * k, k, k)
                             .partialPivLu()
                             .inverse()
                             .cwiseAbs();
    const Rows moved = inverse * errors(a, p * k * k, k, k);
    const double r = moved.rowwise().sum().maxCoeff();
    Rows bound = Rows::Constant(solve ? k : 1, m, std::numeric_limits<double>::infinity());
    if (r < 1 && solve) {
      const Rows x = Eigen::Map<const Rows>(out.value.data() + p * k * m, k, m).cwiseAbs();
      bound = moved * x + inverse * errors(finite_[node.in[1].value], p * k * m, k, m);
      const Eigen::RowVectorXd more = r / (1 - r) * bound.colwise().maxCoeff();
      bound.rowwise() += more;
    } else if (r < 1) {
      bound(0, 0) = moved.trace() + static_cast<double>(k) * r * r / (2 * (1 - r));
    }
    std::copy_n(bound.data(), bound.size(), out.error.data() + p * bound.size());
  }
  return true;
}

/// sum_k |f(.., x_k + e_k, ..) - f(x)| over the operands x_k; of a bilinear f at |x_k|, so that
/// errors of opposite signs do not cancel.
void MomentEngine::bound_error_by_differences(const Node& node, MomentValue& out,
                                              const RowFunction& evaluate_at) const {
  if (std::holds_alternative<TrainingOperator>(
          node.op)) {  // no useful bound for nearly singular kernels: measured
    out.error = {std::numeric_limits<double>::infinity()};
    return;
  }
  if (bound_error_of_equations(node, out)) return;
  out.error.assign(out.value.size(), 0.0);
  std::vector<std::vector<double>> in;
  for (const NodeId k : node.in) in.push_back(finite_[k.value].value);
  const auto evaluate = [&] {
    std::vector<const double*> operands;
    for (const auto& v : in) operands.push_back(v.data());
    return evaluate_at(operands);
  };
  const bool bilinear = std::holds_alternative<Contract>(node.op);
  if (bilinear)
    for (auto& v : in)
      for (double& x : v) x = std::abs(x);
  const std::vector<double> base = bilinear ? evaluate() : out.value;
  for (std::size_t k = 0; k < in.size(); ++k) {
    const auto saved = in[k];
    for (std::size_t j = 0; j < saved.size(); ++j)
      in[k][j] += finite_[node.in[k].value].error_at(j);
    const auto moved = evaluate();
    for (std::size_t j = 0; j < base.size(); ++j) {
      const double change = std::abs(moved[j] - base[j]);
      // No bound (infinity) times 0 is none either, and is measured as others are.
      out.error[j] += std::isnan(change) && !std::isnan(out.value[j])
                          ? std::numeric_limits<double>::infinity()
                          : change;
    }
    in[k] = saved;
  }
}

MomentValue MomentEngine::average(const Node& node) {
  MomentValue out;
  if (std::holds_alternative<Average>(node.op)) {
    out.value.resize(static_cast<std::size_t>(size_of(node.type.dims)));
    const Moment m = expectations_.mean_of(operand(node.in[0]));
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
      const Moment m = expectations_.cross(FieldAlgebra::remap(y, right),
                                           FieldAlgebra::remap(x, left), batch == 1 && depth == 1);
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

}  // namespace tplimit::moments
