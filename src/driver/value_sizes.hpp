#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tplimit/driver/driver.hpp"

/// Programs whose reports are the sizes of the values of another one.
namespace tplimit {

/// The mean of squares over coordinates and all finite axes.
ir::NodeId mean_square(ir::Builder& b, ir::NodeId x);
/// The root of the mean of `mean_square` over some values.
ir::NodeId root_mean_square(ir::Builder& b, const std::vector<ir::NodeId>& values);

/// The module with another program instead of its own.
Module with_program(const Module& module, ir::Program program);

struct LimitsOfReports {
  std::vector<std::optional<ReportResult>> reports;  ///< empty where there is none
  std::string missing;                               ///< why; empty: all are there
};
/// The limits of some reports of a program, where there are any: all at once, else by halves, so
/// that those that have none are left alone.
LimitsOfReports limits_where_any(const Module& module, const ir::Program& program,
                                 const std::vector<std::size_t>& wanted,
                                 const EvaluateOptions& options);

}  // namespace tplimit
