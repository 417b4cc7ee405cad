#include "lsp/reference.hpp"

#include <algorithm>
#include <map>

#include "lsp/positions.hpp"
#include "tplimit/lower/library.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::lsp {
namespace {

std::string trimmed(std::string_view text) {
  const auto begin = text.find_first_not_of(' ');
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(' ') - begin + 1));
}

/// Cells of a row of a table; a '|' within a cell is written '\|'.
std::vector<std::string> cells_of(std::string_view line) {
  std::vector<std::string> out(1);
  for (std::size_t k = 1; k < line.size(); ++k) {
    if (line[k] == '\\' && k + 1 < line.size() && line[k + 1] == '|')
      out.back() += line[++k];
    else if (line[k] == '|')
      out.emplace_back();
    else
      out.back() += line[k];
  }
  out.pop_back();
  for (std::string& cell : out) cell = trimmed(cell);
  return out;
}

/// Of each piece of code: its first word, the one before a bracket, and all of a list of words.
std::vector<std::string> words_of(std::string_view form) {
  std::vector<std::string> out;
  for (std::size_t tick = form.find('`'); tick != std::string_view::npos;) {
    const std::size_t end = std::min(form.find('`', tick + 1), form.size());
    const std::string_view code = form.substr(tick + 1, end - tick - 1);
    const std::size_t bracket = std::min(code.find('('), code.size());
    std::vector<std::string> words;
    for (std::size_t at = 0; at < bracket;) {
      std::size_t to = at;
      while (to < bracket && is_word(code[to])) ++to;
      if (to > at) words.emplace_back(code.substr(at, to - at));
      at = std::max(to, at + 1);
    }
    for (std::size_t k = 0; k < words.size(); ++k)
      if (k == 0 || bracket == code.size() || k + 1 == words.size()) out.push_back(words[k]);
    tick = form.find('`', end + 1);
  }
  return out;
}

std::vector<ReferenceRow> read_rows() {
  std::vector<ReferenceRow> out;
  std::string_view page = language_page();
  while (!page.empty()) {
    const std::size_t end = std::min(page.find('\n'), page.size());
    if (const std::string_view line = page.substr(0, end); line.starts_with("| `"))
      if (auto cells = cells_of(line); cells.size() == 2)
        out.push_back({cells[0], cells[1], words_of(cells[0])});
    page.remove_prefix(std::min(end + 1, page.size()));
  }
  return out;
}

std::map<std::string, LibraryFunction> read_library() {
  const Source source("std.tp", std::string(standard_library()));
  std::map<std::string, LibraryFunction> out;
  const auto program = parse_syntax(source);
  if (!program) return out;  // lowering checks that it can be read
  for (const ast::Stmt& stmt : program->statements)
    if (const auto* f = std::get_if<ast::Function>(&stmt.node)) {
      LibraryFunction& own = out[f->name.name];
      own = {signature_of(*f, stmt.span, source), comment_above(source.text(), stmt.span.begin),
             f->name.span.begin};
      for (const ast::Argument& argument : f->params) own.arguments.push_back(argument.name.name);
    }
  return out;
}

const std::map<std::string, LibraryFunction>& library() {
  static const std::map<std::string, LibraryFunction> functions = read_library();
  return functions;
}

}  // namespace

std::vector<const ReferenceRow*> rows_about(std::string_view word) {
  static const std::vector<ReferenceRow> rows = read_rows();
  std::vector<const ReferenceRow*> out;
  for (const ReferenceRow& row : rows)
    if (std::ranges::find(row.words, word) != row.words.end()) out.push_back(&row);
  if (out.empty())
    for (const ReferenceRow& row : rows)
      for (const std::string& text : {row.form, row.meaning})
        for (const char end : {'`', '('})
          if ((out.empty() || out.back() != &row) &&
              text.find('`' + std::string(word) + end) != std::string::npos)
            out.push_back(&row);
  return out;
}

const LibraryFunction* library_function(const std::string& name) {
  const auto it = library().find(name);
  return it == library().end() ? nullptr : &it->second;
}

std::vector<std::string> library_functions() {
  std::vector<std::string> out;
  for (const auto& [name, f] : library()) out.push_back(name);
  return out;
}

std::string signature_of(const ast::Function& f, Span statement, const Source& source) {
  std::string out = source.text(statement).starts_with("model") ? "model " : "fn ";
  out += f.name.name + "(";
  for (std::size_t k = 0; k < f.params.size(); ++k) {
    out += (k ? ", " : "") + f.params[k].name.name;
    if (f.params[k].otherwise) out += " = " + canonical_text(source, f.params[k].otherwise->span);
  }
  return out + ")";
}

std::string comment_above(std::string_view text, std::size_t offset) {
  std::vector<std::string> lines;
  std::size_t line = text.rfind('\n', offset);
  while (line != std::string_view::npos && line > 0) {
    const std::size_t before = text.rfind('\n', line - 1);
    const std::size_t begin = before == std::string_view::npos ? 0 : before + 1;
    const std::string above = trimmed(text.substr(begin, line - begin));
    if (!above.starts_with('#')) break;
    lines.push_back(trimmed(std::string_view(above).substr(1)));
    line = before;
  }
  std::string out;
  for (auto it = lines.rbegin(); it != lines.rend(); ++it) out += (out.empty() ? "" : "\n") + *it;
  return out;
}

}  // namespace tplimit::lsp
