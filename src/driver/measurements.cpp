#include "tplimit/driver/measurements.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "driver/report_values.hpp"
#include "tplimit/data/table.hpp"
#include "tplimit/support/output_file.hpp"

namespace tplimit {
namespace {

using Shape = std::vector<std::int64_t>;
using Runs = std::vector<std::vector<double>>;  ///< [seed][entry]

Diagnostic fault(const char* code, std::string message, std::string help = "") {
  return Diagnostic::error(code, std::move(message)).with_help(std::move(help));
}

std::string text(const Shape& shape) {
  return shape.empty() ? "a number" : fmt::format("[{}]", fmt::join(shape, ", "));
}

/// A report under which name files hold it, and what becomes of its values.
struct Wanted {
  std::string name;
  Shape shape;
  std::size_t report;    ///< of the networks
  bool squared = false;  ///< values f are replaced by f f'
};

/// What one file holds of one width.
struct Part {
  std::int64_t width = 0;
  std::map<std::size_t, Runs> runs;  ///< by place in the list of what is wanted
};

/// Reports of the networks under their names, and those that these replace.
std::vector<Wanted> wanted_of(const Module& module, const Module& networks) {
  std::vector<Wanted> out;
  const auto& reports = networks.program.reports;
  const auto shape_of = [](const Module& m, const ir::Report& r) {
    return skeleton(m.program, r).shape;
  };
  for (std::size_t k = 0; k < reports.size(); ++k)
    out.push_back({reports[k].name, shape_of(networks, reports[k]), k});
  for (const ir::Report& original : module.program.reports) {
    const auto named = [&](const std::string& name) {
      return std::find_if(reports.begin(), reports.end(),
                          [&](const ir::Report& r) { return r.name == name; });
    };
    const auto covariance = named(fmt::format("cov({})", original.name));
    if (covariance == reports.end() || named(original.name) != reports.end()) continue;
    out.push_back({original.name, shape_of(module, original),
                   static_cast<std::size_t>(covariance - reports.begin()), true});
  }
  return out;
}

std::string names_of(const std::vector<Wanted>& wanted) {
  std::vector<std::string> names;
  for (const Wanted& w : wanted) names.push_back(w.name);
  return fmt::format("the program's reports: {}", fmt::join(names, ", "));
}

class Reader {
 public:
  Reader(const Module& module, const Module& networks)
      : networks_(networks), wanted_(wanted_of(module, networks)) {}

  std::optional<Diagnostics> read(const std::filesystem::path& path) {
    file_ = path.string();
    if (file_.ends_with(".json")) return read_json(path);
    if (file_.ends_with(".npz")) return read_arrays(path);
    if (file_.ends_with(".csv")) return read_table(path);
    return Diagnostics{fault("E5301", fmt::format("{}: not a file of measurements", file_),
                             "its name ends in .json (of simulate --out), .npz or .csv")};
  }

  /// What all files together hold.
  Result<std::vector<SimulationResult>> collect() {
    std::map<std::int64_t, Part> widths;
    for (Part& part : parts_) {
      Part& own = widths[part.width];
      own.width = part.width;
      for (auto& [w, runs] : part.runs)
        std::move(runs.begin(), runs.end(), std::back_inserter(own.runs[w]));
    }
    std::vector<SimulationResult> out;
    for (auto& [width, part] : widths) {
      auto own = result_of(part, widths.begin()->second);
      if (!own) return own.errors();
      out.push_back(std::move(*own));
    }
    return out;
  }

 private:
  using MaybeErrors = std::optional<Diagnostics>;

  static MaybeErrors errors(Diagnostic d) { return Diagnostics{std::move(d)}; }

  [[nodiscard]] std::optional<std::size_t> find(const std::string& name) const {
    for (std::size_t w = 0; w < wanted_.size(); ++w)
      if (wanted_[w].name == name) return w;
    return std::nullopt;
  }

  [[nodiscard]] Diagnostic unknown(const std::string& name) const {
    return fault("E5302", fmt::format("{}: no report is called '{}'", file_, name),
                 names_of(wanted_));
  }

