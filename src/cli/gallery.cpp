#include "cli/gallery.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "cli/shared.hpp"

namespace tplimit::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFolder = "papers/", kCommand = "#$ tplimit ";

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    out.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

/// As a shell splits a line: blanks separate words, but not between quotes.
std::vector<std::string> words_of(std::string_view line) {
  std::vector<std::string> out;
  bool within = false;
  char quote = 0;
  for (const char c : line) {
    if (quote ? c == quote : c == '\'' || c == '"') {
      quote = quote ? 0 : c;
    } else if (!quote && c == ' ') {
      within = false;
      continue;
    } else {
      if (!within) out.emplace_back();
      out.back() += c;
    }
    if (!within && quote) out.emplace_back();
    within = true;
  }
  return out;
}

/// The words behind `#$ tplimit` of each command at the head of a program.
std::vector<std::vector<std::string>> commands_of(std::string_view text) {
  std::vector<std::vector<std::string>> out;
  for (const std::string_view line : lines_of(text)) {
    if (!line.starts_with(kCommand)) continue;
    out.push_back(words_of(line.substr(kCommand.size())));
  }
  return out;
}

std::string name_of(const GalleryFile& file) { return fs::path(file.path).stem().string(); }

/// "" or why not.  A file that is there and differs is somebody's work.
std::string write_new(const fs::path& path, std::string_view text) {
  if (std::ifstream in(path, std::ios::binary); in) {
    const std::string old{std::istreambuf_iterator<char>(in), {}};
    return old == text ? ""
                       : fmt::format("'{}' is there and has been changed: name another --folder",
                                     path.string());
  }
  std::error_code failure;
  fs::create_directories(path.parent_path(), failure);
  if (failure)
    return fmt::format("cannot make the folder '{}': {}", path.parent_path().string(),
                       failure.message());
  return write_file(path.string(), std::string(text));
}

int list() {
  std::size_t widest = 0;
  for (const std::string& name : gallery_names()) widest = std::max(widest, name.size());
  for (const GalleryFile& file : gallery_files())
    if (file.path.starts_with(kFolder)) {
      std::string_view title = lines_of(file.text).at(0);
      title.remove_prefix(std::min(title.find_first_not_of("# "), title.size()));
      fmt::print("{:{}}  {}\n", name_of(file), widest, title);
    }
  return kDone;
}

}  // namespace

std::vector<std::string> gallery_names() {
  std::vector<std::string> out;
  for (const GalleryFile& file : gallery_files())
    if (file.path.starts_with(kFolder)) out.push_back(name_of(file));
  return out;
}

int gallery(const Options& options) {
  if (options.files.empty()) return list();
  const std::string& name = options.files[0];
  const auto files = gallery_files();
  const auto entry = std::find_if(files.begin(), files.end(), [&](const GalleryFile& file) {
    return file.path.starts_with(kFolder) && name_of(file) == name;
  });
  if (entry == files.end())
    return complain(fmt::format("the gallery has no entry '{}': tplimit gallery lists them", name));
  const fs::path folder = fs::absolute(options.folder.empty() ? name : options.folder);
  // The program lies in the folder itself here, data beside it.
  std::string text(entry->text);
  for (std::size_t at = 0; (at = text.find("../data/", at)) != std::string::npos;)
    text.erase(at, 3);
  std::string failure = write_new(folder / (name + ".tp"), text);
  for (const GalleryFile& file : files)
    if (failure.empty() && file.path.starts_with("data/") &&
        text.find(file.path) != std::string::npos)
      failure = write_new(folder / file.path, file.text);
  if (!failure.empty()) return complain(failure);
  std::error_code moved;
  fs::current_path(folder, moved);
  if (moved)
    return complain(fmt::format("cannot enter '{}': {}", folder.string(), moved.message()));
  int code = kDone;
  for (const std::vector<std::string>& words : commands_of(text)) {
    if (!options.quiet) fmt::print("$ tplimit {}\n", fmt::join(words, " "));
    (void)std::fflush(stdout);
    code = std::max(code, dispatch(words, *options.evaluate.ranks));
    if (!options.quiet) fmt::print("\n");
  }
  if (!options.quiet) fmt::print("the program, its data and pages are in {}\n", folder.string());
  return code;
}

}  // namespace tplimit::cli
