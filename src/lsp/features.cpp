#include "lsp/features.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lsp/reference.hpp"
#include "tplimit/lower/language.hpp"
#include "tplimit/syntax/highlight.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::lsp {
namespace {

const LanguageWord* language_word(std::string_view name,
                                  std::optional<LanguageWord::Kind> kind = {}) {
  for (const LanguageWord& word : language_words())
    if (word.name == name && (!kind || word.kind == *kind)) return &word;
  return nullptr;
}

std::string code(const std::string& text) { return "```tplimit\n" + text + "\n```\n"; }

std::string size_text(const std::optional<Exponent>& e, const std::string& width) {
  return e ? power_of_width(*e, width) : "0";
}

// ---- hover

/// How long an answer waits for what is found elsewhere before it does without.
constexpr std::chrono::milliseconds kPatience(50);

/// "order: 1, change n^-1/2" of a value that is assigned at this name.
std::string order_of_value(const Analysis& analysis, const Occurrence& at) {
  const auto value = analysis.names().values.find(at.definition.begin);
  if (value == analysis.names().values.end()) return "";
  const RegimeReport* report = analysis.sizes();
  if (!report) return "";
  const std::string& name = analysis.names().symbols[at.symbol].name;
  const std::string& width = analysis.written()->width_name;
  std::string out;
  int shown = 0;
  constexpr int kMost = 6;
  for (const Feature& f : report->features) {
    if (f.span != value->second || f.prediction || f.steps.empty() ||
        f.name.substr(0, f.name.find(',')) != name)
      continue;
    if (shown++ == kMost) {
      out += "- ..\n";
      break;
    }
    out += fmt::format("- order of `{}`: {} at first", f.name,
                       size_text(f.steps.front().value, width));
    if (f.steps.size() > 1)
      out += fmt::format(", changed by {} in training", size_text(f.steps.back().change, width));
    out += '\n';
  }
  return out;
}

/// What a parameter does where it is used, by counting powers.
std::string order_of_parameter(const Analysis& analysis, const Symbol& symbol) {
  const RegimeReport* report = analysis.sizes();
  if (!report) return "";
  const ir::Program& program = *analysis.written();
  const std::string name = symbol.space + symbol.name, entry = name + "[";
  std::string out;
  int shown = 0;
  constexpr int kMost = 6;
  for (const VariableEffect& e : report->effects) {
    const ir::Variable& v = program.variables[e.variable];
    if (v.name != name && !v.name.starts_with(entry)) continue;
    if (shown++ == kMost) break;
    out +=
        fmt::format("- `{}` in `{}`: order {}", v.name, canonical_text(analysis.source(), e.span),
                    size_text(e.initial, program.width_name));
    if (v.trained && e.update)
      out += fmt::format(", moved by {} by its updates{}", size_text(e.update, program.width_name),
                         e.maximal() ? " (maximal)" : "");
    else if (v.trained)
      out += ", never updated";
    out += '\n';
  }
  return out;
}

std::string hover_of_symbol(const Analysis& analysis, const Occurrence& at) {
  const Symbol& symbol = analysis.names().symbols[at.symbol];
  const Source& source = analysis.source();
  if (symbol.text) {
    std::string out = code(signature_of(*symbol.text, symbol.statement, source));
    const Source::Part& part = source.part_at(symbol.span.begin);
    const std::string comment =
        comment_above(source.text(part), symbol.statement.begin - part.begin);
    return comment.empty() ? out : out + comment + "\n";
  }
  const bool complete = analysis.counted(kPatience);
  std::string out;
  const bool declared = symbol.kind != SymbolKind::kArgument && symbol.kind != SymbolKind::kLoop &&
                        symbol.kind != SymbolKind::kValue;
  if (declared) {
    constexpr std::size_t kMost = 400;
    std::string text = canonical_text(source, symbol.statement);
    if (text.size() > kMost) text = text.substr(0, text.rfind(' ', kMost)) + " ..";
    out += code(text);
  } else {
    out += code(std::string(source.text(at.name)));
  }
  out += to_string(symbol.kind);
  if (symbol.function)
    out += fmt::format(" of `{}`", analysis.names().symbols[*symbol.function].name);
  if (const std::string what = analysis.what_is(at.definition.begin); !what.empty())
    out += fmt::format("{} {}", symbol.kind == SymbolKind::kLoop ? "; at first" : ":", what);
  out += "\n\n";
  out += symbol.kind == SymbolKind::kParam || symbol.kind == SymbolKind::kRandom
             ? order_of_parameter(analysis, symbol)
             : order_of_value(analysis, at);
  if (!complete)
    out += "The program is still being looked at: ask again for all shapes and orders.\n";
  return out;
}

std::string hover_of_word(const std::string& word) {
  std::string out;
  const auto known = keywords();
  const bool keyword = std::ranges::find(known, word) != known.end();
  for (const LanguageWord& w : language_words()) {
    if (w.name != word) continue;
    out += code(w.form);
    if (!w.options.empty()) out += fmt::format("options: {}\n\n", fmt::join(w.options, ", "));
  }
  if (const LibraryFunction* f = library_function(word); f && out.empty())
    return code(f->signature) + f->comment + "\n\nof the standard library\n";
  if (!keyword && out.empty()) return "";
  for (const ReferenceRow* row : rows_about(word))
    out += fmt::format("{}\n\n{}\n\n", row->form, row->meaning);
  return out;
}

}  // namespace

