#include "tplimit/driver/variations.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "driver/runs.hpp"

namespace tplimit {
namespace {

Constants constants_of(const std::vector<SweepAxis>& axes, const std::vector<std::string>& values) {
  Constants out;
  for (std::size_t k = 0; k < axes.size(); ++k) out.emplace_back(axes[k].name, values[k]);
  return out;
}

/// Part `k` of `count` equal ones.
Progress part_of(const Progress& whole, std::size_t k, std::size_t count) {
  if (!whole) return {};
  return [&whole, k, count](double done) {
    whole((static_cast<double>(k) + done) / static_cast<double>(count));
  };
}

/// With draws their mean; `first`: the module of draw 0.
Result<LimitResult> limit_of(const Result<Module>& first, const Constants& constants,
                             const ModuleOf& module_of, const CompareOptions& options,
                             Progress progress) {
  EvaluateOptions own = options.evaluate;
  own.progress = std::move(progress);
  Result<std::vector<LimitResult>> draws = evaluate_draws(
      [&](std::uint64_t draw) { return draw == 0 ? first : module_of(constants, draw); }, own,
      options.draws);
  if (!draws) return draws.errors();
  return average_draws(std::move(*draws));
}

Result<Comparison> comparison_of(const Module& module, const CompareOptions& options,
                                 const Progress& progress) {
  CompareOptions own = options;
  own.evaluate.progress = nullptr;
  if (progress) {
    const double limit = share_of_limit(options);
    own.evaluate.progress = [&, limit](double done) { progress(limit * done); };
    own.simulate.progress = [&, limit](double done) { progress(limit + (1 - limit) * done); };
  }
  return compare(module, own);
}

void add_new(const Diagnostics& more, Diagnostics& to) {
  for (const Diagnostic& w : more)
    if (std::none_of(to.begin(), to.end(), [&](const Diagnostic& known) {
          return known.code == w.code && known.message == w.message &&
                 known.span.begin == w.span.begin;
        }))
      to.push_back(w);
}

}  // namespace

std::string variation_fault(const std::vector<SweepAxis>& axes, const Constants& fixed) {
  if (axes.empty()) return "no constant is varied";
  for (const SweepAxis& axis : axes) {
    if (axis.values.empty()) return fmt::format("'{}' has no values", axis.name);
    if (std::any_of(fixed.begin(), fixed.end(),
                    [&](const auto& other) { return other.first == axis.name; }))
      return fmt::format("'{}' is varied, and fixed to another value", axis.name);
  }
  return "";
}

std::string goal_fault(const SweepGoal& goal, const Module& module) {
  std::vector<std::string> names;
  for (const ir::Report& report : module.program.reports) {
    // Reports f of random outputs are replaced by cov(f) and mean(f) in the limit.
    for (const std::string& form :
         {report.name, fmt::format("cov({})", report.name), fmt::format("mean({})", report.name)})
      if (goal.report == form) return "";
    names.push_back(report.name);
  }
  return fmt::format("'{}' is no report; the reports are {}", goal.report, fmt::join(names, ", "));
}

Result<Module> first_program(const std::vector<SweepAxis>& axes, const ModuleOf& module_of) {
  Diagnostics errors;
  for (const std::vector<std::string>& values : combinations(axes)) {
    Result<Module> module = module_of(constants_of(axes, values), 0);
    if (module) {
      std::erase_if(module->constants, [&](const auto& constant) {
        return std::any_of(axes.begin(), axes.end(),
                           [&](const SweepAxis& axis) { return axis.name == constant.first; });
      });
      return module;
    }
    if (errors.empty()) errors = module.errors();
    if (any_of(module.errors(), {"E2114", "E2115", "E5001"})) return module.errors();
  }
  return errors;
}

Result<Sweep> sweep(const Module& base, std::vector<SweepAxis> axes, std::optional<SweepGoal> goal,
                    const ModuleOf& module_of, const CompareOptions& options) {
  const auto start = Clock::now();
  Sweep out{std::move(axes), {}, std::move(goal)};
  const std::vector<std::vector<std::string>> rows = combinations(out.axes);
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const Constants constants = constants_of(out.axes, rows[k]);
    SweepRow& row = out.rows.emplace_back();
    row.values = rows[k];
    row.program.source = base.source;
    const Result<Module> module = module_of(constants, 0);
    if (!module) {
      row.outcome = module.errors();
      continue;
    }
    row.program = program_info(*module, options.evaluate);
    const auto keep = [&](auto result) {
      if (result)
        row.outcome = std::move(*result);
      else
        row.outcome = result.errors();
    };
    const Progress progress = part_of(options.evaluate.progress, k, rows.size());
    if (options.widths.empty())
      keep(limit_of(module, constants, module_of, options, progress));
    else
      keep(comparison_of(*module, options, progress));
    if (const Diagnostics* why = row.refusal(); why && any_of(*why, {"E5206", "E5207", "E2701"}))
      return *why;
    if (const LimitResult* limit = row.limit()) add_new(limit->warnings, out.warnings);
  }
  out.time_s = seconds_since(start);
  return out;
}

Result<ExtrapolationResult> extrapolate(const SweepAxis& axis, int order, const ModuleOf& module_of,
                                        const CompareOptions& options) {
  const auto start = Clock::now();
  std::vector<LimitResult> limits;
  for (std::size_t k = 0; k < axis.values.size(); ++k) {
    const Constants constants{{axis.name, axis.values[k]}};
    Result<LimitResult> limit = limit_of(module_of(constants, 0), constants, module_of, options,
                                         part_of(options.evaluate.progress, k, axis.values.size()));
    if (!limit) {
      Diagnostics errors = limit.errors();
      errors[0] = std::move(errors[0]).with_note(
          fmt::format("with {} = {}", axis.name, axis.values[k]), {});
      return errors;
    }
    limits.push_back(std::move(*limit));
  }
  ExtrapolationResult out = extrapolate(axis.name, axis.values, limits, order);
  out.time_s = seconds_since(start);
  return out;
}

}  // namespace tplimit
