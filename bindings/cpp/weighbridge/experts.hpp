/// ExpertCache: the recently used experts of a mixture in slots on the device.
#ifndef WEIGHBRIDGE_EXPERTS_HPP
#define WEIGHBRIDGE_EXPERTS_HPP

#include "weighbridge/language.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "weighbridge.h"
#include "buffer.hpp"
#include "device.hpp"
#include "handle.hpp"
#include "layout.hpp"
#include "offloader.hpp"
#include "result.hpp"
#include "view.hpp"

namespace weighbridge {

/// wb_expert_tensor
struct ExpertTensor {
  std::uint64_t layer = 0;
  std::string name = {};  ///< the same in every layer
  Layout layout = {};     ///< the first dimension counts the experts; offsets count from the buffer
  std::shared_ptr<const Buffer> buffer = {};
  std::string parameter = {};  ///< for ExpertCache::make_for, in place of layout and buffer
};

/// wb_expert_cache_options
struct ExpertCacheOptions {
  std::uint64_t slots = 0;         ///< or device_bytes
  std::uint64_t device_bytes = 0;  ///< a ceiling for slots and state
  std::uint32_t lanes = 1;         ///< batches in flight at a time
  void* memory = nullptr;          ///< device memory of the caller for the slots
  std::uint64_t memory_bytes = 0;

  wb_expert_cache_options to_c() const noexcept {
    wb_expert_cache_options raw = WB_EXPERT_CACHE_OPTIONS_INIT;
    raw.slots = slots;
    raw.device_bytes = device_bytes;
    raw.lanes = lanes;
    raw.memory = memory;
    raw.memory_bytes = memory_bytes;
    return raw;
  }
};

/// wb_expert_route_options
struct ExpertRouteOptions {
  std::uint32_t lane = 0;
  std::uint32_t pass = 0;
  std::uint32_t passes = 1;
};

/// Numbers of experts in device memory: WB_DTYPE_I32 or WB_DTYPE_I64.
struct ExpertIds {
  const void* data = nullptr;
  std::uint64_t count = 0;
  wb_dtype dtype = WB_DTYPE_I32;
};

namespace detail {

/// Expert tensors as C's array, which points into the ExpertTensor objects.
class RawExperts {
 public:
  static Result<RawExperts> make(const std::vector<ExpertTensor>& tensors) {
    RawExperts all;
    all.layouts_.reserve(tensors.size());
    for (const ExpertTensor& tensor : tensors) {
      if (const auto valid = check_text(tensor.name); !valid) return valid.error();
      if (const auto valid = check_text(tensor.parameter); !valid) return valid.error();
      const auto layout = tensor.layout.to_c();
      if (!layout) return layout.error();
      wb_expert_tensor raw = WB_EXPERT_TENSOR_INIT;
      raw.layer = tensor.layer;
      raw.name = tensor.name.c_str();
      raw.buffer = tensor.buffer ? tensor.buffer->get() : nullptr;
      if (tensor.parameter.empty()) {
        all.layouts_.push_back(layout.value());
        raw.layout = &all.layouts_.back();
      } else {
        raw.parameter = tensor.parameter.c_str();
      }
      all.tensors_.push_back(raw);
    }
    return all;
  }
  RawExperts(RawExperts&&) = default;  // a copy would point into the original

  const wb_expert_tensor* data() const noexcept { return tensors_.data(); }
  std::uint64_t size() const noexcept { return tensors_.size(); }

