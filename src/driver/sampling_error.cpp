#include "driver/sampling_error.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;
using engines::RunResult;
using engines::TermSummary;

namespace {

constexpr int kNoPolynomial = 1 << 20;

int degree_of(const Program& program, const Node& node, const std::vector<int>& degree) {
  const auto of = [&](std::size_t k) { return degree[node.in[k].value]; };
  int most = 0, sum = 0;
  for (std::size_t k = 0; k < node.in.size(); ++k) {
    most = std::max(most, of(k));
    sum = std::min(kNoPolynomial, sum + of(k));
  }
  const auto function = [&] { return most == 0 ? 0 : kNoPolynomial; };
  const auto mean = [](int inside) { return inside <= 2 ? 0 : kNoPolynomial; };
  return std::visit(overloaded{
                        [](const Constant&) { return 0; },
                        [](const StandardNormal&) { return 1; },
                        [](const GaussianMatrix&) { return 0; },
                        [&](const Map& map) {
                          switch (map.fn) {
                            case Fn::kAdd:
                            case Fn::kSub: return most;
                            case Fn::kMul: return sum;
                            case Fn::kDiv: return of(1) == 0 ? of(0) : kNoPolynomial;
                            case Fn::kPower:
                              return map.parameter == 2 ? std::min(kNoPolynomial, 2 * of(0))
                                                        : function();
                            default: return function();
                          }
                        },
                        [&](const Contract& c) { return c.average ? mean(sum) : sum; },
                        [&](const Average&) { return mean(most); },
                        [&](const MatMul&) { return of(0) == 0 && of(1) <= 1 ? 1 : kNoPolynomial; },
                        [&](const ScaleMatrix&) { return function(); },
                        [&](const UpdateMatrix&) {
                          bool linear = of(0) == 0;
                          for (std::size_t k = 1; k < node.in.size(); ++k)
                            linear = linear && of(k) <= (program[node.in[k]].type.width ? 1 : 0);
                          return linear ? 0 : kNoPolynomial;
                        },
                        [&](const AddVersion&) {
                          return of(0) == 0 && of(1) == 0 && of(2) == 0 ? 0 : kNoPolynomial;
                        },
                        [&](const OuterSum&) { return kNoPolynomial; },
                        [&](const MatrixEntries&) { return kNoPolynomial; },
                        [&](const AddEntries&) { return kNoPolynomial; },
                        [&](const InnerProduct&) { return kNoPolynomial; },
                        [&](const Samples&) { return kNoPolynomial; },
                        [&](const Histogram&) { return kNoPolynomial; },
                        [&](const ReduceMax&) { return function(); },
                        [&](const LogSumExp&) { return function(); },
                        [&](const Cholesky&) { return function(); },
                        [&](const Eigvals&) { return function(); },
                        [&](const TrainingOperator&) { return function(); },
                        [&](const Solve&) { return of(0) == 0 ? of(1) : function(); },
                        [&](const LogDet&) { return function(); },
                        // Linear: sums, copies, other orders of entries.
                        [&](const Scale&) { return most; },
                        [&](const ReduceSum&) { return most; },
                        [&](const Gather&) { return most; },
                        [&](const ScatterAdd&) { return most; },
                        [&](const Permute&) { return most; },
                        [&](const Reshape&) { return most; },
                        [&](const Expand&) { return most; },
                        [&](const Concat&) { return most; },
                        [&](const Stop&) { return most; },
                        [&](const Parameter&) { return most; },
                        [&](const Change&) { return most; },
                    },
                    node.op);
}

/// Hill's estimate from the largest terms of all runs; 0: there are too few.
struct TailIndex {
  double index = 0, error = 0, size = 0;  ///< size: of the largest term
  bool everywhere = false;  ///< no mean, by the 16, 32, .. largest terms as by all of them

