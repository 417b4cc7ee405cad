#include "driver/networks.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <numeric>
#include <span>

#include <fmt/format.h>

#include "driver/faults.hpp"
#include "driver/report_values.hpp"
#include "driver/runs.hpp"
#include "engines/memory_estimate.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/parallel/process_memory.hpp"

namespace tplimit {

using namespace ir;
using engines::RealisationKind;
using engines::RunFailure;
using engines::RunResult;
using engines::RunSettings;
using engines::Schedule;

namespace {

/// The networks of one width: which runs they are, and what comes of them.
class Networks {
 public:
  Networks(const Program& program, const SimulateOptions& options, std::int64_t width)
      : options_(options),
        width_(width),
        program_(program),
        wanted_(outputs_of(program_)),
        schedule_(engines::make_schedule(program_, wanted_)),
        executor_(thread_count(options.threads, *options.ranks), single_process(),
                  stop_of(options)) {
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
    set_.name = [this](std::int64_t k) {
      return fmt::format("network {} of {} of width {}", k + 1, set_.count, width_);
    };
    RunSettings& settings = set_.settings;
    settings.rows = width / program.width_units;
    settings.realisation = options.matrices == Matrices::kLazy ? RealisationKind::kRevealedNetwork
                                                               : RealisationKind::kStoredNetwork;
    settings.single_precision = options.single_precision;
    if (options.matrices != Matrices::kAuto) return;
    // A lazy product costs about 8 n r P, a dense one 2 n^2 P, and the dense matrix must fit.
    std::int64_t directions = 0;
    for (const auto& d : schedule_.spaces.directions)
      directions = std::max({directions, d[0], d[1]});
    const bool entrywise =
        std::any_of(program_.nodes.begin(), program_.nodes.end(), [](const Node& node) {
          return std::holds_alternative<AddEntries>(node.op) ||
                 std::holds_alternative<InnerProduct>(node.op);
        });
    const bool normal =
        std::all_of(program_.sources.begin(), program_.sources.end(),
                    [](const GaussianSource& s) { return s.law == EntryLaw::kNormal; });
    if (!entrywise && normal && (4 * directions < width || memory() > limit()))
      settings.realisation = RealisationKind::kRevealedNetwork;
  }
  Networks(const Networks&) = delete;  // the schedule points to the program
  Networks& operator=(const Networks&) = delete;

  /// E4202.
  [[nodiscard]] std::optional<Diagnostic> refusal() const {
    if (memory() <= limit()) return std::nullopt;
    return faults::not_enough_memory(
        fmt::format("networks of width {} need", width_), memory(), "", limit(),
        stored() ? "use --matrices lazy, a smaller width, or raise --memory"
                 : "use a smaller width, or raise --memory");
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
        if (kind[0] == 2 && outcome.index() != 2)
          outcome = RunFailure{engines::on_another_rank(), {}};
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
    out.dense = stored();
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
      set_means(values, r);
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
  [[nodiscard]] bool stored() const {
    return set_.settings.realisation == RealisationKind::kStoredNetwork;
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
  const Program& program_;
  std::vector<NodeId> wanted_;
  Schedule schedule_;
  Executor executor_;
  RunSet set_;
  std::int64_t before_ = 0;  ///< networks of other widths that came first
  std::vector<RunOutcome> outcomes_;
  double time_s_ = 0;
};

}  // namespace

Result<std::vector<SimulationResult>> run_networks(const Module& module,
                                                   const SimulateOptions& options,
                                                   const std::vector<std::int64_t>& widths,
                                                   const std::vector<Program>& programs) {
  std::deque<Networks> all;
  for (std::size_t k = 0; k < widths.size(); ++k) {
    all.emplace_back(programs[k], options, widths[k]);
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
