#include "tplimit/report/html.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <optional>

#include <fmt/format.h>
#include "report/json_value.hpp"
#include "report/mathml.hpp"
#include "report/page.hpp"
#include "report/svg.hpp"
#include "report/words.hpp"
#include "tplimit/support/overloaded.hpp"
#include "tplimit/syntax/highlight.hpp"

namespace tplimit {
namespace {

using namespace document;

constexpr std::size_t kMostRows = 120, kMostColumns = 12;  // of a series in a table
constexpr std::size_t kOpenCells = 60;  // tables of more numbers are folded where charts show them

std::string element(std::string_view name, std::string_view content, std::string_view of = "") {
  return fmt::format("<{0}{1}{2}>{3}</{0}>", name, of.empty() ? "" : " ", of, content);
}

std::string_view name_of(Tone tone) {
  switch (tone) {
    case Tone::kNone: return "";
    case Tone::kGood: return "good";
    case Tone::kOpen: return "open";
    case Tone::kBad: return "bad";
  }
  return "";
}

// ---- numbers of charts
// -----------------------------------------------------------------------------

/// To so many digits; null where it is not finite.
Json rounded(double x, int digits) {
  if (!std::isfinite(x)) return nullptr;
  return std::strtod(fmt::format("{:.{}g}", x, digits).c_str(), nullptr);
}
Json numbers(const std::vector<double>& values, int digits = 12) {
  Json out = Json::array();
  for (const double x : values) out.push_back(rounded(x, digits));
  return out;
}

Json data_of(const chart::Plane& plane) {
  const svg::Frame frame = svg::frame_of(plane);
  Json out{{"x", plane.x.title},     {"y", plane.y.title},     {"log", {plane.x.log, plane.y.log}},
           {"pixels", frame.pixels}, {"range", Json::array()}, {"lines", Json::array()},
           {"bars", Json::array()}};
  for (const double x : frame.range) out["range"].push_back(rounded(x, 12));
  for (const chart::Line& line : plane.lines) {
    if (line.role == chart::Line::Role::kExpected) continue;
    out["lines"].push_back({{"name", line.name}, {"x", numbers(line.x)}, {"y", numbers(line.y)}});
    if (!line.error.empty()) out["lines"].back()["error"] = numbers(line.error);
  }
  for (const chart::Bars& bars : plane.bars)
    out["bars"].push_back({{"name", bars.name},
                           {"low", bars.low},
                           {"high", bars.high},
                           {"heights", numbers(bars.heights)}});
  return out;
}

Json data_of(const chart::HeatMap& map) {
  const auto [low, high] = svg::range_of(map);
  constexpr int kDigits = 6;
  Json out{{"frame", map.frame_title},
           {"frames", map.frames},
           {"rows", map.rows},
           {"columns", map.columns},
           {"entries", map.entries},
           {"low", low},
           {"high", high},
           {"palette", svg::palette(map.symmetric)},
           {"values", Json::array()}};
  for (const std::vector<double>& frame : map.values)
    out["values"].push_back(numbers(frame, kDigits));
  return out;
}

/// JSON that may stand in a script element.
std::string in_script(const Json& json) {
  std::string out;
  for (const char c : json.dump(-1, ' ', false, Json::error_handler_t::replace))
    if (c == '<')
      out += "\\u003c";
    else
      out += c;
  return out;
}

// ---- blocks
// ----------------------------------------------------------------------------------------

/// 0..count-1 with the middle left out (one empty element) where there are more than `most`.
std::vector<std::optional<std::size_t>> ends(std::size_t count, std::size_t most) {
  const bool cut = count > most;
  const std::size_t tail = cut ? most / 3 : 0, head = cut ? most - tail - 1 : count;
  std::vector<std::optional<std::size_t>> out;
  for (std::size_t k = 0; k < head; ++k) out.emplace_back(k);
  if (cut) out.emplace_back(std::nullopt);
  for (std::size_t k = count - tail; k < count; ++k) out.emplace_back(k);
  return out;
}

class Page {
 public:
  std::string of(const Document& document) {
    std::string body;
    for (const Section& section : document.sections) {
      std::string own;
      drawn_ = std::any_of(section.blocks.begin(), section.blocks.end(), [](const Block& block) {
        return std::holds_alternative<Drawing>(block);
      });
      for (const Block& block : section.blocks)
        own += std::visit([&](const auto& b) { return html(b); }, block);
      if (!own.empty()) body += element("section", own) + "\n";
    }
    constexpr std::size_t kFewHeadings = 3;
    std::string contents;
    if (headings_.size() > kFewHeadings) {
      for (std::size_t k = 0; k < headings_.size(); ++k)
        contents += fmt::format("<li><a href=\"#h{}\">{}</a></li>", k, html_escaped(headings_[k]));
      contents = element("nav", element("ol", contents), "aria-label=\"Contents\"") + "\n";
    }
    return fmt::format(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta "
        "name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta "
        "name=\"generator\" "
        "content=\"tplimit\">\n<title>{}</title>\n<style>\n{}{}</style>\n</head>\n"
        "<body>\n<main>\n{}{}{}</main>\n<script>\n{}</script>\n</body>\n</html>\n",
        html_escaped(title_), page::style(), page::chart_style(), head_, contents, body,
        page::script());
  }

