// Random numbers for a run of elements; a function of the index of its first one.
#pragma once

#include "../normal.h"
#include "apply.cuh"

namespace sharpkern::cuda {

// Where the elements of a chunk lie in the flattened parameters. Runs have less than 2^31 elements: within a chunk 32
// bits are enough to divide.
struct Indices {
  std::uint64_t base, pitch;  // of the run in which the chunk begins, and from run to run
  unsigned rest, run;         // elements of that run before the chunk, and of every run; or (0) all is one

  // From the row that holds the starts.
  template <int kBytes>
  __device__ __forceinline__ static Indices of(const Launch<kBytes>& launch, int row, const Piece& p) {
    const std::uint64_t start = launch.at(row, p.tensor), first = std::uint64_t(p.first);
    const std::uint64_t run = launch.cut ? launch.at(row + 1, p.tensor) : 0;
    if (run == 0) return {start + first, 0, 0, 0};
    const std::uint64_t pitch = launch.at(row + 2, p.tensor);
    return {start + first / run * pitch, pitch, unsigned(first % run), unsigned(run)};
  }

  // Whether a run of as many elements as a thread takes at once starts a group of random numbers.
  __device__ __forceinline__ bool grouped() const { return (base | run | pitch) % kRoundingGroup == 0; }

  __device__ __forceinline__ std::uint64_t operator()(int i) const {
    const unsigned j = rest + unsigned(i);
    return base + (run ? j / run * pitch + j % run : j);
  }
};

// The standard normal numbers of elements index ... index + n. A run starts a group of them, or lies within one.
template <int n, class R>
__device__ __forceinline__ void draw_normals(std::uint64_t seed, std::uint32_t draw, std::uint64_t index, R (&eta)[n]) {
  if constexpr (n < int(kNormalGroup)) {
    const Words words = philox(seed, index / kNormalGroup, draw, Stream::normal);
    const bool second = index & 2;
    const Pair pair = normals(second ? words.x[2] : words.x[0], second ? words.x[3] : words.x[1]);
    eta[0] = R(n == 1 && (index & 1) ? pair.y : pair.x);
    if constexpr (n == 2) eta[1] = R(pair.y);
  } else {
#pragma unroll
    for (int j = 0; j < n; j += int(kNormalGroup)) {
      const Words words = philox(seed, (index + j) / kNormalGroup, draw, Stream::normal);
      const Pair first = normals(words.x[0], words.x[1]), second = normals(words.x[2], words.x[3]);
      eta[j] = R(first.x);
      eta[j + 1] = R(first.y);
      eta[j + 2] = R(second.x);
      eta[j + 3] = R(second.y);
    }
  }
}

// One of the neighbours of each element in W, by the random bits of their indices. A run starts a group of them, or
// is one element.
template <class W, int n>
__device__ __forceinline__ void round_at_random(float (&x)[n], std::uint64_t seed, std::uint64_t index,
                                                std::uint32_t draw) {
  static_assert(n == 1 || n == kRoundingGroup);
  const Words words = philox(seed, index / kRoundingGroup, draw, Stream::rounding);
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const std::uint32_t random = rounding_bits(words, n == 1 ? unsigned(index % kRoundingGroup) : j);
    x[j] = std::is_same_v<W, Bf16> ? round_bf16(x[j], random) : round_f16(x[j], random);
  }
}

}  // namespace sharpkern::cuda
