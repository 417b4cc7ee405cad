#pragma once

#include "cli/commands.hpp"

namespace tplimit::cli {

/// Serves an editor over standard input and output until it asks to exit, or hangs up.
int serve_editor(const Options& options);

}  // namespace tplimit::cli
