#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <istream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <Eigen/Core>

/// Files of numbers and arrays as they lie in memory (docs/decisions/0011-checkpoints.md):
/// magic, format version, version of tplimit, content, XXH64 of all that.
namespace tplimit::engines {

/// XXH64 with seed 0 of bytes that come in pieces.
class Checksum {
 public:
  void add(const char* data, std::size_t size);
  [[nodiscard]] std::uint64_t value() const;

 private:
  void stripe(const char* data);

  // Source: xxHash, doc/xxhash_spec.md, version 0.1.1.
  static constexpr std::uint64_t k1 = 0x9E3779B185EBCA87ULL, k2 = 0xC2B2AE3D27D4EB4FULL;
  static constexpr std::size_t kStripe = 32;
  std::uint64_t lanes_[4] = {k1 + k2, k2, 0, 0 - k1};
  char rest_[kStripe] = {};
  std::size_t filled_ = 0;
  std::uint64_t total_ = 0;
};

/// Hands what is written to a sink, a large piece at a time.
class Writer {
 public:
  using Sink = std::function<void(const char*, std::size_t)>;
  explicit Writer(Sink sink);

  void bytes(const void* data, std::size_t size);
  template <class T>
  void value(T x) {
    static_assert(std::is_arithmetic_v<T>);
    bytes(&x, sizeof x);
  }
  template <class T>
  void values(const std::vector<T>& x) {
    static_assert(std::is_arithmetic_v<T>);
    value<std::uint64_t>(x.size());
    bytes(x.data(), x.size() * sizeof(T));
  }
  void text(std::string_view x);
  void matrix(const Eigen::MatrixXd& x);
  /// The checksum, and the end.
  void finish();

 private:
  void hand_over();

  Sink sink_;
  Checksum checksum_;
  std::vector<char> buffer_;
};

/// Reads what a Writer wrote, in the same order.  InternalError where there is less: the file was
/// examined before.
class Reader {
 public:
  explicit Reader(std::istream& in) : in_(in) {}

  void bytes(void* data, std::size_t size);
  template <class T>
  T value() {
    static_assert(std::is_arithmetic_v<T>);
    T x;
    bytes(&x, sizeof x);
    return x;
  }
  template <class T>
  std::vector<T> values() {
    std::vector<T> x(value<std::uint64_t>());
    bytes(x.data(), x.size() * sizeof(T));
    return x;
  }
  std::string text();
  Eigen::MatrixXd matrix();

 private:
  std::istream& in_;
};

/// Of the process: what a file must be of to be read.
struct StateVersion {
  std::uint32_t format;
  std::string program;
};
void write_head(Writer& out, const StateVersion& version);
StateVersion read_head(Reader& in);

enum class FileState { kMissing, kForeign, kDamaged, kWhole };
/// What a file is, its checksum included.  Cost: reads all of it.
FileState examine(const std::filesystem::path& file);

}  // namespace tplimit::engines
