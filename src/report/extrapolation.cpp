#include "tplimit/report/extrapolation.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <Eigen/LU>

#include "report/words.hpp"
#include "tplimit/report/numbers.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit {

using words::plural;
using words::product;
using words::Shape;

namespace {

/// Weights of values at these steps in their extrapolation: sum w = 1, sum w h^(order + k) = 0.
std::vector<double> weights(const std::vector<double>& steps, std::size_t first, double order) {
  using Matrix = Eigen::Matrix<long double, Eigen::Dynamic, Eigen::Dynamic>;
  using Vector = Eigen::Matrix<long double, Eigen::Dynamic, 1>;
  const auto count = static_cast<Eigen::Index>(steps.size() - first);
  Matrix powers(count, count);
  for (Eigen::Index j = 0; j < count; ++j) {
    const long double h = static_cast<long double>(steps[first + static_cast<std::size_t>(j)]) /
                          static_cast<long double>(steps[first]);
    for (Eigen::Index k = 0; k < count; ++k)
      powers(k, j) = k == 0 ? 1 : std::pow(h, static_cast<long double>(order) + k - 1);
  }
  const Vector w = powers.fullPivLu().solve(Vector::Unit(count, 0));
  std::vector<double> out(first, 0.0);
  for (Eigen::Index j = 0; j < count; ++j) out.push_back(static_cast<double>(w[j]));
  return out;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double out = 0;
  for (std::size_t k = 0; k < a.size(); ++k) out += a[k] * b[k];
  return out;
}

struct OrderSeen {
  std::optional<Estimate> order{};
  bool settles = true;
};

/// That the values `first`, first + 1 and first + 2 show.
OrderSeen order_seen(const std::vector<double>& steps, const std::vector<double>& values,
                     const std::vector<double>& errors, std::size_t first) {
  const double a = values[first] - values[first + 1], b = values[first + 1] - values[first + 2];
  const auto error = [&](std::size_t k) { return errors.empty() ? 0.0 : errors[first + k]; };
  const double rounding = 1e-12 * std::abs(values[first + 2]);
  const auto resolved = [&](double difference, double e) {
    return std::abs(difference) > std::max(2 * e, rounding);
  };
  if (!resolved(a, std::hypot(error(0), error(1))) || !resolved(b, std::hypot(error(1), error(2))))
    return {};
  const double ratio = a / b;
  const double ratio_error =
      std::hypot(error(0) / b, error(1) * (1 + ratio) / b, error(2) * ratio / b);
  const double x = std::log(steps[first] / steps[first + 1]),
               y = std::log(steps[first + 1] / steps[first + 2]);
  // (h1^q - h2^q) / (h2^q - h3^q), which rises with q.
  const auto ratio_at = [&](double q) { return std::expm1(q * x) / -std::expm1(-q * y); };
  constexpr double kLeast = 0.01, kMost = 30;
  if (ratio < ratio_at(kLeast)) return {std::nullopt, ratio + 2 * ratio_error >= ratio_at(kLeast)};
  double low = kLeast, high = kMost;
  for (int step = 0; step < 100; ++step)
    (ratio_at((low + high) / 2) < ratio ? low : high) = (low + high) / 2;
  const double q = low, delta = 1e-4 * q;
  const double slope = (ratio_at(q + delta) - ratio_at(q - delta)) / (2 * delta);
  return {Estimate{q, ratio_error / slope}, true};
}

}  // namespace

