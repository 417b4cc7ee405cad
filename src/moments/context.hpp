#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>

#include "moments/fields.hpp"
#include "moments/function_table.hpp"
#include "parallel/executor.hpp"

namespace tplimit::moments {

/// Limits by counts, which are the same on all machines.  Beyond `evaluations` of functions, what
/// can be known is found out first, with quadratures of few points, so that nothing is spent on
/// values from which only unknown ones are computed.  Beyond `operations` of algebra everything
/// is unknown.
struct Budget {
  double evaluations = std::numeric_limits<double>::infinity(),
         operations = std::numeric_limits<double>::infinity();
};

inline constexpr double kTermOperations = 100;  ///< of any term, at least

/// Why three numbers (a, b, c) are no variances and covariance.
[[nodiscard]] std::string not_a_covariance(const std::array<double, 3>& entry);

/// What all parts of one evaluation share: the functions met so far, threads, what was spent, and
/// whether values are exact, rough (quadratures of few points) or disturbed (moved by their own
/// errors, to measure those).
struct RunContext {
  explicit RunContext(const Executor& threads) : executor(threads) {}

  /// Counts operations of algebra; throws Unknown beyond the budget, Stopped if that is asked for.
  void charge(double more);
  /// Whether quadratures are rough from now on.
  bool out_of_evaluations();
  /// Moves values by +-error if this run is disturbed.
  void disturb(Matrix& values, double error);
  /// An error of what a moment is computed from; disturbed values carry it themselves.
  [[nodiscard]] double carried(double error) const { return disturbance != 0 ? 0 : error; }
  /// Keeps the largest excess of a correlation over 1; throws Unknown where there is no moment.
  void note(const MomentStatus& status);
  /// body(j) for all columns, on threads if it is worth them.
  void each_column(Eigen::Index rows, Eigen::Index columns,
                   const std::function<void(int)>& body) const;
  /// x becomes (x + x') / 2.
  void symmetrise(Matrix& x) const;

  FunctionTable functions;
  const Executor& executor;
  Budget budget;
  double operations = 0;
  bool rough = false;             ///< quadratures have few points now
  std::uint64_t disturbance = 0;  ///< state of the random signs; 0: none
  double excess = 0;              ///< largest c^2/(ab) - 1 that was clamped as rounding
};

}  // namespace tplimit::moments
