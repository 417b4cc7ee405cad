#include "tplimit/ir/kernels.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <Eigen/Cholesky>
#include <Eigen/LU>

#include "tplimit/ir/functions.hpp"
#include "tplimit/math/symmetric_eigen.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::ir {
namespace {

using Index = std::int64_t;
using ColumnMajor = Eigen::Map<const Eigen::MatrixXd, 0, Eigen::OuterStride<>>;
using MutableColumnMajor = Eigen::Map<Eigen::MatrixXd, 0, Eigen::OuterStride<>>;
using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajor = Eigen::Map<const RowMajorMatrix>;

const double* column(const View& v, Index j) { return v.data + j * v.ld; }
double* column(const MutableView& v, Index j) { return v.data + j * v.ld; }

/// Row-major strides of `dims` seen from the axes `out` (right-aligned); broadcast axes get stride
/// 0.
std::vector<Index> broadcast_strides(const Dims& dims, const Dims& out) {
  std::vector<Index> strides(out.size(), 0);
  Index stride = 1;
  for (std::size_t k = 0; k < dims.size(); ++k) {
    const std::size_t from = dims.size() - 1 - k;
    const std::size_t to = out.size() - 1 - k;
    if (dims[from] != 1) strides[to] = stride;
    stride *= dims[from];
  }
  return strides;
}

/// For every column of the result the column of an operand, given the operand's stride along every
/// result axis.
std::vector<Index> column_indices(const Dims& out, const std::vector<Index>& strides,
                                  Index offset = 0) {
  std::vector<Index> index{offset};
  index.reserve(static_cast<std::size_t>(size_of(out)));
  for (std::size_t axis = 0; axis < out.size(); ++axis) {
    std::vector<Index> next;
    next.reserve(index.size() * static_cast<std::size_t>(out[axis]));
    for (const Index base : index)
      for (Index i = 0; i < out[axis]; ++i) next.push_back(base + i * strides[axis]);
    index = std::move(next);
  }
  return index;
}

/// An operand of a coordinatewise function: which column goes with which column of the result, and
/// whether it has rows.
struct ColumnMap {
  const double* data;
  Index ld;
  Index row_step;
  std::vector<Index> columns;  ///< empty: the same column as the result

