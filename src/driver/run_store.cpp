#include "driver/run_store.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <span>
#include <sstream>

#include "driver/run_store_files.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/support/output_file.hpp"

namespace tplimit {

using namespace engines;

namespace {

namespace fs = std::filesystem;

// Writing takes no more than a twentieth of the time.
constexpr double kMostOfTheTime = 0.05;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Of all that determines the result of a run.  kChunkRows: of sums over rows, and of the layout of
/// states.
std::uint64_t key_of(std::uint64_t program, const Schedule& schedule, const RunSettings& settings) {
  std::uint64_t key = mix_key(program, static_cast<std::uint64_t>(kChunkRows));
  const auto add = [&](std::uint64_t word) { key = mix_key(key, word); };
  for (const ir::NodeId id : schedule.wanted) add(id.value);
  add(schedule.wanted.size());
  add(settings.realisation == RealisationKind::kParticleLimit);
  add(settings.realisation == RealisationKind::kStoredNetwork);
  add(static_cast<std::uint64_t>(settings.rows));
  for (const std::uint64_t k : settings.keys) add(k);
  add(settings.keys.size());
  add(std::bit_cast<std::uint64_t>(settings.rank_tol));
  add(settings.single_precision);
  add(static_cast<std::uint64_t>(settings.matrices));
  return key;
}

}  // namespace

/// The state of one run in its file.
class RunStore::State final : public RunState {
 public:
  State(RunStore& store, std::uint64_t key, const std::atomic<bool>* stop)
      : store_(store), key_(key), stop_(stop), begun_(now_s()), due_(store.first_due(begun_)) {}
  [[nodiscard]] bool stop_asked() const { return stop_ && *stop_; }

  void resume(const std::function<void(Reader&)>& load) override {
    std::ifstream file(store_.state_file(key_), std::ios::binary);
    if (!file) return;
    Reader in(file);
    (void)read_head(in);
    (void)in.value<std::uint64_t>();  // the key
    load(in);
  }

  Request request() override {
    if (stop_asked()) return Request::kSaveAndStop;
    const double now = now_s();
    store_.write_results_if_due(now);
    return now >= due_ ? Request::kSave : Request::kGoOn;
  }

  void save(const std::function<void(Writer&)>& content) override {
    const double start = now_s();
    const std::string failure = store_.write(store_.state_file(key_), [&](Writer& out) {
      out.value(key_);
      content(out);
    });
    const double end = now_s();
    store_.warn(failure);
    if (failure.empty()) {
      begun_ = start;
      store_.state_written();
    } else if (stop_asked()) {
      store_.last_state_lost_ = true;
    }
    store_.state_writing_s_ = end - start;
    due_ = store_.due(start, end, end - start);
  }

  /// When the work began that no file holds.
  [[nodiscard]] double begun() const { return begun_; }

