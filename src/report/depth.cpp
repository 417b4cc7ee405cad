#include "tplimit/report/depth.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "report/words.hpp"
#include "tplimit/report/numbers.hpp"

namespace tplimit {

using namespace document;
using Answer = DepthVerdict::Answer;

namespace {
constexpr double kPowerErrors = 2, kCorrections = 0.02;  // of powers: corrections of other orders
constexpr double kNoSize = 1e-12;                        // of sizes that are 0
constexpr std::int64_t kParts = 4;  // 1/4, the smallest step between powers in use
constexpr double kHalfPart = 0.5 / kParts;

double allowed_error(const LimitingPower& power) {
  return kPowerErrors * power.error() + kCorrections;
}
}  // namespace

std::optional<Exponent> DepthSize::simple() const {
  if (!power || power->faster) return std::nullopt;
  const double allowed = allowed_error(*power), nearest = std::round(power->value * kParts);
  if (allowed >= kHalfPart || std::abs(power->value - nearest / kParts) > allowed)
    return std::nullopt;
  return Exponent(static_cast<std::int64_t>(nearest), kParts);
}

DepthGrowth DepthSize::growth() const {
  if (!sizes.empty() && std::all_of(sizes.begin(), sizes.end(), [](const auto& e) {
        return e && std::abs(e->value) <= 3 * e->error + kNoSize;
      }))
    return DepthGrowth::kZero;
  if (const std::optional<Exponent> p = simple())
    return *p == 0 ? DepthGrowth::kBounded : *p > 0 ? DepthGrowth::kGrows : DepthGrowth::kVanishes;
  if (!power || (!power->faster && std::abs(power->value) - allowed_error(*power) < kHalfPart))
    return DepthGrowth::kUndetermined;
  return power->value > 0 ? DepthGrowth::kGrows : DepthGrowth::kVanishes;
}

const char* to_string(DepthGrowth growth) {
  switch (growth) {
    case DepthGrowth::kZero: return "zero";
    case DepthGrowth::kVanishes: return "vanishes";
    case DepthGrowth::kBounded: return "bounded";
    case DepthGrowth::kGrows: return "grows";
    case DepthGrowth::kUndetermined: return "undetermined";
  }
  return "";
}

const char* to_string(Answer answer) {
  switch (answer) {
    case Answer::kNo: return "no";
    case Answer::kYes: return "yes";
    case Answer::kOpen: return "undetermined";
  }
  return "";
}

namespace {

/// A share, too: beside larger terms it shows in a value only where the depth is large.
bool is_value(const DepthSize& s) {
  return s.what == DepthQuantity::kValue || s.what == DepthQuantity::kChange ||
         s.what == DepthQuantity::kShare;
}

/// Whether every one of these sizes is none of `bad`; nothing where there are none.
template <class Of>
std::optional<Answer> none_is(const std::vector<DepthSize>& sizes, Of of,
                              std::initializer_list<DepthGrowth> bad) {
  std::optional<Answer> out;
  for (const DepthSize& s : sizes) {
    if (!of(s)) continue;
    const DepthGrowth g = s.growth();
    if (std::find(bad.begin(), bad.end(), g) != bad.end()) return Answer::kNo;
    if (!out || g == DepthGrowth::kUndetermined)
      out = g == DepthGrowth::kUndetermined ? Answer::kOpen : Answer::kYes;
  }
  return out;
}

/// Where layers should be, from what the blocks do: a step of L^(-1/2) of the size.
void advise_on_blocks(const DepthCheck& check, std::vector<std::string>& advice) {
  for (const DepthSize& s : check.sizes) {
    const std::optional<Exponent> p = s.what == DepthQuantity::kBlock ? s.simple() : std::nullopt;
    if (!p || *p == Exponent(-1, 2)) continue;
    advice.push_back(fmt::format("{}: what a layer adds times {}; then check again, for rates",
                                 s.subject, power_of_width(Exponent(-1, 2) - *p, check.depth)));
  }
}

/// The rate with which the share of a parameter in outputs has size 1, to first order in it: by the
/// first step at which it has one.
void advise_on_rates(const DepthCheck& check, std::vector<std::string>& advice) {
  std::vector<std::string> known;
  for (const DepthSize& s : check.sizes) {
    if (s.what != DepthQuantity::kShare || s.growth() == DepthGrowth::kZero ||
        std::find(known.begin(), known.end(), s.subject) != known.end())
      continue;
    known.push_back(s.subject);
    if (const std::optional<Exponent> p = s.simple(); p && *p != 0)
      advice.push_back(
          fmt::format("param {}: lr times {}", s.subject, power_of_width(-*p, check.depth)));
  }
}

std::string power_text(const DepthSize& s, const std::string& depth) {
  if (s.growth() == DepthGrowth::kZero) return "0";
  if (const auto p = s.simple()) return power_of_width(*p, depth);
  if (s.power && s.power->faster)
    return s.power->last > 0 ? "grows faster than powers" : "vanishes faster than powers";
  return to_string(s.growth());
}

std::string slope_text(const DepthSize& s) {
  if (!s.power || s.growth() == DepthGrowth::kZero) return "";
  constexpr double kVisible = 0.005;  // of the two decimals that are shown
  const LimitingPower& p = *s.power;
  if (p.faster) return words::fixed(p.last, 2);
  return p.error() < kVisible ? words::fixed(p.value, 2) : format_number(p.value, p.error());
}

}  // namespace

DepthVerdict verdict(const DepthCheck& check) {
  DepthVerdict out;
  using enum DepthGrowth;
  out.stable = none_is(check.sizes, is_value, {kGrows}).value_or(Answer::kOpen);
  const auto start = [](const DepthSize& s) { return s.what == DepthQuantity::kValue; };
  const auto update = [](const DepthSize& s) { return s.what == DepthQuantity::kUpdate; };
  for (const DepthSize& s : check.sizes) {
    if (s.what != DepthQuantity::kChange || !s.output) continue;
    const DepthGrowth g = s.growth();
    if (g == kBounded || g == kGrows) out.nontrivial = Answer::kYes;
    if (out.nontrivial == Answer::kYes) break;
    if (g == kUndetermined || !out.nontrivial)
      out.nontrivial = g == kUndetermined ? Answer::kOpen : Answer::kNo;
  }
  if ((out.faithful = none_is(check.sizes, update, {kGrows}))) {
    const auto features =
        none_is(check.sizes, [&](const DepthSize& s) { return start(s) && !s.output; },
                {kGrows, kVanishes});
    if (features && *features != Answer::kYes && *out.faithful == Answer::kYes)
      out.faithful = features;
  }
  const auto along = [](const DepthSize& s) { return s.what == DepthQuantity::kAlong; };
  out.diverse = none_is(check.sizes, along, {kVanishes});
  const std::optional<Answer> at_start = none_is(check.sizes, start, {kGrows});
  if (at_start == Answer::kNo || out.diverse == Answer::kNo)
    advise_on_blocks(check, out.advice);
  else if (at_start == Answer::kYes)
    advise_on_rates(check, out.advice);
  return out;
}

Document document_of(const DepthCheck& check) {
  Document out;
  out.add({Heading{2, fmt::format("powers of {}", check.depth)},
           Paragraph{{"root mean squares over coordinates, samples and layers, in the limit of "
                      "infinite width"}}});
  constexpr Column::Align kPoint = Column::Align::kPoint;
  Column names{{"value"}, {}}, steps{{"after"}, {}, Column::Align::kRight},
      slopes{{"slope"}, {}, kPoint}, powers{{"size"}, {}};
  std::vector<Column> sizes;
  for (const std::int64_t d : check.depths)
    sizes.push_back({{fmt::format("{} = {}", check.depth, d)}, {}, kPoint});
  for (const DepthSize& s : check.sizes) {
    names.cells.push_back(s.name);
    steps.cells.push_back(s.step == 0 ? "start" : words::plural(s.step, "step"));
    for (std::size_t k = 0; k < sizes.size(); ++k)
      sizes[k].cells.push_back(
          s.sizes[k] ? s.sizes[k]->error > 0 ? format_number(s.sizes[k]->value, s.sizes[k]->error)
                                             : words::format_sample(s.sizes[k]->value)
                     : "");
    slopes.cells.push_back(slope_text(s));
    powers.cells.push_back(power_text(s, check.depth));
  }
  Table table{{std::move(names), std::move(steps)}};
  for (Column& column : sizes) table.columns.push_back(std::move(column));
  table.columns.push_back(std::move(slopes));
  table.columns.push_back(std::move(powers));
  out.add({std::move(table)});
  if (!check.missing.empty()) out.add({Paragraph{{check.missing}}});
  const DepthVerdict v = verdict(check);
  const auto say = [&](const char* what, const std::optional<Answer>& answer, const char* means) {
    return answer ? fmt::format("{} ({}): {}", what, means, to_string(*answer)) : std::string();
  };
  Paragraph said{{},
                 v.stable == Answer::kNo    ? Tone::kBad
                 : v.stable == Answer::kYes ? Tone::kGood
                                            : Tone::kOpen};
  for (std::string line :
       {say("stable", v.stable, "no value grows with the depth"),
        say("nontrivial", v.nontrivial, "outputs change by order 1"),
        say("faithful", v.faithful, "what layers compute stays of order 1"),
        say("diverse", v.diverse, "layers differ, by order 1 from the first to the last")})
    if (!line.empty()) said.lines.push_back(std::move(line));
  out.add({std::move(said)});
  if (!v.advice.empty()) out.add({Paragraph{{"to change"}}, Items{v.advice}});
  return out;
}

}  // namespace tplimit
