#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// A language server without its streams: messages in, messages out (docs/editors.md).
namespace tplimit::lsp {

/// Takes what a server cannot do at once, and runs it, in the order in which it comes.
using Later = std::function<void(std::function<void()>)>;
inline void at_once(const std::function<void()>& task) { task(); }

/// Texts are read at once.  Lowering them, which finds most errors and all shapes, and counting
/// powers of the width are tasks for `later`; they stop where the text changes.
class Server {
 public:
  explicit Server(Later later = at_once);
  ~Server();
  Server(Server&&) noexcept;
  Server& operator=(Server&&) noexcept;

  /// Answers one JSON-RPC message.  Any text is accepted; what is wrong with it is said in the
  /// answer.
  std::vector<std::string> receive(std::string_view message);
  /// Begins tasks for the texts that have changed, and says what is wrong with those whose tasks
  /// have ended: to be called when no message waits, so that they begin once for many keystrokes,
  /// and when a task has ended.
  std::vector<std::string> settle();
  /// Whether nothing has been said yet of a text, because its tasks take long.
  [[nodiscard]] bool unsettled() const;
  /// As settle; of those texts, that they are still being checked.
  std::vector<std::string> settle_for_now();
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
