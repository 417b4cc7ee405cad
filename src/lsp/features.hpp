#pragma once

#include <nlohmann/json.hpp>

#include "lsp/analysis.hpp"

/// Answers about one program, as the protocol has them.  Offsets count through all parts of the
/// source; that of the open text comes first.
namespace tplimit::lsp {

using Json = nlohmann::json;

/// Which numbers the protocol gives to kinds of tokens: an index here.
inline constexpr const char* kTokenTypes[] = {"variable", "parameter", "function", "property",
                                              "type"};
inline constexpr const char* kTokenModifiers[] = {"declaration", "readonly"};

[[nodiscard]] Json json_of(const Positions& positions, Span span, std::size_t part_begin = 0);

/// Null where there is nothing to say.
[[nodiscard]] Json hover(const Analysis& analysis, std::size_t offset);
[[nodiscard]] Json completions(const Analysis& analysis, std::size_t offset);
[[nodiscard]] Json document_symbols(const Analysis& analysis);
[[nodiscard]] Json semantic_tokens(const Analysis& analysis);

/// Why a symbol may not be called `name`; empty: it may.
[[nodiscard]] std::string rename_fault(const Analysis& analysis, std::size_t symbol,
                                       const std::string& name);

/// The name, with those of imports before it, that ends at or lies around an offset of a text.
[[nodiscard]] std::string_view word_at(std::string_view text, std::size_t offset);

}  // namespace tplimit::lsp
