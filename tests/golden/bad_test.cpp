#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "golden/text_files.hpp"
#include "tplimit/driver/driver.hpp"
#include "tplimit/passes/theory_checks.hpp"

/// Programs with mistakes and what the user is told about each, byte by byte: bad/NAME.tp beside
/// bad/NAME.expected. `cmake --build . --target update-golden` rewrites the expected texts; the
/// diff is then to be read, not trusted.
///
/// A first line `#! OPTION VALUE` (several may follow each other) gives what else stands on the
/// command line: set, data, particles, randomisations, tolerance, memory, width (runs a network
/// instead of the limit), matrices, decouple, lazy, given, checkpoint, check (true: counts powers
/// and names what the theory does not cover).
namespace tplimit {
namespace {

namespace fs = std::filesystem;
using test::read_text;

const fs::path kFolder = fs::path(TPLIMIT_SOURCE_DIR) / "tests/golden/bad";

struct Run {
  LowerOptions lower;
  EvaluateOptions evaluate;
  std::optional<std::int64_t> width;
  Matrices matrices = Matrices::kAuto;
  Ablations ablations;
  std::string checkpoint;
  bool check = false;  ///< what `check` says beside the limit
};

Run options_of(const std::string& text) {
  Run run;
  run.evaluate.particles = 64;
  run.evaluate.randomisations = 2;
  run.evaluate.threads = 1;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line) && line.starts_with("#! ");) {
    const std::size_t blank = line.find(' ', 3);
    const std::string name = line.substr(3, blank - 3), value = line.substr(blank + 1);
    const std::pair<std::string, std::string> assignment{
        value.substr(0, value.find('=')),
        value.substr(std::min(value.size(), value.find('=') + 1))};
    if (name == "set")
      run.lower.constants.push_back(assignment);
    else if (name == "data")
      run.lower.data_files.push_back(assignment);
    else if (name == "particles")
      run.evaluate.particles = std::stoll(value);
    else if (name == "engine")
      run.evaluate.engine = value == "particles" ? Engine::kParticles
                            : value == "moments" ? Engine::kMoments
                                                 : Engine::kExact;
    else if (name == "randomisations")
      run.evaluate.randomisations = std::stoi(value);
    else if (name == "memory")
      run.evaluate.memory_bytes = run.lower.memory_bytes = std::stod(value);
    else if (name == "tolerance")
      run.evaluate.tolerance = std::stod(value);
    else if (name == "matrices")
      run.matrices = value == "lazy" ? Matrices::kLazy : Matrices::kDense;
    else if (name == "decouple")
      run.ablations.decouple.push_back(value);
    else if (name == "given")
      run.evaluate.given = {value.substr(0, value.find('=')),
                            {std::stod(value.substr(value.find('=') + 1))}};
    else if (name == "lazy")
      run.ablations.lazy = value == "true";
    else if (name == "checkpoint")
      run.checkpoint = value;
    else if (name == "check")
      run.check = value == "true";
    else if (name == "width")
      run.width = std::stoll(value);
    else
      ADD_FAILURE() << "unknown option " << line;
  }
  return run;
}

std::string expectations_of(const LimitResult& result, const Source& source) {
  std::string out;
  for (const ExpectResult& e : result.expectations) {
    const Location where = source.locate(e.span.begin);
    const char* status = e.status == ExpectStatus::kPassed   ? "passed"
                         : e.status == ExpectStatus::kFailed ? "failed"
                                                             : "undecided";
    out +=
        fmt::format("{}:{}:{}: expect {}{}: {:.4g} against {:.4g} within {:.4g}\n", source.name(),
                    where.line, where.column, status,
                    e.iteration.empty() ? "" : " at " + e.iteration, e.left, e.right, e.tolerance);
  }
  return out;
}

/// Everything the user would be told.
std::string told_about(const std::string& name, const std::string& text) {
  const Run run = options_of(text);
  const Source source = with_imports(Source(name, text), "");
  auto module = parse(source, run.lower, run.ablations);
  if (!module) return render(module.errors(), source);
  if (run.check) {
    const RegimeReport counted = regime(*module);
    return render(theory_checks(module->program), source) +
           (counted.unstable ? render(*counted.unstable, source) : "") + to_string(counted.regime) +
           "\n";
  }
  if (run.width) {
    SimulateOptions options;
    options.width = *run.width;
    options.seeds = 1;
    options.threads = 1;
    options.matrices = run.matrices;
    const auto result = simulate(*module, options);
    return result ? render(result->warnings, source) + "accepted\n"
                  : render(result.errors(), source);
  }
  if (!run.checkpoint.empty())
    if (const auto checkpoint = Checkpoint::open({run.checkpoint, 60, {}}); !checkpoint)
      return render(checkpoint.errors(), source);
  EvaluateOptions options = run.evaluate;
  options.matrices = run.matrices;
  const auto result = evaluate(*module, options);
  if (!result) return render(result.errors(), source);
  return render(result->warnings, source) + expectations_of(*result, source) + "accepted\n";
}

std::vector<fs::path> programs() { return test::files_in(kFolder, ".tp"); }

TEST(BadPrograms, AreToldWhatIsWrong) {
  const bool update = std::getenv("TPLIMIT_UPDATE_GOLDEN") != nullptr;
  const fs::path before = fs::current_path();
  fs::current_path(kFolder);  // so that messages name data files relative to the program
  ASSERT_FALSE(programs().empty());
  for (const fs::path& file : programs()) {
    SCOPED_TRACE(file.filename().string());
    std::string told;
    EXPECT_NO_THROW(told = told_about(file.filename().string(), read_text(file)));
    const fs::path expected = fs::path(file).replace_extension(".expected");
    if (update) {
      std::ofstream(expected, std::ios::binary) << told;
    } else {
      EXPECT_EQ(told, read_text(expected));
    }
  }
  fs::current_path(before);
}

/// Codes of the diagnostics in a text: "error[E2103]".
std::set<std::string> codes_in(const std::string& text) {
  std::set<std::string> codes;
  for (const std::string& code : test::diagnostic_codes(text))
    if (text.find('[' + code + ']') != std::string::npos) codes.insert(code);
  return codes;
}

TEST(BadPrograms, CoverEveryCode) {
  std::set<std::string> told;
  for (const fs::path& file : test::files_in(kFolder, ".expected"))
    told.merge(codes_in(read_text(file)));
  const std::set<std::string> unreachable{
      "E1032",  // takes a text of 4 GiB
      "E2314",  // the parser says E1010 before
      "E5001",  // the program itself cannot be read: tests of the command line
      "E5203", "E5206", "E5207", "W5501",  // take an evaluation that has begun: checkpoint_test,
                                           // stop_test
      "E5114", "E5301", "E5302", "E5303", "E5304", "E5305",  // compare --against: measurements_test
  };
  for (const std::string& code : test::codes_of_the_sources()) {
    if (!unreachable.contains(code))
      EXPECT_TRUE(told.contains(code)) << code << " has no case in tests/golden/bad";
    else
      EXPECT_FALSE(told.contains(code)) << code << " is reachable after all";
  }
}

}  // namespace
}  // namespace tplimit
