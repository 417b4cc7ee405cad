/// One more axis for many values of an input, and inputs replaced by others.

#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engines/finite_evaluator.hpp"
#include "tests/unit/passes/programs.hpp"
#include "tplimit/passes/batch.hpp"

namespace tplimit {
namespace {

using namespace ir;
using test::add_report;

/// An input a [3], and inputs b [2, 3] that it takes.
struct WithInput {
  Program program;
  Builder b;
  NodeId x, W, a, many;
  WithInput() : program(start()), b(program) {
    x = b.add(StandardNormal{{0}}, {});
    W = b.add(GaussianMatrix{{1}}, {});
    a = b.add(Parameter{0}, {b.constant({1, 2, 3}, {3})});  // no constant: nothing is folded
    many = b.add(Parameter{1}, {b.constant({1, -2, 0.5, 4, 0, 3}, {2, 3})});
  }
  static Program start() {
    Program program;
    program.sources = {{"x", false, {3}, {}}, {"W", true, {}, {}}};
    return program;
  }
};

TEST(Batched, PutsTheNewAxisInFront) {
  WithInput s;
  const NodeId z = s.b.map(Fn::kTanh, {s.b.times(s.a, s.x)});
  const std::size_t before = s.program.size();
  const NodeId out = batched(s.b, {z}, 2, {{s.a, s.many}})[0];
  EXPECT_EQ(s.b.type(out), (Type{false, true, {2, 3}}));
  const std::string text = to_text(s.program), added = text.substr(text.find("%8 "));
  ASSERT_EQ(before, 8u);
  EXPECT_EQ(added,
            "%8 [2, 3, n] = mul %0 %5\n"
            "%9 [2, 3, n] = tanh %8\n");
}

TEST(Batched, SharesWhatDependsOnNoInput) {
  WithInput s;
  const NodeId mean = s.b.average(s.b.times(s.x, s.x));
  const NodeId out = batched(s.b, {mean}, 2, {{s.a, s.many}})[0];
  EXPECT_EQ(s.b.type(out).dims, (Dims{2, 3}));  // repeated, not computed twice
  int averages = 0;
  for (const Node& node : s.program.nodes)
    averages += std::holds_alternative<Average>(node.op) ? 1 : 0;
  EXPECT_EQ(averages, 1);
}

/// Every operation that a value can be computed by, at each of the inputs and at once.
TEST(Batched, GivesWhatEachInputGives) {
  WithInput s;
  Builder& b = s.b;
  const NodeId ax = b.times(s.a, s.x), z = b.map(Fn::kTanh, {ax}), wz = b.matmul(s.W, z, false),
               back = b.matmul(s.W, wz, true), outer = b.contract(s.a, s.a, 0, 0, false),
               three = b.constant(3);
  const NodeId scaled = b.add(ScaleMatrix{}, {s.W, three});
  const auto indices = [](std::vector<std::int64_t> v) {
    return std::make_shared<const std::vector<std::int64_t>>(std::move(v));
  };
  const NodeId regular = b.plus(outer, b.constant({40, 0, 0, 0, 50, 0, 0, 0, 60}, {3, 3}));
  const std::vector<NodeId> finite{
      s.a,
      b.average(z),
      b.average(b.times(wz, back)),
      b.average(b.matmul(scaled, z, false)),
      b.contract(z, s.x, 0, 0, true),
      b.contract(z, wz, 1, 0, true),
      b.contract(s.a, b.constant({1, 0, 2}, {3}), 0, 1, false),
      b.contract(b.constant({1, 0, 2}, {3}), s.a, 0, 0, false),
      b.sum(outer, 0),
      b.sum(outer, 1),
      b.add(ReduceMax{1}, {b.map(Fn::kSin, {outer})}),
      b.add(LogSumExp{1}, {b.map(Fn::kSin, {outer})}),
      b.gather(outer, 1, {2, 0}),
      b.add(ScatterAdd{0, 4, indices({3, 0, 3})}, {outer}),
      b.permute(b.reshape(outer, {3, 3, 1}), {2, 1, 0}),
      b.reshape(outer, {9}),
      b.expand(s.a, false, {2, 3}),
      b.add(Concat{0}, {s.a, b.constant({7, 8}, {2})}),
      b.add(Stop{}, {b.scale(2, 1, s.a)}),
      b.map(Fn::kWhere, {b.map(Fn::kLess, {s.a, b.constant(2.0)}), s.a, b.constant(9.0)}),
      b.add(Eigvals{}, {outer}),
      b.add(LogDet{}, {regular}),
      b.add(Solve{}, {regular, outer}),
      b.add(Solve{}, {regular, b.constant({1, 2, 3, 4, 5, 6}, {3, 2})}),
      b.add(Solve{}, {b.constant({2, 1, 0, 1, 3, 0, 0, 1, 4}, {3, 3}), outer}),
  };
  for (std::size_t k = 0; k < finite.size(); ++k) {
    SCOPED_TRACE(op_name(b.node(finite[k]).op));
    const NodeId at_once = batched(b, {finite[k]}, 2, {{s.a, s.many}})[0];
    Dims dims = b.type(finite[k]).dims;
    dims.insert(dims.begin(), 2);
    EXPECT_EQ(b.type(at_once).dims, dims);
    std::vector<NodeId> one_by_one;
    for (const std::int64_t i : {0, 1}) {
      const NodeId own = b.reshape(b.gather(s.many, 0, {i}), {3});
      one_by_one.push_back(substituted(b, finite[k], {{s.a, own}}));
    }
    EXPECT_NO_THROW(verify(s.program));
    const test::Network network(s.program, 5);
    std::vector<double> expected = network[one_by_one[0]];
    expected.insert(expected.end(), network[one_by_one[1]].begin(), network[one_by_one[1]].end());
    const std::vector<double>& found = network[at_once];
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t j = 0; j < found.size(); ++j) EXPECT_NEAR(found[j], expected[j], 1e-12) << j;
  }
}

TEST(Batched, MatrixVersionsOfTheInputHaveNoSuchForm) {
  WithInput s;
  const NodeId c = s.b.sum(s.a, 0), y = s.b.map(Fn::kTanh, {s.x});
  const NodeId updated = s.b.add(UpdateMatrix{}, {s.W, c, s.x, y});
  const NodeId z = s.b.matmul(updated, s.x, false);
  const auto refused = unbatchable(s.b, {z}, {s.a});
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->code, "E2134");
  const NodeId K = s.b.contract(s.a, s.a, 0, 0, false);
  EXPECT_TRUE(unbatchable(s.b, {s.b.add(Cholesky{}, {K})}, {s.a}));
  EXPECT_FALSE(unbatchable(s.b, {z}, {s.many}));  // it does not depend on this one
  EXPECT_FALSE(unbatchable(s.b, {s.b.matmul(s.W, s.b.times(s.a, s.x), false)}, {s.a}));
}

