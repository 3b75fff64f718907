#pragma once

#include "apply.cuh"

namespace sharpkern::cuda {

// w <- w0 for one chunk, bit for bit; masters are rounded. Rows: 0 is the weight, 1 the source.
template <class W, int kBytes>
__device__ __forceinline__ void give_back(const Launch<kBytes>& launch, const Piece& p) {
  constexpr int kLength = kVectorLength<W>;
  if (launch.at(0, p.tensor) == launch.at(1, p.tensor)) return;
  W* weight = elements<W>(launch, 0, p);
  const bool vectors = aligned(launch, 2, p);
  if constexpr (sizeof(W) == 2) {
    if (launch.master) {
      const float* source = elements<const float>(launch, 1, p);
      return for_each_run<kLength>(p.count, vectors, threadIdx.x, [&](auto length, int i) {
        float w[decltype(length)::value];
        load(source + i, w);
        store(weight + i, w);
      });
    }
  }
  const W* source = elements<const W>(launch, 1, p);
  for_each_run<kLength>(p.count, vectors, threadIdx.x, [&](auto length, int i) {
    store(weight + i, load<decltype(length)::value>(source + i));
  });
}

template <class W, int kBytes>
__global__ void __launch_bounds__(kThreads) restore_kernel(const __grid_constant__ Launch<kBytes> launch) {
  if (finite(*launch.total)) give_back<W>(launch, piece(launch, blockIdx.x));
}

}  // namespace sharpkern::cuda
