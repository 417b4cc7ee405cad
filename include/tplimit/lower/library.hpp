#pragma once

#include <string_view>

namespace tplimit {

/// The text of lib/std.tp: functions that every program may call (docs/language.md).
[[nodiscard]] std::string_view standard_library();

}  // namespace tplimit
