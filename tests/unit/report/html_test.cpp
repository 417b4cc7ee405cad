#include "tplimit/report/html.hpp"
#include "tplimit/report/figure.hpp"

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "report/mathml.hpp"
#include "report/svg.hpp"
#include "tplimit/report/text.hpp"
#include "tplimit/report/vega.hpp"
#include "tplimit/syntax/highlight.hpp"

namespace tplimit {
namespace {

using namespace document;
using testing::HasSubstr;
using testing::Not;

/// Names of elements in the order in which they open, indented by depth; what is not closed as it
/// was opened is written into `fault`.  Scripts and styles are not looked into.
std::vector<std::string> elements(const std::string& page, std::string& fault) {
  static const std::set<std::string> kVoid{"meta", "br", "input"};
  std::vector<std::string> open, out;
  for (std::size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at)) {
    if (page.compare(at, 2, "<!") == 0) {
      ++at;
      continue;
    }
    const std::size_t end = page.find('>', at);
    if (end == std::string::npos) {
      fault += "a tag does not end; ";
      return out;
    }
    const bool closing = page[at + 1] == '/';
    const std::size_t begin = at + (closing ? 2 : 1);
    const std::string name = page.substr(begin, page.find_first_of(" />", begin) - begin);
    at = end + 1;
    if (closing) {
      if (open.empty() || open.back() != name)
        fault += "</" + name + "> closes " + (open.empty() ? "nothing" : open.back()) + "; ";
      if (!open.empty()) open.pop_back();
      continue;
    }
    out.push_back(std::string(open.size(), ' ') + name);
    if (page[end - 1] == '/' || kVoid.contains(name)) continue;
    open.push_back(name);
    if (name == "script" || name == "style") at = page.find("</" + name, at);
  }
  for (const std::string& name : open) fault += "<" + name + "> stays open; ";
  return out;
}

std::vector<std::string> ids(const std::string& page) {
  std::vector<std::string> out;
  const std::string key = " id=\"";
  for (std::size_t at = page.find(key); at != std::string::npos; at = page.find(key, at + 1))
    out.push_back(page.substr(at + key.size(), page.find('"', at + key.size()) - at - key.size()));
  return out;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t out = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++out;
  return out;
}

ReportResult loss() {
  ReportResult r;
  r.name = "loss <\"a\" & 'b'>";
  r.index_names = {"t"};
  r.index_values = {{0, 1, 2, 3}};
  r.shape = {4};
  r.value = {1, 0.5, 0.25, 0.125};
  r.error = {0, 0.1, 0.05, 0.01};
  return r;
}

ReportResult kernel(std::int64_t size, std::int64_t steps) {
  ReportResult r;
  r.name = "K";
  r.index_names = {"t"};
  r.index_values = {{}};
  for (std::int64_t t = 0; t < steps; ++t) r.index_values[0].push_back(t);
  r.shape = {steps, size, size};
  for (std::int64_t k = 0; k < steps * size * size; ++k)
    r.value.push_back(static_cast<double>(k % 7));
  r.error.assign(r.value.size(), 0.01);
  return r;
}

LimitResult limit_of(std::vector<ReportResult> reports) {
  LimitResult out;
  out.reports = std::move(reports);
  return out;
}

ProgramInfo program() {
  ProgramInfo out;
  out.source = Source("a<b>.tp", "width n  # \"comment\" <&>\nconst a = 1.5\n");
  return out;
}

std::string page_of(const LimitResult& limit) {
  Document page = document_of(limit, program());
  page.append(provenance(program(), {{"command line", "tplimit run 'a<b>.tp'"}}, "warning: x < y"));
  return to_html(page);
}

TEST(Html, IsWellFormedAndHasUniqueIds) {
  const LimitResult limit = limit_of({loss(), kernel(4, 3), loss()});
  const std::string page = page_of(limit);
  std::string fault;
  elements(page, fault);
  EXPECT_EQ(fault, "");
  const std::vector<std::string> all = ids(page);
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), all.size());
  EXPECT_GE(all.size(), 6u);
}

