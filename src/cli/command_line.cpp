#include "cli/command_line.hpp"

#include <malloc.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <limits>
#include <new>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include "cli/gallery.hpp"
#include "cli/lsp.hpp"
#include "cli/manual.hpp"
#include "cli/numbers.hpp"
#include "cli/shared.hpp"
#include "parallel/session.hpp"
#include "tplimit/driver/option_ranges.hpp"
#include "tplimit/report/json.hpp"
#include "tplimit/support/similar.hpp"

namespace tplimit::cli {
namespace {

constexpr std::int64_t kMost = 1'000'000;

using Assignments = std::vector<std::pair<std::string, std::string>>;

/// An option whose text is turned into a value by `parse(name, text)`.
template <class Target, class Parse>
void add(CLI::App& app, const std::string& name, const char* type, Target& target,
         const std::string& help, Parse parse) {
  const auto take = [name, &target, parse](const std::string& text) { target = parse(name, text); };
  app.add_option_function<std::string>(name, take, help)->type_name(type);
}

/// A whole number from `least` on, by default what the option may be (kOptionRanges).
template <class T = int>
auto count(OptionRange range, double least = 0) {
  const auto from = static_cast<std::int64_t>(std::max(range.least, least)),
             to = static_cast<std::int64_t>(range.most);
  return [=](const std::string& name, const std::string& text) {
    return static_cast<T>(parse_count(name, text, from, to));
  };
}
auto real(OptionRange range) {
  return [=](const std::string& name, const std::string& text) {
    return parse_real(name, text, range.least, range.most);
  };
}

std::string alternatives(const std::vector<std::string>& names) {
  return fmt::format("{}", fmt::join(names, "|"));
}

/// An option with one of these values.  They stand in its type, as in "auto|exact": help, pages of
/// the manual and completions read them there.
template <class Target>
void add_choice(CLI::App& app, const std::string& name, Target& target, const std::string& help,
                const std::vector<std::pair<std::string, Target>>& choices) {
  std::vector<std::string> names;
  for (const auto& [choice, value] : choices) names.push_back(choice);
  const auto take = [=, &target](const std::string& text) {
    const auto at = std::find(names.begin(), names.end(), text);
    if (at == names.end())
      throw CLI::ValidationError(
          name, fmt::format("'{}' is not one of {}", text, fmt::join(names, ", ")));
    target = choices[static_cast<std::size_t>(at - names.begin())].second;
  };
  app.add_option_function<std::string>(name, take, help)->type_name(alternatives(names));
}

std::pair<std::int64_t, std::int64_t> parse_steps(const std::string& name,
                                                  const std::string& text) {
  const auto dots = text.find("..");
  if (dots == std::string::npos)
    throw CLI::ValidationError(name, fmt::format("'{}' is not a range, as in 0..2", text));
  const auto first = parse_count(name, text.substr(0, dots), 0, kMost),
             last = parse_count(name, text.substr(dots + 2), 0, kMost);
  if (last <= first) throw CLI::ValidationError(name, fmt::format("'{}' is an empty range", text));
  return {first, last};
}

GradedOptions::Given parse_given(const std::string& name, const std::string& text) {
  const auto [value, list] = parse_assignment(name, text);
  GradedOptions::Given out{value, {}};
  for (std::size_t from = 0; from <= list.size();) {
    const std::size_t comma = std::min(list.find(',', from), list.size());
    out.values.push_back(parse_real(name, list.substr(from, comma - from),
                                    -std::numeric_limits<double>::max(),
                                    std::numeric_limits<double>::max()));
    from = comma + 1;
  }
  return out;
}

void add_assignments(CLI::App& app, const std::string& name, const char* type, Assignments& target,
                     const std::string& help) {
  const auto take = [name, &target](const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      auto assignment = parse_assignment(name, text);
      for (const auto& [earlier, value] : target)
        if (earlier == assignment.first)
          throw CLI::ValidationError(name, fmt::format("'{}' is given twice", earlier));
      target.push_back(std::move(assignment));
    }
  };
  app.add_option_function<std::vector<std::string>>(name, take, help)
      ->type_name(type)
      ->allow_extra_args(false);
}

void add_program(CLI::App& app, Options& o) {
  app.add_option("FILE", o.files, "The program (.tp); -: standard input")
      ->required()
      ->expected(1)
      ->type_name("");
  add_assignments(app, "--set", "NAME=VALUE", o.lower.constants,
                  "Replace a constant of the program; may be repeated");
  add_assignments(app, "--data", "NAME=FILE", o.lower.data_files,
                  "Read the data of this name from another file; may be repeated");
}

void add_passes(CLI::App& app, Options& o) {
  std::vector<std::pair<std::string, std::string>> passes;
  for (const std::string& name : PassLog::names()) passes.emplace_back(name, name);
  add_choice(app, "--dump-after", o.passes->dump_after, "Print the program after this pass",
             passes);
  app.add_flag("--time-passes", o.passes->times, "Print the time of each pass to standard error");
}

void add_page(CLI::App& app, Options& o) {
  app.add_option("--html", o.html,
                 "Write a page with charts, settings and the program, which opens offline")
      ->type_name("FILE");
}

constexpr const char* kNumbersOut = "Write all numbers to this JSON file; -: standard output";
constexpr const char* kArraysOut =
    "Write all numbers to this JSON file, or as NumPy arrays to FILE.npz; -: JSON to standard "
    "output";

/// `out`: what --out does.
void add_running(CLI::App& app, Options& o, const char* out) {
  app.add_option("--decouple", o.ablations.decouple,
                 "Ablation: products with the transpose of this matrix use an independent copy; "
                 "may be repeated")
      ->type_name("W")
      ->allow_extra_args(false);
  app.add_flag("--no-correction", o.ablations.no_correction,
               "Ablation: --decouple for all matrices, no correction terms are left");
  app.add_flag("--lazy", o.ablations.lazy, "Ablation: train the linearisation at the start");
  add(app, "--seed", "N", o.lower.seed, "Of everything random; default 0", parse_seed);
  add(app, "--threads", "N", o.evaluate.threads,
      "Default 0: all cores.  Results do not depend on it", count(range_of("threads")));
  add(app, "--memory", "BYTES", o.evaluate.memory_bytes,
      "Refuse to use more, as in 4G; default: 80 % of the machine's", parse_bytes);
  add_choice<Matrices>(
      app, "--matrices", o.evaluate.matrices,
      "stored (or dense): all entries; lazy: revealed product by product, the same law; default "
      "auto",
      {{"auto", Matrices::kAuto},
       {"stored", Matrices::kDense},
       {"dense", Matrices::kDense},
       {"lazy", Matrices::kLazy}});
  add_choice<bool>(
      app, "--precision", o.simulate.single_precision,
      "Of stored matrices, bases and normals: single halves memory and time; default double",
      {{"double", false}, {"single", true}});
  app.add_option("--out", o.out, out)->type_name("FILE");
  add_page(app, o);
  app.add_flag("--quiet", o.quiet, "Print errors only");
  app.add_flag("--full", o.full, "Print every number of large arrays");
  add_passes(app, o);
}

void add_plot(CLI::App& app, Options& o) {
  app.add_option("--plot", o.plot,
                 "Write the charts: .svg as a figure, else a Vega-Lite specification with its data")
      ->type_name("FILE");
}

void add_checkpoint(CLI::App& app, Options& o) {
  CLI::Option* folder =
      app.add_option(
             "--checkpoint", o.checkpoint,
             "Keep the state of a long evaluation in this folder; the same command goes on from it")
          ->type_name("FOLDER");
  add(app, "--checkpoint-interval", "SECONDS", o.checkpoint_interval,
      "How much may be lost; default 60", real(range_of("checkpoint_interval")));
  app.get_option("--checkpoint-interval")->needs(folder);
}

void add_engine(CLI::App& app, Options& o) {
  add_choice<Engine>(app, "--engine", o.evaluate.engine,
                     "auto: the strongest method for each report; moments: also closed forms and "
                     "quadrature; default auto",
                     {{"auto", Engine::kAuto},
                      {"exact", Engine::kExact},
                      {"moments", Engine::kMoments},
                      {"particles", Engine::kParticles}});
}

void add_limit(CLI::App& app, Options& o, int least_randomisations) {
  add_engine(app, o);
  add(app, "--given", "NAME=VALUES", o.evaluate.given,
      "A random output at the start is not drawn but has these values, as in out=0 or out=1,-0.5",
      parse_given);
  add(app, "--particles", "N", o.evaluate.particles,
      "Samples that stand for the infinite width, as in 65536, 64k or 1e5; default 16384, with "
      "--tol as many as that needs",
      count<std::int64_t>(range_of("particles")));
  add(app, "--randomisations", "N", o.evaluate.randomisations,
      "Independent repetitions, from which errors are estimated; default 8",
      count(range_of("randomisations"), least_randomisations));
  add(app, "--tol", "X", o.evaluate.tolerance,
      "Raise particles, and directions kept, until every error is below this",
      real(range_of("tol")));
  app.add_option("--tol-on", o.evaluate.tolerance_on,
                 "The tolerance is for these reports only, as in loss,accuracy; default: all")
      ->type_name("NAME,..")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->needs(app.get_option("--tol"));
  add(app, "--rank-tol", "X", o.evaluate.rank_tol,
      "Drop new directions of a matrix below this relative size; default 1e-6, with --tol as much "
      "as that allows",
      real(range_of("rank_tol")));
  add(app, "--merge-rows", "X", o.evaluate.merge_rows,
      "Without sampling: rows of a sum over f(row) closer in direction than this become one; "
      "default 1e-12",
      real(range_of("merge_rows")));
}

void add_networks(CLI::App& app, Options& o, int seeds, int least_seeds) {
  o.simulate.seeds = seeds;
  add(app, "--seeds", "K", o.simulate.seeds, fmt::format("Networks per width; default {}", seeds),
      count(range_of("seeds"), least_seeds));
}

void add_run_options(CLI::App& own, Options& o, const char* out) {
  add_program(own, o);
  add_limit(own, o, 1);
  add(own, "--draws", "K", o.draws,
      "Average over K draws of the random scalars and show their spread", count(range_of("draws")));
  add_running(own, o, out);
  add_plot(own, o);
  add_checkpoint(own, o);
}

CLI::App& add_run(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand("run", "Compute the limit of infinite width");
  add_run_options(own, o, kArraysOut);
  return own;
}

/// Constants that take several values.
void add_variation(CLI::App& own, const std::string& name, Options& o, const std::string& help) {
  const auto take = [name, &o](const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      auto [constant, values] = parse_values(name, text);
      for (const SweepAxis& earlier : o.over)
        if (earlier.name == constant)
          throw CLI::ValidationError(name, fmt::format("'{}' is given twice", constant));
      o.over.push_back({std::move(constant), std::move(values)});
    }
  };
  own.add_option_function<std::vector<std::string>>(name, take, help)
      ->type_name("NAME=VALUE,..")
      ->allow_extra_args(false)
      ->required();
}

