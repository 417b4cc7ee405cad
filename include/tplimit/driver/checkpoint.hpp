#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/parallel/communicator.hpp"
#include "tplimit/support/diagnostic.hpp"

namespace tplimit {

class RunStore;

struct CheckpointOptions {
  std::filesystem::path folder;
  double interval_s = 60;  ///< longer where writing takes long
  /// What determines the numbers, in words: names and values.  A checkpoint is only resumed where
  /// all of them are the same.
  std::vector<std::pair<std::string, std::string>> identity;
  std::function<void(const Diagnostic&)>
      warn;  ///< W5501, a state cannot be written; never concurrently
  /// Several ranks: the first keeps the folder, for all; of runs that are spread over ranks, only
  /// those that are finished.
  const Communicator* ranks = &single_process();
};

/// A folder in which evaluations keep what they have done, so that a later process can go on from
/// there: it repeats the same calls, with the same results bit by bit, for any number of threads.
/// However the process ends, the folder is valid (docs/decisions/0011-checkpoints.md). One process
/// at a time.  The destructor leaves the files.
class Checkpoint {
 public:
  /// Makes the folder, or goes on from what is in it.
  /// All ranks call it; where the first fails, so do all.
  /// Errors: E5201 something else; E5202 damaged; E5203 another identity; E5204 another version;
  /// E5205 not writable, or in use.
  static Result<Checkpoint> open(CheckpointOptions options);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  struct Found {
    std::size_t finished = 0, in_progress = 0;
  };
  /// Runs that an earlier process left.
  [[nodiscard]] Found found() const;
  /// Writes what is not written yet; false if that fails (after W5501).
  bool flush();
  /// Removes the files, and the folder if nothing else is in it.
  void remove();
  /// After an evaluation that ended with these errors, or none: flushed where the same one, started
  /// again, could need it (E5206 interrupted, E4202 out of memory), else removed.
  void close(const Diagnostics& errors);

  [[nodiscard]] RunStore& runs() { return *runs_; }

 private:
  explicit Checkpoint(std::unique_ptr<RunStore> runs);
  std::unique_ptr<RunStore> runs_;
};

}  // namespace tplimit
