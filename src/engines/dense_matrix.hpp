#pragma once

#include "engines/width_matrix.hpp"

namespace tplimit::engines {

/// What versions of a dense matrix share: scale * values + left right'.  An update waits for the
/// next product, which then reads the matrix once for both.
struct DenseEntries {
  Buffer values;  ///< slabs, as math/slab_products wants them, rows and columns padded by zeros
  Buffer left, right;     ///< the update that waits, packed likewise
  std::int64_t rank = 0;  ///< vectors of `left` and `right`
  double scale = 1;
};

/// All n^2 entries in memory, as T: float or double.  Cost of a product with P columns: one pass
/// over the matrix, 2 n^2 P. Entry (i, j) follows from the key, i and j alone, and results do not
/// depend on the number of threads.
template <class T>
class DenseMatrix final : public WidthMatrix {
 public:
  DenseMatrix(const Executor& executor, std::int64_t width, std::uint64_t key);
  MatrixVersion initial() override;
  void apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node,
             std::uint64_t dimension, Block& y) override;
  MatrixVersion update(MatrixVersion w, const std::vector<UpdateTerm>& terms) override;
  MatrixVersion update_entrywise(MatrixVersion w, const std::vector<UpdateTerm>& terms, double c,
                                 double epsilon) override;
  [[nodiscard]] MatrixVersion scaled(MatrixVersion w, double c) const override {
    w.scale *= c;
    return w;
  }

  /// Bytes of the entries of one version.
  static double bytes(std::int64_t width);
  /// Of vectors packed for a product or an update.
  static double packed_bytes(std::int64_t width, std::int64_t vectors);

 private:
  struct Factors {
    Buffer left, right;
    std::int64_t rank = 0;
  };
  /// sum_k c_k D_k X_k' times `factor`.
  [[nodiscard]] Factors factors(const std::vector<UpdateTerm>& terms, double factor) const;
  /// f(p) for all slabs, in parallel.
  template <class F>
  void for_slabs(F&& f) const;
  [[nodiscard]] T* slab(const DenseEntries& e, std::int64_t p) const;
  /// Carries out what waits, in columns [first, first + count) of a slab.
  void settle(const DenseEntries& e, std::int64_t p, std::int64_t first, std::int64_t count) const;
  /// The version with entries of its own, nothing waiting, no scale.
  [[nodiscard]] MatrixVersion owned(MatrixVersion w) const;

  const Executor& executor_;
  std::int64_t n_, slabs_, columns_;
  std::uint64_t key_;
};

extern template class DenseMatrix<float>;
extern template class DenseMatrix<double>;

}  // namespace tplimit::engines