CLI::App& add_sweep(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand(
      "sweep", "Compute the limit for all combinations of values of some constants");
  add_run_options(own, o, kNumbersOut);
  add_variation(
      own, "--over", o,
      "A constant, or parametrization, and its values, as in eta=0.1,0.3; may be repeated");
  own.add_option("--best", o.best, "Name the combination with the lowest value of this report")
      ->type_name("REPORT");
  own.add_flag("--highest", o.highest, "With --best: the highest value");
  add(own, "--widths", "N,N,..", o.widths, "Networks of these widths beside the limit, as compare",
      parse_widths);
  add_networks(own, o, 8, 2);
  own.get_option("--seeds")->needs(own.get_option("--widths"));
  own.parse_complete_callback([&own, &o] {  // as compare
    if (!o.widths.empty() && own.get_option("--draws")->empty()) o.draws = 64;
  });
  return own;
}

CLI::App& add_extrapolate(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand(
      "extrapolate", "Compute the limit as a constant grows, or shrinks to 0, too");
  add_run_options(own, o, kNumbersOut);
  add_variation(own, "--in", o,
                "A constant and its values, as in L=8,16,32 (to infinity) or dt=0.1,0.05 (to 0)");
  add(own, "--order", "P", o.order,
      "The leading power of 1/constant, or of a constant that shrinks; default 1",
      count(range_of("order")));
  return own;
}

