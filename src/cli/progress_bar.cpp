#include "cli/progress_bar.hpp"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

namespace tplimit::cli {
namespace {

constexpr std::size_t kBarColumns = 24;
constexpr auto kPeriod = std::chrono::milliseconds(500);

std::string clock_text(double seconds) {
  const auto whole = static_cast<long>(seconds);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

ProgressBar::ProgressBar(bool visible) {
  if (!visible) return;
  painter_ = std::thread([this] {
    std::unique_lock lock(mutex_);
    while (!closing_.wait_for(lock, kPeriod, [this] { return closed_; })) draw();
  });
}

ProgressBar::~ProgressBar() {
  if (!painter_.joinable()) return;
  {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
  }
  closing_.notify_one();
  painter_.join();
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
}

std::function<void(double)> ProgressBar::stage(std::string name, double share) {
  const std::scoped_lock lock(mutex_);
  name_ = std::move(name);
  begin_ = done_ = end_;
  end_ = std::min(1.0, end_ + share);
  return [this](double fraction) {
    const std::scoped_lock inner(mutex_);
    done_ = begin_ + fraction * (end_ - begin_);
    expected_ = elapsed() / done_;
  };
}

double ProgressBar::elapsed() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void ProgressBar::draw() {
  const auto filled = static_cast<std::size_t>(done_ * static_cast<double>(kBarColumns));
  const std::string left =
      expected_ > 0 ? fmt::format("about {} left", clock_text(std::max(0.0, expected_ - elapsed())))
                    : "";
  fmt::print(stderr, "\r\033[K[{}{}] {:3.0f} %  {}  {} elapsed  {}", std::string(filled, '#'),
             std::string(kBarColumns - filled, '.'), 100 * done_, name_, clock_text(elapsed()),
             left);
  std::fflush(stderr);
}

}  // namespace tplimit::cli
