#pragma once

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/run.hpp"
#include "tplimit/report/comparison.hpp"

namespace tplimit::test {

/// Limits that are conditional on random outputs: their mean over draws is the mean over networks.
inline void expect_draws_agree_with_networks(const std::string& program, EvaluateOptions options,
                                             int draws, std::int64_t width, int seeds) {
  const Module module = parsed(program);
  std::vector<LimitResult> all;
  for (int d = 0; d < draws; ++d) {
    options.draw = static_cast<std::uint64_t>(d);
    all.push_back(limit_of(module, options));
  }
  const LimitResult mean = average_draws(std::move(all));
  const SimulationResult found = networks_of(module, width, seeds, Matrices::kAuto);
  for (std::size_t r = 0; r < mean.reports.size(); ++r)
    for (std::size_t k = 0; k < mean.reports[r].value.size(); ++k)
      EXPECT_NEAR(mean.reports[r].value[k], found.reports[r].value[k],
                  4.5 * std::hypot(mean.reports[r].error[k], found.reports[r].error[k]) +
                      4.0 / static_cast<double>(width))
          << r << " " << k;
}

}  // namespace tplimit::test
