#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// A language server without its streams: messages in, messages out (docs/editors.md).
namespace tplimit::lsp {

class Server {
 public:
  Server();
  ~Server();
  Server(Server&&) noexcept;
  Server& operator=(Server&&) noexcept;

  /// Answers one JSON-RPC message.  Any text is accepted; what is wrong with it is said in the
  /// answer.
  std::vector<std::string> receive(std::string_view message);
  /// Diagnostics of the texts that have changed: to be called when no message waits, so that they
  /// are found once for many keystrokes.
  std::vector<std::string> settle();
  /// Once the client has asked to exit: 0, or 1 where it did not shut the server down before.
  [[nodiscard]] std::optional<int> exit_code() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The messages in a stream of bytes, by their Content-Length.
class Frames {
 public:
  void add(std::string_view bytes) { buffer_ += bytes; }
  /// The next message that is there as a whole.  Headers without a length are dropped, as an empty
  /// message.
  std::optional<std::string> next();

 private:
  std::string buffer_;
};
[[nodiscard]] std::string framed(std::string_view message);

}  // namespace tplimit::lsp
