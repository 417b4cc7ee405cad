#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tplimit {

/// Insertions, deletions, substitutions and exchanges of neighbours that lead from `a` to `b`.
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);

/// The nearest known name within edit distance 2, as a sentence; empty if there is none.
[[nodiscard]] std::string did_you_mean(std::string_view name,
                                       const std::vector<std::string>& known);

}  // namespace tplimit
