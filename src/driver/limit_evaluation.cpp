#include "driver/limit_evaluation.hpp"

#include <algorithm>
#include <cmath>

#include "driver/faults.hpp"
#include "driver/report_values.hpp"
#include "engines/memory_estimate.hpp"
#include "tplimit/ir/functions.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/parallel/process_memory.hpp"

// Runs of particles: sampling, truncation, bias.
namespace tplimit {

using namespace ir;
using engines::RunResult;
using engines::RunSettings;

namespace {

/// Runs of up to this many particles are too short to be divided among threads well: they run side
/// by side.
constexpr std::int64_t kSideBySide = 16384;

}  // namespace

LimitEvaluation::LimitEvaluation(const LeadingOrder& limit, const EvaluateOptions& options,
                                 bool only_methods)
    : limit_(limit),
      program_(limit.program),
      options_(options),
      threads_(thread_count(options.threads, *options.ranks)) {
  outputs_ = outputs_of(program_);
  for (const Report& report : program_.reports)
    for (const auto& entry : report.entries)
      if (const auto e = eigenvalues_behind(program_, entry.value)) outputs_.push_back(*e);
  for (const Decision& d : limit.decisions) {
    outputs_.insert(outputs_.end(), d.operands.begin(), d.operands.end());
    if (d.margin.valid()) outputs_.push_back(d.margin);
  }
  std::sort(outputs_.begin(), outputs_.end());
  outputs_.erase(std::unique(outputs_.begin(), outputs_.end()), outputs_.end());
  find_moments(only_methods);
  std::vector<NodeId> left;  // for particles
  for (const NodeId id : outputs_)
    if (!known(id)) left.push_back(id);
  atoms_ = atoms_of(program_, left);
  base_memory_ = current_memory(*options.ranks);
  schedule_ = engines::make_schedule(program_, atoms_);
  proved_ = proved_by_matching(program_);
  // What depends on no average is exact.
  random_.assign(program_.size(), false);
  sampled_.assign(program_.size(), false);
  for (std::size_t k = 0; k < program_.size(); ++k) {
    const Op& op = program_.nodes[k].op;
    random_[k] = is_average(op) || std::holds_alternative<Samples>(op);
    sampled_[k] = std::holds_alternative<Samples>(op);
    for (const NodeId in : program_.nodes[k].in) {
      random_[k] = random_[k] || random_[in.value];
      sampled_[k] = sampled_[k] || (!program_.nodes[k].type.width && sampled_[in.value]);
    }
  }
}

namespace {
constexpr std::int64_t kFewestTried = 128;  // of particles: with fewer errors mean little
}

std::optional<Refusal<Shortage>> LimitEvaluation::cannot_run(const Resolution& resolution) {
  if (auto refused = too_many_samples(resolution))
    return Refusal<Shortage>{Shortage::kNone, {*refused}};
  if (options_.matrices == Matrices::kLazy)
    if (auto refused = too_few_particles(resolution.particles)) return refused;
  const double most = memory_limit(options_.memory_bytes, *options_.ranks);
  const double bytes = memory(resolution, resolution.randomisations);
  if (bytes <= most) return std::nullopt;
  Resolution less = resolution;
  while (less.particles > kFewestTried && memory(less, less.randomisations) > most)
    less.particles /= 2;
  return Refusal<Shortage>{
      Shortage::kMemory,
      {faults::not_enough_memory("the run needs", bytes,
                                 options_.ranks->size() > 1 ? " on each rank" : "", most,
                                 (less.particles > kFewestTried
                                      ? fmt::format("--particles {} fits; or take", less.particles)
                                      : "use fewer --particles,") +
                                     " a larger --rank-tol, or raise --memory")}};
}

LimitResult LimitEvaluation::head(const Resolution& resolution) const {
  LimitResult out;
  out.engine = {"particles",
                resolution.particles,
                resolution.randomisations,
                options_.seed,
                threads_,
                resolution.rank_tol,
                0};
  out.engine.single_precision = options_.single_precision;
  out.engine.merge_rows = options_.merge_rows;
  out.engine.ranks = options_.ranks->size();
  if (moments_) {
    out.engine.rows_merged = moments_->rows_merged();
    out.engine.clamped = moments_->largest_excess();
  }
  return out;
}

RunOf<LimitEvaluation::Outcome> LimitEvaluation::run(const Resolution& resolution,
                                                     std::optional<double> target,
                                                     ProgressCounter& progress) {
  particles_ = resolution.particles;
  if (auto refused = cannot_run(resolution)) return *refused;
  const Traffic before = options_.ranks->traffic();
  LimitResult out = head(resolution);

  const int count = atoms_.empty() ? 1 : resolution.randomisations;
  auto runs = run_particles(
      resolution, count, [&](std::int64_t k) { return std::vector{key(k)}; }, progress);
  if (!runs) return with_advice(runs.refusal());
  bool stopped = false;
  double dropped = 0;
  for (const RunResult& run : *runs) {
    stopped = stopped || run.matching_stopped;
    dropped = std::max(dropped, run.largest_dropped);
    out.engine.largest_rank = std::max(out.engine.largest_rank, run.largest_rank());
    out.engine.stored_matrices = std::max(out.engine.stored_matrices, run.stored);
  }
  // Of a stored matrix they say only how many directions there was room for.
  if (out.engine.stored_matrices > 0)
    ranks_.reset();
  else
    ranks_ = {resolution.rank_tol, runs->front().ranks};
  if (auto unresolved = judge_tails(unresolved_by(*runs).tails, out.warnings)) return *unresolved;
  out.engine.memory_estimate = base_memory_ + memory(resolution, resolution.randomisations);
  if (target && count > 1) {
    const Pooled first = with_moments(*runs);
    if (first.failure) return diagnose(program_, *first.failure);
    out.engine.sampling_error = largest_reported(first.error, first);
    if (out.engine.sampling_error > *target) return Outcome{std::move(out), false};
  }

  auto truncation = truncation_error(resolution, *runs, dropped, progress);
  if (!truncation) return truncation.refusal();
  if (stopped)
    out.warnings.push_back(
        Diagnostic::warning(
            "W5401",
            fmt::format("moment matching stopped: too many directions (rank {}) for {} particles",
                        out.engine.largest_rank, resolution.particles))
            .with_help("raise --particles for smaller errors"));
  if (auto failed = remove_bias(resolution, *runs, out, progress)) return *failed;

  Pooled pooled = with_moments(*runs);
  if (pooled.failure) return diagnose(program_, *pooled.failure);
  out.engine.sampling_error = largest_reported(pooled.error, pooled);
  if (!truncation->empty()) out.engine.truncation_error = largest_reported(*truncation, pooled);
  for (std::size_t k = 0; k < truncation->size(); ++k)
    for (std::size_t j = 0; j < pooled.error[k].size(); ++j)
      pooled.error[k][j] = std::hypot(pooled.error[k][j], (*truncation)[k][j]);
  collect(std::move(pooled), out);
  out.engine.product_flops = executor_->operations();
  out.engine.sums = options_.ranks->traffic().sums - before.sums;
  out.engine.sum_bytes = options_.ranks->traffic().bytes - before.bytes;
  return Outcome{std::move(out)};
}

std::optional<Refusal<Shortage>> LimitEvaluation::remove_bias(const Resolution& resolution,
                                                              std::vector<RunResult>& runs,
                                                              LimitResult& out,
                                                              ProgressCounter& progress) {
  const int count = static_cast<int>(runs.size());
  const double rank = static_cast<double>(out.engine.largest_rank);
  const double particles = static_cast<double>(resolution.particles);
  if (rank * rank * count <= 4 * particles) return std::nullopt;
  Resolution twice = resolution;
  twice.particles *= 2;
  const int pairs = (count + 1) / 2;
  if (count > 1 && memory(twice, pairs) <= memory_limit(options_.memory_bytes, *options_.ranks)) {
    out.engine.memory_estimate =
        std::max(out.engine.memory_estimate, base_memory_ + memory(twice, pairs));
    progress.extend(pairs);
    const auto keys = [&](std::int64_t k) {
      return std::vector{key(2 * k), key((2 * k + 1) % count)};
    };
    auto joined = run_particles(twice, pairs, keys, progress);
    if (!joined) return joined.refusal();
    extrapolate(program_, atoms_, runs, *joined);
    out.engine.extrapolated = true;
    return std::nullopt;
  }
  out.warnings.push_back(
      Diagnostic::warning("W5402",
                          fmt::format("errors do not contain the bias, which is of relative order "
                                      "rank / particles = {:.1g}",
                                      rank / particles))
          .with_help(count > 1
                         ? "raise --memory: runs of twice the particles remove it"
                         : "use 2 randomisations or more: then it is removed by extrapolation"));
  return std::nullopt;
}

RunOf<std::vector<std::vector<double>>> LimitEvaluation::truncation_error(
    const Resolution& resolution, const std::vector<RunResult>& runs, double dropped,
    ProgressCounter& progress) {
  std::vector<std::vector<double>> out;
  if (runs.size() < 2) return out;
  // Below 1e-5 of its vector, what was dropped cannot be told from the errors of sampling.
  if (dropped > 1e-5) {
    auto error = truncation_of_sampled(resolution, runs, progress);
    if (!error) return error;
    out = std::move(*error);
  }
  if (resolution.rank_tol == 0) return out;
  // What linear algebra proves has no other error, and shows directions that were dropped as
  // rounding.
  auto of_proved = truncation_of_proved(resolution, runs.front(),
                                        std::max(dropped, resolution.rank_tol), progress);
  if (out.empty()) return of_proved;
  for (std::size_t k = 0; k < of_proved.size(); ++k)
    for (std::size_t j = 0; j < of_proved[k].size(); ++j)
      out[k][j] = std::max(out[k][j], of_proved[k][j]);
  return out;
}

RunOf<std::vector<std::vector<double>>> LimitEvaluation::truncation_of_sampled(
    const Resolution& resolution, const std::vector<RunResult>& runs, ProgressCounter& progress) {
  const int count = (static_cast<int>(runs.size()) + 1) / 2;
  progress.extend(count);
  Resolution threefold = resolution;
  threefold.rank_tol = std::min(0.5, 3 * resolution.rank_tol);
  auto coarse = run_particles(
      threefold, count, [&](std::int64_t k) { return std::vector{key(k)}; }, progress);
  if (!coarse) return coarse.refusal();
  const Pooled fine = with_moments({runs.begin(), runs.begin() + count}),
               rough = with_moments(*coarse);
  for (const Pooled* pooled : {&fine, &rough})
    if (pooled->failure) return diagnose(program_, *pooled->failure);
  std::vector<std::vector<double>> out = rough.value;
  for (std::size_t k = 0; k < out.size(); ++k)
    for (std::size_t j = 0; j < out[k].size(); ++j)
      out[k][j] = std::abs(out[k][j] - fine.value[k][j]) / 2;
  return out;
}

std::vector<std::vector<double>> LimitEvaluation::truncation_of_proved(const Resolution& resolution,
                                                                       const RunResult& run,
                                                                       double dropped,
                                                                       ProgressCounter& progress) {
  std::vector<bool> behind_matrix(program_.size(), false);
  for (std::size_t k = 0; k < program_.size(); ++k) {
    behind_matrix[k] = std::holds_alternative<MatMul>(program_.nodes[k].op);
    for (const NodeId in : program_.nodes[k].in)
      behind_matrix[k] = behind_matrix[k] || behind_matrix[in.value];
  }
  const auto concerned = [&](NodeId id) {
    return !known(id) && proved_[id.value] && behind_matrix[id.value];
  };
  if (run.matching_stopped || std::none_of(outputs_.begin(), outputs_.end(), concerned)) return {};
  Resolution finest = resolution;
  finest.rank_tol *= 1e-3;
  RunOf<std::vector<RunResult>> fine = Diagnostics{};
  if (engines::estimate_memory(schedule_, settings(finest), options_.ranks->size()) <=
      memory_limit(options_.memory_bytes, *options_.ranks)) {
    progress.extend(1);
    fine = run_particles(
        finest, 1, [&](std::int64_t) { return std::vector{key(0)}; }, progress);
  }
  const Pooled own = with_moments({run}), finer = fine ? with_moments(*fine) : Pooled{};
  std::vector<std::vector<double>> out;
  for (std::size_t k = 0; k < outputs_.size(); ++k) {
    out.emplace_back(own.value[k].size(), 0.0);
    for (std::size_t j = 0; j < out[k].size() && concerned(outputs_[k]); ++j)
      out[k][j] = fine && !finer.failure ? std::abs(own.value[k][j] - finer.value[k][j])
                                         : dropped * std::abs(own.value[k][j]);
  }
  return out;
}

RunOf<std::vector<RunResult>> LimitEvaluation::run_particles(const Resolution& resolution,
                                                             int count, const Keys& keys,
                                                             ProgressCounter& progress) const {
  const RunSet set{&schedule_,
                   count,
                   settings(resolution),
                   &*executor_,
                   runs_side_by_side(resolution),
                   [&](RunSettings& own, std::int64_t k) { own.keys = keys(k); },
                   options_.checkpoint};
  return results_of(set, run_some(
                             set, [](std::int64_t) { return true; }, progress));
}

RunSettings LimitEvaluation::settings(const Resolution& resolution) const {
  RunSettings out;
  out.realisation = engines::RealisationKind::kParticleLimit;
  out.rows = resolution.particles;
  out.rank_tol = resolution.rank_tol;
  out.single_precision = options_.single_precision;
  using Own = engines::RunSettings::Matrices;
  out.matrices = options_.matrices == Matrices::kLazy    ? Own::kLazy
                 : options_.matrices == Matrices::kDense ? Own::kStored
                                                         : Own::kAuto;
  return out;
}

std::uint64_t LimitEvaluation::key(std::int64_t k) const {
  return mix_key(mix_key(0x6c696d6974ULL, options_.seed), static_cast<std::uint64_t>(k));
}

bool LimitEvaluation::runs_side_by_side(const Resolution& resolution) const {
  return options_.ranks->size() == 1 && threads_ > 1 && resolution.randomisations > 1 &&
         resolution.particles <= kSideBySide;
}

double LimitEvaluation::memory(const Resolution& resolution, int count) {
  const double copies = runs_side_by_side(resolution) ? std::min(threads_, count) : 1;
  // Measured: allocators keep about a tenth more than is alive.
  constexpr double kKept = 1.1;
  const auto bytes = [&](const std::vector<std::array<std::int64_t, 2>>* ranks) {
    return kKept * copies *
           engines::estimate_memory(schedule_, settings(resolution), options_.ranks->size(), ranks);
  };
  if (ranks_ && ranks_->rank_tol <= resolution.rank_tol) return bytes(&ranks_->of_source);
  const double most = bytes(nullptr);
  if (most <= memory_limit(options_.memory_bytes, *options_.ranks)) return most;
  for (std::int64_t pilot = 1024; 4 * pilot <= resolution.particles; pilot *= 2) {
    const Progress nobody;
    ProgressCounter unseen(nobody, 1);
    // Particles do not change ranks much, unless they are too few.
    const auto full = [&](const std::array<std::int64_t, 2>& own) {
      return 2 * (own[0] + own[1]) + 2 >= pilot;
    };
    if (const auto run = run_particles(
            {pilot, 1, resolution.rank_tol}, 1, [&](std::int64_t) { return std::vector{key(0)}; },
            unseen);
        run && std::none_of(run->front().ranks.begin(), run->front().ranks.end(), full)) {
      ranks_ = {resolution.rank_tol, run->front().ranks};
      return bytes(&ranks_->of_source);
    }
  }
  return most;
}

}  // namespace tplimit
