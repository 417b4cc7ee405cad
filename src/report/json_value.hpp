#pragma once

#include <cmath>

#include <nlohmann/json.hpp>

/// What the writers of JSON in this module share.
namespace tplimit {

using Json = nlohmann::ordered_json;

/// null where it is not finite.
inline Json number(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

}  // namespace tplimit
