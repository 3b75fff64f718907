// A chunk strip by strip, and what is asked for meanwhile.
#pragma once

#include <cstddef>

#include "../real.h"
#include "kernels.h"
#include "stream.h"

namespace sharpkern::SHARPKERN_ISA {

constexpr std::size_t kStrip = 64;

// Asks for a strip of the next chunk while this one is computed. The processor's own prefetching keeps too few lines on
// the way once a formula takes more than a few instructions a line, and knows nothing of the next tensor. An address
// behind the end of a tensor does no harm.
template <class T>
static SHARPKERN_INLINE void prefetch(const Operand<T>& operand, std::size_t i) {
  if (!operand.ahead) return;
  const char* line = reinterpret_cast<const char*>(operand.ahead + i);
  for (std::size_t k = 0; k < kStrip * sizeof(T); k += 64) __builtin_prefetch(line + k);
}

// Calls body(first, count) for strips of fixed length, then for what is left over.
template <class Body>
static SHARPKERN_INLINE void for_each_strip(std::size_t n, Body body) {
  std::size_t i = 0;
  for (; i + kStrip <= n; i += kStrip) body(i, kStrip);
  if (i < n) body(i, n - i);
}

// The same for what is written: body(to, first, count) writes a strip, which leaves as soon as it is computed; streamed, it
// goes between what is read, not in bursts.
template <class T, class Body>
static SHARPKERN_INLINE void for_each_put(bool streaming, T* out, std::size_t n, Body body) {
  alignas(64) T strip[kStrip];
  for_each_strip(n, [&](std::size_t first, std::size_t count) __attribute__((always_inline)) {
    body(streaming ? strip : out + first, first, count);
    if (streaming) stream(out + first, strip, count * sizeof(T));
  });
}

}  // namespace sharpkern::SHARPKERN_ISA
