#pragma once

#include <cstddef>
#include <string>

#include "tplimit/report/comparison.hpp"
#include "tplimit/report/document.hpp"
#include "tplimit/report/numbers.hpp"
#include "tplimit/report/program_info.hpp"
#include "tplimit/report/results.hpp"

/// Documents as text for people.  Every function is pure; what it returns ends in a newline.
namespace tplimit {

struct TextOptions {
  bool full =
      false;  ///< every number; else large arrays show their first and last rows and columns
  std::size_t columns = 110;  ///< tables are cut to fit, unless `full`
  bool colours = false;       ///< of verdicts, by escape sequences of terminals
  bool sparklines = false;    ///< a small picture above each series, in UTF-8
};

std::string to_text(const document::Document& document, const TextOptions& options = {});

/// Of their documents; a narrow text shows fewer entries of a comparison.
std::string to_text(const LimitResult& limit, const ProgramInfo& program,
                    const TextOptions& options = {});
std::string to_text(const SimulationResult& networks, const ProgramInfo& program,
                    const TextOptions& options = {});
std::string to_text(const Comparison& comparison, const ProgramInfo& program,
                    const TextOptions& options = {});

}  // namespace tplimit
