// The ops at one coordinate, templated on the functors of covariance.h and base.h.
#pragma once

#include "covariance.h"

namespace sharpkern::SHARPKERN_ISA {

// One term of sum s g^2, added to what there is.
template <class R, class Covariance>
SHARPKERN_INLINE R sq_norm_at(const Covariance& covariance, R sum, R w, R g, R f) {
  return fused(covariance.s(w, covariance.fisher(g, f)), g * g, sum);
}

// w + scale s g, with scale = rho / sqrt(sum s g^2); f becomes the Fisher diagonal that s was taken from.
template <class R, class Covariance>
SHARPKERN_INLINE R ascend_at(const Covariance& covariance, R scale, R w, R g, R& f) {
  f = covariance.fisher(g, f);
  return fused(scale, covariance.s(w, f) * g, w);
}

// No natural gradient: g2 goes to the base update as it is.
template <class R>
struct Plain {
  static constexpr const char* kName = "";
  static constexpr bool kState = false;
  SHARPKERN_INLINE explicit Plain(const double*) {}
  SHARPKERN_INLINE R s(R, R) const { return R(1); }
};

// The natural gradient s g2, with s from the f of the first pass.
template <class R>
struct Natural : Damped<R> {
  static constexpr const char* kName = "fisher_average";
  static constexpr bool kState = true;
  using Damped<R>::Damped;
};

}  // namespace sharpkern::SHARPKERN_ISA
