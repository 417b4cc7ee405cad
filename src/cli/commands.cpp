#include "cli/shared.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/interruption.hpp"
#include "cli/progress_bar.hpp"
#include "tplimit/driver/measurements.hpp"
#include "tplimit/explain/page.hpp"
#include "tplimit/lower/library.hpp"
#include "tplimit/passes/theory_checks.hpp"
#include "tplimit/report/comparison.hpp"
#include "tplimit/report/figure.hpp"
#include "tplimit/report/html.hpp"
#include "tplimit/report/json.hpp"
#include "tplimit/report/npz.hpp"
#include "tplimit/report/regime.hpp"
#include "tplimit/report/text.hpp"
#include "tplimit/report/vega.hpp"
#include "tplimit/support/output_file.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::cli {

// ---- in and out
// ------------------------------------------------------------------------------------

int complain(std::string_view message) {
  fmt::print(stderr, "tplimit: {}\n", message);
  return kUsage;
}

int reject(const Diagnostics& errors, const Source& source) {
  fmt::print(stderr, "{}", render(errors, source));
  if (any_of(errors, {"E5206", "E5207"})) return kInterrupted;
  return any_of(errors, {"E5001", "E5101", "E2701", "E5201", "E5202", "E5203", "E5204", "E5205",
                         "E5301", "E5302", "E5303", "E5304", "E5305"})
             ? kUsage
             : kRejected;
}

namespace {

/// Standard input is read once: a program may be evaluated several times.
Result<Source> read_program(const std::string& file) {
  if (file != kStandard) return read_source(file);
  static const Result<Source> standard = read_source(std::cin, "<stdin>");
  return standard;
}

Loaded load_here(const Options& options, std::uint64_t draw) {
  const std::filesystem::path file = options.files.at(0);
  Result<Source> read = read_program(file);
  if (!read) return {Source(file.string(), ""), read.errors()};
  Source source = with_imports(std::move(*read), file.parent_path());
  LowerOptions lower = options.lower;
  lower.base_directory = file.parent_path();
  lower.draw = draw;
  Result<Module> module = parse(source, lower, options.ablations, options.evaluate.observe);
  return {std::move(source), std::move(module)};
}

}  // namespace

Loaded load(const Options& options, std::uint64_t draw) {
  Loaded loaded = load_here(options, draw);
  const std::string errors = loaded.module ? "" : render(loaded.module.errors(), loaded.source);
  if (!as_on_first_rank(*options.evaluate.ranks,
                        loaded.module ? fingerprint(*loaded.module) : errors))
    throw RanksDiffer(fmt::format("what it reads is not what rank 0 reads{}{}",
                                  errors.empty() ? "" : "\n", errors));
  return loaded;
}

ProgramInfo info(const Module& module, const Options& options) {
  ProgramInfo out = program_info(module, options.evaluate);
  out.command = options.command;
  out.options = options.given;
  return out;
}

