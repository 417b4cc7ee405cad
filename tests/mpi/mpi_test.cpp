#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

/// The command line under mpirun, from outside: what it prints and writes, how it ends.
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using namespace std::chrono_literals;

const fs::path kPrograms = fs::path(TPLIMIT_SOURCE_DIR) / "programs",
               kOwnPrograms = fs::path(TPLIMIT_SOURCE_DIR) / "tests/mpi";

std::string read(const fs::path& file) {
  std::ifstream in(file);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// A folder of this process, removed at its end.
const fs::path& scratch() {
  struct Folder {
    fs::path path = fs::temp_directory_path() / fmt::format("tplimit_mpi_test_{}", getpid());
    Folder() { fs::create_directories(path); }
    ~Folder() { fs::remove_all(path); }
  };
  static const Folder folder;
  return folder.path;
}

/// A shell command with its output in files.  Whatever happens, it is gone at the end.
class Command {
 public:
  explicit Command(const std::string& command) {
    static int count = 0;
    const std::string name = (scratch() / std::to_string(++count)).string();
    out_ = name + ".out";
    err_ = name + ".err";
    const std::string line = fmt::format("exec {} >'{}' 2>'{}' </dev/null", command, out_, err_);
    const char* argv[] = {"sh", "-c", line.c_str(), nullptr};
    if (posix_spawn(&pid_, "/bin/sh", nullptr, nullptr, const_cast<char* const*>(argv), environ) !=
        0)
      throw std::runtime_error("cannot start a shell");
  }
  ~Command() {
    if (code_) return;
    ::kill(pid_, SIGTERM);  // mpirun passes it on
    if (!wait(20s)) ::kill(pid_, SIGKILL);
  }
  Command(const Command&) = delete;
  Command& operator=(const Command&) = delete;

  /// The exit code; none if it still runs after that time.
  std::optional<int> wait(std::chrono::seconds most = 300s) {
    const auto end = std::chrono::steady_clock::now() + most;
    while (!code_) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_)
        code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      else if (std::chrono::steady_clock::now() > end)
        break;
      else
        std::this_thread::sleep_for(10ms);
    }
    return code_;
  }
  [[nodiscard]] std::string out() const { return read(out_); }
  [[nodiscard]] std::string err() const { return read(err_); }

  /// Processes that it has started, by the name of the command line.
  [[nodiscard]] std::vector<pid_t> ranks() const {
    std::vector<pid_t> found;
    std::istringstream children(read(fmt::format("/proc/{0}/task/{0}/children", pid_)));
    for (pid_t child = 0; children >> child;)
      if (read(fmt::format("/proc/{}/comm", child)) == "tplimit_mpi\n") found.push_back(child);
    return found;
  }

 private:
  pid_t pid_ = 0;
  std::string out_, err_;
  std::optional<int> code_;
};

/// Each job has a folder of its own: Open MPI makes one that all jobs of a user share, and fails
/// where an earlier job removes it at that moment.
std::string mpirun() {
  static int count = 0;
  const fs::path own = scratch() / fmt::format("m{}", ++count);
  fs::create_directories(own);
  return fmt::format("{} --oversubscribe --mca orte_tmpdir_base {}{}", TPLIMIT_MPIRUN, own.string(),
                     geteuid() == 0 ? " --allow-run-as-root" : "");
}
std::string on_ranks(int ranks, const std::string& arguments) {
  return fmt::format("{} -n {} {} {}", mpirun(), ranks, TPLIMIT, arguments);
}
/// Rank 0 with some arguments, rank 1 with others.
std::string on_two(const std::string& first, const std::string& second) {
  return fmt::format("{0} -n 1 {1} {2} : -n 1 {1} {3}", mpirun(), TPLIMIT, first, second);
}

/// Where two results differ by more than `tolerance`, relative to the larger of both and 1e-3; what
/// tells how they were found is left out.
std::vector<std::string> differences(const Json& a, const Json& b, double tolerance,
                                     const std::string& where = "") {
  static const std::set<std::string> kHow{
      "threads",           "ranks",  "sums", "sum_bytes", "memory_estimate_bytes", "time_s",
      "peak_memory_bytes", "options"};
  std::vector<std::string> out;
  const auto add = [&](const std::vector<std::string>& more) {
    out.insert(out.end(), more.begin(), more.end());
  };
  if (a.is_object() && b.is_object() && a.size() == b.size()) {
    for (const auto& [key, value] : a.items())
      if (!kHow.contains(key))
        add(b.contains(key) ? differences(value, b[key], tolerance, where + "/" + key)
                            : std::vector{where + "/" + key + " is missing"});
  } else if (a.is_array() && b.is_array() && a.size() == b.size()) {
    for (std::size_t k = 0; k < a.size(); ++k)
      add(differences(a[k], b[k], tolerance, fmt::format("{}/{}", where, k)));
  } else if (a.is_number_float() && b.is_number_float()) {
    const double x = a.get<double>(), y = b.get<double>();
    // Other bits may ask for one projection more or less.
    const double allowed = tolerance > 0 && where.ends_with("/product_flops") ? 0.02 : tolerance;
    if (!(std::abs(x - y) <= allowed * std::max({std::abs(x), std::abs(y), 1e-3})))
      out.push_back(fmt::format("{}: {} and {}", where, x, y));
  } else if (a != b) {
    out.push_back(fmt::format("{}: {} and {}", where, a.dump(), b.dump()));
  }
  return out;
}

