// The three products of a dense network (W x, W' d, W += c d x'/n) by the engine and by a plain dgemm, ms on one thread, and what a network
// costs beside them.  Answers are compared first.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include "engines/dense_matrix.hpp"
#include "engines/tall.hpp"

#ifdef TPLIMIT_BENCH_BLAS
extern "C" void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*, const double*, const int*, const double*, const int*, const double*, double*,
                       const int*);
extern "C" void openblas_set_num_threads(int);
#endif

namespace {

using namespace tplimit::engines;
using Eigen::Index;

/// c = op(a) op(b) + beta c; 'T' transposes, beta is 0 or 1.
void reference(char op_a, char op_b, const Matrix& a, const Matrix& b, double beta, Matrix& c) {
#ifdef TPLIMIT_BENCH_BLAS
  const auto size = [](Index x) { return static_cast<int>(x); };
  const int m = size(c.rows()), n = size(c.cols()), k = size(op_a == 'T' ? a.rows() : a.cols()), lda = size(a.rows()), ldb = size(b.rows());
  const double one = 1;
  dgemm_(&op_a, &op_b, &m, &n, &k, &one, a.data(), &lda, b.data(), &ldb, &beta, c.data(), &m);
#else
  if (beta == 0) c.setZero();
  if (op_a == 'T') c.noalias() += a.transpose() * b;
  else if (op_b == 'T') c.noalias() += a * b.transpose();
  else c.noalias() += a * b;
#endif
}

double seconds(auto&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Block to_block(const Matrix& x) {
  Block b(x.rows(), x.cols());
  for (std::int64_t c = 0; c < b.chunks(); ++c) all_columns(b, c) = x.middleRows(c * kChunkRows, b.chunk_rows(c));
  return b;
}
Matrix to_matrix(const Block& b) {
  Matrix x(b.rows(), b.columns());
  for (std::int64_t c = 0; c < b.chunks(); ++c) x.middleRows(c * kChunkRows, b.chunk_rows(c)) = all_columns(b, c);
  return x;
}

/// Seconds, the smallest of all turns: the machine's other work only ever adds time.
struct Times {
  double first = std::numeric_limits<double>::infinity();                         ///< drawing the entries
  double product = first, transposed = first, update = first, fused = first;      ///< fused: an update and W x
};
using Task = std::pair<double*, std::function<void()>>;

/// The engine's times; `others` take turns with it, so that all see the same machine.  Ends the program where an answer is wrong.
template <class T>
Times engine_times(const Executor& executor, int turns, const Matrix& x, const Matrix& d, double tolerance, const std::vector<Task>& others) {
  const Index n = x.rows(), p = x.cols();
  DenseMatrix<T> matrix(executor, n, 1);
  Times t;
  MatrixVersion w;
  t.first = seconds([&] { w = matrix.initial(); });
  const Block xb = to_block(x), db = to_block(d);
  Block y(n, p);
  if (n <= 1024) {
    Block unit(n, n), columns(n, n);
    for (std::int64_t c = 0; c < unit.chunks(); ++c) all_columns(unit, c) = Matrix::Identity(n, n).middleRows(c * kChunkRows, unit.chunk_rows(c));
    matrix.apply(w, false, unit, 0, 0, columns);
    const Matrix whole = to_matrix(columns);
    const auto error = [&](bool transposed) {
      matrix.apply(w, transposed, transposed ? db : xb, 0, 0, y);
      return (to_matrix(y) - (transposed ? Matrix(whole.transpose() * d) : Matrix(whole * x))).cwiseAbs().maxCoeff();
    };
    if (!(std::max(error(false), error(true)) < tolerance)) {
      std::puts("wrong answer");
      std::exit(EXIT_FAILURE);
    }
  }
  const auto keep = [](double& best, double s) { best = std::min(best, s); };
  for (int k = 0; k < turns; ++k) {
    keep(t.product, seconds([&] { matrix.apply(w, false, xb, 0, 0, y); }));
    keep(t.transposed, seconds([&] { matrix.apply(w, true, db, 0, 0, y); }));
    w = matrix.update(std::move(w), {{1e-9, &db, &xb, 0, 0, 0, 0}});
    keep(t.fused, seconds([&] { matrix.apply(w, false, xb, 0, 0, y); }));
    w = matrix.update(std::move(w), {{1e-9, &db, &xb, 0, 0, 0, 0}});
    keep(t.update, seconds([&] { w = matrix.update(std::move(w), {{1e-9, &db, &xb, 0, 0, 0, 0}}); }));  // carries out the one before
    matrix.apply(w, false, xb, 0, 0, y);
    for (const auto& [best, f] : others) keep(*best, seconds(f));
  }
  return t;
}

}  // namespace

int main(int argc, char** argv) {
#ifdef TPLIMIT_BENCH_BLAS
  openblas_set_num_threads(1);
  const char* name = "BLAS";
#else
  const char* name = "Eigen";
#endif
  std::vector<Index> widths;
  for (int k = 1; k < argc; ++k) widths.push_back(std::atol(argv[k]));
  if (widths.empty()) widths = {1024, 2048, 4096};
  const Executor executor(1);
  std::printf("ms, one thread: %s / engine in double / engine in single precision; step: both products and the update\n", name);
  std::printf("%5s %3s | %-24s | %-24s | %-24s | %-40s | %s\n", "n", "P", "W x", "W' d", "update", "step (relative)", "normals");
  for (const Index n : widths)
    for (const Index p : {4, 8, 16, 32}) {
      const Matrix x = Matrix::Random(n, p), d = Matrix::Random(n, p);
      Matrix w = Matrix::Random(n, n), y(n, p);
      double product = std::numeric_limits<double>::infinity(), transposed = product, update = product;
      const int turns = std::max(5, static_cast<int>(1e8 / static_cast<double>(n * n)));
      const Times two = engine_times<double>(executor, turns, x, d, 1e-12,
                                             {{&product, [&] { reference('N', 'N', w, x, 0, y); }},
                                              {&transposed, [&] { reference('T', 'N', w, d, 0, y); }},
                                              {&update, [&] { reference('N', 'T', d, x, 1, w); }}});
      const Times one = engine_times<float>(executor, turns, x, d, 1e-5, {});
      const double whole = product + transposed + update;
      const auto step = [&](const Times& t) { return t.fused + t.transposed; };
      const auto three = [](double a, double b, double c) { std::printf(" | %8.2f %7.2f %7.2f", a * 1e3, b * 1e3, c * 1e3); };
      std::printf("%5ld %3ld", static_cast<long>(n), static_cast<long>(p));
      three(product, two.product, one.product);
      three(transposed, two.transposed, one.transposed);
      three(update, two.update, one.update);
      three(whole, step(two), step(one));
      std::printf(" (%.2f, %.2f)    | %.1f %.1f\n", step(two) / whole, step(one) / whole, two.first * 1e3, one.first * 1e3);
      std::fflush(stdout);
    }
}
