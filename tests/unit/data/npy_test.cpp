#include <bit>
#include <limits>
#include <string>

#include "files.hpp"

namespace tplimit {
namespace {

using test::big_endian;
using test::Folder;
using test::is_error;
using test::is_ok;
using test::little_endian;
using Values = std::vector<double>;
using Shape = std::vector<std::int64_t>;

std::string with_header(const std::string& dictionary, const std::string& numbers,
                        char version = 1) {
  return std::string("\x93NUMPY") + version + '\0' +
         little_endian(dictionary.size(), version == 1 ? 2 : 4) + dictionary + numbers;
}

std::string npy(const std::string& descr, const std::string& shape, const std::string& numbers,
                bool fortran = false) {
  return with_header("{'descr': '" + descr + "', 'fortran_order': " + (fortran ? "True" : "False") +
                         ", 'shape': " + shape + ", }     \n",
                     numbers);
}

Result<DataSet> read(const std::string& bytes, const DataOptions& options = {}) {
  const Folder folder;
  return read_npy(folder.write("x.npy", bytes), options);
}

TEST(Npy, ReadsEveryElementType) {
  const auto f8 = [](double x) { return std::bit_cast<std::uint64_t>(x); };
  const auto f4 = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  constexpr std::uint64_t kMinusTwo = ~std::uint64_t{1};
  struct Case {
    std::string descr, numbers;
    Values expected;
  };
  std::vector<Case> cases = {
      {"|b1", std::string("\0\1", 2), {0, 1}},
      {"|u1", "\x01\xff", {1, 255}},
      {"|i1", "\x01\xfe", {1, -2}},
      {"<f4", little_endian(f4(0.1F), 4) + little_endian(f4(-3), 4), {double{0.1F}, -3}},
      {">f4", big_endian(f4(0.1F), 4) + big_endian(f4(-3), 4), {double{0.1F}, -3}},
      {"<f8", little_endian(f8(0.1), 8) + little_endian(f8(-3), 8), {0.1, -3}},
      {">f8", big_endian(f8(0.1), 8) + big_endian(f8(-3), 8), {0.1, -3}}};
  for (const std::size_t size : {2U, 4U, 8U}) {
    const std::string digit = std::to_string(size);
    cases.push_back({"<u" + digit, little_endian(513, size) + little_endian(7, size), {513, 7}});
    cases.push_back({">u" + digit, big_endian(513, size) + big_endian(7, size), {513, 7}});
    cases.push_back(
        {"<i" + digit, little_endian(513, size) + little_endian(kMinusTwo, size), {513, -2}});
    cases.push_back({">i" + digit, big_endian(513, size) + big_endian(kMinusTwo, size), {513, -2}});
  }
  for (const Case& c : cases) {
    const auto data = read(npy(c.descr, "(2,)", c.numbers));
    ASSERT_TRUE(is_ok(data)) << c.descr;
    EXPECT_EQ(data->features.shape, (Shape{2})) << c.descr;
    EXPECT_EQ(data->features.values, c.expected) << c.descr;
  }
}

TEST(Npy, ReadsVersionsQuotesAndKeyOrders) {
  for (const char version : {'\1', '\2', '\3'}) {
    EXPECT_TRUE(is_ok(read(
        with_header(R"({"shape":(1L,2L),"fortran_order":False,"descr":"|u1"})", "ab", version))));
  }
}

TEST(Npy, ReadsFortranOrder) {
  std::string bytes;  // shape (3, 2, 2), value 100 i + 10 j + k, first axis fastest
  for (char k = 0; k < 2; ++k) {
    for (char j = 0; j < 2; ++j) {
      for (char i = 0; i < 3; ++i) bytes += static_cast<char>(100 * i + 10 * j + k);
    }
  }
  const auto all = read(npy("|u1", "(3, 2, 2)", bytes, true));
  ASSERT_TRUE(is_ok(all));
  EXPECT_EQ(all->features.shape, (Shape{3, 2, 2}));
  EXPECT_EQ(all->features.values, (Values{0, 1, 10, 11, 100, 101, 110, 111, 200, 201, 210, 211}));
  const auto one = read(npy("|u1", "(3, 2, 2)", bytes, true),
                        {.rows = DataOptions::Rows{1, 2}, .flatten = true});
  ASSERT_TRUE(is_ok(one));
  EXPECT_EQ(one->features.shape, (Shape{1, 4}));
  EXPECT_EQ(one->features.values, (Values{100, 101, 110, 111}));
}

TEST(Npy, ReadsArraysLongerThanOneChunk) {
  constexpr std::size_t kRows = 2000, kColumns = 37;
  std::string c_order, fortran_order;
  const auto value = [](std::size_t i, std::size_t j) {
    return little_endian(i * kColumns + j, 4);
  };
  for (std::size_t i = 0; i < kRows; ++i) {
    for (std::size_t j = 0; j < kColumns; ++j) c_order += value(i, j);
  }
  for (std::size_t j = 0; j < kColumns; ++j) {
    for (std::size_t i = 0; i < kRows; ++i) fortran_order += value(i, j);
  }
  const DataOptions options{.rows = DataOptions::Rows{3, 1999}};
  for (const bool fortran : {false, true}) {
    const auto data =
        read(npy("<i4", "(2000, 37)", fortran ? fortran_order : c_order, fortran), options);
    ASSERT_TRUE(is_ok(data));
    ASSERT_EQ(data->features.values.size(), 1996 * kColumns);
    for (std::size_t i = 0; i < data->features.values.size(); ++i)
      ASSERT_EQ(data->features.values[i], static_cast<double>(i + 3 * kColumns));
  }
}

TEST(Npy, SelectsRowsAndFlattens) {
  const auto data =
      read(npy("|u1", "(3, 1, 2)", "abcdef"), {.rows = DataOptions::Rows{1, 3}, .flatten = true});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.shape, (Shape{2, 2}));
  EXPECT_EQ(data->features.values, (Values{'c', 'd', 'e', 'f'}));
  const auto labels = read(npy("|u1", "(3,)", "abc"), {.flatten = true});
  ASSERT_TRUE(is_ok(labels));
  EXPECT_EQ(labels->features.shape, (Shape{3}));
}

TEST(Npy, StandardizesEachPlaceOfASample) {
  const auto data =
      read(npy("|u1", "(2, 2, 2)", std::string("\1\2\3\4\1\4\3\2", 8)), {.standardize = true});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values, (Values{0, -1, 0, 1, 0, 1, 0, -1}));
  ASSERT_EQ(data->warnings.size(), 1U);
  EXPECT_EQ(data->warnings[0].code, "W5201");
  EXPECT_NE(data->warnings[0].message.find("[:, 0, 0], [:, 1, 0]"), std::string::npos);
}

