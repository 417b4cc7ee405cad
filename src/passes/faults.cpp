#include "tplimit/passes/faults.hpp"

#include <fmt/format.h>

namespace tplimit::faults {

Diagnostic explodes(const std::string& what, Span span, std::string size) {
  return Diagnostic::error("E3101", fmt::format("{} explodes", what))
      .at(span)
      .with_label(std::move(size))
      .with_help(
          "divide by a power of the width, or change the initial variance or the learning rate");
}

Diagnostic depends_on_dropped(const std::string& what, Span span, const std::string& size,
                              const std::string& iteration, std::string help) {
  return Diagnostic::error("E3102",
                           fmt::format("{} may depend on a term that this engine drops", what))
      .at(span)
      .with_label(fmt::format("a term dropped on the way may have size {} here{}", size, iteration))
      .with_help(std::move(help));
}

Diagnostic cannot_be_given(std::string message) {
  return Diagnostic::error("E3107", std::move(message))
      .with_help(
          "--given NAME=VALUE sets a random output such as v @ z / sqrt(n) at its first "
          "occurrence");
}

Diagnostic vanishes(const ir::Report& report, const std::string& size) {
  return Diagnostic::warning("W5301", fmt::format("report '{}' vanishes like {}: its limit is 0",
                                                  report.name, size))
      .at(report.span);
}

}  // namespace tplimit::faults
