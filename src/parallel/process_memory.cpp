#include "tplimit/parallel/process_memory.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <span>

#include <fmt/format.h>

namespace tplimit {

double peak_memory() {
  // Not ru_maxrss: a process inherits it from the one that started it.
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (double kilobytes = 0; word == "VmHWM:" && status >> kilobytes) return kilobytes * 1024;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

double current_memory(const Communicator& ranks) {
  long pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  ranks.broadcast(std::as_writable_bytes(std::span(&resident, 1)), 0);
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

double memory_limit(double asked, const Communicator& ranks) {
  return asked > 0 ? asked : 0.8 * ranks.memory();
}

std::string bytes_text(double bytes) {
  return bytes >= 1e9 ? fmt::format("{:.1f} GB", bytes / 1e9)
                      : fmt::format("{:.0f} MB", std::max(1.0, bytes / 1e6));
}

}  // namespace tplimit
