/// One process, alone or as a rank: its memory, and what ranks tell each other.

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/parallel/ranks.hpp"
#include "tplimit/parallel/process_memory.hpp"

namespace tplimit {
namespace {

using test::ThreadRanks;

TEST(SingleProcess, IsTheOnlyRank) {
  const Communicator& alone = single_process();
  EXPECT_EQ(alone.rank(), 0);
  EXPECT_EQ(alone.size(), 1);
  EXPECT_GE(alone.threads(), 1);
  EXPECT_GT(alone.memory(), 1e8);
  std::array values{1.5, -2.0};
  alone.sum(values);
  EXPECT_EQ(values, (std::array{1.5, -2.0}));
  EXPECT_EQ(alone.traffic().sums, 0);
  EXPECT_TRUE(as_on_first_rank(alone, "text"));
}

TEST(AsOnFirstRank, ComparesLengthAndBytes) {
  const std::vector<std::string> texts{"abc", "abc", "abd", "ab", "", "abcd"};
  std::vector<char> same(texts.size());
  ThreadRanks(static_cast<int>(texts.size())).run([&](const Communicator& rank) {
    const auto k = static_cast<std::size_t>(rank.rank());
    same[k] = as_on_first_rank(rank, texts[k]);
  });
  EXPECT_EQ(same, (std::vector<char>{1, 1, 0, 0, 0, 0}));
}

TEST(ProcessMemory, SeesMemoryThatIsUsed) {
  const double before = current_memory(single_process());
  EXPECT_GT(before, 1e5);
  EXPECT_GE(peak_memory(), 0.9 * before);
  constexpr std::size_t kBytes = 100 << 20;
  {
    const auto block = std::make_unique<char[]>(kBytes);
    std::fill_n(block.get(), kBytes, 'x');
    const volatile char last = block[kBytes - 1];
    EXPECT_EQ(last, 'x');
    EXPECT_GT(current_memory(single_process()) - before, 0.9 * kBytes);
  }
  EXPECT_LT(current_memory(single_process()) - before, 0.1 * kBytes);  // given back
  EXPECT_GT(peak_memory() - before, 0.9 * kBytes);                     // but not forgotten
}

TEST(ProcessMemory, AllRanksDecideByThatOfTheFirst) {
  std::vector<double> seen(3);
  ThreadRanks(3).run([&](const Communicator& rank) {
    // Ranks here share a process, and what the others would see differs by what they touch.
    std::vector<char> own(static_cast<std::size_t>(rank.rank()) << 24, 'x');
    EXPECT_EQ(own.size(), static_cast<std::size_t>(rank.rank()) << 24);
    seen[static_cast<std::size_t>(rank.rank())] = current_memory(rank);
  });
  EXPECT_EQ(seen[1], seen[0]);
  EXPECT_EQ(seen[2], seen[0]);
}

TEST(MemoryLimit, IsWhatWasAskedForOrAShare) {
  EXPECT_EQ(memory_limit(5e8, single_process()), 5e8);
  EXPECT_DOUBLE_EQ(memory_limit(0, single_process()), 0.8 * single_process().memory());
}

TEST(BytesText, InUnitsThatPeopleRead) {
  EXPECT_EQ(bytes_text(1.5e9), "1.5 GB");
  EXPECT_EQ(bytes_text(1e9), "1.0 GB");
  EXPECT_EQ(bytes_text(123.4e6), "123 MB");
  EXPECT_EQ(bytes_text(10), "1 MB");  // not 0
}

}  // namespace
}  // namespace tplimit
