#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engines/state_file.hpp"
#include "engines/stored_entries.hpp"
#include "engines/tall.hpp"

namespace tplimit::engines {

/// Stops an evaluation; becomes a diagnostic at the node that was being evaluated.
struct EvaluationStop {
  enum class Why { kOther, kNotFinite, kTooManyDirections, kInterrupted, kOnAnotherRank };
  std::string code, message, help;
  Why why = Why::kOther;
};
[[nodiscard]] EvaluationStop not_finite();
[[nodiscard]] EvaluationStop interrupted();
/// Only that rank can say what it is.
[[nodiscard]] EvaluationStop on_another_rank();
[[nodiscard]] EvaluationStop too_many_directions(std::int64_t directions, std::int64_t particles,
                                                 std::string help);

/// One version of a matrix: what updates and scalings have made of its Gaussian entries.
struct MatrixVersion {
  double scale = 1;
  Matrix coefficients;  ///< lazy: C, directions of W' x directions of W; later directions are zero
  std::shared_ptr<Slabs> entries;  ///< dense: the matrix without `scale`; lazy: what entrywise
                                   ///< updates have added, without `entries_scale`; else null
  double entries_scale = 1;
};

/// Versions, what several of them share once.
void save(Writer& out, const std::vector<MatrixVersion*>& versions);
void load(Reader& in, const std::vector<MatrixVersion*>& versions);

/// An n x n Gaussian matrix with entries N(0, 1/n) and its versions.
class WidthMatrix {
 public:
  virtual ~WidthMatrix() = default;
  [[nodiscard]] virtual MatrixVersion initial() = 0;
  /// y = W x or W' x, column by column; y has x's shape.
  virtual void apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node,
                     std::uint64_t dimension, Block& y) = 0;
  /// W + sum_k c_k sum_p D_k[p] X_k[p]' / n.  `w` may be changed in place: the caller hands over
  /// the old version or a copy of it.
  virtual MatrixVersion update(MatrixVersion w, const std::vector<UpdateTerm>& terms) = 0;
  /// W + c B.
  virtual MatrixVersion combined(MatrixVersion w, double c, const MatrixVersion& b) = 0;
  /// The same version, ready for numbers to be added to its entries: `w.entries` is shared with no
  /// other, and only their factor waits.
  virtual MatrixVersion with_own_entries(MatrixVersion w) = 0;
  /// c W.
  [[nodiscard]] virtual MatrixVersion scaled(MatrixVersion w, double c) const = 0;
  /// Sum over all entries of A B / n.  E4204: of a lazy matrix.
  [[nodiscard]] virtual double inner_product(const MatrixVersion& a, const MatrixVersion& b) = 0;
  /// The vector of this node will not be used again.
  virtual void forget(std::uint32_t) {}
  /// Directions kept for W and W'.
  [[nodiscard]] virtual std::array<std::int64_t, 2> ranks() const { return {0, 0}; }
  /// A lazy matrix that is lazy no more.
  [[nodiscard]] virtual bool is_stored() const { return false; }
  /// Largest |rest| / |x| of the directions that were dropped.
  [[nodiscard]] virtual double largest_dropped() const { return 0; }

  /// What the matrix keeps beside its versions; `load` restores it in a matrix made in the same
  /// way.
  virtual void save(Writer&) const {}
  virtual void load(Reader&) {}
  /// Columns that normal spaces refer to.
  [[nodiscard]] virtual std::vector<const Panel*> panels() const { return {}; }
};

}  // namespace tplimit::engines
