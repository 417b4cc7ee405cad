/// A run that is stopped wherever it can be and continued by another, again and again, gives the
/// bits of one that is left alone.

#include <sstream>
#include <string>
#include <variant>

#include <gtest/gtest.h>

#include "engines/interpreter.hpp"
#include "tests/support/run.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit::engines {
namespace {

/// Asks to stop at the next possibility.
class InMemory final : public RunState {
 public:
  void resume(const std::function<void(Reader&)>& load) override {
    if (content_.empty()) return;
    std::istringstream in(content_);
    Reader reader(in);
    load(reader);
  }
  Request request() override { return Request::kSaveAndStop; }
  void save(const std::function<void(Writer&)>& write) override {
    content_.clear();
    Writer out([&](const char* data, std::size_t size) { content_.append(data, size); });
    write(out);
    out.finish();
    ++saved_;
  }
  [[nodiscard]] int saved() const { return saved_; }

 private:
  std::string content_;
  int saved_ = 0;
};

struct Case {
  std::string name, text;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all{{"training", R"(width n
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
  report out, gram(z), min_eig(gram(z))
  step sgd(mse(out, y), lr = 0.3)
}
out, z = f(X)
report last = out, some = samples(z, 2), bars = hist(z, low = -1, high = 1, bins = 4)
)"},
                                     {"residual", R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [14, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  z = U @ x
  for l in 0..14 { z = z + tanh(W[l] @ z) / 2 }
  return v @ z / n
}
for t in 0..2 {
  out = f(X)
  report out
  step sgd(mse(out, [1, -1]), lr = 0.3)
}
report last = f(X)
)"},
                                     {"tied", R"(width n
random x : [3, n] ~ normal(0, [[1, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 1]])
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
)"},
                                     {"minibatch", R"(width n
const B = 2
data X = [[1, 0.5], [-0.3, 1], [0.2, 0.1], [0.9, -0.4]]
data y = [1, -1, 0.5, 0.1]
param U : [n, 2] ~ normal(0, 2 / 2), lr = n
param b : [n] ~ normal(0, 0), lr = n
param W : [n, n] ~ normal(0, 2 / n)
param v : [n] ~ normal(0, 1), lr = n
param c : [] ~ normal(0, 0)
model f(x) {
  return v @ relu(W @ relu(U @ x + b)) / n + c
}
for epoch in 0..2 {
  order = permutation(4, epoch)
  for k in 0..4 / B {
    batch = order[k * B..(k + 1) * B]
    loss = mse(f(X[batch]), y[batch])
    report loss
    step sgd(loss, lr = 0.1)
  }
}
report last = f(X)
)"},
                                     {"no_matrix", R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 1), lr = n
param v : [n] ~ normal(0, 1), lr = n
for t in 0..4 {
  out = v @ tanh(U @ X) / n
  report out
  step sgd(mse(out, y), lr = 0.3)
}
)"}};
  return all;
}

RunResult whole(const Schedule& schedule, const RunSettings& settings,
                const Executor& executor = Executor(1)) {
  auto outcome = run_program(schedule, settings, executor);
  EXPECT_TRUE(std::holds_alternative<RunResult>(outcome));
  return std::get<RunResult>(outcome);
}

void expect_same_bits(const ir::Program& program, const RunSettings& settings,
                      const std::string& what) {
  SCOPED_TRACE(what);
  const Schedule schedule = make_schedule(program, ir::outputs_of(program));
  const Executor unbroken(1);
  const RunResult expected = whole(schedule, settings, unbroken);
  InMemory state;
  for (;;) {
    const int before = state.saved();
    const Executor executor(1 + before % 2);
    auto outcome = run_program(schedule, settings, executor, &state);
    if (const auto* result = std::get_if<RunResult>(&outcome)) {
      EXPECT_EQ(result->values, expected.values);
      EXPECT_EQ(result->matching_stopped, expected.matching_stopped);
      EXPECT_EQ(executor.operations(), unbroken.operations());
      EXPECT_EQ(result->ranks, expected.ranks);
      EXPECT_EQ(result->largest_dropped, expected.largest_dropped);
      break;
    }
    ASSERT_EQ(std::get<RunFailure>(outcome).stop.code, "E5206");
    ASSERT_EQ(state.saved(), before + 1) << "it goes on before it stops again";
  }
  EXPECT_GE(state.saved(), 8) << "there are places to stop at";
}

