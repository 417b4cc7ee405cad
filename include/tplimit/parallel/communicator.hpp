#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace tplimit {

/// What a process has sent for sums so far: how often, and how many bytes it gave to each of them.
struct Traffic {
  std::int64_t sums = 0, bytes = 0;
};

/// The processes ("ranks") that work on one evaluation together.  All run the same calls in the
/// same order.  Whatever is computed from `sum` and `broadcast` has the same bits on every rank, so
/// that no decision ever needs to be sent. Calls come from one thread at a time.  A rank that fails
/// ends the job; none of these calls returns an error.
class Communicator {
 public:
  virtual ~Communicator() = default;
  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  /// Threads, and bytes of main memory, for each rank to use: the smallest share of any, so that
  /// all decide alike.
  [[nodiscard]] virtual int threads() const = 0;
  [[nodiscard]] virtual double memory() const = 0;

  /// Replaces values by their sums over ranks, added as a binary tree over ranks: (0 + 1) + (2 +
  /// 3), .. Cost: ceil(log2 size) messages, two more if size is no power of two.
  virtual void sum(std::span<double> values) const = 0;
  /// Replaces the bytes of every rank by those of `root`.  Cost: that of a sum.
  virtual void broadcast(std::span<std::byte> bytes, int root) const = 0;
  [[nodiscard]] virtual Traffic traffic() const = 0;
};

/// No other process: sums are what they are.
const Communicator& single_process();

/// Whether a text of this rank is that of rank 0.  To be called on every rank.
bool as_on_first_rank(const Communicator& ranks, std::string_view text);

}  // namespace tplimit
