#include "descend.cuh"

namespace sharpkern::cuda {

void plain(const Table& table, Queue& queue, const std::string& base, const Header& header) {
  with_types(table.weight, table.gradient, [&](auto w, auto g) {
    using W = typename decltype(w)::type;
    using G = typename decltype(g)::type;
    choose(Bases<Arithmetic<W>>(), base, [&](auto* formula) {
      using Base = std::remove_pointer_t<decltype(formula)>;
      Op op{"descend", &descend_kernel<Base, W, G, kSmall>, &descend_kernel<Base, W, G, kLarge>};
      enqueue_descend<Base>(table, queue, header, header.natural, false, op);
    });
  });
}

void descend(const Table& table, Queue& queue, const std::string& base, const std::vector<Scalar>& options,
             const std::string& correction, const std::vector<Scalar>& scalars, const double* total,
             const double* second) {
  Header header{};
  put(header.base, options);
  put(header.formula, scalars);
  header.total = const_cast<double*>(total);
  header.second = second;
  if (correction == Estimated<float>::kName) {
    if (!table.pairs || !table.draw) throw std::invalid_argument("estimates want set_pairs and set_noise before");
    header.draw = reinterpret_cast<std::int64_t*>(table.draw);
    header.seed = table.seed;
    header.pairs = reinterpret_cast<const float*>(table.pairs);
    header.pair_count = int(table.pair_count);
    return estimated(table, queue, base, header);
  }
  auto* run = &plain;
  choose(Corrections<float>(), correction, [&](auto* formula) {
    using Correction = std::remove_pointer_t<decltype(formula)>;
    header.natural = std::is_same_v<Correction, Natural<float>>;
    if (std::is_same_v<Correction, Drawn<float>>) run = &drawn;
    if (std::is_same_v<Correction, Traced<float>>) run = &traced;
  });
  run(table, queue, base, header);
}

}  // namespace sharpkern::cuda
