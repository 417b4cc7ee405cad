#pragma once

#include <cstdint>
#include <vector>

#include "tplimit/driver/driver.hpp"

namespace tplimit {

/// Networks of several widths, each by its own program.  Ranks wait for each other only at the end.
Result<std::vector<SimulationResult>> run_networks(const Module& module,
                                                   const SimulateOptions& options,
                                                   const std::vector<std::int64_t>& widths,
                                                   const std::vector<ir::Program>& programs);

}  // namespace tplimit