TextOptions text_options(const Options& options) {
  constexpr std::array kRankVariables{"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
  TextOptions text{options.full};
  const auto value = [](const char* name) {
    const char* own = std::getenv(name);
    return std::string_view(own ? own : "");
  };
  // mpirun gives its processes a terminal of its own, whatever it writes to.
  const bool under_mpirun = std::any_of(kRankVariables.begin(), kRankVariables.end(),
                                        [](const char* n) { return std::getenv(n); });
  const bool terminal = isatty(STDOUT_FILENO) != 0 && !under_mpirun;
  if (terminal && value("TERM") != "dumb") {
    text.colours = value("NO_COLOR").empty();
    // The first of these that is set decides, as for setlocale.
    std::string_view locale;
    for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"})
      if (locale.empty()) locale = value(name);
    for (const char* name : {"UTF-8", "utf-8", "UTF8", "utf8"})
      text.sparklines = text.sparklines || locale.find(name) != std::string_view::npos;
  }
  winsize size{};
  if (terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    text.columns = std::clamp<std::size_t>(size.ws_col, 80, 160);
  return text;
}

bool is_first(const Options& options) { return options.evaluate.ranks->rank() == 0; }
bool show_progress(const Options& options) {
  return is_first(options) && isatty(STDERR_FILENO) != 0;
}

Request request(const Options& options) {
  return {options.command,
          {options.evaluate, options.simulate, options.widths, options.draws},
          options.limit,
          options.over,
          options.order};
}

std::string write_charts(const std::string& file, const document::Document& document) {
  return write_output(file, file.ends_with(".svg") ? to_svg(document) : to_vega_lite(document));
}

std::string write_page(document::Document page, const Module& module, const Diagnostics& warnings,
                       const Options& options) {
  std::vector<std::pair<std::string, std::string>> settings{{"command line", options.command_line},
                                                            {"tplimit", version()}};
  for (auto& setting : identity(module, request(options))) settings.push_back(std::move(setting));
  page.append(provenance(info(module, options), settings, render(warnings, module.source)));
  return write_output(options.html, to_html(page));
}

std::string write_output(const std::string& file, const std::string& text) {
  if (file != kStandard) return write_file(file, text);
  fmt::print("{}", text);
  return "";
}

namespace {

int exit_code(const LimitResult& limit) {
  const auto any = [&](ExpectStatus status) {
    return std::any_of(limit.expectations.begin(), limit.expectations.end(),
                       [&](const auto& e) { return e.status == status; });
  };
  if (limit.tolerance_missed)
    complain(fmt::format(
        "the tolerance {:g} was missed: with {} particles the largest error is {:.2g}",
        limit.engine.tolerance.value_or(0), limit.engine.particles, limit.largest_error));
  if (any(ExpectStatus::kFailed)) return kFailed;
  if (limit.tolerance_missed) return kToleranceMissed;
  return any(ExpectStatus::kUndecided) ? kUndecided : kDone;
}

int exit_code(const Comparison& comparison) {
  const int limit = exit_code(comparison.limit);
  if (limit == kFailed || comparison.verdict == Verdict::kDisagrees) return kFailed;
  return limit == kDone && comparison.verdict == Verdict::kInconclusive ? kUndecided : limit;
}

}  // namespace

std::string output_fault(const Options& options) {
  std::string fault;
  if (is_first(options))
    for (const std::string& file : {options.out, options.html, options.plot})
      if (fault.empty() && !file.empty() && file != kStandard) fault = why_not_writable(file);
  return as_on_first_rank(*options.evaluate.ranks, fault) ? fault : "rank 0 cannot write";
}

Result<std::optional<Checkpoint>> open_checkpoint(const Options& options, const Module& module) {
  if (options.checkpoint.empty()) return std::optional<Checkpoint>();
  CheckpointOptions own{options.checkpoint,
                        options.checkpoint_interval,
                        identity(module, request(options)),
                        {},
                        options.evaluate.ranks};
  if (!options.quiet)
    own.warn = [source = module.source](const Diagnostic& warning) {
      fmt::print(stderr, "{}", render(warning, source));
    };
  Result<Checkpoint> opened = Checkpoint::open(std::move(own));
  if (!opened) return opened.errors();
  if (const auto [finished, in_progress] = opened->found();
      !options.quiet && finished + in_progress > 0)
    fmt::print(stderr, "tplimit: going on from '{}': finished runs: {}, in progress: {}\n",
               options.checkpoint, finished, in_progress);
  return std::optional<Checkpoint>(std::move(*opened));
}

int conclude(std::optional<Checkpoint>& checkpoint, int code, const Diagnostics& errors) {
  if (!checkpoint) return code;
  const bool undelivered =
      std::fflush(stdout) != 0 || std::ferror(stdout) || (errors.empty() && code == kUsage);
  if (undelivered)
    (void)checkpoint->flush();
  else
    checkpoint->close(errors);
  return code;
}

namespace {

/// Of --limit, or why it cannot be used.
std::variant<LimitResult, std::string> read_limit(const std::string& file, const Module& module,
                                                  const Options& options) {
  if (std::string reason = why_not_readable(file); !reason.empty()) return reason;
  std::ifstream in(file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in) return std::string("cannot be read");
  return known_limit(text, module, request(options).options);
}

}  // namespace

// ---- commands
// --------------------------------------------------------------------------------------

int run(const Options& options) {
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);
  const Loaded first = load(options);
  if (!first.module) return reject(first.module.errors(), first.source);
  Result<std::optional<Checkpoint>> checkpoint = open_checkpoint(options, *first.module);
  if (!checkpoint) return reject(checkpoint.errors(), first.source);
  const Result<LimitResult> limit = [&] {
    ProgressBar bar(show_progress(options));
    EvaluateOptions evaluation = kept(options.evaluate, *checkpoint);
    evaluation.progress = bar.stage("limit", 1);
    const auto drawn = [&](std::uint64_t draw) {
      return draw == 0 ? first.module : load(options, draw).module;
    };
    Result<std::vector<LimitResult>> draws =
        evaluate_draws(drawn, std::move(evaluation), options.draws);
    return draws ? Result<LimitResult>(average_draws(std::move(*draws))) : draws.errors();
  }();
  if (!limit) return conclude(*checkpoint, reject(limit.errors(), first.source), limit.errors());
  if (limit->draws < options.draws && !options.quiet)
    fmt::print(
        stderr,
        "tplimit: nothing is random in the limit, so draws change nothing: one is evaluated\n");
  return conclude(*checkpoint,
                  deliver(*limit, *first.module, limit->warnings, options, exit_code(*limit)));
}

int simulate(const Options& given) {
  Options options = given;
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);
  const Loaded loaded = load(options);
  if (!loaded.module) return reject(loaded.module.errors(), loaded.source);
  if (options.simulate.width == 0) options.simulate.width = usual_widths(*loaded.module, {512})[0];
  Result<std::optional<Checkpoint>> checkpoint = open_checkpoint(options, *loaded.module);
  if (!checkpoint) return reject(checkpoint.errors(), loaded.source);
  const Result<SimulationResult> networks = [&] {
    ProgressBar bar(show_progress(options));
    SimulateOptions simulation = kept(options.simulate, *checkpoint);
    simulation.progress = bar.stage(fmt::format("width {}", simulation.width), 1);
    return tplimit::simulate(*loaded.module, simulation);
  }();
  if (!networks)
    return conclude(*checkpoint, reject(networks.errors(), loaded.source), networks.errors());
  return conclude(*checkpoint,
                  deliver(*networks, *loaded.module, networks->warnings, options, kDone));
}

