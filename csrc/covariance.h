// The covariance s at one coordinate. A functor a row of SPEC's table; nothing else knows a formula of s.
//
//   (scalars, step)   what the formula takes, and how many updates of the tensor were done
//   fisher(g, f)      the Fisher diagonal once the gradient g is seen, from what is kept, f
//   s(w, f)           the covariance, from the weight and that
//   kept(g, f, scale) what is kept once w + scale s g is reached
//   kReadsWeight      whether s depends on w;  kState  whether f is kept;  kMoves  whether it moves in the first pass
//   kDirection        whether the norm sums (s g)^2 instead of s g^2
#pragma once

#include <cmath>

#include "real.h"

namespace sharpkern::SHARPKERN_ISA {

// SAM: s = 1
template <class R>
struct Identity {
  static constexpr const char* kName = "identity";
  static constexpr bool kReadsWeight = false, kState = false, kMoves = false, kDirection = false;
  SHARPKERN_INLINE explicit Identity(const double*, double) {}
  SHARPKERN_INLINE R fisher(R, R f) const { return f; }
  SHARPKERN_INLINE R s(R, R) const { return R(1); }
  SHARPKERN_INLINE R kept(R, R f, R) const { return f; }
};

// ASAM: s = (|w| + eta)^2
template <class R>
struct Adaptive {
  static constexpr const char* kName = "adaptive";
  static constexpr bool kReadsWeight = true, kState = false, kMoves = false, kDirection = false;
  R eta;
  SHARPKERN_INLINE explicit Adaptive(const double* scalars, double) : eta(R(scalars[0])) {}
  SHARPKERN_INLINE R fisher(R, R f) const { return f; }
  SHARPKERN_INLINE R s(R w, R) const {
    const R scale = magnitude(w) + eta;
    return scale * scale;
  }
  SHARPKERN_INLINE R kept(R, R f, R) const { return f; }
};

// Fisher SAM: s = 1 / (a + b f); with a, b = 1, eta that of [F] section 5, with a, b = eta, 1 that of [F] 10
template <class R>
struct Damped {
  static constexpr bool kReadsWeight = false, kDirection = false;
  R a, b;
  SHARPKERN_INLINE explicit Damped(const double* scalars) : a(R(scalars[0])), b(R(scalars[1])) {}
  SHARPKERN_INLINE R s(R, R f) const { return reciprocal(fused(b, f, a)); }
  SHARPKERN_INLINE R kept(R, R f, R) const { return f; }
};

// f = g^2, never stored
template <class R>
struct Fisher : Damped<R> {
  static constexpr const char* kName = "fisher";
  static constexpr bool kState = false, kMoves = false;
  SHARPKERN_INLINE explicit Fisher(const double* scalars, double) : Damped<R>(scalars) {}
  SHARPKERN_INLINE R fisher(R g, R) const { return g * g; }
};

// f <- (1 - beta) f + beta g^2;  beta = 1 stores g^2, beta = 0 leaves an f that was given
template <class R>
struct Average : Damped<R> {
  static constexpr const char* kName = "fisher_average";
  static constexpr bool kState = true, kMoves = true;
  R keep, beta;
  SHARPKERN_INLINE explicit Average(const double* scalars, double)
      : Damped<R>(scalars), keep(R(1.0 - scalars[2])), beta(R(scalars[2])) {}
  SHARPKERN_INLINE R fisher(R g, R f) const { return fused(beta, g * g, keep * f); }
};

// How a learned s moves: down its gradient in log s, or in s itself, from the slope of the loss in log s.
template <class R>
struct Learning {
  R lr, penalty, prior;
  bool log;
  SHARPKERN_INLINE explicit Learning(const double* scalars)
      : lr(R(scalars[0])), penalty(R(scalars[1])), prior(R(scalars[2])), log(scalars[3] != 0) {}
  SHARPKERN_INLINE static R clamped(R s) { return s < R(1e-8) ? R(1e-8) : s > R(1e8) ? R(1e8) : s; }
  SHARPKERN_INLINE R moved(R s, R slope) const {
    slope = fused(penalty, fused(prior, s, R(-1)), slope);
    const R step = -lr * slope, next = log ? s * exponential(step) : fused(step, reciprocal(s), s);
    return finite(slope) ? clamped(next) : s;
  }
};

// VariationalSAM, MFVI: s is kept; at the worst case it moves by the slope scale s g^2 / 2
template <class R>
struct Learned : Learning<R> {
  static constexpr const char* kName = "learned";
  static constexpr bool kReadsWeight = false, kState = true, kMoves = true, kDirection = false;
  SHARPKERN_INLINE explicit Learned(const double* scalars, double) : Learning<R>(scalars) {}
  SHARPKERN_INLINE R fisher(R, R f) const { return f; }
  SHARPKERN_INLINE R s(R, R f) const { return f; }
  SHARPKERN_INLINE R kept(R g, R f, R scale) const { return this->moved(f, R(0.5) * scale * f * (g * g)); }
};

// TRACER: s = 1 / (f + delta), f an average that moves in the second half; Adam's second moment with its bias taken off
template <class R>
struct Tracer {
  static constexpr const char* kName = "tracer";
  static constexpr bool kReadsWeight = false, kState = true, kMoves = false, kDirection = true;
  R delta, unbias;
  SHARPKERN_INLINE explicit Tracer(const double* scalars, double step) : delta(R(scalars[0])), unbias(1) {
    if (scalars[1] != 0) unbias = step == 0 ? R(0) : R(1 / (1 - pow(scalars[1], step)));
  }
  SHARPKERN_INLINE R fisher(R, R f) const { return unbias * f; }
  SHARPKERN_INLINE R s(R, R f) const { return reciprocal(f + delta); }
  SHARPKERN_INLINE R kept(R, R f, R) const { return f; }
};

}  // namespace sharpkern::SHARPKERN_ISA
