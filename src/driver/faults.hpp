#pragma once

#include <string>

#include "tplimit/support/diagnostic.hpp"

/// What several parts of the driver refuse.
namespace tplimit::faults {

/// E2701: an option has no such value here.
[[nodiscard]] Diagnostic option_out_of_range(std::string message, std::string help);

/// E4202; `what`: "the run needs"; `where`: behind "of memory", "" or " on each rank".
[[nodiscard]] Diagnostic not_enough_memory(const std::string& what, double bytes,
                                           const std::string& where, double most, std::string help);

}  // namespace tplimit::faults