Extrapolation extrapolate(const std::vector<double>& steps, const std::vector<double>& values,
                          const std::vector<double>& errors, double order) {
  TPLIMIT_CHECK(steps.size() >= 2 && values.size() == steps.size() &&
                    (errors.empty() || errors.size() == steps.size()) && order > 0,
                "{} values at {} steps cannot be extrapolated", values.size(), steps.size());
  Extrapolation out;
  const std::vector<double> w = weights(steps, 0, order);
  out.value = dot(w, values);
  out.extrapolation_error = std::abs(out.value - dot(weights(steps, 1, order), values));
  if (!errors.empty()) {
    double squares = 0;
    for (std::size_t k = 0; k < w.size(); ++k) squares += w[k] * w[k] * errors[k] * errors[k];
    out.sampling_error = std::sqrt(squares);
  }
  if (steps.size() < 3) return out;
  const OrderSeen seen = order_seen(steps, values, errors, steps.size() - 3);
  out.order = seen.order;
  out.settles = seen.settles;
  out.order_agrees = seen.settles;
  if (!seen.order) return out;
  double allowed = 0.25;
  if (steps.size() > 3)
    if (const OrderSeen before = order_seen(steps, values, errors, steps.size() - 4); before.order)
      allowed = std::max(allowed, std::abs(before.order->value - seen.order->value));
  out.order_agrees = std::abs(seen.order->value - order) <= allowed + 2 * seen.order->error;
  return out;
}

std::optional<PowerFit> fit_power(const std::vector<double>& x, const std::vector<double>& values,
                                  const std::vector<double>& errors) {
  if (values.size() < 2) return std::nullopt;
  for (const double v : values)
    if (!(v > 0)) return std::nullopt;
  const bool weighted =
      !errors.empty() && std::all_of(errors.begin(), errors.end(), [](double e) { return e > 0; });
  double sum = 0, sx = 0, sy = 0;
  std::vector<double> w;
  for (std::size_t k = 0; k < values.size(); ++k) {
    w.push_back(weighted ? std::pow(values[k] / errors[k], 2) : 1.0);
    sum += w[k];
    sx += w[k] * std::log(x[k]);
    sy += w[k] * std::log(values[k]);
  }
  double sxx = 0, sxy = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    const double dx = std::log(x[k]) - sx / sum;
    sxx += w[k] * dx * dx;
    sxy += w[k] * dx * (std::log(values[k]) - sy / sum);
  }
  PowerFit out{{sxy / sxx, weighted ? 1 / std::sqrt(sxx) : 0}};
  if (values.size() < 3) return out;
  double chi2 = 0;
  for (std::size_t k = 0; k < values.size(); ++k)
    chi2 +=
        w[k] *
        std::pow(std::log(values[k]) - sy / sum - out.slope.value * (std::log(x[k]) - sx / sum), 2);
  const double per_dof = chi2 / static_cast<double>(values.size() - 2);
  if (weighted) {
    out.chi2_per_dof = per_dof;
    out.slope.error *= std::sqrt(std::max(1.0, per_dof));
  } else {
    out.slope.error = std::sqrt(per_dof / sxx);
  }
  return out;
}

double LimitingPower::error() const { return std::hypot(sampling_error, extrapolation_error); }

std::optional<LimitingPower> limiting_power(const std::vector<double>& x,
                                            const std::vector<double>& values,
                                            const std::vector<double>& errors) {
  if (values.size() < 3) return std::nullopt;
  for (const double v : values)
    if (!(v > 0)) return std::nullopt;
  constexpr double kRelative = 1e-11;  // rounding of values
  std::vector<double> steps, slopes, own;
  const auto relative = [&](std::size_t k) {
    return std::hypot(errors.empty() ? 0 : errors[k] / values[k], kRelative);
  };
  for (std::size_t k = 0; k + 1 < values.size(); ++k) {
    const double ratio = std::log(x[k + 1] / x[k]);
    steps.push_back(1 / x[k]);
    slopes.push_back(std::log(values[k + 1] / values[k]) / ratio);
    own.push_back(std::hypot(relative(k), relative(k + 1)) / ratio);
  }
  const std::size_t count = slopes.size();
  const std::vector<double> w = weights(steps, count - 2, 1);
  LimitingPower out{dot(w, slopes)};
  out.last = slopes.back();
  out.extrapolation_error = std::abs(out.value - out.last);
  const OrderSeen seen = count > 2 ? order_seen(steps, slopes, own, count - 3) : OrderSeen{};
  if (seen.order) {
    const double other = dot(weights(steps, count - 2, seen.order->value), slopes);
    out.extrapolation_error = std::max(out.extrapolation_error, std::abs(out.value - other));
  } else if (!seen.settles) {
    const auto [low, high] = std::minmax_element(slopes.begin(), slopes.end());
    out.extrapolation_error = 2 * (*high - *low);
    // The slopes of exp(c x^p) grow by the factor 2^p with each doubling of x; between powers they
    // grow, too, but little.
    constexpr double kFactor = 1.2, kLeast = 0.5;
    out.faster = std::abs(out.last) > kLeast;
    for (std::size_t k = 0; k + 1 < count; ++k)
      out.faster = out.faster && slopes[k + 1] / slopes[k] > kFactor;
  }
  // Neighbouring slopes share a value: its weight in all of them.
  double squares = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    const double before = k == 0 ? 0 : w[k - 1] / std::log(x[k] / x[k - 1]),
                 behind = k + 1 == values.size() ? 0 : w[k] / std::log(x[k + 1] / x[k]);
    squares += std::pow((before - behind) * relative(k), 2);
  }
  out.sampling_error = std::sqrt(squares);
  return out;
}

