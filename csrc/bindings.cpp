// Python's way in: addresses and sizes, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/ops.h"

namespace py = pybind11;
using sharpkern::Table;
using Scalars = std::vector<double>;

namespace {

// A table and how to run over it on the CPU.
struct CpuTable {
  Table table;
  sharpkern::cpu::Launch launch;
};

CpuTable make_table(std::vector<std::size_t> numel, const std::string& weight, const std::string& gradient,
                    const std::string& instruction_set, bool streaming) {
  return {Table(std::move(numel), weight, gradient),
          {&sharpkern::cpu::kernels_of(instruction_set), 1, streaming}};
}

const sharpkern::cpu::Launch& launch(CpuTable& self, int threads) {
  self.launch.threads = threads;
  return self.launch;
}

double* scalar(std::uintptr_t address) { return reinterpret_cast<double*>(address); }

// Asks for huge pages under memory that is not touched yet; advice only, and only whole pages within it.
void advise_huge_pages(std::uintptr_t address, std::size_t bytes) {
  const std::uintptr_t page = std::uintptr_t(sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "sharpkern's CPU kernels: addresses, sizes and names of formulas in.";
  const auto free = py::call_guard<py::gil_scoped_release>();
  m.def("instruction_sets", &sharpkern::cpu::instruction_sets);
  m.def("advise_huge_pages", &advise_huge_pages, py::arg("address"), py::arg("bytes"));
  py::class_<CpuTable>(m, "Table")
      .def(py::init(&make_table), py::arg("numel"), py::arg("weight"), py::arg("gradient"),
           py::arg("instruction_set"), py::arg("streaming"))
      .def("set", [](CpuTable& self, const std::string& row,
                     std::vector<std::uintptr_t> addresses) { self.table.set(row, std::move(addresses)); })
      .def("set_steps", [](CpuTable& self, std::uintptr_t address) { self.table.steps = address; })
      .def("sq_norm",
           [](CpuTable& self, int threads, const std::string& covariance, const Scalars& scalars,
              std::uintptr_t total) {
             sharpkern::cpu::sq_norm(self.table, launch(self, threads), covariance, scalars, scalar(total));
           },
           free)
      .def("ascend",
           [](CpuTable& self, int threads, const std::string& covariance, const Scalars& scalars, double rho,
              std::uintptr_t total, bool track) {
             sharpkern::cpu::ascend(self.table, launch(self, threads), covariance, scalars, rho, scalar(total), track);
           },
           free)
      .def("descend",
           [](CpuTable& self, int threads, const std::string& base, const Scalars& options,
              const std::string& preconditioner, const Scalars& scalars, std::uintptr_t total,
              std::uintptr_t second) {
             sharpkern::cpu::descend(self.table, launch(self, threads), base, options, preconditioner, scalars,
                                     scalar(total), scalar(second));
           },
           free)
      .def("restore",
           [](CpuTable& self, int threads, std::uintptr_t total) {
             sharpkern::cpu::restore(self.table, launch(self, threads), scalar(total));
           },
           free);
}
