#pragma once

#include <string>

#include "tplimit/report/document.hpp"

namespace tplimit {

/// All charts of a document below each other, as a specification of Vega-Lite 5 with its data
/// inside; for notebooks.
std::string to_vega_lite(const document::Document& document);

}  // namespace tplimit
