#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/report/comparison.hpp"
#include "tplimit/report/results.hpp"

/// Results as text for people.  Every function is pure; what it returns ends in a newline.
namespace tplimit {

/// Which program the numbers belong to.
struct ProgramInfo {
  Source source;
  std::string sha256;                                          ///< of the text
  std::vector<std::pair<std::string, std::string>> constants;  ///< what --set changed: name, value
  bool random_scalars = false;  ///< results are conditional on values drawn from the seed
  std::string ablations{};      ///< what was changed in the program; empty: nothing
  std::string fingerprint{};    ///< of the program with its data
};

/// A number known exactly: up to 12 significant digits.
std::string format_number(double value);

/// "0.904039(36)": two digits of `error` (one standard error, in units of the last digits shown)
/// and no digit of `value` beyond them; "12.3(1.5)" where they span the decimal point;
/// "1.2345(67)e-07" for very small and large numbers. An error below 1e-12 |value| is shown as
/// none, the value then as exact.
std::string format_number(double value, double error);

struct TextOptions {
  bool full =
      false;  ///< every number; else large arrays show their first and last rows and columns
  std::size_t columns = 110;  ///< tables are cut to fit, unless `full`
};

std::string to_text(const LimitResult& limit, const ProgramInfo& program,
                    const TextOptions& options = {});
std::string to_text(const SimulationResult& networks, const ProgramInfo& program,
                    const TextOptions& options = {});

/// Per report: mean (with its error) and seed standard deviation at each width above the limit, for
/// the first, middle and last entries; the rms deviation over all entries; the verdict.
std::string to_text(const Comparison& comparison, const ProgramInfo& program,
                    const TextOptions& options = {});

}  // namespace tplimit
