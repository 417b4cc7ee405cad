#include "tplimit/report/regime.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include "report/json_value.hpp"
#include "tplimit/report/json.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit {
namespace {

using namespace document;
using Row = std::vector<std::string>;

/// The first row has the headings.
Table table(const std::vector<Row>& rows) {
  Table out;
  for (std::size_t k = 0; k < rows[0].size(); ++k) {
    Column& column = out.columns.emplace_back();
    column.headings = {rows[0][k]};
    for (std::size_t row = 1; row < rows.size(); ++row) column.cells.push_back(rows[row][k]);
  }
  return out;
}

/// factor n^power as in a declaration.
std::string power_text(double factor, Exponent power, const std::string& width) {
  const std::string p = power_of_width(power, width);
  if (factor == 1) return p;
  return power == 0 ? fmt::format("{:g}", factor) : fmt::format("{:g} {}", factor, p);
}

std::string verdict(const RegimeReport& r) {
  switch (r.regime) {
    case Regime::kUntrained: return "";
    case Regime::kUnstable: return "unstable";
    case Regime::kTrivial:
      return "trivial: stable, but the output does not move as the width grows";
    case Regime::kKernel:
      return "kernel regime: stable, the output moves by order 1, but no feature does";
    case Regime::kFeatures:
      return r.maximal ? "feature learning, and every update moves its layer by order 1"
                       : "feature learning: stable, output and features move by order 1";
  }
  return "";
}

}  // namespace

Document document_of(const LeadingOrder& limit, const std::vector<ReportMethod>& methods,
                     const Source& source) {
  Column names{{"report"}, {}}, numbers{{"numbers"}, {}, Column::Align::kRight, 8},
      how{{"method"}, {}, Column::Align::kLeft, 11}, orders{{"order"}, {}};
  for (std::size_t k = 0; k < limit.reports.size(); ++k) {
    const ReportOrder& report = limit.reports[k];
    std::int64_t count = 0;
    for (const auto& entry : limit.program.reports.at(k).entries)
      count += ir::size_of(limit.program[entry.value].type.dims);
    names.cells.push_back(report.name);
    numbers.cells.push_back(fmt::format("{}", count));
    how.cells.emplace_back(to_string(methods[k].method));
    orders.cells.push_back(report.proved_zero ? "0      proved to be exactly 0 in the limit"
                           : report.order < 0 ? fmt::format("{:<6} vanishes: the limit is 0",
                                                            power_of_width(report.order))
                                              : power_of_width(report.order));
  }
  Document out;
  out.add({Table{{std::move(names), std::move(numbers), std::move(how), std::move(orders)}, 0, 3}});
  for (std::size_t k = 0; k < limit.reports.size(); ++k) {
    const ReportMethod& m = methods[k];
    if (m.why.empty()) continue;
    const Location where = source.locate(m.culprit.begin);
    out.add({Paragraph{
        {fmt::format("{}: {}, for {}:{}:{}{}: {}", limit.reports[k].name, to_string(m.method),
                     source.part_at(m.culprit.begin).name, where.line, where.column,
                     m.iteration.empty() ? "" : " (" + m.iteration + ")", m.why)}}});
  }
  return out;
}

