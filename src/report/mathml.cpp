#include "report/mathml.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <map>

#include <fmt/format.h>

#include "tplimit/support/source.hpp"

namespace tplimit {

std::string html_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

namespace {

bool letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }

std::string tag(std::string_view name, std::string_view content) {
  return fmt::format("<{0}>{1}</{0}>", name, content);
}
std::string row(const std::string& content) { return tag("mrow", content); }
std::string upright(std::string_view name) {
  return fmt::format("<mi mathvariant=\"normal\">{}</mi>", html_escaped(name));
}

/// Letters and signs that have commands.
const std::map<std::string_view, std::string_view>& identifiers() {
  static const std::map<std::string_view, std::string_view> table{
      {"alpha", "α"}, {"beta", "β"},  {"gamma", "γ"}, {"delta", "δ"},  {"epsilon", "ϵ"},
      {"zeta", "ζ"},  {"eta", "η"},   {"theta", "θ"}, {"kappa", "κ"},  {"lambda", "λ"},
      {"mu", "μ"},    {"nu", "ν"},    {"xi", "ξ"},    {"pi", "π"},     {"rho", "ρ"},
      {"sigma", "σ"}, {"tau", "τ"},   {"phi", "ϕ"},   {"chi", "χ"},    {"psi", "ψ"},
      {"omega", "ω"}, {"Phi", "Φ"},   {"Gamma", "Γ"}, {"Delta", "Δ"},  {"Theta", "Θ"},
      {"Psi", "Ψ"},   {"Omega", "Ω"}, {"infty", "∞"}, {"partial", "∂"}};
  return table;
}
const std::map<std::string_view, std::string_view>& operators() {
  static const std::map<std::string_view, std::string_view> table{
      {"top", "⊤"},    {"cdot", "⋅"},   {"sim", "∼"},   {"sum", "∑"},   {"le", "≤"},
      {"leq", "≤"},    {"ge", "≥"},     {"geq", "≥"},   {"ne", "≠"},    {"neq", "≠"},
      {"times", "×"},  {"lt", "<"},     {"gt", ">"},    {"to", "→"},    {"lfloor", "⌊"},
      {"rfloor", "⌋"}, {"lceil", "⌈"},  {"rceil", "⌉"}, {"lvert", "|"}, {"rvert", "|"},
      {"pm", "±"},     {"approx", "≈"}, {"in", "∈"},    {"ldots", "…"}};
  return table;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::string all() {
    std::string out;
    while (!done()) {
      out += run();
      if (!done()) ++at_;  // a bracket that closes nothing
    }
    return out;
  }

 private:
  [[nodiscard]] bool done() const { return at_ >= text_.size(); }
  [[nodiscard]] char peek() const { return done() ? '\0' : text_[at_]; }
  void blanks() {
    while (peek() == ' ' || peek() == '&') ++at_;
  }

  /// Up to a closing brace or the end.
  std::string run() {
    std::string out;
    for (blanks(); !done() && peek() != '}'; blanks()) out += scripted();
    return out;
  }

  /// An atom with what stands below and above it.
  std::string scripted() {
    const bool limits =
        text_.substr(at_).starts_with("\\sum") || text_.substr(at_).starts_with("\\max");
    std::string base = atom(), below, above;
    for (blanks(); peek() == '_' || peek() == '^' || peek() == '\''; blanks()) {
      const char what = text_[at_++];
      if (what == '\'')
        above += "<mo>′</mo>";
      else
        (what == '_' ? below : above) += argument();
    }
    if (below.empty() && above.empty()) return base;
    if (base.empty()) base = "<mrow></mrow>";
    if (above.empty()) return tag(limits ? "munder" : "msub", base + row(below));
    if (below.empty()) return tag("msup", base + row(above));
    return tag("msubsup", base + row(below) + row(above));
  }

  /// A group, or one atom.
  std::string argument() {
    blanks();
    if (done()) return "<mrow></mrow>";
    if (peek() != '{') return atom();
    ++at_;
    std::string out = row(run());
    if (peek() == '}') ++at_;
    return out;
  }

  /// The text of a group, with escapes undone.
  std::string words() {
    blanks();
    std::string out;
    if (peek() != '{') return out;
    int depth = 0;
    for (; !done(); ++at_) {
      const char c = text_[at_];
      if (c == '\\' && at_ + 1 < text_.size() && !letter(text_[at_ + 1])) {
        out += text_[++at_];
      } else if (c == '\\') {
        while (at_ + 1 < text_.size() && letter(text_[at_ + 1])) ++at_;  // \hat{} of a caret
        out += '^';
      } else if (c == '{') {
        ++depth;
      } else if (c == '}') {
        if (--depth == 0) {
          ++at_;
          return out;
        }
      } else {
        out += c;
      }
    }
    return out;
  }

  std::string atom() {
    const char c = peek();
    if (c == '{') return argument();
    if (c == '\\') return command();
    if (digit(c)) {
      std::string number;
      while (digit(peek()) || (peek() == '.' && at_ + 1 < text_.size() && digit(text_[at_ + 1])))
        number += text_[at_++];
      return tag("mn", number);
    }
    const std::size_t length = std::max<std::size_t>(code_point_length(text_, at_), 1);
    const std::string_view own = text_.substr(at_, length);
    at_ += length;
    if (letter(c) || length > 1) return tag("mi", html_escaped(own));
    if (c == '-') return "<mo>−</mo>";
    if (c == '(' || c == ')' || c == '[' || c == ']')
      return fmt::format("<mo stretchy=\"false\">{}</mo>", own);
    return tag("mo", html_escaped(own));
  }

  std::string command() {
    ++at_;
    std::string name;
    while (letter(peek())) name += text_[at_++];
    if (name.empty()) {
      const char c = peek();
      ++at_;
      if (c == ',' || c == ' ' || c == ';' || c == ':') return "<mspace width=\"0.17em\"></mspace>";
      if (c == '!') return "";
      return tag("mo", html_escaped(std::string(1, c)));
    }
    if (name == "left" || name == "right") {
      blanks();
      if (peek() == '\\') return command();
      const std::string_view own = text_.substr(std::min(at_, text_.size()), 1);
      if (!done()) ++at_;
      return own == "." ? "" : tag("mo", html_escaped(own));
    }
    if (name == "frac" || name == "tfrac" || name == "dfrac") {
      std::string above = argument();
      return tag("mfrac", above + argument());
    }
    if (name == "sqrt") return tag("msqrt", argument());
    if (name == "hat")
      return fmt::format("<mover accent=\"true\">{}<mo>^</mo></mover>", argument());
    if (name == "bar")
      return fmt::format("<mover accent=\"true\">{}<mo>¯</mo></mover>", argument());
    if (name == "mathrm" || name == "operatorname") return upright(words());
    if (name == "text") return tag("mtext", html_escaped(words()));
    if (name == "mathbb" || name == "mathcal") {
      const std::string own = words();
      return own == "E" ? "<mi>𝔼</mi>" : own == "N" ? "<mi>𝒩</mi>" : upright(own);
    }
    if (name == "quad" || name == "qquad") return "<mspace width=\"1em\"></mspace>";
    if (const auto it = identifiers().find(name); it != identifiers().end())
      return tag("mi", it->second);
    if (const auto it = operators().find(name); it != operators().end())
      return tag("mo", html_escaped(it->second));
    return upright(name);
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

std::string mathml(std::string_view latex) {
  return fmt::format("<math><mrow>{}</mrow></math>", Parser(latex).all());
}

std::string html_with_math(std::string_view text) {
  std::string out;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t open = std::min(text.find('$', begin), text.size());
    out += html_escaped(text.substr(begin, open - begin));
    if (open == text.size()) break;
    const std::size_t close = std::min(text.find('$', open + 1), text.size());
    out += mathml(text.substr(open + 1, close - open - 1));
    begin = close + 1;
  }
  return out;
}

}  // namespace tplimit
