#include "tplimit/report/json.hpp"

#include <limits>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace tplimit {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

ProgramInfo program() {
  return {Source("net.tp", "width n\nexpect a ==\n  b within 1\n"), "abc", {{"T", "20"}}, true};
}

LimitResult limit() {
  LimitResult out;
  out.engine = {"particles", 1024, 8, 7, 2, 1e-6, 5};
  ReportResult series{"out"};
  series.index_names = {"t"};
  series.index_values = {{0, 1}};
  series.shape = {2, 3};
  series.value = {1, 2, 3, 4, 5, 6.5};
  series.error = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6};
  ReportResult scalar{"c"};
  scalar.value = {0.1};
  scalar.error = {0};
  scalar.method = Method::kExact;
  ReportResult draws{"samples"};
  draws.shape = {2};
  draws.value = {1, 2};
  draws.method = Method::kSamples;
  out.reports = {series, scalar, draws};
  out.expectations = {{{8, 32}, "t = 1", ExpectStatus::kFailed, 1, 2, kInfinity, 0.5}};
  out.warnings = {Diagnostic::warning("W5301", "vanishes").at({8, 14})};
  out.peak_memory_bytes = 5e7;
  out.time_s = 0.25;
  return out;
}

TEST(LimitJson, HasTheDocumentedKeysInOrder) {
  const Json json = Json::parse(to_json(limit(), program()));
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  EXPECT_EQ(keys,
            (std::vector<std::string>{"tplimit", "program", "engine", "reports", "expectations",
                                      "warnings", "time_s", "peak_memory_bytes"}));
  EXPECT_EQ(json["tplimit"], version());
  EXPECT_EQ(
      json["program"],
      Json::parse(
          R"({"file": "net.tp", "sha256": "abc", "set": {"T": "20"}, "random_scalars": true})"));
  EXPECT_EQ(json["engine"]["particles"], 1024);
  EXPECT_EQ(json["engine"]["tolerance"], nullptr);
  EXPECT_EQ(json["peak_memory_bytes"], 50000000);
}

TEST(LimitJson, NamesTheCommandAndItsOptionsAsTheyWereGiven) {
  ProgramInfo info = program();
  info.command = "run";
  info.options = {{"--set", {"T=20", "eta=1"}}, {"--lazy", {}}};
  const Json json = Json::parse(to_json(limit(), info));
  EXPECT_EQ(json["command"], "run");
  EXPECT_EQ(json["options"], Json::parse(R"({"--set": ["T=20", "eta=1"], "--lazy": []})"));
  const Json other = Json::parse(with_header(info, "{\n  \"regime\": 1\n}\n"));
  for (const char* key : {"tplimit", "command", "options", "program"})
    EXPECT_EQ(other[key], json[key]);
  EXPECT_EQ(other["regime"], 1);
}

TEST(LimitJson, NestsNumbersAsTheShapeSays) {
  const Json reports = Json::parse(to_json(limit(), program()))["reports"];
  EXPECT_EQ(reports[0]["index"], Json::parse(R"(["t"])"));
  EXPECT_EQ(reports[0]["index_values"], Json::parse("[[0, 1]]"));
  EXPECT_EQ(reports[0]["shape"], Json::parse("[2, 3]"));
  EXPECT_EQ(reports[0]["value"], Json::parse("[[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]]"));
  EXPECT_EQ(reports[0]["stderr"], Json::parse("[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]"));
  EXPECT_EQ(reports[1]["value"], 0.1);
  EXPECT_EQ(reports[1]["shape"], Json::array());
}

TEST(LimitJson, SaysWhatAnErrorMeans) {
  LimitResult result = limit();
  Json reports = Json::parse(to_json(result, program()))["reports"];
  EXPECT_EQ(reports[0]["error"], "standard_error");
  EXPECT_EQ(reports[1]["error"], "exact");
  EXPECT_EQ(reports[2]["error"], "samples");
  EXPECT_EQ(reports[2]["stderr"], nullptr);
  result.engine.tolerance = 1e-3;
  result.reports[2].method = Method::kParticles;
  reports = Json::parse(to_json(result, program()))["reports"];
  EXPECT_EQ(reports[0]["error"], "standard_error");
  EXPECT_EQ(reports[2]["error"], "none");
}

