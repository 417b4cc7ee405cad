#include "driver/pooling.hpp"

#include <algorithm>
#include <cmath>

#include "driver/sampling_error.hpp"
#include "engines/finite_evaluator.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/math/normals.hpp"

namespace tplimit {

using namespace ir;
using engines::FiniteEvaluator;
using engines::RunFailure;
using engines::RunResult;

std::vector<NodeId> atoms_of(const Program& program, const std::vector<NodeId>& outputs) {
  std::vector<bool> seen(program.size(), false);
  std::vector<NodeId> stack = outputs, atoms;
  while (!stack.empty()) {
    const NodeId id = stack.back();
    stack.pop_back();
    if (seen[id.value]) continue;
    seen[id.value] = true;
    const Node& node = program[id];
    if (is_average(node.op) || std::holds_alternative<Samples>(node.op))
      atoms.push_back(id);
    else
      stack.insert(stack.end(), node.in.begin(), node.in.end());
  }
  std::sort(atoms.begin(), atoms.end());
  return atoms;
}

bool all_finite(std::span<const std::vector<double>> values) {
  return std::all_of(values.begin(), values.end(), [](const auto& v) {
    return std::all_of(v.begin(), v.end(), [](double x) { return std::isfinite(x); });
  });
}

namespace {

/// The first finite node behind `wanted` with a value that is not finite, given the averages.
RunFailure first_not_finite(const Program& program, const std::vector<NodeId>& atoms,
                            const std::vector<NodeId>& wanted,
                            const std::vector<const double*>& given) {
  std::vector<bool> behind(program.size(), false);
  for (const NodeId id : wanted) behind[id.value] = true;
  std::vector<NodeId> nodes;
  for (std::size_t k = program.size(); k-- > 0;) {
    if (!behind[k]) continue;
    nodes.push_back({static_cast<std::uint32_t>(k)});
    if (!std::binary_search(atoms.begin(), atoms.end(), nodes.back()))
      for (const NodeId in : program.nodes[k].in) behind[in.value] = true;
  }
  std::reverse(nodes.begin(), nodes.end());
  const auto values = FiniteEvaluator(program, atoms, nodes).evaluate(given);
  for (std::size_t k = 0; k < nodes.size(); ++k)
    // An infinite constant may be meant, as in max(x, -inf).
    if (!std::holds_alternative<Constant>(program[nodes[k]].op) && !all_finite({&values[k], 1}))
      return {engines::not_finite(), nodes[k]};
  return {engines::not_finite(),
          wanted.empty() ? program.reports.front().entries.front().value : wanted.front()};
}

/// Adds in squares what the values change by if each average is off by its unresolved error, with
/// random signs.
template <class Evaluate>
void add_unresolved(Pooled& out, const std::vector<std::vector<double>>& mean,
                    const std::vector<std::vector<double>>& unresolved, Evaluate evaluate_at) {
  constexpr int kRepeats = 8;
  if (std::all_of(unresolved.begin(), unresolved.end(), [](const auto& e) {
        return std::all_of(e.begin(), e.end(), [](double x) { return x == 0; });
      }))
    return;
  std::vector<std::vector<std::vector<double>>> changed;
  for (std::uint64_t k = 0; k < kRepeats; ++k) {
    std::vector<std::vector<double>> at = mean;
    for (std::size_t a = 0; a < at.size(); ++a)
      for (std::size_t j = 0; j < at[a].size(); ++j)
        at[a][j] += (mix_key(mix_key(k, a), j) & 1 ? 1 : -1) * unresolved[a][j];
    changed.push_back(evaluate_at(at));
  }
  for (std::size_t w = 0; w < out.error.size(); ++w)
    for (std::size_t j = 0; j < out.error[w].size(); ++j) {
      double squares = 0, count = 0;
      for (const auto& values : changed)
        if (std::isfinite(values[w][j])) {  // else beyond the edge of a domain
          squares += std::pow(values[w][j] - out.value[w][j], 2);
          ++count;
        }
      if (count > 0) out.error[w][j] = std::hypot(out.error[w][j], std::sqrt(squares / count));
    }
}

/// Of each average over the runs.
std::vector<std::vector<double>> means_of(const Program& program, const std::vector<NodeId>& atoms,
                                          const std::vector<RunResult>& runs) {
  const std::size_t count = runs.size();
  std::vector<std::vector<double>> mean(atoms.size());
  for (std::size_t a = 0; a < atoms.size(); ++a) {
    mean[a].assign(runs[0].values[a].size(), 0.0);
    if (const auto* samples = std::get_if<Samples>(&program[atoms[a]].op)) {
      // Draws are not averaged: each run gives some of them.
      for (std::size_t j = 0; j < mean[a].size(); ++j) {
        const std::size_t i = j % static_cast<std::size_t>(samples->count);
        mean[a][j] = runs[i % count].values[a][j - i + i / count];
      }
      continue;
    }
    for (const RunResult& run : runs)
      for (std::size_t j = 0; j < mean[a].size(); ++j) mean[a][j] += run.values[a][j];
    for (double& x : mean[a]) x /= static_cast<double>(count);
  }
  return mean;
}

}  // namespace

std::vector<std::vector<double>> spread_over_jumps(
    const Program& program, const std::vector<NodeId>& atoms, const std::vector<NodeId>& wanted,
    const std::vector<RunResult>& runs, const std::vector<std::vector<double>>& unresolved) {
  constexpr int kDraws = 256;
  constexpr double kStretch = 2.5;
  const auto mean = means_of(program, atoms, runs);
  FiniteEvaluator tail(program, atoms, wanted);
  const auto evaluate_at = [&](const std::vector<std::vector<double>>& at) {
    std::vector<const double*> given;
    for (const auto& v : at) given.push_back(v.data());
    return tail.evaluate(given);
  };
  const auto centre = evaluate_at(mean);
  std::vector<std::vector<double>> squares;
  for (const auto& v : centre) squares.emplace_back(v.size(), 0.0);
  const double r = static_cast<double>(runs.size());
  std::vector<double> normals(runs.size());
  for (std::uint64_t k = 0; k < kDraws; ++k) {
    plain_normals(mix_key(0x6a756d70ULL, k), 0, normals);
    auto at = mean;
    for (std::size_t a = 0; a < atoms.size(); ++a) {
      if (std::holds_alternative<Samples>(program[atoms[a]].op)) continue;
      for (std::size_t j = 0; j < at[a].size(); ++j) {
        double change = (mix_key(mix_key(k, a), j) & 1 ? 1 : -1) * unresolved[a][j];
        for (std::size_t i = 0; i < runs.size(); ++i)
          change += normals[i] * (runs[i].values[a][j] - mean[a][j]) / std::sqrt(r * (r - 1));
        at[a][j] += kStretch * change;
      }
    }
    const auto values = evaluate_at(at);
    for (std::size_t w = 0; w < values.size(); ++w)
      for (std::size_t j = 0; j < values[w].size(); ++j)
        squares[w][j] += std::pow(values[w][j] - centre[w][j], 2) / kDraws;
  }
  for (auto& v : squares)
    for (double& x : v) x = std::sqrt(x);
  return squares;
}

Pooled pool(const Program& program, const std::vector<NodeId>& atoms,
            const std::vector<NodeId>& wanted, const std::vector<RunResult>& runs,
            const std::vector<std::vector<double>>& unresolved) {
  FiniteEvaluator tail(program, atoms, wanted);
  const std::size_t count = runs.size();
  const auto mean = means_of(program, atoms, runs);
  const auto evaluate_at = [&](const std::vector<std::vector<double>>& at) {
    std::vector<const double*> given;
    for (const auto& v : at) given.push_back(v.data());
    return tail.evaluate(given);
  };
  Pooled out;
  out.value = evaluate_at(mean);
  // Where it is undetermined, nobody asks for the value: the others are needed.
  const auto fail_at = [&](const std::vector<std::vector<double>>& at) {
    std::vector<const double*> given;
    for (const auto& v : at) given.push_back(v.data());
    if (!out.failure) out.failure = first_not_finite(program, atoms, wanted, given);
  };
  if (!all_finite(out.value)) fail_at(mean);
  if (count < 2) return out;
  const double r = static_cast<double>(count);
  std::vector<std::vector<double>> sum, sum_of_squares;
  for (const auto& v : out.value) {
    sum.emplace_back(v.size(), 0.0);
    sum_of_squares.emplace_back(v.size(), 0.0);
  }
  std::vector<std::vector<double>> without(atoms.size());
  for (const RunResult& run : runs) {
    for (std::size_t a = 0; a < atoms.size(); ++a) {
      without[a] = mean[a];
      if (std::holds_alternative<Samples>(program[atoms[a]].op)) continue;
      for (std::size_t j = 0; j < mean[a].size(); ++j)
        without[a][j] += (mean[a][j] - run.values[a][j]) / (r - 1);
    }
    const auto values = evaluate_at(without);
    if (!all_finite(values)) fail_at(without);
    for (std::size_t w = 0; w < values.size(); ++w)
      for (std::size_t j = 0; j < values[w].size(); ++j) {
        const double d = values[w][j] - out.value[w][j];
        sum[w][j] += d;
        sum_of_squares[w][j] += d * d;
      }
  }
  for (std::size_t w = 0; w < sum.size(); ++w) {
    out.error.emplace_back();
    for (std::size_t j = 0; j < sum[w].size(); ++j)
      out.error[w].push_back(std::sqrt(
          std::max(0.0, (sum_of_squares[w][j] - sum[w][j] * sum[w][j] / r) * (r - 1) / r)));
  }
  add_unresolved(out, mean, unresolved, evaluate_at);
  return out;
}

void extrapolate(const Program& program, const std::vector<NodeId>& atoms,
                 std::vector<RunResult>& runs, const std::vector<RunResult>& joined) {
  const std::vector<RunResult> single = runs;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const std::size_t partner = (i % 2 ? i - 1 : i + 1) % runs.size();
    for (std::size_t a = 0; a < atoms.size(); ++a) {
      if (std::holds_alternative<Samples>(program[atoms[a]].op)) continue;
      const std::vector<bool> squares = means_of_squares(program, atoms[a]);
      for (std::size_t j = 0; j < runs[i].values[a].size(); ++j) {
        double& x = runs[i].values[a][j];
        x = 2 * joined[i / 2].values[a][j] - single[partner].values[a][j];
        // The correction is then no small one, as where the mean is 0 to rounding.
        if (!squares.empty() && squares[j] && x < 0) x = joined[i / 2].values[a][j];
      }
    }
  }
}

}  // namespace tplimit
