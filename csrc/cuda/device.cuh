// Elements in memory and in registers: 16-byte accesses, and conversions to the arithmetic type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../philox.h"
#include "../select.h"
#include "../table.h"
#include "launch.h"

namespace sharpkern::cuda {

using namespace SHARPKERN_ISA;  // the formulas

struct Bf16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Bf16 x) { return float_of(std::uint32_t(x.bits) << 16); }
__device__ __forceinline__ float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }

__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(double x, double& out) { out = x; }
__device__ __forceinline__ void narrow(float x, Bf16& out) { out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ __forceinline__ void narrow(float x, Half& out) { out.bits = __half_as_ushort(__float2half_rn(x)); }

// A run of elements as it lies in memory: one element, or as many 16-byte words as it takes.
template <class T, int n>
struct Run {
  using Part = std::conditional_t<n == 1, T, uint4>;
  static constexpr int kParts = n * int(sizeof(T)) / int(sizeof(Part));
  Part part[kParts];
};

template <int n, class T>
__device__ __forceinline__ Run<T, n> load(const T* at) {
  Run<T, n> run;
#pragma unroll
  for (int k = 0; k < run.kParts; ++k) run.part[k] = reinterpret_cast<const typename Run<T, n>::Part*>(at)[k];
  return run;
}

template <class T, int n>
__device__ __forceinline__ void store(T* at, const Run<T, n>& run) {
#pragma unroll
  for (int k = 0; k < run.kParts; ++k) {
    if constexpr (n == 1) {
      at[k] = run.part[k];
    } else {
      __stwb(reinterpret_cast<uint4*>(at) + k, run.part[k]);  // an assignment may become four stores of 4 bytes
    }
  }
}

template <class T, int n, class R>
__device__ __forceinline__ void unpack(const Run<T, n>& run, R (&x)[n]) {
  T element[n];
  __builtin_memcpy(element, run.part, sizeof element);
#pragma unroll
  for (int j = 0; j < n; ++j) x[j] = widen(element[j]);
}

template <int n, class T, class R>
__device__ __forceinline__ void load(const T* at, R (&x)[n]) {
  unpack(load<n>(at), x);
}

template <class T, int n, class R>
__device__ __forceinline__ void store(T* at, const R (&x)[n]) {
  T element[n];
#pragma unroll
  for (int j = 0; j < n; ++j) narrow(x[j], element[j]);
  Run<T, n> run;
  __builtin_memcpy(static_cast<void*>(run.part), element, sizeof element);
  store(at, run);
}

// Weights in the arithmetic type: those at `at`, or the masters.
template <int n, class W, class R>
__device__ __forceinline__ void load_exact(bool master, const W* at, const float* masters, R (&w)[n]) {
  if constexpr (sizeof(W) == 2) {
    if (master) return load(masters, w);
  }
  load(at, w);
}

// An address as a pointer of which the compiler knows that it is global memory.
template <class T>
__device__ __forceinline__ T* global(Word address) {
  T* at = reinterpret_cast<T*>(address);
  __builtin_assume(__isGlobal(at));
  return at;
}

// A condition of which the compiler does not know that it is the same in every turn of a loop: it makes one loop of it
// with a branch inside, not one loop for each way, which takes longer to compile and more registers.
__device__ __forceinline__ bool opaque(bool condition) {
  int value = condition;
  asm volatile("" : "+r"(value));
  return value;
}

__device__ __forceinline__ bool finite(double x) { return x - x == 0; }

__device__ __forceinline__ double read(const Scalar& scalar) {
  if (!scalar.address) return scalar.value;
  return scalar.wide ? *static_cast<const double*>(scalar.address) : double(*static_cast<const float*>(scalar.address));
}

// How gradients are read: as they are, where nothing says otherwise.
template <class R>
__device__ __forceinline__ Taken<R> taken(const Header& header) {
  return header.take ? Taken<R>{R(header.take[0]), R(header.take[1])} : Taken<R>{R(1), R(INFINITY)};
}

// Some of them, read.
template <int n>
struct Doubles {
  double x[n];
  __device__ __forceinline__ explicit Doubles(const Scalar (&scalars)[n]) {
#pragma unroll
    for (int k = 0; k < n; ++k) x[k] = read(scalars[k]);
  }
};

}  // namespace sharpkern::cuda
