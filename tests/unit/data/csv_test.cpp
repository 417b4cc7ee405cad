#include <clocale>
#include <limits>
#include <string>

#include "files.hpp"

namespace tplimit {
namespace {

using test::Folder;
using test::is_error;
using test::is_ok;
using Values = std::vector<double>;
using Shape = std::vector<std::int64_t>;

Result<DataSet> read(std::string_view text, const DataOptions& options = {}) {
  const Folder folder;
  return read_csv(folder.write("table.csv", text), options);
}

TEST(Csv, ReadsEveryColumnAsFeature) {
  const auto data = read("a,b\n1,2\n3,4.5\n-5,6e-1\n");
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.shape, (Shape{3, 2}));
  EXPECT_EQ(data->features.values, (Values{1, 2, 3, 4.5, -5, 0.6}));
  EXPECT_FALSE(data->target);
  EXPECT_TRUE(data->warnings.empty());
}

TEST(Csv, SplitsTargetsFromFeatures) {
  const auto one = read("a,b,c\n1,2,3\n4,5,6\n", {.targets = {"b"}});
  ASSERT_TRUE(is_ok(one));
  EXPECT_EQ(one->features.values, (Values{1, 3, 4, 6}));
  EXPECT_EQ(one->target->shape, (Shape{2}));
  EXPECT_EQ(one->target->values, (Values{2, 5}));

  const auto two = read("a,b,c\n1,2,3\n4,5,6\n", {.targets = {"c", "a"}});
  ASSERT_TRUE(is_ok(two));
  EXPECT_EQ(two->features.shape, (Shape{2, 1}));
  EXPECT_EQ(two->target->shape, (Shape{2, 2}));
  EXPECT_EQ(two->target->values, (Values{3, 1, 6, 4}));
}

TEST(Csv, TakesNamedColumnsInTheirOrderAndIgnoresTextElsewhere) {
  const auto data = read("name,x,y\nanna,1,2\n\"b, c\",3,4\n", {.columns = {"y", "x"}});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values, (Values{2, 1, 4, 3}));
}

TEST(Csv, UnderstandsQuotesLineEndsSpacesAndByteOrderMark) {
  const auto data =
      read("\xEF\xBB\xBF\"say \"\"a\"\"\" , \"two\nlines\",b\r\n 1 ,\"2\", +3\r\n4,5,\t6\r\n\r\n\n",
           {.targets = {"say \"a\"", "two\nlines"}});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values, (Values{3, 6}));
  EXPECT_EQ(data->target->values, (Values{1, 2, 4, 5}));
  const auto old_mac = read("a,b\r1,2\r3,4");
  ASSERT_TRUE(is_ok(old_mac));
  EXPECT_EQ(old_mac->features.values, (Values{1, 2, 3, 4}));
}

TEST(Csv, ReadsNumbersToTheLastBitWhateverTheLocale) {
  const std::string before = std::setlocale(LC_ALL, nullptr);
  for (const char* locale : {"de_DE.UTF-8", "fr_FR.UTF-8"}) {
    if (std::setlocale(LC_ALL, locale) != nullptr)
      break;  // where none is installed the test checks less
  }
  const auto data =
      read("a\n0.1\n3.141592653589793\n1.7976931348623157e308\n5e-324\n1e-400\n-0.000001e-320\n");
  std::setlocale(LC_ALL, before.c_str());
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values,
            (Values{0.1, 3.141592653589793, std::numeric_limits<double>::max(),
                    std::numeric_limits<double>::denorm_min(), 0, 0}));
}

TEST(Csv, SelectsRows) {
  const auto data = read("a\n0\n1\n2\n3\n", {.rows = DataOptions::Rows{1, 3}});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values, (Values{1, 2}));
}

TEST(Csv, IgnoresBadNumbersOutsideTheSelectedRows) {
  EXPECT_TRUE(is_ok(read("a\nx\n1\n2\n3,4\n", {.rows = DataOptions::Rows{1, 3}})));
}

TEST(Csv, StandardizesOverTheSelectedRows) {
  const auto data = read("a,b,y\n100,7,1\n1,7,2\n3,7,6\n",
                         {.rows = DataOptions::Rows{1, 3}, .targets = {"y"}, .standardize = true});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values, (Values{-1, 0, 1, 0}));
  EXPECT_EQ(data->target->values, (Values{2, 6}));
  ASSERT_EQ(data->warnings.size(), 1U);
  EXPECT_EQ(data->warnings[0].code, "W5201");
  EXPECT_EQ(data->warnings[0].severity, Severity::kWarning);
  EXPECT_NE(
      data->warnings[0].message.find("1 column is constant over the selected rows and became 0: b"),
      std::string::npos);
}

