#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

/// Random and quasi-random standard normals, each a function of its key and index alone, and the
/// keys. All of them have the same bits on every machine (IEEE doubles; the library is built with
/// -ffp-contract=off).  Thread-safe.
namespace tplimit {

/// Mixes a key with one more word; chains build the key of a stream from (seed, randomisation,
/// matrix, side, ..). A bijection of `word` for fixed `key` (splitmix64 finaliser), so different
/// words never collide; and of `key` for fixed `word`.
[[nodiscard]] std::uint64_t mix_key(std::uint64_t key, std::uint64_t word);

/// FNV-1a of a text, then mixed; turns names into words for mix_key.
[[nodiscard]] std::uint64_t hash_text(const char* text, std::size_t size);

/// Phi^-1(p), the standard normal quantile.
/// Returns: relative error < 1e-15 for p in (0, 1); -infinity at 0, infinity at 1, NaN elsewhere.
/// Source: Wichura 1988, Algorithm AS 241, PPND16.
[[nodiscard]] double normal_quantile(double p);

/// out[i] = standard normal number `first + i` of stream `key`: counter-based, any part can be made
/// at any time. 53-bit uniforms, symmetric about 1/2 (a sign and a tail probability (k + 1/2) 2^-53
/// with k < 2^52), through the normal quantile; |out| < 8.3, never 0.  Results do not depend on how
/// a range is cut into calls. Cost: about 3 ns per number (AVX-512).
void plain_normals(std::uint64_t key, std::uint64_t first, std::span<double> out);

/// Number of dimensions of the Sobol sequence (Joe & Kuo direction numbers, as in Boost.Random).
inline constexpr std::size_t kSobolDimensions = 3667;

/// out[i] = coordinate `dimension` of point `first + i` of the Sobol sequence (gray-code order is
/// NOT used: point i follows from the bits of i alone), scrambled by a hash-based nested uniform
/// (Owen) scramble with `key`, mapped to a standard normal. Each 32-bit coordinate k becomes
/// Phi^-1((k + 1/2) 2^-32); |out| < 6.4.  Over random keys every single coordinate is uniform, and
/// every net property of the sequence survives each key.  Different dimensions must get different
/// keys. Results do not depend on how a range is cut into calls. Errors: InternalError unless first
/// + out.size() <= 2^32 and dimension < kSobolDimensions. Cost: about 3 ns per number (AVX-512) for
/// 64 or more; the first call of a process makes the table of all dimensions (2 ms). Source: Joe &
/// Kuo 2008; Owen 1995; Burley, JCGT 9(4), 2020.
void sobol_normals(std::size_t dimension, std::uint64_t key, std::uint64_t first,
                   std::span<double> out);

}  // namespace tplimit
