// CudaTable on host memory: the CUDA sources, compiled by a C++ compiler with the headers of this folder.
#include "cuda_runtime.h"

#include "../../csrc/cuda/bind.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda_host, m) {
  sharpkern::cuda::bind(m, "80,90,100");
  m.def("shuffle", [](unsigned seed) { emulated::seed = seed; }, "How threads and blocks are ordered.");
}
