#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "moments/context.hpp"
#include "moments/covariance_store.hpp"
#include "moments/fields.hpp"

namespace tplimit::moments {

/// Sums, products and functions of fields, without any expectation.  What is no field again throws
/// Unknown.  Coefficients that cancel up to rounding become 0, so that a constant is seen to be
/// one.
class FieldAlgebra {
 public:
  /// merge_rows: rows of sums over f(block) whose directions differ by less, relative to their
  /// size, become one.
  FieldAlgebra(RunContext& context, CovarianceStore& store, double merge_rows)
      : context_(context), functions_(context.functions), store_(store), merge_rows_(merge_rows) {}
  FieldAlgebra(const FieldAlgebra&) = delete;
  FieldAlgebra& operator=(const FieldAlgebra&) = delete;

  [[nodiscard]] Field constant(std::vector<double> values) const;
  [[nodiscard]] Field of_block(int block) const;
  /// Column i is column index[i] of x; -1: zero.
  static Field remap(const Field& x, const std::vector<int>& index);
  Field add(Field x, const Field& y, double sign);
  Field times(const Field& x, const Field& y);
  /// sum_s weights(j, s) y_s
  Field combine(const Matrix& weights, const Field& y);
  /// Whether sums of `depth` columns each are best done by `combine`: no more terms than by adding
  /// columns one by one.
  [[nodiscard]] bool one_product(const Field& x, int depth) const;
  /// A coordinatewise function of fields of the same number of columns.
  Field apply(const ir::Map& m, const ir::Node& node, std::vector<Field> in);
  /// Linear fields become one Gaussian block; equal factors of several terms are collected.
  Field simplified(Field x);
  /// Without sums over blocks.
  [[nodiscard]] Field expanded(const Field& x) const;

  [[nodiscard]] bool linear(const Field& x) const;
  /// A block of Gaussians equal to a linear field.
  int block_of(const Field& x);
  /// For each column the first that is equal to it by structure.
  [[nodiscard]] std::vector<int> distinct_columns(const Field& x) const;

  /// x as polynomials in independent standard normals; null if it is none.
  std::shared_ptr<const Polynomials> polynomials(const Field& x);
  /// How many normals have a place in these polynomials, and back to so many.
  [[nodiscard]] int symbols() const { return static_cast<int>(symbols_.size()); }
  void keep_symbols(int count);

  /// One more update c sum_p d_p x_p' / n; updates by linear d and one function of Gaussians x are
  /// joined.
  void append(MatrixVersion& v, double c, const Field& d, const Field& x);
  /// Whether what decides on a jump of m is on it with positive probability, as far as functions of
  /// one Gaussian show.
  bool lies_on_a_jump(const ir::Map& m, const ir::Node& node, const std::vector<Field>& in);
  [[nodiscard]] std::int64_t rows_merged() const { return rows_merged_; }

 private:
  static void drop_cancelled(Matrix& product, const Matrix& weights, const LinearPart& p);
  std::optional<UnaryField> as_unary(const Field& x);
  std::optional<UnaryField> of_one_gaussian(const Field& x);
  [[nodiscard]] Field of_polynomials(Polynomials columns, const Field& x, const Field& y) const;
  std::optional<Field> composed(const ir::Map& m, std::vector<Field>& in, const Field& quality,
                                bool shifted);
  std::optional<Field> of_linear(const ir::Map& m, const ir::Node& node,
                                 const std::vector<Field>& in);
  std::optional<Field> by_products(const ir::Map& m, const std::vector<Field>& in,
                                   const Field& quality);
  [[nodiscard]] Field of_constants(const ir::Map& m, const ir::Node& node,
                                   const std::vector<Field>& in, const Field& quality) const;
  std::optional<Field> make_by_make(const ir::Map& m, const ir::Node& node,
                                    const std::vector<Field>& in, const Field& quality);
  std::optional<Field> powers(const Field& x, double n);
  std::optional<Field> power_of_form(const Field& x, double power);
  std::optional<Field> homogeneous(const ir::Map& m, const ir::Node& node,
                                   const std::vector<Field>& in, const Field& quality);
  std::optional<Field> exponential(const Field& x);
  void join_sums(Field& x);
  std::optional<JoinedBlocks> join(FunctionTable::Id f, int a, int b);
  int stacked(int a, int b, const std::vector<int>& row, const std::vector<double>& factor,
              int rows);

  RunContext& context_;
  FunctionTable& functions_;
  CovarianceStore& store_;
  double merge_rows_;
  std::int64_t rows_merged_ = 0;
  /// Blocks of members of a family, as they are.
  std::map<std::pair<int, std::vector<int>>, int> members_;
  /// Member of a family of independent normals -> variable of polynomials.
  std::map<std::pair<int, int>, int> symbols_;
};

}  // namespace tplimit::moments
