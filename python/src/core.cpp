#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <thread>

#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cli/command_line.hpp"
#include "tplimit/driver/driver.hpp"
#include "tplimit/driver/identity.hpp"
#include "tplimit/driver/measurements.hpp"
#include "tplimit/driver/option_ranges.hpp"
#include "tplimit/driver/variations.hpp"
#include "tplimit/explain/page.hpp"
#include "tplimit/passes/theory_checks.hpp"
#include "tplimit/report/html.hpp"
#include "tplimit/report/json.hpp"
#include "tplimit/report/regime.hpp"
#include "tplimit/report/text.hpp"
#include "tplimit/report/vega.hpp"

// What Python needs of the library, and no more: numbers cross as NumPy arrays, everything else in
// the words that the library writes itself (JSON, text, pages, Vega-Lite).
namespace nb = nanobind;
using namespace nb::literals;

namespace tplimit {
namespace {

// ---- diagnostics

nb::dict to_python(const Diagnostic& d, const Source& source) {
  nb::dict out;
  out["code"] = d.code;
  out["message"] = d.message;
  out["help"] = d.help;
  out["label"] = d.label;
  out["rendered"] = render(d, source);
  out["line"] = nb::none();
  out["column"] = nb::none();
  if (d.located) {
    const Location place = source.locate(d.span.begin);
    out["line"] = place.line;
    out["column"] = place.column;
  }
  return out;
}
nb::list to_python(const Diagnostics& all, const Source& source) {
  nb::list out;
  for (const Diagnostic& d : all) out.append(to_python(d, source));
  return out;
}

/// Becomes tplimit.Error.
struct Rejected {
  Diagnostics errors;
  Source source;
};

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Rejected& rejected) {
    const nb::object error = nb::module_::import_("tplimit._errors").attr("Error");
    const nb::object value = error(to_python(rejected.errors, rejected.source),
                                   render(rejected.errors, rejected.source));
    PyErr_SetObject(error.ptr(), value.ptr());
  }
}

template <class T>
T or_throw(Result<T> result, const Source& source) {
  if (!result) throw Rejected{result.errors(), source};
  return std::move(*result);
}

// ---- work without the interpreter's lock

/// Where a computation stands, for the thread that waits for it.
struct Task {
  std::atomic<bool> stop = false;
  std::atomic<double> done = 0;
  [[nodiscard]] Progress progress(double begin = 0, double end = 1) {
    return [this, begin, end](double part) { done = begin + (end - begin) * part; };
  }
};

/// f(task) on a thread of its own.  Meanwhile this one serves signals, so that Ctrl-C sets
/// `task.stop`, and calls `progress` (None: nobody) with the fraction that is done.
template <class F>
auto work(const nb::object& progress, const F& f) {
  using namespace std::chrono_literals;
  Task task;
  auto result = std::async(std::launch::async, [&] { return f(task); });
  std::optional<nb::python_error> raised;
  double told = 0;
  for (;;) {
    const std::future_status status = [&] {
      const nb::gil_scoped_release release;
      return raised ? (result.wait(), std::future_status::ready) : result.wait_for(50ms);
    }();
    if (status == std::future_status::ready) break;
    try {
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      if (const double now = task.done; !progress.is_none() && now > told) progress(told = now);
    } catch (nb::python_error& error) {
      raised.emplace(std::move(error));
      task.stop = true;
    }
  }
  if (raised) {
    try {
      (void)result.get();
    } catch (...) {  // what stopped it comes first
    }
    throw std::move(*raised);
  }
  return result.get();
}

// ---- arrays

using In = nb::ndarray<const double, nb::c_contig, nb::device::cpu>;

Array array_of(const In& in) {
  Array out;
  for (std::size_t k = 0; k < in.ndim(); ++k)
    out.shape.push_back(static_cast<std::int64_t>(in.shape(k)));
  out.values.assign(in.data(), in.data() + in.size());
  return out;
}

