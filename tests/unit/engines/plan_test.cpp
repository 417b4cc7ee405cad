/// Plans: what they look like, that they read what is there and free what is not read again, and
/// that the estimate of memory sees their peak.

#include <algorithm>
#include <set>
#include <span>
#include <string>

#include <gtest/gtest.h>

#include "engines/memory_estimate.hpp"
#include "engines/plan.hpp"
#include "tests/support/run.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::engines {
namespace {

using ir::NodeId;
using Where = Plan::Place::Where;

const char* const kTraining = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, 0.1]]
data y = [1, -1, 0.5]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [2, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  z = tanh(U @ x)
  for l in 0..2 { z = tanh(W[l] @ z) }
  return v @ z / n, z
}
for t in 0..3 {
  out, z = f(X)
  report out, gram(z)
  step sgd(mse(out, y), lr = 0.3)
}
out, z = f(X)
report last = out, some = samples(z, 2), bars = hist(z, low = -1, high = 1, bins = 4)
)";

const char* const kAdam = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, 0.1]]
data y = [1, -1, 0.5]
parametrization mup
param U : input [n, 2] ~ normal(0, 1 / 2)
param W : hidden [2, n, n] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
model f(x) {
  z = tanh(U @ x)
  for l in 0..2 { z = tanh(W[l] @ z) }
  return v @ z
}
for t in 0..3 { step adamw(mse(f(X), y), lr = 0.1) }
for t in 0..2 { step sgd(mse(f(X), y), lr = 0.1, momentum = 0.9) }
report f(X)
)";

const char* const kTied = R"(width n
random x : [3, n] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1 / n)
for t in 0..3 {
  s = tanh(W @ x)
  r = W' @ s
  W0 = W
  report gram(s), gram(r, x), old = gram(s, W0 @ x)
  step sgd(mean(E((r - x)^2)) / 2, lr = 0.2)
  W = 0.9 * W
}
report last = gram(W @ x), first = gram(W' @ relu(W @ x))
)";

ir::Program limit_program(const std::string& text) {
  const auto limit = leading_order(test::parsed(text).program);
  EXPECT_TRUE(limit.ok());
  return limit->program;
}

/// Carries a plan out on names alone.
class Rehearsal {
 public:
  explicit Rehearsal(const ir::Program& program) : program_(program) {}

  void run(const Plan& plan) {
    for (const Plan::Step& step : plan.steps) {
      std::visit(overloaded{[&](const Plan::Sweep& sweep) { rehearse(sweep); },
                            [&](const Plan::EntrySweep& sweep) { rehearse(sweep); },
                            [&](const auto& single) {
                              read_operands(single.node);
                              make(single.node);
                            }},
                 step.action);
      std::int64_t columns = 0;
      for (const NodeId id : alive_) columns += columns_of(id);
      columns_.push_back(columns);
      for (const NodeId id : step.frees) EXPECT_EQ(alive_.erase(id), 1u) << id.value;
    }
  }
  [[nodiscard]] const std::set<NodeId>& alive() const { return alive_; }
  /// Of blocks, while each step is carried out.
  [[nodiscard]] const std::vector<std::int64_t>& columns() const { return columns_; }

 private:
  [[nodiscard]] bool finite(NodeId id) const {
    return !program_[id].type.matrix && !program_[id].type.width;
  }
  [[nodiscard]] std::int64_t columns_of(NodeId id) const {
    return program_[id].type.width ? ir::size_of(program_[id].type.dims) : 0;
  }
  void make(NodeId id) {
    if (finite(id))
      EXPECT_TRUE(done_.insert(id).second) << id.value;
    else
      EXPECT_TRUE(alive_.insert(id).second) << id.value;
  }
  void read(NodeId id) {
    if (std::holds_alternative<ir::Constant>(program_[id].op)) return;
    EXPECT_TRUE(finite(id) ? done_.contains(id) : alive_.contains(id)) << id.value;
  }
  void read_operands(NodeId id) {
    for (const NodeId in : program_[id].in) read(in);
  }

