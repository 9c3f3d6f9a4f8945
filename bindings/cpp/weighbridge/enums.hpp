/// C's enumerations as types: for wb_tristate and WB_TRISTATE_ON, Tristate and Tristate::On.
#ifndef WEIGHBRIDGE_ENUMS_HPP
#define WEIGHBRIDGE_ENUMS_HPP

#include "weighbridge/language.hpp"

#include <type_traits>

#include "weighbridge.h"

namespace weighbridge {

enum class Tristate : wb_tristate {
  Auto = WB_TRISTATE_AUTO,
  On = WB_TRISTATE_ON,
  Off = WB_TRISTATE_OFF,
};

enum class HugePages : wb_huge_pages {
  Try = WB_HUGE_PAGES_TRY,
  Off = WB_HUGE_PAGES_OFF,
  Require = WB_HUGE_PAGES_REQUIRE,
};

enum class NumaPolicy : wb_numa_policy {
  Device = WB_NUMA_DEVICE,
  Any = WB_NUMA_ANY,
  Node = WB_NUMA_NODE,
};

enum class FileMode : wb_file_mode {
  Auto = WB_FILE_MODE_AUTO,
  Map = WB_FILE_MODE_MAP,
  Read = WB_FILE_MODE_READ,
  Source = WB_FILE_MODE_SOURCE,
};

enum class Phase : wb_phase {
  Fault = WB_PHASE_FAULT,
  Pin = WB_PHASE_PIN,
  Read = WB_PHASE_READ,
  Quantize = WB_PHASE_QUANTIZE,
  Compress = WB_PHASE_COMPRESS,
};

enum class Accessor : wb_accessor {
  Device = WB_ACCESSOR_DEVICE,
  Host = WB_ACCESSOR_HOST,
};

enum class AccessPattern : wb_access_pattern {
  Dense = WB_ACCESS_PATTERN_DENSE,
  Sparse = WB_ACCESS_PATTERN_SPARSE,
  Experts = WB_ACCESS_PATTERN_EXPERTS,
};

enum class TransferMode : wb_transfer_mode {
  Auto = WB_TRANSFER_MODE_AUTO,
  ZeroCopy = WB_TRANSFER_MODE_ZERO_COPY,
  OnDemand = WB_TRANSFER_MODE_ON_DEMAND,
  Prefetch = WB_TRANSFER_MODE_PREFETCH,
};

enum class Placement : wb_placement {
  Auto = WB_PLACEMENT_AUTO,
  Resident = WB_PLACEMENT_RESIDENT,
  Offloaded = WB_PLACEMENT_OFFLOADED,
};

enum class Grouping : wb_grouping {
  Layer = WB_GROUPING_LAYER,
  Module = WB_GROUPING_MODULE,
};

enum class HostStore : wb_host_store {
  Copy = WB_HOST_STORE_COPY,
  Source = WB_HOST_STORE_SOURCE,
  Compressed = WB_HOST_STORE_COMPRESSED,
};

/// Which offloaded parameters cross the link compressed.
enum class Compress : wb_compress {
  Off = WB_COMPRESS_OFF,
  Auto = WB_COMPRESS_AUTO,
  Selected = WB_COMPRESS_SELECTED,
};

enum class Order : wb_order {
  Spread = WB_ORDER_SPREAD,
  Declared = WB_ORDER_DECLARED,
  Largest = WB_ORDER_LARGEST,
};

enum class BudgetKind : wb_budget_kind {
  OffloadBytes = WB_BUDGET_OFFLOAD_BYTES,
  DeviceBytes = WB_BUDGET_DEVICE_BYTES,
};

enum class CodeDomain : wb_code_domain {
  None = WB_CODE_NONE,
  Errno = WB_CODE_ERRNO,
  Cuda = WB_CODE_CUDA,
};

namespace detail {

/// The constant of C that an enumerator stands for.
template <class Enum>
constexpr auto to_c(Enum value) noexcept {
  return static_cast<std::underlying_type_t<Enum>>(value);
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_ENUMS_HPP
