#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "driver/pooling.hpp"
#include "driver/runs.hpp"
#include "driver/sampling_error.hpp"
#include "moments/engine.hpp"
#include "tplimit/driver/driver.hpp"

namespace tplimit {

/// Numbers of one limit program: first what needs no sampling, then by particles what is left.
class LimitEvaluation {
 public:
  /// `only_methods`: to say which method a report needs; nothing can be run.
  LimitEvaluation(const LeadingOrder& limit, const EvaluateOptions& options,
                  bool only_methods = false);
  /// How well the particles stand for the limit.
  struct Resolution {
    std::int64_t particles;
    int randomisations;
    double rank_tol;
  };
  /// `target`: an error that is aimed at; where sampling alone misses it, only that is found out
  /// and `promising` is false.
  struct Outcome {
    LimitResult result;
    bool promising = true;
  };
  RunOf<Outcome> run(const Resolution& resolution, std::optional<double> target,
                     ProgressCounter& progress);
  /// E4203: particles are drawn without repeats.
  [[nodiscard]] std::optional<Diagnostic> too_many_samples(const Resolution& resolution) const;
  /// E4102 for the first report with an infinite mean, E4301 for the first that the asked engine
  /// cannot do.
  [[nodiscard]] std::optional<Diagnostic> refusal() const;
  [[nodiscard]] ReportMethod method_of(const ir::Report& report) const;
  /// Directions of one matrix and side if none were dropped.
  [[nodiscard]] std::int64_t most_directions() const;
  [[nodiscard]] std::int64_t particles_of_entries() const;
  /// What to begin with.
  [[nodiscard]] Resolution first() const;

 private:
  /// By the tolerance.
  [[nodiscard]] bool covered(const ir::Report& report) const;
  /// Entry j of value i of report k.
  [[nodiscard]] bool undetermined(const Pooled& pooled, std::size_t k, std::size_t i,
                                  std::size_t j) const;
  /// Over all entries of reports that the tolerance covers, of errors of outputs.
  [[nodiscard]] double largest_reported(const std::vector<std::vector<double>>& errors,
                                        const Pooled& pooled) const;
  // The steps of `run`.
  /// E4201, E4202, E4203.
  [[nodiscard]] std::optional<Refusal<Shortage>> cannot_run(const Resolution& resolution);
  /// How the numbers are found, before there are any.
  [[nodiscard]] LimitResult head(const Resolution& resolution) const;
  /// Per output and entry, what dropped directions change; empty: nothing.
  RunOf<std::vector<std::vector<double>>> truncation_error(
      const Resolution& resolution, const std::vector<engines::RunResult>& runs, double dropped,
      ProgressCounter& progress);
  /// The bias is of order rank / particles, the standard error of order (particles *
  /// randomisations)^(-1/2): where their ratio is not small (docs/theory.md, "Bias at high rank"),
  /// the bias is extrapolated away, or W5402 says why not.
  std::optional<Refusal<Shortage>> remove_bias(const Resolution& resolution,
                                               std::vector<engines::RunResult>& runs,
                                               LimitResult& out, ProgressCounter& progress);

