#pragma once

#include <atomic>
#include <cstdint>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "tplimit/parallel/communicator.hpp"
#include "tplimit/support/stopped.hpp"

namespace tplimit {

#if defined(__SANITIZE_THREAD__)
/// TBB is not built for the thread sanitizer, which so cannot see that tasks begin after the caller
/// and end before it goes on.
class Handover {
 public:
  void hand_out() { given_.store(1, std::memory_order_release); }
  void begin() { (void)given_.load(std::memory_order_acquire); }
  void end() { ended_.fetch_add(1, std::memory_order_release); }
  void collect() { (void)ended_.load(std::memory_order_acquire); }

 private:
  std::atomic<int> given_ = 0, ended_ = 0;
};
#else
class Handover {
 public:
  void hand_out() {}
  void begin() {}
  void end() {}
  void collect() {}
};
#endif

/// Runs f(i) for i in 0..count on up to `threads` threads.  What f computes may not depend on the
/// thread. Between two of them it looks at `stop`: everything long passes here, so that it ends
/// soon. The caller works too and never waits for a thread that has not begun: a busy machine
/// slows a run down in proportion only. Rows of blocks are spread over `ranks` (tall.hpp).
class Executor {
 public:
  explicit Executor(int threads, const Communicator& ranks = single_process(),
                    const std::atomic<bool>* stop = nullptr)
      : threads_(threads < 1 ? 1 : threads), ranks_(ranks), stop_(stop), arena_(threads_) {}
  [[nodiscard]] int threads() const { return threads_; }
  [[nodiscard]] const Communicator& ranks() const { return ranks_; }
  [[nodiscard]] const std::atomic<bool>* stop() const { return stop_; }
  /// Throws Stopped if that is asked for.
  void poll() const {
    if (stop_ && stop_->load(std::memory_order_relaxed)) throw Stopped{};
  }

  template <class F>
  void parallel(std::int64_t count, F&& f) const {
    if (threads_ == 1 || count < 2) {
      for (std::int64_t i = 0; i < count; ++i) {
        poll();
        f(i);
      }
      return;
    }
    Handover handover;
    handover.hand_out();
    arena_.execute([&] {
      tbb::parallel_for(
          tbb::blocked_range<std::int64_t>(0, count, 1),
          [&](const auto& range) {
            handover.begin();
            for (std::int64_t i = range.begin(); i < range.end(); ++i) {
              poll();
              f(i);
            }
            handover.end();
          },
          tbb::simple_partitioner());
    });
    handover.collect();
  }

  /// Counts a sweep's floating-point operations.
  void count(double operations) const { operations_ += operations; }
  [[nodiscard]] double operations() const { return operations_; }

 private:
  mutable std::atomic<double> operations_ = 0;
  int threads_;
  const Communicator& ranks_;
  const std::atomic<bool>* stop_;
  mutable tbb::task_arena arena_;
};

}  // namespace tplimit
