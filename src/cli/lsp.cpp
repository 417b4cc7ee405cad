#include "cli/lsp.hpp"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "tplimit/lsp/server.hpp"
#include "tplimit/lsp/worker.hpp"

namespace tplimit::cli {
namespace {

/// How long a text that changes may stay without an answer.
constexpr int kPatience = 50;  // ms

void write(const std::vector<std::string>& messages) {
  for (const std::string& message : messages) {
    const std::string out = lsp::framed(message);
    std::fwrite(out.data(), 1, out.size(), stdout);
  }
  std::fflush(stdout);
}

/// Bytes from a thread that has something to tell to one that polls.
class Bell {
 public:
  Bell() {
    if (pipe(ends_.data()) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
  }
  ~Bell() {
    for (const int end : ends_) close(end);
  }
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;

  void ring() {
    while (::write(ends_[1], "", 1) < 0 && errno == EINTR) {}
  }
  /// Once it has rung.
  void hush() {
    std::array<char, 256> rings{};
    (void)!::read(ends_[0], rings.data(), rings.size());
  }
  [[nodiscard]] int to_poll() const { return ends_[0]; }

 private:
  std::array<int, 2> ends_{};
};

}  // namespace

int serve_editor(const Options&) {
  Bell bell;
  lsp::Worker worker([&] { bell.ring(); });
  lsp::Server server([&](std::function<void()> task) { worker.add(std::move(task)); });
  lsp::Frames frames;
  std::array<char, 1 << 16> piece{};
  std::array<pollfd, 2> from{{{STDIN_FILENO, POLLIN, 0}, {bell.to_poll(), POLLIN, 0}}};
  pollfd &input = from[0], &rung = from[1];
  for (;;) {
    while (const auto message = frames.next()) {
      write(server.receive(*message));
      if (const auto code = server.exit_code()) return *code == 0 ? kDone : kRejected;
    }
    if (poll(&input, 1, 0) <= 0) write(server.settle());
    const int ready = poll(from.data(), from.size(), server.unsettled() ? kPatience : -1);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return kRejected;
    if (ready == 0) write(server.settle_for_now());
    if (rung.revents != 0) bell.hush();
    if (input.revents == 0) continue;
    const ssize_t count = read(STDIN_FILENO, piece.data(), piece.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return kRejected;  // hung up without asking to exit
    frames.add({piece.data(), static_cast<std::size_t>(count)});
  }
}

}  // namespace tplimit::cli
