#include "tplimit/driver/measurements.hpp"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tplimit/data/table.hpp"
#include "tplimit/report/comparison.hpp"
#include "tplimit/report/json.hpp"

namespace tplimit {
namespace {

namespace fs = std::filesystem;

const fs::path kStored = fs::path(TPLIMIT_SOURCE_DIR) / "tests/golden/cli";

/// A program over steps, and one whose output is Gaussian, without and with a mean.
constexpr const char* kSteps = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param v : [n] ~ normal(0, 1), lr = n
for t in 0..2 {
  out = v @ tanh(U @ X) / n
  loss = mse(out, [1, -1])
  report loss, out
  step sgd(loss, lr = 0.1)
}
)";
constexpr const char* kGaussian = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2)
param v : [n] ~ normal(0, 1)
report f = v @ tanh(U @ X) / sqrt(n) + SHIFT
)";

Module module_of(std::string text, const std::string& shift = "0") {
  if (const auto at = text.find("SHIFT"); at != std::string::npos) text.replace(at, 5, shift);
  auto module = parse(Source("net.tp", text));
  EXPECT_TRUE(module) << (module ? "" : render(module.errors(), Source("net.tp", text)));
  return std::move(*module);
}

class Measured : public testing::Test {
 protected:
  Measured() { fs::create_directories(folder_); }
  ~Measured() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  static Result<std::vector<SimulationResult>> read(const Module& module,
                                                    const std::vector<fs::path>& files) {
    return read_measurements(files, module, comparable(module));
  }
  /// The code of the error, and whether its texts hold `what`.
  static void expect_error(const Module& module, const std::vector<fs::path>& files,
                           const std::string& code, const std::string& what) {
    const auto got = read(module, files);
    ASSERT_FALSE(got) << what;
    EXPECT_EQ(got.errors()[0].code, code) << got.errors()[0].message;
    EXPECT_NE((got.errors()[0].message + "\n" + got.errors()[0].help).find(what), std::string::npos)
        << got.errors()[0].message << "\n"
        << got.errors()[0].help;
  }

  fs::path folder_ = fs::temp_directory_path() / fmt::format("tplimit_measured_{}", getpid());
};

TEST_F(Measured, OwnNetworksComeBackFromTheirJson) {
  const Module module = module_of(kSteps);
  SimulateOptions options;
  options.width = 32;
  options.seeds = 3;
  const auto own = simulate(module, options);
  ASSERT_TRUE(own);
  const fs::path file =
      write("a.json", to_json(*own, ProgramInfo{module.source, module.sha256, {}, false}));
  const auto back = read(module, {file});
  ASSERT_TRUE(back) << back.errors()[0].message;
  ASSERT_EQ(back->size(), 1U);
  EXPECT_EQ((*back)[0].width, 32);
  EXPECT_EQ((*back)[0].runs, own->runs);
  for (std::size_t k = 0; k < own->reports.size(); ++k) {
    for (std::size_t j = 0; j < own->reports[k].value.size(); ++j) {
      EXPECT_NEAR((*back)[0].reports[k].value[j], own->reports[k].value[j], 1e-14);
      EXPECT_NEAR((*back)[0].reports[k].error[j], own->reports[k].error[j], 1e-14);
    }
  }
}

TEST_F(Measured, TablesHoldEntriesAndSeveralWidths) {
  const Module module = module_of(kSteps);
  const fs::path file = write("a.csv",
                              "width,seed,\"out[0,0]\",\"out[0,1]\",\"out[1,0]\",\"out[1,1]\"\n"
                              "8,0,1,2,3,4\n8,1,5,6,7,8\n16,0,0,0,0,0\n16,1,1,1,1,1\n");
  const auto back = read(module, {file});
  ASSERT_TRUE(back) << back.errors()[0].message;
  ASSERT_EQ(back->size(), 2U);
  EXPECT_TRUE((*back)[0].runs[0].empty());  // loss was not measured
  EXPECT_EQ((*back)[0].runs[1][1], (std::vector<double>{5, 6, 7, 8}));
  // Seeds of one width may stand in several files.
  const auto more = read(module, {file, write("b.csv",
                                              "width,seed,\"out[0,0]\",\"out[0,1]\",\"out[1,0]\","
                                              "\"out[1,1]\"\n8,2,9,9,9,9\n")});
  ASSERT_TRUE(more) << more.errors()[0].message;
  EXPECT_EQ((*more)[0].runs[1].size(), 3U);
}

