/// What the builder shares, drops and computes at once, and what it must leave alone.

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/ir/program.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::ir {
namespace {

using Numbers = std::vector<double>;
using Indices = std::vector<std::int64_t>;

/// A program with normals x, y [3, n] and z [2, 3, n], a matrix W, and a finite value that is no
/// constant.
struct Sample {
  Program program;
  Builder b;
  NodeId x, y, z, W, finite;

  Sample() : program(start()), b(program) {
    x = b.add(StandardNormal{{0}}, {});
    y = b.add(StandardNormal{{1}}, {});
    z = b.add(StandardNormal{{2}}, {});
    W = b.add(GaussianMatrix{{3}}, {});
    finite = b.average(b.times(x, x));
  }
  static Program start() {
    Program program;
    program.sources = {{"x", false, {3}, {}},
                       {"y", false, {3}, {}},
                       {"z", false, {2, 3}, {}},
                       {"W", true, {}, {}},
                       {"V", true, {}, {}}};
    return program;
  }
  [[nodiscard]] const Op& op(NodeId id) const { return program[id].op; }
  [[nodiscard]] Numbers values(NodeId id) const {
    const auto* found = b.constant_values(id);
    return found
               ? *found
               : Numbers{std::numeric_limits<double>::infinity()};  // fails every comparison below
  }
};

std::shared_ptr<const Indices> shared(Indices indices) {
  return std::make_shared<const Indices>(std::move(indices));
}

NodeId scatter(Builder& b, NodeId x, std::int32_t axis, std::int64_t size, Indices to) {
  return b.add(ScatterAdd{axis, size, shared(std::move(to))}, {x});
}

// ---- sharing
// ---------------------------------------------------------------------------------------

/// Nodes of every operation; neighbours differ in one part of the payload or in one operand only.
std::vector<NodeId> different_nodes(const Sample& s, Builder& b) {
  const NodeId x = s.x, y = s.y, z = s.z, W = s.W, square = b.contract(x, x, 0, 0, true),
               c = b.constant(2.0);
  return {
      b.constant(2.0),
      b.constant(3.0),
      b.constant(2.0, {1}),
      b.constant({2, 3}, {2}),
      b.constant({2, 3}, {1, 2}),
      b.constant(0.0),
      b.constant(-0.0),
      b.scale(2, 0, x),
      b.scale(2, 1, x),
      b.scale(2, {1, 2}, x),
      b.scale(3, 0, x),
      b.scale(2, 0, y),
      x,
      y,
      b.map(Fn::kTanh, {x}),
      b.map(Fn::kSin, {x}),
      b.map(Fn::kTanh, {y}),
      b.map(Fn::kElu, {x}, 0.1),
      b.map(Fn::kElu, {x}, 0.2),
      b.plus(x, y),
      b.times(x, y),
      b.minus(x, y),
      b.minus(y, x),
      b.map(Fn::kDiv, {x, y}),
      b.map(Fn::kDiv, {y, x}),
      b.contract(x, y, 0, 0, false),
      b.contract(y, x, 0, 0, false),
      b.contract(x, y, 1, 0, false),
      b.contract(x, y, 0, 1, false),
      b.contract(x, y, 0, 1, true),
      b.average(x),
      b.average(y),
      b.sum(z, 0),
      b.sum(z, 1),
      b.add(ReduceMax{0}, {z}),
      b.add(ReduceMax{1}, {z}),
      b.add(LogSumExp{0}, {z}),
      b.add(LogSumExp{1}, {z}),
      b.gather(z, 0, {1, 0}),
      b.gather(z, 1, {1, 0}),
      b.gather(z, 1, {0, 1}),
      scatter(b, z, 0, 2, {1, 0}),
      scatter(b, z, 0, 3, {1, 0}),
      scatter(b, z, 0, 2, {1, 1}),
      scatter(b, z, 1, 3, {1, 0, 2}),
      b.permute(z, {1, 0}),
      b.reshape(z, {3, 2}),
      b.reshape(z, {6}),
      b.expand(x, true, {2, 3}),
      b.expand(s.finite, true, {3}),
      b.expand(s.finite, false, {1, 3}),
      b.add(Concat{0}, {z, z}),
      b.add(Concat{1}, {z, z}),
      b.add(Stop{}, {x}),
      b.add(Parameter{0}, {x}),
      b.add(Parameter{1}, {x}),
      b.add(Change{0}, {x}),
      b.add(Change{1}, {x}),
      b.add(Parameter{0}, {y}),
      W,
      b.add(GaussianMatrix{{4}}, {}),
      b.matmul(W, x, false),
      b.matmul(W, x, true),
      b.matmul(W, y, false),
      b.add(ScaleMatrix{}, {W, c}),
      b.add(UpdateMatrix{}, {W, c, x, y}),
      b.add(UpdateMatrix{}, {W, c, y, x}),
      b.add(UpdateMatrix{}, {W, c, x, y, c, x, y}),
      b.add(AddVersion{}, {W, c, b.add(ScaleMatrix{}, {W, c})}),
      b.add(OuterSum{}, {c, x, y}),
      b.add(OuterSum{}, {c, y, x}),
      b.map(Fn::kTanh, {b.add(OuterSum{}, {c, x, y})}),
      b.add(MatrixEntries{}, {W}),
      b.add(AddEntries{}, {W, c, b.add(OuterSum{}, {c, x, y})}),
      b.add(InnerProduct{}, {W, W}),
      b.add(InnerProduct{}, {W, b.add(ScaleMatrix{}, {W, c})}),
      b.add(Eigvals{}, {square}),
      b.add(Cholesky{}, {square}),
      b.add(TrainingOperator{1, 2, 0, false}, {square, square}),
      b.add(TrainingOperator{1, 2, 0, true}, {square, square}),
      b.add(TrainingOperator{1, 3, 0, false}, {square, square}),
      b.add(TrainingOperator{1, 2, 1, false}, {square, square}),
      b.add(Solve{}, {square, square}),
      b.add(LogDet{}, {square}),
      b.add(Samples{2}, {x}),
      b.add(Samples{3}, {x}),
      b.add(Histogram{-1, 1, 4}, {x}),
      b.add(Histogram{-2, 1, 4}, {x}),
      b.add(Histogram{-1, 2, 4}, {x}),
      b.add(Histogram{-1, 1, 5}, {x}),
  };
}

TEST(EqualNodes, AreOneNodeAndDifferentOnesAreNot) {
  Sample s;
  const std::vector<NodeId> first = different_nodes(s, s.b);
  EXPECT_EQ(std::set<NodeId>(first.begin(), first.end()).size(), first.size());
  std::set<std::size_t> operations;
  for (const NodeId id : first) operations.insert(s.op(id).index());
  EXPECT_EQ(operations.size(), std::variant_size_v<Op>) << "an operation is missing from this test";

  const std::size_t size = s.program.size();
  EXPECT_EQ(different_nodes(s, s.b), first);
  EXPECT_EQ(s.program.size(), size);
  verify(s.program);
}

TEST(EqualNodes, AreFoundByABuilderThatContinuesAProgram) {
  Sample s;
  const std::vector<NodeId> first = different_nodes(s, s.b);
  const std::size_t size = s.program.size();
  Builder later(s.program);
  EXPECT_EQ(different_nodes(s, later), first);
  EXPECT_EQ(s.program.size(), size);
}

TEST(EqualNodes, AreStillFoundWhenTheTableHasGrown) {
  Sample s;
  constexpr std::uint32_t kCount = 5000;
  const auto chain = [&] {
    NodeId at = s.x;
    for (std::uint32_t k = 0; k < kCount; ++k) at = s.b.map(Fn::kElu, {at}, k);
    return at;
  };
  const NodeId end = chain();
  const std::size_t size = s.program.size();
  EXPECT_GE(size, kCount);
  EXPECT_EQ(chain(), end);
  EXPECT_EQ(s.program.size(), size);
}

TEST(EqualNodes, MayComeFromDifferentPlacesAndKeepTheFirst) {
  Sample s;
  s.b.set_origin({3, 5}, 0);
  const NodeId first = s.b.map(Fn::kTanh, {s.x});
  s.b.set_origin({7, 9}, 0);
  EXPECT_EQ(s.b.map(Fn::kTanh, {s.x}), first);
  EXPECT_EQ(s.program[first].span, (Span{3, 5}));
}

TEST(EqualNodes, IncludeSumsAndProductsInEitherOrder) {
  Sample s;
  EXPECT_EQ(s.b.plus(s.x, s.y), s.b.plus(s.y, s.x));
  EXPECT_EQ(s.b.times(s.x, s.z), s.b.times(s.z, s.x));
  EXPECT_NE(s.b.map(Fn::kPow, {s.x, s.y}), s.b.map(Fn::kPow, {s.y, s.x}));
  EXPECT_NE(s.b.map(Fn::kLess, {s.x, s.y}), s.b.map(Fn::kLess, {s.y, s.x}));
}

// ---- constants
// -------------------------------------------------------------------------------------

TEST(Constants, AreFoldedByEveryFiniteOperation) {
  Sample s;
  Builder& b = s.b;
  const NodeId a = b.constant({1, 2, 3, 4, 5, 6}, {2, 3}), row = b.constant({10, 20, 30}, {3});
  const std::vector<std::pair<NodeId, Numbers>> folded = {
      {b.plus(a, row), {11, 22, 33, 14, 25, 36}},
      {b.scale(-2, 0, row), {-20, -40, -60}},
      {b.map(Fn::kPower, {row}, 2), {100, 400, 900}},
      {b.map(Fn::kWhere, {b.constant({0, 1, 2}, {3}), row, b.constant(7.0)}), {7, 20, 30}},
      {b.contract(a, row, 0, 1, false), {140, 320}},
      {b.contract(a, a, 1, 1, false), {14, 77}},
      {b.sum(a, 0), {5, 7, 9}},
      {b.add(ReduceMax{1}, {a}), {3, 6}},
      {b.add(LogSumExp{1}, {b.constant({0, std::log(3.0), 800, 800}, {2, 2})}),
       {std::log(4.0), 800 + std::log(2.0)}},
      {b.add(LogSumExp{0}, {b.constant({-900, 5, -901, -900}, {2, 2})}),
       {-900 + std::log1p(std::exp(-1.0)), 5}},
      {b.add(LogSumExp{1}, {b.constant({-3, 4}, {2, 1})}), {-3, 4}},
      {b.add(LogSumExp{0}, {b.constant(0.0, {5})}), {std::log(5.0)}},
      {b.gather(a, 1, {2, 0}), {3, 1, 6, 4}},
      {scatter(b, a, 1, 4, {3, 0, 3}), {2, 0, 0, 4, 5, 0, 0, 10}},
      {b.permute(a, {1, 0}), {1, 4, 2, 5, 3, 6}},
      {b.reshape(row, {3, 1}), {10, 20, 30}},
      {b.expand(row, false, {2, 3}), {10, 20, 30, 10, 20, 30}},
      {b.add(Concat{0}, {row, b.constant({1.0}, {1})}), {10, 20, 30, 1}},
      {b.add(Stop{}, {row}), {10, 20, 30}},
      {b.add(Eigvals{}, {b.constant({2, 1, 1, 2}, {2, 2})}), {1, 3}},
      {b.add(TrainingOperator{0.5, 2, 0, false},
             {b.constant({1, 0, 0, 2}, {2, 2}), b.constant({1, 2}, {1, 2})}),
       {0.75, 1}},
      {b.add(Solve{}, {b.constant({1, 2, 3, 4}, {2, 2}), b.constant({5, 1, 6, 0}, {2, 2})}),
       {-4, -2, 4.5, 1.5}},
      {b.add(Solve{}, {b.constant({2, 0, 0, 1, 0, 1, 4, 0}, {2, 2, 2}),
                       b.constant({6, 5, 3, 8}, {2, 2, 1})}),
       {3, 5, 2, 3}},
      // The units of its rows make no matrix singular.
      {b.add(Solve{}, {b.constant({1e-200, 0, 0, 1e200}, {2, 2}), b.constant({1, 1}, {2, 1})}),
       {1e200, 1e-200}},
      {b.add(LogDet{}, {b.constant({0, 1, 4, 0, 0, 2, 3, 1, 0}, {3, 3})}), {std::log(6.0)}},
      {b.add(LogDet{}, {b.constant({1e-200, 0, 0, 1e-200}, {2, 2})}), {-400 * std::log(10.0)}},
  };
  for (const auto& [id, expected] : folded) {
    const Numbers got = s.values(id);
    ASSERT_EQ(got.size(), expected.size()) << op_name(s.op(id)) << " of node " << id.value;
    for (std::size_t k = 0; k < got.size(); ++k)
      EXPECT_NEAR(got[k], expected[k], 1e-14 * std::max(1.0, std::abs(expected[k])))
          << "node " << id.value;
  }
  verify(s.program);
}

TEST(Constants, OfSingularMatricesStayForErrorsToNameThem) {
  Sample s;
  Builder& b = s.b;
  for (const double last : {4.0, 4.0 * (1 + 1e-15)}) {
    const NodeId a = b.constant({1, 2, 2, last}, {2, 2});
    EXPECT_TRUE(std::holds_alternative<Solve>(s.op(b.add(Solve{}, {a, a}))));
    EXPECT_TRUE(std::holds_alternative<LogDet>(s.op(b.add(LogDet{}, {a}))));
  }
  EXPECT_TRUE(std::holds_alternative<LogDet>(
      s.op(b.add(LogDet{}, {b.constant({0, 1, 1, 0}, {2, 2})}))));  // det < 0
  EXPECT_TRUE(std::holds_alternative<Constant>(
      s.op(b.add(LogDet{}, {b.constant({1, 2, 2, 4 * (1 + 1e-9)}, {2, 2})}))));
}

TEST(Constants, AreNotFoldedIntoPowersOfTheWidthOrParameters) {
  Sample s;
  const NodeId three = s.b.constant(3.0), scaled = s.b.scale(2, {1, 2}, three);
  const auto& outer = std::get<Scale>(s.op(scaled));  // the factor is folded, the power stays
  EXPECT_EQ(outer.factor, 1);
  EXPECT_EQ(outer.power, Exponent(1, 2));
  EXPECT_EQ(s.program[scaled].in[0], s.b.constant(6.0));

  const NodeId parameter = s.b.add(Parameter{0}, {three});
  EXPECT_TRUE(std::holds_alternative<Parameter>(s.op(parameter)));
  EXPECT_TRUE(std::holds_alternative<Map>(s.op(s.b.map(Fn::kTanh, {parameter}))));
  EXPECT_TRUE(std::holds_alternative<Expand>(s.op(s.b.expand(three, true, {}))));
}

TEST(Constants, ThatAreNotNumbersAreKept) {
  Sample s;
  EXPECT_TRUE(std::isnan(s.values(s.b.map(Fn::kDiv, {s.b.constant(0.0), s.b.constant(0.0)}))[0]));
  EXPECT_EQ(s.values(s.b.map(Fn::kDiv, {s.b.constant(1.0), s.b.constant(-0.0)}))[0],
            -std::numeric_limits<double>::infinity());
}

TEST(Constants, HaveOneValuePerEntry) {
  Sample s;
  EXPECT_THROW(s.b.constant({1, 2}, {3}), InternalError);
}

// ---- parameters
// ------------------------------------------------------------------------------------

TEST(Parameters, OfEqualInitialValuesStayDifferentAndOpaque) {
  Sample s;
  Builder& b = s.b;
  const NodeId zeros = b.zeros(true, {3}), p = b.add(Parameter{0}, {zeros}),
               q = b.add(Parameter{1}, {zeros});
  EXPECT_NE(p, q);
  EXPECT_TRUE(b.is_zero(zeros));
  EXPECT_FALSE(b.is_zero(p));
  // Nothing that holds only at the initial value may be used: it would lose the derivative.
  for (const NodeId id :
       {b.plus(s.x, p), b.minus(s.x, p), b.minus(p, q), b.times(s.x, p), b.average(p),
        b.scale(2, 0, p), b.matmul(s.W, p, false), b.reshape(p, {3, 1})}) {
    EXPECT_NE(id, s.x);
    EXPECT_NE(id, p);
    EXPECT_FALSE(b.is_zero(id)) << op_name(s.op(id));
  }
  const NodeId matrix = b.add(Parameter{2}, {s.W});
  EXPECT_NE(matrix, s.W);
  EXPECT_TRUE(b.type(matrix).matrix);
}

// ---- powers of the width
// ---------------------------------------------------------------------------

TEST(Scales, OfScalesMultiplyFactorsAndAddPowers) {
  Sample s;
  Builder& b = s.b;
  EXPECT_EQ(b.scale(2, {1, 2}, b.scale(3, {1, 3}, s.x)), b.scale(6, {5, 6}, s.x));
  EXPECT_EQ(b.scale(2, {1, 2}, b.scale(3, {-1, 2}, s.x)), b.scale(6, 0, s.x));
  EXPECT_EQ(b.scale(2, 1, b.scale(0.5, -1, s.x)), s.x);
  EXPECT_EQ(b.negate(b.negate(s.x)), s.x);
  EXPECT_EQ(b.scale(1, {2, 4}, s.x), b.scale(1, {1, 2}, s.x));
  EXPECT_EQ(b.scale(1, 0, s.x), s.x);
}

TEST(Scales, MoveOutOfProductsQuotientsAndContractions) {
  Sample s;
  Builder& b = s.b;
  const NodeId up = b.scale(3, {1, 2}, s.x), down = b.scale(2, {-1, 2}, s.y),
               sum = b.scale(2, 1, s.y);
  EXPECT_EQ(b.times(up, down), b.scale(6, 0, b.times(s.x, s.y)));
  EXPECT_EQ(b.times(up, up), b.scale(9, 1, b.times(s.x, s.x)));
  EXPECT_EQ(b.map(Fn::kDiv, {up, s.y}), b.scale(3, {1, 2}, b.map(Fn::kDiv, {s.x, s.y})));
  EXPECT_EQ(b.map(Fn::kDiv, {s.x, sum}), b.scale(0.5, -1, b.map(Fn::kDiv, {s.x, s.y})));
  EXPECT_EQ(b.contract(up, down, 0, 1, true), b.scale(6, 0, b.contract(s.x, s.y, 0, 1, true)));
  EXPECT_EQ(b.contract(up, s.y, 1, 0, false),
            b.scale(3, {1, 2}, b.contract(s.x, s.y, 1, 0, false)));
  EXPECT_EQ(b.times(s.x, b.constant(2.0)), b.scale(2, 0, s.x));
  // Out of sums they cannot.
  EXPECT_TRUE(std::holds_alternative<Map>(s.op(b.plus(up, down))));
}

// ---- neutral and absorbing operands
// ----------------------------------------------------------------

TEST(NeutralOperands, LeaveTheOtherOperand) {
  Sample s;
  Builder& b = s.b;
  const NodeId zero = b.constant(0.0), one = b.constant(1.0), ones = b.constant(1.0, {3});
  for (const NodeId id :
       {b.plus(s.x, zero), b.plus(zero, s.x), b.plus(s.x, b.zeros(true, {3})), b.minus(s.x, zero),
        b.times(s.x, ones), b.times(one, s.x), b.map(Fn::kDiv, {s.x, ones}),
        b.average(b.expand(s.x, true, {3})), b.reshape(s.x, {3}), b.permute(s.x, {0}),
        b.gather(s.x, 0, {0, 1, 2}), b.add(Concat{0}, {s.x})})
    EXPECT_TRUE(id == s.x || id == b.average(s.x)) << id.value;
  EXPECT_EQ(b.average(s.finite), s.finite);
  EXPECT_EQ(b.minus(zero, s.x), b.negate(s.x));
  EXPECT_EQ(b.permute(s.z, {0, 1}), s.z);
  EXPECT_EQ(b.add(ScaleMatrix{}, {s.W, one}), s.W);
}

TEST(Zero, AbsorbsWithTheRightShape) {
  Sample s;
  Builder& b = s.b;
  const NodeId zeros = b.zeros(true, {2, 3}), finite_zeros = b.constant(0.0, {2, 3});
  const std::vector<std::pair<NodeId, Type>> absorbed = {
      {b.scale(0, 1, s.z), {false, true, {2, 3}}},
      {b.minus(s.z, s.z), {false, true, {2, 3}}},
      {b.times(s.x, zeros), {false, true, {2, 3}}},
      {b.times(s.x, finite_zeros), {false, true, {2, 3}}},
      {b.map(Fn::kDiv, {zeros, b.constant(2.0)}), {false, true, {2, 3}}},
      {b.contract(zeros, s.x, 0, 1, false), {false, true, {2}}},
      {b.contract(s.x, zeros, 0, 1, true), {false, false, {2}}},
      {b.average(zeros), {false, false, {2, 3}}},
      {b.reshape(zeros, {6}), {false, true, {6}}},
      {b.sum(zeros, 0), {false, true, {3}}},
      {scatter(b, zeros, 1, 5, {4, 0, 0}), {false, true, {2, 5}}},
      {b.matmul(s.W, zeros, true), {false, true, {2, 3}}},
  };
  for (std::size_t k = 0; k < absorbed.size(); ++k) {
    EXPECT_TRUE(b.is_zero(absorbed[k].first)) << "case " << k;
    EXPECT_EQ(b.type(absorbed[k].first), absorbed[k].second) << "case " << k;
  }
  verify(s.program);
}

TEST(Zero, DoesNotAbsorbWhatMayNotBeFinite) {
  Sample s;
  Builder& b = s.b;
  const NodeId zero = b.constant(0.0, {3}), mean = b.average(s.x),
               inverse = b.map(Fn::kPower, {mean}, -1);
  for (const NodeId id :
       {b.map(Fn::kDiv, {zero, mean}), b.times(zero, inverse),
        b.times(zero, b.scale(2, 0, inverse)), b.times(zero, b.map(Fn::kLog, {mean})),
        b.contract(zero, inverse, 0, 1, false)}) {
    EXPECT_FALSE(b.is_zero(id));
    EXPECT_FALSE(b.constant_values(id));
  }
  const double infinity = std::numeric_limits<double>::infinity();
  const auto folded = [&](NodeId id) { return (*b.constant_values(id))[0]; };
  EXPECT_TRUE(std::isnan(folded(b.times(zero, b.constant(infinity, {3})))));
  EXPECT_TRUE(
      std::isnan(folded(b.map(Fn::kDiv, {zero, b.constant(std::vector<double>{0, 1, 2}, {3})}))));
  EXPECT_TRUE(std::isnan(folded(b.scale(0, 0, b.constant(infinity)))));
  EXPECT_TRUE(std::isnan(folded(b.average(b.map(Fn::kDiv, {b.zeros(true, {3}), zero})))));
}

TEST(Updates, DropTermsThatAreZero) {
  Sample s;
  Builder& b = s.b;
  const NodeId c = b.constant(2.0), zero = b.constant(0.0), zeros = b.zeros(true, {3});
  EXPECT_EQ(b.add(UpdateMatrix{}, {s.W, zero, s.x, s.y, c, zeros, s.y, c, s.x, zeros}), s.W);
  EXPECT_EQ(b.add(UpdateMatrix{}, {s.W, zero, s.x, s.y, c, s.y, s.x, c, s.x, zeros}),
            b.add(UpdateMatrix{}, {s.W, c, s.y, s.x}));
}

// ---- all pairs
// -------------------------------------------------------------------------------------

constexpr double kWidth = 16;  // its powers below are exact

/// The one row of a value in the program at width kWidth, where source k is 0.5 + k + (entry) / 8.
Numbers evaluate(const Program& program, NodeId id) {
  const Node& node = program[id];
  if (const auto* c = std::get_if<Constant>(&node.op)) return *c->values;
  Numbers out(static_cast<std::size_t>(size_of(node.type.dims)));
  if (const auto* source = std::get_if<StandardNormal>(&node.op)) {
    for (std::size_t k = 0; k < out.size(); ++k)
      out[k] = 0.5 + source->source.value + static_cast<double>(k) / 8;
    return out;
  }
  Node resolved = node;
  if (auto* scale = std::get_if<Scale>(&resolved.op))
    *scale = {scale->factor * std::pow(kWidth, to_double(scale->power)), 0};
  std::vector<Numbers> operands;
  std::vector<View> views;
  std::vector<const Type*> types;
  for (const NodeId in : node.in) {
    operands.push_back(evaluate(program, in));
    types.push_back(&program[in].type);
  }
  for (const Numbers& operand : operands) views.push_back({operand.data(), 1, 1});
  evaluate_rows(resolved, types, views, {out.data(), 1, 1});
  return out;
}

TEST(Simplification, KeepsTypeAndValueOfEveryMapOfEveryPair) {
  Sample s;
  Builder& b = s.b;
  const std::vector<NodeId> operands = {
      s.x,
      s.z,
      b.scale(2, 0, s.x),
      b.scale(4, {1, 2}, s.y),
      b.scale(0.5, -1, s.z),
      b.map(Fn::kTanh, {s.y}),
      b.sum(s.x, 0),
      b.constant(0.0),
      b.constant(0.0, {3}),
      b.constant(0.0, {2, 3}),
      b.constant(0.0, {1, 1, 1}),
      b.zeros(true, {}),
      b.zeros(true, {2, 3}),
      b.constant(1.0),
      b.constant(1.0, {2, 3}),
      b.constant(-3.0),
      b.constant({1, -2, 4}, {3}),
      b.scale(1, {1, 2}, b.constant(-3.0)),
      b.scale(1, 1, b.constant({1, -2, 4}, {3})),
      b.expand(b.constant(1.0), true, {}),
  };
  for (const Fn fn : {Fn::kAdd, Fn::kSub, Fn::kMul, Fn::kDiv, Fn::kPow, Fn::kMin, Fn::kMax,
                      Fn::kLess, Fn::kEqual})
    for (const NodeId u : operands)
      for (const NodeId v : operands) {
        const NodeId id = b.map(fn, {u, v});
        const std::string what = std::string(name(fn)) + " of " + std::to_string(u.value) +
                                 " and " + std::to_string(v.value) + "\n";
        const Type type = infer_type(Map{fn, 0}, {&b.type(u), &b.type(v)});
        ASSERT_EQ(b.type(id), type) << what << to_text(s.program);

        Numbers expected(static_cast<std::size_t>(size_of(type.dims)));
        const Numbers left = evaluate(s.program, u), right = evaluate(s.program, v);
        evaluate_rows({Map{fn, 0}, type, {u, v}, {}, 0}, {&b.type(u), &b.type(v)},
                      {{left.data(), 1, 1}, {right.data(), 1, 1}}, {expected.data(), 1, 1});
        const Numbers got = evaluate(s.program, id);
        for (std::size_t k = 0; k < expected.size(); ++k) {
          if (std::isnan(expected[k]))
            EXPECT_TRUE(std::isnan(got[k])) << what;
          else
            EXPECT_DOUBLE_EQ(got[k], expected[k]) << what;
        }
      }
  verify(s.program);
}

TEST(Simplification, KeepsTypeAndValueOfEveryContraction) {
  Sample s;
  Builder& b = s.b;
  const std::vector<NodeId> operands = {s.x,
                                        s.z,
                                        b.scale(4, {1, 2}, s.x),
                                        b.scale(0.5, -1, s.z),
                                        b.zeros(true, {3}),
                                        b.constant(0.0, {2, 3}),
                                        b.constant({1, -2, 4}, {3}),
                                        b.scale(1, {1, 2}, b.constant({1, -2, 4}, {3}))};
  for (const NodeId u : operands)
    for (const NodeId v : operands)
      for (const Contract op :
           {Contract{0, 0, false}, Contract{0, 1, false}, Contract{1, 0, false}}) {
        if (op.batch == 1 && b.type(u).dims[0] != b.type(v).dims[0]) continue;
        const NodeId id = b.add(op, {u, v});
        const Type type = infer_type(op, {&b.type(u), &b.type(v)});
        ASSERT_EQ(b.type(id), type);
        Numbers expected(static_cast<std::size_t>(size_of(type.dims)));
        const Numbers left = evaluate(s.program, u), right = evaluate(s.program, v);
        evaluate_rows({op, type, {u, v}, {}, 0}, {&b.type(u), &b.type(v)},
                      {{left.data(), 1, 1}, {right.data(), 1, 1}}, {expected.data(), 1, 1});
        const Numbers got = evaluate(s.program, id);
        for (std::size_t k = 0; k < expected.size(); ++k)
          EXPECT_DOUBLE_EQ(got[k], expected[k]) << u.value << " and " << v.value;
      }
  verify(s.program);
}

}  // namespace
}  // namespace tplimit::ir