  ColumnMap(const View& view, const Type& type, const Type& out)
      : data(view.data), ld(view.ld), row_step(type.width ? 1 : 0) {
    if (type.dims != out.dims)
      columns = column_indices(out.dims, broadcast_strides(type.dims, out.dims));
  }
  [[nodiscard]] const double* at(Index j) const {
    return data + (columns.empty() ? j : columns[static_cast<std::size_t>(j)]) * ld;
  }
};

void evaluate_map(const Map& map, const Type& type, const std::vector<const Type*>& types,
                  const std::vector<View>& in, MutableView out) {
  const Index columns = size_of(type.dims);
  const Function& f = function(map.fn);
  if (f.arity == 1) {
    // One call per block where the columns touch, else one per column.
    const View& x = in[0];
    if (x.ld == out.rows && out.ld == out.rows)
      return f.values(map.parameter, x.data, out.data, out.rows * columns);
    for (Index j = 0; j < columns; ++j)
      f.values(map.parameter, column(x, j), column(out, j), out.rows);
    return;
  }
  std::vector<ColumnMap> x;
  for (std::size_t k = 0; k < in.size(); ++k) x.emplace_back(in[k], *types[k], type);
  std::vector<Operand> operands(in.size());
  for (Index j = 0; j < columns; ++j) {
    for (std::size_t k = 0; k < in.size(); ++k) operands[k] = {x[k].at(j), x[k].row_step};
    f.values_of_several(operands.data(), column(out, j), out.rows);
  }
}

void evaluate_contract(const Contract& op, const std::vector<const Type*>& types,
                       const std::vector<View>& in, MutableView out) {
  const ContractSizes n(op, types[0]->dims, types[1]->dims);
  const bool wa = types[0]->width, wb = types[1]->width;
  const View &a = in[0], &b = in[1];
  if (!wa && !wb) {
    for (Index p = 0; p < n.batch; ++p)
      Eigen::Map<RowMajorMatrix>(out.data + p * n.left * n.right, n.left, n.right).noalias() =
          RowMajor(a.data + p * n.left * n.inner, n.left, n.inner) *
          RowMajor(b.data + p * n.right * n.inner, n.right, n.inner).transpose();
    return;
  }
  for (Index p = 0; p < n.batch; ++p) {
    if (wa && !wb) {
      const RowMajor weights(b.data + p * n.right * n.inner, n.right, n.inner);
      for (Index i = 0; i < n.left; ++i) {
        const Index row = p * n.left + i;
        MutableColumnMajor(column(out, row * n.right), out.rows, n.right,
                           Eigen::OuterStride<>(out.ld))
            .noalias() =
            ColumnMajor(column(a, row * n.inner), out.rows, n.inner, Eigen::OuterStride<>(a.ld)) *
            weights.transpose();
      }
    } else if (!wa) {
      const RowMajor weights(a.data + p * n.left * n.inner, n.left, n.inner);
      for (Index j = 0; j < n.right; ++j)
        MutableColumnMajor(column(out, p * n.left * n.right + j), out.rows, n.left,
                           Eigen::OuterStride<>(out.ld * n.right))
            .noalias() = ColumnMajor(column(b, (p * n.right + j) * n.inner), out.rows, n.inner,
                                     Eigen::OuterStride<>(b.ld)) *
                         weights.transpose();
    } else {
      for (Index i = 0; i < n.left; ++i)
        for (Index j = 0; j < n.right; ++j) {
          double* y = column(out, (p * n.left + i) * n.right + j);
          std::fill_n(y, out.rows, 0.0);
          for (Index k = 0; k < n.inner; ++k) {
            const double* u = column(a, (p * n.left + i) * n.inner + k);
            const double* v = column(b, (p * n.right + j) * n.inner + k);
            for (Index r = 0; r < out.rows; ++r) y[r] += u[r] * v[r];
          }
        }
    }
  }
}

/// Axes around one axis: [outer.., axis, inner..].
struct AxisSplit {
  Index outer = 1, size = 1, inner = 1;
  AxisSplit(const Dims& dims, std::int32_t axis) {
    for (std::size_t k = 0; k < dims.size(); ++k) {
      if (static_cast<std::int32_t>(k) < axis) outer *= dims[k];
      if (static_cast<std::int32_t>(k) == axis) size = dims[k];
      if (static_cast<std::int32_t>(k) > axis) inner *= dims[k];
    }
  }
};

void copy_column(const View& in, Index from, MutableView out, Index to) {
  std::copy_n(column(in, from), out.rows, column(out, to));
}

void reduce(bool maximum, std::int32_t axis, const Dims& dims, const View& in, MutableView out) {
  const AxisSplit split(dims, axis);
  for (Index o = 0; o < split.outer; ++o)
    for (Index q = 0; q < split.inner; ++q) {
      const Index to = o * split.inner + q;
      copy_column(in, o * split.size * split.inner + q, out, to);
      double* y = column(out, to);
      for (Index k = 1; k < split.size; ++k) {
        const double* x = column(in, (o * split.size + k) * split.inner + q);
        if (maximum) {
          for (Index i = 0; i < out.rows; ++i) y[i] = y[i] > x[i] || y[i] != y[i] ? y[i] : x[i];
        } else {
          for (Index i = 0; i < out.rows; ++i) y[i] += x[i];
        }
      }
    }
}

/// The largest entry is taken out, so that no exponential overflows.
void log_sum_exp(std::int32_t axis, const Dims& dims, const View& in, MutableView out) {
  reduce(true, axis, dims, in, out);
  const AxisSplit split(dims, axis);
  std::vector<double> sum(static_cast<std::size_t>(out.rows));
  for (std::int64_t o = 0; o < split.outer; ++o)
    for (std::int64_t q = 0; q < split.inner; ++q) {
      double* largest = column(out, o * split.inner + q);
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::int64_t k = 0; k < split.size; ++k) {
        const double* x = column(in, (o * split.size + k) * split.inner + q);
        for (Index i = 0; i < out.rows; ++i)
          sum[static_cast<std::size_t>(i)] += std::exp(x[i] - largest[i]);
      }
      for (Index i = 0; i < out.rows; ++i)  // inf - inf is no number
        if (!std::isinf(largest[i])) largest[i] += std::log(sum[static_cast<std::size_t>(i)]);
    }
}

