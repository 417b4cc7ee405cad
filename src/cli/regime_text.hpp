#pragma once

#include <string>

#include "tplimit/passes/regime.hpp"
#include "tplimit/support/source.hpp"

namespace tplimit::cli {

/// Sizes of features, their changes and the effects of updates as tables, the verdict, and what to
/// change.
std::string regime_text(const RegimeReport& report, const ir::Program& program,
                        const Source& source);

/// The same as JSON (docs/json.md); exponents are numbers, null where a value is exactly 0.
std::string regime_json(const RegimeReport& report, const ir::Program& program,
                        const Source& source);

/// Initial variance, multiplier and rates of every parameter in the three equivalent forms W = n^-a
/// w, w ~ n^-b N(0, s^2): a = 0, b = 0, and an SGD rate without n.
std::string parametrization_text(const RegimeReport& report, const ir::Program& program);

}  // namespace tplimit::cli
