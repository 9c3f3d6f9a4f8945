/// BufferOptions: how host memory is allocated, registered or read.
#ifndef WEIGHBRIDGE_BUFFER_OPTIONS_HPP
#define WEIGHBRIDGE_BUFFER_OPTIONS_HPP

#include "weighbridge/language.hpp"

#include <cstdint>

#include "weighbridge.h"
#include "enums.hpp"
#include "progress.hpp"

namespace weighbridge {

/// wb_buffer_options
struct BufferOptions {
  HugePages huge_pages = {};
  std::uint32_t threads = 0;
  NumaPolicy numa_policy = {};
  std::uint32_t numa_node = 0;  ///< read only with NumaPolicy::Node
  Tristate pin = {};
  Tristate write_combined = {};
  Tristate portable = {};
  FileMode file_mode = {};
  std::uint64_t chunk_bytes = 0;
  Progress progress = nullptr;

  /// These options without the progress callback.
  wb_buffer_options to_c() const noexcept {
    wb_buffer_options raw = WB_BUFFER_OPTIONS_INIT;
    raw.huge_pages = detail::to_c(huge_pages);
    raw.threads = threads;
    raw.numa_policy = detail::to_c(numa_policy);
    raw.numa_node = numa_node;
    raw.pin = detail::to_c(pin);
    raw.write_combined = detail::to_c(write_combined);
    raw.portable = detail::to_c(portable);
    raw.file_mode = detail::to_c(file_mode);
    raw.chunk_bytes = chunk_bytes;
    return raw;
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_BUFFER_OPTIONS_HPP
