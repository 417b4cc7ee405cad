#include "tplimit/report/npz.hpp"

#include <zlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tplimit/data/table.hpp"
#include "tplimit/report/json.hpp"

// Archives are read by their central directory, as zip readers do; arrays by our own reader of npy
// files.
namespace tplimit {
namespace {

namespace fs = std::filesystem;

template <class T>
T at(const std::string& bytes, std::size_t place) {
  T out;
  std::memcpy(&out, bytes.data() + place, sizeof out);
  return out;
}

std::map<std::string, std::string> members(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  const std::string all = text.str();
  const std::size_t end = all.size() - 22, locator = end - 20;
  EXPECT_EQ(at<std::uint32_t>(all, end), 0x06054b50u);
  EXPECT_EQ(at<std::uint32_t>(all, locator), 0x07064b50u);
  const auto last = at<std::uint64_t>(all, locator + 8);
  EXPECT_EQ(at<std::uint32_t>(all, last), 0x06064b50u);
  const auto count = at<std::uint64_t>(all, last + 32), begin = at<std::uint64_t>(all, last + 48);
  EXPECT_EQ(begin + at<std::uint64_t>(all, last + 40), last);
  std::map<std::string, std::string> out;
  std::size_t place = begin;
  for (std::uint64_t k = 0; k < count; ++k) {
    EXPECT_EQ(at<std::uint32_t>(all, place), 0x02014b50u);
    const auto length = at<std::uint16_t>(all, place + 28),
               extra = at<std::uint16_t>(all, place + 30);
    const std::string name = all.substr(place + 46, length);
    const auto size = at<std::uint64_t>(all, place + 46 + length + 4),
               local = at<std::uint64_t>(all, place + 46 + length + 20);
    EXPECT_EQ(at<std::uint32_t>(all, local), 0x04034b50u);
    EXPECT_EQ(all.substr(local + 30, at<std::uint16_t>(all, local + 26)), name);
    const std::size_t data =
        local + 30 + at<std::uint16_t>(all, local + 26) + at<std::uint16_t>(all, local + 28);
    out[name] = all.substr(data, size);
    EXPECT_EQ(at<std::uint32_t>(all, place + 16),
              crc32_z(0, reinterpret_cast<const Bytef*>(out[name].data()), out[name].size()))
        << name;
    place += 46u + length + extra;
  }
  EXPECT_EQ(place, last);
  return out;
}

Array array(const std::string& bytes, const fs::path& folder) {
  std::ofstream(folder / "a.npy", std::ios::binary) << bytes;
  auto data = read_npy(folder / "a.npy", {});
  EXPECT_TRUE(static_cast<bool>(data));
  return data ? data->features : Array{};
}

TEST(Npz, HoldsTheNumbersOfAllReports) {
  const fs::path folder = fs::path(testing::TempDir()) / "npz_test";
  fs::create_directories(folder);
  const ProgramInfo program{Source("net.tp", "width n\n"), "abc", {{"T", "20"}}, true};
  LimitResult limit;
  ReportResult kernel{"K(x, x')"};
  kernel.shape = {2, 3};
  kernel.value = {1, 2, 3, 4, 5, 6.5};
  kernel.error = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6};
  ReportResult again = kernel;
  again.value[0] = std::numeric_limits<double>::quiet_NaN();
  again.error.clear();
  ReportResult row{"row"};
  row.shape = {4};
  row.value = {1e-300, -1, 0, 7};
  row.error = {0, 0, 0, 0};
  limit.reports = {kernel, again, row};
  ASSERT_EQ(write_npz(folder / "r.npz", limit, program), "");
  auto all = members(folder / "r.npz");
  ASSERT_EQ(all.size(), 6u);
  EXPECT_EQ(array(all["K(x, x').npy"], folder).values, kernel.value);
  EXPECT_EQ(array(all["K(x, x').npy"], folder).shape, kernel.shape);
  EXPECT_EQ(array(all["K(x, x')_stderr.npy"], folder).values, kernel.error);
  EXPECT_EQ(array(all["row.npy"], folder).values, row.value);
  EXPECT_TRUE(all.contains("K(x, x')_2.npy"));
  const auto json = nlohmann::json::parse(all["tplimit.json"]);
  EXPECT_EQ(json["reports"][0]["name"], "K(x, x')");
  EXPECT_TRUE(json["reports"][0]["value"].is_null());
  EXPECT_EQ(json["program"]["set"]["T"], "20");

  SimulationResult networks;
  networks.reports = {row};
  networks.runs = {{{1, 2, 3, 4}, {5, 6, 7, 8}}};
  ASSERT_EQ(write_npz(folder / "s.npz", networks, program), "");
  all = members(folder / "s.npz");
  EXPECT_EQ(array(all["row_runs.npy"], folder).shape, (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(array(all["row_runs.npy"], folder).values,
            (std::vector<double>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_NE(write_npz(folder / "none" / "s.npz", networks, program), "");

  SimulationResult wide = networks;
  networks.width = 64;
  wide.width = 256;
  networks.seeds = wide.seeds = 2;
  wide.runs = {{{0, 0, 0, 0}, {2, 4, 6, 8}}};
  limit.reports = {row};
  limit.engine.randomisations = 8;
  const Comparison comparison = compare(limit, {networks, wide});
  ASSERT_EQ(write_npz(folder / "c.npz", comparison, program), "");
  all = members(folder / "c.npz");
  EXPECT_EQ(array(all["row.npy"], folder).values, row.value);
  EXPECT_EQ(array(all["row_mean.npy"], folder).shape, (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(array(all["row_mean.npy"], folder).values,
            (std::vector<double>{3, 4, 5, 6, 1, 2, 3, 4}));
  const auto written = nlohmann::json::parse(to_json(comparison, program));
  for (const auto& [member, key] :
       {std::pair{"row_sem.npy", "sem"}, {"row_sd.npy", "sd"}, {"row_rms.npy", "rms"}}) {
    std::vector<double> both;
    for (const auto& width : written["compare"]["reports"][0]["widths"])
      for (const auto& value : width[key]) both.push_back(value.get<double>());
    EXPECT_EQ(array(all[member], folder).values, both) << member;
  }
  EXPECT_TRUE(
      nlohmann::json::parse(all["tplimit.json"])["compare"]["reports"][0]["widths"][1]["mean"]
          .is_null());
  fs::remove_all(folder);
}

}  // namespace
}  // namespace tplimit