  /// Scratch columns and sums hold the value that was written there last.
  void rehearse(const Plan::Sweep& sweep) {
    std::vector<NodeId> scratch(static_cast<std::size_t>(sweep.scratch_columns));
    std::set<std::int64_t> summed;
    std::vector<NodeId> averages;
    for (const auto& [id, types, in, out] : sweep.operations) {
      const auto& operands = program_[id].in;
      ASSERT_EQ(in.size(), operands.size());
      ASSERT_EQ(types.size(), operands.size());
      const auto columns = [&](const Plan::Place& place) {
        EXPECT_LE(place.offset + place.columns, sweep.scratch_columns);
        return std::span(scratch).subspan(static_cast<std::size_t>(place.offset),
                                          static_cast<std::size_t>(place.columns));
      };
      for (std::size_t k = 0; k < in.size(); ++k) {
        EXPECT_NE(in[k].where, Where::kSum);
        EXPECT_EQ(in[k].columns, ir::size_of(types[k]->dims));
        if (in[k].where != Where::kScratch) {
          EXPECT_EQ(in[k].where == Where::kFinite, finite(operands[k]));
          read(operands[k]);
          continue;
        }
        for (const NodeId there : columns(in[k])) EXPECT_EQ(there, operands[k]);
        // The result may not overwrite what it is computed from.
        if (out.where == Where::kScratch) {
          EXPECT_TRUE(out.offset + out.columns <= in[k].offset ||
                      in[k].offset + in[k].columns <= out.offset);
        }
      }
      switch (out.where) {
        case Where::kFinite: ADD_FAILURE() << "a sweep has rows"; break;
        case Where::kBlock: make(id); break;
        case Where::kScratch:
          for (NodeId& there : columns(out)) there = id;
          break;
        case Where::kSum:
          averages.push_back(id);
          for (std::int64_t j = out.offset; j < out.offset + out.columns; ++j)
            EXPECT_TRUE(summed.insert(j).second);
          break;
        case Where::kEntries:
        case Where::kVersion: ADD_FAILURE() << "matrices have sweeps of their own";
      }
    }
    EXPECT_EQ(static_cast<std::int64_t>(summed.size()), sweep.sums);
    for (const NodeId id : averages) make(id);
  }

  void rehearse(const Plan::EntrySweep& sweep) {
    std::map<std::int64_t, NodeId> columns;
    for (const auto& load : sweep.loads) {
      read(load.node);
      columns[load.column] = load.node;
    }
    for (const auto& [id, types, in, out] : sweep.operations) {
      const auto& operands = program_[id].in;
      ASSERT_EQ(in.size(), operands.size());
      for (std::size_t k = 0; k < in.size(); ++k) {
        const bool column = in[k].where == Where::kScratch || in[k].where == Where::kEntries;
        EXPECT_EQ(column, program_[operands[k]].type.entries);
        if (!column) {
          read(operands[k]);
          continue;
        }
        EXPECT_EQ(columns.at(in[k].offset), operands[k]);
        EXPECT_NE(in[k].offset, out.where == Where::kVersion ? -1 : out.offset);
      }
      if (out.where == Where::kVersion) {
        make(id);
        continue;
      }
      EXPECT_LT(out.offset, sweep.scratch_columns);
      columns[out.offset] = id;
    }
    for (const auto& store : sweep.stores) {
      EXPECT_EQ(columns.at(store.column), store.node);
      make(store.node);
    }
  }

  const ir::Program& program_;
  std::set<NodeId> alive_, done_;
  std::vector<std::int64_t> columns_;
};

/// A stored network keeps nothing beside the blocks but its matrices.
double estimate_without_matrices(const Schedule& schedule, std::int64_t rows) {
  RunSettings settings;
  settings.realisation = RealisationKind::kStoredNetwork;
  settings.rows = rows;
  return estimate_memory(schedule, settings);
}

TEST(Plan, ReadsWhatIsThereAndFreesAllOfItOnce) {
  for (const char* text : {kTraining, kTied, kAdam}) {
    const ir::Program program = limit_program(text);
    const Schedule schedule = make_schedule(program, ir::outputs_of(program));
    for (const Plan& plan : {schedule.plan, one_by_one(schedule)}) {
      Rehearsal rehearsal(program);
      rehearsal.run(plan);
      EXPECT_TRUE(rehearsal.alive().empty()) << to_text(plan, program);
      EXPECT_EQ(live_columns(plan, program), rehearsal.columns()) << to_text(plan, program);
    }
  }
}

