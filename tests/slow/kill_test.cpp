/// Evaluations that are killed at random moments and started again end with the numbers of one that
/// was left alone, bit by bit.

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace tplimit {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kKills = 4;  // of each command: 24 in all
constexpr int kMostStarts = 300;
constexpr int kUsage = 2, kInterrupted = 75;

std::string text_of(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

/// What the process printed and how it ended.
struct Ended {
  bool killed = false;
  int code = 0;
  double seconds = 0;
  std::string errors;
};

/// Runs a command; after `seconds`, if it is still alive, it gets the signal.
Ended run(const std::vector<std::string>& command, const fs::path& folder, double seconds = 1e9,
          int signal = SIGKILL) {
  std::vector<char*> arguments;
  for (const std::string& part : command) arguments.push_back(const_cast<char*>(part.c_str()));
  arguments.push_back(nullptr);
  const fs::path errors = folder / "stderr";
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen(errors.c_str(), "w", stderr) && std::freopen("/dev/null", "w", stdout))
      execv(arguments[0], arguments.data());
    _exit(127);
  }
  int status = 0;
  bool sent = false;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (!sent && elapsed() > seconds) {
      kill(child, signal);
      sent = true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return {WIFSIGNALED(status), WIFEXITED(status) ? WEXITSTATUS(status) : -1, elapsed(),
          text_of(errors)};
}

/// The results without what differs from run to run, or with the number of threads.
json numbers_of(const fs::path& file) {
  json out = json::parse(text_of(file));
  const std::vector<std::string> passing{"time_s", "peak_memory_bytes", "memory_estimate_bytes",
                                         "threads", "options"};
  const auto strip = [&](auto&& self, json& part) -> void {
    if (part.is_object())
      for (const std::string& key : passing) part.erase(key);
    if (part.is_structured())
      for (auto& child : part) self(self, child);
  };
  strip(strip, out);
  return out;
}

class Kill : public ::testing::TestWithParam<std::string> {};

TEST_P(Kill, LosesNothing) {
  const fs::path folder =
      fs::temp_directory_path() / ("tplimit_kill_test." + std::to_string(getpid()));
  fs::create_directories(folder);
  const fs::path checkpoint = folder / "checkpoint", results = folder / "results.json";
  std::vector<std::string> command{TPLIMIT_CLI};
  std::istringstream words(GetParam());
  for (std::string word; words >> word;)
    command.push_back(word.ends_with(".tp") ? std::string(TPLIMIT_SOURCE_DIR) + "/programs/" + word
                                            : word);
  command.insert(command.end(), {"--out", results.string(), "--threads", "2"});
  const Ended whole = run(command, folder);
  ASSERT_FALSE(whole.killed) << whole.errors;
  const json expected = numbers_of(results);

  command.back() = "1";
  command.insert(command.end(),
                 {"--checkpoint", checkpoint.string(), "--checkpoint-interval", "0"});
  std::mt19937_64 random(std::hash<std::string>{}(GetParam()));
  std::uniform_real_distribution<double> moment(0, 0.7 * whole.seconds);
  int kills = 0, resumed = 0, starts = 0;
  bool finished = false;
  for (; (kills < kKills || !finished) && starts < kMostStarts; ++starts) {
    command[command.size() - 5] = std::to_string(1 + starts % 2);  // threads
    fs::remove(results);
    // One in four may save what it has.
    const int signal = starts % 4 == 3 ? SIGTERM : SIGKILL;
    const Ended end = run(command, folder, kills < kKills ? moment(random) : 1e9, signal);
    resumed += end.errors.find("going on from") != std::string::npos ? 1 : 0;
    if (end.killed) {
      kills += signal == SIGKILL ? 1 : 0;
      finished = false;
      if (fs::exists(results)) {
        EXPECT_EQ(numbers_of(results), expected) << "killed after it had written them";
      }
    } else if (end.code == kInterrupted) {
      finished = false;
      EXPECT_TRUE(fs::exists(checkpoint / "results")) << end.errors;
    } else {
      ASSERT_EQ(end.code, whole.code) << end.errors;
      ASSERT_NE(end.code, kUsage) << end.errors;
      finished = true;
      EXPECT_EQ(numbers_of(results), expected) << "after " << kills << " kills";
      EXPECT_FALSE(fs::exists(checkpoint));
    }
  }
  EXPECT_GE(kills, kKills);
  EXPECT_TRUE(finished);
  EXPECT_GE(resumed, 2) << "of " << starts << " starts";
  std::printf("%d kills, %d of %d starts resumed, %.2f s unbroken\n", kills, resumed, starts,
              whole.seconds);
  fs::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(
    Commands, Kill,
    ::testing::Values(
        "run start/mlp_mup.tp --set T=3 --engine particles --particles 2048 "
        "--randomisations 4",  // joined
                               // runs,
                               // too
        "run training/mlp_relu_minibatch.tp --engine particles --particles 16384 "
        "--randomisations 4",
        "run architectures/tied_autoencoder.tp --particles 4096 --tol 3e-5",
        "simulate architectures/tied_autoencoder.tp --width 2048 --seeds 6 --matrices dense",
        "simulate start/mlp_mup.tp --set T=4 --width 4096 --seeds 4 --matrices lazy",
        "compare architectures/rnn_tied.tp --widths 512,1024 --seeds 16 --particles 8192"));

}  // namespace
}  // namespace tplimit
