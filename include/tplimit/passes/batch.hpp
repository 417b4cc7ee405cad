#pragma once

#include <map>
#include <optional>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// What `outputs` would be if each node `from` of `inputs` (from -> to) took `size` values: `to`
/// has the type of `from` with one more axis of that size in front, and so have the results.
/// Appends nodes; what depends on no input is shared. Needs: not `unbatchable`.  Cost: O(nodes
/// behind the outputs).
std::vector<ir::NodeId> batched(ir::Builder& builder, const std::vector<ir::NodeId>& outputs,
                                std::int64_t size, const std::map<ir::NodeId, ir::NodeId>& inputs);

/// E2134 if something behind `outputs` has no batched form: a matrix version, or the training
/// kernel of predict_gd, that depends on an input.
std::optional<Diagnostic> unbatchable(const ir::Builder& builder,
                                      const std::vector<ir::NodeId>& outputs,
                                      const std::vector<ir::NodeId>& inputs);

/// True if entry i of `output`'s first axis depends on the entries of `input`'s first axis other
/// than i, as far as the operations between them tell: they are looked at one by one, not their
/// values.  Both are finite.  Cost: O(nodes between them).
bool mixes_rows(const ir::Builder& builder, ir::NodeId output, ir::NodeId input);

/// `outputs` with nodes replaced by others of the same type, matrix versions included; what lies
/// behind those is not looked at. Cost: O(nodes behind the outputs).
std::vector<ir::NodeId> substituted(ir::Builder& builder, const std::vector<ir::NodeId>& outputs,
                                    const std::map<ir::NodeId, ir::NodeId>& inputs);
ir::NodeId substituted(ir::Builder& builder, ir::NodeId output,
                       const std::map<ir::NodeId, ir::NodeId>& inputs);

/// True if one of `outputs` is one of `inputs` or is computed from one.  Cost: O(nodes behind the
/// outputs and after the inputs), each once.
bool depends_on(const ir::Builder& builder, std::vector<ir::NodeId> outputs,
                const std::vector<ir::NodeId>& inputs);

}  // namespace tplimit
