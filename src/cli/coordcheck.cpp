#include <algorithm>

#include "cli/shared.hpp"

namespace tplimit::cli {

int coordcheck(const Options& given) {
  Options options = given;
  const bool usual = options.widths.empty();
  if (usual) options.widths = kUsualWidths;
  if (const std::string fault = output_fault(options); !fault.empty()) return complain(fault);
  const Loaded loaded = load(options);
  if (!loaded.module) return reject(loaded.module.errors(), loaded.source);
  if (usual) fit_widths(options.widths, *loaded.module);
  const Result<CoordinateCheck> check = [&] {
    ProgressBar bar(show_progress(options));
    SimulateOptions networks = options.simulate;
    networks.progress = bar.stage("networks", 0.5);
    EvaluateOptions limit = options.evaluate;
    limit.progress = bar.stage("limit", 0.5);
    return coordinate_check(*loaded.module, options.coordinate_steps, options.widths, networks,
                            limit);
  }();
  if (!check) return reject(check.errors(), loaded.source);
  const bool faster = std::any_of(check->values.begin(), check->values.end(), [](const auto& v) {
    for (std::size_t k = 0; k < v.steps.size(); ++k)
      if (growth(v, k) == Growth::kFaster) return true;
    return false;
  });
  return deliver("coordcheck", *check, *loaded.module, check->warnings, options,
                 faster ? kFailed : kDone);
}

}  // namespace tplimit::cli
