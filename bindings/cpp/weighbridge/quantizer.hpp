/// Quantizer: quantizes tensors to FP8 and dequantizes them.
#ifndef WEIGHBRIDGE_QUANTIZER_HPP
#define WEIGHBRIDGE_QUANTIZER_HPP

#include "weighbridge/language.hpp"

#include <cstdint>

#include "weighbridge.h"
#include "device.hpp"
#include "handle.hpp"
#include "layout.hpp"
#include "progress.hpp"
#include "quantize_options.hpp"
#include "result.hpp"

namespace weighbridge {

/// Quantizes one tensor at a time, in host or device memory, with staging memory of bounded size.
class Quantizer : public detail::Handle<Quantizer, wb_quantizer, wb_quantizer_retain,
                                        wb_quantizer_release> {
 public:
  /// wb_quantizer_new: uses at most `staging_bytes` bytes of device memory; 0 for 128 MiB.
  static Result<Quantizer> make(const Device& device, std::uint64_t staging_bytes = 0) {
    return detail::make<Quantizer>(wb_quantizer_new, device.get(), staging_bytes);
  }
  /// The number of scales of a tensor, and their bytes.
  static Result<wb_quantizer_scales_info> get_scales_info(const Layout& layout,
                                                          const QuantizeOptions& options = {}) {
    const auto raw = layout.to_c();
    if (!raw) return raw.error();
    const wb_quantize_options raw_options = options.to_c();
    return detail::fill<wb_quantizer_scales_info>(WB_QUANTIZER_SCALES_INFO_INIT,
                                                  wb_quantizer_get_scales_info, &raw.value(),
                                                  &raw_options);
  }
  /// Writes `target` and, unless QuantizeOptions::use_given_scales is set, `scales`.
  Result<wb_quantizer_result> quantize(const void* source, const Layout& layout, void* target,
                                       void* scales, const QuantizeOptions& options = {}) const {
    const auto raw = layout.to_c();
    if (!raw) return raw.error();
    return detail::with_options(options, [&](const wb_quantize_options* raw_options) {
      return detail::fill<wb_quantizer_result>(WB_QUANTIZER_RESULT_INIT, wb_quantizer_quantize,
                                               get(), source, &raw.value(), target, scales,
                                               raw_options);
    });
  }
  /// Dequantizes `source` to `target`, whose layout is given.
  Result<wb_quantizer_result> dequantize(const void* source, const void* scales, void* target,
                                         const Layout& layout,
                                         const QuantizeOptions& options = {}) const {
    const auto raw = layout.to_c();
    if (!raw) return raw.error();
    return detail::with_options(options, [&](const wb_quantize_options* raw_options) {
      return detail::fill<wb_quantizer_result>(WB_QUANTIZER_RESULT_INIT, wb_quantizer_dequantize,
                                               get(), source, scales, target, &raw.value(),
                                               raw_options);
    });
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_QUANTIZER_HPP
