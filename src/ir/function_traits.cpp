#include "tplimit/ir/function_traits.hpp"

#include <cmath>
#include <numbers>

#include "tplimit/support/check.hpp"

namespace tplimit::ir {

FunctionTraits traits_of(const Map& map) {
  using P = FunctionTraits::Parity;
  FunctionTraits t;
  switch (map.fn) {
    case Fn::kAbs: return {.parity = P::kEven, .degree = 1, .positive = true};
    case Fn::kSign: return {.parity = P::kOdd, .degree = 0};
    case Fn::kStep: return {.degree = 0};
    case Fn::kRelu: return {.degree = 1};
    case Fn::kLeakyRelu: return {.degree = 1};
    case Fn::kElu: return {.slope_at_zero = 1};
    case Fn::kTanh: return {.parity = P::kOdd, .slope_at_zero = 1};
    case Fn::kSigmoid: return {.at_zero = 0.5, .slope_at_zero = 0.25, .positive = true};
    case Fn::kSoftplus:
      return {.at_zero = std::numbers::ln2, .slope_at_zero = 0.5, .positive = true};
    case Fn::kSilu: return {.slope_at_zero = 0.5};
    case Fn::kGelu: return {.slope_at_zero = 0.5};
    case Fn::kGeluTanh: return {.slope_at_zero = 0.5};
    case Fn::kErf: return {.parity = P::kOdd, .slope_at_zero = 2 * std::numbers::inv_sqrtpi};
    case Fn::kSin: return {.parity = P::kOdd, .slope_at_zero = 1};
    case Fn::kCos: return {.parity = P::kEven, .at_zero = 1};
    case Fn::kExp: return {.at_zero = 1, .slope_at_zero = 1, .positive = true};
    case Fn::kLog: return {.finite_everywhere = false};
    case Fn::kSqrt: return {.degree = Exponent(1, 2), .positive = true};
    case Fn::kPower: {
      const double a = map.parameter;
      t.degree = exponent_from_double(a);
      t.at_zero = a == 0 ? 1 : 0;
      t.slope_at_zero = a == 1 ? 1 : 0;
      // Without a degree the size of the result is unknown unless the argument has size 1.
      t.finite_everywhere = a >= 0 && t.degree;
      if (a == std::round(a)) t.parity = std::fmod(std::abs(a), 2.0) == 0 ? P::kEven : P::kOdd;
      t.positive = t.parity == P::kEven;
      return t;
    }
    case Fn::kAdd:
    case Fn::kSub:
    case Fn::kMul:
    case Fn::kDiv:
    case Fn::kPow:
    case Fn::kMin:
    case Fn::kMax:
    case Fn::kMod:
    case Fn::kLess:
    case Fn::kLessEqual:
    case Fn::kEqual:
    case Fn::kNotEqual:
    case Fn::kWhere: break;
  }
  TPLIMIT_CHECK(false, "a function of one argument, got {}", name(map.fn));
  return t;
}

std::optional<int> first_delta(const Map& map) {
  switch (map.fn) {
    case Fn::kStep:
    case Fn::kSign:
    case Fn::kLess:
    case Fn::kLessEqual:
    case Fn::kMod: return 1;
    case Fn::kRelu:
    case Fn::kAbs:
    case Fn::kLeakyRelu:
    case Fn::kMin:
    case Fn::kMax: return 2;
    case Fn::kElu: return map.parameter == 1 ? 3 : 2;
    case Fn::kTanh:
    case Fn::kSigmoid:
    case Fn::kSoftplus:
    case Fn::kSilu:
    case Fn::kGelu:
    case Fn::kGeluTanh:
    case Fn::kErf:
    case Fn::kSin:
    case Fn::kCos:
    case Fn::kExp:
    case Fn::kLog:
    case Fn::kSqrt:
    case Fn::kPower:
    case Fn::kAdd:
    case Fn::kSub:
    case Fn::kMul:
    case Fn::kDiv:
    case Fn::kPow:
    case Fn::kEqual:
    case Fn::kNotEqual:
    case Fn::kWhere: break;
  }
  return std::nullopt;
}

bool is_piecewise_constant(const Op& op) {
  const auto* map = std::get_if<Map>(&op);
  return map && ((first_delta(*map) == 1 && map->fn != Fn::kMod) || map->fn == Fn::kEqual ||
                 map->fn == Fn::kNotEqual);
}

bool may_have_heavy_tails(const Program& program, const Node& node) {
  const auto* m = std::get_if<Map>(&node.op);
  if (!m || !node.type.width) return false;
  return m->fn == Fn::kExp || m->fn == Fn::kPow || (m->fn == Fn::kPower && m->parameter < 0) ||
         (m->fn == Fn::kDiv && program[node.in[1]].type.width);
}

bool is_bounded(const Op& op) {
  const auto* m = std::get_if<Map>(&op);
  return is_piecewise_constant(op) ||
         (m && (m->fn == Fn::kTanh || m->fn == Fn::kSigmoid || m->fn == Fn::kErf ||
                m->fn == Fn::kSin || m->fn == Fn::kCos));
}

}  // namespace tplimit::ir