std::string_view word_at(std::string_view text, std::size_t offset) {
  const auto part = [&](std::size_t k) { return is_word(text[k]) || text[k] == '.'; };
  std::size_t begin = std::min(offset, text.size()), end = begin;
  while (begin > 0 && part(begin - 1)) --begin;
  while (end < text.size() && is_word(text[end])) ++end;
  // The two dots of a range are none of a name.
  if (const std::size_t dots = text.substr(begin, end - begin).rfind("..");
      dots != std::string::npos)
    begin += dots + 2;
  return text.substr(begin, end - begin);
}

Json json_of(const Positions& positions, Span span, std::size_t part_begin) {
  const auto point = [&](std::size_t offset) {
    const Position p = positions.position(offset - part_begin);
    return Json{{"line", p.line}, {"character", p.character}};
  };
  return {{"start", point(span.begin)}, {"end", point(std::max(span.begin, span.end))}};
}

Json hover(const Analysis& analysis, std::size_t offset) {
  const Source& source = analysis.source();
  const Source::Part& part = source.parts()[0];
  const std::string_view text = source.text(part);
  std::string value;
  Span span{};
  if (const Occurrence* at = analysis.names().at(offset)) {
    value = hover_of_symbol(analysis, *at);
    span = at->whole;
  } else {
    const std::string_view word = word_at(text, offset);
    for (const Highlighted& piece : highlight(text))
      if (piece.span.begin <= offset && offset < piece.span.end &&
          (piece.kind == Highlight::kComment || piece.kind == Highlight::kString))
        return nullptr;
    value = hover_of_word(std::string(word));
    const auto begin = static_cast<std::uint32_t>(word.data() - text.data());
    span = {begin, static_cast<std::uint32_t>(begin + word.size())};
  }
  if (value.empty()) return nullptr;
  return {{"contents", {{"kind", "markdown"}, {"value", value}}},
          {"range", json_of(analysis.positions(part), span)}};
}

// ---- completion

