#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <Eigen/Core>

#include "moments/function_table.hpp"
#include "moments/pair_matrix.hpp"
#include "moments/sparse_polynomial.hpp"
#include "parallel/executor.hpp"
#include "tplimit/ir/program.hpp"

namespace tplimit::moments {

/// How a number was found without sampling; a later one is weaker.
enum class MomentMethod { kExact, kClosedForm, kQuadrature };

/// A finite value, or why it needs particles.
struct MomentValue {
  std::vector<double> value;
  std::vector<double> error;  ///< absolute, one for all numbers or one each; 0 for exact algebra
  [[nodiscard]] double error_at(std::size_t j) const {
    return error.size() == 1 ? error[0] : error[j];
  }
  MomentMethod method = MomentMethod::kExact;
  std::string why;     ///< not empty: unknown
  ir::NodeId culprit;  ///< where the unknown begins
  Pairs pairs;         ///< not null: not evaluated yet, `value` is empty
  bool infinite =
      false;  ///< unknown because it is infinite, or too heavy-tailed to be told from that
  [[nodiscard]] bool known() const { return why.empty(); }
};

/// Evaluates the limit program on symbols: a value with coordinates is a sum of products of
/// functions of jointly Gaussian variables whose covariances are numbers (docs/theory.md, "Moments
/// without sampling").  Products with a Gaussian matrix make new Gaussian families and correction
/// terms exactly as in Z = hatZ + dotZ.
///
/// Moments: products of independent groups factorise; a group is evaluated by exact algebra, by a
/// closed form, or by quadrature in up to 3 dimensions.  What is none of these stays unknown, and
/// so does everything computed from it. Cost: gram matrices of P columns O(P^2) per pair of values;
/// memory linear in their entries.
class MomentEngine {
 public:
  /// merge_rows: rows of sums over f(block) whose directions differ by less, relative to their
  /// size, become one.
  MomentEngine(const ir::Program& program, const std::vector<ir::NodeId>& outputs,
               const Executor& executor, double merge_rows);
  ~MomentEngine();
  /// Outputs that are only set against 0 (ascending): small ones need no small error.
  void set_margins(std::vector<ir::NodeId> margins) { margins_ = std::move(margins); }
  /// Limits by counts, which are the same on all machines.  Beyond `evaluations` of functions, what
  /// can be known is found out first, with quadratures of few points, so that nothing is spent on
  /// values from which only unknown ones are computed.  Beyond `operations` of algebra everything
  /// is unknown.
  struct Budget {
    double evaluations = std::numeric_limits<double>::infinity(),
           operations = std::numeric_limits<double>::infinity();
  };
  void set_budget(Budget budget) { budget_ = budget; }
  /// Which outputs can be known, and how: within the budget, known values may be rough.
  void survey();
  /// Evaluates what the outputs need.  First-order bounds of errors multiply along a program; where
  /// one exceeds 1e-9 of the value, the error is measured instead: 6 times the largest change in 2
  /// runs in which every closed form and quadrature is moved by its own error with random signs.
  void run();
  /// An output, or why something else is unknown; other numbers are released.
  [[nodiscard]] const MomentValue& operator[](ir::NodeId id) const { return finite_[id.value]; }
  /// The numbers are handed over; whether they are known, and how, stays.
  [[nodiscard]] MomentValue take(ir::NodeId id) {
    MomentValue& own = finite_[id.value];
    MomentValue out;
    out.value = std::move(own.value);
    out.error = std::move(own.error);
    return out;
  }
  /// The first node with a number that is not finite; invalid if there is none.
  [[nodiscard]] ir::NodeId first_not_finite() const { return not_finite_; }
  /// Largest c^2/(ab) - 1 of a covariance that was clamped as rounding.
  [[nodiscard]] double largest_excess() const { return excess_; }
  [[nodiscard]] std::int64_t rows_merged() const { return rows_merged_; }
  /// What was spent so far of the budget, also by runs for rough values and for errors.
  [[nodiscard]] Budget spent() const {
    return {functions_.evaluations() + spent_.evaluations, operations_ + spent_.operations};
  }

 private:
  using Matrix = Eigen::MatrixXd;
  using Columns = std::shared_ptr<const std::vector<int>>;  ///< which columns of an affine block;
                                                            ///< null: all in order
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
  struct Moment;   ///< a matrix of moments with its error and method
  struct Unknown;  ///< thrown inside

