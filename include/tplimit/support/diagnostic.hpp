#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tplimit/support/check.hpp"
#include "tplimit/support/source.hpp"

namespace tplimit {

enum class Severity { kError, kWarning, kNote };

/// Something to tell the user about one place of the program (docs/diagnostics.md lists the codes).
struct Diagnostic {
  struct Note {
    std::string message;
    Span span;  ///< empty span at 0 when there is no place to point at
  };

  Severity severity = Severity::kError;
  std::string code;  ///< "E2103": E1 text, E2 names/types/sizes, E3 theory, E4 numerics, E5 files,
                     ///< W5 warnings
  std::string message;  ///< one line, no full stop
  Span span;  ///< empty span at 0 with `located == false` when there is no place to point at
  std::string label;  ///< what stands behind the caret; may be empty
  std::string help;   ///< what to do about it; may be empty
  std::vector<Note> notes;
  bool located = true;

  /// An error or a warning without a place; what follows adds to it, as in
  /// `Diagnostic::error("E2103", "sizes differ in '@'").at(span).with_help("declare ..")`.
  [[nodiscard]] static Diagnostic error(std::string code, std::string message);
  [[nodiscard]] static Diagnostic warning(std::string code, std::string message);
  [[nodiscard]] Diagnostic at(Span place) &&;
  /// The same where there may be no place to point at.
  [[nodiscard]] Diagnostic at_if(bool known, Span place) &&;
  [[nodiscard]] Diagnostic with_label(std::string text) &&;
  [[nodiscard]] Diagnostic with_help(std::string text) &&;
  [[nodiscard]] Diagnostic with_note(std::string text, Span place) &&;
};

using Diagnostics = std::vector<Diagnostic>;
/// Whether one of them has one of these codes.
bool any_of(const Diagnostics& errors, std::initializer_list<std::string_view> codes);

/// "file:line:col: error[E2103]: message", the line, a caret with its label, notes and help; ends
/// in a newline. Safe to print: bytes that are not valid UTF-8 and control characters are shown as
/// '?'; long lines are cut.
[[nodiscard]] std::string render(const Diagnostic& diagnostic, const Source& source);
[[nodiscard]] std::string render(const Diagnostics& diagnostics, const Source& source);

/// Either a T or the diagnostics that say why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}  // NOLINT: implicit on purpose
  Result(Diagnostic diagnostic) : state_(Diagnostics{std::move(diagnostic)}) {}  // NOLINT
  Result(Diagnostics diagnostics) : state_(std::move(diagnostics)) {}            // NOLINT

  [[nodiscard]] bool ok() const { return std::holds_alternative<T>(state_); }
  explicit operator bool() const { return ok(); }

  [[nodiscard]] T& value() & { return get(*this); }
  [[nodiscard]] const T& value() const& { return get(*this); }
  [[nodiscard]] T&& value() && { return std::move(get(*this)); }
  [[nodiscard]] T& operator*() & { return get(*this); }
  [[nodiscard]] const T& operator*() const& { return get(*this); }
  [[nodiscard]] T* operator->() { return &get(*this); }
  [[nodiscard]] const T* operator->() const { return &get(*this); }

  [[nodiscard]] const Diagnostics& errors() const {
    static const Diagnostics none;
    return ok() ? none : std::get<Diagnostics>(state_);
  }

 private:
  template <class Self>
  static auto& get(Self& self) {
    TPLIMIT_CHECK(self.ok(), "a Result is asked for its value although it holds diagnostics: {}",
                  std::get<Diagnostics>(self.state_).empty()
                      ? "none"
                      : std::get<Diagnostics>(self.state_).front().message);
    return std::get<T>(self.state_);
  }
  std::variant<T, Diagnostics> state_;
};

}  // namespace tplimit
