#include "tplimit/report/text.hpp"

#include <cmath>
#include <limits>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace tplimit {
namespace {

// ---- numbers
// ---------------------------------------------------------------------------------------

TEST(FormatNumber, ShowsTwoDigitsOfTheError) {
  EXPECT_EQ(format_number(0.904039, 0.000036), "0.904039(36)");
  EXPECT_EQ(format_number(-0.6635861, 0.0000284), "-0.663586(28)");
  EXPECT_EQ(format_number(1234.5, 0.012), "1234.500(12)");
  EXPECT_EQ(format_number(1, 0.1), "1.00(10)");
}

TEST(FormatNumber, PutsAPointIntoAnErrorThatSpansIt) {
  EXPECT_EQ(format_number(-1.2, 1.5), "-1.2(1.5)");
  EXPECT_EQ(format_number(12.34, 9.94), "12.3(9.9)");
  EXPECT_EQ(format_number(123.4, 15), "123(15)");
}

TEST(FormatNumber, RoundsTheErrorBeforeItsDigitsAreCounted) {
  EXPECT_EQ(format_number(0.5, 0.00996), "0.500(10)");
  EXPECT_EQ(format_number(5, 9.96), "5(10)");
  EXPECT_EQ(format_number(50, 99.6), "0.5(1.0)e+02");
}

TEST(FormatNumber, CarriesIntoTheNextPowerOfTen) {
  EXPECT_EQ(format_number(9.99996, 0.0012), "10.0000(12)");
  EXPECT_EQ(format_number(9.9999996e-7, 1.2e-11), "1.000000(12)e-06");
}

TEST(FormatNumber, WritesSmallAndLargeNumbersScientifically) {
  EXPECT_EQ(format_number(1.2345e-7, 6.7e-11), "1.23450(67)e-07");
  EXPECT_EQ(format_number(-1.2345e9, 6.7e5), "-1.23450(67)e+09");
  EXPECT_EQ(format_number(0.00012345, 6.7e-7), "0.00012345(67)");
  EXPECT_EQ(format_number(0.000012345, 6.7e-8), "1.2345(67)e-05");
  EXPECT_EQ(format_number(1234567, 0.5), "1234567.00(50)");
  EXPECT_EQ(format_number(12345678, 0.5), "1.234567800(50)e+07");
  EXPECT_EQ(format_number(1234567, 120), "1.23457(12)e+06");
  EXPECT_EQ(format_number(1.5e300, 2e298), "1.500(20)e+300");
  EXPECT_EQ(format_number(1.5e-310, 2e-312), "1.500(20)e-310");
}

TEST(FormatNumber, IsLedByTheErrorWhereThatIsLarger) {
  EXPECT_EQ(format_number(0.0012, 1.5), "0.0(1.5)");
  EXPECT_EQ(format_number(1e-9, 2.3e-6), "0.0(2.3)e-06");
  EXPECT_EQ(format_number(0, 2.3e-6), "0.0(2.3)e-06");
}

TEST(FormatNumber, HasNoNegativeZero) {
  EXPECT_EQ(format_number(-0.0), "0");
  EXPECT_EQ(format_number(-0.0, 0.0), "0");
  EXPECT_EQ(format_number(-0.001, 1.5), "0.0(1.5)");
  EXPECT_EQ(format_number(-1e-9, 2.3e-6), "0.0(2.3)e-06");
}

TEST(FormatNumber, ShowsExactNumbersInUpToTwelveDigits) {
  EXPECT_EQ(format_number(0.5), "0.5");
  EXPECT_EQ(format_number(1.0 / 3), "0.333333333333");
  EXPECT_EQ(format_number(42), "42");
  EXPECT_EQ(format_number(1e20), "1e+20");
  EXPECT_EQ(format_number(0.5, 0), "0.5");
}

TEST(FormatNumber, ShowsAnErrorBelowTwelveDigitsAsNone) {
  EXPECT_EQ(format_number(1.0 / 3, 1e-14), "0.333333333333");
  EXPECT_EQ(format_number(1.0 / 3, 4e-13), "0.33333333333333(40)");
  EXPECT_EQ(format_number(0, 1e-17), "0.0(1.0)e-17");
}

/// Reads "value(error)e+xx" back.
struct Reading {
  double value, error, last;  // last: one unit of the last digit
};
Reading read_back(const std::string& text) {
  const std::size_t open = text.find('('), close = text.find(')');
  const std::string mantissa = text.substr(0, open),
                    inside = text.substr(open + 1, close - open - 1),
                    exponent = text.substr(close + 1);
  const std::size_t point = mantissa.find('.');
  const int decimals =
      point == std::string::npos ? 0 : static_cast<int>(mantissa.size() - point - 1);
  const double last = std::stod(
      fmt::format("1e{}", (exponent.empty() ? 0 : std::stoi(exponent.substr(1))) - decimals));
  return {std::stod(mantissa + exponent),
          inside.find('.') == std::string::npos ? std::stod(inside) * last
                                                : std::stod(inside + exponent),
          last};
}

TEST(FormatNumber, LosesNoMoreThanHalfOfItsLastDigit) {
  for (double value = 1.23456789e-20; value < 1e20; value *= 7.7)
    for (double ratio = 1e-11; ratio < 1e4; ratio *= 3.3)
      for (const double sign : {1.0, -1.0}) {
        const double error = value * ratio;
        const std::string text = format_number(sign * value, error);
        const Reading got = read_back(text);
        EXPECT_LE(std::abs(got.value - sign * value), 0.51 * got.last + 4e-16 * value) << text;
        EXPECT_LE(std::abs(got.error - error), 0.51 * got.last) << text;
        EXPECT_GE(got.error / got.last, 9.9) << text;
        EXPECT_LE(got.error / got.last, 99.1) << text;
      }
}

// ---- results
// ---------------------------------------------------------------------------------------

ProgramInfo program(const std::string& text = "") {
  return {Source("net.tp", text), "abc", {}, false};
}

ReportResult scalar(const std::string& name, double value, double error) {
  return {name, {}, {}, {}, {}, {value}, {error}};
}

ReportResult array(const std::string& name, std::vector<std::int64_t> shape, int loops = 0) {
  ReportResult r{name};
  r.shape = std::move(shape);
  std::size_t size = 1;
  for (std::size_t k = 0; k < r.shape.size(); ++k) {
    size *= static_cast<std::size_t>(r.shape[k]);
    if (static_cast<int>(k) >= loops) continue;
    r.index_names.push_back(k == 0 ? "t" : "l");
    r.index_values.emplace_back();
    for (std::int64_t i = 0; i < r.shape[k]; ++i) r.index_values.back().push_back(i);
  }
  for (std::size_t j = 0; j < size; ++j) r.value.push_back(static_cast<double>(j) - 1.5);
  r.error.assign(size, 0.25);
  return r;
}

LimitResult limit(std::vector<ReportResult> reports) {
  LimitResult out;
  out.engine = {"particles", 1024, 8, 7, 2, 1e-6, 5};
  out.reports = std::move(reports);
  out.time_s = 1.234;
  out.peak_memory_bytes = 5e7;
  out.largest_error = 0.00012;
  return out;
}

TEST(LimitText, HasAHeadAndAFoot) {
  EXPECT_EQ(to_text(limit({scalar("loss", 0.5, 0.001)}), program()),
            "net.tp: limit of infinite width, 1024 particles x 8 randomisations, seed 7\n"
            "\n"
            "loss   0.5000(10)\n"
            "\n"
            "time 1.23 s, memory 50 MB, largest rank 5, largest error 0.00012\n");
}

TEST(LimitText, AlignsScalarsAndNamesWhatIsExact) {
  ReportResult exact = scalar("a longer name", 2, 0);
  exact.method = Method::kExact;
  const std::string text = to_text(limit({scalar("x", 0.5, 0.001), exact}), program());
  EXPECT_NE(text.find("\nx               0.5000(10)\na longer name   2   exact\n"),
            std::string::npos)
      << text;
}

TEST(LimitText, ShowsASeriesAsATableAlignedAtThePoint) {
  const std::string text = to_text(limit({array("out", {3, 2}, 1)}), program());
  EXPECT_NE(text.find("out   2 values for t in 0..3\n"
                      "    t   [0]         [1]\n"
                      "    0   -1.50(25)   -0.50(25)\n"
                      "    1    0.50(25)    1.50(25)\n"
                      "    2    2.50(25)    3.50(25)\n"),
            std::string::npos)
      << text;
}

TEST(LimitText, ShowsAMatrixWithItsIndices) {
  const std::string text = to_text(limit({array("K", {2, 2})}), program());
  EXPECT_NE(text.find("K   2 x 2\n"
                      "          [0]         [1]\n"
                      "    [0]   -1.50(25)   -0.50(25)\n"
                      "    [1]    0.50(25)    1.50(25)\n"),
            std::string::npos)
      << text;
}

TEST(LimitText, LabelsNestedLoops) {
  const std::string text = to_text(limit({array("s", {2, 2}, 2)}), program());
  EXPECT_NE(text.find("s   for t in 0..2, l in 0..2\n    t   l\n    0   0   -1.50(25)\n    0   1   "
                      "-0.50(25)\n"),
            std::string::npos)
      << text;
}

TEST(LimitText, AbbreviatesLargeArraysUnlessAskedForAll) {
  const LimitResult large = limit({array("K", {64, 64})});
  const std::string text = to_text(large, program());
  EXPECT_NE(text.find("..  left out"), std::string::npos);
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 30);
  EXPECT_NE(text.find("[63]"), std::string::npos);
  const std::string full = to_text(large, program(), {true});
  EXPECT_EQ(full.find("left out"), std::string::npos);
  EXPECT_NE(full.find("2000.50(25)"), std::string::npos);
}

