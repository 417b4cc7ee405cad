#pragma once

#include <atomic>

namespace tplimit::cli {

/// From now on a first SIGINT or SIGTERM only sets what is returned; a second one ends the process.
const std::atomic<bool>& stop_on_signals();

}  // namespace tplimit::cli
