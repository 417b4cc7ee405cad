#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "cli/commands.hpp"
#include "cli/interruption.hpp"
#include "cli/progress_bar.hpp"
#include "tplimit/driver/identity.hpp"
#include "tplimit/report/comparison.hpp"
#include "tplimit/report/json.hpp"
#include "tplimit/report/npz.hpp"
#include "tplimit/report/text.hpp"
#include "tplimit/support/output_file.hpp"

/// What commands have in common.
namespace tplimit::cli {

/// A mistake of the command line.
int complain(std::string_view message);
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

ProgramInfo info(const Module& module, const Options& options);
TextOptions text_options(const Options& options);
bool is_first(const Options& options);
bool show_progress(const Options& options);

/// What the command line asks for.
Request request(const Options& options);

/// "" or why the command need not start.  The first rank writes, so it alone must be able to; all
/// must know.
std::string output_fault(const Options& options);

// ---- evaluations

/// Keeps in the checkpoint, if there is one, what is done until a signal.  Without one there is
/// nothing to save, and the signal ends the process.
template <class Own>
Own kept(Own options, std::optional<Checkpoint>& checkpoint) {
  if (!checkpoint) return options;
  options.checkpoint = &*checkpoint;
  // A signal reaches ranks at different instructions: it ends the job, and what is finished is
  // kept.
  if (options.ranks->size() == 1) options.stop = &stop_on_signals();
  return options;
}

// ---- checkpoints

/// Of --checkpoint, if it is given.
Result<std::optional<Checkpoint>> open_checkpoint(const Options& options, const Module& module);
/// The checkpoint stays while the same command, started again, could need it: interrupted, out of
/// memory, results not written.
int conclude(std::optional<Checkpoint>& checkpoint, int code, const Diagnostics& errors = {});

// ---- results

/// write_file, or to standard output (kStandard).
std::string write_output(const std::string& file, const std::string& text);

/// The results, how to repeat them, the program.
std::string write_page(document::Document page, const Module& module, const Diagnostics& warnings,
                       const Options& options);

/// Charts as SVG or Vega-Lite, by the name of the file.
std::string write_charts(const std::string& file, const document::Document& document);

template <class Results>
std::string write_results(const std::string& file, const Results& results,
                          const ProgramInfo& program) {
  if constexpr (requires { write_npz(file, results, program); })
    if (file.ends_with(".npz")) return write_npz(file, results, program);
  return write_output(file, to_json(results, program));
}

/// The files first: a reader of the text that goes away early must not prevent it.
template <class Results>
int deliver(const Results& results, const Module& module, const Diagnostics& warnings,
            const Options& options, int code) {
  const ProgramInfo program = info(module, options);
  if (!options.quiet) fmt::print(stderr, "{}", render(warnings, program.source));
  if (!options.out.empty() && is_first(options))
    if (const std::string failure = write_results(options.out, results, program); !failure.empty())
      code = complain(failure);
  if (!options.html.empty() && is_first(options))
    if (const std::string failure =
            write_page(document_of(results, program), module, warnings, options);
        !failure.empty())
      code = complain(failure);
  if (!options.plot.empty() && is_first(options))
    if (const std::string failure = write_charts(options.plot, document_of(results, program));
        !failure.empty())
      code = complain(failure);
  if (options.prints_text()) fmt::print("{}", to_text(results, program, text_options(options)));
  return code;
}

}  // namespace tplimit::cli
