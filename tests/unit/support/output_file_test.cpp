#include "tplimit/support/output_file.hpp"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

namespace tplimit {
namespace {

namespace fs = std::filesystem;

class OutputFile : public ::testing::Test {
 protected:
  OutputFile()
      : folder_(fs::temp_directory_path() /
                ("tplimit_output_file_test." + std::to_string(getpid()))) {
    fs::create_directories(folder_);
  }
  ~OutputFile() override { fs::remove_all(folder_); }
  [[nodiscard]] std::string content() const {
    std::ostringstream text;
    text << std::ifstream(file()).rdbuf();
    return text.str();
  }
  [[nodiscard]] fs::path file() const { return folder_ / "file"; }
  [[nodiscard]] long entries() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }
  fs::path folder_;
};

TEST_F(OutputFile, IsReplacedAsAWhole) {
  EXPECT_EQ(write_file(file(), "old"), "");
  fs::permissions(file(), fs::perms::owner_read | fs::perms::owner_write);
  FileReplacement fresh(file());
  fresh.write("ne", 2);
  EXPECT_EQ(content(), "old");
  fresh.write("w", 1);
  EXPECT_EQ(fresh.commit(), "");
  EXPECT_EQ(content(), "new");
  EXPECT_EQ(fs::status(file()).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(entries(), 1);
}

TEST_F(OutputFile, StaysWhereNothingIsCommitted) {
  EXPECT_EQ(write_file(file(), "old"), "");
  {
    FileReplacement fresh(file());
    fresh.write("new", 3);
    for (const auto& entry : fs::directory_iterator(folder_))
      EXPECT_EQ(FileReplacement::is_leftover(entry.path()), entry.path() != file());
  }
  EXPECT_EQ(content(), "old");
  EXPECT_EQ(entries(), 1);
}

TEST_F(OutputFile, FollowsLinks) {
  EXPECT_EQ(write_file(file(), "old"), "");
  fs::create_symlink("file", folder_ / "link");
  EXPECT_EQ(write_file(folder_ / "link", "text"), "");
  EXPECT_EQ(content(), "text");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
}

TEST_F(OutputFile, SaysWhyItCannotBeWritten) {
  FileReplacement fresh(folder_ / "missing" / "file");
  fresh.write("new", 3);
  EXPECT_NE(fresh.commit().find("No such file or directory"), std::string::npos);
  EXPECT_NE(write_file(folder_, "text").find("it is a folder"), std::string::npos);
  EXPECT_NE(why_not_writable(folder_ / "missing" / "file"), "");
  EXPECT_EQ(why_not_writable(file()), "");
  EXPECT_EQ(entries(), 0);
}

}  // namespace
}  // namespace tplimit
