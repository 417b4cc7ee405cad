#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tplimit/support/source.hpp"

namespace tplimit {

/// Which program the numbers belong to.
struct ProgramInfo {
  Source source;
  std::string sha256;                                          ///< of the text
  std::vector<std::pair<std::string, std::string>> constants;  ///< what --set changed: name, value
  bool random_scalars = false;  ///< results are conditional on values drawn from the seed
  std::string ablations{};      ///< what was changed in the program; empty: nothing
  std::string fingerprint{};    ///< of the program with its data
};

}  // namespace tplimit