int compare(const Options& given) {
  Options options = given;
  const bool measured = !options.against.empty(), usual = options.widths.empty() && !measured;
  if (options.fit_corrections && options.widths.size() == 1)
    return complain("--fit-corrections needs two widths or more");
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);
  const Loaded loaded = load(options);
  if (!loaded.module) return reject(loaded.module.errors(), loaded.source);
  if (usual) options.widths = usual_widths(*loaded.module);

  CompareOptions own = request(options).options;
  if (measured) {
    Result<std::vector<SimulationResult>> read =
        read_measurements({options.against.begin(), options.against.end()}, *loaded.module,
                          comparable(*loaded.module));  // --against excludes --given
    if (!read) return reject(read.errors(), loaded.source);
    if (options.fit_corrections && read->size() < 2)
      return complain("--fit-corrections needs two widths or more");
    own.networks = std::move(*read);
  }
  if (!options.limit.empty()) {
    std::variant<LimitResult, std::string> read =
        read_limit(options.limit, *loaded.module, options);
    if (const auto* fault = std::get_if<std::string>(&read))
      return complain(fmt::format("--limit '{}': {}", options.limit, *fault));
    own.limit = std::move(std::get<LimitResult>(read));
  }
  Result<std::optional<Checkpoint>> checkpoint = open_checkpoint(options, *loaded.module);
  if (!checkpoint) return reject(checkpoint.errors(), loaded.source);
  Result<Comparison> comparison = [&] {
    ProgressBar bar(show_progress(options));
    const double limit = share_of_limit(own);
    own.evaluate = kept(own.evaluate, *checkpoint);
    own.simulate = kept(own.simulate, *checkpoint);
    own.evaluate.progress = bar.stage("limit", limit);
    own.simulate.progress = [&, stage = Progress()](double done) mutable {
      if (!stage) stage = bar.stage("networks", 1 - limit);
      stage(done);
    };
    return tplimit::compare(*loaded.module, own);
  }();
  if (!comparison)
    return conclude(*checkpoint, reject(comparison.errors(), loaded.source), comparison.errors());
  comparison->show_corrections = options.fit_corrections;
  return conclude(*checkpoint, deliver(*comparison, *loaded.module, comparison->limit.warnings,
                                       options, exit_code(*comparison)));
}

