#include <zlib.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "data/common.hpp"
#include "tplimit/data/table.hpp"

namespace tplimit {
namespace {

using data_files::File;
using data_files::file_error;

static_assert(std::endian::native == std::endian::little, "zip is little-endian");

constexpr std::uint32_t kElsewhere =
    0xffffffff;  // in a field of 32 bits: it has 64, in the extra field

struct Member {
  std::string name;
  std::uint16_t flags = 0, method = 0;
  std::uint32_t crc = 0;
  std::uint64_t packed = 0, size = 0, at = 0;
};

/// A zip archive (APPNOTE 6.3.9, 4.3 and 4.5.3) in memory.
class Archive {
 public:
  explicit Archive(std::string bytes) : bytes_(std::move(bytes)) {}

  /// "" or what is wrong with it.
  std::string read_directory() {
    constexpr std::size_t kEnd = 22, kMostComment = 0xffff, kLocator = 20, kEntry = 46;
    const std::string_view all = bytes_;
    if (all.size() < kEnd) return "it is too short for a zip archive";
    const std::size_t first =
        all.size() < kEnd + kMostComment ? 0 : all.size() - kEnd - kMostComment;
    std::size_t end = all.size() - kEnd;
    while (number<std::uint32_t>(end) != 0x06054b50) {
      if (end == first) return "it does not end like a zip archive";
      --end;
    }
    std::uint64_t count = number<std::uint16_t>(end + 10), at = number<std::uint32_t>(end + 16);
    if ((count == 0xffff || at == kElsewhere) && end >= kLocator &&
        number<std::uint32_t>(end - kLocator) == 0x07064b50) {
      const std::uint64_t wide = number<std::uint64_t>(end - kLocator + 8);
      if (wide > all.size() || all.size() - wide < 56 || number<std::uint32_t>(wide) != 0x06064b50)
        return "its directory is damaged";
      count = number<std::uint64_t>(wide + 32);
      at = number<std::uint64_t>(wide + 48);
    }
    for (std::uint64_t k = 0; k < count; ++k) {
      if (at > all.size() || all.size() - at < kEntry || number<std::uint32_t>(at) != 0x02014b50)
        return "its directory is damaged";
      Member m;
      m.flags = number<std::uint16_t>(at + 8);
      m.method = number<std::uint16_t>(at + 10);
      m.crc = number<std::uint32_t>(at + 16);
      m.packed = number<std::uint32_t>(at + 20);
      m.size = number<std::uint32_t>(at + 24);
      m.at = number<std::uint32_t>(at + 42);
      const std::size_t name = number<std::uint16_t>(at + 28),
                        extra = number<std::uint16_t>(at + 30),
                        comment = number<std::uint16_t>(at + 32);
      if (all.size() - at - kEntry < name + extra + comment) return "its directory is damaged";
      m.name = all.substr(at + kEntry, name);
      read_wide_sizes(m, at + kEntry + name, extra);
      at += kEntry + name + extra + comment;
      members_.push_back(std::move(m));
    }
    return "";
  }

  [[nodiscard]] const std::vector<Member>& members() const { return members_; }

  /// "" or what is wrong with a member; else `out` holds its bytes.
  std::string unpack(const Member& m, std::string& out) const {
    constexpr std::size_t kLocal = 30;
    constexpr std::uint16_t kEncrypted = 1, kStored = 0, kDeflated = 8;
    constexpr std::uint64_t kMostDeflate = 1032;  // bytes of one
    const std::string_view all = bytes_;
    if ((m.flags & kEncrypted) != 0) return "it is encrypted";
    if (m.method != kStored && m.method != kDeflated)
      return fmt::format("compression {} is not supported", m.method);
    if (m.at > all.size() || all.size() - m.at < kLocal ||
        number<std::uint32_t>(m.at) != 0x04034b50)
      return "it is damaged";
    const std::uint64_t begin =
        m.at + kLocal + number<std::uint16_t>(m.at + 26) + number<std::uint16_t>(m.at + 28);
    if (begin > all.size() || all.size() - begin < m.packed) return "it is truncated";
    const std::string_view packed =
        all.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(m.packed));
    if (m.method == kStored) {
      out = packed;
    } else {
      if (m.size / kMostDeflate > m.packed) return "it is damaged";
      if (!inflate_all(packed, static_cast<std::size_t>(m.size), out)) return "it is damaged";
    }
    if (out.size() != m.size ||
        crc32_z(0, reinterpret_cast<const Bytef*>(out.data()), out.size()) != m.crc)
      return "its checksum is wrong";
    return "";
  }

