// From a table to launches: which kernel, which rows, how many tensors at once. Host code; knows no formula.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.cuh"
#include "ops.h"

namespace sharpkern::cuda {

template <class T>
struct Type {
  using type = T;
};

// Calls run(Type<W>(), Type<G>()) with the types of the weights, or masters, and of the gradients.
template <class Run>
void with_types(DType weight, DType gradient, Run run) {
  const auto with_gradient = [&](auto w, auto same, DType same_dtype) {
    if (gradient == same_dtype) return run(w, same);
    if (gradient == DType::f32) return run(w, Type<float>());
    throw std::invalid_argument("no CUDA kernel for bfloat16 and float16 in one tensor's weight and gradient");
  };
  switch (weight) {
    case DType::f64: return run(Type<double>(), Type<double>());
    case DType::bf16: return with_gradient(Type<Bf16>(), Type<Bf16>(), DType::bf16);
    case DType::f16: return with_gradient(Type<Half>(), Type<Half>(), DType::f16);
    case DType::f32:
      if (gradient == DType::f16) return run(Type<float>(), Type<Half>());
      return with_gradient(Type<float>(), Type<Bf16>(), DType::bf16);
  }
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it is told here, and not once more by whoever asks next
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error) +
                           ". If an earlier kernel is to blame, CUDA_LAUNCH_BLOCKING=1 in the environment shows which; "
                           "backend='reference' does without these kernels");
}

// Makes a device the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) : device_(device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (before_ != device_) check(cudaSetDevice(device_), "choosing the device");
  }
  ~OnDevice() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int device_, before_ = 0;
};

template <std::size_t room>
void put(Scalar (&to)[room], const std::vector<Scalar>& scalars) {
  if (scalars.size() > room) throw std::invalid_argument("more scalars than any formula takes");
  std::copy(scalars.begin(), scalars.end(), to);
}

// Calls run with the formula of that name.
template <class Formulas, class Run>
void choose(Formulas formulas, const std::string& name, Run run) {
  if (!select(formulas, name.c_str(), run)) throw std::invalid_argument("no formula " + name);
}

template <int kBytes>
using Kernel = void (*)(Launch<kBytes>);

// One op: its kernel for few tensors and for many, and its rows.
struct Op {
  const char* name;
  Kernel<kSmall> small;  // null where it is not worth a kernel of its own
  Kernel<kLarge> large;
  std::vector<Row> rows{};
  bool starts = false;        // one row more: the index of each tensor's first element; where one is cut, its runs too
  bool sums = false;          // a block may take several chunks
  bool counts_draws = false;  // once the last of its launches is done

  int row_count(const Table& table) const { return int(rows.size()) + (starts ? table.run.empty() ? 1 : 3 : 0); }
};

// Launches tensors first ... first + count, whose addresses fit.
template <int kBytes>
void launch(const Table& table, Queue& queue, const Op& op, Kernel<kBytes> kernel, const Header& header,
            std::size_t first, std::size_t count) {
  Launch<kBytes> launch;
  static_cast<Header&>(launch) = header;
  launch.tensors = int(count);
  launch.master = table.master;
  launch.take = reinterpret_cast<const double*>(table.take);
  launch.steps = reinterpret_cast<float*>(table.steps) + first;
  launch.arrived = reinterpret_cast<unsigned*>(queue.workspace);
  launch.partial = reinterpret_cast<double*>(queue.workspace + Queue::kCounterBytes);
  launch.add = header.add || first > 0;
  launch.final = op.counts_draws && first + count == table.size();
  launch.chunks = 0;
  for (std::size_t t = 0; t < count; ++t) {
    const auto numel = std::int64_t(table.numel[first + t]);
    launch.word[t] = extent(launch.chunks, numel);
    launch.chunks += chunks_of(numel);
  }
  launch.word[count] = extent(launch.chunks, 0);
  launch.cut = op.starts && !table.run.empty();
  for (int row = 0; row < op.row_count(table); ++row) {
    const int extra = row - int(op.rows.size());
    const auto& words = extra < 0 ? table.rows[op.rows[row]] : extra == 0 ? table.start : extra == 1 ? table.run : table.pitch;
    const auto* from = words.data() + first;
    std::copy(from, from + count, &launch.at(row, 0));
  }
  launch.per_block = op.sums ? chunks_per_block(launch.chunks, queue.partials) : 1;

  cudaLaunchConfig_t config{};
  // one block at least: it writes a sum of nothing, and counts the updates of tensors without elements
  config.gridDim = dim3(unsigned(std::max<std::int64_t>(1, (launch.chunks + launch.per_block - 1) / launch.per_block)));
  config.blockDim = dim3(kThreads);
  config.stream = reinterpret_cast<cudaStream_t>(queue.stream);
  check(cudaLaunchKernelEx(&config, kernel, launch), op.name);
  ++queue.launches;
}

inline void enqueue(const Table& table, Queue& queue, const Op& op, const Header& header) {
  if (!queue.workspace) throw std::invalid_argument("set_workspace comes first");
  const OnDevice on(queue.device);
  const std::size_t few = Launch<kSmall>::capacity(op.row_count(table)),
                    many = Launch<kLarge>::capacity(op.row_count(table));
  const std::size_t n = table.size();
  for (std::size_t first = 0; first < n; first += many) {
    const std::size_t count = std::min(many, n - first);
    if (op.small && count <= few) {
      launch(table, queue, op, op.small, header, first, count);
    } else {
      launch(table, queue, op, op.large, header, first, count);
    }
  }
}

}  // namespace sharpkern::cuda
