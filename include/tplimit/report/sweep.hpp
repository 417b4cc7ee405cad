#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tplimit/report/comparison.hpp"
#include "tplimit/report/document.hpp"
#include "tplimit/report/text.hpp"
#include "tplimit/support/diagnostic.hpp"

/// Results of one program for all combinations of values of some of its constants.
namespace tplimit {

/// A constant and the values that it takes, as they were written.
struct SweepAxis {
  std::string name;
  std::vector<std::string> values;
};

/// One combination: what was set, and what came of it.
struct SweepRow {
  std::vector<std::string> values;  ///< one for each axis
  ProgramInfo program;
  std::variant<Diagnostics, LimitResult, Comparison> outcome;  ///< diagnostics: it was refused

  [[nodiscard]] const Diagnostics* refusal() const { return std::get_if<Diagnostics>(&outcome); }
  /// Null where the combination was refused.
  [[nodiscard]] const LimitResult* limit() const;
  [[nodiscard]] const Comparison* comparison() const { return std::get_if<Comparison>(&outcome); }
};

/// Which combination is wanted: that with the lowest or highest value of a report.
struct SweepGoal {
  std::string report;
  bool highest = false;
};

struct Sweep {
  std::vector<SweepAxis> axes;
  std::vector<SweepRow> rows;  ///< the last axis fastest
  std::optional<SweepGoal> goal{};
  Diagnostics warnings{};  ///< of all limits, each once
  double time_s = 0;
};

/// All combinations of values, the last axis fastest.
std::vector<std::vector<std::string>> combinations(const std::vector<SweepAxis>& axes);

/// A report as one number: what stands after the last iteration; of an array its norm, the root of
/// the sum of squares.
struct Summary {
  std::string label;           ///< "loss, last", "|out|"
  double value = 0;            ///< NaN where it is undetermined
  std::optional<double> error; /**< standard error; of a norm at most this, whatever the correlation
                                  of the entries; empty: unknown */
};
/// Nothing for draws of coordinates and for reports without values.
std::optional<Summary> summary_of(const ReportResult& report);

struct BestRows {
  std::size_t best;               ///< index of a row
  std::vector<std::size_t> ties;  ///< rows whose difference from it is within two errors of that
                                  ///< difference, errors taken as independent
  bool errors_known = true;       ///< of all rows with a number
};
/// Nothing if no row has a number for the goal.
std::optional<BestRows> best_of(const Sweep& sweep);

/// A row for each combination, a column for each report; with networks a table for each report,
/// with their means and the verdict.  `sweep` must outlive the document.
document::Document document_of(const Sweep& sweep, const ProgramInfo& program);
/// docs/json.md.
std::string to_json(const Sweep& sweep, const ProgramInfo& program);
std::string to_text(const Sweep& sweep, const ProgramInfo& program,
                    const TextOptions& options = {});

}  // namespace tplimit
