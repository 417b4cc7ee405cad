#include "tplimit/ir/functions.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <numbers>
#include <set>

#include "tplimit/math/vector_functions.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::ir {
namespace {

using Index = std::int64_t;
using Ids = std::vector<NodeId>;
using Parity = FunctionTraits::Parity;

// ---- values

std::size_t count(Index n) { return static_cast<std::size_t>(n); }

template <auto f>
void each(double, const double* x, double* y, Index n) {
  for (Index i = 0; i < n; ++i) y[i] = f(x[i]);
}

template <auto f>
void array(double, const double* x, double* y, Index n) {
  f(x, y, count(n));
}

template <auto f>
void each_pair(const Operand* in, double* z, Index n) {
  const auto [x, x_step] = in[0];
  const auto [y, y_step] = in[1];
  if (x_step == 1 && y_step == 1) {
    for (Index i = 0; i < n; ++i) z[i] = f(x[i], y[i]);
  } else if (x_step == 1) {
    const double c = *y;
    for (Index i = 0; i < n; ++i) z[i] = f(x[i], c);
  } else if (y_step == 1) {
    const double c = *x;
    for (Index i = 0; i < n; ++i) z[i] = f(c, y[i]);
  } else {
    std::fill_n(z, n, f(*x, *y));
  }
}

void power_values(double a, const double* x, double* y, Index n) {
  if (a == 2) return each<[](double t) { return t * t; }>(a, x, y, n);
  if (a == 3) return each<[](double t) { return t * t * t; }>(a, x, y, n);
  if (a == 4) return each<[](double t) { return (t * t) * (t * t); }>(a, x, y, n);
  if (a == -1) return each<[](double t) { return 1 / t; }>(a, x, y, n);
  vector_pow(x, a, y, count(n));
}

void gelu_tanh_values(double, const double* x, double* y, Index n) {
  const double c = std::sqrt(2 / std::numbers::pi);
  for (Index i = 0; i < n; ++i) y[i] = c * (x[i] + 0.044715 * x[i] * x[i] * x[i]);
  vector_tanh(y, y, count(n));
  for (Index i = 0; i < n; ++i) y[i] = 0.5 * x[i] * (1 + y[i]);
}

// ---- derivatives

NodeId one_minus(Builder& b, NodeId z) { return b.minus(b.constant(1), z); }

NodeId gelu_derivative(Builder& b, double, NodeId x, NodeId) {  // Phi(x) + x Phi'(x)
  const NodeId cdf = b.scale(
      0.5, 0, b.plus(b.constant(1), b.map(Fn::kErf, {b.scale(std::numbers::sqrt2 / 2, 0, x)})));
  const NodeId pdf = b.scale(std::numbers::inv_sqrtpi / std::numbers::sqrt2, 0,
                             b.map(Fn::kExp, {b.scale(-0.5, 0, b.map(Fn::kPower, {x}, 2))}));
  return b.plus(cdf, b.times(x, pdf));
}

/// t = tanh(c (x + k x^3)): (1 + t)/2 + x (1 - t^2) c (1 + 3 k x^2)/2
NodeId gelu_tanh_derivative(Builder& b, double, NodeId x, NodeId) {
  const double c = std::sqrt(2 / std::numbers::pi), k = 0.044715;
  const NodeId square = b.map(Fn::kPower, {x}, 2);
  const NodeId t = b.map(Fn::kTanh, {b.times(x, b.plus(b.constant(c), b.scale(c * k, 0, square)))});
  const NodeId slope = b.times(one_minus(b, b.map(Fn::kPower, {t}, 2)),
                               b.plus(b.constant(c / 2), b.scale(1.5 * c * k, 0, square)));
  return b.plus(b.scale(0.5, 0, b.plus(b.constant(1), t)), b.times(x, slope));
}

NodeId power_derivative(Builder& b, double a, NodeId x, NodeId) {
  if (a == 0) return b.zeros(b.type(x).width, b.type(x).dims);
  if (a == 1) return b.constant(1);
  return b.scale(a, 0, a == 2 ? x : b.map(Fn::kPower, {x}, a - 1));
}

void power_traits(double a, FunctionTraits& t) {
  t.degree = exponent_from_double(a);
  t.at_zero = a == 0 ? 1 : 0;
  t.slope_at_zero = a == 1 ? 1 : 0;
  // Without a degree the size of the result is unknown unless the argument has size 1.
  t.finite_everywhere = a >= 0 && t.degree;
  if (a == std::round(a))
    t.parity = std::fmod(std::abs(a), 2.0) == 0 ? Parity::kEven : Parity::kOdd;
  t.positive = t.parity == Parity::kEven;
  t.heavy_tails = a < 0;
  t.smooth_on_pieces = a >= 0 && a == std::floor(a);
}

/// Of min and max: the share of the argument that is taken.
template <bool minimum>
NodeId partial_of_extremum(Builder& b, const Ids& x, NodeId, std::size_t k, NodeId t) {
  const NodeId left_smaller = b.map(Fn::kLess, {x[0], x[1]});
  return b.times(t, (k == 0) == minimum ? left_smaller : one_minus(b, left_smaller));
}

// ---- the table

/// The k-th function that needs no enumerator: nothing but its record names it.
constexpr Fn unnamed(int k) { return static_cast<Fn>(static_cast<int>(Fn::kWhere) + 1 + k); }

constexpr std::array kFunctions{
    Function{
        .fn = Fn::kAbs,
        .name = "abs",
        .arity = 1,
        .in_language = true,
        .latex = "\\operatorname{abs}",
        .values = each<[](double x) { return std::abs(x); }>,
        .derivative = [](Builder& b, double, NodeId x, NodeId) { return b.map(Fn::kSign, {x}); },
        .slope =
            [](double) {
              return Slope{0, 1, {Fn::kSign, 0}};
            },
        .traits = {.parity = Parity::kEven, .degree = 1, .positive = true, .first_delta = 2}},
    Function{
        .fn = Fn::kSign,  // 0 at 0
        .name = "sign",
        .arity = 1,
        .in_language = true,
        .latex = "\\operatorname{sign}",
        .values =
            each<[](double x) { return static_cast<double>(x > 0) - static_cast<double>(x < 0); }>,
        .slope =
            [](double) {
              return Slope{0, 2, {Fn::kStep, 0}, 1};
            },
        .traits = {.parity = Parity::kOdd,
                   .degree = 0,
                   .bounded = true,
                   .first_delta = 1,
                   .constant_on_pieces = true}},
    Function{.fn = Fn::kStep,  // 1 if x > 0, else 0
             .name = "step",
             .arity = 1,
             .in_language = true,
             .latex = "\\operatorname{step}",
             // x != x keeps NaN visible: a comparison alone would turn it into a number.
             .values = each<[](double x) { return 0 < x ? 1.0 : (x == x ? 0.0 : x); }>,
             .traits = {.degree = 0,
                        .bounded = true,
                        .odd_up_to_constant = true,
                        .first_delta = 1,
                        .constant_on_pieces = true}},
    Function{
        .fn = Fn::kRelu,
        .name = "relu",
        .arity = 1,
        .in_language = true,
        .latex = "\\operatorname{relu}",
        .values = each<[](double x) { return 0 < x ? x : (x == x ? 0.0 : x); }>,
        .derivative = [](Builder& b, double, NodeId x, NodeId) { return b.map(Fn::kStep, {x}); },
        .slope =
            [](double) {
              return Slope{0, 1, {Fn::kStep, 0}};
            },
        .traits = {.degree = 1, .first_delta = 2}},
    Function{.fn = Fn::kLeakyRelu,  // x > 0 ? x : a x
             .name = "leaky_relu",
             .arity = 1,
             .in_language = true,
             .form = "leaky_relu(x) or leaky_relu(x, slope)",
             .default_parameter = 0.01,
             .parameter_name = "the slope",
             .latex = "\\operatorname{leaky\\_relu}",
             .values =
                 [](double a, const double* x, double* y, Index n) {
                   for (Index i = 0; i < n; ++i) y[i] = x[i] > 0 ? x[i] : a * x[i];
                 },
             .derivative =
                 [](Builder& b, double a, NodeId x, NodeId) {
                   return b.plus(b.constant(a), b.scale(1 - a, 0, b.map(Fn::kStep, {x})));
                 },
             .slope =
                 [](double a) {
                   return Slope{a, 1 - a, {Fn::kStep, 0}};
                 },
             .traits = {.degree = 1, .first_delta = 2}},
    Function{.fn = Fn::kElu,  // x > 0 ? x : a (e^x - 1)
             .name = "elu",
             .arity = 1,
             .in_language = true,
             .form = "elu(x) or elu(x, a)",
             .default_parameter = 1,
             .parameter_name = "the parameter",
             .latex = "\\operatorname{elu}",
             .values =
                 [](double a, const double* x, double* y, Index n) {
                   vector_expm1(x, y, count(n));
                   for (Index i = 0; i < n; ++i) y[i] = x[i] > 0 ? x[i] : a * y[i];
                 },
             .derivative =
                 [](Builder& b, double a, NodeId x, NodeId y) {
                   return b.map(Fn::kWhere,
                                {b.map(Fn::kStep, {x}), b.constant(1), b.plus(y, b.constant(a))});
                 },
             .traits = {.slope_at_zero = 1, .first_delta = 3},
             .traits_of_parameter =
                 [](double a, FunctionTraits& t) {
                   if (a != 1) t.first_delta = 2;
                 }},
    Function{.fn = Fn::kTanh,
             .name = "tanh",
             .arity = 1,
             .in_language = true,
             .latex = "\\tanh",
             .values = array<vector_tanh>,
             .derivative = [](Builder& b, double, NodeId,
                              NodeId y) { return one_minus(b, b.map(Fn::kPower, {y}, 2)); },
             .traits = {.parity = Parity::kOdd, .slope_at_zero = 1, .bounded = true}},
    Function{.fn = Fn::kSigmoid,
             .name = "sigmoid",
             .arity = 1,
             .in_language = true,
             .latex = "\\operatorname{sigmoid}",
             .values = array<vector_sigmoid>,
             .derivative = [](Builder& b, double, NodeId,
                              NodeId y) { return b.times(y, one_minus(b, y)); },
             .traits = {.at_zero = 0.5,
                        .slope_at_zero = 0.25,
                        .positive = true,
                        .bounded = true,
                        .odd_up_to_constant = true}},
    Function{
        .fn = Fn::kSoftplus,
        .name = "softplus",
        .arity = 1,
        .in_language = true,
        .latex = "\\operatorname{softplus}",
        .values = array<vector_softplus>,
        .derivative = [](Builder& b, double, NodeId x, NodeId) { return b.map(Fn::kSigmoid, {x}); },
        .slope =
            [](double) {
              return Slope{0, 1, {Fn::kSigmoid, 0}};
            },
        .traits = {.at_zero = std::numbers::ln2, .slope_at_zero = 0.5, .positive = true}},
    Function{.fn = Fn::kSilu,
             .name = "silu",
             .arity = 1,
             .in_language = true,
             .latex = "\\operatorname{silu}",
             .values =
                 [](double, const double* x, double* y, Index n) {
                   vector_sigmoid(x, y, count(n));
                   for (Index i = 0; i < n; ++i) y[i] *= x[i];
                 },
             .derivative =
                 [](Builder& b, double, NodeId x, NodeId y) {  // s + y (1 - s)
                   const NodeId s = b.map(Fn::kSigmoid, {x});
                   return b.plus(s, b.times(y, one_minus(b, s)));
                 },
             .traits = {.slope_at_zero = 0.5}},
    Function{.fn = Fn::kGelu,
             .name = "gelu",
             .arity = 1,
             .in_language = true,
             .latex = "\\operatorname{gelu}",
             .values = array<vector_gelu>,
             .derivative = gelu_derivative,
             .traits = {.slope_at_zero = 0.5}},
    Function{.fn = Fn::kGeluTanh,
             .name = "gelu_tanh",
             .arity = 1,
             .in_language = true,
             .latex = "\\operatorname{gelu\\_tanh}",
             .values = gelu_tanh_values,
             .derivative = gelu_tanh_derivative,
             .traits = {.slope_at_zero = 0.5}},
    Function{.fn = Fn::kErf,
             .name = "erf",
             .arity = 1,
             .in_language = true,
             .latex = "\\operatorname{erf}",
             .values = array<vector_erf>,
             .derivative =
                 [](Builder& b, double, NodeId x, NodeId) {
                   return b.scale(2 * std::numbers::inv_sqrtpi, 0,
                                  b.map(Fn::kExp, {b.negate(b.map(Fn::kPower, {x}, 2))}));
                 },
             .traits = {.parity = Parity::kOdd,
                        .slope_at_zero = 2 * std::numbers::inv_sqrtpi,
                        .bounded = true}},
    Function{
        .fn = Fn::kSin,
        .name = "sin",
        .arity = 1,
        .in_language = true,
        .latex = "\\sin",
        .values = array<vector_sin>,
        .derivative = [](Builder& b, double, NodeId x, NodeId) { return b.map(Fn::kCos, {x}); },
        .slope =
            [](double) {
              return Slope{0, 1, {Fn::kCos, 0}};
            },
        .traits = {.parity = Parity::kOdd, .slope_at_zero = 1, .bounded = true}},
    Function{.fn = Fn::kCos,
             .name = "cos",
             .arity = 1,
             .in_language = true,
             .latex = "\\cos",
             .values = array<vector_cos>,
             .derivative = [](Builder& b, double, NodeId x,
                              NodeId) { return b.negate(b.map(Fn::kSin, {x})); },
             .slope =
                 [](double) {
                   return Slope{0, -1, {Fn::kSin, 0}};
                 },
             .traits = {.parity = Parity::kEven, .at_zero = 1, .bounded = true}},
    Function{.fn = Fn::kExp,
             .name = "exp",
             .arity = 1,
             .in_language = true,
             .latex = "\\exp",
             .values = array<vector_exp>,
             .derivative = [](Builder&, double, NodeId, NodeId y) { return y; },
             .traits = {.at_zero = 1,
                        .slope_at_zero = 1,
                        .positive = true,
                        .derivative_is_itself = true,
                        .heavy_tails = true,
                        .faster_than_polynomial = true}},
    Function{.fn = Fn::kLog,
             .name = "log",
             .arity = 1,
             .in_language = true,
             .latex = "\\log",
             .values = array<vector_log>,
             .derivative =
                 [](Builder& b, double, NodeId x, NodeId) {
                   return b.map(Fn::kDiv, {b.constant(1), x});
                 },
             .slope =
                 [](double) {
                   return Slope{0, 1, {Fn::kPower, -1}};
                 },
             .traits = {.finite_everywhere = false, .smooth_on_pieces = false}},
    Function{.fn = Fn::kSqrt,
             .name = "sqrt",
             .arity = 1,
             .in_language = true,
             .latex = "\\operatorname{sqrt}",
             .values = each<[](double x) { return std::sqrt(x); }>,
             .derivative =
                 [](Builder& b, double, NodeId, NodeId y) {
                   return b.map(Fn::kDiv, {b.constant(0.5), y});
                 },
             .traits = {.degree = Exponent(1, 2), .positive = true, .smooth_on_pieces = false}},
    Function{
        .fn = Fn::kPower,  // x^a
        .name = "power",
        .arity = 1,
        .written = "^",
        .latex = "\\operatorname{power}",
        .values = power_values,
        .derivative = power_derivative,
        .slope =
            [](double a) {
              return Slope{0, a, {Fn::kPower, a - 1}};
            },
        .traits_of_parameter = power_traits},
    Function{
        .fn = Fn::kAdd,
        .name = "add",
        .arity = 2,
        .written = "+",
        .latex = "+",
        .values_of_several = each_pair<[](double x, double y) { return x + y; }>,
        .times_partial = [](Builder&, const Ids&, NodeId, std::size_t, NodeId t) { return t; }},
    Function{.fn = Fn::kSub,
             .name = "sub",
             .arity = 2,
             .written = "-",
             .latex = "-",
             .values_of_several = each_pair<[](double x, double y) { return x - y; }>,
             .times_partial = [](Builder& b, const Ids&, NodeId, std::size_t k,
                                 NodeId t) { return k == 0 ? t : b.negate(t); }},
    Function{.fn = Fn::kMul,
             .name = "mul",
             .arity = 2,
             .written = "*",
             .latex = "\\cdot",
             .values_of_several = each_pair<[](double x, double y) { return x * y; }>,
             .times_partial = [](Builder& b, const Ids& x, NodeId, std::size_t k,
                                 NodeId t) { return b.times(t, x[1 - k]); }},
    Function{.fn = Fn::kDiv,
             .name = "div",
             .arity = 2,
             .written = "/",
             .latex = "/",
             .values_of_several = each_pair<[](double x, double y) { return x / y; }>,
             .times_partial =
                 [](Builder& b, const Ids& x, NodeId y, std::size_t k, NodeId t) {
                   return k == 0 ? b.map(Fn::kDiv, {t, x[1]})
                                 : b.negate(b.times(t, b.map(Fn::kDiv, {y, x[1]})));
                 }},
    Function{.fn = Fn::kPow,
             .name = "pow",
             .arity = 2,
             .written = "^",
             .latex = "\\operatorname{pow}",
             .values_of_several = each_pair<[](double x, double y) { return std::pow(x, y); }>,
             .times_partial =
                 [](Builder& b, const Ids& x, NodeId y, std::size_t k, NodeId t) {
                   // y x^(y-1), x^y log x
                   return k == 0 ? b.times(t, b.times(x[1],
                                                      b.map(Fn::kPow,
                                                            {x[0], b.minus(x[1], b.constant(1))})))
                                 : b.times(t, b.times(y, b.map(Fn::kLog, {x[0]})));
                 },
             .traits = {.heavy_tails = true, .smooth_on_pieces = false}},
    Function{
        .fn = Fn::kMin,
        .name = "min",
        .arity = 2,
        .latex = "\\min",
        .values_of_several = each_pair<[](double x, double y) { return x < y || x != x ? x : y; }>,
        .times_partial = partial_of_extremum<true>,
        .traits = {.first_delta = 2}},
    Function{
        .fn = Fn::kMax,
        .name = "max",
        .arity = 2,
        .latex = "\\max",
        .values_of_several = each_pair<[](double x, double y) { return y < x || x != x ? x : y; }>,
        .times_partial = partial_of_extremum<false>,
        .traits = {.first_delta = 2}},
    Function{.fn = Fn::kMod,  // x - y floor(x / y)
             .name = "mod",
             .arity = 2,
             .latex = "\\operatorname{mod}",
             .values_of_several =
                 each_pair<[](double x, double y) { return x - y * std::floor(x / y); }>,
             .times_partial =
                 [](Builder& b, const Ids& x, NodeId y, std::size_t k, NodeId t) {
                   return k == 0 ? t : b.times(t, b.map(Fn::kDiv, {b.minus(y, x[0]), x[1]}));
                 },
             .traits = {.first_delta = 1, .smooth_on_pieces = false}},
    Function{.fn = Fn::kLess,  // comparisons give 1 or 0
             .name = "less",
             .arity = 2,
             .written = "<",
             .latex = "<",
             .sign = "<",
             .values_of_several = each_pair<[](double x, double y) { return x < y ? 1.0 : 0.0; }>,
             .traits = {.bounded = true, .first_delta = 1, .constant_on_pieces = true}},
    Function{.fn = Fn::kLessEqual,
             .name = "less_equal",
             .arity = 2,
             .written = "<=",
             .latex = "\\le",
             .sign = "<=",
             .values_of_several = each_pair<[](double x, double y) { return x <= y ? 1.0 : 0.0; }>,
             .traits = {.bounded = true, .first_delta = 1, .constant_on_pieces = true}},
    Function{.fn = Fn::kEqual,
             .name = "equal",
             .arity = 2,
             .written = "==",
             .latex = "=",
             .sign = "=",
             .values_of_several = each_pair<[](double x, double y) { return x == y ? 1.0 : 0.0; }>,
             .traits = {.bounded = true, .constant_on_pieces = true}},
    Function{.fn = Fn::kNotEqual,
             .name = "not_equal",
             .arity = 2,
             .written = "!=",
             .latex = "\\ne",
             .sign = "!=",
             .values_of_several = each_pair<[](double x, double y) { return x != y ? 1.0 : 0.0; }>,
             .traits = {.bounded = true, .constant_on_pieces = true}},
    Function{.fn = Fn::kWhere,  // c != 0 ? x : y
             .name = "where",
             .arity = 3,
             .latex = "\\operatorname{where}",
             .values_of_several =
                 [](const Operand* in, double* z, Index n) {
                   const auto [c, c_step] = in[0];
                   const auto [x, x_step] = in[1];
                   const auto [y, y_step] = in[2];
                   for (Index i = 0; i < n; ++i)
                     z[i] = c[i * c_step] != 0 ? x[i * x_step] : y[i * y_step];
                 },
             .times_partial =
                 [](Builder& b, const Ids& x, NodeId, std::size_t k, NodeId t) {
                   if (k == 0) return NodeId{};  // a condition is any number that is not 0
                   return k == 1 ? b.map(Fn::kWhere, {x[0], t, b.constant(0)})
                                 : b.map(Fn::kWhere, {x[0], b.constant(0), t});
                 }},
    Function{
        .fn = unnamed(0),
        .name = "softsign",
        .arity = 1,
        .in_language = true,
        .latex = "\\operatorname{softsign}",
        .values = each<[](double x) { return x / (1 + std::abs(x)); }>,
        .derivative =
            [](Builder& b, double, NodeId, NodeId y) {  // 1 / (1 + |x|)^2 = (1 - |y|)^2
              return b.map(Fn::kPower, {one_minus(b, b.map(Fn::kAbs, {y}))}, 2);
            },
        .definition =
            [](Builder& b, double, NodeId x) {
              return b.map(Fn::kDiv, {x, b.plus(b.constant(1), b.map(Fn::kAbs, {x}))});
            },
        .traits = {.parity = Parity::kOdd, .slope_at_zero = 1, .bounded = true, .first_delta = 3}},
    Function{.fn = unnamed(1),  // x tanh(log(1 + e^x))
             .name = "mish",
             .arity = 1,
             .in_language = true,
             .latex = "\\operatorname{mish}",
             .values =
                 [](double, const double* x, double* y, Index n) {
                   vector_softplus(x, y, count(n));
                   vector_tanh(y, y, count(n));
                   for (Index i = 0; i < n; ++i) y[i] *= x[i];
                 },
             .derivative =
                 [](Builder& b, double, NodeId x, NodeId) {  // t + x (1 - t^2) sigmoid(x)
                   const NodeId t = b.map(Fn::kTanh, {b.map(Fn::kSoftplus, {x})});
                   return b.plus(t, b.times(b.times(x, one_minus(b, b.map(Fn::kPower, {t}, 2))),
                                            b.map(Fn::kSigmoid, {x})));
                 },
             .definition =
                 [](Builder& b, double, NodeId x) {
                   return b.times(x, b.map(Fn::kTanh, {b.map(Fn::kSoftplus, {x})}));
                 },
             .traits = {.slope_at_zero = 0.6}},
};

constexpr bool in_order() {
  for (std::size_t k = 0; k < kFunctions.size(); ++k)
    if (static_cast<std::size_t>(kFunctions[k].fn) != k) return false;
  return true;
}
static_assert(in_order(), "a record stands at the place of its enumerator");

}  // namespace

