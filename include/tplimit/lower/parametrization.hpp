#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/support/exponent.hpp"

namespace tplimit {

/// What a parameter does in the network: which powers of the width a parametrisation gives it.
enum class Role { kInput, kHidden, kOutput, kBias };
[[nodiscard]] const char* to_string(Role role);
[[nodiscard]] std::optional<Role> role_from(const std::string& name);

/// One parameter W = n^-a w with w ~ n^-b N(0, s^2), trained by w -= eta n^-c g (SGD) or w -= eta
/// n^-c Q(n^d g) (entrywise).
struct Abc {
  Exponent a, b, c, d;
};

/// An abc-parametrisation [docs/theory.md, "Parametrisations"]: exponents of input, hidden and
/// output weights.  A bias counts as an input weight of fan-in 1; one without a width axis has a =
/// b = 0.
struct Parametrization {
  std::string name;
  bool entrywise = false;      ///< exponents are for sign- and Adam-like optimisers
  std::array<Abc, 3> weights;  ///< input, hidden, output
  Exponent finite_rate = 0;    ///< c of parameters without a width axis
  /// ip_llr: c of the first step, given the number of hidden layers; absent: as later.
  bool large_first_rates = false;

  [[nodiscard]] Abc of(Role role, bool has_width) const;
  /// c of the first step (`layers` hidden layers).
  [[nodiscard]] Exponent first_rate(Role role, bool has_width, std::int64_t layers) const;
};

/// mup, ntk, standard, mean_field, ip, ip_llr, depth_mup; with `entrywise` those of them that exist
/// for entrywise optimisers.
[[nodiscard]] std::optional<Parametrization> known_parametrization(const std::string& name,
                                                                   bool entrywise);
[[nodiscard]] std::vector<std::string> known_parametrizations();

/// The same training with a + t instead of a: SGD (a, b, c) -> (a + t, b - t, c - 2t); entrywise (a
/// + t, b - t, c - t, d + t).
[[nodiscard]] Abc shifted(Abc x, Exponent t, bool entrywise);

}  // namespace tplimit
