#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/ir/program.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/diagnostic.hpp"

namespace tplimit {

/// What a pass that takes limits knows about the nodes of the program that it read.
struct KnownLimits {
  /// Why the limit of an output, "report 'loss'", is not known; `iteration`: ", at t = 3".
  std::function<std::optional<Diagnostic>(ir::NodeId, Span, const std::string& what,
                                          const std::string& iteration)>
      fault;
  /// Power of the width of the leading term; nothing: the value is 0.
  std::function<std::optional<Exponent>(ir::NodeId)> order;
  /// The limit, a node of the program that is built.
  std::function<ir::NodeId(ir::NodeId)> limit;
};

/// Gives the program that `builder` builds the limits of the reports and expectations of `in`, and
/// `result` what is known about the reports.  Returns the faults and of which nodes, one at most
/// for each report.
[[nodiscard]] std::vector<std::pair<ir::NodeId, Diagnostic>> limit_outputs(const ir::Program& in,
                                                                           ir::Program& out,
                                                                           ir::Builder& builder,
                                                                           const KnownLimits& known,
                                                                           LeadingOrder& result);

}  // namespace tplimit
