#include "estimated.cuh"

namespace sharpkern::cuda {

void estimated(const Table& table, Queue& queue, const std::string& base, const Header& header) {
  with_types(table.weight, table.weight, [&](auto w, auto) {
    using W = typename decltype(w)::type;
    choose(Bases<Arithmetic<W>>(), base, [&](auto* formula) {
      using Base = std::remove_pointer_t<decltype(formula)>;
      Op op{"estimated", nullptr, &estimated_kernel<Base, W, kLarge>};
      op.rows = {kWeight, kSource};
      if (Base::kStates > 0) op.rows.push_back(kM);
      if (Base::kStates > 1) op.rows.push_back(kV);
      if (table.master) op.rows.push_back(kSaved);
      op.rows.push_back(kFisher);
      op.starts = op.counts_draws = true;
      enqueue(table, queue, op, header);
    });
  });
}

}  // namespace sharpkern::cuda
