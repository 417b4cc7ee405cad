#pragma once

#include <string>
#include <vector>

#include "tplimit/lower/lower.hpp"

/// What editors ask about the language and about the names of a program.
namespace tplimit {

/// A word of the language that is no keyword.
struct LanguageWord {
  enum class Kind { kFunction, kOptimiser, kLaw, kReader, kParametrization, kRole, kConstant };
  Kind kind;
  std::string name;
  std::string form;                    ///< "sum(x) or sum(x, axis = k)"
  std::vector<std::string> options{};  ///< their names
  bool replaceable = false;            ///< a definition of the program goes first
};

/// Functions and optimisers as their tables have them; laws, readers, roles, parametrizations and
/// constants.  Sorted by kind and name.  The standard library is not among them.
const std::vector<LanguageWord>& language_words();

/// What a name stands for.
struct BoundName {
  Span name;         ///< where it is bound
  std::string what;  ///< "a value of shape [4, n]"
};

/// What each name stands for where it is bound, the first time that the place is reached: names in
/// functions have the values of the first call.  Also of programs with errors, as far as they go.
/// Cost: that of `lower`.
std::vector<BoundName> bound_names(const ast::Program& program, const Source& source,
                                   const LowerOptions& options);

}  // namespace tplimit
