#include "driver/runs.hpp"

#include <atomic>

#include <fmt/format.h>

#include "driver/run_store.hpp"

namespace tplimit {

using namespace ir;
using engines::RunFailure;
using engines::RunResult;
using engines::RunSettings;
using Why = engines::EvaluationStop::Why;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int thread_count(int asked, const Communicator& ranks) {
  return asked > 0 ? asked : ranks.threads();
}

Diagnostic stopped(Checkpoint* checkpoint) {
  if (checkpoint) return checkpoint->runs().interrupted();
  return Diagnostic::error("E5207", "stopped, as was asked for; nothing is kept");
}

Diagnostic diagnose(const Program& program, const RunFailure& failure) {
  const Node& node = program[failure.node];
  Diagnostic d = Diagnostic::error(failure.stop.code, failure.stop.message)
                     .at(node.span)
                     .with_help(failure.stop.help);
  if (failure.stop.why == Why::kNotFinite) {
    d.message = "a number is not finite (overflow, or an operation outside its domain)";
    d.label = "first seen here";
    d.help =
        "a smaller learning rate or initial variance often helps; log, sqrt and the gradient of "
        "norm "
        "need positive arguments";
    if (std::holds_alternative<Solve>(node.op) || std::holds_alternative<LogDet>(node.op)) {
      d.message = "a matrix that is inverted, or of which logdet is taken, is singular";
      if (std::holds_alternative<LogDet>(node.op)) d.message += ", or its determinant negative";
      d.label = "up to rounding; first seen here";
      d.help = "equal or dependent samples make kernels singular: add a multiple of eye(P)";
    }
  }
  if (node.context)
    d.notes.push_back({"in the iteration " + program.contexts[node.context], node.span});
  std::vector<bool> reached(program.size(), false);
  reached[failure.node.value] = true;
  for (std::size_t k = failure.node.value + 1; k < program.size(); ++k)
    for (const NodeId in : program.nodes[k].in) reached[k] = reached[k] || reached[in.value];
  for (const Report& report : program.reports)
    for (const auto& entry : report.entries)
      if (reached[entry.value.value]) {
        std::string index;
        for (std::size_t j = 0; j < entry.index.size(); ++j)
          index +=
              fmt::format("{}{} = {}", j ? ", " : " at ", report.index_names[j], entry.index[j]);
        d.notes.push_back(
            {fmt::format("it reaches report '{}' first{}", report.name, index), report.span});
        return d;
      }
  return d;
}

std::vector<RunOutcome> run_some(const RunSet& set, const std::function<bool(std::int64_t)>& mine,
                                 ProgressCounter& progress) {
  std::vector<std::int64_t> todo;
  for (std::int64_t k = 0; k < set.count; ++k)
    if (mine(k)) todo.push_back(k);
  std::vector<RunOutcome> out(static_cast<std::size_t>(set.count));
  // The first that fails is named, whichever thread is faster: only later ones are left out.
  std::atomic<std::int64_t> first_failed = set.count;
  const std::uint64_t program = set.checkpoint ? fingerprint(*set.schedule->program) : 0;
  const int threads = set.executor->threads();
  const Executor outer(set.side_by_side ? threads : 1);
  outer.parallel(static_cast<std::int64_t>(todo.size()), [&](std::int64_t j) {
    const std::int64_t k = todo[static_cast<std::size_t>(j)];
    if (k > first_failed) return;
    // Of its own, to count its operations.  A checkpoint stops runs where they can be saved.
    const Executor inner(set.side_by_side ? 1 : threads, set.executor->ranks(),
                         set.checkpoint ? nullptr : set.executor->stop());
    const RunSettings own_settings = set.settings_of(k);
    auto outcome = set.checkpoint ? set.checkpoint->runs().run(program, *set.schedule, own_settings,
                                                               inner, set.executor->stop())
                                  : engines::run_program(*set.schedule, own_settings, inner);
    if (std::holds_alternative<RunFailure>(outcome))
      for (std::int64_t first = first_failed;
           k < first && !first_failed.compare_exchange_weak(first, k);) {}
    std::visit([&](auto& own) { out[static_cast<std::size_t>(k)] = std::move(own); }, outcome);
    set.executor->count(inner.operations());
    progress.finished();
  });
  engines::Buffer::release_pool();
  return out;
}

RunOf<std::vector<RunResult>> results_of(const RunSet& set, std::vector<RunOutcome> outcomes) {
  for (std::size_t k = 0; k < outcomes.size(); ++k) {
    auto* failure = std::get_if<RunFailure>(&outcomes[k]);
    if (!failure) continue;
    if (failure->stop.why == Why::kNotFinite || failure->stop.why == Why::kOnAnotherRank) {
      RunSettings own = set.settings_of(static_cast<std::int64_t>(k));
      own.trace = true;
      auto traced = engines::run_program(*set.schedule, own, *set.executor);
      if (auto* earlier = std::get_if<RunFailure>(&traced)) *failure = *earlier;
    }
    if (failure->stop.why == Why::kInterrupted) throw Stopped{};
    Diagnostic error = diagnose(*set.schedule->program, *failure);
    if (set.name)
      error.notes.push_back({"in " + set.name(static_cast<std::int64_t>(k)), error.span});
    return Refusal<Shortage>{
        failure->stop.why == Why::kTooManyDirections ? Shortage::kParticles : Shortage::kNone,
        {std::move(error)}};
  }
  std::vector<RunResult> results;
  for (RunOutcome& outcome : outcomes) results.push_back(std::move(std::get<RunResult>(outcome)));
  return results;
}

}  // namespace tplimit
