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

#include "tplimit/math/normals.hpp"
#include "tplimit/support/output_file.hpp"

namespace tplimit {

using namespace engines;

namespace {

namespace fs = std::filesystem;

// 1: version 0.1.0; 2: with terms of averages, and how many states were lost; 3: with scales of
// rounding and what particles do not resolve.  To be raised whenever a file of an older version can
// no longer be read.
constexpr std::uint32_t kFormat = 4;
constexpr std::string_view kStateEnding = ".run";
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
  return key;
}

// All fields are named: a new one does not compile until it is kept.
void save_result(Writer& out, const RunResult& result) {
  const auto& [values, matching_stopped, ranks, terms, inner, by_rounding, largest_dropped] =
      result;
  out.value<std::uint64_t>(values.size());
  for (const auto& own : values) out.values(own);
  out.value(matching_stopped);
  out.value<std::uint64_t>(ranks.size());
  for (const auto& both : ranks)
    for (const std::int64_t rank : both) out.value(rank);
  out.value(largest_dropped);
  out.value<std::uint64_t>(terms.size());
  for (const TermSummary& own : terms) save(out, own);
  out.value<std::uint64_t>(inner.size());
  for (const auto& [id, own] : inner) {
    out.value(id);
    save(out, own);
  }
  out.value<std::uint64_t>(by_rounding.size());
  for (const auto& [id, entries] : by_rounding) {
    out.value(id);
    out.values(entries);
  }
}
RunResult load_result(Reader& in) {
  RunResult result;
  auto& [values, matching_stopped, ranks, terms, inner, by_rounding, largest_dropped] = result;
  for (auto left = in.value<std::uint64_t>(); left > 0; --left)
    values.push_back(in.values<double>());
  matching_stopped = in.value<bool>();
  ranks.resize(in.value<std::uint64_t>());
  for (auto& both : ranks)
    for (std::int64_t& rank : both) rank = in.value<std::int64_t>();
  largest_dropped = in.value<double>();
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) terms.push_back(load_terms(in));
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
    const auto id = in.value<std::uint32_t>();
    inner[id] = load_terms(in);
  }
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
    const auto id = in.value<std::uint32_t>();
    by_rounding[id] = in.values<double>();
  }
  return result;
}

Diagnostic error(std::string code, std::string message, std::string help) {
  return Diagnostic::error(std::move(code), std::move(message)).with_help(std::move(help));
}

}  // namespace

/// The state of one run in its file.
class RunStore::State final : public RunState {
 public:
  State(RunStore& store, std::uint64_t key)
      : store_(store), key_(key), begun_(now_s()), due_(store.first_due(begun_)) {}

  void resume(const std::function<void(Reader&)>& load) override {
    std::ifstream file(store_.state_file(key_), std::ios::binary);
    if (!file) return;
    Reader in(file);
    (void)read_head(in);
    (void)in.value<std::uint64_t>();  // the key
    load(in);
  }

  Request request() override {
    if (store_.stop_asked()) return Request::kSaveAndStop;
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
    } else if (store_.stop_asked()) {
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
  double begun_, due_;
};

// ---- the folder

Result<std::unique_ptr<RunStore>> RunStore::open(Options options) {
  std::unique_ptr<RunStore> store(new RunStore(std::move(options)));
  std::optional<Diagnostic> fault;
  if (store->keeps_folder()) fault = store->use_folder();
  std::array<std::uint8_t, 1> failed{fault.has_value()};
  store->options_.ranks->broadcast(std::as_writable_bytes(std::span(failed)), 0);
  if (fault) return *fault;
  if (failed[0]) return error("E5205", "the first rank cannot use the checkpoint", "");
  return store;
}

std::optional<Diagnostic> RunStore::use_folder() {
  if (auto fault = lock_folder()) return fault;
  if (auto fault = read_folder()) return fault;
  // Whether it can be written is to be known before anything is computed.
  const std::scoped_lock lock(mutex_);
  if (const std::string failure = write_results(); !failure.empty())
    return error("E5205", failure, "the checkpoint's folder must allow new files");
  return std::nullopt;
}

RunStore::~RunStore() {
  if (lock_ >= 0) ::close(lock_);
}

std::optional<Diagnostic> RunStore::lock_folder() {
  const fs::path& folder = options_.folder;
  const std::string quoted = fmt::format("'{}'", folder.string());
  std::error_code failed;
  if (fs::exists(folder, failed) && !fs::is_directory(folder, failed))
    return error("E5201", quoted + " is no checkpoint",
                 "checkpoints are folders: give another name");
  fs::create_directory(folder, failed);
  if (failed)
    return error("E5205", fmt::format("cannot make the folder {}: {}", quoted, failed.message()),
                 "the folder it stands in must exist and allow new files");
  lock_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0)
    return error("E5205",
                 fmt::format("cannot open the folder {}: {}", quoted, std::strerror(errno)), "");
  // Released by the system whenever the process ends.  Where folders cannot be locked, users have
  // to take care.
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return error("E5205", fmt::format("another process uses the checkpoint {}", quoted),
                 "wait for it, or give another name");
  return std::nullopt;
}

