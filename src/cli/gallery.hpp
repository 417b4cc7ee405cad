#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tplimit::cli {

/// A program of programs/papers ("papers/NAME.tp") or a file that one of them reads ("data/..").
struct GalleryFile {
  std::string_view path, text;
};
std::span<const GalleryFile> gallery_files();
/// Of the entries.
std::vector<std::string> gallery_names();

}  // namespace tplimit::cli