nb::object numpy(std::vector<double> values, const std::vector<std::int64_t>& shape) {
  auto* owned = new std::vector<double>(std::move(values));
  const nb::capsule owner(owned,
                          [](void* p) noexcept { delete static_cast<std::vector<double>*>(p); });
  const std::vector<std::size_t> extents(shape.begin(), shape.end());
  return nb::cast(
      nb::ndarray<nb::numpy, double>(owned->data(), extents.size(), extents.data(), owner));
}

/// None: there is none.
nb::object numpy_if(const std::vector<double>& values, const std::vector<std::int64_t>& shape) {
  return values.empty() ? nb::none() : numpy(values, shape);
}

/// None stands for a report that networks of other code did not measure.
nb::list arrays_of(const std::vector<ReportResult>& reports,
                   const std::vector<std::vector<std::vector<double>>>* runs = nullptr) {
  nb::list out;
  for (std::size_t k = 0; k < reports.size(); ++k) {
    const ReportResult& r = reports[k];
    if (runs && (*runs)[k].empty()) {
      out.append(nb::none());
      continue;
    }
    nb::dict own;
    own["value"] = numpy(r.value, r.shape);
    own["stderr"] = numpy_if(r.error, r.shape);
    own["spread"] = numpy_if(r.spread, r.shape);
    own["runs"] = nb::none();
    if (runs) {
      std::vector<double> all;
      for (const auto& run : (*runs)[k]) all.insert(all.end(), run.begin(), run.end());
      std::vector<std::int64_t> shape = r.shape;
      shape.insert(shape.begin(), static_cast<std::int64_t>((*runs)[k].size()));
      own["runs"] = numpy(std::move(all), shape);
    }
    out.append(own);
  }
  return out;
}
nb::list arrays(const LimitResult& limit) { return arrays_of(limit.reports); }
nb::list arrays(const SimulationResult& networks) {
  return arrays_of(networks.reports, &networks.runs);
}
nb::list arrays(const Comparison& comparison) {
  nb::list out;
  out.append(arrays(comparison.limit));
  for (const SimulationResult& networks : comparison.networks) out.append(arrays(networks));
  return out;
}

// ---- results

const Diagnostics& warnings_of(const LimitResult& limit) { return limit.warnings; }
const Diagnostics& warnings_of(const SimulationResult& networks) { return networks.warnings; }
const Diagnostics& warnings_of(const Comparison& comparison) { return comparison.limit.warnings; }
const Diagnostics& warnings_of(const Sweep& sweep) { return sweep.warnings; }
const Diagnostics& warnings_of(const ExtrapolationResult& result) { return result.warnings; }
const Diagnostics& warnings_of(const CoordinateCheck& check) { return check.warnings; }
double seconds_of(const LimitResult& limit) { return limit.time_s; }
double seconds_of(const SimulationResult& networks) { return networks.time_s; }
double seconds_of(const Sweep& sweep) { return sweep.time_s; }
double seconds_of(const ExtrapolationResult& result) { return result.time_s; }
double seconds_of(const Comparison& comparison) {
  double out = comparison.limit.time_s;
  for (const SimulationResult& networks : comparison.networks) out += networks.time_s;
  return out;
}

/// A result with the program that it belongs to.
template <class Own>
struct Computed {
  Own result;
  ProgramInfo program;
  Diagnostics of_checkpoint{};

  [[nodiscard]] std::string page() const {
    document::Document document = document_of(result, program);
    document.append(
        provenance(program, {{"tplimit", version()}}, render(warnings_of(result), program.source)));
    return to_html(document);
  }
  [[nodiscard]] std::string text(bool full, std::size_t columns) const {
    return to_text(result, program, {.full = full, .columns = columns});
  }
  [[nodiscard]] std::string vega() const { return to_vega_lite(document_of(result, program)); }
  /// `everything`: with arrays.
  [[nodiscard]] std::string json(bool everything) const {
    if constexpr (requires { to_json(result, program, everything); })
      return to_json(result, program, everything);
    else
      return to_json(result, program);
  }
  [[nodiscard]] nb::list warnings() const {
    Diagnostics all = warnings_of(result);
    all.insert(all.end(), of_checkpoint.begin(), of_checkpoint.end());
    return to_python(all, program.source);
  }
};

