#pragma once

#include "engines/stored_entries.hpp"
#include "engines/width_matrix.hpp"

namespace tplimit::engines {

/// All n^2 entries in memory, as T: float or double.  Entry (i, j) follows from the key, i and j
/// alone.
template <class T>
class DenseMatrix final : public WidthMatrix {
 public:
  DenseMatrix(const Executor& executor, std::int64_t width, std::uint64_t key,
              ir::EntryLaw law = ir::EntryLaw::kNormal)
      : arrays_(executor, width), key_(key), law_(law) {}
  MatrixVersion initial() override {
    MatrixVersion w;
    w.entries = arrays_.drawn(key_, law_);
    return w;
  }
  void apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t, std::uint64_t,
             Block& y) override {
    arrays_.apply(*w.entries, w.scale, transposed, x, y);
  }
  MatrixVersion update(MatrixVersion w, const std::vector<UpdateTerm>& terms) override {
    w = with_own_entries(std::move(w));
    arrays_.add(*w.entries, terms, 1 / static_cast<double>(arrays_.rows()));
    return w;
  }
  MatrixVersion combined(MatrixVersion w, double c, const MatrixVersion& b) override {
    w = with_own_entries(std::move(w));
    arrays_.add(*w.entries, c * b.scale, *b.entries);
    return w;
  }
  MatrixVersion with_own_entries(MatrixVersion w) override {
    w.entries = arrays_.owned(std::move(w.entries));
    w.entries->scale = std::exchange(w.scale, 1);
    return w;
  }
  [[nodiscard]] double inner_product(const MatrixVersion& a, const MatrixVersion& b) override {
    return a.scale * b.scale * arrays_.inner_product(*a.entries, *b.entries) /
           static_cast<double>(arrays_.rows());
  }
  [[nodiscard]] MatrixVersion scaled(MatrixVersion w, double c) const override {
    w.scale *= c;
    return w;
  }

 private:
  StoredEntries<T> arrays_;
  std::uint64_t key_;
  ir::EntryLaw law_;
};

}  // namespace tplimit::engines
