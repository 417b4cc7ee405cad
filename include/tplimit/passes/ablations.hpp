#pragma once

#include <string>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// Changes of a program that show what its terms do.  Every engine then runs the changed program.
struct Ablations {
  std::vector<std::string> decouple;  ///< matrices "W", "W[0]", or arrays "W": W' d is taken with
                                      ///< an independent copy of W that gets the same updates
  bool no_correction = false;  ///< all matrices decoupled: no product sees what another made of the
                               ///< same Gaussian entries (gradient independence)
  bool lazy = false;           ///< training of the linearisation at the start
  [[nodiscard]] bool any() const { return !decouple.empty() || no_correction || lazy; }
};
/// "W decoupled", ..: for headings.
[[nodiscard]] std::string to_string(const Ablations& ablations);

/// The program with W' d replaced by W~' d, W~ an independent copy of W with the same scales and
/// updates.  Then the correction terms of W x and W' d vanish: each needs the other product of the
/// same Gaussian matrix.  Errors: E2148 no such matrix.
Result<ir::Program> decoupled(const ir::Program& program, const Ablations& ablations);

/// Lazy training: outputs (first arguments of mse, and the same functions of the parameters
/// elsewhere) are replaced by f(theta_0) + <df/dtheta(theta_0), theta_t - theta_0>; everything else
/// that is computed from parameters, gradients included, uses theta_0. Needs: the lowered program,
/// Change nodes in place.  Errors: E2149 no mse, a function without a tangent, or a report that
/// moves but is computed from no output.
Result<ir::Program> linearised(const ir::Program& program);

}  // namespace tplimit
