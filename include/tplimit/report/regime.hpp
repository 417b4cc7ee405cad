#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/passes/passes.hpp"
#include "tplimit/passes/regime.hpp"
#include "tplimit/report/depth.hpp"
#include "tplimit/report/document.hpp"
#include "tplimit/report/program_info.hpp"
#include "tplimit/support/source.hpp"

/// What can be said of a program before numbers are computed.
namespace tplimit {

/// The limit's reports: how many numbers, how large they are, how each is found, and why not by a
/// stronger method.  `methods`: one for each report.
document::Document document_of(const LeadingOrder& limit, const std::vector<ReportMethod>& methods,
                               const Source& source);

/// Sizes of features, their changes and the effects of updates as tables, the verdict, and what to
/// change.
document::Document document_of(const RegimeReport& report, const ir::Program& program,
                               const Source& source);

/// The same as JSON (docs/json.md); exponents are numbers, null where a value is exactly 0.
/// `depth`: what is measured of a program that declares one.
std::string to_json(const RegimeReport& report, const ir::Program& program, const ProgramInfo& info,
                    const DepthCheck* depth = nullptr);

/// Initial variance, multiplier and rates of every parameter in the three equivalent forms W = n^-a
/// w, w ~ n^-b N(0, s^2): a = 0, b = 0, and an SGD rate without n.
/// `base`: then also as factors, for a width, on what is right at a smaller one.
struct BaseWidth {
  std::int64_t width, base;
};
document::Document parametrizations(const RegimeReport& report, const ir::Program& program,
                                    const std::optional<BaseWidth>& base = {});

}  // namespace tplimit
