#pragma once

#include <cstddef>
#include <vector>

#include "tplimit/report/chart.hpp"
#include "tplimit/report/comparison.hpp"
#include "tplimit/report/program_info.hpp"
#include "tplimit/report/results.hpp"

/// Which charts a result has.
namespace tplimit::chart {

/// Curves over iterations with their errors, spectra, histograms, matrices; none of a single
/// number.
std::vector<Chart> charts_of(const ReportResult& r, const ReportForm& form);

/// The report of this index: curves of all widths around the limit, histograms, how deviation and
/// spread fall with the width, the limit's matrices and how far the widest networks are from them.
std::vector<Chart> charts_of(const Comparison& comparison, std::size_t report,
                             const ReportForm& form);

}  // namespace tplimit::chart
