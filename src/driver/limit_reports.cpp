#include "driver/limit_evaluation.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "driver/report_values.hpp"
#include "engines/finite_evaluator.hpp"

// Reports and expectations from pooled values.
namespace tplimit {

using namespace ir;
using engines::FiniteEvaluator;

std::size_t LimitEvaluation::slot(NodeId id) const {
  return static_cast<std::size_t>(std::lower_bound(outputs_.begin(), outputs_.end(), id) -
                                  outputs_.begin());
}

bool LimitEvaluation::covered(const Report& report) const {
  return options_.tolerance_on.empty() ||
         std::find(options_.tolerance_on.begin(), options_.tolerance_on.end(), report.name) !=
             options_.tolerance_on.end();
}

bool LimitEvaluation::undetermined(const Pooled& pooled, std::size_t k, std::size_t i,
                                   std::size_t j) const {
  const NodeId value = program_.reports[k].entries[i].value;
  return (limit_.source &&
          pooled.undetermined.holds(limit_.source->reports[k].entries[i].value, j)) ||
         (!known(value) && pooled.by_rounding.holds(value, j));
}

double LimitEvaluation::largest_reported(const std::vector<std::vector<double>>& errors,
                                         const Pooled& pooled) const {
  double out = 0;
  for (std::size_t k = 0; k < program_.reports.size(); ++k)
    for (std::size_t i = 0; covered(program_.reports[k]) && i < program_.reports[k].entries.size();
         ++i) {
      const auto& own = errors[slot(program_.reports[k].entries[i].value)];
      for (std::size_t j = 0; j < own.size(); ++j)
        if (!undetermined(pooled, k, i, j)) out = std::max(out, own[j]);
    }
  return out;
}

namespace {

/// Training whose reports grow beyond all that it could have been meant to do, though every number
/// is finite.
std::optional<Diagnostic> divergence(const Report& report, const ReportResult& r) {
  constexpr double kGrowth = 1e9;
  if (r.index_names.empty() || report.entries.size() < 2) return std::nullopt;
  const std::size_t size = r.value.size() / report.entries.size();
  double first = 1;
  for (std::size_t j = 0; j < size; ++j) first = std::max(first, std::abs(r.value[j]));
  for (std::size_t i = 1; i < report.entries.size(); ++i)
    for (std::size_t j = 0; j < size; ++j)
      if (std::abs(r.value[i * size + j]) > kGrowth * first)
        return Diagnostic::warning("W5405",
                                   fmt::format("training diverges: report '{}' grows to "
                                               "{:.1g}",
                                               report.name, std::abs(r.value[i * size + j])))
            .at(report.span)
            .with_label(fmt::format("at {} = {}", report.index_names.back(),
                                    report.entries[i].index.back()))
            .with_help(
                "a smaller learning rate; largest_rate(ntk(f, X)) is the largest stable one "
                "at the start");
  return std::nullopt;
}

}  // namespace

void LimitEvaluation::collect(Pooled pooled, LimitResult& out) const {
  bool told = false;  // of divergence
  std::vector<int> users(outputs_.size(), 0);
  for (const Report& report : program_.reports)
    for (const auto& entry : report.entries) ++users[slot(entry.value)];
  for (const Expectation& e : program_.expectations)
    for (const NodeId id : {e.left, e.right, e.difference}) ++users[slot(id)];
  for (const Report& report : program_.reports) {
    ReportResult r = result_of(report, pooled, users, out.engine.rank_tol);
    mark_undetermined(out.reports.size(), pooled, r, out.warnings);
    if (!program_.steps.empty() && !told)
      if (auto warning = divergence(report, r)) {
        out.warnings.push_back(std::move(*warning));
        told = true;
      }
    for (const double e : r.error)
      if (!std::isnan(e) && covered(report)) out.largest_error = std::max(out.largest_error, e);
    out.reports.push_back(std::move(r));
  }
  for (std::size_t k = 0; k < program_.expectations.size(); ++k)
    out.expectations.push_back(result_of(k, pooled));
}

/// users: how many read each output, of which the only one takes large results instead of copying
/// them.
ReportResult LimitEvaluation::result_of(const Report& report, Pooled& pooled,
                                        const std::vector<int>& users, double rank_tol) const {
  const auto append = [](std::vector<double>& to, std::vector<double>& from, bool last) {
    if (last && to.empty())
      to = std::move(from);
    else
      to.insert(to.end(), from.begin(), from.end());
  };
  ReportResult r = skeleton(program_, report);
  r.method = Method::kExact;
  bool eigen = false;
  for (const auto& entry : report.entries) {
    r.method = std::max(r.method, method_of(entry.value));
    eigen = eigen || eigenvalues_behind(program_, entry.value).has_value();
  }
  const bool sampled = r.method == Method::kSamples;
  for (const auto& entry : report.entries) {
    const std::size_t k = slot(entry.value);
    const bool last = users[k] == 1 && !eigen;
    append(r.value, pooled.value[k], last);
    if (method_of(entry.value) == Method::kExact && !sampled)
      r.error.resize(r.value.size(), 0.0);
    else if (!sampled)
      append(r.error, pooled.error[k], last);
    if (eigen)
      for (const double f : unresolved_eigenvalues(entry.value, pooled, rank_tol))
        r.unresolved.push_back(f != 0);
  }
  if (r.error.size() < r.value.size()) r.error.clear();  // one randomisation
  return r;
}

/// 1 for each entry that is an eigenvalue which its error does not tell from 0 or its neighbour.
std::vector<double> LimitEvaluation::unresolved_eigenvalues(NodeId entry, const Pooled& pooled,
                                                            double rank_tol) const {
  const auto e = eigenvalues_behind(program_, entry);
  if (!e) return std::vector<double>(pooled.value[slot(entry)].size(), 0.0);
  const std::size_t j = slot(*e);
  std::vector<double> flags =
      unresolved_flags(pooled.value[j], pooled.error[j], program_[*e].type.dims.back(), rank_tol);
  // Selections copy flags as they copy eigenvalues.
  if (*e != entry) flags = FiniteEvaluator(program_, {*e}, {entry}).evaluate({flags.data()})[0];
  return flags;
}

/// Of an `expect`, the entry that speaks most against it: failed, undecided, passed, and of these
/// the largest difference.
ExpectResult LimitEvaluation::result_of(std::size_t expectation, const Pooled& pooled) const {
  const Expectation& e = program_.expectations[expectation];
  if ((limit_.source &&
       pooled.undetermined.any(limit_.source->expectations[expectation].difference)) ||
      (!known(e.difference) && pooled.by_rounding.any(e.difference))) {
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    return {e.span,     program_.contexts[e.context], ExpectStatus::kUndecided, kNone, kNone, kNone,
            e.tolerance};
  }
  const std::size_t left = slot(e.left), right = slot(e.right), between = slot(e.difference);
  const bool random = method_of(e.difference) != Method::kExact;
  ExpectResult result{e.span,     program_.contexts[e.context], ExpectStatus::kPassed, 0, 0, 0,
                      e.tolerance};
  double worst = -1;
  for (std::size_t j = 0; j < pooled.value[left].size(); ++j) {
    const double a = pooled.value[left][j], b = pooled.value[right][j];
    const double error = !random                         ? 0
                         : pooled.error[between].empty() ? std::numeric_limits<double>::infinity()
                                                         : pooled.error[between][j];
    const double difference = std::abs(a - b);
    const ExpectStatus status = difference + 2 * error <= e.tolerance  ? ExpectStatus::kPassed
                                : difference > e.tolerance + 3 * error ? ExpectStatus::kFailed
                                                                       : ExpectStatus::kUndecided;
    const auto rank = [](ExpectStatus s) {
      return s == ExpectStatus::kFailed ? 2 : s == ExpectStatus::kUndecided ? 1 : 0;
    };
    if (rank(status) > rank(result.status) || (status == result.status && difference > worst)) {
      worst = difference;
      result.left = a;
      result.right = b;
      result.error = error;
      result.status = status;
    }
  }
  return result;
}

void LimitEvaluation::mark_undetermined(std::size_t k, const Pooled& pooled, ReportResult& r,
                                        Diagnostics& warnings) const {
  const Report& report = program_.reports[k];
  std::size_t at = 0;
  for (std::size_t i = 0; i < report.entries.size(); ++i) {
    const NodeId value = report.entries[i].value;
    const auto size = static_cast<std::size_t>(size_of(program_[value].type.dims));
    const bool any =
        (limit_.source && pooled.undetermined.any(limit_.source->reports[k].entries[i].value)) ||
        pooled.by_rounding.any(value);
    for (std::size_t j = 0; any && j < size; ++j) {
      if (!undetermined(pooled, k, i, j)) continue;
      r.value[at + j] = std::numeric_limits<double>::quiet_NaN();
      if (!r.error.empty()) r.error[at + j] = std::numeric_limits<double>::quiet_NaN();
      if (r.undetermined.empty())
        explain_undetermined(pooled,
                             limit_.source ? limit_.source->reports[k].entries[i].value : NodeId{},
                             value, j, report, r, warnings);
    }
    at += size;
  }
}

void LimitEvaluation::explain_undetermined(const Pooled& pooled, NodeId of, NodeId value,
                                           std::size_t j, const Report& report, ReportResult& r,
                                           Diagnostics& warnings) const {
  const Undetermined& u = pooled.undetermined;
  const bool at_limit = limit_.source && u.holds(of, j);
  const Program& program = at_limit ? *limit_.source : program_;
  const NodeId root = at_limit ? u.root[of.value] : pooled.by_rounding.root[value.value];
  const Node& jump = program[root];
  const Fn fn = std::get<Map>(jump.op).fn;
  const char* what = fn == Fn::kMod                            ? "floor"
                     : fn == Fn::kLess || fn == Fn::kLessEqual ? "a comparison"
                     : fn == Fn::kEqual                        ? "=="
                     : fn == Fn::kNotEqual                     ? "!="
                                                               : name(fn);
  if (!at_limit)
    r.undetermined = fmt::format(
        "{} jumps where its argument is 0 up to rounding: arithmetic in double precision does "
        "not decide",
        what);
  else if (u.any(root) && !u.open.any(root))
    r.undetermined = fmt::format(
        "{} jumps exactly at the limit: networks of any width lie on both sides, and stay random",
        what);
  else
    r.undetermined = fmt::format(
        "{} jumps within the error of the limit, and what follows is not finite on one side or "
        "needs 8 randomisations: more particles may decide",
        what);
  warnings.push_back(
      Diagnostic::warning("W5303",
                          fmt::format("report '{}' is undetermined in some entries", report.name))
          .at(report.span)
          .with_label(r.undetermined)
          .with_note("the jump" + (jump.context ? " (in the iteration " +
                                                      program.contexts[jump.context] + ")"
                                                : std::string()),
                     jump.span));
}

}  // namespace tplimit
