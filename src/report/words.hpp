#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "tplimit/report/convergence.hpp"
#include "tplimit/report/program_info.hpp"
#include "tplimit/report/results.hpp"
#include "tplimit/report/shapes.hpp"

/// Names, numbers and shapes in words, as documents and JSON share them.
namespace tplimit::words {

inline const char* word(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAgrees: return "agrees";
    case Verdict::kInconclusive: return "inconclusive";
    case Verdict::kDisagrees: return "disagrees";
  }
  return "?";
}

inline const char* word(ExpectStatus status) {
  switch (status) {
    case ExpectStatus::kPassed: return "pass";
    case ExpectStatus::kFailed: return "fail";
    case ExpectStatus::kUndecided: return "undecided";
  }
  return "?";
}

/// Of other code than this (driver/measurements.hpp).
inline bool measured(const SimulationResult& networks) {
  return networks.engine.name == "measurements";
}

inline const char* precision(const SimulationResult& networks) {
  if (measured(networks)) return "unknown";
  return networks.engine.single_precision ? "single" : "double";
}

inline const char* matrices(const SimulationResult& networks) {
  if (measured(networks)) return "measured";
  return networks.dense ? "dense" : "lazy";
}

/// "1024 particles x 8 randomisations, seed 0"
std::string particles(const EngineInfo& engine);
/// What was changed in the program, a line each: constants, ablations.
std::vector<std::string> changes(const ProgramInfo& program);

/// Source text on one line: each run of blanks, line ends included, becomes one blank.
inline std::string one_line(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool blank = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!blank)
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

template <class Count>
std::string plural(Count count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

// ---- numbers; format_number (report/numbers.hpp) is for those with an error

/// `x` with `decimals` decimals; never "-0".
std::string fixed(double x, int decimals);
/// "1.234(56)e-07" as "1.234e-07".
std::string without_error(std::string number);
/// What `--set` and `--sweep` were given, as a number: "0.5", "1e-3", "1/3"; nothing if it is none.
std::optional<double> constant_value(std::string_view text);
/// A number without an error.
std::string format_sample(double value);
std::string two_digits(double value);
/// Of what scatters around `value`; 0 where it is rounding, whose digits differ by machine.
std::string two_digits(double spread, double value);

// ---- shapes

using shapes::bracketed, shapes::product, shapes::Shape, shapes::unravel;

Shape loops_of(const ReportResult& r);
Shape axes_of(const ReportResult& r);

/// "32 x 32 for t in 0..20"; nothing for a scalar.
std::string describe(const ReportResult& r);
/// "t = 3, [1,2]": one entry of a report.
std::string entry_label(const ReportResult& r, std::size_t flat);
/// With its error, and "?" where it is not resolved.
std::string value_text(const ReportResult& r, std::size_t flat);
std::string spread_text(const ReportResult& r, std::size_t flat);

}  // namespace tplimit::words
