#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <variant>
#include <vector>

#include "engines/interpreter.hpp"
#include "tplimit/driver/driver.hpp"
#include "tplimit/support/refusal.hpp"

/// Runs of one program that differ in their random numbers, and what stops them.
namespace tplimit {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start);

int thread_count(int asked, const Communicator& ranks);

/// Counts finished runs and tells the caller, one call at a time.
class ProgressCounter {
 public:
  ProgressCounter(const Progress& progress, std::int64_t total)
      : progress_(progress), total_(total) {}
  void extend(std::int64_t more) {
    const std::scoped_lock lock(mutex_);
    total_ += more;
  }
  void finished() {
    const std::scoped_lock lock(mutex_);
    if (progress_) progress_(static_cast<double>(++done_) / static_cast<double>(total_));
  }

 private:
  const Progress& progress_;
  std::int64_t total_, done_ = 0;
  std::mutex mutex_;
};

/// Of options of evaluations and of networks.  Ranks that stopped at different places would wait
/// for each other.
template <class Options>
const std::atomic<bool>* stop_of(const Options& options) {
  return options.ranks->size() == 1 ? options.stop : nullptr;
}
/// E5206 where a checkpoint keeps what was done, else E5207.
Diagnostic stopped(Checkpoint* checkpoint);

/// Turns a stop of an engine into a diagnostic: which line, which iteration, which report is lost.
Diagnostic diagnose(const ir::Program& program, const engines::RunFailure& failure);

/// Runs of one program that differ in their random numbers.
struct RunSet {
  const engines::Schedule* schedule;
  int count;
  engines::RunSettings settings;
  const Executor* executor;  ///< also of the ranks over which the particles of each run are spread
  bool side_by_side;         ///< one thread for each run, not all for one after the other
  std::function<void(engines::RunSettings&, std::int64_t)> prepare;  ///< sets what differs in run k
  Checkpoint* checkpoint;                                            ///< may be null
  std::function<std::string(std::int64_t)> name{};  ///< of run k, for errors; may be empty

  [[nodiscard]] engines::RunSettings settings_of(std::int64_t k) const {
    engines::RunSettings own = settings;
    prepare(own, k);
    return own;
  }
};
using RunOutcome = std::variant<std::monostate, engines::RunResult,
                                engines::RunFailure>;  ///< none if an earlier run failed

/// Those runs k for which mine(k).
std::vector<RunOutcome> run_some(const RunSet& set, const std::function<bool(std::int64_t)>& mine,
                                 ProgressCounter& progress);

/// What a run has too little of.
enum class Shortage {
  kNone,
  kParticles,  ///< E4201
  kMemory,     ///< E4202
};
/// What comes of runs.
template <class T>
using RunOf = RefusableResult<T, Shortage>;

/// All results, or what went wrong in the first run that failed: it is repeated in trace mode to
/// find where the first bad number appears.  Throws Stopped if that is what went wrong.
RunOf<std::vector<engines::RunResult>> results_of(const RunSet& set,
                                                  std::vector<RunOutcome> outcomes);

}  // namespace tplimit
