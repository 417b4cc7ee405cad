#include "tplimit/report/sweep.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "cli/variation.hpp"

namespace tplimit::cli {

int sweep(const Options& options) {
  if (!options.widths.empty() && options.evaluate.randomisations < 2)
    return complain("--widths: errors of the limit need two randomisations or more");
  if (options.highest && options.best.empty()) return complain("--highest needs --best REPORT");
  if (const std::string fault = variation_fault(options.over, options.lower.constants);
      !fault.empty())
    return complain(fmt::format("--over: {}", fault));
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);
  std::optional<SweepGoal> goal;
  if (!options.best.empty()) goal = {options.best, options.highest};

  Varied varied(options);
  const Result<Module> base = first_program(options.over, varied.module_of());
  if (!base) return reject(base.errors(), varied.source());
  if (goal)
    if (const std::string fault = goal_fault(*goal, *base); !fault.empty())
      return complain(fmt::format("--best: {}", fault));
  Result<std::optional<Checkpoint>> checkpoint = open_checkpoint(options, *base);
  if (!checkpoint) return reject(checkpoint.errors(), base->source);
  const Result<Sweep> all = [&] {
    ProgressBar bar(show_progress(options));
    return tplimit::sweep(*base, options.over, goal, varied.module_of(),
                          evaluation(options, *checkpoint, bar));
  }();
  if (!all) return conclude(*checkpoint, reject(all.errors(), base->source), all.errors());

  const auto any = [&](auto holds) {
    return std::any_of(all->rows.begin(), all->rows.end(),
                       [&](const SweepRow& row) { return row.limit() && holds(*row.limit()); });
  };
  const bool missed = any([](const LimitResult&limit) { return limit.tolerance_missed; }),
             found = any([](const LimitResult&) { return true; });
  if (!found) (void)reject(*all->rows[0].refusal(), base->source);
  if (missed) complain("the tolerance was missed for some combinations");
  const int code = !found ? kRejected : missed ? kToleranceMissed : kDone;
  return conclude(*checkpoint, deliver(*all, *base, all->warnings, options, code));
}

}  // namespace tplimit::cli