namespace {

std::string size_of(const std::optional<Exponent>& e, const ir::Program& program) {
  return e ? power_of_width(*e, program.width_name) : std::string("-");
}

/// As many steps as the sizes keep changing from step to step.
std::size_t steps_shown(const RegimeReport& report) {
  std::size_t steps = 0;
  for (const Feature& f : report.features)
    for (std::size_t t = 1; t < f.steps.size(); ++t)
      if (t == 1 || f.steps[t].change != f.steps[t - 1].change ||
          f.steps[t].by_variable != f.steps[t - 1].by_variable)
        steps = std::max(steps, t);
  constexpr std::size_t kMostSteps = 6;
  return std::min(steps, kMostSteps);
}

/// Size of each value at the start, of its change at each step, and by which parameters.
std::vector<Row> changes_of_values(const RegimeReport& report, const ir::Program& program) {
  const std::size_t steps = steps_shown(report);
  std::vector<std::uint32_t> trained;
  for (const VariableEffect& e : report.effects)
    if (program.variables[e.variable].trained) trained.push_back(e.variable);
  const bool attributed = steps > 0 && std::ssize(trained) <= kFewVariables &&
                          !report.features[0].steps[0].by_variable.empty();

  std::vector<Row> rows{{"value", "start"}};
  for (std::size_t t = 1; t <= steps; ++t)
    rows[0].push_back(fmt::format("{}{}{}", t == 1 ? "change: " : "", t,
                                  t == steps && static_cast<int>(t) < report.steps ? ".." : ""));
  if (attributed)
    for (const std::uint32_t v : trained) rows[0].push_back("by " + program.variables[v].name);
  for (const Feature& f : report.features) {
    if (f.steps.empty()) continue;
    rows.push_back({f.name, size_of(f.steps[0].value, program)});
    const auto at = [&](std::size_t t) -> const StepSize& {
      return f.steps[std::min(t, f.steps.size() - 1)];
    };
    for (std::size_t t = 1; t <= steps; ++t)
      rows.back().push_back(f.steps.size() > t || t > 1 ? size_of(at(t).change, program) : "");
    if (attributed)
      for (const std::uint32_t v : trained)
        rows.back().push_back(size_of(at(steps).by_variable[v], program));
  }
  return rows;
}

std::vector<Row> updates_of_parameters(const RegimeReport& report, const ir::Program& program,
                                       const Source& source) {
  std::vector<Row> rows{{"parameter", "used in", "size", "update", ""}};
  for (const VariableEffect& e : report.effects) {
    const ir::Variable& v = program.variables[e.variable];
    const std::string what = !v.trained       ? "not trained"
                             : !e.update      ? "never updated"
                             : *e.update == 0 ? "maximal"
                             : *e.update < 0  ? "vanishes"
                                              : "explodes";
    std::string text = canonical_text(source, e.span);
    if (text.size() > 40) text = fmt::format("line {}", source.locate(e.span.begin).line);
    rows.push_back({v.name, text, size_of(e.initial, program),
                    v.trained ? size_of(e.update, program) : "", what});
  }
  return rows;
}

/// Variances and rates to use instead; the same change of all matrices of an array is one line.
std::vector<std::string> advice(const RegimeReport& report, const ir::Program& program) {
  const std::string& width = program.width_name;
  std::vector<std::string> said;
  for (const Fix& fix : report.fixes) {
    const ir::Variable& v = program.variables[fix.variable];
    const std::string name = v.name.substr(0, v.name.find_first_of("[."));
    std::string line = fmt::format("param {}: use ", name);
    if (fix.initial != 0)
      line += fmt::format("variance {} instead of {}",
                          power_text(v.variance_factor, *v.variance + 2 * fix.initial, width),
                          power_text(v.variance_factor, *v.variance, width));
    if (fix.initial != 0 && (fix.rate != 0 || fix.decay != 0)) line += ", ";
    if (fix.rate != 0) {
      if (v.rate)
        line += fmt::format("lr = {} instead of {}",
                            power_text(v.rate_factor, *v.rate + fix.rate, width),
                            power_text(v.rate_factor, *v.rate, width));
      else
        line += fmt::format("lr times {}", power_of_width(fix.rate, width));
    }
    if (fix.rate != 0 && fix.decay != 0) line += ", ";
    if (fix.decay != 0)
      line += fmt::format("weight_decay times {}", power_of_width(fix.decay, width));
    if (std::find(said.begin(), said.end(), line) == said.end()) said.push_back(line);
  }
  return said;
}

}  // namespace

