#pragma once

#include <stdlib.h>  // mkdtemp (POSIX)

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <gtest/gtest.h>

#include "tplimit/data/table.hpp"

/// What the tests of the readers share: small files in a folder of their own, and looks at results.
namespace tplimit::test {

/// A fresh folder, removed with everything in it at the end.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tplimit_data_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  [[nodiscard]] std::filesystem::path write(std::string_view name, std::string_view bytes) const {
    const auto file = path_ / name;
    std::ofstream(file, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return file;
  }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// True if the result is the one error `code` whose message holds each of `parts`.
inline testing::AssertionResult is_error(const Result<DataSet>& result, std::string_view code,
                                         const std::vector<std::string>& parts = {}) {
  if (result.ok()) return testing::AssertionFailure() << "no error, expected " << code;
  if (result.errors().size() != 1)
    return testing::AssertionFailure() << result.errors().size() << " errors";
  const Diagnostic& error = result.errors().front();
  if (error.code != code)
    return testing::AssertionFailure()
           << error.code << ", expected " << code << ": " << error.message;
  if (error.located || error.help.empty() || error.message.empty())
    return testing::AssertionFailure() << "has a place, or no message or help";
  if (error.message.find('\n') != std::string::npos)
    return testing::AssertionFailure() << "more than one line: " << error.message;
  for (const std::string& part : parts) {
    if (error.message.find(part) == std::string::npos)
      return testing::AssertionFailure() << "'" << part << "' is not in: " << error.message;
  }
  return testing::AssertionSuccess();
}

inline testing::AssertionResult is_ok(const Result<DataSet>& result) {
  if (result.ok()) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << result.errors().front().code << ": " << result.errors().front().message;
}

/// Bytes of an unsigned number.
inline std::string big_endian(std::uint64_t value, std::size_t size) {
  std::string bytes;
  for (std::size_t i = size; i > 0; --i)
    bytes += static_cast<char>((value >> (8 * (i - 1))) & 0xFFU);
  return bytes;
}
inline std::string little_endian(std::uint64_t value, std::size_t size) {
  const std::string bytes = big_endian(value, size);
  return {bytes.rbegin(), bytes.rend()};
}

/// Feeds a reader `rounds` damaged copies of `good` (bytes changed, cut, or inserted) and as many
/// random files: it must return, with a value whose size matches its shape or with an error.
template <class Reader>
void expect_no_crash(const Reader& reader, const std::string& good, int rounds) {
  const Folder folder;
  std::mt19937 random(12345);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
  const auto any_byte = [&] { return static_cast<char>(random() & 0xFFU); };
  for (int round = 0; round < 2 * rounds; ++round) {
    std::string bytes = good;
    if (round < rounds) {
      for (std::size_t change = 0; change <= below(4); ++change) {
        const std::size_t at = below(bytes.size());
        switch (below(4)) {
          case 0: bytes[at] = any_byte(); break;
          case 1: bytes.resize(at + 1); break;
          case 2: bytes.insert(at, 1, any_byte()); break;
          default: bytes[at] = "0123456789,\"\n\r'(){}:L.-+eE \0"[below(28)]; break;
        }
      }
    } else {
      bytes.resize(below(200));
      for (char& c : bytes) c = any_byte();
    }
    const Result<DataSet> result = reader(folder.write("file", bytes));
    if (!result.ok()) {
      EXPECT_FALSE(result.errors().empty());
      EXPECT_FALSE(result.errors().front().message.empty());
      continue;
    }
    std::int64_t size = 1;
    for (const std::int64_t axis : result->features.shape) size *= axis;
    EXPECT_EQ(static_cast<std::size_t>(size), result->features.values.size());
  }
}

}  // namespace tplimit::test
