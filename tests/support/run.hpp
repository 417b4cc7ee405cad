#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tplimit/driver/driver.hpp"

/// Programs in the text of a test, run in one line.  A program that is rejected throws its
/// diagnostics as text, so that a test shows what the user would see.
namespace tplimit::test {

/// Two hidden layers, one input, one sample a step: the network whose exact values are known
/// (docs/sources.md, S9).
inline std::string one_sample_a_step(const std::string& map, const std::string& eta, int steps) {
  return fmt::format(R"(width n
data xi = [1, -1, 1, -1, 1, -1]
data y = [1, -1, 1, 1, 1, 1]
fn phi(z) = {}
param U : [n] ~ normal(0, 1), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
for t in 0..{} {{
  out = v @ phi(W @ phi(U * xi[t])) / n
  report out
  step sgd((out - y[t])^2 / 2, lr = {})
}}
)",
                     map, steps, eta);
}

inline Module parsed(const std::string& text, const LowerOptions& options = {}) {
  const Source source("test.tp", text);
  auto module = parse(source, options);
  if (!module) throw std::runtime_error(render(module.errors(), source) + "\n" + text);
  return std::move(*module);
}

inline LimitResult limit_of(const Module& module, const EvaluateOptions& options) {
  auto result = evaluate(module, options);
  if (!result)
    throw std::runtime_error(render(result.errors(), module.source) + "\n" + module.source.text());
  return std::move(*result);
}
inline LimitResult limit_of(const std::string& text, const EvaluateOptions& options) {
  return limit_of(parsed(text), options);
}

inline EvaluateOptions particles(std::int64_t count, int randomisations = 8,
                                 std::uint64_t seed = 0) {
  EvaluateOptions options;
  options.engine = Engine::kParticles;
  options.particles = count;
  options.randomisations = randomisations;
  options.seed = seed;
  return options;
}

inline SimulationResult networks_of(const Module& module, std::int64_t width, int seeds,
                                    Matrices matrices, std::uint64_t seed = 0) {
  SimulateOptions options;
  options.width = width;
  options.seeds = seeds;
  options.matrices = matrices;
  options.seed = seed;
  auto result = simulate(module, options);
  if (!result)
    throw std::runtime_error(render(result.errors(), module.source) + "\n" + module.source.text());
  return std::move(*result);
}
inline SimulationResult networks_of(const std::string& text, std::int64_t width, int seeds,
                                    Matrices matrices, std::uint64_t seed = 0) {
  return networks_of(parsed(text), width, seeds, matrices, seed);
}

inline std::size_t report_index(const std::vector<ReportResult>& reports, const std::string& name) {
  for (std::size_t k = 0; k < reports.size(); ++k)
    if (reports[k].name == name) return k;
  throw std::runtime_error("no report '" + name + "'");
}
template <class R>
const ReportResult& report(const R& result, const std::string& name) {
  return result.reports[report_index(result.reports, name)];
}
/// All numbers of all reports.
inline std::vector<double> all_values(const LimitResult& r) {
  std::vector<double> out;
  for (const ReportResult& one : r.reports)
    out.insert(out.end(), one.value.begin(), one.value.end());
  return out;
}
/// Of the first error of a program, in its text or in its limit; "" if there is none.
inline std::string code_of(const std::string& text, const EvaluateOptions& options = {}) {
  const auto module = parse(Source("test.tp", text));
  if (!module) return module.errors()[0].code;
  const auto result = evaluate(*module, options);
  return result ? "" : result.errors()[0].code;
}
inline void expect_near(const std::vector<double>& found, const std::vector<double>& expected,
                        double within) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t k = 0; k < found.size(); ++k)
    EXPECT_NEAR(found[k], expected[k], within) << "entry " << k;
}
/// The last entry of a report in a loop: its last `count` numbers.
inline std::vector<double> last(const std::vector<double>& values, std::size_t count) {
  return {values.end() - static_cast<std::ptrdiff_t>(count), values.end()};
}

/// (value - reference) in units of both errors together.
inline double deviation(double value, double error, double reference, double reference_error) {
  return (value - reference) / std::hypot(error, reference_error);
}

struct Moments {
  double count = 0, mean = 0, variance = 0;
  [[nodiscard]] double error_of_mean() const { return std::sqrt(variance / count); }
};
inline Moments moments(const std::vector<double>& x) {
  Moments m{static_cast<double>(x.size()), 0, 0};
  for (const double v : x) m.mean += v / m.count;
  for (const double v : x) m.variance += (v - m.mean) * (v - m.mean) / (m.count - 1);
  return m;
}

}  // namespace tplimit::test
