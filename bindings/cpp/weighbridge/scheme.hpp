/// Scheme: how numbers become 8 bits.
#ifndef WEIGHBRIDGE_SCHEME_HPP
#define WEIGHBRIDGE_SCHEME_HPP

#include <cstdint>

#include "weighbridge.h"

namespace weighbridge {

/// How numbers become 8 bits.
struct Scheme {
  wb_dtype format = WB_DTYPE_F8_E4M3FN;
  wb_dtype scale_type = WB_DTYPE_F32;
  /// Rows and columns that share a scale; 0 for all of them.
  std::uint64_t block_rows = 0;
  std::uint64_t block_cols = 0;
  bool given_scales = false;
  bool refuse_nonfinite = false;
};

namespace detail {

inline wb_quantize_options given(const Scheme& scheme) {
  wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
  options.format = scheme.format;
  options.scale_type = scheme.scale_type;
  options.block_rows = scheme.block_rows;
  options.block_cols = scheme.block_cols;
  options.given_scales = scheme.given_scales;
  options.refuse_nonfinite = scheme.refuse_nonfinite;
  return options;
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_SCHEME_HPP
