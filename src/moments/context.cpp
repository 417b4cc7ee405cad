#include "moments/context.hpp"

#include <algorithm>
#include <cmath>

namespace tplimit::moments {

using namespace ir;

std::string not_a_covariance(const std::array<double, 3>& entry) {
  const auto [a, b, c] = entry;
  if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c))
    return "a covariance is infinite or not a number: values grow without bound";
  if (a < 0 || b < 0)
    return fmt::format("a covariance is not positive semidefinite: a variance is {:.3g}",
                       std::min(a, b));
  if (a > 0 && b > 0)
    return fmt::format(
        "a covariance is not positive semidefinite: a squared correlation is 1 + {:.2g}",
        c / a * (c / b) - 1);
  return fmt::format("a covariance is not positive semidefinite: {:.3g} with a constant", c);
}

bool RunContext::out_of_evaluations() {
  rough = rough || functions.evaluations() > budget.evaluations;
  return rough;
}

void RunContext::charge(double more) {
  executor.poll();
  operations += more;
  if (operations > budget.operations)
    throw Unknown{fmt::format("not decided within {:.0e} operations", budget.operations), {}};
}

/// Moves values by +-error.
void RunContext::disturb(Matrix& values, double error) {
  if (disturbance == 0) return;
  for (double& x : values.reshaped()) {
    std::uint64_t z = disturbance += 0x9e3779b97f4a7c15ULL;  // SplitMix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    x += ((z >> 40) & 1) != 0 ? error : -error;
  }
}

void RunContext::each_column(Eigen::Index rows, Eigen::Index columns,
                             const std::function<void(int)>& body) const {
  constexpr Eigen::Index kWorthThreads = 8192;
  if (rows * columns < kWorthThreads)
    for (int j = 0; j < static_cast<int>(columns); ++j) body(j);
  else
    executor.parallel(columns, [&](std::int64_t j) { body(static_cast<int>(j)); });
}

void RunContext::symmetrise(Matrix& x) const {
  constexpr int kTile = 64;  // both tiles fit the first-level cache
  const int size = static_cast<int>(x.rows()), tiles = (size + kTile - 1) / kTile;
  each_column(Eigen::Index{kTile} * size, tiles, [&](int q) {
    for (int p = 0; p <= q; ++p)
      for (int j = q * kTile; j < std::min(size, (q + 1) * kTile); ++j)
        for (int i = p * kTile; i < std::min({size, (p + 1) * kTile, j}); ++i)
          x(i, j) = x(j, i) = 0.5 * (x(i, j) + x(j, i));
  });
}

void RunContext::note(const MomentStatus& status) {
  if (rough) return;  // rough moments need be no covariances
  excess = std::max(excess, status.largest_excess);
  if (status.bad_index != kNoIndex) throw Unknown{not_a_covariance(status.bad_entry), {}};
  if (status.overflow) throw Unknown{"a moment overflows", {}};
}

}  // namespace tplimit::moments
