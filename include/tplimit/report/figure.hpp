#pragma once

#include <string>

#include "tplimit/report/document.hpp"

namespace tplimit {

/// All charts of a document below each other as one SVG, for papers: colours of white paper, heat
/// maps at their last frame, no scripts, no style that only browsers know.
std::string to_svg(const document::Document& document);

}  // namespace tplimit
