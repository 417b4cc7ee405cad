#pragma once

#include <optional>
#include <vector>

#include "tplimit/report/convergence.hpp"
#include "tplimit/report/results.hpp"

namespace tplimit {

/// A limit, networks of several widths, and for each report whether they belong together.
struct Comparison {
  LimitResult limit;
  std::vector<SimulationResult> networks;  ///< one per width, ascending
  std::vector<std::optional<Convergence>>
      reports;  ///< one per report of the limit; none for draws, and without runs
  Verdict verdict = Verdict::kInconclusive;  ///< over all reports
  bool show_corrections = false;             ///< in text and JSON: the Corrections of every entry
};

/// Sets networks beside the limit of the same program.  Eigenvalues that are not resolved decide no
/// verdict. Needs: different widths, at least 2 seeds each, at least 2 randomisations. Errors:
/// InternalError where `Needs` is broken.  Cost: that of assess_convergence per report.
Comparison compare(LimitResult limit, std::vector<SimulationResult> networks);

/// The mean over draws of the random scalars, with `spread` their standard deviation in each
/// report.
///
/// Errors are averages of the draws' own: the draws share their particles, so nothing is gained by
/// averaging.  Expectations of all draws are kept, named by draw; draws of coordinates are those of
/// the first one. Needs: at least one; all of the same program.
LimitResult average_draws(std::vector<LimitResult> draws);

/// Of average_draws: the mean over draws as the value, its standard error as the error; reports
/// that differ between draws become `random`.
LimitResult mean_over_draws(LimitResult averaged);

}  // namespace tplimit
