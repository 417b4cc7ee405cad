#pragma once

#include <optional>
#include <vector>

#include "tplimit/ir/program.hpp"
#include "tplimit/passes/gradient.hpp"

namespace tplimit {

/// Whether f is linear, apart from a constant, in all sources together, by structure: a derivative
/// that holds almost everywhere proves nothing.
bool linear_in(const ir::Builder& builder, ir::NodeId f, const std::vector<ir::NodeId>& sources);

/// f = <slope, source> + at_zero, a finite scalar f that is linear in `source`.
struct LinearPart {
  Derivative slope;    ///< does not depend on the source
  ir::NodeId at_zero;  ///< f with the source replaced by zeros
};
/// Empty if f does not depend on the source or is not affine in it by structure (sign(v @ x) is
/// not, though its derivative is 0 almost everywhere).  Appends nodes.
std::optional<LinearPart> linear_part(ir::Builder& builder, ir::NodeId f, ir::NodeId source);

/// A finite f [d..] that is linear in initial vectors r: f = rest + sum over r of <J_r, r>, a sum
/// over coordinates.
struct ReadoutParts {
  std::vector<std::pair<ir::NodeId, ir::NodeId>>
      slopes;       ///< StandardNormal node r, J_r [size of f, dims of r..] with a width axis
  ir::NodeId rest;  ///< f at r = 0
};
/// Empty if f is linear in none of the candidates, which are tried in this order.  Appends nodes.
std::optional<ReadoutParts> readouts_of(ir::Builder& builder, ir::NodeId f,
                                        const std::vector<ir::NodeId>& candidates);
/// The initial vectors of the program, those first of which other than affine functions are taken
/// last: readouts, wherever they are declared.
std::vector<ir::NodeId> readout_candidates(const ir::Program& program);

/// A program with some reports f [d..] replaced by what they tend to in law.
struct GaussianOutputs {
  ir::Program limit;     ///< reports cov(f) [d.., d..], and mean(f) [d..] unless it is 0
  ir::Program networks;  ///< reports (f - mean) (f - mean)' of one network, whose average over
                         ///< networks tends to cov(f)
  Diagnostics notes;     ///< W5302 for each report that was replaced
};

/// Where f = J r + f_0 with r ~ N(0, 1) initial vectors and neither J nor f_0 computed from r, f
/// tends to a Gaussian with the mean lim f_0 and the covariance lim J J' (NNGP of any architecture,
/// DESIGN of readouts in docs/theory.md, "Random outputs"). `reports[k]`: replace report k; one
/// that is not of this form stays.  Needs: erase_identities.  Cost: O(nodes) per entry.
GaussianOutputs gaussian_outputs(const ir::Program& program, const std::vector<bool>& reports);

}  // namespace tplimit
