/// Generated expressions: what the builder shares and folds, and what clean-up makes of them.

#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "engines/finite_evaluator.hpp"
#include "tests/unit/passes/programs.hpp"

namespace tplimit {
namespace {

using namespace ir;

/// An expression over two vectors p, q [2] and numbers, as a stack machine reads it.
struct Expression {
  std::vector<int> steps;
};
void showValue(const Expression& e, std::ostream& out) {
  for (const int step : e.steps) out << step << ' ';
}

constexpr int kSteps = 16;
/// Any list of steps has a meaning, so that a shorter list is a simpler expression.  Jumps stand
/// `jump` beside 0: at 0 rounding decides q + (p - q) < p.
NodeId build(Builder& b, const Expression& e, NodeId p, NodeId q, double jump = 0) {
  std::vector<NodeId> stack{p, q};
  const auto beside = [&](NodeId x) {
    return jump == 0 ? x : b.plus(x, b.constant({jump, jump}, {2}));
  };
  const auto pop = [&] {
    const NodeId top = stack.back();
    if (stack.size() > 1) stack.pop_back();
    return top;
  };
  for (const int step : e.steps) {
    const NodeId x = pop();
    switch (step) {
      case 0: stack.insert(stack.end(), {x, p}); break;
      case 1: stack.insert(stack.end(), {x, q}); break;
      case 2: stack.insert(stack.end(), {x, b.constant({0, 1}, {2})}); break;
      case 3: stack.insert(stack.end(), {x, b.zeros(false, {2})}); break;
      case 4: stack.push_back(b.plus(pop(), x)); break;
      case 5: stack.push_back(b.minus(pop(), x)); break;
      case 6: stack.push_back(b.times(pop(), x)); break;
      case 7: stack.push_back(b.map(Fn::kMax, {pop(), x})); break;
      case 8:
        stack.push_back(b.map(Fn::kWhere, {b.map(Fn::kLess, {x, beside(p)}), pop(), x}));
        break;
      case 9: stack.push_back(b.map(Fn::kTanh, {x})); break;
      case 10: stack.push_back(b.map(Fn::kAbs, {x})); break;
      case 11: stack.push_back(b.scale(-0.5, 0, x)); break;
      case 12: stack.push_back(b.gather(x, 0, {1, 0})); break;
      case 13: stack.push_back(b.expand(b.sum(x, 0), b.type(x).width, {2})); break;
      case 14: stack.push_back(b.add(Stop{}, {x})); break;
      default: stack.push_back(b.map(Fn::kSign, {beside(x)})); break;
    }
  }
  return stack.back();
}

rc::Gen<Expression> expressions() {
  return rc::gen::map(rc::gen::container<std::vector<int>>(rc::gen::inRange(0, kSteps)),
                      [](std::vector<int> steps) { return Expression{std::move(steps)}; });
}
rc::Gen<double> numbers() {
  return rc::gen::map(rc::gen::inRange(-12, 13), [](int k) { return k / 4.0; });
}

/// p and q as parameters, whose values nothing may use before clean-up.
struct Opaque {
  Program program;
  NodeId p, q, out;
  Opaque(const Expression& e, std::vector<double> at_p, std::vector<double> at_q) {
    Builder b(program);
    p = b.add(Parameter{0}, {b.constant(std::move(at_p), {2})});
    q = b.add(Parameter{1}, {b.constant(std::move(at_q), {2})});
    out = build(b, e, p, q);
    test::add_report(program, "r", out);
  }
};

struct Case {
  Expression e = *expressions();
  std::vector<double> p{*numbers(), *numbers()}, q{*numbers(), *numbers()};
};

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  bool out = a.size() == b.size();
  // Scales of scales are multiplied first: the last bits may move.
  for (std::size_t k = 0; out && k < a.size(); ++k)
    out = a[k] == b[k] || std::abs(a[k] - b[k]) <= 1e-12 * std::abs(a[k]);
  return out;
}

/// Operands of what was folded are not needed any more: once again, and nothing changes.
Program settled(const Program& erased) {
  Program again = erase_identities(erased);
  RC_ASSERT(to_text(erase_identities(again)) == to_text(again));
  return again;
}

RC_GTEST_PROP(EraseIdentities, OfExpressionsOfConstantsLeavesTheirValue, ()) {
  const Case c;
  const Opaque opaque(c.e, c.p, c.q);
  const std::vector<double> expected =
      engines::FiniteEvaluator(opaque.program, {opaque.p, opaque.q}, {opaque.out})
          .evaluate({c.p.data(), c.q.data()})[0];
  const Program erased = erase_identities(opaque.program);
  const auto* folded = std::get_if<Constant>(&erased[erased.reports[0].entries[0].value].op);
  RC_ASSERT(folded != nullptr);
  RC_ASSERT(same(*folded->values, expected));
  RC_ASSERT(settled(erased).size() == 1u);
}

RC_GTEST_PROP(Builder, MakesAnExpressionOnce, ()) {
  const Case c;
  Opaque opaque(c.e, c.p, c.q);
  verify(opaque.program);
  const std::size_t size = opaque.program.size();
  Builder again(opaque.program);  // finds what another builder made
  RC_ASSERT(build(again, c.e, opaque.p, opaque.q) == opaque.out);
  RC_ASSERT(opaque.program.size() == size);
}

RC_GTEST_PROP(Builder, GivesProgramsThatComputeTheSameOneFingerprint, ()) {
  const Case c;
  const Opaque a(c.e, c.p, c.q), b(c.e, c.p, c.q);
  RC_ASSERT(fingerprint(a.program) == fingerprint(b.program));
  std::vector<double> other = c.p;
  other[0] += 1;
  RC_ASSERT(fingerprint(a.program) != fingerprint(Opaque(c.e, other, c.q).program));
}

/// The same with Gaussian vectors for p and q.
RC_GTEST_PROP(CancelTerms, KeepsNetworksOfExpressions, ()) {
  const Expression e = *expressions();
  Program program;
  program.sources = {{"p", false, {2}, {}}, {"q", false, {2}, {}}};
  Builder b(program);
  const NodeId p = b.add(StandardNormal{{0}}, {}), q = b.add(StandardNormal{{1}}, {});
  test::add_report(program, "r", b.average(build(b, e, p, q, 0.3)));
  const Program before = erase_identities(program), after = cancel_terms(before);
  verify(after);
  settled(before);
  const auto a = test::Network(before, 6).reports(), c = test::Network(after, 6).reports();
  for (std::size_t k = 0; k < a[0].size(); ++k)
    RC_ASSERT(std::abs(a[0][k] - c[0][k]) <= 1e-9 * (1 + std::abs(a[0][k])) ||
              (std::isinf(a[0][k]) && a[0][k] == c[0][k]));
}

}  // namespace
}  // namespace tplimit
