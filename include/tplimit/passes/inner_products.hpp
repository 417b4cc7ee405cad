#pragma once

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// <A, B> = sum_ij A_ij B_ij / n of versions of matrices by products with vectors:
///   <A, W + c D X' / n> = <A, W> + c E(D . A X) / n,
/// and so on down to the Gaussian matrices, whose products among each other, and with what
/// entrywise updates add, remain.  What is divided by n is added up by itself, so that in
/// differences of norms the large parts meet and cancel.  Keeps: every output at every width, up to
/// rounding. Cost: O(1) for the next version of a matrix whose products are known, W_{t+1} after
/// W_t.
ir::Program expand_inner_products(const ir::Program& program);

}  // namespace tplimit
