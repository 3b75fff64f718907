// What a kernel gets, by value: nothing has to be copied to the device before a launch, or to outlive a captured graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include "partition.h"

namespace sharpkern::cuda {

// A number: the value, or where it lies on the device, as float32 or (wide) float64.
struct Scalar {
  double value;
  const void* address;
  bool wide;
};

constexpr int kBaseScalars = 7, kFormulaScalars = 6;

struct Header {
  Scalar base[kBaseScalars];        // rho and the shares of worst case and noise, or the options of the base update
  Scalar formula[kFormulaScalars];  // of the covariance, or the correction
  double* total;
  const double* second;
  const double* take;
  float* steps;
  std::int64_t* draw;
  std::uint64_t seed;
  const float* pairs;  // of evolution strategies: a weight a pair, then a utility a pair
  unsigned* arrived;  // blocks that are done, zero between launches
  double* partial;
  std::int64_t chunks, per_block;
  int tensors, again, pair_count;
  bool add, track, master, natural, stochastic, first, final, cut;
};

// 4 KB for few tensors, and what CUDA takes since 12.1 for many: a launch gets slower as its arguments grow.
constexpr int kSmall = 4096, kLarge = 32760;

// After the header come one extent a tensor and the end, then the rows of the op, one address a tensor each.
template <int kBytes>
struct Launch : Header {
  static constexpr int kWords = int((kBytes - sizeof(Header)) / sizeof(Word));
  Word word[kWords];

  static int capacity(int rows) { return (kWords - 1) / (rows + 1); }
  SHARPKERN_INLINE Word& at(int row, int tensor) { return word[(row + 1) * tensors + 1 + tensor]; }
  SHARPKERN_INLINE Word at(int row, int tensor) const { return word[(row + 1) * tensors + 1 + tensor]; }
};
static_assert(sizeof(Launch<kSmall>) <= 4096 && sizeof(Launch<kLarge>) <= 32764);

}  // namespace sharpkern::cuda
