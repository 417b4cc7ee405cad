#include "driver/limit_evaluation.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "tplimit/passes/determinacy.hpp"

// What the spread over runs does not show: heavy tails, rounding, jumps at limits.
namespace tplimit {

using namespace ir;
using engines::RunFailure;
using engines::RunResult;

bool LimitEvaluation::matched(const std::vector<RunResult>& runs) {
  return std::none_of(runs.begin(), runs.end(),
                      [](const RunResult& run) { return run.matching_stopped; });
}

Unresolved LimitEvaluation::unresolved_by(const std::vector<RunResult>& runs) const {
  return unresolved(program_, atoms_, runs,
                    matched(runs) ? proved_ : std::vector<bool>(program_.size(), false),
                    particles_);
}

std::optional<Diagnostic> LimitEvaluation::judge_tails(const std::vector<HeavyTail>& tails,
                                                       Diagnostics& warnings) const {
  for (const HeavyTail& tail : tails) {
    const bool product = std::holds_alternative<MatMul>(program_[tail.average].op),
               unseen = tail.index == 0, resolved = tail.resolved && !(tail.relative > 1);
    const char* what = product || unseen ? "the mean square of this vector" : "this mean";
    const engines::EvaluationStop heavy{
        "W5403",
        fmt::format("heavy tails: most of the error of {} comes from terms that are rarer than "
                    "one of all particles",
                    what),
        tail.relative > 0
            ? fmt::format("errors of what follows contain {:.1g} of its size for such terms; "
                          "something bounded, or more --particles, is safer",
                          tail.relative)
            : "errors contain an estimate of what such terms add; a mean of something bounded, "
              "or more --particles, is safer"};
    const engines::EvaluationStop infinite{
        "E4102",
        fmt::format("{} is infinite, or made by terms so rare that the particles do not show them",
                    what),
        "a mean exists if P(term > t) falls faster than 1/t; if it does, use far more "
        "--particles"};
    Diagnostic d = diagnose(program_, {resolved ? heavy : infinite,
                                       product ? program_[tail.average].in[1] : tail.average});
    d.label = unseen ? "no particle is beyond the jump that makes it"
                     : fmt::format("P({} > t) falls like t^-{:.1f}", product ? "square" : "term",
                                   tail.index);
    if (!resolved) return d;
    d.severity = Severity::kWarning;
    // One for each place in the text.
    if (std::none_of(warnings.begin(), warnings.end(),
                     [&](const Diagnostic& w) { return w.code == d.code && w.span == d.span; }))
      warnings.push_back(std::move(d));
  }
  return std::nullopt;
}

void LimitEvaluation::add_inner_tails(Pooled& out, const std::vector<HeavyTail>& tails) const {
  for (const HeavyTail& tail : tails) {
    const Marks reached = reached_from(
        program_,
        {{tail.average.value,
          std::vector<double>(static_cast<std::size_t>(size_of(program_[tail.average].type.dims)),
                              1.0)}});
    for (std::size_t k = 0; k < outputs_.size(); ++k)
      for (std::size_t j = 0; j < out.error[k].size() && !known(outputs_[k]); ++j)
        if (reached.holds(outputs_[k], j))
          out.error[k][j] = std::hypot(out.error[k][j], tail.relative * std::abs(out.value[k][j]));
  }
}

Pooled LimitEvaluation::with_moments(const std::vector<RunResult>& runs) {
  std::vector<NodeId> left;
  for (const NodeId id : outputs_)
    if (!known(id)) left.push_back(id);
  const auto [unresolved, tails, inner] = unresolved_by(runs);
  Pooled particles = pool(program_, atoms_, left, runs, unresolved), out;
  out.failure = particles.failure;
  for (std::size_t k = 0, next = 0; k < outputs_.size(); ++k) {
    if (known(outputs_[k])) {
      // Without particles nobody comes again.
      moments::MomentValue v =
          atoms_.empty() ? moments_->take(outputs_[k]) : (*moments_)[outputs_[k]];
      if (v.error.size() == 1) v.error.resize(v.value.size(), v.error[0]);
      out.value.push_back(std::move(v.value));
      out.error.push_back(std::move(v.error));
      if (!all_finite({&out.value.back(), 1}))
        out.failure = RunFailure{engines::not_finite(), moments_->first_not_finite()};
    } else {
      out.value.push_back(std::move(particles.value[next]));
      out.error.push_back(particles.error.empty() ? std::vector<double>{}
                                                  : std::move(particles.error[next]));
      ++next;
    }
  }
  add_inner_tails(out, inner);
  std::map<std::uint32_t, std::vector<double>> by_rounding;
  for (const RunResult& run : runs)
    for (const auto& [jump, entries] : run.by_rounding) {
      auto& all = by_rounding[jump];
      all.resize(entries.size());
      for (std::size_t j = 0; j < all.size(); ++j) all[j] = std::max(all[j], entries[j]);
    }
  if (!by_rounding.empty()) out.by_rounding = reached_from(program_, by_rounding);
  if (!limit_.source) return out;
  // Fewer runs may well all lie on the same side of a jump.
  constexpr std::size_t kJudges = 8;
  const bool exact = matched(runs);
  out.undetermined = tplimit::undetermined(
      *limit_.source, limit_.decisions,
      [&](NodeId id) {
        const Method method = method_of(id);
        return Numbers{&out.value[slot(id)],
                       method == Method::kExact && !known(id) ? &kNoError : &out.error[slot(id)],
                       method >= Method::kParticles && !(exact && proved_[id.value])};
      },
      runs.size() >= kJudges);
  if (out.failure && only_undetermined(out)) out.failure.reset();
  if (!out.failure) judge_open(out, runs, unresolved);
  return out;
}

void LimitEvaluation::judge_open(Pooled& out, const std::vector<RunResult>& runs,
                                 const std::vector<std::vector<double>>& unresolved) const {
  std::vector<NodeId> open;
  for_all_reported([&](NodeId of, NodeId value) {
    if (out.undetermined.open.any(of) && !known(value)) open.push_back(value);
  });
  if (open.empty()) return;
  std::sort(open.begin(), open.end());
  open.erase(std::unique(open.begin(), open.end()), open.end());
  std::vector<std::vector<double>> spread;
  if (runs.size() > 1) spread = spread_over_jumps(program_, atoms_, open, runs, unresolved);
  for_all_reported([&](NodeId of, NodeId value) {
    if (!out.undetermined.open.any(of) || known(value)) return;
    const auto& v = out.value[slot(value)];
    auto& e = out.error[slot(value)];
    for (std::size_t j = 0; j < v.size(); ++j) {
      if (!out.undetermined.open.holds(of, j)) continue;
      const double own =
          spread.empty()
              ? 0
              : spread[static_cast<std::size_t>(std::lower_bound(open.begin(), open.end(), value) -
                                                open.begin())][j];
      if (std::isfinite(v[j]) && std::isfinite(own)) {
        if (!e.empty()) e[j] = std::max(e[j], own);
        continue;
      }
      out.undetermined.at[of.value].resize(v.size(), 0);
      out.undetermined.at[of.value][j] = 1;
      if (!out.undetermined.root[of.value].valid())
        out.undetermined.root[of.value] = out.undetermined.open.root[of.value];
    }
  });
}

void LimitEvaluation::for_all_reported(
    const std::function<void(NodeId of, NodeId value)>& visit) const {
  for (std::size_t k = 0; k < program_.reports.size(); ++k)
    for (std::size_t i = 0; i < program_.reports[k].entries.size(); ++i)
      visit(limit_.source->reports[k].entries[i].value, program_.reports[k].entries[i].value);
  for (std::size_t k = 0; k < program_.expectations.size(); ++k)
    visit(limit_.source->expectations[k].difference, program_.expectations[k].difference);
}

bool LimitEvaluation::only_undetermined(const Pooled& pooled) const {
  bool out = true;
  const auto check = [&](NodeId of, NodeId value) {
    const auto &v = pooled.value[slot(value)], &e = pooled.error[slot(value)];
    for (std::size_t j = 0; j < v.size(); ++j)
      out = out && ((std::isfinite(v[j]) && (j >= e.size() || std::isfinite(e[j]))) ||
                    pooled.undetermined.holds(of, j) || pooled.undetermined.open.holds(of, j));
  };
  for_all_reported(check);
  for (const Decision& d : limit_.decisions)
    for (const NodeId id : d.operands) {
      const auto& v = pooled.value[slot(id)];
      const auto& in = (*limit_.source)[d.node].in;
      const auto reached = [&](NodeId x) {
        return pooled.undetermined.any(x) || pooled.undetermined.open.any(x);
      };
      out = out && (std::all_of(v.begin(), v.end(), [](double x) { return std::isfinite(x); }) ||
                    std::any_of(in.begin(), in.end(), reached));
    }
  return out;
}

}  // namespace tplimit
