/// Width matrices, dense and lazy, and the normals that lazy ones are made of.
/// <a, b> is a' b / rows throughout; kTolerance holds for numbers of order one.

#include "engines/lazy_matrix.hpp"
#include "engines/dense_matrix.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <Eigen/QR>

#include "tests/support/blocks.hpp"
#include "tplimit/math/normals.hpp"

namespace tplimit::engines {
namespace {

using Eigen::Index;
using Keys = std::vector<std::uint64_t>;

constexpr double kTolerance = 1e-12;   // 4500 eps: sums of a thousand products of order one
constexpr double kStandardErrors = 5;  // fixed seeds, within 5 of their own standard errors

Matrix matrix_of(const Panel& b) {
  Matrix out(b.rows(), b.columns());
  std::vector<double> chunk(static_cast<std::size_t>(b.ld() * b.columns()));
  for (std::int64_t c = 0; c < b.chunks(); ++c) {
    b.read(c, 0, b.columns(), chunk.data());
    out.middleRows(c * b.ld(), b.chunk_rows(c)) = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>(
        chunk.data(), b.chunk_rows(c), b.columns(), Eigen::OuterStride<>(b.ld()));
  }
  return out;
}

Panel panel_of(const Matrix& m, Index capacity) {
  Panel out(m.rows(), capacity, false);
  out.append(Executor(1), block_of(m));
  return out;
}

Matrix mean_product(const Matrix& a, const Matrix& b) {
  return a.transpose() * b / static_cast<double>(a.rows());
}

/// Orthonormal under <., .>, spanning the columns of `m`.
Matrix orthonormal(const Matrix& m) {
  return Eigen::HouseholderQR<Matrix>(m).householderQ() * Matrix::Identity(m.rows(), m.cols()) *
         std::sqrt(static_cast<double>(m.rows()));
}

double largest(const Matrix& m) { return m.size() == 0 ? 0 : m.cwiseAbs().maxCoeff(); }
double distance(const Matrix& a, const Matrix& b) { return largest(a - b); }

/// Columns that a matrix is applied to; the node names them.
struct Vectors {
  Block block;
  std::uint32_t node;
};

enum class Kind {
  kDense,
  kExact,
  kExactThenStored,  // where directions of both sides exceed a third of the rows
  kMatched,
  kOneSpace  // matched, input and output in the same space
};

std::string kind_name(const ::testing::TestParamInfo<Kind>& info) {
  return std::array{"Dense", "LazyExact", "LazyExactThenStored", "LazyMatched",
                    "LazyMatchedInOneSpace"}[static_cast<std::size_t>(info.param)];
}

double room_of(Kind kind) {
  return kind == Kind::kExact ? INFINITY : kind == Kind::kExactThenStored ? 1.0 / 3 : 0.5;
}

/// A matrix with all that it needs.
class Example {
 public:
  Example(Kind kind, Index rows, double rank_tol = 1e-10, int threads = 1, std::uint64_t key = 1,
          bool single = false, bool may_store = true)
      : executor_(threads),
        rows_(rows),
        law_(kind == Kind::kExact || kind == Kind::kExactThenStored ? NormalLaw::kExact
                                                                    : NormalLaw::kMatched),
        input_(executor_, rows, law_, Keys{mix_key(key, 1)}),
        output_(executor_, rows, law_, Keys{mix_key(key, 2)}) {
    if (kind == Kind::kDense)
      matrix_ = std::make_unique<DenseMatrix<double>>(executor_, rows, key);
    else
      matrix_ = std::make_unique<LazyMatrix>(
          executor_, rows,
          LazySettings{law_, rank_tol, single, mix_key(key, 3), room_of(kind), may_store}, input_,
          kind == Kind::kOneSpace ? input_ : output_,
          std::array<std::int64_t, 2>{std::min<Index>(rows, 2000), std::min<Index>(rows, 2000)});
  }

  Vectors vectors(const Matrix& m) { return {block_of(m), ++nodes_}; }
  Matrix times(const MatrixVersion& w, const Vectors& x) { return apply(w, false, x); }
  Matrix transposed_times(const MatrixVersion& w, const Vectors& d) { return apply(w, true, d); }
  MatrixVersion updated(MatrixVersion w, const std::vector<double>& c,
                        const std::vector<const Vectors*>& d,
                        const std::vector<const Vectors*>& x) {
    std::vector<UpdateTerm> terms;
    for (std::size_t k = 0; k < c.size(); ++k)
      terms.push_back({c[k], &d[k]->block, &x[k]->block, d[k]->node, x[k]->node,
                       dimension(*d[k], true), dimension(*x[k], false)});
    return matrix_->update(std::move(w), terms);
  }
  WidthMatrix& matrix() { return *matrix_; }
  /// A normal of the input space, as of a `random` or a `param`; at most one.
  Matrix source() {
    source_ = Panel(rows_, 1, false);
    input_.draw(source_, {0}, nullptr);
    return matrix_of(source_);
  }
  [[nodiscard]] std::array<std::int64_t, 2> ranks() const { return matrix_->ranks(); }

 private:
  static std::uint64_t dimension(const Vectors& x, bool transposed) {
    return 128 * std::uint64_t{x.node} + (transposed ? 64 : 0);
  }
  Matrix apply(const MatrixVersion& w, bool transposed, const Vectors& x) {
    Block y(rows_, x.block.columns());
    matrix_->apply(w, transposed, x.block, x.node, dimension(x, transposed), y);
    return matrix_of(y);
  }

