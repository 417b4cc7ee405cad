#pragma once

#include <functional>

#include "engines/plan.hpp"
#include "engines/stored_entries.hpp"

namespace tplimit::engines {

/// What a sweep over entries reads and writes, by node.
struct EntrySweepOperands {
  /// All rows of a vector.
  std::function<const Block&(ir::NodeId)> block;
  std::function<double(ir::NodeId)> number;
  /// Arrays of entries, and the entries of matrices that numbers are added to (only their factor
  /// may wait).
  std::function<Slabs&(ir::NodeId)> entries;
};

/// Executes the plan, piece by piece: a piece passes through all operations while it is in the
/// cache.  Cost: one pass over each array, and 2 n^2 P for an outer sum of P vectors.
/// E4101: an entry that is added to a matrix is not finite.
template <class T>
void sweep_entries(const Executor& executor, const StoredEntries<T>& arrays,
                   const ir::Program& program, const Plan::EntrySweep& plan,
                   const EntrySweepOperands& operands);

extern template void sweep_entries(const Executor&, const StoredEntries<float>&, const ir::Program&,
                                   const Plan::EntrySweep&, const EntrySweepOperands&);
extern template void sweep_entries(const Executor&, const StoredEntries<double>&,
                                   const ir::Program&, const Plan::EntrySweep&,
                                   const EntrySweepOperands&);

}  // namespace tplimit::engines
