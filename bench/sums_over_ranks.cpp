#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include <fmt/format.h>

#include "parallel/session.hpp"

/// Seconds per sum over the ranks of a job, by size: mpirun -n 2 sums_over_ranks.  Least of 5
/// repetitions.
int main(int argc, char** argv) {
  tplimit::Session session(&argc, &argv);
  const tplimit::Communicator& ranks = session.ranks();
  for (const std::size_t count : {1u, 100u, 1'000u, 10'000u, 100'000u, 1'000'000u}) {
    std::vector<double> values(count, 0.0);
    const int repeats = count < 50'000 ? 1000 : 50;
    double least = 1e9;
    for (int k = 0; k < 5; ++k) {
      ranks.sum(values);  // all begin together
      const auto start = std::chrono::steady_clock::now();
      for (int r = 0; r < repeats; ++r) ranks.sum(values);
      least = std::min(
          least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
                     repeats);
    }
    fmt::print("{:>9} bytes  {:>10.2f} us  {:>6.2f} GB/s\n", 8 * count, 1e6 * least,
               8e-9 * static_cast<double>(count) / least);
  }
  return session.finish(0);
}
