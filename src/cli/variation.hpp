#pragma once

#include "cli/shared.hpp"
#include "tplimit/driver/variations.hpp"

/// Commands that evaluate a program for several values of its constants.
namespace tplimit::cli {

/// The program for other values of its constants, and the text that diagnostics quote.
class Varied {
 public:
  explicit Varied(const Options& options) : options_(options) {}
  [[nodiscard]] ModuleOf module_of() {
    return [this](const Constants& varied, std::uint64_t draw) {
      Options own = options_;
      own.lower.constants.insert(own.lower.constants.end(), varied.begin(), varied.end());
      Loaded loaded = load(own, draw);
      source_ = std::move(loaded.source);
      return std::move(loaded.module);
    };
  }
  [[nodiscard]] const Source& source() const { return source_; }

 private:
  const Options& options_;
  Source source_{"", ""};
};

/// The options of all evaluations.
inline CompareOptions evaluation(const Options& options, std::optional<Checkpoint>& checkpoint,
                                 ProgressBar& bar) {
  CompareOptions out = request(options).options;
  out.evaluate = kept(out.evaluate, checkpoint);
  out.simulate = kept(out.simulate, checkpoint);
  out.evaluate.progress = bar.stage(options.command, 1);
  return out;
}

}  // namespace tplimit::cli
