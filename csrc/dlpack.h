// The part of DLPack's C interface that reading addresses needs, as its specification lays it out (major version 1).
// torch offers it from 2.10 on as the capsule Tensor.__dlpack_c_exchange_api__; so no header of torch is needed.
#pragma once

#include <cstdint>

namespace sharpkern::dlpack {

constexpr const char* kCapsule = "dlpack_exchange_api";
constexpr std::uint32_t kMajor = 1;

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;

  char* address() const { return static_cast<char*>(data) + byte_offset; }
  std::int64_t numel() const {
    std::int64_t n = 1;
    for (std::int32_t i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
};

struct ExchangeApi {
  std::uint32_t major, minor;
  const ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // borrows; may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

// Whether two tensors of the same shape lie in memory the same way; dimensions of size 1 do not count.
inline bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.ndim != b.ndim) return false;
  for (std::int32_t i = 0; i < a.ndim; ++i)
    if (a.shape[i] != b.shape[i] || (a.shape[i] > 1 && a.strides[i] != b.strides[i])) return false;
  return true;
}

}  // namespace sharpkern::dlpack
