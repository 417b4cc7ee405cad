// Generation of normals, beside the C++ library's.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "bench/bench.hpp"

namespace tplimit::bench {
namespace {

constexpr std::size_t kCount = 4096;
using Generator = void (*)(std::uint64_t first, std::span<double> out);

void plain(std::uint64_t first, std::span<double> out) { plain_normals(7, first, out); }
void sobol(std::uint64_t first, std::span<double> out) {
  sobol_normals(11, 7, first % (std::uint64_t{1} << 31), out);
}
void std_normals(std::uint64_t first, std::span<double> out) {
  std::mt19937_64 engine(first);
  std::normal_distribution<double> normal;
  for (double& x : out) x = normal(engine);
}

/// Each of the kCount intervals of equal probability holds one point.
bool stratified(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  for (std::size_t k = 0; k < kCount; ++k)
    if (!(normal_quantile(static_cast<double>(k) / kCount) <= x[k] &&
          x[k] <= normal_quantile(static_cast<double>(k + 1) / kCount)))
      return false;
  return true;
}

/// First four moments within 5 standard errors.
bool like_normals(const std::vector<double>& x) {
  const double expected[] = {0, 1, 0, 3}, variance[] = {1, 2, 15, 96};
  for (int p = 1; p <= 4; ++p) {
    const double sum = std::accumulate(x.begin(), x.end(), 0.0,
                                       [p](double s, double v) { return s + std::pow(v, p); });
    if (!(std::abs(sum / kCount - expected[p - 1]) <= 5 * std::sqrt(variance[p - 1] / kCount)))
      return false;
  }
  return true;
}

void generate(benchmark::State& state, Generator generator, bool quasi_random) {
  std::vector<double> x(kCount);
  generator(0, x);
  if (!like_normals(x) || (quasi_random && !stratified(x)))
    return state.SkipWithError("wrong answer");
  std::uint64_t first = 0;
  for (auto _ : state) {
    generator(first, x);
    first += kCount;
    benchmark::DoNotOptimize(x.data());
    benchmark::ClobberMemory();
  }
  set_rate(state, "items", kCount);
}

const bool registered = [] {
  benchmark::RegisterBenchmark("BM_Normals/plain/tplimit", generate, plain, false);
  benchmark::RegisterBenchmark("BM_Normals/sobol/tplimit", generate, sobol, true);
  benchmark::RegisterBenchmark("BM_Normals/plain/std", generate, std_normals, false);
  return true;
}();

}  // namespace
}  // namespace tplimit::bench