/// The file that a command writes and its exit code.
struct Outcome {
  Json json;
  int code;
  std::string text;
};
Outcome outcome_of(int ranks, const std::string& arguments) {
  static int count = 0;
  const fs::path file = scratch() / fmt::format("{}.json", ++count);
  const std::string all = fmt::format("{} --out {}", arguments, file.string());
  Command command(ranks == 0 ? fmt::format("{} {}", TPLIMIT, all) : on_ranks(ranks, all));
  const auto code = command.wait();
  if (!code) throw std::runtime_error("no end: " + all);
  if (!fs::exists(file))
    throw std::runtime_error(all + ": no file\n" + command.out() + command.err());
  return {Json::parse(read(file)), *code, command.out()};
}

struct Case {
  std::string name, arguments;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.arguments; }
class Ranks : public testing::TestWithParam<Case> {};

// A sum of M terms in another order moves by a few eps; training multiplies that.  Seen: 2e-13.
constexpr double kRounding = 1e-11;

TEST_P(Ranks, AgreeWithOneProcess) {
  const Outcome one = outcome_of(0, GetParam().arguments);
  for (const int ranks : {1, 2, 3, 4}) {
    const Outcome many = outcome_of(ranks, GetParam().arguments);
    EXPECT_EQ(many.code, one.code) << ranks << " ranks";
    EXPECT_EQ(many.json["engine"].value("ranks", ranks), ranks);
    // A power of two of equal parts: the same tree of sums, so the same bits.
    const auto different = differences(one.json, many.json, ranks == 3 ? kRounding : 0);
    EXPECT_TRUE(different.empty())
        << ranks << " ranks, " << different.size() << " differences, first " << different.front();
    EXPECT_EQ(many.text.substr(0, many.text.find("\ntime ")),
              one.text.substr(0, one.text.find("\ntime ")))
        << "printed once, by rank 0";
  }
}

std::string program(const std::string& name, const std::string& options) {
  return (kPrograms / (name + ".tp")).string() + " " + options;
}
std::string own_program(const std::string& options, const char* name = "everything.tp") {
  return (kOwnPrograms / name).string() + " " + options;
}

std::string joined_randomisations() {
  return "run " + program("training/mlp_relu_minibatch", "--particles 4k --randomisations 3");
}

INSTANTIATE_TEST_SUITE_P(
    Cli, Ranks,
    testing::Values(
        Case{"Everything", "run " + own_program("--particles 16k --randomisations 2")},
        Case{"FewerChunksThanRanks", "run " + own_program("--particles 512 --randomisations 2")},
        Case{"LessThanOneChunk", "run " + own_program("--particles 200 --randomisations 2")},
        Case{"Entries", "run " + own_program("--particles 1k --randomisations 2", "entries.tp")},
        Case{"EntriesOfOneChunk",
             "run " + own_program("--particles 200 --randomisations 2", "entries.tp")},
        Case{"JoinedRandomisations", joined_randomisations()},
        Case{"SharedWeights",
             "run " + program("architectures/rnn_tied",
                              "--particles 8k --randomisations 2 --engine particles")},
        Case{"Tolerance", "run " + program("start/netsor_transpose", "--particles 1k --tol 1e-3")},
        Case{"TwoWidths", "run " + program("architectures/two_widths", "--particles 4k")},
        Case{"WithoutParticles", "run " + program("kernels/kernels", "")},
        Case{"RandomOutputs", "run " + program("kernels/ntk_training", "--draws 2 --particles 4k")},
        Case{"Simulate", "simulate " + own_program("--width 100 --seeds 5")},
        Case{"SimulateOneNetwork",
             "simulate " + own_program("--width 3000 --seeds 1 --matrices lazy")},
        Case{"Compare", "compare " + own_program("--widths 64,256,128 --seeds 3 --particles 4k")}),
    [](const auto& param_info) { return param_info.param.name; });

