#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "driver/value_sizes.hpp"
#include "tplimit/driver/driver.hpp"

// Coordinate check: a program whose reports are the sizes of the values of another one.
namespace tplimit {

using namespace ir;

namespace {

/// A report for each value, and for its change since the start, over steps 0..`steps`.
struct FollowedSizes {
  Program program;
  std::vector<CoordinateSize> values;  ///< one for each report, without numbers
};
FollowedSizes sizes_of(const Program& program, const RegimeReport& counted, int steps) {
  FollowedSizes out{program, {}};
  out.program.reports.clear();
  out.program.expectations.clear();
  Builder b(out.program);
  const auto add = [&](const Feature& f, bool change) {
    CoordinateSize value{change ? "change of " + f.name : f.name, f.span};
    Report report{value.name, {"step"}, {}, f.span};
    for (std::size_t k = change ? 1 : 0; k < f.steps.size() && std::cmp_less_equal(k, steps); ++k) {
      const NodeId now = f.steps[k].node, start = f.steps[0].node;
      if (!now.valid() || b.type(now).matrix || (change && b.type(now) != b.type(start))) return;
      b.set_origin(f.span, b.node(now).context);
      report.entries.push_back({{static_cast<std::int64_t>(k)},
                                root_mean_square(b, {change ? b.minus(now, start) : now})});
      value.steps.push_back(static_cast<std::int64_t>(k));
      value.counted.push_back(change ? f.steps[k].change : f.steps[k].value);
      value.is_counted.push_back(std::cmp_less_equal(k, counted.steps));
    }
    if (report.entries.empty()) return;
    out.program.reports.push_back(std::move(report));
    out.values.push_back(std::move(value));
  };
  for (const Feature& f : counted.features) {
    add(f, false);
    add(f, true);
  }
  return out;
}

}  // namespace

Result<CoordinateCheck> coordinate_check(const Module& module, int steps,
                                         const std::vector<std::int64_t>& widths,
                                         const SimulateOptions& networks,
                                         const EvaluateOptions& limit) {
  const RegimeReport counted = regime(module, false);
  const Program followed = with_last_pass(*module.written);
  const int trained = static_cast<int>(followed.steps.size());
  CoordinateCheck out;
  out.widths = widths;
  out.seeds = networks.seeds;
  out.warnings = module.warnings;
  out.steps = std::min(steps, trained);
  for (;; --out.steps) {
    FollowedSizes sizes = sizes_of(followed, counted, out.steps);
    const Result<std::vector<SimulationResult>> runs =
        simulate(with_program(module, sizes.program), networks, widths);
    if (!runs) {  // what explodes ends in numbers that no longer fit: the steps before it
      if (out.steps == 0 || runs.errors()[0].code != "E4101") return runs.errors();
      out.left_out = fmt::format("After {} steps numbers are no longer finite: {} are shown.",
                                 out.steps, out.steps - 1);
      continue;
    }
    out.values = std::move(sizes.values);
    std::vector<std::size_t> finite;
    for (std::size_t j = 0; j < out.values.size(); ++j) {
      CoordinateSize& value = out.values[j];
      value.limit.resize(value.steps.size());
      bool bounded = true;
      for (std::size_t k = 0; k < value.steps.size(); ++k) {
        std::vector<WidthSamples> samples;
        std::vector<Estimate>& own = value.sizes.emplace_back();
        for (const SimulationResult& run : *runs) {
          const ReportResult& r = run.reports[j];
          own.push_back({r.value[k], r.error.empty() ? 0 : r.error[k]});
          WidthSamples& sample = samples.emplace_back(
              WidthSamples{static_cast<double>(run.width), Eigen::MatrixXd(run.seeds, 1)});
          for (int seed = 0; seed < run.seeds; ++seed)
            sample.values(seed, 0) = run.runs[j][static_cast<std::size_t>(seed)][k];
        }
        value.slopes.push_back(samples.size() > 1 && networks.seeds > 1
                                   ? assess_vanishing(samples, 0).rms_slope
                                   : std::nullopt);
        bounded = bounded && value.is_counted[k] && (!value.counted[k] || *value.counted[k] <= 0);
      }
      if (bounded) finite.push_back(j);
    }
    const LimitsOfReports limits = limits_where_any(module, sizes.program, finite, limit);
    out.no_limit = limits.missing;
    for (const std::size_t j : finite)
      if (const auto& r = limits.reports[j])
        for (std::size_t k = 0; k < r->value.size(); ++k)
          if (std::isfinite(r->value[k]))
            out.values[j].limit[k] = Estimate{r->value[k], r->error.empty() ? 0 : r->error[k]};
    return out;
  }
}

}  // namespace tplimit