/// Per combination a result, or the errors for which it was refused.
nb::list rows_of(const Computed<Sweep>& sweep) {
  nb::list out;
  for (const SweepRow& row : sweep.result.rows) {
    if (const Diagnostics* errors = row.refusal())
      out.append(to_python(*errors, row.program.source));
    else if (const Comparison* comparison = row.comparison())
      out.append(Computed<Comparison>{*comparison, row.program});
    else
      out.append(Computed<LimitResult>{*row.limit(), row.program});
  }
  return out;
}

template <class Own>
void bind_result(nb::module_& m, const char* name) {
  using C = Computed<Own>;
  nb::class_<C> own(m, name);
  own.def("page", &C::page)
      .def("text", &C::text, "full"_a = false, "columns"_a = 110)
      .def("vega", &C::vega)
      .def("json", &C::json, "everything"_a = true)
      .def("warnings", &C::warnings);
  if constexpr (requires(const Own& result) { arrays(result); })
    own.def("arrays", [](const C& self) { return arrays(self.result); });
  if constexpr (requires(const Own& result) { seconds_of(result); })
    own.def_prop_ro("seconds", [](const C& self) { return seconds_of(self.result); });
  if constexpr (std::is_same_v<Own, Sweep>) own.def("rows", &rows_of);
}

// ---- programs

/// A text in several forms.
struct Written {
  std::string text, page, json, latex;
};

Engine engine_of(const std::string& name) {
  if (name == "auto") return Engine::kAuto;
  if (name == "exact") return Engine::kExact;
  if (name == "moments") return Engine::kMoments;
  if (name == "particles") return Engine::kParticles;
  throw nb::value_error("engine: one of 'auto', 'exact', 'moments', 'particles'");
}
Matrices matrices_of(const std::string& name) {
  if (name == "auto") return Matrices::kAuto;
  if (name == "stored") return Matrices::kDense;
  if (name == "lazy") return Matrices::kLazy;
  throw nb::value_error("matrices: one of 'auto', 'stored', 'lazy'");
}
bool single_of(const std::string& name) {
  if (name == "double") return false;
  if (name == "single") return true;
  throw nb::value_error("precision: 'double' or 'single'");
}

/// What several calls take.
struct Common {
  std::uint64_t seed = 0;
  int threads = 0;
  double memory = 0;
  std::string matrices = "auto", precision = "double";
  void apply(auto& options) const {
    options.seed = seed;
    options.threads = threads;
    options.memory_bytes = memory;
    options.matrices = matrices_of(matrices);
    options.single_precision = single_of(precision);
  }
};

template <class T>
T take(const nb::dict& from, const char* name) {
  return nb::cast<T>(from[name]);
}

Common common_of(const nb::dict& o) {
  return {take<std::uint64_t>(o, "seed"), take<int>(o, "threads"), take<double>(o, "memory"),
          take<std::string>(o, "matrices"), take<std::string>(o, "precision")};
}

EvaluateOptions evaluation_of(const nb::dict& o) {
  EvaluateOptions out;
  common_of(o).apply(out);
  out.engine = engine_of(take<std::string>(o, "engine"));
  out.particles = take<std::optional<std::int64_t>>(o, "particles");
  out.randomisations = take<int>(o, "randomisations");
  out.tolerance = take<std::optional<double>>(o, "tol");
  out.tolerance_on = take<std::vector<std::string>>(o, "tol_on");
  out.rank_tol = take<std::optional<double>>(o, "rank_tol");
  out.merge_rows = take<double>(o, "merge_rows");
  for (auto& [name, values] : take<std::map<std::string, std::vector<double>>>(o, "given"))
    out.given = GradedOptions::Given{name, values};
  return out;
}

SimulateOptions networks_of(const nb::dict& o) {
  SimulateOptions out;
  common_of(o).apply(out);
  out.seeds = take<int>(o, "seeds");
  return out;
}

/// Of compare, of sweep and coordcheck, which compare, too; widths may be empty.
CompareOptions comparison_of(const nb::dict& o) {
  CompareOptions out;
  out.evaluate = evaluation_of(o);
  out.simulate = networks_of(o);
  out.widths = take<std::vector<std::int64_t>>(o, "widths");
  out.draws = take<int>(o, "draws");
  return out;
}

