// Standard normal numbers from random words, by the transform of Box and Muller (1958). One formula for host and device;
// plain arithmetic, so that compilers vectorise it.
#pragma once

#include "philox.h"

namespace sharpkern::SHARPKERN_ISA {

// A draw of normals takes one word an element, 4 elements a group.
constexpr std::uint64_t kNormalGroup = 4;

// ln u for u = (word / 2 + 1/2) 2^-31, from 2^-32 to 1, within 2 ulp: exponent, and a polynomial on [sqrt(1/2), sqrt(2)].
SHARPKERN_INLINE float log_uniform(std::uint32_t word) {
  const std::uint32_t bits = bits_of(fused(float(std::int32_t(word >> 1)), 0x1p-31f, 0x1p-32f));
  const std::int32_t exponent = std::int32_t(bits - 0x3f3504f3u) >> 23;
  const float f = float_of(bits - (std::uint32_t(exponent) << 23)) - 1.0f;
  float p = 0.08722243458f;
  p = fused(p, f, -0.14366787672f);
  p = fused(p, f, 0.14952282608f);
  p = fused(p, f, -0.16562402248f);
  p = fused(p, f, 0.19956833124f);
  p = fused(p, f, -0.25002074242f);
  p = fused(p, f, 0.33334186673f);
  p = fused(p, f, -0.49999988079f);
  p = fused(p, f, 1.0f);
  return fused(float(exponent), 0.69314718056f, p * f);
}

struct Pair {
  float x, y;
};

// Two normals from two words: a radius from the first, an angle from the second. The angle is a fraction of the turn; its
// nearest quarter is taken off exactly, and polynomials give sine and cosine of what is left.
SHARPKERN_INLINE Pair normals(std::uint32_t first, std::uint32_t second) {
  const float radius = root(-2.0f * log_uniform(first));
  const std::uint32_t quarter = (second + 0x20000000u) >> 30;
  const float a = float(std::int32_t(second - (quarter << 30))) * 0x1p-31f, t = a * a;  // half turns
  float sine = -0.58901220560f;
  sine = fused(sine, t, 2.54976105690f);
  sine = fused(sine, t, -5.16770792007f);
  sine = fused(sine, t, 3.14159274101f) * a;
  float cosine = 0.23126092553f;
  cosine = fused(cosine, t, -1.33503592014f);
  cosine = fused(cosine, t, 4.05870676041f);
  cosine = fused(cosine, t, -4.93480205536f);
  cosine = fused(cosine, t, 1.0f);
  const bool odd = quarter & 1;
  const std::uint32_t x = bits_of(odd ? sine : cosine) ^ (((quarter + 1) & 2) << 30);
  const std::uint32_t y = bits_of(odd ? cosine : sine) ^ ((quarter & 2) << 30);
  return {radius * float_of(x), radius * float_of(y)};
}

}  // namespace sharpkern::SHARPKERN_ISA
