#include "driver/faults.hpp"

#include <fmt/format.h>

#include "tplimit/parallel/process_memory.hpp"

namespace tplimit::faults {

Diagnostic option_out_of_range(std::string message, std::string help) {
  return Diagnostic::error("E2701", std::move(message)).with_help(std::move(help));
}

Diagnostic not_enough_memory(const std::string& what, double bytes, const std::string& where,
                             double most, std::string help) {
  return Diagnostic::error("E4202", fmt::format("{} up to {} of memory{}, but {} may be used", what,
                                                bytes_text(bytes), where, bytes_text(most)))
      .with_help(std::move(help));
}

}  // namespace tplimit::faults
