#pragma once

#include <optional>
#include <string_view>

#include "driver/limits.hpp"
#include "driver/runs.hpp"
#include "tplimit/driver/driver.hpp"

namespace tplimit {

/// Runs the passes of a pipeline.  The program that a pass makes is verified, in every build; the
/// observer sees it and the pass's time.
class Stages {
 public:
  explicit Stages(const Observer& observer) : observer_(observer) {}

  /// pass() is a program, holds one, or is a Result of such; or it is something else, which is
  /// only timed.
  template <class Pass>
  auto operator()(std::string_view name, Pass pass) const {
    const auto start = Clock::now();
    auto out = pass();
    const double seconds = seconds_since(start);
    const ir::Program* program = program_of(out);
    if (program) verify(*program);
    if (observer_) observer_({name, program, seconds});
    return out;
  }

 private:
  template <class T>
  static const ir::Program* program_of(const T& x) {
    if constexpr (std::is_same_v<T, ir::Program>)
      return &x;
    else if constexpr (requires { x.limit.program; })
      return &x.limit.program;
    else if constexpr (requires { x.program; })
      return &x.program;
    else if constexpr (requires {
                         static_cast<bool>(x);
                         *x;
                       })
      return x ? program_of(*x) : nullptr;
    else
      return nullptr;
  }

  const Observer& observer_;
};

}  // namespace tplimit
