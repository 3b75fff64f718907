// The loops over one chunk. kernels.cpp is compiled once an instruction set and fills one of these tables.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sharpkern {

// One operand of a chunk, and where it lies for the chunk that comes next; ahead is null where nothing is to be fetched.
template <class T>
struct Operand {
  T* at = nullptr;
  const T* ahead = nullptr;

  T& operator[](std::size_t i) const { return at[i]; }
  explicit operator bool() const { return at; }
};

// One chunk of one tensor, all of it in the arithmetic type R (float, or double for float64 weights).
template <class R>
struct Block {
  Operand<const R> w;      // the weights that are read
  Operand<const R> g;      // gradients
  R factor;                // by which gradients are multiplied
  Operand<const R> first;  // gradients of the first pass, or null
  Operand<const R> moved;  // w + eps, or null
  const float* eta;        // standard normal numbers, or null
  Operand<R> f;            // what is kept of the covariance, or null
  R* f_out;                // where it goes next, or null
  R* out;                  // the weights that are written; may be w
  bool streaming;          // whether they go past the cache
  R* saved;                // where w is to be kept, past the cache, or null
  Operand<R> m, v;         // state of the base update, or null
  std::size_t n;
};

template <class R>
struct Norm {
  R (*run)(const double* covariance, double step, const Block<R>& block);
  bool reads_weight, state;
};

template <class R>
struct Ascend {
  void (*run)(const double* covariance, double step, R scale, R sigma, const Block<R>& block);
  bool state, moves;
};

template <class R>
struct Descend {
  void (*prepare)(const double* base, double step, double* prepared);
  void (*run)(const double* prepared, const double* correction, double step, double total, const Block<R>& block);
  int states;
  bool first, state, epsilon, moves;
};

template <class R>
struct Formulas {
  Norm<R> (*norm)(const char* covariance);  // run is null for an unknown name
  Ascend<R> (*ascend)(const char* covariance, bool worst, bool noise);
  Descend<R> (*descend)(const char* base, const char* correction);
  // out, which may be g, becomes the gradients multiplied and clipped
  void (*take)(const double* how, const R* g, R* out, std::size_t n);
  // g += weight eta, slope += utility (eta^2 - 1)
  void (*accumulate)(R weight, R utility, const float* eta, R* g, R* slope, std::size_t n);
  // g becomes the estimated gradient, f, where there is one, moves by the slope
  void (*estimate)(const double* scalars, R* g, const R* slope, R* f, std::size_t n);
};

struct Kernels {
  const char* name;
  Formulas<float> f32;
  Formulas<double> f64;
  // saved, unless null, gets the elements as they are, past the cache
  void (*from_bf16)(Operand<const std::uint16_t> in, float* out, std::uint16_t* saved, std::size_t n);
  void (*from_f16)(Operand<const std::uint16_t> in, float* out, std::uint16_t* saved, std::size_t n);
  void (*to_bf16)(const float* in, std::uint16_t* out, bool streaming, std::size_t n);
  void (*to_f16)(const float* in, std::uint16_t* out, bool streaming, std::size_t n);
  void (*draw_bits)(std::uint64_t seed, std::uint32_t draw, std::uint64_t index, std::uint32_t* out, std::size_t n);
  void (*draw_normals)(std::uint64_t seed, std::uint32_t draw, std::uint64_t index, float* out, std::size_t n);
  void (*stochastic_bf16)(float* x, const std::uint32_t* random, std::size_t n);
  void (*stochastic_f16)(float* x, const std::uint32_t* random, std::size_t n);
  void (*put)(bool streaming, void* to, const void* from, std::size_t bytes);

  const Formulas<float>& formulas(float) const { return f32; }
  const Formulas<double>& formulas(double) const { return f64; }
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace sharpkern
