#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/driver/driver.hpp"
#include "tplimit/report/extrapolation.hpp"
#include "tplimit/report/sweep.hpp"

/// One program for several values of some of its constants.
namespace tplimit {

/// Names and values, as --set takes them.
using Constants = std::vector<std::pair<std::string, std::string>>;
/// The program with these constants beside those that are fixed, and draw `draw` of its random
/// scalars; the text is always the same.
using ModuleOf = std::function<Result<Module>(const Constants& varied, std::uint64_t draw)>;

/// "" or why these constants cannot be varied beside those that are fixed.
std::string variation_fault(const std::vector<SweepAxis>& axes, const Constants& fixed);
/// "" or why no combination can be the best of this report.
std::string goal_fault(const SweepGoal& goal, const Module& module);

/// The first combination that is a program, for what is said of the program as such: without the
/// varied constants among those that it names.
/// Errors: those of the first combination, if none is a program; E2114, E2115, E5001 at once, which
/// all have.
Result<Module> first_program(const std::vector<SweepAxis>& axes, const ModuleOf& module_of);

/// The limit, or with `options.widths` the comparison, of every combination.  One that is refused
/// is a row with its errors.  `base` is that of first_program, `options.evaluate.progress` that of
/// all.
/// Errors: E5206, E5207, and E2701, which all combinations have.
Result<Sweep> sweep(const Module& base, std::vector<SweepAxis> axes, std::optional<SweepGoal> goal,
                    const ModuleOf& module_of, const CompareOptions& options);

/// Limits for each value of one constant, extrapolated; needs: no extrapolation_fault.
/// Errors: those of evaluate, with a note that names the value.
Result<ExtrapolationResult> extrapolate(const SweepAxis& axis, int order, const ModuleOf& module_of,
                                        const CompareOptions& options);

}  // namespace tplimit