 private:
  RawExperts() = default;
  std::vector<wb_layout> layouts_;
  std::vector<wb_expert_tensor> tensors_;
};

}  // namespace detail

/// Keeps recently used experts in slots, which all layers share. A fused kernel takes the slots in
/// place of the weights.
class ExpertCache : public detail::Handle<ExpertCache, wb_expert_cache, wb_expert_cache_retain,
                                          wb_expert_cache_release> {
 public:
  /// wb_expert_cache_new
  static Result<ExpertCache> make(const Device& device, const std::vector<ExpertTensor>& tensors,
                                  const ExpertCacheOptions& options) {
    const auto all = detail::RawExperts::make(tensors);
    if (!all) return all.error();
    const wb_expert_cache_options raw = options.to_c();
    return detail::make<ExpertCache>(wb_expert_cache_new, device.get(), all.value().data(),
                                     all.value().size(), &raw);
  }
  /// A cache of experts that are parameters of an offloader: wb_expert_cache_new_for_offloader
  static Result<ExpertCache> make_for(const Offloader& offloader,
                                      const std::vector<ExpertTensor>& tensors,
                                      const ExpertCacheOptions& options = {}) {
    const auto all = detail::RawExperts::make(tensors);
    if (!all) return all.error();
    const wb_expert_cache_options raw = options.to_c();
    return detail::make<ExpertCache>(wb_expert_cache_new_for_offloader, offloader.get(),
                                     all.value().data(), all.value().size(), &raw);
  }
  /// The size of the cache that make() would create.
  static Result<wb_expert_cache_size> measure(const Device& device,
                                              const std::vector<ExpertTensor>& tensors,
                                              const ExpertCacheOptions& options) {
    const auto all = detail::RawExperts::make(tensors);
    if (!all) return all.error();
    const wb_expert_cache_options raw = options.to_c();
    return detail::fill<wb_expert_cache_size>(WB_EXPERT_CACHE_SIZE_INIT, wb_expert_cache_measure,
                                              device.get(), all.value().data(), all.value().size(),
                                              &raw);
  }
  Result<wb_expert_cache_info> get_info() const {
    return detail::fill<wb_expert_cache_info>(WB_EXPERT_CACHE_INFO_INIT, wb_expert_cache_get_info,
                                              get());
  }
  /// The slots of an expert tensor; indexes follow the order in which names were described.
  Result<wb_expert_slots_info> get_slots_info(std::uint64_t index) const {
    return detail::fill<wb_expert_slots_info>(WB_EXPERT_SLOTS_INFO_INIT,
                                              wb_expert_cache_get_slots_info, get(), index);
  }
  /// The same as a view `[most_slots, ...]`.
  Result<View> get_view(std::uint64_t index) const {
    return detail::make<View>(wb_expert_cache_get_view, get(), index);
  }
  /// Brings the experts that `ids` name into slots, and writes the slot of each id, of the same
  /// type, to `slots`, which may be `ids.data`: see wb_expert_cache_route.
  Result<void> route(std::uint64_t layer, const ExpertIds& ids, void* slots, void* stream,
                     const ExpertRouteOptions& options = {}) const {
    wb_expert_route_options raw = WB_EXPERT_ROUTE_OPTIONS_INIT;
    raw.lane = options.lane;
    raw.pass = options.pass;
    raw.passes = options.passes;
    return detail::call(wb_expert_cache_route, get(), layer, ids.data, ids.count, ids.dtype, slots,
                        &raw, stream);
  }
  /// Brings experts into slots ahead of their call: see wb_expert_cache_prefetch.
  Result<void> prefetch(std::uint64_t layer, const ExpertIds& ids, void* stream) const {
    return detail::call(wb_expert_cache_prefetch, get(), layer, ids.data, ids.count, ids.dtype,
                        stream);
  }
  /// The number of passes in which a layer is computed for `count` ids.
  Result<std::uint64_t> get_passes(std::uint64_t layer, std::uint64_t count) const {
    return detail::fill(std::uint64_t{0}, wb_expert_cache_get_passes, get(), layer, count);
  }
  /// Empties all slots: after weights in host memory were written.
  Result<void> reset(void* stream) const {
    return detail::call(wb_expert_cache_reset, get(), stream);
  }
  /// Uses the first `slots` slots from now on.
  Result<void> resize(std::uint64_t slots, void* stream) const {
    return detail::call(wb_expert_cache_resize, get(), slots, stream);
  }
  /// The counters of all layers.
  Result<wb_expert_cache_stats> get_stats() const {
    return detail::fill<wb_expert_cache_stats>(WB_EXPERT_CACHE_STATS_INIT,
                                               wb_expert_cache_get_stats, get());
  }
  Result<wb_expert_cache_stats> get_layer_stats(std::uint64_t layer) const {
    return detail::fill<wb_expert_cache_stats>(WB_EXPERT_CACHE_STATS_INIT,
                                               wb_expert_cache_get_layer_stats, get(), layer);
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_EXPERTS_HPP