// ---- limits beside each other
// ----------------------------------------------------------------------------------

namespace {

/// Reports of one name, one for each value of the constant.
class Matching {
 public:
  explicit Matching(std::vector<const ReportResult*> reports) : reports_(std::move(reports)) {
    const ReportResult& first = *reports_[0];
    for (std::size_t loop = 0; loop < first.index_names.size(); ++loop) {
      std::vector<std::int64_t> common;
      for (const std::int64_t value : first.index_values[loop])
        if (std::all_of(reports_.begin(), reports_.end(), [&](const ReportResult* r) {
              return position(*r, loop, value).has_value();
            }))
          common.push_back(value);
      for (const ReportResult* r : reports_)
        loops_differ_ = loops_differ_ || r->index_values[loop].size() != common.size();
      common_.push_back(std::move(common));
    }
  }

  [[nodiscard]] bool loops_differ() const { return loops_differ_; }

  /// Label, and the place in each report, of every entry that all have.
  template <class Visit>
  void for_each(Visit visit) const {
    const ReportResult& first = *reports_[0];
    const Shape axes = words::axes_of(first);
    Shape loops;
    for (const auto& values : common_) loops.push_back(static_cast<std::int64_t>(values.size()));
    const std::size_t size = product(axes);
    for (std::size_t iteration = 0; iteration < product(loops); ++iteration) {
      const Shape index = words::unravel(iteration, loops);
      std::vector<std::size_t> begins;
      for (const ReportResult* r : reports_) {
        std::size_t flat = 0;
        for (std::size_t loop = 0; loop < index.size(); ++loop)
          flat = flat * r->index_values[loop].size() +
                 *position(*r, loop, common_[loop][static_cast<std::size_t>(index[loop])]);
        begins.push_back(flat * size);
      }
      visit_block(words::entry_label(first, begins[0]), axes, begins, visit);
    }
    if (!loops_differ_) return;
    std::vector<std::size_t> begins;
    for (const ReportResult* r : reports_) begins.push_back(r->value.size() - size);
    visit_block("last", axes, begins, visit);
  }

 private:
  static std::optional<std::size_t> position(const ReportResult& r, std::size_t loop,
                                             std::int64_t value) {
    const auto& values = r.index_values[loop];
    const auto found = std::find(values.begin(), values.end(), value);
    if (found == values.end()) return std::nullopt;
    return static_cast<std::size_t>(found - values.begin());
  }
  template <class Visit>
  void visit_block(const std::string& iteration, const Shape& axes,
                   const std::vector<std::size_t>& begins, Visit& visit) const {
    const std::string loops =
        reports_[0]->index_names.empty() ? "" : iteration.substr(0, iteration.find(", ["));
    for (std::size_t j = 0; j < product(axes); ++j) {
      const std::string entry = words::bracketed(words::unravel(j, axes));
      std::vector<std::size_t> places;
      for (const std::size_t begin : begins) places.push_back(begin + j);
      visit(loops + (loops.empty() || entry.empty() ? "" : ", ") + entry, places);
    }
  }

