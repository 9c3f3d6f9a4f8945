/// Buffer: a range of host memory.
#ifndef WEIGHBRIDGE_BUFFER_HPP
#define WEIGHBRIDGE_BUFFER_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "weighbridge.h"
#include "callable.hpp"
#include "device.hpp"
#include "handle.hpp"
#include "options.hpp"
#include "result.hpp"
#include "span.hpp"

namespace weighbridge {

/// A range of host memory: allocated, registered, or mapped from a file. Holds its device.
class Buffer
    : public detail::Handle<Buffer, wb_buffer, wb_buffer_retain, wb_buffer_release> {
 public:
  /// Exactly `bytes` bytes of zeroed memory, pinned by the device's policy.
  static Result<Buffer> alloc(const Device& device, std::uint64_t bytes,
                              const BufferOptions& options = {}) {
    return detail::make<Buffer>(options, [&](auto* given, auto** buffer, auto* error) {
      return wb_buffer_alloc(device.get(), bytes, given, buffer, error);
    });
  }
  /// Registers the caller's memory, which must stay until the last reference is gone.
  static Result<Buffer> register_memory(const Device& device, void* data, std::uint64_t bytes,
                                        const BufferOptions& options = {}) {
    return detail::make<Buffer>(options, [&](auto* given, auto** buffer, auto* error) {
      return wb_buffer_register(device.get(), data, bytes, given, nullptr, nullptr, buffer, error);
    });
  }
  /// Registers the caller's memory, which must stay until `deleter` is called: any callable, kept
  /// here, called once, on any thread. On failure it is destroyed without a call.
  template <class F, class = std::enable_if_t<std::is_invocable_v<std::decay_t<F>&>>>
  static Result<Buffer> register_memory(const Device& device, void* data, std::uint64_t bytes,
                                        F&& deleter, const BufferOptions& options = {}) {
    return detail::make<Buffer>(options, [&](auto* given, auto** buffer, auto* error) {
      return detail::give_callable(std::forward<F>(deleter), [&](auto* run, void* owner) {
        return wb_buffer_register(device.get(), data, bytes, given, run, owner, buffer, error);
      });
    });
  }
  /// Maps a file, or `bytes` bytes of it from `offset` (0: all that follow), read-only.
  static Result<Buffer> map(const Device& device, const std::string& path, std::uint64_t offset,
                            std::uint64_t bytes, const BufferOptions& options = {}) {
    if (const auto whole = detail::whole(path); !whole) return whole.error();
    return detail::make<Buffer>(options, [&](auto* given, auto** buffer, auto* error) {
      return wb_buffer_map_file(device.get(), path.c_str(), offset, bytes, given, buffer, error);
    });
  }
  static Result<Buffer> map(const Device& device, const std::string& path,
                            const BufferOptions& options = {}) {
    return map(device, path, 0, 0, options);
  }
  Result<wb_buffer_info> describe() const {
    return detail::ask<wb_buffer_info>(WB_BUFFER_INFO_INIT, [&](auto* info, auto* error) {
      return wb_buffer_get_info(get(), info, error);
    });
  }
  Result<wb_buffer_stats> measure() const {
    return detail::ask<wb_buffer_stats>(WB_BUFFER_STATS_INIT, [&](auto* usage, auto* error) {
      return wb_buffer_get_stats(get(), usage, error);
    });
  }
  /// Its bytes to read, alive as long as it; none in an empty buffer.
  span<const std::byte> bytes() const {
    const auto info = describe();
    if (!info) return {};
    return {static_cast<const std::byte*>(info.value().data), info.value().asked_bytes};
  }
  /// Its bytes to write; an error for a read-only buffer.
  Result<span<std::byte>> writable_bytes() const {
    const auto info = describe();
    if (!info) return info.error();
    if (info.value().read_only) return detail::invalid("asked to write to a read-only buffer");
    return span<std::byte>(static_cast<std::byte*>(info.value().data), info.value().asked_bytes);
  }
  /// Drops the reference once what is queued on `stream` has run; on failure it is still here.
  Result<void> release_after(void* stream) {
    return release_by([&](auto* raw, auto* error) {
      return wb_buffer_release_after(raw, stream, error);
    });
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_BUFFER_HPP
