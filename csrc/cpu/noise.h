// Random numbers for the elements of a chunk. Loops that compilers vectorise.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../normal.h"

namespace sharpkern::SHARPKERN_ISA {

// The rounding bits of elements index ... index + n.
static void draw_bits(std::uint64_t seed, std::uint32_t draw, std::uint64_t index, std::uint32_t* out, std::size_t n) {
  constexpr std::size_t kGroup = kRoundingGroup;
  for (; index % kGroup && n; ++index, ++out, --n)
    *out = rounding_bits(philox(seed, index / kGroup, draw, Stream::rounding), unsigned(index % kGroup));
  const std::uint64_t first = index / kGroup;
  std::size_t i = 0;
  for (; i < n / kGroup; ++i) {
    const Words words = philox(seed, first + i, draw, Stream::rounding);
    for (unsigned lane = 0; lane < kGroup; ++lane) out[i * kGroup + lane] = rounding_bits(words, lane);
  }
  const Words words = philox(seed, first + i, draw, Stream::rounding);
  for (unsigned lane = 0; lane < n % kGroup; ++lane) out[i * kGroup + lane] = rounding_bits(words, lane);
}

// The standard normal numbers of elements index ... index + n.
static void draw_normals(std::uint64_t seed, std::uint32_t draw, std::uint64_t index, float* out, std::size_t n) {
  constexpr std::size_t kGroup = kNormalGroup, kGroups = 64;
  alignas(64) std::uint32_t word[kGroup][kGroups];
  alignas(64) float normal[kGroup][kGroups];
  std::size_t skip = index % kGroup;  // elements of the first group that are not wanted
  for (std::size_t i = 0; i < n; i += kGroup * kGroups - skip, skip = 0) {
    const std::uint64_t first = (index + i) / kGroup;
    const std::size_t end = n - i < kGroup * kGroups - skip ? n - i + skip : kGroup * kGroups;
    const std::size_t groups = (end + kGroup * 16 - 1) / (kGroup * 16) * 16;  // whole vectors: a run may be short
    for (std::size_t j = 0; j < groups; ++j) {
      const Words words = philox(seed, first + j, draw, Stream::normal);
      for (std::size_t k = 0; k < kGroup; ++k) word[k][j] = words.x[k];
    }
    for (std::size_t k = 0; k < kGroup; k += 2) {
      for (std::size_t j = 0; j < groups; ++j) {
        const Pair pair = normals(word[k][j], word[k + 1][j]);
        normal[k][j] = pair.x;
        normal[k + 1][j] = pair.y;
      }
    }
    std::size_t j = (skip + kGroup - 1) / kGroup;
    for (std::size_t l = skip; l < j * kGroup && l < end; ++l) out[i + l - skip] = normal[l % kGroup][l / kGroup];
    for (; j < end / kGroup; ++j)
      for (std::size_t k = 0; k < kGroup; ++k) out[i + j * kGroup + k - skip] = normal[k][j];
    for (std::size_t l = j * kGroup; l < end; ++l) out[i + l - skip] = normal[l % kGroup][l / kGroup];
  }
}

}  // namespace sharpkern::SHARPKERN_ISA
