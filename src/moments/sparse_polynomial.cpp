#include "moments/sparse_polynomial.hpp"

#include <algorithm>

namespace tplimit::moments {

namespace {
std::uint64_t exponent(const Monomial& m, int k) { return m[at(k / 8)] >> (8 * (k % 8)) & 0xff; }

}  // namespace

Monomial multiplied(const Monomial& a, const Monomial& b, bool& fits) {
  constexpr std::uint64_t kLow = 0x7f7f7f7f7f7f7f7fULL;
  // Exponents below 128 cannot carry into the next byte.
  for (const std::size_t h : {0u, 1u}) fits = fits && ((a[h] | b[h]) & ~kLow) == 0;
  return {a[0] + b[0], a[1] + b[1]};
}

double expectation(const Monomial& m) {
  static const std::vector<double> table = [] {
    std::vector<double> t(256, 0.0);
    t[0] = 1;
    for (std::size_t e = 2; e < t.size(); e += 2) t[e] = t[e - 2] * static_cast<double>(e - 1);
    return t;
  }();
  constexpr std::uint64_t kOdd = 0x0101010101010101ULL;
  if (((m[0] | m[1]) & kOdd) != 0) return 0;
  double out = 1;
  for (int k = 0; k < kMostSymbols; ++k) out *= table[exponent(m, k)];
  return out;
}

Sparse collected(Sparse terms) {
  std::sort(terms.begin(), terms.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::size_t kept = 0;
  for (std::size_t i = 0; i < terms.size(); ++kept) {
    terms[kept] = terms[i];
    for (++i; i < terms.size() && terms[i].first == terms[kept].first; ++i)
      terms[kept].second += terms[i].second;
    if (terms[kept].second == 0) --kept;
  }
  terms.resize(kept);
  return terms;
}

std::optional<Sparse> product(const Sparse& a, const Sparse& b) {
  if (a.size() * b.size() > kMostProducts) return std::nullopt;
  bool fits = true;
  Sparse out;
  out.reserve(a.size() * b.size());
  for (const auto& [m, c] : a)
    for (const auto& [n, d] : b) out.emplace_back(multiplied(m, n, fits), c * d);
  if (!fits) return std::nullopt;
  return collected(std::move(out));
}

}  // namespace tplimit::moments
