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
  double rank_tol = 0;  ///< a new direction shorter than rank_tol times its vector is dropped
  bool single = false;  ///< bases and normals are stored in single precision
};

/// The lazy Gaussian matrix (docs/theory.md): W x = s Xf <Qx, x> + Qd (s <Xb, x> + C <Qx, x>),
/// revealed one product at a time. Cost of a product of P columns at rank r: O(rows r P).
class LazyMatrix final : public WidthMatrix {
 public:
  /// rows: of all ranks.  capacity[side]: most directions of W (0) and W' (1).
  LazyMatrix(const Executor& executor, std::int64_t rows, const LazySettings& settings,
             NormalSpace& input, NormalSpace& output, std::array<std::int64_t, 2> capacity);
  MatrixVersion initial() override { return {}; }
  void apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node,
             std::uint64_t dimension, Block& y) override;
  MatrixVersion update(MatrixVersion w, const std::vector<UpdateTerm>& terms) override;
  MatrixVersion update_entrywise(MatrixVersion, const std::vector<UpdateTerm>&, double,
                                 double) override {
    throw EvaluationStop{"E4204", "an entrywise update needs stored matrices",
                         "use --matrices dense and a smaller width"};
  }
  /// c (s W + Qd C Qx') has scale c s and coefficients c C.
  [[nodiscard]] MatrixVersion scaled(MatrixVersion w, double c) const override {
    w.scale *= c;
    w.coefficients *= c;
    return w;
  }
  void forget(std::uint32_t node) override {
    for (Side& side : sides_) side.known.erase(node);
  }
  [[nodiscard]] std::array<std::int64_t, 2> ranks() const override {
    return {directions(0).columns(), directions(1).columns()};
  }
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

  [[nodiscard]] const Panel& directions(std::size_t side) const {
    return sides_[side].q.directions();
  }
  /// <Q, x> with Q extended so that x lies in its span (up to rank_tol).  `also`: <also, x> comes
  /// from the same sweep.
  Matrix reveal(int side, const Block& x, std::uint32_t node, std::uint64_t dimension,
                const Panel* also = nullptr, Matrix* also_x = nullptr);
  void check_rank(std::int64_t more) const;

  const Executor& executor_;
  std::int64_t rows_;
  LazySettings settings_;
  std::array<Side, 2> sides_;
  double largest_dropped_ = 0;
};

}  // namespace tplimit::engines