 private:
  std::string html(const Heading& heading) {
    std::string remarks;
    for (const std::string& remark : heading.remarks)
      remarks += " " + element("small", html_escaped(remark));
    const std::string text = html_escaped(heading.text) + remarks;
    if (heading.level == 1) {  // above the contents
      title_ = heading.text;
      head_ += element("h1", text);
      return "";
    }
    if (heading.level > 2) return element("h3", text);
    headings_.push_back(heading.text);
    return element("h2", text, fmt::format("id=\"h{}\"", headings_.size() - 1));
  }
  static std::string html(const Paragraph& paragraph) {
    std::string out;
    for (std::size_t k = 0; k < paragraph.lines.size(); ++k) {
      const std::string& line = paragraph.lines[k];
      const Tone tone = k == 0 ? paragraph.tone : Tone::kNone;
      out += element(
          "p", paragraph.has_markup ? html_with_math(line) : html_escaped(line),
          tone == Tone::kNone ? std::string() : fmt::format("class=\"verdict {}\"", name_of(tone)));
    }
    return out;
  }
  static std::string html(const Note& note) {
    return element("p", html_escaped(note.text),
                   note.tone == Tone::kNone
                       ? std::string("class=\"note\"")
                       : fmt::format("class=\"verdict {}\"", name_of(note.tone)));
  }
  std::string html(const OmissionNote&) const {
    return cut_ ? "<p class=\"note\">Tables leave out the middle of large arrays: --out writes "
                  "all numbers.</p>"
                : "";
  }
  static std::string html(const Items& items) {
    std::string out;
    for (const std::string& item : items.items) out += element("li", html_escaped(item));
    return element("ul", out);
  }
  static std::string html(const Scalars& block) {
    std::string out;
    for (const Scalars::Scalar& s : block.scalars) {
      std::string remarks;
      for (const std::string& remark : s.remarks)
        remarks += (remarks.empty() ? "" : ", ") + html_escaped(remark);
      out += element("tr", element("th", html_escaped(s.name), "scope=\"row\"") +
                               element("td", html_escaped(s.value), "class=\"number\"") +
                               element("td", remarks));
    }
    return element("table", out, "class=\"scalars\"");
  }

  static std::string table(const std::vector<Column>& columns) {
    std::string head, body;
    for (std::size_t k = 0; k < columns.at(0).headings.size(); ++k) {
      std::string row;
      for (const Column& column : columns)
        row += element("th", html_escaped(column.headings[k]), "scope=\"col\"");
      head += element("tr", row);
    }
    for (std::size_t k = 0; k < columns[0].cells.size(); ++k) {
      std::string row;
      for (const Column& column : columns)
        row += element("td", html_escaped(column.cells[k]),
                       column.align == Column::Align::kLeft ? "" : "class=\"number\"");
      body += element("tr", row);
    }
    return element("div", element("table", element("thead", head) + element("tbody", body)),
                   "class=\"wide\"");
  }
  static std::string html(const Table& block) { return table(block.columns); }

  std::string html(const Series& series) {
    const std::size_t rows = series.rows(), columns = series.columns();
    if (rows == 0 || columns == 0) return "<p>empty</p>";
    const auto shown_rows = ends(rows, kMostRows), shown_columns = ends(columns, kMostColumns);
    cut_ = cut_ || shown_rows.size() < rows || shown_columns.size() < columns;
    std::vector<Column> all;
    const std::vector<std::string> names = series.label_names();
    for (const std::string& name : names) all.push_back({{name}, {}, Column::Align::kRight});
    for (const auto& row : shown_rows) {
      const auto labels = row ? series.labels(*row) : std::vector<std::string>(names.size(), "…");
      for (std::size_t k = 0; k < names.size(); ++k) all[k].cells.push_back(labels[k]);
    }
    for (const auto& c : shown_columns) {
      Column column{{c ? series.heading(*c) : "…"}, {}, Column::Align::kPoint};
      for (const auto& row : shown_rows)
        column.cells.push_back(row && c ? series.cell(*row, *c) : "…");
      all.push_back(std::move(column));
    }
    const bool folded = drawn_ && rows * columns > kOpenCells;
    return element(
        "details",
        element("summary", series.caption.empty() ? "Numbers" : html_escaped(series.caption)) +
            table(all),
        folded ? "" : "open");
  }

