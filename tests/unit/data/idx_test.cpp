#include <bit>
#include <string>

#include "files.hpp"

namespace tplimit {
namespace {

using test::big_endian;
using test::Folder;
using test::is_error;
using test::is_ok;
using Values = std::vector<double>;
using Shape = std::vector<std::int64_t>;

std::string idx(char type, const std::vector<std::uint64_t>& shape, const std::string& numbers) {
  std::string bytes = std::string(2, '\0') + type + static_cast<char>(shape.size());
  for (const std::uint64_t axis : shape) bytes += big_endian(axis, 4);
  return bytes + numbers;
}

Result<DataSet> read(const std::string& bytes, const DataOptions& options = {}) {
  const Folder folder;
  return read_idx(folder.write("x-idx3-ubyte", bytes), options);
}

TEST(Idx, ReadsEveryElementType) {
  struct Case {
    char type;
    std::string numbers;
    Values expected;
  };
  const Case cases[] = {{0x08, "\x01\xff", {1, 255}},
                        {0x09, "\x01\xfe", {1, -2}},
                        {0x0B, big_endian(513, 2) + big_endian(0xFFFE, 2), {513, -2}},
                        {0x0C, big_endian(66051, 4) + big_endian(0xFFFFFFFE, 4), {66051, -2}},
                        {0x0D,
                         big_endian(std::bit_cast<std::uint32_t>(0.1F), 4) +
                             big_endian(std::bit_cast<std::uint32_t>(-3.0F), 4),
                         {double{0.1F}, -3}},
                        {0x0E,
                         big_endian(std::bit_cast<std::uint64_t>(0.1), 8) +
                             big_endian(std::bit_cast<std::uint64_t>(-3.0), 8),
                         {0.1, -3}}};
  for (const Case& c : cases) {
    const auto data = read(idx(c.type, {2}, c.numbers));
    ASSERT_TRUE(is_ok(data)) << int{c.type};
    EXPECT_EQ(data->features.shape, (Shape{2}));
    EXPECT_EQ(data->features.values, c.expected) << int{c.type};
  }
}

TEST(Idx, SelectsRowsFlattensAndStandardizes) {
  const std::string images = idx(8, {3, 2, 2}, "abcdefghijkl");
  const auto plain = read(images);
  ASSERT_TRUE(is_ok(plain));
  EXPECT_EQ(plain->features.shape, (Shape{3, 2, 2}));
  const auto part =
      read(images, {.rows = DataOptions::Rows{1, 3}, .standardize = true, .flatten = true});
  ASSERT_TRUE(is_ok(part));
  EXPECT_EQ(part->features.shape, (Shape{2, 4}));
  EXPECT_EQ(part->features.values, (Values{-1, -1, -1, -1, 1, 1, 1, 1}));
  EXPECT_TRUE(part->warnings.empty());
  const auto constant = read(images, {.rows = DataOptions::Rows{1, 2}, .standardize = true});
  ASSERT_TRUE(is_ok(constant));
  EXPECT_EQ(constant->features.values, Values(4, 0.0));
  ASSERT_EQ(constant->warnings.size(), 1U);
  EXPECT_EQ(constant->warnings[0].code, "W5201");
}

TEST(Idx, RefusesWhatCannotBeOpened) {
  const Folder folder;
  EXPECT_TRUE(is_error(read_idx(folder.path() / "none", {}), "E5101"));
}

TEST(Idx, RefusesNumbersThatAreNotFinite) {
  EXPECT_TRUE(is_error(read(idx(0x0D, {1, 2}, big_endian(0, 4) + big_endian(0x7F800000, 4))),
                       "E5105", {"[0, 1] is infinite"}));
}

TEST(Idx, RefusesRowsOutOfRangeAndOptionsOfTables) {
  EXPECT_TRUE(is_error(read(idx(8, {2}, "ab"), {.rows = DataOptions::Rows{0, 3}}), "E5107"));
  EXPECT_TRUE(is_error(read(idx(8, {2}, "ab"), {.targets = {"y"}}), "E5108"));
}

TEST(Idx, RefusesOtherAndDamagedFiles) {
  EXPECT_TRUE(is_error(read(""), "E5113"));
  EXPECT_TRUE(is_error(read(std::string(3, '\0')), "E5113", {"3 bytes"}));
  EXPECT_TRUE(is_error(read("text, not numbers"), "E5113"));
  EXPECT_TRUE(is_error(read(idx(0x0A, {1}, "a")), "E5113", {"00 00 0a 01"}));
  EXPECT_TRUE(is_error(read(idx(8, {}, "")), "E5113", {"single number"}));
  EXPECT_TRUE(is_error(read(idx(8, {2, 2}, "").substr(0, 9)), "E5113", {"cut off", "2 axes"}));
  EXPECT_TRUE(is_error(read(idx(8, {2, 2}, "abc")), "E5113", {"truncated"}));
  EXPECT_TRUE(is_error(read(idx(8, {2, 2}, "abcde")), "E5113", {"longer"}));
  EXPECT_TRUE(is_error(read(idx(8, {2, 0}, "")), "E5113", {"no values"}));
  const auto packed = read("\x1f\x8b\x08 and so on");
  ASSERT_TRUE(is_error(packed, "E5113"));
  EXPECT_NE(packed.errors()[0].help.find("gunzip"), std::string::npos);
}

TEST(Idx, DoesNotBelieveHugeShapes) {
  EXPECT_TRUE(is_error(read(idx(8, {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, "abc")), "E5113",
                       {"truncated", "2^63"}));
  EXPECT_TRUE(
      is_error(read(idx(8, std::vector<std::uint64_t>(255, 2), "abc")), "E5113", {"truncated"}));
  EXPECT_TRUE(is_error(read(idx(0x0E, {0x80000000, 0x20000000}, "abc")), "E5113", {"truncated"}));
}

TEST(Idx, SurvivesDamagedAndRandomFiles) {
  const auto reader = [](const std::filesystem::path& file) {
    return read_idx(file, {.standardize = true});
  };
  test::expect_no_crash(reader, idx(8, {3, 2, 2}, "abcdefghijkl"), 150);
  test::expect_no_crash(reader, idx(0x0D, {2, 2}, "abcdefghijklmnop"), 150);
}

}  // namespace
}  // namespace tplimit
