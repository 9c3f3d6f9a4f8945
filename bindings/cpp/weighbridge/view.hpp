/// View: a typed, shaped, strided window into a buffer.
#ifndef WEIGHBRIDGE_VIEW_HPP
#define WEIGHBRIDGE_VIEW_HPP

#include <cstdint>
#include <string>
#include <type_traits>

#include "weighbridge.h"
#include "buffer.hpp"
#include "device.hpp"
#include "dlpack.hpp"
#include "handle.hpp"
#include "layout.hpp"
#include "options.hpp"
#include "result.hpp"
#include "span.hpp"

namespace weighbridge {

/// A typed, shaped, strided window into a buffer, which it holds.
class View : public detail::Handle<View, wb_view, wb_view_retain, wb_view_release> {
 public:
  /// Aliases, or fails: it never copies.
  static Result<View> make(const Buffer& buffer, const Layout& layout,
                           wb_accessor access = WB_ACCESSOR_DEVICE) {
    return detail::with_layout<View>(layout, [&](const wb_layout* given) {
      return detail::make<View>([&](auto** view, auto* error) {
        return wb_view_new(buffer.get(), given, access, view, error);
      });
    });
  }
  /// Copies a tensor of the caller into a new buffer.
  static Result<View> copy_from(const Device& device, const void* data, const Layout& layout,
                                wb_accessor access = WB_ACCESSOR_DEVICE,
                                const BufferOptions& options = {}) {
    return detail::with_layout<View>(layout, [&](const wb_layout* given) {
      return detail::make<View>(options, [&](auto* how, auto** view, auto* error) {
        return wb_view_copy_from(device.get(), data, given, access, how, view, error);
      });
    });
  }
  /// Registers the host memory of a tensor, which is taken on success and stays on failure.
  static Result<View> from_dlpack(const Device& device, DlpackTensor&& tensor,
                                  wb_accessor access = WB_ACCESSOR_DEVICE,
                                  const BufferOptions& options = {}) {
    return take(device, tensor, access, options, wb_view_from_dlpack);
  }
  static Result<View> from_dlpack(const Device& device, DlpackTensorVersioned&& tensor,
                                  wb_accessor access = WB_ACCESSOR_DEVICE,
                                  const BufferOptions& options = {}) {
    return take(device, tensor, access, options, wb_view_from_dlpack_versioned);
  }
  Result<wb_view_info> describe() const {
    return detail::ask<wb_view_info>(WB_VIEW_INFO_INIT, [&](auto* info, auto* error) {
      return wb_view_get_info(get(), info, error);
    });
  }
  /// The elements of a contiguous view, alive as long as it; `const T` where it is read-only.
  /// An error where T is not the view's dtype, or the host does not see the elements.
  template <class T>
  Result<span<T>> as() const {
    const auto described = describe();
    if (!described) return described.error();
    const wb_view_info& info = described.value();
    constexpr wb_dtype asked = dtype_of<std::remove_const_t<T>>::value;
    if (info.dtype != asked) {
      return detail::invalid("asked for elements of dtype " + std::to_string(asked) +
                             "; the view's are of " + std::to_string(info.dtype));
    }
    if (info.read_only && !std::is_const_v<T>) {
      return detail::invalid("asked to write to a read-only view: ask for const elements");
    }
    std::int64_t stride = 1;
    for (std::int32_t axis = info.ndim; info.elements > 0 && axis-- > 0;) {
      if (info.shape[axis] != 1 && info.strides[axis] != stride) {
        return detail::invalid("asked for elements in a row; the view's stride of axis " +
                               std::to_string(axis) + " is " + std::to_string(info.strides[axis]) +
                               ", not " + std::to_string(stride));
      }
      stride *= info.shape[axis];
    }
    if (info.elements > 0 && info.data == nullptr) {
      return Error{WB_ERR_NOT_MAPPED, 0,
                   "asked for elements in host memory; the view's lie in device memory: copy them "
                   "with Device::copy"};
    }
    if (address(info.data) % alignof(T) != 0) {
      return Error{WB_ERR_UNALIGNED, 0,
                   "the view's address is no multiple of " + std::to_string(alignof(T))};
    }
    return span<T>(static_cast<T*>(info.data), info.elements);
  }
  Result<Buffer> buffer() const {
    return detail::make<Buffer>(
        [&](auto** buffer, auto* error) { return wb_view_get_buffer(get(), buffer, error); });
  }
  /// The tensor holds a reference to the view until its deleter is called.
  Result<DlpackTensor> to_dlpack() const { return dlpack<DlpackTensor>(wb_view_to_dlpack); }
  Result<DlpackTensorVersioned> to_dlpack_versioned() const {
    return dlpack<DlpackTensorVersioned>(wb_view_to_dlpack_versioned);
  }
  /// Drops the reference once what is queued on `stream` has run; on failure it is still here.
  Result<void> release_after(void* stream) {
    return release_by(
        [&](auto* raw, auto* error) { return wb_view_release_after(raw, stream, error); });
  }

 private:
  template <class Tensor, class Function>
  static Result<View> take(const Device& device, Tensor& tensor, wb_accessor access,
                             const BufferOptions& options, Function function) {
    return detail::make<View>(options, [&](auto* given, auto** view, auto* error) {
      const wb_status status = function(device.get(), tensor.get(), access, given, view, error);
      if (status == WB_OK) static_cast<void>(tensor.release());
      return status;
    });
  }
  template <class Tensor, class Function>
  Result<Tensor> dlpack(Function function) const {
    auto raw = detail::ask(static_cast<typename Tensor::pointer>(nullptr),
                           [&](auto* to, auto* error) { return function(get(), to, error); });
    if (!raw) return raw.error();
    return Tensor(raw.value());
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_VIEW_HPP
