#pragma once

#include "apply.cuh"
#include "enqueue.cuh"
#include "noise.cuh"

namespace sharpkern::cuda {

template <class R, class Covariance>
struct Ascent {
  Covariance covariance;
  Taken<R> taken;
  R scale, sigma;
  bool still;  // w stays: w + 0 would turn -0 into 0

  __device__ __forceinline__ static Ascent of(const Header& header, bool noise, double total, float step) {
    const double rho = read(header.base[0]), scale = total > 0 ? read(header.base[1]) * rho / sqrt(total) : 0;
    const double sigma = noise ? read(header.base[2]) * rho : 0;
    return {Covariance(Doubles<kFormulaScalars>(header.formula).x, double(step)), cuda::taken<R>(header), R(scale), R(sigma),
            scale == 0 && sigma == 0 && header.again < 0};
  }
};

// w0 <- w, w <- w + scale s g + sigma sqrt(s) eta; with again w <- w0 + that. Rows: weight, w0 (saved, or with again the
// source); the gradient, if there is a worst case; what is kept of the covariance, if it is kept; the first gradient,
// where it is copied; where random numbers are drawn, the index of each tensor's first element.
template <bool worst, bool noise, class Covariance, class W, class G, int kBytes>
__device__ __forceinline__ void ascend_all(const Launch<kBytes>& launch) {
  using R = Arithmetic<W>;
  constexpr bool kState = Covariance::kState, kMoves = Covariance::kMoves && worst;
  constexpr int kLength = kVectorLength<W, G>, kRows = 2 + worst + kState;
  double total = 0;
  if constexpr (worst) {
    total = *launch.total;
    if (!finite(total)) return;
  }
  const Piece p = piece(launch, blockIdx.x);
  if (!worst || launch.at(2, p.tensor)) {
    const auto ascent = once<Ascent<R, Covariance>>(
        [&] { return Ascent<R, Covariance>::of(launch, noise, total, launch.steps[p.tensor]); });
    const bool master = sizeof(W) == 2 && launch.master, again = launch.again >= 0;
    W* weight = elements<W>(launch, 0, p);
    const W* from = elements<const W>(launch, again, p);  // and if it is the copy, it is written as it was
    W* saved = elements<W>(launch, 1, p);
    const float* exact = elements<const float>(launch, 1, p);
    const G* gradient = worst ? elements<const G>(launch, 2, p) : nullptr;
    R* fisher = kState ? elements<R>(launch, 2 + worst, p) : nullptr;
    G* first = worst && launch.first && launch.at(kRows, p.tensor) ? elements<G>(launch, kRows, p) : nullptr;
    const bool draws = noise || launch.stochastic;
    const std::uint32_t draw = draws ? std::uint32_t(*launch.draw + (again ? launch.again : 0)) : 0;
    const Indices index = draws ? Indices::of(launch, kRows + launch.first, p) : Indices{};
    const bool vectors = aligned(launch, kRows + launch.first, p) && index.grouped();
    for_each_run<kLength>(p.count, vectors, threadIdx.x, [&](auto length, int i) {
      constexpr int n = decltype(length)::value;
      R w[n], g[n] = {}, f[n] = {}, eta[n] = {};
      if (master) {
        load_exact(true, from + i, exact + i, w);
      } else {
        const auto copy = load<n>(from + i);
        store(saved + i, copy);
        unpack(copy, w);
      }
      if constexpr (worst) {
        if (opaque(first)) store(first + i, load<n>(gradient + i));
      }
      if (!kMoves && ascent.still) return;
      if constexpr (worst) load(gradient + i, g);
      if constexpr (kState) load(fisher + i, f);
      if constexpr (noise) draw_normals(launch.seed, draw, index(i), eta);
#pragma unroll
      for (int j = 0; j < n; ++j)
        w[j] = ascend_at<worst, noise>(ascent.covariance, ascent.scale, ascent.sigma, w[j], worst ? ascent.taken(g[j]) : R(0), eta[j], f[j]);
      if constexpr (kMoves) {
        if (launch.track) store(fisher + i, f);
      }
      if (ascent.still) return;
      if constexpr (sizeof(W) == 2) {
        if (launch.stochastic) round_at_random<W>(w, launch.seed, index(i), draw);
      }
      store(weight + i, w);
    });
  }
  if (launch.final && last_to_arrive(launch.arrived) && threadIdx.x == 0) *launch.draw += 1;
}

// How many blocks a multiprocessor is to have room for. Where ptxas is not told (0) it may spill registers for one more.
template <class Covariance, class W, class G>
constexpr int kAscendBlocks = !Covariance::kState ? (sizeof(G) < sizeof(W) ? 5 : 0)
                              : sizeof(W) == 8    ? 2
                              : sizeof(W) == 4 && sizeof(G) == 4 ? 5 : 4;

template <class Covariance, class W, class G, int kBytes>
__global__ void __launch_bounds__(kThreads, (kAscendBlocks<Covariance, W, G>)) ascend_kernel(const __grid_constant__ Launch<kBytes> launch) {
  ascend_all<true, false, Covariance, W, G>(launch);
}

template <class Covariance, class W, class G, int kBytes>
__global__ void __launch_bounds__(kThreads, 3) mixed_kernel(const __grid_constant__ Launch<kBytes> launch) {
  ascend_all<true, true, Covariance, W, G>(launch);
}

template <class Covariance, class W, int kBytes>
__global__ void __launch_bounds__(kThreads, sizeof(W) == 2 ? 3 : 0) gaussian_kernel(const __grid_constant__ Launch<kBytes> launch) {
  ascend_all<false, true, Covariance, W, W>(launch);
}

// Each with the formula of that name, from a source file of its own.
void worst_case(const Table& table, Queue& queue, const std::string& covariance, const Header& header);
void mixed(const Table& table, Queue& queue, const std::string& covariance, const Header& header);
void gaussian(const Table& table, Queue& queue, const std::string& covariance, const Header& header);

// Launches one of the kernels.
template <class Covariance>
void enqueue_ascend(const Table& table, Queue& queue, const Header& header, bool worst, Op op) {
  op.rows = {kWeight, header.again < 0 ? kSaved : kSource};
  if (worst) op.rows.push_back(kGradient);
  if (Covariance::kState) op.rows.push_back(kFisher);
  if (header.first) op.rows.push_back(kFirst);
  op.counts_draws = table.draw != 0 && header.track;
  enqueue(table, queue, op, header);
}

}  // namespace sharpkern::cuda