void eigenvalues(const Dims& dims, const View& in, MutableView out) {
  const Index k = dims.back();
  const Index batch = size_of(dims) / (k * k);
  for (Index p = 0; p < batch; ++p) {
    const RowMajor a(in.data + p * k * k, k, k);
    Eigen::Map<Eigen::VectorXd> values(out.data + p * k, k);
    if (!a.allFinite()) {
      values.setConstant(std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    const Eigen::MatrixXd symmetric = 0.5 * (a + a.transpose());
    values = symmetric_eigenvalues(symmetric);
  }
}

/// Dependent rows get no direction of their own: 1e-10 of the row's own variance is what rounding
/// and sampling leave of them.
void cholesky(Index k, const View& in, MutableView out) {
  const RowMajor a(in.data, k, k);
  Eigen::Map<Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> l(out.data, k,
                                                                                       k);
  l.setZero();
  for (Index i = 0; i < k; ++i)
    for (Index j = 0; j <= i; ++j) {
      const double rest = 0.5 * (a(i, j) + a(j, i)) - l.row(i).head(j).dot(l.row(j).head(j));
      if (i > j)
        l(i, j) = l(j, j) > 0 ? rest / l(j, j) : 0;
      else
        l(i, i) = rest > 1e-10 * a(i, i) ? std::sqrt(rest) : std::isnan(rest) ? rest : 0;
    }
}

/// h of TrainingOperator.
double learned(const TrainingOperator& t, double z) {
  if (t.flow) return z == 0 ? t.rate * t.time : -std::expm1(-t.rate * t.time * z) / z;
  const double x = t.rate * z;
  if (z == 0) return t.rate * t.time;
  return x < 1 ? -std::expm1(t.time * std::log1p(-x)) / z : (1 - std::pow(1 - x, t.time)) / z;
}

void training_operator(const TrainingOperator& t, Index p, Index q, const View& kernel,
                       const View& across, MutableView out) {
  const RowMajor theta(kernel.data, p, p), theta_x(across.data, q, p);
  Eigen::Map<Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> result(
      out.data, q, p);
  if (!theta.allFinite() || !theta_x.allFinite()) {
    result.setConstant(std::numeric_limits<double>::quiet_NaN());
    return;
  }
  Eigen::MatrixXd symmetric = 0.5 * (theta + theta.transpose());
  symmetric.diagonal().array() += t.ridge * symmetric.trace() / static_cast<double>(p);
  const double resolved = static_cast<double>(p) * std::numeric_limits<double>::epsilon();
  if (std::isinf(t.time)) {
    const Eigen::LLT<Eigen::MatrixXd> llt(symmetric);
    if (llt.info() == Eigen::Success && llt.rcond() > 10 * resolved) {
      result = llt.solve(theta_x.transpose()).transpose();
      return;
    }
  }
  // Repeated samples make kernels singular; what lies in the null space is not learned, and no
  // output depends on it.
  const SymmetricEigen eigen(symmetric);
  const Eigen::VectorXd& z = eigen.values;
  Eigen::VectorXd h(p);
  for (Index i = 0; i < p; ++i)
    h(i) = !std::isinf(t.time) ? learned(t, z(i)) : z(i) > 10 * resolved * z(p - 1) ? 1 / z(i) : 0;
  result.noalias() = theta_x * (eigen.vectors * h.asDiagonal() * eigen.vectors.transpose());
}

/// LU of a square matrix, its rows divided by powers of 2 first: how near it is to a singular one
/// does not depend on the units of its rows.
struct Factored {
  explicit Factored(const RowMajor& a) : shift(a.rows()) {
    Eigen::MatrixXd scaled = a;
    if (!scaled.allFinite()) return;
    for (Index i = 0; i < a.rows(); ++i) {
      const double largest = scaled.row(i).cwiseAbs().maxCoeff();
      if (largest == 0) return;
      shift(i) = std::ilogb(largest);
      for (Index j = 0; j < a.cols(); ++j) scaled(i, j) = std::ldexp(scaled(i, j), -shift(i));
    }
    lu.compute(scaled);
    // As for TrainingOperator: what rounding leaves of a singular matrix.
    regular =
        lu.rcond() > 10 * static_cast<double>(a.rows()) * std::numeric_limits<double>::epsilon();
  }
  Eigen::PartialPivLU<Eigen::MatrixXd> lu;
  Eigen::VectorXi shift;
  bool regular = false;
};

void solve(const Dims& dims, const View& matrix, const View& right, MutableView out) {
  const Index k = dims[dims.size() - 2], m = dims.back();
  for (Index p = 0; p < size_of(dims) / (k * m); ++p) {
    const Factored a(RowMajor(matrix.data + p * k * k, k, k));
    Eigen::Map<RowMajorMatrix> x(out.data + p * k * m, k, m);
    if (!a.regular) {
      x.setConstant(std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    Eigen::MatrixXd y = RowMajor(right.data + p * k * m, k, m);
    for (Index i = 0; i < k; ++i)
      for (Index j = 0; j < m; ++j) y(i, j) = std::ldexp(y(i, j), -a.shift(i));
    x = a.lu.solve(y);
  }
}

void log_determinants(const Dims& dims, const View& in, MutableView out) {
  const Index k = dims.back();
  for (Index p = 0; p < size_of(dims) / (k * k); ++p) {
    const Factored a(RowMajor(in.data + p * k * k, k, k));
    double sum = std::numeric_limits<double>::quiet_NaN();
    if (a.regular) {
      const auto diagonal = a.lu.matrixLU().diagonal().array();
      const bool negative =
          ((diagonal < 0).count() % 2 != 0) != (a.lu.permutationP().determinant() < 0);
      if (!negative)
        sum = diagonal.abs().log().sum() + std::log(2.0) * static_cast<double>(a.shift.sum());
    }
    out.data[p] = sum;
  }
}

}  // namespace

bool is_average(const Op& op) {
  return std::visit([](const auto& own) { return own.traits().average; }, op);
}

ContractSizes::ContractSizes(const Contract& op, const Dims& a, const Dims& b) {
  const auto batch_end = static_cast<std::size_t>(op.batch);
  const std::size_t a_end = a.size() - static_cast<std::size_t>(op.contracted);
  const std::size_t b_end = b.size() - static_cast<std::size_t>(op.contracted);
  for (std::size_t k = 0; k < batch_end; ++k) batch *= a[k];
  for (std::size_t k = batch_end; k < a_end; ++k) left *= a[k];
  for (std::size_t k = batch_end; k < b_end; ++k) right *= b[k];
  for (std::size_t k = a_end; k < a.size(); ++k) inner *= a[k];
}

bool is_rowwise(const Op& op) {
  return std::visit([](const auto& own) { return own.traits().rowwise; }, op);
}

void evaluate_rows(const Node& node, const std::vector<const Type*>& types,
                   const std::vector<View>& in, MutableView out) {
  const Type& type = node.type;
  const Index columns = size_of(type.dims);
  const auto copy_columns = [&](const std::vector<Index>& from) {
    for (Index j = 0; j < columns; ++j)
      copy_column(in[0], from[static_cast<std::size_t>(j)], out, j);
  };
  const auto copy_all = [&] {
    for (Index j = 0; j < columns; ++j) copy_column(in[0], j, out, j);
  };
  const auto impossible = [&] {
    TPLIMIT_CHECK(false, "a rowwise operation, got {}", op_name(node.op));
  };
  std::visit(
      overloaded{
          [&](const Scale& op) {
            TPLIMIT_CHECK(op.power == 0, "powers of the width are resolved before evaluation");
            const double c = op.factor;
            for (Index j = 0; j < columns; ++j) {
              const double* x = column(in[0], j);
              double* y = column(out, j);
              for (Index i = 0; i < out.rows; ++i) y[i] = c * x[i];
            }
          },
          [&](const Map& op) { evaluate_map(op, type, types, in, out); },
          [&](const Contract& op) { evaluate_contract(op, types, in, out); },
          [&](const ReduceSum& op) { reduce(false, op.axis, types[0]->dims, in[0], out); },
          [&](const ReduceMax& op) { reduce(true, op.axis, types[0]->dims, in[0], out); },
          [&](const LogSumExp& op) { log_sum_exp(op.axis, types[0]->dims, in[0], out); },
          [&](const Gather& op) {
            const AxisSplit split(types[0]->dims, op.axis);
            Index to = 0;
            for (Index o = 0; o < split.outer; ++o)
              for (const Index k : *op.indices)
                for (Index q = 0; q < split.inner; ++q)
                  copy_column(in[0], (o * split.size + k) * split.inner + q, out, to++);
          },
          [&](const ScatterAdd& op) {
            for (Index j = 0; j < columns; ++j) std::fill_n(column(out, j), out.rows, 0.0);
            const AxisSplit split(type.dims, op.axis);
            Index from = 0;
            for (Index o = 0; o < split.outer; ++o)
              for (const Index k : *op.indices)
                for (Index q = 0; q < split.inner; ++q) {
                  const double* x = column(in[0], from++);
                  double* y = column(out, (o * split.size + k) * split.inner + q);
                  for (Index i = 0; i < out.rows; ++i) y[i] += x[i];
                }
          },
          [&](const Permute& op) {
            std::vector<Index> in_strides(types[0]->dims.size(), 1), strides(type.dims.size());
            for (std::size_t k = in_strides.size(); k-- > 1;)
              in_strides[k - 1] = in_strides[k] * types[0]->dims[k];
            for (std::size_t k = 0; k < strides.size(); ++k)
              strides[k] = in_strides[static_cast<std::size_t>(op.axes[k])];
            copy_columns(column_indices(type.dims, strides));
          },
          [&](const Reshape&) { copy_all(); },
          [&](const Expand&) {
            const ColumnMap x(in[0], *types[0], type);
            for (Index j = 0; j < columns; ++j) {
              if (x.row_step == 1)
                std::copy_n(x.at(j), out.rows, column(out, j));
              else
                std::fill_n(column(out, j), out.rows, *x.at(j));
            }
          },
          [&](const Concat& op) {
            const AxisSplit whole(type.dims, op.axis);
            Index offset = 0;
            for (std::size_t part = 0; part < in.size(); ++part) {
              const AxisSplit split(types[part]->dims, op.axis);
              for (Index o = 0; o < split.outer; ++o)
                for (Index k = 0; k < split.size * split.inner; ++k) {
                  const double* x = column(in[part], o * split.size * split.inner + k);
                  double* y = column(out, (o * whole.size + offset) * whole.inner + k);
                  for (Index i = 0; i < out.rows; ++i) y[i] = x[types[part]->width ? i : 0];
                }
              offset += split.size;
            }
          },
          [&](const Stop&) { copy_all(); },
          [&](const Parameter&) { impossible(); },
          [&](const Change&) { impossible(); },
          [&](const Cholesky&) { cholesky(types[0]->dims[0], in[0], out); },
          [&](const Eigvals&) { eigenvalues(types[0]->dims, in[0], out); },
          [&](const TrainingOperator& t) {
            training_operator(t, types[0]->dims[0], types[1]->dims[0], in[0], in[1], out);
          },
          [&](const Solve&) { solve(type.dims, in[0], in[1], out); },
          [&](const LogDet&) { log_determinants(types[0]->dims, in[0], out); },
          [&](const Constant&) { impossible(); },
          [&](const StandardNormal&) { impossible(); },
          [&](const Average&) { impossible(); },
          [&](const MatMul&) { impossible(); },
          [&](const GaussianMatrix&) { impossible(); },
          [&](const ScaleMatrix&) { impossible(); },
          [&](const UpdateMatrix&) { impossible(); },
          [&](const AddVersion&) { impossible(); },
          [&](const OuterSum&) { impossible(); },
          [&](const MatrixEntries&) { impossible(); },
          [&](const AddEntries&) { impossible(); },
          [&](const InnerProduct&) { impossible(); },
          [&](const Samples&) { impossible(); },
          [&](const Histogram&) { impossible(); },
      },
      node.op);
}

void accumulate_average(const Node& node, const std::vector<const Type*>& types,
                        const std::vector<View>& in, double* sums) {
  const Index columns = size_of(node.type.dims);
  const Index rows = in[0].rows;
  if (const auto* op = std::get_if<Contract>(&node.op)) {
    const ContractSizes n(*op, types[0]->dims, types[1]->dims);
    for (Index p = 0; p < n.batch; ++p) {
      Eigen::Map<RowMajorMatrix> out(sums + p * n.left * n.right, n.left, n.right);
      for (Index k = 0; k < n.inner; ++k) {
        const ColumnMajor a(column(in[0], p * n.left * n.inner + k), rows, n.left,
                            Eigen::OuterStride<>(in[0].ld * n.inner));
        const ColumnMajor b(column(in[1], p * n.right * n.inner + k), rows, n.right,
                            Eigen::OuterStride<>(in[1].ld * n.inner));
        out.noalias() += a.transpose() * b;
      }
    }
  } else if (const auto* histogram = std::get_if<Histogram>(&node.op)) {
    const Index bins = histogram->bins;
    const double per_unit = static_cast<double>(bins) / (histogram->high - histogram->low);
    for (Index j = 0; j < columns / bins; ++j) {
      const double* x = column(in[0], j);
      for (Index i = 0; i < rows; ++i) {
        // The outer bins are open, so that the fractions add up to 1.
        const double place =
            std::clamp((x[i] - histogram->low) * per_unit, 0.0, static_cast<double>(bins - 1));
        if (place == place)
          sums[j * bins + static_cast<Index>(place)] += 1;
        else
          sums[j * bins] = std::numeric_limits<double>::quiet_NaN();
      }
    }
  } else {
    for (Index j = 0; j < columns; ++j)
      sums[j] += Eigen::Map<const Eigen::VectorXd>(column(in[0], j), rows).sum();
  }
}

}  // namespace tplimit::ir
