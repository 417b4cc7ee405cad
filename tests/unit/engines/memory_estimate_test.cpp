/// The memory estimate against what a run allocates.  Blocks of less than 1 MiB come from the
/// aligned operator new, which this program replaces by one that counts; the programs below keep
/// every block smaller.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>
#include <variant>

#include <gtest/gtest.h>

#include "engines/interpreter.hpp"
#include "engines/memory_estimate.hpp"
#include "tests/support/run.hpp"
#include "tplimit/passes/passes.hpp"

namespace {

constexpr std::size_t kAlignment =
    64;  // of the blocks; a header of that size holds the number of bytes
std::atomic<std::size_t> live = 0, peak = 0;

}  // namespace

void* operator new(std::size_t bytes, std::align_val_t alignment) {
  if (static_cast<std::size_t>(alignment) > kAlignment) std::abort();
  void* const p =
      std::aligned_alloc(kAlignment, (bytes + 2 * kAlignment - 1) / kAlignment * kAlignment);
  if (p == nullptr) throw std::bad_alloc();
  *static_cast<std::size_t*>(p) = bytes;
  const std::size_t now = live += bytes;
  for (std::size_t before = peak; before < now && !peak.compare_exchange_weak(before, now);) {}
  return static_cast<char*>(p) + kAlignment;
}
void operator delete(void* p, std::align_val_t) noexcept {
  if (p == nullptr) return;
  void* const start = static_cast<char*>(p) - kAlignment;
  live -= *static_cast<std::size_t*>(start);
  std::free(start);
}
void operator delete(void* p, std::size_t, std::align_val_t alignment) noexcept {
  operator delete(p, alignment);
}

namespace tplimit::engines {
namespace {

// 16384: numbers without coordinates, which the estimate leaves out.
constexpr double kMostTooMuch = 3;
constexpr double kMostTooMuchDense = 1.2;

struct Memory {
  double estimated, allocated;
};

Memory memory_of(const ir::Program& program, const RunSettings& settings) {
  const Schedule schedule = make_schedule(program, ir::outputs_of(program));
  for (const auto& directions : schedule.spaces.directions)
    for (const auto count : directions)
      EXPECT_LT(count * settings.rows * 8, 1 << 20) << "blocks of 1 MiB are not counted";
  const std::size_t before = live;
  peak = before;
  const auto outcome = run_program(schedule, settings, Executor(1));
  EXPECT_TRUE(std::holds_alternative<RunResult>(outcome));
  EXPECT_EQ(live, before) << "nothing is left";
  return {estimate_memory(schedule, settings), static_cast<double>(peak - before)};
}

std::string training(int hidden, int steps, const std::string& map) {
  return fmt::format(R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, 0.1], [-1, 0.4]]
data y = [1, -1, 0.5, 0]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [{}, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
fn phi(z) = {}
model f(x) {{
  z = phi(U @ x)
  for l in 0..{} {{ z = phi(W[l] @ z) }}
  return v @ z / n, z
}}
for t in 0..{} {{
  out, z = f(X)
  report out, gram(z)
  step sgd(mse(out, y), lr = 0.2)
}}
out, z = f(X)
report out
)",
                     hidden, map, hidden, steps);
}

void expect_estimates(const std::string& text) {
  const Module module = test::parsed(text);
  const auto order = leading_order(module.program);
  ASSERT_TRUE(order.ok());
  RunSettings settings;
  settings.rows = 256;
  settings.keys = {1};
  for (const std::string kind : {"limit", "lazy", "dense", "dense, single precision"}) {
    const bool limit = kind == "limit", dense = kind.starts_with("dense");
    settings.realisation = limit   ? RealisationKind::kParticleLimit
                           : dense ? RealisationKind::kStoredNetwork
                                   : RealisationKind::kRevealedNetwork;
    settings.single_precision = kind.ends_with("single precision");
    const Memory memory = memory_of(
        limit ? order->program : at_width(module.program, static_cast<double>(settings.rows)),
        settings);
    EXPECT_LE(memory.allocated, memory.estimated + 16384) << kind;
    EXPECT_LE(memory.estimated,
              (dense ? kMostTooMuchDense : kMostTooMuch) * memory.allocated + 16384)
        << kind;
  }
}

TEST(MemoryEstimate, IsAnUpperBoundForTraining) {
  for (const std::string& program : {training(1, 2, "tanh(z)"), training(2, 5, "tanh(z)"),
                                     training(1, 8, "relu(z)"), training(3, 1, "z * sigmoid(z)")}) {
    SCOPED_TRACE(program);
    expect_estimates(program);
  }
}

TEST(MemoryEstimate, CountsOldVersionsOfDenseMatricesWhileTheyAreNeeded) {
  std::string text =
      "width n\ndata y = [1, -1]\nrandom x : [2, n] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, "
      "1 / n)\nA = W\n";
  text +=
      "for t in 0..6 {\n  B = W\n  W += 0.1 / n * outer(x, tanh(W @ x))\n  report E(((W - B) @ "
      "x)^2)\n}\nreport E((A @ x)^2), E((W @ x)^2)\n";
  expect_estimates(text);
}

TEST(MemoryEstimate, IsAnUpperBoundForALongSweep) {
  // The 50 h live until the 50 z, which live until b, are there; one after the other, 50 vectors
  // would do.
  std::string text =
      "width n\nrandom g : [n] ~ normal(0, 1)\nrandom W : [n, n] ~ normal(0, 1 / n)\n";
  for (int k = 1; k <= 50; ++k) text += fmt::format("h{0} = sin({0} * g)\n", k);
  text += "a = W @ g\n";
  for (int k = 1; k <= 50; ++k) text += fmt::format("z{0} = tanh(h{0} + a)\n", k);
  text += "b = W @ a\n";
  for (int k = 1; k <= 50; ++k) text += fmt::format("report r{0} = E(z{0} * b)\n", k);
  expect_estimates(text);
}

}  // namespace
}  // namespace tplimit::engines
