#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engines/state_file.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::engines {

/// Rows per chunk.  Fixed, so that sums over chunks have one order whatever the number of threads.
/// 256 rows of 1,600 columns are 320 kB: a chunk of a typical block and of its basis stay in the
/// second-level cache.
inline constexpr std::int64_t kChunkRows = 256;

/// Uninitialised memory for doubles.  Large pieces are reserved, not committed: untouched pages
/// cost nothing, so a growing basis can reserve its largest possible size.  Freed pieces are kept
/// for reuse by the thread-safe pool.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t doubles);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  [[nodiscard]] double* data() const { return data_; }

  void save(Writer& out) const {
    out.value<std::uint64_t>(bytes_);
    out.bytes(data_, bytes_);
  }
  static Buffer load(Reader& in) {
    const auto bytes = in.value<std::uint64_t>();
    if (bytes == 0) return {};
    Buffer out(static_cast<std::int64_t>(bytes / sizeof(double)));
    in.bytes(out.data_, bytes);
    return out;
  }

  /// Gives pooled memory back to the system.
  static void release_pool();

 private:
  double* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// A rows x columns array, cut into chunks of rows; each chunk is column-major and contiguous.  A
/// value without a width axis is a block of one row.  A rank without rows has no chunks.
class Block {
 public:
  Block() = default;
  Block(std::int64_t rows, std::int64_t columns)
      : rows_(rows),
        columns_(columns),
        chunk_(std::clamp<std::int64_t>(rows, 1, kChunkRows)),
        buffer_(chunks() * chunk_ * columns) {}

  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t columns() const { return columns_; }
  [[nodiscard]] std::int64_t chunks() const { return (rows_ + chunk_ - 1) / chunk_; }
  [[nodiscard]] std::int64_t chunk_rows(std::int64_t c) const {
    return std::min(chunk_, rows_ - c * chunk_);
  }
  [[nodiscard]] std::int64_t ld() const { return chunk_; }
  [[nodiscard]] double* chunk(std::int64_t c) const {
    return buffer_.data() + c * chunk_ * columns_;
  }
  [[nodiscard]] bool empty() const { return columns_ == 0; }

  [[nodiscard]] ir::View view(std::int64_t c) const { return {chunk(c), chunk_rows(c), chunk_}; }
  [[nodiscard]] ir::MutableView mutable_view(std::int64_t c) const {
    return {chunk(c), chunk_rows(c), chunk_};
  }

  void save(Writer& out) const {
    for (const std::int64_t x : {rows_, columns_}) out.value(x);
    for (std::int64_t c = 0; c < chunks(); ++c)
      for (std::int64_t j = 0; j < columns_; ++j)
        out.bytes(chunk(c) + j * chunk_, static_cast<std::size_t>(chunk_rows(c)) * sizeof(double));
  }
  static Block load(Reader& in) {
    const auto rows = in.value<std::int64_t>(), columns = in.value<std::int64_t>();
    Block out(rows, columns);
    for (std::int64_t c = 0; c < out.chunks(); ++c)
      for (std::int64_t j = 0; j < columns; ++j)
        in.bytes(out.chunk(c) + j * out.chunk_,
                 static_cast<std::size_t>(out.chunk_rows(c)) * sizeof(double));
    return out;
  }

 private:
  std::int64_t rows_ = 0, columns_ = 0, chunk_ = 1;
  Buffer buffer_;
};

}  // namespace tplimit::engines
