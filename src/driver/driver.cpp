#include "tplimit/driver/driver.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <deque>
#include <fstream>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <span>
#include <sstream>

#include <fmt/ranges.h>

#include "driver/sampling_error.hpp"
#include "engines/interpreter.hpp"
#include "engines/run_store.hpp"
#include "moments/engine.hpp"
#include "tplimit/data/table.hpp"
#include "tplimit/ir/function_traits.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/passes/batch.hpp"
#include "tplimit/passes/gaussian_outputs.hpp"
#include "tplimit/passes/graded.hpp"
#include "tplimit/passes/known_values.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit {

using namespace ir;
using engines::FiniteEvaluator;
using engines::RunFailure;
using engines::RunResult;
using engines::RunSettings;
using engines::Schedule;

/// Resident bytes of the first rank: what all decide by.
static double current_memory(const Communicator& ranks) {
  long pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  ranks.broadcast(std::as_writable_bytes(std::span(&resident, 1)), 0);
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

double peak_memory() {
  // Not ru_maxrss: a process inherits it from the one that started it.
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (double kilobytes = 0; word == "VmHWM:" && status >> kilobytes) return kilobytes * 1024;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

namespace {

Diagnostic diagnose(const Program& program, const RunFailure& failure);

Result<Program> ablated(Program program, const Ablations& ablations) {
  if (ablations.lazy) {
    Result<Program> lazy = linearised(program);
    if (!lazy) return lazy;
    program = std::move(*lazy);
  }
  if (!ablations.decouple.empty() || ablations.no_correction) return decoupled(program, ablations);
  return program;
}

}  // namespace

Result<Module> parse(Source source, const LowerOptions& options, const Ablations& ablations) {
  auto ast = parse_syntax(source);
  if (!ast) return ast.errors();
  auto lowered = lower(*ast, source, options);
  if (!lowered) return lowered.errors();
  verify(lowered->program);
  Module module;
  if (ablations.any()) {
    Result<Program> changed = ablated(std::move(lowered->program), ablations);
    if (!changed) return changed.errors();
    lowered->program = std::move(*changed);
    verify(lowered->program);
    module.ablations = ablations;
  }
  module.sha256 = sha256(source.text());
  module.constants = options.constants;
  module.program = erase_identities(lowered->program);
  verify(module.program);
  if (const auto node = certain_nan(module.program))
    return diagnose(module.program, {{"E4101", "", ""}, *node});
  module.written = std::make_shared<const Program>(std::move(lowered->program));
  module.warnings = std::move(lowered->warnings);
  if (!ablations.any()) module.kernels = std::move(lowered->kernels);
  module.source = std::move(source);
  return module;
}

Result<Source> read_source(const std::filesystem::path& file) {
  const auto unreadable = [&](std::string message, std::string help) {
    return Diagnostic{
        Severity::kError, "E5001", std::move(message), {}, "", std::move(help), {}, false};
  };
  constexpr std::size_t kMost = 16 << 20;  // devices have no end
  std::ifstream in(file, std::ios::binary);
  std::string text;
  std::array<char, 1 << 16> piece{};
  if (std::filesystem::is_directory(file)) in.setstate(std::ios::failbit);
  while (in && text.size() <= kMost && (in.read(piece.data(), piece.size()) || in.gcount() > 0))
    text.append(piece.data(), static_cast<std::size_t>(in.gcount()));
  if (text.size() > kMost)
    return unreadable(fmt::format("'{}' is no program: it is longer than 16 MiB", file.string()),
                      "large arrays belong in data files: data X = npy(\"FILE\")");
  if (!in.eof()) return unreadable(fmt::format("cannot read '{}'", file.string()), "");
  return Source(file.string(), std::move(text));
}

Result<Module> parse_file(const std::filesystem::path& file, LowerOptions options) {
  auto source = read_source(file);
  if (!source) return source.errors();
  options.base_directory = file.parent_path();
  return parse(std::move(*source), options);
}

std::string fingerprint(const Module& module) {
  return fmt::format("{} {:016x}", module.sha256, fingerprint(module.program));
}

namespace {

/// Where leading orders do not suffice, but covariances of random reports do.
struct CovarianceLimit {
  GaussianOutputs programs;
  LeadingOrder limit;
};
std::optional<CovarianceLimit> covariance_limit(const Program& program) {
  GaussianOutputs programs = gaussian_outputs(program, fluctuating_reports(program));
  if (programs.notes.empty()) return std::nullopt;
  Result<LeadingOrder> limit = leading_order(programs.limit);
  if (!limit) return std::nullopt;
  limit->warnings.insert(limit->warnings.begin(), programs.notes.begin(), programs.notes.end());
  return CovarianceLimit{std::move(programs), std::move(*limit)};
}

/// The limit of the program by leading orders; a report that tends to a Gaussian becomes its
/// covariance.  Where that is not enough, by graded values, conditional on random outputs drawn
/// from the seed.
Result<LeadingOrder> limit_of(const Program& written, const EvaluateOptions& options) {
  const Program program = cancel_terms(written);
  const GradedOptions graded{options.seed, options.draw, Exponent(1, 2), options.given};
  Result<LeadingOrder> limit = leading_order(program);
  // Graded values are no better where dropped terms decide on jumps.
  if (options.given && (limit || limit.errors()[0].code != "E3108"))
    return graded_limit(program, graded);
  if (limit && limit->undecided && program.steps.empty())
    if (Result<LeadingOrder> drawn = graded_limit(program, graded); drawn && drawn->random_outputs)
      return drawn;
  if (limit || limit.errors()[0].code != "E3102") return limit;
  if (auto covariances = covariance_limit(program)) return std::move(covariances->limit);
  return graded_limit(program, graded);
}

}  // namespace

Result<LeadingOrder> check(const Module& module) { return limit_of(module.program, {}); }

RegimeReport regime(const Module& module, bool every_share) {
  return count_powers(*module.written, every_share);
}

/// The networks' outputs for kernels of outputs, where a report is linear in these.
static void use_outputs(Module& module) {
  Program program = *module.written;
  Builder b(program);
  std::map<NodeId, NodeId> products;
  std::vector<NodeId> kernels;
  for (const OutputKernel& k : module.kernels)
    if (products.emplace(k.kernel, k.product).second) kernels.push_back(k.kernel);
  for (Report& report : program.reports) {
    const bool linear =
        std::all_of(report.entries.begin(), report.entries.end(),
                    [&](const auto& entry) { return linear_in(b, entry.value, kernels); });
    for (auto& entry : report.entries) {
      if (!linear || !depends_on(b, entry.value, kernels)) continue;
      b.set_origin(report.span, program[entry.value].context);
      entry.value = substituted(b, entry.value, products);
      report.random = true;
    }
  }
  module.program = erase_identities(program);
  verify(module.program);
}

Result<Module> conditioned(Module module, const GradedOptions::Given& given) {
  Program program = module.program;
  NodeId f;
  for (const NamedValue& named : program.names)
    if (named.name == given.name && named.kind == NamedValue::Kind::kValue &&
        (!f.valid() || named.value < f))
      f = named.value;
  const auto refused = [&](std::string message) {
    return Diagnostic{
        Severity::kError,
        "E3107",
        std::move(message),
        f.valid() ? program[f].span : Span{},
        "",
        "--given NAME=VALUE sets a random output such as v @ z / sqrt(n) at its first occurrence",
        {},
        f.valid()};
  };
  if (!f.valid()) return refused(fmt::format("no value '{}' reaches a report", given.name));
  Builder b(program);
  b.set_origin(program[f].span, program[f].context);
  const std::int64_t size = size_of(program[f].type.dims);
  std::vector<double> values = given.values;
  if (values.size() == 1) values.assign(static_cast<std::size_t>(size), values[0]);
  if (static_cast<std::int64_t>(values.size()) != size)
    return refused(
        fmt::format("'{}' has {} entries, given are {}", given.name, size, values.size()));
  const auto parts =
      b.type(f).width ? std::nullopt : readouts_of(b, f, readout_candidates(program));
  if (!parts) return refused(fmt::format("'{}' is not linear in an initial vector", given.name));
  const auto rows = [&](NodeId slope) {
    return b.reshape(slope, {size, size_of(b.type(slope).dims) / size});
  };
  NodeId covariance;
  for (const auto& [source, slope] : parts->slopes) {
    const NodeId own = b.scale(1, 1, b.contract(rows(slope), rows(slope), 0, 1, true));
    covariance = covariance.valid() ? b.plus(covariance, own) : own;
  }
  std::vector<double> unit(static_cast<std::size_t>(size * size), 0.0);
  for (std::int64_t k = 0; k < size; ++k) unit[static_cast<std::size_t>(k * size + k)] = 1;
  const NodeId inverse =
      b.add(TrainingOperator{1, std::numeric_limits<double>::infinity(), 0, false},
            {covariance, b.constant(std::move(unit), {size, size})});
  const NodeId missing =
      b.reshape(b.minus(b.constant(std::move(values), program[f].type.dims), f), {size});
  const NodeId weights = b.reshape(b.contract(inverse, missing, 0, 1, false), {1, size});
  std::map<NodeId, NodeId> moved;
  for (const auto& [source, slope] : parts->slopes)
    moved[source] =
        b.plus(source, b.reshape(b.contract(b.permute(rows(slope), {1, 0}), weights, 0, 1, false),
                                 b.type(source).dims));
  const auto follow = [&](NodeId& id) { id = substituted(b, id, moved); };
  for (Report& report : program.reports)
    for (auto& entry : report.entries) follow(entry.value);
  for (Expectation& e : program.expectations)
    for (NodeId* side : {&e.left, &e.right, &e.difference}) follow(*side);
  module.program = erase_identities(program);
  verify(module.program);
  return module;
}

Module comparable(Module module) {
  if (!module.kernels.empty()) use_outputs(module);
  if (leading_order(module.program)) return module;
  if (auto covariances = covariance_limit(module.program))
    module.program = std::move(covariances->programs.networks);
  return module;
}

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int thread_count(int asked, const Communicator& ranks) {
  return asked > 0 ? asked : ranks.threads();
}
double memory_limit(double asked, const Communicator& ranks) {
  return asked > 0 ? asked : 0.8 * ranks.memory();
}

std::string bytes_text(double bytes) {
  return bytes >= 1e9 ? fmt::format("{:.1f} GB", bytes / 1e9)
                      : fmt::format("{:.0f} MB", std::max(1.0, bytes / 1e6));
}

/// Counts finished runs and tells the caller, one call at a time.
class ProgressCounter {
 public:
  ProgressCounter(const Progress& progress, std::int64_t total)
      : progress_(progress), total_(total) {}
  void extend(std::int64_t more) {
    const std::scoped_lock lock(mutex_);
    total_ += more;
  }
  void finished() {
    const std::scoped_lock lock(mutex_);
    if (progress_) progress_(static_cast<double>(++done_) / static_cast<double>(total_));
  }

 private:
  const Progress& progress_;
  std::int64_t total_, done_ = 0;
  std::mutex mutex_;
};

/// Turns a stop of an engine into a diagnostic: which line, which iteration, which report is lost.
Diagnostic diagnose(const Program& program, const RunFailure& failure) {
  const Node& node = program[failure.node];
  Diagnostic d{Severity::kError,
               failure.stop.code,
               failure.stop.message,
               node.span,
               "",
               failure.stop.help,
               {},
               true};
  if (failure.stop.code == "E4101") {
    d.message = "a number is not finite (overflow, or an operation outside its domain)";
    d.label = "first seen here";
    d.help =
        "a smaller learning rate or initial variance often helps; log and sqrt need positive "
        "arguments";
  }
  if (node.context)
    d.notes.push_back({"in the iteration " + program.contexts[node.context], node.span});
  std::vector<bool> reached(program.size(), false);
  reached[failure.node.value] = true;
  for (std::size_t k = failure.node.value + 1; k < program.size(); ++k)
    for (const NodeId in : program.nodes[k].in) reached[k] = reached[k] || reached[in.value];
  for (const Report& report : program.reports)
    for (const auto& entry : report.entries)
      if (reached[entry.value.value]) {
        std::string index;
        for (std::size_t j = 0; j < entry.index.size(); ++j)
          index +=
              fmt::format("{}{} = {}", j ? ", " : " at ", report.index_names[j], entry.index[j]);
        d.notes.push_back(
            {fmt::format("it reaches report '{}' first{}", report.name, index), report.span});
        return d;
      }
  return d;
}

/// Runs of one program that differ in their random numbers.
struct RunSet {
  const Schedule* schedule;
  int count;
  RunSettings settings;
  const Executor* executor;  ///< also of the ranks over which the particles of each run are spread
  bool side_by_side;         ///< one thread for each run, not all for one after the other
  std::function<void(RunSettings&, std::int64_t)> prepare;  ///< sets what differs in run k
  Checkpoint* checkpoint;                                   ///< may be null

  [[nodiscard]] RunSettings settings_of(std::int64_t k) const {
    RunSettings own = settings;
    prepare(own, k);
    return own;
  }
};
using RunOutcome =
    std::variant<std::monostate, RunResult, RunFailure>;  ///< none if an earlier run failed

/// Those runs k for which mine(k).
template <class Mine>
std::vector<RunOutcome> run_some(const RunSet& set, Mine mine, ProgressCounter& progress) {
  std::vector<std::int64_t> todo;
  for (std::int64_t k = 0; k < set.count; ++k)
    if (mine(k)) todo.push_back(k);
  std::vector<RunOutcome> out(static_cast<std::size_t>(set.count));
  std::atomic<bool> stop = false;
  const std::uint64_t program = set.checkpoint ? fingerprint(*set.schedule->program) : 0;
  const Executor alone(1);
  const Executor& outer = set.side_by_side ? *set.executor : alone;
  outer.parallel(static_cast<std::int64_t>(todo.size()), [&](std::int64_t j) {
    if (stop) return;
    const std::int64_t k = todo[static_cast<std::size_t>(j)];
    const Executor single(1);  // of its own, to count its operations
    const Executor& inner = set.side_by_side ? single : *set.executor;
    const RunSettings own_settings = set.settings_of(k);
    auto outcome = set.checkpoint
                       ? set.checkpoint->runs().run(program, *set.schedule, own_settings, inner)
                       : engines::run_program(*set.schedule, own_settings, inner);
    if (std::holds_alternative<RunFailure>(outcome)) stop = true;
    std::visit([&](auto& own) { out[static_cast<std::size_t>(k)] = std::move(own); }, outcome);
    if (set.side_by_side) set.executor->count(single.operations());
    progress.finished();
  });
  engines::Buffer::release_pool();
  return out;
}

/// All results, or what went wrong in the first run that failed: it is repeated in trace mode to
/// find where the first bad number appears.
Result<std::vector<RunResult>> results_of(const RunSet& set, std::vector<RunOutcome> outcomes) {
  for (std::size_t k = 0; k < outcomes.size(); ++k) {
    auto* failure = std::get_if<RunFailure>(&outcomes[k]);
    if (!failure) continue;
    if (failure->stop.code == "E5206") return set.checkpoint->runs().interrupted();
    if (failure->stop.code == "E4101" ||
        failure->stop.code.empty()) {  // empty: a network of another rank
      RunSettings own = set.settings_of(static_cast<std::int64_t>(k));
      own.trace = true;
      auto traced = engines::run_program(*set.schedule, own, *set.executor);
      if (auto* earlier = std::get_if<RunFailure>(&traced)) *failure = *earlier;
    }
    return diagnose(*set.schedule->program, *failure);
  }
  std::vector<RunResult> results;
  for (RunOutcome& outcome : outcomes) results.push_back(std::move(std::get<RunResult>(outcome)));
  return results;
}

/// The averages that outputs are computed from: nodes with coordinates behind them and only finite
/// operations after.
std::vector<NodeId> atoms_of(const Program& program, const std::vector<NodeId>& outputs) {
  std::vector<bool> seen(program.size(), false);
  std::vector<NodeId> stack = outputs, atoms;
  while (!stack.empty()) {
    const NodeId id = stack.back();
    stack.pop_back();
    if (seen[id.value]) continue;
    seen[id.value] = true;
    const Node& node = program[id];
    if (is_average(node.op) || std::holds_alternative<Samples>(node.op))
      atoms.push_back(id);
    else
      stack.insert(stack.end(), node.in.begin(), node.in.end());
  }
  std::sort(atoms.begin(), atoms.end());
  return atoms;
}

/// Shape and index values of a report; values are filled in by the caller.
ReportResult skeleton(const Program& program, const Report& report) {
  ReportResult out;
  out.name = report.name;
  out.span = report.span;
  out.index_names = report.index_names;
  out.random = report.random;
  for (std::size_t k = 0; k < report.index_names.size(); ++k) {
    std::set<std::int64_t> values;
    for (const auto& entry : report.entries) values.insert(entry.index[k]);
    out.index_values.emplace_back(values.begin(), values.end());
    out.shape.push_back(static_cast<std::int64_t>(values.size()));
  }
  if (!report.entries.empty())
    for (const auto d : program[report.entries[0].value].type.dims) out.shape.push_back(d);
  return out;
}

/// The Eigvals node behind a report, if only selections stand between.
std::optional<NodeId> eigenvalues_behind(const Program& program, NodeId id) {
  for (;;) {
    const Node& node = program[id];
    if (std::holds_alternative<Eigvals>(node.op)) return id;
    if (!std::holds_alternative<Gather>(node.op) && !std::holds_alternative<Reshape>(node.op))
      return std::nullopt;
    id = node.in[0];
  }
}

/// "An eigenvalue within 3 errors of 0 or of its neighbour, or below rank_tol^2 times the largest,
/// is not resolved."
std::vector<double> unresolved_flags(const std::vector<double>& values,
                                     const std::vector<double>& errors, std::int64_t count,
                                     double rank_tol) {
  std::vector<double> flags(values.size(), 0.0);
  const auto k = static_cast<std::size_t>(count);
  for (std::size_t base = 0; base < values.size(); base += k) {
    double largest = 0;
    for (std::size_t i = 0; i < k; ++i) largest = std::max(largest, std::abs(values[base + i]));
    for (std::size_t i = 0; i < k; ++i) {
      const double v = values[base + i], e = errors.empty() ? 0 : errors[base + i];
      bool bad = std::abs(v) <= 3 * e || std::abs(v) < rank_tol * rank_tol * largest;
      for (const std::size_t j : {i - 1, i + 1})
        if (j < k)
          bad = bad || std::abs(values[base + j] - v) <=
                           3 * std::hypot(e, errors.empty() ? 0 : errors[base + j]);
      flags[base + i] = bad ? 1 : 0;
    }
  }
  return flags;
}

bool all_finite(std::span<const std::vector<double>> values) {
  return std::all_of(values.begin(), values.end(), [](const auto& v) {
    return std::all_of(v.begin(), v.end(), [](double x) { return std::isfinite(x); });
  });
}

/// The first finite node behind `wanted` with a value that is not finite, given the averages.
RunFailure first_not_finite(const Program& program, const std::vector<NodeId>& atoms,
                            const std::vector<NodeId>& wanted,
                            const std::vector<const double*>& given) {
  std::vector<bool> behind(program.size(), false);
  for (const NodeId id : wanted) behind[id.value] = true;
  std::vector<NodeId> nodes;
  for (std::size_t k = program.size(); k-- > 0;) {
    if (!behind[k]) continue;
    nodes.push_back({static_cast<std::uint32_t>(k)});
    if (!std::binary_search(atoms.begin(), atoms.end(), nodes.back()))
      for (const NodeId in : program.nodes[k].in) behind[in.value] = true;
  }
  std::reverse(nodes.begin(), nodes.end());
  const auto values = FiniteEvaluator(program, atoms, nodes).evaluate(given);
  for (std::size_t k = 0; k < nodes.size(); ++k)
    // An infinite constant may be meant, as in max(x, -inf).
    if (!std::holds_alternative<Constant>(program[nodes[k]].op) && !all_finite({&values[k], 1}))
      return {{"E4101", "a number is not finite", ""}, nodes[k]};
  return {{"E4101", "a number is not finite", ""},
          wanted.empty() ? program.reports.front().entries.front().value : wanted.front()};
}

/// Values of finite nodes from averages pooled over runs, errors by jackknife over runs and from
/// what the runs do not resolve.
struct Pooled {
  std::vector<std::vector<double>> value, error;
  Undetermined undetermined;          ///< of the program whose limit this is
  Marks by_rounding;                  ///< of the limit program
  std::optional<RunFailure> failure;  ///< a value is not finite, or not everywhere within its error
};
/// Adds in squares what the values change by if each average is off by its unresolved error, with
/// random signs.
template <class Evaluate>
void add_unresolved(Pooled& out, const std::vector<std::vector<double>>& mean,
                    const std::vector<std::vector<double>>& unresolved, Evaluate evaluate_at) {
  constexpr int kRepeats = 8;
  if (std::all_of(unresolved.begin(), unresolved.end(), [](const auto& e) {
        return std::all_of(e.begin(), e.end(), [](double x) { return x == 0; });
      }))
    return;
  std::vector<std::vector<std::vector<double>>> changed;
  for (std::uint64_t k = 0; k < kRepeats; ++k) {
    std::vector<std::vector<double>> at = mean;
    for (std::size_t a = 0; a < at.size(); ++a)
      for (std::size_t j = 0; j < at[a].size(); ++j)
        at[a][j] += (mix_key(mix_key(k, a), j) & 1 ? 1 : -1) * unresolved[a][j];
    changed.push_back(evaluate_at(at));
  }
  for (std::size_t w = 0; w < out.error.size(); ++w)
    for (std::size_t j = 0; j < out.error[w].size(); ++j) {
      double squares = 0, count = 0;
      for (const auto& values : changed)
        if (std::isfinite(values[w][j])) {  // else beyond the edge of a domain
          squares += std::pow(values[w][j] - out.value[w][j], 2);
          ++count;
        }
      if (count > 0) out.error[w][j] = std::hypot(out.error[w][j], std::sqrt(squares / count));
    }
}

/// Of each average over the runs.
std::vector<std::vector<double>> means_of(const Program& program, const std::vector<NodeId>& atoms,
                                          const std::vector<RunResult>& runs) {
  const std::size_t count = runs.size();
  std::vector<std::vector<double>> mean(atoms.size());
  for (std::size_t a = 0; a < atoms.size(); ++a) {
    mean[a].assign(runs[0].values[a].size(), 0.0);
    if (const auto* samples = std::get_if<Samples>(&program[atoms[a]].op)) {
      // Draws are not averaged: each run gives some of them.
      for (std::size_t j = 0; j < mean[a].size(); ++j) {
        const std::size_t i = j % static_cast<std::size_t>(samples->count);
        mean[a][j] = runs[i % count].values[a][j - i + i / count];
      }
      continue;
    }
    for (const RunResult& run : runs)
      for (std::size_t j = 0; j < mean[a].size(); ++j) mean[a][j] += run.values[a][j];
    for (double& x : mean[a]) x /= static_cast<double>(count);
  }
  return mean;
}

/// What values that jump change by, as root mean squares, if averages are off by their errors as
/// they came out together: with factors g / sqrt(R (R - 1)) for the deviation of each of R runs, g
/// normal.  So values of sums over many jumps have the errors of what decides.  Errors are
/// taken 2.5 times as large, so that a jump that lies within 5 of them is crossed, in 2 of 100
/// draws or more.
std::vector<std::vector<double>> spread_over_jumps(
    const Program& program, const std::vector<NodeId>& atoms, const std::vector<NodeId>& wanted,
    const std::vector<RunResult>& runs, const std::vector<std::vector<double>>& unresolved) {
  constexpr int kDraws = 256;
  constexpr double kStretch = 2.5;
  const auto mean = means_of(program, atoms, runs);
  FiniteEvaluator tail(program, atoms, wanted);
  const auto evaluate_at = [&](const std::vector<std::vector<double>>& at) {
    std::vector<const double*> given;
    for (const auto& v : at) given.push_back(v.data());
    return tail.evaluate(given);
  };
  const auto centre = evaluate_at(mean);
  std::vector<std::vector<double>> squares;
  for (const auto& v : centre) squares.emplace_back(v.size(), 0.0);
  const double r = static_cast<double>(runs.size());
  std::vector<double> normals(runs.size());
  for (std::uint64_t k = 0; k < kDraws; ++k) {
    plain_normals(mix_key(0x6a756d70ULL, k), 0, normals);
    auto at = mean;
    for (std::size_t a = 0; a < atoms.size(); ++a) {
      if (std::holds_alternative<Samples>(program[atoms[a]].op)) continue;
      for (std::size_t j = 0; j < at[a].size(); ++j) {
        double change = (mix_key(mix_key(k, a), j) & 1 ? 1 : -1) * unresolved[a][j];
        for (std::size_t i = 0; i < runs.size(); ++i)
          change += normals[i] * (runs[i].values[a][j] - mean[a][j]) / std::sqrt(r * (r - 1));
        at[a][j] += kStretch * change;
      }
    }
    const auto values = evaluate_at(at);
    for (std::size_t w = 0; w < values.size(); ++w)
      for (std::size_t j = 0; j < values[w].size(); ++j)
        squares[w][j] += std::pow(values[w][j] - centre[w][j], 2) / kDraws;
  }
  for (auto& v : squares)
    for (double& x : v) x = std::sqrt(x);
  return squares;
}

Pooled pool(const Program& program, const std::vector<NodeId>& atoms,
            const std::vector<NodeId>& wanted, const std::vector<RunResult>& runs,
            const std::vector<std::vector<double>>& unresolved) {
  FiniteEvaluator tail(program, atoms, wanted);
  const std::size_t count = runs.size();
  const auto mean = means_of(program, atoms, runs);
  const auto evaluate_at = [&](const std::vector<std::vector<double>>& at) {
    std::vector<const double*> given;
    for (const auto& v : at) given.push_back(v.data());
    return tail.evaluate(given);
  };
  Pooled out;
  out.value = evaluate_at(mean);
  // Where it is undetermined, nobody asks for the value: the others are needed.
  const auto fail_at = [&](const std::vector<std::vector<double>>& at) {
    std::vector<const double*> given;
    for (const auto& v : at) given.push_back(v.data());
    if (!out.failure) out.failure = first_not_finite(program, atoms, wanted, given);
  };
  if (!all_finite(out.value)) fail_at(mean);
  if (count < 2) return out;
  const double r = static_cast<double>(count);
  std::vector<std::vector<double>> sum, sum_of_squares;
  for (const auto& v : out.value) {
    sum.emplace_back(v.size(), 0.0);
    sum_of_squares.emplace_back(v.size(), 0.0);
  }
  std::vector<std::vector<double>> without(atoms.size());
  for (const RunResult& run : runs) {
    for (std::size_t a = 0; a < atoms.size(); ++a) {
      without[a] = mean[a];
      if (std::holds_alternative<Samples>(program[atoms[a]].op)) continue;
      for (std::size_t j = 0; j < mean[a].size(); ++j)
        without[a][j] += (mean[a][j] - run.values[a][j]) / (r - 1);
    }
    const auto values = evaluate_at(without);
    if (!all_finite(values)) fail_at(without);
    for (std::size_t w = 0; w < values.size(); ++w)
      for (std::size_t j = 0; j < values[w].size(); ++j) {
        const double d = values[w][j] - out.value[w][j];
        sum[w][j] += d;
        sum_of_squares[w][j] += d * d;
      }
  }
  for (std::size_t w = 0; w < sum.size(); ++w) {
    out.error.emplace_back();
    for (std::size_t j = 0; j < sum[w].size(); ++j)
      out.error[w].push_back(std::sqrt(
          std::max(0.0, (sum_of_squares[w][j] - sum[w][j] * sum[w][j] / r) * (r - 1) / r)));
  }
  add_unresolved(out, mean, unresolved, evaluate_at);
  return out;
}

/// Runs of up to this many particles are too short to be divided among threads well: they run side
/// by side.
constexpr std::int64_t kSideBySide = 16384;

class LimitEvaluation {
 public:
  /// `only_methods`: to say which method a report needs; nothing can be run.
  LimitEvaluation(const LeadingOrder& limit, const EvaluateOptions& options,
                  bool only_methods = false)
      : limit_(limit),
        program_(limit.program),
        options_(options),
        threads_(thread_count(options.threads, *options.ranks)) {
    outputs_ = outputs_of(program_);
    for (const Report& report : program_.reports)
      for (const auto& entry : report.entries)
        if (const auto e = eigenvalues_behind(program_, entry.value)) outputs_.push_back(*e);
    for (const Decision& d : limit.decisions) {
      outputs_.insert(outputs_.end(), d.operands.begin(), d.operands.end());
      if (d.margin.valid()) outputs_.push_back(d.margin);
    }
    std::sort(outputs_.begin(), outputs_.end());
    outputs_.erase(std::unique(outputs_.begin(), outputs_.end()), outputs_.end());
    find_moments(only_methods);
    std::vector<NodeId> left;  // for particles
    for (const NodeId id : outputs_)
      if (!known(id)) left.push_back(id);
    atoms_ = atoms_of(program_, left);
    base_memory_ = current_memory(*options.ranks);
    schedule_ = engines::make_schedule(program_, atoms_);
    proved_ = proved_by_matching(program_);
    // What depends on no average is exact.
    random_.assign(program_.size(), false);
    sampled_.assign(program_.size(), false);
    for (std::size_t k = 0; k < program_.size(); ++k) {
      const Op& op = program_.nodes[k].op;
      random_[k] = is_average(op) || std::holds_alternative<Samples>(op);
      sampled_[k] = std::holds_alternative<Samples>(op);
      for (const NodeId in : program_.nodes[k].in) {
        random_[k] = random_[k] || random_[in.value];
        sampled_[k] = sampled_[k] || (!program_.nodes[k].type.width && sampled_[in.value]);
      }
    }
  }

  /// How well the particles stand for the limit.
  struct Resolution {
    std::int64_t particles;
    double rank_tol;
  };

  /// `target`: an error that is aimed at; where sampling alone misses it, only that is found out
  /// and `promising` is false.
  struct Outcome {
    LimitResult result;
    bool promising = true;
  };
  Result<Outcome> run(const Resolution& resolution, std::optional<double> target,
                      ProgressCounter& progress) {
    const std::int64_t particles = particles_ = resolution.particles;
    if (auto refused = too_many_samples(particles)) return *refused;
    if (auto refused = too_few_particles(particles)) return *refused;
    const double most = memory_limit(options_.memory_bytes, *options_.ranks);
    if (const double bytes = memory(resolution, options_.randomisations); bytes > most)
      return Diagnostic{
          Severity::kError,
          "E4202",
          fmt::format("the run needs up to {} of memory{}, but {} may be used", bytes_text(bytes),
                      options_.ranks->size() > 1 ? " on each rank" : "", bytes_text(most)),
          {},
          "",
          "use fewer --particles, a larger --rank-tol, or raise --memory",
          {},
          false};
    const Traffic before = options_.ranks->traffic();
    LimitResult out;
    out.engine = {"particles",         particles, options_.randomisations, options_.seed, threads_,
                  resolution.rank_tol, 0};
    out.engine.single_precision = options_.single_precision;
    out.engine.merge_rows = options_.merge_rows;
    out.engine.ranks = options_.ranks->size();
    if (moments_) {
      out.engine.rows_merged = moments_->rows_merged();
      out.engine.clamped = moments_->largest_excess();
    }
    const int count = atoms_.empty() ? 1 : options_.randomisations;
    const auto one = [&](std::int64_t k) { return std::vector{key(k)}; };
    auto runs = run_particles(resolution, count, one, progress);
    if (!runs) return with_advice(runs.errors());
    bool stopped = false;
    double dropped = 0;
    for (const RunResult& run : *runs) {
      stopped = stopped || run.matching_stopped;
      dropped = std::max(dropped, run.largest_dropped);
      out.engine.largest_rank = std::max(out.engine.largest_rank, run.largest_rank());
    }
    ranks_ = {resolution.rank_tol, runs->front().ranks};
    if (auto unresolved = judge_tails(unresolved_by(*runs).tails, out.warnings)) return *unresolved;
    out.engine.memory_estimate = base_memory_ + memory(resolution, options_.randomisations);
    if (target && count > 1) {
      const Pooled first = with_moments(*runs);
      if (first.failure) return diagnose(program_, *first.failure);
      out.engine.sampling_error = largest_reported(first.error, first);
      if (out.engine.sampling_error > *target) return Outcome{std::move(out), false};
    }
    std::vector<std::vector<double>> truncation;
    // Below 1e-5 of its vector, what was dropped cannot be told from the errors of sampling.
    if (count > 1 && dropped > 1e-5) {
      auto error = truncation_error(resolution, *runs, progress);
      if (!error) return error.errors();
      truncation = std::move(*error);
    }
    // What linear algebra proves has no other error, and shows directions that were dropped as
    // rounding.
    std::vector<std::vector<double>> of_proved;
    if (resolution.rank_tol > 0 && count > 1)
      of_proved = truncation_of_proved(resolution, runs->front(),
                                       std::max(dropped, resolution.rank_tol), progress);
    if (stopped)
      out.warnings.push_back(
          {Severity::kWarning,
           "W5401",
           fmt::format("moment matching stopped: too many directions (rank {}) for {} particles",
                       out.engine.largest_rank, particles),
           {},
           "",
           "raise --particles for smaller errors",
           {},
           false});
    // The bias is of order rank / particles, the standard error of order (particles *
    // randomisations)^(-1/2): from here on their ratio is no longer small (docs/theory.md, "Bias at
    // high rank").
    const double rank = static_cast<double>(out.engine.largest_rank),
                 bias = rank / static_cast<double>(particles);
    if (rank * rank * count > 4 * static_cast<double>(particles)) {
      const Resolution twice{2 * particles, resolution.rank_tol};
      if (count > 1 && memory(twice, (count + 1) / 2) <= most) {
        out.engine.memory_estimate =
            std::max(out.engine.memory_estimate, base_memory_ + memory(twice, (count + 1) / 2));
        const int pairs = (count + 1) / 2;
        progress.extend(pairs);
        auto joined = run_particles(
            twice, pairs,
            [&](std::int64_t k) {
              return std::vector{key(2 * k), key((2 * k + 1) % count)};
            },
            progress);
        if (!joined) return joined.errors();
        extrapolate(*runs, *joined);
        out.engine.extrapolated = true;
      } else {
        out.warnings.push_back(
            {Severity::kWarning,
             "W5402",
             fmt::format("errors do not contain the bias, which is of relative order rank / "
                         "particles = {:.1g}",
                         bias),
             {},
             "",
             count > 1 ? "raise --memory: runs of twice the particles remove it"
                       : "use 2 randomisations or more: then it is removed by extrapolation",
             {},
             false});
      }
    }
    Pooled pooled = with_moments(*runs);
    if (pooled.failure) return diagnose(program_, *pooled.failure);
    out.engine.sampling_error = largest_reported(pooled.error, pooled);
    if (truncation.empty()) truncation = std::move(of_proved);
    for (std::size_t k = 0; k < of_proved.size(); ++k)
      for (std::size_t j = 0; j < of_proved[k].size(); ++j)
        truncation[k][j] = std::max(truncation[k][j], of_proved[k][j]);
    if (!truncation.empty()) out.engine.truncation_error = largest_reported(truncation, pooled);
    for (std::size_t k = 0; k < truncation.size(); ++k)
      for (std::size_t j = 0; j < pooled.error[k].size(); ++j)
        pooled.error[k][j] = std::hypot(pooled.error[k][j], truncation[k][j]);
    collect(std::move(pooled), out);
    out.engine.product_flops = executor_->operations();
    out.engine.sums = options_.ranks->traffic().sums - before.sums;
    out.engine.sum_bytes = options_.ranks->traffic().bytes - before.bytes;
    return Outcome{std::move(out)};
  }

  /// E4203: particles are drawn without repeats.
  [[nodiscard]] std::optional<Diagnostic> too_many_samples(std::int64_t particles) const {
    for (const NodeId id : atoms_)
      if (const auto* samples = std::get_if<Samples>(&program_[id].op);
          samples && samples->count > particles * options_.randomisations)
        return diagnose(program_,
                        {{"E4203",
                          fmt::format("{} samples are asked for, but there are {} particles",
                                      samples->count, particles * options_.randomisations),
                          "ask for fewer samples, or use more --particles or --randomisations"},
                         id});
    return std::nullopt;
  }

  /// E4102 for the first report with an infinite mean, E4301 for the first that the asked engine
  /// cannot do.
  [[nodiscard]] std::optional<Diagnostic> refusal() const {
    for (const Report& report : program_.reports)
      for (const auto& entry : report.entries) {
        if (!moments_ || known(entry.value)) continue;
        const moments::MomentValue& v = (*moments_)[entry.value];
        if (!v.infinite) continue;
        Diagnostic d{
            Severity::kError,
            "E4102",
            fmt::format("report '{}' needs a mean that is infinite, or too heavy to compute",
                        report.name),
            report.span,
            v.why,
            "samples would print a number that means nothing; bound what is averaged",
            {},
            true};
        if (program_[v.culprit].span != report.span)
          d.notes.push_back({"because of this", program_[v.culprit].span});
        return d;
      }
    if (options_.engine != Engine::kExact && options_.engine != Engine::kMoments)
      return std::nullopt;
    const Method weakest = options_.engine == Engine::kExact ? Method::kExact : Method::kQuadrature;
    for (const Report& report : program_.reports) {
      const ReportMethod m = method_of(report);
      if (m.method <= weakest) continue;
      Diagnostic d{Severity::kError,
                   "E4301",
                   fmt::format("report '{}' is beyond the engine '{}'", report.name,
                               options_.engine == Engine::kExact ? "exact" : "moments"),
                   report.span,
                   m.why,
                   "use --engine auto",
                   {},
                   true};
      if (m.culprit != report.span)
        d.notes.push_back({m.iteration.empty() ? "because of this"
                                               : "because of this, in the iteration " + m.iteration,
                           m.culprit});
      return d;
    }
    return std::nullopt;
  }

  [[nodiscard]] ReportMethod method_of(const Report& report) const {
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

  /// Directions of one matrix and side if none were dropped.
  [[nodiscard]] std::int64_t most_directions() const {
    std::int64_t out = 0;
    for (const auto& d : schedule_.spaces.directions) out = std::max({out, d[0], d[1]});
    return out;
  }

 private:
  /// By the tolerance.
  [[nodiscard]] bool covered(const Report& report) const {
    return options_.tolerance_on.empty() ||
           std::find(options_.tolerance_on.begin(), options_.tolerance_on.end(), report.name) !=
               options_.tolerance_on.end();
  }

  /// Entry j of value i of report k.
  [[nodiscard]] bool undetermined(const Pooled& pooled, std::size_t k, std::size_t i,
                                  std::size_t j) const {
    const NodeId value = program_.reports[k].entries[i].value;
    return (limit_.source &&
            pooled.undetermined.holds(limit_.source->reports[k].entries[i].value, j)) ||
           (!known(value) && pooled.by_rounding.holds(value, j));
  }
  /// Over all entries of reports that the tolerance covers, of errors of outputs.
  [[nodiscard]] double largest_reported(const std::vector<std::vector<double>>& errors,
                                        const Pooled& pooled) const {
    double out = 0;
    for (std::size_t k = 0; k < program_.reports.size(); ++k)
      for (std::size_t i = 0;
           covered(program_.reports[k]) && i < program_.reports[k].entries.size(); ++i) {
        const auto& own = errors[slot(program_.reports[k].entries[i].value)];
        for (std::size_t j = 0; j < own.size(); ++j)
          if (!undetermined(pooled, k, i, j)) out = std::max(out, own[j]);
      }
    return out;
  }

  /// Dropping directions leaves an error that grows at least in proportion to rank_tol: half of
  /// what a threefold rank_tol changes, in the same randomisations, whose errors of sampling nearly
  /// cancel.
  Result<std::vector<std::vector<double>>> truncation_error(const Resolution& resolution,
                                                            const std::vector<RunResult>& runs,
                                                            ProgressCounter& progress) {
    const int count = (static_cast<int>(runs.size()) + 1) / 2;
    progress.extend(count);
    auto coarse = run_particles(
        {resolution.particles, std::min(0.5, 3 * resolution.rank_tol)}, count,
        [&](std::int64_t k) { return std::vector{key(k)}; }, progress);
    if (!coarse) return coarse.errors();
    const Pooled fine = with_moments({runs.begin(), runs.begin() + count}),
                 rough = with_moments(*coarse);
    for (const Pooled* pooled : {&fine, &rough})
      if (pooled->failure) return diagnose(program_, *pooled->failure);
    std::vector<std::vector<double>> out = rough.value;
    for (std::size_t k = 0; k < out.size(); ++k)
      for (std::size_t j = 0; j < out[k].size(); ++j)
        out[k][j] = std::abs(out[k][j] - fine.value[k][j]) / 2;
    return out;
  }

  /// For outputs that only dropped directions make inexact: the change if a thousand times smaller
  /// ones are kept.  They are the same in all randomisations, one suffices.  Where it needs too
  /// many directions, an estimate.
  [[nodiscard]] std::vector<std::vector<double>> truncation_of_proved(const Resolution& resolution,
                                                                      const RunResult& run,
                                                                      double dropped,
                                                                      ProgressCounter& progress) {
    std::vector<bool> behind_matrix(program_.size(), false);
    for (std::size_t k = 0; k < program_.size(); ++k) {
      behind_matrix[k] = std::holds_alternative<MatMul>(program_.nodes[k].op);
      for (const NodeId in : program_.nodes[k].in)
        behind_matrix[k] = behind_matrix[k] || behind_matrix[in.value];
    }
    const auto concerned = [&](NodeId id) {
      return !known(id) && proved_[id.value] && behind_matrix[id.value];
    };
    if (run.matching_stopped || std::none_of(outputs_.begin(), outputs_.end(), concerned))
      return {};
    const Resolution finest{resolution.particles, 1e-3 * resolution.rank_tol};
    Result<std::vector<RunResult>> fine = Diagnostics{};
    if (engines::estimate_memory(schedule_, settings(finest), options_.ranks->size()) <=
        memory_limit(options_.memory_bytes, *options_.ranks)) {
      progress.extend(1);
      fine = run_particles(
          finest, 1, [&](std::int64_t) { return std::vector{key(0)}; }, progress);
    }
    const Pooled own = with_moments({run}), finer = fine ? with_moments(*fine) : Pooled{};
    std::vector<std::vector<double>> out;
    for (std::size_t k = 0; k < outputs_.size(); ++k) {
      out.emplace_back(own.value[k].size(), 0.0);
      for (std::size_t j = 0; j < out[k].size() && concerned(outputs_[k]); ++j)
        out[k][j] = fine && !finer.failure ? std::abs(own.value[k][j] - finer.value[k][j])
                                           : dropped * std::abs(own.value[k][j]);
    }
    return out;
  }

  /// Everything that needs no sampling.
  void find_moments(bool only_methods) {
    executor_.emplace(threads_, *options_.ranks);
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
  [[nodiscard]] bool may_be_infinite() const {
    return std::any_of(program_.nodes.begin(), program_.nodes.end(),
                       [&](const Node& node) { return may_have_heavy_tails(program_, node); });
  }
  /// Of moments where particles can do the same, or find out that they must: half of the cost of
  /// the particles, but for small programs.
  [[nodiscard]] moments::MomentEngine::Budget budget(bool only_methods) const {
    constexpr double kEvaluation = 20;  // operations of one
    constexpr double kCheaper = 4;      // operations of moments in the time of one of particles, of
                                        // bench/cliffs/linear_residual.tp
    moments::MomentEngine::Budget out{1e7, 1e9};
    if (only_methods) {
      if (options_.engine != Engine::kAuto)
        out.operations = std::numeric_limits<double>::infinity();
      return out;
    }
    const Schedule all = engines::make_schedule(program_, atoms_of(program_, outputs_));
    const std::int64_t particles =
        options_.particles.value_or(options_.tolerance ? 2048 : kDefaultParticles);
    const double cost = options_.randomisations * engines::estimate_operations(all, particles);
    return {std::max(2e6, 0.25 * cost / kEvaluation), std::max(1e9, kCheaper * 0.5 * cost)};
  }
  [[nodiscard]] bool known(NodeId id) const { return moments_ && (*moments_)[id].known(); }
  [[nodiscard]] Method method_of(NodeId id) const {
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
  /// Once matching stops, nothing is exact.
  [[nodiscard]] static bool matched(const std::vector<RunResult>& runs) {
    return std::none_of(runs.begin(), runs.end(),
                        [](const RunResult& run) { return run.matching_stopped; });
  }
  [[nodiscard]] Unresolved unresolved_by(const std::vector<RunResult>& runs) const {
    return unresolved(program_, atoms_, runs,
                      matched(runs) ? proved_ : std::vector<bool>(program_.size(), false),
                      particles_);
  }

  /// W5403 for averages with heavy tails; E4102 if one is not resolved.
  [[nodiscard]] std::optional<Diagnostic> judge_tails(const std::vector<HeavyTail>& tails,
                                                      Diagnostics& warnings) const {
    for (const HeavyTail& tail : tails) {
      const bool product = std::holds_alternative<MatMul>(program_[tail.average].op),
                 resolved = tail.resolved && !(tail.relative > 1);
      const char* what = product ? "the mean square of this vector" : "this mean";
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
          fmt::format(
              "{} is infinite, or made by terms so rare that the particles do not show them", what),
          "a mean exists if P(term > t) falls faster than 1/t; if it does, use far more "
          "--particles"};
      Diagnostic d = diagnose(program_, {resolved ? heavy : infinite,
                                         product ? program_[tail.average].in[1] : tail.average});
      d.label =
          fmt::format("P({} > t) falls like t^-{:.1f}", product ? "square" : "term", tail.index);
      if (!resolved) return d;
      d.severity = Severity::kWarning;
      // One for each place in the text.
      if (std::none_of(warnings.begin(), warnings.end(),
                       [&](const Diagnostic& w) { return w.code == d.code && w.span == d.span; }))
        warnings.push_back(std::move(d));
    }
    return std::nullopt;
  }
  /// Of what follows averages with heavy tails, as if in proportion to them.
  void add_inner_tails(Pooled& out, const std::vector<HeavyTail>& tails) const {
    for (const HeavyTail& tail : tails) {
      const Marks reached = reached_from(
          program_,
          {{tail.average.value,
            std::vector<double>(static_cast<std::size_t>(size_of(program_[tail.average].type.dims)),
                                1.0)}});
      for (std::size_t k = 0; k < outputs_.size(); ++k)
        for (std::size_t j = 0; j < out.error[k].size() && !known(outputs_[k]); ++j)
          if (reached.holds(outputs_[k], j))
            out.error[k][j] =
                std::hypot(out.error[k][j], tail.relative * std::abs(out.value[k][j]));
    }
  }

  /// Values and errors of all outputs: known moments, and averages over the runs.
  [[nodiscard]] Pooled with_moments(const std::vector<RunResult>& runs) {
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
          out.failure =
              RunFailure{{"E4101", "a number is not finite", ""}, moments_->first_not_finite()};
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

  /// Errors of what sampling leaves open; undetermined where it is not finite on one side, as 1 /
  /// step(..).
  void judge_open(Pooled& out, const std::vector<RunResult>& runs,
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
                : spread[static_cast<std::size_t>(
                      std::lower_bound(open.begin(), open.end(), value) - open.begin())][j];
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
  /// With the value in the program whose limit this is.
  template <class Visit>
  void for_all_reported(Visit visit) const {
    for (std::size_t k = 0; k < program_.reports.size(); ++k)
      for (std::size_t i = 0; i < program_.reports[k].entries.size(); ++i)
        visit(limit_.source->reports[k].entries[i].value, program_.reports[k].entries[i].value);
    for (std::size_t k = 0; k < program_.expectations.size(); ++k)
      visit(limit_.source->expectations[k].difference, program_.expectations[k].difference);
  }
  /// What is not finite comes after an undetermined jump.
  [[nodiscard]] bool only_undetermined(const Pooled& pooled) const {
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

  /// Of W and W' together, of one matrix, if none are dropped.
  [[nodiscard]] std::int64_t most_of_both_sides() const {
    std::int64_t out = 0;
    for (const auto& d : schedule_.spaces.directions) out = std::max(out, d[0] + d[1]);
    return out;
  }

  /// E4201 comes from one product; what the whole program may need is known here.
  [[nodiscard]] Diagnostics with_advice(Diagnostics errors) const {
    for (Diagnostic& d : errors)
      if (d.code == "E4201")
        d.help = fmt::format(
            "raise --particles to {}, which is enough for all {} directions that the program may "
            "have, or --rank-tol",
            std::bit_ceil(static_cast<std::uint64_t>(2 * most_of_both_sides())),
            most_of_both_sides());
    return errors;
  }

  /// E4201 before anything is run: independent Gaussian vectors are independent directions, of
  /// which none is dropped.
  [[nodiscard]] std::optional<Diagnostic> too_few_particles(std::int64_t particles) const {
    std::map<std::pair<std::uint32_t, bool>, std::set<NodeId>> vectors;
    std::map<std::uint32_t, std::int64_t> certain;
    std::vector<std::uint32_t> source(program_.size(), 0);
    for (std::size_t k = 0; k < program_.size(); ++k) {
      const Node& node = program_.nodes[k];
      if (!schedule_.needed[k]) continue;
      if (node.type.matrix)
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
      const RunFailure failure{
          {"E4201",
           fmt::format("{} directions of one matrix are too many for {} particles", certain[matrix],
                       particles),
           ""},
          {static_cast<std::uint32_t>(k)}};
      return with_advice({diagnose(program_, failure)}).front();
    }
    return std::nullopt;
  }

  [[nodiscard]] std::uint64_t key(std::int64_t k) const {
    return mix_key(mix_key(0x6c696d6974ULL, options_.seed), static_cast<std::uint64_t>(k));
  }

  [[nodiscard]] bool runs_side_by_side(std::int64_t particles) const {
    return options_.ranks->size() == 1 && threads_ > 1 && options_.randomisations > 1 &&
           particles <= kSideBySide;
  }

  [[nodiscard]] RunSettings settings(const Resolution& resolution) const {
    RunSettings out;
    out.limit = true;
    out.rows = resolution.particles;
    out.rank_tol = resolution.rank_tol;
    out.single_precision = options_.single_precision;
    return out;
  }

  /// Bytes of runs at this resolution: by ranks that an earlier run found, or, where the largest
  /// possible ranks would not do, a small one.
  [[nodiscard]] double memory(const Resolution& resolution, int count) {
    const double copies = runs_side_by_side(resolution.particles) ? std::min(threads_, count) : 1;
    // Measured: allocators keep about a tenth more than is alive.
    constexpr double kKept = 1.1;
    const auto bytes = [&](const std::vector<std::array<std::int64_t, 2>>* ranks) {
      return kKept * copies *
             engines::estimate_memory(schedule_, settings(resolution), options_.ranks->size(),
                                      ranks);
    };
    if (ranks_ && ranks_->rank_tol <= resolution.rank_tol) return bytes(&ranks_->of_source);
    const double most = bytes(nullptr);
    if (most <= memory_limit(options_.memory_bytes, *options_.ranks)) return most;
    for (std::int64_t pilot = 1024; 4 * pilot <= resolution.particles; pilot *= 2) {
      const Progress nobody;
      ProgressCounter unseen(nobody, 1);
      // Particles do not change ranks much; too few are refused.
      if (const auto run = run_particles(
              {pilot, resolution.rank_tol}, 1, [&](std::int64_t) { return std::vector{key(0)}; },
              unseen)) {
        ranks_ = {resolution.rank_tol, run->front().ranks};
        return bytes(&ranks_->of_source);
      }
    }
    return most;
  }

  template <class Keys>
  Result<std::vector<RunResult>> run_particles(const Resolution& resolution, int count, Keys keys,
                                               ProgressCounter& progress) const {
    const RunSet set{&schedule_,
                     count,
                     settings(resolution),
                     &*executor_,
                     runs_side_by_side(resolution.particles),
                     [&](RunSettings& own, std::int64_t k) { own.keys = keys(k); },
                     options_.checkpoint};
    return results_of(set, run_some(
                               set, [](std::int64_t) { return true; }, progress));
  }

  /// Runs i and j of M particles and the run of their 2 M joined particles, which has half their
  /// bias: by grouped jackknife, 2 a_ij - a_j stands for a_i and 2 a_ij - a_i for a_j.  Their mean
  /// has no bias of order 1/M, and their spread is that of a_i.
  void extrapolate(std::vector<RunResult>& runs, const std::vector<RunResult>& joined) const {
    const std::vector<RunResult> single = runs;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::size_t partner = (i % 2 ? i - 1 : i + 1) % runs.size();
      for (std::size_t a = 0; a < atoms_.size(); ++a) {
        if (std::holds_alternative<Samples>(program_[atoms_[a]].op)) continue;
        const std::vector<bool> squares = means_of_squares(program_, atoms_[a]);
        for (std::size_t j = 0; j < runs[i].values[a].size(); ++j) {
          double& x = runs[i].values[a][j];
          x = 2 * joined[i / 2].values[a][j] - single[partner].values[a][j];
          // The correction is then no small one, as where the mean is 0 to rounding.
          if (!squares.empty() && squares[j] && x < 0) x = joined[i / 2].values[a][j];
        }
      }
    }
  }

  [[nodiscard]] std::size_t slot(NodeId id) const {
    return static_cast<std::size_t>(std::lower_bound(outputs_.begin(), outputs_.end(), id) -
                                    outputs_.begin());
  }

  inline static const std::vector<double> kNoError{0.0};

  /// The entries of a report, or W5303 for those that are not determined.
  void mark_undetermined(std::size_t k, const Pooled& pooled, ReportResult& r,
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
          explain_undetermined(
              pooled, limit_.source ? limit_.source->reports[k].entries[i].value : NodeId{}, value,
              j, report, r, warnings);
      }
      at += size;
    }
  }
  /// The reason, once for a report.
  void explain_undetermined(const Pooled& pooled, NodeId of, NodeId value, std::size_t j,
                            const Report& report, ReportResult& r, Diagnostics& warnings) const {
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
    Diagnostic d{Severity::kWarning,
                 "W5303",
                 fmt::format("report '{}' is undetermined in some entries", report.name),
                 report.span,
                 r.undetermined,
                 "",
                 {},
                 true};
    d.notes.push_back(
        {"the jump" + (jump.context ? " (in the iteration " + program.contexts[jump.context] + ")"
                                    : std::string()),
         jump.span});
    warnings.push_back(std::move(d));
  }

  void collect(Pooled pooled, LimitResult& out) const {
    std::vector<int> users(outputs_.size(), 0);
    for (const Report& report : program_.reports)
      for (const auto& entry : report.entries) ++users[slot(entry.value)];
    for (const Expectation& e : program_.expectations)
      for (const NodeId id : {e.left, e.right, e.difference}) ++users[slot(id)];
    // Large results are handed over, not copied.
    const auto append = [](std::vector<double>& to, std::vector<double>& from, bool last) {
      if (last && to.empty())
        to = std::move(from);
      else
        to.insert(to.end(), from.begin(), from.end());
    };
    for (const Report& report : program_.reports) {
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
        if (eigen) {
          std::vector<double> flags(pooled.value[k].size(), 0.0);
          if (const auto e = eigenvalues_behind(program_, entry.value)) {
            const std::size_t j = slot(*e);
            flags = unresolved_flags(pooled.value[j], pooled.error[j],
                                     program_[*e].type.dims.back(), out.engine.rank_tol);
            // Selections copy flags as they copy eigenvalues.
            if (*e != entry.value)
              flags = FiniteEvaluator(program_, {*e}, {entry.value}).evaluate({flags.data()})[0];
          }
          for (const double f : flags) r.unresolved.push_back(f != 0);
        }
      }
      if (r.error.size() < r.value.size()) r.error.clear();  // one randomisation
      mark_undetermined(out.reports.size(), pooled, r, out.warnings);
      for (const double e : r.error)
        if (!std::isnan(e) && covered(report)) out.largest_error = std::max(out.largest_error, e);
      out.reports.push_back(std::move(r));
    }
    for (std::size_t k = 0; k < program_.expectations.size(); ++k) {
      const Expectation& e = program_.expectations[k];
      if ((limit_.source && pooled.undetermined.any(limit_.source->expectations[k].difference)) ||
          (!known(e.difference) && pooled.by_rounding.any(e.difference))) {
        constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
        out.expectations.push_back({e.span, program_.contexts[e.context], ExpectStatus::kUndecided,
                                    kNone, kNone, kNone, e.tolerance});
        continue;
      }
      const std::size_t left = slot(e.left), right = slot(e.right), between = slot(e.difference);
      const bool random = method_of(e.difference) != Method::kExact;
      ExpectResult result{e.span,     program_.contexts[e.context], ExpectStatus::kPassed, 0, 0, 0,
                          e.tolerance};
      double worst = -1;
      for (std::size_t j = 0; j < pooled.value[left].size(); ++j) {
        const double a = pooled.value[left][j], b = pooled.value[right][j];
        const double error = !random ? 0
                             : pooled.error[between].empty()
                                 ? std::numeric_limits<double>::infinity()
                                 : pooled.error[between][j];
        const double difference = std::abs(a - b);
        const ExpectStatus status = difference + 2 * error <= e.tolerance ? ExpectStatus::kPassed
                                    : difference > e.tolerance + 3 * error
                                        ? ExpectStatus::kFailed
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
      out.expectations.push_back(result);
    }
  }

  const LeadingOrder& limit_;
  const Program& program_;
  const EvaluateOptions& options_;
  int threads_;
  std::optional<Executor> executor_;
  std::optional<moments::MomentEngine> moments_;
  std::vector<NodeId> outputs_, atoms_;
  Schedule schedule_;
  std::vector<bool> random_, sampled_, proved_;
  std::int64_t particles_ = 0;  ///< of the last run
  struct Ranks {
    double rank_tol;
    std::vector<std::array<std::int64_t, 2>> of_source;
  };
  std::optional<Ranks> ranks_;  ///< of the last run
  double base_memory_ = 0;      ///< of the process before any run
};

}  // namespace

namespace {
Result<LimitResult> evaluate_limit(const LeadingOrder& limit, const EvaluateOptions& options);
}

Result<LimitResult> evaluate(const Module& module, const EvaluateOptions& options) {
  if (options.particles && *options.particles < 8)
    return Diagnostic{Severity::kError,
                      "E2701",
                      fmt::format("{} particles are too few", *options.particles),
                      {},
                      "",
                      "use at least 8; the default is 16384",
                      {},
                      false};
  if (options.randomisations < 1)
    return Diagnostic{Severity::kError,
                      "E2701",
                      "at least one randomisation is needed",
                      {},
                      "",
                      "use 2 or more for an error estimate; the default is 8",
                      {},
                      false};
  if (options.tolerance && options.randomisations < 2)
    return Diagnostic{Severity::kError,
                      "E2701",
                      "one randomisation has no standard error to compare with a tolerance",
                      {},
                      "",
                      "use 2 randomisations or more",
                      {},
                      false};
  auto limit = limit_of(module.program, options);
  if (!limit) return limit.errors();
  Result<LimitResult> result = evaluate_limit(*limit, options);
  if (!result) return result;
  result->warnings.insert(result->warnings.begin(), module.warnings.begin(), module.warnings.end());
  for (std::size_t k = 0; k < result->reports.size(); ++k)
    if (const ReportOrder& counted = limit->reports.at(k);
        counted.order < 0 && !counted.proved_zero)
      result->reports[k].order = to_double(counted.order);
  return result;
}

namespace {

/// E2701 for a name that is no report's.
std::optional<Diagnostic> unknown_report(const Program& program,
                                         const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    std::vector<std::string> all;
    for (const Report& report : program.reports) all.push_back(report.name);
    if (std::find(all.begin(), all.end(), name) == all.end())
      return Diagnostic{Severity::kError,
                        "E2701",
                        fmt::format("there is no report '{}' for the tolerance", name),
                        {},
                        "",
                        fmt::format("the reports are {}", fmt::join(all, ", ")),
                        {},
                        false};
  }
  return std::nullopt;
}

Result<LimitResult> evaluate_limit(const LeadingOrder& limit, const EvaluateOptions& options) {
  const auto start = Clock::now();
  verify(limit.program);
  if (const auto unknown = unknown_report(limit.program, options.tolerance_on)) return *unknown;
  // What cancels in the limit may leave 0/0.
  if (const auto node = certain_nan(limit.program))
    return diagnose(limit.program, {{"E4101", "", ""}, *node});
  LimitEvaluation evaluation(limit, options);
  if (const auto refused = evaluation.refusal()) return *refused;
  constexpr std::int64_t kMostParticles = std::int64_t{1} << 24;
  LimitEvaluation::Resolution now{
      options.particles.value_or(options.tolerance ? 2048 : kDefaultParticles),
      options.rank_tol.value_or(1e-6)};
  // Few directions cost little: only where there may be many, some of the tolerance is spent on
  // dropping them.  The error of dropping is of second order in rank_tol where what is dropped is
  // new in each product, of first order at worst: it is measured.
  constexpr std::int64_t kFewDirections = 256;
  const bool free_rank =
      options.tolerance && !options.rank_tol && evaluation.most_directions() > kFewDirections;
  if (free_rank) now.rank_tol = std::clamp(std::sqrt(*options.tolerance) / 3, 1e-6, 1e-2);
  std::optional<double> target = options.tolerance;
  std::optional<LimitResult> result;
  std::optional<LimitEvaluation::Resolution>
      unfinished;  // the last one of which only the error of sampling is known
  for (;;) {
    ProgressCounter progress(options.progress, options.randomisations);
    Result<LimitEvaluation::Outcome> latest = evaluation.run(now, target, progress);
    const bool too_few = !latest && target && latest.errors()[0].code == "E4201";
    // Each part may have 0.7 of the tolerance: in squares, half.
    const double most = 0.7 * options.tolerance.value_or(0);
    if (latest && !latest->promising) {
      unfinished = now;
      // Errors fall like M^-1/2 to M^-0.9.
      const double factor = std::pow(latest->result.engine.sampling_error / most, 1 / 0.7);
      now.particles *= std::int64_t{1} << std::clamp(std::lround(std::log2(factor)), 1L, 6L);
    } else if (latest) {
      result = std::move(latest->result);
      unfinished.reset();
      if (!target || result->largest_error <= *options.tolerance) break;
      const bool truncates = free_rank && result->engine.truncation_error > most;
      if (truncates) now.rank_tol /= 3;
      if (!truncates || result->engine.sampling_error > most) now.particles *= 2;
    } else if (too_few) {
      now.particles *= 2;
    } else if ((!result && !unfinished) || latest.errors()[0].code != "E4202") {
      return latest.errors();
    }
    if ((latest || too_few) && now.particles <= kMostParticles) continue;
    // Say what was reached.
    if (unfinished) {
      now = *unfinished;
      target.reset();
      continue;
    }
    if (!result) return latest.errors();
    break;
  }
  result->tolerance_missed = options.tolerance && result->largest_error > *options.tolerance;
  result->engine.tolerance = options.tolerance;
  result->random_outputs = limit.random_outputs;
  result->warnings.insert(result->warnings.begin(), limit.warnings.begin(), limit.warnings.end());
  result->time_s = seconds_since(start);
  result->peak_memory_bytes = peak_memory();
  return std::move(*result);
}

}  // namespace

Result<LimitFormulas> limit_formulas(const Module& module, const EvaluateOptions& options) {
  // All that the text names is shown, not only what reports need, if it has a limit.
  Result<LeadingOrder> limit = options.given
                                   ? limit_of(module.program, options)
                                   : leading_order(erase_identities(*module.written, true), true);
  if (!limit && !options.given) limit = limit_of(module.program, options);
  if (!limit) return limit.errors();
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
  return evaluate_limit(limit, options);
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

Result<std::vector<ReportMethod>> methods(const Module& module, const EvaluateOptions& options) {
  auto limit = limit_of(module.program, options);
  if (!limit) return limit.errors();
  const LimitEvaluation evaluation(*limit, options, true);
  std::vector<ReportMethod> out;
  for (const Report& report : limit->program.reports) out.push_back(evaluation.method_of(report));
  return out;
}

namespace {

/// The networks of one width: which runs they are, and what comes of them.
class Networks {
 public:
  Networks(const Module& module, const SimulateOptions& options, std::int64_t width)
      : options_(options),
        width_(width),
        program_(at_width(module.program, static_cast<double>(width / module.program.width_units))),
        wanted_(outputs_of(program_)),
        schedule_(engines::make_schedule(program_, wanted_)),
        executor_(thread_count(options.threads, *options.ranks)) {
    set_ = {&schedule_,
            options.seeds,
            {},
            &executor_,
            executor_.threads() > 1 && options.seeds > 1 && width <= 4096,
            [this](RunSettings& own, std::int64_t k) {
              own.keys = {mix_key(mix_key(mix_key(0x6e6574776f726bULL, options_.seed),
                                          static_cast<std::uint64_t>(width_)),
                                  static_cast<std::uint64_t>(k))};
            },
            options.checkpoint};
    RunSettings& settings = set_.settings;
    settings.limit = false;
    settings.rows = width / module.program.width_units;
    settings.dense = options.matrices == Matrices::kDense;
    settings.single_precision = options.single_precision;
    if (options.matrices != Matrices::kAuto) return;
    // A lazy product costs about 8 n r P, a dense one 2 n^2 P, and the dense matrix must fit.
    std::int64_t directions = 0;
    for (const auto& d : schedule_.spaces.directions)
      directions = std::max({directions, d[0], d[1]});
    settings.dense = true;
    const bool stored =
        std::any_of(program_.nodes.begin(), program_.nodes.end(), [](const Node& node) {
          const auto* update = std::get_if<UpdateMatrix>(&node.op);
          return update && update->entrywise;
        });
    if (!stored && (4 * directions < width || memory() > limit())) settings.dense = false;
  }
  Networks(const Networks&) = delete;  // the schedule points to the program
  Networks& operator=(const Networks&) = delete;

  /// E4202.
  [[nodiscard]] std::optional<Diagnostic> refusal() const {
    if (memory() <= limit()) return std::nullopt;
    return Diagnostic{
        Severity::kError,
        "E4202",
        fmt::format("networks of width {} need up to {} of memory, but {} may be used", width_,
                    bytes_text(memory()), bytes_text(limit())),
        {},
        "",
        set_.settings.dense ? "use --matrices lazy, a smaller width, or raise --memory"
                            : "use a smaller width, or raise --memory",
        {},
        false};
  }

  /// Runs those seeds whose turn it is: network number k of all is rank k's, modulo their number.
  void run(std::int64_t before, const Progress& progress_of_rank) {
    const auto start = Clock::now();
    before_ = before;
    ProgressCounter progress(progress_of_rank, std::max(1, set_.count / options_.ranks->size()));
    outcomes_ = run_some(
        set_, [&](std::int64_t k) { return owner(k) == options_.ranks->rank(); }, progress);
    time_s_ = seconds_since(start);
  }

  /// After all ranks have run: everybody learns everything.
  void gather() {
    for (std::int64_t k = 0; k < set_.count; ++k) {
      RunOutcome& outcome = outcomes_[static_cast<std::size_t>(k)];
      const auto share = [&](auto& values) {
        options_.ranks->broadcast(std::as_writable_bytes(std::span(values)), owner(k));
      };
      std::array<std::size_t, 1> kind{outcome.index()};
      share(kind);
      if (kind[0] != 1) {
        if (kind[0] == 2 && outcome.index() != 2) outcome = RunFailure{};
        continue;
      }
      RunResult result =
          outcome.index() == 1 ? std::move(std::get<RunResult>(outcome)) : RunResult{};
      result.ranks.resize(program_.sources.size());
      share(result.ranks);
      result.values.resize(wanted_.size());
      for (std::size_t w = 0; w < wanted_.size(); ++w) {
        result.values[w].resize(static_cast<std::size_t>(size_of(program_[wanted_[w]].type.dims)));
        share(result.values[w]);
      }
      outcome = std::move(result);
    }
  }

  Result<SimulationResult> collect(const Module& module) {
    auto runs = results_of(set_, std::move(outcomes_));
    if (!runs) return runs.errors();
    SimulationResult out;
    out.engine = {"networks", 0, 0, options_.seed, executor_.threads(), 0, 0};
    out.engine.single_precision = set_.settings.single_precision;
    for (const RunResult& run : *runs)
      out.engine.largest_rank = std::max(out.engine.largest_rank, run.largest_rank());
    out.width = width_;
    out.seeds = set_.count;
    out.dense = set_.settings.dense;
    for (const Report& report : program_.reports) {
      ReportResult r = skeleton(program_, report);
      r.method = Method::kNetworks;
      std::vector<std::vector<double>> values;
      for (const RunResult& run : *runs) {
        std::vector<double>& own = values.emplace_back();
        for (const auto& entry : report.entries) {
          const auto k = static_cast<std::size_t>(
              std::lower_bound(wanted_.begin(), wanted_.end(), entry.value) - wanted_.begin());
          own.insert(own.end(), run.values[k].begin(), run.values[k].end());
        }
      }
      const double s = static_cast<double>(set_.count);
      r.value.assign(values[0].size(), 0.0);
      for (const auto& v : values)
        for (std::size_t j = 0; j < v.size(); ++j) r.value[j] += v[j] / s;
      if (set_.count > 1) {
        r.error.assign(r.value.size(), 0.0);
        for (const auto& v : values)
          for (std::size_t j = 0; j < v.size(); ++j)
            r.error[j] += (v[j] - r.value[j]) * (v[j] - r.value[j]);
        for (double& e : r.error) e = std::sqrt(e / (s - 1) / s);
      }
      out.reports.push_back(std::move(r));
      out.runs.push_back(std::move(values));
    }
    out.warnings = module.warnings;
    out.time_s = time_s_;
    out.peak_memory_bytes = peak_memory();
    return out;
  }

 private:
  [[nodiscard]] int owner(std::int64_t k) const {
    return static_cast<int>((before_ + k) % options_.ranks->size());
  }
  [[nodiscard]] double limit() const {
    return memory_limit(options_.memory_bytes, *options_.ranks);
  }
  [[nodiscard]] double memory() const {
    return engines::estimate_memory(schedule_, set_.settings) *
           (set_.side_by_side ? std::min(executor_.threads(), set_.count) : 1);
  }

  const SimulateOptions& options_;
  std::int64_t width_;
  Program program_;
  std::vector<NodeId> wanted_;
  Schedule schedule_;
  Executor executor_;
  RunSet set_;
  std::int64_t before_ = 0;  ///< networks of other widths that came first
  std::vector<RunOutcome> outcomes_;
  double time_s_ = 0;
};

}  // namespace

Result<SimulationResult> simulate(const Module& module, const SimulateOptions& options) {
  auto one = simulate(module, options, {options.width});
  if (!one) return one.errors();
  return std::move(one->front());
}

Result<std::vector<SimulationResult>> simulate(const Module& module, const SimulateOptions& options,
                                               const std::vector<std::int64_t>& widths) {
  if (options.seeds < 1)
    return Diagnostic{
        Severity::kError, "E2701", "at least one seed is needed", {}, "", "", {}, false};
  const std::int64_t units = module.program.width_units;
  std::deque<Networks> all;
  for (const std::int64_t width : widths) {
    if (width < 1 || width % units != 0)
      return Diagnostic{Severity::kError,
                        "E2701",
                        fmt::format("a network of width {} cannot be run", width),
                        {},
                        "",
                        width < 1
                            ? "use --width 128 or more"
                            : fmt::format("the ratios of its widths need a multiple of {}", units),
                        {},
                        false};
    all.emplace_back(module, options, width);
    if (const auto refused = all.back().refusal()) return *refused;
  }
  // The widest first, so that ranks end at about the same time.
  std::vector<std::size_t> order(widths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return widths[a] > widths[b]; });
  const auto work = [&](std::size_t j) {
    return static_cast<double>(widths[j]) *
           static_cast<double>(std::min<std::int64_t>(widths[j], 2048));
  };  // lazy matrices make wide networks linear
  double total = 0, done = 0;
  for (const std::size_t j : order) total += work(j);
  for (std::size_t k = 0; k < order.size(); ++k) {
    const double share = work(order[k]) / total;
    const Progress part = [&](double fraction) {
      if (options.progress) options.progress(done + std::min(1.0, fraction) * share);
    };
    all[order[k]].run(static_cast<std::int64_t>(k) * options.seeds, part);
    done += share;
  }
  for (Networks& networks : all) networks.gather();
  std::vector<SimulationResult> out;
  for (Networks& networks : all) {
    auto own = networks.collect(module);
    if (!own) return own.errors();
    out.push_back(std::move(*own));
  }
  return out;
}

}  // namespace tplimit
