/// Sums over rows: one order, whatever threads and ranks share the work.

#include <atomic>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "engines/tall.hpp"
#include "tests/unit/parallel/ranks.hpp"
#include "tplimit/math/normals.hpp"

namespace tplimit::engines {
namespace {

using test::ThreadRanks;

Matrix scalar(double x) { return Matrix::Constant(1, 1, x); }

/// Numbers whose sums depend on the order in which they are added.
double summand(std::int64_t k) {
  double x = 0;
  plain_normals(mix_key(7, static_cast<std::uint64_t>(k)), 0, {&x, 1});
  return x;
}

/// (first half of a power of two) + (rest), from the definition.
double tree(std::int64_t begin, std::int64_t end) {
  if (end - begin == 1) return summand(begin);
  std::int64_t half = 1;
  while (2 * half < end - begin) half *= 2;
  return tree(begin, begin + half) + tree(begin + half, end);
}

TEST(TreeSum, AddsAsItsCommentSays) {
  const auto sum = [](const std::vector<double>& x) {
    TreeSum out;
    for (const double v : x) out.add(scalar(v));
    return out.total()(0, 0);
  };
  // 1 is lost beside 2^53: the order is seen.
  const double big = 0x1p53;
  EXPECT_EQ(sum({big, 1, 1, -big}), 1);  // big + (1 - big); one after the other it would be 0
  EXPECT_EQ(sum({big, -big, 1, 1}), 2);
  EXPECT_EQ(sum({1, 1, big, -big, 1}), 3);
  EXPECT_EQ(sum({5}), 5);
}

RC_GTEST_PROP(TreeSum, IsABinaryTreeOverIndices, ()) {
  const auto count = *rc::gen::inRange<std::int64_t>(1, 300);
  TreeSum sum;
  for (std::int64_t k = 0; k < count; ++k) sum.add(scalar(summand(k)));
  RC_ASSERT(sum.total()(0, 0) == tree(0, count));
}

RC_GTEST_PROP(TreeSum, AlignedPartsMayBeSummedFirst, ()) {
  const auto count = *rc::gen::inRange<std::int64_t>(1, 300);
  const std::int64_t part = std::int64_t{1} << *rc::gen::inRange(0, 8);
  TreeSum sum;
  for (std::int64_t begin = 0; begin < count; begin += part) {
    TreeSum own;
    for (std::int64_t k = begin; k < std::min(count, begin + part); ++k)
      own.add(scalar(summand(k)));
    sum.add(own.total());
  }
  RC_ASSERT(sum.total()(0, 0) == tree(0, count));
}

/// Adds numbers of chunk c to a matrix, in two turns: a chunk's own sum has no tree.
void add_chunk(std::int64_t c, Eigen::Ref<Matrix> out) {
  const double first = summand(2 * c), second = summand(2 * c + 1);
  for (Eigen::Index j = 0; j < out.size(); ++j) {
    out.data()[j] += first * static_cast<double>(1 + j % 7);
    out.data()[j] += second * static_cast<double>(1 + j % 5);
  }
}

/// Bit by bit; a failure does not print large matrices.
bool same(const Matrix& a, const Matrix& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() && (a.array() == b.array()).all();
}

RC_GTEST_PROP(SumOverChunks, DoesNotDependOnThreads, ()) {
  const auto chunks = *rc::gen::inRange<std::int64_t>(0, 400);
  const auto rows = *rc::gen::inRange<Eigen::Index>(0, 4),
             cols = *rc::gen::inRange<Eigen::Index>(0, 4);
  const auto threads = *rc::gen::inRange(2, 9);
  const Matrix one = sum_over_chunks(Executor(1), chunks, rows, cols, add_chunk),
               many = sum_over_chunks(Executor(threads), chunks, rows, cols, add_chunk);
  RC_ASSERT(one.rows() == rows && one.cols() == cols);
  RC_ASSERT(same(one, many));
  if (chunks == 0) RC_ASSERT(one.isZero(0));
}

TEST(SumOverChunks, IsTheSum) {
  for (const std::int64_t chunks : {1, 2, 63, 64, 65, 129, 1000}) {
    const Matrix found = sum_over_chunks(Executor(2), chunks, 2, 3, [](std::int64_t c, auto& out) {
      out.array() += static_cast<double>(c + 1);  // whole numbers: no rounding
    });
    EXPECT_EQ(found, Matrix::Constant(2, 3, static_cast<double>(chunks * (chunks + 1) / 2)));
  }
}

/// The sum by ranks that hold equal parts of the chunks; all must have the same bits.
Matrix by_ranks(int ranks, std::int64_t chunks, Eigen::Index size) {
  ThreadRanks all(ranks);
  std::vector<Matrix> found(static_cast<std::size_t>(ranks));
  all.run([&](const Communicator& rank) {
    const Executor executor(1, rank);
    const std::int64_t own = chunks / ranks, first = own * rank.rank();
    found[static_cast<std::size_t>(rank.rank())] = sum_over_chunks(
        executor, own, size, size, [&](std::int64_t c, Matrix& out) { add_chunk(first + c, out); });
  });
  for (const Matrix& other : found) EXPECT_TRUE(same(other, found[0]));
  return found[0];
}

TEST(SumOverChunks, PowersOfTwoOfRanksGiveTheSameBits) {
  for (const std::int64_t chunks : {8, 64, 128, 512}) {
    const Matrix one = by_ranks(1, chunks, 3);
    for (const int ranks : {2, 4, 8})
      EXPECT_TRUE(same(by_ranks(ranks, chunks, 3), one))
          << chunks << " chunks, " << ranks << " ranks";
  }
}

// Matrices of more than 2^14 entries are added up in fours of chunks: a rank needs whole fours.
TEST(SumOverChunks, PowersOfTwoOfRanksGiveTheSameBitsOfLargeMatrices) {
  for (const std::int64_t chunks : {32, 64, 128}) {
    const Matrix one = by_ranks(1, chunks, 130);
    for (const int ranks : {2, 4, 8})
      EXPECT_TRUE(same(by_ranks(ranks, chunks, 130), one))
          << chunks << " chunks, " << ranks << " ranks";
  }
}

RC_GTEST_PROP(ShareOf, RowsAreCutIntoWholeChunks, ()) {
  const auto rows = *rc::gen::inRange<std::int64_t>(0, 20000);
  const auto size = *rc::gen::inRange(1, 12);
  std::vector<Share> shares(static_cast<std::size_t>(size));
  ThreadRanks(size).run([&](const Communicator& rank) {
    shares[static_cast<std::size_t>(rank.rank())] = share_of(rank, rows);
  });
  std::int64_t next = 0, least = rows, most = 0;
  for (const Share& share : shares) {
    RC_ASSERT(share.first == next);
    RC_ASSERT(share.count >= 0);
    next += share.count;
    if (next < rows) RC_ASSERT(next % kChunkRows == 0);
    const std::int64_t chunks = (share.count + kChunkRows - 1) / kChunkRows;
    least = std::min(least, chunks);
    most = std::max(most, chunks);
  }
  RC_ASSERT(next == rows);
  RC_ASSERT(rows == 0 || most - least <= 1);  // no rank has much more to do
}

TEST(Executor, DoesEachPieceOnce) {
  for (const int threads : {-1, 0, 1, 2, 5})
    for (const std::int64_t count : {0, 1, 2, 100}) {
      const Executor executor(threads);
      EXPECT_EQ(executor.threads(), std::max(1, threads));
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
      executor.parallel(count, [&](std::int64_t i) { ++done[static_cast<std::size_t>(i)]; });
      for (const auto& times : done) EXPECT_EQ(times, 1);
    }
}

TEST(Executor, LoopsMayBeNested) {
  const Executor executor(3);
  std::atomic<int> done = 0;
  executor.parallel(10,
                    [&](std::int64_t) { executor.parallel(10, [&](std::int64_t) { ++done; }); });
  EXPECT_EQ(done, 100);
}

TEST(Executor, WhatAPieceThrowsReachesTheCaller) {
  for (const int threads : {1, 3}) {
    const Executor executor(threads);
    EXPECT_THROW(executor.parallel(20,
                                   [](std::int64_t i) {
                                     if (i == 13) throw std::runtime_error("13");
                                   }),
                 std::runtime_error);
    std::atomic<int> after = 0;
    executor.parallel(20, [&](std::int64_t) { ++after; });  // and it can be used again
    EXPECT_EQ(after, 20);
  }
}

TEST(Executor, CountsOperationsOfAllThreads) {
  const Executor executor(4);
  executor.parallel(100, [&](std::int64_t i) { executor.count(static_cast<double>(i)); });
  EXPECT_EQ(executor.operations(), 4950);
}

}  // namespace
}  // namespace tplimit::engines
