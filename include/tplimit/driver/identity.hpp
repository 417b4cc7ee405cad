#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tplimit/driver/driver.hpp"
#include "tplimit/report/sweep.hpp"

namespace tplimit {

/// What an evaluation is asked for, in the words of the command line.
struct Request {
  std::string command;
  CompareOptions options;         ///< of `simulate`: options.simulate alone
  std::string limit{};            ///< of --limit; empty: none
  std::vector<SweepAxis> over{};  ///< of --over, --in
  int order = 1;                  ///< of extrapolate
};

/// All that determines numbers, names and values: of checkpoints and pages.
std::vector<std::pair<std::string, std::string>> identity(const Module& module,
                                                          const Request& request);

}  // namespace tplimit