  [[nodiscard]] MaybeErrors width_from(double value, std::int64_t& width) const {
    if (value >= 1 && value <= 9e15 && value == std::floor(value)) {
      width = static_cast<std::int64_t>(value);
      return std::nullopt;
    }
    return errors(
        fault("E5301", fmt::format("{}: the width {} is no positive whole number", file_, value)));
  }

  MaybeErrors read_json(const std::filesystem::path& path) {
    if (const std::string reason = why_not_readable(path); !reason.empty())
      return errors(fault("E5101", fmt::format("{}: {}", file_, reason)));
    std::ifstream in(path, std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(in), {}};
    if (!in) return errors(fault("E5101", fmt::format("{}: cannot be read", file_)));
    try {
      const auto json = nlohmann::json::parse(content);
      if (json.at("engine").at("name") != "networks")
        return errors(
            fault("E5301", fmt::format("{}: a result, but not of simulate", file_),
                  "networks are run by: simulate FILE --width N --seeds K --out FILE.json"));
      Part part;
      if (auto e = width_from(json.at("engine").at("width").get<double>(), part.width)) return e;
      for (const auto& report : json.at("reports")) {
        const auto name = report.at("name").get<std::string>();
        const auto w = find(name);
        if (!w) return errors(unknown(name));
        const auto shape = report.at("shape").get<Shape>();
        if (shape != wanted_[*w].shape) return errors(wrong_shape(name, text(shape), *w));
        Runs& runs = part.runs[*w];
        for (const auto& run : report.at("runs")) {
          runs.emplace_back();
          if (!flatten(run, runs.back()) || runs.back().size() != size_of(*w))
            return errors(fault(
                "E5105",
                fmt::format("{}: '{}' of seed {} is not finite", file_, name, runs.size() - 1),
                "such networks have no place beside a limit: a smaller rate?"));
        }
      }
      parts_.push_back(std::move(part));
      return std::nullopt;
    } catch (const nlohmann::json::exception&) {
      return errors(fault("E5301", fmt::format("{}: no result of simulate --out", file_)));
    }
  }

  /// False where a number is missing.
  static bool flatten(const nlohmann::json& json, std::vector<double>& out) {
    if (!json.is_array()) {
      if (!json.is_number()) return false;
      out.push_back(json.get<double>());
      return true;
    }
    return std::all_of(json.begin(), json.end(),
                       [&](const nlohmann::json& item) { return flatten(item, out); });
  }

  MaybeErrors read_arrays(const std::filesystem::path& path) {
    auto arrays = read_npz(path);
    if (!arrays) return without_rows(arrays.errors());
    const auto width = std::find_if(arrays->begin(), arrays->end(),
                                    [](const NamedArray& a) { return a.name == "width"; });
    std::vector<std::string> names;
    for (const NamedArray& a : *arrays) names.push_back(a.name);
    if (width == arrays->end() || width->array.values.size() != 1)
      return errors(fault(
          "E5301", fmt::format("{}: no number 'width'", file_),
          fmt::format("numpy.savez(file, width=n, loss=..); it has: {}", fmt::join(names, ", "))));
    Part part;
    if (auto e = width_from(width->array.values[0], part.width)) return e;
    for (const NamedArray& a : *arrays) {
      if (a.name == "width" || a.name == "seed") continue;
      const auto w = find(a.name);
      if (!w) return errors(unknown(a.name));
      const Shape& shape = a.array.shape;
      if (shape.empty() || !std::equal(shape.begin() + 1, shape.end(), wanted_[*w].shape.begin(),
                                       wanted_[*w].shape.end()))
        return errors(wrong_shape(a.name, text(shape), *w, "seeds"));
      const std::size_t size = size_of(*w);
      Runs& runs = part.runs[*w];
      for (auto at = a.array.values.begin(); at != a.array.values.end();
           at += static_cast<std::ptrdiff_t>(size))
        runs.emplace_back(at, at + static_cast<std::ptrdiff_t>(size));
    }
    parts_.push_back(std::move(part));
    return std::nullopt;
  }

