#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace tplimit::cli {

/// A line on standard error with the work done, elapsed and remaining time; drawn twice a second,
/// erased by the destructor. Does nothing unless `visible`.
class ProgressBar {
 public:
  explicit ProgressBar(bool visible);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// The next stage, `share` of all work: call the result with the fraction of the stage that is
  /// done.
  std::function<void(double)> stage(std::string name, double share);

 private:
  void draw();
  [[nodiscard]] double elapsed() const;

  using Clock = std::chrono::steady_clock;
  std::mutex mutex_;
  std::condition_variable closing_;
  bool closed_ = false;
  std::string name_;
  double begin_ = 0, end_ = 0,
         done_ = 0;      // fractions of all work: where the stage starts and ends, what is done
  double expected_ = 0;  // seconds for all work, from what was done when it was last heard of
  Clock::time_point start_ = Clock::now();
  std::thread painter_;
};

}  // namespace tplimit::cli
