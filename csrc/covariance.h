// The covariance s at one coordinate. A functor a row of SPEC's table; nothing else knows a formula of s.
//
//   s(w, f)       the covariance, from the weight and the Fisher diagonal
//   fisher(g, f)  the Fisher diagonal once the gradient g is seen, from its stored value f
//   kReadsWeight  whether s depends on w;  kState  whether f is stored from step to step
#pragma once

#include "real.h"

namespace sharpkern::SHARPKERN_ISA {

// SAM: s = 1
template <class R>
struct Identity {
  static constexpr const char* kName = "identity";
  static constexpr bool kReadsWeight = false, kState = false;
  explicit Identity(const double*) {}
  SHARPKERN_INLINE R fisher(R, R f) const { return f; }
  SHARPKERN_INLINE R s(R, R) const { return R(1); }
};

// ASAM: s = (|w| + eta)^2
template <class R>
struct Adaptive {
  static constexpr const char* kName = "adaptive";
  static constexpr bool kReadsWeight = true, kState = false;
  R eta;
  explicit Adaptive(const double* scalars) : eta(R(scalars[0])) {}
  SHARPKERN_INLINE R fisher(R, R f) const { return f; }
  SHARPKERN_INLINE R s(R w, R) const {
    const R scale = magnitude(w) + eta;
    return scale * scale;
  }
};

// Fisher SAM: s = 1 / (1 + eta f)
template <class R>
struct Inverse {
  static constexpr const char* kName = "inverse";
  static constexpr const char* kAverageName = "inverse_average";
  static constexpr bool kReadsWeight = false;
  R eta;
  explicit Inverse(const double* scalars) : eta(R(scalars[0])) {}
  SHARPKERN_INLINE R s(R, R f) const { return reciprocal(fused(eta, f, R(1))); }
};

// Fisher SAM: s = 1 / (f + eta)
template <class R>
struct Additive {
  static constexpr const char* kName = "additive";
  static constexpr const char* kAverageName = "additive_average";
  static constexpr bool kReadsWeight = false;
  R eta;
  explicit Additive(const double* scalars) : eta(R(scalars[0])) {}
  SHARPKERN_INLINE R s(R, R f) const { return reciprocal(f + eta); }
};

// f = g^2, never stored
template <class R, template <class> class Damping>
struct Batch : Damping<R> {
  static constexpr bool kState = false;
  using Damping<R>::Damping;
  SHARPKERN_INLINE R fisher(R g, R) const { return g * g; }
};

// f <- (1 - beta) f + beta g^2;  beta = 1 stores g^2, beta = 0 leaves an f that was given
template <class R, template <class> class Damping>
struct Average : Damping<R> {
  static constexpr const char* kName = Damping<R>::kAverageName;
  static constexpr bool kState = true;
  R keep, beta;
  explicit Average(const double* scalars)
      : Damping<R>(scalars), keep(R(1.0 - scalars[1])), beta(R(scalars[1])) {}
  SHARPKERN_INLINE R fisher(R g, R f) const { return fused(beta, g * g, keep * f); }
};

}  // namespace sharpkern::SHARPKERN_ISA
