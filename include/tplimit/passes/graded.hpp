#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tplimit/passes/passes.hpp"

namespace tplimit {

struct GradedOptions {
  std::uint64_t seed = 0, draw = 0;  ///< of the random outputs
  Exponent depth{1, 2};              ///< terms down to n^-depth times the largest are carried
  /// The first value of this name is not drawn but has these entries (or one for all); what comes
  /// later is conditional on it.
  struct Given {
    std::string name;
    std::vector<double> values;
  };
  std::optional<Given> given{};
};

/// The limit of a program whose reports need more than leading orders (docs/theory.md, "Graded
/// values"): each value is a short series sum_k n^(e_k) Z_k, and a mean over coordinates that is
/// linear in a centred Gaussian readout r, E(J r), is n^(-1/2) times a random number N(0, E J J'),
/// drawn from the seed: the limit is conditional on these draws.  What is not carried is bounded
/// with its parities, as in counting.
/// A given value must be the first random number of its readout, plus at most a constant: else
/// E3107.  Given the first numbers f of a readout, later ones are K21 K11^+ f + N(0, K22 - K21
/// K11^+ K12). Where a function jumps, the first-order change of its value contains a delta, which
/// is bounded, not carried. Needs: erase_identities.  Errors: those of leading_order, E3107.  Cost:
/// that of leading_order times the number of terms; a product with a matrix has a term for each of
/// the different vectors x of its updates d x', which under a fixed kernel are as many as batches.
Result<LeadingOrder> graded_limit(const ir::Program& program, const GradedOptions& options);

}  // namespace tplimit
