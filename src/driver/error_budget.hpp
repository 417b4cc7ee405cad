#pragma once

#include "tplimit/driver/driver.hpp"

namespace tplimit {

/// The numbers of a limit program; where a tolerance is given, with as many particles and
/// directions as it needs.
Result<LimitResult> within_tolerance(const LeadingOrder& limit, const EvaluateOptions& options);

}  // namespace tplimit
