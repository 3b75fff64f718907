#include "ops.h"

#include <cmath>

#include "apply.h"

namespace sharpkern::cpu {

namespace {

constexpr std::size_t kUpdateChunk = 512;

// Calls run with a float or a double: the arithmetic type of the table.
template <class Run>
void with_arithmetic(const Table& table, Run run) {
  table.weight == DType::f64 ? run(double()) : run(float());
}

const float* steps_of(const Table& table) { return reinterpret_cast<const float*>(table.steps); }

// w <- w0 for one chunk; masters are rounded.
void give_back(const Table& table, const Launch& launch, float* buffer, std::size_t t, std::size_t i, std::size_t n) {
  const char* source = table.at(kSource, t) + i * bytes(table.exact());
  char* weight = table.at(kWeight, t) + i * bytes(table.weight);
  if (source == weight) return;
  if (table.master) {
    store(*launch.kernels, launch.streaming, table.weight, weight, load(*launch.kernels, DType::f32, source, buffer, n), n);
  } else {
    move(*launch.kernels, launch.streaming, weight, source, n * bytes(table.weight));
  }
}

// A chunk of gradients in the arithmetic type. The formulas multiply them by the factor of the block; where they are to
// be clipped, that is done here and the factor is 1.
template <class R>
const R* gradient(const Table& table, const Launch& launch, Row row, R* buffer, std::size_t t, std::size_t i, Block<R>& b) {
  const R* g = load(*launch.kernels, table.gradient, table.at(row, t) + i * bytes(table.gradient), buffer, b.n);
  const auto* how = reinterpret_cast<const double*>(table.take);
  b.factor = how ? R(how[0]) : R(1);
  if (!how || std::isinf(how[1])) return g;
  b.factor = 1;
  launch.kernels->formulas(R()).take(how, g, buffer, b.n);
  return buffer;
}

// The random numbers of elements i ... i + n of a tensor, run by run.
template <class Draw, class T>
void draw_all(Draw draw, const Table& table, std::uint32_t number, std::size_t t, std::size_t i, T* out, std::size_t n) {
  const std::size_t run = table.run.empty() ? 0 : table.run[t];
  if (run == 0) return draw(table.seed, number, table.start[t] + i, out, n);
  for (std::size_t j = i; j < i + n;) {
    const std::size_t within = j % run, count = std::min(run - within, i + n - j);
    draw(table.seed, number, table.start[t] + j / run * table.pitch[t] + within, out + (j - i), count);
    j += count;
  }
}

template <class Found>
const Found& known(const Found& found, const std::string& what) {
  if (!found.run) throw std::invalid_argument("no formula " + what);
  return found;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    names.push_back(avx512::kernels.name);
  if (fma) names.push_back(avx2::kernels.name);
  names.push_back(baseline::kernels.name);
  return names;
}

const Kernels& kernels_of(const std::string& instruction_set) {
  for (const std::string& name : instruction_sets())
    if (name == instruction_set)
      for (const Kernels* kernels : {&avx512::kernels, &avx2::kernels, &baseline::kernels})
        if (name == kernels->name) return *kernels;
  throw std::invalid_argument("instruction set '" + instruction_set + "' does not run on this processor");
}

void sq_norm(Table& table, const Launch& launch, const std::string& covariance, const std::vector<double>& scalars,
             double* total, bool add) {
  with_arithmetic(table, [&](auto zero) {
    using R = decltype(zero);
    const auto formula = known(launch.kernels->formulas(zero).norm(covariance.c_str()), covariance);
    for_each_chunk<R>(table, launch.threads, [&](auto& scratch, std::size_t t, std::size_t i, std::size_t n) {
      double& partial = table.partial[table.first_chunk[t] + i / kChunk];
      partial = 0;
      if (!table.at(kGradient, t)) return;
      Block<R> b{};
      b.n = n;
      b.next = launch.streaming ? std::ptrdiff_t(kChunk) : 0;
      b.g = gradient(table, launch, kGradient, scratch.g, t, i, b);
      if (formula.reads_weight)
        b.w = load(*launch.kernels, table.exact(), table.at(table.exact_row(), t) + i * bytes(table.exact()), scratch.w, n);
      if (formula.state) b.f = reinterpret_cast<const R*>(table.at(kFisher, t)) + i;
      partial = double(formula.run(scalars.data(), steps_of(table)[t], b));
    });
  });
  double sum = 0;
  for (double partial : table.partial) sum += partial;
  *total = (add ? *total : 0) + sum;
}

void ascend(Table& table, const Launch& launch, const std::string& covariance, const std::vector<double>& scalars,
            const Step& step) {
  auto* draw = reinterpret_cast<std::int64_t*>(table.draw);
  const double* total = step.total;
  if (total && !std::isfinite(*total)) return;
  const double scale = total && *total > 0 ? step.worst * step.rho / std::sqrt(*total) : 0;
  const double sigma = step.noise * step.rho;
  const bool still = scale == 0 && sigma == 0;  // w + 0 would turn -0 into 0
  if ((sigma != 0 || table.stochastic) && !draw) throw std::invalid_argument("random numbers want set_noise before");
  const std::uint32_t number = draw ? std::uint32_t(*draw + (step.again < 0 ? 0 : step.again)) : 0;
  const Row from = step.again < 0 ? table.exact_row() : kSource;
  with_arithmetic(table, [&](auto zero) {
    using R = decltype(zero);
    const auto formula = known(
        launch.kernels->formulas(zero).ascend(covariance.c_str(), total != nullptr, step.noise != 0), covariance);
    for_each_chunk<R, Order::backward>(table, launch.threads, [&](auto& scratch, std::size_t t, std::size_t i, std::size_t n) {
      if (total && !table.at(kGradient, t)) return;
      const std::size_t exact = bytes(table.exact());
      char* weight = table.at(kWeight, t) + i * bytes(table.weight);
      if (step.again < 0 && !table.master)
        move(*launch.kernels, launch.streaming, table.at(kSaved, t) + i * exact, weight, n * exact);
      if (total && table.at(kFirst, t)) {
        const std::size_t size = bytes(table.gradient);
        move(*launch.kernels, launch.streaming, table.at(kFirst, t) + i * size, table.at(kGradient, t) + i * size, n * size);
      }
      if (still && !formula.moves && step.again < 0) return;
      Block<R> b{};
      b.n = n;
      b.next = launch.streaming ? -std::ptrdiff_t(kChunk) : 0;
      b.w = load(*launch.kernels, table.exact(), table.at(from, t) + i * exact, scratch.w, n);
      if (total) b.g = gradient(table, launch, kGradient, scratch.g, t, i, b);
      if (sigma != 0) {
        draw_all(launch.kernels->draw_normals, table, number, t, i, scratch.eta, n);
      } else {
        std::fill_n(scratch.eta, n, 0.0f);  // a kernel that adds noise multiplies it by sigma
      }
      b.eta = scratch.eta;
      const bool unmoved = still && step.again < 0, direct = bytes(table.weight) == sizeof(R) && !unmoved;
      b.out = direct ? reinterpret_cast<R*>(weight) : scratch.out;
      if (formula.state) {
        R* fisher = reinterpret_cast<R*>(table.at(kFisher, t)) + i;
        b.f = fisher;
        b.f_out = step.track ? fisher : scratch.f;
      }
      formula.run(scalars.data(), steps_of(table)[t], R(scale), R(sigma), b);
      if (unmoved) return;
      if constexpr (sizeof(R) == 4) {
        if (table.stochastic) {
          draw_all(launch.kernels->draw_bits, table, number, t, i, scratch.random, n);
          (table.weight == DType::bf16 ? launch.kernels->stochastic_bf16 : launch.kernels->stochastic_f16)(
              b.out, scratch.random, n);
        }
      }
      store(*launch.kernels, false, table.weight, weight, b.out, n);
    });
  });
  if (draw && step.track) *draw += 1;
}

namespace {

// The gradient that evolution strategies estimate for one chunk, in scratch.g; what is kept of the covariance moves.
template <class R>
void estimate(const Table& table, const Launch& launch, const std::vector<double>& scalars, Scratch<R>& scratch,
              std::size_t t, std::size_t i, std::size_t n) {
  const Formulas<R>& formulas = launch.kernels->formulas(R());
  const float* pair = reinterpret_cast<const float*>(table.pairs);
  const std::int64_t draw = *reinterpret_cast<const std::int64_t*>(table.draw);
  std::fill_n(scratch.g, n, R(0));
  std::fill_n(scratch.f, n, R(0));
  for (std::size_t k = 0; k < table.pair_count; ++k) {
    draw_all(launch.kernels->draw_normals, table, std::uint32_t(draw + std::int64_t(k)), t, i, scratch.eta, n);
    formulas.accumulate(R(pair[k]), R(pair[table.pair_count + k]), scratch.eta, scratch.g, scratch.f, n);
  }
  char* fisher = table.at(kFisher, t);
  formulas.estimate(scalars.data(), scratch.g, scratch.f, fisher ? reinterpret_cast<R*>(fisher) + i : nullptr, n);
}

}  // namespace

void descend(Table& table, const Launch& launch, const std::string& base, const std::vector<double>& options,
             const std::string& correction, const std::vector<double>& scalars, const double* total,
             const double* second) {
  if (!std::isfinite(*total)) return;
  if (second && !std::isfinite(*second)) return restore(table, launch, total);
  const bool estimated = correction == "estimated";
  if (estimated && !(table.pairs && table.draw)) throw std::invalid_argument("estimates want set_pairs and set_noise before");
  float* steps = reinterpret_cast<float*>(table.steps);
  with_arithmetic(table, [&](auto zero) {
    using R = decltype(zero);
    const auto formula = known(
        launch.kernels->formulas(zero).descend(base.c_str(), estimated ? "" : correction.c_str()), base + " " + correction);
    for_each_chunk<R, Order::forward, kUpdateChunk>(table, launch.threads, [&](auto& scratch, std::size_t t, std::size_t i, std::size_t n) {
      if (!estimated && !table.at(kGradient, t))
        return give_back(table, launch, reinterpret_cast<float*>(scratch.w), t, i, n);
      char* weight = table.at(kWeight, t) + i * bytes(table.weight);
      if (scratch.prepared_for != steps[t]) {
        formula.prepare(options.data(), steps[t], scratch.prepared);
        scratch.prepared_for = steps[t];
      }
      Block<R> b{};
      b.n = n;
      b.next = launch.streaming ? std::ptrdiff_t(kUpdateChunk) : 0;
      const auto loaded = [&](Row row, R* buffer) { return gradient(table, launch, row, buffer, t, i, b); };
      b.w = load(*launch.kernels, table.exact(), table.at(kSource, t) + i * bytes(table.exact()), scratch.w, n);
      if (estimated) {
        estimate(table, launch, scalars, scratch, t, i, n);
        b.g = scratch.g;
        b.factor = 1;
      } else {
        b.g = loaded(kGradient, scratch.g);
      }
      if (formula.first) b.first = table.at(kFirst, t) ? loaded(kFirst, scratch.first) : b.g;
      if (formula.epsilon) b.moved = load(*launch.kernels, table.weight, weight, scratch.moved, n);
      if (formula.state) b.f = b.f_out = reinterpret_cast<R*>(table.at(kFisher, t)) + i;
      if (formula.states > 0) b.m = reinterpret_cast<R*>(table.at(kM, t)) + i;
      if (formula.states > 1) b.v = reinterpret_cast<R*>(table.at(kV, t)) + i;
      const bool direct = !launch.streaming && bytes(table.weight) == sizeof(R);
      b.out = direct ? reinterpret_cast<R*>(weight) : scratch.out;
      formula.run(scratch.prepared, scalars.data(), steps[t], *total, b);
      if (table.master) move(*launch.kernels, launch.streaming, table.at(kSaved, t) + i * sizeof(float), b.out, n * sizeof(float));
      store(*launch.kernels, launch.streaming, table.weight, weight, b.out, n);
    });
  });
  for (std::size_t t = 0; t < table.size(); ++t)
    if (estimated || table.at(kGradient, t)) steps[t] += 1;
  if (estimated) *reinterpret_cast<std::int64_t*>(table.draw) += std::int64_t(table.pair_count);
}

void restore(Table& table, const Launch& launch, const double* total) {
  if (!std::isfinite(*total)) return;
  for_each_chunk<float>(table, launch.threads, [&](auto& scratch, std::size_t t, std::size_t i, std::size_t n) {
    give_back(table, launch, scratch.w, t, i, n);
  });
}

}  // namespace sharpkern::cpu
