#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moments/function_table.hpp"

/// Integrals along a line of products of functions of the FunctionTable, by rules whose panels are
/// proved to be fine enough.
namespace tplimit::moments {

/// z -> f(mean + slope z).
struct LineFunction {
  FunctionTable::Id f;
  double mean = 0, slope = 1;
};

enum class LineStatus {
  kConverged,
  kNotConverged,  ///< the panels ran out; values and errors are what was found
  kDiverges,  ///< the integral of the absolute value is infinite, or so heavy that no panels could
              ///< tell
};

struct LineRule {
  LineStatus status = LineStatus::kConverged;
  struct Panel {
    double from, to;
  };
  std::vector<Panel>
      panels;  ///< sorted, of which each carries a Gauss rule; gaps between them do not count
  std::vector<double> kinks;                   ///< where panels were cut at kinks
  double value = 0, error = 0, magnitude = 0;  ///< of the integral of the product times phi^power
};

inline constexpr int kLineNodes = 16;

/// Integral of prod_k f_k(z) phi(z)^power, phi the standard normal density, power 1 or 1/2.
///
/// A panel [c - h, c + h] is accepted where rectangular complex interval arithmetic bounds the
/// product by M on a box that contains the Bernstein ellipse of half-axes 2 h and sqrt(3) h; the
/// Gauss rule of n points then errs by at most 64/15 h M r^(-2n) / (1 - r^-2), r = 2 + sqrt(3)
/// (Trefethen, SIAM Rev. 50 (2008), theorem 4.5; Petras, J. Comput. Appl. Math. 145 (2002)). Others
/// are halved, at a root of what a kink depends on if there is one.  So oscillations, steep steps,
/// narrow bells and kinks are found from the expression, and none can be missed.  At a singular
/// point panels shrink geometrically; the rest of the series is extrapolated, and diverges if its
/// terms do not decrease.
[[nodiscard]] LineRule line_rule(const FunctionTable& table,
                                 std::span<const LineFunction> functions, double power,
                                 int most_panels = 20'000);

/// (y, z) -> f(mean + a y + b z).
struct PlaneFunction {
  FunctionTable::Id f;
  double mean, a, b;
};
struct PlaneRule {
  LineStatus status = LineStatus::kConverged;
  double value = 0, error = 0, magnitude = 0;
};

/// E prod_k f_k(y, z) for independent standard normals: one integral inside the other, panels as
/// fine as the line rules of the f_k ask; the outer one sees what is sharp smoothed by the inner
/// one, over |b|.  Error: the difference from rules of 12 points.
[[nodiscard]] PlaneRule plane_rule(const FunctionTable& table,
                                   std::span<const PlaneFunction> functions);

/// Nodes z and weights w of a rule for integrals of f(slope z) phi(z) p(z), p polynomials of degree
/// below `order`.
void hermite_nodes(const FunctionTable& table, FunctionTable::Id f, double slope,
                   std::int64_t order, std::vector<double>& z, std::vector<double>& w);

}  // namespace tplimit::moments
