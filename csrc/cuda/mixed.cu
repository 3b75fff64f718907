#include "ascend.cuh"

namespace sharpkern::cuda {

void mixed(const Table& table, Queue& queue, const std::string& covariance, const Header& header) {
  with_types(table.weight, table.gradient, [&](auto w, auto g) {
    using W = typename decltype(w)::type;
    using G = typename decltype(g)::type;
    choose(Covariances<Arithmetic<W>>(), covariance, [&](auto* formula) {
      using Covariance = std::remove_pointer_t<decltype(formula)>;
      Op op{"mixed", nullptr, &mixed_kernel<Covariance, W, G, kLarge>};
      op.starts = true;
      enqueue_ascend<Covariance>(table, queue, header, true, op);
    });
  });
}

}  // namespace sharpkern::cuda