  /// Below 2 the variance is infinite, and with it the spread of runs no measure; below 1 the mean
  /// is.
  [[nodiscard]] bool heavy() const { return index > 0 && index + 1.5 * error < 2; }
  /// Quasi-random particles leave little error where they are many: what they do not reach adds
  /// more, and hardly spreads over runs.
  [[nodiscard]] bool long_tailed() const { return index > 0 && (index < 3 || heavy()); }
  /// The mean of what lies beyond the largest term, for terms with P(term > t) ~ t^-index; near 1,
  /// of as many as there are.
  [[nodiscard]] double beyond(double terms) const {
    return size / terms * std::min(index / std::max(1e-9, index - 1), std::sqrt(terms));
  }
};
TailIndex tail_index(std::vector<double> all, double terms) {
  std::sort(all.begin(), all.end(), std::greater<>());
  // Far enough in the tail that polynomials of Gaussians look light, and so many that the estimate
  // means something.
  constexpr std::size_t kLeast = 16;
  constexpr double kOneOf = 256;
  if (terms < 2048 || all.empty()) return {};
  auto k = static_cast<std::size_t>(
      std::clamp(terms / kOneOf, double{kLeast}, static_cast<double>(engines::kLargestTerms - 1)));
  k = std::min(k, all.size() - 1);
  while (k >= kLeast && !(all[k] > 0)) --k;
  if (k < kLeast) return {};
  // Of a power law, the spacings (i + 1) log(all[i] / all[i + 1]) are independent and exponential
  // with mean 1 / index.  One large gap is no heavy tail but a few terms of another kind (a jump):
  // the largest, on average 1 + 1/2 + .. + 1/k of these means, is left out.
  TailIndex out;
  out.everywhere = true;
  double sum = 0, largest = 0, left = 0;
  for (std::size_t i = 0; i < k; ++i) {
    const double place = static_cast<double>(i + 1),
                 spacing = place * std::log(all[i] / all[i + 1]);
    sum += spacing;
    largest = std::max(largest, spacing);
    left += 1 - 1 / place;
    const bool last = i + 1 == k;
    if (!last && (i + 1 < kLeast || !std::has_single_bit(i + 1))) continue;
    if (!(sum > largest)) return {};
    const double index = left / (sum - largest), error = index / std::sqrt(left);
    // A mean is refused only where all agree: terms of two kinds, as where few particles cross a
    // kink, fall off like any power in between.
    out.everywhere = out.everywhere && index + 1.5 * error < 1;
    if (last)
      out.index = index, out.error = error,
      out.size = std::max(all[0], all[k] * std::pow(static_cast<double>(k), 1 / index));
  }
  return out;
}

}  // namespace

std::vector<bool> proved_by_matching(const Program& program) {
  std::vector<int> degree(program.size());
  std::vector<bool> out(program.size());
  for (std::size_t k = 0; k < program.size(); ++k) {
    degree[k] = degree_of(program, program.nodes[k], degree);
    out[k] = degree[k] == 0;
  }
  return out;
}