namespace {

/// Of a program that declares a depth, at several.
Result<std::optional<DepthCheck>> powers_of_depth(const Options& options, const Module& module) {
  if (!module.depth) return std::optional<DepthCheck>();
  std::vector<std::int64_t> depths = options.depths;
  if (depths.empty())
    for (const std::int64_t factor : {1, 2, 4, 8}) depths.push_back(factor * module.depth->value);
  std::vector<Module> modules;
  for (const std::int64_t depth : depths) {
    Options own = options;
    own.lower.constants.emplace_back(module.depth->name, fmt::format("{}", depth));
    Loaded loaded = load(own);
    if (!loaded.module) return loaded.module.errors();
    modules.push_back(std::move(*loaded.module));
  }
  return std::optional(depth_check(modules, options.depth_steps, options.evaluate));
}

ExitCode exit_code(const DepthCheck& check) {
  using enum DepthVerdict::Answer;
  const DepthVerdict v = verdict(check);
  if (v.stable == kNo || v.faithful == kNo) return kUnstable;
  if (v.nontrivial == kNo) return kNoFeatures;
  return v.stable == kOpen || v.nontrivial == kOpen || v.faithful == kOpen ? kUndecided : kDone;
}

}  // namespace

int check(const Options& options) {
  if (!options.depths.empty() &&
      (options.depths.size() < 3 || !std::ranges::is_sorted(options.depths, std::less_equal<>())))
    return complain("--depths: three depths or more, rising");
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);
  const Loaded loaded = load(options);
  if (!loaded.module) return reject(loaded.module.errors(), loaded.source);
  const Module& module = *loaded.module;
  if (!options.depths.empty() && !module.depth)
    return complain("--depths: the program declares none, as in: depth L = 8");
  const RegimeReport counted = regime(module, !options.out.empty());
  const Result<LeadingOrder> orders = tplimit::check(module, options.evaluate.observe);
  std::optional<DepthCheck> depth;
  if (orders && !counted.unstable) {
    Result<std::optional<DepthCheck>> found = powers_of_depth(options, module);
    if (!found) return reject(found.errors(), loaded.source);
    depth = std::move(*found);
  }
  if (!options.out.empty())
    if (const std::string failure = write_output(
            options.out,
            to_json(counted, *module.written, info(module, options), depth ? &*depth : nullptr));
        !failure.empty())
      return complain(failure);
  const int of_width = counted.regime == Regime::kUnstable ? kUnstable
                       : counted.regime == Regime::kTrivial || counted.regime == Regime::kKernel
                           ? kNoFeatures
                           : kDone;
  const int verdict = std::max<int>(of_width, depth ? exit_code(*depth) : kDone);
  if (!options.quiet || !options.html.empty()) {
    const bool print = options.prints_text();
    Diagnostics warnings = module.warnings;
    if (orders)
      // Not what vanishes: the table says it.
      warnings.insert(warnings.end(), orders->warnings.begin(), orders->warnings.end());
    const Diagnostics hypotheses = theory_checks(module.program);
    warnings.insert(warnings.end(), hypotheses.begin(), hypotheses.end());
    if (counted.unstable && orders) warnings.push_back(*counted.unstable);
    if (!options.quiet) fmt::print(stderr, "{}", render(warnings, loaded.source));
    document::Document document;
    document.add({document::Heading{
        1, fmt::format("{}: {} instructions, Gaussian matrices and vectors: {}, expectations: {}",
                       loaded.source.name(), module.program.size(), module.program.sources.size(),
                       module.program.expectations.size())}});
    if (orders) {
      const Result<std::vector<ReportMethod>> methods = tplimit::methods(module, options.evaluate);
      if (!methods) {
        if (print) fmt::print("{}\n", to_text(document));
        return reject(methods.errors(), module.source);
      }
      document.append(document_of(*orders, *methods, module.source));
    }
    document.append(document_of(counted, *module.written, module.source));
    if (depth) document.append(document_of(*depth));
    if (print) fmt::print("{}", to_text(document, text_options(options)));
    if (!options.html.empty()) {
      // What stops the limit is no result: it stands among the warnings.
      if (!orders) warnings.insert(warnings.end(), orders.errors().begin(), orders.errors().end());
      if (const std::string failure = write_page(std::move(document), module, warnings, options);
          !failure.empty())
        return complain(failure);
    }
  }
  if (orders) return verdict;
  // What has no limit, or none that is carried yet, is still counted.
  if (!options.quiet && counted.unstable)
    fmt::print(stderr, "{}", render(*counted.unstable, loaded.source));
  const int rejected = reject(orders.errors(), loaded.source);
  return verdict == kDone ? rejected : verdict;
}

namespace {

int deliver_text(const std::string& text, const Options& options) {
  if (options.out.empty()) {
    if (options.streams() == 0) fmt::print("{}", text);
    return kDone;
  }
  const std::string failure = is_first(options) ? write_output(options.out, text) : "";
  return failure.empty() ? kDone : complain(failure);
}

}  // namespace

