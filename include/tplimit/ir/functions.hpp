#pragma once

#include <optional>
#include <span>
#include <string>

#include "tplimit/ir/program.hpp"

/// The coordinatewise functions, one record each: all that any analysis, engine or printer knows of
/// a function stands in its record.  A function of one argument is added by one record at the end
/// of the table in functions.cpp.
namespace tplimit::ir {

/// What analyses need to know of a function; of several arguments: where it breaks and how large it
/// may be.
struct FunctionTraits {
  enum class Parity { kNone, kOdd, kEven };
  Parity parity = Parity::kNone;
  std::optional<Exponent> degree;  ///< phi(c x) = c^degree phi(x) for c > 0
  double at_zero = 0;              ///< phi(0); unused where a negative degree makes it infinite
  double slope_at_zero = 0;        ///< phi'(0), where phi is smooth at 0
  bool finite_everywhere =
      true;               ///< defined and continuous on the whole line (not log, negative powers)
  bool positive = false;  ///< phi > 0 almost everywhere
  bool bounded = false;   ///< whatever the argument is
  bool odd_up_to_constant = false;      ///< phi - phi(0) is odd almost everywhere
  bool derivative_is_itself = false;    ///< phi' = phi
  bool heavy_tails = false;             ///< of a Gaussian, whatever its variance: no finite bound
                                        ///< holds for all moments, or no sample shows them
  bool faster_than_polynomial = false;  ///< not bounded by any polynomial
  /// Where its argument (of two arguments: their difference) passes 0, the first derivative that
  /// contains deltas there: 1 where the function jumps, 2 at kinks; none if it is smooth.  `where`
  /// jumps with its condition, which is a comparison; `mod` where x / y is whole.
  std::optional<int> first_delta;
  bool constant_on_pieces = false;  ///< constant but where it jumps, or at single points
  bool smooth_on_pieces = true;     ///< analytic between its breaks, up to them
};

/// phi' = constant + factor psi, psi another function of the table (almost everywhere; where phi
/// jumps, psi may be step', a delta).
struct Slope {
  double constant = 0;
  double factor = 1;
  Map of{};
  int order = 0;  ///< of the derivative of `of`
};

/// An operand of several, on some coordinates: x[0], x[step], x[2 step], ..; step 0 or 1.
struct Operand {
  const double* x;
  std::int64_t step;
};

struct Function {
  Fn fn;
  const char* name;  ///< in printed programs, messages and formulas; of functions of one argument
                     ///< also in the language
  int arity;
  bool in_language = false;       ///< called by its name with one argument, or one more for `a`
  const char* form = nullptr;     ///< how a call is written; null: name(x)
  const char* written = nullptr;  ///< in messages, where that is not the name
  std::optional<double> default_parameter{};  ///< of a, for functions that take one in the language
  const char* parameter_name = nullptr;       ///< "the slope", for messages
  const char* latex = nullptr;                ///< of several arguments: the sign between two
  const char* sign = nullptr;                 ///< relations: the sign between two in formulas

  /// y[i] = phi(x[i]); arity 1.  x and y do not overlap.
  void (*values)(double a, const double* x, double* y, std::int64_t n) = nullptr;
  /// y[i] = phi(in[0][i], in[1][i], ..); other arities.
  void (*values_of_several)(const Operand* in, double* y, std::int64_t n) = nullptr;

  /// phi'(x) as nodes, given x and y = phi(x), almost everywhere; arity 1; null: 0.
  NodeId (*derivative)(Builder& b, double a, NodeId x, NodeId y) = nullptr;
  /// t times the derivative by the k-th argument, y = phi(x_0, ..); invalid: 0 almost everywhere.
  /// Other arities; null: 0.
  NodeId (*times_partial)(Builder& b, const std::vector<NodeId>& x, NodeId y, std::size_t k,
                          NodeId t) = nullptr;
  /// phi' by other functions, for formulas; null: formulas write phi'.
  Slope (*slope)(double a) = nullptr;
  /// phi by simpler functions, for quadrature, which encloses those; null: it knows phi.
  NodeId (*definition)(Builder& b, double a, NodeId x) = nullptr;

  FunctionTraits traits{};
  void (*traits_of_parameter)(double a, FunctionTraits& traits) = nullptr;  ///< what depends on a
};

/// In the order of Fn, and behind it the functions without an enumerator.
[[nodiscard]] std::span<const Function> functions();
[[nodiscard]] const Function& function(Fn fn);
/// A function of one argument that the language calls by this name, else null.
[[nodiscard]] const Function* find_function(const std::string& name);

[[nodiscard]] FunctionTraits traits_of(const Map& map);
[[nodiscard]] std::optional<int> first_delta(const Map& map);
/// As the text of a program writes it: "<", "^".
[[nodiscard]] const char* written(Fn fn);
/// In formulas, with a parameter that is not 1: elu[0.5], \operatorname{elu[0.5]}.
[[nodiscard]] std::string formula_name(const Map& map, bool latex);

/// phi'(x) as nodes, given x and y = phi(x).
NodeId derivative_of(Builder& builder, const Map& map, NodeId x, NodeId y);
/// t times the derivative of y = phi(x_0, ..) by x_k, the same for tangents and cotangents;
/// invalid: 0 almost everywhere.
NodeId times_partial(Builder& builder, const Map& map, const std::vector<NodeId>& x, NodeId y,
                     std::size_t k, NodeId t);

/// step, sign and comparisons: constant but where they jump.
[[nodiscard]] bool is_piecewise_constant(const Op& op);
/// exp, x^y, negative powers and quotients of vectors: of Gaussians they can have tails so heavy
/// that means are infinite, or no sample shows them.
[[nodiscard]] bool may_have_heavy_tails(const Program& program, const Node& node);
/// Whatever the argument is.
[[nodiscard]] bool is_bounded(const Op& op);

}  // namespace tplimit::ir
