/// DeviceOwned: something that a device has to free, the base of Stream and DeviceMemory.
#ifndef WEIGHBRIDGE_DEVICE_OWNED_HPP
#define WEIGHBRIDGE_DEVICE_OWNED_HPP

#include "weighbridge/language.hpp"

#include <utility>

#include "weighbridge.h"
#include "device.hpp"
#include "result.hpp"

namespace weighbridge {

namespace detail {

/// Owns an address or a stream, which the device frees by `Free`, and a reference to the device.
template <wb_status (*Free)(const wb_device*, void*, wb_error*)>
class DeviceOwned {
 public:
  void* get() const noexcept { return pointer_; }
  const Device& device() const noexcept { return device_; }
  explicit operator bool() const noexcept { return static_cast<bool>(device_); }
  /// Frees it now. The object is empty afterwards, even on failure. The destructor ignores errors.
  Result<void> release() {
    if (!device_) return {};
    const Device device = std::move(device_);
    return call(Free, device.get(), std::exchange(pointer_, nullptr));
  }

 protected:
  DeviceOwned() = default;
  DeviceOwned(const Device& device, void* pointer) noexcept
      : device_(device.share()), pointer_(pointer) {}
  DeviceOwned(DeviceOwned&& other) noexcept
      : device_(std::move(other.device_)), pointer_(std::exchange(other.pointer_, nullptr)) {}
  DeviceOwned& operator=(DeviceOwned&& other) noexcept {
    DeviceOwned moved(std::move(other));
    std::swap(device_, moved.device_);
    std::swap(pointer_, moved.pointer_);
    return *this;
  }
  ~DeviceOwned() { static_cast<void>(release()); }

 private:
  Device device_;
  void* pointer_ = nullptr;
};

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_DEVICE_OWNED_HPP