TEST(Html, EscapesNames) {
  const LimitResult limit = limit_of({loss()});
  const std::string page = page_of(limit);
  EXPECT_THAT(page, HasSubstr("loss &lt;&quot;a&quot; &amp; &#39;b&#39;&gt;"));
  EXPECT_THAT(page, Not(HasSubstr("<\"a\"")));
  EXPECT_THAT(page, HasSubstr("<title>a&lt;b&gt;.tp: "));
  EXPECT_THAT(page, HasSubstr("\\u003c"));  // in the data of the chart
}

TEST(Html, NeedsNoOtherFile) {
  const LimitResult limit = limit_of({loss(), kernel(4, 3)});
  const std::string page = page_of(limit);
  for (const char* outside : {"http:", "https:", "src=", "<link", "@import"})
    EXPECT_THAT(page, Not(HasSubstr(outside)));
}

TEST(Html, HasTheStructureOfItsDocument) {
  const LimitResult limit = limit_of({loss()});
  std::string fault;
  std::string outline;
  for (const std::string& name : elements(page_of(limit), fault)) {
    const std::size_t depth = name.find_first_not_of(' ');
    constexpr std::size_t kDeepest = 5;  // what is inside drawings and tables is left out
    if (depth <= kDeepest) outline += name + "\n";
  }
  EXPECT_EQ(outline, R"(html
 head
  meta
  meta
  meta
  title
  style
 body
  main
   h1
   nav
    ol
     li
     li
     li
     li
   section
    h2
     small
    details
     summary
     div
    figure
     figcaption
     svg
     p
     script
   section
    p
   section
    h2
    pre
   section
    h2
    div
     table
   section
    h2
     small
    pre
     span
     span
     span
     span
  script
)");
}

TEST(Html, DrawsEveryPointWithItsError) {
  const LimitResult limit = limit_of({loss()});
  const std::string page = page_of(limit);
  const std::size_t begin = page.find("<figure");
  const std::string figure = page.substr(begin, page.find("</figure>") - begin);
  EXPECT_EQ(count(figure, "<circle"), 4u);
  EXPECT_EQ(count(figure, "class=\"band"), 1u);
  const std::size_t open = figure.find("json\">") + 6;
  const auto data = nlohmann::json::parse(figure.substr(open, figure.find("</script>") - open));
  EXPECT_EQ(data["lines"][0]["y"], (std::vector<double>{1, 0.5, 0.25, 0.125}));
  EXPECT_EQ(data["lines"][0]["error"], (std::vector<double>{0, 0.1, 0.05, 0.01}));
}

TEST(Html, BinsLargeMatricesAndSaysSo) {
  const LimitResult limit = limit_of({kernel(1000, 2)});
  const std::string page = page_of(limit);
  EXPECT_LT(page.size(), 1'000'000u);
  EXPECT_THAT(page, HasSubstr("Each cell is the mean of 25 x 25 entries of 1000 x 1000."));
  EXPECT_THAT(page, HasSubstr("--out writes all numbers"));
  const std::size_t begin = page.find("<figure");
  const std::string figure = page.substr(begin, page.find("</figure>") - begin);
  const std::size_t open = figure.find("json\">") + 6;
  const auto data = nlohmann::json::parse(figure.substr(open, figure.find("</script>") - open));
  ASSERT_EQ(data["values"].size(), 2u);
  ASSERT_EQ(data["values"][0].size(), 1600u);
  double sum = 0;  // of rows 0..24, columns 25..49
  for (int i = 0; i < 25; ++i)
    for (int j = 25; j < 50; ++j) sum += (i * 1000 + j) % 7;
  EXPECT_NEAR(data["values"][0][1].get<double>(), sum / 625, 1e-5);
}

TEST(Html, ShowsUndeterminedNumbersAsGaps) {
  ReportResult r = loss();
  r.value[1] = NAN;
  const LimitResult limit = limit_of({r});
  const std::string page = page_of(limit);
  EXPECT_THAT(page, HasSubstr("undetermined"));
  EXPECT_THAT(page, HasSubstr("\"y\":[1.0,null,0.25,0.125]"));
}

