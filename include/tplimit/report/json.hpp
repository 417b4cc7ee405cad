#pragma once

#include <string>
#include <variant>

#include "tplimit/report/comparison.hpp"
#include "tplimit/report/coordinates.hpp"
#include "tplimit/report/results.hpp"
#include "tplimit/report/text.hpp"

/// Results as JSON for programs; docs/json.md describes the schema.  UTF-8, ends in a newline; no
/// NaN or infinity: null.
namespace tplimit {

/// Of this library, such as "0.2.0".
const char* version();

/// A JSON object, as text, behind the header of all files: version, command, program.
std::string with_header(const ProgramInfo& program, const std::string& object);

/// Without `arrays` values and errors are null: they stand elsewhere.
std::string to_json(const LimitResult& limit, const ProgramInfo& program, bool arrays = true);
std::string to_json(const SimulationResult& networks, const ProgramInfo& program,
                    bool arrays = true);
/// That of the limit, and "compare".
std::string to_json(const Comparison& comparison, const ProgramInfo& program, bool arrays = true);
std::string to_json(const CoordinateCheck& check, const ProgramInfo& program);

/// The limit that to_json wrote, of the program `program`; `networks` has its reports.  Else why it
/// cannot stand for that limit.  No warnings.
std::variant<LimitResult, std::string> limit_from_json(const std::string& json,
                                                       const ProgramInfo& program,
                                                       const ir::Program& networks);

}  // namespace tplimit