  std::vector<const ReportResult*> reports_;
  std::vector<std::vector<std::int64_t>> common_;
  bool loops_differ_ = false;
};

}  // namespace

std::string extrapolation_fault(const std::string& constant,
                                const std::vector<std::string>& texts) {
  if (texts.size() < 2) return fmt::format("'{}' needs two values or more", constant);
  std::vector<double> values;
  for (const std::string& text : texts) {
    const auto value = words::constant_value(text);
    if (!value || !(*value > 0))
      return fmt::format("'{}' is no positive number, as in 8, 0.1 or 1/8", text);
    values.push_back(*value);
  }
  const bool rises = std::adjacent_find(values.begin(), values.end(), std::greater_equal<>()) ==
                     values.end(),
             falls = std::adjacent_find(values.begin(), values.end(), std::less_equal<>()) ==
                     values.end();
  if (!rises && !falls)
    return fmt::format(
        "the values of '{}' rise, then 1/{} is extrapolated to 0, or fall, then {} is", constant,
        constant, constant);
  return "";
}

ExtrapolationResult extrapolate(const std::string& constant, const std::vector<std::string>& texts,
                                const std::vector<LimitResult>& limits, double order) {
  TPLIMIT_CHECK(limits.size() == texts.size() && extrapolation_fault(constant, texts).empty(),
                "{} limits for {} values of '{}'", limits.size(), texts.size(), constant);
  ExtrapolationResult out{constant, texts, {}};
  for (const std::string& text : texts)
    out.constants.push_back(words::constant_value(text).value());
  out.growing = out.constants[0] < out.constants[1];
  out.order = order;
  out.engine = limits.back().engine;
  out.warnings = limits.back().warnings;
  out.tolerance_missed = std::any_of(limits.begin(), limits.end(), [](const LimitResult& limit) {
    return limit.tolerance_missed;
  });
  std::vector<double> steps;
  for (const double c : out.constants) steps.push_back(out.growing ? 1 / c : c);
  for (const ReportResult& first : limits[0].reports) {
    const auto leave_out = [&](std::string_view why) {
      out.left_out.push_back(fmt::format("{}: {}", first.name, why));
    };
    std::vector<const ReportResult*> same;
    for (const LimitResult& limit : limits)
      if (const ReportResult* r = find_report(limit.reports, first.name);
          r && r->index_names == first.index_names && words::axes_of(*r) == words::axes_of(first) &&
          !r->value.empty())
        same.push_back(r);
    if (first.method == Method::kSamples) {
      leave_out("draws of coordinates");
      continue;
    }
    if (same.size() != limits.size()) {
      leave_out(fmt::format("not of the same shape for every {}", constant));
      continue;
    }
    const Matching matching(same);
    if (matching.loops_differ())
      leave_out(fmt::format("iterations that not every {} has; 'last' is the last one of each",
                            constant));
    ExtrapolatedReport& report = out.reports.emplace_back();
    report.name = first.name;
    std::size_t undetermined = 0;
    matching.for_each([&](std::string label, const std::vector<std::size_t>& places) {
      ExtrapolatedEntry entry{std::move(label), {}, {}, {}};
      bool errors = true, finite = true;
      for (std::size_t k = 0; k < places.size(); ++k) {
        entry.values.push_back(same[k]->value[places[k]]);
        errors = errors && !same[k]->error.empty();
        finite = finite && std::isfinite(entry.values.back());
      }
      if (!finite) {
        ++undetermined;
        return;
      }
      for (std::size_t k = 0; errors && k < places.size(); ++k)
        entry.errors.push_back(same[k]->error[places[k]]);
      entry.limit = extrapolate(steps, entry.values, entry.errors, order);
      entry.power = fit_power(out.constants, entry.values, entry.errors);
      report.entries.push_back(std::move(entry));
    });
    if (undetermined > 0) leave_out(fmt::format("{} undetermined", plural(undetermined, "value")));
    if (report.entries.empty()) out.reports.pop_back();
  }
  for (const LimitResult& limit : limits)
    for (const ReportResult& r : limit.reports)
      if (!find_report(limits[0].reports, r.name) &&
          std::none_of(out.left_out.begin(), out.left_out.end(),
                       [&](const std::string& text) { return text.starts_with(r.name + ": "); }))
        out.left_out.push_back(
            fmt::format("{}: not of the same shape for every {}", r.name, constant));
  return out;
}

