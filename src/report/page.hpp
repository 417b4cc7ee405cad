#pragma once

#include <string_view>

/// What every page carries.
namespace tplimit::page {

std::string_view style();        ///< page.css
std::string_view chart_style();  ///< chart.css
std::string_view script();       ///< page.js

}  // namespace tplimit::page
