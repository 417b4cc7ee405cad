#include "driver/value_sizes.hpp"

#include <fmt/format.h>

#include "tplimit/passes/passes.hpp"

namespace tplimit {

using namespace ir;

NodeId mean_square(Builder& b, NodeId x) {
  NodeId square = b.map(Fn::kPower, {x}, 2);
  if (b.type(square).width) square = b.average(square);
  const std::int64_t count = size_of(b.type(square).dims);
  square = b.reshape(square, {count});
  return b.scale(1.0 / static_cast<double>(count), 0, b.sum(square, 0));
}

NodeId root_mean_square(Builder& b, const std::vector<NodeId>& values) {
  NodeId sum;
  for (const NodeId x : values) {
    const NodeId square = mean_square(b, x);
    sum = sum.valid() ? b.plus(sum, square) : square;
  }
  return b.map(Fn::kSqrt, {b.scale(1.0 / static_cast<double>(values.size()), 0, sum)});
}

Module with_program(const Module& module, Program program) {
  Module out;
  out.source = module.source;
  out.sha256 = module.sha256;
  out.constants = module.constants;
  out.program = erase_identities(program);
  out.written = std::make_shared<const Program>(std::move(program));
  out.ablations = module.ablations;
  return out;
}

namespace {

void find(const Module& module, const Program& all, const std::vector<std::size_t>& wanted,
          const EvaluateOptions& options, LimitsOfReports& out) {
  if (wanted.empty()) return;
  Program program = all;
  program.reports.clear();
  for (const std::size_t k : wanted) program.reports.push_back(all.reports[k]);
  const Module own = with_program(module, std::move(program));
  const Result<LeadingOrder> orders = check(own);
  if (orders && orders->random_outputs) {
    out.missing = "Outputs are random at the start, and sizes with them: no limit is shown.";
    return;
  }
  const Result<LimitResult> limit =
      orders ? evaluate(own, options) : Result<LimitResult>(orders.errors());
  if (limit) {
    for (std::size_t j = 0; j < wanted.size(); ++j) out.reports[wanted[j]] = limit->reports[j];
  } else if (wanted.size() == 1) {
    out.missing = fmt::format("Where no limit is shown, the engine has none: {} ({}).",
                              limit.errors()[0].message, limit.errors()[0].code);
  } else {
    const auto middle = wanted.begin() + static_cast<std::ptrdiff_t>(wanted.size() / 2);
    find(module, all, {wanted.begin(), middle}, options, out);
    find(module, all, {middle, wanted.end()}, options, out);
  }
}

}  // namespace

LimitsOfReports limits_where_any(const Module& module, const Program& program,
                                 const std::vector<std::size_t>& wanted,
                                 const EvaluateOptions& options) {
  LimitsOfReports out{std::vector<std::optional<ReportResult>>(program.reports.size()), {}};
  find(module, program, wanted, options, out);
  return out;
}

}  // namespace tplimit