// ---- documents
// ----------------------------------------------------------------------------------------------

namespace {

using namespace document;

std::string label_of(const ExtrapolatedReport& report, const ExtrapolatedEntry& entry) {
  if (entry.label.empty()) return report.name;
  return fmt::format("{}{}{}", report.name, entry.label[0] == '[' ? "" : ", ", entry.label);
}

/// All, or the first, middle and last entry of each report.
std::vector<std::pair<const ExtrapolatedReport*, const ExtrapolatedEntry*>> shown(
    const ExtrapolationResult& result, bool all) {
  std::vector<std::pair<const ExtrapolatedReport*, const ExtrapolatedEntry*>> out;
  for (const ExtrapolatedReport& report : result.reports) {
    const std::size_t size = report.entries.size();
    for (std::size_t k = 0; k < size; ++k)
      if (all || size <= 3 || k == 0 || k == (size - 1) / 2 || k + 1 == size)
        out.emplace_back(&report, &report.entries[k]);
  }
  return out;
}

double total_error(const Extrapolation& x) {
  return std::hypot(x.sampling_error.value_or(0), x.extrapolation_error);
}

std::string order_text(const Extrapolation& x) {
  if (!x.order) return x.settles ? "-" : "none !";
  constexpr double kVisible = 0.005;  // of the two decimals that are shown
  const auto& [q, error] = *x.order;
  return (error < kVisible ? words::fixed(q, 2) : format_number(q, error)) +
         (x.order_agrees ? "" : " !");
}

std::string step_name(const ExtrapolationResult& result) {
  return result.growing ? "1/" + result.constant : result.constant;
}

std::vector<chart::Chart> charts_of(const ExtrapolationResult& result) {
  std::vector<chart::Chart> out;
  for (const auto& [report, entry] : shown(result, false)) {
    chart::Line values{result.texts.size() > 1 ? "limit of infinite width" : "", {}, entry->values};
    for (const double c : result.constants) values.x.push_back(result.growing ? 1 / c : c);
    values.error = entry->errors;
    const double v = entry->limit.value, e = total_error(entry->limit);
    chart::Line limit{"extrapolated", {0, values.x[0]}, {v, v}, {e, e}, chart::Line::Role::kLimit};
    chart::Plane plane{{step_name(result)}, {label_of(*report, *entry)}};
    plane.lines = {std::move(values), std::move(limit)};
    out.push_back({fmt::format("{} against {}", label_of(*report, *entry), step_name(result)), "",
                   std::move(plane)});
  }
  return out;
}

}  // namespace