 private:
  template <class T>
  [[nodiscard]] T number(std::uint64_t at) const {
    T out{};
    std::memcpy(&out, bytes_.data() + at, sizeof out);
    return out;
  }

  /// Sizes and place, in this order, of those that did not fit into 32 bits.
  void read_wide_sizes(Member& m, std::uint64_t at, std::size_t size) const {
    const std::uint64_t end = at + size;
    while (at + 4 <= end) {
      const std::uint64_t id = number<std::uint16_t>(at), own = number<std::uint16_t>(at + 2);
      at += 4;
      if (own > end - at) return;
      if (id == 1) {
        std::uint64_t next = at;
        for (std::uint64_t* field : {&m.size, &m.packed, &m.at})
          if (*field == kElsewhere && next + 8 <= at + own) {
            *field = number<std::uint64_t>(next);
            next += 8;
          }
      }
      at += own;
    }
  }

  static bool inflate_all(std::string_view packed, std::size_t size, std::string& out) {
    constexpr std::size_t kMost = 1 << 30;  // of one call, whose counts have 32 bits
    z_stream stream{};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return false;
    out.resize(size);
    std::size_t read = 0, written = 0;
    int status = Z_OK;
    while (status == Z_OK) {
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data() + read));
      stream.avail_in = static_cast<uInt>(std::min(kMost, packed.size() - read));
      stream.next_out = reinterpret_cast<Bytef*>(out.data() + written);
      stream.avail_out = static_cast<uInt>(std::min(kMost, size - written));
      const uInt in = stream.avail_in, room = stream.avail_out;
      status = inflate(&stream, Z_NO_FLUSH);
      read += in - stream.avail_in;
      written += room - stream.avail_out;
    }
    inflateEnd(&stream);
    return status == Z_STREAM_END && written == size;
  }

  std::string bytes_;
  std::vector<Member> members_;
};

Result<std::vector<NamedArray>> read(const std::filesystem::path& path) {
  auto opened = File::open(path);
  if (!opened) return opened.errors();
  File file = std::move(opened).value();
  const auto damaged = [&](const std::string& what) {
    return file_error("E5114", fmt::format("{}: not an npz archive: {}", file.name(), what),
                      "write it again with numpy.savez");
  };
  std::string bytes(static_cast<std::size_t>(file.size()), '\0');
  if (!file.read(0, bytes.data(), bytes.size())) return file.unreadable();
  Archive archive(std::move(bytes));
  if (const std::string fault = archive.read_directory(); !fault.empty()) return damaged(fault);
  std::vector<NamedArray> out;
  for (const Member& member : archive.members()) {
    constexpr std::string_view kEnding = ".npy";
    if (!member.name.ends_with(kEnding)) continue;
    const std::string name = member.name.substr(0, member.name.size() - kEnding.size());
    std::string content;
    if (const std::string fault = archive.unpack(member, content); !fault.empty())
      return damaged(fmt::format("'{}': {}", data_files::printable(name), fault));
    auto array = data_files::array_in_npy(
        fmt::format("{}: '{}'", file.name(), data_files::printable(name)), std::move(content));
    if (!array) return array.errors();
    out.push_back({name, std::move(*array)});
  }
  return out;
}

}  // namespace

Result<std::vector<NamedArray>> read_npz(const std::filesystem::path& file) {
  return data_files::within_memory<std::vector<NamedArray>>(file, [&] { return read(file); });
}

}  // namespace tplimit