  static std::string html(const Check& check) {
    const Tone tone = check.status == ExpectStatus::kPassed   ? Tone::kGood
                      : check.status == ExpectStatus::kFailed ? Tone::kBad
                                                              : Tone::kOpen;
    return element("p",
                   fmt::format("{} {}: <code>{}</code><br>{}",
                               element("b", words::word(check.status)), html_escaped(check.place),
                               html_escaped(check.text), html_escaped(check.finding)),
                   fmt::format("class=\"verdict {}\"", name_of(tone)));
  }

  static std::string html(const Formulas& block) {
    const auto math = [&](const std::string& text) {
      return block.latex ? mathml(text) : html_escaped(text);
    };
    std::string out;
    for (const Formula& formula : block.formulas) {
      std::string right;
      for (std::size_t k = 0; k < formula.terms.size(); ++k)
        right += (k > 0 ? " " : "") +
                 element("span", math(k == 0 ? leading_term(formula.terms[0]) : formula.terms[k]),
                         "class=\"term\"");
      out += element("tr", element("td", math(formula.left)) +
                               element("td", math(formula.relation)) + element("td", right) +
                               element("td", block.notes_are_markup ? html_with_math(formula.note)
                                                                    : html_escaped(formula.note)));
    }
    return element("div", element("table", out, "class=\"formulas\""), "class=\"wide\"");
  }

  std::string html(const Drawing& drawing) {
    std::string out;
    for (const chart::Chart& chart : drawing.charts()) out += html(chart);
    return out;
  }

  static std::string html(const Listing& listing) {
    if (!listing.program) return element("pre", html_escaped(listing.text));
    static constexpr std::array kClasses{"", "keyword", "literal", "string", "comment"};
    std::string out;
    for (const Highlighted& part : highlight(listing.text)) {
      const std::string text = html_escaped(
          std::string_view(listing.text).substr(part.span.begin, part.span.end - part.span.begin));
      out += part.kind == Highlight::kPlain
                 ? text
                 : element("span", text,
                           fmt::format("class=\"{}\"",
                                       kClasses.at(static_cast<std::size_t>(part.kind))));
    }
    return element("pre", out, "class=\"program\"");
  }

  // ---- charts

  std::string html(const chart::Chart& chart) {
    const std::string id = fmt::format("c{}", charts_++);
    std::string out = element("figcaption", html_escaped(chart.title));
    Json data = std::visit([](const auto& d) { return data_of(d); }, chart.drawing);
    out += std::visit(overloaded{[&](const chart::Plane& plane) { return html(plane, chart); },
                                 [&](const chart::HeatMap& map) { return html(map, chart, id); }},
                      chart.drawing);
    if (!chart.note.empty()) out += element("p", html_escaped(chart.note), "class=\"note\"");
    out +=
        "<p class=\"tools\"><button type=\"button\" class=\"csv\">CSV</button> <output "
        "class=\"readout\"></output></p>";
    data["title"] = chart.title;
    out += fmt::format("<script type=\"application/json\">{}</script>", in_script(data));
    return element("figure", out, fmt::format("id=\"{}\"", id)) + "\n";
  }

  static std::string html(const chart::Plane& plane, const chart::Chart& chart) {
    std::string legend;
    for (const auto& [sample, name] : svg::legend(plane))
      legend += element("li", sample + html_escaped(name));
    return (legend.empty() ? "" : element("ul", legend, "class=\"legend\"")) +
           svg::drawing(
               plane, fmt::format("{}: {} against {}", chart.title, plane.y.title, plane.x.title));
  }

  static std::string html(const chart::HeatMap& map, const chart::Chart& chart,
                          const std::string& id) {
    const std::size_t last = map.frames.size() - 1;
    const std::string label =
        fmt::format("{}: heat map of {} x {} cells", chart.title, map.rows, map.columns);
    std::string out = svg::drawing(map, last, label, id + "-scale");
    if (last > 0) {
      const std::string name = map.frame_title.empty() ? "" : html_escaped(map.frame_title) + " = ";
      out += fmt::format(
          "<p><label>{}<output class=\"frame\">{}</output> <input type=\"range\" min=\"0\" "
          "max=\"{}\" value=\"{}\" aria-label=\"frame of {}\"></label></p>",
          name, html_escaped(map.frames[last]), last, last, html_escaped(chart.title));
    }
    return out;
  }

  std::string title_, head_;
  std::vector<std::string> headings_;
  std::size_t charts_ = 0;
  bool cut_ = false;    ///< a table left something out
  bool drawn_ = false;  ///< the section has charts
};

}  // namespace

std::string to_html(const Document& document) { return Page().of(document); }

}  // namespace tplimit
