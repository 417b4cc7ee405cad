#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <span>

#include "driver/run_store_files.hpp"
#include "tplimit/support/output_file.hpp"

// The folder of a checkpoint: its lock, what is found in it, and its end.
namespace tplimit {

using namespace engines;

namespace fs = std::filesystem;

Diagnostic store_error(std::string code, std::string message, std::string help) {
  return Diagnostic::error(std::move(code), std::move(message)).with_help(std::move(help));
}

// All fields are named: a new one does not compile until it is kept.
void save_result(Writer& out, const RunResult& result) {
  const auto& [values, matching_stopped, ranks, terms, inner, by_rounding, largest_dropped,
               stored] = result;
  out.value<std::uint64_t>(values.size());
  for (const auto& own : values) out.values(own);
  out.value(matching_stopped);
  out.value<std::uint64_t>(ranks.size());
  for (const auto& both : ranks)
    for (const std::int64_t rank : both) out.value(rank);
  out.value(largest_dropped);
  out.value(stored);
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
  auto& [values, matching_stopped, ranks, terms, inner, by_rounding, largest_dropped, stored] =
      result;
  for (auto left = in.value<std::uint64_t>(); left > 0; --left)
    values.push_back(in.values<double>());
  matching_stopped = in.value<bool>();
  ranks.resize(in.value<std::uint64_t>());
  for (auto& both : ranks)
    for (std::int64_t& rank : both) rank = in.value<std::int64_t>();
  largest_dropped = in.value<double>();
  stored = in.value<std::int64_t>();
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

Result<std::unique_ptr<RunStore>> RunStore::open(Options options) {
  std::unique_ptr<RunStore> store(new RunStore(std::move(options)));
  std::optional<Diagnostic> fault;
  if (store->keeps_folder()) fault = store->use_folder();
  std::array<std::uint8_t, 1> failed{fault.has_value()};
  store->options_.ranks->broadcast(std::as_writable_bytes(std::span(failed)), 0);
  if (fault) return *fault;
  if (failed[0]) return store_error("E5205", "the first rank cannot use the checkpoint", "");
  return store;
}

std::optional<Diagnostic> RunStore::use_folder() {
  if (auto fault = lock_folder()) return fault;
  if (auto fault = read_folder()) return fault;
  // Whether it can be written is to be known before anything is computed.
  const std::scoped_lock lock(mutex_);
  if (const std::string failure = write_results(); !failure.empty())
    return store_error("E5205", failure, "the checkpoint's folder must allow new files");
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
    return store_error("E5201", quoted + " is no checkpoint",
                       "checkpoints are folders: give another name");
  fs::create_directory(folder, failed);
  if (failed)
    return store_error("E5205",
                       fmt::format("cannot make the folder {}: {}", quoted, failed.message()),
                       "the folder it stands in must exist and allow new files");
  lock_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0)
    return store_error(
        "E5205", fmt::format("cannot open the folder {}: {}", quoted, std::strerror(errno)), "");
  // Released by the system whenever the process ends.  Where folders cannot be locked, users have
  // to take care.
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return store_error("E5205", fmt::format("another process uses the checkpoint {}", quoted),
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
    return store_error("E5201", fmt::format("{} is no checkpoint", quoted),
                       "it is a folder with other files: give the name of a new folder");
  const auto damaged = [&](const fs::path& file) {
    return store_error("E5202",
                       fmt::format("the checkpoint {} is damaged: '{}' is truncated or altered",
                                   quoted, file.filename().string()),
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
    return store_error(
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
        store_error("E5203", fmt::format("the checkpoint {} belongs to another evaluation", quoted),
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

}  // namespace tplimit
