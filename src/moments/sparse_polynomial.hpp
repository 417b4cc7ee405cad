#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

/// Polynomials in up to 16 independent standard normals.
namespace tplimit::moments {

inline std::size_t at(int i) { return static_cast<std::size_t>(i); }

inline constexpr int kMostSymbols = 16;
/// Exponents packed into bytes.
using Monomial = std::array<std::uint64_t, 2>;
/// Coefficients by exponents.
using Sparse = std::vector<std::pair<Monomial, double>>;
/// Most pairs of terms in a product.
inline constexpr std::size_t kMostProducts = 30'000'000;

/// The product of two monomials; `fits` becomes false if a degree is above 127.
Monomial multiplied(const Monomial& a, const Monomial& b, bool& fits);
/// E of a monomial: prod (e - 1)!! over even exponents, 0 if one is odd.
double expectation(const Monomial& m);
/// Sorted, one term for each monomial, without zeros.
Sparse collected(Sparse terms);
/// Empty optional: too large.
std::optional<Sparse> product(const Sparse& a, const Sparse& b);

}  // namespace tplimit::moments