  void evaluate();
  void measure_errors();
  void evaluate_rough_outputs();
  bool out_of_evaluations();
  void charge(double operations);
  static Matrix rough_pair(const FunctionTable& functions, FunctionTable::Id f,
                           const Eigen::VectorXd& a, FunctionTable::Id g, const Eigen::VectorXd& b,
                           const Matrix& covariances);
  void disturb(Matrix& values, double error);
  /// An error of what a moment is computed from; disturbed values carry it themselves.
  [[nodiscard]] double carried(double error) const { return disturbance_ != 0 ? 0 : error; }
  void step(ir::NodeId id);
  void collect_garbage();
  void finite_step(ir::NodeId id, const ir::Node& node);
  bool in_place(ir::NodeId id, const ir::Node& node);
  Field field_step(ir::NodeId id, const ir::Node& node);
  Field map(const ir::Map& m, const ir::Node& node);
  Field apply(const ir::Map& m, const ir::Node& node, std::vector<Field> in);
  std::optional<Field> powers(const Field& x, double n);
  Field contract(const ir::Contract& c, const ir::Node& node);
  Field multiply(const Version& w, ir::NodeId x_node, bool transposed);
  Field gaussian_part(const Version& w, ir::NodeId x_node, const std::shared_ptr<const Field>& x,
                      bool transposed);
  MomentValue average(const ir::Node& node);
  bool pairs_step(ir::NodeId id, const ir::Node& node);
  void settle(const std::vector<ir::NodeId>& ids);

  // ---- algebra of fields
  [[nodiscard]] Field operand(ir::NodeId id) const;
  static Field remap(const Field& x, const std::vector<int>& index);  ///< -1: zero
  Field add(Field x, const Field& y, double sign);
  Field times(const Field& x, const Field& y);
  [[nodiscard]] bool one_product(const Field& x, int depth) const;
  static void drop_cancelled(Matrix& product, const Matrix& weights, const Part& p);
  Field combine(const Matrix& weights, const Field& y);  ///< sum_s weights(j, s) y_s
  Field simplified(Field x);
  [[nodiscard]] Field expanded(const Field& x) const;  ///< without sums over blocks

  // ---- sums over the rows of blocks
  void join_sums(Field& x);
  void append(Version& v, double c, const Field& d, const Field& x);
  std::optional<Joined> join(FunctionTable::Id f, int a, int b);
  int stacked(int a, int b, const std::vector<int>& row, const std::vector<double>& factor,
              int rows);
  [[nodiscard]] bool linear(const Field& x) const;
  [[nodiscard]] const Affine& block(int affine) const {
    return *affines_[static_cast<std::size_t>(affine)];
  }
  int insert(Affine affine);
  int affine_of(const Field& x);
  std::vector<int> distinct_columns(const Field& x) const;
  struct Unary {
    FunctionTable::Id f;
    int affine;
    Columns columns;
  };
  std::optional<Unary> as_unary(const Field& x);
  std::optional<Unary> of_one_gaussian(const Field& x);
  std::shared_ptr<const Polynomials> polynomials(const Field& x);  ///< null if x is none
  Field of_polynomials(Polynomials columns, const Field& x, const Field& y) const;
  Field constant(std::vector<double> values) const;
  Field of_affine(int affine) const;

  // ---- exponentials of quadratic forms
  std::optional<Field> exponential(const Field& x);
  bool grows(const Factor& f);
  bool may_diverge(const Factor& f);
  std::optional<Moment> tilted(const std::vector<std::pair<int, Factor>>& factors, int rows,
                               int columns);

