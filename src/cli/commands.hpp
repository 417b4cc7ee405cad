#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cli/pass_log.hpp"
#include "tplimit/driver/driver.hpp"
#include "tplimit/report/regime.hpp"
#include "tplimit/report/sweep.hpp"

/// What the subcommands do: results to standard output, diagnostics to standard error, exit code
/// returned.
namespace CLI {
class App;
}

namespace tplimit::cli {

/// docs/cli.md says when each is used; the highest that applies in the order kFailed,
/// kToleranceMissed, kUndecided wins.
enum ExitCode : int {
  kDone = 0,
  kRejected = 1,
  kUsage = 2,
  kToleranceMissed = 3,
  kFailed = 4,
  kUndecided = 5,
  kNoFeatures = 6,
  kUnstable = 7,
  kOurBug = 70,
  kInterrupted = 75,  ///< EX_TEMPFAIL of sysexits.h: try again later
};

/// Ranks of one job must be given the same; thrown by one that was not.
class RanksDiffer : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Standard input as a program, standard output as a file of results.
inline constexpr const char* kStandard = "-";

enum class Format { kText, kLatex, kJson };

/// The command line, checked number by number.  `lower.seed`, `evaluate.*` and `simulate.*` share
/// --seed, --threads and --memory.
struct Options {
  std::vector<std::string> files;  ///< one, but for fmt
  LowerOptions lower;
  Ablations ablations;
  EvaluateOptions evaluate;
  SimulateOptions simulate;
  std::vector<std::int64_t> widths;  ///< compare
  bool fit_corrections = false;      ///< compare
  std::vector<SweepAxis> over;       ///< sweep, extrapolate
  std::string best;                  ///< sweep: a report; empty: none
  bool highest = false;              ///< sweep: the largest is the best
  int coordinate_steps = 4;          ///< coordcheck
  std::vector<std::int64_t> depths;  ///< check; empty: the program's times 1, 2, 4, 8
  int depth_steps = 2;               ///< check
  int order = 1;                     ///< extrapolate: the leading power of 1/constant
  std::vector<std::string> against;  ///< compare: files of measurements; empty: own networks
  int draws = 1;                     ///< run, compare
  std::string limit;                 ///< compare: a result of run --out; empty: computed
  std::string out;                   ///< JSON file, or .npz, or kStandard; empty: none
  std::string html;                  ///< page; the same
  std::string plot;                  ///< charts, SVG or Vega-Lite; the same
  const CLI::App* app = nullptr;     ///< the description of all commands
  std::string command;               ///< its name
  std::vector<std::pair<std::string, std::vector<std::string>>>
      given;                        ///< its options, as they were given
  std::string command_line;         ///< all of it, for pages
  std::string folder;               ///< gallery, man; empty: the entry's name, none
  std::string checkpoint;           ///< folder; empty: none
  double checkpoint_interval = 60;  ///< seconds
  bool quiet = false, full = false;
  std::shared_ptr<PassLog> passes = std::make_shared<PassLog>();
  bool parametrization = false, numbers = false;  ///< explain
  BaseWidth base_width{0, 0};                     ///< of --parametrization; 0: none
  Format format = Format::kText;
  explain::Selection selection;
  bool in_place = false, only_check = false;  ///< fmt

  /// How many of the results go to standard output.
  [[nodiscard]] int streams() const {
    return (out == kStandard) + (html == kStandard) + (plot == kStandard);
  }
  /// Whether what is for readers goes there.
  [[nodiscard]] bool prints_text() const { return !quiet && streams() == 0; }
};

/// Parses the words behind `tplimit`, then runs the one command that they name.
int dispatch(const std::vector<std::string>& words, const Communicator& ranks);

int run(const Options& options);
int simulate(const Options& options);
int compare(const Options& options);
int sweep(const Options& options);
int extrapolate(const Options& options);
int coordcheck(const Options& options);
int gallery(const Options& options);
int check(const Options& options);
int explain(const Options& options);
int format(const Options& options);
int library(const Options& options);
/// What `library` knows.
std::vector<std::string> library_names();

}  // namespace tplimit::cli
