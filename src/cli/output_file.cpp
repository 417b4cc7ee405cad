#include "cli/output_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include <fmt/format.h>

namespace tplimit::cli {
namespace {

namespace fs = std::filesystem;

std::string failure(const fs::path& file, std::string_view reason) {
  return fmt::format("cannot write '{}': {}", file.string(), reason);
}
std::string failure(const fs::path& file) { return failure(file, std::strerror(errno)); }

bool is_special(const fs::path& file) {
  std::error_code ignored;
  const fs::file_status status = fs::status(file, ignored);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

/// Where links lead; the file itself need not exist.
fs::path resolved(const fs::path& file) {
  std::error_code failed;
  const fs::path target = fs::weakly_canonical(file, failed);
  return failed ? file : target;
}

fs::path neighbour(const fs::path& target) {
  return target.parent_path() / fmt::format(".{}.{}.tmp", target.filename().string(), ::getpid());
}

/// Writes everything and closes; false with errno set on failure.
bool write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int reason = errno;
      ::close(descriptor);
      errno = reason;
      return false;
    }
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return ::close(descriptor) == 0;
}

}  // namespace

std::string why_not_writable(const fs::path& file) {
  if (is_special(file)) return ::access(file.c_str(), W_OK) == 0 ? "" : failure(file);
  const fs::path target = resolved(file);
  std::error_code ignored;
  if (fs::is_directory(target, ignored) || !target.has_filename()) return failure(file, "it is a folder");
  if (fs::exists(target, ignored) && ::access(target.c_str(), W_OK) != 0) return failure(file);
  const fs::path probe = neighbour(target);
  const int descriptor = ::open(probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) return failure(file);
  ::close(descriptor);
  ::unlink(probe.c_str());
  return "";
}

std::string write_file(const fs::path& file, const std::string& text) {
  if (is_special(file)) {
    const int descriptor = ::open(file.c_str(), O_WRONLY | O_CLOEXEC);
    return descriptor >= 0 && write_all(descriptor, text) ? "" : failure(file);
  }
  if (std::string reason = why_not_writable(file); !reason.empty()) return reason;
  const fs::path target = resolved(file), fresh = neighbour(target);
  const int descriptor = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) return failure(file);
  std::error_code failed;
  if (const fs::file_status old = fs::status(target, failed); fs::exists(old)) fs::permissions(fresh, old.permissions(), failed);
  if (!write_all(descriptor, text) || ::rename(fresh.c_str(), target.c_str()) != 0) {
    std::string reason = failure(file);
    ::unlink(fresh.c_str());
    return reason;
  }
  return "";
}

}  // namespace tplimit::cli