  Executor executor_;
  Index rows_;
  NormalLaw law_;
  NormalSpace input_, output_;
  Panel source_;
  std::unique_ptr<WidthMatrix> matrix_;
  std::uint32_t nodes_ = 0;
};

// ---- what every matrix does
// ------------------------------------------------------------------------

constexpr Index kRows = 1100;  // several chunks, the last not full

class AnyMatrix : public ::testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(Kinds, AnyMatrix,
                         ::testing::Values(Kind::kDense, Kind::kExact, Kind::kMatched,
                                           Kind::kOneSpace),
                         kind_name);

TEST_P(AnyMatrix, AndItsTransposeAgreeInWhateverOrderProductsAreRevealed) {
  std::vector<int> order(8);  // k < 4: W x_k, else W' d_(k - 4)
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 generator(7);
  for (int round = 0; round < 6; ++round) {
    Example s(GetParam(), kRows);
    const MatrixVersion w = s.matrix().initial();
    std::vector<Vectors> vectors(8);
    std::vector<Matrix> products(8);
    Matrix last = normals(kRows, 3, 5);
    for (const int k : order) {
      const auto at = static_cast<std::size_t>(k);
      // Inputs depend on what was revealed before, as in training.
      vectors[at] = s.vectors(normals(kRows, 3, static_cast<std::uint64_t>(k)) +
                              last.array().tanh().matrix());
      last = products[at] = k < 4 ? s.times(w, vectors[at]) : s.transposed_times(w, vectors[at]);
    }
    for (std::size_t x = 0; x < 4; ++x) {
      EXPECT_LT(distance(s.times(w, vectors[x]), products[x]), 10 * kTolerance)
          << "what is revealed later must not change W x";  // entries up to 10
      for (std::size_t d = 4; d < 8; ++d)
        EXPECT_LT(distance(mean_product(matrix_of(vectors[d].block), products[x]),
                           mean_product(products[d], matrix_of(vectors[x].block))),
                  kTolerance)
            << d << " after " << x << ", round " << round;
    }
    std::shuffle(order.begin(), order.end(), generator);
  }
}

TEST_P(AnyMatrix, IsLinear) {
  Example s(GetParam(), kRows);
  const MatrixVersion w = s.matrix().initial();
  const Matrix x = normals(kRows, 2, 1), mix = (Matrix(2, 3) << 1, 0, -2, 3, 0, 0.5).finished();
  for (const bool transposed : {false, true}) {
    const auto apply = [&](const Matrix& m) {
      return transposed ? s.transposed_times(w, s.vectors(m)) : s.times(w, s.vectors(m));
    };
    const Matrix product = apply(x);
    EXPECT_LT(distance(apply(x * mix), product * mix), 10 * kTolerance);
  }
}

TEST_P(AnyMatrix, FollowsTheFormulasOfUpdatesAndScalings) {
  Example s(GetParam(), kRows);
  const Vectors x1 = s.vectors(normals(kRows, 2, 1)), x2 = s.vectors(normals(kRows, 3, 2)),
                d1 = s.vectors(normals(kRows, 2, 3)), d2 = s.vectors(normals(kRows, 3, 4));
  const Vectors u = s.vectors(normals(kRows, 2, 5) + 0.3 * matrix_of(x1.block)),
                e = s.vectors(normals(kRows, 2, 6) + 0.3 * matrix_of(d1.block));
  const auto outer = [](const Vectors& d, const Vectors& x, const Vectors& to) -> Matrix {
    return matrix_of(d.block) * mean_product(matrix_of(x.block), matrix_of(to.block));
  };

  const MatrixVersion w0 = s.matrix().initial();
  const Matrix forward =
      s.times(w0, u);  // known before the update; W' e and the products with x2 are not
  const MatrixVersion w1 = s.updated(w0, {0.7}, {&d1}, {&x1});
  const MatrixVersion w2 = s.matrix().scaled(w1, -0.5);
  const MatrixVersion w3 = s.updated(w2, {2, -1}, {&d2, &d1}, {&x2, &x1});
  const Matrix backward = s.transposed_times(w0, e);

  const Matrix first = 0.7 * outer(d1, x1, u), later = 2 * outer(d2, x2, u) - outer(d1, x1, u);
  EXPECT_LT(distance(s.times(w1, u), forward + first), 10 * kTolerance);
  EXPECT_LT(distance(s.times(w2, u), -0.5 * (forward + first)), 10 * kTolerance);
  EXPECT_LT(distance(s.times(w3, u), -0.5 * (forward + first) + later), 10 * kTolerance);
  const Matrix first_back = 0.7 * outer(x1, d1, e),
               later_back = 2 * outer(x2, d2, e) - outer(x1, d1, e);
  EXPECT_LT(distance(s.transposed_times(w1, e), backward + first_back), 10 * kTolerance);
  EXPECT_LT(distance(s.transposed_times(w2, e), -0.5 * (backward + first_back)), 10 * kTolerance);
  EXPECT_LT(distance(s.transposed_times(w3, e), -0.5 * (backward + first_back) + later_back),
            10 * kTolerance);
  EXPECT_LT(distance(s.times(w0, u), forward), 10 * kTolerance) << "the old version is still there";

  // And the transpose of each version is its transpose, on vectors that are new to it.
  std::uint64_t key = 7;
  for (const MatrixVersion& w : {w1, w2, w3}) {
    const Vectors x = s.vectors(normals(kRows, 2, key++)), d = s.vectors(normals(kRows, 2, key++));
    const Matrix wx = s.times(w, x), wd = s.transposed_times(w, d);
    EXPECT_LT(distance(mean_product(matrix_of(d.block), wx), mean_product(wd, matrix_of(x.block))),
              kTolerance);
  }
}

TEST_P(AnyMatrix, HasResultsThatDoNotDependOnTheNumberOfThreads) {
  const auto history = [&](int threads, Index rows) {
    Example s(GetParam(), rows, 1e-10, threads);
    const MatrixVersion w = s.matrix().initial();
    const Vectors x = s.vectors(normals(rows, 3, 1));
    const Vectors h = s.vectors(s.times(w, x).array().tanh().matrix());
    const Vectors g = s.vectors(s.transposed_times(w, h));
    const MatrixVersion next = s.updated(w, {-0.3}, {&h}, {&g});
    return std::vector<Matrix>{matrix_of(h.block), matrix_of(g.block), s.times(next, x),
                               s.times(next, g), s.transposed_times(next, h)};
  };
  const Index rows =
      GetParam() == Kind::kDense ? 2500 : 70'000;  // lazy: more chunks than groups of partial sums
  const std::vector<Matrix> one = history(1, rows), two = history(2, rows);
  for (std::size_t k = 0; k < one.size(); ++k)
    EXPECT_TRUE(one[k] == two[k]) << "product " << k;  // every bit
}

TEST(LazyMatrixInSinglePrecision, AgreesWithItsTransposeAlongATrajectory) {
  // Vectors that change little from step to step, as in training: their new directions are small
  // differences.
  for (const NormalLaw law : {NormalLaw::kExact, NormalLaw::kMatched}) {
    Example s(law == NormalLaw::kExact ? Kind::kExact : Kind::kMatched, 8192, 1e-6, 1, 1, true);
    MatrixVersion w = s.matrix().initial();
    Matrix x = normals(8192, 4, 1), d = normals(8192, 4, 2);
    const Matrix dx = normals(8192, 4, 3), dd = normals(8192, 4, 4);
    for (int step = 0; step < 30; ++step) {
      const Vectors vx = s.vectors((x + 0.01 * step * dx).array().tanh()),
                    vd = s.vectors((d + 0.01 * step * dd).array().tanh());
      const Matrix wx = s.times(w, vx), wd = s.transposed_times(w, vd);
      EXPECT_LT(distance(mean_product(matrix_of(vd.block), s.times(w, vx)),
                         mean_product(wd, matrix_of(vx.block))),
                1e-5)
          << "step " << step;
      const double size = std::sqrt(matrix_of(vx.block).squaredNorm() / wx.squaredNorm());
      EXPECT_NEAR(size, 1, 0.2) << step;
      x += 0.05 * wd / 4;
      d += 0.05 * wx / 4;
    }
  }
}

TEST(LazyMatrixOfANetwork, HasNoMoreDirectionsThanCoordinates) {
  // Vectors that change little from product to product, until they span everything: what seems left
  // of the next ones is noise.
  constexpr Index kN = 50;
  Example s(Kind::kExact, kN);
  const MatrixVersion w = s.matrix().initial();
  const Matrix start = normals(kN, 16, 1), change = normals(kN, 16, 2);
  for (int step = 0; step < 12; ++step) {
    const Vectors x = s.vectors((start + 0.02 * step * change).array().tanh()),
                  d = s.vectors((change + 0.02 * step * start).array().tanh());
    const Matrix wx = s.times(w, x), wd = s.transposed_times(w, d);
    EXPECT_LT(distance(mean_product(matrix_of(d.block), wx), mean_product(wd, matrix_of(x.block))),
              1e-11)
        << step;
  }
  EXPECT_EQ(s.ranks()[0], kN);
}

// ---- long runs
// ------------------------------------------------------------------------------------

/// How far a lazy matrix is from one fixed matrix after `steps` products on each side, with vectors
/// that move a little from step to step, as in training.
struct Defects {
  double orthogonality = 0;  ///< |Q'Q - 1|, entry by entry
  double span = 0;           ///< |x - Q <Q, x>| / |x|
  double linearity = 0;  ///< |W (x - y) - W x + W y| / |x|, W x and W y of the time they were made
  double adjointness = 0;  ///< <d, W x> - <W' d, x>, likewise; of |d| |x|
};

Defects defects_of(Example& s, Index rows, int steps, double change) {
  const MatrixVersion w = s.matrix().initial();
  const auto unit = [rows](Matrix v) -> Matrix {
    return v / std::sqrt(v.squaredNorm() / static_cast<double>(rows));
  };
  Matrix x = unit(normals(rows, 1, 11)), d = unit(normals(rows, 1, 12));
  std::vector<Matrix> xs, ds, products, transposed;
  for (int step = 0; step < steps; ++step) {
    const Matrix wx = s.times(w, s.vectors(x)), wd = s.transposed_times(w, s.vectors(d));
    if (step % (steps / 10) == 0) {
      xs.push_back(x);
      ds.push_back(d);
      products.push_back(wx);
      transposed.push_back(wd);
    }
    // Something smooth, and something new.
    const auto key = static_cast<std::uint64_t>(20 + 2 * step);
    x = unit(x + change * wd.array().tanh().matrix() + 0.1 * change * normals(rows, 1, key));
    d = unit(d + change * wx.array().tanh().matrix() + 0.1 * change * normals(rows, 1, key + 1));
  }
  Defects out;
  const auto panels = s.matrix().panels();
  for (const std::size_t side : {0u, 1u}) {
    const Matrix q = matrix_of(*panels[2 * side]);
    out.orthogonality = std::max(
        out.orthogonality, distance(mean_product(q, q), Matrix::Identity(q.cols(), q.cols())));
    for (const Matrix& v : side == 0 ? xs : ds)
      out.span = std::max(out.span, std::sqrt((v - q * mean_product(q, v)).squaredNorm() /
                                              static_cast<double>(rows)));
  }
  for (std::size_t i = 0; i < xs.size(); ++i)
    for (std::size_t j = 0; j < xs.size(); ++j) {
      out.adjointness =
          std::max(out.adjointness, std::abs(mean_product(ds[i], products[j])(0, 0) -
                                             mean_product(transposed[i], xs[j])(0, 0)));
      if (i == j) continue;
      const Matrix lost = s.times(w, s.vectors(xs[i] - xs[j])) - products[i] + products[j];
      out.linearity =
          std::max(out.linearity, std::sqrt(lost.squaredNorm() / static_cast<double>(rows)));
    }
  return out;
}

TEST(LazyMatrix, IsOneMatrixThroughoutALongRun) {
  for (const Kind kind : {Kind::kExact, Kind::kMatched, Kind::kOneSpace})
    for (const double change : {0.2, 0.01, 1e-4}) {
      constexpr Index kM = 3000;
      Example s(kind, kM, 1e-13);
      const Defects found = defects_of(s, kM, 300, change);
      const std::string where = fmt::format("{}, change {}", static_cast<int>(kind), change);
      EXPECT_GT(s.ranks()[0], 250) << where;
      EXPECT_LT(found.orthogonality, kTolerance) << where;
      EXPECT_LT(found.span, kTolerance) << where;
      EXPECT_LT(found.linearity, kTolerance) << where;
      EXPECT_LT(found.adjointness, kTolerance) << where;
    }
}

TEST(LazyMatrix, IsOneMatrixOverThousandsOfStepsUpToWhatItDrops) {
  for (const bool single : {false, true}) {
    constexpr Index kM = 2048;
    constexpr double kTruncate = 1e-2;
    Example s(Kind::kMatched, kM, kTruncate, 1, 1, single);
    const Defects found = defects_of(s, kM, 3000, 0.003);
    EXPECT_GT(s.ranks()[0], 20);
    EXPECT_LT(found.orthogonality, single ? 1e-6 : kTolerance);
    EXPECT_LT(found.span, 1.01 * kTruncate);
    EXPECT_LT(found.linearity, 3 * kTruncate);
    EXPECT_LT(found.adjointness, 3 * kTruncate);
  }
}

TEST(LazyMatrix, IsOneMatrixWhereManyVectorsOfABlockNearlyDependOnEachOther) {
  // Features of neighbouring points of a line, in order: of what is left of each beside those
  // before it, every new direction is a combination with coefficients that grow beyond bounds.
  constexpr Index kPoints = 60;
  const Matrix u = normals(kRows, 2, 1);
  Matrix x(kRows, kPoints);
  for (Index j = 0; j < kPoints; ++j)
    x.col(j) = ((0.1 * static_cast<double>(j) - 3) * u.col(0) + u.col(1)).array().tanh();
  for (const double tol : {1e-3, 1e-6, 1e-9}) {
    Example s(Kind::kMatched, kRows, tol);
    const MatrixVersion w = s.matrix().initial();
    const Matrix product = s.times(w, s.vectors(x));
    const Matrix q = matrix_of(*s.matrix().panels()[0]);
    EXPECT_LT(distance(mean_product(q, q), Matrix::Identity(q.cols(), q.cols())), kTolerance)
        << tol;
    const Matrix rest = x - q * mean_product(q, x);
    EXPECT_LT((rest.colwise().norm().array() / x.colwise().norm().array()).maxCoeff(), 1.001 * tol)
        << tol;
    // Normals are matched: the products have the moments of the vectors, but for what is dropped.
    EXPECT_LT(distance(mean_product(product, product), mean_product(x, x)),
              2.1 * tol * tol + 10 * kTolerance)
        << tol;
  }
}

TEST(LazyMatrixInSinglePrecision, IsOneMatrixToSinglePrecisionThroughoutALongRun) {
  for (const Kind kind : {Kind::kExact, Kind::kMatched})
    for (const double change : {0.2, 0.01}) {
      constexpr Index kM = 3000;
      Example s(kind, kM, 1e-6, 1, 1, true);
      const Defects found = defects_of(s, kM, 300, change);
      EXPECT_GT(s.ranks()[0], 250);
      EXPECT_LT(found.orthogonality, 1e-7) << change;
      for (const double defect : {found.span, found.linearity, found.adjointness})
        EXPECT_LT(defect, 3e-6) << change;
    }
}

TEST(LazyMatrixOfANetwork, SeesDirectionsThatOneBlockNearlyHides) {
  // Columns that differ by 1e-9: within the noise of their Gram matrix, but not of their entries.
  Example s(Kind::kExact, kRows, 1e-13);
  const MatrixVersion w = s.matrix().initial();
  const Matrix x = normals(kRows, 1, 1), e = normals(kRows, 1, 2);
  const Matrix product = s.times(w, s.vectors((Matrix(kRows, 3) << x, x + 1e-9 * e, x).finished()));
  EXPECT_EQ(s.ranks()[0], 2);
  EXPECT_TRUE(product.col(2) == product.col(0) ||
              distance(product.col(2), product.col(0)) < 10 * kTolerance);
  EXPECT_NEAR((product.col(1) - product.col(0)).norm() / (1e-9 * e.norm()), 1, 0.2);
  EXPECT_LT(distance(s.times(w, s.vectors(1e-9 * e)), product.col(1) - product.col(0)),
            10 * kTolerance);
}

// ---- the law
// ---------------------------------------------------------------------------------------

TEST(MatchedMatrix, HasTheMomentsOfTheLimitInEverySample) {
  // |W .. W' W x|^2 = Catalan numbers, the moments of the Marchenko-Pastur law.
  for (const Index rows : {100, 256, 1000, 1500})
    for (const bool transposed_first : {false, true}) {
      Example s(Kind::kMatched, rows);
      const MatrixVersion w = s.matrix().initial();
      Vectors x = s.vectors(orthonormal(normals(rows, 1, 3).array().cube().matrix()));
      bool transposed = transposed_first;
      for (const double catalan : {1, 2, 5, 14, 42, 132}) {
        x = s.vectors(transposed ? s.transposed_times(w, x) : s.times(w, x));
        transposed = !transposed;
        EXPECT_NEAR(matrix_of(x.block).squaredNorm() / static_cast<double>(rows), catalan,
                    10 * catalan * kTolerance)
            << rows << " particles";
      }
    }
}

TEST(MatchedMatrix, OnOneSpaceKeepsItsPowersOrthonormal) {
  // Z of x, W x, W W x, .. are independent; x is a normal of the space, so that its columns are
  // matched with it.
  Example s(Kind::kOneSpace, 300);
  const MatrixVersion w = s.matrix().initial();
  Matrix all(300, 5);
  all.col(0) = s.source();
  for (Index k = 1; k < 5; ++k) all.col(k) = s.times(w, s.vectors(all.col(k - 1)));
  EXPECT_LT(distance(mean_product(all, all), Matrix::Identity(5, 5)), kTolerance);
}

class NetworkMatrix : public ::testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(Kinds, NetworkMatrix,
                         ::testing::Values(Kind::kDense, Kind::kExact, Kind::kExactThenStored),
                         kind_name);

TEST_P(NetworkMatrix, HasTheMomentsOfAWishartMatrixOfItsWidth) {
  // E (W' W)^k at width n: 1, 2 + 1/n, 5 + 6/n + 4/n^2.
  constexpr Index kN = 6;
  constexpr int kSeeds = 20'000;
  const double n = kN, expected[] = {1, 2 + 1 / n, 5 + 6 / n + 4 / (n * n)};
  const Matrix start = orthonormal(Matrix::Constant(kN, 1, 1.0) + normals(kN, 1, 4));
  double sum[3] = {}, squares[3] = {};
  for (int seed = 0; seed < kSeeds; ++seed) {
    Example s(GetParam(), kN, 1e-10, 1, mix_key(99, static_cast<std::uint64_t>(seed)));
    const MatrixVersion w = s.matrix().initial();
    Vectors x = s.vectors(start);
    for (std::size_t k = 0; k < 3; ++k) {
      x = s.vectors(k % 2 == 0 ? s.times(w, x) : s.transposed_times(w, x));
      const double norm = matrix_of(x.block).squaredNorm() / n;
      sum[k] += norm / kSeeds;
      squares[k] += norm * norm / kSeeds;
    }
  }
  for (std::size_t k = 0; k < 3; ++k)
    EXPECT_NEAR(sum[k], expected[k],
                kStandardErrors * std::sqrt((squares[k] - sum[k] * sum[k]) / kSeeds))
        << k + 1 << " products";
}

TEST(ExactMatrix, IsAWholeMatrixOnceEveryDirectionIsRevealed) {
  constexpr Index kN = 20;
  Example s(Kind::kExact, kN);
  const MatrixVersion w = s.matrix().initial();
  const Matrix some = s.transposed_times(w, s.vectors(normals(kN, 3, 1)));
  const Matrix entries = s.times(w, s.vectors(Matrix::Identity(kN, kN)));
  EXPECT_EQ(s.ranks(), (std::array<std::int64_t, 2>{kN, 3}));
  EXPECT_LT(distance(entries.transpose() * normals(kN, 3, 1), some), 10 * kTolerance);
  const Matrix d = normals(kN, 4, 2);
  EXPECT_LT(distance(s.transposed_times(w, s.vectors(d)), entries.transpose() * d),
            10 * kTolerance);
}

// ---- directions
// ------------------------------------------------------------------------------------

TEST(LazyMatrix, RevealsNoDirectionForWhatItKnows) {
  for (const Kind kind : {Kind::kExact, Kind::kMatched}) {
    Example s(kind, kRows);
    const MatrixVersion w = s.matrix().initial();
    const auto expect_ranks = [&](std::int64_t x, std::int64_t d, const char* what) {
      EXPECT_EQ(s.ranks(), (std::array{x, d})) << what;
    };
    const Matrix m = normals(kRows, 3, 1);
    const Vectors x = s.vectors(m);
    expect_ranks(0, 0, "nothing yet");
    (void)s.times(w, x);
    expect_ranks(3, 0, "three columns");
    (void)s.times(w, x);
    expect_ranks(3, 0, "the same node");
    (void)s.times(w, s.vectors(m));
    expect_ranks(3, 0, "an equal block");
    (void)s.times(w, s.vectors(m * normals(3, 5, 2)));
    expect_ranks(3, 0, "combinations");
    (void)s.times(w, s.vectors(1e-30 * m));
    expect_ranks(3, 0, "tiny, but not new");
    (void)s.times(w, s.vectors(Matrix::Zero(kRows, 2)));
    expect_ranks(3, 0, "zero");
    const Matrix fresh = normals(kRows, 1, 3);
    (void)s.times(
        w,
        s.vectors((Matrix(kRows, 4) << fresh, m.col(0), 2 * fresh, fresh - m.col(1)).finished()));
    expect_ranks(4, 0, "one new direction in four columns");
    (void)s.times(w, s.vectors(1e-30 * normals(kRows, 1, 4)));
    expect_ranks(5, 0, "tiny and new");
    (void)s.transposed_times(w, x);
    expect_ranks(5, 3, "the transpose has directions of its own");
    (void)s.updated(w, {1}, {&x}, {&x});
    expect_ranks(5, 3, "an update with known vectors");
  }
}

TEST(LazyMatrix, DropsDirectionsShorterThanTheTolerance) {
  constexpr double kTruncate = 1e-3;
  const Matrix q = orthonormal(normals(kRows, 2, 1));
  const auto nearly = [&](double residual, double size) -> Matrix {
    return size * (q.col(0) + residual * q.col(1));
  };
  for (const double size : {1.0, 1e-8, 1e8})
    for (const bool together : {false, true})
      for (const double residual : {0.99 * kTruncate, 1.01 * kTruncate}) {
        Example s(Kind::kMatched, kRows, kTruncate);
        const MatrixVersion w = s.matrix().initial();
        Matrix both(kRows, 2);
        both << q.col(0), nearly(residual, size);
        if (!together) (void)s.times(w, s.vectors(q.col(0)));
        const Matrix product = s.times(w, s.vectors(both));
        const bool kept = residual > kTruncate;
        EXPECT_EQ(s.ranks()[0], kept ? 2 : 1)
            << residual << (together ? " in one block" : " one after the other");
        // What is dropped is all that is lost: |W x - W x'| = |x - x'|.
        const double apart = std::sqrt((product.col(1) / size - product.col(0)).squaredNorm() /
                                       static_cast<double>(kRows));
        EXPECT_NEAR(apart, kept ? residual : 0, kTolerance);
      }
}

TEST(LazyMatrix, RefusesMoreDirectionsThanHalfOfTheParticles) {
  constexpr Index kM = 64;
  const auto code_of = [](Index x_columns, Index d_columns) -> std::string {
    Example s(Kind::kMatched, kM, 1e-10, 1, 1, false, false);
    const MatrixVersion w = s.matrix().initial();
    try {
      (void)s.transposed_times(w, s.vectors(normals(kM, d_columns, 2)));
      (void)s.times(w, s.vectors(normals(kM, x_columns, 1)));
    } catch (const EvaluationStop& stop) {
      EXPECT_FALSE(stop.help.empty());
      return stop.code;
    }
    return "";
  };
  EXPECT_EQ(code_of(31, 1), "");
  EXPECT_EQ(code_of(32, 1), "E4201");
  EXPECT_EQ(code_of(12, 20), "");
  EXPECT_EQ(code_of(13, 20), "E4201");
  EXPECT_EQ(code_of(1, 33), "E4201");
}

/// Rounding of entries of size n^(-1/2) in single precision, over sums of a thousand.
constexpr double kSingle = 2e-5;

// What was revealed before stays, versions stay, and W and W' are one matrix: at every moment.
TEST(LazyMatrix, IsStoredWhereItHasNoRoomAndStaysOneMatrix) {
  constexpr Index kM = 300;
  for (const Index late : {Index{0}, Index{20}}) {  // directions revealed before
    Example s(Kind::kMatched, kM);
    const MatrixVersion w = s.matrix().initial();
    const Vectors x = s.vectors(normals(kM, std::max<Index>(late, 1), 1)),
                  d = s.vectors(normals(kM, std::max<Index>(late, 1), 2)),
                  many = s.vectors(normals(kM, 280, 3));
    Matrix wx, wd;
    if (late > 0) {
      wx = s.times(w, x);
      wd = s.transposed_times(w, d);
    }
    const MatrixVersion w1 = late > 0 ? s.updated(w, {0.7}, {&d}, {&x}) : w;
    const Matrix on_many = s.times(w, many);
    if (late > 0) {
      EXPECT_LT(distance(s.times(w, x), wx), kSingle);
      EXPECT_LT(distance(s.transposed_times(w, d), wd), kSingle);
    }
    const Matrix dm = matrix_of(d.block), xm = matrix_of(x.block), mm = matrix_of(many.block);
    EXPECT_LT(distance(mean_product(dm, on_many), mean_product(s.transposed_times(w, d), mm)),
              kSingle);
    if (late > 0) {
      EXPECT_LT(distance(s.times(w1, many), on_many + 0.7 * dm * mean_product(xm, mm)), kSingle);
    }
    // Updates after it, of old and new versions.
    MatrixVersion w2 = s.updated(w1, {-0.4}, {&d}, {&x});
    w2 = s.matrix().scaled(s.matrix().combined(std::move(w2), 0.5, w1), 2);
    const double factor = 2 * (-0.4 + (late > 0 ? 1.5 * 0.7 : 0));
    EXPECT_LT(distance(s.times(w2, many), 3 * on_many + factor * dm * mean_product(xm, mm)),
              4 * kSingle);
    // What was not revealed has the law of the entries.
    const double share = on_many.squaredNorm() / mm.squaredNorm();
    EXPECT_NEAR(share, 1, kStandardErrors * std::sqrt(2.0 / (kM * 280)));
  }
}

TEST(LazyMatrix, StopsAtNumbersThatAreNotFinite) {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Example s(Kind::kMatched, 50);
    Matrix x = normals(50, 2, 1);
    x(17, 1) = bad;
    try {
      (void)s.times(s.matrix().initial(), s.vectors(x));
      ADD_FAILURE() << "no stop at " << bad;
    } catch (const EvaluationStop& stop) {
      EXPECT_EQ(stop.code, "E4101");
    }
  }
}

// ---- normal spaces
// ---------------------------------------------------------------------------------

std::vector<std::uint64_t> range(std::uint64_t first, std::uint64_t count) {
  std::vector<std::uint64_t> out(count);
  std::iota(out.begin(), out.end(), first);
  return out;
}

TEST(MatchedColumns, HaveMeanZeroIdentityCovarianceAndNoCorrelationWithAnythingEarlier) {
  for (const Index rows : {200, 1024, 1500}) {
    const Executor executor(1);
    NormalSpace space(executor, rows, NormalLaw::kMatched, {5});
    Panel sources(rows, 6, false), fresh(rows, 20, false), q(rows, 20, false);
    space.watch(q);
    space.draw(sources, range(0, 6), nullptr);
    const Matrix g = matrix_of(sources), ones = Matrix::Ones(rows, 1);

    // Opposite directions: functions of the columns, one of the columns, nearly one of them, the
    // constant; later, functions of fresh columns.
    Matrix directions(rows, 6);
    directions << g.leftCols(2).array().tanh(), g.col(0).cwiseProduct(g.col(1)), g.col(3),
        g.col(4) + 1e-4 * g.col(5).array().cos().matrix(), ones;
    for (int round = 0; round < 3; ++round) {
      const Matrix known = matrix_of(q);
      Matrix all(rows, known.cols() + directions.cols());
      all << known, directions;
      q.append(executor, block_of(orthonormal(all).rightCols(directions.cols())));

      const auto first = static_cast<std::uint64_t>(6 + fresh.columns());
      const Matrix drawn = matrix_of(space.draw(fresh, range(first, 4), &q));
      const Matrix f = matrix_of(fresh), mine = matrix_of(q);
      EXPECT_TRUE(f.rightCols(4) == drawn);
      EXPECT_LT(largest(mean_product(ones, f)), kTolerance);
      EXPECT_LT(distance(mean_product(f, f), Matrix::Identity(f.cols(), f.cols())), kTolerance);
      EXPECT_LT(largest(mean_product(g, f)), kTolerance);
      EXPECT_LT(largest(mean_product(mine, f.rightCols(4))), kTolerance) << "round " << round;
      directions =
          (f.rightCols(4).array() * g.leftCols(4).array()).sin() + f.rightCols(4).array().square();
    }
    EXPECT_FALSE(space.matching_stopped());
  }
}

TEST(MatchedColumns, AreAllThatIsChangedInTheFirstTwoMoments) {
  // The first column is its Sobol points, shifted and scaled: the higher moments are theirs.
  constexpr Index kM = 700;
  const Executor executor(1);
  NormalSpace space(executor, kM, NormalLaw::kMatched, {5});
  Panel g(kM, 1, false);
  space.draw(g, {3}, nullptr);
  Matrix raw(kM, 1);
  sobol_normals(3, mix_key(5, 3), 0, {raw.data(), static_cast<std::size_t>(kM)});
  raw.array() -= raw.mean();
  EXPECT_LT(distance(matrix_of(g), raw / std::sqrt(raw.squaredNorm() / kM)), kTolerance);
}

TEST(MatchedColumns, EndAtHalfOfTheParticles) {
  const Executor executor(1);
  NormalSpace space(executor, 100, NormalLaw::kMatched, {5});
  Panel g(100, 60, false), q = panel_of(orthonormal(normals(100, 5, 1)), 5);
  space.watch(q);
  space.draw(g, range(0, 44), &q);  // with the constant and the opposite rank: 50
  EXPECT_FALSE(space.matching_stopped());
  space.draw(g, range(44, 1), &q);
  EXPECT_TRUE(space.matching_stopped());
  const Matrix columns = matrix_of(g), last = columns.col(44);
  EXPECT_LT(
      largest(mean_product(columns.leftCols(44), columns.leftCols(44)) - Matrix::Identity(44, 44)),
      kTolerance);
  EXPECT_LT(largest(mean_product(matrix_of(q), last)), kTolerance)
      << "off the opposite basis it stays";
  EXPECT_GT(largest(mean_product(columns.leftCols(44), last)), 1e-3);
}

TEST(MatchedColumns, CountDirectionsThatSeveralMatricesShareOnce) {
  const Executor executor(1);
  NormalSpace space(executor, 100, NormalLaw::kMatched, {5});
  const Matrix basis = orthonormal(normals(100, 6, 1));
  Panel g(100, 60, false), q(100, 6, false), same(100, 6, false);
  q.append(executor, block_of(basis.leftCols(5)));
  same.append(executor, block_of(basis.leftCols(5)));
  space.watch(q);
  space.watch(same);
  space.draw(g, range(0, 30), nullptr);
  same.append(executor, block_of(basis.rightCols(1)));  // its own
  space.draw(g, range(30, 13), nullptr);                // with the constant and the basis: 50
  EXPECT_FALSE(space.matching_stopped());
  const Matrix columns = matrix_of(g);
  EXPECT_LT(distance(mean_product(columns, columns), Matrix::Identity(43, 43)), kTolerance);
  EXPECT_LT(largest(mean_product(basis.leftCols(5), columns)), kTolerance);
  EXPECT_LT(largest(mean_product(basis, columns.rightCols(13))), kTolerance);
  space.draw(g, range(43, 1), nullptr);
  EXPECT_TRUE(space.matching_stopped());
}

TEST(ExactColumns, AreIndependentNormalsOffTheOppositeBasis) {
  constexpr Index kM = 1500;
  const Executor executor(1);
  NormalSpace space(executor, kM, NormalLaw::kExact, {5});
  Panel plain(kM, 4, false), off(kM, 4, false), q = panel_of(orthonormal(normals(kM, 3, 1)), 3);
  space.draw(plain, {4, 9}, nullptr);
  space.draw(plain, {5000}, nullptr);
  for (const auto& [column, dimension] :
       {std::pair<Index, std::uint64_t>{0, 4}, {1, 9}, {2, 5000}}) {
    Matrix expected(kM, 1);
    plain_normals(mix_key(5, dimension), 0, {expected.data(), static_cast<std::size_t>(kM)});
    EXPECT_TRUE(matrix_of(plain).col(column) == expected) << dimension;
  }
  space.draw(off, {4, 9}, &q);
  const Matrix Q = matrix_of(q), g = matrix_of(plain).leftCols(2);
  EXPECT_LT(distance(matrix_of(off), g - Q * mean_product(Q, g)), 10 * kTolerance);
  EXPECT_FALSE(space.matching_stopped());
}

TEST(JoinedSpace, HasThePointsOfTwoSpacesOfOneKeyEach) {
  constexpr Index kM = 700;  // the seam lies inside a chunk
  const Executor executor(1);
  const auto draw = [&](Index rows, NormalLaw law, const Keys& keys, std::uint64_t dimension) {
    NormalSpace space(executor, rows, law, keys);
    Panel g(rows, 1, false);
    space.draw(g, {dimension}, nullptr);
    return matrix_of(g);
  };
  for (const std::uint64_t dimension : {std::uint64_t{2}, std::uint64_t{kSobolDimensions}}) {
    const Matrix joined = draw(2 * kM, NormalLaw::kExact, {8, 9}, dimension);
    EXPECT_TRUE(joined.topRows(kM) == draw(kM, NormalLaw::kExact, {8}, dimension));
    EXPECT_TRUE(joined.bottomRows(kM) == draw(kM, NormalLaw::kExact, {9}, dimension));

    // Matching shifts and scales the joined column as a whole: undone in each half, the halves are
    // those of the spaces.
    const Matrix matched = draw(2 * kM, NormalLaw::kMatched, {8, 9}, dimension);
    EXPECT_NEAR(matched.mean(), 0, kTolerance);
    EXPECT_NEAR(matched.squaredNorm() / (2 * kM), 1, kTolerance);
    for (const bool second : {false, true}) {
      Matrix half = second ? matched.bottomRows(kM) : matched.topRows(kM);
      EXPECT_GT(std::abs(half.mean()), 1e-9) << "not matched on its own";
      half.array() -= half.mean();
      EXPECT_LT(distance(half / std::sqrt(half.squaredNorm() / kM),
                         draw(kM, NormalLaw::kMatched, {second ? 9u : 8u}, dimension)),
                10 * kTolerance);
    }
  }
}

TEST(JoinedSpace, StopsMatchingWhereItsPartsWould) {
  const Executor executor(1);
  for (const std::uint64_t count : {49u, 50u}) {
    NormalSpace one(executor, 100, NormalLaw::kMatched, {5}),
        joined(executor, 200, NormalLaw::kMatched, {5, 6});
    Panel a(100, 60, false), b(200, 60, false);
    one.draw(a, range(0, count), nullptr);
    joined.draw(b, range(0, count), nullptr);
    EXPECT_EQ(one.matching_stopped(), count == 50);
    EXPECT_EQ(joined.matching_stopped(), count == 50);
  }
}

TEST(NormalSpaceColumns, DoNotDependOnTheNumberOfThreads) {
  constexpr Index kM = 70'000;
  const auto draw = [&](int threads) {
    const Executor executor(threads);
    NormalSpace space(executor, kM, NormalLaw::kMatched, {5});
    Panel g(kM, 8, false);
    space.draw(g, range(0, 3), nullptr);
    space.draw(g, range(3, 5), nullptr);
    return matrix_of(g);
  };
  EXPECT_TRUE(draw(1) == draw(2));
}

}  // namespace
}  // namespace tplimit::engines
