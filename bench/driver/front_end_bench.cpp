// The front end, stage by stage, on programs that unroll to tens of thousands of instructions.

#include <functional>
#include <string>

#include <fmt/format.h>

#include "bench/bench.hpp"

#include "tplimit/driver/driver.hpp"
#include "tplimit/lower/lower.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::bench {
namespace {

/// Training by gradient descent: three hidden layers, biases, minibatches of two out of eight
/// samples.
std::string training(int steps) {
  return fmt::format(R"(width n
const T = {}
const eta = 0.1
data X = [[1, 2, 3], [2, 1, 0], [0, 1, -1], [1, 1, 1], [3, 0, 1], [-1, 2, 0], [0, 0, 1], [1, -1, 1]]
data y = [1, -1, 0.5, -0.5, 1, 0, 0.25, -1]
param U : [n, 3] ~ normal(0, 1/3), lr = n
param b : [3, n] ~ normal(0, 1), lr = n
param W : [2, n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {{
  z = tanh(U @ x + b[0])
  for l in 0..2 {{ z = relu(W[l] @ z + b[l + 1]) }}
  return v @ z / n, z
}}
for t in 0..T {{
  i = mod(2 * t, 8)
  out, z = f(X[i..i + 2])
  loss = mse(out, y[i..i + 2])
  report loss, out, gram(z)
  step sgd(loss, lr = eta)
}}
)",
                     steps);
}

/// One long chain of maps, averages and products with one tied matrix.
std::string recurrence(int steps) {
  return fmt::format(R"(width n
random W : [n, n] ~ normal(0, 1/n)
random x : [n] ~ normal(0, 1)
fn phi(z) = z * exp(-z^2 / 2) + 0.5 * sin(2 * z)
h = x
s = 0
for t in 0..{} {{
  h = phi(W' @ phi(W @ h)) + 0.1 * x
  s = s + E(h * x) / (1 + E(h^2))
}}
report s, E(h^2)
)",
                     steps);
}

/// A deep residual network, trained: every layer indexes an array of matrices.
std::string deep(int layers) {
  return fmt::format(R"(width n
const L = {}
param W : [L, n, n] ~ normal(0, 1/n)
random x : [2, n] ~ normal(0, 1)
for t in 0..10 {{
  h = x
  for l in 0..L {{ h = h + tanh(W[l] @ h) / L }}
  loss = E((h[0] - h[1])^2)
  report loss
  step sgd(loss, lr = 0.1)
}}
)",
                     layers);
}

/// No loops: as many lines of text as statements.
std::string flat(int lines) {
  std::string text = "width n\nrandom x : [n] ~ normal(0, 1)\nz0 = x\n";
  for (int k = 1; k < lines; ++k)
    text += fmt::format("z{} = tanh(z{} + {} * x) - 0.5 * E(z{}^2) * x # line {}\n", k, k - 1, k,
                        k - 1, k);
  return text + fmt::format("report E(z{}^2)\n", lines - 1);
}

template <class T>
T ok(Result<T> result, const Source& source) {
  TPLIMIT_CHECK(bool(result), "{}", render(result.errors(), source));
  return std::move(result).value();
}

/// One workload and what each stage gives to the next; made when its first benchmark runs.
struct Stages {
  Stages(const char* name, const std::string& text)
      : source(name, text),
        ast(ok(parse_syntax(source), source)),
        lowered(ok(lower(ast, source, {}), source)),
        program(erase_identities(lowered.program)) {}
  Source source;
  ast::Program ast;
  Lowered lowered;
  ir::Program program;
};

struct Stage {
  const char* name;
  void (*run)(const Stages& s);
};

constexpr Stage kStages[] = {
    {"syntax",
     [](const Stages& s) { benchmark::DoNotOptimize(ok(parse_syntax(s.source), s.source)); }},
    {"lower",
     [](const Stages& s) { benchmark::DoNotOptimize(ok(lower(s.ast, s.source, {}), s.source)); }},
    {"verify", [](const Stages& s) { ir::verify(s.lowered.program); }},
    {"erase_identities",
     [](const Stages& s) { benchmark::DoNotOptimize(erase_identities(s.lowered.program)); }},
    {"leading_order",
     [](const Stages& s) { benchmark::DoNotOptimize(ok(leading_order(s.program), s.source)); }},
    {"parse",
     [](const Stages& s) {
       benchmark::DoNotOptimize(ok(parse(s.source), s.source));
     }},  // all but leading_order
};

template <std::string (*text)(int), int size>
void register_workload(const char* name) {
  for (const Stage& stage : kStages)
    benchmark::RegisterBenchmark(
        fmt::format("BM_FrontEnd/{}/{}", name, stage.name).c_str(),
        [name, stage](benchmark::State& state) {
          static const Stages stages(name, text(size));
          for (auto _ : state) stage.run(stages);
          set_rate(state, "items",
                   static_cast<double>(stages.lowered.program.size()));  // instructions
        })
        ->Unit(benchmark::kMillisecond);
}

const bool registered = [] {
  register_workload<training, 400>("training");
  register_workload<recurrence, 900>("recurrence");
  register_workload<deep, 125>("deep");
  register_workload<flat, 3250>("flat");
  return true;
}();

}  // namespace
}  // namespace tplimit::bench
