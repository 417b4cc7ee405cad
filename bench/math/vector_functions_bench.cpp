// Coordinatewise maps beside SLEEF's vector functions and the C++ library, for arrays that stay in
// the first-level cache.

#include <cmath>

#include <fmt/format.h>
#include <sleef.h>

#include "bench/bench.hpp"
#include "math/simd.hpp"
#include "tplimit/math/vector_functions.hpp"

namespace tplimit::bench {
namespace {

using simd::Pack;

// SLEEF's names say how many lanes; their errors are 1.0 and 1.5 units in the last place.
#if defined(__AVX512F__)
#define TPLIMIT_SLEEF(name, bound) Sleef_##name##d8_##bound##avx512f
#elif defined(__AVX2__)
#define TPLIMIT_SLEEF(name, bound) Sleef_##name##d4_##bound##avx2
#else
#define TPLIMIT_SLEEF(name, bound) Sleef_##name##d2_##bound
#endif

constexpr double kRootHalf = 0.7071067811865475244;

Pack sleef_tanh(Pack x) { return TPLIMIT_SLEEF(tanh, u10)(x); }
Pack sleef_erf(Pack x) { return TPLIMIT_SLEEF(erf, u10)(x); }
Pack sleef_exp(Pack x) { return TPLIMIT_SLEEF(exp, u10)(x); }
Pack sleef_gelu(Pack x) {
  return 0.5 * x * TPLIMIT_SLEEF(erfc, u15)(-kRootHalf * x);
}  // no cancellation for x < 0

double std_gelu(double x) { return 0.5 * x * std::erfc(-kRootHalf * x); }

using Map = void (*)(const double* x, double* out, std::size_t n);

template <double (*f)(double)>
void by_std(const double* x, double* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] = f(x[i]);
}

void elementwise(benchmark::State& state, Map map, double (*reference)(double)) {
  constexpr std::size_t kCount = 1024;
  std::vector<double> x(kCount), out(kCount);
  plain_normals(1, 0, x);
  map(x.data(), out.data(), kCount);
  // std_gelu itself is off by some units where it is tiny.
  for (std::size_t i = 0; i < kCount; ++i)
    if (!(std::abs(out[i] - reference(x[i])) <= 1e-14 * std::abs(reference(x[i]))))
      return state.SkipWithError("wrong answer");
  for (auto _ : state) {
    map(x.data(), out.data(), kCount);
    benchmark::DoNotOptimize(out.data());
    benchmark::ClobberMemory();
  }
  set_rate(state, "items", static_cast<double>(kCount));
}

template <double (*reference)(double), Pack (*sleef)(Pack)>
void register_function(const char* name, Map own) {
  benchmark::RegisterBenchmark(fmt::format("BM_Map/{}/tplimit", name).c_str(), elementwise, own,
                               reference);
  benchmark::RegisterBenchmark(fmt::format("BM_Map/{}/sleef", name).c_str(), elementwise,
                               &simd::for_each_pack<sleef>, reference);
  benchmark::RegisterBenchmark(fmt::format("BM_Map/{}/std", name).c_str(), elementwise,
                               &by_std<reference>, reference);
}

double std_tanh(double x) { return std::tanh(x); }
double std_erf(double x) { return std::erf(x); }
double std_exp(double x) { return std::exp(x); }

const bool registered = [] {
  register_function<std_tanh, sleef_tanh>("tanh", vector_tanh);
  register_function<std_erf, sleef_erf>("erf", vector_erf);
  register_function<std_exp, sleef_exp>("exp", vector_exp);
  register_function<std_gelu, sleef_gelu>("gelu", vector_gelu);
  return true;
}();

}  // namespace
}  // namespace tplimit::bench