  /// Dropping directions leaves an error that grows at least in proportion to rank_tol: half of
  /// what a threefold rank_tol changes, in the same randomisations, whose errors of sampling nearly
  /// cancel.
  RunOf<std::vector<std::vector<double>>> truncation_of_sampled(
      const Resolution& resolution, const std::vector<engines::RunResult>& runs,
      ProgressCounter& progress);
  /// For outputs that only dropped directions make inexact: the change if a thousand times smaller
  /// ones are kept.  They are the same in all randomisations, one suffices.  Where it needs too
  /// many directions, an estimate.
  [[nodiscard]] std::vector<std::vector<double>> truncation_of_proved(const Resolution& resolution,
                                                                      const engines::RunResult& run,
                                                                      double dropped,
                                                                      ProgressCounter& progress);
  /// Everything that needs no sampling.
  void find_moments(bool only_methods);
  [[nodiscard]] bool may_be_infinite() const;
  /// Of moments where particles can do the same, or find out that they must: half of the cost of
  /// the particles, but for small programs.
  [[nodiscard]] moments::MomentEngine::Budget budget(bool only_methods) const;
  [[nodiscard]] bool known(ir::NodeId id) const;
  [[nodiscard]] Method method_of(ir::NodeId id) const;
  /// Once matching stops, nothing is exact.
  [[nodiscard]] static bool matched(const std::vector<engines::RunResult>& runs);
  [[nodiscard]] Unresolved unresolved_by(const std::vector<engines::RunResult>& runs) const;
  /// W5403 for averages with heavy tails; E4102 if one is not resolved.
  [[nodiscard]] std::optional<Diagnostic> judge_tails(const std::vector<HeavyTail>& tails,
                                                      Diagnostics& warnings) const;
  /// Of what follows averages with heavy tails, as if in proportion to them.
  void add_inner_tails(Pooled& out, const std::vector<HeavyTail>& tails) const;
  /// Values and errors of all outputs: known moments, and averages over the runs.
  [[nodiscard]] Pooled with_moments(const std::vector<engines::RunResult>& runs);
  /// Errors of what sampling leaves open; undetermined where it is not finite on one side, as 1 /
  /// step(..).
  void judge_open(Pooled& out, const std::vector<engines::RunResult>& runs,
                  const std::vector<std::vector<double>>& unresolved) const;
  /// With the value in the program whose limit this is.
  void for_all_reported(const std::function<void(ir::NodeId of, ir::NodeId value)>& visit) const;
  /// What is not finite comes after an undetermined jump.
  [[nodiscard]] bool only_undetermined(const Pooled& pooled) const;
  /// Of W and W' together, of one matrix, if none are dropped.
  [[nodiscard]] std::int64_t most_of_both_sides() const;
  /// E4201 comes from one product; what the whole program may need is known here.
  [[nodiscard]] Refusal<Shortage> with_advice(Refusal<Shortage> refusal) const;
  /// E4201 before anything is run: independent Gaussian vectors are independent directions, of
  /// which none is dropped.
  [[nodiscard]] std::optional<Refusal<Shortage>> too_few_particles(std::int64_t particles) const;
  [[nodiscard]] std::uint64_t key(std::int64_t k) const;
  [[nodiscard]] bool runs_side_by_side(const Resolution& resolution) const;
  [[nodiscard]] engines::RunSettings settings(const Resolution& resolution) const;
  /// Bytes of runs at this resolution: by ranks that an earlier run found, or, where the largest
  /// possible ranks would not do, a small one.
  [[nodiscard]] double memory(const Resolution& resolution, int count);
  using Keys = std::function<std::vector<std::uint64_t>(std::int64_t run)>;
  RunOf<std::vector<engines::RunResult>> run_particles(const Resolution& resolution, int count,
                                                       const Keys& keys,
                                                       ProgressCounter& progress) const;
  [[nodiscard]] std::size_t slot(ir::NodeId id) const;
  inline static const std::vector<double> kNoError{0.0};
  /// The entries of a report, or W5303 for those that are not determined.
  void mark_undetermined(std::size_t k, const Pooled& pooled, ReportResult& r,
                         Diagnostics& warnings) const;
  /// The reason, once for a report.
  void explain_undetermined(const Pooled& pooled, ir::NodeId of, ir::NodeId value, std::size_t j,
                            const ir::Report& report, ReportResult& r, Diagnostics& warnings) const;
  void collect(Pooled pooled, LimitResult& out) const;
  [[nodiscard]] ReportResult result_of(const ir::Report& report, Pooled& pooled,
                                       const std::vector<int>& users, double rank_tol) const;
  [[nodiscard]] std::vector<double> unresolved_eigenvalues(ir::NodeId entry, const Pooled& pooled,
                                                           double rank_tol) const;
  [[nodiscard]] ExpectResult result_of(std::size_t expectation, const Pooled& pooled) const;
  const LeadingOrder& limit_;
  const ir::Program& program_;
  const EvaluateOptions& options_;
  int threads_;
  std::optional<Executor> executor_;
  std::optional<moments::MomentEngine> moments_;
  std::vector<ir::NodeId> outputs_, atoms_;
  engines::Schedule schedule_;
  std::vector<bool> random_, sampled_, proved_;
  std::int64_t particles_ = 0;  ///< of the last run
  struct Ranks {
    double rank_tol;
    std::vector<std::array<std::int64_t, 2>> of_source;
  };
  std::optional<Ranks> ranks_;  ///< of the last run
  double base_memory_ = 0;      ///< of the process before any run
};

}  // namespace tplimit
