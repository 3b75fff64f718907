#include "restore.cuh"

#include "enqueue.cuh"

namespace sharpkern::cuda {

void restore(const Table& table, Queue& queue, const double* total) {
  Header header{};
  header.total = const_cast<double*>(total);
  with_types(table.weight, table.weight, [&](auto w, auto) {
    using W = typename decltype(w)::type;
    enqueue(table, queue, {"restore", &restore_kernel<W, kSmall>, &restore_kernel<W, kLarge>, {kWeight, kSource}},
            header);
  });
}

}  // namespace sharpkern::cuda
