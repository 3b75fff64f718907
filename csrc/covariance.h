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
  SHARPKERN_INLINE explicit Identity(const double*) {}
  SHARPKERN_INLINE R fisher(R, R f) const { return f; }
  SHARPKERN_INLINE R s(R, R) const { return R(1); }
};

// ASAM: s = (|w| + eta)^2
template <class R>
struct Adaptive {
  static constexpr const char* kName = "adaptive";
  static constexpr bool kReadsWeight = true, kState = false;
  R eta;
  SHARPKERN_INLINE explicit Adaptive(const double* scalars) : eta(R(scalars[0])) {}
  SHARPKERN_INLINE R fisher(R, R f) const { return f; }
  SHARPKERN_INLINE R s(R w, R) const {
    const R scale = magnitude(w) + eta;
    return scale * scale;
  }
};

// Fisher SAM: s = 1 / (a + b f); with a, b = 1, eta that of [F] section 5, with a, b = eta, 1 that of [F] 10
template <class R>
struct Damped {
  static constexpr bool kReadsWeight = false;
  R a, b;
  SHARPKERN_INLINE explicit Damped(const double* scalars) : a(R(scalars[0])), b(R(scalars[1])) {}
  SHARPKERN_INLINE R s(R, R f) const { return reciprocal(fused(b, f, a)); }
};

// f = g^2, never stored
template <class R>
struct Fisher : Damped<R> {
  static constexpr const char* kName = "fisher";
  static constexpr bool kState = false;
  using Damped<R>::Damped;
  SHARPKERN_INLINE R fisher(R g, R) const { return g * g; }
};

// f <- (1 - beta) f + beta g^2;  beta = 1 stores g^2, beta = 0 leaves an f that was given
template <class R>
struct Average : Damped<R> {
  static constexpr const char* kName = "fisher_average";
  static constexpr bool kState = true;
  R keep, beta;
  SHARPKERN_INLINE explicit Average(const double* scalars)
      : Damped<R>(scalars), keep(R(1.0 - scalars[2])), beta(R(scalars[2])) {}
  SHARPKERN_INLINE R fisher(R g, R f) const { return fused(beta, g * g, keep * f); }
};

}  // namespace sharpkern::SHARPKERN_ISA
