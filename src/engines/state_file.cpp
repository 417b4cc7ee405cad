#include "engines/state_file.hpp"

#include <algorithm>
#include <bit>
#include <fstream>

#include "tplimit/support/check.hpp"

namespace tplimit::engines {
namespace {

constexpr std::string_view kMagic = "tplimit\n";
constexpr std::size_t kPiece = std::size_t{1} << 20;

template <class T>
T word(const char* data) {
  T x;
  std::memcpy(&x, data, sizeof x);
  return x;
}

}  // namespace

void Checksum::stripe(const char* data) {
  for (std::size_t j = 0; j < 4; ++j)
    lanes_[j] = std::rotl(lanes_[j] + word<std::uint64_t>(data + 8 * j) * k2, 31) * k1;
}

void Checksum::add(const char* data, std::size_t size) {
  total_ += size;
  if (filled_ > 0) {
    const std::size_t more = std::min(size, kStripe - filled_);
    std::copy_n(data, more, rest_ + filled_);
    filled_ += more;
    data += more;
    size -= more;
    if (filled_ < kStripe) return;
    stripe(rest_);
    filled_ = 0;
  }
  for (; size >= kStripe; data += kStripe, size -= kStripe) stripe(data);
  std::copy_n(data, size, rest_);
  filled_ = size;
}

std::uint64_t Checksum::value() const {
  constexpr std::uint64_t k3 = 0x165667B19E3779F9ULL, k4 = 0x85EBCA77C2B2AE63ULL,
                          k5 = 0x27D4EB2F165667C5ULL;
  std::uint64_t h = k5;
  if (total_ >= kStripe) {
    h = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
        std::rotl(lanes_[3], 18);
    for (const std::uint64_t lane : lanes_) h = (h ^ (std::rotl(lane * k2, 31) * k1)) * k1 + k4;
  }
  h += total_;
  std::size_t at = 0;
  for (; at + 8 <= filled_; at += 8)
    h = std::rotl(h ^ (std::rotl(word<std::uint64_t>(rest_ + at) * k2, 31) * k1), 27) * k1 + k4;
  if (at + 4 <= filled_) {
    h = std::rotl(h ^ (word<std::uint32_t>(rest_ + at) * k1), 23) * k2 + k3;
    at += 4;
  }
  for (; at < filled_; ++at) h = std::rotl(h ^ (word<unsigned char>(rest_ + at) * k5), 11) * k1;
  h = (h ^ (h >> 33)) * k2;
  h = (h ^ (h >> 29)) * k3;
  return h ^ (h >> 32);
}

Writer::Writer(Sink sink) : sink_(std::move(sink)) { buffer_.reserve(kPiece); }

void Writer::hand_over() {
  checksum_.add(buffer_.data(), buffer_.size());
  sink_(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void Writer::bytes(const void* data, std::size_t size) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    const std::size_t some = std::min(size, kPiece - buffer_.size());
    buffer_.insert(buffer_.end(), from, from + some);
    from += some;
    size -= some;
    if (buffer_.size() == kPiece) hand_over();
  }
}

void Writer::text(std::string_view x) {
  value<std::uint64_t>(x.size());
  bytes(x.data(), x.size());
}

void Writer::matrix(const Eigen::MatrixXd& x) {
  value<std::int64_t>(x.rows());
  value<std::int64_t>(x.cols());
  bytes(x.data(), static_cast<std::size_t>(x.size()) * sizeof(double));
}

void Writer::finish() {
  hand_over();
  const std::uint64_t checksum = checksum_.value();
  sink_(reinterpret_cast<const char*>(&checksum), sizeof checksum);
}

void Reader::bytes(void* data, std::size_t size) {
  in_.read(static_cast<char*>(data), static_cast<std::streamsize>(size));
  TPLIMIT_CHECK(in_.good(), "a state with the right checksum holds all that is read from it");
}

std::string Reader::text() {
  std::string x(value<std::uint64_t>(), ' ');
  bytes(x.data(), x.size());
  return x;
}

Eigen::MatrixXd Reader::matrix() {
  const auto rows = value<std::int64_t>(), cols = value<std::int64_t>();
  Eigen::MatrixXd x(rows, cols);
  bytes(x.data(), static_cast<std::size_t>(x.size()) * sizeof(double));
  return x;
}

void write_head(Writer& out, const StateVersion& version) {
  out.bytes(kMagic.data(), kMagic.size());
  out.value(version.format);
  out.text(version.program);
}

StateVersion read_head(Reader& in) {
  char magic[kMagic.size()];
  in.bytes(magic, sizeof magic);
  StateVersion out;
  out.format = in.value<std::uint32_t>();
  out.program = in.text();
  return out;
}

FileState examine(const std::filesystem::path& file) {
  std::error_code failed;
  const std::uintmax_t size = std::filesystem::file_size(file, failed);
  if (failed)
    return std::filesystem::exists(file, failed) ? FileState::kForeign : FileState::kMissing;
  std::ifstream in(file, std::ios::binary);
  std::vector<char> piece(kPiece);
  if (size < kMagic.size() || !in.read(piece.data(), kMagic.size()) ||
      std::string_view(piece.data(), kMagic.size()) != kMagic)
    return FileState::kForeign;
  Checksum checksum;
  checksum.add(piece.data(), kMagic.size());
  std::uint64_t expected = 0;
  if (size < kMagic.size() + sizeof expected) return FileState::kDamaged;
  for (std::uintmax_t left = size - kMagic.size() - sizeof expected; left > 0;) {
    const std::size_t some = static_cast<std::size_t>(std::min<std::uintmax_t>(left, kPiece));
    if (!in.read(piece.data(), static_cast<std::streamsize>(some))) return FileState::kDamaged;
    checksum.add(piece.data(), some);
    left -= some;
  }
  if (!in.read(reinterpret_cast<char*>(&expected), sizeof expected)) return FileState::kDamaged;
  return expected == checksum.value() ? FileState::kWhole : FileState::kDamaged;
}

}  // namespace tplimit::engines
