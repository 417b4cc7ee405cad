#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "tplimit/math/normals.hpp"

/// Shared by all benchmarks.  Rates are per second of CPU time where one thread works, so that
/// other work on the machine counts little.
namespace tplimit::bench {

/// Bytes of the operands that are to come from main memory: four times a last-level cache of 32
/// MiB.
inline constexpr std::size_t kMainMemory = std::size_t{1} << 27;

/// Standard normals, made once, kMainMemory bytes.
template <class T>
std::span<const T> main_memory_operands() {
  static const std::vector<T> numbers = [] {
    std::vector<double> normals(kMainMemory / sizeof(T));
    plain_normals(1, 0, normals);
    return std::vector<T>(normals.begin(), normals.end());
  }();
  return numbers;
}

/// `work` was done in every iteration, in units of `name` ("flops", "bytes"); the JSON then holds
/// it per second.
inline void set_rate(benchmark::State& state, const std::string& name, double work) {
  state.counters[name] = benchmark::Counter(work, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace tplimit::bench
