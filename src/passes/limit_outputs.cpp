#include "tplimit/passes/limit_outputs.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "tplimit/passes/faults.hpp"

namespace tplimit {

using namespace ir;

namespace {

std::string iteration_of(const Report& report, const Report::Entry& entry) {
  std::string out;
  for (std::size_t j = 0; j < report.index_names.size(); ++j)
    out += fmt::format("{}{} = {}", j ? ", " : ", at ", report.index_names[j], entry.index[j]);
  return out;
}

}  // namespace

std::vector<std::pair<NodeId, Diagnostic>> limit_outputs(const Program& in, Program& out,
                                                         Builder& builder, const KnownLimits& known,
                                                         LeadingOrder& result) {
  std::vector<std::pair<NodeId, Diagnostic>> refused;
  for (const Report& report : in.reports) {
    Report limit = report;
    ReportOrder summary{report.name, report.span, 0, true};
    for (Report::Entry& entry : limit.entries) {
      const NodeId id = entry.value;
      if (auto error = known.fault(id, report.span, fmt::format("report '{}'", report.name),
                                   iteration_of(report, entry))) {
        refused.emplace_back(id, std::move(*error));
        break;
      }
      if (const auto order = known.order(id)) {
        summary.order = summary.proved_zero ? *order : std::max(summary.order, *order);
        summary.proved_zero = false;
      }
      builder.set_origin(report.span, 0);
      entry.value = known.limit(id);
    }
    if (!summary.proved_zero && summary.order < 0)
      result.vanishing.push_back(
          faults::vanishes(report, power_of_width(summary.order, in.width_name)));
    result.reports.push_back(std::move(summary));
    out.reports.push_back(std::move(limit));
  }
  for (const Expectation& expectation : in.expectations) {
    for (const NodeId id : {expectation.left, expectation.right})
      if (auto error = known.fault(id, expectation.span, "an expectation", ""))
        refused.emplace_back(id, std::move(*error));
    Expectation limit = expectation;
    builder.set_origin(expectation.span, expectation.context);
    limit.left = known.limit(expectation.left);
    limit.right = known.limit(expectation.right);
    limit.difference = builder.minus(limit.left, limit.right);
    out.expectations.push_back(limit);
  }
  return refused;
}

}  // namespace tplimit
