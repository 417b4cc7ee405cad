#include "cli/numbers.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "tplimit/driver/option_ranges.hpp"

namespace tplimit::cli {
namespace {

/// All of `text`, or nothing; whatever the locale.
template <class Number>
std::optional<Number> read(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// A real number with an optional k, M, G or T.
std::optional<double> read_scaled(std::string_view text) {
  double unit = 1;
  if (const auto power =
          text.empty() ? std::string_view::npos : std::string_view("kMGT").find(text.back());
      power != std::string_view::npos) {
    unit = std::pow(1024.0, static_cast<double>(power + 1));
    text.remove_suffix(1);
  }
  const auto value = read<double>(text);
  if (!value || !std::isfinite(*value)) return std::nullopt;
  return *value * unit;
}

[[noreturn]] void reject(const std::string& option, const std::string& text,
                         std::string_view wanted) {
  throw CLI::ValidationError(option, fmt::format("'{}' is not {}", text, wanted));
}

}  // namespace

std::int64_t parse_count(const std::string& option, const std::string& text, std::int64_t least,
                         std::int64_t most) {
  const auto value = read_scaled(text);
  if (!value || *value != std::floor(*value))
    reject(option, text, "a whole number (as in 65536, 64k or 1e5)");
  if (*value < static_cast<double>(least))
    reject(option, text, fmt::format("possible: at least {} is needed", least));
  if (*value > static_cast<double>(most))
    reject(option, text, fmt::format("possible: at most {} is", most));
  return static_cast<std::int64_t>(*value);
}

std::vector<std::int64_t> parse_widths(const std::string& option, const std::string& text) {
  std::vector<std::int64_t> widths;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::int64_t width = parse_count(option, text.substr(begin, end - begin), 1,
                                           static_cast<std::int64_t>(range_of("width").most));
    if (std::find(widths.begin(), widths.end(), width) != widths.end())
      throw CLI::ValidationError(option, fmt::format("width {} stands twice", width));
    widths.push_back(width);
    begin = end + 1;
  }
  return widths;
}

double parse_bytes(const std::string& option, const std::string& text) {
  const auto value = read_scaled(text);
  if (!value || !(*value > 0)) reject(option, text, "an amount of memory (as in 4G, 500M or 2e9)");
  return *value;
}

double parse_real(const std::string& option, const std::string& text, double least, double most) {
  const auto value = read<double>(text);
  if (!value || !(*value >= least && *value <= most)) {
    const std::string below = most < 1 ? " below 1" : "";
    reject(option, text,
           least > 0 ? "a positive number" + below
                     : "a number of at least 0" + (below.empty() ? "" : " and" + below));
  }
  return *value;
}

std::uint64_t parse_seed(const std::string& option, const std::string& text) {
  const auto value = read<std::uint64_t>(text);
  if (!value) reject(option, text, "a seed: a whole number from 0 to 18446744073709551615");
  return *value;
}

std::pair<std::string, std::string> parse_assignment(const std::string& option,
                                                     const std::string& text) {
  const std::size_t sign = text.find('=');
  if (sign == std::string::npos || sign == 0 || sign + 1 == text.size())
    reject(option, text, "of the form NAME=VALUE");
  return {text.substr(0, sign), text.substr(sign + 1)};
}

std::pair<std::string, std::vector<std::string>> parse_values(const std::string& option,
                                                              const std::string& text) {
  const auto [name, list] = parse_assignment(option, text);
  std::pair<std::string, std::vector<std::string>> out{name, {""}};
  int depth = 0;
  for (const char c : list) {
    depth += c == '(' || c == '[' ? 1 : c == ')' || c == ']' ? -1 : 0;
    if (c == ',' && depth == 0)
      out.second.emplace_back();
    else
      out.second.back() += c;
  }
  for (std::size_t k = 0; k < out.second.size(); ++k) {
    if (out.second[k].empty()) reject(option, text, "of the form NAME=VALUE,VALUE,..");
    if (std::find(out.second.begin(), out.second.begin() + static_cast<std::ptrdiff_t>(k),
                  out.second[k]) != out.second.begin() + static_cast<std::ptrdiff_t>(k))
      throw CLI::ValidationError(option, fmt::format("value {} stands twice", out.second[k]));
  }
  return out;
}

}  // namespace tplimit::cli
