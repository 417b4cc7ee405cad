#pragma once

#include <string_view>
#include <vector>

#include "tplimit/support/diagnostic.hpp"
#include "tplimit/syntax/ast.hpp"

/// What editors need of texts that are no programs yet.
namespace tplimit {

struct Recovered {
  ast::Program program;  ///< statements that could be read; of a program with errors, no other pass
                         ///< may see it
  Diagnostics errors;    ///< those of parse_syntax
};
/// A program and its imports, also where there are errors.  Cost: O(bytes).
Recovered parse_recovered(const Source& source);

/// In the order of the lexer.
std::vector<std::string_view> keywords();
/// Letters, digits and '_', and no keyword.
bool is_identifier(std::string_view text);

}  // namespace tplimit
