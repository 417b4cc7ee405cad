#pragma once

#include <optional>

#include "tplimit/driver/driver.hpp"
#include "tplimit/passes/gaussian_outputs.hpp"

namespace tplimit {

/// Where leading orders do not suffice, but covariances of random reports do.
struct CovarianceLimit {
  GaussianOutputs programs;
  LeadingOrder limit;
};
std::optional<CovarianceLimit> covariance_limit(const ir::Program& program);

/// The program with its scores of several widths taken apart (products_apart.hpp), where leading
/// orders refuse it as it is (`refused`) and get further so.
struct ProductsApart {
  ir::Program program;
  LeadingOrderResult limit;
};
std::optional<ProductsApart> limit_of_products_apart(const ir::Program& program,
                                                     const LeadingOrderResult& refused);

/// The limit of the program by leading orders; a report that tends to a Gaussian becomes its
/// covariance.  Where that is not enough, by graded values, conditional on random outputs drawn
/// from the seed.
Result<LeadingOrder> limit_of(const ir::Program& written, const EvaluateOptions& options);

/// Entrywise optimisers make matrices of all pairs of particles.
[[nodiscard]] bool has_entries(const ir::Program& program);

/// The same of all that the text names, not only of what reports need, if it has a limit.
Result<LeadingOrder> limit_of_names(const Module& module, const EvaluateOptions& options);

}  // namespace tplimit
