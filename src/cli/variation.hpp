#pragma once

#include <string>
#include <vector>

#include "cli/commands.hpp"

/// Commands that evaluate a program for several values of its constants.
namespace tplimit::cli {

/// The options with these values of the constants that are varied.
Options with_constants(const Options& options, const std::vector<std::string>& values);
/// "" or why the constants cannot be varied.
std::string fault_of_variation(const Options& options);

}  // namespace tplimit::cli
