#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "cli/commands.hpp"
#include "cli/progress_bar.hpp"
#include "tplimit/report/comparison.hpp"
#include "tplimit/report/json.hpp"
#include "tplimit/report/npz.hpp"
#include "tplimit/report/text.hpp"
#include "tplimit/report/vega.hpp"
#include "tplimit/support/output_file.hpp"

/// What commands have in common.
namespace tplimit::cli {

/// A mistake of the command line.
int complain(std::string_view message);
bool any_of(const Diagnostics& errors, std::initializer_list<std::string_view> codes);
/// Shows why there is no result.  A file that cannot be read and an option out of range are
/// mistakes of the command line.
int reject(const Diagnostics& errors, const Source& source);

/// A program and the text that diagnostics quote, also when it was rejected.
struct Loaded {
  Source source;
  Result<Module> module;
};
/// On every rank the same.
Loaded load(const Options& options, std::uint64_t draw = 0);

/// Where the command line names none; then up to what the ratios of several widths need.
inline const std::vector<std::int64_t> kUsualWidths{128, 512, 2048};
void fit_widths(std::vector<std::int64_t>& widths, const Module& module);

ProgramInfo info(const Module& module, const Options& options);
TextOptions text_options(const Options& options);
bool is_first(const Options& options);
bool show_progress(const Options& options);

/// All that determines numbers, in words.  The program's own part covers data, --set and ablations.
std::vector<std::pair<std::string, std::string>> identity(std::string_view command,
                                                          const Options& options,
                                                          const Module& module);

/// "" or why the command need not start.  The first rank writes, so it alone must be able to; all
/// must know.
std::string output_fault(const Options& options);

// ---- evaluations: the numbers of run and compare

/// As `run` finds it: with --draws the mean over draws.  `share`: of the bar.
Result<LimitResult> evaluate_run(const Loaded& first, const Options& options,
                                 std::optional<Checkpoint>& checkpoint, ProgressBar& bar,
                                 double share);
/// As `compare` finds it; `known`: the limit, `networks`: measurements, where they need not be
/// computed.
Result<Comparison> evaluate_compare(const Loaded& loaded, const Options& options,
                                    std::optional<Checkpoint>& checkpoint, ProgressBar& bar,
                                    double share, std::optional<LimitResult> known = {},
                                    std::optional<std::vector<SimulationResult>> networks = {});

// ---- checkpoints

/// Of --checkpoint, if it is given.
Result<std::optional<Checkpoint>> open_checkpoint(std::string_view command, const Options& options,
                                                  const Loaded& loaded);
/// The checkpoint stays while the same command, started again, could need it: interrupted, out of
/// memory, results not written.
int conclude(std::optional<Checkpoint>& checkpoint, int code, const Diagnostics& errors = {});

// ---- results

/// write_file, or to standard output (kStandard).
std::string write_output(const std::string& file, const std::string& text);

/// The results, how to repeat them, the program.
std::string write_page(document::Document page, std::string_view command, const Module& module,
                       const Diagnostics& warnings, const Options& options);

template <class Results>
std::string write_results(const std::string& file, const Results& results,
                          const ProgramInfo& program) {
  if constexpr (requires { write_npz(file, results, program); })
    if (file.ends_with(".npz")) return write_npz(file, results, program);
  return write_output(file, to_json(results, program));
}

/// The files first: a reader of the text that goes away early must not prevent it.
template <class Results>
int deliver(std::string_view command, const Results& results, const Module& module,
            const Diagnostics& warnings, const Options& options, int code) {
  const ProgramInfo program = info(module, options);
  if (!options.quiet) fmt::print(stderr, "{}", render(warnings, program.source));
  if (!options.out.empty() && is_first(options))
    if (const std::string failure = write_results(options.out, results, program); !failure.empty())
      code = complain(failure);
  if (!options.html.empty() && is_first(options))
    if (const std::string failure =
            write_page(document_of(results, program), command, module, warnings, options);
        !failure.empty())
      code = complain(failure);
  if (!options.plot.empty() && is_first(options))
    if (const std::string failure =
            write_output(options.plot, to_vega_lite(document_of(results, program)));
        !failure.empty())
      code = complain(failure);
  if (options.prints_text()) fmt::print("{}", to_text(results, program, text_options(options)));
  return code;
}

}  // namespace tplimit::cli
