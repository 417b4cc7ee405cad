#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tplimit/support/diagnostic.hpp"
#include "tplimit/syntax/ast.hpp"

namespace tplimit {

/// Parses a program and the files that it imports (`imports`; else they are empty).  Recovers at
/// line ends and reports up to 20 errors (E1..), the first of each line; any bytes are accepted as
/// input and none crashes (nesting is limited to 200 levels, the height of an expression to 1000).
/// Cost: O(bytes).
Result<ast::Program> parse_syntax(const Source& source, bool imports = true);

/// The paths of all `import "PATH"` in a text, as they are written.
std::vector<std::string> imported_paths(std::string_view text);

/// The text in canonical layout: one space around binary operators, two spaces of indentation per
/// block, comments and single blank lines kept.  Same tokens in the same order, so the same
/// program; idempotent. Errors: those of parse_syntax.
Result<std::string> format_source(const Source& source);

/// Canonical one-line text of the tokens in `span` (comments and line ends dropped); names unnamed
/// reports.
std::string canonical_text(const Source& source, Span span);

}  // namespace tplimit