/// Bars of the limit, then of networks.
void show(CompareOptions& options, Task& task) {
  options.evaluate.stop = options.simulate.stop = &task.stop;
  const double limit = share_of_limit(options);
  options.evaluate.progress = task.progress(0, limit);
  options.simulate.progress = task.progress(limit, 1);
}

std::vector<SweepAxis> axes_of(const nb::dict& o) {
  std::vector<SweepAxis> out;
  for (auto& [name, values] :
       take<std::vector<std::pair<std::string, std::vector<std::string>>>>(o, "over"))
    out.push_back({name, values});
  return out;
}

void refuse(const std::string& fault) {
  if (!fault.empty()) throw nb::value_error(fault.c_str());
}

/// Of checkpoint=, an empty folder: none.
struct Keeping {
  std::filesystem::path folder;
  double interval_s;
};
Keeping keeping_of(const nb::dict& o) {
  return {take<std::filesystem::path>(o, "checkpoint"), take<double>(o, "checkpoint_interval")};
}

class PyProgram {
 public:
  PyProgram(const std::string& text, const std::string& name, const std::filesystem::path& folder,
            const std::vector<std::pair<std::string, std::string>>& constants,
            const std::map<std::string, In>& data,
            const std::vector<std::pair<std::string, std::string>>& data_files,
            const std::vector<std::string>& decouple, bool no_correction, bool lazy)
      : source_(with_imports(Source(name, text), folder)),
        ablations_{decouple, no_correction, lazy} {
    options_.base_directory = folder;
    options_.constants = constants;
    options_.data_files = data_files;
    for (const auto& [own, array] : data) options_.data_arrays[own] = array_of(array);
    module_ = work(nb::none(), [&](Task& task) { return or_throw(drawn(0, 0, task), source_); });
  }

  /// Random scalars and permutations depend on the seed.
  [[nodiscard]] Result<Module> drawn(std::uint64_t seed, std::uint64_t draw, const Task& task,
                                     const Constants& values = {}) const {
    LowerOptions own = options_;
    own.seed = seed;
    own.draw = draw;
    own.stop = &task.stop;
    own.constants.insert(own.constants.end(), values.begin(), values.end());
    return parse(source_, own, ablations_);
  }
  [[nodiscard]] Module of(std::uint64_t seed, const Task& task) const {
    return seed == 0 ? *module_ : or_throw(drawn(seed, 0, task), source_);
  }
  [[nodiscard]] ModuleOf varied(std::uint64_t seed, const Task& task) const {
    return [this, seed, &task](const Constants& values, std::uint64_t draw) {
      return drawn(seed, draw, task, values);
    };
  }

  /// What the constructor took; files of data are read again.
  [[nodiscard]] nb::dict arguments() const {
    nb::dict data, out;
    for (const auto& [own, array] : options_.data_arrays)
      data[own.c_str()] = numpy(array.values, array.shape);
    out["text"] = text();
    out["name"] = source_.name();
    out["folder"] = options_.base_directory;
    out["constants"] = options_.constants;
    out["data"] = data;
    out["data_files"] = options_.data_files;
    out["decouple"] = ablations_.decouple;
    out["no_correction"] = ablations_.no_correction;
    out["lazy"] = ablations_.lazy;
    return out;
  }

  /// What f(checkpoint) finds, null without a folder, which stays and goes as that of the command
  /// line.
  template <class F>
  auto kept(const Keeping& keeping, const Module& module, const Request& request,
            const F& f) const {
    std::optional<Checkpoint> checkpoint;
    Diagnostics warnings;
    if (!keeping.folder.empty())
      checkpoint = or_throw(
          Checkpoint::open({keeping.folder, keeping.interval_s, identity(module, request),
                            [&](const Diagnostic& warning) { warnings.push_back(warning); }}),
          source_);
    auto result = f(checkpoint ? &*checkpoint : nullptr);
    if (checkpoint) checkpoint->close(result ? Diagnostics() : result.errors());
    return Computed{or_throw(std::move(result), source_),
                    program_info(module, request.options.evaluate), std::move(warnings)};
  }