int explain(const Options& options) {
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);
  const Loaded loaded = load(options);
  if (!loaded.module) return reject(loaded.module.errors(), loaded.source);
  const Module& module = *loaded.module;
  // The page first, as with files of results.
  const auto deliver_page = [&](document::Document page, const std::string& heading) {
    if (options.html.empty() || !is_first(options)) return kDone;
    if (!heading.empty())
      page.sections.insert(page.sections.begin(),
                           document::Section{{document::Heading{1, heading}}});
    const std::string failure =
        write_page(std::move(page), module, theory_checks(module.program), options);
    return failure.empty() ? kDone : static_cast<ExitCode>(complain(failure));
  };
  if (options.parametrization) {
    const document::Document forms = parametrizations(
        regime(module, false), *module.written,
        options.base_width.width > 0 ? std::optional(options.base_width) : std::nullopt);
    if (const int code = deliver_page(forms, loaded.source.name() + ": parametrisations");
        code != kDone)
      return code;
    return deliver_text(to_text(forms), options);
  }

  Result<LimitFormulas> limit = limit_formulas(module, options.evaluate);
  if (!limit) return reject(limit.errors(), loaded.source);
  if (const std::string fault = fault_of(limit->formulas, options.selection); !fault.empty())
    return complain(fault);
  const explain::View view = explain::view_of(limit->formulas, options.selection);
  std::vector<explain::Number> numbers;
  if (options.numbers) {
    ProgressBar bar(show_progress(options));
    EvaluateOptions evaluation = options.evaluate;
    evaluation.progress = bar.stage("numbers", 1);
    Result<std::vector<explain::Number>> found = numbers_of(*limit, view.numbers, evaluation);
    if (!found) return reject(found.errors(), loaded.source);
    numbers = std::move(*found);
  }
  if (!options.quiet)
    fmt::print(stderr, "{}", render(theory_checks(module.program), loaded.source));
  const std::string title = loaded.source.name();
  if (!options.html.empty())
    if (const int code =
            deliver_page(explain::to_document(limit->formulas, view, numbers, title), "");
        code != kDone)
      return code;
  switch (options.format) {
    case Format::kText:
      return deliver_text(to_text(limit->formulas, view, numbers, title), options);
    case Format::kLatex:
      return deliver_text(to_latex(limit->formulas, view, numbers, title), options);
    case Format::kJson:
      return deliver_text(to_json(limit->formulas, view, numbers, info(module, options)), options);
  }
  return kDone;
}

int format(const Options& options) {
  int code = kDone;
  const auto worse = [&](int other) { code = std::max(code, other); };
  for (const std::string& file : options.files) {
    const Result<Source> source = read_program(file);
    if (!source) {
      worse(reject(source.errors(), Source(file, "")));
      continue;
    }
    const Result<std::string> text = format_source(*source);
    if (!text) {
      worse(reject(text.errors(), *source));
    } else if (options.only_check) {
      if (*text == source->text()) continue;
      fmt::print("{} would change\n", source->name());
      worse(kRejected);
    } else if (!options.in_place || file == kStandard) {
      fmt::print("{}", *text);
    } else if (*text != source->text()) {
      if (const std::string failure = write_file(file, *text); !failure.empty())
        worse(complain(failure));
    }
  }
  return code;
}

std::vector<std::string> library_names() {
  constexpr std::string_view kStart = "\nfn ";
  const std::string_view text = standard_library();
  std::vector<std::string> out;
  for (std::size_t at = text.find(kStart); at != std::string_view::npos;
       at = text.find(kStart, at + 1)) {
    const std::size_t begin = at + kStart.size();
    out.emplace_back(text.substr(begin, text.find('(', begin) - begin));
  }
  return out;
}

int library(const Options& options) {
  const std::string_view text = standard_library();
  if (options.files.empty()) fmt::print("{}", text);
  for (const std::string& name : options.files) {
    const std::size_t at = text.find(fmt::format("\nfn {}(", name));
    if (at == std::string_view::npos)
      return complain(fmt::format("the standard library has no function '{}'", name));
    // Functions and the comments above them stand between blank lines.
    const std::size_t begin = text.rfind("\n\n", at) + 2, end = text.find("\n\n", at + 1);
    fmt::print("{}{}", text.substr(begin, end - begin), end == std::string_view::npos ? "" : "\n");
  }
  return kDone;
}

}  // namespace tplimit::cli