TEST(LimitText, FitsTheColumnsItIsGiven) {
  for (const std::size_t columns : {80u, 100u, 120u}) {
    const std::string text = to_text(limit({array("K", {20, 20}), array("s", {30, 50}, 1)}),
                                     program(), {false, columns});
    for (std::size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
         begin = end + 1)
      EXPECT_LE(end - begin, columns) << text.substr(begin, end - begin);
  }
}

TEST(LimitText, MarksUnresolvedEigenvalues) {
  ReportResult r = array("eig", {2});
  r.unresolved = {true, false};
  const std::string text = to_text(limit({r}), program());
  EXPECT_NE(text.find("-1.50(25)?   -0.50(25)\n"), std::string::npos) << text;
  EXPECT_NE(text.find("?  not resolved"), std::string::npos);
}

TEST(LimitText, ClaimsNoErrorWhereThereIsNone) {
  ReportResult r = scalar("x", 0.123456789, 0);
  r.error.clear();
  const std::string text = to_text(limit({r}), program());
  EXPECT_NE(text.find("x   0.123457   no error estimate: one randomisation\n"), std::string::npos)
      << text;
}

TEST(LimitText, CallsTheSpreadOfDrawsSpread) {
  LimitResult drawn = limit({scalar("x", 0.5, 0.001), array("y", {2})});
  drawn.draws = 3;
  drawn.reports[0].spread = {0.25};
  drawn.reports[1].spread = {0.5, 0.125};
  ProgramInfo info = program();
  info.random_scalars = true;
  const std::string text = to_text(drawn, info);
  EXPECT_NE(text.find("mean over 3 draws of the random scalars"), std::string::npos) << text;
  EXPECT_NE(text.find("x   0.5000(10)   spread 0.25\n"), std::string::npos) << text;
  EXPECT_NE(text.find("  spread of y over draws\n    [0]   [1]\n    0.5   0.125\n"),
            std::string::npos)
      << text;
}

