#pragma once

#include "descend.cuh"
#include "noise.cuh"

namespace sharpkern::cuda {

template <class R, class Base>
struct Estimation {
  Base base;
  Estimated<R> estimated;

  __device__ __forceinline__ static Estimation of(const Header& header, float step) {
    double prepared[kPreparedScalars];
    Base::prepare(Doubles<kBaseScalars>(header.base).x, step, prepared);
    return {Base(prepared), Estimated<R>(Doubles<kFormulaScalars>(header.formula).x)};
  }
};

// w <- base(w0, g, m, v), counted in steps and draws, g estimated from the draws, of which each is made again. Rows:
// weight, source, then what there is of m, v, the master; s, if it is kept; the index of each tensor's first element.
template <class Base, class W, int kBytes>
__global__ void __launch_bounds__(kThreads, sizeof(W) == 8 ? 2 : sizeof(W) == 4 ? 4 : 3) estimated_kernel(const __grid_constant__ Launch<kBytes> launch) {
  using R = Arithmetic<W>;
  constexpr int kStates = Base::kStates, kLength = kVectorLength<W>;
  if (!finite(*launch.total)) return;
  const bool updates = !launch.second || finite(*launch.second);
  const Piece p = piece(launch, blockIdx.x);
  if (!updates) return give_back<W>(launch, p);
  using Made = Estimation<R, Base>;
  const auto estimation = once<Made>([&] { return Made::of(launch, launch.steps[p.tensor]); });
  const bool master = sizeof(W) == 2 && launch.master;
  const int rows = 3 + kStates + master;
  const bool state = launch.at(rows - 1, p.tensor);
  W* weight = elements<W>(launch, 0, p);
  const W* source = elements<const W>(launch, 1, p);
  const float* exact = elements<const float>(launch, 1, p);
  R* one = kStates > 0 ? elements<R>(launch, 2, p) : nullptr;
  R* two = kStates > 1 ? elements<R>(launch, 3, p) : nullptr;
  float* saved = master ? elements<float>(launch, 2 + kStates, p) : nullptr;
  R* kept = state ? elements<R>(launch, rows - 1, p) : nullptr;
  const std::int64_t draw = *launch.draw;
  const Indices index = Indices::of(launch, rows, p);
  for_each_run<kLength>(p.count, aligned(launch, rows, p) && index.grouped(), threadIdx.x, [&](auto length, int i) {
    constexpr int n = decltype(length)::value;
    R g[n] = {}, slope[n] = {};
    const std::uint64_t at = index(i);
#pragma unroll 1
    for (int pair = 0; pair < launch.pair_count; ++pair) {
      R eta[n];
      draw_normals(launch.seed, std::uint32_t(draw + pair), at, eta);
      const R weighted = R(launch.pairs[pair]), utility = R(launch.pairs[launch.pair_count + pair]);
#pragma unroll
      for (int j = 0; j < n; ++j) Estimated<R>::add(weighted, utility, eta[j], g[j], slope[j]);
    }
    R w[n], m[n] = {}, v[n] = {}, s[n];
#pragma unroll
    for (int j = 0; j < n; ++j) s[j] = R(1);
    if (state) load(kept + i, s);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      g[j] = estimation.estimated.gradient(g[j], s[j]);
      s[j] = estimation.estimated.moved(s[j], slope[j]);
    }
    if (state) store(kept + i, s);
    load_exact(master, source + i, exact + i, w);
    if constexpr (kStates > 0) load(one + i, m);
    if constexpr (kStates > 1) load(two + i, v);
#pragma unroll
    for (int j = 0; j < n; ++j) w[j] = estimation.base(w[j], g[j], m[j], v[j], nullptr);
    if constexpr (kStates > 0) store(one + i, m);
    if constexpr (kStates > 1) store(two + i, v);
    if constexpr (sizeof(W) == 2) {
      if (master) store(saved + i, w);
    }
    store(weight + i, w);
  });
  if (!last_to_arrive(launch.arrived)) return;
  for (int tensor = threadIdx.x; tensor < launch.tensors; tensor += kThreads) launch.steps[tensor] += 1;
  if (launch.final && threadIdx.x == 0) *launch.draw += launch.pair_count;
}

}  // namespace sharpkern::cuda
