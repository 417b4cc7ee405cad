#include "driver/ratios.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "driver/error_budget.hpp"
#include "driver/limits.hpp"

namespace tplimit {
namespace {

bool differ(const ReportResult& a, const ReportResult& b) {
  if (a.value.size() != b.value.size() || a.method == Method::kSamples) return false;
  for (std::size_t k = 0; k < a.value.size(); ++k) {
    const auto error = [&](const ReportResult& r) { return r.error.empty() ? 0 : r.error[k]; };
    const double rounding = 1e-9 * std::max(std::abs(a.value[k]), std::abs(b.value[k]));
    if (std::abs(a.value[k] - b.value[k]) > 4 * std::hypot(error(a), error(b)) + rounding)
      return true;
  }
  return false;
}

}  // namespace

std::optional<Diagnostic> depends_on_ratios(const Module& module, const LimitResult& own,
                                            const EvaluateOptions& options) {
  if (!module.other_ratios) return std::nullopt;
  EvaluateOptions quick = options;
  quick.particles = std::min<std::int64_t>(options.particles.value_or(4096), 4096);
  quick.tolerance.reset();
  quick.checkpoint = nullptr;
  quick.progress = nullptr;
  quick.observe = nullptr;
  std::vector<std::string> names, ratios, fixed;
  for (std::size_t k = 0; k < module.free_widths.size(); ++k) {
    const std::string& name = module.free_widths[k].name;
    const std::string& first = module.program.width_name;
    names.push_back(name);
    ratios.push_back(fmt::format("{} = {} {}", name, k + 2, first));
    fixed.push_back(fmt::format("{} = {}", name, first));
  }
  const auto warning = [&](std::string message, std::string label) {
    return Diagnostic::warning("W5306", std::move(message))
        .at(module.free_widths[0].span)
        .with_label(std::move(label))
        .with_help(fmt::format("write the ratio, width {}, {}, or give it: --set {}=2",
                               module.program.width_name, ratios[0], names[0]));
  };
  const std::string here = fmt::format("the values are those of {}", fmt::join(fixed, ", "));
  Result<LeadingOrder> limit = limit_of(*module.other_ratios, quick);
  Result<LimitResult> other =
      limit ? within_tolerance(*limit, quick) : Result<LimitResult>(limit.errors());
  if (!other)
    return warning(fmt::format("whether the limit depends on '{}' was not found out",
                               fmt::join(names, "', '")),
                   here);
  std::vector<std::string> moved;
  for (const ReportResult& a : own.reports)
    for (const ReportResult& b : other->reports)
      if (a.name == b.name && differ(a, b)) moved.push_back("'" + a.name + "'");
  if (moved.empty()) return std::nullopt;
  return warning(
      fmt::format("the limit depends on the ratio of widths: {} {} at {}", fmt::join(moved, ", "),
                  moved.size() == 1 ? "has another value" : "have other values",
                  fmt::join(ratios, ", ")),
      here);
}

}  // namespace tplimit
