/// Plan: the placement of every parameter under a budget, before anything is allocated.
#ifndef WEIGHBRIDGE_PLAN_HPP
#define WEIGHBRIDGE_PLAN_HPP

#include "weighbridge/language.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weighbridge.h"
#include "device.hpp"
#include "enums.hpp"
#include "handle.hpp"
#include "parameter.hpp"
#include "quantize_options.hpp"
#include "result.hpp"

namespace weighbridge {

/// The one budget of a plan: bytes of host memory to offload, or bytes of device memory to use.
class Budget {
 public:
  static constexpr Budget offload_bytes(std::uint64_t bytes) noexcept {
    return {BudgetKind::OffloadBytes, bytes};
  }
  static constexpr Budget device_bytes(std::uint64_t bytes) noexcept {
    return {BudgetKind::DeviceBytes, bytes};
  }

  BudgetKind kind;
  std::uint64_t bytes;

 private:
  constexpr Budget(BudgetKind what, std::uint64_t limit) noexcept : kind(what), bytes(limit) {}
};

/// wb_plan_options
struct PlanOptions {
  Budget budget;
  std::uint32_t depth = 0;
  TransferMode transfer_mode = {};
  std::uint64_t slot_bytes = 0;
  std::vector<std::string> select = {};
  std::vector<std::string> exclude = {};
  Order order = {};
  std::uint32_t allow = 0;                       ///< WB_ALLOW_*
  std::optional<QuantizeOptions> quantize = {};  ///< none: nothing is quantized
  std::vector<std::string> quantize_select = {};
  double link_bytes_per_second = 0;
  double compute_bytes_per_second = 0;
  std::vector<double> group_seconds = {};  ///< one for each group, as parameters name them first
  std::uint64_t rows = 0;
  std::uint64_t expert_bytes = 0;  ///< device memory for expert caches; 0: what a budget leaves
  HostStore host_store = {};  ///< where offloaded parameters are kept in host memory
  Tristate fixed_addresses = {};  ///< addresses stay while Offloader::resize changes the budget
  bool keep_host_copy = false;    ///< resident parameters keep a copy in host memory
  Compress compress = {};         ///< which offloaded parameters cross the link compressed
  std::vector<std::string> compress_select = {};  ///< those of Compress::Selected
  Tristate encode_on_device = {};  ///< whether the device compresses what a commit compresses
  bool verify_compressed = false;  ///< a commit verifies what it carries as its file has it
};

/// The placement and the transfer mode of every parameter, with a reason for each.
class Plan : public detail::Handle<Plan, wb_plan, wb_plan_retain, wb_plan_release> {
 public:
  /// wb_plan_new
  static Result<Plan> make(const Device& device, const std::vector<Parameter>& parameters,
                           const PlanOptions& options) {
    for (const auto* texts : {&options.select, &options.exclude, &options.quantize_select,
                              &options.compress_select}) {
      for (const std::string& text : *texts) {
        if (const auto valid = detail::check_text(text); !valid) return valid.error();
      }
    }
    const auto select = pointers(options.select);
    const auto exclude = pointers(options.exclude);
    const auto quantize_select = pointers(options.quantize_select);
    const auto compress_select = pointers(options.compress_select);
    wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    if (options.quantize) quantize = options.quantize->to_c();
    wb_plan_options raw = WB_PLAN_OPTIONS_INIT;
    raw.depth = options.depth;
    raw.budget_kind = detail::to_c(options.budget.kind);
    raw.transfer_mode = detail::to_c(options.transfer_mode);
    raw.budget_bytes = options.budget.bytes;
    raw.slot_bytes = options.slot_bytes;
    raw.select = select.data();
    raw.exclude = exclude.data();
    raw.select_count = static_cast<std::uint32_t>(select.size());
    raw.exclude_count = static_cast<std::uint32_t>(exclude.size());
    raw.order = detail::to_c(options.order);
    raw.host_store = detail::to_c(options.host_store);
    raw.allow = options.allow;
    raw.quantize = options.quantize ? &quantize : nullptr;
    raw.quantize_select = quantize_select.data();
    raw.quantize_select_count = static_cast<std::uint32_t>(quantize_select.size());
    raw.link_bytes_per_second = options.link_bytes_per_second;
    raw.compute_bytes_per_second = options.compute_bytes_per_second;
    raw.group_seconds = options.group_seconds.data();
    raw.group_seconds_count = options.group_seconds.size();
    raw.rows = options.rows;
    raw.expert_bytes = options.expert_bytes;
    raw.fixed_addresses = detail::to_c(options.fixed_addresses);
    raw.keep_host_copy = options.keep_host_copy ? 1 : 0;
    raw.compress = detail::to_c(options.compress);
    raw.compress_select = compress_select.data();
    raw.compress_select_count = static_cast<std::uint32_t>(compress_select.size());
    raw.encode_on_device = detail::to_c(options.encode_on_device);
    raw.verify_compressed = options.verify_compressed ? 1 : 0;
    const auto all = detail::RawParameters::make(parameters.data(), parameters.size());
    if (!all) return all.error();
    return detail::make<Plan>(wb_plan_new, device.get(), all.value().data(), all.value().size(),
                              &raw);
  }
  Result<wb_plan_info> get_info() const {
    return detail::fill<wb_plan_info>(WB_PLAN_INFO_INIT, wb_plan_get_info, get());
  }
  /// The index of the parameter with a name.
  Result<std::uint64_t> find_parameter(const std::string& name) const {
    if (const auto valid = detail::check_text(name); !valid) return valid.error();
    return detail::fill(std::uint64_t{0}, wb_plan_find_parameter, get(), name.c_str());
  }
  /// The strings are valid while the plan is alive.
  Result<wb_plan_parameter_info> get_parameter_info(std::uint64_t index) const {
    return detail::fill<wb_plan_parameter_info>(WB_PLAN_PARAMETER_INFO_INIT,
                                                wb_plan_get_parameter_info, get(), index);
  }
  /// The name is valid while the plan is alive.
  Result<wb_plan_group_info> get_group_info(std::uint64_t index) const {
    return detail::fill<wb_plan_group_info>(WB_PLAN_GROUP_INFO_INIT, wb_plan_get_group_info, get(),
                                            index);
  }
  /// An error that PlanOptions::allow has downgraded, or what could not be done as well as was
  /// asked; valid while the plan is alive.
  Result<std::string_view> get_warning(std::uint64_t index) const {
    return text(wb_plan_get_warning, get(), index);
  }
  /// The whole plan; valid while the plan is alive.
  Result<std::string_view> to_json() const { return text(wb_plan_to_json, get()); }

 private:
  static std::vector<const char*> pointers(const std::vector<std::string>& texts) {
    std::vector<const char*> all;
    for (const std::string& text : texts) all.push_back(text.c_str());
    return all;
  }
  template <class Function, class... Arguments>
  static Result<std::string_view> text(Function function, const Arguments&... arguments) {
    const char* none = nullptr;
    const auto filled = detail::fill(none, function, arguments...);
    if (!filled) return filled.error();
    return std::string_view(filled.value());
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_PLAN_HPP
