#include <algorithm>

#include <fmt/ranges.h>

#include "driver/limits.hpp"
#include "tplimit/driver/driver.hpp"
#include "tplimit/report/json.hpp"

// Several evaluations of one program, and what is made of them.
namespace tplimit {

Result<std::vector<LimitResult>> evaluate_draws(
    const std::function<Result<Module>(std::uint64_t draw)>& drawn, EvaluateOptions options,
    int draws) {
  std::vector<LimitResult> out;
  const Progress whole = std::move(options.progress);
  for (int draw = 0; draw < draws; ++draw) {
    options.draw = static_cast<std::uint64_t>(draw);
    const Result<Module> module = drawn(options.draw);
    if (!module) return module.errors();
    if (whole) options.progress = [&](double done) { whole((draw + done) / draws); };
    EvaluateOptions own = options;
    // Errors of draws are averaged as well, and draws differ by more.
    const bool fewer =
        draws > 4 && !own.particles && !own.tolerance && !has_entries(module->program);
    if (fewer) own.particles = kDefaultParticles / 4;
    Result<LimitResult> result = evaluate(*module, own);
    const bool random = result && (module->program.has_random_scalars || result->random_outputs);
    if (result && !random && fewer) result = evaluate(*module, options);
    if (!result) return result.errors();
    out.push_back(std::move(*result));
    if (!random) break;
  }
  return out;
}

namespace {

Result<Module> networks_beside(const Module& module,
                               const std::optional<GradedOptions::Given>& given) {
  return given ? conditioned(module, *given) : Result<Module>(comparable(module));
}

}  // namespace

Result<Comparison> compare(const Module& module, const CompareOptions& options) {
  const auto limit_of_draws = [&](int draws) {
    return evaluate_draws([&](std::uint64_t) -> Result<Module> { return module; }, options.evaluate,
                          draws);
  };
  const auto limit = [&]() -> Result<LimitResult> {
    if (options.limit) return *options.limit;
    Result<std::vector<LimitResult>> one = limit_of_draws(1);
    if (!one) return one.errors();
    if (!one->front().random_outputs) return std::move(one->front());
    // Networks have outputs of their own: their mean is set beside the mean over draws.
    Result<std::vector<LimitResult>> all = limit_of_draws(options.draws);
    if (!all) return all.errors();
    return mean_over_draws(average_draws(std::move(*all)));
  }();
  if (!limit) return limit.errors();
  if (options.networks) return compare(*limit, *options.networks);
  const Result<Module> networks_of = networks_beside(module, options.evaluate.given);
  if (!networks_of) return networks_of.errors();
  if (options.simulate.progress) options.simulate.progress(0);
  Result<std::vector<SimulationResult>> networks =
      simulate(*networks_of, options.simulate, options.widths);
  if (!networks) return networks.errors();
  return compare(*limit, std::move(*networks));
}

double share_of_limit(const CompareOptions& options) {
  const double limit = 256.0 *
                       static_cast<double>(options.evaluate.particles.value_or(kDefaultParticles)) *
                       options.evaluate.randomisations;
  double total = limit;
  for (const std::int64_t width : options.widths)  // lazy matrices make wide networks linear
    total += static_cast<double>(width) * static_cast<double>(std::min<std::int64_t>(width, 2048)) *
             options.simulate.seeds;
  return limit / total;
}

std::vector<std::int64_t> usual_widths(const Module& module, std::vector<std::int64_t> about) {
  const std::int64_t units = module.program.width_units;
  for (std::int64_t& width : about) width = (width + units - 1) / units * units;
  return about;
}

std::variant<LimitResult, std::string> known_limit(const std::string& json, const Module& module,
                                                   const CompareOptions& options) {
  const Result<Module> networks = networks_beside(module, options.evaluate.given);
  auto read = limit_from_json(json, program_info(module, options.evaluate),
                              networks ? networks->program : module.program);
  auto* limit = std::get_if<LimitResult>(&read);
  if (!limit) return read;
  const bool random_scalars = module.program.has_random_scalars;
  if ((random_scalars || limit->random_outputs) && limit->engine.seed != options.evaluate.seed)
    return fmt::format("its --seed is {}, here {}", limit->engine.seed, options.evaluate.seed);
  if (random_scalars && limit->draws > 1)
    return std::string("it is a mean over draws of random scalars; networks have those of --seed");
  limit->warnings = module.warnings;
  if (!limit->random_outputs) return read;
  if (random_scalars)
    return std::string(
        "run --draws averages over random scalars as well, compare over random outputs only: leave "
        "--limit out");
  if (limit->draws == 1)
    return fmt::format("it is conditional on one draw of the random outputs: run --draws {} --out",
                       options.draws);
  limit->warnings.clear();
  return mean_over_draws(std::move(*limit));
}

namespace {

std::vector<ReportForm> forms_of(const ir::Program& program) {
  std::vector<ReportForm> out;
  for (const ir::Report& report : program.reports) {
    ReportForm& form = out.emplace_back();
    if (report.entries.empty()) continue;
    const ir::Op& op = program[report.entries[0].value].op;
    form.eigenvalues = std::holds_alternative<ir::Eigvals>(op);
    if (const auto* own = std::get_if<ir::Histogram>(&op)) form.bins = Bins{own->low, own->high};
  }
  return out;
}

}  // namespace

ProgramInfo program_info(const Module& module, const EvaluateOptions& options) {
  ProgramInfo out{module.source,
                  module.sha256,
                  module.constants,
                  module.program.has_random_scalars,
                  to_string(module.ablations),
                  fmt::format("{:016x}", ir::fingerprint(module.program)),
                  forms_of(module.program)};
  if (options.given)
    out.constants.emplace_back(options.given->name + " (given)",
                               fmt::format("{}", fmt::join(options.given->values, ",")));
  return out;
}

}  // namespace tplimit
