#pragma once

#include "tplimit/passes/passes.hpp"

namespace tplimit {

struct GradedOptions {
  std::uint64_t seed = 0, draw = 0;  ///< of the random outputs
  Exponent depth{1, 2};              ///< terms down to n^-depth times the largest are carried
};

/// The limit of a program whose reports need more than leading orders (docs/theory.md, "Graded values"): each value is a short series
/// sum_k n^(e_k) Z_k, and a mean over coordinates that is linear in a centred Gaussian readout r, E(J r), is n^(-1/2) times a random
/// number N(0, E J J'), drawn from the seed: the limit is conditional on these draws.  What is not carried is bounded
/// with its parities, as in counting.
/// Needs: erase_identities.  Errors: those of leading_order.  Cost: that of leading_order times the number of terms, and O(steps^2)
/// products for updates of matrices.
Result<LeadingOrder> graded_limit(const ir::Program& program, const GradedOptions& options);

}  // namespace tplimit
