#include "driver/error_budget.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/ranges.h>

#include "driver/faults.hpp"
#include "driver/limit_evaluation.hpp"
#include "driver/limits.hpp"
#include "tplimit/parallel/process_memory.hpp"
#include "tplimit/passes/known_values.hpp"

namespace tplimit {

using namespace ir;

namespace {

/// E2701 for a name that is no report's.
std::optional<Diagnostic> unknown_report(const Program& program,
                                         const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    std::vector<std::string> all;
    for (const Report& report : program.reports) all.push_back(report.name);
    if (std::find(all.begin(), all.end(), name) == all.end())
      return faults::option_out_of_range(
          fmt::format("there is no report '{}' for the tolerance", name),
          fmt::format("the reports are {}", fmt::join(all, ", ")));
  }
  return std::nullopt;
}

/// Errors of sampling, of more and more particles, of all randomisations together.
class Falling {
 public:
  void add(const LimitEvaluation::Resolution& of, const EngineInfo& engine) {
    errors_.push_back(
        {of.particles * of.randomisations, engine.sampling_error, engine.extrapolated});
  }
  /// Not to 0.9 with 16 times the particles, where M^-1/2 would be 0.25.
  [[nodiscard]] bool stopped() const {
    if (errors_.empty()) return false;
    const Entry& now = errors_.back();
    return std::any_of(errors_.begin(), errors_.end(), [&](const Entry& before) {
      return 16 * before.particles <= now.particles && before.extrapolated == now.extrapolated &&
             now.error > 0.9 * before.error;
    });
  }

 private:
  struct Entry {
    std::int64_t particles;
    double error;
    bool extrapolated;
  };
  std::vector<Entry> errors_;
};

/// How runs become finer: more particles, and where there can be no more, more randomisations.
class Refinement {
 public:
  /// Matrices of entries cost the square of the particles: randomisations divide the error by more
  /// for the same cost (docs/decisions/0018).
  explicit Refinement(bool entries)
      : most_particles_(entries ? kDefaultParticlesOfEntries : std::int64_t{1} << 24) {}
  /// So that errors, which fall like M^-1/2 to M^-0.9, and like R^-1/2, are divided by `factor`.
  /// False: nothing more can be done.
  [[nodiscard]] bool refine(LimitEvaluation::Resolution& now, double factor) const {
    if (now.particles < most_particles_) return more_particles(now, std::pow(factor, 1 / 0.7));
    now.randomisations *= static_cast<int>(power_of_two(factor * factor, 4));
    return now.randomisations <= kMostRandomisations;
  }
  [[nodiscard]] bool more_particles(LimitEvaluation::Resolution& now, double factor = 2) const {
    if (now.particles >= most_particles_) return false;
    now.particles = std::min(most_particles_, now.particles * power_of_two(factor, 6));
    return true;
  }
  /// There is no memory for this one.
  [[nodiscard]] bool need_less_memory(LimitEvaluation::Resolution& now) {
    most_particles_ = now.particles /= 2;
    now.randomisations *= 2;
    return now.randomisations <= kMostRandomisations;
  }

 private:
  static constexpr int kMostRandomisations = 512;
  /// Near the factor, and 2 or more.
  static std::int64_t power_of_two(double factor, long most) {
    return std::int64_t{1} << std::clamp(std::lround(std::log2(factor)), 1L, most);
  }
  std::int64_t most_particles_;
};

Diagnostic does_not_fall() {
  return Diagnostic::warning("W5404", "the error of sampling does not fall with the particles")
      .with_help(
          "values may depend discontinuously on averages, as after steps along signs of "
          "gradients that are nearly 0: smaller rates, or an eps, change that");
}

}  // namespace

namespace {

Result<LimitResult> refined(const LeadingOrder& limit, const EvaluateOptions& options) {
  const auto start = Clock::now();
  verify(limit.program);
  if (const auto unknown = unknown_report(limit.program, options.tolerance_on)) return *unknown;
  // What cancels in the limit may leave 0/0.
  if (const auto node = certain_nan(limit.program))
    return diagnose(limit.program, {engines::not_finite(), *node});
  LimitEvaluation evaluation(limit, options);
  if (const auto refused = evaluation.refusal()) return *refused;
  Refinement finer(has_entries(limit.program));
  LimitEvaluation::Resolution now = evaluation.first();
  // Few directions cost little: only where there may be many, some of the tolerance is spent on
  // dropping them.  The error of dropping is of second order in rank_tol where what is dropped is
  // new in each product, of first order at worst: it is measured.
  constexpr std::int64_t kFewDirections = 256;
  const bool free_rank =
      options.tolerance && !options.rank_tol && evaluation.most_directions() > kFewDirections;
  if (free_rank) now.rank_tol = std::clamp(std::sqrt(*options.tolerance) / 3, 1e-6, 1e-2);
  std::optional<double> target = options.tolerance;
  std::optional<LimitResult> result;
  std::optional<LimitEvaluation::Resolution>
      unfinished;  // the last one of which only the error of sampling is known
  Falling falling;
  for (;;) {
    ProgressCounter progress(options.progress, now.randomisations);
    RunOf<LimitEvaluation::Outcome> latest = evaluation.run(now, target, progress);
    // Each part may have 0.7 of the tolerance: in squares, half.
    const double most = 0.7 * options.tolerance.value_or(0);
    if (latest) falling.add(now, latest->result.engine);
    bool can_go_on = true;
    if (latest && !latest->promising) {
      unfinished = now;
      can_go_on = finer.refine(now, latest->result.engine.sampling_error / most);
    } else if (latest) {
      result = std::move(latest->result);
      unfinished.reset();
      if (!target || result->largest_error <= *options.tolerance) break;
      const bool truncates = free_rank && result->engine.truncation_error > most;
      if (truncates) now.rank_tol /= 3;
      if (!truncates || result->engine.sampling_error > most) can_go_on = finer.refine(now, 1);
    } else if (target && latest.reason() == Shortage::kParticles) {
      can_go_on = finer.more_particles(now);
    } else if ((result || unfinished) && latest.reason() == Shortage::kMemory) {
      can_go_on = finer.need_less_memory(now);
    } else {
      return latest.errors();
    }
    if (can_go_on && !falling.stopped()) continue;
    // Say what was reached.
    if (unfinished) {
      now = *unfinished;
      target.reset();
      continue;
    }
    if (!result) return latest.errors();
    break;
  }
  if (falling.stopped()) result->warnings.push_back(does_not_fall());
  result->tolerance_missed = options.tolerance && result->largest_error > *options.tolerance;
  result->engine.tolerance = options.tolerance;
  result->random_outputs = limit.random_outputs;
  for (const Diagnostics* of_limit : {&limit.vanishing, &limit.warnings})
    result->warnings.insert(result->warnings.begin(), of_limit->begin(), of_limit->end());
  result->time_s = seconds_since(start);
  result->peak_memory_bytes = peak_memory();
  return std::move(*result);
}

}  // namespace

Result<LimitResult> within_tolerance(const LeadingOrder& limit, const EvaluateOptions& options) {
  try {
    return refined(limit, options);
  } catch (const Stopped&) {
    return stopped(options.checkpoint);
  }
}

}  // namespace tplimit