  [[nodiscard]] Computed<LimitResult> run(const nb::dict& o, const nb::object& progress) const {
    const EvaluateOptions evaluation = evaluation_of(o);
    const int draws = take<int>(o, "draws");
    const Keeping keeping = keeping_of(o);
    return work(progress, [&](Task& task) {
      const Module module = of(evaluation.seed, task);
      const auto of_draw = [&](std::uint64_t draw) {
        return draw == 0 ? Result<Module>(module) : drawn(evaluation.seed, draw, task);
      };
      const Request request{"run", {.evaluate = evaluation, .draws = draws}};
      return kept(keeping, module, request, [&](Checkpoint* checkpoint) -> Result<LimitResult> {
        EvaluateOptions options = evaluation;
        options.stop = &task.stop;
        options.progress = task.progress();
        options.checkpoint = checkpoint;
        Result<std::vector<LimitResult>> all = evaluate_draws(of_draw, options, draws);
        if (!all) return all.errors();
        return average_draws(std::move(*all));
      });
    });
  }

  [[nodiscard]] Computed<SimulationResult> simulate(const nb::dict& o,
                                                    const nb::object& progress) const {
    SimulateOptions options = networks_of(o);
    const auto width = take<std::optional<std::int64_t>>(o, "width");
    const Keeping keeping = keeping_of(o);
    return work(progress, [&](Task& task) {
      const Module module = of(options.seed, task);
      options.width = width ? *width : usual_widths(module, {512})[0];
      const Request request{"simulate", {.simulate = options}};
      return kept(keeping, module, request, [&](Checkpoint* checkpoint) {
        options.stop = &task.stop;
        options.progress = task.progress();
        options.checkpoint = checkpoint;
        return tplimit::simulate(module, options);
      });
    });
  }

  /// `limit`: the JSON of a result and its name; none: computed.  `against`: files of networks;
  /// none: own ones.
  [[nodiscard]] Computed<Comparison> compare(
      const nb::dict& o, const std::optional<std::pair<std::string, std::string>>& limit,
      const nb::object& progress) const {
    CompareOptions options = comparison_of(o);
    const auto against = take<std::vector<std::filesystem::path>>(o, "against");
    const bool fit_corrections = take<bool>(o, "fit_corrections");
    const Keeping keeping = keeping_of(o);
    return work(progress, [&](Task& task) {
      const Module module = of(options.evaluate.seed, task);
      if (!against.empty())
        options.networks =
            or_throw(read_measurements(against, module, comparable(module)), source_);
      else if (options.widths.empty())
        options.widths = usual_widths(module);
      if (fit_corrections &&
          (against.empty() ? options.widths.size() : options.networks->size()) < 2)
        refuse("fit_corrections needs two widths or more");
      if (limit) {
        auto known = known_limit(limit->first, module, options);
        if (const auto* fault = std::get_if<std::string>(&known))
          refuse(fmt::format("limit '{}': {}", limit->second, *fault));
        options.limit = std::move(std::get<LimitResult>(known));
      }
      show(options, task);
      const Request request{"compare", options, limit ? limit->second : ""};
      return kept(keeping, module, request, [&](Checkpoint* checkpoint) {
        options.evaluate.checkpoint = options.simulate.checkpoint = checkpoint;
        auto out = tplimit::compare(module, options);
        if (out) out->show_corrections = fit_corrections;
        return out;
      });
    });
  }

  [[nodiscard]] Computed<Sweep> sweep(const nb::dict& o, const nb::object& progress) const {
    CompareOptions options = comparison_of(o);
    const std::vector<SweepAxis> axes = axes_of(o);
    std::optional<SweepGoal> goal;
    if (const auto best = take<std::optional<std::string>>(o, "best"))
      goal = {*best, take<bool>(o, "highest")};
    const Keeping keeping = keeping_of(o);
    refuse(variation_fault(axes, options_.constants));
    return work(progress, [&](Task& task) {
      const ModuleOf module_of = varied(options.evaluate.seed, task);
      const Module base = or_throw(first_program(axes, module_of), source_);
      if (goal) refuse(goal_fault(*goal, base));
      options.evaluate.stop = options.simulate.stop = &task.stop;
      options.evaluate.progress = task.progress();
      return kept(keeping, base, {"sweep", options, "", axes}, [&](Checkpoint* checkpoint) {
        options.evaluate.checkpoint = options.simulate.checkpoint = checkpoint;
        return tplimit::sweep(base, axes, goal, module_of, options);
      });
    });
  }

