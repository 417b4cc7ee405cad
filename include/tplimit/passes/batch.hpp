#pragma once

#include <map>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// What `outputs` would be if each node `from` of `inputs` (from -> to) took `size` values: `to` has the type of `from` with one
/// more axis of that size in front, and so have the results.  Appends nodes; what depends on no input is shared.
/// Needs: no matrix version depends on an input.  Cost: O(nodes behind the outputs).
std::vector<ir::NodeId> batched(ir::Builder& builder, const std::vector<ir::NodeId>& outputs, std::int64_t size, const std::map<ir::NodeId, ir::NodeId>& inputs);

/// `outputs` with nodes replaced by others of the same type, matrix versions included; what lies behind those is not looked at.
/// Cost: O(nodes behind the outputs).
std::vector<ir::NodeId> substituted(ir::Builder& builder, const std::vector<ir::NodeId>& outputs, const std::map<ir::NodeId, ir::NodeId>& inputs);
ir::NodeId substituted(ir::Builder& builder, ir::NodeId output, const std::map<ir::NodeId, ir::NodeId>& inputs);

/// True if `output` is one of `inputs` or is computed from one.
bool depends_on(const ir::Builder& builder, ir::NodeId output, const std::vector<ir::NodeId>& inputs);

}  // namespace tplimit
