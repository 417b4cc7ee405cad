#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/report/convergence.hpp"
#include "tplimit/report/document.hpp"
#include "tplimit/report/program_info.hpp"
#include "tplimit/report/results.hpp"
#include "tplimit/report/text.hpp"
#include "tplimit/support/exponent.hpp"

/// Coordinate check: how large every named value is over the first steps at several widths, beside
/// the power of the width that it is counted with, and its limit.
namespace tplimit {

/// The root mean square over coordinates and samples of one value, or of its change since the
/// start.
struct CoordinateSize {
  std::string name;  ///< "z", "change of z"
  Span span;
  std::vector<std::int64_t> steps;               ///< after how many
  std::vector<std::optional<Exponent>> counted;  ///< by step; empty: exactly 0
  std::vector<bool> is_counted;                  ///< by step: not behind the first that grows
  std::vector<std::vector<Estimate>> sizes;      ///< by step and width: mean over networks
  std::vector<std::optional<SlopeFit>> slopes;   ///< by step, of the size in the width
  std::vector<std::optional<Estimate>> limit;    ///< by step
};

struct CoordinateCheck {
  std::vector<CoordinateSize> values;
  std::vector<std::int64_t> widths;
  int seeds = 0;
  int steps = 0;         ///< of training that were run
  std::string left_out;  ///< why not as many as asked for; empty: all
  std::string no_limit;  ///< why some values have no limit beside them; empty: all have
  Diagnostics warnings;
};

/// Whether a size grows as it is counted: within three errors of its slope, and 0.1 for corrections
/// in 1 / n.  No answer for one width.
enum class Growth { kUnknown, kAsCounted, kFaster, kSlower };
Growth growth(const CoordinateSize& value, std::size_t step);
[[nodiscard]] const char* to_string(Growth growth);  ///< "faster than counted"; kUnknown: ""

document::Document document_of(const CoordinateCheck& check, const ProgramInfo& program);
std::string to_text(const CoordinateCheck& check, const ProgramInfo& program,
                    const TextOptions& options = {});

}  // namespace tplimit
