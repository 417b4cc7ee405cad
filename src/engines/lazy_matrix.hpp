#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "engines/normal_space.hpp"
#include "engines/orthonormal_basis.hpp"
#include "engines/width_matrix.hpp"

namespace tplimit::engines {

struct LazySettings {
  NormalLaw law = NormalLaw::kMatched;
  double rank_tol = 0;    ///< a new direction shorter than rank_tol times its vector is dropped
  bool single = false;    ///< bases and normals are stored in single precision
  std::uint64_t key = 0;  ///< of entries that are drawn at once
  double room = 0.5;      ///< for directions of both sides, in units of the rows, before the matrix
                          ///< is stored; infinite: it stays lazy
  bool may_store = true;  ///< else E4201
};

/// The lazy Gaussian matrix (docs/theory.md): W x = s Xf <Qx, x> + Qd (s <Xb, x> + C <Qx, x>),
/// revealed one product at a time, and A x for entries A that entrywise updates have added. Cost of
/// a product of P columns at rank r: O(rows r P), with entries O(rows^2 P).
///
/// In the limit, when both bases together would exceed half of the particles, what is not revealed
/// yet is drawn at once, by the same conditional law: from then on the matrix is stored, no
/// direction is added, and products cost O(rows^2 P) whatever the rank.
class LazyMatrix final : public WidthMatrix {
 public:
  /// rows: of all ranks.  capacity[side]: most directions of W (0) and W' (1).
  LazyMatrix(const Executor& executor, std::int64_t rows, const LazySettings& settings,
             NormalSpace& input, NormalSpace& output, std::array<std::int64_t, 2> capacity);
  /// Qx (0) or Qd (1).
  [[nodiscard]] const Panel& directions(std::size_t side) const {
    return sides_[side].q.directions();
  }
  MatrixVersion initial() override { return {}; }
  void apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node,
             std::uint64_t dimension, Block& y) override;
  MatrixVersion update(MatrixVersion w, const std::vector<UpdateTerm>& terms) override;
  MatrixVersion combined(MatrixVersion w, double c, const MatrixVersion& b) override;
  /// Entries are stored in single precision.  E4204: of a network, whose law a lazy matrix would
  /// not keep.
  MatrixVersion with_own_entries(MatrixVersion w) override;
  /// c (s W + Qd C Qx' + A) has scale c s, coefficients c C and entries c A.
  [[nodiscard]] MatrixVersion scaled(MatrixVersion w, double c) const override {
    if (c == 0) return {.scale = 0, .coefficients = {}, .entries = nullptr};  // a velocity begins
    w.scale *= c;
    w.coefficients *= c;
    w.entries_scale *= c;
    return w;
  }
  [[nodiscard]] double inner_product(const MatrixVersion&, const MatrixVersion&) override;
  void forget(std::uint32_t node) override {
    for (Side& side : sides_) side.known.erase(node);
  }
  [[nodiscard]] std::array<std::int64_t, 2> ranks() const override {
    return {directions(0).columns(), directions(1).columns()};
  }
  [[nodiscard]] bool is_stored() const override { return gaussian_ != nullptr; }
  [[nodiscard]] double largest_dropped() const override { return largest_dropped_; }
  void save(Writer& out) const override;
  void load(Reader& in) override;
  [[nodiscard]] std::vector<const Panel*> panels() const override {
    return {&directions(0), &sides_[0].f, &directions(1), &sides_[1].f};
  }

 private:
  /// Side 0: vectors W was applied to (Q, on the input space) and fresh normals (F, on the output
  /// space); side 1 for W'.
  struct Side {
    OrthonormalBasis q;
    Panel f;
    NormalSpace* fresh_space = nullptr;
    std::unordered_map<std::uint32_t, Matrix> known;  ///< node -> <Q, x>
  };

  /// <Q, x> with Q extended so that x lies in its span (up to rank_tol).  `also`: <also, x> comes
  /// from the same sweep.
  Matrix reveal(int side, const Block& x, std::uint32_t node, std::uint64_t dimension,
                const Panel* also = nullptr, Matrix* also_x = nullptr);
  /// Directions of both sides may be half of the particles.
  [[nodiscard]] bool has_room_for(std::int64_t more) const;
  /// The Gaussian matrix as drawn, all entries of it.
  void store();
  [[nodiscard]] MatrixVersion stored(MatrixVersion w, const std::vector<UpdateTerm>& terms);
  void apply_lazily(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node,
                    std::uint64_t dimension, Block& y);
  void apply_stored(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node,
                    Block& y);
  /// All rows of a panel's columns.
  [[nodiscard]] Block columns_of_all_ranks(const Panel& panel) const;
  void add_entries_product(Slabs& a, double factor, bool transposed, const Block& x,
                           Block& y) const;

  const Executor& executor_;
  StoredEntries<float> arrays_;  ///< of what entrywise updates add
  std::int64_t rows_;
  LazySettings settings_;
  std::array<Side, 2> sides_;
  std::shared_ptr<Slabs> gaussian_;  ///< null until it is stored
  double largest_dropped_ = 0;
};

}  // namespace tplimit::engines