TEST_F(Measured, StoredAndDeflatedArraysAreRead) {
  auto source = read_source(kStored / "linear.tp");
  ASSERT_TRUE(source);
  const Module module = module_of(source->text());
  const auto back = read(
      module, {kStored / "linear_16.npz", kStored / "linear_64.npz", kStored / "linear_256.csv"});
  ASSERT_TRUE(back) << back.errors()[0].message;
  ASSERT_EQ(back->size(), 3U);
  for (const SimulationResult& width : *back) EXPECT_EQ(width.seeds, 32);
  EXPECT_EQ((*back)[1].width, 64);
  const auto limit = evaluate(module);
  ASSERT_TRUE(limit);
  const Comparison compared = compare(*limit, *back);
  EXPECT_EQ(compared.verdict, Verdict::kAgrees) << compared.reports[0]->reason;
}

TEST_F(Measured, MistakesAreNamed) {
  const Module module = module_of(kSteps);
  expect_error(module, {folder_ / "no.npz"}, "E5101", "no such file");
  expect_error(module, {write("a.txt", "")}, "E5301", ".npz");
  expect_error(module, {write("a.json", "{}")}, "E5301", "simulate --out");
  expect_error(module, {write("c.csv", "width,seed,lss\n8,0,1\n8,1,2\n")}, "E5302", "loss, out");
  expect_error(module, {write("d.csv", "width,seed,loss\n8,0,1\n8,1,2\n")}, "E5303", "[2]");
  expect_error(module,
               {write("e.csv", "width,seed,loss[0],loss[1],loss[2]\n8,0,1,1,1\n8,1,2,1,1\n")},
               "E5303", "loss[2]");
  expect_error(module, {write("f.csv", "width,seed,loss[0],loss[1]\n8,0,1,1\n")}, "E5304",
               "one seed");
  expect_error(module, {write("g.csv", "width,seed,loss[0],loss[1]\n8,0,1,1\n8,0,2,1\n")}, "E5304",
               "twice");
  expect_error(module, {write("h.csv", "width,seed,loss[0],loss[1]\n8,0,1,nan\n8,1,2,1\n")},
               "E5105", "NaN");
  expect_error(module, {write("i.csv", "width,seed,loss[0],loss[1]\n8.5,0,1,1\n8,1,2,1\n")},
               "E5301", "whole");
  const fs::path both = write("j.csv", "width,seed,loss[0],loss[1]\n8,0,1,1\n8,1,2,1\n");
  expect_error(module, {both, both}, "E5304", "twice");
  expect_error(module,
               {both, write("k.csv",
                            "width,seed,\"out[0,0]\",\"out[0,1]\",\"out[1,0]\",\"out[1,1]\"\n"
                            "16,0,1,2,3,4\n16,1,5,6,7,8\n")},
               "E5302", "width 16");
  expect_error(module, {write("l.npz", "PK\x05\x06 and no more of it, alas")}, "E5114",
               "npz archive");
}

TEST_F(Measured, DamagedArchivesAreRefused) {
  std::ifstream in(kStored / "linear_64.npz", std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(in), {}};
  ASSERT_TRUE(read_npz(write("whole.npz", whole)));
  // A byte matters or is of no account: never a crash, and never other numbers.
  const auto good = read_npz(folder_ / "whole.npz");
  for (std::size_t k = 0; k < whole.size(); k += 5) {
    std::string other = whole;
    other[k] = static_cast<char>(other[k] ^ 0x55);
    const auto got = read_npz(write("other.npz", other));
    if (got && got->size() == good->size()) {
      for (std::size_t a = 0; a < got->size(); ++a)
        EXPECT_EQ((*got)[a].array.values, (*good)[a].array.values) << "byte " << k;
    }
    const auto cut = read_npz(write("cut.npz", whole.substr(0, k)));
    EXPECT_FALSE(cut) << "length " << k;
  }
}

TEST_F(Measured, GaussianOutputsAreSquaredWhereTheirMeanIsZero) {
  const fs::path file =
      write("a.csv", "width,seed,f[0],f[1]\n8,0,1,2\n8,1,-3,0\n16,0,1,1\n16,1,0,1\n");
  const auto back = read(module_of(kGaussian), {file});
  ASSERT_TRUE(back) << back.errors()[0].message;
  EXPECT_EQ((*back)[0].runs[0][0], (std::vector<double>{1, 2, 2, 4}));
  EXPECT_EQ((*back)[0].runs[0][1], (std::vector<double>{9, 0, 0, 0}));
  EXPECT_TRUE((*back)[0].reports[0].random);
  expect_error(module_of(kGaussian, "0.5"), {file}, "E5305", "cov(f)");
}

}  // namespace
}  // namespace tplimit
