#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace tplimit::lsp {

/// A thread that runs tasks one after another, in order.
class Worker {
 public:
  /// `ended` is called in the thread after each task.
  explicit Worker(std::function<void()> ended);
  /// Ends the task that runs, and drops the others.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// `task` may not throw.
  void add(std::function<void()> task);

 private:
  void run();

  std::function<void()> ended_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_, as is what follows
  bool leaving_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace tplimit::lsp
