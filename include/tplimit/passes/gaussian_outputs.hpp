#pragma once

#include <optional>
#include <vector>

#include "tplimit/ir/program.hpp"
#include "tplimit/passes/gradient.hpp"

namespace tplimit {

/// Whether f is linear, apart from a constant, in all sources together, by structure: a derivative
/// that holds almost everywhere proves nothing.
bool linear_in(const ir::Builder& builder, ir::NodeId f, const std::vector<ir::NodeId>& sources);

/// f = <slope, source> + at_zero, a finite scalar f that is linear in `source`, a vector or a
/// matrix.
struct LinearPart {
  Derivative slope;    ///< does not depend on the source
  ir::NodeId at_zero;  ///< f with the source replaced by zeros
};
/// Empty if f does not depend on the source or is not affine in it by structure (sign(v @ x) is
/// not, though its derivative is 0 almost everywhere).  Appends nodes.
std::optional<LinearPart> linear_part(ir::Builder& builder, ir::NodeId f, ir::NodeId source);

/// How N finite numbers f depend on one Gaussian source that they are linear in: on a vector r [k]
/// by sum_m d_m . r_m, on a matrix W by sum over terms and m of d_m . W x_m, all sums over
/// coordinates.
struct SourceSlope {
  struct Term {
    ir::NodeId d;      ///< [N, m] with a width axis
    ir::NodeId x{};    ///< of a matrix: [m], or [N, m], with a width axis
    bool own = false;  ///< x is another one for each of the N
  };
  ir::NodeId source;  ///< StandardNormal or GaussianMatrix
  std::int64_t size;  ///< N
  std::vector<Term> terms;
};
/// [N, M]: 1/n times the covariance of the numbers that a and b stand for, entries of vectors of
/// variance 1 and of matrices of variance 1/n.  Appends nodes.
ir::NodeId covariance(ir::Builder& builder, const SourceSlope& a, const SourceSlope& b);

/// A finite f [d..] that is linear in Gaussian sources: f = rest + what its slopes say.
struct ReadoutParts {
  std::vector<SourceSlope> slopes;  ///< of f flattened
  ir::NodeId rest;                  ///< f where these sources are 0
};
/// Empty if f is linear in none of the candidates, which are tried in this order.  Appends nodes.
std::optional<ReadoutParts> readouts_of(ir::Builder& builder, ir::NodeId f,
                                        const std::vector<ir::NodeId>& candidates);
/// The initial vectors of the program, then its Gaussian matrices; of each kind those first of
/// which other than affine functions are taken last: readouts, wherever they are declared.
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
