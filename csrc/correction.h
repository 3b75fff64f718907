// What a method makes of the gradient in the second half of a step, and what it learns there. A functor a row.
//
//   (scalars, step, total)      what the formula takes, the updates done, sum s g^2 or (s g)^2
//   gradient(g2, g, f)          what the base update takes; g is the gradient of the first pass
//   moved(f, g2, g, epsilon)    the next f
//   kFirst, kState, kEpsilon    whether g, f, epsilon are read;  kMoves  whether f is written
#pragma once

#include "covariance.h"

namespace sharpkern::SHARPKERN_ISA {

// The gradient goes to the base update as it is.
template <class R>
struct Plain {
  static constexpr const char* kName = "";
  static constexpr bool kFirst = false, kState = false, kEpsilon = false, kMoves = false;
  SHARPKERN_INLINE explicit Plain(const double*, double, double) {}
  SHARPKERN_INLINE R gradient(R g2, R, R) const { return g2; }
  SHARPKERN_INLINE R moved(R f, R, R, R) const { return f; }
};

// The natural gradient s g2, with s from the f of the first pass.
template <class R>
struct Natural : Damped<R> {
  static constexpr const char* kName = "natural";
  static constexpr bool kFirst = false, kState = true, kEpsilon = false, kMoves = false;
  SHARPKERN_INLINE explicit Natural(const double* scalars, double, double) : Damped<R>(scalars) {}
  SHARPKERN_INLINE R gradient(R g2, R, R f) const { return this->s(R(0), f) * g2; }
  SHARPKERN_INLINE R moved(R f, R, R, R) const { return f; }
};

// MFVI: s moves by the slope g2 epsilon / 2.
template <class R>
struct Drawn : Learning<R> {
  static constexpr const char* kName = "drawn";
  static constexpr bool kFirst = false, kState = true, kEpsilon = true, kMoves = true;
  SHARPKERN_INLINE explicit Drawn(const double* scalars, double, double) : Learning<R>(scalars) {}
  SHARPKERN_INLINE R gradient(R g2, R, R) const { return g2; }
  SHARPKERN_INLINE R moved(R f, R g2, R, R epsilon) const { return Learning<R>::moved(f, R(0.5) * g2 * epsilon); }
};

// TRACER: g + c (g2 - g), c = factor rho sqrt(total), or g2 where factor is 0; times s with precondition. Then the
// average moves, unless it is Adam's. scalars: delta, adam, beta, factor, precondition, rho.
template <class R>
struct Traced : Tracer<R> {
  static constexpr const char* kName = "traced";
  static constexpr bool kFirst = true, kState = true, kEpsilon = false, kMoves = true;
  R c, keep, beta;
  bool precondition;
  SHARPKERN_INLINE explicit Traced(const double* scalars, double step, double total)
      : Tracer<R>(scalars, step),
        c(scalars[3] == 0 ? R(1) : R(scalars[3] * scalars[5] * sqrt(total))),
        keep(R(1.0 - scalars[2])),
        beta(R(scalars[2])),
        precondition(scalars[4] != 0) {
    if (scalars[1] != 0) {
      keep = R(1);
      beta = R(0);
    }
  }
  SHARPKERN_INLINE R gradient(R g2, R g, R f) const {
    const R traced = c == R(1) ? g2 : fused(c, g2 - g, g);
    return precondition ? this->s(R(0), this->fisher(g, f)) * traced : traced;
  }
  SHARPKERN_INLINE R moved(R f, R, R g, R) const { return beta == R(0) ? f : fused(beta, g * g, keep * f); }
};

// Evolution strategies: what sums over the draws become. first: sum of weights times draws; second: of utilities times
// (draw^2 - 1). scalars: 1/sqrt(p), lr, rho.
template <class R>
struct Estimated {
  static constexpr const char* kName = "estimated";
  R over, half_lr;
  SHARPKERN_INLINE static void add(R weight, R utility, R draw, R& first, R& second) {
    first = fused(weight, draw, first);
    second = fused(utility, fused(draw, draw, R(-1)), second);
  }
  SHARPKERN_INLINE explicit Estimated(const double* scalars)
      : over(R(1 / (scalars[0] * scalars[2]))), half_lr(R(0.5 * scalars[1])) {}
  SHARPKERN_INLINE R gradient(R first, R s) const { return over * first / root(s); }
  SHARPKERN_INLINE R moved(R s, R second) const { return Learning<R>::clamped(s * exponential(half_lr * second)); }
};

}  // namespace sharpkern::SHARPKERN_ISA
