// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011). A draw is a function of seed, draw number and the
// element's index in the flattened parameters, so it does not depend on threads, launch shape, backend or sharding.
#pragma once

#include <cstdint>

#include "real.h"

namespace sharpkern::SHARPKERN_ISA {

// What a stream of numbers is for; streams with the same seed do not overlap.
enum class Stream : std::uint32_t { normal = 0, rounding = 1 };

struct Words {
  std::uint32_t x[4];
};

// Four words for one counter. The key is the seed; the counter is (group, draw, stream).
SHARPKERN_INLINE Words philox(std::uint64_t seed, std::uint64_t group, std::uint32_t draw, Stream stream) {
  std::uint32_t c0 = std::uint32_t(group), c1 = std::uint32_t(group >> 32), c2 = draw, c3 = std::uint32_t(stream);
  std::uint32_t k0 = std::uint32_t(seed), k1 = std::uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t(0xD2511F53u) * c0, p1 = std::uint64_t(0xCD9E8D57u) * c2;
    c0 = std::uint32_t(p1 >> 32) ^ c1 ^ k0;
    c2 = std::uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = std::uint32_t(p1);
    c3 = std::uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Stochastic rounding takes 16 bits an element, 8 elements a group.
constexpr std::uint64_t kRoundingGroup = 8;

SHARPKERN_INLINE std::uint32_t rounding_bits(const Words& words, unsigned lane) {
  const std::uint32_t low = lane < 2 ? words.x[0] : words.x[1], high = lane < 6 ? words.x[2] : words.x[3];
  return ((lane < 4 ? low : high) >> (16 * (lane & 1))) & 0xffffu;  // no index: on a GPU it would put x in memory
}

SHARPKERN_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

SHARPKERN_INLINE float float_of(std::uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

// One of the two bfloat16 neighbours of x, as a float: the farther from 0 with the probability of x's place between them.
SHARPKERN_INLINE float round_bf16(float x, std::uint32_t random) {
  const std::uint32_t u = bits_of(x);
  return (u & 0x7fffffff) >= 0x7f800000 ? x : float_of((u + random) & 0xffff0000);
}

// The same for float16. Below 2^-14 its numbers are the multiples of 2^-24.
SHARPKERN_INLINE float round_f16(float x, std::uint32_t random) {
  const std::uint32_t u = bits_of(x), sign = u & 0x80000000, a = u ^ sign;
  const std::uint32_t units = std::uint32_t(float_of(a < 0x38800000 ? a : 0) * 0x1p40f);  // of 2^-40
  const float small = float((units + random) >> 16) * 0x1p-24f;
  const std::uint32_t normal = (a + (random >> 3)) & 0xffffe000;
  return float_of(sign | (a >= 0x7f800000 ? a : a < 0x38800000 ? bits_of(small) : normal));
}

}  // namespace sharpkern::SHARPKERN_ISA
