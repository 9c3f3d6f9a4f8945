/// QuantizeOptions: how tensors are quantized to FP8.
#ifndef WEIGHBRIDGE_QUANTIZE_OPTIONS_HPP
#define WEIGHBRIDGE_QUANTIZE_OPTIONS_HPP

#include "weighbridge/language.hpp"

#include <cstdint>

#include "weighbridge.h"
#include "progress.hpp"

namespace weighbridge {

/// wb_quantize_options
struct QuantizeOptions {
  wb_dtype format = 0;
  wb_dtype scale_dtype = 0;
  bool use_given_scales = false;
  std::uint64_t block_rows = 0;  ///< rows that share a scale; 0 for all
  std::uint64_t block_cols = 0;  ///< columns that share a scale; 0 for all
  bool reject_nonfinite = false;
  std::uint64_t scale_bytes = 0;
  Progress progress = nullptr;

  /// These options without the progress callback.
  wb_quantize_options to_c() const noexcept {
    wb_quantize_options raw = WB_QUANTIZE_OPTIONS_INIT;
    raw.format = format;
    raw.scale_dtype = scale_dtype;
    raw.use_given_scales = use_given_scales;
    raw.block_rows = block_rows;
    raw.block_cols = block_cols;
    raw.reject_nonfinite = reject_nonfinite;
    raw.scale_bytes = scale_bytes;
    return raw;
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_QUANTIZE_OPTIONS_HPP
