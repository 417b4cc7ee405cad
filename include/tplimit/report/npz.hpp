#pragma once

#include <filesystem>
#include <string>

#include "tplimit/report/comparison.hpp"
#include "tplimit/report/results.hpp"
#include "tplimit/report/text.hpp"

/// Results as NumPy archives, for arrays that are too large for text; docs/json.md describes the
/// members.
namespace tplimit {

/// An array of doubles for each report, "NAME.npy"; "NAME_stderr.npy" and "NAME_spread.npy" where
/// there are such, "NAME_runs.npy" [seeds, ..] of networks; and "tplimit.json", the file of to_json
/// without arrays.  Uncompressed, written array by array; the file is replaced as a whole. Returns:
/// "", or why it failed.
std::string write_npz(const std::filesystem::path& file, const LimitResult& limit,
                      const ProgramInfo& program);
std::string write_npz(const std::filesystem::path& file, const SimulationResult& networks,
                      const ProgramInfo& program);
/// Those of the limit, and of each report that is compared "NAME_mean.npy", "_sem", "_sd", "_rms",
/// each [widths, ..].
std::string write_npz(const std::filesystem::path& file, const Comparison& comparison,
                      const ProgramInfo& program);

}  // namespace tplimit
