#include "cli/pass_log.hpp"

#include <fmt/format.h>

namespace tplimit::cli {

const std::vector<std::string>& PassLog::names() {
  static const std::vector<std::string> all{"lower",        "output-kernels", "linearise",
                                            "decouple",     "inner-products", "erase-identities",
                                            "cancel-terms", "leading-order",  "products-apart",
                                            "covariances",  "graded",         "at-width"};
  return all;
}

Observer PassLog::observer() {
  if (dump_after.empty() && !times) return {};
  return [this](const StageSeen& stage) {
    seen_.push_back(
        {std::string(stage.name), stage.seconds, stage.program ? stage.program->size() : 0});
    if (!stage.program || stage.name != dump_after) return;
    fmt::print("{}", ir::to_text(*stage.program));
    dumped_ = true;
  };
}

void PassLog::finish() const {
  if (!dump_after.empty() && !dumped_)
    fmt::print(stderr, "tplimit: the pass '{}' did not run, or made no program\n", dump_after);
  if (!times) return;
  for (const Time& t : seen_)
    fmt::print(stderr, "{:<18} {:>9.4f} s  {}\n", t.name, t.seconds,
               t.nodes > 0 ? fmt::format("{} instructions", t.nodes) : std::string());
}

}  // namespace tplimit::cli
