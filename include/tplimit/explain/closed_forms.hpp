#pragma once

#include <optional>
#include <string>

#include "tplimit/explain/expression.hpp"

namespace tplimit::explain {

/// A Gaussian mean E f(a) or E f(a) f(b) with a closed form, a and b of mean 0 (docs/moments.md).
struct ClosedForm {
  std::string text,
      latex;  ///< in C (one Gaussian), or A = E a^2, B = E b^2, C = E a b, r = C / sqrt(A B)
  double (*value)(double, double, double);  ///< of A, B, C
  bool pair = false;
  Expr a, b, covariance;  ///< E[a b] (or E[a^2]) as a formula
};

/// The closed form of a kMean, if its factors are known functions of values that are linear in
/// centred Gaussians.
std::optional<ClosedForm> closed_form(Calculus& calculus, const Expr& mean);

}  // namespace tplimit::explain
