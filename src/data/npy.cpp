#include <array>
#include <charconv>
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

/// Reads the Python literals of an npy header: {'descr': '<f8', 'fortran_order': False, 'shape':
/// (3, 4), }
class HeaderText {
 public:
  explicit HeaderText(std::string_view text) : rest_(text) {}

  bool accept(char c) {
    skip_space();
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  [[nodiscard]] bool next_is(char c) {
    skip_space();
    return !rest_.empty() && rest_.front() == c;
  }
  std::optional<std::string_view> string() {
    skip_space();
    if (rest_.empty() || (rest_.front() != '\'' && rest_.front() != '"')) return std::nullopt;
    const std::size_t end = rest_.find(rest_.front(), 1);
    if (end == std::string_view::npos) return std::nullopt;
    const auto text = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return text;
  }
  std::optional<bool> boolean() {
    skip_space();
    for (const auto& [word, value] :
         {std::pair{std::string_view("True"), true}, {std::string_view("False"), false}}) {
      if (!rest_.starts_with(word)) continue;
      rest_.remove_prefix(word.size());
      return value;
    }
    return std::nullopt;
  }
  /// "(3, 4)", "(3,)", "()"; sizes are not negative.  Python 2 wrote 3L.
  std::optional<std::vector<std::int64_t>> shape() {
    constexpr std::size_t kMaxAxes = 64;  // NumPy's own limit
    std::vector<std::int64_t> sizes;
    if (!accept('(')) return std::nullopt;
    while (!accept(')')) {
      if (!sizes.empty() && !accept(',')) return std::nullopt;
      if (accept(')')) break;
      skip_space();
      std::int64_t size = 0;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), size);
      if (error != std::errc{} || size < 0 || sizes.size() == kMaxAxes) return std::nullopt;
      rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
      accept('L');
      sizes.push_back(size);
    }
    return sizes;
  }
  [[nodiscard]] bool at_end() {
    skip_space();
    return rest_.empty();
  }

 private:
  void skip_space() {
    rest_.remove_prefix(std::min(rest_.find_first_not_of(" \n\t\r"), rest_.size()));
  }
  std::string_view rest_;
};

/// "<f8" and the like; nothing if the type is not supported.
std::optional<Element> element_of(std::string_view descr) {
  bool big_endian = false;
  if (!descr.empty() && std::string_view("<>|=").find(descr.front()) != std::string_view::npos) {
    big_endian =
        descr.front() == '>' || (descr.front() == '=' && std::endian::native == std::endian::big);
    descr.remove_prefix(1);
  }
  if (descr.size() != 2) return std::nullopt;
  const std::size_t size = static_cast<std::size_t>(descr[1] - '0');
  const bool whole = size == 1 || size == 2 || size == 4 || size == 8;
  switch (descr[0]) {
    case 'b':
      return size == 1 ? std::optional(Element{Element::Kind::kBool, size, false}) : std::nullopt;
    case 'u':
      return whole ? std::optional(Element{Element::Kind::kUnsigned, size, big_endian})
                   : std::nullopt;
    case 'i':
      return whole ? std::optional(Element{Element::Kind::kSigned, size, big_endian})
                   : std::nullopt;
    case 'f':
      return size == 4 || size == 8
                 ? std::optional(Element{Element::Kind::kFloat, size, big_endian})
                 : std::nullopt;
    default: return std::nullopt;
  }
}

