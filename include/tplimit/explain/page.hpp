#pragma once

#include <string>
#include <vector>

#include "tplimit/explain/writing.hpp"
#include "tplimit/report/document.hpp"

namespace tplimit::explain {

/// For pages: its formulas are LaTeX, everything else is plain.  Arguments: those of to_text.
document::Document to_document(Formulas& formulas, const View& view,
                               const std::vector<Number>& numbers, const std::string& title);

}  // namespace tplimit::explain