Document document_of(const ExtrapolationResult& result, const ProgramInfo& program, bool all) {
  Document out;
  const std::string step = step_name(result);
  out.add(
      {Heading{1, fmt::format("{}: {} to {}", program.source.name(), result.constant,
                              result.growing ? "infinity" : "0")},
       Paragraph{words::changes(program)},
       Paragraph{{"limits of infinite width: " + words::particles(result.engine),
                  fmt::format("extrapolated: limit + a ({0})^{1:g} + b ({0})^{2:g} + .., as many "
                              "terms as there are values",
                              step, result.order, result.order + 1)}}});
  const auto entries = shown(result, all);
  std::size_t count = 0;
  for (const ExtrapolatedReport& r : result.reports) count += r.entries.size();
  constexpr Column::Align kPoint = Column::Align::kPoint;
  if (!entries.empty()) {
    Table table{{}, 2, 3}, powers{{}, 2, 3};
    for (Table* own : {&table, &powers}) own->columns.push_back({{""}, {}, Column::Align::kLeft});
    const std::size_t values = result.texts.size(), first = all || values <= 5 ? 0 : values - 4;
    for (std::size_t k = first; k < values; ++k)
      table.columns.push_back(
          {{fmt::format("{} = {}", result.constant, result.texts[k])}, {}, kPoint});
    const std::size_t found = table.columns.size();
    for (const char* heading : {"extrapolated", "sampling", "extrapolation", "order seen"})
      table.columns.push_back({{heading}, {}, kPoint});
    for (const char* heading : {"slope", "chi2/dof"})
      powers.columns.push_back({{heading}, {}, kPoint});
    for (const auto& [report, entry] : entries) {
      const Extrapolation& x = entry->limit;
      table.columns[0].cells.push_back(label_of(*report, *entry));
      for (std::size_t k = first; k < values; ++k)
        table.columns[1 + k - first].cells.push_back(
            entry->errors.empty() ? words::format_sample(entry->values[k])
                                  : format_number(entry->values[k], entry->errors[k]));
      table.columns[found].cells.push_back(format_number(x.value, total_error(x)));
      table.columns[found + 1].cells.push_back(
          x.sampling_error ? words::two_digits(*x.sampling_error, x.value) : "unknown");
      table.columns[found + 2].cells.push_back(words::two_digits(x.extrapolation_error, x.value));
      table.columns[found + 3].cells.push_back(order_text(x));
      if (!entry->power) continue;
      powers.columns[0].cells.push_back(label_of(*report, *entry));
      powers.columns[1].cells.push_back(
          format_number(entry->power->slope.value, entry->power->slope.error));
      powers.columns[2].cells.push_back(
          entry->power->chi2_per_dof ? words::two_digits(*entry->power->chi2_per_dof) : "-");
    }
    Section& section = out.add({std::move(table)});
    section.blocks.emplace_back(Paragraph{
        {"in parentheses: both errors together, as squares. sampling: of the values, taken "
         "as independent although",
         "they share the seed; extrapolation: difference from one order less, without the "
         "first value"}});
    if (entries.size() < count)
      section.blocks.emplace_back(Paragraph{{fmt::format(
          "{} of {} entries: --full shows all, --out writes them", entries.size(), count)}});
    if (!powers.columns[0].cells.empty())
      out.add({Heading{2, fmt::format("value ~ {}^slope, of what is positive", result.constant)},
               std::move(powers)});
  }
  std::size_t disagree = 0;
  for (const ExtrapolatedReport& r : result.reports)
    for (const ExtrapolatedEntry& e : r.entries) disagree += e.limit.order_agrees ? 0 : 1;
  if (disagree > 0)
    out.add({Paragraph{{fmt::format("! {} of {} entries: the last three values show another order "
                                    "than {:g}, beyond errors: the",
                                    disagree, count, result.order),
                        fmt::format("extrapolated value and its errors assume an expansion that "
                                    "they do not follow (--order; {})",
                                    result.growing ? "larger values" : "smaller values")},
                       Tone::kOpen}});
  if (!result.left_out.empty()) {
    Paragraph omitted;
    for (const std::string& text : result.left_out) omitted.lines.push_back("left out: " + text);
    out.add({std::move(omitted)});
  }
  out.add({Drawing{[&result] { return charts_of(result); }}});
  out.add({Paragraph{{fmt::format("time {:.2f} s", result.time_s)}}});
  return out;
}

std::string to_text(const ExtrapolationResult& result, const ProgramInfo& program,
                    const TextOptions& options) {
  return to_text(document_of(result, program, options.full), options);
}

}  // namespace tplimit