Unresolved unresolved(const Program& program, const std::vector<NodeId>& averages,
                      const std::vector<RunResult>& runs, const std::vector<bool>& proved,
                      std::int64_t particles) {
  Unresolved out;
  const double count = static_cast<double>(runs.size()),
               terms = count * static_cast<double>(particles);
  for (std::size_t a = 0; a < averages.size(); ++a) {
    const std::size_t size = runs[0].values[a].size();
    std::vector<double>& error = out.error.emplace_back(size, 0.0);
    const Op& op = program[averages[a]].op;
    if (proved[averages[a].value] || !is_average(op) || runs[0].terms.size() <= a ||
        runs[0].terms[a].low.empty())
      continue;
    for (std::size_t j = 0; j < size; ++j) {
      // A jump that no particle of any run crosses: it has a chance of up to about one of all
      // particles.
      double apart = 0;
      double unseen = std::numeric_limits<double>::infinity(), low = unseen, high = -unseen,
             mean = 0, squares = 0;
      for (const RunResult& run : runs) {
        unseen = std::min(unseen, run.terms[a].unseen[j]);
        apart = std::max(apart, run.terms[a].apart[j]);
        low = std::min(low, run.terms[a].low[j]);
        high = std::max(high, run.terms[a].high[j]);
        mean += run.values[a][j] / count;
      }
      for (const RunResult& run : runs)
        squares += (run.values[a][j] - mean) * (run.values[a][j] - mean);
      const double largest = std::max(std::abs(low), std::abs(high)),
                   rounding = std::numeric_limits<double>::epsilon() * largest;
      // Runs that agree to rounding, though nothing makes them: they cannot show what one particle
      // more or less would change.
      const bool agree = count > 1 && std::sqrt(squares / count) <= 1e-12 * largest;
      error[j] =
          std::max({rounding, unseen / terms, apart / terms, agree ? (high - low) / terms : 0.0});
    }
    if (std::holds_alternative<Histogram>(op)) continue;
    std::vector<double> largest;
    for (const RunResult& run : runs)
      largest.insert(largest.end(), run.terms[a].largest.begin(), run.terms[a].largest.end());
    const TailIndex tail = tail_index(std::move(largest), terms);
    if (!tail.long_tailed()) continue;
    if (tail.heavy()) out.tails.push_back({averages[a], tail.index, tail.error, !tail.everywhere});
    for (double& e : error) e = std::max(e, tail.beyond(terms));
  }
  for (const auto& [id, first] : runs[0].inner) {
    if (!first.unseen.empty()) {
      double relative = 0;
      for (std::size_t j = 0; j < first.unseen.size(); ++j) {
        double unseen = std::numeric_limits<double>::infinity(), apart = 0;
        for (const RunResult& run : runs) {
          unseen = std::min(unseen, run.inner.at(id).unseen[j]);
          apart = std::max(apart, run.inner.at(id).apart[j]);
        }
        relative = std::max(relative, std::max(unseen, apart) / terms);
      }
      if (relative == 0) continue;
      out.inner.push_back({NodeId{id}, 0, 0, true, relative});
      if (relative > 1) out.tails.push_back(out.inner.back());
      continue;
    }
    if (proved[id]) continue;
    std::vector<double> largest;
    double mean = 0;
    for (const RunResult& run : runs) {
      const TermSummary& own = run.inner.at(id);
      largest.insert(largest.end(), own.largest.begin(), own.largest.end());
      mean += own.mean / count;
    }
    const TailIndex tail = tail_index(std::move(largest), terms);
    if (tail.long_tailed())
      out.inner.push_back(
          {NodeId{id}, tail.index, tail.error, !tail.everywhere, tail.beyond(terms) / mean});
    if (tail.heavy()) out.tails.push_back(out.inner.back());
  }
  return out;
}

std::vector<bool> means_of_squares(const Program& program, NodeId average) {
  const Node& node = program[average];
  const auto all = static_cast<std::size_t>(size_of(node.type.dims));
  if (const auto* contract = std::get_if<Contract>(&node.op);
      contract && contract->average && node.in[0] == node.in[1]) {
    // [batch.., i.., i..]
    const Dims& dims = program[node.in[0]].type.dims;
    const auto side = static_cast<std::size_t>(ContractSizes(*contract, dims, dims).left);
    std::vector<bool> out(all);
    for (std::size_t j = 0; j < all; ++j) out[j] = j % side == j / side % side;
    return out;
  }
  if (!std::holds_alternative<Average>(node.op)) return {};
  const Node& term = program[node.in[0]];
  const auto* map = std::get_if<Map>(&term.op);
  const bool square = map && ((map->fn == Fn::kMul && term.in[0] == term.in[1]) ||
                              map->fn == Fn::kAbs || map->fn == Fn::kRelu ||
                              (map->fn == Fn::kPower && std::fmod(map->parameter, 2.0) == 0));
  return square ? std::vector<bool>(all, true) : std::vector<bool>{};
}

}  // namespace tplimit
