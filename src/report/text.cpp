#include "tplimit/report/text.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "report/words.hpp"

namespace tplimit {
namespace {

using words::one_line;
using words::word;

constexpr double kExact =
    1e-12;  // smaller relative errors cannot be seen in the 12 digits of an exact number
constexpr int kLargestFixed =
    6;  // powers of ten from which on numbers are written in scientific notation,
constexpr int kSmallestFixed = -4;                   // upwards and downwards
constexpr std::size_t kHeadRows = 8, kTailRows = 4;  // shown of a long table
constexpr std::size_t kMaxColumns = 8;               // shown of a wide one
constexpr std::string_view kGap = "..";
constexpr std::string_view kUnresolvedNote =
    "\n?  not resolved: within 3 errors of 0 or of a neighbour\n";

// ---- numbers
// ---------------------------------------------------------------------------------------

int exponent_of(const std::string& scientific) {
  return std::atoi(scientific.c_str() + scientific.find('e') + 1);
}

/// `x` with `decimals` decimals; never "-0".
std::string fixed(double x, int decimals) {
  std::string text = fmt::format("{:.{}f}", x, decimals);
  if (text[0] == '-' && text.find_first_of("123456789") == std::string::npos) text.erase(0, 1);
  return text;
}

/// "1.234(56)e-07" as "1.234e-07".
std::string without_error(std::string number) {
  const std::size_t open = number.find('(');
  return open == std::string::npos ? number : number.erase(open, number.find(')') + 1 - open);
}

std::string format_sample(double value) { return fmt::format("{:.6g}", value == 0 ? 0.0 : value); }

std::string two_digits(double value) {
  if (value == 0) return "0";
  std::string text = fmt::format("{:#.2g}", value);
  if (text.back() == '.') text.pop_back();
  return text;
}

template <class Count>
std::string plural(Count count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

// ---- tables
// ----------------------------------------------------------------------------------------

/// The place of the decimal point, or where it would stand.
std::size_t point(std::string_view cell) {
  return std::min(cell.find_first_of(".(e?"), cell.size());
}

/// One column of a table: headings on the left, numbers aligned at the decimal point.  All cells
/// are equally long.
std::vector<std::string> column(const std::vector<std::string>& headings,
                                const std::vector<std::string>& cells) {
  std::size_t left = 0, width = 0;
  for (const std::string& cell : cells) left = std::max(left, point(cell));
  std::vector<std::string> out = headings;
  for (const std::string& cell : cells) out.push_back(std::string(left - point(cell), ' ') + cell);
  for (const std::string& cell : out) width = std::max(width, count_columns(cell));
  for (std::string& cell : out) cell.append(width - count_columns(cell), ' ');
  return out;
}

/// A column of labels, aligned on the right.
std::vector<std::string> label_column(std::vector<std::string> cells) {
  std::size_t width = 0;
  for (const std::string& cell : cells) width = std::max(width, count_columns(cell));
  for (std::string& cell : cells) cell.insert(0, width - count_columns(cell), ' ');
  return cells;
}

std::string join(const std::vector<std::vector<std::string>>& columns) {
  std::string out;
  for (std::size_t row = 0; row < columns.at(0).size(); ++row) {
    std::string line = " ";
    for (const auto& cells : columns) line += "   " + cells[row];
    out += line.substr(0, line.find_last_not_of(' ') + 1) + '\n';
  }
  return out;
}

/// 0..count-1 with the middle left out (one empty element) where there are more than head + tail
/// + 1.
std::vector<std::optional<std::size_t>> ends(std::size_t count, std::size_t head,
                                             std::size_t tail) {
  std::vector<std::optional<std::size_t>> out;
  const bool cut = count > head + tail + 1;
  for (std::size_t k = 0; k < (cut ? head : count); ++k) out.emplace_back(k);
  if (!cut) return out;
  out.emplace_back(std::nullopt);
  for (std::size_t k = count - tail; k < count; ++k) out.emplace_back(k);
  return out;
}

// ---- shapes
// ----------------------------------------------------------------------------------------

using Shape = std::vector<std::int64_t>;

std::size_t product(const Shape& shape) {
  std::size_t out = 1;
  for (const std::int64_t extent : shape) out *= static_cast<std::size_t>(extent);
  return out;
}

Shape unravel(std::size_t flat, const Shape& shape) {
  Shape index(shape.size());
  for (std::size_t k = shape.size(); k-- > 0; flat /= static_cast<std::size_t>(shape[k]))
    index[k] = static_cast<std::int64_t>(flat % static_cast<std::size_t>(shape[k]));
  return index;
}

/// "[1,2]"; nothing for a scalar.
std::string bracketed(const Shape& index) {
  return index.empty() ? std::string() : fmt::format("[{}]", fmt::join(index, ","));
}

Shape loops_of(const ReportResult& r) {
  return {r.shape.begin(), r.shape.begin() + static_cast<std::ptrdiff_t>(r.index_names.size())};
}
Shape axes_of(const ReportResult& r) {
  return {r.shape.begin() + static_cast<std::ptrdiff_t>(r.index_names.size()), r.shape.end()};
}

/// "32 x 32 for t in 0..20"; nothing for a scalar.
std::string describe(const ReportResult& r) {
  const Shape axes = axes_of(r);
  std::string out =
      axes.size() == 1 ? plural(product(axes), "value") : fmt::format("{}", fmt::join(axes, " x "));
  for (std::size_t k = 0; k < r.index_names.size(); ++k) {
    const auto& values = r.index_values[k];
    out += fmt::format("{}{} in ", k ? ", " : out.empty() ? "for " : " for ", r.index_names[k]);
    const bool range =
        values.back() - values.front() + 1 == static_cast<std::int64_t>(values.size());
    out += range ? fmt::format("{}..{}", values.front(), values.back() + 1)
                 : fmt::format("[{}]", fmt::join(values, ", "));
  }
  return out;
}

/// "t = 3, [1,2]": one entry of a report.
std::string entry_label(const ReportResult& r, std::size_t flat) {
  const Shape index = unravel(flat, r.shape);
  const auto loops = r.index_names.size();
  std::string out;
  for (std::size_t k = 0; k < loops; ++k)
    out += fmt::format("{}{} = {}", k ? ", " : "", r.index_names[k],
                       r.index_values[k][static_cast<std::size_t>(index[k])]);
  const std::string rest =
      bracketed({index.begin() + static_cast<std::ptrdiff_t>(loops), index.end()});
  return out + (out.empty() || rest.empty() ? "" : ", ") + rest;
}

// ---- one report
// ------------------------------------------------------------------------------------

using Cell = std::function<std::string(std::size_t)>;

Cell values_of(const ReportResult& r) {
  return [&r](std::size_t j) {
    if (std::isnan(r.value[j])) return std::string("undetermined");
    const std::string number =
        r.error.empty() ? format_sample(r.value[j]) : format_number(r.value[j], r.error[j]);
    return number + (!r.unresolved.empty() && r.unresolved[j] ? "?" : "");
  };
}
Cell spread_of(const ReportResult& r) {
  return [&r](std::size_t j) { return fmt::format("{:.3g}", r.spread[j]); };
}

bool has_unresolved(const ReportResult& r) {
  return std::find(r.unresolved.begin(), r.unresolved.end(), true) != r.unresolved.end();
}

std::string method_note(const ReportResult& r) {
  if (!r.spread.empty()) return "";  // most of the error is that of the draws
  switch (r.method) {
    case Method::kExact: return "   exact";
    case Method::kClosedForm: return "   closed form";
    case Method::kQuadrature: return "   quadrature";
    case Method::kSamples: return "   draws of coordinates";
    case Method::kParticles:
      return r.error.empty() ? "   no error estimate: one randomisation" : "";
    case Method::kNetworks: return "";
  }
  return "";
}

/// Rows are iterations, or all axes but the last; columns the rest.  `cut` is set when something
/// was left out.
std::string table(const ReportResult& r, const Cell& cell, const TextOptions& options, bool& cut) {
  const bool series = !r.index_names.empty();
  const Shape axes = axes_of(r);
  const Shape row_shape = series ? loops_of(r) : Shape(axes.begin(), axes.end() - 1);
  const Shape column_shape = series ? axes : Shape{axes.back()};
  const std::size_t rows = product(row_shape), columns = product(column_shape);
  const auto shown_rows = ends(rows, options.full ? rows : kHeadRows, kTailRows);
  if (rows == 0 || columns == 0) return "    empty\n";

  std::vector<std::vector<std::string>> labels(series              ? r.index_names.size()
                                               : row_shape.empty() ? 0
                                                                   : 1);
  for (std::size_t k = 0; k < labels.size(); ++k)
    labels[k].push_back(series ? r.index_names[k] : "");
  for (const auto& row : shown_rows)
    for (std::size_t k = 0; k < labels.size(); ++k) {
      if (!row)
        labels[k].emplace_back(kGap);
      else if (const Shape index = unravel(*row, row_shape); !series)
        labels[k].push_back(bracketed(index));
      else
        labels[k].push_back(
            fmt::format("{}", r.index_values[k][static_cast<std::size_t>(index[k])]));
    }
  for (auto& cells : labels) cells = label_column(std::move(cells));

  const auto layout = [&](const std::vector<std::optional<std::size_t>>& shown_columns) {
    std::vector<std::vector<std::string>> out = labels;
    for (const auto& c : shown_columns) {
      const std::string heading = c ? bracketed(unravel(*c, column_shape)) : std::string(kGap);
      std::vector<std::string> cells;
      for (const auto& row : shown_rows)
        cells.push_back(row && c ? cell(*row * columns + *c) : std::string(kGap));
      out.push_back(column({heading}, cells));
    }
    return join(out);
  };
  cut = cut || shown_rows.size() < rows;
  if (options.full) return layout(ends(columns, columns, 0));
  // As many columns as fit, at least three.
  for (std::size_t count = std::min(columns, kMaxColumns);; --count) {
    const auto shown = ends(columns, columns == count ? count : count - 2, 1);
    std::string text = layout(shown);
    std::size_t widest = 0;
    for (std::size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
         begin = end + 1)
      widest = std::max(widest, count_columns(std::string_view(text).substr(begin, end - begin)));
    if (widest > options.columns && count > 3) continue;
    cut = cut || shown.size() < columns;
    return text;
  }
}

std::string sections(const std::vector<ReportResult>& reports, const TextOptions& options) {
  std::string out;
  bool cut = false, unresolved = false;
  std::size_t name_width = 0;
  for (const ReportResult& r : reports)
    if (r.shape.empty()) name_width = std::max(name_width, count_columns(r.name));
  bool in_scalars = false;
  for (const ReportResult& r : reports) {
    const bool scalar = r.shape.empty();
    if (!scalar || !in_scalars) out += '\n';
    in_scalars = scalar;
    if (scalar) {
      out += fmt::format("{}{}   {}", r.name, std::string(name_width - count_columns(r.name), ' '),
                         values_of(r)(0));
      out += (r.spread.empty() ? "" : fmt::format("   spread {}", spread_of(r)(0))) +
             method_note(r) + '\n';
    } else {
      out += fmt::format("{}   {}{}\n", r.name, describe(r), method_note(r));
      out += table(r, values_of(r), options, cut);
      if (!r.spread.empty())
        out += fmt::format("  spread of {} over draws\n", r.name) +
               table(r, spread_of(r), options, cut);
    }
    unresolved = unresolved || has_unresolved(r);
  }
  if (unresolved) out += kUnresolvedNote;
  if (cut)
    out +=
        fmt::format("\n{}  left out: --full prints everything, --out FILE.json writes it\n", kGap);
  return out;
}

// ---- expectations
// ----------------------------------------------------------------------------------

int badness(ExpectStatus status) {
  return status == ExpectStatus::kFailed ? 2 : status == ExpectStatus::kUndecided ? 1 : 0;
}

/// One line per `expect` of the program: its worst iteration.
std::string expectations(const LimitResult& limit, const Source& source) {
  std::vector<const ExpectResult*> worst;
  std::vector<std::pair<std::size_t, std::size_t>>
      counts;  // iterations, of them as bad as the worst
  for (const ExpectResult& e : limit.expectations) {
    const auto same =
        std::find_if(worst.begin(), worst.end(), [&](const auto* w) { return w->span == e.span; });
    const auto k = static_cast<std::size_t>(same - worst.begin());
    if (same == worst.end()) {
      worst.push_back(&e);
      counts.emplace_back(1, 1);
      continue;
    }
    ++counts[k].first;
    const int change = badness(e.status) - badness(worst[k]->status);
    if (change >= 0) counts[k].second = change > 0 ? 1 : counts[k].second + 1;
    const auto gap = [](const ExpectResult& x) { return std::abs(x.left - x.right) - x.tolerance; };
    if (change > 0 || (change == 0 && gap(e) > gap(*worst[k]))) worst[k] = &e;
  }
  std::string out = worst.empty() ? "" : "\n";
  for (std::size_t k = 0; k < worst.size(); ++k) {
    const ExpectResult& e = *worst[k];
    const bool failed = e.status == ExpectStatus::kFailed, known = std::isfinite(e.error);
    const auto show = [&](double x) {
      return std::isnan(x) ? "undetermined" : known ? format_number(x, e.error) : format_sample(x);
    };
    const auto side = [&](double x) { return x == 0 ? std::string("0") : without_error(show(x)); };
    out += fmt::format("{:<9}  {}:{}: {}\n", failed ? "FAIL" : word(e.status), source.name(),
                       source.line_of(e.span.begin), one_line(source.text(e.span)));
    out += fmt::format("           left {}, right {}, difference {}{}", side(e.left), side(e.right),
                       show(e.left - e.right),
                       known || std::isnan(e.left) ? "" : ", no error estimate: one randomisation");
    if (!e.iteration.empty()) out += fmt::format(", worst at {}", e.iteration);
    if (e.status != ExpectStatus::kPassed && counts[k].first > 1)
      out += fmt::format("; {} of {} iterations {}", counts[k].second, counts[k].first,
                         failed ? "fail" : "are undecided");
    out += '\n';
  }
  return out;
}

// ---- first and last lines
// --------------------------------------------------------------------------

std::string particles_text(const EngineInfo& engine) {
  return fmt::format("{} particles x {}, seed {}", engine.particles,
                     plural(engine.randomisations, "randomisation"), engine.seed);
}

std::string heading(const ProgramInfo& program, std::string_view what) {
  std::string out = fmt::format("{}: {}\n", program.source.name(), what);
  for (const auto& [name, value] : program.constants)
    out += fmt::format("with {} = {}\n", name, value);
  if (!program.ablations.empty())
    out += fmt::format("ablation: {}; these are not the results of the program as written\n",
                       program.ablations);
  return out;
}

std::string conditional(const ProgramInfo& program, bool random_outputs, std::uint64_t seed,
                        int draws) {
  if (!program.random_scalars && !random_outputs) return "";
  const char* what = !random_outputs          ? "random scalars"
                     : program.random_scalars ? "random scalars and outputs"
                                              : "random outputs";
  if (draws > 1)
    return fmt::format(
        "mean over {} draws of the {} from --seed {}, its standard error in parentheses; spread: "
        "their standard deviation\n",
        draws, what, seed);
  return fmt::format("conditional on the {} drawn from --seed {}\n", what, seed);
}

std::string memory_text(double bytes) {
  return bytes >= 1e9 ? fmt::format("{:.1f} GB", bytes / 1e9)
                      : fmt::format("{:.0f} MB", bytes / 1e6);
}

std::string time_text(double seconds) {
  return fmt::format("{:.{}f} s", seconds, seconds < 10 ? 2 : seconds < 100 ? 1 : 0);
}

std::string resources(double time_s, double bytes, std::int64_t rank) {
  return fmt::format("\ntime {}, memory {}, largest rank {}", time_text(time_s), memory_text(bytes),
                     rank);
}

// ---- comparison
// ------------------------------------------------------------------------------------

constexpr std::size_t kThreeEntries = 100;  // columns that a table with three entries needs

/// All entries if they are at most `most` or `full`; else the first, middle and last one, of a
/// series the first value of the first, middle and last iteration.
std::vector<std::size_t> representatives(const ReportResult& r, std::size_t most, bool full) {
  const std::size_t size = r.value.size(), iterations = product(loops_of(r));
  std::vector<std::size_t> out;
  if (full || size <= most) {
    for (std::size_t j = 0; j < size; ++j) out.push_back(j);
    return out;
  }
  const bool series = iterations >= most;
  const std::size_t count = series ? iterations : size, step = series ? size / iterations : 1;
  for (std::size_t k = 0; k < most; ++k) out.push_back(k * (count - 1) / (most - 1) * step);
  return out;
}

/// Widths downwards, the limit below them; `shown` entries sideways, each with mean and sd; at the
/// end all entries.
std::string width_table(const ReportResult& r, const Convergence& c,
                        const std::vector<std::size_t>& shown,
                        const std::vector<SimulationResult>& networks, bool with_rms) {
  const bool scalar = c.entries.size() == 1;
  const auto headings = [&](std::string over, std::string own) {
    return scalar ? std::vector<std::string>{std::move(own)}
                  : std::vector<std::string>{std::move(over), std::move(own)};
  };
  std::vector<std::string> labels = headings("", "width");
  for (const SimulationResult& width : networks) labels.push_back(fmt::format("{}", width.width));
  labels.emplace_back("limit");
  std::vector<std::vector<std::string>> columns{label_column(labels)};
  const auto rows = static_cast<Eigen::Index>(networks.size());
  for (const std::size_t j : shown) {
    const EntryConvergence& entry = c.entries[j];
    std::vector<std::string> mean, sd;
    for (Eigen::Index k = 0; k < rows; ++k) {
      mean.push_back(format_number(entry.mean[k], entry.mean_error[k]));
      sd.push_back(two_digits(entry.sd[k]));
    }
    mean.push_back(values_of(r)(j));
    sd.emplace_back();
    columns.push_back(column(headings(entry_label(r, j), "mean"), mean));
    columns.push_back(column(headings("", "sd"), sd));
  }
  if (with_rms) {
    std::vector<std::string> rms;
    for (Eigen::Index k = 0; k < rows; ++k) {
      double squares = 0, count = 0;
      for (std::size_t j = 0; j < c.entries.size(); ++j) {
        if (std::isnan(r.value[j])) continue;
        squares += c.entries[j].rms[k] * c.entries[j].rms[k];
        ++count;
      }
      rms.push_back(count > 0 ? two_digits(std::sqrt(squares / count)) : "");
    }
    rms.emplace_back();
    columns.push_back(
        column(headings(fmt::format("all {}", c.entries.size()), "rms deviation"), rms));
  }
  return join(columns);
}

constexpr std::string_view kCorrectionsNote =
    "\ncorrections: mean = limit + b/n + O(1/n^2), variance of one network = v/n + O(1/n^2), from "
    "the widths; off: the limit\n"
    "that they extrapolate to against the limit above, in standard errors\n";

/// The corrections of order 1/n of the `shown` entries, one row each.
std::string corrections_table(const ReportResult& r, const Convergence& c,
                              const std::vector<std::size_t>& shown) {
  std::vector<std::string> labels{"corrections"}, limit, off, slope, variance;
  for (const std::size_t j : shown) {
    const EntryConvergence& entry = c.entries[j];
    const Corrections& own = entry.corrections.value();
    const auto show = [](const Estimate& estimate) {
      return format_number(estimate.value, estimate.error);
    };
    const double error = std::hypot(own.limit.error, entry.limit_error);
    labels.push_back(entry_label(r, j));
    limit.push_back(show(own.limit));
    off.push_back(fixed(error > 0 ? (own.limit.value - entry.limit) / error : 0, 1));
    slope.push_back(show(own.slope));
    variance.push_back(show(own.variance));
  }
  return join({label_column(labels), column({"limit"}, limit), column({"off"}, off),
               column({"b"}, slope), column({r.random ? "v n" : "v"}, variance)});
}

/// "disagrees: loss (1 of 6 reports); agrees: 5": how many have the verdict; which do not agree.
std::string overall_text(const Comparison& all) {
  std::map<Verdict, std::vector<std::string>> names;
  std::size_t compared = 0;
  for (std::size_t k = 0; k < all.reports.size(); ++k) {
    if (!all.reports[k]) continue;
    names[all.reports[k]->verdict].push_back(all.limit.reports[k].name);
    ++compared;
  }
  const auto listed = [&](Verdict v) {
    return v == Verdict::kAgrees || compared == 1 ? ""
                                                  : fmt::format(": {}", fmt::join(names[v], ", "));
  };
  std::string out = fmt::format("{}{} ({} of {})", word(all.verdict), listed(all.verdict),
                                names[all.verdict].size(), plural(compared, "report"));
  for (const Verdict v : {Verdict::kAgrees, Verdict::kInconclusive})
    if (v != all.verdict && !names[v].empty())
      out += fmt::format("; {}{}", word(v),
                         v == Verdict::kAgrees ? fmt::format(": {}", names[v].size()) : listed(v));
  return out;
}

std::string section(const ReportResult& r, const std::optional<Convergence>& c,
                    const Comparison& all, const TextOptions& options) {
  std::string out = fmt::format("\n{}{}{}{}\n", r.name, r.shape.empty() ? "" : "   ", describe(r),
                                method_note(r));
  if (!c) return out + "    not compared: draws of coordinates differ from network to network\n";
  const std::size_t most = options.columns < kThreeEntries ? 2 : 3;
  const auto shown = representatives(r, most, options.full);
  for (std::size_t begin = 0; begin < shown.size(); begin += most) {
    const auto first = shown.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last =
        shown.begin() + static_cast<std::ptrdiff_t>(std::min(begin + most, shown.size()));
    out += width_table(r, *c, {first, last}, all.networks, begin + most >= shown.size());
  }
  if (all.show_corrections) out += corrections_table(r, *c, shown);
  out += fmt::format("    {}: {}", word(c->verdict), c->reason);
  if (c->bias_slope)
    out += fmt::format("; bias slope {:.2f} +- {:.2f}", c->bias_slope->slope, c->bias_slope->error);
  return out + '\n';
}

}  // namespace

std::string format_number(double value) { return fmt::format("{:.12g}", value == 0 ? 0.0 : value); }

std::string format_number(double value, double error) {
  if (!(error > kExact * std::abs(value))) return format_number(value);
  const std::string two =
      fmt::format("{:.1e}", error);       // rounded before its digits are counted: 0.0996 is 0.10
  const int last = exponent_of(two) - 1;  // power of ten of the last digit to show
  const double largest = std::max(std::abs(value), error);
  int leading = exponent_of(fmt::format("{:e}", largest));
  leading = exponent_of(
      fmt::format("{:.{}e}", largest, std::max(leading - last, 0)));  // 9.996(12) rounds to 10.00

  const auto in_parentheses = [&](int decimals) {
    return decimals == 1 ? fmt::format("({}.{})", two[0], two[2])
                         : fmt::format("({}{})", two[0], two[2]);
  };
  if (last <= 0 && leading <= kLargestFixed && leading >= kSmallestFixed)
    return fixed(value, -last) + in_parentheses(-last);
  const long double unit = std::pow(10.0L, leading);  // long: 1e-310 has a unit too
  return fmt::format("{}{}e{:+03d}", fixed(static_cast<double>(value / unit), leading - last),
                     in_parentheses(leading - last), leading);
}

std::string to_text(const LimitResult& limit, const ProgramInfo& program,
                    const TextOptions& options) {
  return heading(program, "limit of infinite width, " + particles_text(limit.engine)) +
         conditional(program, limit.random_outputs, limit.engine.seed, limit.draws) +
         sections(limit.reports, options) + expectations(limit, program.source) +
         resources(limit.time_s, limit.peak_memory_bytes, limit.engine.largest_rank) +
         (limit.engine.extrapolated ? " (bias extrapolated)" : "") +
         (limit.engine.rows_merged > 0
              ? fmt::format(", {} merged", plural(limit.engine.rows_merged, "row"))
              : "") +
         (limit.engine.clamped > 0
              ? fmt::format(", correlations clamped to 1 (c^2/(ab) - 1 up to {})",
                            two_digits(limit.engine.clamped))
              : "") +
         fmt::format(", largest error {}{}\n", two_digits(limit.largest_error),
                     limit.engine.truncation_error > 0
                         ? fmt::format(" (sampling {}, dropped directions {})",
                                       two_digits(limit.engine.sampling_error),
                                       two_digits(limit.engine.truncation_error))
                         : "");
}

std::string to_text(const SimulationResult& networks, const ProgramInfo& program,
                    const TextOptions& options) {
  const std::string what = fmt::format(
      "{} of width {}, {} matrices{}, seed {}", plural(networks.seeds, "network"), networks.width,
      words::matrices(networks), networks.engine.single_precision ? " in single precision" : "",
      networks.engine.seed);
  return heading(program, what) +
         (networks.seeds > 1 ? "mean over networks, its standard error in parentheses\n" : "") +
         conditional(program, false, networks.engine.seed, 1) +
         sections(networks.reports, options) +
         resources(networks.time_s, networks.peak_memory_bytes, networks.engine.largest_rank) +
         '\n';
}

std::string to_text(const Comparison& all, const ProgramInfo& program, const TextOptions& options) {
  double time_s = all.limit.time_s, bytes = all.limit.peak_memory_bytes;
  std::string widths;
  for (const SimulationResult& width : all.networks) {
    time_s += width.time_s;
    bytes = std::max(bytes, width.peak_memory_bytes);
    widths +=
        fmt::format("{}{} {}{}", widths.empty() ? "" : ", ", width.width, words::matrices(width),
                    width.engine.single_precision ? " in single precision" : "");
  }
  std::string out = heading(program, "limit of infinite width against finite networks");
  out += fmt::format("limit: {}\n", particles_text(all.limit.engine));
  if (!all.networks.empty())
    out += fmt::format("networks: {} at each width ({})\n", plural(all.networks[0].seeds, "seed"),
                       widths);
  out += conditional(program, all.limit.random_outputs, all.limit.engine.seed, all.limit.draws);
  for (std::size_t k = 0; k < all.reports.size(); ++k)
    out += section(all.limit.reports[k], all.reports[k], all, options);
  if (std::any_of(all.limit.reports.begin(), all.limit.reports.end(), has_unresolved))
    out += kUnresolvedNote;
  if (all.show_corrections) out += kCorrectionsNote;
  out += expectations(all.limit, program.source);
  const bool vanishes = std::any_of(all.reports.begin(), all.reports.end(),
                                    [](const auto& c) { return c && c->rms_slope; });
  const bool random = std::any_of(all.limit.reports.begin(), all.limit.reports.end(),
                                  [](const ReportResult& r) { return r.random; });
  out += fmt::format("\noverall: {}; expected slopes: sd -0.5{}, bias |mean - limit| -1{}\n",
                     overall_text(all), random ? " (0 where the limit is random)" : "",
                     vanishes ? ", rms of what vanishes as counted" : "");
  return out + fmt::format("time {}, memory {}\n", time_text(time_s), memory_text(bytes));
}

}  // namespace tplimit
