/// Checkpoints through the library: what they refuse, and that nothing depends on them.

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/run.hpp"
#include "tplimit/report/json.hpp"

namespace tplimit {
namespace {

namespace fs = std::filesystem;

const std::string kProgram = test::one_sample_a_step("tanh(z)", "0.5", 4);

std::string bytes_of(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}
void write(const fs::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary) << bytes;
}

class Checkpoints : public ::testing::Test {
 protected:
  Checkpoints()
      : base_(fs::temp_directory_path() / ("tplimit_checkpoint_test." + std::to_string(getpid()))) {
    fs::create_directories(base_);
  }
  ~Checkpoints() override { fs::remove_all(base_); }

  [[nodiscard]] CheckpointOptions options(std::string particles = "512") {
    return {base_ / "ck",
            0,
            {{"program", "f00"}, {"--particles", std::move(particles)}},
            [this](const Diagnostic& d) { warnings_.push_back(d); }};
  }
  /// "" if the checkpoint can be opened, else what the user is told, without the name of the base
  /// folder.
  std::string refusal(CheckpointOptions own) {
    const auto opened = Checkpoint::open(std::move(own));
    std::string text = opened ? "" : render(opened.errors(), Source("test.tp", ""));
    for (std::size_t at; (at = text.find(base_.string() + "/")) != std::string::npos;)
      text.erase(at, base_.string().size() + 1);
    return text;
  }
  Result<LimitResult> evaluate_with(Checkpoint& checkpoint, Progress progress = {},
                                    int threads = 2) {
    EvaluateOptions own = test::particles(512, 6);  // a run takes milliseconds
    own.threads = threads;
    own.checkpoint = &checkpoint;
    own.stop = &stop_;
    own.progress = std::move(progress);
    return evaluate(module_, own);
  }
  [[nodiscard]] std::vector<std::vector<double>> unbroken() const {
    return values(test::limit_of(module_, test::particles(512, 6)));
  }
  static std::vector<std::vector<double>> values(const LimitResult& result) {
    std::vector<std::vector<double>> out;
    for (const ReportResult& r : result.reports) {
      out.push_back(r.value);
      out.push_back(r.error);
    }
    return out;
  }
  /// Stops when the first run is finished: some results, some runs not begun, and maybe some
  /// states.
  void interrupt() {
    auto checkpoint = Checkpoint::open(options());
    ASSERT_TRUE(checkpoint.ok());
    expect_interrupted(evaluate_with(*checkpoint, [this](double) { stop_ = true; }));
  }
  /// Stops when the first state has been written.
  void interrupt_a_run() {
    auto checkpoint = Checkpoint::open(options());
    ASSERT_TRUE(checkpoint.ok());
    std::thread watch([this] {
      while (states() == 0 && !stop_) std::this_thread::yield();
      stop_ = true;
    });
    const auto result = evaluate_with(*checkpoint, {}, 1);
    stop_ = true;
    watch.join();
    stop_ = false;
    if (!result.ok()) expect_interrupted(result);  // else it was faster
  }
  void expect_interrupted(const Result<LimitResult>& result) {
    stop_ = false;
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.errors()[0].code, "E5206");
    EXPECT_NE(result.errors()[0].message.find("is written"), std::string::npos)
        << result.errors()[0].message;
  }
  [[nodiscard]] long states() const {
    long count = 0;
    for (const auto& entry : fs::directory_iterator(base_ / "ck"))
      count += entry.path().extension() == ".run" ? 1 : 0;
    return count;
  }

  fs::path base_;
  std::atomic<bool> stop_ = false;
  std::vector<Diagnostic> warnings_;
  Module module_ = test::parsed(kProgram);
};

TEST_F(Checkpoints, GoOnWithTheSameBits) {
  interrupt();
  auto checkpoint = Checkpoint::open(options());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_GE(checkpoint->found().finished, 1u);
  EXPECT_LT(checkpoint->found().finished + checkpoint->found().in_progress, 6u)
      << "not all had begun";
  const auto result = evaluate_with(*checkpoint, {}, 1);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(values(*result), unbroken());
  EXPECT_TRUE(warnings_.empty());
  checkpoint->remove();
  EXPECT_TRUE(fs::is_empty(base_));
}

