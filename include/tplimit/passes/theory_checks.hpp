#pragma once

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// Where the Master Theorem's hypotheses do not cover a program although its limit is computed;
/// once per place in the text. W5311: a map with a kink or jump, where a correction term needs its
/// derivative.  W5312: growth beyond polynomials. Needs: erase_identities.  Cost: O(nodes).
Diagnostics theory_checks(const ir::Program& program);

}  // namespace tplimit
