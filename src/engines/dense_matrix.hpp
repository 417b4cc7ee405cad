#pragma once

#include "engines/width_matrix.hpp"

namespace tplimit::engines {

/// All n^2 entries in memory.
class DenseMatrix final : public WidthMatrix {
 public:
  DenseMatrix(const Executor& executor, std::int64_t width, std::uint64_t key) : executor_(executor), n_(width), key_(key) {}
  MatrixVersion initial() override;
  void apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node, std::uint64_t dimension, Block& y) override;
  MatrixVersion update(MatrixVersion w, const std::vector<UpdateTerm>& terms) override;
  MatrixVersion update_entrywise(MatrixVersion w, const std::vector<UpdateTerm>& terms, double c, double epsilon) override;

 private:
  /// Every n x kChunkRows tile of a version that may be changed, with its scale applied: change(tile, row chunk, column chunk).
  template <class Change>
  MatrixVersion changed(MatrixVersion w, Change change);

  const Executor& executor_;
  std::int64_t n_;
  std::uint64_t key_;
};

}  // namespace tplimit::engines
