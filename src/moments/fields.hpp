#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include "moments/function_table.hpp"
#include "moments/pair_matrix.hpp"
#include "moments/sparse_polynomial.hpp"
#include "tplimit/ir/program.hpp"

/// What the moment engine computes with (docs/theory.md, "Moments without sampling"): a value with
/// coordinates is a field, sum_t c_t prod_f f(g_tf) prod_q q^p_tq, each g a row of a block of
/// jointly Gaussian variables, each q a positive quadratic form of such rows.  Blocks and forms are
/// known by their numbers in a CovarianceStore.
namespace tplimit::moments {

/// How a number was found without sampling; a later one is weaker.
enum class MomentMethod { kExact, kClosedForm, kQuadrature };
inline MomentMethod weaker(MomentMethod a, MomentMethod b) { return std::max(a, b); }

inline constexpr std::size_t kMostTerms = 512, kManyTerms = 16, kFewTerms = 8, kFewRows = 4;
/// Of the terms of a sum: what is left is rounding.
inline constexpr double kCancelled = 64 * kEpsilon;
inline constexpr const char* kInfiniteMean =
    "the mean is infinite, or its tails are too heavy for any quadrature";
/// Of dual_kernel, relative to sqrt(K(a,a) K(b,b)).
inline constexpr double kClosedFormError = 1e-14;
/// Of variances and covariances that are sums of products of data, relative to roots of variances.
inline constexpr double kCovarianceRounding = 4 * kEpsilon;

using Matrix = Eigen::MatrixXd;
/// Which rows of a block; null: all in order.
using Columns = std::shared_ptr<const std::vector<int>>;
inline bool same_columns(const Columns& a, const Columns& b) {
  return a == b || (a && b && *a == *b);
}

/// G_1, G_2, ..: the columns of an initial vector, independent N(0, 1), or hatZ^{W x_i} for the
/// columns x_i of a field, of covariance E x_i x_j, or hatZ^{W' x_i}.
struct GaussianFamily {
  int size = 0;
  int matrix = -1;  ///< source of W; -1: independent standard normals
  bool transposed = false;
  std::shared_ptr<const struct Field> x;
};

/// L G of a family G: row i is scale[i] G_{index[i]} (a selection), or row i of `dense` times G.
struct LinearPart {
  int family;
  std::vector<int> index;
  Eigen::VectorXd scale;
  Matrix dense;  ///< rows x family size; empty for a selection
  [[nodiscard]] bool selection() const { return dense.size() == 0; }
};

/// g = mean + sum_k L_k G_k: jointly Gaussian variables g_1, g_2, ..
struct GaussianBlock {
  int rows = 0;
  Eigen::VectorXd mean;  ///< empty: 0
  std::vector<LinearPart> parts;
};

/// Column i: f(g_{column(i)}) of a block g.
struct Factor {
  FunctionTable::Id f = FunctionTable::kIdentity;
  int block = 0;
  Columns columns;
  [[nodiscard]] int column(int i) const { return columns ? (*columns)[at(i)] : i; }
  [[nodiscard]] bool same_gaussians(const Factor& o) const {
    return block == o.block && same_columns(columns, o.columns);
  }
  [[nodiscard]] bool same(const Factor& o) const { return f == o.f && same_gaussians(o); }
};
/// Factors of a moment, each with its side: 0 for functions of row i, 1 for functions of column j.
using SidedFactors = std::vector<std::pair<int, Factor>>;

/// Column i: sum_s weights(i, s) f(g_s) of a block g: what a weight matrix is after many updates.
struct WeightedSum {
  std::shared_ptr<const Matrix> weights;  ///< columns x rows
  FunctionTable::Id f;
  int block;
  [[nodiscard]] int rows() const { return static_cast<int>(weights->cols()); }
  [[nodiscard]] Factor inner() const { return {f, block, nullptr}; }
};

/// q = offset + sum_k weight_k g_k^2 > 0 almost surely, g_k rows of blocks.
struct QuadraticForm {
  struct Square {
    int block, row;
    double weight;  ///< positive
    friend auto operator<=>(const Square&, const Square&) = default;
  };
  std::vector<Square> squares;
  double offset = 0;  ///< not negative
  friend auto operator<=>(const QuadraticForm&, const QuadraticForm&) = default;
};

/// Column i: q^power, q the form of this number in a CovarianceStore.
struct FormPower {
  std::vector<int> form;  ///< one for all columns, or one each
  double power;
  [[nodiscard]] int at_column(int i) const { return form.size() == 1 ? form[0] : form[at(i)]; }
  friend bool operator==(const FormPower&, const FormPower&) = default;
};

/// Column i: coefficient_i prod_f f(g_{column(i)}), times a weighted sum and powers of quadratic
/// forms if there are any.
struct Term {
  std::vector<double> coefficient;  ///< one for all columns, or one each
  std::vector<Factor> factors;
  std::optional<WeightedSum> sum{};
  std::vector<FormPower> forms{};  ///< different ones
  [[nodiscard]] double at_column(int i) const {
    return coefficient.size() == 1 ? coefficient[0] : coefficient[at(i)];
  }
  /// Nothing but a coefficient and factors.
  [[nodiscard]] bool plain() const { return !sum && forms.empty(); }
  [[nodiscard]] bool constant() const { return factors.empty() && plain(); }
};

/// Polynomials in independent standard normals, one for each column.
using Polynomials = std::vector<Sparse>;

/// Z^x for the columns of x: sums of terms, or polynomials in independent standard normals.
struct Field {
  int columns = 0;
  std::vector<Term> terms;
  double relative = 0;  ///< error of the coefficients, relative to the field
  MomentMethod method = MomentMethod::kExact;
  std::shared_ptr<const Polynomials> polynomials{};  ///< then there are no terms
  [[nodiscard]] bool constant() const {
    return !polynomials &&
           std::all_of(terms.begin(), terms.end(), [](const Term& t) { return t.constant(); });
  }
};

/// The field f(g) of one block.
struct UnaryField {
  FunctionTable::Id f;
  int block;
  Columns columns;
};

/// W_t = scale W_0 + sum_k c_k sum_p D_k[p] X_k[p]' / n.
struct MatrixVersion {
  std::uint32_t source = 0;
  double scale = 1;
  struct Update {
    double c;
    std::shared_ptr<const Field> d, x;
  };
  std::vector<Update> updates;
  double relative = 0;
  MomentMethod method = MomentMethod::kExact;
};

/// Cov(g_i, h_j) of two blocks or families.
struct Covariance {
  std::shared_ptr<const Matrix> value;  ///< null: 0, or only as pairs
  Pairs pairs;
  bool identity = false;  ///< I, not stored
  double relative = 0;
  MomentMethod method = MomentMethod::kExact;
};
/// Cov(g_i, h_j), not evaluated yet.
struct PairCovariance {
  Pairs pairs;  ///< null: known as numbers only, or 0
  MomentMethod method = MomentMethod::kExact;
};
/// Var g_i.
struct Variances {
  Eigen::VectorXd value;
  Eigen::VectorXd resolution;  ///< standard deviations that cannot be told from 0; empty: all can
  double relative = 0;
  MomentMethod method = MomentMethod::kExact;
};

/// Two blocks as one: row s of the second is row[s] of the joined one, and f there is factor[s] f
/// of that row, up to a relative `error`.
struct JoinedBlocks {
  int block;
  std::vector<int> row;
  std::vector<double> factor;
  double error = 0;
};

/// E x_i y_j.
struct Moment {
  Matrix value;      ///< rows x columns; 1 where it does not depend on one of them
  double error = 0;  ///< absolute, largest
  MomentMethod method = MomentMethod::kExact;
  Pairs pairs{};  ///< not null: instead of value and error
  [[nodiscard]] double entry(Eigen::Index i, Eigen::Index j) const {
    return value(value.rows() == 1 ? 0 : i, value.cols() == 1 ? 0 : j);
  }
};

/// E dt/du_i of a term t for the Gaussian u_i behind each column.
struct ExpectedDerivative {
  Factor u;  ///< f is the identity
  Moment m;
};

/// E prod_k f_k(g_k) of a few jointly Gaussian g.
struct ProductMoment {
  std::vector<double> covariances, means;
  std::vector<std::pair<std::size_t, FunctionTable::Id>> functions;  ///< (which Gaussian, function)
};

/// Thrown inside where a value cannot be known without sampling.
struct Unknown {
  std::string why;
  ir::NodeId culprit{};
  bool infinite = false;
  bool grows = false;  ///< exponentially: then so do derivatives and multiples
};

}  // namespace tplimit::moments
