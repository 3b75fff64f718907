// bfloat16 in software, rounded to the nearest even.
#pragma once

#include "../../csrc/cpu/half.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  __nv_bfloat16 result;
  sharpkern::generic::to_bf16(&x, &result.bits, false, 1);
  return result;
}
