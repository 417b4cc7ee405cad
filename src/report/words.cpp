#include "report/words.hpp"

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "tplimit/report/numbers.hpp"

namespace tplimit {
namespace {

constexpr double kExact =
    1e-12;  // smaller relative errors cannot be seen in the 12 digits of an exact number
constexpr int kLargestFixed =
    6;  // powers of ten from which on numbers are written in scientific notation,
constexpr int kSmallestFixed = -4;  // upwards and downwards

int exponent_of(const std::string& scientific) {
  return std::atoi(scientific.c_str() + scientific.find('e') + 1);
}

}  // namespace

namespace words {

std::string particles(const EngineInfo& engine) {
  return fmt::format("{} particles x {}, seed {}", engine.particles,
                     plural(engine.randomisations, "randomisation"), engine.seed);
}

std::vector<std::string> changes(const ProgramInfo& program) {
  std::vector<std::string> out;
  for (const auto& [name, value] : program.constants)
    out.push_back(fmt::format("with {} = {}", name, value));
  if (!program.ablations.empty())
    out.push_back(fmt::format("ablation: {}; these are not the results of the program as written",
                              program.ablations));
  return out;
}

std::optional<double> constant_value(std::string_view text) {
  const auto plain = [](std::string_view own) -> std::optional<double> {
    double value = 0;
    const auto [end, error] = std::from_chars(own.data(), own.data() + own.size(), value);
    if (error != std::errc{} || end != own.data() + own.size() || !std::isfinite(value))
      return std::nullopt;
    return value;
  };
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos) return plain(text);
  const auto over = plain(text.substr(0, slash)), under = plain(text.substr(slash + 1));
  return over && under && *under != 0 ? std::optional(*over / *under) : std::nullopt;
}

std::string fixed(double x, int decimals) {
  std::string text = fmt::format("{:.{}f}", x, decimals);
  if (text[0] == '-' && text.find_first_of("123456789") == std::string::npos) text.erase(0, 1);
  return text;
}

std::string without_error(std::string number) {
  const std::size_t open = number.find('(');
  return open == std::string::npos ? number : number.erase(open, number.find(')') + 1 - open);
}

std::string format_sample(double value) { return fmt::format("{:.6g}", value == 0 ? 0.0 : value); }

std::string two_digits(double value) {
  if (value == 0) return "0";
  std::string text = fmt::format("{:#.2g}", value);
  if (text.back() == '.') text.pop_back();
  return text;
}

std::string two_digits(double spread, double value) {
  return two_digits(spread <= kRounding * std::abs(value) ? 0 : spread);
}

Shape loops_of(const ReportResult& r) {
  return {r.shape.begin(), r.shape.begin() + static_cast<std::ptrdiff_t>(r.index_names.size())};
}
Shape axes_of(const ReportResult& r) {
  return {r.shape.begin() + static_cast<std::ptrdiff_t>(r.index_names.size()), r.shape.end()};
}

std::string describe(const ReportResult& r) {
  const Shape axes = axes_of(r);
  std::string out =
      axes.size() == 1 ? plural(product(axes), "value") : fmt::format("{}", fmt::join(axes, " x "));
  for (std::size_t k = 0; k < r.index_names.size(); ++k) {
    const auto& values = r.index_values[k];
    out += fmt::format("{}{} in ", k ? ", " : out.empty() ? "for " : " for ", r.index_names[k]);
    const std::int64_t step = values.size() > 1 ? values[1] - values[0] : 1;
    bool range = step != 0;
    for (std::size_t i = 0; i < values.size(); ++i)
      range = range && values[i] == values[0] + step * static_cast<std::int64_t>(i);
    out += range ? fmt::format("{}..{}", values.front(), values.back() + (step > 0 ? 1 : -1)) +
                       (step == 1 ? "" : fmt::format(" by {}", step))
                 : fmt::format("[{}]", fmt::join(values, ", "));
  }
  return out;
}

std::string entry_label(const ReportResult& r, std::size_t flat) {
  const Shape index = unravel(flat, r.shape);
  const auto loops = r.index_names.size();
  std::string out;
  for (std::size_t k = 0; k < loops; ++k)
    out += fmt::format("{}{} = {}", k ? ", " : "", r.index_names[k],
                       r.index_values[k][static_cast<std::size_t>(index[k])]);
  const std::string rest =
      bracketed({index.begin() + static_cast<std::ptrdiff_t>(loops), index.end()});
  return out + (out.empty() || rest.empty() ? "" : ", ") + rest;
}

std::string value_text(const ReportResult& r, std::size_t flat) {
  if (std::isnan(r.value[flat])) return "undetermined";
  const std::string number =
      r.error.empty() ? format_sample(r.value[flat]) : format_number(r.value[flat], r.error[flat]);
  return number + (!r.unresolved.empty() && r.unresolved[flat] ? "?" : "");
}

std::string spread_text(const ReportResult& r, std::size_t flat) {
  return fmt::format("{:.3g}", r.spread[flat]);
}

}  // namespace words

using words::fixed;

std::string format_number(double value) { return fmt::format("{:.12g}", value == 0 ? 0.0 : value); }

std::string format_number(double value, double error) {
  if (!(error > kExact * std::abs(value))) return format_number(value);
  const std::string two =
      fmt::format("{:.1e}", error);       // rounded before its digits are counted: 0.0996 is 0.10
  const int last = exponent_of(two) - 1;  // power of ten of the last digit to show
  const double largest = std::max(std::abs(value), error);
  int leading = exponent_of(fmt::format("{:e}", largest));
  leading = exponent_of(
      fmt::format("{:.{}e}", largest, std::max(leading - last, 0)));  // 9.996(12) rounds to 10.00

  const auto in_parentheses = [&](int decimals) {
    return decimals == 1 ? fmt::format("({}.{})", two[0], two[2])
                         : fmt::format("({}{})", two[0], two[2]);
  };
  if (last <= 0 && leading <= kLargestFixed && leading >= kSmallestFixed)
    return fixed(value, -last) + in_parentheses(-last);
  const long double unit = std::pow(10.0L, leading);  // long: 1e-310 has a unit too
  return fmt::format("{}{}e{:+03d}", fixed(static_cast<double>(value / unit), leading - last),
                     in_parentheses(leading - last), leading);
}

}  // namespace tplimit