TEST(Npy, ReadsOnlyTheSelectedRowsOfALargeFile) {
  const Folder folder;
  const auto file = folder.write("big.npy", npy("<f8", "(1000000000, 4)", ""));
  const auto header = std::filesystem::file_size(file);
  std::error_code error;
  std::filesystem::resize_file(file, header + 32'000'000'000ULL, error);
  if (error) GTEST_SKIP() << "no sparse files here";
  const auto data = read_npy(file, {.rows = DataOptions::Rows{999'999'998, 1'000'000'000}});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values, Values(8, 0.0));
}

TEST(Npy, RefusesWhatCannotBeOpened) {
  const Folder folder;
  EXPECT_TRUE(is_error(read_npy(folder.path() / "none.npy", {}), "E5101", {"none.npy"}));
  EXPECT_TRUE(is_error(read_npy(folder.path(), {}), "E5101"));
}

TEST(Npy, RefusesNumbersThatAreNotFinite) {
  const auto f8 = [](double x) { return little_endian(std::bit_cast<std::uint64_t>(x), 8); };
  const std::string numbers = f8(1) + f8(2) + f8(3) + f8(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(
      is_error(read(npy("<f8", "(2, 1, 2)", numbers)), "E5105", {"x.npy: value [1, 0, 1] is NaN"}));
  EXPECT_TRUE(
      is_error(read(npy("<f8", "(2, 1, 2)", numbers, true)), "E5105", {"value [1, 0, 1] is NaN"}));
  EXPECT_TRUE(is_ok(read(npy("<f8", "(2, 1, 2)", numbers), {.rows = DataOptions::Rows{0, 1}})));
  EXPECT_TRUE(is_error(read(npy("<f8", "(1,)", f8(-std::numeric_limits<double>::infinity()))),
                       "E5105", {"value [0] is infinite"}));
}

TEST(Npy, RefusesRowsOutOfRange) {
  EXPECT_TRUE(is_error(read(npy("|u1", "(2, 2)", "abcd"), {.rows = DataOptions::Rows{0, 3}}),
                       "E5107", {"2 rows"}));
  EXPECT_TRUE(
      is_error(read(npy("|u1", "(2, 2)", "abcd"), {.rows = DataOptions::Rows{-1, 1}}), "E5107"));
  EXPECT_TRUE(
      is_error(read(npy("|u1", "(2, 2)", "abcd"), {.rows = DataOptions::Rows{1, 1}}), "E5107"));
}

TEST(Npy, RefusesOptionsOfTables) {
  EXPECT_TRUE(is_error(read(npy("|u1", "(2,)", "ab"), {.targets = {"y"}}), "E5108"));
  EXPECT_TRUE(is_error(read(npy("|u1", "(2,)", "ab"), {.columns = {"x"}}), "E5108"));
  EXPECT_TRUE(is_error(read(npy("|u1", "(2,)", "ab"), {.standardize_target = true}), "E5108"));
}

TEST(Npy, RefusesOtherFiles) {
  EXPECT_TRUE(is_error(read(""), "E5111"));
  EXPECT_TRUE(is_error(read("\x93NUMP"), "E5111"));
  EXPECT_TRUE(is_error(read("a,b\n1,2\n"), "E5111"));
  EXPECT_TRUE(is_error(read(std::string("\x93NUMPY\x04\0\1\0", 10)), "E5111", {"version 4"}));
  EXPECT_TRUE(is_error(read(std::string("\x93NUMPY\x01\0\xff\xff", 10)), "E5111", {"cut off"}));
  EXPECT_TRUE(
      is_error(read(std::string("\x93NUMPY\x02\0\xff\xff\xff\xff", 12)), "E5111", {"cut off"}));
  const auto zip = read("PK\x03\x04 and so on");
  ASSERT_TRUE(is_error(zip, "E5111"));
  EXPECT_NE(zip.errors()[0].help.find("npz"), std::string::npos);
}

TEST(Npy, RefusesHeadersItDoesNotUnderstand) {
  for (const char* text :
       {"", "{", "}", "{}", "{'descr': '<f8'}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)",
        "{'descr': '<f8', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-2,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2 3)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 2}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)} x",
        "{'descr': '<f8' 'fortran_order': False, 'shape': (2,)}",
        "{'other': '<f8', 'fortran_order': False, 'shape': (2,)}"}) {
    EXPECT_TRUE(is_error(read(with_header(text, std::string(16, 'x'))), "E5111", {"header"}))
        << text;
  }
}

TEST(Npy, RefusesTruncatedLongAndEmptyArrays) {
  EXPECT_TRUE(is_error(read(npy("<f8", "(2,)", std::string(15, 'x'))), "E5111",
                       {"truncated", "needs 16 bytes, the file has 15"}));
  EXPECT_TRUE(is_error(read(npy("|u1", "(2,)", "abc")), "E5111", {"longer"}));
  EXPECT_TRUE(is_error(read(npy("|u1", "(0, 3)", "")), "E5111", {"no values", "(0, 3)"}));
  EXPECT_TRUE(is_error(read(npy("|u1", "()", "a")), "E5111", {"single number"}));
}

TEST(Npy, DoesNotBelieveHugeShapes) {
  for (const char* shape :
       {"(9223372036854775807,)", "(4294967296, 4294967296)",
        "(9223372036854775807, 9223372036854775807, 2)", "(3037000500, 3037000500)",
        "(1, 9223372036854775807, 9223372036854775807)"}) {
    EXPECT_TRUE(is_error(read(npy("<f8", shape, "12345678")), "E5111", {"truncated"})) << shape;
    EXPECT_TRUE(
        is_error(read(npy("<f8", shape, "12345678"), {.rows = DataOptions::Rows{0, 1}}), "E5111"))
        << shape;
  }
  EXPECT_TRUE(is_error(read(npy("<f8", "(9223372036854775807, 0, 9223372036854775807)", "")),
                       "E5111", {"no values"}));
}

TEST(Npy, RefusesOtherElements) {
  for (const char* descr :
       {"|O", "<c16", "<U5", "|S3", "<f2", "<f16", "<M8[ns]", "|V8", "<i3", "", "<", "<f", "xf8"}) {
    EXPECT_TRUE(is_error(read(npy(descr, "(2,)", std::string(16, 'x'))), "E5112",
                         {std::string("'") + descr + "'"}))
        << descr;
  }
  EXPECT_TRUE(is_error(
      read(with_header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,)}", "")),
      "E5112", {"record"}));
}

TEST(Npy, SurvivesDamagedAndRandomFiles) {
  const auto reader = [](const std::filesystem::path& file) {
    return read_npy(file, {.standardize = true});
  };
  test::expect_no_crash(reader, npy("<i2", "(3, 2)", "abcdefghijkl"), 150);
  test::expect_no_crash(reader, npy(">f4", "(3, 2)", "ABCDEFGHIJKLABCDEFGHIJKL", true), 150);
}

}  // namespace
}  // namespace tplimit