TEST_F(Checkpoints, HoldAllThatIsFinished) {
  std::vector<std::vector<double>> first;
  {
    auto checkpoint = Checkpoint::open(options());
    ASSERT_TRUE(checkpoint.ok());
    const auto result = evaluate_with(*checkpoint);
    ASSERT_TRUE(result.ok() && checkpoint->flush());
    first = values(*result);
  }
  EXPECT_EQ(first, unbroken());
  auto checkpoint = Checkpoint::open(options());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(checkpoint->found().in_progress, 0u);
  // Nothing more can be run after the first.
  const auto again = evaluate_with(*checkpoint, [this](double) { stop_ = true; });
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(values(*again), first);
}

// Also what particles do not resolve: heavy tails and rare events behind a matrix, rounding at
// jumps.
TEST_F(Checkpoints, HoldWhatParticlesDoNotResolve) {
  module_ = test::parsed(
      "width n\nrandom x : [n] ~ normal(0, 1)\nrandom y : [n] ~ normal(0, 1)\n"
      "random W : [n, n] ~ normal(0, 1/n)\nfor t in 0..4 { x = tanh(W @ (x + 0.1 * y)) }\n"
      "report E(tanh(W @ exp(y))^2), E((W @ (y + step(y - 4.5)))^2)\n"
      "report E(sign(sin(x)^2 + cos(x)^2 - 1)^2)\n");
  const LimitResult whole = test::limit_of(module_, test::particles(512, 6));
  EXPECT_NE(whole.reports[2].undetermined, "");
  interrupt();
  auto checkpoint = Checkpoint::open(options());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_GE(checkpoint->found().finished, 1u);
  const auto resumed = evaluate_with(*checkpoint, {}, 1);
  ASSERT_TRUE(resumed.ok());
  for (const std::size_t k : {0u, 1u}) {
    EXPECT_EQ(resumed->reports[k].value, whole.reports[k].value);
    EXPECT_EQ(resumed->reports[k].error, whole.reports[k].error);
  }
  EXPECT_EQ(resumed->reports[2].undetermined, whole.reports[2].undetermined);
}

TEST_F(Checkpoints, AreNotTakenForOtherSettings) {
  interrupt();
  auto checkpoint = Checkpoint::open(options());
  ASSERT_TRUE(checkpoint.ok());
  EvaluateOptions own = test::particles(512, 6, 1);
  const auto plain = test::limit_of(module_, own);
  own.checkpoint = &*checkpoint;
  EXPECT_EQ(values(test::limit_of(module_, own)), values(plain)) << "another seed";
  own.seed = 0;
  own.rank_tol = 1e-3;
  const auto coarse = test::limit_of(module_, own);
  own.checkpoint = nullptr;
  EXPECT_EQ(values(coarse), values(test::limit_of(module_, own))) << "another rank-tol";
}

TEST_F(Checkpoints, TellWhoseTheyAre) {
  interrupt();
  EXPECT_EQ(refusal(options("1024")),
            "test.tp: error[E5203]: the checkpoint 'ck' belongs to another evaluation\n"
            "test.tp: note: --particles 1024 (there: 512)\n"
            "help: repeat the command that it was made with, give another name, or remove it\n");
  CheckpointOptions more = options();
  more.identity[0].second = "ba7";
  more.identity.emplace_back("--tol", "0.1");
  const std::string told = refusal(more);
  EXPECT_NE(told.find("program ba7 (there: f00)"), std::string::npos) << told;
  EXPECT_NE(told.find("--tol 0.1 (there: none)"), std::string::npos) << told;
  CheckpointOptions fewer = options();
  fewer.identity.pop_back();
  EXPECT_NE(refusal(fewer).find("no --particles (there: 512)"), std::string::npos);
  EXPECT_EQ(refusal(options()), "") << "a refusal changes nothing";
}

TEST_F(Checkpoints, RefuseEveryTruncationAndEveryChangedByte) {
  // Between two runs there is no state, and after the last one: then once more.
  for (int attempt = 0; attempt < 50 && (!fs::exists(base_ / "ck") || states() == 0); ++attempt) {
    fs::remove_all(base_ / "ck");
    interrupt_a_run();
  }
  int files = 0;
  for (const auto& entry : fs::directory_iterator(base_ / "ck")) {
    ++files;
    const fs::path file = entry.path();
    const std::string whole = bytes_of(file);
    const std::size_t step = std::max<std::size_t>(1, whole.size() / 200);
    const auto expect_refused = [&](const std::string& bytes, std::size_t at) {
      write(file, bytes);
      const std::string told = refusal(options());
      // Without the magic, the results are not known to be ours.
      EXPECT_TRUE(told.find("E5202") != std::string::npos ||
                  (at < 8 && told.find("E5201") != std::string::npos))
          << file << " at " << at << " of " << whole.size() << ": " << told;
    };
    for (std::size_t at = 0; at < whole.size(); at += step) {
      expect_refused(whole.substr(0, at), at);
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ 4);
      expect_refused(changed, at);
    }
    expect_refused(whole + '\0', whole.size());
    write(file, whole);
  }
  EXPECT_GE(files, 2) << "results and a state";
  EXPECT_EQ(refusal(options()), "");
}

