#include "cli/lsp.hpp"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>

#include "tplimit/lsp/server.hpp"

namespace tplimit::cli {
namespace {

void write(const std::vector<std::string>& messages) {
  for (const std::string& message : messages) {
    const std::string out = lsp::framed(message);
    std::fwrite(out.data(), 1, out.size(), stdout);
  }
  std::fflush(stdout);
}

/// Whether more can be read without waiting.
bool input_waits() {
  pollfd in{STDIN_FILENO, POLLIN, 0};
  return poll(&in, 1, 0) > 0;
}

}  // namespace

int serve_editor(const Options&) {
  lsp::Server server;
  lsp::Frames frames;
  std::array<char, 1 << 16> piece{};
  for (;;) {
    while (const auto message = frames.next()) {
      write(server.receive(*message));
      if (const auto code = server.exit_code()) return *code == 0 ? kDone : kRejected;
    }
    if (!input_waits()) write(server.settle());
    const ssize_t count = read(STDIN_FILENO, piece.data(), piece.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return kRejected;  // hung up without asking to exit
    frames.add({piece.data(), static_cast<std::size_t>(count)});
  }
}

}  // namespace tplimit::cli
