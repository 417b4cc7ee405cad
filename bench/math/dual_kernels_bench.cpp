// Closed forms of second moments, entry by entry over a Gram matrix: K = E f(u) f(v) and K' = E
// f'(u) f'(v).

#include <cmath>
#include <numbers>

#include "bench/bench.hpp"
#include "tplimit/math/dual_kernels.hpp"

namespace tplimit::bench {
namespace {

constexpr std::size_t kCount = 4096;

void dual(benchmark::State& state, const DualFunction& f, double (*reference)(double c)) {
  // Unit variances; correlations over (-1, 1).
  const std::vector<double> one(1, 1.0);
  std::vector<double> c(kCount), K(kCount), K_prime(kCount);
  for (std::size_t i = 0; i < kCount; ++i) c[i] = -1 + (2 * static_cast<double>(i) + 1) / kCount;
  bool ok = dual_kernel(f, one, one, c, K, K_prime).ok();
  for (std::size_t i = 0; i < kCount; ++i) ok = ok && std::abs(K[i] - reference(c[i])) <= 1e-14;
  if (!ok) return state.SkipWithError("wrong answer");
  for (auto _ : state) {
    benchmark::DoNotOptimize(dual_kernel(f, one, one, c, K, K_prime));
    benchmark::ClobberMemory();
  }
  set_rate(state, "items", kCount);
}

constexpr double kPi = std::numbers::pi;

const bool registered = [] {
  benchmark::RegisterBenchmark(
      "BM_DualKernel/relu/tplimit", dual, DualFunction(TwoSlope{}),
      [](double c) { return (std::sqrt(1 - c * c) + c * (kPi - std::acos(c))) / (2 * kPi); });
  benchmark::RegisterBenchmark("BM_DualKernel/erf/tplimit", dual, DualFunction(ScaledErf{}),
                               [](double c) { return 2 / kPi * std::asin(2 * c / 3); });
  return true;
}();

}  // namespace
}  // namespace tplimit::bench
