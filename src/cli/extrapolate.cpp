#include "tplimit/report/extrapolation.hpp"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "cli/shared.hpp"
#include "cli/variation.hpp"

namespace tplimit::cli {

int extrapolate(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  if (options.over.size() != 1) return complain("--in: one constant is extrapolated");
  const auto& [constant, texts] = options.over[0];
  if (const std::string fault = extrapolation_fault(constant, texts); !fault.empty())
    return complain(fmt::format("--in: {}", fault));
  if (const std::string fault = fault_of_variation(options); !fault.empty()) return complain(fault);
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);

  const Loaded first = load(with_constants(options, {texts[0]}));
  if (!first.module) return reject(first.module.errors(), first.source);
  Result<std::optional<Checkpoint>> checkpoint = open_checkpoint("extrapolate", options, first);
  if (!checkpoint) return reject(checkpoint.errors(), first.source);
  std::vector<LimitResult> limits;
  {
    ProgressBar bar(show_progress(options));
    for (const std::string& text : texts) {
      const Options own = with_constants(options, {text});
      const Loaded loaded = load(own);
      Result<LimitResult> limit =
          loaded.module
              ? evaluate_run(loaded, own, *checkpoint, bar, 1.0 / static_cast<double>(texts.size()))
              : Result<LimitResult>(loaded.module.errors());
      if (!limit) {
        complain(fmt::format("with {} = {}:", constant, text));
        return conclude(*checkpoint, reject(limit.errors(), first.source), limit.errors());
      }
      limits.push_back(std::move(*limit));
    }
  }
  ExtrapolationResult result = tplimit::extrapolate(constant, texts, limits, options.order);
  result.time_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const bool missed = std::any_of(limits.begin(), limits.end(),
                                  [](const LimitResult& limit) { return limit.tolerance_missed; });
  if (missed) complain(fmt::format("the tolerance was missed for some {}", constant));
  Module program = *first.module;
  program.constants = options.lower.constants;
  return conclude(*checkpoint, deliver("extrapolate", result, program, limits.back().warnings,
                                       options, missed ? kToleranceMissed : kDone));
}

}  // namespace tplimit::cli
