#include "driver/report_values.hpp"

#include <algorithm>
#include <cmath>
#include <set>

namespace tplimit {

using namespace ir;

ReportResult skeleton(const Program& program, const Report& report) {
  ReportResult out;
  out.name = report.name;
  out.span = report.span;
  out.index_names = report.index_names;
  out.random = report.random;
  for (std::size_t k = 0; k < report.index_names.size(); ++k) {
    std::vector<std::int64_t>& values = out.index_values.emplace_back();  // in the order of the run
    std::set<std::int64_t> seen;
    for (const auto& entry : report.entries)
      if (seen.insert(entry.index[k]).second) values.push_back(entry.index[k]);
    out.shape.push_back(static_cast<std::int64_t>(values.size()));
  }
  if (!report.entries.empty())
    for (const auto d : program[report.entries[0].value].type.dims) out.shape.push_back(d);
  return out;
}

void set_means(const std::vector<std::vector<double>>& runs, ReportResult& report) {
  const auto count = static_cast<double>(runs.size());
  report.value.assign(runs[0].size(), 0.0);
  for (const auto& run : runs)
    for (std::size_t j = 0; j < run.size(); ++j) report.value[j] += run[j] / count;
  if (runs.size() < 2) return;
  report.error.assign(runs[0].size(), 0.0);
  for (const auto& run : runs)
    for (std::size_t j = 0; j < run.size(); ++j)
      report.error[j] += (run[j] - report.value[j]) * (run[j] - report.value[j]);
  for (double& e : report.error) e = std::sqrt(e / (count - 1) / count);
}

std::optional<NodeId> eigenvalues_behind(const Program& program, NodeId id) {
  for (;;) {
    const Node& node = program[id];
    if (std::holds_alternative<Eigvals>(node.op)) return id;
    if (!std::holds_alternative<Gather>(node.op) && !std::holds_alternative<Reshape>(node.op))
      return std::nullopt;
    id = node.in[0];
  }
}

std::vector<double> unresolved_flags(const std::vector<double>& values,
                                     const std::vector<double>& errors, std::int64_t count,
                                     double rank_tol) {
  std::vector<double> flags(values.size(), 0.0);
  const auto k = static_cast<std::size_t>(count);
  for (std::size_t base = 0; base < values.size(); base += k) {
    double largest = 0;
    for (std::size_t i = 0; i < k; ++i) largest = std::max(largest, std::abs(values[base + i]));
    for (std::size_t i = 0; i < k; ++i) {
      const double v = values[base + i], e = errors.empty() ? 0 : errors[base + i];
      bool bad = std::abs(v) <= 3 * e || std::abs(v) < rank_tol * rank_tol * largest;
      for (const std::size_t j : {i - 1, i + 1})
        if (j < k)
          bad = bad || std::abs(values[base + j] - v) <=
                           3 * std::hypot(e, errors.empty() ? 0 : errors[base + j]);
      flags[base + i] = bad ? 1 : 0;
    }
  }
  return flags;
}

}  // namespace tplimit