  MaybeErrors read_table(const std::filesystem::path& path) {
    const auto header = csv_columns(path);
    if (!header) return header.errors();
    DataOptions options;
    options.columns = {"width", "seed"};
    std::vector<std::size_t> present;
    for (std::size_t w = 0; w < wanted_.size(); ++w) {
      const std::vector<std::string> own = columns_of(w);
      if (std::none_of(own.begin(), own.end(), [&](const std::string& column) {
            return std::find(header->begin(), header->end(), column) != header->end();
          }))
        continue;
      present.push_back(w);
      options.columns.insert(options.columns.end(), own.begin(), own.end());
    }
    for (const std::string& column : *header)
      if (std::find(options.columns.begin(), options.columns.end(), column) ==
          options.columns.end()) {
        const auto w = find(column.substr(0, column.rfind('[')));
        return errors(w ? wrong_shape(wanted_[*w].name, fmt::format("column '{}'", column), *w)
                        : unknown(column));
      }
    const auto table = read_csv(path, options);
    if (!table) return without_rows(table.errors());
    std::map<std::int64_t, Part> widths;
    const std::size_t columns = options.columns.size();
    for (auto row = table->features.values.begin(); row != table->features.values.end();
         row += static_cast<std::ptrdiff_t>(columns)) {
      std::int64_t width = 0;
      if (auto e = width_from(row[0], width)) return e;
      if (!seeds_.insert({width, row[1]}).second)
        return errors(fault(
            "E5304", fmt::format("{}: seed {} of width {} stands twice", file_, row[1], width)));
      Part& part = widths[width];
      part.width = width;
      auto next = row + 2;
      for (const std::size_t w : present) {
        const auto end = next + static_cast<std::ptrdiff_t>(size_of(w));
        part.runs[w].emplace_back(next, end);
        next = end;
      }
    }
    for (auto& [width, part] : widths) parts_.push_back(std::move(part));
    return std::nullopt;
  }

  /// "loss", or "out[0]", "out[1]", ..
  [[nodiscard]] std::vector<std::string> columns_of(std::size_t w) const {
    const auto& [name, shape, report, squared] = wanted_[w];
    std::vector<std::string> out;
    for (std::size_t flat = 0; flat < size_of(w); ++flat) {
      Shape index(shape.size());
      std::size_t rest = flat;
      for (std::size_t k = shape.size(); k-- > 0; rest /= static_cast<std::size_t>(shape[k]))
        index[k] = static_cast<std::int64_t>(rest % static_cast<std::size_t>(shape[k]));
      out.push_back(shape.empty() ? name : fmt::format("{}[{}]", name, fmt::join(index, ",")));
    }
    return out;
  }

  [[nodiscard]] std::size_t size_of(std::size_t w) const {
    std::size_t out = 1;
    for (const std::int64_t extent : wanted_[w].shape) out *= static_cast<std::size_t>(extent);
    return out;
  }

  [[nodiscard]] Diagnostic wrong_shape(const std::string& name, const std::string& seen,
                                       std::size_t w, const char* first = nullptr) const {
    Shape shape = wanted_[w].shape;
    const std::string rest = fmt::format("{}", fmt::join(shape, ", "));
    const std::string needed =
        first ? fmt::format("[{}{}{}]", first, rest.empty() ? "" : ", ", rest) : text(shape);
    return fault("E5303", fmt::format("{}: '{}' is {}, needed is {}", file_, name, seen, needed),
                 "axes: loops of the program around the report, then those of the value");
  }

  /// Readers of data files speak of rows, which cannot be chosen here.
  static Diagnostics without_rows(Diagnostics all) {
    for (Diagnostic& d : all)
      if (d.code == "E5105") d.help = "such networks have no place beside a limit: a smaller rate?";
    return all;
  }

