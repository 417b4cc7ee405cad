#pragma once

#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace tplimit {

/// A promise of ours is broken: a bug in tplimit, never the user's mistake.  Caught once, in
/// `main`.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

}  // namespace tplimit

/// Throws InternalError unless `cond`; the message (fmt syntax) says what was expected.
#define TPLIMIT_CHECK(cond, ...)                                                   \
  do {                                                                             \
    if (!(cond))                                                                   \
      throw ::tplimit::InternalError(                                              \
          fmt::format("{}:{}: {}", __FILE__, __LINE__, fmt::format(__VA_ARGS__))); \
  } while (false)
