#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/explain/formulas.hpp"
#include "tplimit/report/program_info.hpp"
#include "tplimit/report/results.hpp"

namespace tplimit::explain {

/// Which formulas are shown.
struct Selection {
  std::vector<std::string> names;  ///< of vectors and scalars; empty: all
  std::optional<std::pair<std::int64_t, std::int64_t>> steps{};  ///< half-open; empty: all
};

/// One mean or number, evaluated.
struct Number {
  Expr formula;
  bool possible = false;  ///< false: a mean with deltas, known only within its coefficient
  Method method = Method::kExact;
  std::vector<double> value, error;
};

/// What is shown: definitions in order, and the numbers in them: finite definitions, means,
/// covariances of the Gaussians.
struct View {
  std::vector<std::uint32_t> definitions;
  std::vector<Expr> numbers;
  std::vector<Expr> means;  ///< all that stand in the formulas, each once
};
/// Names that no shown value has, steps behind the last one; empty: none.
std::string fault_of(const Formulas& formulas, const Selection& selection);
View view_of(Formulas& formulas, const Selection& selection);

/// `title`: the name of the program.  `numbers`: of View::numbers, or empty.  All end in a newline.
std::string to_text(Formulas& formulas, const View& view, const std::vector<Number>& numbers,
                    const std::string& title);
/// A document for latex with amsmath.
std::string to_latex(Formulas& formulas, const View& view, const std::vector<Number>& numbers,
                     const std::string& title);
/// docs/json.md, "explain".
std::string to_json(Formulas& formulas, const View& view, const std::vector<Number>& numbers,
                    const ProgramInfo& program);

}  // namespace tplimit::explain
