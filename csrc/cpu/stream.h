// A copy past the cache, with the widest stores there are: a whole line at once leaves no half-filled buffer.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../real.h"

namespace sharpkern::SHARPKERN_ISA {

static SHARPKERN_INLINE void stream_line(char* to, const char* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX2__)
  for (int i = 0; i < 64; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
#else
  for (int i = 0; i < 64; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#endif
}

static void stream(void* to, const void* from, std::size_t bytes) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const std::size_t gap = (64 - reinterpret_cast<std::uintptr_t>(out) % 64) % 64, head = bytes < gap ? bytes : gap;
  std::memcpy(out, in, head);
  std::size_t i = head;
  for (; i + 64 <= bytes; i += 64) stream_line(out + i, in + i);
  std::memcpy(out + i, in + i, bytes - i);
}

static SHARPKERN_INLINE void put(bool streaming, void* to, const void* from, std::size_t bytes) {
  if (streaming) {
    stream(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace sharpkern::SHARPKERN_ISA
