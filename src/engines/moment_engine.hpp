#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <Eigen/Core>

#include "engines/executor.hpp"
#include "engines/function_table.hpp"
#include "engines/sparse_polynomial.hpp"
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
  /// merge_rows: rows of sums over f(block) whose directions differ by less, relative to their size, become one.
  MomentEngine(const ir::Program& program, const std::vector<ir::NodeId>& outputs, const Executor& executor, double merge_rows);
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
  [[nodiscard]] std::int64_t rows_merged() const { return rows_merged_; }

 private:
  using Matrix = Eigen::MatrixXd;
  using Columns = std::shared_ptr<const std::vector<int>>;  ///< which columns of an affine block; null: all in order
  struct Part;
  struct Sum;
  struct Variances;
  struct Joined;
  struct Slope;
  struct Affine;
  struct Family;
  struct Factor;
  struct Term;
  struct Field;
  struct Version;
  struct Covariance;
  struct Component;
  using Polynomials = std::vector<Sparse>;
  struct Known;
  struct Moment;   ///< a matrix of moments with its error and method
  struct Unknown;  ///< thrown inside

  void evaluate();
  void measure_errors();
  void disturb(Matrix& values, double error);
  void step(ir::NodeId id);
  void collect_garbage();
  void finite_step(ir::NodeId id, const ir::Node& node);
  bool in_place(ir::NodeId id, const ir::Node& node);
  Field field_step(ir::NodeId id, const ir::Node& node);
  Field map(const ir::Map& m, const ir::Node& node);
  Field contract(const ir::Contract& c, const ir::Node& node);
  Field multiply(const Version& w, ir::NodeId x_node, bool transposed);
  Field gaussian_part(const Version& w, ir::NodeId x_node, const std::shared_ptr<const Field>& x, bool transposed);
  MomentValue average(const ir::Node& node);

  // ---- algebra of fields
  [[nodiscard]] Field operand(ir::NodeId id) const;
  static Field remap(const Field& x, const std::vector<int>& index);  ///< -1: zero
  Field add(Field x, const Field& y, double sign);
  Field times(const Field& x, const Field& y);
  [[nodiscard]] bool one_product(const Field& x, int depth) const;
  Field combine(const Matrix& weights, const Field& y);               ///< sum_s weights(j, s) y_s
  Field simplified(Field x);
  [[nodiscard]] Field expanded(const Field& x) const;                 ///< without sums over blocks

  // ---- sums over the rows of blocks
  void join_sums(Field& x);
  void append(Version& v, double c, const Field& d, const Field& x);
  std::optional<Joined> join(FunctionTable::Id f, int a, int b);
  int stacked(int a, int b, const std::vector<int>& row, const std::vector<double>& factor, int rows);
  [[nodiscard]] bool linear(const Field& x) const;
  [[nodiscard]] const Affine& block(int affine) const { return *affines_[static_cast<std::size_t>(affine)]; }
  int insert(Affine affine);
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
  const Variances& variances(int p);
  static Matrix times_covariance(const Part& a, const Covariance& c, int rows, int size);
  [[nodiscard]] bool related(int p, int q) const;
  Moment cross(const Field& x, const Field& y);
  Moment term_moment(const Term& s, int rows, const Term& t, int columns);
  Moment group_moment(const std::vector<std::pair<int, Factor>>& own, int rows, int columns);
  Moment pair(const Factor& s, int rows, const Factor& t, int columns);
  std::optional<Moment> polynomial_moment(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns);
  std::optional<Moment> same_side(const Factor& s, const Factor& t, int rows);
  std::optional<Moment> selected(const Factor& s, const Factor& t, int rows);
  Moment mean(const Factor& s, int rows);
  Moment normal_means(FunctionTable::Id f, const Matrix& means, const Matrix& variances);
  Moment sum_moment(const Term& s, int rows, const Term& t, int columns);
  Moment slope(const std::vector<std::pair<int, Factor>>& factors, std::size_t k, int rows, int columns);
  std::vector<Slope> slopes(const Term& t, int rows, const std::function<bool(int)>& wanted);
  Moment stein(const Term& t, int rows, const Factor& x, int columns);
  std::optional<Moment> stein(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns);
  Moment conditional_means(const Factor& f, int columns, const Factor& u, const Eigen::VectorXd& a, const Eigen::VectorXd& distance);
  static Moment row_sums(const Matrix& weights, const Moment& m);
  struct Entry;
  Moment entries(Eigen::Index rows, Eigen::Index columns, const std::function<Entry(Eigen::Index, Eigen::Index)>& entry_at);
  Moment single_entries(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns);
  Moment mean_of(const Field& x);
  double amplification(FunctionTable::Id f, const Eigen::VectorXd& variances);
  void note(const MomentStatus& status);
  void each_column(Eigen::Index rows, Eigen::Index columns, const std::function<void(int)>& body) const;  ///< threads if it is worth them
  void symmetrise(Matrix& x) const;

  const ir::Program& program_;
  std::vector<ir::NodeId> outputs_;
  std::vector<bool> needed_, kept_;
  std::vector<std::uint32_t> last_;  ///< the last node that uses each node
  std::uint64_t disturbance_ = 0;  ///< state of the random signs; 0: none
  ir::NodeId not_finite_;
  const Executor& executor_;
  FunctionTable functions_;
  double merge_rows_;
  std::vector<MomentValue> finite_;
  std::vector<std::shared_ptr<Field>> fields_;
  std::vector<std::shared_ptr<Version>> versions_;
  std::vector<std::shared_ptr<const Affine>> affines_;  ///< references to blocks stay good
  std::vector<Family> families_;
  std::map<std::pair<int, int>, Covariance> covariances_, family_covariances_;
  std::map<int, Variances> variances_;
  std::size_t live_ = 0, sweep_at_ = 256;                             ///< blocks not known to be dead; how many start a sweep
  std::map<std::pair<int, int>, int> symbols_;                        ///< member of a family of independent normals -> variable of polynomials
  std::map<std::tuple<std::uint32_t, bool, std::uint32_t>, int> hats_;  ///< source, transposed, vector -> family
  double excess_ = 0;
  std::int64_t rows_merged_ = 0;
  std::map<std::vector<int>, Known> quadratures_;  ///< by factors, their blocks and columns
};

}  // namespace tplimit::engines