CLI::App& add_simulate(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand("simulate", "Run finite networks of one width");
  add_program(own, o);
  add(own, "--width", "N", o.simulate.width, "Width of the networks; default 512",
      count<std::int64_t>(range_of("width")));
  add_networks(own, o, 1, 1);
  add_running(own, o, kArraysOut);
  add_plot(own, o);
  add_checkpoint(own, o);
  return own;
}

CLI::App& add_compare(CLI::App& app, Options& o) {
  CLI::App& own =
      *app.add_subcommand("compare", "Set finite networks beside the limit: do they tend to it?");
  add_program(own, o);
  add(own, "--widths", "N,N,..", o.widths, "Widths of the networks; default 128,512,2048",
      parse_widths);
  CLI::Option* against =
      own.add_option(
             "--against", o.against,
             "Instead of own networks: values that other code measured (.json, .npz, .csv); "
             "may be repeated")
          ->type_name("FILE")
          ->allow_extra_args(false);
  own.add_flag("--fit-corrections", o.fit_corrections,
               "Show limit, coefficient of 1/n and n-scaled variance that the widths give");
  add_networks(own, o, 8, 2);
  add_limit(own, o, 2);
  o.draws = 64;
  add(own, "--draws", "K", o.draws,
      "Draws of random outputs of the limit, over which it is averaged; default 64",
      count(range_of("draws"), 2));
  for (const char* other : {"--widths", "--seeds", "--given"})
    against->excludes(own.get_option(other));
  CLI::Option* known =
      own.add_option("--limit", o.limit,
                     "Take the limit from this result of run --out of the same program and data")
          ->type_name("FILE");
  for (const char* other : {"--engine", "--particles", "--randomisations", "--tol", "--rank-tol",
                            "--merge-rows", "--draws"})
    known->excludes(own.get_option(other));
  add_running(own, o, kArraysOut);
  add_plot(own, o);
  add_checkpoint(own, o);
  return own;
}

