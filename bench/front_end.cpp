// Seconds that the front end takes for a program that unrolls to about 100,000 instructions.
// Prints one line per stage; usage: front_end [scale [repetitions]].

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "tplimit/driver/driver.hpp"
#include "tplimit/lower/lower.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/syntax/parser.hpp"

namespace {

using tplimit::Source;

struct Workload {
  const char* name;
  std::string text;
};

/// Training by gradient descent: three hidden layers, biases, minibatches of two out of eight samples.
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
)", steps);
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
)", steps);
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
)", layers);
}

/// No loops: as many lines of text as statements.
std::string flat(int lines) {
  std::string text = "width n\nrandom x : [n] ~ normal(0, 1)\nz0 = x\n";
  for (int k = 1; k < lines; ++k) text += fmt::format("z{} = tanh(z{} + {} * x) - 0.5 * E(z{}^2) * x # line {}\n", k, k - 1, k, k - 1, k);
  return text + fmt::format("report E(z{}^2)\n", lines - 1);
}

double seconds(const std::function<void()>& work, int repetitions) {
  std::vector<double> times;
  for (int k = 0; k < repetitions; ++k) {
    const auto start = std::chrono::steady_clock::now();
    work();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <class T>
T ok(tplimit::Result<T> result, const Source& source) {
  if (!result) {
    fmt::print(stderr, "{}", tplimit::render(result.errors(), source));
    std::exit(1);
  }
  return std::move(result).value();
}

void measure(const Workload& workload, int repetitions) {
  const Source source(workload.name, workload.text);
  const tplimit::ast::Program ast = ok(tplimit::parse_syntax(source), source);
  tplimit::Lowered lowered = ok(tplimit::lower(ast, source, {}), source);
  const tplimit::ir::Program program = tplimit::erase_identities(lowered.program);
  const tplimit::LeadingOrder limit = ok(tplimit::leading_order(program), source);
  fmt::print("{}: {} instructions lowered, {} after cleaning, {} in the limit\n", workload.name, lowered.program.size(), program.size(), limit.program.size());
  const double syntax = seconds([&] { (void)ok(tplimit::parse_syntax(source), source); }, repetitions);
  const double lower = seconds([&] { (void)ok(tplimit::lower(ast, source, {}), source); }, repetitions);
  const double verify = seconds([&] { tplimit::ir::verify(lowered.program); }, repetitions);
  const double erase = seconds([&] { (void)tplimit::erase_identities(lowered.program); }, repetitions);
  const double order = seconds([&] { (void)ok(tplimit::leading_order(program), source); }, repetitions);
  const double parse = seconds([&] { (void)ok(tplimit::parse(source), source); }, repetitions);
  fmt::print("  syntax {:.4f} s, lower {:.4f} s, verify {:.4f} s, erase_identities {:.4f} s, leading_order {:.4f} s\n", syntax, lower, verify, erase, order);
  fmt::print("  parse (all but leading_order) {:.3f} s, with leading_order {:.3f} s\n", parse, parse + order);
}

}  // namespace

int main(int argc, char** argv) {
  // 1,620 steps of training and 3,580 of the recurrence unroll to about 100,000 instructions each.
  const double scale = argc > 1 ? std::atof(argv[1]) : 1;
  const int repetitions = std::max(1, argc > 2 ? std::atoi(argv[2]) : 5);
  measure({"training", training(static_cast<int>(1620 * scale))}, repetitions);
  measure({"recurrence", recurrence(static_cast<int>(3580 * scale))}, repetitions);
  measure({"deep", deep(static_cast<int>(500 * scale))}, repetitions);
  measure({"flat", flat(static_cast<int>(13000 * scale))}, repetitions);
  return 0;
}
