/// DeviceMemory: memory of the device.
#ifndef WEIGHBRIDGE_DEVICE_MEMORY_HPP
#define WEIGHBRIDGE_DEVICE_MEMORY_HPP

#include <cstdint>

#include "weighbridge.h"
#include "device.hpp"
#include "lent.hpp"
#include "result.hpp"

namespace weighbridge {

/// Device memory; get() is its address. Freeing it waits for the device, as the driver does.
class DeviceMemory : public detail::Lent<std::uint64_t, wb_device_free> {
 public:
  DeviceMemory() = default;
  static Result<DeviceMemory> alloc(const Device& device, std::uint64_t bytes) {
    auto made = detail::ask(std::uint64_t{0}, [&](std::uint64_t* address, wb_error* error) {
      return wb_device_alloc(device.get(), bytes, address, error);
    });
    if (!made) return made.error();
    return DeviceMemory(device, made.value());
  }

 private:
  using Lent::Lent;
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_DEVICE_MEMORY_HPP
