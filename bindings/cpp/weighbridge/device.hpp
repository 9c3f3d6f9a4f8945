/// Device: a place to compute.
#ifndef WEIGHBRIDGE_DEVICE_HPP
#define WEIGHBRIDGE_DEVICE_HPP

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

#include "weighbridge.h"
#include "callable.hpp"
#include "handle.hpp"
#include "result.hpp"

namespace weighbridge {

/// wb_device_options.
struct DeviceOptions {
  wb_tristate pin = WB_TRISTATE_AUTO;
  wb_tristate views = WB_TRISTATE_AUTO;
  void* context = nullptr;  ///< the caller's own CUcontext, which must outlive the device
  std::uint64_t capacity_bytes = 0;
};

/// An address as the C functions count it.
inline std::uint64_t address(const void* pointer) noexcept {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

inline Result<std::int32_t> cuda_device_count() {
  return detail::ask(std::int32_t{0}, wb_device_get_cuda_count);
}

/// A place to compute: "host", or "cuda:N".
class Device
    : public detail::Handle<Device, wb_device, wb_device_retain, wb_device_release> {
 public:
  /// Refuses a library that is older than this header with WB_ERR_NOT_SUPPORTED.
  static Result<Device> open(const std::string& name, const DeviceOptions& options = {}) {
    if (wb_version() < WB_VERSION) {
      return Error{WB_ERR_NOT_SUPPORTED, 0,
                   "built against weighbridge " + version_text(WB_VERSION) + ", but loaded " +
                       version_text(wb_version()) + ": load the library of that version or later"};
    }
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    wb_device_options raw = WB_DEVICE_OPTIONS_INIT;
    raw.pin = options.pin;
    raw.views = options.views;
    raw.context = options.context;
    raw.capacity_bytes = options.capacity_bytes;
    return detail::make<Device>([&](wb_device** device, wb_error* error) {
      return wb_device_open(name.c_str(), &raw, device, error);
    });
  }
  Result<wb_device_info> describe() const {
    return detail::ask<wb_device_info>(WB_DEVICE_INFO_INIT, [&](auto* info, auto* error) {
      return wb_device_get_info(get(), info, error);
    });
  }
  /// Bytes a second from pinned host memory to the device; plans made afterwards count on it.
  Result<double> measure_link() const {
    return detail::ask(0.0, [&](auto* bytes_per_second, auto* error) {
      return wb_device_measure_link(get(), bytes_per_second, error);
    });
  }
  Result<wb_device_stats> measure() const {
    return detail::ask<wb_device_stats>(WB_DEVICE_STATS_INIT, [&](auto* usage, auto* error) {
      return wb_device_get_stats(get(), usage, error);
    });
  }
  /// Waits until nothing is left that was to go after a stream.
  Result<void> drain(std::chrono::milliseconds timeout) const {
    const std::uint64_t ms = timeout.count() < 0 ? 0 : static_cast<std::uint64_t>(timeout.count());
    return detail::run([&](wb_error* error) { return wb_device_drain(get(), ms, error); });
  }
  /// Queues a copy between any two places; both must stay until the stream has run it.
  Result<void> copy(std::uint64_t to, std::uint64_t from, std::uint64_t bytes,
                    void* stream) const {
    return detail::run([&](wb_error* error) {
      return wb_device_copy(get(), to, from, bytes, stream, error);
    });
  }
  Result<void> stream_synchronize(void* stream) const {
    return detail::run([&](wb_error* error) {
      return wb_device_stream_synchronize(get(), stream, error);
    });
  }
  /// Queues any callable on a stream; it must call neither this library nor CUDA.
  template <class F>
  Result<void> stream_call(void* stream, F&& function) const {
    return detail::run([&](wb_error* error) {
      return detail::give_callable(std::forward<F>(function), [&](auto* run, void* user) {
        return wb_device_stream_call(get(), stream, run, user, error);
      });
    });
  }

 private:
  static std::string version_text(std::uint32_t version) {
    return std::to_string(version >> 16) + "." + std::to_string(version >> 8 & 255) + "." +
           std::to_string(version & 255);
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_DEVICE_HPP
