#pragma once

#include <string>
#include <vector>

#include "cli/commands.hpp"

/// The manual and the completions, made of the description of the commands that the command line
/// is parsed with.
namespace tplimit::cli {

/// Prints a page of the manual, man(7), or writes all into a folder: "tplimit.1", "tplimit-run.1".
int manual(const Options& options);
/// Prints a script that completes commands, options, their values and files in a shell.
int completions(const Options& options);
/// Those of `completions`.
std::vector<std::string> shells();

}  // namespace tplimit::cli
