// The ops at one coordinate, templated on the functors of covariance.h.
#pragma once

#include "covariance.h"

namespace sharpkern::SHARPKERN_ISA {

// One term of sum s g^2, or (s g)^2, added to what there is.
template <class R, class Covariance>
SHARPKERN_INLINE R sq_norm_at(const Covariance& covariance, R sum, R w, R g, R f) {
  const R s = covariance.s(w, covariance.fisher(g, f));
  return Covariance::kDirection ? fused(s * g, s * g, sum) : fused(s, g * g, sum);
}

// w + scale s g + sigma sqrt(s) eta, with scale = rho / sqrt(sum s g^2) and eta standard normal; f becomes what is kept.
template <bool worst, bool noise, class R, class Covariance>
SHARPKERN_INLINE R ascend_at(const Covariance& covariance, R scale, R sigma, R w, R g, R eta, R& f) {
  const R seen = covariance.fisher(g, f), s = covariance.s(w, seen);
  if (worst) {
    w = fused(scale, s * g, w);
    f = covariance.kept(g, seen, scale);
  }
  return noise ? fused(sigma * root(s), eta, w) : w;
}

}  // namespace sharpkern::SHARPKERN_ISA