/// What the header says.
Result<data_files::Layout> read_layout(File& file) {
  const auto malformed = [&](std::string_view what,
                             std::string help = "write it again with numpy.save") {
    return data_files::file_error(
        "E5111", fmt::format("{}: not an npy file: {}", file.name(), what), std::move(help));
  };
  const auto unsupported = [&](std::string_view type) {
    return data_files::file_error(
        "E5112", fmt::format("{}: elements of type {} are not supported", file.name(), type),
        "save integers, bool, float32 or float64, for example numpy.save(file, "
        "x.astype(numpy.float64))");
  };

  // Magic, version, length of the header (2 bytes in version 1, else 4, little-endian), header,
  // numbers.
  constexpr std::string_view kMagic = "\x93NUMPY";
  std::array<char, 12> start{};
  const auto present = static_cast<std::size_t>(std::min<std::uint64_t>(file.size(), start.size()));
  if (!file.read(0, start.data(), present)) return file.unreadable();
  const std::string_view seen(start.data(), present);
  if (!seen.starts_with(kMagic)) {
    std::string help = data_files::archive_hint(seen);
    return help.empty() ? malformed("it does not start with \\x93NUMPY")
                        : malformed("it does not start with \\x93NUMPY", std::move(help));
  }
  const int major = present > 6 ? static_cast<unsigned char>(start[6]) : 0;
  if (major < 1 || major > 3) return malformed(fmt::format("version {} is not known", major));
  const std::size_t length_bytes = major == 1 ? 2 : 4;
  const std::size_t header_begin = 8 + length_bytes;
  if (present < header_begin) return malformed("it is cut off within the header");
  const auto length = static_cast<std::uint64_t>(
      data_files::decode(start.data() + 8, {Element::Kind::kUnsigned, length_bytes, false}));
  if (length > file.size() - header_begin) return malformed("it is cut off within the header");
  constexpr std::uint64_t kMaxHeader =
      1 << 20;  // NumPy itself refuses more than 10,000 bytes from strangers
  if (length > kMaxHeader) return malformed(fmt::format("a header of {} bytes", length));
  std::string text(static_cast<std::size_t>(length), '\0');
  if (!file.read(header_begin, text.data(), text.size())) return file.unreadable();

  std::optional<Element> element;
  std::optional<bool> fortran_order;
  std::optional<std::vector<std::int64_t>> shape;
  HeaderText header(text);
  bool good = header.accept('{');
  while (good && !header.accept('}')) {
    const auto key = header.string();
    good = key && header.accept(':');
    if (!good) break;
    if (*key == "descr") {
      if (header.next_is('[')) return unsupported("record");
      const auto descr = header.string();
      good = descr.has_value();
      if (good) element = element_of(*descr);
      if (good && !element) return unsupported(fmt::format("'{}'", data_files::printable(*descr)));
    } else if (*key == "fortran_order") {
      fortran_order = header.boolean();
      good = fortran_order.has_value();
    } else if (*key == "shape") {
      shape = header.shape();
      good = shape.has_value();
    } else {
      good = false;
    }
    if (good && !header.accept(',') && !header.next_is('}')) good = false;
  }
  if (!good || !header.at_end() || !element || !fortran_order || !shape) {
    return malformed(
        fmt::format("its header is not understood: {}", data_files::printable(text, 80)));
  }
  return data_files::Layout{*shape, *element, header_begin + length, *fortran_order, "E5111"};
}

Result<DataSet> read(const std::filesystem::path& path, const DataOptions& options) {
  auto opened = File::open(path);
  if (!opened) return opened.errors();
  File file = std::move(opened).value();
  const auto layout = read_layout(file);
  if (!layout) return layout.errors();
  return data_files::read_array(file, *layout, options);
}

}  // namespace

Result<Array> data_files::array_in_npy(std::string name, std::string bytes) {
  File file = File::of_bytes(std::move(name), std::move(bytes));
  auto layout = read_layout(file);
  if (!layout) return layout.errors();
  const bool number = layout->shape.empty();
  if (number) layout->shape = {1};
  Result<DataSet> read = read_array(file, *layout, {});
  if (!read) return read.errors();
  if (number) read->features.shape.clear();
  return std::move(read->features);
}

Result<DataSet> read_npy(const std::filesystem::path& file, const DataOptions& options) {
  return data_files::within_memory(file, [&] { return read(file, options); });
}

}  // namespace tplimit
