/// DeviceMemory: an allocation of device memory.
#ifndef WEIGHBRIDGE_DEVICE_MEMORY_HPP
#define WEIGHBRIDGE_DEVICE_MEMORY_HPP

#include "weighbridge/language.hpp"

#include <cstdint>

#include "weighbridge.h"
#include "device.hpp"
#include "device_owned.hpp"
#include "result.hpp"

namespace weighbridge {

/// An allocation of device memory; get() is its device address. Freeing it may wait for the device.
class DeviceMemory : public detail::DeviceOwned<wb_device_free> {
 public:
  DeviceMemory() = default;
  /// wb_device_alloc
  static Result<DeviceMemory> alloc(const Device& device, std::uint64_t bytes) {
    void* none = nullptr;
    const auto address = detail::fill(none, wb_device_alloc, device.get(), bytes);
    if (!address) return address.error();
    return DeviceMemory(device, address.value());
  }

 private:
  using DeviceOwned::DeviceOwned;
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_DEVICE_MEMORY_HPP
