#include "tplimit/report/results.hpp"

#include <algorithm>

namespace tplimit {

const ReportResult* find_report(const std::vector<ReportResult>& reports, const std::string& name) {
  const auto found =
      std::find_if(reports.begin(), reports.end(), [&](const auto& r) { return r.name == name; });
  return found == reports.end() ? nullptr : &*found;
}

const char* to_string(Method method) {
  switch (method) {
    case Method::kExact: return "exact";
    case Method::kClosedForm: return "closed_form";
    case Method::kQuadrature: return "quadrature";
    case Method::kParticles: return "particles";
    case Method::kNetworks: return "networks";
    case Method::kSamples: return "samples";
  }
  return "?";
}

}  // namespace tplimit
