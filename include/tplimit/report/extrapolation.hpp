#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tplimit/report/convergence.hpp"
#include "tplimit/report/document.hpp"
#include "tplimit/report/results.hpp"
#include "tplimit/report/text.hpp"

/// Reports as a constant grows, or shrinks to 0: Richardson extrapolation and powers.
namespace tplimit {

/// What a number tends to as a step h falls to 0.
struct Extrapolation {
  double value = 0;
  std::optional<double> sampling_error;  ///< of the weighted sum of the values, taken as
                                         ///< independent; empty: unknown
  double extrapolation_error = 0;   ///< difference from the extrapolation by one order less, which
                                    ///< leaves the largest step out
  std::optional<Estimate> order{};  ///< that the last three values show; absent where they are too
                                    ///< few, equal within errors, or do not settle
  bool settles = true;       ///< false: differences of successive values do not fall, beyond errors
  bool order_agrees = true;  ///< false: the order seen is another one, beyond errors
};

/// Interpolates value(h) = limit + a h^order + b h^(order + 1) + .., as many terms as there are
/// values, and takes h = 0.
///
/// Needs: at least two steps, positive, falling; as many values; `errors` as many, or none where
/// they are not known.  Order: where the last three values differ beyond two errors, the q with
/// (h1^q - h2^q) / (h2^q - h3^q) = (v1 - v2) / (v2 - v3).  It agrees if its distance from `order`
/// is at most two errors plus the larger of 1/4 and what the three values before the last show
/// otherwise. Cost: O(values^3).
Extrapolation extrapolate(const std::vector<double>& steps, const std::vector<double>& values,
                          const std::vector<double>& errors, double order = 1);

/// value = coefficient * x^slope.
struct PowerFit {
  Estimate slope;
  std::optional<double> chi2_per_dof{};  ///< absent for two values, and without errors
};
/// Least squares of log value against log x, weighted by the errors; the error of the slope times
/// sqrt(chi^2 / dof) where that exceeds 1.  Where an error is 0 or not known, unweighted, with the
/// error that the scatter shows.  Nothing unless there are two values and all are positive.
std::optional<PowerFit> fit_power(const std::vector<double>& x, const std::vector<double>& values,
                                  const std::vector<double>& errors);

/// The power with which values grow as x does without bound: of the slopes of log value between
/// neighbours.
struct LimitingPower {
  double value = 0;
  double sampling_error = 0;       ///< from the errors of the values, taken as independent
  double extrapolation_error = 0;  ///< of the drift of the slopes
  double last = 0;                 ///< the slope between the last two values
  bool faster = false;  ///< slopes do not settle and grow by a factor: no power, as exp(x)
  [[nodiscard]] double error() const;  ///< both, as squares
};
/// The last two slopes are extrapolated linearly in 1/x.  The error is the difference from the last
/// one, or from the extrapolation by the order that the slopes show, whichever is larger; where
/// they do not settle, twice their spread.  Nothing unless there are three values or more, all
/// positive; x rises.
std::optional<LimitingPower> limiting_power(const std::vector<double>& x,
                                            const std::vector<double>& values,
                                            const std::vector<double>& errors);

/// One number of a report at all values of the constant.
struct ExtrapolatedEntry {
  std::string label;                   ///< "t = 3, [1]"; empty for a number
  std::vector<double> values, errors;  ///< errors: empty where they are not known
  Extrapolation limit;
  std::optional<PowerFit> power{};  ///< in the constant
};

struct ExtrapolatedReport {
  std::string name;
  std::vector<ExtrapolatedEntry> entries;
};

struct ExtrapolationResult {
  std::string constant;
  std::vector<std::string> texts;  ///< its values, as they were written
  std::vector<double> constants;
  bool growing = true;  ///< steps are 1/constant; else the constant
  double order = 1;
  EngineInfo engine;  ///< of the last limit
  std::vector<ExtrapolatedReport> reports;
  std::vector<std::string> left_out;  ///< what is not extrapolated, and why
  bool tolerance_missed = false;      ///< for some value
  Diagnostics warnings;               ///< of the last limit
  double time_s = 0;
};

/// "" or why these values cannot be extrapolated: not numbers, not positive, neither rising nor
/// falling.  Quotients of numbers, 1/8, are numbers.
std::string extrapolation_fault(const std::string& constant, const std::vector<std::string>& texts);

/// Sets limits for each value of the constant beside each other.  Needs: no fault; a limit for each
/// value.  Reports of the same name, loops and axes go together; of loops that differ in length the
/// iterations that all have, and the last one of each.
ExtrapolationResult extrapolate(const std::string& constant, const std::vector<std::string>& texts,
                                const std::vector<LimitResult>& limits, double order);

/// `all`: every entry, else the first, middle and last of each report.  `result` must outlive it.
document::Document document_of(const ExtrapolationResult& result, const ProgramInfo& program,
                               bool all = false);
/// docs/json.md.
std::string to_json(const ExtrapolationResult& result, const ProgramInfo& program);
std::string to_text(const ExtrapolationResult& result, const ProgramInfo& program,
                    const TextOptions& options = {});

}  // namespace tplimit
