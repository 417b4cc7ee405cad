#pragma once

#include <optional>
#include <vector>

#include "tplimit/ir/program.hpp"
#include "tplimit/report/results.hpp"

namespace tplimit {

/// Shape and index values of a report; values are filled in by the caller.
ReportResult skeleton(const ir::Program& program, const ir::Report& report);

/// Means over runs [run][entry] and their standard errors; of one run no errors.
void set_means(const std::vector<std::vector<double>>& runs, ReportResult& report);

/// The Eigvals node behind a report, if only selections stand between.
std::optional<ir::NodeId> eigenvalues_behind(const ir::Program& program, ir::NodeId id);

/// "An eigenvalue within 3 errors of 0 or of its neighbour, or below rank_tol^2 times the largest,
/// is not resolved."
std::vector<double> unresolved_flags(const std::vector<double>& values,
                                     const std::vector<double>& errors, std::int64_t count,
                                     double rank_tol);

}  // namespace tplimit
