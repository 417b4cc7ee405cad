#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "moments/algebra.hpp"
#include "moments/context.hpp"
#include "moments/covariance_store.hpp"
#include "moments/expectations.hpp"
#include "moments/fields.hpp"
#include "parallel/executor.hpp"
#include "tplimit/ir/program.hpp"

namespace tplimit::moments {

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
/// terms exactly as in Z = hatZ + dotZ.  What Expectations cannot evaluate stays unknown, and so
/// does everything computed from it.  Cost: gram matrices of P columns O(P^2) per pair of values;
/// memory linear in their entries.
class MomentEngine {
 public:
  using Budget = moments::Budget;

  /// merge_rows: rows of sums over f(block) whose directions differ by less, relative to their
  /// size, become one.
  MomentEngine(const ir::Program& program, const std::vector<ir::NodeId>& outputs,
               const Executor& executor, double merge_rows);
  /// Outputs that are only set against 0 (ascending): small ones need no small error.
  void set_margins(std::vector<ir::NodeId> margins) { margins_ = std::move(margins); }
  void set_budget(Budget budget) { context_.budget = budget; }
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
  [[nodiscard]] double largest_excess() const { return context_.excess; }
  [[nodiscard]] std::int64_t rows_merged() const {
    return std::max(algebra_.rows_merged(), rows_merged_elsewhere_);
  }
  /// What was spent so far of the budget, also by runs for rough values and for errors.
  [[nodiscard]] Budget spent() const {
    return {context_.functions.evaluations() + spent_.evaluations,
            context_.operations + spent_.operations};
  }

 private:
  void evaluate();
  void measure_errors();
  void evaluate_rough_outputs();
  void count_spent(const MomentEngine& other);
  void step(ir::NodeId id);
  void evaluate_node(ir::NodeId id, const ir::Node& node);
  bool inherit_unknown(ir::NodeId id, const ir::Node& node);
  void collect_garbage();
  [[nodiscard]] Field operand(ir::NodeId id) const;

  // ---- numbers
  MomentValue average(const ir::Node& node);
  void finite_step(ir::NodeId id, const ir::Node& node);
  bool in_place(ir::NodeId id, const ir::Node& node);
  bool pairs_step(ir::NodeId id, const ir::Node& node);
  void settle(const std::vector<ir::NodeId>& ids);
  using RowFunction = std::function<std::vector<double>(const std::vector<const double*>&)>;
  bool bound_error(const ir::Node& node, MomentValue& out, const RowFunction& evaluate_at) const;
  void bound_error_by_differences(const ir::Node& node, MomentValue& out,
                                  const RowFunction& evaluate_at) const;
  bool bound_error_of_equations(const ir::Node& node, MomentValue& out) const;

  // ---- values with coordinates, and matrices
  std::shared_ptr<MatrixVersion> matrix_step(const ir::Node& node);
  Field field_step(ir::NodeId id, const ir::Node& node);
  Field copied(const ir::Node& node) const;
  Field summed(const ir::ReduceSum& r, const ir::Node& node);
  Field concatenated(const ir::Concat& c, const ir::Node& node);
  Field scattered(const ir::ScatterAdd& s, const ir::Node& node);
  Field map(const ir::Map& m, const ir::Node& node);
  void find_averages();
  Field contract(const ir::Contract& c, const ir::Node& node);
  Field multiply(const MatrixVersion& w, ir::NodeId x_node, bool transposed);
  Field gaussian_part(const MatrixVersion& w, ir::NodeId x_node,
                      const std::shared_ptr<const Field>& x, bool transposed);
  int family_of(const MatrixVersion& w, ir::NodeId x_node, const std::shared_ptr<const Field>& x,
                bool transposed, std::vector<int>& member);
  Field correction(const MatrixVersion& w, const Field& x, bool transposed, Field hat);

  const ir::Program& program_;
  std::vector<ir::NodeId> outputs_, margins_;
  std::vector<bool> averages_;  ///< per node: computed from averages, which fluctuate in networks
  std::vector<bool> needed_, kept_;
  std::vector<std::uint32_t> last_;  ///< the last node that uses each node
  ir::NodeId not_finite_;
  double merge_rows_;
  RunContext context_;
  CovarianceStore store_;
  FieldAlgebra algebra_;
  Expectations expectations_;
  std::vector<MomentValue> finite_;
  std::vector<std::shared_ptr<Field>> fields_;
  std::vector<std::shared_ptr<MatrixVersion>> versions_;
  std::map<std::tuple<std::uint32_t, bool, std::uint32_t>, int>
      hats_;            ///< source, transposed, vector -> family
  Budget spent_{0, 0};  ///< by other engines
  std::uint32_t rough_from_ =
      std::numeric_limits<std::uint32_t>::max();  ///< the first node with rough values
  std::int64_t rows_merged_elsewhere_ = 0;
};

}  // namespace tplimit::moments