TEST_F(Checkpoints, DoNotTouchWhatIsNotTheirs) {
  fs::create_directory(base_ / "ck");
  write(base_ / "ck" / "letter.txt", "dear");
  EXPECT_EQ(refusal(options()),
            "test.tp: error[E5201]: 'ck' is no checkpoint\n"
            "help: it is a folder with other files: give the name of a new folder\n");
  EXPECT_EQ(bytes_of(base_ / "ck" / "letter.txt"), "dear");
  fs::remove(base_ / "ck" / "letter.txt");
  auto checkpoint = Checkpoint::open(options());
  ASSERT_TRUE(checkpoint.ok()) << "an empty folder will do";
  write(base_ / "ck" / "letter.txt", "dear");
  checkpoint->remove();
  EXPECT_EQ(bytes_of(base_ / "ck" / "letter.txt"), "dear");
  EXPECT_FALSE(fs::exists(base_ / "ck" / "results"));
}

TEST_F(Checkpoints, CleanUpAfterAKilledProcess) {
  interrupt();
  write(base_ / "ck" / ".results.123.tmp", "half");
  EXPECT_EQ(refusal(options()), "");
  EXPECT_FALSE(fs::exists(base_ / "ck" / ".results.123.tmp"));
}

TEST_F(Checkpoints, BelongToOneProcess) {
  const auto first = Checkpoint::open(options());
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(refusal(options()),
            "test.tp: error[E5205]: another process uses the checkpoint 'ck'\nhelp: wait for it, "
            "or give another name\n");
}

TEST_F(Checkpoints, NeedAFolderToStandIn) {
  CheckpointOptions own = options();
  own.folder = base_ / "missing" / "ck";
  EXPECT_NE(refusal(own).find("error[E5205]: cannot make the folder 'missing/ck'"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(base_ / "missing"));
}

TEST_F(Checkpoints, WarnOnceAndGoOnWhereTheyCannotBeWritten) {
  auto checkpoint = Checkpoint::open(options());
  ASSERT_TRUE(checkpoint.ok());
  fs::remove_all(base_ / "ck");
  const auto result = evaluate_with(*checkpoint, {}, 1);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(values(*result), unbroken());
  EXPECT_FALSE(checkpoint->flush());
  ASSERT_GE(warnings_.size(), 1u);
  EXPECT_LE(warnings_.size(), 7u) << "one for each file, not for each attempt";
  EXPECT_EQ(warnings_[0].code, "W5501");
}

TEST_F(Checkpoints, SayWhenTheyAreNotUpToDate) {
  auto checkpoint = Checkpoint::open(options());
  ASSERT_TRUE(checkpoint.ok());
  fs::remove_all(base_ / "ck");
  const auto result = evaluate_with(*checkpoint, [this](double) { stop_ = true; });
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.errors()[0].code, "E5206");
  EXPECT_NE(result.errors()[0].message.find("is not up to date"), std::string::npos)
      << result.errors()[0].message;
}

TEST_F(Checkpoints, ServeNetworksToo) {
  SimulateOptions own;
  own.width = 64;
  own.seeds = 5;
  own.stop = &stop_;
  for (const Matrices kind : {Matrices::kDense, Matrices::kLazy}) {
    own.matrices = kind;
    own.checkpoint = nullptr;
    own.progress = {};
    const auto plain = simulate(module_, own);
    {
      auto checkpoint = Checkpoint::open(options());
      ASSERT_TRUE(checkpoint.ok());
      own.checkpoint = &*checkpoint;
      own.progress = [this](double) { stop_ = true; };
      EXPECT_FALSE(simulate(module_, own).ok());
      stop_ = false;
    }
    auto checkpoint = Checkpoint::open(options());
    ASSERT_TRUE(checkpoint.ok());
    own.checkpoint = &*checkpoint;
    own.progress = {};
    const auto resumed = simulate(module_, own);
    ASSERT_TRUE(plain.ok() && resumed.ok());
    EXPECT_EQ(resumed->runs, plain->runs);
    checkpoint->remove();
  }
}

}  // namespace
}  // namespace tplimit
