#pragma once

#include <string_view>

#include "tplimit/parallel/communicator.hpp"

namespace tplimit {

/// This process as one of those that `mpirun` started, from the beginning of `main` to its end;
/// built without MPI, the only one. Rank 0 alone speaks: standard output and standard error of the
/// others lead nowhere, but for what `abandon` says.
class Session {
 public:
  Session(int* argc, char*** argv);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] const Communicator& ranks() const;
  /// The orderly end, for every rank to call: all return the exit code of rank 0.
  int finish(int code);
  /// The end of all ranks because this one cannot go on: says why on standard error.  Returns
  /// `code` if there is no other rank, else never.
  int abandon(int code, std::string_view why);
};

}  // namespace tplimit
