#include "tplimit/lsp/worker.hpp"

#include <utility>

namespace tplimit::lsp {

Worker::Worker(std::function<void()> ended)
    : ended_(std::move(ended)), thread_([this] { run(); }) {}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Worker::add(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_one();
}

void Worker::run() {
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return leaving_ || !tasks_.empty(); });
      if (leaving_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
    ended_();
  }
}

}  // namespace tplimit::lsp
