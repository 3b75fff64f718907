#pragma once

#include "restore.cuh"

namespace sharpkern::cuda {

template <class R, class Base>
struct Descent {
  Base base;
  Natural<R> natural;

  __device__ __forceinline__ static Descent of(const Header& header, float step) {
    double prepared[kPreparedScalars];
    Base::prepare(Doubles<kBaseScalars>(header.base).x, step, prepared);
    return {Base(prepared), Natural<R>(Doubles<kCovarianceScalars>(header.covariance).x)};
  }
};

// w <- base(w0, g, m, v), counted in steps; without a gradient w <- w0. Rows: weight, source, gradient, then what there
// is of m, v, the master, the Fisher diagonal of the natural gradient.
template <class Base, class W, class G, int kBytes>
__global__ void __launch_bounds__(kThreads, sizeof(W) == 8 ? 2 : 0) descend_kernel(const __grid_constant__ Launch<kBytes> launch) {
  using R = Arithmetic<W>;
  constexpr int kStates = Base::kStates, kLength = kVectorLength<W, G>;
  if (!finite(*launch.total)) return;
  const bool updates = !launch.second || finite(*launch.second);
  const Piece p = piece(launch, blockIdx.x);
  if (!updates || !launch.at(2, p.tensor)) {
    give_back<W>(launch, p);
  } else {
    const auto descent = once<Descent<R, Base>>([&] { return Descent<R, Base>::of(launch, launch.steps[p.tensor]); });
    const bool master = sizeof(W) == 2 && launch.master;
    W* weight = elements<W>(launch, 0, p);
    const W* source = elements<const W>(launch, 1, p);
    const float* exact = elements<const float>(launch, 1, p);
    const G* gradient = elements<const G>(launch, 2, p);
    R* first = kStates > 0 ? elements<R>(launch, 3, p) : nullptr;
    R* second = kStates > 1 ? elements<R>(launch, 4, p) : nullptr;
    float* saved = master ? elements<float>(launch, 3 + kStates, p) : nullptr;
    const R* fisher = launch.natural ? elements<const R>(launch, 3 + kStates + master, p) : nullptr;
    const bool vectors = aligned(launch, 3 + kStates + master + launch.natural, p);
    for_each_run<kLength>(p.count, vectors, threadIdx.x, [&](auto length, int i) {
      constexpr int n = decltype(length)::value;
      R w[n], g[n], m[n] = {}, v[n] = {};
      load_exact(master, source + i, exact + i, w);
      load(gradient + i, g);
      if constexpr (kStates > 0) load(first + i, m);
      if constexpr (kStates > 1) load(second + i, v);
      if (launch.natural) {
        R f[n];
        load(fisher + i, f);
#pragma unroll
        for (int j = 0; j < n; ++j) g[j] = descent.natural.s(R(0), f[j]) * g[j];
      }
#pragma unroll
      for (int j = 0; j < n; ++j) w[j] = descent.base(w[j], g[j], m[j], v[j]);
      if constexpr (kStates > 0) store(first + i, m);
      if constexpr (kStates > 1) store(second + i, v);
      if constexpr (sizeof(W) == 2) {
        if (master) store(saved + i, w);
      }
      store(weight + i, w);
    });
  }
  if (!updates || !last_to_arrive(launch.arrived)) return;
  for (int tensor = threadIdx.x; tensor < launch.tensors; tensor += kThreads)
    if (launch.at(2, tensor)) launch.steps[tensor] += 1;
}

}  // namespace sharpkern::cuda
