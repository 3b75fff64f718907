// Every formula as a loop over one chunk. Compiled once an instruction set, which SHARPKERN_ISA names; the loops are
// plain C++ that the compiler vectorises.
#include "kernels.h"

#include <type_traits>

#include "../select.h"
#include "half.h"
#include "noise.h"
#include "stream.h"
#include "strip.h"

#define SHARPKERN_STRING_(x) #x
#define SHARPKERN_STRING(x) SHARPKERN_STRING_(x)

namespace sharpkern::SHARPKERN_ISA {

// Partial sums, one an element of the strip, in a fixed order: the same bits whatever the vector width.
template <class R, class Covariance>
static R norm(const double* scalars, double step, const Block<R>& block) {
  const Block<R> b = block;  // nothing that is written can lie in it
  const Covariance covariance(scalars, step);
  R lanes[kStrip] = {};
  for_each_strip(b.n, [&](std::size_t i, std::size_t n) __attribute__((always_inline)) {
    prefetch(b.g, i);
    if (Covariance::kReadsWeight) prefetch(b.w, i);
    if (Covariance::kState) prefetch(b.f, i);
    for (std::size_t j = 0; j < n; ++j) {
      const R w = Covariance::kReadsWeight ? b.w[i + j] : R(0), f = Covariance::kState ? b.f[i + j] : R(0);
      lanes[j] = sq_norm_at(covariance, lanes[j], w, b.factor * b.g[i + j], f);
    }
  });
#pragma GCC unroll 6
  for (std::size_t half = kStrip / 2; half; half /= 2)
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

template <class R, class Covariance, bool worst, bool noise>
static void ascend(const double* scalars, double step, R scale, R sigma, const Block<R>& block) {
  const Block<R> b = block;  // nothing that is written can lie in it
  const Covariance covariance(scalars, step);
  for_each_strip(b.n, [&](std::size_t i, std::size_t n) __attribute__((always_inline)) {
    if (worst) prefetch(b.g, i);
    prefetch(b.w, i);
    if (Covariance::kState) prefetch(b.f, i);
    if (b.saved) stream(b.saved + i, b.w.at + i, n * sizeof(R));
#pragma GCC ivdep
    for (std::size_t j = i; j < i + n; ++j) {
      R f = Covariance::kState ? b.f[j] : R(0);
      const R g = worst ? b.factor * b.g[j] : R(0), eta = noise ? R(b.eta[j]) : R(0);
      b.out[j] = ascend_at<worst, noise>(covariance, scale, sigma, b.w[j], g, eta, f);
      if (Covariance::kMoves && worst) b.f_out[j] = f;
    }
  });
}

template <class R, class Base, class Correction>
static void descend(const double* prepared, const double* scalars, double step, double total, const Block<R>& block) {
  const Block<R> b = block;  // nothing that is written can lie in it
  const Base base(prepared);
  const Correction correction(scalars, step, total);
  for_each_put(b.streaming, b.out, b.n, [&](R* out, std::size_t i, std::size_t n) __attribute__((always_inline)) {
    prefetch(b.g, i);
    prefetch(b.w, i);
    if (Correction::kFirst) prefetch(b.first, i);
    if (Correction::kEpsilon) prefetch(b.moved, i);
    if (Correction::kState) prefetch(b.f, i);
    if (Base::kStates > 0) prefetch(b.m, i);
    if (Base::kStates > 1) prefetch(b.v, i);
#pragma GCC ivdep
    for (std::size_t j = i; j < i + n; ++j) {
      const R f = Correction::kState ? b.f[j] : R(0), first = Correction::kFirst ? b.factor * b.first[j] : R(0);
      const R g2 = b.factor * b.g[j], g = correction.gradient(g2, first, f);
      const R epsilon = Correction::kEpsilon ? b.moved[j] - b.w[j] : R(0);
      R m = Base::kStates > 0 ? b.m[j] : R(0), v = Base::kStates > 1 ? b.v[j] : R(0);
      const R next = correction.moved(f, g2, first, epsilon);
      out[j - i] = base(b.w[j], g, m, v, Correction::kFirst ? &first : nullptr);
      if (Correction::kMoves) b.f_out[j] = next;
      if (Base::kStates > 0) b.m[j] = m;
      if (Base::kStates > 1) b.v[j] = v;
    }
  });
}

template <class R>
static void take(const double* how, const R* g, R* out, std::size_t n) {
  const Taken<R> taken{R(how[0]), R(how[1])};
#pragma GCC ivdep
  for (std::size_t j = 0; j < n; ++j) out[j] = taken(g[j]);
}

template <class R>
static void accumulate(R weight, R utility, const float* eta, R* g, R* slope, std::size_t n) {
#pragma GCC ivdep
  for (std::size_t j = 0; j < n; ++j) Estimated<R>::add(weight, utility, R(eta[j]), g[j], slope[j]);
}

template <class R>
static void estimate(const double* scalars, R* g, const R* slope, R* f, std::size_t n) {
  const Estimated<R> estimated(scalars);
#pragma GCC ivdep
  for (std::size_t j = 0; j < n; ++j) {
    const R s = f ? f[j] : R(1);
    g[j] = estimated.gradient(g[j], s);
    if (f) f[j] = estimated.moved(s, slope[j]);
  }
}

template <class R>
static Norm<R> find_norm(const char* name) {
  Norm<R> found{};
  select(Covariances<R>(), name, [&](auto* type) {
    using Covariance = std::remove_pointer_t<decltype(type)>;
    found = {&norm<R, Covariance>, Covariance::kReadsWeight, Covariance::kState};
  });
  return found;
}

template <class R>
static Ascend<R> find_ascend(const char* name, bool worst, bool noise) {
  Ascend<R> found{};
  select(Covariances<R>(), name, [&](auto* type) {
    using Covariance = std::remove_pointer_t<decltype(type)>;
    const auto run = !noise  ? &ascend<R, Covariance, true, false>
                     : worst ? &ascend<R, Covariance, true, true>
                             : &ascend<R, Covariance, false, true>;
    found = {run, Covariance::kState, worst && Covariance::kMoves};
  });
  return found;
}

template <class R>
static Descend<R> find_descend(const char* base, const char* correction) {
  Descend<R> found{};
  select(Bases<R>(), base, [&](auto* first) {
    using Base = std::remove_pointer_t<decltype(first)>;
    select(Corrections<R>(), correction, [&](auto* second) {
      using Correction = std::remove_pointer_t<decltype(second)>;
      found = {&Base::prepare,     &descend<R, Base, Correction>, Base::kStates,     Correction::kFirst,
               Correction::kState, Correction::kEpsilon,          Correction::kMoves};
    });
  });
  return found;
}

template <class R>
constexpr Formulas<R> formulas() {
  return {&find_norm<R>, &find_ascend<R>, &find_descend<R>, &take<R>, &accumulate<R>, &estimate<R>};
}

extern const Kernels kernels = {SHARPKERN_STRING(SHARPKERN_ISA), formulas<float>(), formulas<double>(),
                                &from_bf16, &from_f16, &to_bf16, &to_f16, &draw_bits, &draw_normals, &stochastic_bf16,
                                &stochastic_f16, &put};

}  // namespace sharpkern::SHARPKERN_ISA
