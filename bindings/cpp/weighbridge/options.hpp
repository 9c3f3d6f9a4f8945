/// BufferOptions, and the progress of a call.
#ifndef WEIGHBRIDGE_OPTIONS_HPP
#define WEIGHBRIDGE_OPTIONS_HPP

#include <cstdint>
#include <exception>
#include <functional>

#include "weighbridge.h"
#include "handle.hpp"
#include "result.hpp"

namespace weighbridge {

enum class Proceed { yes, cancel };

/// Told the bytes done and the bytes in all of a phase, on the thread that made the call.
using Progress =
    std::function<Proceed(wb_phase phase, std::uint64_t done, std::uint64_t total)>;

/// wb_buffer_options.
struct BufferOptions {
  wb_huge_pages huge_pages = WB_HUGE_PAGES_TRY;
  std::uint32_t threads = 0;
  std::int32_t numa_node = WB_NUMA_DEVICE;
  wb_tristate pin = WB_TRISTATE_AUTO;
  wb_tristate write_combined = WB_TRISTATE_AUTO;
  wb_tristate portable = WB_TRISTATE_AUTO;
  wb_file_mode file_mode = WB_FILE_MODE_AUTO;
  std::uint64_t chunk_bytes = 0;
  Progress progress = nullptr;
};

namespace detail {

/// BufferOptions as C reads them, for one call; what the progress callback throws waits here.
class CallOptions {
 public:
  explicit CallOptions(const BufferOptions& options) : progress_(options.progress) {
    raw_.huge_pages = options.huge_pages;
    raw_.threads = options.threads;
    raw_.numa_node = options.numa_node;
    raw_.pin = options.pin;
    raw_.write_combined = options.write_combined;
    raw_.portable = options.portable;
    raw_.file_mode = options.file_mode;
    raw_.chunk_bytes = options.chunk_bytes;
    raw_.progress = progress_ ? report : nullptr;
    raw_.progress_user = this;
  }
  CallOptions(const CallOptions&) = delete;

  const wb_buffer_options* get() const { return &raw_; }
  void rethrow() const {
#ifdef __cpp_exceptions
    if (thrown_) std::rethrow_exception(thrown_);
#endif
  }

 private:
  static std::int32_t report(void* user, wb_phase phase, std::uint64_t done,
                             std::uint64_t total) noexcept {
    auto* self = static_cast<CallOptions*>(user);
    if (self->thrown_) return 1;
#ifdef __cpp_exceptions
    try {
      return self->progress_(phase, done, total) != Proceed::yes;
    } catch (...) {
      self->thrown_ = std::current_exception();
      return 1;
    }
#else
    return self->progress_(phase, done, total) != Proceed::yes;
#endif
  }

  wb_buffer_options raw_ = WB_BUFFER_OPTIONS_INIT;
  const Progress& progress_;
  std::exception_ptr thrown_;
};

/// Makes a noun by `call(options, handle, error)`; throws what the progress callback threw.
template <class Noun, class Call>
Result<Noun> make(const BufferOptions& options, Call&& call) {
  CallOptions given(options);
  auto made =
      make<Noun>([&](auto** raw, wb_error* error) { return call(given.get(), raw, error); });
  given.rethrow();
  return made;
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_OPTIONS_HPP
