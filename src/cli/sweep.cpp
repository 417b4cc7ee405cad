#include "tplimit/report/sweep.hpp"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/shared.hpp"
#include "cli/variation.hpp"

namespace tplimit::cli {
namespace {

/// "" or why no combination can be the best of this report.  Reports f of random outputs are
/// replaced by cov(f) and mean(f) in the limit.
std::string unknown_goal(const std::string& goal, const ir::Program& program) {
  std::vector<std::string> names;
  for (const ir::Report& report : program.reports) {
    if (goal == report.name || goal == fmt::format("cov({})", report.name) ||
        goal == fmt::format("mean({})", report.name))
      return "";
    names.push_back(report.name);
  }
  return fmt::format("--best {}: no report of this name; its reports: {}", goal,
                     fmt::join(names, ", "));
}

}  // namespace

Options with_constants(const Options& options, const std::vector<std::string>& values) {
  Options own = options;
  for (std::size_t k = 0; k < values.size(); ++k)
    own.lower.constants.emplace_back(options.over[k].first, values[k]);
  return own;
}

std::string fault_of_variation(const Options& options) {
  for (std::size_t k = 0; k < options.over.size(); ++k) {
    const std::string& name = options.over[k].first;
    const auto named = [&](const auto& other) { return other.first == name; };
    if (std::any_of(options.lower.constants.begin(), options.lower.constants.end(), named))
      return fmt::format("'{}' is varied, and fixed by --set", name);
  }
  return "";
}

int sweep(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  if (!options.widths.empty() && options.evaluate.randomisations < 2)
    return complain("--widths: errors of the limit need two randomisations or more");
  if (options.highest && options.best.empty()) return complain("--highest needs --best REPORT");
  if (const std::string fault = fault_of_variation(options); !fault.empty()) return complain(fault);
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);

  Sweep all;
  for (const auto& [name, values] : options.over) all.axes.push_back({name, values});
  if (!options.best.empty()) all.goal = SweepGoal{options.best, options.highest};
  const std::vector<std::vector<std::string>> rows = combinations(all.axes);

  // What is said of the program as such is said of the first combination that is one.
  Loaded base = load(with_constants(options, rows[0]));
  for (std::size_t k = 1; !base.module && k < rows.size(); ++k) {
    if (any_of(base.module.errors(), {"E2114", "E2115", "E5001"}))
      return reject(base.module.errors(), base.source);
    Loaded next = load(with_constants(options, rows[k]));
    if (next.module) base = std::move(next);
  }
  if (!base.module) return reject(base.module.errors(), base.source);
  if (all.goal)
    if (const std::string fault = unknown_goal(all.goal->report, base.module->program);
        !fault.empty())
      return complain(fault);
  Result<std::optional<Checkpoint>> checkpoint = open_checkpoint("sweep", options, base);
  if (!checkpoint) return reject(checkpoint.errors(), base.source);

  {
    ProgressBar bar(show_progress(options));
    const double share = 1.0 / static_cast<double>(rows.size());
    for (const std::vector<std::string>& values : rows) {
      const Options own = with_constants(options, values);
      SweepRow& row = all.rows.emplace_back();
      row.values = values;
      const Loaded loaded = load(own);
      row.program.source = loaded.source;
      if (!loaded.module) {
        row.outcome = loaded.module.errors();
        continue;
      }
      row.program = info(*loaded.module, own);
      row.program.command.clear();  // the header of the sweep has it
      const auto keep = [&](auto result) {
        if (result)
          row.outcome = std::move(*result);
        else
          row.outcome = result.errors();
      };
      if (own.widths.empty())
        keep(evaluate_run(loaded, own, *checkpoint, bar, share));
      else
        keep(evaluate_compare(loaded, own, *checkpoint, bar, share));
      if (const Diagnostics* why = row.refusal(); why && any_of(*why, {"E5206", "E2701"}))
        return conclude(*checkpoint, reject(*why, base.source), *why);
    }
  }
  all.time_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  Diagnostics warnings;
  bool missed = false, any = false;
  for (const SweepRow& row : all.rows) {
    const LimitResult* limit = row.limit();
    if (!limit) continue;
    any = true;
    missed = missed || limit->tolerance_missed;
    for (const Diagnostic& w : limit->warnings)
      if (std::none_of(warnings.begin(), warnings.end(), [&](const Diagnostic& known) {
            return known.code == w.code && known.message == w.message &&
                   known.span.begin == w.span.begin;
          }))
        warnings.push_back(w);
  }
  if (!any) (void)reject(*all.rows[0].refusal(), base.source);
  if (missed) complain("the tolerance was missed for some combinations");
  const int code = !any ? kRejected : missed ? kToleranceMissed : kDone;
  // The constants of one combination are not those of the program.
  Module program = *base.module;
  program.constants = options.lower.constants;
  return conclude(*checkpoint, deliver("sweep", all, program, warnings, options, code));
}

}  // namespace tplimit::cli
