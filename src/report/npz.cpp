#include "tplimit/report/npz.hpp"

#include <zlib.h>

#include <bit>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tplimit/report/json.hpp"
#include "tplimit/support/output_file.hpp"

namespace tplimit {

static_assert(std::endian::native == std::endian::little, "npy and zip are little-endian");

namespace {

/// A zip archive of stored members, with 64-bit sizes (APPNOTE 6.3.9, 4.3 and 4.5.3).
class Archive {
 public:
  explicit Archive(const std::filesystem::path& file) : out_(file) {}

  void member(std::string name, const std::vector<std::pair<const char*, std::size_t>>& parts) {
    Entry e{std::move(name), at_, 0, 0};
    uLong crc = crc32_z(0, nullptr, 0);
    for (const auto& [data, size] : parts) {
      crc = crc32_z(crc, reinterpret_cast<const Bytef*>(data), size);
      e.size += size;
    }
    e.crc = static_cast<std::uint32_t>(crc);
    Fields local;
    local.add<std::uint32_t>(0x04034b50);
    common(local, e);
    local.add<std::uint16_t>(20);  // bytes of the extra field
    local.text += e.name;
    local.add<std::uint16_t>(1).add<std::uint16_t>(16).add(e.size).add(e.size);
    write(local.text.data(), local.text.size());
    for (const auto& [data, size] : parts) write(data, size);
    entries_.push_back(std::move(e));
  }

  std::string commit() {
    const std::uint64_t begin = at_;
    for (const Entry& e : entries_) {
      Fields f;
      f.add<std::uint32_t>(0x02014b50).add<std::uint16_t>(45);
      common(f, e);
      f.add<std::uint16_t>(28)
          .add<std::uint16_t>(0)
          .add<std::uint16_t>(0)
          .add<std::uint16_t>(0)
          .add<std::uint32_t>(0)
          .add<std::uint32_t>(kElsewhere);
      f.text += e.name;
      f.add<std::uint16_t>(1).add<std::uint16_t>(24).add(e.size).add(e.size).add(e.at);
      write(f.text.data(), f.text.size());
    }
    const std::uint64_t end = at_, count = entries_.size();
    Fields f;
    f.add<std::uint32_t>(0x06064b50)
        .add<std::uint64_t>(44)
        .add<std::uint16_t>(45)
        .add<std::uint16_t>(45)
        .add<std::uint32_t>(0)
        .add<std::uint32_t>(0)
        .add(count)
        .add(count)
        .add(end - begin)
        .add(begin);
    f.add<std::uint32_t>(0x07064b50).add<std::uint32_t>(0).add(end).add<std::uint32_t>(1);
    f.add<std::uint32_t>(0x06054b50)
        .add<std::uint16_t>(0)
        .add<std::uint16_t>(0)
        .add<std::uint16_t>(0xffff)
        .add<std::uint16_t>(0xffff)
        .add<std::uint32_t>(kElsewhere)
        .add<std::uint32_t>(kElsewhere)
        .add<std::uint16_t>(0);
    write(f.text.data(), f.text.size());
    return out_.commit();
  }

 private:
  static constexpr std::uint32_t kElsewhere = 0xffffffff;  // in the extra field
  struct Entry {
    std::string name;
    std::uint64_t at, size;
    std::uint32_t crc;
  };
  struct Fields {
    std::string text;
    template <class T>
    Fields& add(T value) {
      text.append(reinterpret_cast<const char*>(&value), sizeof value);
      return *this;
    }
  };
  /// From "version needed" to the length of the name.
  static void common(Fields& f, const Entry& e) {
    constexpr std::uint16_t kUtf8 = 1 << 11, kFirstOfJanuary1980 = (1 << 5) + 1;
    f.add<std::uint16_t>(45)
        .add<std::uint16_t>(kUtf8)
        .add<std::uint16_t>(0)
        .add<std::uint16_t>(0)
        .add<std::uint16_t>(kFirstOfJanuary1980)
        .add(e.crc)
        .add(kElsewhere)
        .add(kElsewhere)
        .add(static_cast<std::uint16_t>(e.name.size()));
  }
  void write(const char* data, std::size_t size) {
    out_.write(data, size);
    at_ += size;
  }

