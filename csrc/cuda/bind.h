// CudaTable for Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <utility>
#include <variant>

#include "ops.h"

namespace sharpkern::cuda {

namespace py = pybind11;

// A value, or (address, whether float64) of one on the device.
using Number = std::variant<double, std::pair<std::uintptr_t, bool>>;

inline Scalar scalar(const Number& number) {
  if (const double* value = std::get_if<double>(&number)) return {*value, nullptr, false};
  const auto& [address, wide] = std::get<1>(number);
  return {0, reinterpret_cast<const void*>(address), wide};
}

inline std::vector<Scalar> scalars(const std::vector<Number>& numbers) {
  std::vector<Scalar> all;
  for (const Number& number : numbers) all.push_back(scalar(number));
  return all;
}

// A table and where its launches go.
struct CudaTable {
  Table table;
  Queue queue;

  CudaTable(std::vector<std::size_t> numel, const std::string& weight, const std::string& gradient, bool master,
            int device)
      : table(std::move(numel), weight, gradient, master) {
    if (table.size() == 0) throw std::invalid_argument("a CUDA table wants at least one tensor");
    queue.device = device;
  }

  void set_workspace(std::uintptr_t address, std::size_t bytes) {
    if (address % 16 || bytes < Queue::kCounterBytes + sizeof(double))
      throw std::invalid_argument("a workspace wants an address that is a multiple of 16, and more bytes");
    queue.workspace = address;
    queue.partials = std::int64_t((bytes - Queue::kCounterBytes) / sizeof(double));
  }

  Queue& on(std::uintptr_t stream) {
    queue.stream = stream;
    return queue;
  }
};

inline void bind(py::module_& m, const char* architectures) {
  std::vector<std::string> names;
  std::istringstream list(architectures);
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  m.def("cuda_architectures", [names] { return names; });

  using Stream = std::uintptr_t;
  using Numbers = std::vector<Number>;
  const auto total = [](std::uintptr_t address) { return reinterpret_cast<double*>(address); };
  const auto free = py::call_guard<py::gil_scoped_release>();
  py::class_<CudaTable>(m, "CudaTable", py::module_local())  // the emulation of the tests has one too
      .def(py::init<std::vector<std::size_t>, std::string, std::string, bool, int>(), py::arg("numel"),
           py::arg("weight"), py::arg("gradient"), py::arg("master"), py::arg("device"))
      .def_property_readonly_static("workspace_bytes", [](const py::object&) { return Queue::kWorkspaceBytes; })
      .def_property_readonly("launches", [](const CudaTable& self) { return self.queue.launches; })
      .def("set", [](CudaTable& self, const std::string& row,
                     const Addresses& addresses) { self.table.set(row, addresses.list); })
      .def("set", [](CudaTable& self, const std::string& row,
                     std::vector<std::uintptr_t> addresses) { self.table.set(row, std::move(addresses)); })
      .def("set_steps", [](CudaTable& self, std::uintptr_t address) { self.table.steps = address; })
      .def("set_take", [](CudaTable& self, std::uintptr_t address) { self.table.take = address; })
      .def("set_noise", [](CudaTable& self, std::uintptr_t draw, std::uint64_t seed,
                           std::vector<std::uint64_t> start, bool stochastic) {
             self.table.set_noise(draw, seed, std::move(start), stochastic);
           })
      .def("set_runs", [](CudaTable& self, std::vector<std::uint64_t> run,
                          std::vector<std::uint64_t> pitch) { self.table.set_runs(std::move(run), std::move(pitch)); })
      .def("set_pairs", [](CudaTable& self, std::uintptr_t address, std::size_t count) {
             self.table.pairs = address;
             self.table.pair_count = count;
           })
      .def("set_workspace", &CudaTable::set_workspace)
      .def("sq_norm",
           [total](CudaTable& self, Stream stream, const std::string& covariance, const Numbers& numbers,
                   std::uintptr_t sum, bool add) {
             sq_norm(self.table, self.on(stream), covariance, scalars(numbers), total(sum), add);
           },
           free)
      .def("ascend",
           [total](CudaTable& self, Stream stream, const std::string& covariance, const Numbers& numbers,
                   const Number& rho, std::uintptr_t sum, bool track, double worst, double noise, int again) {
             ascend(self.table, self.on(stream), covariance, scalars(numbers),
                    {scalar(rho), total(sum), worst, noise, track, again});
           },
           free)
      .def("descend",
           [total](CudaTable& self, Stream stream, const std::string& base, const Numbers& options,
                   const std::string& correction, const Numbers& numbers, std::uintptr_t sum, std::uintptr_t second) {
             descend(self.table, self.on(stream), base, scalars(options), correction, scalars(numbers), total(sum),
                     total(second));
           },
           free)
      .def("restore",
           [total](CudaTable& self, Stream stream, std::uintptr_t sum) {
             restore(self.table, self.on(stream), total(sum));
           },
           free);
}

}  // namespace sharpkern::cuda
