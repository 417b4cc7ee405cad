/// What is known before the run: NaNs that reach an output, jumps that lie at a limit.

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/passes/programs.hpp"
#include "tplimit/passes/determinacy.hpp"
#include "tplimit/passes/known_values.hpp"

namespace tplimit {
namespace {

using namespace ir;
using test::add_report;

/// A vector x and a finite value e = E x^2 that nothing is known of.
struct Sample {
  Program program;
  Builder b;
  NodeId x, e;
  Sample() : program(start()), b(program) {
    x = b.add(StandardNormal{{0}}, {});
    e = b.average(b.times(x, x));
  }
  static Program start() {
    Program program;
    program.sources = {{"x", false, {}, {}}};
    return program;
  }
  std::optional<NodeId> nan_of(NodeId output) {
    program.reports.clear();
    add_report(program, "r", output);
    return certain_nan(program);
  }
};

TEST(CertainNan, IsWhereZeroIsDividedByZero) {
  Sample s;
  const NodeId zero = s.b.constant({0, 1}, {2}), divisor = s.b.constant({0, 2}, {2});
  // Divided by a product with e, so that nothing is folded.
  const NodeId quotient = s.b.map(Fn::kDiv, {zero, s.b.times(divisor, s.e)});
  const NodeId later = s.b.map(Fn::kTanh, {s.b.plus(quotient, s.e)});
  EXPECT_EQ(s.nan_of(s.b.sum(later, 0)), quotient);
  // The entry that is a number may be reported.
  EXPECT_FALSE(s.nan_of(s.b.gather(later, 0, {1})));
  EXPECT_EQ(s.nan_of(s.b.gather(later, 0, {0})), quotient);
}

TEST(CertainNan, WhatIsNotKnownIsNotCertain) {
  Sample s;
  const NodeId difference = s.b.minus(s.e, s.b.average(s.b.map(Fn::kTanh, {s.x})));
  EXPECT_FALSE(s.nan_of(s.b.map(Fn::kDiv, {difference, difference})));
  EXPECT_FALSE(s.nan_of(s.b.map(Fn::kDiv, {s.b.constant(1), s.b.times(s.e, s.b.constant(2))})));
}

TEST(CertainNan, ABranchThatIsNotTakenHidesIt) {
  Sample s;
  const NodeId nan =
      s.b.map(Fn::kDiv, {s.b.constant({0, 1}, {2}), s.b.times(s.b.constant({0, 2}, {2}), s.e)});
  const NodeId finite = s.b.expand(s.e, false, {2});
  EXPECT_FALSE(s.nan_of(s.b.map(Fn::kWhere, {s.b.constant({0, 1}, {2}), nan, finite})));
  EXPECT_TRUE(s.nan_of(s.b.map(Fn::kWhere, {s.b.constant({1, 0}, {2}), nan, finite})));
}

TEST(CertainNan, NothingIsFoundInProgramsWithoutConstants) {
  EXPECT_FALSE(
      certain_nan(test::cleaned("width n\nrandom x : [n] ~ normal(0, 1)\n"
                                "report E(x^2) / E(tanh(x)^2)\n")));
}

TEST(KnownEntries, WhatIsTimesZeroIsZeroAtEveryWidth) {
  const Program program = test::cleaned(
      "width n\nrandom U : [n, 2] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, 1 / n)\n"
      "report E(sin(W @ tanh(U @ [[0, 0], [1, 2]]))^2)\n");
  const auto known = known_entries(program);
  const std::vector<double>& q = known[program.reports[0].entries[0].value.value];
  ASSERT_EQ(q.size(), 2u);
  EXPECT_EQ(q[0], 0);
  EXPECT_TRUE(std::isnan(q[1]));
}

TEST(IsJump, StepSignComparisonsModAndWhere) {
  std::set<std::string> jumps;
  for (int fn = 0; fn <= static_cast<int>(Fn::kWhere); ++fn) {
    const auto f = static_cast<Fn>(fn);
    if (is_jump({Map{f, 0}, {}, {}, {}, 0})) jumps.insert(name(f));
  }
  EXPECT_EQ(jumps, (std::set<std::string>{name(Fn::kSign), name(Fn::kStep), name(Fn::kMod),
                                          name(Fn::kLess), name(Fn::kLessEqual), name(Fn::kEqual),
                                          name(Fn::kNotEqual), name(Fn::kWhere)}));
  EXPECT_FALSE(is_jump({Average{}, {}, {}, {}, 0}));
}

/// step(e - c), what is computed from it, and limits of e - c that a test sets.
struct Jump : Sample {
  NodeId margin, step, after, other;
  std::map<std::uint32_t, std::vector<double>> value, error;
  bool sampled = false;
  Jump() {
    margin = b.minus(e, b.constant({1, 5}, {2}));
    step = b.map(Fn::kStep, {margin});
    after = b.times(step, e);
    other = b.map(Fn::kTanh, {e});
    value = {{margin.value, {0, -4}}, {e.value, {1}}};
  }
  Undetermined found(bool judged = true) {
    const Decision decision{step, {margin}, margin, true};
    return undetermined(
        program, {decision},
        [&](NodeId id) {
          return Numbers{&value[id.value], &error[id.value], sampled};
        },
        judged);
  }
};

TEST(Undetermined, IsWhatAJumpAtItsLimitReaches) {
  Jump s;
  s.error[s.margin.value] = {1e-14, 1e-14};
  const Undetermined marks = s.found();
  EXPECT_TRUE(marks.holds(s.step, 0));
  EXPECT_FALSE(marks.holds(s.step, 1));  // -4 is far from it
  EXPECT_TRUE(marks.holds(s.after, 0));
  EXPECT_FALSE(marks.holds(s.after, 1));
  EXPECT_EQ(marks.root[s.after.value], s.step);
  EXPECT_FALSE(marks.any(s.other));
  EXPECT_FALSE(marks.any(s.margin));  // what decides is itself a number
}

TEST(Undetermined, NothingIsFarFromJumps) {
  Jump s;
  s.value[s.margin.value] = {0.5, -4};
  s.error[s.margin.value] = {1e-3, 1e-3};
  EXPECT_FALSE(s.found().any(s.step));
}

TEST(Undetermined, WithinErrorsOfSamplingAJumpIsOpen) {
  Jump s;
  s.sampled = true;
  s.value[s.margin.value] = {0.004, -4};
  s.error[s.margin.value] = {1e-3, 1e-3};  // 4 errors away
  const Undetermined marks = s.found();
  EXPECT_FALSE(marks.holds(s.step, 0));
  EXPECT_TRUE(marks.open.holds(s.step, 0));
  EXPECT_TRUE(marks.open.holds(s.after, 0));
  s.value[s.margin.value] = {0.006, -4};
  EXPECT_FALSE(s.found().open.any(s.step));
}

TEST(Undetermined, OnlyJumpsDecide) {
  Jump s;
  s.error[s.margin.value] = {1e-14, 1e-14};
  const Decision follows{s.step, {s.margin}, s.margin, false};
  const Undetermined marks = undetermined(
      s.program, {follows},
      [&](NodeId id) {
        return Numbers{&s.value[id.value], &s.error[id.value], false};
      },
      true);
  EXPECT_FALSE(marks.any(s.step));
}

TEST(ReachedFrom, FollowsEntriesAndBranchesTaken) {
  Program program;
  Builder b(program);
  const NodeId p = b.add(Parameter{0}, {b.constant({1, 2, 3}, {3})}),
               q = b.add(Parameter{1}, {b.constant({4, 5, 6}, {3})});
  const NodeId sum = b.plus(p, q), picked = b.gather(sum, 0, {2, 0}), total = b.sum(sum, 0),
               branch = b.map(Fn::kWhere, {b.constant({1, 0, 1}, {3}), p, q});
  const Marks marks = reached_from(program, {{p.value, {0, 1, 0}}});
  const auto at = [&](NodeId id) {
    std::vector<std::size_t> out;
    for (std::size_t k = 0; k < marks.at[id.value].size(); ++k)
      if (marks.holds(id, k)) out.push_back(k);
    return out;
  };
  EXPECT_EQ(at(p), (std::vector<std::size_t>{1}));
  EXPECT_EQ(at(sum), (std::vector<std::size_t>{1}));
  EXPECT_TRUE(at(picked).empty());
  EXPECT_EQ(at(total), (std::vector<std::size_t>{0}));
  EXPECT_TRUE(at(branch).empty());  // entry 1 is that of q
  EXPECT_TRUE(at(q).empty());
  EXPECT_EQ(marks.root[total.value], p);
}

}  // namespace
}  // namespace tplimit
