#include "norm.cuh"

#include "enqueue.cuh"

namespace sharpkern::cuda {

void sq_norm(const Table& table, Queue& queue, const std::string& covariance, const std::vector<Scalar>& scalars,
             double* total, bool add) {
  Header header{};
  put(header.formula, scalars);
  header.total = total;
  header.add = add;
  with_types(table.exact(), table.gradient, [&](auto w, auto g) {
    using W = typename decltype(w)::type;
    using G = typename decltype(g)::type;
    using R = Arithmetic<G>;
    choose(Covariances<R>(), covariance, [&](auto* formula) {
      using Covariance = std::remove_pointer_t<decltype(formula)>;
      using Second = std::conditional_t<Covariance::kReadsWeight, W, R>;
      Op op{"sq_norm", &sq_norm_kernel<Covariance, Second, G, kSmall>, &sq_norm_kernel<Covariance, Second, G, kLarge>};
      op.rows = {kGradient};
      if (Covariance::kReadsWeight) op.rows.push_back(table.exact_row());
      if (Covariance::kState) op.rows.push_back(kFisher);
      op.sums = true;
      enqueue(table, queue, op, header);
    });
  });
}

}  // namespace sharpkern::cuda
