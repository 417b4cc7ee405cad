#pragma once

#include <optional>
#include <vector>

#include "engines/interpreter.hpp"

namespace tplimit {

/// Which nodes have no error of sampling because of linear algebra: matched particles have exactly
/// the mean and covariance of the Gaussians they stand for, so means of polynomials of degree 2 in
/// them, and all that is computed from such means alone, are exact.
std::vector<bool> proved_by_matching(const ir::Program& program);

/// An average over particles whose terms have heavy tails.
struct HeavyTail {
  ir::NodeId average;   ///< or a product with a matrix, which takes the mean square of its vectors
  double index, error;  ///< P(term > t) ~ t^-index, one standard error; index 0: of a vector that a
                        ///< matrix multiplies, beyond a jump that no particle crosses
  bool resolved;        ///< false: the mean is infinite, or beyond these particles
  double relative = 0;  ///< of averages inside a program: what terms beyond the largest may add, in
                        ///< units of the mean
};

/// What the spread over runs cannot show (docs/theory.md, "Errors").
struct Unresolved {
  std::vector<std::vector<double>>
      error;  ///< per average and entry: one standard error, to be added in squares
  std::vector<HeavyTail> tails;  ///< to be told
  std::vector<HeavyTail> inner;  ///< of averages inside the program, also if they are less heavy:
                                 ///< for errors of what follows
};
/// `averages`: what the runs' values are of.  `proved`: of all nodes.
Unresolved unresolved(const ir::Program& program, const std::vector<ir::NodeId>& averages,
                      const std::vector<engines::RunResult>& runs, const std::vector<bool>& proved,
                      std::int64_t particles);

/// Whether no entry [.., i, i] of an average can be negative, as a mean of squares; others may be.
/// Entry by entry; empty: none is known.
std::vector<bool> means_of_squares(const ir::Program& program, ir::NodeId average);

}  // namespace tplimit
