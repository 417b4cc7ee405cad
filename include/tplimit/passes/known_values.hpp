#pragma once

#include <optional>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// Where a NaN first appears that certainly reaches an output: 0/0 of a sample that is all zeros,
/// and its like.  Entries are followed one by one as numbers known before the run, at every width;
/// all else is unknown.  What the limit engines prove by symmetry or by a vanishing factor holds
/// for finite values only, and this is what tells. Needs: erase_identities.  Cost: O(entries of
/// constants and of what is computed from them alone or becomes 0 by them).
std::optional<ir::NodeId> certain_nan(const ir::Program& program);

/// The same numbers, by node and entry; NaN: not known; none: nothing of the node is.  Sums and
/// products with what is 0 are among them: sin(U @ x) of x = 0.
[[nodiscard]] std::vector<std::vector<double>> known_entries(const ir::Program& program);

}  // namespace tplimit
