// The loops over one chunk. kernels.cpp is compiled once an instruction set and fills one of these tables.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sharpkern {

// One chunk of one tensor, all of it in the arithmetic type R (float, or double for float64 weights).
template <class R>
struct Block {
  const R* w;      // the weights that are read
  const R* g;      // gradients
  const R* f;      // Fisher diagonal, or null
  R* f_out;        // where the new Fisher diagonal goes, or null
  R* out;          // the weights that are written; may be w
  R* m;            // state of the base update, or null
  R* v;
  std::size_t n;
  std::ptrdiff_t next;  // where the next chunk lies, in elements from this one; 0 where all is in the cache
};

template <class R>
struct Norm {
  R (*run)(const double* covariance, const Block<R>& block);
  bool reads_weight, state;
};

template <class R>
struct Ascend {
  void (*run)(const double* covariance, R scale, const Block<R>& block);
  bool state;
};

template <class R>
struct Descend {
  void (*prepare)(const double* base, double step, double* prepared);
  void (*run)(const double* prepared, const double* covariance, const Block<R>& block);
  int states;
  bool natural;
};

template <class R>
struct Formulas {
  Norm<R> (*norm)(const char* covariance);  // run is null for an unknown name
  Ascend<R> (*ascend)(const char* covariance);
  Descend<R> (*descend)(const char* base, const char* preconditioner);
};

struct Kernels {
  const char* name;
  Formulas<float> f32;
  Formulas<double> f64;
  void (*from_bf16)(const std::uint16_t* in, float* out, std::size_t n);
  void (*from_f16)(const std::uint16_t* in, float* out, std::size_t n);
  void (*to_bf16)(const float* in, std::uint16_t* out, std::size_t n);
  void (*to_f16)(const float* in, std::uint16_t* out, std::size_t n);
  void (*draw_bits)(std::uint64_t seed, std::uint32_t draw, std::uint64_t index, std::uint32_t* out, std::size_t n);
  void (*stochastic_bf16)(float* x, const std::uint32_t* random, std::size_t n);
  void (*stochastic_f16)(float* x, const std::uint32_t* random, std::size_t n);
  void (*stream)(void* to, const void* from, std::size_t bytes);

  const Formulas<float>& formulas(float) const { return f32; }
  const Formulas<double>& formulas(double) const { return f64; }
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace sharpkern
