#include "tplimit/report/results.hpp"

namespace tplimit {

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
