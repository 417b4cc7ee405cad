#pragma once

#include <string>

#include "tplimit/ir/program.hpp"
#include "tplimit/support/diagnostic.hpp"

/// What the limits of a program can be refused or warned for, whichever pass takes them.
namespace tplimit::faults {

/// E3101; `size`: "of size n", where and when.
[[nodiscard]] Diagnostic explodes(const std::string& what, Span span, std::string size);

/// E3102; `size`: of the dropped term, n^..
[[nodiscard]] Diagnostic depends_on_dropped(const std::string& what, Span span,
                                            const std::string& size, const std::string& iteration,
                                            std::string help);

/// E3107: why a value cannot be that of --given.  Without a place.
[[nodiscard]] Diagnostic cannot_be_given(std::string message);

/// W5301; `size`: n^..
[[nodiscard]] Diagnostic vanishes(const ir::Report& report, const std::string& size);

}  // namespace tplimit::faults
