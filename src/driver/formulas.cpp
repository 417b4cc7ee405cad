#include "driver/error_budget.hpp"
#include "driver/limits.hpp"

namespace tplimit {

using namespace ir;

Result<LimitFormulas> limit_formulas(const Module& module, const EvaluateOptions& options) {
  Result<LeadingOrder> limit = limit_of_names(module, options);
  if (!limit) return limit.errors();
  for (const ir::Node& node : limit->program.nodes)
    if (std::holds_alternative<ir::AddEntries>(node.op))
      return Diagnostic::error("E3106", "entrywise updates of width matrices have no formulas")
          .at(node.span)
          .with_help("run computes their limit, check counts powers of n");
  LimitFormulas out{explain::formulas_of(limit->program), std::move(limit->program),
                    limit->random_outputs};
  return out;
}

Result<LimitResult> evaluate_formulas(LimitFormulas& formulas,
                                      const std::vector<explain::Expr>& wanted,
                                      const EvaluateOptions& options, std::vector<bool>* possible) {
  explain::Evaluable evaluable = explain::evaluable(formulas.formulas, formulas.limit, wanted);
  if (possible) *possible = std::move(evaluable.possible);
  LeadingOrder limit;
  limit.program = std::move(evaluable.program);
  limit.random_outputs = formulas.random_outputs;
  return within_tolerance(limit, options);
}

Result<std::vector<explain::Number>> numbers_of(LimitFormulas& formulas,
                                                const std::vector<explain::Expr>& wanted,
                                                const EvaluateOptions& options) {
  std::vector<bool> possible;
  Result<LimitResult> result = evaluate_formulas(formulas, wanted, options, &possible);
  if (!result) return result.errors();
  std::vector<explain::Number> out;
  const std::size_t first = result->reports.size() - wanted.size();
  for (std::size_t k = 0; k < wanted.size(); ++k) {
    ReportResult& own = result->reports[first + k];
    out.push_back({wanted[k], possible[k], own.method, std::move(own.value), std::move(own.error)});
  }
  return out;
}

}  // namespace tplimit
