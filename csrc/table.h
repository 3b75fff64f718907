// The tensors that one launch covers, as addresses and sizes. Knows nothing of torch, and of no formula.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sharpkern {

// A base update takes at most so many numbers, prepared from its options and the updates done before.
constexpr int kPreparedScalars = 8;

enum class DType { f32, bf16, f16, f64 };

inline std::size_t bytes(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

inline DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  if (name == "float64") return DType::f64;
  throw std::invalid_argument("no kernel for dtype " + name + ": wanted float32, bfloat16, float16 or float64");
}

// weight       w, in weight_dtype
// gradient     g, in gradient_dtype; address 0 where there is none
// saved        w0: the copy that ascend makes, in weight_dtype; or, with master, the float32 weight that is always there
// source       where descend reads w0 and restore copies it from: saved, or weight where nothing was perturbed
// first        where ascend copies g for the second half, in gradient_dtype; address 0 where nothing is kept
// fisher, m, v state, in float32 (float64 for float64 weights); address 0 where a formula keeps none
enum Row { kWeight, kGradient, kSaved, kSource, kFirst, kFisher, kM, kV, kRows };

inline Row parse_row(const std::string& name) {
  static const std::array<const char*, kRows> names = {"weight",  "gradient", "saved", "source",
                                                       "first",   "fisher",   "m",     "v"};
  for (int row = 0; row < kRows; ++row)
    if (name == names[row]) return Row(row);
  throw std::invalid_argument("no row '" + name + "' in a table");
}

// An address a tensor, passed on by Python without a number of its own for each.
struct Addresses {
  std::vector<std::uintptr_t> list;
};

struct Table {
  // A reduction sums one chunk in the arithmetic type and the chunks in float64, in order, on every backend.
  static constexpr std::size_t kChunk = 1024;
  // What starting a tensor costs, in elements; keeps threads balanced over many small tensors.
  static constexpr std::size_t kStart = 128;

  std::vector<std::size_t> numel, cost, first_chunk;  // prefix sums have one entry more than there are tensors
  DType weight, gradient;
  bool master;  // saved holds float32 masters, weight their rounded values
  std::array<std::vector<std::uintptr_t>, kRows> rows;
  std::array<std::size_t, kRows> size_of;  // bytes of an element
  std::uintptr_t steps = 0;  // float32, one a tensor: the updates done
  std::uintptr_t draw = 0;   // int64: the draws of random numbers done; or null
  std::uintptr_t take = 0;   // float64: the factor and the bound with which gradients are read; or null
  std::uint64_t seed = 0;
  bool stochastic = false;     // whether w + eps is rounded stochastically
  std::uintptr_t pairs = 0;    // evolution strategies: float32, a weight a pair, then a utility a pair
  std::size_t pair_count = 0;
  std::vector<std::uint64_t> start;  // index of each tensor's first element in the flattened parameters
  // Where tensors are shards, for each: how many elements lie one after the other in the flattened parameters, 0 where
  // all do, and how far the next such run lies from this one. Empty where no tensor is cut.
  std::vector<std::uint64_t> run, pitch;
  std::vector<double> partial;

  Table(std::vector<std::size_t> sizes, const std::string& weight_dtype, const std::string& gradient_dtype,
        bool with_master)
      : numel(std::move(sizes)),
        weight(parse_dtype(weight_dtype)),
        gradient(parse_dtype(gradient_dtype)),
        master(with_master) {
    if (master && bytes(weight) != 2)
      throw std::invalid_argument("masters are for bfloat16 and float16 weights, not for " + weight_dtype);
    if ((weight == DType::f64) != (gradient == DType::f64))
      throw std::invalid_argument("float64 weights want float64 gradients, and only they");
    cost.push_back(0);
    first_chunk.push_back(0);
    for (std::size_t n : numel) {
      cost.push_back(cost.back() + n + kStart);
      first_chunk.push_back(first_chunk.back() + (n + kChunk - 1) / kChunk);
    }
    partial.resize(first_chunk.back());
    for (auto& row : rows) row.resize(numel.size());
    size_of.fill(bytes(weight == DType::f64 ? DType::f64 : DType::f32));
    size_of[kWeight] = bytes(weight);
    size_of[kGradient] = size_of[kFirst] = bytes(gradient);
    size_of[kSaved] = size_of[kSource] = bytes(exact());
  }

  std::size_t size() const { return numel.size(); }
  std::size_t elements() const { return cost.back() - size() * kStart; }

  void set(const std::string& name, std::vector<std::uintptr_t> addresses) {
    if (addresses.size() != size())
      throw std::invalid_argument(std::to_string(addresses.size()) + " addresses for " + std::to_string(size()) +
                                  " tensors");
    rows[parse_row(name)] = std::move(addresses);
  }

  void set_noise(std::uintptr_t draw_address, std::uint64_t seed_, std::vector<std::uint64_t> starts,
                 bool with_stochastic) {
    if (starts.size() != size()) throw std::invalid_argument("as many starts are wanted as there are tensors");
    draw = draw_address;
    seed = seed_;
    stochastic = with_stochastic;
    start = std::move(starts);
  }

  void set_runs(std::vector<std::uint64_t> runs, std::vector<std::uint64_t> pitches) {
    if (runs.size() != size() || pitches.size() != size())
      throw std::invalid_argument("as many runs and pitches are wanted as there are tensors");
    for (std::uint64_t elements : runs)
      if (elements >> 31) throw std::invalid_argument("a run of a cut tensor has 2^31 elements or more");
    run = std::move(runs);
    pitch = std::move(pitches);
  }

  // The dtype of w0, and the row of the exact w before a perturbation.
  DType exact() const { return master ? DType::f32 : weight; }
  Row exact_row() const { return master ? kSaved : kWeight; }

  char* at(Row row, std::size_t tensor) const { return reinterpret_cast<char*>(rows[row][tensor]); }
  char* at(Row row, std::size_t tensor, std::size_t element) const {
    return at(row, tensor) + element * size_of[row];
  }
};

}  // namespace sharpkern
