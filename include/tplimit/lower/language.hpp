#pragma once

#include <string>
#include <vector>

/// What editors ask about the language.
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

}  // namespace tplimit
