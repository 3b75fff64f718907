// bfloat16 and float16 to float32 and back, rounding to nearest even, NaN kept. Loops that compilers vectorise.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "../philox.h"
#include "../real.h"
#include "stream.h"
#include "strip.h"

namespace sharpkern::SHARPKERN_ISA {

static void from_bf16(Operand<const std::uint16_t> in, float* out, std::uint16_t* saved, std::size_t n) {
  for_each_strip(n, [&](std::size_t first, std::size_t count) __attribute__((always_inline)) {
    prefetch(in, first);
    if (saved) stream(saved + first, in.at + first, count * 2);
    for (std::size_t i = first; i < first + count; ++i) out[i] = float_of(std::uint32_t(in[i]) << 16);
  });
}

static void to_bf16(const float* in, std::uint16_t* out, bool streaming, std::size_t n) {
  for_each_put(streaming, out, n, [&](std::uint16_t* to, std::size_t first, std::size_t count) __attribute__((always_inline)) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t u = bits_of(in[first + i]);
      const std::uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
      const std::uint32_t quiet = (u >> 16) | 0x40;
      to[i] = std::uint16_t((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
    }
  });
}

// binary16 has 5 exponent bits of bias 15: scaling by 2^112 moves its exponent to where binary32 has it, subnormals too.
static SHARPKERN_INLINE float widen(std::uint16_t h) {
  const std::uint32_t sign = std::uint32_t(h & 0x8000) << 16;
  const std::uint32_t low = std::uint32_t(h & 0x7fff) << 13;
  const float scaled = float_of(low) * 0x1p112f;
  const std::uint32_t special = low | 0x7f800000;  // exponent 31: infinity or NaN
  return float_of(sign | ((h & 0x7c00) == 0x7c00 ? special : bits_of(scaled)));
}

static SHARPKERN_INLINE std::uint16_t narrow(float x) {
  const std::uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  // Subnormal: adding 1/2 leaves the value in units of 2^-24 in the low bits, rounded by the addition itself.
  const std::uint32_t tiny = bits_of(float_of(a) + 0.5f) - 0x3f000000;
  const std::uint32_t normal = (a - (112u << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
  const std::uint32_t finite = a < (113u << 23) ? tiny : (normal > 0x7c00 ? 0x7c00 : normal);
  const std::uint32_t nan = 0x7e00 | ((a >> 13) & 0x3ff);
  return std::uint16_t(sign | (a > 0x7f800000 ? nan : (a >= 0x47800000 ? 0x7c00u : finite)));
}

static void from_f16(Operand<const std::uint16_t> in, float* out, std::uint16_t* saved, std::size_t n) {
  for_each_strip(n, [&](std::size_t first, std::size_t count) __attribute__((always_inline)) {
    prefetch(in, first);
    if (saved) stream(saved + first, in.at + first, count * 2);
    std::size_t i = first;
#ifdef __F16C__
    for (; i + 8 <= first + count; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in.at + i))));
#endif
    for (; i < first + count; ++i) out[i] = widen(in[i]);
  });
}

static void to_f16(const float* in, std::uint16_t* out, bool streaming, std::size_t n) {
  for_each_put(streaming, out, n, [&](std::uint16_t* to, std::size_t first, std::size_t count) __attribute__((always_inline)) {
    std::size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + first + i), 0));
#endif
    for (; i < count; ++i) to[i] = narrow(in[first + i]);
  });
}

// in place: each element becomes a neighbour that its dtype of 16 bits has
static void stochastic_bf16(float* x, const std::uint32_t* random, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) x[i] = round_bf16(x[i], random[i]);
}

static void stochastic_f16(float* x, const std::uint32_t* random, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) x[i] = round_f16(x[i], random[i]);
}

}  // namespace sharpkern::SHARPKERN_ISA