Document document_of(const RegimeReport& report, const ir::Program& program, const Source& source) {
  Document out;
  if (std::vector<Row> rows = changes_of_values(report, program); rows.size() > 1)
    out.add({table(rows)});
  if (report.regime == Regime::kUntrained) return out;
  if (std::vector<Row> rows = updates_of_parameters(report, program, source); rows.size() > 1)
    out.add({table(rows)});
  if (report.gaussian_start)
    out.add(
        {Paragraph{{"The output is random (Gaussian) at the start, not a constant: its limit "
                    "is conditional on its value."}}});
  const Tone tone = report.regime == Regime::kFeatures   ? Tone::kGood
                    : report.regime == Regime::kUnstable ? Tone::kBad
                                                         : Tone::kOpen;
  out.add({Paragraph{{fmt::format("verdict: {}", verdict(report))}, tone}});
  if (std::vector<std::string> lines = advice(report, program); !lines.empty())
    out.add({Paragraph{{"muP needs"}}, Items{std::move(lines)}});
  return out;
}

namespace {

Json to_json(const DepthCheck& check) {
  const DepthVerdict found = tplimit::verdict(check);
  const auto answer = [](const std::optional<DepthVerdict::Answer>& a) {
    return a ? Json(to_string(*a)) : Json(nullptr);
  };
  Json sizes = Json::array();
  for (const DepthSize& s : check.sizes) {
    Json values = Json::array();
    for (const auto& e : s.sizes)
      values.push_back(e ? Json{{"value", e->value}, {"stderr", e->error}} : Json(nullptr));
    const std::optional<Exponent> simple = s.simple();
    sizes.push_back({{"name", s.name},
                     {"output", s.output},
                     {"step", s.step},
                     {"sizes", std::move(values)},
                     {"slope", s.power && !s.power->faster
                                   ? Json{{"value", s.power->value},
                                          {"sampling_error", s.power->sampling_error},
                                          {"extrapolation_error", s.power->extrapolation_error}}
                                   : Json(nullptr)},
                     {"power", simple ? Json(to_double(*simple)) : Json(nullptr)},
                     {"growth", to_string(s.growth())}});
  }
  return {{"name", check.depth},
          {"depths", check.depths},
          {"steps", check.steps},
          {"stable", answer(found.stable)},
          {"nontrivial", answer(found.nontrivial)},
          {"faithful", answer(found.faithful)},
          {"diverse", answer(found.diverse)},
          {"advice", found.advice},
          {"sizes", std::move(sizes)}};
}

}  // namespace

std::string to_json(const RegimeReport& report, const ir::Program& program, const ProgramInfo& info,
                    const DepthCheck* depth) {
  const Source& source = info.source;
  const auto power = [](const std::optional<Exponent>& e) {
    return e ? Json(to_double(*e)) : Json(nullptr);
  };
  Json features = Json::array(), parameters = Json::array(), reports = Json::array(),
       fixes = Json::array();
  for (const Feature& f : report.features) {
    Json steps = Json::array();
    for (const StepSize& s : f.steps) {
      Json by = Json::object();
      for (std::size_t v = 0; v < s.by_variable.size(); ++v)
        if (program.variables[v].trained) by[program.variables[v].name] = power(s.by_variable[v]);
      steps.push_back(
          {{"size", power(s.value)}, {"change", power(s.change)}, {"by", std::move(by)}});
    }
    features.push_back({{"name", f.name},
                        {"line", source.locate(f.span.begin).line},
                        {"output", f.prediction},
                        {"steps", std::move(steps)}});
  }
  for (const VariableEffect& e : report.effects) {
    const ir::Variable& v = program.variables[e.variable];
    parameters.push_back({{"name", v.name},
                          {"role", v.role},
                          {"trained", v.trained},
                          {"size", power(e.initial)},
                          {"update", power(e.update)},
                          {"entry", power(e.entry)},
                          {"maximal", e.maximal()}});
  }
  for (std::size_t k = 0; k < report.reports.size(); ++k)
    reports.push_back({{"name", program.reports[k].name}, {"order", power(report.reports[k])}});
  for (const Fix& f : report.fixes)
    fixes.push_back({{"name", program.variables[f.variable].name},
                     {"variance", to_double(2 * f.initial)},
                     {"rate", to_double(f.rate)},
                     {"weight_decay", to_double(f.decay)}});
  Json out{{"file", source.name()},
           {"regime", to_string(report.regime)},
           {"maximal", report.maximal},
           {"random_start", report.gaussian_start},
           {"steps", report.steps}};
  out["unstable"] = report.unstable
                        ? Json{{"message", report.unstable->message},
                               {"label", report.unstable->label},
                               {"line", source.locate(report.unstable->span.begin).line}}
                        : Json(nullptr);
  out["features"] = std::move(features);
  out["parameters"] = std::move(parameters);
  out["reports"] = std::move(reports);
  out["fixes"] = std::move(fixes);
  if (depth) out["depth"] = to_json(*depth);
  return with_header(info, out.dump(2) + "\n");
}

