// Traversal: one parallel region over all tensors, chunk by chunk. Knows no formula.
#pragma once

#include <emmintrin.h>

#include <algorithm>
#include <cstring>

#include "../table.h"
#include "kernels.h"

namespace sharpkern::cpu {

constexpr std::size_t kChunk = Table::kChunk;

// Fewer elements than this are done sooner by one thread than two can be woken.
constexpr std::size_t kParallel = 16384;

// Where the part of thread k of n begins: a tensor, and a multiple of the chunk within it.
struct Position {
  std::size_t tensor, element;
};

inline Position position(const Table& table, std::size_t k, std::size_t n) {
  if (k == n) return {table.size(), 0};
  const std::size_t target = table.cost.back() / n * k + table.cost.back() % n * k / n;
  const std::size_t tensor =
      std::size_t(std::upper_bound(table.cost.begin(), table.cost.end(), target) - table.cost.begin()) - 1;
  const std::size_t element = (target - table.cost[tensor]) / kChunk * kChunk;
  return element < table.numel[tensor] ? Position{tensor, element} : Position{tensor + 1, 0};
}

// Room for one chunk of each operand that has to be converted or streamed; stays in the first-level cache.
template <class R>
struct Scratch {
  alignas(64) R w[kChunk];
  alignas(64) R g[kChunk];
  alignas(64) R f[kChunk];
  alignas(64) R out[kChunk];
  alignas(64) R first[kChunk];
  alignas(64) R moved[kChunk];
  alignas(64) float eta[kChunk];
  alignas(64) std::uint32_t random[kChunk];
  double prepared[kPreparedScalars];
  double prepared_for = -1;  // the step count that `prepared` belongs to
};

enum class Order { forward, backward };

// Calls visit(scratch, tensor, element, count) for every chunk of every tensor exactly once, from `threads` threads, in
// the same parts in either order. A backward pass after a forward one finds in the cache what that one read last. With
// a smaller chunk reads and streamed writes alternate faster; kChunk has to be a multiple of it.
template <class R, Order order = Order::forward, std::size_t chunk = kChunk, class Visit>
void for_each_chunk(const Table& table, int threads, Visit visit) {
  if (table.size() == 0) return;
  const int n = table.cost.back() < kParallel ? 1 : std::max(threads, 1);
  const auto part = [&](std::size_t k) {
    Scratch<R> scratch;
    const Position begin = position(table, k, n), end = position(table, k + 1, n);
    const std::size_t tensors = std::min(end.tensor + 1, table.size()) - begin.tensor;
    for (std::size_t j = 0; j < tensors; ++j) {
      const std::size_t t = begin.tensor + (order == Order::forward ? j : tensors - 1 - j);
      const std::size_t first = t == begin.tensor ? begin.element : 0;
      const std::size_t last = t == end.tensor ? end.element : table.numel[t];
      if (first >= last) continue;
      const std::size_t chunks = (last - first + chunk - 1) / chunk;
      for (std::size_t c = 0; c < chunks; ++c) {
        const std::size_t i = first + (order == Order::forward ? c : chunks - 1 - c) * chunk;
        visit(scratch, t, i, std::min(chunk, last - i));
      }
    }
    _mm_sfence();  // streamed stores of this thread become visible before the region ends
  };
  if (n == 1) return part(0);
#pragma omp parallel for schedule(static, 1) num_threads(n)
  for (int k = 0; k < n; ++k) part(k);
}

inline void move(const Kernels& kernels, bool streaming, void* to, const void* from, std::size_t bytes) {
  if (streaming) {
    kernels.stream(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

// Elements of dtype as the arithmetic type: where they lie, or converted into the buffer.
inline const double* load(const Kernels&, DType, const char* at, double*, std::size_t) {
  return reinterpret_cast<const double*>(at);
}

inline const float* load(const Kernels& kernels, DType dtype, const char* at, float* buffer, std::size_t n) {
  if (dtype == DType::f32) return reinterpret_cast<const float*>(at);
  const auto* half = reinterpret_cast<const std::uint16_t*>(at);
  (dtype == DType::bf16 ? kernels.from_bf16 : kernels.from_f16)(half, buffer, n);
  return buffer;
}

// The reverse: values, which may already lie at their place, become elements of dtype.
template <class R>
void store(const Kernels& kernels, bool streaming, DType dtype, char* at, const R* values, std::size_t n) {
  if (reinterpret_cast<const char*>(values) == at) return;
  if constexpr (sizeof(R) == 4) {
    if (dtype != DType::f32) {
      alignas(64) std::uint16_t half[kChunk];
      (dtype == DType::bf16 ? kernels.to_bf16 : kernels.to_f16)(values, half, n);
      return move(kernels, streaming, at, half, n * 2);
    }
  }
  move(kernels, streaming, at, values, n * sizeof(R));
}

}  // namespace sharpkern::cpu