  [[nodiscard]] Computed<ExtrapolationResult> extrapolate(const nb::dict& o,
                                                          const nb::object& progress) const {
    CompareOptions options{.evaluate = evaluation_of(o), .draws = take<int>(o, "draws")};
    const std::vector<SweepAxis> axes = axes_of(o);
    const int order = take<int>(o, "order");
    const Keeping keeping = keeping_of(o);
    if (axes.size() != 1) refuse("one constant is extrapolated");
    refuse(extrapolation_fault(axes[0].name, axes[0].values));
    refuse(variation_fault(axes, options_.constants));
    return work(progress, [&](Task& task) {
      const ModuleOf module_of = varied(options.evaluate.seed, task);
      const Module base = or_throw(first_program(axes, module_of), source_);
      options.evaluate.stop = &task.stop;
      options.evaluate.progress = task.progress();
      const Request request{"extrapolate", options, "", axes, order};
      return kept(keeping, base, request, [&](Checkpoint* checkpoint) {
        options.evaluate.checkpoint = checkpoint;
        return tplimit::extrapolate(axes[0], order, module_of, options);
      });
    });
  }

  [[nodiscard]] Computed<CoordinateCheck> coordcheck(const nb::dict& o,
                                                     const nb::object& progress) const {
    CompareOptions options = comparison_of(o);
    const int steps = take<int>(o, "steps");
    return work(progress, [&](Task& task) {
      const Module module = of(options.evaluate.seed, task);
      if (options.widths.empty()) options.widths = usual_widths(module);
      options.evaluate.stop = options.simulate.stop = &task.stop;
      options.simulate.progress = task.progress(0, 0.5);
      options.evaluate.progress = task.progress(0.5, 1);
      return Computed<CoordinateCheck>{
          or_throw(
              coordinate_check(module, steps, options.widths, options.simulate, options.evaluate),
              source_),
          program_info(module, options.evaluate)};
    });
  }

  [[nodiscard]] Written check(const nb::object& progress) const {
    return work(progress, [&](Task& task) {
      const RegimeReport counted = regime(*module_);
      const Result<LeadingOrder> orders = tplimit::check(*module_);
      document::Document document;
      document.add({document::Heading{1, source_.name()}});
      if (orders) {
        EvaluateOptions options;
        options.stop = &task.stop;
        document.append(
            document_of(*orders, or_throw(methods(*module_, options), source_), source_));
      }
      document.append(document_of(counted, *module_->written, source_));
      if (!orders) document.add({document::Listing{render(orders.errors(), source_)}});
      return Written{to_text(document), to_html(document),
                     to_json(counted, *module_->written, program_info(*module_)), ""};
    });
  }

  [[nodiscard]] Written parametrization() const {
    const document::Document forms = parametrizations(regime(*module_, false), *module_->written);
    return {to_text(forms), to_html(forms), "", ""};
  }

  [[nodiscard]] Written explain(const std::vector<std::string>& names,
                                const std::optional<std::pair<std::int64_t, std::int64_t>>& steps,
                                bool with_numbers, const nb::dict& o,
                                const nb::object& progress) const {
    EvaluateOptions options = evaluation_of(o);
    return work(progress, [&](Task& task) {
      options.stop = &task.stop;
      options.progress = task.progress();
      LimitFormulas limit = or_throw(limit_formulas(of(options.seed, task), options), source_);
      const explain::Selection selection{names, steps};
      refuse(fault_of(limit.formulas, selection));
      const explain::View view = explain::view_of(limit.formulas, selection);
      std::vector<explain::Number> numbers;
      if (with_numbers) numbers = or_throw(numbers_of(limit, view.numbers, options), source_);
      const std::string& title = source_.name();
      return Written{to_text(limit.formulas, view, numbers, title),
                     to_html(to_document(limit.formulas, view, numbers, title)),
                     to_json(limit.formulas, view, numbers, program_info(*module_)),
                     to_latex(limit.formulas, view, numbers, title)};
    });
  }

