#include "tplimit/report/extrapolation.hpp"

#include <fmt/format.h>

#include "cli/variation.hpp"

namespace tplimit::cli {

int extrapolate(const Options& options) {
  if (options.over.size() != 1) return complain("--in: one constant is extrapolated");
  const SweepAxis& axis = options.over[0];
  for (const std::string& fault : {extrapolation_fault(axis.name, axis.values),
                                   variation_fault(options.over, options.lower.constants)})
    if (!fault.empty()) return complain(fmt::format("--in: {}", fault));
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);

  Varied varied(options);
  const Result<Module> base = first_program(options.over, varied.module_of());
  if (!base) return reject(base.errors(), varied.source());
  Result<std::optional<Checkpoint>> checkpoint = open_checkpoint(options, *base);
  if (!checkpoint) return reject(checkpoint.errors(), base->source);
  const Result<ExtrapolationResult> result = [&] {
    ProgressBar bar(show_progress(options));
    return tplimit::extrapolate(axis, options.order, varied.module_of(),
                                evaluation(options, *checkpoint, bar));
  }();
  if (!result) return conclude(*checkpoint, reject(result.errors(), base->source), result.errors());
  if (result->tolerance_missed)
    complain(fmt::format("the tolerance was missed for some {}", axis.name));
  return conclude(*checkpoint, deliver(*result, *base, result->warnings, options,
                                       result->tolerance_missed ? kToleranceMissed : kDone));
}

}  // namespace tplimit::cli
