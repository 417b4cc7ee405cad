// The three products of a dense network beside OpenBLAS, one thread: W x, W' d, and a step of
// training, which is an update W += c d x' / n and both products.  Entries of n = 4096 come from
// main memory.

#include <cmath>
#include <type_traits>
#include <utility>

#include <cblas.h>
#include <fmt/format.h>

#include "bench/bench.hpp"
#include "engines/dense_matrix.hpp"
#include "engines/tall.hpp"

namespace tplimit::bench {
namespace {

using namespace engines;

enum class Work { kProduct, kTransposed, kStep };

double flops(Work work, std::int64_t n, std::int64_t P) {
  return (work == Work::kStep ? 6.0 : 2.0) * static_cast<double>(n * n * P);
}

Block block_of(const Matrix& x) {
  Block b(x.rows(), x.cols());
  for (std::int64_t c = 0; c < b.chunks(); ++c)
    all_columns(b, c) = x.middleRows(c * kChunkRows, b.chunk_rows(c));
  return b;
}
Matrix matrix_of(const Block& b) {
  Matrix x(b.rows(), b.columns());
  for (std::int64_t c = 0; c < b.chunks(); ++c)
    x.middleRows(c * kChunkRows, b.chunk_rows(c)) = all_columns(b, c);
  return x;
}

template <class T>
class Network {
 public:
  Network(std::int64_t n, std::int64_t P)
      : matrix_(executor_, n, 1),
        x_(Matrix::Random(n, P)),
        d_(Matrix::Random(n, P)),
        xb_(block_of(x_)),
        db_(block_of(d_)),
        y_(n, P),
        w_(matrix_.initial()) {}

  void run(Work work, double c = 1e-9) {
    if (work == Work::kStep) w_ = matrix_.update(std::move(w_), {{c, &db_, &xb_, 0, 0, 0, 0}});
    if (work != Work::kTransposed) matrix_.apply(w_, false, xb_, 0, 0, y_);
    if (work != Work::kProduct) matrix_.apply(w_, true, db_, 0, 0, y_);
  }
  /// W' d against some columns of W, W x against W' d, and what an update does to W x.
  bool right() {
    const std::int64_t n = x_.rows(), P = x_.cols(), every = n / P;
    const double tolerance = std::is_same_v<T, double> ? 1e-12 : 1e-4;
    Matrix units = Matrix::Zero(n, P);
    for (std::int64_t j = 0; j < P; ++j) units(j * every, j) = 1;
    const Matrix columns = product(false, units), wx = product(false, x_), wd = product(true, d_);
    double error = (d_.transpose() * wx - wd.transpose() * x_).cwiseAbs().maxCoeff() /
                   std::sqrt(static_cast<double>(n));
    for (std::int64_t j = 0; j < P; ++j)
      error = std::max(error,
                       (wd.row(j * every) - columns.col(j).transpose() * d_).cwiseAbs().maxCoeff());
    w_ = matrix_.update(std::move(w_), {{1, &db_, &xb_, 0, 0, 0, 0}});
    const Matrix change = d_ * (x_.transpose() * x_) / static_cast<double>(n);
    error = std::max(error, (product(false, x_) - wx - change).cwiseAbs().maxCoeff());
    return error <= tolerance;
  }

 private:
  Matrix product(bool transposed, const Matrix& x) {
    Block y(x.rows(), x.cols());
    matrix_.apply(w_, transposed, block_of(x), 0, 0, y);
    return matrix_of(y);
  }

  Executor executor_{1};
  DenseMatrix<T> matrix_;
  Matrix x_, d_;
  Block xb_, db_, y_;
  MatrixVersion w_;
};

template <class T>
void own(benchmark::State& state, Work work, std::int64_t n, std::int64_t P) {
  Network<T> network(n, P);
  if (!network.right()) return state.SkipWithError("wrong answer");
  for (auto _ : state) network.run(work);
  set_rate(state, "flops", flops(work, n, P));
}

/// c = a op(b) or op(a) b + beta c, all n-tall operands column-major.
template <class T>
void gemm(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, std::int64_t rows, std::int64_t columns,
          std::int64_t inner, T alpha, const T* a, const T* b, T beta, T* c) {
  const auto m = static_cast<blasint>(rows), n = static_cast<blasint>(columns),
             k = static_cast<blasint>(inner);
  const blasint lda = op_a == CblasTrans ? k : m, ldb = op_b == CblasTrans ? n : k;
  if constexpr (std::is_same_v<T, double>)
    cblas_dgemm(CblasColMajor, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, m);
  else
    cblas_sgemm(CblasColMajor, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, m);
}

template <class T>
void openblas(benchmark::State& state, Work work, std::int64_t n, std::int64_t P) {
  const std::span<const T> numbers = main_memory_operands<T>();
  const std::size_t size = static_cast<std::size_t>(n * n), tall = static_cast<std::size_t>(n * P);
  std::vector<T> w(numbers.begin(), numbers.begin() + static_cast<std::ptrdiff_t>(size)), y(tall);
  const T *x = numbers.data(), *d = x + tall;
  for (auto _ : state) {
    if (work == Work::kStep) gemm<T>(CblasNoTrans, CblasTrans, n, n, P, T(1e-9), d, x, 1, w.data());
    if (work != Work::kTransposed)
      gemm<T>(CblasNoTrans, CblasNoTrans, n, P, n, 1, w.data(), x, 0, y.data());
    if (work != Work::kProduct)
      gemm<T>(CblasTrans, CblasNoTrans, n, P, n, 1, w.data(), d, 0, y.data());
    benchmark::ClobberMemory();
  }
  set_rate(state, "flops", flops(work, n, P));
}

template <class T>
void register_all(const char* type) {
  for (const auto& [name, work] : {std::pair{"DenseProduct", Work::kProduct},
                                   {"DenseTransposed", Work::kTransposed},
                                   {"DenseStep", Work::kStep}})
    for (const std::int64_t n : {1024, 4096})
      for (const std::int64_t P : {8, 32}) {
        const std::string title = fmt::format("BM_{}/{}/n:{}/P:{}", name, type, n, P);
        benchmark::RegisterBenchmark((title + "/tplimit").c_str(), own<T>, work, n, P)
            ->Unit(benchmark::kMillisecond);
        benchmark::RegisterBenchmark((title + "/openblas").c_str(), openblas<T>, work, n, P)
            ->Unit(benchmark::kMillisecond);
      }
}

const bool registered = [] {
  register_all<double>("double");
  register_all<float>("float");
  return true;
}();

}  // namespace
}  // namespace tplimit::bench