  [[nodiscard]] std::string text() const { return std::string(source_.text(source_.parts()[0])); }
  [[nodiscard]] nb::list warnings() const {
    Diagnostics all = module_->warnings;
    const Diagnostics hypotheses = theory_checks(module_->program);
    all.insert(all.end(), hypotheses.begin(), hypotheses.end());
    return to_python(all, source_);
  }
  [[nodiscard]] std::string ir() const { return to_text(module_->program); }
  [[nodiscard]] std::vector<std::string> reports() const {
    std::vector<std::string> out;
    for (const ir::Report& report : module_->program.reports) out.push_back(report.name);
    return out;
  }

 private:
  Source source_;
  LowerOptions options_;
  Ablations ablations_;
  std::optional<Module> module_;
};

}  // namespace
}  // namespace tplimit

NB_MODULE(_core, m) {
  using namespace tplimit;
  nb::register_exception_translator(translate);
  m.doc() = "The C++ library; its parts are used through the package tplimit.";
  m.attr("version") = version();
  nb::dict ranges;
  for (const OptionRange& range : kOptionRanges)
    ranges[std::string(range.name).c_str()] = nb::make_tuple(range.whole, range.least, range.most);
  m.attr("option_ranges") = ranges;
  m.def(
      "command_line",
      [](std::vector<std::string> words) {
        std::vector<char*> arguments;
        for (std::string& word : words) arguments.push_back(word.data());
        arguments.push_back(nullptr);
        return cli::command_line(static_cast<int>(words.size()), arguments.data());
      },
      "words"_a, nb::call_guard<nb::gil_scoped_release>());
  bind_result<LimitResult>(m, "Limit");
  bind_result<SimulationResult>(m, "Networks");
  bind_result<Comparison>(m, "Comparison");
  bind_result<Sweep>(m, "Sweep");
  bind_result<ExtrapolationResult>(m, "Extrapolation");
  bind_result<CoordinateCheck>(m, "CoordinateCheck");
  nb::class_<Written>(m, "Written")
      .def_ro("text", &Written::text)
      .def_ro("page", &Written::page)
      .def_ro("json", &Written::json)
      .def_ro("latex", &Written::latex);
  nb::class_<PyProgram>(m, "Program")
      .def(nb::init<const std::string&, const std::string&, const std::filesystem::path&,
                    const std::vector<std::pair<std::string, std::string>>&,
                    const std::map<std::string, In>&,
                    const std::vector<std::pair<std::string, std::string>>&,
                    const std::vector<std::string>&, bool, bool>(),
           "text"_a, "name"_a, "folder"_a, "constants"_a, "data"_a, "data_files"_a, "decouple"_a,
           "no_correction"_a, "lazy"_a)
      .def("run", &PyProgram::run, "options"_a, "progress"_a.none())
      .def("simulate", &PyProgram::simulate, "options"_a, "progress"_a.none())
      .def("compare", &PyProgram::compare, "options"_a, "limit"_a.none(), "progress"_a.none())
      .def("sweep", &PyProgram::sweep, "options"_a, "progress"_a.none())
      .def("extrapolate", &PyProgram::extrapolate, "options"_a, "progress"_a.none())
      .def("coordcheck", &PyProgram::coordcheck, "options"_a, "progress"_a.none())
      .def("check", &PyProgram::check, "progress"_a.none())
      .def("explain", &PyProgram::explain, "names"_a, "steps"_a.none(), "numbers"_a, "options"_a,
           "progress"_a.none())
      .def("parametrization", &PyProgram::parametrization)
      .def("arguments", &PyProgram::arguments)
      .def("warnings", &PyProgram::warnings)
      .def("ir", &PyProgram::ir)
      .def_prop_ro("reports", &PyProgram::reports)
      .def_prop_ro("text", &PyProgram::text);
}