std::span<const Function> functions() { return kFunctions; }

const Function& function(Fn fn) {
  const auto k = static_cast<std::size_t>(fn);
  TPLIMIT_CHECK(k < kFunctions.size(), "a function of the table, got number {}", k);
  return kFunctions[k];
}

const Function* find_function(const std::string& name) {
  for (const Function& f : kFunctions)
    if (f.in_language && name == f.name) return &f;
  return nullptr;
}

int arity(Fn fn) { return function(fn).arity; }
const char* name(Fn fn) { return function(fn).name; }

FunctionTraits traits_of(const Map& map) {
  const Function& f = function(map.fn);
  FunctionTraits traits = f.traits;
  if (f.traits_of_parameter) f.traits_of_parameter(map.parameter, traits);
  return traits;
}

std::optional<int> first_delta(const Map& map) { return traits_of(map).first_delta; }

const char* written(Fn fn) {
  const Function& f = function(fn);
  return f.written ? f.written : f.name;
}

std::string formula_name(const Map& map, bool latex) {
  const Function& f = function(map.fn);
  std::string out = latex ? f.latex : f.name;
  if (f.default_parameter && map.parameter != 1)
    out.insert(out.size() - (out.back() == '}' ? 1 : 0), fmt::format("[{:g}]", map.parameter));
  return out;
}

