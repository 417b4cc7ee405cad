#pragma once

#include <cstdint>
#include <vector>

#include "tplimit/ir/program.hpp"

/// What each operation does to numbers.  Engines decide where the numbers live and in which order
/// chunks of rows are visited; the arithmetic is here once, for constants, finite tensors and
/// chunks of particles alike.
namespace tplimit::ir {

/// `rows` coordinates of a block: column j (row-major index over the finite axes) starts at data +
/// j * ld.  A value without a width axis has rows = 1, ld = 1.
struct View {
  const double* data;
  std::int64_t rows;
  std::int64_t ld;
};
struct MutableView {
  double* data;
  std::int64_t rows;
  std::int64_t ld;
};

/// Sizes of the four groups of axes of a Contract: a [batch, left, inner], b [batch, right, inner].
struct ContractSizes {
  std::int64_t batch = 1, left = 1, right = 1, inner = 1;
  ContractSizes(const Contract& op, const Dims& a, const Dims& b);
};

/// True if a row of the result depends only on the same row of the operands (and on finite
/// operands).
[[nodiscard]] bool is_rowwise(const Op& op);
/// True for Average, averaging Contract and Histogram: sums over rows, divided by their number at
/// the end.
[[nodiscard]] bool is_average(const Op& op);

/// Evaluates a rowwise operation (not StandardNormal) on matching rows.  `out` must not overlap an
/// operand.
void evaluate_rows(const Node& node, const std::vector<const Type*>& in_types,
                   const std::vector<View>& in, MutableView out);

/// Adds the sum over these rows to `sums` (size_of(node.type.dims) numbers).
void accumulate_average(const Node& node, const std::vector<const Type*>& in_types,
                        const std::vector<View>& in, double* sums);

}  // namespace tplimit::ir
