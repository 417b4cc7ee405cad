#pragma once

#include <algorithm>
#include <barrier>
#include <cstring>
#include <functional>
#include <span>
#include <thread>
#include <vector>

#include "tplimit/parallel/communicator.hpp"

/// Ranks that are threads of one process, so that a debugger and a property test see all of them.
namespace tplimit::test {

class ThreadRanks {
 public:
  explicit ThreadRanks(int size) : barrier_(size), doubles_(count(size)), bytes_(count(size)) {}

  /// Runs f(communicator) on every rank.
  void run(const std::function<void(const Communicator&)>& f) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size(); ++rank)
      threads.emplace_back([&, rank] { f(Rank(*this, rank)); });
    for (std::thread& thread : threads) thread.join();
  }
  [[nodiscard]] int size() const { return static_cast<int>(doubles_.size()); }

 private:
  static std::size_t count(int size) { return static_cast<std::size_t>(size); }

  class Rank final : public Communicator {
   public:
    Rank(ThreadRanks& all, int rank) : all_(all), rank_(rank) {}
    [[nodiscard]] int rank() const override { return rank_; }
    [[nodiscard]] int size() const override { return all_.size(); }
    [[nodiscard]] int threads() const override { return 1; }
    [[nodiscard]] double memory() const override { return 1e9; }
    /// As promised: (0 + 1) + (2 + 3), .., which neighbours of distance 1, 2, 4, .. add up to.
    void sum(std::span<double> values) const override {
      all_.doubles_[count(rank_)] = values;
      all_.barrier_.arrive_and_wait();
      std::vector<std::vector<double>> parts;
      for (const auto& part : all_.doubles_) parts.emplace_back(part.begin(), part.end());
      for (std::size_t step = 1; step < parts.size(); step *= 2)
        for (std::size_t r = 0; r + step < parts.size(); r += 2 * step)
          for (std::size_t k = 0; k < values.size(); ++k) parts[r][k] += parts[r + step][k];
      all_.barrier_.arrive_and_wait();
      std::copy(parts[0].begin(), parts[0].end(), values.begin());
    }
    void broadcast(std::span<std::byte> bytes, int root) const override {
      all_.bytes_[count(rank_)] = bytes;
      all_.barrier_.arrive_and_wait();
      if (rank_ != root && !bytes.empty())
        std::memcpy(bytes.data(), all_.bytes_[count(root)].data(), bytes.size());
      all_.barrier_.arrive_and_wait();
    }
    [[nodiscard]] Traffic traffic() const override { return {}; }

   private:
    ThreadRanks& all_;
    int rank_;
  };

  std::barrier<> barrier_;
  std::vector<std::span<double>> doubles_;
  std::vector<std::span<std::byte>> bytes_;
};

}  // namespace tplimit::test
