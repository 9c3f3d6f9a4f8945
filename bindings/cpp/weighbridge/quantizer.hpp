/// Quantizer: numbers to 8 bits and back, in staging memory of bounded size.
#ifndef WEIGHBRIDGE_QUANTIZER_HPP
#define WEIGHBRIDGE_QUANTIZER_HPP

#include <cstdint>
#include <utility>

#include "weighbridge.h"
#include "device.hpp"
#include "handle.hpp"
#include "layout.hpp"
#include "result.hpp"
#include "scheme.hpp"

namespace weighbridge {

/// Quantizes tensors one at a time; addresses are in host or device memory.
class Quantizer : public detail::Handle<Quantizer, wb_quantizer, wb_quantizer_retain,
                                        wb_quantizer_release> {
 public:
  /// Takes at most `staging_bytes` of device memory; 0 for 128 MiB.
  static Result<Quantizer> make(const Device& device, std::uint64_t staging_bytes = 0) {
    return detail::make<Quantizer>([&](auto** quantizer, auto* error) {
      return wb_quantizer_new(device.get(), staging_bytes, quantizer, error);
    });
  }
  /// How many scales a tensor has.
  static Result<wb_quantizer_scales_info> scales(const Layout& layout, const Scheme& scheme = {}) {
    const wb_quantize_options options = detail::given(scheme);
    return detail::with_layout<wb_quantizer_scales_info>(layout, [&](const wb_layout* raw) {
      return detail::ask<wb_quantizer_scales_info>(WB_QUANTIZER_SCALES_INFO_INIT, [&](auto* info, auto* error) {
        return wb_quantizer_get_scales_info(raw, &options, info, error);
      });
    });
  }
  Result<wb_quantizer_result> quantize(std::uint64_t source, const Layout& layout, std::uint64_t target,
                                std::uint64_t scales, const Scheme& scheme = {}) const {
    const wb_quantize_options options = detail::given(scheme);
    return detail::with_layout<wb_quantizer_result>(layout, [&](const wb_layout* raw) {
      return detail::ask<wb_quantizer_result>(WB_QUANTIZER_RESULT_INIT, [&](auto* done, auto* error) {
        return wb_quantizer_quantize(get(), source, raw, target, scales, &options, done, error);
      });
    });
  }
  /// The way back, to numbers of the layout's type.
  Result<wb_quantizer_result> dequantize(std::uint64_t source, std::uint64_t scales, std::uint64_t target,
                                  const Layout& layout, const Scheme& scheme = {}) const {
    const wb_quantize_options options = detail::given(scheme);
    return detail::with_layout<wb_quantizer_result>(layout, [&](const wb_layout* raw) {
      return detail::ask<wb_quantizer_result>(WB_QUANTIZER_RESULT_INIT, [&](auto* done, auto* error) {
        return wb_quantizer_dequantize(get(), source, scales, target, raw, &options, done, error);
      });
    });
  }
};

}  // namespace weighbridge

#endif