namespace {

/// Where W = n^-a w, w ~ n^-b, rate n^-c: as powers of n.  (0, b, c) -> (t, b - t, c - 2 t), of
/// Adam c - t.
struct Powers {
  Exponent multiplier, variance, sgd;
  std::optional<Exponent> adam;

  Powers(const ir::Variable& v, const std::optional<Exponent>& entry, Exponent t)
      : multiplier(-t), variance(*v.variance + 2 * t), sgd(*v.rate + 2 * t) {
    if (entry) adam = *entry + t;
  }
};

/// Variables with a plain variance and rate that are trained.
std::vector<const VariableEffect*> plain(const RegimeReport& report, const ir::Program& program) {
  std::vector<const VariableEffect*> out;
  for (const VariableEffect& e : report.effects) {
    const ir::Variable& v = program.variables[e.variable];
    if (v.trained && v.variance && v.rate) out.push_back(&e);
  }
  return out;
}

}  // namespace

Document parametrizations(const RegimeReport& report, const ir::Program& program,
                          const std::optional<BaseWidth>& base) {
  const std::string& width = program.width_name;
  Document out;
  struct Form {
    const char* title;
    Exponent (*shift)(Exponent b, Exponent c);
  };
  const Form forms[]{
      {"multiplier 1", [](Exponent, Exponent) { return Exponent(0); }},
      {"variance without powers of the width", [](Exponent b, Exponent) { return b; }},
      {"SGD rate without powers of the width", [](Exponent, Exponent c) { return c / 2; }}};
  const std::vector<const VariableEffect*> effects = plain(report, program);
  // Sizes behind the first step after which something grows mean nothing.
  const auto entry_of = [&](const VariableEffect& e) {
    return report.unstable ? std::nullopt : e.entry;
  };
  for (const Form& form : forms) {
    std::vector<Row> rows{{"parameter", "role", "multiplier", "variance", "SGD rate", "Adam rate"}};
    for (const VariableEffect* e : effects) {
      const ir::Variable& v = program.variables[e->variable];
      const Powers p(v, entry_of(*e), form.shift(-*v.variance / 2, -*v.rate));
      rows.push_back({v.name, v.role, power_of_width(p.multiplier, width),
                      power_text(v.variance_factor, p.variance, width),
                      power_text(v.rate_factor, p.sgd, width),
                      p.adam ? power_of_width(*p.adam, width) : "-"});
    }
    if (rows.size() > 1) out.add({Heading{2, form.title}, table(rows)});
  }
  if (base && !effects.empty()) {
    const double ratio = static_cast<double>(base->width) / static_cast<double>(base->base);
    const auto factor = [&](Exponent power) {
      return fmt::format("{:.6g}", std::pow(ratio, to_double(power)));
    };
    std::vector<Row> rows{{"parameter", "standard deviation", "SGD rate", "Adam rate"}};
    for (const VariableEffect* e : effects) {
      const ir::Variable& v = program.variables[e->variable];
      const Powers p(v, entry_of(*e), 0);
      rows.push_back(
          {v.name, factor(p.variance / 2), factor(p.sgd), p.adam ? factor(*p.adam) : "-"});
    }
    out.add({Heading{2, fmt::format("width {}: factors on what is right at width {}", base->width,
                                    base->base)},
             table(rows),
             Paragraph{{"Multipliers are those of the program: where it divides by n, so does the "
                        "wider network."}}});
  }
  out.add({Paragraph{{out.sections.empty()
                          ? "no parameter with a plain variance and rate is trained"
                          : "Rates are factors of the base rate. Adam: the rate that makes updates "
                            "as large as those of SGD, entry by entry."}}});
  return out;
}

}  // namespace tplimit
