/// Offloader: keeps parameters in host memory and copies them to the device, as a plan says.
#ifndef WEIGHBRIDGE_OFFLOADER_HPP
#define WEIGHBRIDGE_OFFLOADER_HPP

#include "weighbridge/language.hpp"

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "weighbridge.h"
#include "buffer_options.hpp"
#include "handle.hpp"
#include "layout.hpp"
#include "parameter.hpp"
#include "plan.hpp"
#include "progress.hpp"
#include "result.hpp"
#include "view.hpp"

namespace weighbridge {

/// The parameters of a plan, of which a group is on the device while it is acquired.
class Offloader : public detail::Handle<Offloader, wb_offloader, wb_offloader_retain,
                                        wb_offloader_release> {
 public:
  /// wb_offloader_new: commits a plan after the work queued on `stream`.
  static Result<Offloader> make(const Plan& plan, void* stream = nullptr,
                                const BufferOptions& options = {}) {
    return detail::with_options(options, [&](const wb_buffer_options* raw) {
      return detail::make<Offloader>(wb_offloader_new, plan.get(), stream, raw);
    });
  }
  Result<wb_offloader_stats> get_stats() const {
    return detail::fill<wb_offloader_stats>(WB_OFFLOADER_STATS_INIT, wb_offloader_get_stats,
                                            get());
  }
  Result<wb_offloader_group_stats> get_group_stats(std::uint64_t group) const {
    return detail::fill<wb_offloader_group_stats>(WB_OFFLOADER_GROUP_STATS_INIT,
                                                  wb_offloader_get_group_stats, get(), group);
  }
  /// While it is the same, addresses and captured graphs are valid: see wb_offloader_get_generation.
  Result<std::uint64_t> get_generation() const {
    return detail::fill(std::uint64_t{0}, wb_offloader_get_generation, get());
  }
  /// The index of the group with a name.
  Result<std::uint64_t> find_group(const std::string& name) const {
    if (const auto valid = detail::check_text(name); !valid) return valid.error();
    return detail::fill(std::uint64_t{0}, wb_offloader_find_group, get(), name.c_str());
  }
  /// AcquiredGroup does the same, and releases the group at the end of a scope.
  Result<void> acquire_group(std::uint64_t group, void* stream) const {
    return detail::call(wb_offloader_acquire_group, get(), group, stream);
  }
  /// As acquire_group, but waits up to `timeout` while another thread's group occupies the slot.
  Result<void> acquire_group_within(std::uint64_t group, void* stream,
                                    std::chrono::milliseconds timeout) const {
    return detail::call(wb_offloader_acquire_group_within, get(), group, stream,
                        detail::milliseconds(timeout));
  }
  Result<void> release_group(std::uint64_t group, void* stream) const {
    return detail::call(wb_offloader_release_group, get(), group, stream);
  }
  /// Makes the stream wait for every queued copy: the end of a capture of part of a step.
  Result<void> join(void* stream) const {
    return detail::call(wb_offloader_join, get(), stream);
  }
  /// The groups of the coming steps, in their order: see wb_offloader_expect. None: the plan's.
  Result<void> expect(const std::vector<std::uint64_t>& groups) const {
    return detail::call(wb_offloader_expect, get(), groups.data(), std::uint64_t{groups.size()});
  }
  /// Begins a step that relies on no copy that was queued before: see wb_offloader_begin_step.
  Result<void> begin_step(void* stream) const {
    return detail::call(wb_offloader_begin_step, get(), stream);
  }
  /// Ends an abandoned step of the stream: see wb_offloader_reset.
  Result<void> reset(void* stream) const {
    return detail::call(wb_offloader_reset, get(), stream);
  }
  /// Ends the steps of all streams: see wb_offloader_reset_all.
  Result<void> reset_all(void* stream) const {
    return detail::call(wb_offloader_reset_all, get(), stream);
  }
  /// Begins to hold at most `device_bytes` of device memory; 0 to sleep: see wb_offloader_resize.
  Result<wb_offloader_resize_progress> resize(std::uint64_t device_bytes, void* stream = nullptr,
                                              bool graphs_dropped = false) const {
    return resize_to(WB_BUDGET_DEVICE_BYTES, device_bytes, stream, graphs_dropped);
  }
  /// Begins to offload at most `offload_bytes`, counted in whole pieces: see wb_offloader_resize.
  Result<wb_offloader_resize_progress> resize_offload(std::uint64_t offload_bytes,
                                                      void* stream = nullptr,
                                                      bool graphs_dropped = false) const {
    return resize_to(WB_BUDGET_OFFLOAD_BYTES, offload_bytes, stream, graphs_dropped);
  }
  /// Goes on with a resize as far as is possible at once.
  Result<wb_offloader_resize_progress> resize_advance(void* stream = nullptr) const {
    return detail::fill<wb_offloader_resize_progress>(WB_OFFLOADER_RESIZE_PROGRESS_INIT,
                                                      wb_offloader_resize_advance, get(), stream);
  }
  /// Goes on with a resize until it is done, for at most `timeout`.
  Result<wb_offloader_resize_progress> resize_wait(std::chrono::milliseconds timeout,
                                                   void* stream = nullptr) const {
    return detail::fill<wb_offloader_resize_progress>(WB_OFFLOADER_RESIZE_PROGRESS_INIT,
                                                      wb_offloader_resize_wait, get(), stream,
                                                      detail::milliseconds(timeout));
  }
  /// Notes how often a step reads a range of a parameter's bytes: see wb_offloader_prefer.
  Result<void> prefer(std::uint64_t index, std::uint64_t offset, std::uint64_t bytes,
                      double weight) const {
    return detail::call(wb_offloader_prefer, get(), index, offset, bytes, weight);
  }
  /// Moves the hottest pieces in and the coldest out, at most `max_bytes` in the call: see
  /// wb_offloader_rebalance.
  Result<wb_offloader_rebalance_progress> rebalance(std::uint64_t max_bytes,
                                                    void* stream = nullptr) const {
    return detail::fill<wb_offloader_rebalance_progress>(WB_OFFLOADER_REBALANCE_PROGRESS_INIT,
                                                         wb_offloader_rebalance, get(), max_bytes,
                                                         stream);
  }
  /// The index of the parameter with a name, valid until a parameter is removed.
  Result<std::uint64_t> find_parameter(const std::string& name) const {
    if (const auto valid = detail::check_text(name); !valid) return valid.error();
    return detail::fill(std::uint64_t{0}, wb_offloader_find_parameter, get(), name.c_str());
  }
  Result<wb_offloader_parameter_info> get_parameter_info(std::uint64_t index) const {
    return detail::fill<wb_offloader_parameter_info>(WB_OFFLOADER_PARAMETER_INFO_INIT,
                                                     wb_offloader_get_parameter_info, get(), index);
  }
  /// All parameters, in the order of their indexes.
  Result<std::vector<wb_offloader_parameter_info>> get_parameter_infos() const {
    const auto stats = get_stats();
    if (!stats) return stats.error();
    const wb_offloader_parameter_info empty = WB_OFFLOADER_PARAMETER_INFO_INIT;
    std::vector<wb_offloader_parameter_info> infos(stats.value().parameters, empty);
    const auto filled = detail::call(wb_offloader_get_parameter_infos, get(), std::uint64_t{0},
                                     std::uint64_t{infos.size()}, infos.data());
    if (!filled) return filled.error();
    return infos;
  }
  Result<View> get_view(std::uint64_t index) const {
    return detail::make<View>(wb_offloader_get_view, get(), index);
  }
  Result<View> get_host_view(std::uint64_t index) const {
    return detail::make<View>(wb_offloader_get_host_view, get(), index);
  }
  /// Copies an offloaded parameter's bytes to host memory, decompressed: see
  /// wb_offloader_read_parameter.
  Result<void> read_parameter(std::uint64_t index, void* target, std::uint64_t bytes) const {
    return detail::call(wb_offloader_read_parameter, get(), index, target, bytes);
  }
  /// A view of an offloaded parameter's host memory for the device, whatever its transfer mode.
  Result<View> get_zero_copy_view(std::uint64_t index) const {
    return detail::make<View>(wb_offloader_get_zero_copy_view, get(), index);
  }
  /// Replaces the bytes of a parameter by those at `source`, an address in host or device memory.
  Result<void> replace(const std::string& name, const void* source, const Layout& layout,
                       void* stream = nullptr) const {
    if (const auto valid = detail::check_text(name); !valid) return valid.error();
    const auto raw = layout.to_c();
    if (!raw) return raw.error();
    return detail::call(wb_offloader_replace, get(), name.c_str(), source, &raw.value(), stream);
  }
  Result<void> add(const Parameter& parameter, void* stream = nullptr) const {
    const auto raw = detail::RawParameters::make(&parameter, 1);
    if (!raw) return raw.error();
    return detail::call(wb_offloader_add, get(), raw.value().data(), stream);
  }
  Result<void> remove(const std::string& name, void* stream = nullptr) const {
    if (const auto valid = detail::check_text(name); !valid) return valid.error();
    return detail::call(wb_offloader_remove, get(), name.c_str(), stream);
  }
  /// Replaces, adds and removes parameters so that they are exactly `parameters`.
  Result<wb_offloader_reconcile_result> reconcile(const std::vector<Parameter>& parameters,
                                                  void* stream = nullptr) const {
    const auto all = detail::RawParameters::make(parameters.data(), parameters.size());
    if (!all) return all.error();
    return detail::fill<wb_offloader_reconcile_result>(
        WB_OFFLOADER_RECONCILE_RESULT_INIT, wb_offloader_reconcile, get(), all.value().data(),
        all.value().size(), stream);
  }
  Result<void> compact(void* stream = nullptr) const {
    return detail::call(wb_offloader_compact, get(), stream);
  }

 private:
  Result<wb_offloader_resize_progress> resize_to(wb_budget_kind kind, std::uint64_t bytes,
                                                 void* stream, bool graphs_dropped) const {
    wb_offloader_resize_options options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    options.budget_kind = kind;
    options.budget_bytes = bytes;
    options.graphs_dropped = graphs_dropped ? 1 : 0;
    return detail::fill<wb_offloader_resize_progress>(WB_OFFLOADER_RESIZE_PROGRESS_INIT,
                                                      wb_offloader_resize, get(), &options, stream);
  }
};

/// An acquired group: it is released on its stream when this object is destroyed.
class AcquiredGroup {
 public:
  /// wb_offloader_acquire_group
  static Result<AcquiredGroup> make(const Offloader& offloader, std::uint64_t group,
                                    void* stream) {
    const auto acquired = offloader.acquire_group(group, stream);
    if (!acquired) return acquired.error();
    return AcquiredGroup(offloader.share(), group, stream);
  }
  AcquiredGroup(AcquiredGroup&&) noexcept = default;
  AcquiredGroup& operator=(AcquiredGroup&& other) noexcept {
    AcquiredGroup moved(std::move(other));
    std::swap(offloader_, moved.offloader_);
    std::swap(group_, moved.group_);
    std::swap(stream_, moved.stream_);
    return *this;
  }
  ~AcquiredGroup() { static_cast<void>(release()); }
  /// Releases the group now. The destructor does the same and ignores errors.
  Result<void> release() noexcept {
    if (!offloader_) return {};
    const Offloader offloader = std::move(offloader_);
    return offloader.release_group(group_, stream_);
  }

 private:
  AcquiredGroup(Offloader offloader, std::uint64_t group, void* stream) noexcept
      : offloader_(std::move(offloader)), group_(group), stream_(stream) {}

  Offloader offloader_;
  std::uint64_t group_;
  void* stream_;
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_OFFLOADER_HPP
