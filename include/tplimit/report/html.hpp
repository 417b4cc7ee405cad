#pragma once

#include <string>

#include "tplimit/report/document.hpp"

namespace tplimit {

/// A page that needs nothing else: styles, charts as SVG with their numbers, a short script for
/// sliders, values under the pointer and CSV.  It can be read and printed without the script too.
/// Large arrays show their first and last rows and columns; docs/cli.md, "Pages".
std::string to_html(const document::Document& document);

}  // namespace tplimit
