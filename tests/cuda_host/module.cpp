// CudaTable on host memory: the CUDA sources, compiled by a C++ compiler with the headers of this folder.
#include "../../csrc/cuda/bind.h"

namespace py = pybind11;

// What the emulation has to notice.
static void barrier_for_some(int) {
  if (threadIdx.x % 2) __syncthreads();
}

static void misaligned(int) {
  alignas(16) char bytes[32] = {};
  uint4 word = *reinterpret_cast<const uint4*>(bytes + 4);
  (void)word;
}

static std::string noticed(void (*kernel)(int)) {
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(64);
  return cudaGetErrorString(cudaLaunchKernelEx(&config, kernel, 0));
}

PYBIND11_MODULE(_cuda_host, m) {
  sharpkern::cuda::bind(m, "80,90,100");
  m.def("shuffle", [](unsigned seed) { emulated::seed = seed; }, "Blocks and threads in order, in reverse, or shuffled.");
  m.def("faults", [] { return std::vector<std::string>{noticed(&barrier_for_some), noticed(&misaligned)}; });
}
