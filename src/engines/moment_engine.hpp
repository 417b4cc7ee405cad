#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <Eigen/Core>

#include "engines/executor.hpp"
#include "engines/function_table.hpp"
#include "tplimit/ir/program.hpp"

namespace tplimit::engines {

/// How a number was found without sampling; a later one is weaker.
enum class MomentMethod { kExact, kClosedForm, kQuadrature };

/// A finite value, or why it needs particles.
struct MomentValue {
  std::vector<double> value;
  std::vector<double> error;  ///< absolute, one for all numbers or one each; 0 for exact algebra
  [[nodiscard]] double error_at(std::size_t j) const { return error.size() == 1 ? error[0] : error[j]; }
  MomentMethod method = MomentMethod::kExact;
  std::string why;                   ///< not empty: unknown
  ir::NodeId culprit;                ///< where the unknown begins
  [[nodiscard]] bool known() const { return why.empty(); }
};

/// Evaluates the limit program on symbols: a value with coordinates is a sum of products of functions of jointly Gaussian
/// variables whose covariances are numbers (docs/theory.md, "Moments without sampling").  Products with a Gaussian matrix make new
/// Gaussian families and correction terms exactly as in Z = hatZ + dotZ.
///
/// Moments: products of independent groups factorise; a group is evaluated by exact algebra, by a closed form, or by quadrature
/// in up to 3 dimensions.  What is none of these stays unknown, and so does everything computed from it.
/// Cost: gram matrices of P columns O(P^2) per pair of values; memory linear in their entries.
class MomentEngine {
 public:
  MomentEngine(const ir::Program& program, const std::vector<ir::NodeId>& outputs, const Executor& executor);
  ~MomentEngine();
  /// Evaluates what the outputs need.  First-order bounds of errors multiply along a program; where one exceeds 1e-9 of the value,
  /// the error is measured instead: 4 times the largest change in kDisturbedRuns runs in which every closed form and quadrature
  /// is moved by its own error with random signs.
  void run();
  /// An output, or why something else is unknown; other numbers are released.
  [[nodiscard]] const MomentValue& operator[](ir::NodeId id) const { return finite_[id.value]; }
  /// The first node with a number that is not finite; invalid if there is none.
  [[nodiscard]] ir::NodeId first_not_finite() const { return not_finite_; }
  /// Largest c^2/(ab) - 1 of a covariance that was clamped as rounding.
  [[nodiscard]] double largest_excess() const { return excess_; }

 private:
  using Matrix = Eigen::MatrixXd;
  using Columns = std::shared_ptr<const std::vector<int>>;  ///< which columns of an affine block; null: all in order
  struct Part;
  struct Affine;
  struct Family;
  struct Factor;
  struct Term;
  struct Field;
  struct Version;
  struct Covariance;
  struct Component;
  using Polynomials = std::vector<std::vector<std::pair<std::array<std::uint64_t, 2>, double>>>;
  struct Moment;   ///< a matrix of moments with its error and method
  struct Unknown;  ///< thrown inside

  void evaluate();
  void measure_errors();
  void disturb(Matrix& values, double error);
  void step(ir::NodeId id);
  void finite_step(ir::NodeId id, const ir::Node& node);
  Field field_step(ir::NodeId id, const ir::Node& node);
  Field map(const ir::Map& m, const ir::Node& node);
  Field contract(const ir::Contract& c, const ir::Node& node);
  Field multiply(const Version& w, ir::NodeId x_node, bool transposed);
  MomentValue average(const ir::Node& node);

  // ---- algebra of fields
  [[nodiscard]] Field operand(ir::NodeId id) const;
  static Field remap(const Field& x, const std::vector<int>& index);  ///< -1: zero
  Field add(Field x, const Field& y, double sign);
  Field times(const Field& x, const Field& y);
  Field combine(const Matrix& weights, const Field& y);               ///< sum_s weights(j, s) y_s
  Field simplified(Field x);
  [[nodiscard]] bool linear(const Field& x) const;
  int affine_of(const Field& x);
  struct Unary { FunctionTable::Id f; int affine; Columns columns; };
  std::optional<Unary> as_unary(const Field& x);
  std::shared_ptr<const Polynomials> polynomials(const Field& x);     ///< null if x is none
  Field of_polynomials(Polynomials columns, const Field& x, const Field& y) const;
  Field constant(std::vector<double> values) const;
  Field of_affine(int affine) const;

  // ---- moments
  const Covariance& covariance(int p, int q);
  const Covariance& family_covariance(int f, int g);
  [[nodiscard]] bool related(int p, int q) const;
  Moment cross(const Field& x, const Field& y);
  Moment term_moment(const Term& s, int rows, const Term& t, int columns);
  Moment pair(const Factor& s, int rows, const Factor& t, int columns);
  std::optional<Moment> polynomial_moment(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns);
  std::optional<Moment> same_side(const Factor& s, const Factor& t, int rows);
  Moment mean(const Factor& s, int rows);
  Moment slope(const std::vector<Factor>& factors, std::size_t k, int rows);
  std::optional<Moment> stein(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns);
  Moment single_entries(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns);
  Moment mean_of(const Field& x);
  double amplification(FunctionTable::Id f, const Eigen::VectorXd& variances);
  void note(const MomentStatus& status);

  const ir::Program& program_;
  std::vector<ir::NodeId> outputs_;
  std::vector<bool> needed_, kept_;
  std::uint64_t disturbance_ = 0;  ///< state of the random signs; 0: none
  ir::NodeId not_finite_;
  const Executor& executor_;
  FunctionTable functions_;
  std::vector<MomentValue> finite_;
  std::vector<std::shared_ptr<Field>> fields_;
  std::vector<std::shared_ptr<Version>> versions_;
  std::vector<Affine> affines_;
  std::vector<Family> families_;
  std::map<std::pair<int, int>, Covariance> covariances_, family_covariances_;
  std::map<std::pair<int, int>, int> symbols_;                        ///< member of a family of independent normals -> variable of polynomials
  std::map<std::tuple<std::uint32_t, bool, std::uint32_t>, int> hats_;  ///< source, transposed, vector -> family
  double excess_ = 0;
};

}  // namespace tplimit::engines
