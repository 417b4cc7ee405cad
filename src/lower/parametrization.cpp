#include "tplimit/lower/parametrization.hpp"

namespace tplimit {

const char* to_string(Role role) {
  switch (role) {
    case Role::kInput: return "input";
    case Role::kHidden: return "hidden";
    case Role::kOutput: return "output";
    case Role::kBias: return "bias";
  }
  return "";
}

std::optional<Role> role_from(const std::string& name) {
  for (const Role role : {Role::kInput, Role::kHidden, Role::kOutput, Role::kBias})
    if (name == to_string(role)) return role;
  return std::nullopt;
}

Abc Parametrization::of(Role role, bool has_width) const {
  if (!has_width) return {0, 0, finite_rate, 0};
  return weights[role == Role::kHidden ? 1 : role == Role::kOutput ? 2 : 0];
}

Exponent Parametrization::first_rate(Role role, bool has_width, std::int64_t layers) const {
  if (!large_first_rates || !has_width) return of(role, has_width).c;
  return role == Role::kHidden ? -Exponent(layers + 2, 2) : -Exponent(layers + 1, 2);
}

std::optional<Parametrization> known_parametrization(const std::string& name, bool entrywise) {
  const Exponent half(1, 2);
  if (entrywise) {
    if (name == "mup" || name == "depth_mup")
      return Parametrization{name, true, {{{0, 0, 0, 1}, {0, half, 1, 1}, {1, 0, 0, 1}}}};
    if (name == "ntk")
      return Parametrization{
          name, true, {{{0, 0, half, half}, {half, 0, 1, 1}, {half, 0, half, half}}}};
    if (name == "standard")
      return Parametrization{
          name, true, {{{0, 0, 1, half}, {0, half, 1, half}, {0, half, 1, 0}}}, 1};
    return std::nullopt;
  }
  // depth_mup: the 1/sqrt(depth) of each residual branch is a finite factor and stands in the
  // program; the powers of n are those of mup.
  if (name == "mup" || name == "depth_mup")
    return Parametrization{
        name, false, {{{-half, half, 0, 0}, {0, half, 0, 0}, {half, half, 0, 0}}}};
  if (name == "ntk")
    return Parametrization{name, false, {{{0, 0, 0, 0}, {half, 0, 0, 0}, {half, 0, 0, 0}}}};
  if (name == "standard")
    return Parametrization{name, false, {{{0, 0, 1, 0}, {0, half, 1, 0}, {0, half, 1, 0}}}, 1};
  if (name == "mean_field")
    return Parametrization{name, false, {{{0, 0, -1, 0}, {1, 0, -1, 0}, {1, 0, -1, 0}}}};
  if (name == "ip" || name == "ip_llr")
    return Parametrization{
        name, false, {{{0, 0, -1, 0}, {1, 0, -2, 0}, {1, 0, -1, 0}}}, 0, name == "ip_llr"};
  return std::nullopt;
}

std::vector<std::string> known_parametrizations() {
  return {"mup", "ntk", "standard", "mean_field", "ip", "ip_llr", "depth_mup"};
}

Abc shifted(Abc x, Exponent t, bool entrywise) {
  return entrywise ? Abc{x.a + t, x.b - t, x.c - t, x.d + t}
                   : Abc{x.a + t, x.b - t, x.c - t - t, x.d};
}

}  // namespace tplimit
