// Arithmetic at one coordinate, for host and device.
//
// The formulas are compiled once an instruction set, each time into the namespace that SHARPKERN_ISA names: a function
// that two object files share could be linked from the widest set into code that runs on the narrowest.
#pragma once

#include <cmath>

#ifndef SHARPKERN_ISA
#define SHARPKERN_ISA generic
#endif

#if defined(__CUDACC__)
#define SHARPKERN_INLINE __host__ __device__ __forceinline__
#else
#define SHARPKERN_INLINE inline __attribute__((always_inline))
#endif

namespace sharpkern::SHARPKERN_ISA {

#if defined(__CUDACC__)
SHARPKERN_INLINE float magnitude(float x) { return fabsf(x); }
SHARPKERN_INLINE double magnitude(double x) { return fabs(x); }
SHARPKERN_INLINE float root(float x) { return sqrtf(x); }
SHARPKERN_INLINE double root(double x) { return sqrt(x); }
#else
SHARPKERN_INLINE float magnitude(float x) { return __builtin_fabsf(x); }
SHARPKERN_INLINE double magnitude(double x) { return __builtin_fabs(x); }
SHARPKERN_INLINE float root(float x) { return __builtin_sqrtf(x); }
SHARPKERN_INLINE double root(double x) { return __builtin_sqrt(x); }
#endif

// a b + c rounded once where torch's kernels round once, twice on processors without the instruction, as there.
#if defined(__CUDACC__)
SHARPKERN_INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
SHARPKERN_INLINE double fused(double a, double b, double c) { return fma(a, b, c); }
#elif defined(__FMA__)
SHARPKERN_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SHARPKERN_INLINE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
SHARPKERN_INLINE float fused(float a, float b, float c) { return a * b + c; }
SHARPKERN_INLINE double fused(double a, double b, double c) { return a * b + c; }
#endif

// 1/x within 1 ulp (2 without FMA) for normal x below 2^125. On a CPU a division would take longer than memory does to
// deliver its operands. The integer difference negates the exponent and starts within 5.1 %; a Halley step cubes that
// error, a Newton step squares what is left.
SHARPKERN_INLINE float reciprocal(float x) {
#if defined(__CUDACC__)
  return 1.0f / x;
#else
  unsigned bits;
  __builtin_memcpy(&bits, &x, 4);
  bits = 0x7ef311c7u - bits;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  const float error = fused(-x, y, 1.0f);
  y = fused(y, fused(error, error, error), y);
  return fused(fused(-x, y, 1.0f), y, y);
#endif
}
SHARPKERN_INLINE double reciprocal(double x) { return 1.0 / x; }

}  // namespace sharpkern::SHARPKERN_ISA
