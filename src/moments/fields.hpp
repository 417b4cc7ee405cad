#pragma once

#include <limits>

#include "moments/engine.hpp"

/// What the moment engine computes with.
namespace tplimit::moments {

inline constexpr std::size_t kMostTerms = 512, kManyTerms = 16, kFewTerms = 8, kFewRows = 4;
inline constexpr double kCancelled =
    64 *
    std::numeric_limits<double>::epsilon();  ///< of the terms of a sum: what is left is rounding
inline constexpr const char* kInfiniteMean =
    "the mean is infinite, or its tails are too heavy for any quadrature";
inline constexpr double kClosedFormError =
    1e-14;  ///< of dual_kernel, relative to sqrt(K(a,a) K(b,b))

inline MomentMethod weaker(MomentMethod a, MomentMethod b) { return std::max(a, b); }
inline std::size_t at(int i) { return static_cast<std::size_t>(i); }

/// Rows of an affine block over one family: row i is scale[i] times member index[i], or row i of
/// `dense`.
struct MomentEngine::Part {
  int family;
  std::vector<int> index;
  Eigen::VectorXd scale;
  Matrix dense;  ///< rows x family size; empty for a selection
  [[nodiscard]] bool selection() const { return dense.size() == 0; }
};
struct MomentEngine::Affine {
  int rows = 0;
  Eigen::VectorXd mean;  ///< empty: 0
  std::vector<Part> parts;
};
/// Jointly Gaussian variables: the columns of a StandardNormal, or hatZ^{Wx} for the columns of a
/// field x.
struct MomentEngine::Family {
  int size = 0;
  int matrix = -1;  ///< source of the matrix; -1: independent standard normals
  bool transposed = false;
  std::shared_ptr<const Field> x;
};
struct MomentEngine::Factor {
  FunctionTable::Id f = FunctionTable::kIdentity;
  int affine = 0;
  Columns columns;
  [[nodiscard]] int column(int i) const { return columns ? (*columns)[at(i)] : i; }
};
/// sum_s weights(i, s) f(row s of a block): what a weight matrix is after many updates.
struct MomentEngine::Sum {
  std::shared_ptr<const Matrix> weights;  ///< columns x rows
  FunctionTable::Id f;
  int affine;
  [[nodiscard]] int rows() const { return static_cast<int>(weights->cols()); }
  [[nodiscard]] Factor inner() const { return {f, affine, nullptr}; }
};
struct MomentEngine::Term {
  std::vector<double> coefficient;  ///< one for all columns, or one each
  std::vector<Factor> factors;
  std::optional<Sum> sum{};  ///< one more factor
  [[nodiscard]] double at_column(int i) const {
    return coefficient.size() == 1 ? coefficient[0] : coefficient[at(i)];
  }
  [[nodiscard]] bool constant() const { return factors.empty() && !sum; }
};
/// columns[i] = sum over terms of coefficient[i] prod_f f(affine[column(i)]), or a polynomial in
/// independent standard normals.
struct MomentEngine::Field {
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
/// scale W + sum_k c_k sum_p D_k[p] X_k[p]' / n.
struct MomentEngine::Version {
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
struct MomentEngine::Covariance {
  std::shared_ptr<const Matrix> value;  ///< null: 0, or only as pairs
  Pairs pairs;
  bool identity = false;  ///< I, not stored
  double relative = 0;
  MomentMethod method = MomentMethod::kExact;
};
struct MomentEngine::PairCovariance {
  Pairs pairs;
  MomentMethod method = MomentMethod::kExact;
};
struct MomentEngine::Variances {
  Eigen::VectorXd value;
  Eigen::VectorXd resolution;  ///< standard deviations that cannot be told from 0; empty: all can
  double relative = 0;
  MomentMethod method = MomentMethod::kExact;
};
/// Row s of the second block is row[s] of the joined one, and f there is f of the row times
/// factor[s], up to a relative `error`.
struct MomentEngine::Joined {
  int affine;
  std::vector<int> row;
  std::vector<double> factor;
  double error = 0;
};
struct MomentEngine::Moment {
  Matrix value;      ///< rows x columns; 1 where it does not depend on one of them
  double error = 0;  ///< absolute, largest
  MomentMethod method = MomentMethod::kExact;
  Pairs pairs{};  ///< not null: instead of value and error
};
/// E d/du of a term for the Gaussian u behind each column.
struct MomentEngine::Slope {
  Factor u;  ///< f is the identity
  Moment m;
};
/// A moment of functions of a few Gaussians.
struct MomentEngine::Entry {
  std::vector<double> covariances, means;
  std::vector<std::pair<std::size_t, FunctionTable::Id>> functions;  ///< (which Gaussian, function)
};
struct MomentEngine::Unknown {
  std::string why;
  ir::NodeId culprit{};
  bool infinite = false;
  bool grows = false;  ///< exponentially: then so do derivatives and multiples
};

}  // namespace tplimit::moments