TEST(Csv, ColumnsOfZerosStayZerosWithoutAWarning) {
  const auto data = read("a,b\n0,1\n0,3\n", {.standardize = true});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values, (Values{0, -1, 0, 1}));
  EXPECT_TRUE(data->warnings.empty());
}

TEST(Csv, StandardizesTargets) {
  const auto data = read("a,y\n1,10\n2,14\n", {.targets = {"y"}, .standardize_target = true});
  ASSERT_TRUE(is_ok(data));
  EXPECT_EQ(data->features.values, (Values{1, 2}));
  EXPECT_EQ(data->target->values, (Values{-1, 1}));
}

TEST(Csv, StandardizesHugeTinyAndShiftedColumnsAlike) {
  const auto data =
      read("a,b,c\n-1.7e308,1e-320,1e9\n1.7e308,3e-320,1000000001\n", {.standardize = true});
  ASSERT_TRUE(is_ok(data));
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(data->features.values[i], -1, 1e-14);
    EXPECT_NEAR(data->features.values[i + 3], 1, 1e-14);
  }
  EXPECT_TRUE(data->warnings.empty());
}

TEST(Csv, NamesAtMostFiveConstantColumnsInOneWarning) {
  const auto data =
      read("a,b,c,d,e,f,g,y\n1,1,1,1,1,0.3,0.30000000000000004,5\n1,1,1,1,1,0.3,0.3,5\n",
           {.targets = {"y"}, .standardize = true, .standardize_target = true});
  ASSERT_TRUE(is_ok(data));
  ASSERT_EQ(data->warnings.size(), 1U);
  EXPECT_NE(data->warnings[0].message.find("8 columns are"), std::string::npos);
  EXPECT_NE(data->warnings[0].message.find("a, b, c, d, e and 3 more"), std::string::npos);
  EXPECT_EQ(data->features.values, Values(14, 0.0));
  EXPECT_EQ(data->target->values, Values(2, 0.0));
}

TEST(Csv, RefusesWhatCannotBeOpened) {
  const Folder folder;
  EXPECT_TRUE(
      is_error(read_csv(folder.path() / "none.csv", {}), "E5101", {"none.csv", "no such file"}));
  EXPECT_TRUE(is_error(read_csv(folder.path(), {}), "E5101", {"it is a folder"}));
  EXPECT_TRUE(is_error(read_csv("/dev/null", {}), "E5101"));
}

TEST(Csv, RefusesFilesWithoutHeaderOrRows) {
  EXPECT_TRUE(is_error(read(""), "E5102", {"table.csv", "empty"}));
  EXPECT_TRUE(is_error(read("\n1,2\n"), "E5102", {"first line is empty"}));
  EXPECT_TRUE(is_error(read("a,b\n"), "E5102", {"no rows"}));
  EXPECT_TRUE(is_error(read("a,b\n\n\n"), "E5102", {"no rows"}));
  EXPECT_TRUE(is_error(read("1,2\n3,4\n"), "E5102", {"holds numbers"}));
  EXPECT_TRUE(is_ok(read("\"1\",\"2\"\n3,4\n")));
  EXPECT_TRUE(is_error(read("\x1f\x8b\x08gzip"), "E5102", {"not text"}));
  EXPECT_TRUE(is_ok(read("PK\n1\n")));
}

TEST(Csv, RefusesRaggedRows) {
  EXPECT_TRUE(is_error(read("a,b\n1,2\n3\n"), "E5103", {"line 3", "1 value", "2 columns"}));
  EXPECT_TRUE(is_error(read("a,b\n1,2,3\n"), "E5103", {"line 2", "3 values"}));
  EXPECT_TRUE(is_error(read("a\n1\n\n2\n"), "E5103", {"line 3", "empty"}));
  EXPECT_TRUE(is_error(read("a,b\n1,\"2\n3,4\n"), "E5103", {"line 2", "never closed"}));
  EXPECT_TRUE(is_error(read("a,\"b\" c\n1,2\n"), "E5103", {"line 1", "after a closing quote"}));
  EXPECT_TRUE(is_error(read("\"two\nlines\"\n1\n2,3\n"), "E5103", {"line 4"}));
}

