/*
 * Lossless compression of weights on CUDA devices; docs/codec.md has the format. A warp handles a
 * tile. It reads and writes 16 bytes a lane wherever a plane has as many, never outside of the
 * compressed bytes that it is given, whatever these contain, and always the same decoded bytes.
 */
#include "codec/decode.cuh"
#include "codec/encode.cuh"

#define DECODE(name, TYPE)                                                                        \
    extern "C" __global__ void __launch_bounds__(WARPS * WB_LANES) wb_codec_decode_##name(        \
        const uint8_t *encoded, uint64_t encoded_bytes, uint64_t bytes, uint64_t first,           \
        uint32_t tiles, uint8_t *target)                                                          \
    {                                                                                             \
        decode<TYPE>(encoded, encoded_bytes, bytes, first, tiles, target);                        \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(WARPS * WB_LANES) wb_codec_carry_##name(         \
        const uint8_t *encoded, uint64_t encoded_bytes, uint64_t bytes, uint64_t first,           \
        uint32_t tiles, uint8_t *target, wb_codec_window window)                                  \
    {                                                                                             \
        carry<TYPE>(encoded, encoded_bytes, bytes, first, tiles, target, window);                 \
    }

DECODE(bf16, WB_CODED_BF16)
DECODE(f16, WB_CODED_F16)
DECODE(f32, WB_CODED_F32)
DECODE(e4m3, WB_CODED_E4M3)
DECODE(e5m2, WB_CODED_E5M2)
