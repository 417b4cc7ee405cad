#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include <gtest/gtest.h>

#include "driver/run_store.hpp"

// Jobs killed again and again, at times that do not suit the writing of states.
namespace tplimit {
namespace {

/// Work of so many seconds in one run, killed every `life` seconds; a state takes `write` to write.
/// The number of processes until it ends, 0: never.
int processes_until_done(double work, double life, double write, double interval) {
  double kept = 0;  // work in the last whole state
  std::uint64_t lost = 0;
  for (int process = 1; process < 2000; ++process) {
    double wait = wait_for_first_state(interval, lost);
    double clock = 0, done = kept;
    bool written = false, writing = false;
    for (;;) {
      if (work - done <= std::min(wait, life - clock))
        return process;  // ends before the next state or the kill
      if (clock + wait >= life) break;
      clock += wait;
      done += wait;
      if (clock + write > life) {
        writing = true;
        break;
      }
      clock += write;
      kept = done;
      written = true;
      lost = 0;
      wait = std::max(interval, 20 * write);
    }
    // As RunStore counts when it opens the folder again.
    if (writing || (!written && lost > 0)) ++lost;
  }
  return 0;
}

TEST(LostStates, WhateverFitsBetweenTwoKillsIsDone) {
  // A state fits if it is begun soon enough.
  for (const double interval : {60.0, 10.0, 1.0})
    for (const double write : {0.1, 3.0, 20.0, 55.0})
      EXPECT_GT(processes_until_done(600, 61, write, interval), 0) << interval << " " << write;
  // No state fits, but the run does.
  for (const double interval : {60.0, 1.0, 0.0})
    EXPECT_GT(processes_until_done(50, 61, 70, interval), 0) << interval;
  // Neither does.
  EXPECT_EQ(processes_until_done(600, 61, 70, 60), 0);
  EXPECT_EQ(wait_for_first_state(60, 0), 60);
}

TEST(LostStates, AreCountedInTheFolder) {
  namespace fs = std::filesystem;
  const fs::path folder =
      fs::temp_directory_path() / fmt::format("tplimit_lost_states_{}", ::getpid());
  const auto open = [&] { return RunStore::open({folder, 60, "test", {}, {}}); };
  const auto bytes = [&] {
    return std::string(
        std::istreambuf_iterator<char>(std::ifstream(folder / "results", std::ios::binary).rdbuf()),
        {});
  };
  (void)open();
  const std::string none = bytes();
  std::ofstream(folder / ".0123456789abcdef.run.42.tmp") << "half a state";
  (void)open();
  const std::string once = bytes();
  EXPECT_NE(once, none);
  EXPECT_FALSE(fs::exists(folder / ".0123456789abcdef.run.42.tmp"));
  (void)open();
  EXPECT_NE(bytes(), once);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace tplimit
