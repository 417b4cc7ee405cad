#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

namespace tplimit::engines {

/// Runs f(i) for i in 0..count on up to `threads` threads.  What f computes may not depend on the thread.
class Executor {
 public:
  explicit Executor(int threads) : threads_(threads < 1 ? 1 : threads) {}
  [[nodiscard]] int threads() const { return threads_; }

  template <class F>
  void parallel(std::int64_t count, F&& f) const {
    if (threads_ == 1 || count < 2) {
      for (std::int64_t i = 0; i < count; ++i) f(i);
      return;
    }
    std::exception_ptr error;
    std::mutex mutex;
#pragma omp parallel for num_threads(threads_) schedule(dynamic, 1)
    for (std::int64_t i = 0; i < count; ++i) {
      try {
        f(i);
      } catch (...) {  // exceptions may not leave a parallel region
        const std::scoped_lock lock(mutex);
        if (!error) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
  }

 private:
  int threads_;
};

}  // namespace tplimit::engines