  Result<SimulationResult> result_of(Part& part, const Part& first) {
    const auto name = [&](std::size_t w) { return wanted_[w].name; };
    for (const auto& [w, runs] : first.runs)
      if (!part.runs.contains(w))
        return fault("E5302", fmt::format("networks of width {} have no values of '{}', those of "
                                          "width {} have",
                                          part.width, name(w), first.width));
    if (part.runs.empty())
      return fault("E5302", fmt::format("no report was measured at width {}", part.width),
                   names_of(wanted_));
    SimulationResult out;
    out.engine.name = "measurements";
    out.width = part.width;
    out.seeds = static_cast<int>(part.runs.begin()->second.size());
    const auto& reports = networks_.program.reports;
    for (const ir::Report& report : reports) {
      out.reports.push_back(skeleton(networks_.program, report));
      out.reports.back().method = Method::kNetworks;
    }
    out.runs.resize(reports.size());
    for (auto& [w, runs] : part.runs) {
      if (!first.runs.contains(w))
        return fault("E5302",
                     fmt::format("networks of width {} have values of '{}', those of width "
                                 "{} have none",
                                 part.width, name(w), first.width));
      if (runs.size() < 2)
        return fault("E5304",
                     fmt::format("'{}' of width {} was measured for one seed", name(w), part.width),
                     "errors come from the scatter of seeds: 2 or more, better 8");
      if (static_cast<int>(runs.size()) != out.seeds)
        return fault("E5304",
                     fmt::format("width {}: '{}' has {} seeds, '{}' has {}", part.width, name(w),
                                 runs.size(), name(part.runs.begin()->first), out.seeds));
      if (wanted_[w].squared)
        if (auto refused = square(w, runs)) return *refused;
      Runs& own = out.runs[wanted_[w].report];
      if (!own.empty())
        return fault("E5302", fmt::format("values of '{}' and of '{}' say the same", name(w),
                                          reports[wanted_[w].report].name));
      own = std::move(runs);
      add_mean(own, out.reports[wanted_[w].report]);
    }
    return out;
  }

  /// f f' for f, whose mean is 0.
  std::optional<Diagnostic> square(std::size_t w, Runs& runs) const {
    const std::string& f = wanted_[w].name;
    for (const ir::Report& report : networks_.program.reports)
      if (report.name == fmt::format("mean({})", f))
        return fault(
            "E5305",
            fmt::format("the limit of '{0}' is Gaussian with a mean: 'cov({0})' needs "
                        "({0} - m) ({0} - m)' of each network, with its own m",
                        f),
            fmt::format("m is {0} of the same network without what is drawn in the readout; give "
                        "values named 'cov({0})' and 'mean({0})', or leave '{0}' out",
                        f));
    // Loops stand outside: each iteration has a matrix of its own.
    const ir::Report& report = networks_.program.reports[wanted_[w].report];
    std::size_t size = 1;
    for (std::size_t k = report.index_names.size(); k < wanted_[w].shape.size(); ++k)
      size *= static_cast<std::size_t>(wanted_[w].shape[k]);
    for (std::vector<double>& run : runs) {
      std::vector<double> products;
      for (std::size_t begin = 0; begin < run.size(); begin += size)
        for (std::size_t i = 0; i < size; ++i)
          for (std::size_t j = 0; j < size; ++j)
            products.push_back(run[begin + i] * run[begin + j]);
      run = std::move(products);
    }
    return std::nullopt;
  }

  static void add_mean(const Runs& runs, ReportResult& report) {
    const double count = static_cast<double>(runs.size());
    report.value.assign(runs[0].size(), 0.0);
    report.error.assign(runs[0].size(), 0.0);
    for (const auto& run : runs)
      for (std::size_t j = 0; j < run.size(); ++j) report.value[j] += run[j] / count;
    for (const auto& run : runs)
      for (std::size_t j = 0; j < run.size(); ++j)
        report.error[j] += std::pow(run[j] - report.value[j], 2);
    for (double& e : report.error) e = std::sqrt(e / (count - 1) / count);
  }

  const Module& networks_;
  std::vector<Wanted> wanted_;
  std::string file_;
  std::vector<Part> parts_;
  std::set<std::pair<std::int64_t, double>> seeds_;  ///< of tables
};

}  // namespace

Result<std::vector<SimulationResult>> read_measurements(
    const std::vector<std::filesystem::path>& files, const Module& module, const Module& networks) {
  Reader reader(module, networks);
  std::set<std::filesystem::path> seen;
  for (const std::filesystem::path& file : files) {
    if (!seen.insert(file.lexically_normal()).second)
      return fault("E5304", fmt::format("{} is given twice", file.string()));
    if (auto errors = reader.read(file)) return *errors;
  }
  return reader.collect();
}

}  // namespace tplimit
