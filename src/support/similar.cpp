#include "tplimit/support/similar.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include <fmt/format.h>

namespace tplimit {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1), last, before;  // of a[..i], a[..i - 1], a[..i - 2]
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before = std::exchange(last, row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] =
          std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row.back();
}

std::string did_you_mean(std::string_view name, const std::vector<std::string>& known) {
  std::string best;
  std::size_t least = name.size() <= 3 ? 1 : 2;
  const auto lower = [](std::string_view text) {
    std::string out(text);
    std::transform(out.begin(), out.end(), out.begin(), [](char c) {
      return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    return out;
  };
  for (const auto& candidate : known) {
    if (candidate != name && lower(candidate) == lower(name)) {  // Y for y, of any length
      best = candidate;
      break;
    }
    const std::size_t d = edit_distance(name, candidate);
    if (d < least + (best.empty() ? 1 : 0) && d < name.size()) {
      best = candidate;
      least = d;
    }
  }
  return best.empty() ? "" : fmt::format("did you mean '{}'?", best);
}

}  // namespace tplimit
