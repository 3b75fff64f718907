#pragma once

#include "enqueue.cuh"
#include "restore.cuh"

namespace sharpkern::cuda {

template <class R, class Base, class Correction>
struct Descent {
  Base base;
  Correction correction;
  Taken<R> taken;

  __device__ __forceinline__ static Descent of(const Header& header, float step) {
    double prepared[kPreparedScalars];
    Base::prepare(Doubles<kBaseScalars>(header.base).x, step, prepared);
    return {Base(prepared), Correction(Doubles<kFormulaScalars>(header.formula).x, step, *header.total),
            cuda::taken<R>(header)};
  }
};

// w <- base(w0, g, m, v), counted in steps, the correction making that g; without a gradient w <- w0. Rows: weight,
// source, gradient, then what there is of m, v, the master, what is kept of the covariance, the first gradient. The
// gradient goes as it is where launch.natural says that Natural is not wanted.
template <class Base, class Correction, class W, class G, int kBytes>
__device__ __forceinline__ void descend_all(const Launch<kBytes>& launch) {
  using R = Arithmetic<W>;
  constexpr int kStates = Base::kStates, kLength = kVectorLength<W, G>;
  constexpr bool kChosen = std::is_same_v<Correction, Natural<R>>;
  if (!finite(*launch.total)) return;
  const bool updates = !launch.second || finite(*launch.second);
  const Piece p = piece(launch, blockIdx.x);
  if (!updates || !launch.at(2, p.tensor)) {
    give_back<W>(launch, p);
  } else {
    using Made = Descent<R, Base, Correction>;
    const auto descent = once<Made>([&] { return Made::of(launch, launch.steps[p.tensor]); });
    const bool master = sizeof(W) == 2 && launch.master, state = kChosen ? launch.natural : Correction::kState;
    W* weight = elements<W>(launch, 0, p);
    const W* source = elements<const W>(launch, 1, p);
    const float* exact = elements<const float>(launch, 1, p);
    const G* gradient = elements<const G>(launch, 2, p);
    R* one = kStates > 0 ? elements<R>(launch, 3, p) : nullptr;
    R* two = kStates > 1 ? elements<R>(launch, 4, p) : nullptr;
    float* saved = master ? elements<float>(launch, 3 + kStates, p) : nullptr;
    R* kept = state ? elements<R>(launch, 3 + kStates + master, p) : nullptr;
    const int rows = 3 + kStates + master + state;
    const G* before = nullptr;
    if constexpr (Correction::kFirst) before = elements<const G>(launch, launch.at(rows, p.tensor) ? rows : 2, p);
    for_each_run<kLength>(p.count, aligned(launch, rows + Correction::kFirst, p), threadIdx.x, [&](auto length, int i) {
      constexpr int n = decltype(length)::value;
      R w[n], g[n], m[n] = {}, v[n] = {}, first[n] = {};
      load_exact(master, source + i, exact + i, w);
      load(gradient + i, g);
#pragma unroll
      for (int j = 0; j < n; ++j) g[j] = descent.taken(g[j]);
      if constexpr (kStates > 0) load(one + i, m);
      if constexpr (kStates > 1) load(two + i, v);
      if constexpr (Correction::kFirst) {
        load(before + i, first);
#pragma unroll
        for (int j = 0; j < n; ++j) first[j] = descent.taken(first[j]);
      }
      if (state) {
        R f[n], moved[n] = {};
        load(kept + i, f);
        if constexpr (Correction::kEpsilon) load(weight + i, moved);
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const R g2 = g[j];
          g[j] = descent.correction.gradient(g2, first[j], f[j]);
          f[j] = descent.correction.moved(f[j], g2, first[j], moved[j] - w[j]);
        }
        if constexpr (Correction::kMoves) store(kept + i, f);  // it may be v, which then gets its own
      }
#pragma unroll
      for (int j = 0; j < n; ++j)
        w[j] = descent.base(w[j], g[j], m[j], v[j], Correction::kFirst ? &first[j] : nullptr);
      if constexpr (kStates > 0) store(one + i, m);
      if constexpr (kStates > 1) store(two + i, v);
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

template <class Base, class W, class G, int kBytes>
__global__ void __launch_bounds__(kThreads, sizeof(W) == 8 ? 2 : 0) descend_kernel(const __grid_constant__ Launch<kBytes> launch) {
  descend_all<Base, Natural<Arithmetic<W>>, W, G>(launch);
}

template <class Base, class W, class G, int kBytes>
__global__ void __launch_bounds__(kThreads, sizeof(W) == 8 ? 2 : 3) drawn_kernel(const __grid_constant__ Launch<kBytes> launch) {
  descend_all<Base, Drawn<Arithmetic<W>>, W, G>(launch);
}

template <class Base, class W, class G, int kBytes>
__global__ void __launch_bounds__(kThreads, 2) traced_kernel(const __grid_constant__ Launch<kBytes> launch) {
  descend_all<Base, Traced<Arithmetic<W>>, W, G>(launch);
}

// Each with the base update of that name, from a source file of its own.
void plain(const Table& table, Queue& queue, const std::string& base, const Header& header);
void drawn(const Table& table, Queue& queue, const std::string& base, const Header& header);
void traced(const Table& table, Queue& queue, const std::string& base, const Header& header);
void estimated(const Table& table, Queue& queue, const std::string& base, const Header& header);

// Launches one of the kernels but the last.
template <class Base>
void enqueue_descend(const Table& table, Queue& queue, const Header& header, bool state, bool first, Op op) {
  op.rows = {kWeight, kSource, kGradient};
  if (Base::kStates > 0) op.rows.push_back(kM);
  if (Base::kStates > 1) op.rows.push_back(kV);
  if (table.master) op.rows.push_back(kSaved);
  if (state) op.rows.push_back(kFisher);
  if (first) op.rows.push_back(kFirst);
  enqueue(table, queue, op, header);
}

}  // namespace sharpkern::cuda
