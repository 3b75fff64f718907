// Python's way in: addresses and sizes, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "cpu/ops.h"
#include "dlpack.h"

#ifdef SHARPKERN_CUDA_ARCHITECTURES  // such as "80,90,100": what the CUDA kernels were compiled for
#include "cuda/bind.h"
#endif

namespace py = pybind11;
namespace dlpack = sharpkern::dlpack;
using sharpkern::Addresses;
using sharpkern::Table;
using Scalars = std::vector<double>;

namespace {

// A table and how to run over it on the CPU.
struct CpuTable {
  Table table;
  sharpkern::cpu::Launch launch;
  bool* moved = nullptr;  // set once w + ε is written and w0 kept, before Python can interrupt
};

// Weights of this many bytes do not stay, with gradients and state, in a core's own cache.
constexpr std::size_t kCached = 4 << 20;

CpuTable make_table(std::vector<std::size_t> numel, const std::string& weight, const std::string& gradient,
                    bool master, const std::string& instruction_set, bool streaming) {
  Table table(std::move(numel), weight, gradient, master);
  const bool ahead = streaming || table.elements() * bytes(table.weight) >= kCached;
  return {std::move(table), {&sharpkern::cpu::kernels_of(instruction_set), 1, streaming, ahead}};
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

// Reads the gradients of a list of parameters in one go, as long as nothing about them is out of the ordinary.
class Reader {
  // Where a tensor's object lay when last seen, and what torch keeps of it, which the shape is part of. Between two
  // reads they leave the cache; prefetched ahead they do not cost a miss after the other. No harm if they are gone.
  struct Header {
    const void* object = nullptr;
    const void* shape = nullptr;

    void prefetch() const {
      constexpr std::uintptr_t kLine = 64;
      const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(shape) - kLine;
      __builtin_prefetch(object);
      for (int i = 0; i < 4; ++i) __builtin_prefetch(reinterpret_cast<const void*>(first + i * kLine));
    }
  };

 public:
  Reader(py::object capsule, py::list params, const std::string& gradient)
      : api_(static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule))),
        params_(std::move(params)),
        dtype_(sharpkern::parse_dtype(gradient)) {
    if (!api_) throw py::error_already_set();
    if (api_->major != dlpack::kMajor || !api_->tensor_from_object)
      throw std::invalid_argument("another version of DLPack");
    for (py::handle param : params_) {
      const dlpack::Tensor weight = look(param);
      places_.emplace_back(weight.address(), weight.numel());
      seen_.push_back({Header{param.ptr(), weight.shape}, Header{}});
    }
  }

  // (gradients, their addresses), or None if a parameter was moved or resized, or a gradient is None, not dense, or has another
  // dtype or layout than its parameter.
  py::object read() {
    const std::size_t n = places_.size();
    py::list gradients(n);
    Addresses addresses{std::vector<std::uintptr_t>(n)};
    for (std::size_t i = 0; i < n; ++i) {
      if (i + kAhead < n)
        for (const Header& header : seen_[i + kAhead]) header.prefetch();
      const py::handle param = PyList_GET_ITEM(params_.ptr(), Py_ssize_t(i));
      const dlpack::Tensor weight = look(param);
      py::object gradient = py::reinterpret_steal<py::object>(PyObject_GetAttr(param.ptr(), name_.ptr()));
      if (!gradient) throw py::error_already_set();
      if (std::pair(weight.address(), weight.numel()) != places_[i] || gradient.is_none()) return py::none();
      dlpack::Tensor found;
      if (api_->tensor_from_object(gradient.ptr(), &found) != 0) {
        PyErr_Clear();  // sparse: the caller looks closer and says so
        return py::none();
      }
      if (!expected(found) || !dlpack::same_layout(found, weight)) return py::none();
      addresses.list[i] = found.address() ? reinterpret_cast<std::uintptr_t>(found.address()) : kEmpty;
      seen_[i][1] = {gradient.ptr(), found.shape};
      PyList_SET_ITEM(gradients.ptr(), Py_ssize_t(i), gradient.release().ptr());
    }
    return py::make_tuple(gradients, std::move(addresses));
  }

 private:
  dlpack::Tensor look(py::handle object) const {
    dlpack::Tensor tensor;
    if (api_->tensor_from_object(object.ptr(), &tensor) != 0) throw py::error_already_set();
    return tensor;
  }