TEST(LimitJson, NestsFlagsAndSpreads) {
  LimitResult result = limit();
  result.reports[0].unresolved = {false, false, false, true, false, false};
  result.reports[0].spread = {1, 2, 3, 4, 5, 6};
  const Json reports = Json::parse(to_json(result, program()))["reports"];
  EXPECT_EQ(reports[0]["unresolved"], Json::parse("[[false, false, false], [true, false, false]]"));
  EXPECT_EQ(reports[0]["spread"], Json::parse("[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]"));
  EXPECT_EQ(reports[1]["unresolved"], nullptr);
  EXPECT_FALSE(reports[1].contains("spread"));
}

TEST(LimitJson, WritesNumbersThatReadBackToTheSameBits) {
  LimitResult result = limit();
  result.reports[1].value = {0.1 + 0.2};
  EXPECT_EQ(Json::parse(to_json(result, program()))["reports"][1]["value"].get<double>(),
            0.1 + 0.2);
}

TEST(LimitJson, PlacesExpectationsAndWarnings) {
  const Json json = Json::parse(to_json(limit(), program()));
  EXPECT_EQ(json["expectations"],
            Json::parse(R"([{"line": 2, "text": "expect a == b within 1", "iteration": "t = 1",
    "status": "fail", "left": 1.0, "right": 2.0, "error": null, "tolerance": 0.5}])"));
  EXPECT_EQ(json["warnings"],
            Json::parse(R"([{"code": "W5301", "message": "vanishes", "line": 2, "help": ""}])"));
}

TEST(LimitJson, SurvivesBytesThatAreNoText) {
  ProgramInfo info = program();
  info.source = Source("\xff\x01.tp", "");
  LimitResult result = limit();
  result.expectations.clear();
  result.warnings.clear();
  EXPECT_NO_THROW(Json::parse(to_json(result, info)));
}

SimulationResult networks(std::int64_t width, double value) {
  SimulationResult out;
  out.engine = {"networks", 0, 0, 7, 2, 0, 3};
  out.width = width;
  out.seeds = 2;
  out.dense = false;
  const LimitResult l = limit();
  for (const ReportResult& r : l.reports) {
    out.reports.push_back(r);
    out.reports.back().method = Method::kNetworks;
    std::vector<double> low = r.value, high = r.value;
    for (double& v : low) v -= value;
    for (double& v : high) v += value;
    out.runs.push_back({low, high});
  }
  return out;
}

TEST(SimulationJson, HoldsEveryRun) {
  const Json json = Json::parse(to_json(networks(64, 0.5), program()));
  EXPECT_EQ(
      json["engine"],
      Json::parse(
          R"({"name": "networks", "width": 64, "seeds": 2, "matrices": "lazy", "precision": "double", "seed": 7, "threads": 2, "largest_rank": 3})"));
  EXPECT_EQ(
      json["reports"][0]["runs"],
      Json::parse("[[[0.5, 1.5, 2.5], [3.5, 4.5, 6.0]], [[1.5, 2.5, 3.5], [4.5, 5.5, 7.0]]]"));
  EXPECT_EQ(json["reports"][1]["runs"].size(), 2u);
}

TEST(ComparisonJson, SetsTheWidthsBesideTheLimit) {
  const Comparison all = compare(limit(), {networks(256, 0.25), networks(64, 0.5)});
  const Json json = Json::parse(to_json(all, program()));  // strict: nan and inf are no JSON
  const Json& compared = json["compare"];
  EXPECT_EQ(compared["networks"][0]["width"], 64);
  ASSERT_EQ(compared["reports"].size(), 2u);  // draws are left out
  const Json& out = compared["reports"][0];
  EXPECT_EQ(out["name"], "out");
  EXPECT_EQ(out["widths"][1]["width"], 256);
  EXPECT_EQ(out["widths"][1]["mean"], json["reports"][0]["value"]);
  EXPECT_EQ(out["widths"][0]["rms"], Json::parse("[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]"));
  EXPECT_TRUE(out["sd_slope"].contains("error"));
  EXPECT_FALSE(out.contains("corrections"));
}

TEST(ComparisonJson, HoldsCorrectionsOnDemand) {
  Comparison all = compare(limit(), {networks(256, 0.25), networks(64, 0.5)});
  all.show_corrections = true;
  const Json json = Json::parse(to_json(all, program()));
  const Corrections& first = all.reports[0]->entries[0].corrections.value();
  const Json& own = json["compare"]["reports"][0]["corrections"];
  for (const auto& [name, estimate] :
       {std::pair{"limit", first.limit}, {"slope", first.slope}, {"variance", first.variance}}) {
    EXPECT_EQ(own[name]["value"][0][0], estimate.value) << name;
    EXPECT_EQ(own[name]["stderr"][0][0], estimate.error) << name;
  }
}

}  // namespace
}  // namespace tplimit
