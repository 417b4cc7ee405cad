#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moments/algebra.hpp"
#include "moments/context.hpp"
#include "moments/covariance_store.hpp"
#include "moments/fields.hpp"
#include "tplimit/math/gaussian_quadrature.hpp"

namespace tplimit::moments {

/// E x_i y_j of fields.  Factors of independent groups of Gaussians separate; a group is evaluated
/// by exact algebra, a closed form, Stein's lemma, a change of measure or quadrature, in this order
/// of preference (docs/theory.md, "Moments without sampling").  What is none of these throws
/// Unknown.  Cost: O(P^2) for P columns per pair of terms.
class Expectations final : public CrossMoments {
 public:
  Expectations(RunContext& context, CovarianceStore& store, FieldAlgebra& algebra)
      : context_(context), functions_(context.functions), store_(store), algebra_(algebra) {
    store.set_cross_moments(*this);
  }
  Expectations(const Expectations&) = delete;
  Expectations& operator=(const Expectations&) = delete;

  Moment cross(const Field& x, const Field& y, bool lazy) override;
  Moment cross(const Field& x, const Field& y) { return cross(x, y, false); }
  /// E x_i, a column.
  Moment mean_of(const Field& x);
  /// E dt/du of a term for every Gaussian u behind it whose block is wanted; inner: one of its sum.
  std::vector<ExpectedDerivative> slopes(
      const Term& t, int rows, const std::function<bool(const Factor&, bool inner)>& wanted);

 private:
  // ---- products of factors
  Moment polynomial_cross(const Field& x, const Field& y);
  Moment single_terms(const Field& x, const Field& y, bool lazy);
  Moment term_moment(const Term& s, int rows, const Term& t, int columns, bool lazy = false);
  std::optional<Moment> by_pattern(const Term& s, int rows, const Term& t, int columns);
  Moment sum_moment(const Term& s, int rows, const Term& t, int columns);
  std::vector<SidedFactors> independent_groups(const SidedFactors& factors, int rows, int columns);
  Moment group_moment(const SidedFactors& own, int rows, int columns, bool lazy);
  static Moment product_of(std::vector<Moment> parts);
  Moment mean(const Factor& s, int rows);
  Moment normal_means(FunctionTable::Id f, const Matrix& means, const Matrix& variances);
  Moment pair(const Factor& s, int rows, const Factor& t, int columns, bool lazy = false);
  Moment polynomial_pair(const Factor& s, int rows, const Factor& t, int columns,
                         const Matrix& covariances, double relative);
  GramRules line_rules(FunctionTable::Id f, const Eigen::VectorXd& a, FunctionTable::Id g,
                       const Eigen::VectorXd& b);
  Moment pair_quadrature(const Factor& s, const Factor& t, const Eigen::VectorXd& a,
                         const Eigen::VectorXd& b, Moment out, double relative);
  std::optional<Moment> by_parity(const Factor& s, int rows, const Factor& t, int columns);
  std::optional<Moment> same_side(const Factor& s, const Factor& t, int rows);
  std::optional<Moment> selected(const Factor& s, const Factor& t, int rows);
  std::optional<Moment> polynomial_moment(const SidedFactors& factors, int rows, int columns);
  double amplification(FunctionTable::Id f, const Eigen::VectorXd& variances);
  struct Steepness {
    double size = 0, stretch = 0, slope = 0, variation = 0, jump = 0;
  };
  const Steepness& steepness(FunctionTable::Id f, int power);
  double change_of_pairs(FunctionTable::Id f, const Eigen::VectorXd& a, FunctionTable::Id g,
                         const Eigen::VectorXd& b, const Matrix& covariances, double part);

  // ---- derivatives and Stein's lemma
  Moment slope(const SidedFactors& factors, std::size_t k, int rows, int columns);
  Moment conditional_means(const Factor& f, int columns, const Factor& u, const Eigen::VectorXd& a,
                           const Eigen::VectorXd& distance);
  Moment stein(const Term& t, int rows, const Factor& x, int columns);
  std::optional<Moment> stein(const SidedFactors& factors, int rows, int columns);
  static Moment row_sums(const Matrix& weights, const Moment& m);
  static Moment finite_part(const std::function<Moment()>& moment);

  // ---- exponentials of quadratic forms
  bool grows(const Factor& f);
  bool may_diverge(const Factor& f);
  std::optional<Moment> change_of_measure(const SidedFactors& own, int rows, int columns);
  std::optional<Moment> tilted(const SidedFactors& factors, int rows, int columns);

  // ---- inverse powers of quadratic forms
  Moment form_moment(const Term& s, int rows, const Term& t, int columns);
  Moment over_form(const Term& s, int rows, const Term& t, int columns, const QuadraticForm& q,
                   double k);
  Moment inverse_power(const SidedFactors& factors, int rows, int columns, const QuadraticForm& q,
                       double k, bool absolute = false);

  // ---- quadratures
  Moment single_entries(const SidedFactors& factors, int rows, int columns);
  Moment entries(Eigen::Index rows, Eigen::Index columns,
                 const std::function<ProductMoment(Eigen::Index, Eigen::Index)>& entry_at,
                 bool symmetric = false);
  static double rough_value(const FunctionTable& functions, const ProductMoment& entry,
                            std::string& failure);
  static Matrix rough_pair(const FunctionTable& functions, FunctionTable::Id f,
                           const Eigen::VectorXd& a, FunctionTable::Id g, const Eigen::VectorXd& b,
                           const Matrix& covariances);
  double resolution(FunctionTable::Id f, double mean, double variance);
  static std::vector<int> key_of(const SidedFactors& factors, int rows, int columns, bool mirrored);
  [[nodiscard]] std::optional<Moment> recalled(const SidedFactors& factors, int rows,
                                               int columns) const;
  void remember(const SidedFactors& factors, int rows, int columns, const Moment& m);

  RunContext& context_;
  FunctionTable& functions_;
  CovarianceStore& store_;
  FieldAlgebra& algebra_;
  std::map<std::vector<int>, Moment> quadratures_;  ///< by key_of
  Eigen::Index remembered_ = 0;                     ///< numbers in them
  /// By the power of 2 above the variance.
  std::map<std::pair<FunctionTable::Id, int>, double> resolutions_;
  std::map<std::pair<FunctionTable::Id, int>, Steepness> steepness_;
  std::map<int, int> tilted_normals_;  ///< families by their size
  int integrals_ = 0;                  ///< under which moments are asked for now
};

}  // namespace tplimit::moments
