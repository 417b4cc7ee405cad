#pragma once

#include <cstdint>

#include "tplimit/ir/program.hpp"

namespace tplimit {

/// Finite matrices [.., k, l] as nodes: what several passes and the front end build.
[[nodiscard]] ir::NodeId identity_matrix(ir::Builder& b, std::int64_t k);
/// [.., i, j] -> [.., j, i].
[[nodiscard]] ir::NodeId transposed(ir::Builder& b, ir::NodeId x);
/// Of matrices [.., k, l] and [.., l, m] of equal leading axes.
[[nodiscard]] ir::NodeId matrix_product(ir::Builder& b, ir::NodeId x, ir::NodeId y);
/// A^-1 of A [.., k, k].
[[nodiscard]] ir::NodeId matrix_inverse(ir::Builder& b, ir::NodeId a);
/// By how much log det A moves with A: tr(A^-1 dA).
[[nodiscard]] ir::NodeId log_determinant_move(ir::Builder& b, ir::NodeId inverse, ir::NodeId move);

}  // namespace tplimit
