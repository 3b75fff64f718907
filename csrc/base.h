// The base update at one coordinate: w0 and g in, the new w out, m and v updated in place. A second moment takes *raw
// instead of g, unless raw is null.
//
//   prepare(scalars, step, out)  what the formula needs, from the options and the updates done before
//   kStates                      how many of m, v the formula keeps
#pragma once

#include <cmath>

#include "real.h"

namespace sharpkern::SHARPKERN_ISA {

// g + weight_decay w0; without decay an infinite weight leaves g alone, as in torch
template <class R>
SHARPKERN_INLINE R decayed(R weight_decay, R w0, R g) {
  return weight_decay == R(0) ? g : fused(weight_decay, w0, g);
}

// options: lr, momentum, dampening, weight_decay, sign (-1 maximises)
struct SgdScalars {
  SHARPKERN_INLINE static void prepare(const double* o, double step, double* out) {
    out[0] = o[0];
    out[1] = o[1];
    out[2] = step == 0 ? 1.0 : 1.0 - o[2];  // torch's first buffer is the gradient itself
    out[3] = o[3];
    out[4] = o[4];
  }
};

template <class R>
struct Sgd : SgdScalars {
  static constexpr const char* kName = "sgd";
  static constexpr int kStates = 0;
  R lr, weight_decay, sign;
  SHARPKERN_INLINE explicit Sgd(const double* p) : lr(R(p[0])), weight_decay(R(p[3])), sign(R(p[4])) {}
  SHARPKERN_INLINE R operator()(R w0, R g, R&, R&, const R*) const {
    return fused(-lr, decayed(weight_decay, w0, sign * g), w0);
  }
};

template <class R, bool kNesterov>
struct Momentum : SgdScalars {
  static constexpr const char* kName = kNesterov ? "nesterov" : "momentum";
  static constexpr int kStates = 1;
  R lr, momentum, fresh, weight_decay, sign;
  SHARPKERN_INLINE explicit Momentum(const double* p)
      : lr(R(p[0])), momentum(R(p[1])), fresh(R(p[2])), weight_decay(R(p[3])), sign(R(p[4])) {}
  SHARPKERN_INLINE R operator()(R w0, R g, R& m, R&, const R*) const {
    g = decayed(weight_decay, w0, sign * g);
    m = fused(fresh, g, momentum * m);
    return fused(-lr, kNesterov ? fused(momentum, m, g) : m, w0);
  }
};

// options: lr, beta1, beta2, eps, what of w0 is added to g, sign, weight decay that is decoupled
template <class R>
struct Adam {
  static constexpr const char* kName = "adam";
  static constexpr int kStates = 2;
  R step_size, fresh1, beta2, fresh2, eps, added, sign, bias_root, shrink;
  SHARPKERN_INLINE static void prepare(const double* o, double step, double* out) {
    out[0] = o[0] / (1.0 - std::pow(o[1], step + 1));
    out[1] = o[1];
    out[2] = o[2];
    out[3] = o[3];
    out[4] = o[4];
    out[5] = o[5];
    out[6] = std::sqrt(1.0 - std::pow(o[2], step + 1));
    out[7] = 1.0 - o[0] * o[6];
  }
  SHARPKERN_INLINE explicit Adam(const double* p)
      : step_size(R(p[0])), fresh1(R(1.0 - p[1])), beta2(R(p[2])), fresh2(R(1.0 - p[2])), eps(R(p[3])),
        added(R(p[4])), sign(R(p[5])), bias_root(R(p[6])), shrink(R(p[7])) {}
  SHARPKERN_INLINE R operator()(R w0, R g, R& m, R& v, const R* raw) const {
    g = decayed(added, w0, sign * g);
    const R squared = raw ? *raw : g;
    m = fresh1 < R(0.5) ? fused(fresh1, g - m, m) : fused(fresh1 - R(1), g - m, g);
    v = fused(fresh2 * squared, squared, beta2 * v);
    return w0 * shrink - step_size * m / (root(v) / bias_root + eps);
  }
};

}  // namespace sharpkern::SHARPKERN_ISA
