#include "ops.h"

#include <cmath>

#include "apply.h"

namespace sharpkern::cpu {

namespace {

// Calls run with a float or a double: the arithmetic type of the table.
template <class Run>
void with_arithmetic(const Table& table, Run run) {
  table.weight == DType::f64 ? run(double()) : run(float());
}

const float* steps_of(const Table& table) { return reinterpret_cast<const float*>(table.steps); }

// w <- w0 for one chunk; masters are rounded.
void give_back(const Table& table, const Launch& launch, float* buffer, const Chunk& chunk, const Chunk& ahead) {
  const char* source = table.at(kSource, chunk.tensor, chunk.first);
  char* weight = table.at(kWeight, chunk.tensor, chunk.first);
  if (source == weight) return;
  if (table.master) {
    const float* w0 = load(table, launch, kSource, chunk, ahead, buffer).at;
    store(*launch.kernels, launch.streaming, table.weight, weight, w0, chunk.count);
  } else {
    launch.kernels->put(launch.streaming, weight, source, chunk.count * bytes(table.weight));
  }
}

// A chunk of gradients in the arithmetic type. The formulas multiply them by the factor of the block; where they are to
// be clipped, that is done here and the factor is 1.
template <class R>
SHARPKERN_INLINE Operand<const R> gradient(const Table& table, const Launch& launch, Row row, const Chunk& chunk, const Chunk& ahead,
                          R* buffer, Block<R>& b) {
  const Operand<const R> g = load(table, launch, row, chunk, ahead, buffer);
  const auto* how = reinterpret_cast<const double*>(table.take);
  b.factor = how ? R(how[0]) : R(1);
  if (!how || std::isinf(how[1])) return g;
  b.factor = 1;
  launch.kernels->formulas(R()).take(how, g.at, buffer, b.n);
  return {buffer, g.ahead};
}

// State of a chunk, in place.
template <class R>
SHARPKERN_INLINE Operand<R> state(const Table& table, const Launch& launch, Row row, const Chunk& chunk, const Chunk& ahead) {
  const Operand<const R> read = load<R>(table, launch, row, chunk, ahead, nullptr);
  return {const_cast<R*>(read.at), read.ahead};
}

// The random numbers of a chunk, run by run.
template <class Draw, class T>
void draw_all(Draw draw, const Table& table, std::uint32_t number, const Chunk& chunk, T* out) {
  const auto [t, i, n] = chunk;
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
    for_each_chunk<R>(table, launch.threads, [&](auto& scratch, const Chunk& chunk, const Chunk& ahead) {
      const auto [t, first, n] = chunk;
      double& partial = table.partial[table.first_chunk[t] + first / kChunk];
      partial = 0;
      if (!table.at(kGradient, t)) return;
      Block<R> b{};
      b.n = n;
      b.g = gradient(table, launch, kGradient, chunk, ahead, scratch.g, b);
      if (formula.reads_weight) b.w = load(table, launch, table.exact_row(), chunk, ahead, scratch.w);
      if (formula.state) b.f = state<R>(table, launch, kFisher, chunk, ahead);
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
    for_each_chunk<R>(table, launch.threads, [&](auto& scratch, const Chunk& chunk, const Chunk& ahead) {
      const auto [t, first, n] = chunk;
      if (total && !table.at(kGradient, t)) return;
      char* weight = table.at(kWeight, t, first);
      char* saved = step.again < 0 && !table.master ? table.at(kSaved, t, first) : nullptr;
      const bool unmoved = still && step.again < 0, straight = bytes(table.weight) == sizeof(R);
      const bool runs = !unmoved || formula.moves, strips = saved && runs && launch.streaming && whole_lines(saved);
      if (saved && !strips) launch.kernels->put(launch.streaming, saved, weight, n * bytes(table.weight));
      if (total && table.at(kFirst, t))
        launch.kernels->put(launch.streaming, table.at(kFirst, t, first), table.at(kGradient, t, first),
                            n * bytes(table.gradient));
      if (!runs) return;
      Block<R> b{};
      b.n = n;
      b.w = load(table, launch, from, chunk, ahead, scratch.w, strips ? saved : nullptr);
      if (total) b.g = gradient(table, launch, kGradient, chunk, ahead, scratch.g, b);
      if (sigma != 0) {
        draw_all(launch.kernels->draw_normals, table, number, chunk, scratch.eta);
      } else if (step.noise != 0) {
        std::fill_n(scratch.eta, n, 0.0f);  // the kernel that adds noise multiplies it by sigma
      }
      b.eta = scratch.eta;
      b.out = straight && !unmoved ? reinterpret_cast<R*>(weight) : scratch.out;
      b.saved = strips && straight ? reinterpret_cast<R*>(saved) : nullptr;
      if (formula.state) {
        b.f = state<R>(table, launch, kFisher, chunk, ahead);
        b.f_out = step.track ? b.f.at : scratch.f;
      }
      formula.run(scalars.data(), steps_of(table)[t], R(scale), R(sigma), b);
      if (unmoved) return;
      if constexpr (sizeof(R) == 4) {
        if (table.stochastic) {
          draw_all(launch.kernels->draw_bits, table, number, chunk, scratch.random);
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
              const Chunk& chunk, const Chunk& ahead) {
  const std::size_t n = chunk.count;
  const Formulas<R>& formulas = launch.kernels->formulas(R());
  const float* pair = reinterpret_cast<const float*>(table.pairs);
  const std::int64_t draw = *reinterpret_cast<const std::int64_t*>(table.draw);
  std::fill_n(scratch.g, n, R(0));
  std::fill_n(scratch.f, n, R(0));
  for (std::size_t k = 0; k < table.pair_count; ++k) {
    draw_all(launch.kernels->draw_normals, table, std::uint32_t(draw + std::int64_t(k)), chunk, scratch.eta);
    formulas.accumulate(R(pair[k]), R(pair[table.pair_count + k]), scratch.eta, scratch.g, scratch.f, n);
  }
  const bool kept = table.at(kFisher, chunk.tensor);
  formulas.estimate(scalars.data(), scratch.g, scratch.f,
                    kept ? state<R>(table, launch, kFisher, chunk, ahead).at : nullptr, n);
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
    for_each_chunk<R>(table, launch.threads, [&](auto& scratch, const Chunk& chunk, const Chunk& ahead) {
      const auto [t, first, n] = chunk;
      if (!estimated && !table.at(kGradient, t))
        return give_back(table, launch, reinterpret_cast<float*>(scratch.w), chunk, ahead);
      char* weight = table.at(kWeight, t, first);
      if (scratch.prepared_for != steps[t]) {
        formula.prepare(options.data(), steps[t], scratch.prepared);
        scratch.prepared_for = steps[t];
      }
      Block<R> b{};
      b.n = n;
      const auto loaded = [&, &chunk = chunk](Row row, R* buffer) {
        return gradient(table, launch, row, chunk, ahead, buffer, b);
      };
      b.w = load(table, launch, kSource, chunk, ahead, scratch.w);
      if (estimated) {
        estimate(table, launch, scalars, scratch, chunk, ahead);
        b.g = {scratch.g, nullptr};
        b.factor = 1;
      } else {
        b.g = loaded(kGradient, scratch.g);
      }
      if (formula.first) b.first = table.at(kFirst, t) ? loaded(kFirst, scratch.first) : b.g;
      if (formula.epsilon) b.moved = load(table, launch, kWeight, chunk, ahead, scratch.moved);
      if (formula.state) b.f = state<R>(table, launch, kFisher, chunk, ahead), b.f_out = b.f.at;
      if (formula.states > 0) b.m = state<R>(table, launch, kM, chunk, ahead);
      if (formula.states > 1) b.v = state<R>(table, launch, kV, chunk, ahead);
      const bool straight = bytes(table.weight) == sizeof(R) && (!launch.streaming || whole_lines(weight));
      b.streaming = launch.streaming && straight;
      b.out = straight ? reinterpret_cast<R*>(weight) : scratch.out;
      formula.run(scratch.prepared, scalars.data(), steps[t], *total, b);
      if (table.master) launch.kernels->put(launch.streaming, table.at(kSaved, t, first), b.out, n * sizeof(float));
      store(*launch.kernels, launch.streaming, table.weight, weight, b.out, n);
    });
  });
  for (std::size_t t = 0; t < table.size(); ++t)
    if (estimated || table.at(kGradient, t)) steps[t] += 1;
  if (estimated) *reinterpret_cast<std::int64_t*>(table.draw) += std::int64_t(table.pair_count);
}

void restore(Table& table, const Launch& launch, const double* total) {
  if (!std::isfinite(*total)) return;
  for_each_chunk<float>(table, launch.threads, [&](auto& scratch, const Chunk& chunk, const Chunk& ahead) {
    give_back(table, launch, scratch.w, chunk, ahead);
  });
}

}  // namespace sharpkern::cpu