TEST(Csv, RefusesTextWhereANumberIsNeeded) {
  EXPECT_TRUE(is_error(read("a,size\n1,2\n3,big\n"), "E5104",
                       {"table.csv: line 3, column 'size'", "'big' is not a number"}));
  EXPECT_TRUE(is_error(read("a,b\n1,\n"), "E5104", {"line 2, column 'b'", "missing"}));
  for (const char* text : {"0x10", "1.5x", "+-1", "1 2", "1d5", "--1", ".", "e5", "1,,2"}) {
    EXPECT_FALSE(read(std::string("a\n") + text + "\n").ok()) << text;
  }
  const auto separator = read("a;b\n1;2\n");
  ASSERT_TRUE(is_error(separator, "E5104"));
  EXPECT_NE(separator.errors()[0].help.find("commas"), std::string::npos);
  EXPECT_TRUE(is_error(read(std::string("a\n\x01\x02") + std::string(100, 'x') + "\n"), "E5104",
                       {"\\x01\\x02xxx", "..."}));
}

TEST(Csv, RefusesNumbersThatAreNotFinite) {
  EXPECT_TRUE(is_error(read("a,b\n1,nan\n"), "E5105", {"line 2, column 'b'", "NaN"}));
  EXPECT_TRUE(is_error(read("a\n-Infinity\n"), "E5105", {"infinite"}));
  for (const char* text :
       {"1e309", "-1e999", "1e99999999999999999999", "123456789e301", "0.001e312"}) {
    EXPECT_TRUE(is_error(read(std::string("a\n") + text + "\n"), "E5105")) << text;
  }
}

TEST(Csv, RefusesColumnsThatAreUnknownAmbiguousOrRepeated) {
  EXPECT_TRUE(is_error(read("a,b\n1,2\n", {.targets = {"y"}}), "E5106", {"no column 'y'"}));
  EXPECT_TRUE(is_error(read("a,b\n1,2\n", {.columns = {"A"}}), "E5106", {"no column 'A'"}));
  EXPECT_TRUE(is_error(read("a,b,b\n1,2,3\n", {.targets = {"b"}}), "E5106", {"two columns"}));
  EXPECT_TRUE(is_error(read("a,b\n1,2\n", {.columns = {"a", "a"}}), "E5106", {"twice"}));
  EXPECT_TRUE(is_error(read("a,b\n1,2\n", {.targets = {"a"}, .columns = {"a"}}), "E5106",
                       {"as a feature and as a target"}));
  EXPECT_TRUE(is_error(read("a\n1\n", {.targets = {"a"}}), "E5106", {"no feature"}));
  EXPECT_TRUE(is_ok(read("a,b,b\n1,2,3\n", {.targets = {"a"}})));
}

TEST(Csv, RefusesRowsOutOfRange) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  EXPECT_TRUE(
      is_error(read("a\n1\n2\n", {.rows = DataOptions::Rows{0, 3}}), "E5107", {"0..3", "2 rows"}));
  EXPECT_TRUE(is_error(read("a\n1\n2\n", {.rows = DataOptions::Rows{-1, 2}}), "E5107"));
  EXPECT_TRUE(
      is_error(read("a\n1\n2\n", {.rows = DataOptions::Rows{1, 1}}), "E5107", {"selects no row"}));
  EXPECT_TRUE(is_error(read("a\n1\n2\n", {.rows = DataOptions::Rows{2, 1}}), "E5107"));
  EXPECT_TRUE(is_error(read("a\n1\n2\n", {.rows = DataOptions::Rows{-kMax, kMax}}), "E5107"));
}

TEST(Csv, RefusesToStandardizeATargetThatIsNotThere) {
  EXPECT_TRUE(is_error(read("a\n1\n", {.standardize_target = true}), "E5108", {"no target"}));
}

TEST(Csv, SurvivesDamagedAndRandomFiles) {
  const auto reader = [](const std::filesystem::path& file) {
    return read_csv(file, {.targets = {"y"}, .standardize = true, .standardize_target = true});
  };
  test::expect_no_crash(reader, "a,\"b \"\"c\"\"\",y\n1,2.5e10,3\n-4,5,6\n7,\"8\",9\n", 150);
}

}  // namespace
}  // namespace tplimit
