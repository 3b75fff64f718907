// Which elements a block and a thread of it touch. Plain C++ for host and device that follows no pointer to a tensor.
//
// A tensor is cut into chunks; the chunks of all tensors of a launch are numbered one after the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../real.h"

namespace sharpkern::cuda {

using Word = std::uint64_t;

constexpr int kThreads = 256;
constexpr int kChunkBits = 12;
constexpr std::int64_t kChunk = 1 << kChunkBits;  // elements
constexpr int kPartials = 8192;                   // room for so many partial sums of a norm

// One word says where a tensor lies: the number of its first chunk, and how many elements its last chunk lacks.
SHARPKERN_INLINE std::int64_t chunks_of(std::int64_t numel) { return (numel + kChunk - 1) >> kChunkBits; }
SHARPKERN_INLINE Word extent(std::int64_t first_chunk, std::int64_t numel) {
  return Word(first_chunk) << kChunkBits | Word(chunks_of(numel) * kChunk - numel);
}
SHARPKERN_INLINE std::int64_t first_chunk(Word extent) { return std::int64_t(extent >> kChunkBits); }
SHARPKERN_INLINE std::int64_t missing(Word extent) { return std::int64_t(extent & (kChunk - 1)); }

// A chunk: elements first ... first + count of a tensor.
struct Piece {
  int tensor;
  int count;
  std::int64_t first;
};

// The chunk of that number; extents holds one word a tensor and the end. Empty tensors own no chunk and are skipped.
SHARPKERN_INLINE Piece locate(const Word* extents, int tensors, std::int64_t chunk) {
  int low = 0, high = tensors;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first_chunk(extents[middle]) <= chunk ? low : high) = middle;
  }
  const std::int64_t begin = first_chunk(extents[low]), end = first_chunk(extents[low + 1]);
  const std::int64_t count = chunk + 1 < end ? kChunk : kChunk - missing(extents[low]);
  return {low, chunk < end ? int(count) : 0, (chunk - begin) * kChunk};
}

// A chunk starts at a multiple of 4096 elements: where the tensors are aligned in all lists, so are its vectors.
SHARPKERN_INLINE bool aligned(std::uintptr_t addresses_ored) { return addresses_ored % 16 == 0; }

// How many elements a thread takes at once: 16 bytes of the narrowest type.
template <class... T>
constexpr int kVectorLength = 16 / int(std::min({sizeof(T)...}));

// Calls visit(n, i) for runs i ... i + n of the chunk that are this thread's: n = length while they last, then n = 1.
template <int length, class Visit>
SHARPKERN_INLINE void for_each_run(int count, bool vectors, int thread, Visit visit) {
  const int whole = vectors ? count / length * length : 0;
  for (int i = thread * length; i < whole; i += kThreads * length) visit(std::integral_constant<int, length>(), i);
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int i = whole + thread; i < count; i += kThreads) visit(std::integral_constant<int, 1>(), i);
}

// How many consecutive chunks each block of a norm sums, so that there is room for the partial sums. Their number does
// not depend on the device, nor do the bits of the norm.
SHARPKERN_INLINE std::int64_t chunks_per_block(std::int64_t chunks, std::int64_t partials) {
  return chunks <= partials ? 1 : (chunks + partials - 1) / partials;
}

}  // namespace sharpkern::cuda
