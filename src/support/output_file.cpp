#include "tplimit/support/output_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace tplimit {
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

/// False with errno set on failure.
bool write_all(int descriptor, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(descriptor, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    data += written;
    size -= static_cast<std::size_t>(written);
  }
  return true;
}

/// Makes the names in a folder last.  Some file systems cannot; then nothing is lost but what a
/// power cut takes.
void sync_folder(const fs::path& folder) {
  const int descriptor =
      ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  (void)::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

FileReplacement::FileReplacement(const fs::path& file)
    : file_(file), target_(resolved(file)), fresh_(neighbour(target_)) {
  descriptor_ = ::open(fresh_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    failure_ = failure(file_);
    fresh_.clear();  // not ours
    return;
  }
  std::error_code failed;
  if (const fs::file_status old = fs::status(target_, failed); fs::exists(old))
    fs::permissions(fresh_, old.permissions(), failed);
}

FileReplacement::~FileReplacement() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!fresh_.empty()) ::unlink(fresh_.c_str());
}

void FileReplacement::write(const char* data, std::size_t size) {
  if (failure_.empty() && !write_all(descriptor_, data, size)) failure_ = failure(file_);
}

std::string FileReplacement::commit() {
  const auto attempt = [&](int status) {
    if (status != 0 && failure_.empty()) failure_ = failure(file_);
  };
  if (failure_.empty()) attempt(::fsync(descriptor_));
  if (descriptor_ >= 0) attempt(::close(std::exchange(descriptor_, -1)));
  if (failure_.empty()) attempt(::rename(fresh_.c_str(), target_.c_str()));
  if (!failure_.empty()) return failure_;
  fresh_.clear();
  sync_folder(target_.parent_path());
  return "";
}

bool FileReplacement::is_leftover(const fs::path& name) {
  const std::string text = name.filename().string();
  return text.starts_with('.') && text.ends_with(".tmp");
}

std::string why_not_readable(const fs::path& file) {
  std::error_code failed;
  const fs::file_status status = fs::status(file, failed);
  if (status.type() == fs::file_type::not_found) return "no such file";
  if (fs::is_directory(status)) return "it is a folder";
  return ::access(file.c_str(), R_OK) == 0 ? "" : std::strerror(errno);
}

std::string why_not_writable(const fs::path& file) {
  if (is_special(file)) return ::access(file.c_str(), W_OK) == 0 ? "" : failure(file);
  const fs::path target = resolved(file);
  std::error_code ignored;
  if (fs::is_directory(target, ignored) || !target.has_filename())
    return failure(file, "it is a folder");
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
    if (descriptor < 0) return failure(file);
    std::string reason = write_all(descriptor, text.data(), text.size()) ? "" : failure(file);
    if (::close(descriptor) != 0 && reason.empty()) reason = failure(file);
    return reason;
  }
  if (std::string reason = why_not_writable(file); !reason.empty()) return reason;
  FileReplacement fresh(file);
  fresh.write(text.data(), text.size());
  return fresh.commit();
}

}  // namespace tplimit