NodeId derivative_of(Builder& b, const Map& map, NodeId x, NodeId y) {
  const Function& f = function(map.fn);
  TPLIMIT_CHECK(f.arity == 1, "a function of one argument, got {}", f.name);
  if (f.derivative) return f.derivative(b, map.parameter, x, y);
  return b.zeros(b.type(x).width, b.type(x).dims);
}

NodeId times_partial(Builder& b, const Map& map, const std::vector<NodeId>& x, NodeId y,
                     std::size_t k, NodeId t) {
  const Function& f = function(map.fn);
  if (f.arity > 1) return f.times_partial ? f.times_partial(b, x, y, k, t) : NodeId{};
  return f.derivative ? b.times(t, f.derivative(b, map.parameter, x[0], y)) : NodeId{};
}

bool is_piecewise_constant(const Op& op) {
  const auto* map = std::get_if<Map>(&op);
  return map && function(map->fn).traits.constant_on_pieces;
}

namespace {

/// m / (sqrt(v) + eps) with m = sum_k a_k g_k and v = sum_k b_k g_k^2, b_k > 0, as optimisers have
/// it: |m| <= sqrt(v sum_k a_k^2 / b_k) (Cauchy and Schwarz).
class BoundedRatio {
 public:
  BoundedRatio(const Program& program, NodeId m, NodeId v) : program_(program) {
    bounded_ = root(v);
    if (bounded_) linear(m);
  }
  [[nodiscard]] bool bounded() const { return bounded_; }

