// What the machine can do, in the same run as everything else: OpenBLAS' matrix product in the
// cache, and reading main memory.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <type_traits>

#include <cblas.h>

#include "bench/bench.hpp"
#include "math/simd.hpp"

namespace tplimit::bench {
namespace {

constexpr int kSize = 1024;

template <class T>
void gemm(const T* a, const T* b, T* c) {
  if constexpr (std::is_same_v<T, double>)
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, kSize, kSize, kSize, 1, a, kSize, b,
                kSize, 0, c, kSize);
  else
    cblas_sgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, kSize, kSize, kSize, 1, a, kSize, b,
                kSize, 0, c, kSize);
}

template <class T>
void peak_gemm(benchmark::State& state, int threads) {
  const T *a = main_memory_operands<T>().data(), *b = a + kSize * kSize;
  std::vector<T> c(std::size_t{kSize} * kSize);
  openblas_set_num_threads(threads);
  gemm(a, b, c.data());
  for (int j = 0; j < kSize; j += 97) {
    const int i = (j * 31) % kSize;
    double sum = 0;
    for (int k = 0; k < kSize; ++k) sum += double{a[i + k * kSize]} * double{b[k + j * kSize]};
    if (!(std::abs(double{c[static_cast<std::size_t>(i + j * kSize)]} - sum) <=
          (std::is_same_v<T, double> ? 1e-11 : 1e-2)))
      return state.SkipWithError("wrong answer");
  }
  for (auto _ : state) {
    gemm(a, b, c.data());
    benchmark::ClobberMemory();
  }
  openblas_set_num_threads(1);
  set_rate(state, "flops", 2.0 * kSize * kSize * kSize);
}

/// Sum of kMainMemory bytes.
void peak_read(benchmark::State& state) {
  const std::span<const double> x = main_memory_operands<double>();
  const auto sum = [&] {
    simd::Pack parts[8] = {};
    for (std::size_t i = 0; i < x.size(); i += 8 * simd::kLanes)
      for (std::size_t k = 0; k < 8; ++k) parts[k] += simd::load(x.data() + i + k * simd::kLanes);
    double total = 0;
    for (const simd::Pack& part : parts)
      for (std::size_t lane = 0; lane < simd::kLanes; ++lane) total += part[lane];
    return total;
  };
  double expected = 0;
  for (const double value : x) expected += value;
  if (!(std::abs(sum() - expected) <= 1e-6)) return state.SkipWithError("wrong answer");
  for (auto _ : state) benchmark::DoNotOptimize(sum());
  set_rate(state, "bytes", static_cast<double>(kMainMemory));
}

const bool registered = [] {
  openblas_set_num_threads(1);
  benchmark::RegisterBenchmark("BM_Peak/dgemm/threads:1", peak_gemm<double>, 1);
  benchmark::RegisterBenchmark("BM_Peak/sgemm/threads:1", peak_gemm<float>, 1);
  const int all = static_cast<int>(std::thread::hardware_concurrency());
  if (all > 1) {
    benchmark::RegisterBenchmark("BM_Peak/dgemm/threads:all", peak_gemm<double>, all)
        ->UseRealTime();
    benchmark::RegisterBenchmark("BM_Peak/sgemm/threads:all", peak_gemm<float>, all)->UseRealTime();
  }
  benchmark::RegisterBenchmark("BM_Peak/read", peak_read);
  return true;
}();

}  // namespace
}  // namespace tplimit::bench
