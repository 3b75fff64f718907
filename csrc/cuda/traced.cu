#include "descend.cuh"

namespace sharpkern::cuda {

void traced(const Table& table, Queue& queue, const std::string& base, const Header& header) {
  with_types(table.weight, table.gradient, [&](auto w, auto g) {
    using W = typename decltype(w)::type;
    using G = typename decltype(g)::type;
    choose(Bases<Arithmetic<W>>(), base, [&](auto* formula) {
      using Base = std::remove_pointer_t<decltype(formula)>;
      enqueue_descend<Base>(table, queue, header, true, true, {"traced", nullptr, &traced_kernel<Base, W, G, kLarge>});
    });
  });
}

}  // namespace sharpkern::cuda