CLI::App& add_coordcheck(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand(
      "coordcheck",
      "Sizes of all named values over the first steps, at several widths, beside what is counted");
  add_program(own, o);
  add(own, "--widths", "N,N,..", o.widths, "Widths of the networks; default 128,512,2048",
      parse_widths);
  add(own, "--steps", "T", o.coordinate_steps, "Steps of training; default 4",
      count(range_of("steps")));
  add_networks(own, o, 4, 2);
  add_limit(own, o, 2);
  add_running(own, o, kNumbersOut);
  add_plot(own, o);
  return own;
}

CLI::App& add_check(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand(
      "check", "Check a program and show the powers of the width, without numbers");
  add_program(own, o);
  add_limit(own, o, 2);
  add(own, "--depths", "L,L,..", o.depths,
      "Of a program that declares a depth: those that powers are measured at; default 1, 2, 4 and "
      "8 times its own",
      parse_widths);
  add(own, "--steps", "T", o.depth_steps, "Steps of training at each depth; default 2",
      count(range_of("steps")));
  own.add_option("--out", o.out,
                 "Write sizes, verdict and advice to this JSON file; -: standard output")
      ->type_name("FILE");
  add_page(own, o);
  own.add_flag("--quiet", o.quiet, "Print errors only");
  add_passes(own, o);
  return own;
}

CLI::App& add_explain(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand("explain", "Write the limit as formulas");
  add_program(own, o);
  own.add_flag(
      "--parametrization", o.parametrization,
      "Instead: variance, multiplier and rates of every parameter, in three equivalent forms");
  add(own, "--width", "N", o.base_width.width,
      "With --parametrization: factors for this width on what is right at --base-width",
      count<std::int64_t>(range_of("width")));
  add(own, "--base-width", "N", o.base_width.base, "The width that was tuned",
      count<std::int64_t>(range_of("width")));
  own.get_option("--width")
      ->needs(own.get_option("--base-width"))
      ->needs(own.get_option("--parametrization"));
  own.get_option("--base-width")->needs(own.get_option("--width"));
  add_choice<Format>(own, "--format", o.format, "latex: a document; default text",
                     {{"text", Format::kText}, {"latex", Format::kLatex}, {"json", Format::kJson}});
  own.add_option("--vector", o.selection.names,
                 "Only values of this name, and what stands in their formulas; may be repeated")
      ->type_name("NAME")
      ->allow_extra_args(false);
  add(own, "--steps", "A..B", o.selection.steps,
      "Only what belongs to these steps of training (half-open)", parse_steps);
  own.add_flag("--numbers", o.numbers, "Evaluate every mean and coefficient that is shown");
  add_limit(own, o, 2);
  add_running(own, o, "Write the formulas to this file; -: standard output");
  return own;
}