  FileReplacement out_;
  std::uint64_t at_ = 0;
  std::vector<Entry> entries_;
};

/// The header of an npy file, format 1.0.
std::string npy_header(const std::vector<std::int64_t>& shape) {
  std::string text = fmt::format("{{'descr': '<f8', 'fortran_order': False, 'shape': ({}{}), }}",
                                 fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  text.append((64 - (10 + text.size() + 1) % 64) % 64, ' ');
  text += '\n';
  const auto size = static_cast<std::uint16_t>(text.size());
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(size & 255) +
         static_cast<char>(size >> 8) + text;
}

class Arrays {
 public:
  explicit Arrays(const std::filesystem::path& file) : archive_(file) {}
  /// Several vectors make one array of a further, first axis.
  void add(const std::string& name, std::vector<std::int64_t> shape,
           const std::vector<const std::vector<double>*>& values, bool stacked = false) {
    if (stacked) shape.insert(shape.begin(), static_cast<std::int64_t>(values.size()));
    const std::string header = npy_header(shape);
    std::vector<std::pair<const char*, std::size_t>> parts{{header.data(), header.size()}};
    for (const auto* v : values)
      parts.emplace_back(reinterpret_cast<const char*>(v->data()), v->size() * sizeof(double));
    std::string unique = name;
    for (int k = 2; !taken_.insert(unique).second; ++k) unique = fmt::format("{}_{}", name, k);
    archive_.member(unique + ".npy", parts);
  }
  void add(const ReportResult& r) {
    add(r.name, r.shape, {&r.value});
    if (!r.error.empty()) add(r.name + "_stderr", r.shape, {&r.error});
    if (!r.spread.empty()) add(r.name + "_spread", r.shape, {&r.spread});
  }
  std::string commit(const std::string& json) {
    archive_.member("tplimit.json", {{json.data(), json.size()}});
    return archive_.commit();
  }

 private:
  Archive archive_;
  std::set<std::string> taken_;
};

}  // namespace

std::string write_npz(const std::filesystem::path& file, const LimitResult& limit,
                      const ProgramInfo& program) {
  Arrays out(file);
  for (const ReportResult& r : limit.reports) out.add(r);
  return out.commit(to_json(limit, program, false));
}

std::string write_npz(const std::filesystem::path& file, const SimulationResult& networks,
                      const ProgramInfo& program) {
  Arrays out(file);
  for (std::size_t k = 0; k < networks.reports.size(); ++k) {
    out.add(networks.reports[k]);
    std::vector<const std::vector<double>*> runs;
    for (const auto& run : networks.runs[k]) runs.push_back(&run);
    out.add(networks.reports[k].name + "_runs", networks.reports[k].shape, runs, true);
  }
  return out.commit(to_json(networks, program, false));
}

std::string write_npz(const std::filesystem::path& file, const Comparison& all,
                      const ProgramInfo& program) {
  Arrays out(file);
  for (const ReportResult& r : all.limit.reports) out.add(r);
  for (std::size_t k = 0; k < all.reports.size(); ++k) {
    if (!all.reports[k]) continue;
    const ReportResult& r = all.limit.reports[k];
    for (const auto& [name, member] : {std::pair{"_mean", &EntryConvergence::mean},
                                       {"_sem", &EntryConvergence::mean_error},
                                       {"_sd", &EntryConvergence::sd},
                                       {"_rms", &EntryConvergence::rms}}) {
      std::vector<std::vector<double>> widths(all.networks.size());
      std::vector<const std::vector<double>*> values;
      for (std::size_t w = 0; w < widths.size(); ++w) {
        for (const EntryConvergence& e : all.reports[k]->entries)
          widths[w].push_back((e.*member)[static_cast<Eigen::Index>(w)]);
        values.push_back(&widths[w]);
      }
      out.add(r.name + name, r.shape, values, true);
    }
  }
  return out.commit(to_json(all, program, false));
}

}  // namespace tplimit
