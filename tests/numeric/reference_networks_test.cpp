/// Trained networks of programs/architectures against networks that PyTorch trained
/// (references/networks.py), at one width: two laws of the same random numbers.

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

constexpr double kErrors = 4;  // fixed seeds, within 4 errors of both means together

nlohmann::json references() {
  std::ifstream in(std::string(TPLIMIT_SOURCE_DIR) + "/tests/numeric/references/networks.json");
  return nlohmann::json::parse(in);
}

void expect_same_law(const std::string& name, int seeds) {
  const nlohmann::json reference = references().at(name);
  const auto module = parse_file(std::filesystem::path(TPLIMIT_SOURCE_DIR) /
                                 "programs/architectures" / (name + ".tp"));
  ASSERT_TRUE(module.ok());
  const SimulationResult networks =
      networks_of(*module, reference.at("width"), seeds, Matrices::kAuto);
  ASSERT_EQ(networks.reports.size(), reference.at("reports").size());
  const double count = reference.at("networks");
  double worst = 0, squares = 0, numbers = 0;
  std::string where;
  for (const auto& [report_name, stored] : reference.at("reports").items()) {
    const ReportResult& found = report(networks, report_name);
    ASSERT_EQ(found.value.size(), stored.at("mean").size()) << report_name;
    for (std::size_t e = 0; e < found.value.size(); ++e) {
      const double mean = stored.at("mean")[e], error = stored.at("error")[e];
      const std::string entry = fmt::format("{}[{}]", report_name, e);
      if (error == 0 && found.error[e] == 0) {
        EXPECT_EQ(found.value[e], mean) << entry;
        continue;
      }
      const double z = deviation(found.value[e], found.error[e], mean, error);
      EXPECT_LE(std::abs(z), kErrors) << entry << ' ' << found.value[e] << " against " << mean;
      const double spread = found.error[e] * std::sqrt(seeds), expected = error * std::sqrt(count);
      EXPECT_NEAR(std::log(spread / expected), 0,
                  kErrors * std::sqrt(0.5 / (seeds - 1) + 0.5 / (count - 1)))
          << "spread of " << entry;
      if (std::abs(z) > std::abs(worst)) worst = z, where = entry;
      squares += z * z;
      ++numbers;
    }
  }
  fmt::print("{}: worst {:.2f} errors at {}, root mean square {:.2f} of {} numbers\n", name, worst,
             where, std::sqrt(squares / numbers), numbers);
}

TEST(ReferenceNetworks, Decoder) { expect_same_law("decoder", 128); }
TEST(ReferenceNetworks, Lstm) { expect_same_law("lstm", 128); }
TEST(ReferenceNetworks, Cnn1d) { expect_same_law("cnn_1d", 128); }
TEST(ReferenceNetworks, Cnn2d) { expect_same_law("cnn_2d", 128); }

}  // namespace
}  // namespace tplimit::test
