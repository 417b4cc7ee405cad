#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/ir/program.hpp"

namespace tplimit {

constexpr std::ptrdiff_t kFewVariables = 8, kManyVariables = 64;

/// Sizes of one value of the text at one step, as powers of n; empty: exactly 0.
struct StepSize {
  ir::NodeId node;  ///< of with_last_pass(program)
  std::optional<Exponent> value;
  std::optional<Exponent> change;  ///< of what the updates of parameters add to it
  std::vector<std::optional<Exponent>>
      by_variable;  ///< of the part of the change that the updates of one variable are needed for;
                    ///< beyond kManyVariables, of one declaration
};

/// A named value, followed through training.
struct Feature {
  std::string name;  ///< "z", or "z, l = 1" where the text names it several times between two steps
  Span span;
  bool prediction = false;      ///< what a loss compares with targets
  std::vector<StepSize> steps;  ///< before the first step, after it, ..
};

/// What the updates of one variable do where the variable is used, weight decay left out: what
/// shrinks a layer teaches it nothing.
struct VariableEffect {
  std::uint32_t variable = 0;       ///< in Program::variables
  Span span;                        ///< where it is used
  bool readout = false;             ///< its first use gives a finite value
  std::optional<Exponent> initial;  ///< of W z, or of v z / n term by term: before cancellation
  std::optional<Exponent> update;   ///< of dW z, the largest over steps; empty: never updated
  std::optional<Exponent>
      entry;         ///< of one entry of dW: the rate of an optimiser whose steps have size rate
  ir::NodeId start;  ///< the version that is used first
  ir::NodeId user;   ///< what uses it first
  /// Products of a matrix with values of the forward pass, and after how many steps.
  std::vector<std::pair<std::uint32_t, ir::NodeId>> products{};
  [[nodiscard]] bool maximal() const { return update && *update == 0; }
};

enum class Regime { kUntrained, kUnstable, kTrivial, kKernel, kFeatures };
[[nodiscard]] const char* to_string(Regime regime);

/// What to change in a declaration.
struct Fix {
  std::uint32_t variable = 0;
  Exponent initial = 0;  ///< factor n^initial of the initial value
  Exponent rate = 0;     ///< factor n^rate of the rate
  Exponent decay = 0;    ///< factor n^decay of the weight decay
};

struct RegimeReport {
  Regime regime = Regime::kUntrained;
  bool maximal = false;  ///< every trained variable moves its layer by order 1
  int steps = 0;         ///< steps counted: up to the first after which something grows with n
  std::vector<Feature> features;
  std::vector<VariableEffect> effects;
  std::vector<std::optional<Exponent>>
      reports;                         ///< size of each report: the largest over its entries
  std::optional<Diagnostic> unstable;  ///< W5310: which value grows, where and when
  bool gaussian_start =
      false;  ///< a prediction of size 1 at the start is random (Gaussian), not a constant
  std::vector<Fix>
      fixes;  ///< smallest change that makes it maximal; empty if it is, or none was found
};

/// The forward pass before the last step once more after it, so that what the step does is counted.
/// Where the program itself has the same values there, they are the same nodes.
[[nodiscard]] ir::Program with_last_pass(ir::Program program);

/// `value` of a forward pass once more, with the newest versions that it is computed from of some
/// variables and the first ones of all others.
[[nodiscard]] ir::NodeId with_updates_of(ir::Builder& builder, ir::NodeId value,
                                         const std::vector<bool>& variables);

/// Factors n^power put on initial values and rates, by variable.
struct Adjustment {
  std::map<std::uint32_t, Exponent> initial, rate;
  bool decay = true;  ///< false: what shrinks variables in proportion to themselves is left out
};

/// Sizes of all values in powers of n, by counting through the program (docs/theory.md,
/// "Counting"): each value is a sum of parts n^e Z that need the updates of certain variables; a
/// mean over coordinates of a part that changes sign with a Gaussian family is n^(-1/2) times
/// smaller; a function acts on parts by its expansion around what has size 1.  Values are generic:
/// no data are looked at, and coefficients are taken to be nonzero unless a symmetry says
/// otherwise. Needs: the lowered program, Change nodes in place.  Cost: O(nodes), times the number
/// of variables for the fixes and for by_variable, which is empty beyond kFewVariables trained ones
/// unless every share is asked for.
RegimeReport count_powers(const ir::Program& program, bool every_share = true);

}  // namespace tplimit
