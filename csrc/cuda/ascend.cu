#include "ascend.cuh"

namespace sharpkern::cuda {

void worst_case(const Table& table, Queue& queue, const std::string& covariance, const Header& header) {
  with_types(table.weight, table.gradient, [&](auto w, auto g) {
    using W = typename decltype(w)::type;
    using G = typename decltype(g)::type;
    choose(Covariances<Arithmetic<W>>(), covariance, [&](auto* formula) {
      using Covariance = std::remove_pointer_t<decltype(formula)>;
      Op op{"ascend", &ascend_kernel<Covariance, W, G, kSmall>, &ascend_kernel<Covariance, W, G, kLarge>};
      op.starts = header.stochastic;
      enqueue_ascend<Covariance>(table, queue, header, true, op);
    });
  });
}

void ascend(const Table& table, Queue& queue, const std::string& covariance, const std::vector<Scalar>& scalars,
            const Step& step) {
  const bool noise = step.noise != 0 || !step.total;
  if ((noise || table.stochastic) && !table.draw) throw std::invalid_argument("random numbers want set_noise before");
  Header header{};
  header.base[0] = step.rho;
  header.base[1].value = step.worst;
  header.base[2].value = step.noise;
  put(header.formula, scalars);
  header.total = const_cast<double*>(step.total);
  header.draw = reinterpret_cast<std::int64_t*>(table.draw);
  header.seed = table.seed;
  header.again = step.again;
  header.track = step.track;
  header.stochastic = table.stochastic;
  const auto& first = table.rows[kFirst];
  header.first = step.total && std::any_of(first.begin(), first.end(), [](std::uintptr_t address) { return address; });
  (!noise ? worst_case : step.total ? mixed : gaussian)(table, queue, covariance, header);
}

}  // namespace sharpkern::cuda
