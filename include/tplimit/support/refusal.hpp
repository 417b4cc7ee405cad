#pragma once

#include <utility>

#include "tplimit/support/diagnostic.hpp"

namespace tplimit {

/// Why there is no result, in words for the user and as a reason for a caller that knows something
/// else to try.  Reason{}: there is nothing to try.
template <class Reason>
struct Refusal {
  Reason reason{};
  Diagnostics errors;
};

/// A Result that holds a Refusal where it holds no T.
template <class T, class Reason>
class [[nodiscard]] RefusableResult : public Result<T> {
 public:
  RefusableResult(T value) : Result<T>(std::move(value)) {}  // NOLINT: implicit on purpose
  RefusableResult(Diagnostic diagnostic) : Result<T>(std::move(diagnostic)) {}     // NOLINT
  RefusableResult(Diagnostics diagnostics) : Result<T>(std::move(diagnostics)) {}  // NOLINT
  RefusableResult(Refusal<Reason> refusal)                                         // NOLINT
      : Result<T>(std::move(refusal.errors)), reason_(refusal.reason) {}

  /// Reason{} where there is a T.
  [[nodiscard]] Reason reason() const { return reason_; }
  [[nodiscard]] Refusal<Reason> refusal() const { return {reason_, this->errors()}; }

 private:
  Reason reason_{};
};

}  // namespace tplimit
