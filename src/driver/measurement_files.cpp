#include "driver/measurement_files.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "tplimit/data/table.hpp"
#include "tplimit/support/output_file.hpp"

namespace tplimit::measurements {
namespace {

std::string text(const Shape& shape) {
  return shape.empty() ? "a number" : fmt::format("[{}]", fmt::join(shape, ", "));
}

std::optional<Diagnostics> errors(Diagnostic d) { return Diagnostics{std::move(d)}; }

/// False where a number is missing.
bool flatten(const nlohmann::json& json, std::vector<double>& out) {
  if (!json.is_array()) {
    if (!json.is_number()) return false;
    out.push_back(json.get<double>());
    return true;
  }
  return std::all_of(json.begin(), json.end(),
                     [&](const nlohmann::json& item) { return flatten(item, out); });
}

/// Readers of data files speak of rows, which cannot be chosen here.
Diagnostics without_rows(Diagnostics all) {
  for (Diagnostic& d : all)
    if (d.code == "E5105") d.help = "such networks have no place beside a limit: a smaller rate?";
  return all;
}

}  // namespace

Diagnostic fault(const char* code, std::string message, std::string help) {
  return Diagnostic::error(code, std::move(message)).with_help(std::move(help));
}

std::string names_of(const std::vector<Wanted>& wanted) {
  std::vector<std::string> names;
  for (const Wanted& w : wanted) names.push_back(w.name);
  return fmt::format("the program's reports: {}", fmt::join(names, ", "));
}

std::optional<Diagnostics> Files::read(const std::filesystem::path& path) {
  file_ = path.string();
  if (file_.ends_with(".json")) return read_json(path);
  if (file_.ends_with(".npz")) return read_arrays(path);
  if (file_.ends_with(".csv")) return read_table(path);
  return Diagnostics{fault("E5301", fmt::format("{}: not a file of measurements", file_),
                           "its name ends in .json (of simulate --out), .npz or .csv")};
}

std::optional<std::size_t> Files::find(const std::string& name) const {
  for (std::size_t w = 0; w < wanted_.size(); ++w)
    if (wanted_[w].name == name) return w;
  return std::nullopt;
}

Diagnostic Files::unknown(const std::string& name) const {
  return fault("E5302", fmt::format("{}: no report is called '{}'", file_, name),
               names_of(wanted_));
}

Diagnostic Files::wrong_shape(const std::string& name, const std::string& seen, std::size_t w,
                              const char* first) const {
  Shape shape = wanted_[w].shape;
  const std::string rest = fmt::format("{}", fmt::join(shape, ", "));
  const std::string needed =
      first ? fmt::format("[{}{}{}]", first, rest.empty() ? "" : ", ", rest) : text(shape);
  return fault("E5303", fmt::format("{}: '{}' is {}, needed is {}", file_, name, seen, needed),
               "axes: loops of the program around the report, then those of the value");
}

std::optional<Diagnostics> Files::width_from(double value, std::int64_t& width) const {
  if (value >= 1 && value <= 9e15 && value == std::floor(value)) {
    width = static_cast<std::int64_t>(value);
    return std::nullopt;
  }
  return errors(
      fault("E5301", fmt::format("{}: the width {} is no positive whole number", file_, value)));
}

/// "loss", or "out[0]", "out[1]", ..
std::vector<std::string> Files::columns_of(std::size_t w) const {
  const auto& [name, shape, report, squared] = wanted_[w];
  std::vector<std::string> out;
  for (std::size_t flat = 0; flat < size_of(w); ++flat)
    out.push_back(name + shapes::bracketed(shapes::unravel(flat, shape)));
  return out;
}

std::optional<Diagnostics> Files::read_json(const std::filesystem::path& path) {
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
          return errors(
              fault("E5105",
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

std::optional<Diagnostics> Files::read_arrays(const std::filesystem::path& path) {
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

std::optional<Diagnostics> Files::read_table(const std::filesystem::path& path) {
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

}  // namespace tplimit::measurements
