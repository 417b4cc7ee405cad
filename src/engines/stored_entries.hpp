#pragma once

#include <memory>

#include "engines/tall.hpp"
#include "tplimit/ir/program.hpp"

namespace tplimit::engines {

/// The entries of an n x n matrix: scale * values + left right'.  An update waits for the next
/// product, which then reads the matrix once for both.
struct Slabs {
  Buffer values;  ///< slabs, as math/slab_products wants them, rows and columns padded by zeros
  Buffer left, right;     ///< the update that waits, packed likewise
  std::int64_t rank = 0;  ///< vectors of `left` and `right`
  double scale = 1;
};
void save(Writer& out, const Slabs& entries);
[[nodiscard]] std::shared_ptr<Slabs> load_entries(Reader& in);

/// A term c sum_p D_p X_p'.  Nodes name the blocks, so that known products are not computed again.
struct UpdateTerm {
  double c;
  const Block* d;
  const Block* x;
  std::uint32_t d_node, x_node;
  std::uint64_t d_dimension, x_dimension;  ///< of the normals drawn if the vector is new
};

/// What is done with all n^2 entries in memory, as T: float or double.  Results do not depend on
/// the number of threads.
template <class T>
class StoredEntries {
 public:
  StoredEntries(const Executor& executor, std::int64_t n);
  [[nodiscard]] std::int64_t rows() const { return n_; }
  /// Padded.
  [[nodiscard]] std::int64_t columns() const { return columns_; }

  [[nodiscard]] std::shared_ptr<Slabs> uninitialised() const;
  [[nodiscard]] std::shared_ptr<Slabs> zeros() const;
  /// I.i.d. N(0, 1/n).  Entry (i, j) follows from the key, i and j alone.
  [[nodiscard]] std::shared_ptr<Slabs> drawn(std::uint64_t key, ir::EntryLaw law) const;
  /// Slab p: kSlabRows<T> rows, column-major.
  [[nodiscard]] T* slab(const Slabs& e, std::int64_t p) const;
  /// f(first, last) for groups of slabs, f(p) for all slabs, in parallel.
  template <class F>
  void for_slab_groups(F&& f) const {
    const std::int64_t group = kRange / rows_of_slab();
    executor_.parallel((slabs_ + group - 1) / group,
                       [&](std::int64_t g) { f(g * group, std::min((g + 1) * group, slabs_)); });
  }
  template <class F>
  void for_slabs(F&& f) const {
    for_slab_groups([&](std::int64_t first, std::int64_t last) {
      for (std::int64_t p = first; p < last; ++p) f(p);
    });
  }

  /// y = factor A x or factor A' x, column by column; carries out what waits.  Cost of P columns:
  /// one pass over the matrix, 2 n^2 P.
  void apply(Slabs& e, double factor, bool transposed, const Block& x, Block& y) const;
  /// The same entries, shared with nobody, nothing waiting.
  [[nodiscard]] std::shared_ptr<Slabs> owned(std::shared_ptr<Slabs> entries) const;

  /// a = factor a + c b, where the factor is all that waits in a; carries out what waits in b.
  void add(Slabs& a, double c, Slabs& b) const;

  /// Sum over all entries of A B; carries out what waits.
  [[nodiscard]] double inner_product(Slabs& a, Slabs& b) const;

  /// a += c sum_k c_k D_k X_k', which waits; nothing else may wait in a but its factor.
  void add(Slabs& a, const std::vector<UpdateTerm>& terms, double c) const;

  struct Factors {
    Buffer left, right;
    std::int64_t rank = 0;
  };
  /// sum_k c_k D_k X_k' times `factor`, packed for add_slab_update.
  [[nodiscard]] Factors factors(const std::vector<UpdateTerm>& terms, double factor) const;
  /// to += the factors' entries in columns [first, first + count) of slab p.
  void add(const Factors& f, std::int64_t p, std::int64_t first, std::int64_t count, T* to) const;

  /// Bytes of the entries.
  [[nodiscard]] static double bytes(std::int64_t n);
  /// Of vectors packed for a product or an update.
  [[nodiscard]] static double packed_bytes(std::int64_t n, std::int64_t vectors);

 private:
  /// Rows, or columns in a product with the transpose, that one thread handles at once: 64 kB of a
  /// slab lie together.
  static constexpr std::int64_t kRange = 256;
  [[nodiscard]] static std::int64_t rows_of_slab();
  /// Carries out what waits, in columns [first, first + count) of a slab.
  void settle(const Slabs& e, std::int64_t p, std::int64_t first, std::int64_t count) const;

  const Executor& executor_;
  std::int64_t n_, slabs_, columns_;
};

extern template class StoredEntries<float>;
extern template class StoredEntries<double>;

}  // namespace tplimit::engines
