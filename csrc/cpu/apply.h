// Traversal: one parallel region over all tensors, chunk by chunk. Knows no formula.
#pragma once

#include <emmintrin.h>

#include <algorithm>

#include "../real.h"
#include "../table.h"
#include "kernels.h"
#include "ops.h"

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

// Elements first ... first + count of a tensor.
struct Chunk {
  std::size_t tensor, first, count;
};

// The chunks between two positions, one by one.
class Walk {
 public:
  Walk(const Table& table, Position begin, Position end) : table_(table), end_(end), at_(begin) {}

  // The next chunk, or false after the last.
  bool next(Chunk& chunk) {
    for (; at_.tensor < table_.size() && at_.tensor <= end_.tensor; at_ = {at_.tensor + 1, 0}) {
      const std::size_t last = at_.tensor == end_.tensor ? end_.element : table_.numel[at_.tensor];
      if (at_.element >= last) continue;
      chunk = {at_.tensor, at_.element, std::min(kChunk, last - at_.element)};
      at_.element += chunk.count;
      return true;
    }
    return false;
  }

 private:
  const Table& table_;
  const Position end_;
  Position at_;
};

// Calls visit(scratch, chunk, ahead) for every chunk of every tensor exactly once, from `threads` threads, in the same
// parts each time; ahead is the chunk that comes next, or the same one at the end.
template <class R, class Visit>
void for_each_chunk(const Table& table, int threads, Visit visit) {
  if (table.size() == 0) return;
  const int n = table.cost.back() < kParallel ? 1 : std::max(threads, 1);
  const auto part = [&](std::size_t k) {
    Scratch<R> scratch;
    Walk walk(table, position(table, k, n), position(table, k + 1, n));
    Chunk chunk{}, ahead{};
    for (bool any = false, more = true; more; chunk = ahead, any = true) {
      more = walk.next(ahead);
      if (any) visit(scratch, chunk, ahead);
    }
    _mm_sfence();  // streamed stores of this thread become visible before the region ends
  };
  if (n == 1) return part(0);
#pragma omp parallel for schedule(static, 1) num_threads(n)
  for (int k = 0; k < n; ++k) part(k);
}

// Whether what is streamed there strip by strip fills its lines.
inline bool whole_lines(const void* at) { return reinterpret_cast<std::uintptr_t>(at) % 64 == 0; }

// One chunk of a row as the arithmetic type: where it lies, or converted into the buffer; saved, unless null, then gets the
// elements as they are, past the cache.
template <class R>
SHARPKERN_INLINE Operand<const R> load(const Table& table, const Launch& launch, Row row, const Chunk& chunk, const Chunk& ahead,
                                       R* buffer, char* saved = nullptr) {
  const char* at = table.at(row, chunk.tensor, chunk.first);
  const char* next = launch.ahead && table.at(row, ahead.tensor) ? table.at(row, ahead.tensor, ahead.first) : nullptr;
  if (sizeof(R) == 4 && table.size_of[row] == 2) {
    const DType dtype = row == kGradient || row == kFirst ? table.gradient : table.weight;
    using Half = std::uint16_t;
    (dtype == DType::bf16 ? launch.kernels->from_bf16 : launch.kernels->from_f16)(
        {reinterpret_cast<const Half*>(at), reinterpret_cast<const Half*>(next)}, reinterpret_cast<float*>(buffer),
        reinterpret_cast<Half*>(saved), chunk.count);
    return {buffer, nullptr};
  }
  return {reinterpret_cast<const R*>(at), reinterpret_cast<const R*>(next)};
}

// The reverse: values, which may already lie at their place, become elements of dtype.
template <class R>
void store(const Kernels& kernels, bool streaming, DType dtype, char* at, const R* values, std::size_t n) {
  if (reinterpret_cast<const char*>(values) == at) return;
  if constexpr (sizeof(R) == 4) {
    if (dtype != DType::f32)
      return (dtype == DType::bf16 ? kernels.to_bf16 : kernels.to_f16)(
          values, reinterpret_cast<std::uint16_t*>(at), streaming && whole_lines(at), n);
  }
  kernels.put(streaming, at, values, n * sizeof(R));
}

}  // namespace sharpkern::cpu
