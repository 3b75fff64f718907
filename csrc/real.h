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

SHARPKERN_INLINE bool finite(float x) { return x - x == 0; }
SHARPKERN_INLINE bool finite(double x) { return x - x == 0; }

// e^x within 2 ulp, from e^-87 to e^88 for x beyond; 1 for 0. The power of two is the nearest, taken off in two parts;
// a polynomial gives the rest.
SHARPKERN_INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = fused(x, 1.44269504f, 0x1.8p23f), power = shifted - 0x1.8p23f;
  const float r = fused(power, 2.12194440e-4f, fused(power, -0.693359375f, x));
  float p = 0.00139504857f;
  p = fused(p, r, 0.00836888794f);
  p = fused(p, r, 0.0416662060f);
  p = fused(p, r, 0.166665182f);
  p = fused(p, r, 0.5f);
  p = fused(p, r, 1.0f);
  p = fused(p, r, 1.0f);
  unsigned bits, scale;
  __builtin_memcpy(&bits, &p, 4);
  __builtin_memcpy(&scale, &shifted, 4);
  bits += scale << 23;
  __builtin_memcpy(&p, &bits, 4);
  return p;
}
SHARPKERN_INLINE double exponential(double x) { return exp(x < -700 ? -700 : x > 700 ? 700 : x); }

}  // namespace sharpkern::SHARPKERN_ISA
