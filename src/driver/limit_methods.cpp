#include "driver/limit_evaluation.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <set>

#include <fmt/format.h>

#include "driver/limits.hpp"
#include "engines/memory_estimate.hpp"
#include "engines/operation_estimate.hpp"
#include "tplimit/ir/functions.hpp"

// What needs no sampling, by which method each number is found, and what is refused before a run.
namespace tplimit {

using namespace ir;
using engines::RunFailure;
using engines::Schedule;

void LimitEvaluation::find_moments(bool only_methods) {
  executor_.emplace(threads_, *options_.ranks, stop_of(options_));
  if (options_.engine == Engine::kParticles && !may_be_infinite()) return;
  moments_.emplace(program_, outputs_, *executor_, options_.merge_rows);
  std::vector<NodeId> margins;
  for (const Decision& d : limit_.decisions)
    if (d.margin.valid()) margins.push_back(d.margin);
  std::sort(margins.begin(), margins.end());
  moments_->set_margins(std::move(margins));
  if (only_methods || options_.engine == Engine::kAuto || options_.engine == Engine::kParticles)
    moments_->set_budget(budget(only_methods));
  if (only_methods)
    moments_->survey();
  else
    moments_->run();
  // Particles would print a number.
  if (options_.engine == Engine::kParticles &&
      std::none_of(outputs_.begin(), outputs_.end(),
                   [&](NodeId id) { return (*moments_)[id].infinite; }))
    moments_.reset();
}

bool LimitEvaluation::may_be_infinite() const {
  return std::any_of(program_.nodes.begin(), program_.nodes.end(),
                     [&](const Node& node) { return may_have_heavy_tails(program_, node); });
}

moments::MomentEngine::Budget LimitEvaluation::budget(bool only_methods) const {
  constexpr double kEvaluation = 20;  // operations of one
  constexpr double kCheaper = 4;      // operations of moments in the time of one of particles, of
                                      // bench/cliffs/linear_residual.tp
  moments::MomentEngine::Budget out{1e7, 1e9};
  if (only_methods) {
    if (options_.engine != Engine::kAuto) out.operations = std::numeric_limits<double>::infinity();
    return out;
  }
  const Schedule all = engines::make_schedule(program_, atoms_of(program_, outputs_));
  const Resolution begin = first();
  const double cost = begin.randomisations * engines::estimate_operations(all, begin.particles);
  return {std::max(2e6, 0.25 * cost / kEvaluation), std::max(1e9, kCheaper * 0.5 * cost)};
}

bool has_entries(const ir::Program& program) {
  return std::any_of(program.nodes.begin(), program.nodes.end(),
                     [](const Node& node) { return std::holds_alternative<AddEntries>(node.op); });
}

/// Time is that of all entries of all matrices that have some: half the particles from four times
/// as many matrices on.
std::int64_t LimitEvaluation::particles_of_entries() const {
  constexpr std::size_t kMany = 16;
  constexpr std::int64_t kFewest = 512;
  std::set<SourceId> matrices;
  for (const Node& node : program_.nodes)
    if (std::holds_alternative<AddEntries>(node.op))
      matrices.insert(source_of(program_, node.in[0]));
  std::int64_t particles = kDefaultParticlesOfEntries;
  for (std::size_t most = kMany; matrices.size() > most && particles > kFewest; most *= 4)
    particles /= 2;
  return particles;
}

LimitEvaluation::Resolution LimitEvaluation::first() const {
  const std::int64_t particles = has_entries(program_) ? particles_of_entries()
                                 : options_.tolerance  ? 2048
                                                       : kDefaultParticles;
  return {options_.particles.value_or(particles), options_.randomisations,
          options_.rank_tol.value_or(1e-6)};
}

bool LimitEvaluation::known(NodeId id) const { return moments_ && (*moments_)[id].known(); }

Method LimitEvaluation::method_of(NodeId id) const {
  if (known(id)) {
    switch ((*moments_)[id].method) {
      case moments::MomentMethod::kExact: return Method::kExact;
      case moments::MomentMethod::kClosedForm: return Method::kClosedForm;
      case moments::MomentMethod::kQuadrature: return Method::kQuadrature;
    }
  }
  return sampled_[id.value]  ? Method::kSamples
         : random_[id.value] ? Method::kParticles
                             : Method::kExact;
}

ReportMethod LimitEvaluation::method_of(const Report& report) const {
  ReportMethod out{Method::kExact, "", report.span, ""};
  for (const auto& entry : report.entries) {
    const Method own = method_of(entry.value);
    if (own <= out.method) continue;
    out.method = own;
    if (moments_ && !known(entry.value)) {
      const moments::MomentValue& v = (*moments_)[entry.value];
      out.why = v.why;
      out.culprit = program_[v.culprit].span;
      out.iteration = program_.contexts[program_[v.culprit].context];
    } else if (own == Method::kQuadrature) {
      out.why = "no closed form is known for its functions";
    } else if (own == Method::kClosedForm) {
      out.why = "its functions are not polynomials";
    }
  }
  return out;
}

std::optional<Diagnostic> LimitEvaluation::refusal() const {
  for (const Report& report : program_.reports)
    for (const auto& entry : report.entries) {
      if (!moments_ || known(entry.value)) continue;
      const moments::MomentValue& v = (*moments_)[entry.value];
      if (!v.infinite) continue;
      Diagnostic d =
          Diagnostic::error(
              "E4102", fmt::format("report '{}' needs a mean that is infinite, or too heavy to "
                                   "compute",
                                   report.name))
              .at(report.span)
              .with_label(v.why)
              .with_help("samples would print a number that means nothing; bound what is averaged");
      if (program_[v.culprit].span != report.span)
        d.notes.push_back({"because of this", program_[v.culprit].span});
      return d;
    }
  if (options_.engine != Engine::kExact && options_.engine != Engine::kMoments) return std::nullopt;
  const Method weakest = options_.engine == Engine::kExact ? Method::kExact : Method::kQuadrature;
  for (const Report& report : program_.reports) {
    const ReportMethod m = method_of(report);
    if (m.method <= weakest) continue;
    Diagnostic d =
        Diagnostic::error("E4301",
                          fmt::format("report '{}' is beyond the engine '{}'", report.name,
                                      options_.engine == Engine::kExact ? "exact" : "moments"))
            .at(report.span)
            .with_label(m.why)
            .with_help("use --engine auto");
    if (m.culprit != report.span)
      d.notes.push_back({m.iteration.empty() ? "because of this"
                                             : "because of this, in the iteration " + m.iteration,
                         m.culprit});
    return d;
  }
  return std::nullopt;
}

std::optional<Diagnostic> LimitEvaluation::too_many_samples(const Resolution& resolution) const {
  const std::int64_t available = resolution.particles * resolution.randomisations;
  for (const NodeId id : atoms_)
    if (const auto* samples = std::get_if<Samples>(&program_[id].op);
        samples && samples->count > available)
      return diagnose(program_,
                      {{"E4203",
                        fmt::format("{} samples are asked for, but there are {} particles",
                                    samples->count, available),
                        "ask for fewer samples, or use more --particles or --randomisations"},
                       id});
  return std::nullopt;
}

std::int64_t LimitEvaluation::most_directions() const {
  std::int64_t out = 0;
  for (const auto& d : schedule_.spaces.directions) out = std::max({out, d[0], d[1]});
  return out;
}

std::int64_t LimitEvaluation::most_of_both_sides() const {
  std::int64_t out = 0;
  for (const auto& d : schedule_.spaces.directions) out = std::max(out, d[0] + d[1]);
  return out;
}

Refusal<Shortage> LimitEvaluation::with_advice(Refusal<Shortage> refusal) const {
  if (refusal.reason != Shortage::kParticles) return refusal;
  for (Diagnostic& d : refusal.errors)
    d.help = fmt::format(
        "raise --particles to {}, which is enough for all {} directions that the program may have, "
        "or --rank-tol",
        std::bit_ceil(static_cast<std::uint64_t>(2 * most_of_both_sides())), most_of_both_sides());
  return refusal;
}

std::optional<Refusal<Shortage>> LimitEvaluation::too_few_particles(std::int64_t particles) const {
  std::map<std::pair<std::uint32_t, bool>, std::set<NodeId>> vectors;
  std::map<std::uint32_t, std::int64_t> certain;
  std::vector<std::uint32_t> source(program_.size(), 0);
  for (std::size_t k = 0; k < program_.size(); ++k) {
    const Node& node = program_.nodes[k];
    if (!schedule_.needed[k]) continue;
    if (node.type.matrix && !node.type.entries)
      source[k] = node.in.empty() ? std::get<GaussianMatrix>(node.op).source.value
                                  : source[node.in[0].value];
    const auto* product = std::get_if<MatMul>(&node.op);
    if (!product) continue;
    NodeId x = node.in[1];
    while (std::holds_alternative<Scale>(program_[x].op) ||
           std::holds_alternative<Parameter>(program_[x].op) ||
           std::holds_alternative<Stop>(program_[x].op))
      x = program_[x].in[0];
    const std::uint32_t matrix = source[node.in[0].value];
    if (!std::holds_alternative<StandardNormal>(program_[x].op) ||
        !vectors[{matrix, product->transposed}].insert(x).second)
      continue;
    certain[matrix] += size_of(program_[x].type.dims);
    if (2 * certain[matrix] <= particles) continue;
    const RunFailure failure{engines::too_many_directions(certain[matrix], particles, ""),
                             {static_cast<std::uint32_t>(k)}};
    return with_advice({Shortage::kParticles, {diagnose(program_, failure)}});
  }
  return std::nullopt;
}

}  // namespace tplimit