CLI::App& add_format(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand("fmt", "Print programs in canonical layout");
  own.add_option("FILE", o.files, "Programs (.tp); -: standard input")->required()->type_name("");
  CLI::Option* in_place = own.add_flag("--in-place", o.in_place, "Rewrite the files");
  own.add_flag("--check", o.only_check, "Only say which files would change; exit code 1 if any")
      ->excludes(in_place);
  return own;
}

CLI::App& add_library(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand("std", "Print the standard library, or functions of it");
  own.add_option("NAME", o.files, "Functions")->type_name(alternatives(library_names()));
  return own;
}

CLI::App& add_gallery(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand(
      "gallery", "List results of the literature, or compute one and write its page");
  own.add_option("NAME", o.files, "The entry; none: list them")
      ->expected(0, 1)
      ->type_name(alternatives(gallery_names()));
  own.add_option("--folder", o.folder, "Where the program and its pages go; default NAME")
      ->type_name("FOLDER");
  own.add_flag("--quiet", o.quiet, "Print the results of its commands only");
  return own;
}

CLI::App& add_lsp(CLI::App& app, Options&) {
  CLI::App& own = *app.add_subcommand("lsp", "Serve an editor: a language server on stdin/stdout");
  own.add_flag("--stdio")->description("As always; editors pass it");
  return own;
}

CLI::App& add_manual(CLI::App& app, Options& o) {
  std::vector<std::string> commands;  // those before this one
  for (const CLI::App* command : app.get_subcommands({})) commands.push_back(command->get_name());
  CLI::App& own = *app.add_subcommand("man", "Print a page of the manual, as groff reads it");
  own.add_option("COMMAND", o.files, "The command; none: the page of tplimit")
      ->expected(0, 1)
      ->type_name(alternatives(commands));
  own.add_option("--folder", o.folder, "Write the pages of all commands into this folder instead")
      ->type_name("FOLDER");
  return own;
}

CLI::App& add_completions(CLI::App& app, Options& o) {
  CLI::App& own = *app.add_subcommand("completions", "Print the completions for a shell");
  own.add_option("SHELL", o.files, "The shell")
      ->required()
      ->expected(1)
      ->type_name(alternatives(shells()));
  return own;
}

struct Command {
  CLI::App& (*declare)(CLI::App&, Options&);
  int (*run)(const Options&);
  bool shared = false;  ///< between the ranks of a job
  bool arrays = false;  ///< --out writes .npz, too
};
constexpr std::array kCommands{Command{add_run, run, true, true},
                               Command{add_simulate, simulate, true, true},
                               Command{add_compare, compare, true, true},
                               Command{add_sweep, sweep, true},
                               Command{add_extrapolate, extrapolate, true},
                               Command{add_coordcheck, coordcheck, true},
                               Command{add_check, check},
                               Command{add_explain, explain, true},
                               Command{add_format, format},
                               Command{add_gallery, gallery, true},
                               Command{add_library, library},
                               Command{add_lsp, serve_editor},
                               Command{add_manual, manual},
                               Command{add_completions, completions}};

/// The same file, or the same name of one that is not there yet.
bool same_file(const std::string& a, const std::string& b) {
  std::error_code fault;
  if (std::filesystem::equivalent(a, b, fault)) return true;
  return std::filesystem::weakly_canonical(a, fault) == std::filesystem::weakly_canonical(b, fault);
}

