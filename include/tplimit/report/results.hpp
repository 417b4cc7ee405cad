#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// How the numbers of a report were found and what their error means.
enum class Method {
  kExact,       ///< exact algebra or a proof: error 0 (rounding apart)
  kClosedForm,  ///< closed forms of Gaussian moments: error is a bound on rounding
  kQuadrature,  ///< error: estimated from two levels of the rule
  kParticles,   ///< error: one standard error over independent randomisations, with that of dropped
                ///< directions added in squares
  kNetworks,    ///< finite networks: error is the standard error of the mean over seeds
  kSamples,     ///< draws of coordinates: no error
};
[[nodiscard]] const char* to_string(Method method);

/// How a report would be found.
struct ReportMethod {
  Method method;    ///< the weakest over the entries of the report
  std::string why;  ///< why no stronger method applies; empty if none is stronger
  Span culprit;     ///< what is to blame
  std::string iteration;
};

/// One report: all entries of all iterations.  Layout: row-major, loop indices first, then the axes
/// of the value.
struct ReportResult {
  std::string name;
  Span span;
  std::vector<std::string> index_names;                 ///< loop variables
  std::vector<std::vector<std::int64_t>> index_values;  ///< per loop variable: the values it takes
  std::vector<std::int64_t> shape;  ///< extents of loops, then axes of the value
  std::vector<double> value;
  std::vector<double> error;   ///< empty if there is none (one randomisation, samples)
  std::string undetermined{};  ///< why some values, which are NaN, stay random as the width grows;
                               ///< else empty
  std::vector<bool>
      unresolved;  ///< eigenvalues that cannot be told from 0 or a neighbour; else empty
  Method method = Method::kParticles;
  bool random =
      false;  ///< of one network it stays random as the width grows: `value` is of the mean
  std::optional<double> order{};  ///< a report that vanishes like n^order, by counting
  std::vector<double>
      spread{};  ///< standard deviation over draws of the random scalars; empty for one draw
};

/// The report of this name; null if there is none.
const ReportResult* find_report(const std::vector<ReportResult>& reports, const std::string& name);

enum class ExpectStatus { kPassed, kFailed, kUndecided };
struct ExpectResult {
  Span span;
  std::string iteration;
  ExpectStatus status = ExpectStatus::kUndecided;
  double left = 0, right = 0, error = 0, tolerance = 0;  ///< of the worst entry
};

struct EngineInfo {
  std::string name;
  std::int64_t particles = 0;
  int randomisations = 0;
  std::uint64_t seed = 0;
  int threads = 1;
  double rank_tol = 0;
  std::int64_t largest_rank = 0;
  std::int64_t stored_matrices = 0;   ///< of the limit: with more directions than half of the
                                      ///< particles, so that all their entries are stored
  std::optional<double> tolerance{};  ///< of --tol
  double merge_rows = 0;              ///< of --merge-rows
  std::int64_t rows_merged = 0;
  double clamped = 0;         ///< largest c^2/(ab) - 1 of a covariance that was taken for rounding
  double sampling_error = 0;  ///< largest of the reports: one standard error
  double truncation_error =
      0;  ///< largest of the reports: estimated error of dropping directions below rank_tol
  bool single_precision =
      false;                   ///< of bases and normals of the limit, of dense matrices of networks
  double memory_estimate = 0;  ///< bytes, from the ranks that were found
  double product_flops =
      0;          ///< floating-point operations in products with bases and normals, of all ranks
  int ranks = 1;  ///< processes over which particles were spread
  std::int64_t sums = 0,
               sum_bytes = 0;  ///< over ranks: how many, and the bytes that one rank gave to them
  bool extrapolated =
      false;  ///< the bias of order rank / particles was removed by runs of twice the particles
};

/// What the limit of a program is.
struct LimitResult {
  EngineInfo engine;
  std::vector<ReportResult> reports;
  std::vector<ExpectResult> expectations;
  Diagnostics warnings;
  double time_s = 0;
  double peak_memory_bytes = 0;
  bool tolerance_missed = false;  ///< --tol could not be reached
  double largest_error = 0;
  bool random_outputs =
      false;      ///< conditional on random outputs of networks that were drawn from the seed
  int draws = 1;  ///< of the random scalars and outputs, over which values are averaged
};

/// Networks of one width, several seeds.
struct SimulationResult {
  EngineInfo engine;
  std::int64_t width = 0;
  int seeds = 0;
  bool dense = true;
  std::vector<ReportResult> reports;                   ///< mean over seeds and its standard error
  std::vector<std::vector<std::vector<double>>> runs;  ///< [report][seed][entry]
  Diagnostics warnings;
  double time_s = 0;
  double peak_memory_bytes = 0;
};

}  // namespace tplimit
