/// Arbiter: offloaders that share the memory of a device.
#ifndef WEIGHBRIDGE_ARBITER_HPP
#define WEIGHBRIDGE_ARBITER_HPP

#include "weighbridge/language.hpp"

#include <chrono>
#include <cstdint>

#include "weighbridge.h"
#include "device.hpp"
#include "handle.hpp"
#include "offloader.hpp"
#include "result.hpp"

namespace weighbridge {

/// wb_arbiter_options
struct ArbiterOptions {
  std::int32_t priority = 0;    ///< higher ones give memory later
  std::uint64_t min_bytes = 0;  ///< what others leave; 0 lets the offloader sleep
  void* stream = nullptr;       ///< of its steps and graphs
};

/// Shares a budget of device memory among offloaders with fixed addresses: what is used next gets
/// memory, and what is idle gives it.
class Arbiter
    : public detail::Handle<Arbiter, wb_arbiter, wb_arbiter_retain, wb_arbiter_release> {
 public:
  /// wb_arbiter_new
  static Result<Arbiter> make(const Device& device, std::uint64_t device_bytes) {
    return detail::make<Arbiter>(wb_arbiter_new, device.get(), device_bytes);
  }
  /// Adds an offloader with the memory that it holds: see wb_arbiter_add.
  Result<void> add(const Offloader& offloader, const ArbiterOptions& options = {}) const {
    wb_arbiter_options raw = WB_ARBITER_OPTIONS_INIT;
    raw.priority = options.priority;
    raw.min_bytes = options.min_bytes;
    raw.stream = options.stream;
    return detail::call(wb_arbiter_add, get(), offloader.get(), &raw);
  }
  /// Removes an offloader, which keeps what it holds.
  Result<void> remove(const Offloader& offloader) const {
    return detail::call(wb_arbiter_remove, get(), offloader.get());
  }
  /// Begins to give the offloader that is used next its memory: see wb_arbiter_use.
  Result<wb_arbiter_progress> use(const Offloader& offloader) const {
    return detail::fill<wb_arbiter_progress>(WB_ARBITER_PROGRESS_INIT, wb_arbiter_use, get(),
                                             offloader.get());
  }
  /// Changes the budget: see wb_arbiter_resize.
  Result<wb_arbiter_progress> resize(std::uint64_t device_bytes) const {
    return detail::fill<wb_arbiter_progress>(WB_ARBITER_PROGRESS_INIT, wb_arbiter_resize, get(),
                                             device_bytes);
  }
  /// Goes on as far as is possible at once.
  Result<wb_arbiter_progress> advance() const {
    return detail::fill<wb_arbiter_progress>(WB_ARBITER_PROGRESS_INIT, wb_arbiter_advance, get());
  }
  /// Goes on until every offloader holds what it is to hold, for at most `timeout`.
  Result<wb_arbiter_progress> wait(std::chrono::milliseconds timeout) const {
    return detail::fill<wb_arbiter_progress>(WB_ARBITER_PROGRESS_INIT, wb_arbiter_wait, get(),
                                             detail::milliseconds(timeout));
  }
  Result<wb_arbiter_member_info> get_member_info(const Offloader& offloader) const {
    return detail::fill<wb_arbiter_member_info>(WB_ARBITER_MEMBER_INFO_INIT,
                                                wb_arbiter_get_member_info, get(), offloader.get());
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_ARBITER_HPP
