#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tplimit {

/// Mixes a key with one more word; chains build the key of a stream from (seed, randomisation, matrix, side, ..).
/// A bijection of `word` for fixed `key` (splitmix64 finaliser), so different words never collide.
[[nodiscard]] std::uint64_t mix_key(std::uint64_t key, std::uint64_t word);

/// FNV-1a of a text, then mixed; turns names into words for mix_key.
[[nodiscard]] std::uint64_t hash_text(const char* text, std::size_t size);

/// Phi^-1(p), the standard normal quantile; relative error < 1e-15 (Wichura 1988, AS241 PPND16).  p in (0, 1).
[[nodiscard]] double normal_quantile(double p);

/// out[i] = standard normal number `first + i` of stream `key`: counter-based, any part can be made at any time.
/// 53-bit uniforms through normal_quantile; |out| < 8.3.
void plain_normals(std::uint64_t key, std::uint64_t first, std::span<double> out);

/// Number of dimensions of the Sobol sequence (Joe & Kuo direction numbers, as in Boost.Random).
inline constexpr std::size_t kSobolDimensions = 3667;

/// out[i] = coordinate `dimension` of point `first + i` of the Sobol sequence (gray-code order is NOT used: point i follows from
/// the bits of i alone), scrambled by a hash-based nested uniform (Owen) scramble with `key`, mapped to a standard normal.
/// Different dimensions must get different keys.  first + out.size() <= 2^32.  dimension < kSobolDimensions.
/// Source: Joe & Kuo 2008; Owen 1995; Burley, JCGT 9(4), 2020.
void sobol_normals(std::size_t dimension, std::uint64_t key, std::uint64_t first, std::span<double> out);

}  // namespace tplimit
