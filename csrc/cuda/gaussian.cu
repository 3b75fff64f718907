#include "ascend.cuh"

namespace sharpkern::cuda {

void gaussian(const Table& table, Queue& queue, const std::string& covariance, const Header& header) {
  with_types(table.weight, table.weight, [&](auto w, auto) {
    using W = typename decltype(w)::type;
    choose(Covariances<Arithmetic<W>>(), covariance, [&](auto* formula) {
      using Covariance = std::remove_pointer_t<decltype(formula)>;
      Op op{"gaussian", &gaussian_kernel<Covariance, W, kSmall>, &gaussian_kernel<Covariance, W, kLarge>};
      op.starts = true;
      enqueue_ascend<Covariance>(table, queue, header, false, op);
    });
  });
}

}  // namespace sharpkern::cuda