TEST(Html, DrawsEqualNumbersAndIterationsOfOne) {
  ReportResult equal = loss(), one = loss();
  equal.value = {2, 2, 2, 2};
  equal.error.clear();
  one.index_values = {{7}};
  one.shape = {1};
  one.value = {3};
  one.error = {0};
  const LimitResult limit = limit_of({equal, one});
  const std::string page = page_of(limit);
  EXPECT_THAT(page.substr(page.find("<main")), Not(HasSubstr("nan")));
  EXPECT_EQ(count(page, "<figure"), 1u);  // a single number needs no chart
}

TEST(Html, DrawsHistogramsAsDensities) {
  ReportResult r;
  r.name = "h";
  r.shape = {4};
  r.value = {0.1, 0.4, 0.4, 0.1};
  r.error = {0, 0, 0, 0};
  ProgramInfo own = program();
  own.forms = {{false, Bins{-1, 1}}};
  const LimitResult limit = limit_of({r});
  const std::string page = to_html(document_of(limit, own));
  EXPECT_THAT(page, HasSubstr("\"heights\":[0.2,0.8,0.8,0.2]"));
}

// ---- comparisons
// -----------------------------------------------------------------------------------

/// Widths 16 and 64 whose runs deviate from the limit by 1/sqrt(width).
Comparison comparison(const ReportResult& limit) {
  std::vector<SimulationResult> networks;
  for (const std::int64_t width : {16, 64}) {
    SimulationResult own;
    own.width = width;
    own.seeds = 4;
    own.reports = {limit};
    own.runs.resize(1);
    for (const double sign : {-1.0, 1.0, -0.5, 0.5}) {
      std::vector<double> run = limit.value;
      for (std::size_t k = 0; k < run.size(); ++k)
        run[k] +=
            sign * (1 + 0.1 * static_cast<double>(k % 3)) / std::sqrt(static_cast<double>(width));
      own.runs[0].push_back(std::move(run));
    }
    networks.push_back(std::move(own));
  }
  LimitResult out = limit_of({limit});
  out.engine.randomisations = 8;
  return compare(std::move(out), std::move(networks));
}

TEST(Html, SetsWidthsAroundADashedLimit) {
  const Comparison all = comparison(loss());
  const std::string page = to_html(document_of(all, program()));
  std::string fault;
  elements(page, fault);
  EXPECT_EQ(fault, "");
  EXPECT_THAT(page, HasSubstr("class=\"line limit\""));
  EXPECT_THAT(page, HasSubstr("width 16"));
  EXPECT_THAT(page, HasSubstr("slope -0.5 expected"));
  EXPECT_THAT(page, HasSubstr("\"log\":[true,true]"));
}

TEST(Html, ShowsHowFarTheWidestNetworksAreFromTheLimitsMatrix) {
  const Comparison all = comparison(kernel(4, 3));
  const std::string page = to_html(document_of(all, program()));
  EXPECT_THAT(page, HasSubstr("K: mean at width 64 less the limit"));
  EXPECT_EQ(count(page, "type=\"range\""), 2u);
}

// ---- formulas and programs
// -------------------------------------------------------------------------

TEST(MathMl, HasScriptsFractionsAndNames) {
  EXPECT_EQ(mathml("x^{2}_{ij}"),
            "<math><mrow><msubsup><mi>x</mi><mrow><mrow><mi>i</mi><mi>j</mi></mrow></mrow><mrow>"
            "<mrow><mn>2</mn></mrow></mrow></msubsup></mrow></math>");
  EXPECT_THAT(mathml("\\tfrac{1}{2}"), HasSubstr("<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn>"));
  EXPECT_THAT(mathml("\\operatorname{leaky\\_relu}"), HasSubstr(">leaky_relu</mi>"));
  EXPECT_THAT(mathml("\\tanh'\\left(x\\right)"), HasSubstr(">tanh</mi><mrow><mo>′</mo></mrow>"));
  EXPECT_THAT(mathml("a < b"), HasSubstr("<mo>&lt;</mo>"));
}

TEST(MathMl, OfBrokenTextIsWellFormed) {
  for (const char* text :
       {"{", "}", "\\", "x^", "\\frac{a", "\\left", "a}b", "\\text{", "\\hat", "_"}) {
    std::string fault;
    elements(mathml(text), fault);
    EXPECT_EQ(fault, "") << text;
  }
}

