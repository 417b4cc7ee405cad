#include "tplimit/driver/driver.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <map>

#include <fmt/format.h>

#include "driver/error_budget.hpp"
#include "driver/faults.hpp"
#include "driver/limit_evaluation.hpp"
#include "driver/limits.hpp"
#include "driver/networks.hpp"
#include "driver/ratios.hpp"
#include "driver/runs.hpp"
#include "driver/stages.hpp"
#include "tplimit/data/table.hpp"
#include "tplimit/passes/inner_products.hpp"
#include "tplimit/passes/known_values.hpp"
#include "tplimit/passes/products_apart.hpp"
#include "tplimit/support/output_file.hpp"
#include "tplimit/support/stopped.hpp"
#include "tplimit/syntax/parser.hpp"

// The pipeline: what becomes of a program, pass by pass.  Passes are ordered here and nowhere else.
//
//   text -> parse -> Module -> evaluate -> numbers of the limit     (limit_of, within_tolerance)
//                           -> simulate -> numbers of networks      (networks.cpp)
//                           -> check, methods, limit_formulas       (what would be done, and why)
namespace tplimit {

using namespace ir;

Result<Source> read_source(const std::filesystem::path& file) {
  if (const std::string reason = why_not_readable(file); !reason.empty())
    return Diagnostic::error("E5001", fmt::format("cannot read '{}': {}", file.string(), reason));
  std::ifstream in(file, std::ios::binary);
  return read_source(in, file.string());
}

Result<Source> read_source(std::istream& in, std::string name) {
  constexpr std::size_t kMost = 16 << 20;  // devices have no end
  std::string text;
  std::array<char, 1 << 16> piece{};
  while (in && text.size() <= kMost && (in.read(piece.data(), piece.size()) || in.gcount() > 0))
    text.append(piece.data(), static_cast<std::size_t>(in.gcount()));
  if (text.size() > kMost)
    return Diagnostic::error("E5001",
                             fmt::format("'{}' is no program: it is longer than 16 MiB", name))
        .with_help("large arrays belong in data files: data X = npy(\"FILE\")");
  if (!in.eof()) return Diagnostic::error("E5001", fmt::format("cannot read '{}'", name));
  return Source(std::move(name), std::move(text));
}

Source with_imports(Source source, const std::filesystem::path& folder) {
  std::map<std::string, std::size_t> known;  // parts by the path of their file
  for (std::size_t at = 0; at < source.parts().size(); ++at) {
    const std::filesystem::path from =
        at == 0 ? folder : std::filesystem::path(source.parts()[at].name).parent_path();
    for (std::string& path : imported_paths(source.text(source.parts()[at]))) {
      const std::string file = (from / path).lexically_normal().string();
      auto it = known.find(file);
      if (it == known.end()) {
        const Result<Source> text = read_source(file);
        if (!text) continue;
        it = known.emplace(file, source.append(file, text->text())).first;
      }
      source.link(at, std::move(path), it->second);
    }
  }
  return source;
}

Result<Module> parse(Source source, const LowerOptions& options, const Ablations& ablations,
                     const Observer& observer) {
  const Stages stage(observer);
  auto ast = stage("syntax", [&] { return parse_syntax(source); });
  if (!ast) return ast.errors();
  auto lowered = stage("lower", [&]() -> Result<Lowered> {
    try {
      return lower(*ast, source, options);
    } catch (const Stopped&) {
      return stopped(nullptr);
    }
  });
  if (!lowered) return lowered.errors();
  Module module;
  if (!lowered->program.output_kernels.empty()) {
    if (!ablations.any())
      module.marked = std::make_shared<const Program>(expand_inner_products(lowered->program));
    lowered->program =
        stage("output-kernels", [&] { return without_output_kernels(lowered->program); });
  }
  if (ablations.lazy) {
    auto lazy = stage("linearise", [&] { return linearised(lowered->program); });
    if (!lazy) return lazy.errors();
    lowered->program = std::move(*lazy);
  }
  if (!ablations.decouple.empty() || ablations.no_correction) {
    auto changed = stage("decouple", [&] { return decoupled(lowered->program, ablations); });
    if (!changed) return changed.errors();
    lowered->program = std::move(*changed);
  }
  lowered->program =
      stage("inner-products", [&] { return expand_inner_products(lowered->program); });
  module.program = stage("erase-identities", [&] { return erase_identities(lowered->program); });
  if (const auto node = certain_nan(module.program))
    return diagnose(module.program, {engines::not_finite(), *node});
  module.ablations = ablations;
  module.sha256 = sha256(source.text());
  module.constants = options.constants;
  module.written = std::make_shared<const Program>(std::move(lowered->program));
  module.warnings = std::move(lowered->warnings);
  module.depth = std::move(lowered->depth);
  module.free_widths = std::move(lowered->free_widths);
  if (!module.free_widths.empty() && !ablations.any()) {
    LowerOptions other = options;
    other.names = nullptr;
    for (std::size_t k = 0; k < module.free_widths.size(); ++k)
      other.constants.emplace_back(module.free_widths[k].name, std::to_string(k + 2));
    if (auto again = lower(*ast, source, other))
      module.other_ratios =
          std::make_shared<const Program>(erase_identities(expand_inner_products(again->program)));
  }
  module.source = std::move(source);
  return module;
}

Result<Module> parse_file(const std::filesystem::path& file, LowerOptions options) {
  auto source = read_source(file);
  if (!source) return source.errors();
  options.base_directory = file.parent_path();
  return parse(with_imports(std::move(*source), options.base_directory), options);
}

std::string fingerprint(const Module& module) {
  return fmt::format("{} {:016x}", module.sha256, fingerprint(module.program));
}

std::optional<CovarianceLimit> covariance_limit(const Program& program) {
  GaussianOutputs programs = gaussian_outputs(program, fluctuating_reports(program));
  if (programs.notes.empty()) return std::nullopt;
  Result<LeadingOrder> limit = leading_order(programs.limit);
  if (!limit) return std::nullopt;
  limit->warnings.insert(limit->warnings.begin(), programs.notes.begin(), programs.notes.end());
  return CovarianceLimit{std::move(programs), std::move(*limit)};
}

std::optional<ProductsApart> limit_of_products_apart(const Program& program,
                                                     const LeadingOrderResult& refused) {
  if (refused.reason() != NoLeadingOrder::kOther) return std::nullopt;
  Program apart = products_apart(program);
  if (apart.size() == program.size()) return std::nullopt;
  LeadingOrderResult limit = leading_order(apart);
  if (!limit && limit.reason() == NoLeadingOrder::kOther) return std::nullopt;
  return ProductsApart{std::move(apart), std::move(limit)};
}

namespace {

Result<LeadingOrder> graded_of(const Program& program, const EvaluateOptions& options) {
  return Stages(options.observe)("graded", [&] {
    return graded_limit(program, {options.seed, options.draw, Exponent(1, 2), options.given});
  });
}

std::ptrdiff_t count_undetermined(const LimitResult& result) {
  std::ptrdiff_t out = 0;
  for (const ReportResult& report : result.reports)
    if (!report.undetermined.empty())
      out += std::count_if(report.value.begin(), report.value.end(),
                           [](double x) { return std::isnan(x); });
  return out;
}

}  // namespace

Result<LeadingOrder> limit_of(const Program& written, const EvaluateOptions& options) {
  const Stages stage(options.observe);
  Program program = stage("cancel-terms", [&] { return cancel_terms(written); });
  const auto graded = [&] { return graded_of(program, options); };
  LeadingOrderResult limit = stage("leading-order", [&] { return leading_order(program); });
  if (!limit)
    if (auto apart =
            stage("products-apart", [&] { return limit_of_products_apart(program, limit); })) {
      limit = std::move(apart->limit);
      program = std::move(apart->program);
    }
  // Graded values are no better where dropped terms decide on jumps.
  if (options.given && limit.reason() != NoLeadingOrder::kJump) return graded();
  if (limit && limit->undecided && program.steps.empty())
    if (Result<LeadingOrder> drawn = graded(); drawn && drawn->random_outputs) return drawn;
  if (limit.reason() != NoLeadingOrder::kDroppedTerms) return limit;
  if (auto covariances = stage("covariances", [&] { return covariance_limit(program); }))
    return std::move(covariances->limit);
  return graded();
}

Result<LeadingOrder> limit_of_names(const Module& module, const EvaluateOptions& options) {
  if (options.given) return limit_of(module.program, options);
  const Stages stage(options.observe);
  const Program named =
      stage("erase-identities", [&] { return erase_identities(*module.written, true); });
  Result<LeadingOrder> limit = stage("leading-order", [&] { return leading_order(named, true); });
  return limit ? std::move(limit) : limit_of(module.program, options);
}

Result<LeadingOrder> check(const Module& module, const Observer& observer) {
  EvaluateOptions options;
  options.observe = observer;
  return limit_of(module.program, options);
}

RegimeReport regime(const Module& module, bool every_share) {
  return count_powers(*module.written, every_share);
}

namespace {

/// What is wrong with options: E2701.
std::optional<Diagnostic> fault(const EvaluateOptions& options) {
  if (options.particles && *options.particles < 8)
    return faults::option_out_of_range(fmt::format("{} particles are too few", *options.particles),
                                       "use at least 8; the default is 16384");
  if (options.randomisations < 1)
    return faults::option_out_of_range("at least one randomisation is needed",
                                       "use 2 or more for an error estimate; the default is 8");
  if (options.tolerance && options.randomisations < 2)
    return faults::option_out_of_range(
        "one randomisation has no standard error to compare with a tolerance",
        "use 2 randomisations or more");
  return std::nullopt;
}

std::optional<Diagnostic> fault(const Module& module, const SimulateOptions& options,
                                const std::vector<std::int64_t>& widths) {
  if (options.seeds < 1) return faults::option_out_of_range("at least one seed is needed", "");
  const std::int64_t units = module.program.width_units;
  for (const std::int64_t width : widths)
    if (width < 1 || width % units != 0)
      return faults::option_out_of_range(
          fmt::format("a network of width {} cannot be run", width),
          width < 1 ? "use --width 128 or more"
                    : fmt::format("the ratios of its widths need a multiple of {}", units));
  return std::nullopt;
}

}  // namespace

Result<LimitResult> evaluate(const Module& module, const EvaluateOptions& options) {
  if (auto wrong = fault(options)) return *wrong;
  auto limit = limit_of(module.program, options);
  if (!limit) return limit.errors();
  const Stages stage(options.observe);
  Result<LimitResult> result = stage("evaluate", [&] { return within_tolerance(*limit, options); });
  // A jump that leading orders leave open decides how training goes on: drawn numbers decide it.
  if (result && limit->undecided_moves && count_undetermined(*result) > 0)
    if (Result<LeadingOrder> graded = graded_of(cancel_terms(module.program), options);
        graded && graded->random_outputs)
      if (Result<LimitResult> drawn =
              stage("evaluate", [&] { return within_tolerance(*graded, options); });
          drawn && count_undetermined(*drawn) < count_undetermined(*result)) {
        limit = std::move(graded);
        result = std::move(drawn);
      }
  if (!result) {  // with what the limit was warned of: it may be the reason
    Diagnostics all = result.errors();
    all.insert(all.end(), limit->warnings.begin(), limit->warnings.end());
    return all;
  }
  result->warnings.insert(result->warnings.begin(), module.warnings.begin(), module.warnings.end());
  for (std::size_t k = 0; k < result->reports.size(); ++k)
    if (const ReportOrder& counted = limit->reports.at(k);
        counted.order < 0 && !counted.proved_zero)
      result->reports[k].order = to_double(counted.order);
  if (auto depends = depends_on_ratios(module, *result, options))
    result->warnings.push_back(std::move(*depends));
  return result;
}

Result<std::vector<ReportMethod>> methods(const Module& module, const EvaluateOptions& options) {
  auto limit = limit_of(module.program, options);
  if (!limit) return limit.errors();
  try {
    const LimitEvaluation evaluation(*limit, options, true);
    std::vector<ReportMethod> out;
    for (const Report& report : limit->program.reports) out.push_back(evaluation.method_of(report));
    return out;
  } catch (const Stopped&) {
    return stopped(options.checkpoint);
  }
}

Result<SimulationResult> simulate(const Module& module, const SimulateOptions& options) {
  auto one = simulate(module, options, {options.width});
  if (!one) return one.errors();
  return std::move(one->front());
}

Result<std::vector<SimulationResult>> simulate(const Module& module, const SimulateOptions& options,
                                               const std::vector<std::int64_t>& widths) {
  if (auto wrong = fault(module, options, widths)) return *wrong;
  const Stages stage(options.observe);
  const std::int64_t units = module.program.width_units;
  // Norms of changes need no stored matrices once their large parts have cancelled.
  const bool norms =
      std::any_of(module.program.nodes.begin(), module.program.nodes.end(),
                  [](const Node& node) { return std::holds_alternative<InnerProduct>(node.op); });
  const Program program =
      norms ? stage("cancel-terms", [&] { return cancel_terms(module.program); }) : module.program;
  std::vector<Program> programs;
  for (const std::int64_t width : widths) {
    const std::int64_t rows = width / units;  // a multiple: `fault` has seen to it
    programs.push_back(
        stage("at-width", [&] { return at_width(program, static_cast<double>(rows)); }));
  }
  try {
    return stage("simulate", [&] { return run_networks(module, options, widths, programs); });
  } catch (const Stopped&) {
    return stopped(options.checkpoint);
  }
}

}  // namespace tplimit