namespace {

/// What stands before a place in the text.
struct Before {
  bool in_text = false;   ///< inside a comment or a string
  std::string_view word;  ///< that is being written
  std::string statement;  ///< its first word
  std::string callee;     ///< of the innermost call around the place; empty: none
  char sign = '\0';       ///< the last one before the word that is no blank; '\0': the statement
                          ///< begins here
};

Before before(std::string_view text, std::size_t offset) {
  Before out;
  std::string plain(text.substr(0, offset));
  for (const Highlighted& piece : highlight(text)) {
    if (piece.span.begin >= offset) break;
    if (piece.kind != Highlight::kComment && piece.kind != Highlight::kString) continue;
    const std::size_t end = std::min<std::size_t>(piece.span.end, offset);
    // A comment goes on where it ends, a string does not.
    if (offset < piece.span.end || (piece.kind == Highlight::kComment && offset == piece.span.end))
      out.in_text = true;
    std::fill(plain.begin() + piece.span.begin, plain.begin() + static_cast<std::ptrdiff_t>(end),
              ' ');
  }
  std::size_t at = plain.size();
  while (at > 0 &&
         (is_word(plain[at - 1]) || (plain[at - 1] == '.' && at > 1 && is_word(plain[at - 2]))))
    --at;
  out.word = text.substr(at, offset - at);
  // Back to where the statement begins.
  std::size_t begin = at;
  int depth = 0;
  for (; begin > 0; --begin) {
    const char c = plain[begin - 1];
    if (c == ')' || c == ']') ++depth;
    if (c == '(' || c == '[') {
      if (depth == 0 && c == '(' && out.callee.empty()) {
        std::size_t from = begin - 1;
        while (from > 0 && (is_word(plain[from - 1]) || plain[from - 1] == '.')) --from;
        out.callee = plain.substr(from, begin - 1 - from);
      }
      depth = std::max(depth - 1, 0);
    }
    if (c == ';' || ((c == '{' || c == '}') && out.callee.empty() && depth == 0)) break;
    if (c == '\n' && depth == 0) {
      const std::size_t last = plain.find_last_not_of(" \t\r\n", begin - 1);
      if (last == std::string::npos ||
          (plain[last] != ',' && plain[last] != '(' && plain[last] != '['))
        break;
    }
  }
  const std::size_t first = std::min(plain.find_first_not_of(" \t\r\n", begin), at);
  std::size_t end = first;
  while (end < at && is_word(plain[end])) ++end;
  out.statement = plain.substr(first, end - first);
  const std::size_t last = at == 0 ? std::string::npos : plain.find_last_not_of(" \t\r\n", at - 1);
  if (last != std::string::npos && last >= begin) out.sign = plain[last];
  return out;
}

/// Numbers of the protocol.
enum class ItemKind {
  kFunction = 3,
  kField = 5,
  kVariable = 6,
  kProperty = 10,
  kKeyword = 14,
  kConstant = 21,
  kTypeParameter = 25
};

ItemKind item_kind(SymbolKind kind) {
  switch (kind) {
    case SymbolKind::kFunction:
    case SymbolKind::kModel: return ItemKind::kFunction;
    case SymbolKind::kConst:
    case SymbolKind::kData: return ItemKind::kConstant;
    case SymbolKind::kParam:
    case SymbolKind::kRandom: return ItemKind::kField;
    case SymbolKind::kWidth: return ItemKind::kTypeParameter;
    default: return ItemKind::kVariable;
  }
}

/// Where a kind of word belongs.
bool belongs(LanguageWord::Kind kind, const Before& here) {
  using enum LanguageWord::Kind;
  const bool declares = here.statement == "param" || here.statement == "random";
  switch (kind) {
    case kFunction:
    case kConstant: return true;
    case kOptimiser: return here.statement == "step" && here.callee.empty();
    case kLaw: return declares && here.sign == '~';
    case kReader: return here.statement == "data" && here.callee.empty();
    case kParametrization: return here.statement == "parametrization" && here.callee.empty();
    case kRole: return declares && here.sign == ':';
  }
  return false;
}

const char* to_string(LanguageWord::Kind kind) {
  using enum LanguageWord::Kind;
  switch (kind) {
    case kFunction: return "builtin";
    case kOptimiser: return "optimiser";
    case kLaw: return "law";
    case kReader: return "reader";
    case kParametrization: return "parametrization";
    case kRole: return "role";
    case kConstant: return "constant";
  }
  return "";
}

}  // namespace

Json completions(const Analysis& analysis, std::size_t offset) {
  const Source& source = analysis.source();
  const Source::Part& part = source.parts()[0];
  const Names& names = analysis.names();
  const Before here = before(source.text(part), offset);
  Json items = Json::array();
  if (here.in_text) return items;
  const auto word_begin = static_cast<std::uint32_t>(offset - here.word.size());
  const Json range =
      json_of(analysis.positions(part), {word_begin, static_cast<std::uint32_t>(offset)});
  std::set<std::string> known;
  // `rank` sorts: what belongs just here first.  `of`: where the knowledge comes from.
  const auto add = [&](const std::string& label, ItemKind kind, const std::string& detail, int rank,
                       const char* of, const std::string& text = "") {
    const bool replaced = of == std::string_view("builtin") || of == std::string_view("library");
    if ((replaced && known.contains(label + " name")) || !known.insert(label + " " + of).second)
      return;
    items.push_back({{"label", label},
                     {"kind", static_cast<int>(kind)},
                     {"detail", detail},
                     {"sortText", std::to_string(rank) + label},
                     {"textEdit", {{"range", range}, {"newText", text.empty() ? label : text}}},
                     {"data", of}});
  };
  const auto option = [&](const std::string& name, const std::string& detail) {
    add(name, ItemKind::kProperty, detail, 0, "option", name + " = ");
  };
  if (!here.callee.empty()) {
    bool own = false;
    for (const Symbol& s : names.symbols)
      if (s.text && s.space + s.name == here.callee) {
        own = true;
        for (const ast::Argument& argument : s.text->params)
          option(argument.name.name, "argument of " + s.name);
      }
    if (const LanguageWord* word = own ? nullptr : language_word(here.callee))
      for (const std::string& name : word->options) option(name, "option of " + word->name);
    else if (const LibraryFunction* f = own ? nullptr : library_function(here.callee))
      for (const std::string& name : f->arguments) option(name, "argument of " + here.callee);
  }
  for (const Symbol& s : names.symbols) {
    if (s.function) {
      const Span body = names.symbols[*s.function].statement;
      if (offset < body.begin || offset > body.end) continue;
    } else if (s.space.empty() && s.span.begin >= part.end) {
      continue;
    }
    add(s.space + s.name, item_kind(s.kind),
        s.text ? signature_of(*s.text, s.statement, source) : lsp::to_string(s.kind), 1, "name");
  }
  for (const LanguageWord& word : language_words())
    if (belongs(word.kind, here))
      add(word.name,
          word.kind == LanguageWord::Kind::kConstant ? ItemKind::kConstant : ItemKind::kFunction,
          word.form,
          word.kind == LanguageWord::Kind::kFunction || word.kind == LanguageWord::Kind::kConstant
              ? 2
              : 0,
          to_string(word.kind));
  for (const std::string& name : library_functions())
    add(name, ItemKind::kFunction, library_function(name)->signature, 3, "library");
  for (const std::string_view keyword : keywords())
    add(std::string(keyword), ItemKind::kKeyword, "", here.sign == '\0' ? 0 : 4, "keyword");
  return items;
}

