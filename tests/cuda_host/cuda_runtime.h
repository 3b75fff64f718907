// The part of CUDA that the kernels use, on the host: every thread of a block is a fiber, blocks run one after the other.
//
// Fibers run in an order that a seed shuffles, each up to the next barrier. All must come to the same barrier, or all end.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define __CUDACC__ 1
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __builtin_assume(condition) ((void)0)
#define __isGlobal(pointer) true

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx, gridDim;

namespace emulated {

inline std::string fault;
inline unsigned seed = 0;  // 0 runs threads and blocks in order, 1 in reverse, others shuffle them
inline int device = 0;

inline void require(bool condition, const char* what) {
  if (!condition && fault.empty()) fault = what;
}

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf point;
  int site;  // where it waits; 0 before it runs, -1 at its end
  static constexpr std::size_t kStack = 1 << 16;
};

inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline Fiber* running;
inline void (*body)(const void*);
inline const void* argument;

inline void wait(int site) {
  running->site = site;
  if (!_setjmp(running->point)) _longjmp(scheduler, 1);
}

inline void enter() {
  body(argument);
  running->site = -1;
  _longjmp(scheduler, 1);
}

inline std::vector<unsigned> order(unsigned n, unsigned salt) {
  std::vector<unsigned> all(n);
  std::iota(all.begin(), all.end(), 0u);
  if (seed == 1) std::reverse(all.begin(), all.end());
  if (seed > 1) std::shuffle(all.begin(), all.end(), std::minstd_rand(seed + salt));
  return all;
}

inline void resume(unsigned index) {
  running = &fibers[index];
  threadIdx.x = index;
  if (_setjmp(scheduler)) return;
  if (running->site > 0) _longjmp(running->point, 1);
  getcontext(&running->start);
  running->start.uc_stack = {running->stack.get(), 0, Fiber::kStack};
  running->start.uc_link = nullptr;
  makecontext(&running->start, enter, 0);
  setcontext(&running->start);
}

inline void run_block(unsigned threads) {
  if (fibers.size() != threads) fibers = std::vector<Fiber>(threads);
  for (Fiber& fiber : fibers) fiber.site = 0;
  for (unsigned round = 0;; ++round) {
    for (unsigned index : order(threads, blockIdx.x * 977 + round)) resume(index);
    const int site = fibers[0].site;
    for (const Fiber& fiber : fibers) require(fiber.site == site, "threads wait at different barriers");
    if (site == -1 || !fault.empty()) return;
  }
}

inline double slots[2][1024];
inline unsigned turn[1024];

}  // namespace emulated

#define __syncthreads() emulated::wait(__LINE__)
#define __threadfence() ((void)0)

inline double __shfl_down_sync(unsigned mask, double x, int offset) {
  emulated::require(mask == 0xffffffffu, "not all lanes shuffle");
  const unsigned me = threadIdx.x, parity = emulated::turn[me]++ % 2;
  emulated::slots[parity][me] = x;
  emulated::wait(1 << 20 | offset);
  return me % 32 + offset < 32 ? emulated::slots[parity][me + offset] : x;
}

inline unsigned atomicInc(unsigned* at, unsigned limit) {
  const unsigned old = *at;
  *at = old >= limit ? 0 : old + 1;
  return old;
}

inline double __ldcg(const double* at) { return *at; }

// 16 bytes that notice when they are read or written at an address that a GPU would refuse.
struct uint4 {
  std::uint32_t x, y, z, w;
  uint4() = default;
  uint4(const uint4& from) { *this = from; }
  uint4& operator=(const uint4& from) {
    emulated::require(reinterpret_cast<std::uintptr_t>(this) % 16 == 0, "a misaligned vector is written");
    emulated::require(reinterpret_cast<std::uintptr_t>(&from) % 16 == 0, "a misaligned vector is read");
    std::memcpy(static_cast<void*>(this), &from, 16);
    return *this;
  }
} __attribute__((aligned(16)));

inline void __stwb(uint4* at, uint4 word) { *at = word; }

inline cudaError_t cudaGetDevice(int* device) { return *device = emulated::device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return emulated::device = device, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? emulated::fault.c_str() : "invalid argument";
}

template <class Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters), const Parameters& given) {
  static void (*current)(Parameters);
  current = kernel;
  if (sizeof(Parameters) > 32764 || config->blockDim.x > 1024) return cudaErrorInvalidValue;
  emulated::fault.clear();
  emulated::body = [](const void* parameters) { current(*static_cast<const Parameters*>(parameters)); };
  emulated::argument = &given;
  gridDim = config->gridDim;
  for (unsigned block : emulated::order(config->gridDim.x, 0)) {
    blockIdx = dim3(block);
    emulated::run_block(config->blockDim.x);
  }
  return emulated::fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
