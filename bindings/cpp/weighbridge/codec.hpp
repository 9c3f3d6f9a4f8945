/// Codec: compresses values without loss.
#ifndef WEIGHBRIDGE_CODEC_HPP
#define WEIGHBRIDGE_CODEC_HPP

#include "weighbridge/language.hpp"

#include <cstdint>

#include "weighbridge.h"
#include "device.hpp"
#include "result.hpp"

namespace weighbridge {

/// Compresses values of one type: WB_DTYPE_BF16, WB_DTYPE_F16, WB_DTYPE_F32, WB_DTYPE_F8_E4M3FN or
/// WB_DTYPE_F8_E5M2. Functions of host memory work on `threads` threads; 0 for as many as there are
/// processors, at most 32. Those that queue take addresses of the device, at multiples of 16.
class Codec {
 public:
  explicit Codec(wb_dtype dtype, std::uint32_t threads = 0) : dtype_(dtype), threads_(threads) {}

  wb_dtype dtype() const noexcept { return dtype_; }

  /// wb_codec_get_max_bytes
  Result<std::uint64_t> get_max_bytes(std::uint64_t decoded_bytes) const {
    return detail::fill(std::uint64_t{0}, wb_codec_get_max_bytes, dtype_, decoded_bytes);
  }
  /// wb_codec_get_info
  static Result<wb_codec_info> get_info(const void* encoded, std::uint64_t available_bytes) {
    return detail::fill<wb_codec_info>(WB_CODEC_INFO_INIT, wb_codec_get_info, encoded,
                                       available_bytes);
  }
  /// wb_codec_measure: looks at `most_tiles` tiles; 0 for all.
  Result<wb_codec_info> measure(const void* source, std::uint64_t bytes,
                                std::uint64_t most_tiles = 0) const {
    return detail::fill<wb_codec_info>(WB_CODEC_INFO_INIT, wb_codec_measure, dtype_, source, bytes,
                                       most_tiles);
  }
  /// wb_codec_encode: `target_bytes` are those of get_max_bytes(), or more.
  Result<wb_codec_info> encode(const void* source, std::uint64_t bytes, void* target,
                               std::uint64_t target_bytes) const {
    return detail::fill<wb_codec_info>(WB_CODEC_INFO_INIT, wb_codec_encode, dtype_, source, bytes,
                                       target, target_bytes, threads_);
  }
  /// wb_codec_decode: `bytes` bytes of values from byte `offset` on. The type is the compressed one.
  Result<wb_codec_info> decode(const void* encoded, std::uint64_t available_bytes,
                               std::uint64_t offset, void* target, std::uint64_t bytes,
                               bool verify = false) const {
    return detail::fill<wb_codec_info>(WB_CODEC_INFO_INIT, wb_codec_decode, encoded,
                                       available_bytes, offset, target, bytes,
                                       static_cast<std::int32_t>(verify), threads_);
  }
  /// wb_codec_queue_encode
  Result<void> queue_encode(const Device& device, const void* source, std::uint64_t bytes,
                            void* target, std::uint64_t target_bytes, void* stream) const {
    return detail::call(wb_codec_queue_encode, device.get(), dtype_, source, bytes, target,
                        target_bytes, stream);
  }
  /// wb_codec_queue_decode
  Result<void> queue_decode(const Device& device, const void* encoded,
                            std::uint64_t available_bytes, std::uint64_t decoded_bytes,
                            std::uint64_t offset, void* target, std::uint64_t bytes,
                            void* stream) const {
    return detail::call(wb_codec_queue_decode, device.get(), dtype_, encoded, available_bytes,
                        decoded_bytes, offset, target, bytes, stream);
  }
  /// wb_codec_queue_verify: adds to the 64-bit integer at `mismatches`, in memory of the device.
  Result<void> queue_verify(const Device& device, const void* encoded,
                            std::uint64_t available_bytes, std::uint64_t decoded_bytes,
                            std::uint64_t offset, const void* decoded, std::uint64_t bytes,
                            void* mismatches, void* stream) const {
    return detail::call(wb_codec_queue_verify, device.get(), encoded, available_bytes,
                        decoded_bytes, offset, decoded, bytes, mismatches, stream);
  }

 private:
  wb_dtype dtype_;
  std::uint32_t threads_;
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_CODEC_HPP
