#pragma once

#include <string>
#include <vector>

#include "tplimit/report/convergence.hpp"
#include "tplimit/report/results.hpp"

/// Names that text and JSON share.
namespace tplimit::words {

inline const char* word(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAgrees: return "agrees";
    case Verdict::kInconclusive: return "inconclusive";
    case Verdict::kDisagrees: return "disagrees";
  }
  return "?";
}

inline const char* word(ExpectStatus status) {
  switch (status) {
    case ExpectStatus::kPassed: return "pass";
    case ExpectStatus::kFailed: return "fail";
    case ExpectStatus::kUndecided: return "undecided";
  }
  return "?";
}

inline const char* precision(const SimulationResult& networks) {
  return networks.engine.single_precision ? "single" : "double";
}

inline const char* matrices(const SimulationResult& networks) {
  return networks.dense ? "dense" : "lazy";
}

/// Source text on one line: each run of blanks, line ends included, becomes one blank.
inline std::string one_line(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool blank = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!blank)
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

}  // namespace tplimit::words
