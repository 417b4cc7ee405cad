#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

/// Extents of arrays and places in them, the last axis fastest.
namespace tplimit::shapes {

using Shape = std::vector<std::int64_t>;

std::size_t product(const Shape& shape);
Shape unravel(std::size_t flat, const Shape& shape);
/// "[1,2]"; nothing for a scalar.
std::string bracketed(const Shape& index);

}  // namespace tplimit::shapes
