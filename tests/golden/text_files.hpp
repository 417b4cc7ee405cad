#pragma once

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

/// Files of the repository as the golden tests read them.
namespace tplimit::test {

inline std::string read_text(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + file.string());
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// Regular files of a folder with this extension, by name.
inline std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder,
                                                   const std::string& extension) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_regular_file() && entry.path().extension() == extension)
      files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

/// Codes such as E2103 and W5301 that stand in a text as words of their own.
inline std::set<std::string> diagnostic_codes(const std::string& text) {
  std::set<std::string> codes;
  const auto is_digit = [&](std::size_t i) {
    return i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) != 0;
  };
  const auto is_word = [&](std::size_t i) {
    return i < text.size() &&
           (std::isalnum(static_cast<unsigned char>(text[i])) != 0 || text[i] == '_');
  };
  for (std::size_t i = 0; i + 5 <= text.size(); ++i) {
    if (text[i] != 'E' && text[i] != 'W') continue;
    if (i > 0 && is_word(i - 1)) continue;
    if (is_digit(i + 1) && is_digit(i + 2) && is_digit(i + 3) && is_digit(i + 4) && !is_word(i + 5))
      codes.insert(text.substr(i, 5));
  }
  return codes;
}

/// The codes that the sources can give: string literals "E2103" in src/.
inline std::set<std::string> codes_of_the_sources() {
  std::set<std::string> codes;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(
           std::filesystem::path(TPLIMIT_SOURCE_DIR) / "src")) {
    const auto extension = entry.path().extension();
    if (extension != ".cpp" && extension != ".hpp") continue;
    const std::string text = read_text(entry.path());
    for (const std::string& code : diagnostic_codes(text))
      if (text.find('"' + code + '"') != std::string::npos) codes.insert(code);
  }
  return codes;
}

}  // namespace tplimit::test
