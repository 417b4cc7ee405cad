#pragma once

#include <atomic>
#include <filesystem>
#include <limits>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "engines/interpreter.hpp"

namespace tplimit {

/// Seconds that a process waits before it writes the first state of a run, after so many in a row
/// that ended without one, the first of them while writing; infinite: it writes none.
[[nodiscard]] double wait_for_first_state(double interval_s, std::uint64_t lost);

/// Runs of an evaluation in a folder, for a later process: results of those that are finished in
/// one file, the state of each that is in progress in a file of its own.  Every file is replaced as
/// a whole, so that the folder is valid at any moment.  The control flow that asks for runs is
/// repeated by the later process, which finds here what it need not compute again.
class RunStore {
 public:
  using Identity = std::vector<std::pair<std::string, std::string>>;
  struct Options {
    std::filesystem::path folder;
    double interval_s = 60;
    std::string version;  ///< of tplimit
    Identity
        identity;  ///< of the evaluation: names and values, to be the same in the later process
    std::function<void(const Diagnostic&)> warn;    ///< W5501, from any thread
    const Communicator* ranks = &single_process();  ///< the first keeps the folder, for all
  };
  /// Makes the folder, or reads what an earlier process left in it.  Errors: E5201 to E5205.
  static Result<std::unique_ptr<RunStore>> open(Options options);
  ~RunStore();
  RunStore(const RunStore&) = delete;
  RunStore& operator=(const RunStore&) = delete;

  /// As run_program, if it has not been done; `program` is the fingerprint of the schedule's.  The
  /// executor counts what earlier processes did, too; no other run may use it meanwhile.  `stop`
  /// (may be null) true: saves and ends.  Thread-safe for runs with different keys.
  std::variant<engines::RunResult, engines::RunFailure> run(std::uint64_t program,
                                                            const engines::Schedule& schedule,
                                                            const engines::RunSettings& settings,
                                                            const Executor& executor,
                                                            const std::atomic<bool>* stop);

  /// Runs that an earlier process left: finished, in progress.
  [[nodiscard]] std::pair<std::size_t, std::size_t> found() const { return found_; }
  /// Writes the results; E5206.
  Diagnostic interrupted();
  /// Writes results that have not been written; false if that failed.
  bool flush();
  /// Removes the files, and the folder if nothing else is in it.
  void remove();

 private:
  class State;
  [[nodiscard]] bool keeps_folder() const { return options_.ranks->rank() == 0; }
  std::variant<engines::RunResult, engines::RunFailure> run_together(
      std::uint64_t key, const engines::Schedule& schedule, const engines::RunSettings& settings,
      const Executor& executor);
  struct Finished {
    engines::RunResult result;
    double operations;  ///< counted by its executor
  };

  explicit RunStore(Options options) : options_(std::move(options)) {}
  [[nodiscard]] std::optional<Diagnostic> use_folder();
  [[nodiscard]] std::optional<Diagnostic> lock_folder();
  [[nodiscard]] std::optional<Diagnostic> read_folder();
  [[nodiscard]] std::optional<Diagnostic> read_results();
  [[nodiscard]] bool is_state(const std::filesystem::path& file) const;
  [[nodiscard]] std::filesystem::path results_file() const { return options_.folder / "results"; }
  /// Of a run in progress.
  [[nodiscard]] std::filesystem::path state_file(std::uint64_t key) const;

  /// "" or why the file could not be written.
  std::string write(const std::filesystem::path& file,
                    const std::function<void(engines::Writer&)>& content) const;
  std::string write_results();  ///< likewise; with mutex_ held
  void write_results_if_due(double now);
  /// W5501 unless `failure` is "".
  void warn(const std::string& failure);
  /// When to write what was begun at `since`: after the interval, and not so often that writing,
  /// which took `writing_s` and ended at `last`, takes much of the time.
  [[nodiscard]] double due(double since, double last, double writing_s) const;
  [[nodiscard]] double first_due(double now) const;
  void state_written();
  void record(std::uint64_t key, Finished finished, double begun);

  Options options_;
  std::pair<std::size_t, std::size_t> found_;
  int lock_ = -1;     ///< descriptor of the folder
  std::mutex mutex_;  ///< of what follows
  std::unordered_map<std::uint64_t, Finished> results_;
  std::vector<std::uint64_t> unwritten_;
  double oldest_unwritten_ = 0;  ///< when the work on the oldest of them began
  double results_written_ = 0,
         results_writing_s_ = 0;  ///< when they were last, and how long it took
  std::mutex warning_mutex_;
  std::string warned_;
  std::atomic<double> results_due_ = std::numeric_limits<double>::infinity();
  std::atomic<double> state_writing_s_ = 0;
  /// Processes in a row that ended before they had written a state, the first of them while writing
  /// one; 0: none.
  std::atomic<std::uint64_t> lost_ = 0;
  std::atomic<bool> last_state_lost_ = false;  ///< could not be written before the end
};

}  // namespace tplimit