 private:
  RunStore& store_;
  std::uint64_t key_;
  const std::atomic<bool>* stop_;
  double begun_, due_;
};

// ---- writing

std::string RunStore::write(const fs::path& file,
                            const std::function<void(Writer&)>& content) const {
  FileReplacement fresh(file);
  Writer out([&](const char* data, std::size_t size) { fresh.write(data, size); });
  write_head(out, {kFormat, options_.version});
  content(out);
  out.finish();
  return fresh.commit();
}

double RunStore::due(double since, double last, double writing_s) const {
  return std::max(since + options_.interval_s, last + writing_s / kMostOfTheTime);
}

double wait_for_first_state(double interval_s, std::uint64_t lost) {
  // A process that dies while it writes its first state has done nothing.  The next ones try in
  // turn to write earlier and earlier, for what is written in time, and not at all, for runs that
  // end in time.
  if (lost > 0 && lost % 2 == 0) return std::numeric_limits<double>::infinity();
  return std::ldexp(interval_s, -static_cast<int>(std::min<std::uint64_t>((lost + 1) / 2, 30)));
}

double RunStore::first_due(double now) const {
  const std::uint64_t lost = lost_;
  const double interval = now + wait_for_first_state(options_.interval_s, lost);
  return lost > 0 ? interval : std::max(interval, now + state_writing_s_ / kMostOfTheTime);
}

void RunStore::state_written() {
  if (lost_.exchange(0) == 0) return;
  const std::scoped_lock lock(mutex_);
  warn(write_results());
}

void RunStore::warn(const std::string& failure) {
  const std::scoped_lock lock(warning_mutex_);
  if (failure.empty() || failure == warned_) return;  // once is enough
  warned_ = failure;
  if (options_.warn)
    options_.warn(
        Diagnostic::warning("W5501", failure)
            .with_help("the evaluation goes on, and tries to write its checkpoint again"));
}

std::string RunStore::write_results() {
  const double start = now_s();
  const std::string failure = write(results_file(), [&](Writer& out) {
    out.value<std::uint64_t>(options_.identity.size());
    for (const auto& [name, value] : options_.identity) {
      out.text(name);
      out.text(value);
    }
    out.value<std::uint64_t>(lost_);
    out.value<std::uint64_t>(results_.size());
    for (const auto& [key, finished] : results_) {
      out.value(key);
      out.value(finished.operations);
      save_result(out, finished.result);
    }
  });
  results_written_ = now_s();
  results_writing_s_ = results_written_ - start;
  if (!failure.empty()) {
    results_due_ = due(results_written_, results_written_, results_writing_s_);
    return failure;
  }
  results_due_ = std::numeric_limits<double>::infinity();
  std::error_code ignored;
  for (const std::uint64_t key : unwritten_) fs::remove(state_file(key), ignored);
  unwritten_.clear();
  return "";
}

void RunStore::write_results_if_due(double now) {
  if (now < results_due_) return;
  const std::scoped_lock lock(mutex_);
  if (now >= results_due_) warn(write_results());
}

bool RunStore::flush() {
  const std::scoped_lock lock(mutex_);
  if (unwritten_.empty()) return true;
  const std::string failure = write_results();
  warn(failure);
  return failure.empty();
}

Diagnostic RunStore::interrupted() {
  const bool written = flush() && !last_state_lost_;
  return !written
             ? store_error("E5206",
                           fmt::format("interrupted, and the checkpoint '{}' is not up to date: {}",
                                       options_.folder.string(), warned_),
                           "the same command goes on from what was written before")
             : store_error("E5206",
                           fmt::format("interrupted; the checkpoint '{}' is written",
                                       options_.folder.string()),
                           "the same command goes on from there");
}

// ---- runs

void RunStore::record(std::uint64_t key, Finished finished, double begun) {
  {
    const std::scoped_lock lock(mutex_);
    results_.insert_or_assign(key, std::move(finished));
    oldest_unwritten_ = unwritten_.empty() ? begun : std::min(oldest_unwritten_, begun);
    unwritten_.push_back(key);
    results_due_ = due(oldest_unwritten_, results_written_, results_writing_s_);
  }
  write_results_if_due(now_s());
}

std::variant<RunResult, RunFailure> RunStore::run(std::uint64_t program, const Schedule& schedule,
                                                  const RunSettings& settings,
                                                  const Executor& executor,
                                                  const std::atomic<bool>* stop) {
  const std::uint64_t key = key_of(program, schedule, settings);
  if (executor.ranks().size() > 1) return run_together(key, schedule, settings, executor);
  if (!keeps_folder()) return run_program(schedule, settings, executor);
  {
    const std::scoped_lock lock(mutex_);
    if (const auto done = results_.find(key); done != results_.end()) {
      executor.count(done->second.operations);
      return done->second.result;
    }
  }
  State state(*this, key, stop);
  if (state.stop_asked()) return RunFailure{engines::interrupted(), {}};
  const double before = executor.operations();
  auto outcome = run_program(schedule, settings, executor, &state);
  if (const auto* result = std::get_if<RunResult>(&outcome))
    record(key, {*result, executor.operations() - before}, state.begun());
  return outcome;
}

/// A run that is spread over ranks.  Its states would have to stop at one instruction on all of
/// them, whenever the job dies: only its result is kept.
std::variant<RunResult, RunFailure> RunStore::run_together(std::uint64_t key,
                                                           const Schedule& schedule,
                                                           const RunSettings& settings,
                                                           const Executor& executor) {
  std::string known;
  if (const auto done = results_.find(key); keeps_folder() && done != results_.end()) {
    Writer out([&](const char* data, std::size_t size) { known.append(data, size); });
    out.value(done->second.operations);
    save_result(out, done->second.result);
    out.finish();
  }
  std::array<std::uint64_t, 1> size{known.size()};
  executor.ranks().broadcast(std::as_writable_bytes(std::span(size)), 0);
  if (size[0] > 0) {
    known.resize(size[0]);
    executor.ranks().broadcast(std::as_writable_bytes(std::span(known)), 0);
    std::istringstream text(known);
    Reader in(text);
    executor.count(in.value<double>());
    return load_result(in);
  }
  const double begun = now_s(), before = executor.operations();
  auto outcome = run_program(schedule, settings, executor);
  if (const auto* result = std::get_if<RunResult>(&outcome); result && keeps_folder())
    record(key, {*result, executor.operations() - before}, begun);
  return outcome;
}

}  // namespace tplimit
