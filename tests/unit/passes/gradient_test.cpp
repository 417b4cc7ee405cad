/// Derivatives: their text, closed forms, and finite differences.

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engines/finite_evaluator.hpp"
#include "tests/unit/passes/programs.hpp"
#include "tplimit/passes/gradient.hpp"

namespace tplimit {
namespace {

using namespace ir;
using test::Network;

/// A finite parameter p [3] and values of finite nodes for any value of it.
struct Finite {
  Program program;
  Builder b;
  NodeId p;
  Finite() : b(program) { p = b.add(Parameter{0}, {b.zeros(false, {3})}); }
  [[nodiscard]] std::vector<double> value(NodeId wanted, const std::vector<double>& at) const {
    return engines::FiniteEvaluator(program, {p}, {wanted}).evaluate({at.data()})[0];
  }
  NodeId gradient_of(NodeId loss) {
    auto d = gradient(b, loss, {p});
    EXPECT_TRUE(d.ok());
    return (*d)[0].tensor;
  }
};

TEST(Gradient, OfASumOfSquares) {
  Finite s;
  const NodeId loss = s.b.sum(s.b.map(Fn::kPower, {s.p}, 2), 0);
  const NodeId d = s.gradient_of(loss);
  EXPECT_EQ(s.value(d, {1, -2, 0.5}), (std::vector<double>{2, -4, 1}));
  // 2 p itself: the ones of the sum leave no node behind.
  EXPECT_EQ(d, s.b.scale(2, 0, s.p));
}

/// Central differences of functions that are smooth at the point.
TEST(Gradient, AgreesWithDifferences) {
  Finite s;
  Builder& b = s.b;
  const NodeId p = s.p, outer = b.contract(p, p, 0, 0, false),
               weights = b.constant({0.3, -1, 0.7, 0.2, 0.5, -0.4, 1, 0.1, 0.6}, {3, 3});
  const auto whole = [&](NodeId x) {  // a generic functional
    std::vector<double> c(static_cast<std::size_t>(size_of(b.type(x).dims)));
    for (std::size_t k = 0; k < c.size(); ++k) c[k] = std::cos(1.0 + 2.0 * static_cast<double>(k));
    const Dims dims = b.type(x).dims;
    return b.sum(b.reshape(b.times(x, b.constant(c, dims)), {size_of(dims)}), 0);
  };
  const auto indices = [](std::vector<std::int64_t> v) {
    return std::make_shared<const std::vector<std::int64_t>>(std::move(v));
  };
  std::vector<NodeId> losses;
  for (const Fn fn : {Fn::kTanh, Fn::kSigmoid, Fn::kSoftplus, Fn::kSilu, Fn::kGelu, Fn::kGeluTanh,
                      Fn::kErf, Fn::kSin, Fn::kCos, Fn::kExp, Fn::kRelu, Fn::kAbs})
    losses.push_back(whole(b.map(fn, {p})));
  losses.push_back(whole(b.map(Fn::kElu, {p}, 0.7)));
  losses.push_back(whole(b.map(Fn::kLeakyRelu, {p}, 0.1)));
  losses.push_back(whole(b.map(Fn::kPower, {b.map(Fn::kExp, {p})}, -1.5)));
  losses.push_back(whole(b.map(Fn::kLog, {b.map(Fn::kExp, {outer})})));
  losses.push_back(whole(b.map(Fn::kSqrt, {b.plus(outer, b.constant(3))})));
  losses.push_back(whole(b.map(Fn::kDiv, {p, b.plus(outer, b.constant(4))})));
  losses.push_back(whole(b.map(Fn::kPow, {b.map(Fn::kExp, {p}), p})));
  losses.push_back(whole(b.map(Fn::kMax, {outer, p})));
  losses.push_back(whole(b.map(Fn::kMin, {outer, p})));
  losses.push_back(whole(b.map(Fn::kMod, {p, b.constant(1.0)})));
  losses.push_back(whole(b.map(Fn::kWhere, {b.map(Fn::kLess, {p, b.constant(0.5)}), outer, p})));
  losses.push_back(whole(b.contract(outer, weights, 1, 1, false)));
  losses.push_back(whole(b.contract(outer, weights, 0, 1, false)));
  losses.push_back(whole(b.contract(p, weights, 0, 0, false)));
  losses.push_back(whole(b.add(ReduceMax{1}, {outer})));
  losses.push_back(whole(b.add(LogSumExp{0}, {outer})));
  losses.push_back(whole(b.add(LogSumExp{1}, {outer})));
  const NodeId regular = b.plus(b.times(outer, b.constant({1, 2, -1, 0.5, 1, 3, 1, 1, 1}, {3, 3})),
                                b.constant({3, 0, 1, 0, 4, 0, 0, 1, 5}, {3, 3}));
  losses.push_back(whole(b.add(Solve{}, {regular, weights})));
  losses.push_back(whole(b.add(Solve{}, {regular, b.map(Fn::kSin, {outer})})));
  losses.push_back(whole(b.add(LogDet{}, {regular})));
  losses.push_back(whole(b.add(
      Concat{0},
      {p,
       b.add(LogDet{}, {b.add(Concat{0}, {b.reshape(regular, {1, 3, 3}),
                                          b.reshape(b.times(regular, regular), {1, 3, 3})})})})));
  losses.push_back(whole(b.sum(outer, 1)));
  losses.push_back(whole(b.gather(outer, 0, {2, 2, 0})));
  losses.push_back(whole(b.add(ScatterAdd{1, 4, indices({3, 0, 3})}, {outer})));
  losses.push_back(whole(b.permute(b.times(outer, weights), {1, 0})));
  losses.push_back(whole(b.expand(p, false, {2, 3})));
  losses.push_back(whole(b.add(Concat{0}, {p, b.constant({7.0}, {1}), p})));

  const std::vector<double> at{0.8, -0.6, 1.3};
  constexpr double kStep = 1e-5;
  for (std::size_t number = 0; number < losses.size(); ++number) {
    const NodeId loss = losses[number];
    const std::vector<double> found = s.value(s.gradient_of(loss), at);
    for (std::size_t k = 0; k < 3; ++k) {
      std::vector<double> up = at, down = at;
      up[k] += kStep;
      down[k] -= kStep;
      const double slope = (s.value(loss, up)[0] - s.value(loss, down)[0]) / (2 * kStep);
      // Third derivatives of order 10 times step^2, and rounding / step.
      EXPECT_NEAR(found[k], slope, 2e-8 * (1 + std::abs(slope)))
          << "loss " << number << ", entry " << k;
    }
  }
  EXPECT_NO_THROW(verify(s.program));
}

TEST(Gradient, ConventionsAtKinksTiesAndStops) {
  Finite s;
  Builder& b = s.b;
  const std::vector<double> at{0, 2, 2}, none{0, 0, 0};
  EXPECT_EQ(s.value(s.gradient_of(b.sum(b.map(Fn::kRelu, {s.p}), 0)), at),
            (std::vector<double>{0, 1, 1}));
  EXPECT_EQ(s.value(s.gradient_of(b.sum(b.map(Fn::kAbs, {s.p}), 0)), at),
            (std::vector<double>{0, 1, 1}));
  EXPECT_EQ(s.value(s.gradient_of(b.add(ReduceMax{0}, {s.p})), at),
            (std::vector<double>{0, 0.5, 0.5}));
  for (const NodeId loss :
       {b.sum(b.map(Fn::kStep, {s.p}), 0), b.sum(b.map(Fn::kSign, {s.p}), 0),
        b.sum(b.add(Stop{}, {s.p}), 0), b.sum(b.add(Stop{}, {b.constant(1, {3})}), 0)}) {
    const NodeId d = s.gradient_of(loss);
    if (d.valid()) {
      EXPECT_EQ(s.value(d, at), none);
    }
  }
}

/// d/dp of the softmax: diag(s) - s s', and it stays finite where exp(p) does not.
TEST(Gradient, OfLogSumExpIsTheSoftmaxAndMayBeTakenAgain) {
  Finite s;
  Builder& b = s.b;
  const NodeId first = s.gradient_of(b.add(LogSumExp{0}, {s.p}));
  const std::vector<double> at{0.8, -0.6, 1.3};
  double sum = 0;
  for (const double x : at) sum += std::exp(x);
  for (std::size_t i = 0; i < 3; ++i) {
    const double own = std::exp(at[i]) / sum;
    EXPECT_NEAR(s.value(first, at)[i], own, 1e-15);
    const NodeId second =
        s.gradient_of(b.reshape(b.gather(first, 0, {static_cast<std::int64_t>(i)}), {}));
    for (std::size_t j = 0; j < 3; ++j)
      EXPECT_NEAR(s.value(second, at)[j], (i == j ? own : 0) - own * std::exp(at[j]) / sum, 1e-15);
  }
  // Nothing overflows; logarithms of 900 are rounded to 1e-13.
  const std::vector<double> far = s.value(first, {900, 900, -900});
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(far[i], i < 2 ? 0.5 : 0, 1e-12);
}

TEST(Gradient, MayBeTakenAgain) {
  Finite s;
  // f = sum p^3 / 6: Hessian diag(p).
  const NodeId f = s.b.scale(1.0 / 6, 0, s.b.sum(s.b.map(Fn::kPower, {s.p}, 3), 0));
  const NodeId first = s.gradient_of(f);
  const NodeId second =
      s.gradient_of(s.b.contract(first, s.b.constant({1, 10, 100}, {3}), 0, 1, false));
  const std::vector<double> found = s.value(second, {2, 3, -5});
  EXPECT_NEAR(found[0], 2, 1e-14);
  EXPECT_NEAR(found[1], 30, 1e-13);
  EXPECT_NEAR(found[2], -500, 1e-12);
}

/// Targets with a width axis: d/dx_a of (1/n) sum f(x_a), and of W x by differences of one network.
struct Wide {
  Program program;
  Builder b;
  NodeId x, W, v;
  Wide() : program(start()), b(program) {
    x = b.add(Parameter{0}, {b.add(StandardNormal{{0}}, {})});
    W = b.add(Parameter{1}, {b.add(GaussianMatrix{{1}}, {})});
    v = b.add(StandardNormal{{2}}, {});
  }
  static Program start() {
    Program program;
    program.sources = {{"x", false, {}, {}}, {"W", true, {}, {}}, {"v", false, {}, {}}};
    return program;
  }
};

TEST(Gradient, OfAnAverageIsPerCoordinate) {
  Wide s;
  const NodeId f = s.b.average(s.b.map(Fn::kPower, {s.x}, 2));
  const auto d = gradient(s.b, f, {s.x});
  ASSERT_TRUE(d.ok());
  EXPECT_EQ((*d)[0].tensor, s.b.scale(2, -1, s.x));
}

TEST(Gradient, OfAMatrixIsASumOfOuterProducts) {
  Wide s;
  // v . W x / n: d/dW = v x' / n, d/dx = W' v / n.
  const NodeId f = s.b.average(s.b.times(s.v, s.b.matmul(s.W, s.x, false)));
  std::vector<std::pair<NodeId, NodeId>> cotangents;
  const auto d = gradient(s.b, f, {s.W, s.x}, {}, &cotangents);
  ASSERT_TRUE(d.ok());
  ASSERT_EQ((*d)[0].outer.size(), 1u);
  const OuterTerm& term = (*d)[0].outer[0];
  const Network network(s.program, 4);
  for (std::size_t i = 0; i < 4; ++i)
    for (std::size_t j = 0; j < 4; ++j)
      EXPECT_NEAR(network[term.coefficient][0] * network[term.d][i] * network[term.x][j],
                  network[s.v][i] * network[s.x][j] / 4, 1e-15);
  const NodeId expected = s.b.matmul(s.W, s.v, true);
  const Network with_expected(s.program, 4);
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(with_expected[(*d)[1].tensor][i], with_expected[expected][i] / 4, 1e-15);
  bool product_passed = false;
  for (const auto& [value, slope] : cotangents)
    product_passed = product_passed || std::holds_alternative<MatMul>(s.b.node(value).op);
  EXPECT_TRUE(product_passed);
}

TEST(Gradient, StopsAtFixedNodes) {
  Wide s;
  const NodeId y = s.b.map(Fn::kTanh, {s.x}), f = s.b.average(s.b.times(y, s.x));
  const auto d = gradient(s.b, f, {s.x, y}, {y});
  ASSERT_TRUE(d.ok());
  EXPECT_EQ((*d)[0].tensor, s.b.scale(1, -1, y));  // not through tanh
  EXPECT_EQ((*d)[1].tensor, s.b.scale(1, -1, s.x));
}

TEST(Gradient, WhatHasNoDerivativeIsRefused) {
  Wide s;
  s.b.set_origin({3, 7}, 0);
  for (const NodeId x : {s.b.add(Samples{2}, {s.x}), s.b.add(Histogram{-1, 1, 4}, {s.x})}) {
    const auto d = gradient(s.b, s.b.sum(x, 0), {s.x});
    ASSERT_FALSE(d.ok());
    EXPECT_EQ(d.errors()[0].code, "E2501");
    EXPECT_EQ(d.errors()[0].span, (Span{3, 7}));
  }
}

TEST(Gradient, AndSoAreDecompositionsOfKernels) {
  Finite s;
  Builder& b = s.b;
  const NodeId K = b.contract(s.p, s.p, 0, 0, false);
  for (const NodeId x :
       {b.add(Cholesky{}, {K}), b.add(TrainingOperator{0.1, 3, 0, true}, {K, K})}) {
    const auto d = gradient(b, b.sum(b.sum(x, 1), 0), {s.p});
    ASSERT_FALSE(d.ok()) << op_name(b.node(x).op);
    EXPECT_EQ(d.errors()[0].code, "E2501");
  }
  const auto d = gradient(b, b.sum(b.add(Eigvals{}, {K}), 0), {s.p});
  ASSERT_FALSE(d.ok());
  EXPECT_EQ(d.errors()[0].code, "E2501");
}

/// <gradient, move> = tangent: both modes are one derivative.
TEST(Tangent, IsTheGradientInADirection) {
  Finite s;
  Builder& b = s.b;
  const NodeId move = b.constant({0.4, -1, 2}, {3}), p = s.p,
               q = b.constant({0.5, 1.5, -0.25}, {3});
  // Two matrices that depend on p, and how they move with it.
  const NodeId matrix = b.plus(b.contract(p, q, 0, 0, false),
                               b.constant({3, 0, 1, 0, 4, 0, 0, 1, 5}, {3, 3})),
               matrix2 = b.contract(q, p, 0, 0, false);
  const std::map<NodeId, NodeId> moves_of{{p, move},
                                          {matrix, b.contract(move, q, 0, 0, false)},
                                          {matrix2, b.contract(q, move, 0, 0, false)}};
  const std::vector<std::pair<Op, std::vector<NodeId>>> operations{
      {Map{Fn::kTanh, 0}, {p}},
      {Map{Fn::kMul, 0}, {p, q}},
      {Map{Fn::kDiv, 0}, {q, p}},
      {Map{Fn::kMax, 0}, {p, q}},
      {Map{Fn::kPower, 3}, {p}},
      {Contract{0, 1, false}, {p, q}},
      {Contract{0, 0, false}, {p, q}},
      {ReduceSum{0}, {p}},
      {ReduceMax{0}, {p}},
      {LogSumExp{0}, {p}},
      {Scale{-2, 0}, {p}},
      {Expand{false, {2, 3}}, {p}},
      {Reshape{{1, 3}}, {p}},
      {Concat{0}, {p, q}},
      {Solve{}, {matrix, b.constant({1, 2, 3, 4, 5, 6}, {3, 2})}},
      {Solve{}, {b.constant({3, 0, 1, 0, 4, 0, 0, 1, 5}, {3, 3}), matrix}},
      {Solve{}, {matrix, matrix2}},
      {LogDet{}, {matrix}},
  };
  const std::vector<double> at{0.8, -0.6, 1.3};
  for (const auto& [op, in] : operations) {
    SCOPED_TRACE(op_name(op));
    const NodeId y = b.add(op, in);
    std::vector<NodeId> moves;
    for (const NodeId operand : in)
      moves.push_back(moves_of.contains(operand) ? moves_of.at(operand) : NodeId{});
    const auto t = tangent(b, b.node(y), in, y, moves);
    ASSERT_TRUE(t.ok());
    ASSERT_TRUE(t->valid());
    const std::int64_t size = size_of(b.type(y).dims);
    const NodeId flat = b.reshape(y, {size});
    const std::vector<double> forward = s.value(*t, at);
    for (std::int64_t k = 0; k < size; ++k) {
      const NodeId d = s.gradient_of(b.reshape(b.gather(flat, 0, {k}), {}));
      const double reverse = s.value(b.contract(d, move, 0, 1, false), at)[0];
      EXPECT_NEAR(forward[static_cast<std::size_t>(k)], reverse, 1e-14);
    }
  }
}

TEST(Tangent, OfWhatDoesNotMoveIsZero) {
  Finite s;
  const NodeId y = s.b.map(Fn::kTanh, {s.p});
  const auto t = tangent(s.b, s.b.node(y), {s.p}, y, {NodeId{}});
  ASSERT_TRUE(t.ok());
  EXPECT_TRUE(!t->valid() || s.b.is_zero(*t));
}

}  // namespace
}  // namespace tplimit
