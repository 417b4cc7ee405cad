#include "tplimit/report/shapes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace tplimit::shapes {

std::size_t product(const Shape& shape) {
  std::size_t out = 1;
  for (const std::int64_t extent : shape) out *= static_cast<std::size_t>(extent);
  return out;
}

Shape unravel(std::size_t flat, const Shape& shape) {
  Shape index(shape.size());
  for (std::size_t k = shape.size(); k-- > 0; flat /= static_cast<std::size_t>(shape[k]))
    index[k] = static_cast<std::int64_t>(flat % static_cast<std::size_t>(shape[k]));
  return index;
}

std::string bracketed(const Shape& index) {
  return index.empty() ? std::string() : fmt::format("[{}]", fmt::join(index, ","));
}

}  // namespace tplimit::shapes
