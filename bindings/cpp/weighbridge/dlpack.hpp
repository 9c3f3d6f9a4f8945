/// DlpackTensor: owns a DLPack tensor.
#ifndef WEIGHBRIDGE_DLPACK_HPP
#define WEIGHBRIDGE_DLPACK_HPP

#include "weighbridge/language.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "weighbridge.h"

namespace weighbridge {

namespace detail {

/// DLPack's two structs up to their deleters, so that <dlpack/dlpack.h> is not needed.
struct DlpackHead {
  struct {
    void* data;
    std::int32_t device[2], ndim;
    std::uint8_t code, bits;
    std::uint16_t lanes;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
  } tensor;
  void *manager_context, *deleter;
};
struct DlpackVersionedHead {
  std::uint32_t major, minor;
  void *manager_context, *deleter;
};

template <class Tensor, class Head>
struct DlpackDelete {
  void operator()(Tensor* tensor) const noexcept {
    void (*deleter)(Tensor*);
    std::memcpy(&deleter, reinterpret_cast<const char*>(tensor) + offsetof(Head, deleter),
                sizeof(deleter));
    if (deleter) deleter(tensor);
  }
};

}  // namespace detail

/// Owns a DLPack tensor and calls its deleter, on any thread; release() transfers it to a consumer.
using DlpackTensor =
    std::unique_ptr<DLManagedTensor, detail::DlpackDelete<DLManagedTensor, detail::DlpackHead>>;
using DlpackTensorVersioned =
    std::unique_ptr<DLManagedTensorVersioned,
                    detail::DlpackDelete<DLManagedTensorVersioned, detail::DlpackVersionedHead>>;

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_DLPACK_HPP
