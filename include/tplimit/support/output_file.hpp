#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace tplimit {

/// Replaces a file as a whole: what is written goes to a new file beside it, which takes its name
/// when it is complete and on the disk. The file is never seen half-written, whenever the process
/// is killed or the machine stops.  Links are followed, permissions kept.
class FileReplacement {
 public:
  explicit FileReplacement(const std::filesystem::path& file);
  /// Without `commit` the old file is untouched and the new one removed.
  ~FileReplacement();
  FileReplacement(const FileReplacement&) = delete;
  FileReplacement& operator=(const FileReplacement&) = delete;

  void write(const char* data, std::size_t size);
  /// Returns: "", or why the opening, a write or the replacement failed; then the old file is
  /// untouched.
  [[nodiscard]] std::string commit();

  /// Whether a file name is that of a new file which a killed process has left behind.
  static bool is_leftover(const std::filesystem::path& name);

 private:
  std::filesystem::path file_, target_, fresh_;
  int descriptor_ = -1;
  std::string failure_;
};

/// "" if the file can be opened, else why not.
std::string why_not_readable(const std::filesystem::path& file);

/// "" if write_file can be expected to succeed, else why not.  Leaves nothing behind.
std::string why_not_writable(const std::filesystem::path& file);

/// FileReplacement of a text; what is no regular file (a pipe, a terminal) is written to directly.
/// Returns: "", or why it failed; then the old file is untouched.
std::string write_file(const std::filesystem::path& file, const std::string& text);

}  // namespace tplimit
