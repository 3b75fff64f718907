#pragma once

#include "apply.cuh"

namespace sharpkern::cuda {

template <class R, class Covariance>
struct Summand {
  Covariance covariance;
  Taken<R> taken;
};

// total <- sum s g^2, or (s g)^2. Each block leaves a partial sum, and the last to be done adds them up in order: the
// same bits in every run and on every device. Rows: gradient; the exact weight, if s reads it, or what is kept.
template <class Covariance, class W, class G, int kBytes>
__global__ void __launch_bounds__(kThreads) sq_norm_kernel(const __grid_constant__ Launch<kBytes> launch) {
  using R = Arithmetic<G>;
  static_assert(!(Covariance::kReadsWeight && Covariance::kState));
  constexpr bool kSecond = Covariance::kReadsWeight || Covariance::kState;
  constexpr int kLength = kSecond ? kVectorLength<W, G> : kVectorLength<G>;
  double sum = 0;
  const std::int64_t begin = blockIdx.x * launch.per_block;
  for (std::int64_t chunk = begin; chunk < begin + launch.per_block && chunk < launch.chunks; ++chunk) {
    const Piece p = piece(launch, chunk);
    if (!launch.at(0, p.tensor)) continue;
    if (chunk != begin) __syncthreads();
    using Made = Summand<R, Covariance>;
    const auto summand = once<Made>([&] {
      return Made{Covariance(Doubles<kFormulaScalars>(launch.formula).x, double(launch.steps[p.tensor])), taken<R>(launch)};
    });
    const G* gradient = elements<const G>(launch, 0, p);
    const W* second = kSecond ? elements<const W>(launch, 1, p) : nullptr;
    R terms = 0;
    for_each_run<kLength>(p.count, aligned(launch, 1 + kSecond, p), threadIdx.x, [&](auto length, int i) {
      constexpr int n = decltype(length)::value;
      R g[n], x[n] = {};
      load(gradient + i, g);
      if constexpr (kSecond) load(second + i, x);
#pragma unroll
      for (int j = 0; j < n; ++j) terms = sq_norm_at(summand.covariance, terms, x[j], summand.taken(g[j]), x[j]);
    });
    sum += double(terms);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) launch.partial[blockIdx.x] = sum;
  if (!last_to_arrive(launch.arrived)) return;

  sum = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) sum += __ldcg(launch.partial + block);
  sum = block_sum(sum);
  if (threadIdx.x == 0) *launch.total = (launch.add ? *launch.total : 0) + sum;
}

}  // namespace sharpkern::cuda