TEST(Plan, OneByOneKeepsEveryValueInABlock) {
  const ir::Program program = limit_program(kTraining);
  const Schedule schedule = make_schedule(program, ir::outputs_of(program));
  std::size_t operations = 0;
  for (std::size_t k = 0; k < program.size(); ++k)
    if (schedule.needed[k] && !std::holds_alternative<ir::Constant>(program.nodes[k].op))
      ++operations;
  const Plan plan = one_by_one(schedule);
  EXPECT_EQ(plan.steps.size(), operations);
  for (const Plan::Step& step : plan.steps)
    if (const auto* sweep = std::get_if<Plan::Sweep>(&step.action)) {
      EXPECT_EQ(sweep->operations.size(), 1u);
      EXPECT_EQ(sweep->scratch_columns, 0);
    }
}

TEST(Plan, OrdersTheNodesFromWhichARunCanGoOn) {
  for (const char* text : {kTraining, kTied, kAdam}) {
    const ir::Program program = limit_program(text);
    const Schedule schedule = make_schedule(program, ir::outputs_of(program));
    std::set<NodeId> before;
    std::size_t places = 0;
    for (const Plan::Step& step : schedule.plan.steps) {
      if (step.next) {
        ++places;
        for (const NodeId id : before) EXPECT_LT(id, *step.next);
      }
      std::set<NodeId> own;
      std::visit(overloaded{[&](const Plan::Sweep& sweep) {
                              for (const NodeId id : sweep.nodes()) own.insert(id);
                            },
                            [&](const Plan::EntrySweep& sweep) {
                              for (const auto& operation : sweep.operations)
                                own.insert(operation.node);
                            },
                            [&](const auto& single) { own.insert(single.node); }},
                 step.action);
      if (step.next) {
        EXPECT_GE(*own.begin(), *step.next);
      }
      before.insert(own.begin(), own.end());
    }
    EXPECT_GE(places, 8u);
  }
}

TEST(MemoryEstimate, PeaksWithThePlan) {
  // There are no matrices: blocks and scratch memory are all there is.
  const ir::Program program = limit_program(R"(width n
random g : [n] ~ normal(0, 1)
random x : [2, n] ~ normal(0, 1)
m = E(exp(sin(g)))
h = cos(g) * m
k = sigmoid(x) * E(h * cos(g))
report E(h * k[0]), E(k^2)
)");
  const Schedule schedule = make_schedule(program, ir::outputs_of(program));
  Rehearsal rehearsal(program);
  rehearsal.run(schedule.plan);
  const std::int64_t peak =
      *std::max_element(rehearsal.columns().begin(), rehearsal.columns().end());
  std::int64_t scratch = 0;
  for (const Plan::Step& step : schedule.plan.steps)
    if (const auto* sweep = std::get_if<Plan::Sweep>(&step.action))
      scratch = std::max(scratch, sweep->scratch_columns);
  constexpr std::int64_t kRows = 1024;
  EXPECT_EQ(estimate_without_matrices(schedule, kRows),
            static_cast<double>((peak * kRows + scratch * kChunkRows) * 8))
      << to_text(schedule.plan, program);
}

TEST(Plan, IsPrintedStepByStep) {
  const ir::Program program = limit_program(R"(width n
random g : [n] ~ normal(0, 1)
random W : [n, n] ~ normal(0, 1 / n)
h = W @ tanh(g)
report E(h * sin(h))
)");
  const Schedule schedule = make_schedule(program, ir::outputs_of(program));
  EXPECT_EQ(to_text(schedule.plan, program), R"(draw       %0 = standard_normal() -> block of 1
matrix     %1 = gaussian_matrix()
sweep      0 scratch columns, 0 sums
             %2 = tanh(%0) -> block of 1
  free     %0
product    %3 = matmul(%1 %2) -> block of 1
  free     %1 %2
sweep      2 scratch columns, 1 sums
             %4 = sin(%3) -> scratch 0..1
             %5 = mul(%3 %4) -> scratch 1..2
             %6 = average(%5) -> sums 0..1
  free     %3
)");
}

}  // namespace
}  // namespace tplimit::engines
