#pragma once

#include <string>
#include <vector>

#include "tplimit/explain/expression.hpp"

namespace tplimit::explain {

/// An n x n matrix of i.i.d. N(0, scale^2/n) entries.
struct MatrixFamily {
  std::string name;
  double scale = 1;
  bool used[2] = {false, false};  ///< W x, W' x
};

/// The limit of a program as formulas, in the order of the program.
struct Formulas {
  Calculus calculus;
  std::vector<MatrixFamily> matrices;  ///< by source
  struct ReportEntry {
    std::string name;
    std::vector<std::int64_t> index;
    std::uint32_t definition;
  };
  std::vector<ReportEntry> reports;          ///< all entries of all reports
  std::vector<std::string> contexts;         ///< of the program
  std::vector<std::uint32_t> step_contexts;  ///< per step of the program
};

/// Writes every value of a limit program (leading_order) as a formula.  A product W x becomes
///   G[W x]_i + sum_y sum_j s^2 E[d x_i / d G[W' y]_j] y_j + sum_k c_k sum_p D_k[p] E[X_k[p] x_i],
/// G Gaussian with covariance s^2 E[x_i x_j], y over the earlier products with W'
/// (docs/explain.md). Derivatives are in the sense of distributions: those of step functions leave
/// deltas. Cost: O(products^2) derivatives.
Formulas formulas_of(const ir::Program& limit);

/// A program that computes the same by these formulas alone: every product uses a matrix of its
/// own, its correction terms written out. Its reports are those of the formulas, then one for each
/// of `wanted`.  Means that contain deltas are found as whole coefficients by Stein's lemma: sum_k
/// C_jk E[d x / d G_k] = E[x G_j], C the covariance of G.
struct Evaluable {
  ir::Program program;
  std::vector<bool> possible;  ///< per wanted formula: false where a mean contains deltas
};
Evaluable evaluable(Formulas& formulas, const ir::Program& limit, const std::vector<Expr>& wanted);

/// The free symbols of a formula in the order of its value's axes in `evaluable`.
std::vector<Symbol> free_symbols(const Expr& e);

}  // namespace tplimit::explain
