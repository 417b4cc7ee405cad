#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/syntax/ast.hpp"

namespace tplimit::lsp {

enum class SymbolKind {
  kWidth,
  kConst,
  kData,
  kParam,
  kRandom,
  kValue,
  kLoop,
  kFunction,
  kModel,
  kArgument
};
[[nodiscard]] const char* to_string(SymbolKind kind);

/// Something that a program names.
struct Symbol {
  SymbolKind kind;
  std::string name;   ///< without the name of an import
  std::string space;  ///< "lib." of what a file imported as lib declares at top level
  Span span;          ///< of the name where it is bound first
  Span statement;     ///< that binds it
  std::optional<std::size_t> function{};  ///< that it is an argument or a value of
  const ast::Function* text = nullptr;    ///< of functions and models
};

/// A place where a symbol is named.
struct Occurrence {
  Span whole;  ///< "lib.x"
  Span name;   ///< "x"
  std::size_t symbol;
  bool binds;
  Span definition;  ///< the name where its value here was bound, as far as the text tells
};

/// All symbols and where they are named.  Arguments and values of functions are their own; at top
/// level, loops and choices share one scope.
struct Names {
  std::vector<Symbol> symbols;
  std::vector<Occurrence> occurrences;     ///< in the order of the text
  std::map<std::uint32_t, Span> values{};  ///< by the begin of an assigned name: the expression

  [[nodiscard]] const Occurrence* at(std::size_t offset) const;  ///< null: none
};
/// `program` may be one that was recovered from errors.  Cost: O(bytes log symbols).
[[nodiscard]] Names names_of(const ast::Program& program, const Source& source);

}  // namespace tplimit::lsp
