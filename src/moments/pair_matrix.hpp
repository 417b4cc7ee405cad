#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include <Eigen/Core>

#include "moments/function_table.hpp"
#include "parallel/executor.hpp"
#include "tplimit/math/pair_kernels.hpp"

/// Matrices of moments of pairs as expressions, evaluated tile by tile.
namespace tplimit::moments {

class PairMatrix;
using Pairs = std::shared_ptr<const PairMatrix>;

/// The moments of the Gaussians on one side with themselves; padded to whole tiles.
struct PairSide {
  std::vector<double> variance, root, error;  ///< error: relative
  explicit PairSide(std::size_t size);
};

/// Entry (i, j) is a number for input i of the left and input j of the right side: a covariance, or
/// a sum, product, kernel of such.  Nothing is computed before `evaluate`, which goes through all
/// layers of one tile while it is in the cache, with the error of every entry: first order, |dK/dc|
/// error(c) + |dK/da| error(a) + |dK/db| error(b), and the rounding of each operation. Covariances
/// carry their gap 1 - |rho| (pair_kernels.hpp) as far as it is known with a small relative error.
class PairMatrix {
 public:
  /// Numbers as they are, all with one error; maps (empty: all in order) say which row and column
  /// is meant.
  static Pairs dense(std::shared_ptr<const Eigen::MatrixXd> values, double error, bool symmetric,
                     std::vector<int> rows = {}, std::vector<int> columns = {});
  /// A B'; B empty: A A'.
  static Pairs gram(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b);
  /// u v' with one error; symmetric: v is u.
  static Pairs outer(const Eigen::VectorXd& u, const Eigen::VectorXd& v, double error,
                     bool symmetric);
  /// left right x, of Gaussians times left and right, which have a relative error.
  static Pairs scaled(const Pairs& x, double left, double right, double relative = 0);
  /// Numbers times a factor that has a relative error.
  static Pairs multiple(const Pairs& x, double factor, double relative = 0);
  /// x + sign y; symmetric: known to be, though x and y are not.
  static Pairs sum(const Pairs& x, const Pairs& y, double sign, bool symmetric = false);
  static Pairs product(const Pairs& x, const Pairs& y);
  /// E f(u) g(v) of the Gaussians whose covariance is x, which has sides.
  static Pairs kernel(const Pairs& x, const PairForm& form);
  /// The same with these sides, if x has none of its own.
  static Pairs with_sides(const Pairs& x, std::shared_ptr<const PairSide> left,
                          std::shared_ptr<const PairSide> right);

  /// Entry (i, j) is that of rows[i] and columns[j] of x, computed from those of its operands.
  static Pairs selected(const Pairs& x, std::vector<int> rows, std::vector<int> columns);

  [[nodiscard]] int rows() const { return rows_; }
  [[nodiscard]] int columns() const { return columns_; }
  [[nodiscard]] bool symmetric() const { return symmetric_; }
  [[nodiscard]] const std::shared_ptr<const PairSide>& left() const { return left_; }
  [[nodiscard]] const std::shared_ptr<const PairSide>& right() const { return right_; }

  struct Target {
    Pairs pairs;
    double* value;                          ///< rows x columns, column-major
    double* error = nullptr;                ///< of each entry, if wanted
    double largest = 0, largest_error = 0;  ///< of |value| and of the errors
  };
  /// All targets together, of one shape.  A disturbance that is not 0 moves every entry by its
  /// error.
  static MomentStatus evaluate(std::span<Target> targets, const Executor& executor,
                               std::uint64_t disturbance);

  ~PairMatrix();

 private:
  enum class Kind {
    kDense,
    kGram,
    kOuter,
    kScaled,
    kSum,
    kProduct,
    kAngles,
    kTwoSlope,
    kTwoStep,
    kErf,
    kBell,
    kClosed,
    kSided
  };
  struct Selection {  ///< which entries of which matrix these are
    Pairs of;
    std::vector<int> rows, columns;
  };
  struct Channels {
    std::array<double*, 4> at;
  };
  struct Plan;
  class Band;

  PairMatrix(Kind kind, int rows, int columns, bool symmetric);
  [[nodiscard]] Pairs selected(const Selection& s, std::vector<Pairs> in) const;
  static Pairs angles(const Pairs& x, bool negative);
  [[nodiscard]] PairColumn column(int row, int size, int j) const;
  [[nodiscard]] static PairColumn diagonal(const PairSide& side);
  void entries(const PairColumn& own, std::span<const PairColumn> sides,
               std::span<const Channels> in, const Channels& out, bool gap, int row, int j,
               int size, const double* packed, MomentStatus& status) const;
  void dense_entries(int row, int j, int size, const PairOutput& to) const;
  void angle_entries(const PairColumn& p, const PairInput& in, const Channels& out,
                     MomentStatus& status) const;
  void closed_entries(const PairColumn& own, const PairColumn& p, const PairInput& in,
                      const PairOutput& to, MomentStatus& status) const;
  void pack(const std::vector<double>& x, std::size_t leading, std::size_t first,
            std::vector<double>& packed) const;
  void find_sides();
  [[nodiscard]] std::shared_ptr<const PairSide> side_of(bool left) const;
  [[nodiscard]] std::size_t channels() const { return kind_ == Kind::kAngles ? 4 : 3; }

  Kind kind_;
  int rows_, columns_;
  bool symmetric_;
  std::uint64_t serial_;
  mutable std::vector<Pairs> in_;
  std::shared_ptr<const PairSide> left_, right_;
  bool gapped_ = false;
  GapError gap_;
  std::shared_ptr<const Eigen::MatrixXd> values_;  // kDense
  double error_ = 0;
  std::vector<int> row_map_, column_map_;
  std::vector<double> a_, b_;  // kGram: padded, column-major; kOuter: u, v
  std::size_t depth_ = 0, leading_ = 0, leading_b_ = 0;
  double scale_left_ = 1, scale_right_ = 1, factor_ = 1, sign_ = 1;
  TwoSlope two_slope_;
  TwoStep two_step_;
  ScaledErf erf_;
  GaussBell bell_;
  PairForm form_;
  mutable std::array<std::weak_ptr<const PairMatrix>, 2> angles_;
  mutable std::vector<std::weak_ptr<const PairMatrix>> selections_;
  std::shared_ptr<const Selection> selection_;
};

}  // namespace tplimit::moments
