/// View: a typed, shaped, strided window into a buffer.
#ifndef WEIGHBRIDGE_VIEW_HPP
#define WEIGHBRIDGE_VIEW_HPP

#include "weighbridge/language.hpp"

#include <cstdint>
#include <string>
#include <type_traits>

#include "weighbridge.h"
#include "buffer.hpp"
#include "buffer_options.hpp"
#include "device.hpp"
#include "dlpack.hpp"
#include "enums.hpp"
#include "handle.hpp"
#include "layout.hpp"
#include "progress.hpp"
#include "result.hpp"
#include "span.hpp"

namespace weighbridge {

/// A typed, shaped, strided window into a buffer. Holds the buffer.
class View : public detail::Handle<View, wb_view, wb_view_retain, wb_view_release> {
 public:
  /// wb_view_new: aliases the buffer or fails, and never copies.
  static Result<View> make(const Buffer& buffer, const Layout& layout,
                           Accessor accessor = Accessor::Device) {
    const auto raw = layout.to_c();
    if (!raw) return raw.error();
    return detail::make<View>(wb_view_new, buffer.get(), &raw.value(), detail::to_c(accessor));
  }
  /// Copies a tensor at `data` into a new buffer.
  static Result<View> copy_from(const Device& device, const void* data, const Layout& layout,
                                Accessor accessor = Accessor::Device,
                                const BufferOptions& options = {}) {
    const auto raw = layout.to_c();
    if (!raw) return raw.error();
    return detail::with_options(options, [&](const wb_buffer_options* raw_options) {
      return detail::make<View>(wb_view_copy_from, device.get(), data, &raw.value(),
                                detail::to_c(accessor), raw_options);
    });
  }
  /// Registers the host memory of a tensor. On failure the caller keeps ownership of the tensor.
  static Result<View> from_dlpack(const Device& device, DlpackTensor&& tensor,
                                  Accessor accessor = Accessor::Device,
                                  const BufferOptions& options = {}) {
    return take_dlpack(wb_view_from_dlpack, device, tensor, accessor, options);
  }
  static Result<View> from_dlpack(const Device& device, DlpackTensorVersioned&& tensor,
                                  Accessor accessor = Accessor::Device,
                                  const BufferOptions& options = {}) {
    return take_dlpack(wb_view_from_dlpack_versioned, device, tensor, accessor, options);
  }
  Result<wb_view_info> get_info() const {
    return detail::fill<wb_view_info>(WB_VIEW_INFO_INIT, wb_view_get_info, get());
  }
  /// The elements of a contiguous view, valid while the view is alive. Fails if T is not the view's
  /// dtype, if the view is read-only and T is not const, and if the host cannot read the memory.
  template <class T>
  Result<span<T>> as() const {
    const auto filled = get_info();
    if (!filled) return filled.error();
    const wb_view_info& info = filled.value();
    constexpr wb_dtype asked = dtype_of<std::remove_const_t<T>>::value;
    if (info.dtype != asked) {
      return detail::invalid_argument("asked for elements of dtype " + std::to_string(asked) +
                                      "; the view's dtype is " + std::to_string(info.dtype));
    }
    if (info.read_only && !std::is_const_v<T>) {
      return detail::invalid_argument("asked to write to a read-only view: ask for const elements");
    }
    std::int64_t stride = 1;
    for (std::int32_t axis = info.ndim; info.elements > 0 && axis-- > 0;) {
      if (info.shape[axis] != 1 && info.strides[axis] != stride) {
        return detail::invalid_argument(
            "asked for contiguous elements; the view's stride of axis " + std::to_string(axis) +
            " is " + std::to_string(info.strides[axis]) + ", not " + std::to_string(stride));
      }
      stride *= info.shape[axis];
    }
    if (info.elements > 0 && info.data == nullptr) {
      return detail::make_error(WB_ERR_NOT_MAPPED,
                                "asked for elements in host memory; the view's elements are in "
                                "device memory: copy them with Device::copy");
    }
    if (reinterpret_cast<std::uintptr_t>(info.data) % alignof(T) != 0) {
      return detail::make_error(
          WB_ERR_UNALIGNED,
          "the view's address is not a multiple of " + std::to_string(alignof(T)) + " bytes");
    }
    return span<T>(static_cast<T*>(info.data), info.elements);
  }
  Result<Buffer> get_buffer() const { return detail::make<Buffer>(wb_view_get_buffer, get()); }
  /// The tensor holds a reference to the view until its deleter is called.
  Result<DlpackTensor> to_dlpack() const { return make_dlpack<DlpackTensor>(wb_view_to_dlpack); }
  /// Also of read-only memory, for a consumer that never writes.
  Result<DlpackTensor> to_dlpack_for_reading() const {
    return make_dlpack<DlpackTensor>(wb_view_to_dlpack_for_reading);
  }
  Result<DlpackTensorVersioned> to_dlpack_versioned() const {
    return make_dlpack<DlpackTensorVersioned>(wb_view_to_dlpack_versioned);
  }
  /// Drops the reference after the work queued on `stream`. On failure this object keeps it.
  Result<void> release_after(void* stream) { return release_by(wb_view_release_after, stream); }

 private:
  template <class Function, class Tensor>
  static Result<View> take_dlpack(Function function, const Device& device, Tensor& tensor,
                                  Accessor accessor, const BufferOptions& options) {
    return detail::with_options(options, [&](const wb_buffer_options* raw) {
      auto view = detail::make<View>(function, device.get(), tensor.get(), detail::to_c(accessor),
                                     raw);
      if (view) static_cast<void>(tensor.release());
      return view;
    });
  }
  template <class Tensor, class Function>
  Result<Tensor> make_dlpack(Function function) const {
    typename Tensor::pointer none = nullptr;
    const auto raw = detail::fill(none, function, get());
    if (!raw) return raw.error();
    return Tensor(raw.value());
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_VIEW_HPP
