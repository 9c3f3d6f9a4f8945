/// What a device gave and takes back: what Stream and DeviceMemory are.
#ifndef WEIGHBRIDGE_LENT_HPP
#define WEIGHBRIDGE_LENT_HPP

#include <utility>

#include "weighbridge.h"
#include "device.hpp"
#include "result.hpp"

namespace weighbridge {

namespace detail {

/// What a device gave and takes back; it holds the device.
template <class T, wb_status (*Free)(const wb_device*, T, wb_error*)>
class Lent {
 public:
  T get() const noexcept { return value_; }
  const Device& device() const noexcept { return device_; }
  explicit operator bool() const noexcept { return static_cast<bool>(device_); }
  /// Gives it back now; empty after it, also after an error. A destructor's error is lost.
  Result<void> release() {
    if (!device_) return {};
    const Device device = std::move(device_);
    const T value = std::exchange(value_, T{});
    return run([&](wb_error* error) { return Free(device.get(), value, error); });
  }

 protected:
  Lent() = default;
  Lent(const Device& device, T value) noexcept : device_(device.share()), value_(value) {}
  Lent(Lent&& other) noexcept
      : device_(std::move(other.device_)), value_(std::exchange(other.value_, T{})) {}
  Lent& operator=(Lent&& other) noexcept {
    Lent moved(std::move(other));
    std::swap(device_, moved.device_);
    std::swap(value_, moved.value_);
    return *this;
  }
  ~Lent() { static_cast<void>(release()); }

 private:
  Device device_;
  T value_{};
};

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_LENT_HPP
