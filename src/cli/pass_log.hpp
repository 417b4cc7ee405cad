#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tplimit/driver/driver.hpp"

namespace tplimit::cli {

/// --dump-after and --time-passes: what is seen of the pipeline.
class PassLog {
 public:
  /// The names of all passes that make a program.
  static const std::vector<std::string>& names();

  std::string dump_after;  ///< empty: none
  bool times = false;

  /// Prints the program after the pass that was named, to standard output.  Valid as long as this
  /// is.
  [[nodiscard]] Observer observer();
  /// Prints the times to standard error; says if the pass that was named did not run.
  void finish() const;

 private:
  struct Time {
    std::string name;
    double seconds;
    std::size_t nodes;
  };
  std::vector<Time> seen_;
  bool dumped_ = false;
};

}  // namespace tplimit::cli
