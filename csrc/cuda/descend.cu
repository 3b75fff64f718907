#include "descend.cuh"

#include "enqueue.cuh"

namespace sharpkern::cuda {

void descend(const Table& table, Queue& queue, const std::string& base, const std::vector<Scalar>& options,
             const std::string& preconditioner, const std::vector<Scalar>& scalars, const double* total,
             const double* second) {
  Header header{};
  put(header.base, options);
  put(header.covariance, scalars);
  header.total = const_cast<double*>(total);
  header.second = second;
  with_types(table.weight, table.gradient, [&](auto w, auto g) {
    using W = typename decltype(w)::type;
    using G = typename decltype(g)::type;
    using R = Arithmetic<W>;
    choose(Preconditioners<R>(), preconditioner,
           [&](auto* formula) { header.natural = std::remove_pointer_t<decltype(formula)>::kState; });
    choose(Bases<R>(), base, [&](auto* formula) {
      using Base = std::remove_pointer_t<decltype(formula)>;
      Op op{"descend", &descend_kernel<Base, W, G, kSmall>, &descend_kernel<Base, W, G, kLarge>};
      op.rows = {kWeight, kSource, kGradient};
      if (Base::kStates > 0) op.rows.push_back(kM);
      if (Base::kStates > 1) op.rows.push_back(kV);
      if (table.master) op.rows.push_back(kSaved);
      if (header.natural) op.rows.push_back(kFisher);
      enqueue(table, queue, op, header);
    });
  });
}

}  // namespace sharpkern::cuda
