#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tplimit/support/source.hpp"

namespace tplimit {

enum class Highlight : std::uint8_t { kPlain, kKeyword, kNumber, kString, kComment };
struct Highlighted {
  Span span;
  Highlight kind;
};

/// All bytes of a .tp text in order, also of one that is no program.  Cost: O(bytes).
std::vector<Highlighted> highlight(std::string_view text);

}  // namespace tplimit
