#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "data/common.hpp"
#include "tplimit/data/table.hpp"

namespace tplimit {
namespace {

using data_files::Element;
using data_files::File;

std::optional<Element> element_of(unsigned char type) {
  using Kind = Element::Kind;
  switch (type) {
    case 0x08: return Element{Kind::kUnsigned, 1, true};
    case 0x09: return Element{Kind::kSigned, 1, true};
    case 0x0B: return Element{Kind::kSigned, 2, true};
    case 0x0C: return Element{Kind::kSigned, 4, true};
    case 0x0D: return Element{Kind::kFloat, 4, true};
    case 0x0E: return Element{Kind::kFloat, 8, true};
    default: return std::nullopt;
  }
}

Result<DataSet> read(const std::filesystem::path& path, const DataOptions& options) {
  auto opened = File::open(path);
  if (!opened) return opened.errors();
  File file = std::move(opened).value();
  const auto malformed = [&](std::string_view what, std::string help) {
    return data_files::file_error(
        "E5113", fmt::format("{}: not an idx file: {}", file.name(), what), std::move(help));
  };

  // Header: two zero bytes, the type, the number of axes, then each axis as a big-endian 32-bit
  // number.
  std::array<char, 4> start{};
  if (!file.read(0, start.data(), start.size())) {
    if (file.size() >= start.size()) return file.unreadable();
    return malformed(fmt::format("it has {} bytes", file.size()),
                     "write or download the file again");
  }
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(start[i]); };
  const auto element = element_of(byte(2));
  if (byte(0) != 0 || byte(1) != 0 || !element) {
    std::string help = data_files::archive_hint({start.data(), start.size()});
    if (help.empty())
      help =
          "an idx file starts with 00 00, the type (08, 09, 0b, 0c, 0d or 0e) and the number of "
          "axes";
    return malformed(fmt::format("it starts with {:02x} {:02x} {:02x} {:02x}", byte(0), byte(1),
                                 byte(2), byte(3)),
                     std::move(help));
  }
  const std::size_t axes = byte(3);
  std::vector<char> sizes(4 * axes);
  if (!file.read(start.size(), sizes.data(), sizes.size())) {
    if (file.size() >= start.size() + sizes.size()) return file.unreadable();
    return malformed(fmt::format("it is cut off within the header, which announces {} axes", axes),
                     "write or download the file again");
  }
  data_files::Layout layout{{}, *element, start.size() + sizes.size(), false, "E5113"};
  for (std::size_t axis = 0; axis < axes; ++axis) {
    layout.shape.push_back(static_cast<std::int64_t>(
        data_files::decode(sizes.data() + 4 * axis, {Element::Kind::kUnsigned, 4, true})));
  }
  return data_files::read_array(file, layout, options);
}

}  // namespace

Result<DataSet> read_idx(const std::filesystem::path& file, const DataOptions& options) {
  return data_files::within_memory(file, [&] { return read(file, options); });
}

}  // namespace tplimit