TEST(MixesRows, IfAnEntryDependsOnOthersOfTheFirstAxis) {
  Program program;
  program.sources = {{"x", false, {}, {}}};
  Builder b(program);
  const NodeId x = b.add(Parameter{0}, {b.constant({1, 2, 3, 4}, {2, 2})}),
               eye = b.constant({1, 0, 0, 1}, {2, 2});
  EXPECT_FALSE(mixes_rows(b, b.map(Fn::kTanh, {x}), x));
  EXPECT_FALSE(mixes_rows(b, b.sum(x, 1), x));
  EXPECT_FALSE(mixes_rows(b, b.contract(x, b.constant({1, 2, 3, 4}, {2, 2}), 0, 1, false), x));
  EXPECT_FALSE(mixes_rows(b, b.gather(x, 1, {1, 0}), x));
  EXPECT_TRUE(mixes_rows(b, b.sum(x, 0), x));
  EXPECT_TRUE(mixes_rows(b, b.gather(x, 0, {1, 0}), x));
  EXPECT_TRUE(mixes_rows(b, b.contract(x, x, 0, 1, false), x));
  EXPECT_TRUE(mixes_rows(b, b.permute(x, {1, 0}), x));
  // Operations are looked at, not values: the identity matrix mixes nothing.
  EXPECT_TRUE(mixes_rows(b, b.contract(eye, b.permute(x, {1, 0}), 0, 1, false), x));
}

TEST(Substituted, ReplacesTensorsAndMatrixVersions) {
  WithInput s;
  Program& program = s.program;
  program.sources.push_back({"V", true, {}, {}});
  const NodeId V = s.b.add(GaussianMatrix{{2}}, {});
  const NodeId z =
      s.b.matmul(s.b.add(ScaleMatrix{}, {s.W, s.b.constant(2)}), s.b.times(s.a, s.x), false);
  const NodeId other = substituted(s.b, z, {{s.W, V}, {s.a, s.b.constant({0, 1, 0}, {3})}});
  const Node& product = s.b.node(other);
  EXPECT_EQ(source_of(program, product.in[0]), SourceId{2});
  EXPECT_FALSE(depends_on(s.b, {other}, {s.a, s.W}));
  EXPECT_TRUE(depends_on(s.b, {z}, {s.a}));
  EXPECT_TRUE(depends_on(s.b, {z}, {s.many, s.W}));
  EXPECT_TRUE(depends_on(s.b, {z}, {z}));
  EXPECT_FALSE(depends_on(s.b, {z}, {s.many}));
}

TEST(Substituted, DoesNotLookBehindWhatIsReplaced) {
  WithInput s;
  const NodeId twice = s.b.plus(s.a, s.a), y = s.b.map(Fn::kSin, {twice});
  // a itself stays in the replacement: one pass, not a fixed point.
  const NodeId out = substituted(s.b, y, {{twice, s.a}});
  EXPECT_EQ(out, s.b.map(Fn::kSin, {s.a}));
  EXPECT_EQ(substituted(s.b, y, {{s.many, s.a}}), y);  // nothing to replace
}

}  // namespace
}  // namespace tplimit