TEST(Highlight, KeepsEveryByte) {
  const std::string text = "for t in 0..2 { x = \"s\" }  # c\n\xff \"open";
  std::string whole;
  std::vector<Highlight> kinds;
  for (const Highlighted& part : highlight(text)) {
    whole += text.substr(part.span.begin, part.span.end - part.span.begin);
    kinds.push_back(part.kind);
  }
  EXPECT_EQ(whole, text);
  EXPECT_EQ(kinds.front(), Highlight::kKeyword);
  EXPECT_THAT(kinds, testing::Contains(Highlight::kComment));
}

// ---- Vega-Lite and terminals
// -----------------------------------------------------------------------

TEST(VegaLite, HasAllChartsWithTheirData) {
  const LimitResult limit = limit_of({loss(), kernel(4, 3)});
  const auto json = nlohmann::json::parse(to_vega_lite(document_of(limit, program())));
  ASSERT_EQ(json["vconcat"].size(), 2u);
  const auto& line = json["vconcat"][0]["layer"][0];
  EXPECT_EQ(line["data"]["values"].size(), 4u);
  EXPECT_EQ(line["data"]["values"][1]["y"], 0.5);
  EXPECT_EQ(json["vconcat"][1]["data"]["values"].size(), 48u);
  EXPECT_EQ(json["params"][0]["name"], "frame1");
  EXPECT_EQ(json["params"][0]["bind"]["max"], 2);
}

TEST(Figure, HasAllChartsAndNeedsNoBrowser) {
  const LimitResult limit = limit_of({loss(), kernel(4, 3)});
  const std::string figure = to_svg(document_of(limit, program()));
  const auto count = [&](const std::string& part) {
    std::size_t out = 0;
    for (std::size_t at = 0; (at = figure.find(part, at)) != std::string::npos; ++at) ++out;
    return out;
  };
  EXPECT_EQ(count("xmlns"), 1u);
  EXPECT_EQ(count("<svg"), count("</svg>"));
  EXPECT_EQ(count("<path class=\"line s0\""), 1u);
  EXPECT_EQ(count("class=\"cells\""), 1u);  // of three frames the last
  EXPECT_THAT(figure, HasSubstr(">t = 2</text>"));
  EXPECT_THAT(figure, Not(HasSubstr("var(")));
  EXPECT_THAT(figure, HasSubstr(".s0 { stroke: #0072b2;"));
}

TEST(Drawing, TicksTellNumbersApartThatDifferInTheirNinthDigit) {
  const auto axes = [](std::vector<double> y) {
    chart::Plane plane{{"t"}, {"loss"}};
    std::vector<double> x;
    for (std::size_t k = 0; k < y.size(); ++k) x.push_back(static_cast<double>(k));
    plane.lines = {{"limit", x, std::move(y)}};
    return svg::drawing(plane, "");
  };
  EXPECT_THAT(axes({0.1, 0.2, 0.3}), AllOf(HasSubstr(">0.25</text>"), HasSubstr(">loss</text>")));
  // Six digits are enough, ..
  EXPECT_THAT(axes({0.50001, 0.50003, 0.50005}),
              AllOf(HasSubstr(">0.50002</text>"), HasSubstr(">loss</text>")));
  // .. or numbers stand beside one of them.
  EXPECT_THAT(axes({0.5, 0.500000001, 0.500000003}),
              AllOf(HasSubstr(">1e-09</text>"), HasSubstr(">loss - 0.50000000")));
  EXPECT_THAT(axes({-0.5, -0.500000001, -0.500000003}), HasSubstr(">loss + 0.50000000"));
}

TEST(Text, HasSparklinesAndColoursOnTerminalsOnly) {
  const LimitResult limit = limit_of({loss()});
  const std::string plain = to_text(limit, program());
  EXPECT_THAT(plain, Not(HasSubstr("█")));
  TextOptions terminal;
  terminal.sparklines = terminal.colours = true;
  EXPECT_THAT(to_text(limit, program(), terminal), HasSubstr("    █▄▂▁\n"));
  const Comparison all = comparison(loss());
  EXPECT_THAT(to_text(all, program()), Not(HasSubstr("\033")));
  EXPECT_THAT(to_text(all, program(), terminal), HasSubstr("\033[0m\n"));
}

}  // namespace
}  // namespace tplimit
