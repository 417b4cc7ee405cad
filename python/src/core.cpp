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

#include "tplimit/driver/driver.hpp"
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

nb::list arrays_of(const std::vector<ReportResult>& reports,
                   const std::vector<std::vector<std::vector<double>>>* runs = nullptr) {
  nb::list out;
  for (std::size_t k = 0; k < reports.size(); ++k) {
    const ReportResult& r = reports[k];
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
double seconds_of(const LimitResult& limit) { return limit.time_s; }
double seconds_of(const SimulationResult& networks) { return networks.time_s; }
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
    if constexpr (std::is_same_v<Own, Comparison>)
      return to_json(result, program);
    else
      return to_json(result, program, everything);
  }
};

template <class Own>
void bind_result(nb::module_& m, const char* name) {
  using C = Computed<Own>;
  nb::class_<C>(m, name)
      .def("page", &C::page)
      .def("text", &C::text, "full"_a = false, "columns"_a = 110)
      .def("vega", &C::vega)
      .def("json", &C::json, "everything"_a = true)
      .def("arrays", [](const C& own) { return arrays(own.result); })
      .def("warnings",
           [](const C& own) { return to_python(warnings_of(own.result), own.program.source); })
      .def_prop_ro("seconds", [](const C& own) { return seconds_of(own.result); });
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
    module_ = made(0, 0);
  }

  /// Random scalars and permutations depend on the seed.
  [[nodiscard]] Module made(std::uint64_t seed, std::uint64_t draw) const {
    return or_throw(drawn(seed, draw), source_);
  }
  [[nodiscard]] Result<Module> drawn(std::uint64_t seed, std::uint64_t draw) const {
    LowerOptions own = options_;
    own.seed = seed;
    own.draw = draw;
    return parse(source_, own, ablations_);
  }
  [[nodiscard]] Module of(std::uint64_t seed) const { return seed == 0 ? *module_ : made(seed, 0); }

  [[nodiscard]] Computed<LimitResult> run(const nb::dict& o, const nb::object& progress) const {
    EvaluateOptions options = evaluation_of(o);
    const int draws = take<int>(o, "draws");
    return work(progress, [&](Task& task) {
      options.stop = &task.stop;
      options.progress = task.progress();
      const Module module = of(options.seed);
      const auto of_draw = [&](std::uint64_t draw) {
        return draw == 0 ? Result<Module>(module) : drawn(options.seed, draw);
      };
      return Computed<LimitResult>{
          average_draws(or_throw(evaluate_draws(of_draw, options, draws), source_)),
          program_info(module, options)};
    });
  }

  [[nodiscard]] Computed<SimulationResult> simulate(const nb::dict& o,
                                                    const nb::object& progress) const {
    SimulateOptions options;
    common_of(o).apply(options);
    options.width = take<std::int64_t>(o, "width");
    options.seeds = take<int>(o, "seeds");
    return work(progress, [&](Task& task) {
      options.stop = &task.stop;
      options.progress = task.progress();
      const Module module = of(options.seed);
      return Computed<SimulationResult>{or_throw(tplimit::simulate(module, options), source_),
                                        program_info(module)};
    });
  }

  [[nodiscard]] Computed<Comparison> compare(const nb::dict& o, const nb::object& progress) const {
    CompareOptions options;
    options.evaluate = evaluation_of(o);
    common_of(o).apply(options.simulate);
    options.simulate.seeds = take<int>(o, "seeds");
    options.widths = take<std::vector<std::int64_t>>(o, "widths");
    options.draws = take<int>(o, "draws");
    return work(progress, [&](Task& task) {
      options.evaluate.stop = options.simulate.stop = &task.stop;
      options.evaluate.progress = task.progress(0, 0.3);
      options.simulate.progress = task.progress(0.3, 1);
      const Module module = of(options.evaluate.seed);
      return Computed<Comparison>{or_throw(tplimit::compare(module, options), source_),
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
      LimitFormulas limit = or_throw(limit_formulas(of(options.seed), options), source_);
      for (const std::string& name : names)
        if (!explain::is_name(limit.formulas, name))
          throw nb::key_error(fmt::format("no value '{}' is in the limit", name).c_str());
      const explain::View view = explain::view_of(limit.formulas, {names, steps});
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
  bind_result<LimitResult>(m, "Limit");
  bind_result<SimulationResult>(m, "Networks");
  bind_result<Comparison>(m, "Comparison");
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
      .def("compare", &PyProgram::compare, "options"_a, "progress"_a.none())
      .def("check", &PyProgram::check, "progress"_a.none())
      .def("explain", &PyProgram::explain, "names"_a, "steps"_a.none(), "numbers"_a, "options"_a,
           "progress"_a.none())
      .def("parametrization", &PyProgram::parametrization)
      .def("warnings", &PyProgram::warnings)
      .def("ir", &PyProgram::ir)
      .def_prop_ro("reports", &PyProgram::reports)
      .def_prop_ro("text", &PyProgram::text);
}
