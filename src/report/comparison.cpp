#include "tplimit/report/comparison.hpp"

#include <algorithm>
#include <cmath>

#include "tplimit/support/check.hpp"

namespace tplimit {
namespace {

using Eigen::Index;
using Eigen::VectorXd;

VectorXd to_vector(const std::vector<double>& values) {
  return Eigen::Map<const VectorXd>(values.data(), static_cast<Index>(values.size()));
}

WidthSamples samples_of(const SimulationResult& networks, std::size_t report) {
  const auto& runs = networks.runs[report];
  WidthSamples samples{static_cast<double>(networks.width), {}};
  samples.values.resize(static_cast<Index>(runs.size()), static_cast<Index>(runs.at(0).size()));
  for (std::size_t seed = 0; seed < runs.size(); ++seed)
    samples.values.row(static_cast<Index>(seed)) = to_vector(runs[seed]).transpose();
  return samples;
}

/// Eigenvalues that meet 0 or a neighbour have no expansion in 1/n, and what is undetermined has no
/// limit: they are shown, but decide nothing.
Convergence assess(const ReportResult& report, const std::vector<WidthSamples>& samples,
                   double limit_dof) {
  VectorXd limit = to_vector(report.value), error = to_vector(report.error);
  for (Index j = 0; j < limit.size(); ++j)
    if (std::isnan(limit[j])) limit[j] = error[j] = 0;
  if (report.order && limit.isZero(0) && error.isZero(0) && report.undetermined.empty() &&
      report.unresolved.empty())
    return assess_vanishing(samples, *report.order);
  const double spread = report.random ? 0 : -0.5;
  Convergence all = assess_convergence(limit, error, samples, limit_dof, spread);
  std::vector<Index> resolved;
  for (std::size_t j = 0; j < report.value.size(); ++j)
    if (!std::isnan(report.value[j]) && (report.unresolved.empty() || !report.unresolved[j]))
      resolved.push_back(static_cast<Index>(j));
  if (resolved.size() == report.value.size()) return all;
  Convergence some;
  const char* what =
      report.undetermined.empty() ? "eigenvalues not resolved" : "values undetermined";
  some.reason = report.undetermined.empty() ? "no eigenvalue is resolved" : "undetermined";
  if (!resolved.empty()) {
    std::vector<WidthSamples> selected;
    for (const WidthSamples& sample : samples)
      selected.push_back({sample.width, sample.values(Eigen::all, resolved)});
    some = assess_convergence(limit(resolved), error(resolved), selected, limit_dof, spread);
    some.reason += fmt::format("; {} of {} {} and left out", report.value.size() - resolved.size(),
                               report.value.size(), what);
  }
  some.entries = std::move(all.entries);
  return some;
}

void average(std::vector<double>& into, const std::vector<const std::vector<double>*>& draws) {
  std::fill(into.begin(), into.end(), 0.0);
  for (const auto* draw : draws)
    for (std::size_t j = 0; j < into.size(); ++j)
      into[j] += (*draw)[j] / static_cast<double>(draws.size());
}

}  // namespace

Comparison compare(LimitResult limit, std::vector<SimulationResult> networks) {
  Comparison out;
  std::sort(networks.begin(), networks.end(),
            [](const auto& a, const auto& b) { return a.width < b.width; });
  std::vector<Verdict> verdicts;
  for (std::size_t k = 0; k < limit.reports.size(); ++k) {
    const ReportResult& report = limit.reports[k];
    out.reports.emplace_back();
    if (report.method == Method::kSamples) continue;
    if (std::any_of(networks.begin(), networks.end(),
                    [&](const SimulationResult& width) { return width.runs.at(k).empty(); }))
      continue;
    TPLIMIT_CHECK(report.error.size() == report.value.size(), "an error for every number of '{}'",
                  report.name);
    std::vector<WidthSamples> samples;
    for (const SimulationResult& width : networks) {
      samples.push_back(samples_of(width, k));
      limit.reports[k].random = report.random || width.reports[k].random;
    }
    const double dof = limit.draws > 1 ? limit.draws - 1
                       : report.method == Method::kExact || report.method == Method::kClosedForm ||
                               report.method == Method::kQuadrature
                           ? std::numeric_limits<double>::infinity()
                           : static_cast<double>(limit.engine.randomisations - 1);
    out.reports.back() = assess(report, samples, dof);
    verdicts.push_back(out.reports.back()->verdict);
  }
  out.verdict = overall(verdicts);
  out.limit = std::move(limit);
  out.networks = std::move(networks);
  return out;
}

LimitResult mean_over_draws(LimitResult limit) {
  for (ReportResult& report : limit.reports) {
    report.spread.clear();
  }
  return limit;
}

LimitResult average_draws(std::vector<LimitResult> draws) {
  TPLIMIT_CHECK(!draws.empty(), "at least one draw");
  if (draws.size() == 1) return std::move(draws[0]);
  LimitResult out = draws[0];
  out.draws = static_cast<int>(draws.size());
  out.largest_error = 0;
  for (std::size_t k = 0; k < out.reports.size(); ++k) {
    ReportResult& report = out.reports[k];
    if (report.method == Method::kSamples) continue;
    std::vector<const std::vector<double>*> values, errors;
    for (const LimitResult& draw : draws) {
      const ReportResult& own = draw.reports[k];
      values.push_back(&own.value);
      errors.push_back(&own.error);
      for (std::size_t j = 0; j < own.unresolved.size(); ++j)
        report.unresolved[j] = report.unresolved[j] || own.unresolved[j];
    }
    average(report.value, values);
    average(report.error, errors);
    report.spread.assign(report.value.size(), 0.0);
    for (std::size_t j = 0; j < report.value.size(); ++j) {
      for (const auto* value : values)
        report.spread[j] += std::pow((*value)[j] - report.value[j], 2);
      report.spread[j] = std::sqrt(report.spread[j] / static_cast<double>(draws.size() - 1));
    }
    // The errors of draws, from the same particles, go together; the draws are independent.
    report.error.resize(report.value.size(), 0.0);
    for (std::size_t j = 0; j < report.value.size(); ++j) {
      report.random = report.random ||
                      report.spread[j] > 10 * report.error[j] + 1e-12 * std::abs(report.value[j]);
      report.error[j] = std::hypot(report.spread[j] / std::sqrt(static_cast<double>(draws.size())),
                                   report.error[j]);
      if (!std::isnan(report.error[j]))
        out.largest_error = std::max(out.largest_error, report.error[j]);
    }
    for (const LimitResult& draw : draws)
      if (report.undetermined.empty()) report.undetermined = draw.reports[k].undetermined;
  }
  out.expectations.clear();
  out.time_s = 0;
  for (std::size_t d = 0; d < draws.size(); ++d) {
    for (ExpectResult& expect : draws[d].expectations) {
      expect.iteration =
          fmt::format("draw {}{}{}", d, expect.iteration.empty() ? "" : ", ", expect.iteration);
      out.expectations.push_back(std::move(expect));
    }
    out.time_s += draws[d].time_s;
    out.peak_memory_bytes = std::max(out.peak_memory_bytes, draws[d].peak_memory_bytes);
    out.engine.largest_rank = std::max(out.engine.largest_rank, draws[d].engine.largest_rank);
    out.engine.extrapolated = out.engine.extrapolated || draws[d].engine.extrapolated;
    out.tolerance_missed = out.tolerance_missed || draws[d].tolerance_missed;
  }
  return out;
}

}  // namespace tplimit
