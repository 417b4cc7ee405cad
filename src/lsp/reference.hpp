#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tplimit/syntax/ast.hpp"

/// What the documentation says of the words of the language.
namespace tplimit::lsp {

/// The text of docs/language.md.
[[nodiscard]] std::string_view language_page();

/// A row of its tables, in Markdown.
struct ReferenceRow {
  std::string form, meaning;
  std::vector<std::string> words;  ///< that the form is about
};
/// The rows about a keyword or function; else those whose text names it in code.
[[nodiscard]] std::vector<const ReferenceRow*> rows_about(std::string_view word);

/// A function of the standard library.
struct LibraryFunction {
  std::string signature;  ///< "fn rmsnorm(x, eps = 1e-6)"
  std::string comment;    ///< above it, without '#'
  std::size_t offset;     ///< of its name in standard_library()
  std::vector<std::string> arguments{};
};
/// Null: there is none of this name.
[[nodiscard]] const LibraryFunction* library_function(const std::string& name);
[[nodiscard]] std::vector<std::string> library_functions();

/// "fn f(x, c = 1)" as the text has it.
[[nodiscard]] std::string signature_of(const ast::Function& f, Span statement,
                                       const Source& source);
/// The comment lines directly above an offset, without '#'.
[[nodiscard]] std::string comment_above(std::string_view text, std::size_t offset);

}  // namespace tplimit::lsp
