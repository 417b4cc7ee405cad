#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "driver/run_store.hpp"

/// What the files of a checkpoint hold.
namespace tplimit {

// 1: version 0.1.0; 2: with terms of averages, and how many states were lost; 3: with scales of
// rounding and what particles do not resolve; 4: with entries of versions.  To be raised whenever a
// file of an older version can no longer be read.
inline constexpr std::uint32_t kFormat = 4;
inline constexpr std::string_view kStateEnding = ".run";

void save_result(engines::Writer& out, const engines::RunResult& result);
[[nodiscard]] engines::RunResult load_result(engines::Reader& in);

[[nodiscard]] Diagnostic store_error(std::string code, std::string message, std::string help);

}  // namespace tplimit
