// How the formulas take a gradient: what unscales and clips it happens as it is read, and costs no pass of its own.
#pragma once

#include "real.h"

namespace sharpkern::SHARPKERN_ISA {

// factor g, clipped to [-bound, bound]; what is not finite stays so. The two lie on the device, as float64.
template <class R>
struct Taken {
  R factor, bound;

  SHARPKERN_INLINE R operator()(R g) const {
    const R x = factor * g, above = x < -bound ? -bound : x, clipped = above > bound ? bound : above;
    return finite(x) ? clipped : x;
  }
};

}  // namespace sharpkern::SHARPKERN_ISA
