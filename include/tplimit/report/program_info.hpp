#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/support/source.hpp"

namespace tplimit {

/// Bins of equal width from low to high, the outer ones open.
struct Bins {
  double low = 0, high = 0;
};

/// What the last axis of a report counts, for charts.
struct ReportForm {
  bool eigenvalues = false;    ///< of eigvals(..)
  std::optional<Bins> bins{};  ///< of hist(..): fractions per bin
};

/// Which program the numbers belong to.
struct ProgramInfo {
  Source source;
  std::string sha256;                                          ///< of the text
  std::vector<std::pair<std::string, std::string>> constants;  ///< what --set changed: name, value
  bool random_scalars = false;      ///< results are conditional on values drawn from the seed
  std::string ablations{};          ///< what was changed in the program; empty: nothing
  std::string fingerprint{};        ///< of the program with its data
  std::vector<ReportForm> forms{};  ///< of its reports; may be empty
  std::string command{};            ///< of the command line; empty: numbers of the library
  std::vector<std::pair<std::string, std::vector<std::string>>>
      options{};  ///< of the command line, as they were given: name, texts
};

}  // namespace tplimit