TEST(Job, MaySplitParticlesUnequally) {
  const std::string arguments =
      "run " +
      own_program("--particles 5000 --randomisations 2");  // 20 chunks, the last of 136 rows
  const Outcome one = outcome_of(0, arguments);
  for (const int ranks : {2, 3, 4}) {
    const auto different = differences(one.json, outcome_of(ranks, arguments).json, kRounding);
    EXPECT_TRUE(different.empty()) << ranks << " ranks, first " << different.front();
  }
}

// Entries in single precision make 1e-7 of a difference in the last place.
TEST(Job, MayStoreMatrices) {
  const std::string arguments =
      "run " + own_program("--particles 300 --randomisations 2", "stored.tp");
  const Outcome one = outcome_of(0, arguments);
  EXPECT_EQ(one.json["engine"]["stored_matrices"], 1);
  for (const int ranks : {2, 3}) {
    const auto different = differences(one.json, outcome_of(ranks, arguments).json, 1e-5);
    EXPECT_TRUE(different.empty()) << ranks << " ranks, first " << different.front();
  }
}

TEST(Job, JoinsRandomisations) {
  EXPECT_EQ(outcome_of(2, joined_randomisations()).json["engine"]["extrapolated"], true);
}

TEST(Job, EndsWithOneDiagnostic) {
  const fs::path file = scratch() / "overflow.tp";
  std::ofstream(file)
      << "width n\nrandom x : [n] ~ normal(0, 1)\ny = exp(1000 * abs(x))\nreport E(y)\n";
  for (const std::string& command :
       {"run " + file.string(), "simulate " + file.string() + " --width 50 --seeds 3",
        std::string("run no_such.tp")}) {
    Command one(fmt::format("{} {}", TPLIMIT, command)), many(on_ranks(3, command));
    EXPECT_EQ(many.wait(), one.wait());
    const std::string text = one.err();
    ASSERT_NE(text.find("error["), std::string::npos);
    EXPECT_EQ(many.err().substr(0, text.size()), text);
    EXPECT_EQ(many.err().find("error[", text.size()), std::string::npos) << many.err();
  }
}

TEST(Job, EndsBeforeTheRunWhenTheFileCannotBeWritten) {
  Command command(on_ranks(3, "run " + own_program("--out /no/such/folder/x.json")));
  EXPECT_EQ(command.wait(60s), 2);
  EXPECT_NE(command.err().find("cannot write"), std::string::npos);
  EXPECT_EQ(command.err().find("rank 1"), std::string::npos);
}

TEST(Communicator, AddsInTheSameOrderOnEveryRank) {
  for (const int ranks : {2, 3, 4, 5, 7}) {
    Command command(fmt::format("{} -n {} {} sums", mpirun(), ranks, TPLIMIT_RANKS));
    EXPECT_EQ(command.wait(60s), 0) << ranks << " ranks\n" << command.err();
  }
}

TEST(Communicator, EndsTheJobWhenRanksDoNotMakeTheSameCalls) {
  for (const std::string what : {"lengths", "calls", "leaves"})
    for (const int ranks : {2, 3, 4}) {
      Command command(fmt::format("{} -n {} {} {}", mpirun(), ranks, TPLIMIT_RANKS, what));
      EXPECT_EQ(command.wait(60s), 70) << what << ", " << ranks << " ranks";
      EXPECT_NE(command.err().find("out of step with rank"), std::string::npos) << command.err();
    }
}

// ---- a rank that fails
// ------------------------------------------------------------------------------

TEST(FailingRank, IsNamedWhenItsCommandLineDiffers) {
  Command command(
      on_two("run " + own_program("--particles 4k"), "run " + own_program("--particles 8k")));
  EXPECT_EQ(command.wait(60s), 2);
  EXPECT_NE(command.err().find("tplimit: rank 1 of 2: its command line is not that of rank 0"),
            std::string::npos)
      << command.err();
}

/// A folder with a program, for a rank to start in.
std::string folder_with(const std::string& name, const std::string& text) {
  const fs::path folder = scratch() / name;
  fs::create_directories(folder);
  if (!text.empty()) std::ofstream(folder / "net.tp") << text;
  return folder.string();
}
std::string from_folders(const std::string& first, const std::string& second) {
  return fmt::format("{0} -n 1 --wdir {2} {1} run net.tp : -n 1 --wdir {3} {1} run net.tp",
                     mpirun(), TPLIMIT, first, second);
}