// ---- symbols

Json document_symbols(const Analysis& analysis) {
  const Source::Part& part = analysis.source().parts()[0];
  const Positions& positions = analysis.positions(part);
  const std::vector<Symbol>& symbols = analysis.names().symbols;
  const auto number = [](SymbolKind kind) {  // of the protocol
    switch (kind) {
      case SymbolKind::kFunction:
      case SymbolKind::kModel: return 12;
      case SymbolKind::kConst:
      case SymbolKind::kData: return 14;
      case SymbolKind::kParam:
      case SymbolKind::kRandom: return 8;
      case SymbolKind::kWidth: return 26;
      default: return 13;
    }
  };
  const auto within = [](Span inner, Span outer) {
    return outer.begin <= inner.begin && inner.end <= outer.end;
  };
  const auto of = [&](const Symbol& s) {
    return Json{{"name", s.name},
                {"detail", lsp::to_string(s.kind)},
                {"kind", number(s.kind)},
                // Where a name is bound further down than it is used, that place.
                {"range", json_of(positions, within(s.span, s.statement) ? s.statement : s.span)},
                {"selectionRange", json_of(positions, s.span)}};
  };
  std::vector<Json> all(symbols.size());
  for (std::size_t k = symbols.size(); k-- > 0;) {
    if (symbols[k].span.begin >= part.end) continue;
    all[k] = of(symbols[k]);
  }
  for (std::size_t k = 0; k < symbols.size(); ++k)
    if (!all[k].is_null() && symbols[k].function && !all[*symbols[k].function].is_null())
      all[*symbols[k].function]["children"].push_back(all[k]);
  Json out = Json::array();
  for (std::size_t k = 0; k < symbols.size(); ++k)
    if (!all[k].is_null() && !symbols[k].function) out.push_back(std::move(all[k]));
  return out;
}

Json semantic_tokens(const Analysis& analysis) {
  const Source::Part& part = analysis.source().parts()[0];
  const Positions& positions = analysis.positions(part);
  const auto type = [](SymbolKind kind) {
    switch (kind) {
      case SymbolKind::kArgument: return 1;
      case SymbolKind::kFunction:
      case SymbolKind::kModel: return 2;
      case SymbolKind::kParam:
      case SymbolKind::kRandom: return 3;
      case SymbolKind::kWidth: return 4;
      default: return 0;
    }
  };
  Json data = Json::array();
  Position last;
  for (const Occurrence& o : analysis.names().occurrences) {
    if (o.name.end > part.end) continue;
    const Position at = positions.position(o.name.begin);
    const SymbolKind kind = analysis.names().symbols[o.symbol].kind;
    const bool readonly = kind == SymbolKind::kConst || kind == SymbolKind::kData;
    data.push_back(at.line - last.line);
    data.push_back(at.line == last.line ? at.character - last.character : at.character);
    data.push_back(o.name.end - o.name.begin);  // names are ASCII
    data.push_back(type(kind));
    data.push_back((o.binds ? 1 : 0) + (readonly ? 2 : 0));
    last = at;
  }
  return {{"data", std::move(data)}};
}

std::string rename_fault(const Analysis& analysis, std::size_t symbol, const std::string& name) {
  if (!is_identifier(name))
    return fmt::format(
        "'{}' is no name: names are made of letters, digits and '_', and are no "
        "keywords",
        name);
  if (language_word(name, LanguageWord::Kind::kFunction) ||
      language_word(name, LanguageWord::Kind::kConstant) || library_function(name))
    return fmt::format("'{}' is a word of the language", name);
  const std::vector<Symbol>& symbols = analysis.names().symbols;
  const Symbol& own = symbols[symbol];
  for (std::size_t k = 0; k < symbols.size(); ++k) {
    const Symbol& other = symbols[k];
    // Names of different functions never meet, nor do those of different imports.
    const bool meet = own.function && other.function
                          ? own.function == other.function
                          : own.space == other.space || own.space.empty() || other.space.empty();
    if (k != symbol && other.name == name && meet)
      return fmt::format("'{}' is named so already", name);
  }
  return "";
}

}  // namespace tplimit::lsp
