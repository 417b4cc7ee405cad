#pragma once

#include <cstdint>

#include "engines/plan.hpp"

namespace tplimit::engines {

/// Estimated operations of one run of so many particles if no directions are dropped; one takes
/// about 1 ns, which is four multiplications of a matrix product.
double estimate_operations(const Schedule& schedule, std::int64_t particles);

}  // namespace tplimit::engines