TEST(FailingRank, IsNamedWhenItReadsAnotherProgramOrNone) {
  const std::string text = "width n\nrandom x : [n] ~ normal(0, 1)\nreport E(tanh(x)^4)\n";
  const std::string here = folder_with("here", text),
                    other = folder_with("other", text + "report E(x)\n"),
                    nothing = folder_with("nothing", "");
  Command differs(from_folders(here, other));
  EXPECT_EQ(differs.wait(60s), 2);
  EXPECT_NE(differs.err().find("tplimit: rank 1 of 2: what it reads is not what rank 0 reads"),
            std::string::npos)
      << differs.err();
  Command missing(from_folders(here, nothing));
  EXPECT_EQ(missing.wait(60s), 2);
  EXPECT_NE(missing.err().find("cannot read 'net.tp'"), std::string::npos) << missing.err();
}

TEST(FailingRank, EndsTheJobWhenItsMemoryEnds) {
  const std::string arguments = "run " + own_program("--particles 4M --memory 1T --quiet");
  Command command(fmt::format("{0} -n 1 {1} {2} : -n 1 sh -c 'ulimit -v 700000; exec {1} {2}'",
                              mpirun(), TPLIMIT, arguments));
  EXPECT_EQ(command.wait(120s), 1);
  EXPECT_NE(command.err().find("tplimit: rank 1 of 2: out of memory"), std::string::npos)
      << command.err();
}

TEST(FailingRank, EndsTheJobWhenItIsKilled) {
  for (const std::size_t victim : {0u, 2u}) {
    Command command(
        on_ranks(3, "run " + own_program("--particles 1M --randomisations 64")));  // many minutes
    std::vector<pid_t> ranks;
    for (int k = 0; k < 3000 && ranks.size() < 3; ++k) {
      std::this_thread::sleep_for(10ms);
      ranks = command.ranks();
    }
    ASSERT_EQ(ranks.size(), 3u) << command.err();
    std::this_thread::sleep_for(2s);  // at work
    ASSERT_FALSE(command.wait(0s));
    ASSERT_EQ(::kill(ranks[victim], SIGKILL), 0);
    const auto code = command.wait(60s);
    ASSERT_TRUE(code) << "it hangs";
    EXPECT_NE(*code, 0);
    EXPECT_NE(command.err().find("signal 9"), std::string::npos) << command.err();
    EXPECT_NE(command.err().find("rank"), std::string::npos) << command.err();
    for (const pid_t rank : ranks)
      EXPECT_EQ(read(fmt::format("/proc/{}/cmdline", rank)), "")
          << "a rank is left";  // empty also if only its exit code waits to be read
  }
}

TEST(Checkpoint, OfAJobThatLostARankIsUsedByTheNext) {
  const std::string arguments =
      "run " +
      program("architectures/rnn_tied", "--particles 32k --randomisations 16 --engine particles");
  const Outcome unbroken = outcome_of(2, arguments);
  const fs::path folder = scratch() / "checkpoint";
  bool resumed = false;
  for (int attempt = 0; attempt < 5 && !resumed; ++attempt) {
    {
      Command command(on_ranks(2, fmt::format("{} --checkpoint {} --checkpoint-interval 0",
                                              arguments, folder.string())));
      // The first result makes the file grow.
      std::error_code none;
      std::uintmax_t empty = 0;
      for (int k = 0; k < 6000 && !command.wait(0s); ++k) {
        std::this_thread::sleep_for(5ms);
        const std::uintmax_t size = fs::file_size(folder / "results", none);
        if (none) continue;
        if (empty == 0) empty = size;
        if (size > empty) break;
      }
      const std::vector<pid_t> ranks = command.ranks();
      if (ranks.size() == 2) ::kill(ranks[static_cast<std::size_t>(attempt % 2)], SIGKILL);
      const auto code = command.wait(60s);
      ASSERT_TRUE(code) << "it hangs";
      if (*code == 0) continue;  // it was faster
      EXPECT_NE(command.err().find("signal 9"), std::string::npos) << command.err();
    }
    const fs::path file = scratch() / "resumed.json";
    Command again(on_ranks(
        2, fmt::format("{} --checkpoint {} --out {}", arguments, folder.string(), file.string())));
    ASSERT_EQ(again.wait(120s), unbroken.code) << again.err();
    EXPECT_NE(again.err().find("going on from"), std::string::npos) << again.err();
    const auto different = differences(unbroken.json, Json::parse(read(file)), 0);
    EXPECT_TRUE(different.empty()) << different.front();
    EXPECT_FALSE(fs::exists(folder)) << "its work is done";
    resumed = true;
  }
  EXPECT_TRUE(resumed);
}

}  // namespace
