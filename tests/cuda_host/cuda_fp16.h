// float16 in software, rounded to the nearest even: what the CPU kernels do.
#pragma once

#include "../../csrc/cpu/half.h"

struct __half {
  std::uint16_t bits;
};
inline __half __ushort_as_half(std::uint16_t bits) { return {bits}; }
inline std::uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return sharpkern::generic::widen(x.bits); }
inline __half __float2half_rn(float x) { return {sharpkern::generic::narrow(x)}; }
