#pragma once

#include <optional>

#include "tplimit/driver/driver.hpp"

namespace tplimit {

/// W5306 where a width has no ratio to the first one and the limit is another one where it is a
/// multiple of it: some value by more than 4 errors of both.  The other limit is of at most 4,096
/// particles.
[[nodiscard]] std::optional<Diagnostic> depends_on_ratios(const Module& module,
                                                          const LimitResult& own,
                                                          const EvaluateOptions& options);

}  // namespace tplimit