/// "" or which file would be read and overwritten, written twice, or hold what its name does not
/// say.
std::string fault_of_outputs(const Options& o) {
  const std::array<std::pair<const char*, const std::string*>, 3> outputs{
      {{"--out", &o.out}, {"--html", &o.html}, {"--plot", &o.plot}}};
  std::vector<std::string> inputs = o.files;
  for (const auto& [name, file] : o.lower.data_files) inputs.push_back(file);
  for (const auto& file : o.against) inputs.push_back(file);
  inputs.push_back(o.limit);
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    const auto& [option, file] = outputs[k];
    if (file->empty() || *file == kStandard) continue;
    for (const std::string& input : inputs)
      if (!input.empty() && input != kStandard && same_file(*file, input))
        return fmt::format("{} {}: this file is read, and would be overwritten", option, *file);
    for (std::size_t j = 0; j < k; ++j)
      if (!outputs[j].second->empty() && same_file(*file, *outputs[j].second))
        return fmt::format("{} and {} name the same file", outputs[j].first, option);
    for (const char* other : {".tp", ".csv", ".tsv", ".npy"})
      if (file->ends_with(other))
        return fmt::format("{} {}: no {} file is written, name one of another kind", option, *file,
                           other);
  }
  for (const char* other : {".html", ".svg", ".png", ".pdf"})
    if (o.out.ends_with(other))
      return fmt::format("--out {}: numbers are written, {} has {}", o.out,
                         std::string_view(other) == ".html" ? "--html" : "--plot",
                         std::string_view(other) == ".html" ? "the page" : "the charts");
  return "";
}

/// "" or why the files on the command line cannot be used together.
std::string fault_of_files(const Options& o, bool arrays) {
  if (!arrays && o.out.ends_with(".npz"))
    return fmt::format("--out {}: {} writes no arrays, name a file of another kind", o.out,
                       o.command);
  for (const char* picture : {".png", ".pdf"})
    if (o.plot.ends_with(picture))
      return fmt::format(
          "--plot {}: charts are written as .svg, of which rsvg-convert and browsers "
          "make a {}, or as .vl.json",
          o.plot, picture);
  if (o.evaluate.ranks->size() > 1 &&
      std::find(o.files.begin(), o.files.end(), kStandard) != o.files.end())
    return "FILE -: standard input reaches one process of a job only, name a file";
  if (const std::string fault = fault_of_outputs(o); !fault.empty()) return fault;
  if (o.streams() > 1) return "standard output takes one of --out, --html, --plot";
  if (o.streams() > 0 && !o.passes->dump_after.empty())
    return "--dump-after prints to standard output, too: name a file instead of -";
  return "";
}

/// The options of a command line, by name.
std::vector<std::pair<std::string, std::vector<std::string>>> given_options(const CLI::App& own) {
  std::vector<std::pair<std::string, std::vector<std::string>>> out;
  for (const CLI::Option* option : own.get_options())
    if (!option->get_positional() && option->count() > 0)
      out.emplace_back(option->get_name(), option->get_items_expected_max() > 0
                                               ? option->results()
                                               : std::vector<std::string>());
  return out;
}

/// A command or an option that there is none of, in a sentence; CLI11 takes the value of an unknown
/// option for a second FILE.
std::string unknown_word(const std::vector<std::string>& words,
                         const std::vector<CLI::App*>& apps) {
  const auto said = [](std::string fault, const std::string& word,
                       const std::vector<std::string>& known) {
    const std::string near = did_you_mean(word, known);
    return fault +
           (near.empty() ? fmt::format(": there are {}", fmt::join(known, ", ")) : ": " + near);
  };
  if (words.empty() || words[0].starts_with('-')) return "";
  std::vector<std::string> names;
  for (const CLI::App* app : apps) {
    names.push_back(app->get_name());
    if (app->get_name() != words[0]) continue;
    std::vector<std::string> options;
    for (const CLI::Option* option : app->get_options())
      for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
    for (const std::string& word : words)
      if (const std::string name = word.substr(0, word.find('='));
          name.size() > 2 && name.starts_with("--") &&
          std::find(options.begin(), options.end(), name) == options.end())
        return said(fmt::format("{} has no option '{}'", words[0], name), name, options);
    return "";
  }
  return said(fmt::format("there is no command '{}'", words[0]), words[0], names);
}

}  // namespace