  bool expected(const dlpack::Tensor& tensor) const {
    constexpr int kFloat = 2, kBfloat = 4;
    return tensor.lanes == 1 && tensor.bits == 8 * sharpkern::bytes(dtype_) &&
           tensor.code == (dtype_ == sharpkern::DType::bf16 ? kBfloat : kFloat);
  }

  static constexpr std::size_t kAhead = 8;  // parameters

  // stands for the address of a gradient without elements: 0 would say that there is no gradient
  static constexpr std::uintptr_t kEmpty = 1;

  const dlpack::ExchangeApi* api_;
  py::list params_;
  sharpkern::DType dtype_;
  py::str name_{"grad"};
  std::vector<std::pair<char*, std::int64_t>> places_;  // of the parameters: address and elements
  std::vector<std::array<Header, 2>> seen_;  // of the parameters and of their last gradients
};

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "sharpkern's kernels: addresses, sizes and names of formulas in.";
  const auto free = py::call_guard<py::gil_scoped_release>();
  m.def("instruction_sets", &sharpkern::cpu::instruction_sets);
  m.def("advise_huge_pages", &advise_huge_pages, py::arg("address"), py::arg("bytes"));
  py::class_<Addresses>(m, "Addresses")
      .def("__iter__", [](const Addresses& self) { return py::iter(py::cast(self.list)); })
      .def("__len__", [](const Addresses& self) { return self.list.size(); });
  py::class_<Reader>(m, "Reader")
      .def(py::init<py::object, py::list, std::string>(), py::arg("exchange_api"), py::arg("params"),
           py::arg("gradient"))
      .def("read", &Reader::read);
  py::class_<CpuTable>(m, "Table")
      .def(py::init(&make_table), py::arg("numel"), py::arg("weight"), py::arg("gradient"), py::arg("master"),
           py::arg("instruction_set"), py::arg("streaming"))
      .def("set", [](CpuTable& self, const std::string& row,
                     const Addresses& addresses) { self.table.set(row, addresses.list); })
      .def("set", [](CpuTable& self, const std::string& row,
                     std::vector<std::uintptr_t> addresses) { self.table.set(row, std::move(addresses)); })
      .def("set_steps", [](CpuTable& self, std::uintptr_t address) { self.table.steps = address; })
      .def("set_moved", [](CpuTable& self, std::uintptr_t address) { self.moved = reinterpret_cast<bool*>(address); })
      .def("set_take", [](CpuTable& self, std::uintptr_t address) { self.table.take = address; })
      .def("set_noise", [](CpuTable& self, std::uintptr_t draw, std::uint64_t seed,
                           std::vector<std::uint64_t> start, bool stochastic) {
             self.table.set_noise(draw, seed, std::move(start), stochastic);
           })
      .def("set_runs", [](CpuTable& self, std::vector<std::uint64_t> run,
                          std::vector<std::uint64_t> pitch) { self.table.set_runs(std::move(run), std::move(pitch)); })
      .def("set_pairs", [](CpuTable& self, std::uintptr_t address, std::size_t count) {
             self.table.pairs = address;
             self.table.pair_count = count;
           })
      .def("sq_norm",
           [](CpuTable& self, int threads, const std::string& covariance, const Scalars& scalars,
              std::uintptr_t total, bool add) {
             sharpkern::cpu::sq_norm(self.table, launch(self, threads), covariance, scalars, scalar(total), add);
           },
           free)
      .def("ascend",
           [](CpuTable& self, int threads, const std::string& covariance, const Scalars& scalars, double rho,
              std::uintptr_t total, bool track, double worst, double noise, int again) {
             sharpkern::cpu::ascend(self.table, launch(self, threads), covariance, scalars,
                                    {rho, scalar(total), worst, noise, track, again});
             if (self.moved) *self.moved = true;
           },
           free)
      .def("descend",
           [](CpuTable& self, int threads, const std::string& base, const Scalars& options,
              const std::string& correction, const Scalars& scalars, std::uintptr_t total,
              std::uintptr_t second) {
             sharpkern::cpu::descend(self.table, launch(self, threads), base, options, correction, scalars,
                                     scalar(total), scalar(second));
           },
           free)
      .def("restore",
           [](CpuTable& self, int threads, std::uintptr_t total) {
             sharpkern::cpu::restore(self.table, launch(self, threads), scalar(total));
           },
           free);
#ifdef SHARPKERN_CUDA_ARCHITECTURES
  sharpkern::cuda::bind(m, SHARPKERN_CUDA_ARCHITECTURES);
#else
  m.def("cuda_architectures", [] { return std::vector<std::string>(); });
#endif
}
