#pragma once

#include <filesystem>
#include <vector>

#include "tplimit/driver/driver.hpp"

namespace tplimit {

/// Networks that other code has trained, as `simulate` would return them: reports in the order of
/// those of `networks`, without runs where no file has that report.  `networks` is what
/// `comparable` makes of `module`; what it replaces, cov(f) for f, is computed from values of f
/// where the mean of f is 0.
///
/// Files, each with one width or several; seeds of one width may stand in several files:
/// - .json of `simulate --out`;
/// - .npz: `width`, a number, and per report an array [seeds, ..];
/// - .csv: columns width, seed, and per report its name, or name[i], name[i,j], .. for its entries.
///
/// Errors: E5101 and others of data files; E5301 not a file of measurements; E5302 a name that is
/// no report, or a report that some files have and others lack; E5303 a wrong shape; E5304 one seed
/// only, or a seed twice; E5305 a report that needs another transformation; E5105 not finite.
Result<std::vector<SimulationResult>> read_measurements(
    const std::vector<std::filesystem::path>& files, const Module& module, const Module& networks);

}  // namespace tplimit