int dispatch(const std::vector<std::string>& words, const Communicator& ranks) {
  CLI::App app(
      "Infinite-width limits of neural networks, with error bars, and finite networks beside them",
      "tplimit");
  app.set_version_flag("--version", fmt::format("tplimit {}", version()));
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("tplimit: {}\nRun with --help for more information.\n", error.what());
  });
  std::array<Options, kCommands.size()> all;
  std::vector<CLI::App*> apps;
  for (std::size_t k = 0; k < kCommands.size(); ++k)
    apps.push_back(&kCommands[k].declare(app, all[k]));

  if (!as_on_first_rank(ranks, fmt::format("{}", fmt::join(words, "\n"))))
    throw RanksDiffer("its command line is not that of rank 0");
  if (words.empty()) {
    fmt::print("{}", app.help());
    return kUsage;
  }
  if (words[0] == "help") {  // as --help
    std::vector<std::string> asked(words.begin() + 1, words.end());
    asked.emplace_back("--help");
    return dispatch(asked, ranks);
  }
  if (const std::string unknown = unknown_word(words, apps); !unknown.empty())
    return complain(unknown);
  try {
    app.parse(std::vector<std::string>(words.rbegin(), words.rend()));  // it takes the last first
  } catch (const CLI::ParseError& error) {
    if (std::string_view(error.what()).starts_with("FILE: At Most 1"))
      return complain(fmt::format(
          "{} takes one FILE, and here are more words than options need; lists have commas and no "
          "spaces, as in --widths 128,512",
          words[0]));
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  const auto named = static_cast<std::size_t>(
      std::find_if(apps.begin(), apps.end(), [](const CLI::App* own) { return own->parsed(); }) -
      apps.begin());
  const Command& command = kCommands.at(named);
  Options& o = all[named];
  o.evaluate.seed = o.simulate.seed = o.lower.seed;
  o.simulate.threads = o.evaluate.threads;
  o.evaluate.single_precision = o.simulate.single_precision;
  o.simulate.matrices = o.evaluate.matrices;
  o.simulate.memory_bytes = o.evaluate.memory_bytes;
  o.evaluate.ranks = o.simulate.ranks = &ranks;
  o.app = &app;
  o.command = apps[named]->get_name();
  o.given = given_options(*apps[named]);
  o.command_line = fmt::format("tplimit {}", fmt::join(words, " "));
  for (const auto& [option, values] : o.given)
    if (std::find(values.begin(), values.end(), "") != values.end())
      return complain(fmt::format("{}: its value is empty", option));
  if (const std::string fault = fault_of_files(o, command.arrays); !fault.empty())
    return complain(fault);
  o.lower.memory_bytes =
      o.evaluate.memory_bytes > 0 ? o.evaluate.memory_bytes : 0.8 * ranks.memory();
  if (ranks.rank() > 0 && !command.shared) return kDone;
  if (ranks.rank() == 0) o.evaluate.observe = o.simulate.observe = o.passes->observer();
  const int code = command.run(o);
  o.passes->finish();
  return code;
}

int command_line(int argc, char** argv) {
#ifdef __GLIBC__
  // Large kernels free and allocate arrays of the same size again and again: keep them, the kernel
  // need not clear them anew.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
  Session session(&argc, &argv);
  try {
    const int code = dispatch({argv + 1, argv + argc}, session.ranks());
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return session.finish(code);
    fmt::print(stderr, "tplimit: cannot write to standard output\n");
    return session.finish(kUsage);
  } catch (const RanksDiffer& error) {
    return session.abandon(kUsage, error.what());
  } catch (const std::bad_alloc&) {
    return session.abandon(kRejected, "out of memory; use fewer --particles or a smaller width");
  } catch (const std::exception& error) {
    if (std::ferror(stdout)) return session.abandon(kUsage, "cannot write to standard output");
    return session.abandon(kOurBug,
                           fmt::format("internal error: {}\nThis is a bug in tplimit: please "
                                       "report it with the program and the command line.",
                                       error.what()));
  }
}

}  // namespace tplimit::cli
