#pragma once

#include "apply.cuh"

namespace sharpkern::cuda {

template <class R, class Covariance>
struct Ascent {
  Covariance covariance;
  R scale;
  bool moves;  // w + 0 would turn -0 into 0

  __device__ __forceinline__ static Ascent of(const Header& header, double total) {
    const double scale = total > 0 ? read(header.base[0]) / sqrt(total) : 0;
    return {Covariance(Doubles<kCovarianceScalars>(header.covariance).x), R(scale), scale != 0};
  }
};

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

// w0 <- w, w <- w + scale s g. Rows: weight, gradient, saved; the Fisher diagonal, if it is kept; then, where w + eps is
// rounded stochastically, the index of each tensor's first element.
template <class Covariance, class W, class G, int kBytes>
__global__ void __launch_bounds__(kThreads) ascend_kernel(const __grid_constant__ Launch<kBytes> launch) {
  using R = Arithmetic<W>;
  constexpr bool kState = Covariance::kState;
  constexpr int kLength = kVectorLength<W, G>;
  const double total = *launch.total;
  if (!finite(total)) return;
  const Piece p = piece(launch, blockIdx.x);
  if (launch.at(1, p.tensor)) {
    const auto ascent = once<Ascent<R, Covariance>>([&] { return Ascent<R, Covariance>::of(launch, total); });
    W* weight = elements<W>(launch, 0, p);
    const G* gradient = elements<const G>(launch, 1, p);
    W* saved = elements<W>(launch, 2, p);
    const bool master = sizeof(W) == 2 && launch.master;
    const float* exact = elements<const float>(launch, 2, p);
    R* fisher = kState ? elements<R>(launch, 3, p) : nullptr;
    const std::uint32_t draw = launch.draw ? std::uint32_t(*launch.draw) : 0;
    const std::uint64_t start = launch.draw ? launch.at(3 + kState, p.tensor) + p.first : 0;
    for_each_run<kLength>(p.count, aligned(launch, 3 + kState, p), threadIdx.x, [&](auto length, int i) {
      constexpr int n = decltype(length)::value;
      R w[n], g[n], f[n] = {};
      if (master) {
        load_exact(true, weight + i, exact + i, w);
      } else {
        const auto copy = load<n>(weight + i);
        store(saved + i, copy);
        unpack(copy, w);
      }
      if (!kState && !ascent.moves) return;
      load(gradient + i, g);
      if constexpr (kState) load(fisher + i, f);
#pragma unroll
      for (int j = 0; j < n; ++j) w[j] = ascend_at(ascent.covariance, ascent.scale, w[j], g[j], f[j]);
      if constexpr (kState) {
        if (launch.track) store(fisher + i, f);
      }
      if (!ascent.moves) return;
      if constexpr (sizeof(W) == 2) {
        if (launch.draw) round_at_random<W>(w, launch.seed, start + i, draw);
      }
      store(weight + i, w);
    });
  }
  if (launch.final && last_to_arrive(launch.arrived) && threadIdx.x == 0) *launch.draw += 1;
}

}  // namespace sharpkern::cuda
