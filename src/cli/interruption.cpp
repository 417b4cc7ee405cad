#include "cli/interruption.hpp"

#include <csignal>

namespace tplimit::cli {
namespace {

std::atomic<bool> stop = false;
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may set it");

}  // namespace

const std::atomic<bool>& stop_on_signals() {
  // Once: the second signal ends the process.
  [[maybe_unused]] static const bool installed = [] {
    struct sigaction action = {};
    action.sa_handler = [](int) { stop = true; };
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
    for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
    return true;
  }();
  return stop;
}

}  // namespace tplimit::cli
