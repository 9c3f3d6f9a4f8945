/// Buffer: a range of host memory.
#ifndef WEIGHBRIDGE_BUFFER_HPP
#define WEIGHBRIDGE_BUFFER_HPP

#include "weighbridge/language.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "weighbridge.h"
#include "buffer_options.hpp"
#include "callable.hpp"
#include "device.hpp"
#include "handle.hpp"
#include "progress.hpp"
#include "result.hpp"
#include "span.hpp"

namespace weighbridge {

/// A range of host memory: allocated, registered, or mapped from a file. Holds its device.
class Buffer
    : public detail::Handle<Buffer, wb_buffer, wb_buffer_retain, wb_buffer_release> {
 public:
  /// Allocates exactly `bytes` bytes of zeroed memory.
  static Result<Buffer> alloc(const Device& device, std::uint64_t bytes,
                              const BufferOptions& options = {}) {
    return detail::with_options(options, [&](const wb_buffer_options* raw) {
      return detail::make<Buffer>(wb_buffer_alloc, device.get(), bytes, raw);
    });
  }
  /// Registers the caller's memory, which must stay mapped until the last reference is dropped.
  static Result<Buffer> register_memory(const Device& device, void* data, std::uint64_t bytes,
                                        const BufferOptions& options = {}) {
    return detail::with_options(options, [&](const wb_buffer_options* raw) {
      return detail::make<Buffer>(wb_buffer_register, device.get(), data, bytes, raw, nullptr,
                                  nullptr);
    });
  }
  /// Registers the caller's memory, which must stay mapped until `deleter` is called. The deleter
  /// is any callable: it is called once, on any thread; on failure it is destroyed without a call.
  template <class F, class = std::enable_if_t<std::is_invocable_v<std::decay_t<F>&>>>
  static Result<Buffer> register_memory(const Device& device, void* data, std::uint64_t bytes,
                                        F&& deleter, const BufferOptions& options = {}) {
    return detail::with_options(options, [&](const wb_buffer_options* raw) {
      return detail::with_callable(std::forward<F>(deleter), [&](auto* run, void* owner) {
        return detail::make<Buffer>(wb_buffer_register, device.get(), data, bytes, raw, run, owner);
      });
    });
  }
  /// Maps `bytes` bytes of a file from `offset` on, read-only; 0 bytes for all that follow.
  static Result<Buffer> map_file(const Device& device, const std::string& path,
                                 std::uint64_t offset, std::uint64_t bytes,
                                 const BufferOptions& options = {}) {
    if (const auto valid = detail::check_text(path); !valid) return valid.error();
    return detail::with_options(options, [&](const wb_buffer_options* raw) {
      return detail::make<Buffer>(wb_buffer_map_file, device.get(), path.c_str(), offset, bytes,
                                  raw);
    });
  }
  /// Maps a whole file, read-only.
  static Result<Buffer> map_file(const Device& device, const std::string& path,
                                 const BufferOptions& options = {}) {
    return map_file(device, path, 0, 0, options);
  }
  Result<wb_buffer_info> get_info() const {
    return detail::fill<wb_buffer_info>(WB_BUFFER_INFO_INIT, wb_buffer_get_info, get());
  }
  Result<wb_buffer_stats> get_stats() const {
    return detail::fill<wb_buffer_stats>(WB_BUFFER_STATS_INIT, wb_buffer_get_stats, get());
  }
  /// The bytes to read, valid while the buffer is alive; empty if there is no buffer.
  span<const std::byte> bytes() const {
    const auto info = get_info();
    if (!info) return {};
    return {static_cast<const std::byte*>(info.value().data), info.value().asked_bytes};
  }
  /// The bytes to write, valid while the buffer is alive; fails for a read-only buffer.
  Result<span<std::byte>> writable_bytes() const {
    const auto info = get_info();
    if (!info) return info.error();
    if (info.value().read_only) {
      return detail::invalid_argument("asked to write to a read-only buffer");
    }
    return span<std::byte>(static_cast<std::byte*>(info.value().data), info.value().asked_bytes);
  }
  /// Drops the reference after the work queued on `stream`. On failure this object keeps it.
  Result<void> release_after(void* stream) { return release_by(wb_buffer_release_after, stream); }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_BUFFER_HPP
