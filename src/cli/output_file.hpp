#pragma once

#include <filesystem>
#include <string>

namespace tplimit::cli {

/// "" if write_file can be expected to succeed, else why not.  Leaves nothing behind.
std::string why_not_writable(const std::filesystem::path& file);

/// Replaces a file as a whole: a new one is written beside it and takes its name, so that it is never seen half-written.
/// Links are followed, permissions kept; what is no regular file (a pipe, a terminal) is written to directly.
/// Returns: "", or why it failed; then the old file is untouched.
std::string write_file(const std::filesystem::path& file, const std::string& text);

}  // namespace tplimit::cli
