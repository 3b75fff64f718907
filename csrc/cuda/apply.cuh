// Traversal: one launch over all tensors, a block a chunk. Knows no formula.
#pragma once

#include <new>

#include "device.cuh"

namespace sharpkern::cuda {

// Makes what all threads of a block need, from double precision scalars, once. Before the next call all have to meet.
template <class T, class Make>
__device__ __forceinline__ T once(Make make) {
  alignas(8) __shared__ unsigned char room[sizeof(T)];
  if (threadIdx.x == 0) new (room) T(make());
  __syncthreads();
  return *reinterpret_cast<const T*>(room);
}

// The sum of x over the threads of a block, always in the same order; valid in thread 0.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warp[kThreads / 32];
#pragma unroll
  for (int offset = 16; offset; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
  if (threadIdx.x % 32 == 0) warp[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 1; i < kThreads / 32; ++i) x += warp[i];
  return x;
}

// Whether this is the last block of the launch to come here; then it sees what the others wrote before they came, and
// what it writes they do not see. The counter is back at 0 afterwards.
__device__ __forceinline__ bool last_to_arrive(unsigned* arrived) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

template <int kBytes>
__device__ __forceinline__ Piece piece(const Launch<kBytes>& launch, std::int64_t chunk) {
  return locate(launch.word, launch.tensors, chunk);
}

// The elements of a row that a chunk holds.
template <class T, int kBytes>
__device__ __forceinline__ T* elements(const Launch<kBytes>& launch, int row, const Piece& piece) {
  return global<T>(launch.at(row, piece.tensor)) + piece.first;
}

// Whether a tensor lies at 16-byte boundaries in the first `rows` rows of the launch.
template <int kBytes>
__device__ __forceinline__ bool aligned(const Launch<kBytes>& launch, int rows, const Piece& piece) {
  Word ored = 0;
  for (int row = 0; row < rows; ++row) ored |= launch.at(row, piece.tensor);
  return aligned(ored);
}

}  // namespace sharpkern::cuda
