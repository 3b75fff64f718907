#include "ascend.cuh"

#include "enqueue.cuh"

namespace sharpkern::cuda {

void ascend(const Table& table, Queue& queue, const std::string& covariance, const std::vector<Scalar>& scalars,
            Scalar rho, const double* total, bool track) {
  Header header{};
  header.base[0] = rho;
  put(header.covariance, scalars);
  header.total = const_cast<double*>(total);
  header.draw = reinterpret_cast<std::int64_t*>(table.draw);
  header.seed = table.seed;
  header.track = track;
  with_types(table.weight, table.gradient, [&](auto w, auto g) {
    using W = typename decltype(w)::type;
    using G = typename decltype(g)::type;
    choose(Covariances<Arithmetic<W>>(), covariance, [&](auto* formula) {
      using Covariance = std::remove_pointer_t<decltype(formula)>;
      Op op{"ascend", &ascend_kernel<Covariance, W, G, kSmall>, &ascend_kernel<Covariance, W, G, kLarge>};
      op.rows = {kWeight, kGradient, kSaved};
      if (Covariance::kState) op.rows.push_back(kFisher);
      op.starts = table.draw != 0;
      op.counts_draws = table.draw != 0 && track;
      enqueue(table, queue, op, header);
    });
  });
}

}  // namespace sharpkern::cuda
