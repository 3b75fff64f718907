// name -> formula: the only switch. A new formula is one functor and one name in these lists.
#pragma once

#include <cstring>

#include "base.h"
#include "correction.h"
#include "covariance.h"
#include "gradient.h"
#include "ops.h"

namespace sharpkern::SHARPKERN_ISA {

template <class... T>
struct List {};

template <class R>
using Covariances = List<Identity<R>, Adaptive<R>, Fisher<R>, Average<R>, Learned<R>, Tracer<R>>;
template <class R>
using Bases = List<Sgd<R>, Momentum<R, false>, Momentum<R, true>, Adam<R>>;
template <class R>
using Corrections = List<Plain<R>, Natural<R>, Drawn<R>, Traced<R>>;

// Calls visit with the type in the list whose kName is name; false if there is none.
template <class Visit, class... T>
inline bool select(List<T...>, const char* name, Visit visit) {
  return ((std::strcmp(T::kName, name) == 0 ? (visit(static_cast<T*>(nullptr)), true) : false) || ...);
}

}  // namespace sharpkern::SHARPKERN_ISA
