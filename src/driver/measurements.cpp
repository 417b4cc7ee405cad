#include "tplimit/driver/measurements.hpp"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>

#include <fmt/format.h>

#include "driver/measurement_files.hpp"
#include "driver/report_values.hpp"

namespace tplimit {

using namespace measurements;

namespace {

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

/// f f' for f, whose mean is 0.
std::optional<Diagnostic> square(const Wanted& wanted, const Module& networks, Runs& runs) {
  const std::string& f = wanted.name;
  for (const ir::Report& report : networks.program.reports)
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
  const ir::Report& report = networks.program.reports[wanted.report];
  std::size_t size = 1;
  for (std::size_t k = report.index_names.size(); k < wanted.shape.size(); ++k)
    size *= static_cast<std::size_t>(wanted.shape[k]);
  for (std::vector<double>& run : runs) {
    std::vector<double> products;
    for (std::size_t begin = 0; begin < run.size(); begin += size)
      for (std::size_t i = 0; i < size; ++i)
        for (std::size_t j = 0; j < size; ++j) products.push_back(run[begin + i] * run[begin + j]);
    run = std::move(products);
  }
  return std::nullopt;
}

/// Networks of one width; all widths must have values of the same reports.
Result<SimulationResult> result_of(const std::vector<Wanted>& wanted, const Module& networks,
                                   Part& part, const Part& first) {
  const auto name = [&](std::size_t w) { return wanted[w].name; };
  for (const auto& [w, runs] : first.runs)
    if (!part.runs.contains(w))
      return fault("E5302", fmt::format("networks of width {} have no values of '{}', those of "
                                        "width {} have",
                                        part.width, name(w), first.width));
  if (part.runs.empty())
    return fault("E5302", fmt::format("no report was measured at width {}", part.width),
                 names_of(wanted));
  SimulationResult out;
  out.engine.name = "measurements";
  out.width = part.width;
  out.seeds = static_cast<int>(part.runs.begin()->second.size());
  const auto& reports = networks.program.reports;
  for (const ir::Report& report : reports) {
    out.reports.push_back(skeleton(networks.program, report));
    out.reports.back().method = Method::kNetworks;
  }
  out.runs.resize(reports.size());
  for (auto& [w, runs] : part.runs) {
    if (!first.runs.contains(w))
      return fault("E5302", fmt::format("networks of width {} have values of '{}', those of width "
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
    if (wanted[w].squared)
      if (auto refused = square(wanted[w], networks, runs)) return *refused;
    Runs& own = out.runs[wanted[w].report];
    if (!own.empty())
      return fault("E5302", fmt::format("values of '{}' and of '{}' say the same", name(w),
                                        reports[wanted[w].report].name));
    own = std::move(runs);
    set_means(own, out.reports[wanted[w].report]);
  }
  return out;
}

}  // namespace

Result<std::vector<SimulationResult>> read_measurements(
    const std::vector<std::filesystem::path>& paths, const Module& module, const Module& networks) {
  Files files(wanted_of(module, networks));
  std::set<std::filesystem::path> seen;
  for (const std::filesystem::path& path : paths) {
    if (!seen.insert(path.lexically_normal()).second)
      return fault("E5304", fmt::format("{} is given twice", path.string()));
    if (auto errors = files.read(path)) return *errors;
  }
  std::map<std::int64_t, Part> widths;
  for (Part& part : files.take()) {
    Part& own = widths[part.width];
    own.width = part.width;
    for (auto& [w, runs] : part.runs)
      std::move(runs.begin(), runs.end(), std::back_inserter(own.runs[w]));
  }
  std::vector<SimulationResult> out;
  for (auto& [width, part] : widths) {
    auto own = result_of(files.wanted(), networks, part, widths.begin()->second);
    if (!own) return own.errors();
    out.push_back(std::move(*own));
  }
  return out;
}

}  // namespace tplimit
