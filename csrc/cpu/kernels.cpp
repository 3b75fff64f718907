// Every formula as a loop over one chunk. Compiled once an instruction set, which SHARPKERN_ISA names; the loops are
// plain C++ that the compiler vectorises.
#include "kernels.h"

#include <type_traits>

#include "../select.h"
#include "half.h"

#define SHARPKERN_STRING_(x) #x
#define SHARPKERN_STRING(x) SHARPKERN_STRING_(x)

namespace sharpkern::SHARPKERN_ISA {

// Sixty-four partial sums in a fixed order: the same bits whatever the vector width.
template <class R, class Covariance>
static R norm(const double* scalars, const Block<R>& b) {
  const Covariance covariance(scalars);
  constexpr std::size_t kLanes = 64;
  R lanes[kLanes] = {};
  const auto term = [&](std::size_t i) __attribute__((always_inline)) {
    const R w = Covariance::kReadsWeight ? b.w[i] : R(0), f = Covariance::kState ? b.f[i] : R(0);
    return sq_norm_at(covariance, w, b.g[i], f);
  };
  std::size_t i = 0;
  for (; i + kLanes <= b.n; i += kLanes)
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] += term(i + j);
  for (std::size_t j = 0; i + j < b.n; ++j) lanes[j] += term(i + j);
  for (std::size_t half = kLanes / 2; half; half /= 2)
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

template <class R, class Covariance>
static void ascend(const double* scalars, R scale, const Block<R>& b) {
  const Covariance covariance(scalars);
  const R* g = b.g;
#pragma GCC ivdep
  for (std::size_t i = 0; i < b.n; ++i) {
    R f = Covariance::kState ? b.f[i] : R(0);
    b.out[i] = ascend_at(covariance, scale, b.w[i], g[i], f);
    if (Covariance::kState) b.f_out[i] = f;
  }
}

template <class R, class Base, class Preconditioner>
static void descend(const double* prepared, const double* scalars, const Block<R>& b) {
  const Base base(prepared);
  const Preconditioner preconditioner(scalars);
#pragma GCC ivdep
  for (std::size_t i = 0; i < b.n; ++i) {
    R g = b.g[i];
    if (Preconditioner::kState) g = preconditioner.s(R(0), b.f[i]) * g;
    R m = Base::kStates > 0 ? b.m[i] : R(0), v = Base::kStates > 1 ? b.v[i] : R(0);
    b.out[i] = base(b.w[i], g, m, v);
    if (Base::kStates > 0) b.m[i] = m;
    if (Base::kStates > 1) b.v[i] = v;
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
static Ascend<R> find_ascend(const char* name) {
  Ascend<R> found{};
  select(Covariances<R>(), name, [&](auto* type) {
    using Covariance = std::remove_pointer_t<decltype(type)>;
    found = {&ascend<R, Covariance>, Covariance::kState};
  });
  return found;
}

template <class R>
static Descend<R> find_descend(const char* base, const char* preconditioner) {
  Descend<R> found{};
  select(Bases<R>(), base, [&](auto* first) {
    using Base = std::remove_pointer_t<decltype(first)>;
    select(Preconditioners<R>(), preconditioner, [&](auto* second) {
      using Preconditioner = std::remove_pointer_t<decltype(second)>;
      found = {&Base::prepare, &descend<R, Base, Preconditioner>, Base::kStates, Preconditioner::kState};
    });
  });
  return found;
}

template <class R>
constexpr Formulas<R> formulas() {
  return {&find_norm<R>, &find_ascend<R>, &find_descend<R>};
}

extern const Kernels kernels = {SHARPKERN_STRING(SHARPKERN_ISA), formulas<float>(), formulas<double>(),
                                &from_bf16, &from_f16, &to_bf16, &to_f16};

}  // namespace sharpkern::SHARPKERN_ISA