TEST(LimitText, SaysThatResultsAreConditionalOnRandomScalars) {
  ProgramInfo info = program();
  info.random_scalars = true;
  EXPECT_NE(
      to_text(limit({}), info).find("conditional on the random scalars drawn from --seed 7\n"),
      std::string::npos);
}

TEST(LimitText, ListsExpectationsOncePerLineByTheirWorstIteration) {
  const std::string source = "expect a == 0\n  within 1\nexpect b == 0 within 1\n";
  LimitResult checked = limit({});
  checked.expectations = {{{0, 24}, "t = 0", ExpectStatus::kPassed, 0.5, 0, 0.01, 1},
                          {{0, 24}, "t = 1", ExpectStatus::kFailed, 3, 0, 0.01, 1},
                          {{0, 24}, "t = 2", ExpectStatus::kFailed, 2, 0, 0.01, 1},
                          {{25, 47},
                           "",
                           ExpectStatus::kUndecided,
                           1,
                           0.001,
                           std::numeric_limits<double>::infinity(),
                           1}};
  const std::string text = to_text(checked, program(source));
  EXPECT_NE(text.find("FAIL       net.tp:1: expect a == 0 within 1\n"
                      "           left 3.000, right 0, difference 3.000(10), worst at t = 1; 2 of "
                      "3 iterations fail\n"
                      "undecided  net.tp:3: expect b == 0 within 1\n"
                      "           left 1, right 0.001, difference 0.999, no error estimate: one "
                      "randomisation\n"),
            std::string::npos)
      << text;
}

// ---- networks and comparison
// -----------------------------------------------------------------------

SimulationResult networks(std::int64_t width, std::vector<std::vector<double>> runs) {
  SimulationResult out;
  out.engine = {"networks", 0, 0, 7, 2, 0, 3};
  out.width = width;
  out.seeds = static_cast<int>(runs.size());
  ReportResult r{"x"};
  r.method = Method::kNetworks;
  r.value = runs[0];
  if (runs[0].size() > 1) r.shape = {static_cast<std::int64_t>(runs[0].size())};
  out.reports = {r};
  out.runs = {std::move(runs)};
  return out;
}

TEST(SimulationText, NamesWidthAndMatrices) {
  const std::string text = to_text(networks(64, {{0.123456789}}), program());
  EXPECT_EQ(text.find("net.tp: 1 network of width 64, dense matrices, seed 7\n\nx   0.123457\n"),
            0u)
      << text;
}

