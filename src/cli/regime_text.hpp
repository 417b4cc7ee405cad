#pragma once

#include <string>

#include "tplimit/passes/regime.hpp"
#include "tplimit/support/source.hpp"

namespace tplimit::cli {

/// Sizes of features, their changes and the effects of updates as tables, the verdict, and what to change.
std::string regime_text(const RegimeReport& report, const ir::Program& program, const Source& source);

}  // namespace tplimit::cli