std::optional<Diagnostic> RunStore::read_folder() {
  const std::string quoted = fmt::format("'{}'", options_.folder.string());
  std::vector<fs::path> states, others;
  bool killed_while_writing = false;
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(options_.folder, failed)) {
    const fs::path& file = entry.path();
    if (FileReplacement::is_leftover(file)) {
      killed_while_writing =
          killed_while_writing || file.filename().string().find(kStateEnding) != std::string::npos;
      fs::remove(file, failed);
    } else if (file.extension() == kStateEnding)
      states.push_back(file);
    else if (file != results_file())
      others.push_back(file);
  }
  const FileState found = examine(results_file());
  if (found == FileState::kMissing && states.empty() && others.empty())
    return std::nullopt;  // a new one
  if (found == FileState::kMissing || found == FileState::kForeign)
    return error("E5201", fmt::format("{} is no checkpoint", quoted),
                 "it is a folder with other files: give the name of a new folder");
  const auto damaged = [&](const fs::path& file) {
    return error("E5202",
                 fmt::format("the checkpoint {} is damaged: '{}' is truncated or altered", quoted,
                             file.filename().string()),
                 "remove it and start anew, or restore it from a copy");
  };
  if (found == FileState::kDamaged) return damaged(results_file());
  if (const auto fault = read_results()) return fault;
  if (killed_while_writing || lost_ > 0) ++lost_;
  for (const fs::path& file : states)
    if (!is_state(file)) return damaged(file);
  // What was finished after its state was last written.
  for (const auto& [key, finished] : results_)
    if (fs::remove(state_file(key), failed)) states.pop_back();
  found_ = {results_.size(), states.size()};
  return std::nullopt;
}

bool RunStore::is_state(const fs::path& file) const {
  if (examine(file) != FileState::kWhole) return false;
  std::ifstream content(file, std::ios::binary);
  Reader in(content);
  const StateVersion version = read_head(in);
  return version.format == kFormat && version.program == options_.version &&
         file == state_file(in.value<std::uint64_t>());
}

std::optional<Diagnostic> RunStore::read_results() {
  std::ifstream file(results_file(), std::ios::binary);
  Reader in(file);
  const std::string quoted = fmt::format("'{}'", options_.folder.string());
  const StateVersion version = read_head(in);
  if (version.format != kFormat || version.program != options_.version)
    return error(
        "E5204",
        fmt::format("the checkpoint {} was written by another version: tplimit {}, format {}",
                    quoted, version.program, version.format),
        "numbers may differ between versions: go on with that version, or remove the checkpoint "
        "and start anew");
  Identity there;
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
    std::string name = in.text();
    there.emplace_back(std::move(name), in.text());
  }
  std::vector<std::string> differences;
  for (const auto& [name, value] : options_.identity) {
    const auto same =
        std::find_if(there.begin(), there.end(),
                     [&, &wanted = name](const auto& entry) { return entry.first == wanted; });
    if (same == there.end() || same->second != value)
      differences.push_back(fmt::format("{} {} (there: {})", name, value,
                                        same == there.end() ? "none" : same->second));
  }
  for (const auto& entry : there)
    if (std::none_of(options_.identity.begin(), options_.identity.end(),
                     [&](const auto& own) { return own.first == entry.first; }))
      differences.push_back(fmt::format("no {} (there: {})", entry.first, entry.second));
  if (!differences.empty()) {
    Diagnostic d =
        error("E5203", fmt::format("the checkpoint {} belongs to another evaluation", quoted),
              "repeat the command that it was made with, give another name, or remove it");
    for (const std::string& difference : differences) d.notes.push_back({difference, {}});
    return d;
  }
  lost_ = in.value<std::uint64_t>();
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
    const auto key = in.value<std::uint64_t>();
    const auto operations = in.value<double>();
    results_.emplace(key, Finished{load_result(in), operations});
  }
  return std::nullopt;
}

fs::path RunStore::state_file(std::uint64_t key) const {
  return options_.folder / fmt::format("{:016x}{}", key, kStateEnding);
}

void RunStore::remove() {
  if (!keeps_folder()) return;
  const std::scoped_lock lock(mutex_);
  std::error_code ignored;
  std::vector<fs::path> own{results_file()};
  for (const auto& entry : fs::directory_iterator(options_.folder, ignored))
    if (entry.path().extension() == kStateEnding) own.push_back(entry.path());
  // The results last: as long as anything is left, the folder is a checkpoint.
  for (auto file = own.rbegin(); file != own.rend(); ++file) fs::remove(*file, ignored);
  fs::remove(options_.folder, ignored);
}

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
  return !written ? error("E5206",
                          fmt::format("interrupted, and the checkpoint '{}' is not up to date: {}",
                                      options_.folder.string(), warned_),
                          "the same command goes on from what was written before")
                  : error("E5206",
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
                                                  const Executor& executor) {
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
  if (stop_asked()) return RunFailure{engines::interrupted(), {}};
  State state(*this, key);
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