 private:
  [[nodiscard]] const Map* map(NodeId id, Fn fn) const {
    const auto* m = std::get_if<Map>(&program_[id].op);
    return m && m->fn == fn ? m : nullptr;
  }
  [[nodiscard]] NodeId in(NodeId id, std::size_t k) const { return program_[id].in[k]; }
  [[nodiscard]] bool number(NodeId id) const { return !program_[id].type.width; }
  [[nodiscard]] bool not_negative(NodeId id) const {
    const auto* c = std::get_if<Constant>(&program_[id].op);
    return c && std::all_of(c->values->begin(), c->values->end(), [](double x) { return x >= 0; });
  }
  /// sqrt(v) plus what is not negative.
  bool root(NodeId id) {
    if (map(id, Fn::kAdd))
      return (not_negative(in(id, 0)) && root(in(id, 1))) ||
             (not_negative(in(id, 1)) && root(in(id, 0)));
    return map(id, Fn::kSqrt) && squares(in(id, 0));
  }
  /// Sums of squares, and of what is not negative.
  bool squares(NodeId id) {
    if (!seen_.insert(id).second) return true;  // else the search has ended
    if (map(id, Fn::kAdd)) return squares(in(id, 0)) && squares(in(id, 1));
    if (const auto* s = std::get_if<Scale>(&program_[id].op))
      return s->factor > 0 && squares(in(id, 0));
    if (map(id, Fn::kMul) && in(id, 0) != in(id, 1))
      return (not_negative(in(id, 0)) && squares(in(id, 1))) ||
             (not_negative(in(id, 1)) && squares(in(id, 0)));
    if (map(id, Fn::kDiv)) return not_negative(in(id, 1)) && squares(in(id, 0));
    const Map* power = map(id, Fn::kPower);
    if (!map(id, Fn::kMul) && !(power && power->parameter == 2)) return not_negative(id);
    squared_.insert(in(id, 0));
    return true;
  }
  void linear(NodeId id) {
    if (!bounded_ || squared_.contains(id) || !added_.insert(id).second) return;
    if (map(id, Fn::kAdd) || map(id, Fn::kSub)) {
      linear(in(id, 0));
      linear(in(id, 1));
    } else if (std::holds_alternative<Scale>(program_[id].op) ||
               (map(id, Fn::kDiv) && number(in(id, 1)))) {
      linear(in(id, 0));
    } else if (map(id, Fn::kMul) && number(in(id, 0))) {
      linear(in(id, 1));
    } else if (map(id, Fn::kMul) && number(in(id, 1))) {
      linear(in(id, 0));
    } else {
      bounded_ = false;
    }
  }

  const Program& program_;
  std::set<NodeId> squared_, seen_, added_;
  bool bounded_ = false;
};

}  // namespace

bool may_have_heavy_tails(const Program& program, const Node& node) {
  const auto* m = std::get_if<Map>(&node.op);
  if (!m || !node.type.width) return false;
  if (m->fn == Fn::kDiv && program[node.in[1]].type.width)
    return !BoundedRatio(program, node.in[0], node.in[1]).bounded();
  return traits_of(*m).heavy_tails;
}

bool is_bounded(const Op& op) {
  const auto* m = std::get_if<Map>(&op);
  return m && traits_of(*m).bounded;
}

}  // namespace tplimit::ir
