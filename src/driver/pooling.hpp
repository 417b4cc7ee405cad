#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engines/interpreter.hpp"
#include "tplimit/passes/determinacy.hpp"

/// Numbers of a limit from the averages of several runs, with errors by jackknife.
namespace tplimit {

/// The averages that outputs are computed from: nodes with coordinates behind them and only finite
/// operations after.
std::vector<ir::NodeId> atoms_of(const ir::Program& program,
                                 const std::vector<ir::NodeId>& outputs);

bool all_finite(std::span<const std::vector<double>> values);

/// Values of finite nodes from averages pooled over runs, errors by jackknife over runs and from
/// what the runs do not resolve.
struct Pooled {
  std::vector<std::vector<double>> value, error;
  Undetermined undetermined;  ///< of the program whose limit this is
  Marks by_rounding;          ///< of the limit program
  std::optional<engines::RunFailure>
      failure;  ///< a value is not finite, or not everywhere within its error
};

/// `wanted` nodes, from `runs` of the averages `atoms`.  `unresolved`: of each average, a second
/// error that the spread of runs does not show.
Pooled pool(const ir::Program& program, const std::vector<ir::NodeId>& atoms,
            const std::vector<ir::NodeId>& wanted, const std::vector<engines::RunResult>& runs,
            const std::vector<std::vector<double>>& unresolved);

/// What values that jump change by, as root mean squares, if averages are off by their errors as
/// they came out together: with factors g / sqrt(R (R - 1)) for the deviation of each of R runs, g
/// normal.  So values of sums over many jumps have the errors of what decides.  Errors are
/// taken 2.5 times as large, so that a jump that lies within 5 of them is crossed, in 2 of 100
/// draws or more.
std::vector<std::vector<double>> spread_over_jumps(
    const ir::Program& program, const std::vector<ir::NodeId>& atoms,
    const std::vector<ir::NodeId>& wanted, const std::vector<engines::RunResult>& runs,
    const std::vector<std::vector<double>>& unresolved);

/// Runs i and j of M particles and the run of their 2 M joined particles, which has half their
/// bias: by grouped jackknife, 2 a_ij - a_j stands for a_i and 2 a_ij - a_i for a_j.  Their mean
/// has no bias of order 1/M, and their spread is that of a_i.
void extrapolate(const ir::Program& program, const std::vector<ir::NodeId>& atoms,
                 std::vector<engines::RunResult>& runs,
                 const std::vector<engines::RunResult>& joined);

}  // namespace tplimit
