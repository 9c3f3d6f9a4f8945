/// Plan: which parameter goes where and why, before anything is allocated.
#ifndef WEIGHBRIDGE_PLAN_HPP
#define WEIGHBRIDGE_PLAN_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weighbridge.h"
#include "device.hpp"
#include "handle.hpp"
#include "layout.hpp"
#include "result.hpp"
#include "scheme.hpp"

namespace weighbridge {

/// wb_parameter: a parameter of a model.
struct Parameter {
  std::string name;
  std::string group;  ///< what is acquired together with it: a layer
  Layout layout = {};
  std::uint64_t source = 0;   ///< address in host or device memory; 0 while there are no bytes
  std::uint64_t storage = 0;  ///< ties parameters that have no source
  wb_access_pattern access = WB_ACCESS_PATTERN_DENSE;
  wb_transfer_mode carrier = WB_TRANSFER_MODE_AUTO;
};

/// wb_plan_options, one budget of which is given.
struct PlanOptions {
  std::uint64_t offload_bytes = WB_UNSET;
  std::uint64_t device_bytes = WB_UNSET;
  std::uint64_t slot_bytes = WB_UNSET;
  std::uint32_t depth = 0;
  std::vector<std::string> select = {};
  std::vector<std::string> exclude = {};
  wb_transfer_mode carrier = WB_TRANSFER_MODE_AUTO;
  wb_order order = WB_ORDER_SPREAD;
  std::uint32_t allow = 0;
  /// How matrices are quantized; none for not at all.
  std::optional<Scheme> quantize = {};
  std::vector<std::string> quantize_select = {};
  double link_bytes_per_second = 0;
};

namespace detail {

inline std::vector<const char*> pointers(const std::vector<std::string>& texts) {
  std::vector<const char*> all;
  for (const std::string& text : texts) all.push_back(text.c_str());
  return all;
}

/// Calls with parameters as C reads them, and how many there are.
template <class Noun, class Call>
Result<Noun> with_parameters(const std::vector<Parameter>& parameters, Call&& call) {
  std::vector<wb_layout> layouts(parameters.size());
  std::vector<wb_parameter> raw(parameters.size());
  for (std::size_t at = 0; at < parameters.size(); ++at) {
    const Parameter& given = parameters[at];
    for (const std::string* text : {&given.name, &given.group}) {
      if (const auto whole = detail::whole(*text); !whole) return whole.error();
    }
    const auto written = with_layout<bool>(given.layout, [&](const wb_layout* layout) {
      layouts[at] = *layout;
      return Result<bool>(true);
    });
    if (!written) return written.error();
    raw[at] = WB_PARAMETER_INIT;
    raw[at].access = given.access;
    raw[at].name = given.name.c_str();
    raw[at].group = given.group.c_str();
    raw[at].layout = &layouts[at];
    raw[at].source = given.source;
    raw[at].storage = given.storage;
    raw[at].carrier = given.carrier;
  }
  return call(raw.data(), std::uint64_t{raw.size()});
}

}  // namespace detail

/// Which parameters leave the device under a budget, and how they are carried.
class Plan : public detail::Handle<Plan, wb_plan, wb_plan_retain, wb_plan_release> {
 public:
  static Result<Plan> make(const Device& device, const std::vector<Parameter>& parameters,
                           const PlanOptions& options) {
    for (const auto* texts : {&options.select, &options.exclude, &options.quantize_select}) {
      for (const std::string& text : *texts) {
        if (const auto whole = detail::whole(text); !whole) return whole.error();
      }
    }
    const auto select = detail::pointers(options.select);
    const auto exclude = detail::pointers(options.exclude);
    const auto quantized = detail::pointers(options.quantize_select);
    const wb_quantize_options scheme = detail::given(options.quantize.value_or(Scheme{}));
    wb_plan_options raw = WB_PLAN_OPTIONS_INIT;
    raw.depth = options.depth;
    raw.offload_bytes = options.offload_bytes;
    raw.device_bytes = options.device_bytes;
    raw.slot_bytes = options.slot_bytes;
    raw.select = select.data();
    raw.exclude = exclude.data();
    raw.select_count = static_cast<std::uint32_t>(select.size());
    raw.exclude_count = static_cast<std::uint32_t>(exclude.size());
    raw.carrier = options.carrier;
    raw.order = options.order;
    raw.allow = options.allow;
    raw.quantize = options.quantize ? &scheme : nullptr;
    raw.quantize_select = quantized.data();
    raw.quantize_count = static_cast<std::uint32_t>(quantized.size());
    raw.link_bytes_per_second = options.link_bytes_per_second;
    return detail::with_parameters<Plan>(parameters, [&](auto* given, std::uint64_t count) {
      return detail::make<Plan>([&](auto** plan, auto* error) {
        return wb_plan_new(device.get(), given, count, &raw, plan, error);
      });
    });
  }
  Result<wb_plan_info> describe() const {
    return detail::ask<wb_plan_info>(WB_PLAN_INFO_INIT, [&](auto* info, auto* error) {
      return wb_plan_get_info(get(), info, error);
    });
  }
  /// The index of the parameter of a name.
  Result<std::uint64_t> find(const std::string& name) const {
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    return detail::ask(std::uint64_t{0}, [&](auto* index, auto* error) {
      return wb_plan_find_parameter(get(), name.c_str(), index, error);
    });
  }
  /// What becomes of a parameter; its strings live as long as the plan.
  Result<wb_plan_parameter_info> parameter(std::uint64_t index) const {
    return detail::ask<wb_plan_parameter_info>(WB_PLAN_PARAMETER_INFO_INIT, [&](auto* info, auto* error) {
      return wb_plan_get_parameter_info(get(), index, info, error);
    });
  }
  /// A group; its name lives as long as the plan.
  Result<wb_plan_group_info> group(std::uint64_t index) const {
    return detail::ask<wb_plan_group_info>(WB_PLAN_GROUP_INFO_INIT, [&](auto* info, auto* error) {
      return wb_plan_get_group_info(get(), index, info, error);
    });
  }
  /// What was allowed; alive as long as the plan.
  Result<std::string_view> warning(std::uint64_t index) const {
    return text([&](auto* to, auto* error) { return wb_plan_get_warning(get(), index, to, error); });
  }
  /// The whole plan; alive as long as it.
  Result<std::string_view> json() const {
    return text([&](auto* to, auto* error) { return wb_plan_to_json(get(), to, error); });
  }

 private:
  template <class Call>
  static Result<std::string_view> text(Call&& call) {
    const char* none = nullptr;
    auto found = detail::ask(none, call);
    if (!found) return found.error();
    return std::string_view(found.value());
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_PLAN_HPP
