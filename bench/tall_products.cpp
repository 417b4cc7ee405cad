// Products of tall, narrow panels: own kernels beside Eigen's, GFLOP/s of one core.  The answers are compared first.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include <Eigen/Core>

#include "tplimit/math/tall_products.hpp"

namespace {

using Eigen::MatrixXd;
constexpr Eigen::Index kRows = 1024, kChunks = 16;

/// Best of seven: the machine's other work only ever adds time.
template <class F>
double gflops(double flops, F&& f) {
  double best = std::numeric_limits<double>::infinity();
  const int repetitions = static_cast<int>(2e8 / (flops * kChunks)) + 1;
  for (int k = 0; k < 7; ++k) {
    const auto start = std::chrono::steady_clock::now();
    for (int r = 0; r < repetitions; ++r)
      for (Eigen::Index c = 0; c < kChunks; ++c) f(c);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / (repetitions * static_cast<double>(kChunks)));
  }
  return flops / best * 1e-9;
}

}  // namespace

int main() {
  std::printf("%6s %4s | %10s %8s | %10s %8s\n", "rank", "P", "<Q,x> own", "Eigen", "Q a own", "Eigen");
  for (const Eigen::Index m : {8, 40, 320})
    for (const Eigen::Index n : {4, 8, 32}) {
      const MatrixXd q = MatrixXd::Random(kRows, m * kChunks), x = MatrixXd::Random(kRows, n * kChunks), w = MatrixXd::Random(m, n);
      MatrixXd a = MatrixXd::Zero(m, n), y = MatrixXd::Zero(kRows, n * kChunks);
      const auto inner = [&](Eigen::Index c) { tplimit::add_inner_products(kRows, q.data() + c * kRows * m, kRows, m, x.data() + c * kRows * n, kRows, n, a.data(), m); };
      const auto inner_eigen = [&](Eigen::Index c) { a.noalias() += q.middleCols(c * m, m).transpose() * x.middleCols(c * n, n); };
      const auto product = [&](Eigen::Index c) { tplimit::add_product(kRows, q.data() + c * kRows * m, kRows, m, w.data(), m, n, y.data() + c * kRows * n, kRows); };
      const auto product_eigen = [&](Eigen::Index c) { y.middleCols(c * n, n).noalias() += q.middleCols(c * m, m) * w; };
      inner(0);
      product(0);
      if (!a.isApprox(q.leftCols(m).transpose() * x.leftCols(n), 1e-12) || !y.leftCols(n).isApprox(q.leftCols(m) * w, 1e-12)) {
        std::puts("wrong answer");
        return EXIT_FAILURE;
      }
      const double flops = 2.0 * kRows * static_cast<double>(m * n);
      std::printf("%6ld %4ld | %10.1f %8.1f | %10.1f %8.1f\n", static_cast<long>(m), static_cast<long>(n), gflops(flops, inner), gflops(flops, inner_eigen),
                  gflops(flops, product), gflops(flops, product_eigen));
    }
}
