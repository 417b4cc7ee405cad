#pragma once

#include "engines/block.hpp"
#include "parallel/executor.hpp"

namespace tplimit::engines {

/// Bases and normals: columns that are appended once and then only multiplied, in double or
/// (`single`) float storage. Laid out as a Block; the capacity is reserved, not committed.
class Panel {
 public:
  Panel() = default;
  Panel(std::int64_t rows, std::int64_t capacity, bool single)
      : rows_(rows),
        capacity_(capacity),
        chunk_(std::clamp<std::int64_t>(rows, 1, kChunkRows)),
        single_(single),
        buffer_(doubles(rows, capacity, single)) {}

  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t columns() const { return columns_; }
  [[nodiscard]] std::int64_t chunks() const { return (rows_ + chunk_ - 1) / chunk_; }
  [[nodiscard]] std::int64_t chunk_rows(std::int64_t c) const {
    return std::min(chunk_, rows_ - c * chunk_);
  }
  [[nodiscard]] std::int64_t ld() const { return chunk_; }
  [[nodiscard]] bool single() const { return single_; }
  /// First element of column `first` of chunk c, in the storage that single() names.
  [[nodiscard]] double* doubles_at(std::int64_t c, std::int64_t first) const {
    return buffer_.data() + (c * capacity_ + first) * chunk_;
  }
  [[nodiscard]] float* floats_at(std::int64_t c, std::int64_t first) const {
    return reinterpret_cast<float*>(buffer_.data()) + (c * capacity_ + first) * chunk_;
  }

  /// Appends the columns of `b`.
  void append(const Executor& executor, const Block& b) {
    TPLIMIT_CHECK(columns_ + b.columns() <= capacity_ && b.rows() == rows_,
                  "{} columns fit into {}", columns_ + b.columns(), capacity_);
    executor.parallel(chunks(), [&](std::int64_t c) {
      const double* from = b.chunk(c);
      const std::int64_t count = b.columns() * chunk_;  // the two have one leading dimension
      if (single_)
        std::transform(from, from + count, floats_at(c, columns_),
                       [](double x) { return static_cast<float>(x); });
      else
        std::copy_n(from, count, doubles_at(c, columns_));
    });
    columns_ += b.columns();
  }
  /// Columns [first, first + count) of chunk c as doubles.
  void read(std::int64_t c, std::int64_t first, std::int64_t count, double* out) const {
    if (single_)
      std::copy_n(floats_at(c, first), count * chunk_, out);
    else
      std::copy_n(doubles_at(c, first), count * chunk_, out);
  }

  void save(Writer& out) const {
    for (const std::int64_t x : {rows_, columns_, capacity_}) out.value(x);
    out.value(single_);
    for_columns([&](void* column, std::size_t bytes) { out.bytes(column, bytes); });
  }
  static Panel load(Reader& in) {
    const auto rows = in.value<std::int64_t>(), columns = in.value<std::int64_t>(),
               capacity = in.value<std::int64_t>();
    Panel out(rows, capacity, in.value<bool>());
    out.columns_ = columns;
    out.for_columns([&](void* column, std::size_t bytes) { in.bytes(column, bytes); });
    return out;
  }

 private:
  template <class F>
  void for_columns(F&& f) const {
    for (std::int64_t c = 0; c < chunks(); ++c) {
      const auto count = static_cast<std::size_t>(chunk_rows(c));
      for (std::int64_t j = 0; j < columns_; ++j) {
        if (single_)
          f(floats_at(c, j), count * sizeof(float));
        else
          f(doubles_at(c, j), count * sizeof(double));
      }
    }
  }
  static std::int64_t doubles(std::int64_t rows, std::int64_t capacity, bool single) {
    const std::int64_t chunk = std::max<std::int64_t>(1, std::min(rows, kChunkRows)),
                       elements = (rows + chunk - 1) / chunk * chunk * capacity;
    return single ? (elements + 1) / 2 : elements;
  }

  std::int64_t rows_ = 0, columns_ = 0, capacity_ = 0, chunk_ = 1;
  bool single_ = false;
  Buffer buffer_;
};

}  // namespace tplimit::engines
