/// Sweeps over matrices of entries against plain arrays, in both precisions.

#include "engines/entry_sweep.hpp"

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include <gtest/gtest.h>

#include "engines/plan.hpp"
#include "tests/support/blocks.hpp"
#include "tplimit/math/normals.hpp"

namespace tplimit::engines {
namespace {

using namespace ir;
using Eigen::Index;

/// A x for unit vectors x.
template <class T>
Matrix entries_of(const StoredEntries<T>& arrays, Slabs& e, Index n) {
  const Block unit = block_of(Matrix::Identity(n, n));
  Block out(n, n);
  arrays.apply(e, 1, false, unit, out);
  return matrix_of(out);
}

template <class T>
class EntrySweeps : public ::testing::Test {};
using Precisions = ::testing::Types<float, double>;
TYPED_TEST_SUITE(EntrySweeps, Precisions);

/// W + c m / (sqrt(v) + eps), m and v averages of g and g^2 over two steps: Adam without its
/// correction of the bias.
TYPED_TEST(EntrySweeps, DoWhatAnOptimiserDoesEntryByEntry) {
  for (const Index n : {5, 64, 300}) {
    Program program;
    program.sources = {{"W", true, {}, {}}, {"d", false, {2}, {}}, {"x", false, {2}, {}}};
    Builder b(program);
    const NodeId w0 = b.add(GaussianMatrix{{0}}, {}), d = b.add(StandardNormal{{1}}, {}),
                 x = b.add(StandardNormal{{2}}, {});
    const auto number = [&](double c) { return b.constant(c); };
    NodeId m = number(0), v = number(0), w = w0;
    std::vector<double> scales{0.7, -1.3};
    for (const double scale : scales) {
      const NodeId g =
          b.add(OuterSum{}, {number(scale), d, x, number(2 * scale), b.map(Fn::kTanh, {d}), x});
      m = b.plus(b.times(number(0.9), m), b.times(number(0.1), g));
      v = b.plus(b.times(number(0.5), v), b.times(number(0.5), b.map(Fn::kPower, {g}, 2)));
      w = b.add(AddEntries{}, {w, number(-0.3 * static_cast<double>(n)),
                               b.map(Fn::kDiv, {m, b.plus(b.map(Fn::kSqrt, {v}), number(1e-2))})});
    }
    const NodeId out = b.average(b.times(b.matmul(w, x, false), d));
    verify(program);
    const Schedule schedule = make_schedule(program, {out});

    const Executor executor(1);
    const StoredEntries<TypeParam> arrays(executor, n);
    const Matrix dm = normals(n, 2, 1), xm = normals(n, 2, 2), tanh = dm.array().tanh().matrix();
    std::map<std::uint32_t, Block> blocks;
    std::map<std::uint32_t, std::shared_ptr<Slabs>> entries;
    entries[w0.value] = arrays.drawn(7, ir::EntryLaw::kNormal);
    const Matrix start = entries_of(arrays, *entries[w0.value], n);
    int sweeps = 0;
    for (const Plan::Step& step : schedule.plan.steps) {
      const auto* sweep = std::get_if<Plan::EntrySweep>(&step.action);
      if (!sweep) continue;
      ++sweeps;
      for (const auto& store : sweep->stores) entries[store.node.value] = arrays.uninitialised();
      for (const auto& operation : sweep->operations)
        if (operation.out.where == Plan::Place::Where::kVersion)
          entries[operation.node.value] = entries[program[operation.node].in[0].value];
      sweep_entries<TypeParam>(executor, arrays, program, *sweep,
                               {[&](NodeId id) -> const Block& {
                                  return blocks
                                      .try_emplace(id.value, block_of(id == d   ? dm
                                                                      : id == x ? xm
                                                                                : tanh))
                                      .first->second;
                                },
                                [&](NodeId id) { return (*b.constant_values(id))[0]; },
                                [&](NodeId id) -> Slabs& { return *entries.at(id.value); }});
    }
    EXPECT_GE(sweeps, 1);
    Matrix expected = start, mean = Matrix::Zero(n, n), square = Matrix::Zero(n, n);
    for (const double scale : scales) {
      const Matrix g = scale * (dm + 2 * tanh) * xm.transpose();
      mean = 0.9 * mean + 0.1 * g;
      square = 0.5 * square + 0.5 * g.cwiseAbs2();
      expected.array() -= 0.3 * mean.array() / (square.array().sqrt() + 1e-2);
    }
    const double eps = static_cast<double>(std::numeric_limits<TypeParam>::epsilon());
    // Near g = 0 psi has slope 100 times the rate.
    EXPECT_LT((entries_of(arrays, *entries.at(w.value), n) - expected).cwiseAbs().maxCoeff(),
              2000 * eps)
        << n;
  }
}

/// Padding stays 0 though psi of nothing is not a number there.
TYPED_TEST(EntrySweeps, LeavePaddingAlone) {
  Program program;
  program.sources = {{"W", true, {}, {}}, {"d", false, {}, {}}};
  Builder b(program);
  const NodeId w0 = b.add(GaussianMatrix{{0}}, {}), d = b.add(StandardNormal{{1}}, {}),
               g = b.add(OuterSum{}, {b.constant(1), d, d}),
               w = b.add(AddEntries{},
                         {w0, b.constant(5), b.map(Fn::kDiv, {g, b.map(Fn::kAbs, {g})})}),
               out = b.average(b.matmul(w, d, false));
  const Schedule schedule = make_schedule(program, {out});
  const Executor executor(1);
  const StoredEntries<TypeParam> arrays(executor, 5);
  std::shared_ptr<Slabs> a = arrays.zeros();
  const Block vector = block_of(normals(5, 1, 3));
  for (const Plan::Step& step : schedule.plan.steps)
    if (const auto* sweep = std::get_if<Plan::EntrySweep>(&step.action))
      sweep_entries<TypeParam>(executor, arrays, program, *sweep,
                               {[&](NodeId) -> const Block& { return vector; },
                                [&](NodeId id) { return (*b.constant_values(id))[0]; },
                                [&](NodeId) -> Slabs& { return *a; }});
  const Matrix entries = entries_of(arrays, *a, 5);
  EXPECT_TRUE(entries.allFinite());
  EXPECT_EQ(entries.cwiseAbs().minCoeff(), 1);
  (void)w;
}

}  // namespace
}  // namespace tplimit::engines