TEST(ComparisonText, StacksTheWidthsAboveTheLimit) {
  const Comparison all = compare(limit({scalar("x", 0.5, 0.0001)}),
                                 {networks(256, {{0.51}, {0.49}}), networks(64, {{0.48}, {0.52}})});
  const std::string text = to_text(all, program());
  EXPECT_NE(text.find("networks: 2 seeds at each width (64 dense, 256 dense)\n"
                      "\n"
                      "x\n"
                      "    width   mean          sd      rms deviation\n"
                      "       64   0.500(20)     0.028   0.020\n"
                      "      256   0.500(10)     0.014   0.010\n"
                      "    limit   0.50000(10)\n"
                      "    inconclusive: "),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("\noverall: inconclusive (1 of 1 report); "), std::string::npos) << text;
}

TEST(ComparisonText, KeepsTheLimitBelowItsColumns) {
  const Comparison all = compare(limit({array("x", {2})}), {networks(64, {{-1, 0}, {-2, -1}})});
  const std::string text = to_text(all, program());
  EXPECT_NE(text.find("            [0]                [1]                all 2\n"
                      "    width   mean        sd     mean        sd     rms deviation\n"
                      "       64   -1.50(50)   0.71   -0.50(50)   0.71   0.50\n"
                      "    limit   -1.50(25)          -0.50(25)\n"),
            std::string::npos)
      << text;
}

TEST(ComparisonText, ShowsFirstMiddleAndLastOfMany) {
  LimitResult series = limit({array("x", {9, 4}, 1)});
  std::vector<double> low = series.reports[0].value, high = low;
  for (double& v : low) v -= 0.1;
  for (double& v : high) v += 0.1;
  const Comparison all = compare(series, {networks(64, {low, high})});
  const std::string text = to_text(all, program());
  EXPECT_NE(text.find("t = 0, [0] "), std::string::npos) << text;
  EXPECT_NE(text.find("t = 4, [0] "), std::string::npos) << text;
  EXPECT_NE(text.find("t = 8, [0] "), std::string::npos) << text;
  EXPECT_NE(text.find("all 36\n"), std::string::npos) << text;
  EXPECT_NE(to_text(all, program(), {true}).find("t = 8, [3] "), std::string::npos);
}

TEST(Compare, LetsUnresolvedEigenvaluesDecideNothing) {
  LimitResult eigen = limit({array("x", {2})});
  eigen.reports[0].value = {1, 2};
  eigen.reports[0].error = {1e-4, 1e-4};
  eigen.reports[0].unresolved = {true, false};
  const auto widths = [] {  // the first entry is off by far more than its error at every width
    std::vector<SimulationResult> out;
    for (const auto& [width, sd] : {std::pair{64, 0.08}, {256, 0.04}, {1024, 0.02}}) {
      std::vector<std::vector<double>> runs;
      for (int seed = 0; seed < 16; ++seed) runs.push_back({0.5, 2 + (seed % 2 ? sd : -sd)});
      out.push_back(networks(width, runs));
    }
    return out;
  };
  EXPECT_EQ(compare(eigen, widths()).verdict, Verdict::kAgrees);
  eigen.reports[0].unresolved = {true, true};
  EXPECT_EQ(compare(eigen, widths()).verdict, Verdict::kInconclusive);
}

TEST(Compare, LeavesDrawsOfCoordinatesOut) {
  LimitResult drawn = limit({scalar("x", 0.5, 0)});
  drawn.reports[0].method = Method::kSamples;
  drawn.reports[0].error.clear();
  const Comparison all = compare(drawn, {networks(64, {{0.5}, {0.5}})});
  EXPECT_FALSE(all.reports[0]);
  EXPECT_NE(to_text(all, program()).find("not compared"), std::string::npos);
}

TEST(AverageDraws, TakesMeanAndStandardDeviationOverDraws) {
  LimitResult a = limit({scalar("x", 1, 0.1)}), b = limit({scalar("x", 3, 0.3)});
  a.expectations = b.expectations = {{{}, "t = 1"}};
  const LimitResult mean = average_draws({a, b});
  EXPECT_EQ(mean.draws, 2);
  EXPECT_DOUBLE_EQ(mean.reports[0].value[0], 2);
  EXPECT_DOUBLE_EQ(mean.reports[0].error[0],
                   std::hypot(std::sqrt(2.0) / std::sqrt(2.0), 0.2));  // over draws, and of each
  EXPECT_DOUBLE_EQ(mean.reports[0].spread[0], std::sqrt(2.0));
  EXPECT_DOUBLE_EQ(mean.largest_error, mean.reports[0].error[0]);
  ASSERT_EQ(mean.expectations.size(), 2u);
  EXPECT_EQ(mean.expectations[1].iteration, "draw 1, t = 1");
}

}  // namespace
}  // namespace tplimit
