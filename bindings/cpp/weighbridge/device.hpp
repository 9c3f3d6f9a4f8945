/// Device: a CUDA device, or the host.
#ifndef WEIGHBRIDGE_DEVICE_HPP
#define WEIGHBRIDGE_DEVICE_HPP

#include "weighbridge/language.hpp"

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

#include "weighbridge.h"
#include "callable.hpp"
#include "enums.hpp"
#include "handle.hpp"
#include "result.hpp"

namespace weighbridge {

/// wb_device_options
struct DeviceOptions {
  Tristate pin = {};
  Tristate views = {};
  void* context = nullptr;  ///< the caller's own CUcontext, which must outlive the device
  std::uint64_t capacity_bytes = 0;
};

/// A device: "host", or "cuda:N".
class Device
    : public detail::Handle<Device, wb_device, wb_device_retain, wb_device_release> {
 public:
  /// The number of CUDA devices.
  static Result<std::int32_t> get_cuda_count() {
    return detail::fill(std::int32_t{0}, wb_device_get_cuda_count);
  }
  /// Fails with WB_ERR_NOT_SUPPORTED if the library is older than this header.
  static Result<Device> open(const std::string& name, const DeviceOptions& options = {}) {
    if (wb_version() < WB_VERSION) {
      return detail::make_error(
          WB_ERR_NOT_SUPPORTED,
          "built against weighbridge " + version_text(WB_VERSION) + ", but loaded " +
              version_text(wb_version()) + ": load the library of that version or later");
    }
    if (const auto valid = detail::check_text(name); !valid) return valid.error();
    wb_device_options raw = WB_DEVICE_OPTIONS_INIT;
    raw.pin = detail::to_c(options.pin);
    raw.views = detail::to_c(options.views);
    raw.context = options.context;
    raw.capacity_bytes = options.capacity_bytes;
    return detail::make<Device>(wb_device_open, name.c_str(), &raw);
  }
  Result<wb_device_info> get_info() const {
    return detail::fill<wb_device_info>(WB_DEVICE_INFO_INIT, wb_device_get_info, get());
  }
  Result<wb_device_stats> get_stats() const {
    return detail::fill<wb_device_stats>(WB_DEVICE_STATS_INIT, wb_device_get_stats, get());
  }
  /// Measures bytes per second from pinned host memory to the device; later plans use the result.
  Result<double> measure_link() const { return detail::fill(0.0, wb_device_measure_link, get()); }
  /// Waits until every deferred release has completed.
  Result<void> drain(std::chrono::milliseconds timeout) const {
    return detail::call(wb_device_drain, get(), detail::milliseconds(timeout));
  }
  /// Queues a copy between two host or device addresses, valid until the stream has completed it.
  Result<void> copy(void* to, const void* from, std::uint64_t bytes, void* stream) const {
    return detail::call(wb_device_copy, get(), to, from, bytes, stream);
  }
  Result<void> stream_synchronize(void* stream) const {
    return detail::call(wb_device_stream_synchronize, get(), stream);
  }
  /// Queues a callable on a stream; it must call neither this library nor CUDA.
  template <class F>
  Result<void> stream_call(void* stream, F&& function) const {
    return detail::with_callable(std::forward<F>(function), [&](auto* run, void* user) {
      return detail::call(wb_device_stream_call, get(), stream, run, user);
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
