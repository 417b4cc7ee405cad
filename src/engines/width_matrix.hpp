#pragma once

#include <array>
#include <functional>
#include <memory>
#include <unordered_map>

#include "engines/normal_space.hpp"
#include "engines/orthonormal_basis.hpp"
#include "tplimit/support/diagnostic.hpp"

namespace tplimit::engines {

/// Stops an evaluation; becomes a diagnostic at the node that was being evaluated.
struct EvaluationStop {
  std::string code, message, help;
};
[[nodiscard]] inline EvaluationStop not_finite() { return {"E4101", "a number is not finite", ""}; }

struct DenseEntries;

/// One version of a matrix: what updates and scalings have made of its Gaussian entries.
struct MatrixVersion {
  double scale = 1;
  Matrix coefficients;  ///< lazy: C, directions of W' x directions of W; later directions are zero
  std::shared_ptr<DenseEntries> entries;  ///< dense: the matrix without `scale`
};

/// Versions, what several of them share once.
void save(Writer& out, const std::vector<MatrixVersion*>& versions);
void load(Reader& in, const std::vector<MatrixVersion*>& versions);

struct LazySettings {
  NormalLaw law = NormalLaw::kMatched;
  double rank_tol = 0;  ///< a new direction shorter than rank_tol times its vector is dropped
  bool single = false;  ///< bases and normals are stored in single precision
};

/// A term c sum_p D_p X_p' / n of an update.  Nodes name the blocks, so that known products are not
/// computed again.
struct UpdateTerm {
  double c;
  const Block* d;
  const Block* x;
  std::uint32_t d_node, x_node;
  std::uint64_t d_dimension, x_dimension;  ///< of the normals drawn if the vector is new
};

/// An n x n Gaussian matrix with entries N(0, 1/n) and its versions.  The one thing in which a
/// network of width n and the limit differ.
class WidthMatrix {
 public:
  virtual ~WidthMatrix() = default;
  [[nodiscard]] virtual MatrixVersion initial() = 0;
  /// y = W x or W' x, column by column; y has x's shape.
  virtual void apply(const MatrixVersion& w, bool transposed, const Block& x, std::uint32_t x_node,
                     std::uint64_t dimension, Block& y) = 0;
  /// `w` may be changed in place: the caller hands over the old version or a copy of it.
  virtual MatrixVersion update(MatrixVersion w, const std::vector<UpdateTerm>& terms) = 0;
  /// W + c psi(sum_k c_k D_k X_k'), without the 1/n, psi(g) = g / sqrt(g^2 + epsilon^2) entry by
  /// entry.
  virtual MatrixVersion update_entrywise(MatrixVersion w, const std::vector<UpdateTerm>& terms,
                                         double c, double epsilon) = 0;
  /// The vector of this node will not be used again.
  virtual void forget(std::uint32_t) {}
  /// Directions kept for W and W'.
  [[nodiscard]] virtual std::array<std::int64_t, 2> ranks() const { return {0, 0}; }
  /// Largest |rest| / |x| of the directions that were dropped.
  [[nodiscard]] virtual double largest_dropped() const { return 0; }

  /// What the matrix keeps beside its versions; `load` restores it in a matrix made in the same
  /// way.
  virtual void save(Writer&) const {}
  virtual void load(Reader&) {}
  /// Columns that normal spaces refer to.
  [[nodiscard]] virtual std::vector<const Panel*> panels() const { return {}; }
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