TEST(RunState, ContinuesWithTheSameBitsFromEverywhere) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const Module module = test::parsed(c.text);
    const auto limit = leading_order(module.program);
    ASSERT_TRUE(limit.ok());
    for (const bool single : {false, true}) {
      RunSettings settings;
      settings.single_precision = single;
      settings.rows = 700;  // chunks, the last of them not full
      settings.keys = {1};
      expect_same_bits(limit->program, settings, "limit");
      settings.keys = {1, 2};
      expect_same_bits(limit->program, settings, "joined");
      settings.keys = {3};
      settings.rows = 150;
      expect_same_bits(limit->program, settings, "few particles");
      settings.realisation = RealisationKind::kRevealedNetwork;
      settings.rows = 300;
      const ir::Program network = at_width(module.program, 300);
      expect_same_bits(network, settings, "lazy network");
      settings.realisation = RealisationKind::kStoredNetwork;
      expect_same_bits(network, settings, "dense network");
    }
  }
}

TEST(RunState, ContinuesAfterMatchingHasStopped) {
  const Module module = test::parsed(cases()[0].text);
  const auto limit = leading_order(module.program);
  ASSERT_TRUE(limit.ok());
  RunSettings settings;
  settings.rows = 64;
  settings.keys = {1};
  ASSERT_TRUE(whole(make_schedule(limit->program, ir::outputs_of(limit->program)), settings)
                  .matching_stopped);
  expect_same_bits(limit->program, settings, "matching stops");
}

// Averages of entries, velocities, and a matrix that is stored on the way.
TEST(RunState, ContinuesWithEntriesAndStoredMatrices) {
  const Module module = test::parsed(R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, 0.1]]
data y = [1, -1, 0.5]
parametrization mup
param U : input [n, 2] ~ normal(0, 1 / 2)
param W : hidden [n, n] ~ normal(0, 1)
param V : hidden [n, n] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
model f(x) { return v @ tanh(V @ tanh(W @ tanh(U @ x))) }
for t in 0..5 {
  report f(X)
  step adamw(mse(f(X), y), lr = 0.1, only = (U, W, v)), sgd(mse(f(X), y), lr = 0.3, momentum = 0.9, only = (V))
}
report last = f(X)
)");
  const auto limit = leading_order(module.program);
  ASSERT_TRUE(limit.ok());
  for (const bool single : {false, true}) {
    RunSettings settings;
    settings.single_precision = single;
    settings.keys = {1};
    settings.rows = 300;
    expect_same_bits(limit->program, settings, "limit");
    settings.rows = 40;
    expect_same_bits(limit->program, settings, "stored");
    EXPECT_GE(whole(make_schedule(limit->program, ir::outputs_of(limit->program)), settings).stored,
              1);
    settings.realisation = RealisationKind::kStoredNetwork;
    settings.rows = 130;
    expect_same_bits(at_width(module.program, 130), settings, "dense network");
  }
}

std::uint64_t checksum(const std::string& text, std::size_t piece) {
  Checksum sum;
  for (std::size_t at = 0; at < text.size(); at += piece)
    sum.add(text.data() + at, std::min(piece, text.size() - at));
  return sum.value();
}

TEST(Checksum, IsXxh64) {
  // Values of the reference implementation.
  EXPECT_EQ(checksum("", 1), 0xEF46DB3751D8E999ULL);
  EXPECT_EQ(checksum("a", 1), 0xD24EC4F1A98C6E5BULL);
  EXPECT_EQ(checksum("abc", 3), 0x44BC2CF5AD770999ULL);
  EXPECT_EQ(checksum("Nobody inspects the spammish repetition", 39), 0xFBCEA83C8A378BF1ULL);
}

TEST(Checksum, DoesNotDependOnPieces) {
  std::string text;
  for (int k = 0; k < 1000; ++k) text += static_cast<char>(k * k % 251);
  for (const std::size_t piece : {1u, 7u, 31u, 32u, 33u, 500u})
    EXPECT_EQ(checksum(text, piece), checksum(text, 1000));
}

}  // namespace
}  // namespace tplimit::engines
