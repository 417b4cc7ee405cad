#include "tplimit/driver/identity.hpp"

#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace tplimit {

std::vector<std::pair<std::string, std::string>> identity(const Module& module,
                                                          const Request& request) {
  const std::string& command = request.command;
  const EvaluateOptions& e = request.options.evaluate;
  const SimulateOptions& s = request.options.simulate;
  const bool simulates = command == "simulate";
  std::vector<std::pair<std::string, std::string>> out{
      {"program", module.sha256},
      {"program with its data", fmt::format("{:016x}", ir::fingerprint(module.program))},
      {"command", command}};
  const auto add = [&](const std::string& name, const auto& value) {
    out.emplace_back(name, fmt::format("{}", value));
  };
  add("--seed", simulates ? s.seed : e.seed);
  if (simulates ? s.single_precision : e.single_precision) add("--precision", "single");
  add("--matrices", std::array{"auto", "stored", "lazy"}.at(
                        static_cast<std::size_t>(simulates ? s.matrices : e.matrices)));
  for (const auto& [name, value] : module.constants) add("--set " + name, value);
  if (module.ablations.any()) add("ablations", to_string(module.ablations));
  if (!simulates) {
    if (e.particles) add("--particles", *e.particles);
    add("--randomisations", e.randomisations);
    add("--engine",
        std::array{"auto", "exact", "moments", "particles"}.at(static_cast<std::size_t>(e.engine)));
    if (e.rank_tol) add("--rank-tol", *e.rank_tol);
    add("--merge-rows", e.merge_rows);
    if (e.tolerance) add("--tol", *e.tolerance);
    if (!e.tolerance_on.empty()) add("--tol-on", fmt::format("{}", fmt::join(e.tolerance_on, ",")));
    if (e.given)
      add("--given", fmt::format("{}={}", e.given->name, fmt::join(e.given->values, ",")));
    if (request.options.draws > 1) add("--draws", request.options.draws);
    if (!request.limit.empty()) add("--limit", request.limit);
  }
  for (const SweepAxis& axis : request.over)
    add(fmt::format("{} {}", command == "sweep" ? "--over" : "--in", axis.name),
        fmt::format("{}", fmt::join(axis.values, ",")));
  if (command == "extrapolate") add("--order", request.order);
  if (simulates) add("--width", s.width);
  if (!request.options.widths.empty())
    add("--widths", fmt::format("{}", fmt::join(request.options.widths, ",")));
  if (simulates || !request.options.widths.empty()) add("--seeds", s.seeds);
  return out;
}

}  // namespace tplimit