  // ---- moments
  const Covariance& covariance(int p, int q);
  Covariance& family_covariance(int f, int g);
  const Covariance& settled(Covariance& c);
  Moment settled(Moment m);
  struct PairCovariance;
  const PairCovariance& pair_covariance(int p, int q);  ///< null pairs: only as numbers, or 0
  std::shared_ptr<const PairSide> side(int f);
  PairCovariance pairs_of(const Factor& s, int rows, const Factor& t, int columns);
  Pairs as_pairs(const Moment& m, int rows, int columns, bool same) const;
  const Variances& variances(int p);
  static Matrix times_covariance(const Part& a, const Covariance& c, int rows, int size);
  [[nodiscard]] bool related_families(int f, int g) const;
  [[nodiscard]] bool related(int p, int q) const;
  bool dependent(const Factor& s, int rows, const Factor& t, int columns);
  bool dependent_somewhere(const Factor& s, const Factor& t, int rows);
  bool dependent_at(const Factor& s, const Factor& t, int i);
  bool is_constant(const Factor& f, int i);
  double value_at_mean(const Factor& f, int i) const;
  std::optional<Moment> by_pattern(const Term& s, int rows, const Term& t, int columns);
  // lazy: the moment may come as pairs.
  Moment cross(const Field& x, const Field& y, bool lazy = false);
  Moment term_moment(const Term& s, int rows, const Term& t, int columns, bool lazy = false);
  Moment pair(const Factor& s, int rows, const Factor& t, int columns, bool lazy = false);
  std::optional<Moment> by_parity(const Factor& s, int rows, const Factor& t, int columns);
  std::optional<Moment> polynomial_moment(const std::vector<std::pair<int, Factor>>& factors,
                                          int rows, int columns);
  std::optional<Moment> same_side(const Factor& s, const Factor& t, int rows);
  std::optional<Moment> selected(const Factor& s, const Factor& t, int rows);
  Moment mean(const Factor& s, int rows);
  Moment normal_means(FunctionTable::Id f, const Matrix& means, const Matrix& variances);
  Moment sum_moment(const Term& s, int rows, const Term& t, int columns);
  Moment slope(const std::vector<std::pair<int, Factor>>& factors, std::size_t k, int rows,
               int columns);
  std::vector<Slope> slopes(const Term& t, int rows,
                            const std::function<bool(const Factor&, bool inner)>& wanted);
  Moment stein(const Term& t, int rows, const Factor& x, int columns);
  std::optional<Moment> stein(const std::vector<std::pair<int, Factor>>& factors, int rows,
                              int columns);
  Moment conditional_means(const Factor& f, int columns, const Factor& u, const Eigen::VectorXd& a,
                           const Eigen::VectorXd& distance);
  static Moment row_sums(const Matrix& weights, const Moment& m);
  struct Entry;
  static double rough_value(const FunctionTable& functions, const Entry& entry,
                            std::string& failure);
  Moment entries(Eigen::Index rows, Eigen::Index columns,
                 const std::function<Entry(Eigen::Index, Eigen::Index)>& entry_at,
                 bool symmetric = false);
  static std::vector<int> key_of(const std::vector<std::pair<int, Factor>>& factors, int rows,
                                 int columns, bool mirrored);
  [[nodiscard]] std::optional<Moment> recalled(const std::vector<std::pair<int, Factor>>& factors,
                                               int rows, int columns) const;
  void remember(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns,
                const Moment& m);
  Moment single_entries(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns);
  Moment mean_of(const Field& x);
  static Moment finite_part(const std::function<Moment()>& moment);
  double amplification(FunctionTable::Id f, const Eigen::VectorXd& variances);
  double resolution(FunctionTable::Id f, double mean, double variance);
  void note(const MomentStatus& status);
  void each_column(Eigen::Index rows, Eigen::Index columns,
                   const std::function<void(int)>& body) const;  ///< threads if it is worth them
  void symmetrise(Matrix& x) const;

  const ir::Program& program_;
  std::vector<ir::NodeId> outputs_, margins_;
  std::vector<bool> needed_, kept_;
  std::vector<std::uint32_t> last_;  ///< the last node that uses each node
  std::uint64_t disturbance_ = 0;    ///< state of the random signs; 0: none
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
  std::map<std::pair<int, int>, PairCovariance> pair_covariances_;
  std::map<int, Variances> variances_;
  std::map<std::vector<int>, Moment> quadratures_;  ///< by key_of
  Eigen::Index remembered_ = 0;                     ///< numbers in them
  std::map<std::pair<int, std::vector<int>>, int>
      members_;  ///< blocks of members of a family, as they are
  std::map<std::pair<FunctionTable::Id, int>, double>
      resolutions_;                        ///< by the power of 2 above the variance
  std::size_t live_ = 0, sweep_at_ = 256;  ///< blocks not known to be dead; how many start a sweep
  std::map<std::pair<int, int>, int>
      symbols_;  ///< member of a family of independent normals -> variable of polynomials
  std::map<std::tuple<std::uint32_t, bool, std::uint32_t>, int>
      hats_;                           ///< source, transposed, vector -> family
  std::map<int, int> tilted_normals_;  ///< families by their size
  Budget budget_, spent_{0, 0};        ///< spent_: by other engines
  double operations_ = 0;
  bool rough_ = false;  ///< quadratures have few points now
  std::uint32_t rough_from_ =
      std::numeric_limits<std::uint32_t>::max();  ///< the first node with such values
  double excess_ = 0;
  std::int64_t rows_merged_ = 0;
};

}  // namespace tplimit::moments
